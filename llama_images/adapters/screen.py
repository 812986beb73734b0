"""Standard output for people: colours where it is a terminal that wants them, plain text elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final, TextIO

from rich.console import Console
from rich.text import Text

from llama_images.ports import Lines

_STYLES: Final[Mapping[str, str]] = {
    "plain": "",
    "title": "bold",
    "dim": "dim",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "command": "cyan",
}


def show(lines: Lines, stream: TextIO | None = None) -> None:
    """Print lines of styled words; ``NO_COLOR`` and ``TERM=dumb`` are heeded."""
    stream = sys.stdout if stream is None else stream
    plain = not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb" or "NO_COLOR" in os.environ
    if plain:
        for line in lines:
            stream.write("".join(span.text for span in line).rstrip() + "\n")
        stream.flush()
        return
    console = Console(file=stream, force_terminal=True, highlight=False)
    for line in lines:
        text = Text()
        for span in line:
            text.append(span.text, style=_STYLES[span.style])
        console.print(text, soft_wrap=True)
