"""Progress for people: a live line on a terminal, plain lines everywhere else.

All of it goes to one stream, standard error in practice, so that standard output stays free for data.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TextIO

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from llama_images.ports import Activity

PLAIN_INTERVAL: Final = 10.0
"""Seconds between two plain lines of one activity."""

_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
"""Escape sequences and other control characters: what a compiler or a model prints may hold them."""


def duration(seconds: float) -> str:
    """A time for people: "0.4 s", "12.3 s", "26 min 21 s", "1 h 02 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ConsoleReporter:
    """Implements ``ports.Reporter``.

    ``plain`` is True for plain lines, False for the live display, None to decide by whether ``stream`` is a
    terminal. Plain lines of an activity start with the seconds since the reporter was made; it prints its
    first and last text, and at most one every ``PLAIN_INTERVAL`` seconds between.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        plain: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        if plain is None:
            plain = not self._stream.isatty() or os.environ.get("TERM", "dumb") == "dumb"
        self.plain: Final = plain
        self._clock = clock
        self._started = clock()
        self._lock = threading.RLock()
        self._console = None if plain else Console(file=self._stream, force_terminal=True)
        self._live: Progress | None = None

    def line(self, text: str) -> None:
        """Print a line, or several; above the live line where there is one."""
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", style="yellow")

    def table(self, rows: Sequence[Sequence[str]], *, headers: Sequence[str] = ()) -> None:
        """Print ``summary_table``, as wide as a narrow terminal."""
        self._print(summary_table(rows, headers=headers))

    @contextlib.contextmanager
    def activity(self, label: str) -> Iterator[Activity]:
        """Show long work with its elapsed time; print how long it took at its end, also after an error."""
        started = self._clock()
        shown: _PlainActivity | _LiveActivity
        with self._lock:
            shown = self._show(label)
        try:
            yield shown
        except BaseException as error:
            verb = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self._end(shown, label, f"{verb} after {duration(self._clock() - started)}", style="red")
            raise
        self._end(shown, label, f"done in {duration(self._clock() - started)}", style=None)

    def _show(self, label: str) -> _PlainActivity | _LiveActivity:
        if self._console is None:
            return _PlainActivity(label, self._stamped, self._clock)
        if self._live is None:
            self._live = Progress(
                SpinnerColumn(),
                TextColumn(
                    "{task.description}",
                    markup=False,
                    table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
                ),
                _Elapsed(),
                console=self._console,
                transient=True,
                expand=True,
                refresh_per_second=4,
            )
            self._live.start()
        return _LiveActivity(label, self._live, self._live.add_task(_clean_line(label), total=None))

    def _end(
        self, shown: _PlainActivity | _LiveActivity, label: str, text: str, *, style: str | None
    ) -> None:
        with self._lock:
            shown.finish()
            if self._live is not None and not self._live.tasks:
                # Stopping gives the cursor back.
                self._live.stop()
                self._live = None
            if self._console is None:
                self._stamped(f"{label}: {text}")
            else:
                self._print(f"{label}: {text}", style=style)

    def _stamped(self, text: str) -> None:
        self._print(f"[{self._clock() - self._started:6.1f}s] {_clean_line(text)}")

    def _print(self, text: str, *, style: str | None = None) -> None:
        text = _CONTROL.sub("", text)
        with self._lock:
            if self._console is not None:
                self._console.print(Text(text, style=style or ""), soft_wrap=True)
                return
            # One write for the whole line, so that lines of other processes don't cut it.
            self._stream.write(f"{text}\n")
            self._stream.flush()


class _PlainActivity:
    def __init__(self, label: str, show: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._label = label
        self._show = show
        self._clock = clock
        self._shown_at: float | None = None
        self._waiting: str | None = None

    def update(self, text: str) -> None:
        now = self._clock()
        if self._shown_at is not None and now - self._shown_at < PLAIN_INTERVAL:
            self._waiting = text
            return
        self._shown_at = now
        self._waiting = None
        self._show(f"{self._label}: {text}")

    def finish(self) -> None:
        if self._waiting is not None:
            self._show(f"{self._label}: {self._waiting}")
            self._waiting = None


class _LiveActivity:
    def __init__(self, label: str, live: Progress, task: TaskID) -> None:
        self._label = label
        self._live = live
        self._task = task

    def update(self, text: str) -> None:
        self._live.update(self._task, description=_clean_line(f"{self._label}: {text}"))

    def finish(self) -> None:
        self._live.remove_task(self._task)
        self._live.refresh()


class _Elapsed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(duration(task.elapsed or 0.0), justify="right", style="cyan")


def _clean_line(text: str) -> str:
    return " ".join(_CONTROL.sub("", text).split())


def summary_table(rows: Sequence[Sequence[str]], *, headers: Sequence[str] = (), width: int = 80) -> str:
    """Rows as aligned text, at most ``width`` columns wide where words allow it.

    Columns of numbers are right-aligned. The widest columns give way first: their cells take further lines.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    everything = [list(headers), *cells] if headers else cells
    count = max((len(row) for row in everything), default=0)
    if count == 0:
        return ""
    everything = [row + [""] * (count - len(row)) for row in everything]
    widths = _fit([max(1, *(len(row[index]) for row in everything)) for index in range(count)], width)
    body = everything[1:] if headers else everything
    numeric = [
        any(row[index] for row in body) and all(_NUMBER.fullmatch(row[index]) for row in body if row[index])
        for index in range(count)
    ]
    lines: list[str] = []
    for number, row in enumerate(everything):
        lines += _table_row(row, widths, numeric)
        if headers and number == 0:
            lines.append("  ".join("-" * column for column in widths))
    return "\n".join(lines)


_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?: ?(?:%|s|ms|MB|GB|MiB|GiB|kB|B|x))?|-")
_NARROWEST: Final = 8


def _fit(widths: list[int], width: int) -> list[int]:
    widths = list(widths)
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    while excess > 0:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
        excess -= 1
    return widths


def _table_row(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> list[str]:
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
    height = max(len(cell) for cell in wrapped)
    lines = []
    for index in range(height):
        parts = [
            (part.rjust if right else part.ljust)(width)
            for cell, width, right in zip(wrapped, widths, numeric, strict=True)
            for part in (cell[index] if index < len(cell) else "",)
        ]
        lines.append("  ".join(parts).rstrip())
    return lines
