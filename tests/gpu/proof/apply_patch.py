"""Apply unified diffs exactly, where there is neither git nor patch: ``apply_patch.py FOLDER PATCH...``.

Every removed and every context line must be there, without fuzz; a hunk may stand at another line than its
header says, and of several places the nearest is taken. Files are only changed, not made, removed or renamed.
Nothing is written unless every patch applies. Exit code 2, and one line, where one does not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_UNSUPPORTED = re.compile(r"(?:--- |\+\+\+ )/dev/null|rename (?:from|to) |GIT binary patch")


class PatchError(Exception):
    """A patch that can't be read, or does not apply; the message names it and the place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hunk:
    """One change of one file."""

    path: str
    """Relative to the folder, without the ``b/``."""
    start: int
    """From 0: where the patch says that the old lines stand."""
    old: tuple[str, ...]
    new: tuple[str, ...]


def read_hunks(text: str, name: str) -> Iterator[Hunk]:
    """The hunks of a patch in their order; what is not part of the diff is passed over. Raises PatchError."""
    lines = text.removesuffix("\n").split("\n")
    path, at = "", 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if _UNSUPPORTED.match(line):
            raise PatchError(f"{name}:{at}: files are only changed here, not made, removed or renamed")
        if line.startswith("--- a/"):
            if at == len(lines) or not lines[at].startswith("+++ b/"):
                raise PatchError(f"{name}:{at}: no line '+++ b/...' follows")
            path = lines[at].removeprefix("+++ b/").split("\t")[0]
            at += 1
        elif path and (match := _HUNK.match(line)):
            n_old, n_new = int(match[2] or 1), int(match[3] or 1)
            old: list[str] = []
            new: list[str] = []
            while len(old) < n_old or len(new) < n_new:
                if at == len(lines):
                    raise PatchError(f"{name}: ends in the middle of a hunk for {path}")
                mark, rest = lines[at][:1] or " ", lines[at][1:]  # mail programs cut the blank of empty lines
                at += 1
                if mark not in " -+":
                    raise PatchError(f"{name}:{at}: no line of a hunk: {lines[at - 1][:60]!r}")
                if mark in " -":
                    old.append(rest)
                if mark in " +":
                    new.append(rest)
            if (len(old), len(new)) != (n_old, n_new):
                raise PatchError(f"{name}:{at}: the hunk has other lines than its header counts")
            # A hunk without old lines stands behind the line that it names.
            yield Hunk(path=path, start=int(match[1]) - (n_old > 0), old=tuple(old), new=tuple(new))


def apply_hunk(lines: list[str], hunk: Hunk, shift: int) -> int | None:
    """Change ``lines`` in place. ``shift`` says how far the hunk before it had moved and grown the file.

    Returns the new shift, or None where the old lines are nowhere.
    """
    old, want = list(hunk.old), hunk.start + shift
    places = [at for at in range(len(lines) - len(old) + 1) if lines[at : at + len(old)] == old]
    if not places:
        return None
    place = min(places, key=lambda at: abs(at - want))
    lines[place : place + len(old)] = hunk.new
    return place - hunk.start + len(hunk.new) - len(old)


def apply(folder: Path, patches: Sequence[Path]) -> None:
    """Apply the patches to the tree in ``folder``, one after the other.

    Raises PatchError where one can't be read or does not apply; then no file is changed.
    """
    files: dict[str, list[str]] = {}
    for patch in patches:
        shifts: dict[str, int] = {}
        try:
            hunks = list(read_hunks(patch.read_text(encoding="utf-8"), patch.name))
            for hunk in hunks:
                if hunk.path not in files:
                    if not (folder / hunk.path).is_file():
                        raise PatchError(f"{patch.name}: there is no file {hunk.path} to change")
                    files[hunk.path] = (folder / hunk.path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise PatchError(f"{patch.name}: {error}") from None
        if not hunks:
            raise PatchError(f"{patch.name}: holds no diff")
        for hunk in hunks:
            shift = apply_hunk(files[hunk.path], hunk, shifts.get(hunk.path, 0))
            if shift is None:
                raise PatchError(
                    f"{patch.name}: the hunk at line {hunk.start + 1} does not apply to {hunk.path}"
                )
            shifts[hunk.path] = shift
    for path, lines in files.items():
        (folder / path).write_text("\n".join(lines), encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if len(argv) < 2:
        print("apply_patch: give a folder and at least one patch", file=sys.stderr)
        return 2
    try:
        apply(Path(argv[0]), [Path(name) for name in argv[1:]])
    except PatchError as error:
        print(f"apply_patch: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
