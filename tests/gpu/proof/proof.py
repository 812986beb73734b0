"""Runs and judges the proofs of gpu-proof.sh. Needs numpy; PyTorch only to fill GPU memory.

Every run keeps its raw output in OUT/logs. A part without time left is reported as "no time", never as passed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ON = ["--diffusion-kv-cache", "on", "--diffusion-gpu-sampling", "on", "--diffusion-gpu-sample-reduce", "on"]
OFF = [
    "--diffusion-kv-cache",
    "off",
    "--diffusion-gpu-sampling",
    "off",
    "--diffusion-gpu-sample-reduce",
    "off",
]
SHORT = ["-p", "hello", "-n", "256"]
ROWS = 16  # canvas rows of each step that are dumped and compared
STEP = re.compile(rb"diffusion step: (\d+)/(\d+)")
SC = re.compile(r"DG_SC_CHECK step (\d+): got=(\d+) maxabs=(\S+) sumabs=(\S+) nmiss=(\d+)/(\d+)")
DEV = re.compile(r"DG_DEVSAMPLE_CHECK step (\d+): amax_mismatch=(\d+)/(\d+) tok_diff=(\d+)/(\d+)")


def long_prompt(digits: int) -> str:
    """In the synthetic vocabulary a digit is one token."""
    return "".join(str(i * i % 7919) for i in range(digits))[:digits]


class Proof:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.end = time.monotonic() + args.seconds
        self.logs = args.out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, object] = {}
        self.failed: list[str] = []
        self.long = ["-p", long_prompt(args.long_digits), "-n", "1536"]

    def left(self) -> float:
        return self.end - time.monotonic()

    def verdict(self, name: str, ok: bool, note: str) -> None:
        print(f"{'ok  ' if ok else 'FAIL'} {name}: {note}", flush=True)
        self.results.setdefault("verdicts", {})[name] = {"ok": ok, "note": note}  # type: ignore[index]
        if not ok:
            self.failed.append(name)
        self.save()

    def save(self) -> None:
        (self.args.out / "summary.json").write_text(json.dumps(self.results, indent=1, default=str) + "\n")

    def run(
        self,
        name: str,
        binary: str,
        options: list[str],
        *,
        gpus: str = "0,1",
        env: dict[str, str] | None = None,
        steps: int = 12,
        model: str = "",
    ) -> dict[str, object]:
        """One turn. Time stamps are taken as the progress lines arrive."""
        path = self.args.bin / binary
        while not path.exists():
            if self.args.built.exists() or self.left() < 20:
                return {"name": name, "rc": None, "error": f"no binary {binary}"}
            time.sleep(0.5)
        argv = [
            str(path),
            "-m",
            str(self.args.model.with_name(model or self.args.model.name)),
            "--seed",
            "1",
            "--diffusion-eb-max-steps",
            str(steps),
            *options,
        ]
        if "-ngl" not in options:
            argv += ["-ngl", "99"]
        environment = {
            **os.environ,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": gpus,
            **(env or {}),
        }
        if self.args.logical and gpus == "0,1":
            # two devices on one card, see logical_gpus.c
            environment |= {
                "CUDA_VISIBLE_DEVICES": "0",
                "LOGICAL_GPUS": "2",
                "LD_PRELOAD": str(self.args.logical),
            }
        started = time.monotonic()
        log = (self.logs / f"{name}.log").open("wb")
        log.write(
            (
                f"$ {' '.join(f'{k}={v}' for k, v in (env or {}).items())} CUDA_VISIBLE_DEVICES={gpus} "
                + " ".join(a if len(a) < 60 else a[:57] + "..." for a in argv)
                + "\n"
            ).encode()
        )
        child = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, stdin=subprocess.DEVNULL
        )
        assert child.stdout is not None
        stamps: list[tuple[int, float]] = []
        text, tail, ended = bytearray(), b"", False
        os.set_blocking(child.stdout.fileno(), False)
        while not ended:
            try:
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                ended = not chunk
            except BlockingIOError:
                chunk = b""
            now = time.monotonic()
            if chunk:
                tail += chunk
                last = 0
                for match in STEP.finditer(tail):
                    stamps.append((int(match[1]), now))
                    last = match.end()
                tail = tail[max(last, len(tail) - 64) :]
                text += chunk
                log.write(chunk)
            elif not ended:
                time.sleep(0.0005)
                if now - started > max(30.0, min(240.0, self.left() + 30)):
                    child.kill()
        rc = child.wait()
        log.write(f"\n[exit code {rc}, {time.monotonic() - started:.1f} s]\n".encode())
        log.close()
        out = text.decode("utf-8", "replace").replace("\r", "\n")
        # the reply stands between the last progress line and the turn's total
        at = out.find("\n", out.rfind("diffusion step:"))
        reply = out[at + 1 : out.find("total time: ")] if 0 <= at < out.find("total time: ") else None
        return {
            "name": name,
            "rc": rc,
            "seconds": round(time.monotonic() - started, 1),
            "stamps": stamps,
            "out": out,
            "reply": hashlib.sha256(reply.encode()).hexdigest()[:16] if reply else None,
            "reply_chars": len(reply) if reply else 0,
            "devices": next(iter(re.findall(r"diffusion_devices: .*", out)), None),
        }

    def together(self, runs: list[tuple[tuple, dict]], at_once: int) -> dict[str, dict]:
        """Runs that are not timed share the GPUs."""
        with concurrent.futures.ThreadPoolExecutor(min(at_once, self.args.at_once)) as pool:
            done = [pool.submit(self.run, *a, **k) for a, k in runs]
            return {r["name"]: r for r in (d.result() for d in done)}  # type: ignore[index,misc]

    # --- parts ---

    def validators_of(self, run: dict) -> tuple[bool, str]:
        steps, sc, dev = (
            len(run.get("stamps", ())),
            SC.findall(run.get("out", "")),
            DEV.findall(run.get("out", "")),
        )
        if run["rc"] != 0 or not steps:
            return False, f"exit code {run['rc']}, {steps} steps"
        bad_sc = [s for s in sc if not (s[1] == s[5] and s[2] == "0" and s[3] == "0" and s[4] == "0")]
        bad_dev = [d for d in dev if d[1] != "0" or d[3] != "0"]
        not_run = re.findall(r"DG_\w+_CHECK: not run.*", run["out"])
        ok = len(sc) == steps and len(dev) == steps and not bad_sc and not bad_dev and not not_run
        return ok, (
            f"{steps} steps, SC lines {len(sc)} (bad {len(bad_sc)}), sampler lines {len(dev)} (bad {len(bad_dev)})"
            f"{'; ' + not_run[0] if not_run else ''}"
        )

    def validate(self) -> None:
        checks = {"DG_SC_CHECK": "1", "DG_DEVSAMPLE_CHECK": "1"}
        runs = [
            ((f"validate-{size}-{n}gpu", "patched", [*prompt, *ON]), {"gpus": gpus, "env": checks})
            for size, prompt in (("short", SHORT), ("long", self.long))
            for n, gpus in ((1, "0"), (2, "0,1"))
        ]
        for name, run in self.together(runs, 4).items():
            self.verdict(name, *self.validators_of(run))

    def ties(self) -> None:
        """A tiny model with words that have exactly the same highest logit: the sampler must take the first."""
        checks = {"DG_SC_CHECK": "1", "DG_DEVSAMPLE_CHECK": "1"}
        small = ["-p", "hello", "-n", "64"]
        runs = self.together(
            [
                ((n, b, [*small, *o]), {"gpus": g, "env": checks, "model": "ties.gguf"})
                for n, b, o, g in (
                    ("ties-1gpu", "patched", ON, "0"),
                    ("ties-2gpu", "patched", ON, "0,1"),
                    ("ties-stock-1gpu", "stock", [], "0"),
                )
            ],
            3,
        )
        for name in ("ties-1gpu", "ties-2gpu"):
            self.verdict(name, *self.validators_of(runs[name]))
        found = [d[1] for d in DEV.findall(runs["ties-stock-1gpu"].get("out", ""))]
        self.verdict(
            "ties-control",
            any(d != "0" for d in found),
            f"the unpatched sampler must miss one: amax_mismatch {found}",
        )

    def dump(self, name: str, binary: str, options: list[str], **more: object) -> tuple[tuple, dict]:
        path = self.args.scratch / f"{name}.logits"
        path.unlink(missing_ok=True)
        env = {"DG_DUMP_LOGITS": str(path), "DG_DUMP_ROWS": str(ROWS), **more.pop("env", {})}  # type: ignore[dict-item]
        return (name, binary, options), {"env": env, **more}

    def logits(self, name: str) -> list[np.ndarray]:
        path = self.args.scratch / f"{name}.logits"
        if not path.exists():
            return []
        steps, data = [], np.memmap(path, np.uint8, "r")
        at = 0
        while at + 24 <= len(data):
            magic, version, _, _, rows, vocabulary = np.frombuffer(data[at : at + 24], np.int32)
            assert magic == 0x474C4744 and version == 1
            size = 4 * int(rows) * int(vocabulary)
            steps.append(np.frombuffer(data[at + 24 : at + 24 + size], np.float32))
            at += 24 + size
        return steps

    def compare(self, a: str, b: str, runs: dict[str, dict]) -> dict[str, object]:
        """Replies, and each step's normalised mean square error: mean((a-b)^2) / mean((a-mean a)^2)."""
        nmse, same = [], []
        for x, y in zip(self.logits(a), self.logits(b), strict=False):
            if np.array_equal(x, y):
                nmse.append(0.0)
                same.append(True)
                continue
            x64, y64 = x.astype(np.float64), y.astype(np.float64)
            nmse.append(float(np.mean((x64 - y64) ** 2) / max(np.var(x64), 1e-30)))
            same.append(False)
        reply = runs[a].get("reply")
        first = next((i for i, s in enumerate(same) if not s), None)
        return {
            "same_reply": reply is not None and reply == runs[b].get("reply"),
            "steps": len(nmse),
            "first_step_that_differs": first,
            "nmse": nmse,
            "nmse_max": max(nmse, default=None),
            "nmse_step_0": nmse[0] if nmse else None,
        }

    def identity(self) -> None:
        table: dict[str, object] = {}
        for size, prompt, steps in (("short", SHORT, 12), ("long", [*self.long[:2], "-n", "512"], 12)):
            if self.left() < 60:
                self.verdict(f"identity-{size}", False, "no time")
                continue
            cases = {
                "1gpu": ({"gpus": "0"}, []),
                "1gpu-again": ({"gpus": "0"}, []),
                "1gpu-other": ({"gpus": "1"}, []),
                "2gpu": ({}, []),
                "2gpu-again": ({}, []),
                "2gpu-ts73": ({}, ["-ts", "7,3"]),
                "2gpu-ts37": ({}, ["-ts", "3,7"]),
                "2gpu-swapped": ({"gpus": "1,0"}, []),
                "sm-none": ({}, ["-sm", "none"]),
            }
            if self.args.logical:
                cases = {c: v for c, v in cases.items() if c not in ("1gpu-other", "2gpu-swapped")}
            runs = self.together(
                [
                    self.dump(f"id-{size}-{c}", "patched-dump", [*prompt, *ON, *o], steps=steps, **k)
                    for c, (k, o) in cases.items()
                ],
                5,
            )
            for case in cases:
                if case == "1gpu":
                    continue
                found = self.compare(f"id-{size}-1gpu", f"id-{size}-{case}", runs)
                table[f"{size} {case}"] = found
                top = found["nmse_max"]
                ok = bool(found["same_reply"]) and top is not None and float(top) < 1e-6  # type: ignore[arg-type]
                self.verdict(
                    f"identity-{size}-1gpu-{case}",
                    ok,
                    f"same reply {found['same_reply']}, NMSE max {top}, first step that differs "
                    f"{found['first_step_that_differs']} of {found['steps']}",
                )
            table[f"{size} replies"] = {
                n: (r["reply"], r["reply_chars"], r["devices"]) for n, r in runs.items()
            }
        self.results["identity"] = table

    def explain(self) -> None:
        """Why 1 and 2 GPUs differ, if they do: one change at a time, each compared 1 against 2 GPUs."""
        changes: dict[str, tuple[dict[str, str], list[str]]] = {
            "as-is": ({}, []),
            "no-fusion": ({"GGML_CUDA_DISABLE_FUSION": "1"}, []),
            "cublas-f32": ({"GGML_CUDA_FORCE_CUBLAS_COMPUTE_32F": "1"}, []),
            "no-pipeline": ({}, ["-ot", "no_such_tensor=CPU"]),
            "no-graphs": ({"GGML_CUDA_DISABLE_GRAPHS": "1"}, []),
            "blocking": ({"CUDA_LAUNCH_BLOCKING": "1"}, []),
            "all-off": ({}, ["OFF"]),
            "stock-all-off": ({}, ["OFF"]),
        }
        table: dict[str, object] = {}
        todo = []
        for change, (env, extra) in changes.items():
            options = [*SHORT, *(OFF if "OFF" in extra else ON), *(o for o in extra if o != "OFF")]
            binary = "stock-dump" if change.startswith("stock") else "patched-dump"
            todo += [
                self.dump(f"why-{change}-{n}", binary, options, env=dict(env), gpus=g, steps=4)
                for n, g in ((1, "0"), (2, "0,1"))
            ]
        todo += [
            self.dump("why-stock-1", "stock-dump", SHORT, gpus="0", steps=4),
            self.dump("why-stock-2", "stock-dump", SHORT, steps=4),
        ]
        for n, g in ((1, "0"), (2, "0,1")):
            for kind, more in (
                ("named", {}),
                ("all", {"DG_DUMP_NODES_ALL": "1", "DG_DUMP_NODES_MAX": "65536"}),
            ):
                path = self.args.scratch / f"nodes-{kind}-{n}"
                todo.append(
                    (
                        (f"why-nodes-{kind}-{n}", "patched-dump", [*SHORT, *ON]),
                        {"env": {"DG_DUMP_NODES": str(path), **more}, "gpus": g, "steps": 2},
                    )
                )
        runs = self.together(todo, 5)
        for kind in ("named", "all"):
            table[f"nodes-{kind}"] = found = self.compare_nodes(kind)
            print(
                f"     nodes-{kind}: {json.dumps({k: v for k, v in found.items() if k != 'nmse'})[:1500]}",
                flush=True,
            )
        for a, b in (
            ("why-stock-1", "why-as-is-1"),
            ("why-stock-2", "why-as-is-2"),
            ("why-stock-1", "why-stock-2"),
            ("why-all-off-1", "why-as-is-1"),
            ("why-all-off-2", "why-as-is-2"),
            ("why-stock-all-off-2", "why-all-off-2"),
        ):
            table[f"{a} {b}"] = found = self.compare(a, b, runs)
            print(
                f"     {a} against {b}: same reply {found['same_reply']}, NMSE by step {found['nmse']}",
                flush=True,
            )
        for change in changes:
            found = self.compare(f"why-{change}-1", f"why-{change}-2", runs)
            table[change] = found
            print(
                f"     {change}: same reply {found['same_reply']}, NMSE by step {found['nmse']}", flush=True
            )
        self.results["explain"] = table
        self.save()

    def router(self) -> None:
        """Where the router's fusion is refused, on 1 GPU and on 2, and what follows from it."""
        log = {"DG_LOG_FUSION": "1"}
        off = [*SHORT, *OFF]
        plan = {
            "stock-off-1": ("stock-dump", off, "0"),
            "stock-off-2": ("stock-dump", off, "0,1"),
            "stock-off-2-nopipe": ("stock-dump", [*off, "-ot", "no_such_tensor=CPU"], "0,1"),
            "stock-1": ("stock-dump", SHORT, "0"),
            "patched-1": ("patched-dump", [*SHORT, *ON], "0"),
            "patched-2": ("patched-dump", [*SHORT, *ON], "0,1"),
            "patched-off-1": ("patched-dump", off, "0"),
            "patched-off-2": ("patched-dump", off, "0,1"),
        }
        while not self.args.built.exists() and self.left() > 60:
            time.sleep(1)
        if (self.args.bin / "extra-dump").exists():
            plan |= {
                "extra-1": ("extra-dump", [*SHORT, *ON], "0"),
                "extra-2": ("extra-dump", [*SHORT, *ON], "0,1"),
            }
        runs = self.together(
            [self.dump(f"router-{n}", b, o, gpus=g, env=dict(log), steps=3) for n, (b, o, g) in plan.items()],
            5,
        )
        table: dict[str, object] = {}
        for name in plan:
            seen = re.findall(r"DG_FUSION dev (\d) (\S+) (\w+)", runs[f"router-{name}"].get("out", ""))
            refused: dict[str, int] = {}
            for dev, node, what in seen:
                if what == "refused":
                    refused[f"{dev}:{node}"] = refused.get(f"{dev}:{node}", 0) + 1
            table[name] = {"seen": len(seen), "refused": refused}
            print(f"     router {name}: {len(seen)} routers, refused {refused}", flush=True)
        for a, b in (
            ("stock-off-1", "stock-off-2"),
            ("stock-off-1", "stock-off-2-nopipe"),
            ("stock-1", "patched-1"),
            ("patched-1", "patched-2"),
            ("patched-off-1", "patched-off-2"),
            ("patched-1", "patched-off-1"),
            ("extra-1", "extra-2"),
            ("patched-1", "extra-1"),
        ):
            if a in plan and b in plan:
                table[f"{a} {b}"] = found = self.compare(f"router-{a}", f"router-{b}", runs)
                print(
                    f"     router {a} against {b}: same reply {found['same_reply']}, NMSE by step {found['nmse']}",
                    flush=True,
                )
        self.results["router"] = table
        self.save()

    def nodes(self, path: Path) -> Iterator[tuple[str, int, np.ndarray]]:
        data = np.memmap(path, np.uint8, "r")
        at = 0
        while at + 92 <= len(data):
            name = bytes(data[at + 4 : at + 68]).split(b"\0")[0].decode()
            op, *_, n = (int(v) for v in np.frombuffer(data[at + 68 : at + 92], np.int32))
            yield name, op, np.frombuffer(data[at + 92 : at + 92 + 4 * n], np.float32)
            at += 92 + 4 * n

    def compare_nodes(self, kind: str) -> dict[str, object]:
        """Every dumped node of a prefill and two steps, 1 GPU against 2, in the order of computation."""
        paths = [self.args.scratch / f"nodes-{kind}-{n}" for n in (1, 2)]
        if not all(p.exists() for p in paths):
            return {"error": "no dump"}
        count, named, differ, graph = 0, 0, [], -1
        worst: dict[str, float] = {}
        for (a, op, x), (b, _, y) in zip(self.nodes(paths[0]), self.nodes(paths[1]), strict=False):
            graph += a.startswith("inp_") and a.startswith("inp_scaled")
            count += 1
            if a != b or len(x) != len(y):
                differ.append(f"order: {a} and {b}")
                break
            if not np.array_equal(x, y, equal_nan=True):
                x64, y64 = x.astype(np.float64), y.astype(np.float64)
                nmse = float(np.mean((x64 - y64) ** 2) / max(np.var(x64), 1e-300))
                worst[f"{graph} {a}"] = nmse
                differ.append(f"graph {graph} {a} op {op} nmse {nmse:.3g}")
        return {
            "nodes": count,
            "graphs": graph + 1,
            "differ": len(differ),
            "first": differ[:12],
            "last": differ[-3:],
            "nmse": worst,
        }

    def negative(self) -> None:
        checks = {"DG_SC_CHECK": "1", "DG_DEVSAMPLE_CHECK": "1"}
        names = ("broken-copy", "broken-pointer")
        runs = self.together([((n, n, [*SHORT, *ON]), {"env": checks, "steps": 4}) for n in names], 2)
        for name in names:
            passed, note = self.validators_of(runs[name])
            self.verdict(
                f"negative-{name}", runs[name]["rc"] == 0 and not passed, f"validators must fail: {note}"
            )
        # a K/V copy left out is seen by no validator: only by the logits of another configuration
        runs = self.together(
            [
                self.dump("kv-good", "patched-dump", [*SHORT, *ON], steps=4),
                self.dump("broken-kv", "broken-kv", [*SHORT, *ON], steps=4),
            ],
            2,
        )
        top = self.compare("kv-good", "broken-kv", runs)["nmse_max"]
        self.verdict(
            "negative-broken-kv", top is not None and float(top) > 1e-6, f"NMSE must exceed 1e-6: {top}"
        )  # type: ignore[arg-type]

    # --- speed ---

    @staticmethod
    def times(run: dict) -> dict[str, object]:
        """Milliseconds a step (median) of every block and the gaps between blocks."""
        blocks: list[list[float]] = []
        for step, at in run.get("stamps", ()):
            if step == 0:
                blocks.append([])
            if blocks:
                blocks[-1].append(at)
        steps = [[1000 * (b - a) for a, b in zip(x, x[1:], strict=False)] for x in blocks if len(x) > 1]
        medians = [round(statistics.median(x), 2) for x in steps]
        spread = [[round(min(x), 2), round(max(x), 2)] for x in steps]
        gaps = [round(1000 * (b[0] - a[-1]), 1) for a, b in zip(blocks, blocks[1:], strict=False) if a and b]
        total = re.search(r"total time: ([0-9.]+)ms", run.get("out", ""))
        return {
            "ms_per_step": medians,
            "min_max": spread,
            "gaps_ms": gaps,
            "turn_ms": float(total[1]) if total else None,
            "rc": run["rc"],
            "devices": run.get("devices"),
        }

    @staticmethod
    def merge(runs: list[dict]) -> dict[str, object]:
        """Medians over repeats of the same run, block by block and gap by gap."""

        def over(key: str) -> list[float]:
            return [
                round(statistics.median(x), 2) for x in zip(*(r[key] for r in runs if r[key]), strict=False)
            ]

        turns = [r["turn_ms"] for r in runs if r["turn_ms"]]
        return {
            "runs": len(runs),
            "ms_per_step": over("ms_per_step"),
            "by_run": [r["ms_per_step"] for r in runs],
            "gaps_ms": over("gaps_ms"),
            "turn_ms": statistics.median(turns) if turns else None,
            "devices": runs[0]["devices"],
        }

    def speed_cpu(self, table: dict[str, dict]) -> None:
        cpu: dict[str, list[float]] = {"patched": [], "stock": []}
        for turn in range(5):
            for binary in cpu:
                if self.left() < 15:
                    continue
                run = self.run(
                    f"speed-cpu-{binary}-{turn}",
                    binary,
                    ["-p", "hello", "-n", "64", "-ngl", "0", "-t", "16", "--diffusion-eb-confidence", "0"],
                    gpus="",
                    steps=48,
                    model="tiny.gguf",
                )
                cpu[binary] += self.times(run)["ms_per_step"][:1]  # type: ignore[index]
        table["cpu"] = cpu  # type: ignore[assignment]
        print(f"     cpu, tiny: {cpu}", flush=True)
        if cpu["patched"] and cpu["stock"]:
            a, b = (statistics.median(cpu[n]) for n in ("patched", "stock"))
            self.verdict(
                "speed-cpu-vs-stock", a <= 1.02 * b, f"at most 1.02: {a} and {b} ms, ratio {a / b:.3f}"
            )

    def speed(self) -> None:
        while not self.args.built.exists() and self.left() > 150:
            time.sleep(1)  # compilers would be timed as well
        table: dict[str, dict] = {}
        self.results["speed"] = table
        series = ["patched", *(["extra"] if (self.args.bin / "extra").exists() else [])]
        short = {
            n: [
                *[(f"{b}-{n}gpu-short", b, [*SHORT, *ON], g) for b in series],
                (f"stock-{n}gpu-short", "stock", SHORT, g),
            ]
            for n, g in ((1, "0"), (2, "0,1"))
        }
        long = {
            n: [
                *[(f"{b}-{n}gpu-long", b, [*self.long, *ON], g) for b in series],
                (f"stock-{n}gpu-long", "stock", self.long, g),
            ]
            for n, g in ((1, "0"), (2, "0,1"))
        }
        plan = [
            *short[1],
            *short[2],
            *short[1],
            *long[1],
            *long[2][:-1],
            *short[1],
            *short[2],
            long[2][-1],
            ("cpu", "", [], ""),
            *long[1],
            *long[2][:-1],
            *short[2],
        ]
        repeats: dict[str, list[dict]] = {}
        self.results["speed_runs"] = repeats
        for name, binary, options, gpus in plan:
            if name == "cpu":
                if not self.args.logical:
                    self.speed_cpu(table)
                continue
            need = 65 if name == "stock-2gpu-long" else 22
            if self.left() < need:
                table.setdefault(name, {"error": "no time"})
                print(f"     {name}: no time", flush=True)
                continue
            found = self.times(
                self.run(f"speed-{name}-{len(repeats.get(name, []))}", binary, options, gpus=gpus)
            )
            repeats.setdefault(name, []).append(found)
            print(f"     {name}: {found}", flush=True)
            table[name] = self.merge(repeats[name])
            self.save()

        def at(name: str, block: int) -> float | None:
            steps = table.get(name, {}).get("ms_per_step") or []
            return steps[block] if steps else None

        def ratio(name: str, a: float | None, b: float | None, good: object, note: str) -> None:
            if a is None or b is None:
                self.verdict(name, False, f"{note}: no figures")
            else:
                self.verdict(name, bool(good(a, b)), f"{note}: {a} and {b} ms, ratio {a / b:.3f}")  # type: ignore[operator]

        ratio(
            "speed-short-2-vs-1",
            at("patched-2gpu-short", 0),
            at("patched-1gpu-short", 0),
            lambda a, b: a <= 1.03 * b,
            "at most 1.03",
        )
        ratio(
            "speed-long-flat",
            at("patched-2gpu-long", -1),
            at("patched-2gpu-long", 0),
            lambda a, b: a <= 1.06 * b,
            "at most 1.06",
        )
        ratio(
            "speed-short-vs-stock",
            at("stock-2gpu-short", 0),
            at("patched-2gpu-short", 0),
            lambda a, b: a >= 2.8 * b,
            "at least 2.8",
        )
        ratio(
            "speed-long-vs-stock",
            at("stock-2gpu-long", -1),
            at("patched-2gpu-long", -1),
            lambda a, b: a >= 6.5 * b,
            "at least 6.5",
        )
        ratio(
            "speed-1gpu-long-vs-stock",
            at("patched-1gpu-long", -1),
            at("stock-1gpu-long", -1),
            lambda a, b: a <= 1.02 * b,
            "at most 1.02",
        )
        ratio(
            "speed-1gpu-vs-stock",
            at("patched-1gpu-short", 0),
            at("stock-1gpu-short", 0),
            lambda a, b: a <= 1.02 * b,
            "at most 1.02",
        )
        gaps = table.get("patched-2gpu-long", {}).get("gaps_ms") or []
        self.verdict("speed-gap", bool(gaps) and max(gaps) < 450, f"gaps {gaps} ms, under 450")

    # --- memory pressure ---

    def hold(self, leave: dict[int, int]) -> subprocess.Popen[str]:
        """A process that leaves only that many MiB free on each GPU."""
        code = (
            "import sys, torch\nheld = []\n"
            "for word in sys.argv[1:]:\n"
            "    gpu, leave = map(int, word.split(':'))\n"
            "    torch.zeros(1, device=f'cuda:{gpu}')\n"
            "    free = torch.cuda.mem_get_info(gpu)[0]\n"
            "    size = max(free - leave * 1048576, 0)\n"
            "    held.append(torch.empty(size, dtype=torch.uint8, device=f'cuda:{gpu}'))\n"
            "    print(gpu, torch.cuda.mem_get_info(gpu)[0] >> 20, 'MiB free', flush=True)\n"
            "print('ready', flush=True)\nsys.stdin.read()\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code, *(f"{g}:{m}" for g, m in leave.items())],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        )
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() == "ready":
                break
        return child

    def pressure(self) -> None:
        # a small micro-batch: the compute buffers must be smaller than sc_embT for a gap to exist between them
        options = ["-p", "hello", "-ub", "384", "-b", "384", "-c", "384", "-ts", "1,1", "-lv", "4", *ON]
        free = self.run("pressure-none", "patched", options, steps=6)
        weights = {
            g: float(m)
            for g, m in re.findall(r"CUDA(\d) model buffer size =\s*([0-9.]+) MiB", free.get("out", ""))
        }
        compute = {
            g: float(m)
            for g, m in re.findall(r"CUDA(\d) compute buffer size =\s*([0-9.]+) MiB", free.get("out", ""))
        }
        self.results["pressure"] = {
            "model_mib": weights,
            "compute_mib": compute,
            "devices": free.get("devices"),
        }
        if len(weights) != 2:
            self.verdict("pressure", False, f"no run to start from: exit code {free['rc']}")
            return
        full = {"first": ["1"], "host": ["0", "1"]}
        for case, gpus in full.items():
            note = "never fell back"
            ok = False
            # CUDA's own memory is not printed: try room beside the weights from small to large
            for room in (1300, 1100, 900) if self.args.logical else (1700, 1800, 1500, 1900, 2000):
                if self.left() < 35:
                    note += "; no time"
                    break
                if self.args.logical:
                    limits = ",".join(
                        str(int(weights[g]) + room + 512) if g in gpus else "65536" for g in ("0", "1")
                    )
                    run = self.run(
                        f"pressure-{case}-{room}",
                        "patched",
                        options,
                        steps=6,
                        env={"LOGICAL_GPU_MIB": limits},
                    )
                else:
                    holder = self.hold({int(g): int(weights[g]) + room for g in gpus})
                    try:
                        run = self.run(f"pressure-{case}-{room}", "patched", options, steps=6)
                    finally:
                        holder.communicate("")
                warned = re.findall(r"no room for (\w+) .*? on (\w+), it is on (\w+)", run.get("out", ""))
                place = dict((w[0], w[2]) for w in warned).get("sc_embT")
                note = f"room {room} MiB: exit code {run['rc']}, {warned}, same reply {run['reply'] == free['reply']}"
                print(f"     {case}: {note}", flush=True)
                wanted = (
                    place == "CUDA0"
                    if case == "first"
                    else place is not None and not place.startswith("CUDA0")
                )
                if run["rc"] == 0 and wanted:
                    ok = run["reply"] is not None and run["reply"] == free["reply"]
                    break
            self.verdict(f"pressure-{case}", ok, note)

    def all(self) -> int:
        smi = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.results["gpus"] = smi.stdout.split("\n")[:-1]
        for part in self.args.parts.split(","):
            if self.left() < 45:
                self.verdict(part, False, "no time")
                continue
            began = time.monotonic()
            getattr(self, part)()
            print(f"     part {part}: {time.monotonic() - began:.0f} s, {self.left():.0f} s left", flush=True)
        self.results["failed"] = self.failed
        self.save()
        print(f"{len(self.failed)} failed: {', '.join(self.failed) or '-'}")
        return 1 if self.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bin", "model", "out", "built", "scratch"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--parts", default="validate,ties,identity,negative,pressure,speed,explain")
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument(
        "--at-once",
        type=int,
        default=5,
        help="runs that share a GPU, where they are not timed; about 20 GB each",
    )
    parser.add_argument("--logical", type=Path, help="logical_gpus.so: two devices on one card")
    parser.add_argument("--long-digits", type=int, default=1780, help="digits (tokens) of the long prompt")
    return Proof(parser.parse_args()).all()


if __name__ == "__main__":
    sys.exit(main())
