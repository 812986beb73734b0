"""A bench as one HTML file that asks for nothing else: no script, no font, no address. Pure."""

from __future__ import annotations

import shlex
from typing import Final

import jinja2

from llama_images.bench import Bench, Measurement
from llama_images.bench_chart import caption
from llama_images.bench_rows import COLUMNS, ratio_rows_of, rows_of

TEMPLATE: Final = "bench.html.j2"
"""Its name in ``templates/``."""

_LONGEST: Final = 60
"""Characters of an argument that are shown; the long prompt is 1,780 digits."""


def render_page(bench: Bench, svg: str, template: str) -> str:
    """The page. ``svg`` is an element that is put in as it is; ``template`` is the text of ``TEMPLATE``."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        bench=bench,
        caption=caption(bench),
        columns=COLUMNS,
        rows=rows_of(bench),
        ratios=ratio_rows_of(bench),
        commands=[(one, shown(one.command)) for one in _one_of_each(bench)],
        svg=svg,
    )


def shown(command: tuple[str, ...]) -> str:
    """A command as a shell takes it, with long arguments cut."""
    words = [word if len(word) <= _LONGEST else f"{word[:24]}…({len(word)} characters)" for word in command]
    return " ".join(word if "…(" in word else shlex.quote(word) for word in words)


def _one_of_each(bench: Bench) -> list[Measurement]:
    """The first round's command of every configuration and flavor."""
    found: dict[tuple[str, str], Measurement] = {}
    for one in bench.measurements:
        found.setdefault((one.configuration, one.flavor), one)
    return list(found.values())
