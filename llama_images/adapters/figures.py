"""Charts as SVG and PNG, by matplotlib, which draws without a screen.

A flavor has a colour, a line, a marker and a hatch of its own, so that the picture can be read in black and
white. The colours of the SVG are CSS variables, ``--chart-ink`` and so on, each with the PNG's colour as its
fallback: the page gives them other values in the dark.
"""

from __future__ import annotations

import io
import os
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from llama_images.bench_chart import Chart, Group, Panel, Series
from llama_images.ports import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK: Final = "#1b1c1e"
_MUTED: Final = "#595c61"
_GRID: Final = "#d9dadd"
_BAND: Final = "#f1f2f4"
_PAPER: Final = "#fefefe"
_FLAVORS: Final = ("#b34700", "#005b9f", "#4d6b00", "#7a3b8f")

_VARIABLES: Final[Mapping[str, str]] = {
    _INK: "ink",
    _MUTED: "muted",
    _GRID: "grid",
    _BAND: "band",
    _PAPER: "paper",
    **{colour: f"flavor-{number}" for number, colour in enumerate(_FLAVORS)},
}
"""Colour of the drawing to the name of its variable in a page."""

_DOTS_PER_INCH: Final = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class _Style:
    colour: str
    line: Literal["-", "--", "-.", ":"]
    marker: str
    fill: str
    """Of the marker and of bars."""
    hatch: str


_STYLES: Final = (
    _Style(colour=_FLAVORS[0], line="--", marker="s", fill=_PAPER, hatch="//////"),
    _Style(colour=_FLAVORS[1], line="-", marker="o", fill=_FLAVORS[1], hatch=""),
    _Style(colour=_FLAVORS[2], line=":", marker="^", fill=_PAPER, hatch="\\\\\\\\\\\\"),
    _Style(colour=_FLAVORS[3], line="-.", marker="D", fill=_PAPER, hatch="xxxxxx"),
)


class MatplotlibArtist:
    """Implements ``ports.Artist``. ``cache`` is where matplotlib keeps its list of fonts."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def draw(self, chart: Chart) -> Drawing:
        """Draw the chart; the same chart gives the same bytes."""
        self._cache.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("MPLCONFIGDIR", str(self._cache))  # read when it is imported
        import matplotlib as mpl

        settings: dict[Any, Any] = {
            "axes.edgecolor": _MUTED,
            "axes.facecolor": "none",
            "axes.labelcolor": _INK,
            "axes.linewidth": 0.8,
            "font.family": ["DejaVu Sans"],  # comes with matplotlib
            "font.size": 9.5,
            "hatch.linewidth": 0.9,
            "savefig.facecolor": "none",
            "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
            "svg.hashsalt": "llama-images",
            "text.color": _INK,
            "xtick.color": _MUTED,
            "xtick.labelcolor": _INK,
            "ytick.color": _MUTED,
            "ytick.labelcolor": _INK,
        }
        with mpl.rc_context(settings), warnings.catch_warnings():
            # A letter that the font lacks becomes a box in the PNG; in the SVG the reader's fonts have it.
            warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
            # A page says title and caption itself.
            return Drawing(svg=_svg(_figure(chart, alone=False), chart), png=_png(_figure(chart, alone=True)))


def _figure(chart: Chart, *, alone: bool) -> Figure:
    from matplotlib.figure import Figure

    columns = max(1, len(chart.panels))
    rows = 2 if chart.has_gaps else 1
    width = max(7.4, columns * min(8.0, 1.2 + 0.58 * len(chart.slots)))
    figure = Figure(figsize=(width, 4.4 + 2.2 * (rows - 1)), layout="constrained")
    axes = figure.subplots(
        rows, columns, squeeze=False, sharex=True, sharey="row", height_ratios=[1.5, 1][:rows]
    )
    ceiling = _ceiling(chart)
    for column, panel in enumerate(chart.panels):
        _draw_steps(axes[0][column], panel, chart, ceiling)
        if chart.has_gaps:
            _draw_gaps(axes[1][column], panel, chart)
    for row, label in enumerate(("time of a step, ms", "gap before the block, ms")[:rows]):
        axes[row][0].set_ylabel(label)
        axes[row][0].autoscale(axis="y")
        top = axes[row][0].get_ylim()[1] * 1.08  # room for the labels of the highest
        axes[row][0].set_ylim(0, ceiling if row == 0 and ceiling is not None else top)
    for axis in axes.flat:
        axis.grid(axis="y", color=_GRID, linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", length=0)
        axis.yaxis.set_major_formatter(_thousands)
    for axis in axes[-1]:
        _label_slots(axis, chart)
    figure.legend(
        handles=list(_legend(chart.flavors)),
        title=chart.title if alone else None,
        title_fontproperties={"size": 12.5, "weight": "bold"},
        alignment="left",
        loc="outside upper left",
        ncols=max(1, min(3, len(chart.flavors))),
        frameon=False,
        handlelength=3.4,
        columnspacing=1.8,
    )
    if alone:
        caption = textwrap.fill(chart.caption, int(width * 15))
        figure.supxlabel(caption, x=0.012, ha="left", fontsize=8.5, color=_MUTED)
    return figure


def _ceiling(chart: Chart) -> float | None:
    """The end of the steps' scale where single steps lie far above every median; None where all have room."""
    groups = [group for panel in chart.panels for one in panel.series for run in one.runs for group in run]
    highest = max((group.median_ms for group in groups), default=0.0)
    longest = max((step for group in groups for steps in group.rounds_ms for step in steps), default=0.0)
    return 1.6 * highest if longest > 2.5 * highest > 0 else None


