"""How long a run's steps took, block by block, and whether that is within the matrix's thresholds.

A step's time is the difference of two progress lines' time stamps, so a block of n steps has n - 1 times. The
time from a block's last step to the next one's first, the gap, holds the prefill and is no step. The CLI's
own "time per step" divides the whole turn, prefill included, by the steps: it is in ``Summary``, not here.

A first turn is slower than all that follow, so a turn is judged after one that is thrown away; and never one
with the validators on, since they force a copy of all logits a step.

Pure.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from llama_images.matrix_types import HardwareThresholds, RelativeThresholds, Thresholds
from llama_images.runs import Run, Step, Turn
from llama_images.verdicts import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTimes:
    """The times of one block, in milliseconds."""

    steps_ms: tuple[float, ...]
    """Between one step's end and the next one's; without those whose lines carry no usable time stamp."""
    gap_ms: float | None
    """From the end of the block before to this one's first step; None for a turn's first block."""

    @property
    def median_ms(self) -> float | None:
        """None for a block without two steps that follow each other."""
        return statistics.median(self.steps_ms) if self.steps_ms else None

    @property
    def spread_ms(self) -> tuple[float, float] | None:
        """The shortest and the longest step."""
        return (min(self.steps_ms), max(self.steps_ms)) if self.steps_ms else None


def block_times(turn: Turn) -> tuple[BlockTimes, ...]:
    """The times of every block of a turn, in order."""
    times = []
    last: Step | None = None
    for block in turn.blocks:
        steps = [ms for one, other in pairwise(block) if (ms := _between(one, other)) is not None]
        times.append(
            BlockTimes(steps_ms=tuple(steps), gap_ms=None if last is None else _between(last, block[0]))
        )
        last = block[-1]
    return tuple(times)


def _between(one: Step, other: Step) -> float | None:
    """Milliseconds from one step's end to another's; None without time stamps, or where time runs back."""
    if one.at_us is None or other.at_us is None or other.at_us <= one.at_us:
        return None
    return (other.at_us - one.at_us) / 1000


def warm_turn(run: Run) -> Turn | None:
    """The last turn that came to its end after another one that did; None where there is no such turn."""
    finished = [turn for turn in run.turns if turn.summary is not None]
    return finished[-1] if len(finished) > 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What thresholds are about: medians in milliseconds a step; None where it was not measured."""

    short_ms: float | None
    """A short prompt's only block."""
    first_ms: float | None
    """A long prompt's first block …"""
    last_ms: float | None
    """… and its last one."""


def measured(*, short: Run | None, long: Run | None) -> Measured:
    """The medians of a short and a long run's warm turns."""
    one = _medians(short)
    many = _medians(long)
    return Measured(
        short_ms=one[0] if one else None,
        first_ms=many[0] if len(many) > 1 else None,
        last_ms=many[-1] if len(many) > 1 else None,
    )


def _medians(run: Run | None) -> list[float | None]:
    turn = None if run is None else warm_turn(run)
    return [] if turn is None else [block.median_ms for block in block_times(turn)]


def known_hardware(
    thresholds: Thresholds, gpus: Sequence[tuple[str, int | None]]
) -> HardwareThresholds | None:
    """The row for these GPUs, each given by its name and its memory in bytes; None where there is none."""
    for row in thresholds.hardware:
        if len(gpus) == row.count and all(
            name.lower() == row.gpu.lower() and memory is not None and round(memory / 2**30) == row.memory_gib
            for name, memory in gpus
        ):
            return row
    return None


def judge_absolute(found: Measured, row: HardwareThresholds) -> tuple[Verdict, ...]:
    """The short prompt's and the last block's time against what is known of this hardware."""
    pairs = (
        ("short, ms/step", found.short_ms, row.short_ms),
        ("last block, ms/step", found.last_ms, row.long_ms),
    )
    return tuple(
        _at_most(name, value, wanted * (1 + row.tolerance_percent / 100)) for name, value, wanted in pairs
    )


def judge_relative(patched: Measured, stock: Measured, limits: RelativeThresholds) -> tuple[Verdict, Verdict]:
    """How many times faster than stock, measured in the same run."""
    return (
        _speedup("short against stock", patched.short_ms, stock.short_ms, limits.short_speedup),
        _speedup("last block against stock", patched.last_ms, stock.last_ms, limits.last_block_speedup),
    )


def judge_flat(found: Measured, limits: RelativeThresholds) -> Verdict:
    """Whether a step takes as long at the end of a long context as at its start."""
    name = "flat over the context"
    if found.first_ms is None or found.last_ms is None:
        return Verdict(name=name, passed=False, detail="not measured: no two blocks with time stamps")
    ratio = found.last_ms / found.first_ms
    return Verdict(
        name=name,
        passed=ratio <= limits.last_over_first,
        detail=f"{found.first_ms:.1f} to {found.last_ms:.1f} ms/step, ratio {ratio:.3f}, "
        f"at most {limits.last_over_first:g}",
    )


def _at_most(name: str, value: float | None, limit: float) -> Verdict:
    if value is None:
        return Verdict(name=name, passed=False, detail="not measured: no steps with time stamps")
    return Verdict(name=name, passed=value <= limit, detail=f"{value:.1f} ms, at most {limit:.1f} ms")


def _speedup(name: str, patched: float | None, stock: float | None, limit: float) -> Verdict:
    if patched is None or stock is None:
        which = "patched" if patched is None else "stock"
        return Verdict(name=name, passed=False, detail=f"not measured: {which} has no steps with time stamps")
    ratio = stock / patched
    return Verdict(
        name=name,
        passed=ratio >= limit,
        detail=f"{stock:.1f} by {patched:.1f} ms/step, ratio {ratio:.2f}, at least {limit:g}",
    )
