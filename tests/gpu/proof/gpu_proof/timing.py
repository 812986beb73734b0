"""Times of a run from the moments at which its progress lines came. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_TOTAL = re.compile(r"total time: ([0-9.]+)ms")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One run's times, in milliseconds."""

    ms_per_step: Sequence[float]
    """Of every block, the median difference between its progress lines; a block of one step has none."""
    min_max: Sequence[tuple[float, float]]
    """The shortest and the longest difference of every block."""
    gaps_ms: Sequence[float]
    """From a block's last progress line to the next block's first: holds the prefill and a step."""
    turn_ms: float | None
    """The program's own total."""
    rc: int | None
    devices: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Repeats of one run, in milliseconds: medians over the runs, block by block and gap by gap."""

    runs: int
    ms_per_step: Sequence[float]
    by_run: Sequence[Sequence[float]]
    gaps_ms: Sequence[float]
    turn_ms: float | None
    devices: str | None


def time_run(
    stamps: Sequence[tuple[int, float]], text: str, *, exit_code: int | None, devices: str | None
) -> Timing:
    """``stamps`` hold a step's number within its block, and the second at which its progress line came."""
    blocks: list[list[float]] = []
    for step, at in stamps:
        if step == 0:
            blocks.append([])
        if blocks:
            blocks[-1].append(at)
    steps = [[1000 * (b - a) for a, b in pairwise(block)] for block in blocks if len(block) > 1]
    total = _TOTAL.search(text)
    return Timing(
        ms_per_step=[round(statistics.median(block), 2) for block in steps],
        min_max=[(round(min(block), 2), round(max(block), 2)) for block in steps],
        gaps_ms=[round(1000 * (after[0] - before[-1]), 1) for before, after in pairwise(blocks)],
        turn_ms=float(total[1]) if total else None,
        rc=exit_code,
        devices=devices,
    )


def _medians(rows: Sequence[Sequence[float]]) -> list[float]:
    """Column by column; the shortest row says how many."""
    return [
        round(statistics.median(column), 2) for column in zip(*(row for row in rows if row), strict=False)
    ]


def merge(runs: Sequence[Timing]) -> Times:
    """The medians over repeats, at least one, of the same run. A run that ended badly is left out."""
    good = [run for run in runs if run.rc == 0]
    turns = [run.turn_ms for run in good if run.turn_ms]
    return Times(
        runs=len(good),
        ms_per_step=_medians([run.ms_per_step for run in good]),
        by_run=[run.ms_per_step for run in good],
        gaps_ms=_medians([run.gaps_ms for run in good]),
        turn_ms=statistics.median(turns) if turns else None,
        devices=runs[0].devices,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """How one time must compare with another."""

    name: str
    """Of the verdict."""
    of: str
    against: str
    """Names of timed runs."""
    block: int
    """Whose block: 0 the first, -1 the last."""
    against_block: int
    limit: float
    at_most: bool
    """Else at least."""

    def judge(self, table: dict[str, Times]) -> tuple[bool, str]:
        """Whether it holds, and a note with the figures. Without figures it does not."""
        a, b = _block(table, self.of, self.block), _block(table, self.against, self.against_block)
        return judge_ratio(a, b, limit=self.limit, at_most=self.at_most)


def judge_ratio(a: float | None, b: float | None, *, limit: float, at_most: bool) -> tuple[bool, str]:
    """Whether a by b is within the limit, and a note with the figures, which are milliseconds."""
    note = f"at {'most' if at_most else 'least'} {limit}"
    if not a or not b:
        return False, f"{note}: no figures"
    holds = a <= limit * b if at_most else a >= limit * b
    return holds, f"{note}: {a} and {b} ms, ratio {a / b:.3f}"


def _block(table: dict[str, Times], name: str, block: int) -> float | None:
    steps = table[name].ms_per_step if name in table else ()
    return steps[block] if steps else None
