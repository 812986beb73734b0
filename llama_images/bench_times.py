"""From a run to the times that a bench keeps of it. Pure."""

from __future__ import annotations

from llama_images.bench import BlockRecord, TurnRecord
from llama_images.errors import CheckFailed
from llama_images.runs import Run
from llama_images.timing import block_times, warm_turn


def record_of(run: Run) -> TurnRecord:
    """Steps and gaps of the run's warm turn.

    Raises CheckFailed where no turn came to its end after another one, or a progress line has no time stamp:
    what is missing must not make a build look faster.
    """
    turn = warm_turn(run)
    if turn is None or turn.summary is None or not turn.blocks:
        raise CheckFailed("the run has no turn that came to its end after another one")
    times = block_times(turn)
    for number, (block, steps) in enumerate(zip(times, turn.blocks, strict=True), 1):
        if len(block.steps_ms) != len(steps) - 1 or (number > 1 and block.gap_ms is None):
            raise CheckFailed(f"block {number} has progress lines without a time stamp, or time runs back")
    return TurnRecord(
        blocks=tuple(BlockRecord(steps_ms=block.steps_ms, gap_ms=block.gap_ms) for block in times),
        turn_ms=turn.summary.milliseconds,
    )
