"""The proof's scripts as they are called on a machine with GPUs.

The binaries are stand-ins that print what real ones printed on an NVIDIA H100: this is about the scripts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROOF = ROOT / "tests" / "gpu" / "proof"
LOGS = ROOT / "tests" / "unit" / "data" / "proof"


def call(*argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(
        [str(word) for word in argv],
        env=own | {"PYTHONDONTWRITEBYTECODE": "1"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], error: str, *, code: int = 2) -> None:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("proof: ")
    assert error in done.stderr


def stand_in(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def replay(folder: Path, **logs: str) -> None:
    for name, log in logs.items():
        stand_in(folder, name.replace("_", "-"), f"exec cat '{LOGS / log}.log'")


def proof(tmp_path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``proof.py`` on the stand-ins in ``bin``, with this interpreter and the checkout for a writer."""
    model = tmp_path / "full.gguf"
    model.touch()
    model.with_name("ties.gguf").touch()
    folders = ("--bin", tmp_path / "bin", "--out", tmp_path / "out", "--scratch", tmp_path / "scratch")
    argv: list[str | Path] = [sys.executable, PROOF / "proof.py", *folders, "--model", model, *options]
    return call(*argv, PYTHONPATH=str(ROOT), **environment)


def summary(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "summary.json").read_text())
    return found


def verdicts(tmp_path: Path) -> dict[str, bool]:
    return {name: verdict["ok"] for name, verdict in summary(tmp_path)["verdicts"].items()}


def test_good_runs_pass_and_what_is_broken_is_found(tmp_path: Path) -> None:
    replay(
        tmp_path / "bin",
        patched="validate-short-1gpu",
        stock="ties-stock-1gpu",
        broken_copy="broken-copy",
        broken_pointer="broken-pointer",
    )
    done = proof(tmp_path, "--parts", "validate,ties")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "0 failed: -"
    assert all(verdicts(tmp_path).values())
    assert len(verdicts(tmp_path)) == 4 + 3
    done = proof(tmp_path, "--parts", "negative")
    assert done.returncode == 1
    assert verdicts(tmp_path) == {
        "negative-broken-copy": True,
        "negative-broken-pointer": True,
        "negative-broken-kv": False,  # no binary, no dump
    }
    assert (tmp_path / "out" / "logs" / "broken-copy.log").read_text().endswith(" s]\n")


def test_a_control_that_is_not_broken_is_not_taken_for_one_that_was_found(tmp_path: Path) -> None:
    quiet = tmp_path / "quiet.log"
    lines = (LOGS / "validate-short-1gpu.log").read_bytes().split(b"\n")
    quiet.write_bytes(b"\n".join(line for line in lines if b"_CHECK step" not in line))
    replay(tmp_path / "bin", broken_copy="validate-short-1gpu")
    stand_in(tmp_path / "bin", "broken-pointer", f"exec cat '{quiet}'")
    assert proof(tmp_path, "--parts", "negative").returncode == 1
    assert verdicts(tmp_path)["negative-broken-copy"] is False
    assert verdicts(tmp_path)["negative-broken-pointer"] is False


def test_without_time_no_part_passes(tmp_path: Path) -> None:
    replay(tmp_path / "bin", patched="validate-short-1gpu")
    done = proof(tmp_path, "--parts", "validate,explain", "--seconds", "40")
    assert done.returncode == 1
    assert done.stdout == "FAIL validate: no time\nFAIL explain: no time\n2 failed: validate, explain\n"


def test_runs_that_fail_fail_the_parts_that_judge_nothing_else(tmp_path: Path) -> None:
    for name in ("patched-dump", "stock-dump"):
        stand_in(tmp_path / "bin", name, "echo 'error: no device'; exit 1")
    done = proof(tmp_path, "--parts", "explain,router")
    assert done.returncode == 1
    assert verdicts(tmp_path) == {"explain": False, "router": False}
    assert "runs failed; why-as-is-1: exit code 1 (error: no device)" in done.stdout


