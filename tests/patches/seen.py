"""What the adapters are given: the real thing, with what goes through it kept or changed. No test is here."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llama_images.adapters.process import SystemPrograms
from llama_images.ports import Activity, Finished

DATE = dt.datetime(2026, 6, 11, 16, 49, 3, tzinfo=dt.UTC)
NOWHERE = "https://127.0.0.1:1/llama.cpp"
"""Refuses connections at once."""


class Lines:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.activities: list[str] = []

    def line(self, text: str) -> None:
        assert "\n" not in text
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @contextlib.contextmanager
    def activity(self, label: str) -> Iterator[Activity]:
        assert "\n" not in label
        self.activities.append(label)
        yield _Silent()


class _Silent:
    def update(self, text: str) -> None:
        assert "\n" not in text


class Watched:
    """The machine's programs. ``before`` and ``after`` see each command, and may raise.

    What ``before`` returns stands in for the command, which then is not run.
    """

    def __init__(
        self,
        *,
        before: Callable[[Sequence[str]], Finished | None] = lambda _argv: None,
        after: Callable[[Sequence[str]], None] = lambda _argv: None,
    ) -> None:
        self._before = before
        self._after = after
        self._programs = SystemPrograms()

    def find(self, name: str) -> tuple[Path, ...]:
        return self._programs.find(name)

    def run(self, argv: Sequence[str], **how: Any) -> Finished:
        instead = self._before(argv)
        if instead is not None:
            return instead
        finished = self._programs.run(argv, **how)
        self._after(argv)
        return finished
