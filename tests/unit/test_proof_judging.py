"""What the proof makes of runs. The logs were captured on an NVIDIA H100; their first line is cut."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from gpu_proof.correctness import compare
from gpu_proof.judging import argmax_mismatches, buffers, fusions, how_it_ended, landed, moved, validated
from gpu_proof.runs import Bench, Deadline, ProgressStamps, Ran

LOGS = Path(__file__).parent / "data" / "proof"


def ran(output: bytes, *, exit_code: int | None = 0, name: str = "a") -> Ran:
    progress = ProgressStamps()
    progress.feed(output, 1.0)
    return Ran(name=name, exit_code=exit_code, stamps=tuple(progress.stamps), output=output)


def logged(name: str) -> Ran:
    return ran((LOGS / f"{name}.log").read_bytes())


GOOD = logged("validate-short-1gpu")


def without(line: bytes) -> Ran:
    """The good run without the first thing that starts with these words."""
    at = GOOD.output.index(line)
    return ran(GOOD.output[:at] + GOOD.output[GOOD.output.index(b"\n", at) + 1 :])


def test_a_good_run_passes() -> None:
    found = validated(GOOD)
    assert (found.passed, found.found_fault) == (True, False)
    assert found.note == "12 steps, SC lines 12, sampler lines 12"


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("broken-copy", "4 steps, SC lines 4, sampler lines 4; DG_SC_CHECK values: block 0 step 0: maxabs="),
        (
            "broken-pointer",
            "4 steps, SC lines 4, sampler lines 4; DG_DEVSAMPLE_CHECK values: block 0 step 0: amax_mismatch=",
        ),
    ],
)
def test_a_build_that_is_broken_on_purpose_is_found(name: str, note: str) -> None:
    found = validated(logged(name))
    assert (found.passed, found.found_fault) == (False, True)
    assert found.note.startswith(note)


@pytest.mark.parametrize("check", [b"DG_SC_CHECK step 5", b"DG_DEVSAMPLE_CHECK step 5"])
def test_a_line_that_is_missing_fails_and_is_no_fault_that_was_found(check: bytes) -> None:
    found = validated(without(check))
    assert (found.passed, found.found_fault) == (False, False)
    assert "lines: no line for block 0 step 5" in found.note


def test_validators_that_did_not_run_fail_and_the_program_says_why() -> None:
    output = b"\n".join(line for line in GOOD.output.split(b"\n") if b"_CHECK step" not in line)
    why = "DG_DEVSAMPLE_CHECK: not run: 12 of 12 steps sampled on the host"
    found = validated(ran(output + why.encode() + b"\n"))
    assert (found.passed, found.found_fault) == (False, False)
    assert why in found.note
    assert "no DG_SC_CHECK line at all" in found.note


def test_a_run_that_ended_badly_fails_whatever_its_lines_say() -> None:
    found = validated(dataclasses.replace(GOOD, exit_code=-6))
    assert (found.passed, found.found_fault) == (False, False)
    assert found.note == "exit code -6, 12 steps"


@pytest.mark.parametrize(
    ("one", "how"),
    [
        (Ran(name="a", exit_code=None, output=b"no binary patched"), "no binary patched"),
        (Ran(name="a", exit_code=-9, killed=True, output=GOOD.output), "killed, it took too long"),
        (ran(b"0.00.045.574 E error: it is\n", exit_code=1), "exit code 1 (error: it is)"),
        (ran(b"what is this?\n", exit_code=127), "exit code 127"),
        (ran(b""), "exit code 0"),
    ],
)
def test_how_a_run_ended_is_said(one: Ran, how: str) -> None:
    assert how_it_ended(one) == how
    assert not validated(one).passed


def test_the_unpatched_sampler_missed_a_tie() -> None:
    assert argmax_mismatches(logged("ties-stock-1gpu")) == [*([0] * 11), 1]
    assert argmax_mismatches(ran(b"")) == []


def test_a_reply_stands_between_the_last_progress_line_and_the_total() -> None:
    reply = GOOD.reply
    assert reply is not None
    assert reply.split()[:2] == ["huna", "gahisa"]
    assert len(reply.split()) == 256
    assert "total" not in reply
    assert GOOD.digest == hashlib.sha256(reply.encode()).hexdigest()[:16]
    assert GOOD.devices is not None
    assert GOOD.devices.startswith("diffusion_devices: split=layer layers=CUDA0:30 output=CUDA0 ")


def test_a_turn_that_did_not_end_has_no_reply() -> None:
    cut = GOOD.output[: GOOD.output.index(b"total time")]
    assert ran(cut).reply is None
    assert ran(cut).digest is None
    assert ran(b"").reply is None
    assert ran(b"").devices is None


def test_runs_agree_only_where_both_ended_well(tmp_path: Path) -> None:
    bench = Bench(
        binaries=tmp_path,
        built=tmp_path,
        model=tmp_path / "full.gguf",
        long_prompt="1",
        logs=tmp_path,
        scratch=tmp_path,
        logical=None,
        at_once=1,
        deadline=Deadline(end=0),
    )
    other = dataclasses.replace(GOOD, name="b")
    values = (0x474C4744, 1, 9, 0, 1, 2, 3, 4)
    for name in "ab":
        bench.dump(name).write_bytes(b"".join(value.to_bytes(4, "little") for value in values))
    assert compare(bench, GOOD, other).agrees(1e-6)
    worse = compare(bench, GOOD, dataclasses.replace(other, exit_code=1))
    assert worse.problem == "b: exit code 1"
    assert not worse.agrees(1e-6)
    unended = compare(bench, dataclasses.replace(GOOD, output=b""), dataclasses.replace(other, output=b""))
    assert not unended.same_reply, "no reply is not the same reply"


def test_routers_whose_fusion_is_refused_are_counted() -> None:
    text = (
        "DG_FUSION dev 0 ffn_moe_probs-0 fused\nDG_FUSION dev 1 ffn_moe_probs-29 refused\n"
        "DG_FUSION dev 1 ffn_moe_probs-29 refused\n"
    )
    found = fusions(text)
    assert (found.seen, found.refused) == (3, {"1:ffn_moe_probs-29": 2})


PRESSED = (
    "0.00.948.208 I load_tensors:   CPU_Mapped model buffer size =   577.50 MiB\n"
    "0.00.948.209 I load_tensors:        CUDA0 model buffer size =  7538.26 MiB\n"
    "0.00.948.210 I load_tensors:        CUDA1 model buffer size =  7191.68 MiB\n"
    "0.03.370.762 W dg_warn_sc_buft: "
    "no room for sc_embT (1408.00 MiB) on CUDA1, it is on {} instead (slower)\n"
    "0.08.721.609 I sched_reserve:      CUDA0 compute buffer size =   283.00 MiB\n"
    "0.08.721.632 I sched_reserve:  CUDA_Host compute buffer size =   265.38 MiB\n"
)


def test_buffers_are_read_by_device() -> None:
    assert buffers(PRESSED, "model") == {"0": 7538.26, "1": 7191.68}
    assert buffers(PRESSED, "compute") == {"0": 283.0}


@pytest.mark.parametrize(
    ("place", "first", "host"),
    [("CUDA0", True, False), ("CUDA_Host", False, True), ("CPU", False, True)],
)
def test_where_the_buffer_went_is_told_apart(place: str, first: bool, host: bool) -> None:
    moves = moved(PRESSED.format(place))
    assert moves == [("sc_embT", "CUDA1", place)]
    assert (landed("first", moves), landed("host", moves)) == (first, host)


def test_a_run_that_moved_nothing_fell_back_to_neither() -> None:
    assert moved(GOOD.text) == []
    for moves in ([], [("sc_dev", "CUDA1", "CUDA0")]):
        assert not landed("first", moves)
        assert not landed("host", moves)
