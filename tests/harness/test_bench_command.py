"""``invoke bench`` as a user types it, with bare programs that say again what a real one said."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llama_images.bench import from_json, to_json
from tests.unit.benches import example

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "tests" / "unit" / "data" / "runs"


def invoke(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "invoke", "bench", *words],
        cwd=ROOT,
        env=os.environ | {"LLAMA_IMAGES_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def recorded(path: Path, *, run: str = "cpu-chat", then: str = "exit 0") -> Path:
    """A program that notes how it was called and prints what a real conversation printed."""
    path.write_text(
        "#!/bin/sh\n"
        f'echo "$CUDA_VISIBLE_DEVICES|$*" >> {shlex.quote(str(path) + ".calls")}\n'
        f"cat >> {shlex.quote(str(path) + '.stdin')}\n"
        f"cat {shlex.quote(str(RUNS / f'{run}.stdout'))}\n"
        f"cat {shlex.quote(str(RUNS / f'{run}.stderr'))} >&2\n"
        f"{then}\n",
        "utf-8",
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "some.gguf"
    path.write_bytes(b"GGUF")
    return path


def on_host(stock: Path, patched: Path, model: Path, out: Path) -> tuple[str, ...]:
    binaries = ("--stock-binary", str(stock), "--binary", str(patched))
    return ("--engine", "host", *binaries, "--model", str(model), "--gpus", "0", "--out", str(out))


def test_two_programs_run_in_turns_and_everything_is_written(tmp_path: Path, model: Path) -> None:
    stock, patched = recorded(tmp_path / "stock-cli"), recorded(tmp_path / "patched-cli")
    out = tmp_path / "out"
    done = invoke(
        tmp_path / "cache", *on_host(stock, patched, model, out), "--rounds", "2", "--note", "a test"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["bench.html", "bench.json", "bench.png", "logs"]
    bench = from_json((out / "bench.json").read_bytes(), name="bench.json")
    order = [(one.round, one.configuration, one.flavor) for one in bench.measurements]
    assert order == [
        (1, "cpu-short", "stock"),
        (1, "cpu-short", "patched"),
        (1, "cpu-long", "stock"),
        (1, "cpu-long", "patched"),
        (2, "cpu-short", "patched"),
        (2, "cpu-short", "stock"),
        (2, "cpu-long", "patched"),
        (2, "cpu-long", "stock"),
    ]
    assert (bench.note, bench.model.file, bench.hardware.engine) == ("a test", "some.gguf", "host")
    assert len(list((out / "logs").iterdir())) == len(order) + 2  # and the warm-ups
    # The canvas is what the program itself says: 64 tokens.
    assert [(one.blocks, one.canvas, one.prompt_tokens) for one in bench.configurations] == [
        (1, 64, 5),
        (6, 64, 436),
    ]
    # Nothing of this machine's folders goes into what may be shown to others.
    shared = (out / "bench.json").read_text("utf-8") + (out / "bench.html").read_text("utf-8") + done.stdout
    assert str(tmp_path) not in shared
    assert done.stdout.startswith("medians of 2 rounds")


def test_each_program_gets_two_turns_of_the_same_prompt(tmp_path: Path, model: Path) -> None:
    stock, patched = recorded(tmp_path / "stock-cli"), recorded(tmp_path / "patched-cli")
    options = ("--rounds", "1", "--workload", "long", "--steps", "3", "--seed", "7")
    done = invoke(tmp_path / "cache", *on_host(stock, patched, model, tmp_path / "out"), *options)
    assert done.returncode == 0, done.stderr
    for program in (stock, patched):
        warm_up, call = Path(f"{program}.calls").read_text("utf-8").splitlines()
        assert warm_up.endswith("-n 1 --diffusion-eb-max-steps 1")
        visible, _, arguments = call.partition("|")
        assert visible == "", "no GPU is to be seen"
        prompt = arguments.split()[4]
        assert (len(prompt), prompt.isdigit()) == (436, True)
        assert arguments == (f"-m {model} -cnv -p {prompt} -n 384 --seed 7 --diffusion-eb-max-steps 3")
        assert Path(f"{program}.stdin").read_text("utf-8") == f"/exit\n/clear\n{prompt}\n/exit\n"


def test_a_program_that_fails_is_told_with_its_log(tmp_path: Path, model: Path) -> None:
    stock = recorded(tmp_path / "stock-cli")
    patched = recorded(tmp_path / "patched-cli", then='[ "$7" = 1 ] || { echo "out of luck" >&2; exit 9; }')
    out = tmp_path / "out"
    done = invoke(tmp_path / "cache", *on_host(stock, patched, model, out), "--rounds", "1")
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert error == "error: round 1 of 1: CPU, short, patched: exit code 9: out of luck"
    assert hint == f"hint: the whole output: {out / 'logs' / 'cpu-short-patched-1.log'}"
    assert "out of luck" in (out / "logs" / "cpu-short-patched-1.log").read_text("utf-8", "replace")
    assert not (out / "bench.html").exists()


def test_a_run_that_can_not_be_timed_is_told_with_its_log(tmp_path: Path, model: Path) -> None:
    program = recorded(tmp_path / "cli", run="good")  # a single turn
    done = invoke(tmp_path / "cache", *on_host(program, program, model, tmp_path / "out"))
    assert done.returncode == 1
    assert "canvas_length" in (RUNS / "good.stderr").read_text("utf-8", "replace")
    assert "no turn that came to its end after another one" in done.stderr.splitlines()[-2]
    assert "cpu-short-stock-1.log" in done.stderr.splitlines()[-1]


def test_a_document_is_drawn_again_without_running_anything(tmp_path: Path) -> None:
    document = tmp_path / "old" / "bench.json"
    document.parent.mkdir()
    document.write_text(to_json(example()), "utf-8")
    done = invoke(tmp_path / "cache", "--from-json", str(document), "--out", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "new" / "bench.json").read_text("utf-8")) == json.loads(
        document.read_text()
    )
    assert "5.75×" in done.stdout
    first = (tmp_path / "new" / "bench.png").read_bytes()
    assert invoke(tmp_path / "cache", "--from-json", str(document)).returncode == 0
    assert (document.parent / "bench.png").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (("--engine", "host"), "no --stock-binary given", "--binary FILE"),
        (
            ("--engine", "host", "--stock-binary", "/nonexistent", "--binary", "x"),
            "--stock-binary /nonexistent: there is no such file",
            "llama-diffusion-cli",
        ),
        (("--engine", "host", "--gpus", "99"), "--gpus 99: there are", "fewer"),
        (("--engine", "host", "--gpus", "two"), '--gpus "two": it is a number', "CPU"),
        (("--engine", "host", "--workload", "lon"), '--workload "lon"', "short or long"),
        (("--from-json", "/nonexistent.json"), "/nonexistent.json: can't be read", "bench.json"),
        (("--engine", "hos"), '"hos" is not a container engine', "docker or podman"),
    ],
)
def test_wrong_use_is_told_in_two_lines(
    tmp_path: Path, words: tuple[str, ...], error: str, hint: str
) -> None:
    done = invoke(tmp_path / "cache", *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    lines = done.stderr.splitlines()[-2:]
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]