def _label_slots(axis: Axes, chart: Chart) -> None:
    if chart.slots:
        axis.set_xlim(-0.25, chart.slots[-1].left + 1.25)
    every = 1 + len(chart.slots) // 13
    shown = chart.slots[::every]
    axis.set_xticks([slot.left + 0.5 for slot in shown], [f"{slot.context:,}" for slot in shown])
    axis.set_xlabel("context before the block, tokens")


def _draw_steps(axis: Axes, panel: Panel, chart: Chart, ceiling: float | None) -> None:
    axis.set_title(panel.title, loc="left", fontweight="bold", fontsize=11, pad=16)
    _draw_bands(axis, chart)
    for heading in chart.headings:
        axis.text(
            (heading.left + heading.right) / 2,
            1.012,
            heading.text,
            transform=axis.get_xaxis_transform(),
            ha="center",
            va="bottom",
            color=_MUTED,
        )
    for series in panel.series:
        style = _STYLES[series.flavor % len(_STYLES)]
        for run in series.runs:
            for group in run:
                _draw_group(axis, group, style, ceiling)
            axis.plot(
                [group.left + 0.5 for group in run],
                [group.median_ms for group in run],
                zorder=4,
                **_median_line(style),
            )
    _label_ends(axis, panel)
    notes = ["not measured: " + "; ".join(panel.missing)] if panel.missing else []
    if ceiling is not None:
        beyond = sum(
            step > ceiling
            for one in panel.series
            for run in one.runs
            for group in run
            for steps in group.rounds_ms
            for step in steps
        )
        notes += [f"\N{BLACK UP-POINTING TRIANGLE} {beyond} single steps above the scale"] if beyond else []
    if notes:
        axis.text(
            0.99,
            0.93,
            "\n".join(notes),
            transform=axis.transAxes,
            ha="right",
            va="top",
            color=_MUTED,
            fontsize=8.5,
        )


def _draw_bands(axis: Axes, chart: Chart) -> None:
    for slot in chart.slots:
        axis.axvspan(slot.left + 0.03, slot.left + 0.97, color=_BAND, linewidth=0, zorder=0)


def _draw_group(axis: Axes, group: Group, style: _Style, ceiling: float | None) -> None:
    for steps in group.rounds_ms:
        lefts = [group.left + (number + 1) / (len(steps) + 1) for number in range(len(steps))]
        if ceiling is not None and (
            beyond := [x for x, step in zip(lefts, steps, strict=True) if step > ceiling]
        ):
            axis.plot(
                beyond,
                [0.985 * ceiling] * len(beyond),
                color=style.colour,
                linestyle="none",
                marker="^",
                markersize=4.0,
                markeredgewidth=0,
                zorder=3,
            )
        axis.plot(
            lefts,
            steps,
            color=style.colour,
            linestyle="none",
            marker=style.marker,
            markersize=2.4,
            markerfacecolor=style.colour,
            markeredgewidth=0,
            alpha=0.6,
            zorder=3,
        )


