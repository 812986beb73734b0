"""Progress for people: a live line on a terminal, plain lines everywhere else.

All of it goes to one stream, standard error in practice, so that standard output stays free for data.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TextIO

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from llama_images.ports import Activity
from llama_images.words import duration, printable

PLAIN_INTERVAL: Final = 10.0
"""Seconds between two plain lines of one activity."""


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
        text = printable(text)
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
    return " ".join(printable(text).split())