def test_binaries_that_dump_nothing_fail_them_too(tmp_path: Path) -> None:
    replay(tmp_path / "bin", patched_dump="validate-short-1gpu", stock_dump="validate-short-1gpu")
    done = proof(tmp_path, "--parts", "router")
    assert done.returncode == 1
    assert "FAIL router: 8 of 8 runs failed; router-stock-off-1 dumped no logits\n" in done.stdout


def test_runs_are_ended_with_the_proof(tmp_path: Path) -> None:
    stand_in(tmp_path / "bin", "patched", f"echo $$ >> {tmp_path}/pids; exec sleep 100")
    (tmp_path / "full.gguf").touch()
    folders = ("--bin", tmp_path / "bin", "--out", tmp_path / "out", "--scratch", tmp_path / "scratch")
    options = ("--model", tmp_path / "full.gguf", "--parts", "validate")
    child = subprocess.Popen(
        [sys.executable, PROOF / "proof.py", *folders, *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = tmp_path / "pids"
    until = time.monotonic() + 30
    while not (pids.exists() and pids.read_text().count("\n") == 4):
        assert time.monotonic() < until, "the runs did not start"
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (130, "proof: interrupted\n")
    for pid in pids.read_text().split():
        assert not Path("/proc", pid).exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--parts", "validate,speeed"), "there is no part 'speeed'; parts: validate, ties, "),
        (("--parts", ""), "there is no part ''"),
        (("--at-once", "0"), "--at-once and --long-digits take a number from 1"),
        (("--seconds", "soon"), "invalid float value: 'soon'"),
        (("--logical", "/no/such.so"), "--logical: /no/such.so is no file"),
        (("--bin", "/no/such"), "--bin: /no/such is no folder"),
        (("--parts", "speed"), "the part 'speed' needs tiny.gguf beside "),
        (("--parts", "validate", "--out", "/proc/none"), "no folder /proc/none"),
    ],
)
def test_wrong_use_of_the_program_is_one_line(tmp_path: Path, options: tuple[str, ...], error: str) -> None:
    (tmp_path / "bin").mkdir()
    assert_refused(proof(tmp_path, *options), error)


def test_a_machine_without_the_package_is_told_what_to_set(tmp_path: Path) -> None:
    done = call(sys.executable, "-S", PROOF / "proof.py", "--help", PYTHONPATH="")
    assert_refused(done, "python3 finds no ")


def script(*options: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return call(PROOF / "proof.sh", *options, **environment)


def test_help_names_every_option(tmp_path: Path) -> None:
    done = script("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert script("-h").stdout == done.stdout
    text = (PROOF / "proof.sh").read_text()
    parsed = text[text.index("while [ $# -gt 0 ]") : text.index("shift 2")]
    options = {word for word in parsed.replace(")", " ").split() if word.startswith("--")}
    assert len(options) == 16
    for option in options:
        assert f"\n  {option} " in done.stdout
    assert done.stdout.startswith("proof.sh --out DIR")
    assert "shellcheck" not in done.stdout


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ((), "--out is missing"),
        (("--speed", "1"), "unknown option --speed"),
        (("--out",), "--out needs a value"),
        (("--out", ""), "--out needs a value"),
        (("--out", "OUT", "--parts", "validate,all"), "there is no part 'all'"),
        (("--out", "OUT", "--deadline", "9m"), "--deadline: '9m' is no number from 1"),
        (("--out", "OUT", "--at-once", "0"), "--at-once: '0' is no number from 1"),
        (("--out", "OUT", "--logical", "maybe"), "--logical: 'maybe' is neither yes nor no"),
        (("--out", "OUT", "--extra-patch", "/no/such.patch"), "--extra-patch: /no/such.patch is no file"),
        (("--out", "/proc/none"), "--out: the folder /proc/none can't be made"),
        (("--out", "OUT", "--work", "/dev/null/work"), "--work: the folder /dev/null/work can't be made"),
        (("--out", "OUT", "--bin", __file__), f"--bin: the folder {__file__} can't be made"),
        (("--out", "OUT", "--arch", "sm_120"), "--arch: 'sm_120' is no number such as 90: give 120"),
        (("--out", "OUT", "--arch", "12.0"), "--arch: '12.0' is no number such as 90: give 120"),
        (("--out", "OUT", "--arch", "native"), "--arch: 'native' is no number such as 90\n"),
        (("--out", "OUT", "--writer", "/nope"), "--writer: /nope is no folder"),
        (("--out", "OUT", "--parts", " validate, ties"), "has no patched stock: give"),
        (("--out", "OUT", "--parts", "ties"), "has no patched stock: give --source and --patches"),
        (("--out", "OUT", "--source", "/no/such.tar", "--patches", "."), "--source: /no/such.tar is no file"),
        (
            ("--out", "OUT", "--source", __file__, "--patches", "/no/such"),
            "--patches: /no/such/series is no file",
        ),
    ],
)
def test_wrong_use_of_the_script_is_one_line(tmp_path: Path, options: tuple[str, ...], error: str) -> None:
    words = [str(tmp_path / "out") if word == "OUT" else word for word in options]
    assert_refused(script("--work", tmp_path / "work", *words), error)


