"""What git's error output means. Pure; the texts are those of git under LC_ALL=C."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llama_images.errors import CheckFailed
from llama_images.patch_series import Patch

_LACKS: Final = re.compile(r"not our ref|unadvertised object|couldn't find remote ref", re.IGNORECASE)
_NO_REPOSITORY: Final = re.compile(
    r"not a git repository|does not appear to be a git repository|invalid gitfile format", re.IGNORECASE
)
_DAMAGE: Final = re.compile(
    r"bad object|corrupt|inflate|packfile|pack index|index file|unable to read [0-9a-f]{40}"
)
_FULL_DISK: Final = re.compile(r"No space left on device|Disk quota exceeded")
_PASSING: Final = re.compile(
    r"early EOF|RPC failed|Connection reset|unexpected disconnect|transfer closed"
    r"|The requested URL returned error: 5[0-9][0-9]",
    re.IGNORECASE,
)
_FAILED_HUNK: Final = re.compile(r"error: patch failed: (?P<path>.+):(?P<line>[0-9]+)")
_FAILED_FILE: Final = re.compile(r"error: (?P<path>[^:]+): (?P<why>.+)")
_WHITE_SPACE: Final = re.compile(r"<stdin>:(?P<line>[0-9]+): (?P<why>.+?)\.?")
_CORRUPT: Final = re.compile(r"(?:error|fatal): (?P<why>.*(?:patch|fragment).*) at line (?P<line>[0-9]+).*")
_CHECKING: Final = re.compile(r"Checking patch (?P<path>.+)\.\.\.")
_MOVED: Final = re.compile(
    r"Hunk #(?P<hunk>[0-9]+) succeeded at [0-9]+ \(offset (?P<lines>-?[0-9]+) lines?\)\.?"
)


def last_words(text: str) -> str:
    """What git complained about, as one line without its own prefix and full stop."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    # The first fatal line is the cause; those after it ("the remote end hung up") are its consequences.
    for prefix in ("ssh: ", "fatal: ", "error: ", "remote: "):
        for line in lines:
            if line.startswith(prefix):
                words = line.removeprefix(prefix).removeprefix("remote error: ")
                return re.sub(r"\Aunable to access '[^']*': ", "", words).rstrip(".")
    return lines[-1] if lines else "git gave no reason"


def means_lacking_commit(text: str) -> bool:
    """The repository answered, and does not have the object or does not give it out."""
    return _LACKS.search(text) is not None


def means_no_repository(text: str) -> bool:
    """There is no repository at that place."""
    return _NO_REPOSITORY.search(text) is not None


def means_damage(text: str) -> bool:
    """Objects that should be there can't be read."""
    return _DAMAGE.search(text) is not None


def means_full_disk(text: str) -> bool:
    """git could not write for want of space or quota."""
    return _FULL_DISK.search(text) is not None


def means_passing_trouble(text: str) -> bool:
    """A transfer broke off midway; another try may succeed."""
    return _PASSING.search(text) is not None


def why_not_applied(failure: str, patch: Patch) -> str:
    """Where a patch does not apply, as file and hunk, on one line.

    ``failure`` is the standard error of ``git apply``. Every file that fails is named. A hunk is named by its
    number within the file, counted from 1, and its ``@@`` line: git quotes the old line at which it starts.
    """
    changes = {change.path: change for change in patch.files}
    places: dict[str, str] = {}
    for line in failure.splitlines():
        if (at := _FAILED_HUNK.fullmatch(line)) is not None:
            change = changes.get(at["path"])
            number = change.hunk_at(int(at["line"])) if change is not None else None
            if change is None or number is None:
                places[at["path"]] = f"{at['path']}, near line {at['line']}"
            else:
                header = change.hunks[number - 1].header
                places[at["path"]] = f"{at['path']}, hunk {number} of {len(change.hunks)} ({header})"
        elif (file := _FAILED_FILE.fullmatch(line)) is not None and file["path"] in changes:
            places.setdefault(file["path"], f"{file['path']} {file['why']}")
        elif (flaw := _WHITE_SPACE.fullmatch(line) or _CORRUPT.fullmatch(line)) is not None:
            places.setdefault("", f"line {flaw['line']} of the patch: {flaw['why']}")
    return "; ".join(places.values()) if places else last_words(failure)


def not_applied(shown: str, *, commit: str, position: int, why: str) -> CheckFailed:
    """The error for a patch of a series that does not apply; ``position`` is how many are before it."""
    onto = f"{commit[:12]} with the {position} before it" if position else commit[:12]
    return CheckFailed(
        f"{shown} does not apply to {onto}: {why}",
        hint="Mend the patch at that place, as docs/bump-the-pin.md says; invoke patches.check shows all.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MovedHunk:
    """A hunk that applies, though not at the line that it names."""

    path: str
    hunk: int
    """Counted from 1 within the file."""
    lines: int
    """How far below (above: negative) the named line."""


def moved_hunks(output: str) -> Iterator[MovedHunk]:
    """The hunks that ``git apply --verbose`` had to look for."""
    path = ""
    for line in output.splitlines():
        if (checking := _CHECKING.fullmatch(line)) is not None:
            path = checking["path"]
        elif (moved := _MOVED.fullmatch(line)) is not None:
            yield MovedHunk(path=path, hunk=int(moved["hunk"]), lines=int(moved["lines"]))
