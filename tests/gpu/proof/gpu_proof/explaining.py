"""The parts that look for a reason: what changes the result, and where a fusion is refused.

They judge nothing but that their runs ended well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpu_proof.correctness import DEVICES, compare
from gpu_proof.dumps import Comparison, compare_nodes
from gpu_proof.judging import fusions, how_it_ended
from gpu_proof.report import Report, plain
from gpu_proof.runs import BOTH, FIRST, OFF, ON, SHORT, Bench, Ran, Turn, together

NO_PIPELINE = ("-ot", "no_such_tensor=CPU")
"""A tensor's override switches pipeline parallelism off, whether or not a tensor has that name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One thing done in another way, on one device and on two."""

    name: str
    binary: str = "patched-dump"
    options: tuple[str, ...] = (*SHORT, *ON)
    env: Mapping[str, str] = field(default_factory=dict)


CHANGES = (
    Change(name="as-is"),
    Change(name="no-fusion", env={"GGML_CUDA_DISABLE_FUSION": "1"}),
    Change(name="cublas-f32", env={"GGML_CUDA_FORCE_CUBLAS_COMPUTE_32F": "1"}),
    Change(name="no-pipeline", options=(*SHORT, *ON, *NO_PIPELINE)),
    Change(name="no-graphs", env={"GGML_CUDA_DISABLE_GRAPHS": "1"}),
    Change(name="blocking", env={"CUDA_LAUNCH_BLOCKING": "1"}),
    Change(name="all-off", options=(*SHORT, *OFF)),
    Change(name="stock-all-off", binary="stock-dump", options=(*SHORT, *OFF)),
)
STOCK = Change(name="stock", binary="stock-dump", options=SHORT)
PAIRS = (
    ("stock-1", "as-is-1"),
    ("stock-2", "as-is-2"),
    ("stock-1", "stock-2"),
    ("all-off-1", "as-is-1"),
    ("all-off-2", "as-is-2"),
    ("stock-all-off-2", "all-off-2"),
)
"""Runs that are compared beside each change's own two."""
NODES: Mapping[str, Mapping[str, str]] = {
    "named": {},
    "all": {"DG_DUMP_NODES_ALL": "1", "DG_DUMP_NODES_MAX": "65536"},
}
"""Which nodes of the graphs are dumped: layer outputs and the like, or all."""


def _line(found: Comparison) -> str:
    line = f"same reply {found.same_reply}, NMSE by step {found.nmse}"
    return line if found.problem is None else f"{line}; {found.problem}"


def _report_failures(
    part: str, turns: Sequence[Turn], runs: Mapping[str, Ran], bench: Bench, report: Report
) -> None:
    failed = []
    for turn in turns:
        ran = runs[turn.name]
        if ran.exit_code != 0:
            failed.append(f"{turn.name}: {how_it_ended(ran)}")
        elif turn.dumps and not bench.dump(turn.name).exists():
            failed.append(f"{turn.name} dumped no logits")
    if failed:
        report.verdict(part, False, f"{len(failed)} of {len(turns)} runs failed; {failed[0]}")


def explain(bench: Bench, report: Report) -> None:
    """Why one device and two differ, where they do: one change at a time, and the graphs node by node."""
    turns = [
        Turn(
            name=f"why-{change.name}-{count}",
            binary=change.binary,
            options=change.options,
            env=change.env,
            gpus=gpus,
            steps=4,
            dumps=True,
        )
        for change in (*CHANGES, STOCK)
        for count, gpus in DEVICES.items()
    ]
    for kind, more in NODES.items():
        for count, gpus in DEVICES.items():
            path = bench.scratch / f"nodes-{kind}-{count}"
            path.unlink(missing_ok=True)
            turns.append(
                Turn(
                    name=f"why-nodes-{kind}-{count}",
                    binary="patched-dump",
                    options=(*SHORT, *ON),
                    env={"DG_DUMP_NODES": str(path), **more},
                    gpus=gpus,
                    steps=2,
                )
            )
    runs = together(turns, bench, at_once=5)
    table: dict[str, object] = {}
    for kind in NODES:
        nodes = compare_nodes(bench.scratch / f"nodes-{kind}-1", bench.scratch / f"nodes-{kind}-2").summary()
        table[f"nodes-{kind}"] = nodes
        told = {key: plain(value) for key, value in nodes.items() if key != "nmse"}
        report.note(f"nodes-{kind}: {json.dumps(told)[:1500]}")
    for a, b in PAIRS:
        found = compare(bench, runs[f"why-{a}"], runs[f"why-{b}"])
        table[f"why-{a} why-{b}"] = found.summary()
        report.note(f"why-{a} against why-{b}: {_line(found)}")
    for change in CHANGES:
        found = compare(bench, runs[f"why-{change.name}-1"], runs[f"why-{change.name}-2"])
        table[change.name] = found.summary()
        report.note(f"{change.name}: {_line(found)}")
    report.keep("explain", table)
    _report_failures("explain", turns, runs, bench, report)


ROUTER: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "stock-off-1": ("stock-dump", (*SHORT, *OFF), FIRST),
    "stock-off-2": ("stock-dump", (*SHORT, *OFF), BOTH),
    "stock-off-2-nopipe": ("stock-dump", (*SHORT, *OFF, *NO_PIPELINE), BOTH),
    "stock-1": ("stock-dump", SHORT, FIRST),
    "patched-1": ("patched-dump", (*SHORT, *ON), FIRST),
    "patched-2": ("patched-dump", (*SHORT, *ON), BOTH),
    "patched-off-1": ("patched-dump", (*SHORT, *OFF), FIRST),
    "patched-off-2": ("patched-dump", (*SHORT, *OFF), BOTH),
}
ROUTER_EXTRA: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "extra-1": ("extra-dump", (*SHORT, *ON), FIRST),
    "extra-2": ("extra-dump", (*SHORT, *ON), BOTH),
}
"""Binary, options and devices of the runs whose routers are looked at; these with the patch on trial."""
ROUTER_PAIRS = (
    ("stock-off-1", "stock-off-2"),
    ("stock-off-1", "stock-off-2-nopipe"),
    ("stock-1", "patched-1"),
    ("patched-1", "patched-2"),
    ("patched-off-1", "patched-off-2"),
    ("patched-1", "patched-off-1"),
    ("extra-1", "extra-2"),
    ("patched-1", "extra-1"),
)


def router(bench: Bench, report: Report) -> None:
    """Where the router's fusion is refused, on one device and on two, and what follows from it."""
    bench.wait_until_built(keep=60)
    plan = {**ROUTER, **(ROUTER_EXTRA if bench.extra else {})}
    turns = [
        Turn(
            name=f"router-{name}",
            binary=binary,
            options=options,
            gpus=gpus,
            env={"DG_LOG_FUSION": "1"},
            steps=3,
            dumps=True,
        )
        for name, (binary, options, gpus) in plan.items()
    ]
    runs = together(turns, bench, at_once=5)
    table: dict[str, object] = {}
    for name in plan:
        seen = fusions(runs[f"router-{name}"].text)
        table[name] = seen
        report.note(f"router {name}: {seen.seen} routers, refused {dict(seen.refused)}")
    for a, b in ROUTER_PAIRS:
        if a in plan and b in plan:
            found = compare(bench, runs[f"router-{a}"], runs[f"router-{b}"])
            table[f"{a} {b}"] = found.summary()
            report.note(f"router {a} against {b}: {_line(found)}")
    report.keep("router", table)
    _report_failures("router", turns, runs, bench, report)
