"""Pieces of what people read that more than one layer says. Pure."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A time for people: "0.4 s", "12.3 s", "26 min 21 s", "1 h 02 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
