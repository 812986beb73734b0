"""The result of one rule, as every judge of this package gives it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The result of one rule."""

    name: str
    passed: bool
    detail: str
    """What was found, on one line; where it failed, also what was wanted."""


def few(complaints: Sequence[str]) -> str:
    """The first three, and how many more."""
    shown = "; ".join(complaints[:3])
    return f"{shown}; and {len(complaints) - 3} more" if len(complaints) > 3 else shown
