"""Times from the moments at which progress lines came, and the bounds on them."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest

from gpu_proof.runs import ProgressStamps
from gpu_proof.speed import BOUNDS, plan
from gpu_proof.timing import Bound, Times, merge, time_run

LOGS = Path(__file__).parent / "data" / "proof"
STAMPS = [(0, 10.0), (1, 10.1), (2, 10.2), (3, 10.4), (0, 11.4), (1, 11.5), (2, 11.7)]
"""Two blocks, of 4 and of 3 steps."""
TOTAL = "total time: 1700.50ms, time per step: 242.93ms (7 steps over 2 blocks, entropy-bound)"


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 100_000])
def test_every_progress_line_is_found_once_whatever_pieces_the_output_comes_in(size: int) -> None:
    output = (LOGS / "validate-short-1gpu.log").read_bytes()
    progress = ProgressStamps()
    for number, at in enumerate(range(0, len(output), size)):
        progress.feed(output[at : at + size], float(number))
    assert [step for step, _ in progress.stamps] == list(range(12))
    assert all(a <= b for (_, a), (_, b) in pairwise(progress.stamps))


def test_a_line_is_stamped_when_the_piece_that_completes_its_number_comes() -> None:
    progress = ProgressStamps()
    progress.feed(b"\rdiffusion step: 1", 1.0)
    assert progress.stamps == []
    progress.feed(b"1/12 [====", 2.0)
    progress.feed(b"     ] 91%", 3.0)
    assert progress.stamps == [(11, 2.0)]


def test_a_block_is_timed_by_its_median_and_its_gap_to_the_next() -> None:
    found = time_run(STAMPS, TOTAL, exit_code=0, devices="d")
    assert found.ms_per_step == [100.0, 150.0]
    assert found.min_max == [(100.0, 200.0), (100.0, 200.0)]
    assert found.gaps_ms == [1000.0]
    assert (found.turn_ms, found.rc, found.devices) == (1700.5, 0, "d")


def test_a_run_without_progress_has_no_times() -> None:
    found = time_run([], "", exit_code=1, devices=None)
    assert (found.ms_per_step, found.gaps_ms, found.turn_ms) == ([], [], None)


def test_steps_before_the_first_block_and_blocks_of_one_step_have_no_times() -> None:
    found = time_run([(5, 1.0), (0, 2.0), (0, 3.0), (1, 3.5)], "", exit_code=0, devices=None)
    assert (found.ms_per_step, found.gaps_ms) == ([500.0], [1000.0])


def test_repeats_are_merged_by_their_medians_and_bad_ends_left_out() -> None:
    one = time_run(STAMPS, TOTAL, exit_code=0, devices="d")
    slow = dataclasses.replace(one, ms_per_step=[120.0, 170.0], gaps_ms=[1200.0], turn_ms=1900.5)
    bad = dataclasses.replace(one, ms_per_step=[1.0, 1.0], gaps_ms=[1.0], turn_ms=1.0, rc=1)
    assert merge([one, slow, bad]) == Times(
        runs=2,
        ms_per_step=[110.0, 160.0],
        by_run=[[100.0, 150.0], [120.0, 170.0]],
        gaps_ms=[1100.0],
        turn_ms=1800.5,
        devices="d",
    )
    assert merge([bad]).ms_per_step == []


def times(*ms: float) -> Times:
    return Times(runs=1, ms_per_step=ms, by_run=[ms], gaps_ms=[], turn_ms=None, devices=None)


def bound(*, limit: float, at_most: bool) -> Bound:
    return Bound(name="b", of="one", against="two", block=-1, against_block=0, limit=limit, at_most=at_most)


@pytest.mark.parametrize(
    ("limit", "at_most", "holds"),
    [(1.5, True, True), (1.49, True, False), (1.5, False, True), (1.51, False, False)],
)
def test_a_bound_compares_the_blocks_that_it_names(limit: float, at_most: bool, holds: bool) -> None:
    table = {"one": times(1.0, 2.0, 150.0), "two": times(100.0, 2.0, 1.0)}
    passed, note = bound(limit=limit, at_most=at_most).judge(table)
    assert passed is holds
    assert note == f"at {'most' if at_most else 'least'} {limit}: 150.0 and 100.0 ms, ratio 1.500"


@pytest.mark.parametrize(
    "table",
    [{}, {"one": times(1.0)}, {"one": times(1.0), "two": times()}, {"one": times(1.0), "two": times(0.0)}],
)
def test_a_bound_without_figures_does_not_hold(table: dict[str, Times]) -> None:
    assert bound(limit=9, at_most=True).judge(table) == (False, "at most 9: no figures")


def test_the_bounds_are_on_runs_that_are_made() -> None:
    before, after = plan(["patched"], "1")
    made = {turn.name for turn in (*before, *after)}
    assert {name for one in BOUNDS for name in (one.of, one.against)} <= made
    assert {(one.name, one.limit, one.at_most) for one in BOUNDS} == {
        ("speed-short-2-vs-1", 1.03, True),
        ("speed-long-flat", 1.06, True),
        ("speed-short-vs-stock", 2.8, False),
        ("speed-long-vs-stock", 6.5, False),
        ("speed-1gpu-long-vs-stock", 1.02, True),
        ("speed-1gpu-vs-stock", 1.02, True),
    }


def test_a_patch_on_trial_is_timed_beside_the_series_and_slow_runs_once() -> None:
    before, after = plan(["patched", "extra"], "123")
    names = [turn.name for turn in (*before, *after)]
    assert names[:6] == [
        *("patched-1gpu-short", "extra-1gpu-short", "stock-1gpu-short"),
        *("patched-2gpu-short", "extra-2gpu-short", "stock-2gpu-short"),
    ]
    assert names.count("stock-2gpu-long") == 1
    assert {names.count(f"extra-{count}gpu-{size}") for count in (1, 2) for size in ("short", "long")} == {
        2,
        3,
    }
    for turn in (*before, *after):
        assert ("--diffusion-kv-cache" in turn.options) is (turn.binary != "stock")
        assert turn.env == {}, "a run with validators is not timed"
