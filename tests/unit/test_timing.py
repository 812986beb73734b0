"""Times and their judges: on real runs of an H100, and on made ones whose times are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_images.matrix import load_matrix
from llama_images.matrix_types import HardwareThresholds, RelativeThresholds
from llama_images.runs import Run, parse_run
from llama_images.timing import (
    Measured,
    block_times,
    judge_absolute,
    judge_flat,
    judge_relative,
    known_hardware,
    measured,
    warm_turn,
)

RUNS = Path(__file__).parent / "data" / "runs"
THRESHOLDS = load_matrix(Path(__file__).resolve().parents[2] / "matrix.yaml").thresholds
LIMITS = RelativeThresholds(short_speedup=1.5, last_block_speedup=2.3, last_over_first=1.1)
RTX = ("NVIDIA GeForce RTX 5060 Ti", 16_311 << 20)


def made(*turns: list[list[int]]) -> Run:
    """A run whose steps end at these milliseconds, turn by turn, block by block."""
    text = b""
    for turn in turns:
        for block in turn:
            for step, at in enumerate(block):
                stamp = b"%d.%02d.%03d.000" % (at // 60_000, at // 1000 % 60, at % 1000)
                text += stamp + b" I \rdiffusion step: %d/12 [ ] 0%%" % step
        steps = sum(len(block) for block in turn)
        text += (
            b"\nx\ntotal time: 1.00ms, time per step: 1.00ms (%d steps over %d blocks, entropy-bound)\n"
            % (
                steps,
                len(turn),
            )
        )
    return parse_run(text)


def read(name: str) -> Run:
    return parse_run((RUNS / name).read_bytes())


def test_a_blocks_times_are_the_differences_of_its_steps() -> None:
    (turn,) = made([[1000, 1070, 1150], [2000, 2100]]).turns
    first, second = block_times(turn)
    assert first.steps_ms == (70.0, 80.0)
    assert (first.median_ms, first.spread_ms, first.gap_ms) == (75.0, (70.0, 80.0), None)
    assert (second.steps_ms, second.gap_ms) == ((100.0,), 850.0)


def test_a_block_of_one_step_has_a_gap_and_no_time() -> None:
    (turn,) = made([[1000, 1100], [1500]]).turns
    last = block_times(turn)[1]
    assert (last.steps_ms, last.median_ms, last.spread_ms, last.gap_ms) == ((), None, None, 400.0)


def test_a_real_run_on_two_devices() -> None:
    """``-n 1536`` behind 1,800 tokens: what the project's own measurements say of it, read from the log."""
    (turn,) = read("patched-2gpu-long.log").turns
    blocks = block_times(turn)
    assert [len(block.steps_ms) for block in blocks] == [11] * 6
    medians = [block.median_ms for block in blocks]
    assert medians[0] == pytest.approx(78.5, abs=0.1)
    assert medians[-1] == pytest.approx(83.5, abs=0.5)
    assert [block.gap_ms is None for block in blocks] == [True] + [False] * 5
    assert all(300 < block.gap_ms < 500 for block in blocks[1:] if block.gap_ms is not None)


def test_time_that_runs_back_or_is_missing_gives_no_time() -> None:
    (turn,) = made([[1000, 900, 1000, 1000]]).turns
    assert block_times(turn)[0].steps_ms == (100.0,)
    bare = parse_run(b"\rdiffusion step: 0/2 [ ] 0%\rdiffusion step: 1/2 [ ] 0%")
    assert block_times(bare.turns[0])[0].steps_ms == ()


def test_the_first_turn_is_thrown_away() -> None:
    run = made([[0, 300, 600]], [[1000, 1100, 1200]])
    turn = warm_turn(run)
    assert turn is run.turns[1]
    assert measured(short=run, long=None) == Measured(short_ms=100.0, first_ms=None, last_ms=None)


def test_a_run_of_one_turn_measures_nothing() -> None:
    run = read("patched-2gpu-short.log")
    assert warm_turn(run) is None
    assert measured(short=run, long=run) == Measured(short_ms=None, first_ms=None, last_ms=None)


