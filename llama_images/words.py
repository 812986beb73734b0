"""Pieces of what people read that more than one layer says. Pure."""

from __future__ import annotations

import re
from typing import Final

_CONTROL: Final = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
"""Escape sequences and other control characters."""


def printable(text: str) -> str:
    """The text without what a terminal obeys: a compiler, a model or a registry may send such things."""
    return _CONTROL.sub("", text)


def last_line(text: str, *, otherwise: str) -> str:
    """The last line of a program's output that is not empty, without space around it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else otherwise


def duration(seconds: float) -> str:
    """A time for people: "0.4 s", "12.3 s", "26 min 21 s", "1 h 02 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(count: int, one: str, many: str | None = None) -> str:
    """ "1 file", "2 files"; ``many`` where that is not ``one`` with an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"
