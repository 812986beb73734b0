"""What the picture of a bench shows: numbers and words, without colours or pixels. Pure.

Blocks stand side by side, each as wide as the next, by the context before them; a space parts one workload
from the next. So a short prompt's one block and a long prompt's six are read off the same axis, though there
are thousands of tokens between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llama_images.bench import Bench, Configuration, Summary, summarize

SPACE: Final = 0.6
"""Between two workloads, where a block is 1 wide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """The place of one block."""

    left: float
    """It reaches from here to ``left + 1``."""
    context: int
    """Tokens before the block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heading:
    """A workload's name over its slots."""

    text: str
    left: float
    right: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The steps of one block."""

    left: float
    rounds_ms: tuple[tuple[float, ...], ...]
    """For each round, its steps in order."""
    median_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """The time before a block."""

    left: float
    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One flavor in one panel."""

    flavor: int
    """Its position among the chart's flavors: it decides colour, line, marker and hatch."""
    runs: tuple[tuple[Group, ...], ...]
    """The blocks of each workload; a line joins them."""
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One number of GPUs."""

    title: str
    series: tuple[Series, ...]
    missing: tuple[str, ...]
    """What was not measured there: "stock, long"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """The whole picture: for each panel the steps above and the gaps below. All panels share the slots."""

    title: str
    caption: str
    flavors: tuple[str, ...]
    slots: tuple[Slot, ...]
    headings: tuple[Heading, ...]
    panels: tuple[Panel, ...]

    @property
    def has_gaps(self) -> bool:
        return any(series.gaps for panel in self.panels for series in panel.series)


def chart_of(bench: Bench) -> Chart:
    """The chart of a bench: a panel for every place that was measured, in the order of the document."""
    slots, headings, lefts = _slots(bench)
    places: dict[str, list[Configuration]] = {}
    for configuration in bench.configurations:
        places.setdefault(configuration.place, []).append(configuration)
    panels = []
    for place, configurations in places.items():
        found = {
            (position, configuration.workload): summarize(bench, configuration, flavor)
            for position, flavor in enumerate(bench.flavors)
            for configuration in configurations
        }
        series = []
        for position in range(len(bench.flavors)):
            own = [one for (flavor, _), one in found.items() if flavor == position and one is not None]
            runs = [groups for one in own if (groups := _groups(bench, one, lefts))]
            gaps = [gap for one in own for gap in _gaps(one, lefts)]
            if runs or gaps:
                series.append(Series(flavor=position, runs=tuple(runs), gaps=tuple(gaps)))
        panels.append(
            Panel(
                title=place,
                series=tuple(series),
                missing=tuple(
                    f"{bench.flavors[flavor]}, {workload}"
                    for (flavor, workload), one in found.items()
                    if one is None
                ),
            )
        )
    return Chart(
        title="Denoising steps, and the gaps between blocks",
        caption=caption(bench),
        flavors=bench.flavors,
        slots=slots,
        headings=headings,
        panels=tuple(panels),
    )


def caption(bench: Bench) -> str:
    """What a picture that stands alone must say: hardware, model, rounds, day, and the note."""
    counted = Counter(bench.hardware.gpus)
    machine = ", ".join(f"{count} × {name}" for name, count in counted.items()) or bench.hardware.processor
    rounds = f"{bench.rounds} round{'' if bench.rounds == 1 else 's'}"
    parts = [machine, bench.model.file, rounds, bench.taken_at[:10], bench.note]
    text = " · ".join(part for part in parts if part)
    # A picture can show no control character, and XML may hold none.
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _slots(bench: Bench) -> tuple[tuple[Slot, ...], tuple[Heading, ...], Mapping[tuple[str, int], float]]:
    """Slots, their headings, and where each block of each workload stands."""
    longest: dict[str, Configuration] = {}
    for configuration in bench.configurations:
        kept = longest.setdefault(configuration.workload, configuration)
        if configuration.blocks > kept.blocks:
            longest[configuration.workload] = configuration
    slots: list[Slot] = []
    headings: list[Heading] = []
    lefts: dict[tuple[str, int], float] = {}
    at = 0.0
    for workload, configuration in longest.items():
        start = at
        for block in range(configuration.blocks):
            lefts[workload, block] = at
            slots.append(Slot(left=at, context=configuration.context(block)))
            at += 1
        if at > start:
            headings.append(Heading(text=workload, left=start, right=at))
            at += SPACE
    return tuple(slots), tuple(headings), lefts


def _groups(bench: Bench, summary: Summary, lefts: Mapping[tuple[str, int], float]) -> tuple[Group, ...]:
    workload = summary.configuration.workload
    runs = bench.runs(summary.configuration, summary.flavor)
    return tuple(
        Group(
            left=lefts[workload, index],
            rounds_ms=tuple(run.times.blocks[index].steps_ms for run in runs),
            median_ms=block.step_ms.median,
        )
        for index, block in enumerate(summary.blocks)
        if block.step_ms is not None and (workload, index) in lefts
    )


def _gaps(summary: Summary, lefts: Mapping[tuple[str, int], float]) -> tuple[Gap, ...]:
    workload = summary.configuration.workload
    return tuple(
        Gap(
            left=lefts[workload, index],
            median_ms=block.gap_ms.median,
            low_ms=block.gap_ms.low,
            high_ms=block.gap_ms.high,
        )
        for index, block in enumerate(summary.blocks)
        if block.gap_ms is not None and (workload, index) in lefts
    )