def test_a_second_turn_that_did_not_finish_is_not_judged() -> None:
    assert warm_turn(made([[0, 100]], [[200, 300]])) is not None
    whole = made([[0, 100]])
    cut = parse_run(
        b"0.00.000.000 I \rdiffusion step: 0/2 [ ] 0%\nx\n"
        b"total time: 1ms, time per step: 1ms (1 steps over 1 blocks, entropy-bound)\n"
        b"0.00.001.000 I \rdiffusion step: 0/2 [ ] 0%"
    )
    assert len(cut.turns) == 2
    assert warm_turn(cut) is None
    assert warm_turn(whole) is None


def test_a_long_run_of_one_block_is_not_long() -> None:
    run = made([[0, 100]], [[1000, 1100, 1200]])
    assert measured(short=None, long=run).last_ms is None


# --- thresholds -----------------------------------------------------------------------------------


def test_the_cards_of_the_write_up_are_known() -> None:
    row = known_hardware(THRESHOLDS, [RTX, RTX])
    assert row is not None
    assert (row.short_ms, row.long_ms, row.tolerance_percent) == (217, 233, 10)


@pytest.mark.parametrize(
    "gpus",
    [
        [],
        [RTX],
        [RTX, RTX, RTX],
        [RTX, ("NVIDIA GeForce RTX 5060 Ti", 8_151 << 20)],
        [RTX, ("NVIDIA GeForce RTX 5060 Ti", None)],
        [RTX, ("NVIDIA H200", 143_771 << 20)],
    ],
)
def test_others_are_not(gpus: list[tuple[str, int | None]]) -> None:
    assert known_hardware(THRESHOLDS, gpus) is None


ROW = HardwareThresholds(gpu="x", count=2, memory_gib=16, short_ms=217, long_ms=233, tolerance_percent=10)


@pytest.mark.parametrize(
    ("short", "last", "passed"),
    [
        (217.0, 233.0, [True, True]),
        (238.6, 256.2, [True, True]),
        (238.8, 256.4, [False, False]),
        (335.0, 542.0, [False, False]),
        (None, 233.0, [False, True]),
    ],
)
def test_known_hardware_has_its_tolerance(short: float | None, last: float, passed: list[bool]) -> None:
    verdicts = judge_absolute(Measured(short_ms=short, first_ms=233.0, last_ms=last), ROW)
    assert [verdict.passed for verdict in verdicts] == passed
    assert "at most 238.7 ms" in verdicts[0].detail or short is None


def test_the_figures_of_the_write_up_pass_the_relative_thresholds() -> None:
    patched = Measured(short_ms=217, first_ms=233, last_ms=233)
    stock = Measured(short_ms=335, first_ms=400, last_ms=542)
    verdicts = (*judge_relative(patched, stock, LIMITS), judge_flat(patched, LIMITS))
    assert [verdict.passed for verdict in verdicts] == [True, True, True]
    assert verdicts[0].detail == "335.0 by 217.0 ms/step, ratio 1.54, at least 1.5"


def test_stock_against_itself_fails_all_that_compare() -> None:
    stock = Measured(short_ms=335, first_ms=400, last_ms=542)
    verdicts = (*judge_relative(stock, stock, LIMITS), judge_flat(stock, LIMITS))
    assert [verdict.passed for verdict in verdicts] == [False, False, False]
    assert verdicts[2].detail == "400.0 to 542.0 ms/step, ratio 1.355, at most 1.1"


def test_what_was_not_measured_fails_and_says_so() -> None:
    nothing = Measured(short_ms=None, first_ms=None, last_ms=None)
    some = Measured(short_ms=1, first_ms=1, last_ms=1)
    for verdict in (
        *judge_absolute(nothing, ROW),
        *judge_relative(nothing, some, LIMITS),
        *judge_relative(some, nothing, LIMITS),
        judge_flat(nothing, LIMITS),
    ):
        assert not verdict.passed
        assert verdict.detail.startswith("not measured: ")


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), min_size=1, max_size=4))
def test_times_are_never_negative_and_never_too_many(blocks: list[list[int]]) -> None:
    (turn,) = made(blocks).turns
    times = block_times(turn)
    assert all(len(one.steps_ms) < len(block) for one, block in zip(times, turn.blocks, strict=True))
    assert all(ms > 0 for one in times for ms in one.steps_ms)
