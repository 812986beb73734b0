"""What a person, or a CI log, gets to see."""

from __future__ import annotations

import io
import threading
import time

import pytest

from llama_images.adapters.reporter import PLAIN_INTERVAL, ConsoleReporter

SHOW_CURSOR = "\x1b[?25h"
HIDE_CURSOR = "\x1b[?25l"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(clock: Clock) -> tuple[ConsoleReporter, io.StringIO]:
    stream = io.StringIO()
    return ConsoleReporter(stream, clock=clock), stream


def test_plain_lines_first_last_and_one_in_ten_seconds() -> None:
    clock = Clock()
    reporter, stream = plain(clock)
    with reporter.activity("sm120") as activity:
        for number in range(1, 26):
            activity.update(f"build {number}/25 files")
            clock.now += 1
    assert stream.getvalue().splitlines() == [
        "[   0.0s] sm120: build 1/25 files",
        "[  10.0s] sm120: build 11/25 files",
        "[  20.0s] sm120: build 21/25 files",
        "[  25.0s] sm120: build 25/25 files",
        "[  25.0s] sm120: done in 25.0 s",
    ]


def test_activities_are_throttled_apart() -> None:
    clock = Clock()
    reporter, stream = plain(clock)
    with reporter.activity("a") as first, reporter.activity("b") as second:
        first.update("1")
        second.update("1")
        clock.now += PLAIN_INTERVAL
        second.update("2")
    assert stream.getvalue().splitlines() == [
        "[   0.0s] a: 1",
        "[   0.0s] b: 1",
        "[  10.0s] b: 2",
        "[  10.0s] b: done in 10.0 s",
        "[  10.0s] a: done in 10.0 s",
    ]


@pytest.mark.parametrize(
    ("error", "text"),
    [(ValueError, "failed after 1 min 30 s"), (KeyboardInterrupt, "interrupted after 1 min 30 s")],
)
def test_the_end_is_told_after_an_error_too(error: type[BaseException], text: str) -> None:
    clock = Clock()
    reporter, stream = plain(clock)

    def work() -> None:
        with reporter.activity("sm120"):
            clock.now += 90
            raise error

    with pytest.raises(error):
        work()
    assert stream.getvalue() == f"[  90.0s] sm120: {text}\n"


def test_a_stream_that_is_no_terminal_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ConsoleReporter(io.StringIO()).plain
    monkeypatch.setenv("TERM", "xterm")
    assert not ConsoleReporter(Terminal()).plain
    monkeypatch.setenv("TERM", "dumb")
    assert ConsoleReporter(Terminal()).plain


def test_markup_and_control_characters_of_others_do_nothing() -> None:
    """Compilers colour their words; a model may print anything."""
    stream = io.StringIO()
    reporter = ConsoleReporter(stream, plain=True)
    reporter.line("[bold]x[/bold] \x1b[31mred\x1b[0m\x1b]0;title\x07 \x9b2J\rend")
    reporter.warn("w")
    assert stream.getvalue() == "[bold]x[/bold] red 2Jend\nwarning: w\n"
    live = io.StringIO()
    ConsoleReporter(live, plain=False).line("[bold]x[/bold] \x1b[2Jend")
    assert live.getvalue() == "[bold]x[/bold] end\n"


def test_live_line_shows_the_work_and_gives_the_cursor_back() -> None:
    stream = io.StringIO()
    reporter = ConsoleReporter(stream, plain=False)

    def work() -> None:
        with reporter.activity("sm120") as activity:
            activity.update("build [241/459] files")
            deadline = time.monotonic() + 30
            while "files" not in stream.getvalue() and time.monotonic() < deadline:
                time.sleep(0.05)  # the display refreshes itself
            reporter.line("above")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    shown = stream.getvalue()
    assert "sm120: build [241/459] files" in shown
    assert "above\n" in shown
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert "sm120: interrupted after " in shown[shown.rindex(SHOW_CURSOR) :]


def test_inner_activity_ends_before_the_outer() -> None:
    stream = io.StringIO()
    reporter = ConsoleReporter(stream, plain=False)
    with reporter.activity("outer"):
        with reporter.activity("inner"):
            pass
        assert SHOW_CURSOR not in stream.getvalue()
    assert stream.getvalue().count("done in") == 2
    assert stream.getvalue().count(SHOW_CURSOR) == 1


def test_lines_of_several_threads_stay_whole() -> None:
    stream = io.StringIO()
    reporter = ConsoleReporter(stream, plain=True)

    def work(letter: str) -> None:
        with reporter.activity(letter) as activity:
            for _ in range(50):
                reporter.line(letter * 60)
                activity.update(letter * 60)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    for letter in "abcd":
        assert lines.count(letter * 60) == 50
    assert len(lines) == 4 * (50 + 3)