TREE = {"CMakeLists.txt": "project(a)\n", "src/a.cpp": "one\ntwo\nthree\n"}
PATCH = """\
--- a/src/a.cpp
+++ b/src/a.cpp
@@ -1,3 +1,3 @@
 one
-two
+TWO
 three
"""


def archive(tmp_path: Path, tree: Mapping[str, str] = TREE) -> Path:
    path = tmp_path / "source.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in tree.items():
            member = tarfile.TarInfo(f"tree/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def patches(tmp_path: Path, *texts: str) -> Path:
    folder = tmp_path / "patches"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = [f"{at:04}.patch" for at in range(1, len(texts) + 1)]
    (folder / "series").write_text("# in this order\n" + "\n".join(names) + "\n")
    for name, text in zip(names, texts, strict=True):
        (folder / name).write_text(text)
    return folder


def cards(tmp_path: Path, *capabilities: str) -> None:
    """What nvidia-smi tells: GPUs of these compute capabilities, or that there is no driver."""
    if not capabilities:
        failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
        stand_in(tmp_path / "tools", "nvidia-smi", f'echo "{failed}"; exit 9')
        return
    lines = [f"{at}, GPU-{at}{at}, NVIDIA H100, 580.1, 81559 MiB" for at in range(len(capabilities))]
    told = tmp_path / "told"
    told.mkdir(exist_ok=True)
    (told / "capabilities").write_text("\n".join(capabilities) + "\n")
    (told / "cards").write_text("\n".join(lines) + "\n")
    asked = f"*compute_cap*) cat '{told}/capabilities' ;; *) cat '{told}/cards' ;;"
    stand_in(tmp_path / "tools", "nvidia-smi", f'case "$*" in {asked} esac')


def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose compiler takes no time: what it built prints a good run's log.

    It has two GPUs, where no others were laid there.
    """
    tools = tmp_path / "tools"
    if not (tools / "nvidia-smi").exists():
        cards(tmp_path, "9.0", "9.0")
    log = LOGS / "validate-short-1gpu.log"
    binary = f"{tmp_path}/work/build/bin/llama-diffusion-cli"
    stand_in(tools, "cmake", f"echo \"$@\" >> {tmp_path}/cmake.calls; mkdir -p '{tmp_path}/work/build/bin'")
    lines = [
        f"src=$(echo '{tmp_path}'/work/src/*/src/a.cpp)",
        f"printf '#!/bin/sh\\n# %s\\nexec cat %s\\n' \"$(tr '\\n' ' ' < \"$src\")\" '{log}' > '{binary}'",
        f"chmod 755 '{binary}'",
    ]
    stand_in(tools, "ninja", "\n".join(lines))
    stand_in(tools, "nvcc", "exit 1")
    return {"PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def prove(tmp_path: Path, *options: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``proof.sh`` on that machine, for the part whose one binary is the patched one."""
    model = tmp_path / "full.gguf"
    model.touch()
    folders = ("--out", tmp_path / "out", "--work", tmp_path / "work", "--model", model)
    return script(*folders, "--parts", "validate", *options, **machine(tmp_path), **environment)


def built(done: subprocess.CompletedProcess[str]) -> bool:
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return "] built patched\n" in done.stdout


def test_a_binary_is_built_again_once_what_it_is_of_has_changed(tmp_path: Path) -> None:
    given = ("--source", archive(tmp_path), "--patches", patches(tmp_path, PATCH))
    binary = tmp_path / "work" / "bin" / "patched"
    assert built(prove(tmp_path, *given))
    assert "# one TWO three" in binary.read_text()
    assert not built(prove(tmp_path, *given))
    patches(tmp_path, PATCH.replace("TWO", "2"))
    assert built(prove(tmp_path, *given))
    assert "# one 2 three" in binary.read_text()
    archive(tmp_path, TREE | {"LICENSE": "MIT\n"})
    assert built(prove(tmp_path, *given))
    binary.with_name("patched.of").unlink()  # as a call that was ended in between leaves it
    assert built(prove(tmp_path, *given))
    cards(tmp_path, "10.0", "10.0")
    assert built(prove(tmp_path, *given))
    assert not built(prove(tmp_path, *given, "--arch", "100"))
    calls = (tmp_path / "cmake.calls").read_text().splitlines()
    wanted = [f"-DCMAKE_CUDA_ARCHITECTURES={arch}" for arch in (90, 90, 90, 90, 100)]
    assert [next(word for word in call.split() if "ARCH" in word) for call in calls] == wanted
    assert sorted(path.name for path in binary.parent.iterdir()) == ["patched", "patched.of"]


def test_a_binary_of_something_else_is_not_proved(tmp_path: Path) -> None:
    source, series = archive(tmp_path), patches(tmp_path, PATCH)
    assert built(prove(tmp_path, "--source", source, "--patches", series, "--arch", "90"))
    done = prove(tmp_path, "--parts", " validate")
    assert not built(done)
    digest = hashlib.sha256(PATCH.encode()).hexdigest()
    pin = hashlib.sha256(source.read_bytes()).hexdigest()
    assert f"] series {digest}\n" in done.stdout
    assert f"] source {pin}, architecture 90\n" in done.stdout
    proved = summary(tmp_path)["proved"]
    age = datetime.now(UTC) - datetime.fromisoformat(proved.pop("date"))
    assert timedelta(0) <= age < timedelta(minutes=5)
    folders = f"--out {tmp_path}/out --work {tmp_path}/work --model {tmp_path}/full.gguf"
    assert proved == {
        "series": digest,
        "source": pin,
        "arch": "90",
        "command": f"proof.sh {folders} --parts validate --parts ' validate'",
        "parts": ["validate"],
        "logical": False,
    }
    assert not built(prove(tmp_path, "--patches", series))
    patches(tmp_path, PATCH, PATCH.replace("two", "TWO").replace("+TWO", "+2"))
    refused = "patched is not known to be of this {}: give --source and --patches"
    assert_refused(prove(tmp_path, "--patches", series), refused.format("series"))
    assert_refused(prove(tmp_path, "--source", LOGS / "broken-copy.log"), refused.format("source"))
    assert_refused(prove(tmp_path, "--arch", "80"), refused.format("architecture"))


ADDS = "--- /dev/null\n+++ b/src/new.cpp\n@@ -0,0 +1 @@\n+new\n"
RENAMED = PATCH.replace("src/a.cpp", "src/b.cpp")


@pytest.mark.parametrize(
    ("series", "error"),
    [
        ((PATCH, ADDS), "0002.patch:1: files are only changed here, not made, removed or renamed"),
        ((PATCH, PATCH), "0002.patch: the hunk at line 1 does not apply to src/a.cpp"),
        ((RENAMED,), "0001.patch: there is no file src/b.cpp to change"),
        (("no patch\n",), "0001.patch: holds no diff"),
        ((PATCH[:-10],), "0001.patch: ends in the middle of a hunk for src/a.cpp"),
    ],
)
def test_a_series_that_can_not_be_applied_is_one_line(
    tmp_path: Path, series: tuple[str, ...], error: str
) -> None:
    done = prove(tmp_path, "--source", archive(tmp_path), "--patches", patches(tmp_path, *series))
    assert_refused(done, f"proof: {error}\n")
    assert not (tmp_path / "cmake.calls").exists()


def test_a_source_that_is_no_tree_is_one_line(tmp_path: Path) -> None:
    series = ("--patches", patches(tmp_path, PATCH))
    log = LOGS / "broken-copy.log"
    assert_refused(prove(tmp_path, "--source", log, *series), f"--source: {log} can't be unpacked\n")
    empty = archive(tmp_path, {"README": ""})
    assert_refused(prove(tmp_path, "--source", empty, *series), "holds no tree with a CMakeLists.txt")


def test_a_model_without_those_that_the_parts_need_is_one_line(tmp_path: Path) -> None:
    replay(tmp_path / "bin", patched="validate-short-1gpu", stock="ties-stock-1gpu")
    for part, model in {"ties": "ties.gguf", "speed": "tiny.gguf"}.items():
        done = prove(tmp_path, "--bin", tmp_path / "bin", "--parts", f"validate, {part}")
        assert_refused(done, f"--model: the part {part} needs {model} beside {tmp_path}/full.gguf\n")


def test_without_gpus_nothing_is_compiled(tmp_path: Path) -> None:
    given = ("--source", archive(tmp_path), "--patches", patches(tmp_path, PATCH))
    done = prove(tmp_path, *given, CUDA_VISIBLE_DEVICES="")
    assert_refused(done, "proof: no GPU found (CUDA_VISIBLE_DEVICES is '')\n", code=3)
    cards(tmp_path)
    done = prove(tmp_path, *given)
    assert_refused(done, "proof: no GPU found (nvidia-smi, exit code 9: NVIDIA-SMI has failed ", code=3)
    cards(tmp_path, "9.0")
    assert_refused(prove(tmp_path, *given), "proof: one GPU found, two are needed: give --logical yes\n")
    assert not (tmp_path / "cmake.calls").exists()
    assert built(prove(tmp_path, *given, "--logical", "yes"))


def test_what_the_gpus_can_not_run_is_neither_compiled_nor_run(tmp_path: Path) -> None:
    given = ("--source", archive(tmp_path), "--patches", patches(tmp_path, PATCH))
    error = "--arch: GPU 0 (NVIDIA H100, architecture 90) can't run code for 120: give --arch 90\n"
    assert_refused(prove(tmp_path, *given, "--arch", "120"), error)
    assert not (tmp_path / "cmake.calls").exists()
    done = prove(tmp_path, *given, "--arch", "80")
    assert done.stderr == "proof: GPUs of architecture 90 compile the code for 80 as they start\n"
    assert done.returncode == 0
    cards(tmp_path, "7.5", "7.5")
    assert_refused(prove(tmp_path), "can't run code for 80: give --arch 75\n")


def test_the_caller_s_choice_of_gpus_is_kept(tmp_path: Path) -> None:
    cards(tmp_path, "7.5", "9.0", "7.5", "9.0")
    given = ("--source", archive(tmp_path), "--patches", patches(tmp_path, PATCH))
    assert built(prove(tmp_path, *given, CUDA_VISIBLE_DEVICES="3, GPU-11"))
    assert summary(tmp_path)["proved"]["arch"] == "90"
    assert summary(tmp_path)["gpus"] == ["NVIDIA H100, 580.1, 81559 MiB"] * 2
    firsts = {log.read_text().split("\n")[0] for log in (tmp_path / "out" / "logs").iterdir()}
    seen = {word for line in firsts for word in line.split() if word.startswith("CUDA_VISIBLE_DEVICES")}
    assert seen == {"CUDA_VISIBLE_DEVICES=3", "CUDA_VISIBLE_DEVICES=3,GPU-11"}
    error = "CUDA_VISIBLE_DEVICES names one GPU, two are needed: name two, or give --logical yes\n"
    assert_refused(prove(tmp_path, CUDA_VISIBLE_DEVICES="1"), error)
    done = prove(tmp_path, CUDA_VISIBLE_DEVICES="1,4")
    assert_refused(done, "CUDA_VISIBLE_DEVICES: nvidia-smi lists no GPU '4'\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "tiny.gguf").touch()
    assert_refused(proof(tmp_path, CUDA_VISIBLE_DEVICES="1"), error)


def test_binaries_of_different_series_are_not_proved_together(tmp_path: Path) -> None:
    replay(tmp_path / "bin", patched="validate-short-1gpu", patched_dump="validate-short-1gpu")
    more = {
        "patched": hashlib.sha256(b"").hexdigest(),
        "patched-dump": hashlib.sha256((PROOF / "debug-logits.patch").read_bytes()).hexdigest(),
    }
    for at, (name, digest) in enumerate(more.items()):
        (tmp_path / "bin" / f"{name}.of").write_text(f"source a\nseries {at}\nmore {digest}\narch 90\n")
    done = prove(tmp_path, "--bin", tmp_path / "bin", "--parts", "validate,negative")
    assert_refused(done, "bin has no broken-copy broken-pointer broken-kv: give --source and --patches")
    replay(tmp_path / "bin", stock_dump="validate-short-1gpu")
    done = prove(tmp_path, "--bin", tmp_path / "bin", "--parts", "validate,drift")
    assert_refused(done, "bin are of different sources: give --source and --patches")
    (tmp_path / "bin" / "stock-dump.of").write_text(f"source a\nmore {more['patched-dump']}\narch 90\n")
    done = prove(tmp_path, "--bin", tmp_path / "bin", "--parts", "validate,drift")
    assert_refused(done, "bin are of different series: give --source and --patches")


def test_a_build_with_one_patch_more_is_not_run_unless_it_is_asked_for(tmp_path: Path) -> None:
    for name in ("patched-dump", "stock-dump", "extra-dump"):
        stand_in(tmp_path / "bin", name, "echo 'error: no device'; exit 1")
    proof(tmp_path, "--parts", "router")
    assert not list((tmp_path / "out" / "logs").glob("router-extra-*"))
    proof(tmp_path, "--parts", "router", "--extra")
    assert len(list((tmp_path / "out" / "logs").glob("router-extra-*"))) == 2


def test_a_binary_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    replay(tmp_path / "bin", patched="validate-short-1gpu")
    model = tmp_path / "full.gguf"
    model.touch()
    out = tmp_path / "out"
    done = script(
        *("--out", out, "--work", tmp_path / "work", "--bin", tmp_path / "bin"),
        *("--model", model, "--parts", "validate"),
        **machine(tmp_path),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "] series unknown\n" in done.stdout
    proved = summary(tmp_path)["proved"]
    assert {proved[key] for key in ("series", "source", "arch")} == {None}
    assert done.stdout.splitlines()[-1].endswith("done, exit code 0")
    assert all(verdicts(tmp_path).values())
    assert {path.name for path in out.iterdir()} == {"summary.json", "logs", "logs.tar.gz"}
