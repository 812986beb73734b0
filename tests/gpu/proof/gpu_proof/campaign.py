"""The campaign: its parts, one after the other, as far as the time goes."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from gpu_proof.correctness import drift, identity, negative, ties, validate
from gpu_proof.explaining import explain, router
from gpu_proof.pressure import pressure
from gpu_proof.report import Report
from gpu_proof.runs import Bench
from gpu_proof.speed import speed

PARTS: Mapping[str, Callable[[Bench, Report], None]] = {
    "validate": validate,
    "ties": ties,
    "identity": identity,
    "drift": drift,
    "negative": negative,
    "pressure": pressure,
    "speed": speed,
    "explain": explain,
    "router": router,
}
DEFAULT = ("validate", "ties", "identity", "drift", "negative", "pressure", "speed", "explain")
SHORTEST = 45.0
"""Seconds without which no part is begun."""


def gpus() -> list[str]:
    """Name, driver and memory of each card, as nvidia-smi tells; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    argv = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()


def run_parts(names: Sequence[str], bench: Bench, report: Report) -> bool:
    """Run the parts and say whether every verdict passed. Without any verdict, none failed."""
    report.keep("gpus", gpus())
    for name in names:
        if bench.deadline.left() < SHORTEST:
            report.verdict(name, False, "no time")
            continue
        began = time.monotonic()
        PARTS[name](bench, report)
        took, left = time.monotonic() - began, bench.deadline.left()
        report.note(f"part {name}: {took:.0f} s, {left:.0f} s left")
    report.keep("failed", report.failed)
    print(f"{len(report.failed)} failed: {', '.join(report.failed) or '-'}")
    return not report.failed