def _label_ends(axis: Axes, panel: Panel) -> None:
    """The medians of every run's first and last block: the higher one above, the lower below."""
    ends: dict[float, list[tuple[Group, Series]]] = {}
    for series in panel.series:
        for run in series.runs:
            for group in dict.fromkeys((run[0], run[-1])):
                ends.setdefault(group.left, []).append((group, series))
    for values in ends.values():
        values.sort(key=lambda one: one[0].median_ms)
        for place, (group, series) in enumerate(values):
            if 0 < place < len(values) - 1:
                continue  # no room between two others; the table has it
            above = place == len(values) - 1
            steps = [step for steps in group.rounds_ms for step in steps]
            clear = max(steps) if above else min(steps)
            if abs(clear / group.median_ms - 1) > 0.2 if group.median_ms else True:
                clear = group.median_ms  # one step far off does not take the label with it
            axis.annotate(
                _number(group.median_ms),
                (group.left + 0.5, clear),
                xytext=(0, 6 if above else -6),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                color=_STYLES[series.flavor % len(_STYLES)].colour,
                fontsize=9,
                fontweight="bold",
                zorder=5,
            )


def _draw_gaps(axis: Axes, panel: Panel, chart: Chart) -> None:
    _draw_bands(axis, chart)
    slot = 0.84 / max(1, len(chart.flavors))
    for series in panel.series:
        style = _STYLES[series.flavor % len(_STYLES)]
        for gap in series.gaps:
            centre = gap.left + 0.08 + slot * (series.flavor + 0.5)
            axis.bar(
                centre,
                gap.median_ms,
                width=0.9 * slot,
                facecolor=style.fill,
                edgecolor=style.colour,
                hatch=style.hatch,
                linewidth=1.0,
                zorder=3,
            )
            if gap.high_ms > gap.low_ms:
                axis.vlines(centre, gap.low_ms, gap.high_ms, color=_INK, linewidth=1.0, zorder=4)
            if len(chart.slots) * len(chart.flavors) <= 20:
                axis.annotate(
                    _number(gap.median_ms),
                    (centre, gap.median_ms),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    color=style.colour,
                    fontsize=7.5,
                    bbox={"facecolor": _BAND, "edgecolor": "none", "pad": 0.6},
                    zorder=5,
                )


def _legend(flavors: Sequence[str]) -> Iterator[Any]:
    from matplotlib.lines import Line2D

    for number, flavor in enumerate(flavors):
        style = _STYLES[number % len(_STYLES)]
        yield Line2D([], [], label=f"{flavor}, median and single steps", **_median_line(style))


def _median_line(style: _Style) -> dict[str, Any]:
    """Of a flavor's medians, in the drawing and in its legend."""
    return {
        "color": style.colour,
        "linestyle": style.line,
        "linewidth": 1.6,
        "marker": style.marker,
        "markersize": 6.5,
        "markerfacecolor": style.fill,
        "markeredgewidth": 1.4,
    }


def _number(value: float) -> str:
    """Three digits at least, and no more after the point than they need."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.0f}" if value >= 99.95 else f"{value:.1f}"


def _thousands(value: float, _position: int) -> str:
    return f"{value:,.0f}"


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def _svg(figure: Figure, chart: Chart) -> str:
    data = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(data, format="svg", metadata=nothing)  # None leaves a key out
    return themed(data.getvalue(), chart.title)


def themed(document: str, title: str) -> str:
    """A whole SVG document of this module's colours as an element for a page, with its title for readers."""
    element = document[document.index("<svg") :]
    for colour, name in _VARIABLES.items():
        element = element.replace(colour, f"var(--chart-{name}, {colour})")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    # The page sizes it; the view box keeps its shape.
    head, tail = element.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{title}">{tail}'
