"""The tables of a bench, as the terminal and the page show them: rows of words. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llama_images.bench import Bench, Configuration, Ratio, Spread, Summary, ratios, spread, summarize

NOTHING = "–"
"""Stands where there is nothing to tell: a single block has no gap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A median, and how far the rounds lie apart."""

    text: str
    range: str
    """Lowest to highest, in the same unit; empty where there is one round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A configuration with one flavor, or the ratio of two."""

    configuration: str
    flavor: str
    rounds: int
    is_ratio: bool
    cells: tuple[Cell, ...]
    """As many as ``COLUMNS``."""


COLUMNS = ("step, first", "step, last", "gap, first", "gap, last", "turn")
"""Milliseconds of a step in the first and in the last block, of the gap before the second and before the last
block, and seconds of the whole turn."""

COLUMN_HEADS = dict(zip(COLUMNS, ("step 1st", "step last", "gap 1st", "gap last", "turn"), strict=True))
"""The same, where 80 columns must do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioRow:
    """One ratio, round by round."""

    configuration: str
    flavor: str
    quantity: str
    median: str
    rounds: tuple[str, ...]
    """For every round of the bench; ``NOTHING`` where it has no such pair."""


def rows_of(bench: Bench) -> tuple[Row, ...]:
    """For each configuration its flavors, then what the first of them takes in multiples of each other."""
    rows: list[Row] = []
    for configuration in bench.configurations:
        summaries = [summarize(bench, configuration, flavor) for flavor in bench.flavors]
        rows += [_row(configuration, one) for one in summaries if one is not None]
        rows += [_ratio_row(bench, configuration, ratio) for ratio in ratios(bench, configuration)]
    return tuple(rows)


def ratio_rows_of(bench: Bench) -> tuple[RatioRow, ...]:
    """Every ratio that there is, with its value in each round."""
    rows: list[RatioRow] = []
    for configuration in bench.configurations:
        for ratio in ratios(bench, configuration):
            for quantity, values in _quantities(configuration, ratio):
                middle = spread(values)
                if middle is not None:
                    rows.append(
                        RatioRow(
                            configuration=configuration.title,
                            flavor=ratio_name(bench, ratio),
                            quantity=quantity,
                            median=_times(middle.median),
                            rounds=_by_round(bench, ratio, values),
                        )
                    )
    return tuple(rows)


def ratio_name(bench: Bench, ratio: Ratio) -> str:
    """ "stock ÷ patched"."""
    return f"{bench.flavors[0]} ÷ {ratio.flavor}"


def _quantities(configuration: Configuration, ratio: Ratio) -> Iterator[tuple[str, tuple[float | None, ...]]]:
    if configuration.blocks > 1:
        yield "step, first block", ratio.first
        yield "step, last block", ratio.last
        yield "gap, last block", ratio.last_gap
    else:
        yield "step", ratio.first
    yield "turn", ratio.turn


def _by_round(bench: Bench, ratio: Ratio, values: tuple[float | None, ...]) -> tuple[str, ...]:
    found = dict(zip(ratio.rounds, values, strict=True))
    there = (found.get(number) for number in range(1, bench.rounds + 1))
    return tuple(NOTHING if value is None else _times(value) for value in there)


def _row(configuration: Configuration, summary: Summary) -> Row:
    turn = summary.turn_ms
    seconds = turn and Spread(median=turn.median / 1e3, low=turn.low / 1e3, high=turn.high / 1e3)
    values = (summary.first, summary.last, summary.first_gap, summary.last_gap)
    return Row(
        configuration=configuration.title,
        flavor=summary.flavor,
        rounds=summary.rounds,
        is_ratio=False,
        cells=(*(_cell(value, number) for value in values), _cell(seconds, number)),
    )


def _ratio_row(bench: Bench, configuration: Configuration, ratio: Ratio) -> Row:
    values = (ratio.first, ratio.last, ratio.first_gap, ratio.last_gap, ratio.turn)
    return Row(
        configuration=configuration.title,
        flavor=ratio_name(bench, ratio),
        rounds=len(ratio.rounds),
        is_ratio=True,
        cells=tuple(_cell(spread(value), _times) for value in values),
    )


def number(value: float) -> str:
    """A measured value: three digits or more."""
    for limit, digits in ((9.995, 2), (99.95, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def _times(value: float) -> str:
    return f"{value:.2f}×" if value < 99.995 else f"{value:,.0f}×"


def _cell(value: Spread | None, say: Callable[[float], str]) -> Cell:
    if value is None:
        return Cell(text=NOTHING, range="")
    apart = f"{say(value.low)} to {say(value.high)}" if value.low < value.high else ""
    return Cell(text=say(value.median), range=apart.replace("× to", " to"))
