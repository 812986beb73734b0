"""The part that leaves ``sc_embT`` no room: on the last device, then on any."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from gpu_proof.cards import visible
from gpu_proof.judging import buffers, how_it_ended, landed, moved
from gpu_proof.report import Report
from gpu_proof.runs import BOTH, ON, Bench, Ran, Turn, run

Room: TypeAlias = Literal["first", "host"]

# A small micro-batch: for a gap to exist between them, the compute buffers must be smaller than sc_embT.
OPTIONS = ("-p", "hello", "-ub", "384", "-b", "384", "-c", "384", "-ts", "1,1", "-lv", "4", *ON)
FULL: Mapping[Room, Sequence[int]] = {"first": (1,), "host": (0, 1)}
"""Devices that are filled, by where the buffer must then go."""
ROOMS: Final = (1700, 1800, 1500, 1900, 2000)
LOGICAL_ROOMS: Final = (1300, 1100, 900)
"""MiB beside the weights. What CUDA itself takes is not printed, so several are tried."""
_CONTEXT: Final = 512
"""MiB that a logical device's limit allows for CUDA itself."""
_NO_LIMIT: Final = 65536


class MemoryNotHeldError(Exception):
    """The GPUs' memory could not be filled; the message says why."""


@contextlib.contextmanager
def held(leave: Mapping[int, int], bench: Bench) -> Iterator[None]:
    """Only that many MiB are free on each GPU meanwhile. Raises MemoryNotHeldError."""
    gpus = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible(BOTH, bench.cards)}
    argv = [str(Path(__file__).with_name("hold_memory.py")), *(f"{gpu}:{mib}" for gpu, mib in leave.items())]
    child = subprocess.Popen(
        [sys.executable, *argv],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **gpus},
    )
    assert child.stdout is not None
    try:
        line = ""
        for line in child.stdout:
            if line == "ready\n":
                break
        else:
            raise MemoryNotHeldError(line.strip() or "nothing was printed")
        yield
    finally:
        child.communicate("")


def pressure(bench: Bench, report: Report) -> None:
    """The run ends well, says where the buffer went, and replies as a run with all the room there is."""
    free = run(Turn(name="pressure-none", binary="patched", options=OPTIONS, steps=6), bench)
    weights = buffers(free.text, "model")
    report.keep(
        "pressure",
        {"model_mib": weights, "compute_mib": buffers(free.text, "compute"), "devices": free.devices},
    )
    if set(weights) != {"0", "1"}:
        report.verdict("pressure", False, f"no run to start from: {how_it_ended(free)}")
        return
    for case in FULL:
        try:
            report.verdict(f"pressure-{case}", *_fall_back(case, free, weights, bench, report))
        except MemoryNotHeldError as error:
            report.verdict(f"pressure-{case}", False, f"the GPU's memory was not filled: {error}")


def _fall_back(
    case: Room, free: Ran, weights: Mapping[str, float], bench: Bench, report: Report
) -> tuple[bool, str]:
    note = "never fell back"
    for room in LOGICAL_ROOMS if bench.logical else ROOMS:
        if bench.deadline.left() < 35:
            return False, f"{note}; no time"
        ran = _run_filled(case, room, weights, bench)
        moves, same = moved(ran.text), ran.reply is not None and ran.reply == free.reply
        note = f"room {room} MiB: {how_it_ended(ran)}, {moves}, same reply {same}"
        report.note(f"{case}: {note}")
        if ran.exit_code == 0 and landed(case, moves):
            return same, note
    return False, note


def _run_filled(case: Room, room: int, weights: Mapping[str, float], bench: Bench) -> Ran:
    leave = {gpu: int(weights[str(gpu)]) + room for gpu in FULL[case]}
    turn = Turn(name=f"pressure-{case}-{room}", binary="patched", options=OPTIONS, steps=6)
    if not bench.logical:
        with held(leave, bench):
            return run(turn, bench)
    limits = (leave[gpu] + _CONTEXT if gpu in leave else _NO_LIMIT for gpu in (0, 1))
    return run(dataclasses.replace(turn, env={"LOGICAL_GPU_MIB": ",".join(map(str, limits))}), bench)
