"""The errors this package raises on purpose.

The core raises; only the edges, ``tasks.py`` and ``cli.py``, print and exit. Each class carries the exit code
of the command contract: 1 a check failed, 2 wrong use or a bad file, 3 an outside system (engine, git,
registry) failed.
"""

from __future__ import annotations

from typing import ClassVar


class LlamaImagesError(Exception):
    """Base of every error that ends a command with one clear line.

    ``message`` says what is wrong and where; ``hint`` says what would be right or what to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CheckFailed(LlamaImagesError):
    """A check that the user asked for came out negative."""

    exit_code = 1


class UsageError(LlamaImagesError):
    """A wrong argument or a bad file."""

    exit_code = 2


class OutsideError(LlamaImagesError):
    """An engine, git, a registry or another program failed."""

    exit_code = 3


class Interrupted(KeyboardInterrupt):
    """The user broke something off that leaves less behind than a command does that goes on where it was."""

    def __init__(self, message: str) -> None:
        """``message`` says what stays, and what the same command does next time."""
        super().__init__(message)
        self.message = message


class TimedOut(OutsideError):
    """A program outlived the time that it was given, and was ended."""


class BadAnswer(OutsideError):
    """An outside system answers, and not with what was asked for: another try would change nothing."""


class Missing(BadAnswer):
    """It does not have it."""


class Refused(BadAnswer):
    """It answers with an error."""

    status: int = 0
    code: str = ""
    """A registry's own word for it: ``DIGEST_INVALID``."""
