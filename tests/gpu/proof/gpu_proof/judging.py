"""What a run's output says, and whether it is as it should be. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from gpu_proof.runs import Ran
from llama_images.runs import Run, RunUnreadable, parse_run
from llama_images.validators import Check, judge

_EXPECTED: Final[frozenset[Check]] = frozenset({"sc", "devsample"})

_NOT_RUN = re.compile(r"DG_\w+_CHECK: not run.*")
_FUSION = re.compile(r"DG_FUSION dev (\d+) (\S+) (\w+)")
_BUFFER = re.compile(r"CUDA(\d+) (model|compute) buffer size =\s*([0-9.]+) MiB")
_NO_ROOM = re.compile(r"no room for (\w+) .*? on (\w+), it is on (\w+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Validated:
    """What both validators said of a run that had them on."""

    passed: bool
    """The run ended well, with a line of both for every step, each without fault."""
    found_fault: bool
    """A line says that the device computed something else. Lines that are missing say no such thing."""
    note: str


def _parsed(ran: Ran) -> Run | None:
    try:
        return parse_run(ran.output)
    except RunUnreadable:
        return None


def validated(ran: Ran) -> Validated:
    """Judge a run that had both validators on."""
    run = _parsed(ran)
    if run is None or ran.exit_code != 0:
        return Validated(
            passed=False, found_fault=False, note=f"{how_it_ended(ran)}, {len(ran.stamps)} steps"
        )
    failed = [verdict for verdict in judge(run, _EXPECTED) if not verdict.passed]
    lines = {"DG_SC_CHECK values": run.sc_checks, "DG_DEVSAMPLE_CHECK values": run.devsample_checks}
    note = (
        f"{len(ran.stamps)} steps, SC lines {len(run.sc_checks)}, sampler lines {len(run.devsample_checks)}"
    )
    reasons = [*_NOT_RUN.findall(ran.text)[:1], *(f"{verdict.name}: {verdict.detail}" for verdict in failed)]
    return Validated(
        passed=not failed,
        found_fault=any(lines.get(verdict.name) for verdict in failed),
        note="; ".join([note, *reasons]),
    )


def how_it_ended(ran: Ran) -> str:
    """The exit code and the last error that the program printed, or why there are none."""
    if ran.exit_code is None:
        return ran.text
    if ran.killed:
        return "killed, it took too long"
    run = _parsed(ran)
    reason = f" ({run.errors[-1]})" if run is not None and run.errors else ""
    return f"exit code {ran.exit_code}{reason}"


def argmax_mismatches(ran: Ran) -> list[int]:
    """Of each step: canvas positions at which the two samplers' highest words differ."""
    run = _parsed(ran)
    return [] if run is None else [check.amax_mismatch for check in run.devsample_checks]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fusions:
    """What ``DG_LOG_FUSION=1`` told of the routers."""

    seen: int
    refused: Mapping[str, int]
    """How often, by ``device:node``."""


def fusions(text: str) -> Fusions:
    """The routers that the CUDA backend looked at."""
    found = [match.groups() for match in _FUSION.finditer(text)]
    return Fusions(
        seen=len(found),
        refused=Counter(f"{device}:{node}" for device, node, what in found if what == "refused"),
    )


def buffers(text: str, kind: Literal["model", "compute"]) -> dict[str, float]:
    """MiB of a device's buffer, by the device's number, from a run with ``-lv 4``."""
    return {match[1]: float(match[3]) for match in _BUFFER.finditer(text) if match[2] == kind}


def moved(text: str) -> list[tuple[str, str, str]]:
    """Buffers that found no room: which, where, and where it went instead."""
    return [(match[1], match[2], match[3]) for match in _NO_ROOM.finditer(text)]


def landed(case: Literal["first", "host"], moves: list[tuple[str, str, str]]) -> bool:
    """Whether ``sc_embT`` went where it should: to the first device, or past it to the host."""
    place = {name: to for name, _, to in moves}.get("sc_embT")
    if case == "first":
        return place == "CUDA0"
    return place is not None and not place.startswith("CUDA0")
