"""Words for people."""

from __future__ import annotations

import pytest

from llama_images.words import counted, duration, last_line, printable


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (1581, "26 min 21 s"),
        (3599.6, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("I: running\nE: no such host\n\n", "E: no such host"),
        ("one\r\n  two \r\n \t\n", "two"),
        ("", "nothing"),
        (" \n\n", "nothing"),
    ],
)
def test_last_line(text: str, line: str) -> None:
    assert last_line(text, otherwise="nothing") == line


def test_one_is_no_plural() -> None:
    assert [counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert [counted(n, "patch", "patches") for n in (1, 10)] == ["1 patch", "10 patches"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x\x1b]8;;http://h\x1b\\y", "xy"),
        ("a\rb\x08c\x9bd\te\nf", "abcd\te\nf"),
        ("ü…", "ü…"),
    ],
)
def test_a_terminal_is_told_nothing(text: str, shown: str) -> None:
    assert printable(text) == shown
