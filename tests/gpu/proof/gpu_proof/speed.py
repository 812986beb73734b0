"""The part that times the series against the pin, one run at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from gpu_proof.correctness import DEVICES
from gpu_proof.report import Report, plain
from gpu_proof.runs import ON, SHORT, Bench, Turn, run
from gpu_proof.timing import Bound, Times, Timing, judge_ratio, merge, time_run

BOUNDS = (
    Bound(
        name="speed-short-2-vs-1",
        of="patched-2gpu-short",
        against="patched-1gpu-short",
        block=0,
        against_block=0,
        limit=1.03,
        at_most=True,
    ),
    Bound(
        name="speed-long-flat",
        of="patched-2gpu-long",
        against="patched-2gpu-long",
        block=-1,
        against_block=0,
        limit=1.06,
        at_most=True,
    ),
    Bound(
        name="speed-short-vs-stock",
        of="stock-2gpu-short",
        against="patched-2gpu-short",
        block=0,
        against_block=0,
        limit=2.8,
        at_most=False,
    ),
    Bound(
        name="speed-long-vs-stock",
        of="stock-2gpu-long",
        against="patched-2gpu-long",
        block=-1,
        against_block=-1,
        limit=6.5,
        at_most=False,
    ),
    Bound(
        name="speed-1gpu-long-vs-stock",
        of="patched-1gpu-long",
        against="stock-1gpu-long",
        block=-1,
        against_block=-1,
        limit=1.02,
        at_most=True,
    ),
    Bound(
        name="speed-1gpu-vs-stock",
        of="patched-1gpu-short",
        against="stock-1gpu-short",
        block=0,
        against_block=0,
        limit=1.02,
        at_most=True,
    ),
)
CPU_LIMIT = 1.02
GAP_LIMIT = 450.0
"""Milliseconds between two blocks on two devices."""
NEEDS = {"stock-2gpu-long": 65.0}
"""Seconds that a run needs, where they are more than ``NEED``."""
NEED = 22.0


def plan(series: Sequence[str], long_prompt: str) -> tuple[list[Turn], list[Turn]]:
    """The timed runs in their order: those before the CPU is timed, and those after.

    ``series`` holds the binaries that are timed with all three optimizations on; stock runs as it comes. What
    is most wanted comes first, and repeats are spread, so that a clock that drifts shows. Stock on two
    devices, long, takes a minute and runs once.
    """
    prompts = {"short": SHORT, "long": ("-p", long_prompt, "-n", "1536")}

    def turns(size: str, count: int) -> list[Turn]:
        return [
            Turn(
                name=f"{binary}-{count}gpu-{size}",
                binary=binary,
                options=(*prompts[size], *(() if binary == "stock" else ON)),
                gpus=DEVICES[count],
            )
            for binary in (*series, "stock")
        ]

    short_1, short_2, long_1, long_2 = (turns(size, count) for size in prompts for count in DEVICES)
    *long_2, stock_long_2 = long_2
    before = [*short_1, *short_2, *short_1, *long_1, *long_2, *short_1, *short_2, stock_long_2]
    return before, [*long_1, *long_2, *short_2]


def speed(bench: Bench, report: Report) -> None:
    """Two devices against one, the last block against the first, and all against the pin."""
    bench.wait_until_built(keep=150)  # compilers would be timed as well
    series = ["patched", *(["extra"] if (bench.binaries / "extra").exists() else [])]
    before, after = plan(series, bench.long_prompt)
    timed = _Timed(bench, report)
    for turn in before:
        timed.run(turn)
    if not bench.logical:
        timed.run_cpu()
    for turn in after:
        timed.run(turn)
    table = timed.table()
    for bound in BOUNDS:
        report.verdict(bound.name, *bound.judge(table))
    gaps = table["patched-2gpu-long"].gaps_ms if "patched-2gpu-long" in table else []
    note = f"gaps {gaps} ms, under {GAP_LIMIT:g}"
    report.verdict("speed-gap", bool(gaps) and max(gaps) < GAP_LIMIT, note)


class _Timed:
    """The runs that were timed so far."""

    def __init__(self, bench: Bench, report: Report) -> None:
        self._bench, self._report = bench, report
        self._repeats: dict[str, list[Timing]] = {}
        self._missed: list[str] = []
        self._cpu: dict[str, list[float]] = {}

    def table(self) -> dict[str, Times]:
        """The medians over each run's repeats."""
        return {name: merge(runs) for name, runs in self._repeats.items()}

    def run(self, turn: Turn) -> None:
        """One repeat, if there is time for it. Its log is numbered."""
        if self._bench.deadline.left() < NEEDS.get(turn.name, NEED):
            self._missed.append(turn.name)
            self._report.note(f"{turn.name}: no time")
            return
        repeats = self._repeats.setdefault(turn.name, [])
        found = self._time(turn, len(repeats))
        repeats.append(found)
        self._report.note(f"{turn.name}: {json.dumps(plain(found))}")
        self._keep()

    def run_cpu(self) -> None:
        """The tiny model without a GPU, five times each: the series must cost nothing there."""
        self._cpu = {"patched": [], "stock": []}
        for number in range(5):
            for binary in self._cpu:
                if self._bench.deadline.left() < 15:
                    continue
                turn = Turn(
                    name=f"cpu-{binary}",
                    binary=binary,
                    options=("-p", "hello", "-n", "192", "-t", "4", "--diffusion-eb-confidence", "0"),
                    gpus="",
                    steps=48,
                    model="tiny.gguf",
                    gpu_layers=0,
                )
                self._cpu[binary] += self._time(turn, number).ms_per_step
        self._report.note(f"cpu, tiny: {self._cpu}")
        self._keep()
        # The least disturbed block of each: other work on the machine moves a median by more than the limit.
        patched, stock = (min(times, default=None) for times in self._cpu.values())
        self._report.verdict(
            "speed-cpu-vs-stock", *judge_ratio(patched, stock, limit=CPU_LIMIT, at_most=True)
        )

    def _time(self, turn: Turn, number: int) -> Timing:
        numbered = dataclasses.replace(turn, name=f"speed-{turn.name}-{number}")
        ran = run(numbered, self._bench)
        return time_run(ran.stamps, ran.text, exit_code=ran.exit_code, devices=ran.devices)

    def _keep(self) -> None:
        missing = {name: {"error": "no time"} for name in self._missed}
        cpu = {"cpu": self._cpu} if self._cpu else {}
        self._report.keep("speed", {**missing, **self.table(), **cpu})
        self._report.keep("speed_runs", self._repeats)
