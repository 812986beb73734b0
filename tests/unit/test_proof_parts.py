"""What the proof runs, how it tells of it, and what it may import on a bare machine."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest

from gpu_proof.campaign import DEFAULT, PARTS
from gpu_proof.correctness import CASES
from gpu_proof.report import Report, plain
from gpu_proof.runs import BOTH, OFF, ON, Bench, Deadline, Turn, command, environment, long_prompt
from llama_images.model_shape import SHAPES, loud_tokens
from write_models import copies_of

ROOT = Path(__file__).resolve().parents[2]
PROOF = ROOT / "tests" / "gpu" / "proof"


def bench(tmp_path: Path, *, logical: Path | None = None) -> Bench:
    return Bench(
        binaries=tmp_path / "bin",
        built=tmp_path / "built",
        model=tmp_path / "full.gguf",
        long_prompt=long_prompt(20),
        logs=tmp_path / "logs",
        scratch=tmp_path,
        logical=logical,
        at_once=5,
        deadline=Deadline(end=math.inf),
    )


def test_a_turn_s_command_names_its_model_seed_steps_and_layers(tmp_path: Path) -> None:
    turn = Turn(name="t", binary="patched", options=("-p", "hello"), steps=4)
    argv = command(turn, tmp_path / "bin" / "patched", bench(tmp_path))
    assert argv == [
        *(f"{tmp_path}/bin/patched", "-m", f"{tmp_path}/full.gguf", "--seed", "1"),
        *("--diffusion-eb-max-steps", "4", "-p", "hello", "-ngl", "99"),
    ]
    small = Turn(name="t", binary="patched", options=(), model="tiny.gguf", gpu_layers=0)
    assert command(small, Path("patched"), bench(tmp_path))[2] == f"{tmp_path}/tiny.gguf"
    assert command(small, Path("patched"), bench(tmp_path))[-2:] == ["-ngl", "0"]


def test_the_optimizations_are_switched_one_by_one() -> None:
    assert [(ON[at], ON[at + 1], OFF[at], OFF[at + 1]) for at in range(0, len(ON), 2)] == [
        (name, "on", name, "off")
        for name in ("--diffusion-kv-cache", "--diffusion-gpu-sampling", "--diffusion-gpu-sample-reduce")
    ]


def test_a_turn_sees_its_devices_and_writes_its_logits_only_where_it_dumps(tmp_path: Path) -> None:
    turn = Turn(name="t", binary="patched-dump", options=(), env={"DG_SC_CHECK": "1"})
    added = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": BOTH, "DG_SC_CHECK": "1"}
    assert environment(turn, bench(tmp_path)) == added
    dumping = Turn(name="t", binary="patched-dump", options=(), gpus="1", dumps=True)
    assert environment(dumping, bench(tmp_path)) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1",
        "DG_DUMP_LOGITS": f"{tmp_path}/t.logits",
        "DG_DUMP_ROWS": "16",
    }


def test_two_devices_are_made_of_one_card_only_for_a_turn_that_wants_two(tmp_path: Path) -> None:
    logical = bench(tmp_path, logical=tmp_path / "logical_gpus.so")
    two = environment(Turn(name="t", binary="b", options=()), logical)
    assert (two["CUDA_VISIBLE_DEVICES"], two["LOGICAL_GPUS"]) == ("0", "2")
    assert two["LD_PRELOAD"] == f"{tmp_path}/logical_gpus.so"
    one = environment(Turn(name="t", binary="b", options=(), gpus="0"), logical)
    assert one["CUDA_VISIBLE_DEVICES"] == "0"
    assert "LD_PRELOAD" not in one


def test_a_turn_s_devices_are_places_in_the_caller_s_list(tmp_path: Path) -> None:
    two = dataclasses.replace(bench(tmp_path), cards=("3", "GPU-5a"))
    seen = {
        gpus: environment(Turn(name="t", binary="b", options=(), gpus=gpus), two)["CUDA_VISIBLE_DEVICES"]
        for gpus in ("0", "1", "0,1", "1,0", "")
    }
    assert seen == {"0": "3", "1": "GPU-5a", "0,1": "3,GPU-5a", "1,0": "GPU-5a,3", "": ""}
    one = dataclasses.replace(bench(tmp_path, logical=tmp_path / "logical_gpus.so"), cards=("3",))
    for gpus in ("0", BOTH):
        turn = Turn(name="t", binary="b", options=(), gpus=gpus)
        assert environment(turn, one)["CUDA_VISIBLE_DEVICES"] == "3"


def test_what_wants_a_second_card_is_marked() -> None:
    for case in CASES:
        assert case.two_cards is (case.gpus not in ("0", BOTH))


def test_a_long_prompt_has_as_many_digits_as_tokens_are_wanted() -> None:
    for digits in (1, 60, 1780):
        prompt = long_prompt(digits)
        assert (len(prompt), prompt.isdigit()) == (digits, True)


def test_the_parts_are_those_that_the_shell_script_knows() -> None:
    script = (PROOF / "proof.sh").read_text()
    assert f"\nparts={','.join(DEFAULT)}\n" in script
    assert f"of {','.join(PARTS)};" in script
    cases = script[script.index("needs() {") : script.index('*) wrong "--parts')]
    named = {word for line in cases.splitlines()[2:] for word in line.partition(")")[0].split(" | ")}
    assert {word.strip() for word in named if word.strip()} == set(PARTS)


def test_copies_of_loud_words_are_neither_loud_nor_a_twin() -> None:
    vocabulary = SHAPES["tiny"].vocabulary
    loud = loud_tokens(vocabulary)
    copies = copies_of(loud, vocabulary)
    assert copies
    assert set(copies.values()) <= set(loud)
    for copy, word in copies.items():
        assert word < copy < vocabulary
        assert copy % 256 < word % 256 or word % 256 == 0
        assert not {copy, copy - 1} & set(loud)


# --- the summary ----------------------------------------------------------------------------------


def test_the_summary_is_whole_after_every_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "summary.json"
    report = Report(path)
    report.keep("gpus", ["NVIDIA H100 80GB HBM3"])
    report.verdict("one", True, "as it should be")
    assert json.loads(path.read_text())["verdicts"] == {"one": {"ok": True, "note": "as it should be"}}
    report.verdict("two", False, "no time")
    report.keep("failed", report.failed)
    assert json.loads(path.read_text()) == {
        "gpus": ["NVIDIA H100 80GB HBM3"],
        "verdicts": {"one": {"ok": True, "note": "as it should be"}, "two": {"ok": False, "note": "no time"}},
        "failed": ["two"],
    }
    assert capsys.readouterr().out == "ok   one: as it should be\nFAIL two: no time\n"
    assert list(tmp_path.iterdir()) == [path]


def test_figures_that_json_does_not_know_become_text() -> None:
    assert plain({"nmse": (0.5, math.inf, math.nan)}) == {"nmse": [0.5, "inf", "nan"]}
    with pytest.raises(TypeError, match="Path has no place in a summary"):
        plain(Path("a"))


# --- the bare machine -----------------------------------------------------------------------------

BARE = {"numpy", "numpy.typing"}


def imported(path: Path) -> set[str]:
    """Every module that a file names, within functions too."""
    found = set()
    for one in ast.walk(ast.parse(path.read_text())):
        if isinstance(one, ast.Import):
            found |= {name.name for name in one.names}
        elif isinstance(one, ast.ImportFrom):
            assert one.module is not None
            found.add(one.module)
    return found


def foreign(path: Path, seen: set[Path]) -> set[str]:
    """What a file needs, itself and through its own kind, that a bare machine does not have."""
    if path in seen:
        return set()
    seen.add(path)
    found: set[str] = set()
    for name in imported(path):
        top = name.partition(".")[0]
        if top == "llama_images":
            found |= foreign(ROOT / "llama_images" / "__init__.py", seen)
            found |= foreign(ROOT / f"{name.replace('.', '/')}.py", seen)
        elif top == "gpu_proof":
            found |= foreign(PROOF / f"{name.replace('.', '/')}.py", seen)
        elif top not in sys.stdlib_module_names and name not in BARE:
            found.add(name)
    return found


def test_the_proof_needs_nothing_that_a_bare_machine_lacks() -> None:
    seen: set[Path] = set()
    assert foreign(PROOF / "proof.py", seen) == set()
    assert foreign(PROOF / "apply_patch.py", seen) == set()
    assert foreign(PROOF / "find_gpus.py", seen) == set()
    modules = {
        path
        for path in (PROOF / "gpu_proof").glob("*.py")
        if path.name not in ("__init__.py", "hold_memory.py")
    }
    assert modules <= seen
    assert ROOT / "llama_images" / "validators.py" in seen


def test_the_search_for_imports_finds_what_is_foreign() -> None:
    assert foreign(PROOF / "gpu_proof" / "hold_memory.py", set()) == {"torch"}
    assert foreign(PROOF / "write_models.py", set()) == {"gguf"}
    assert "pydantic" in foreign(ROOT / "llama_images" / "matrix_types.py", set())
