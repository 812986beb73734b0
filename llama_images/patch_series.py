"""A patch series as values: which patches, in which order, what each one touches.

Pure: text in, frozen values out. The form is that of quilt and Debian: a file ``series`` names the patches,
one a line. Each patch is a mail-style header (From, Subject, then why it exists) and a unified diff as
``git diff`` writes it. git itself applies them (``adapters/git.py``); here they are only read and judged, so
that a broken one is named by file and line before git sees it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from llama_images.errors import UsageError

_PATCH_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\.patch")
_FIELD: Final = re.compile(r"([A-Za-z][A-Za-z-]*):[ \t]*(.*)")
_MAILBOX_LINE: Final = re.compile(r"From [0-9a-f]{40} ")
_SUBJECT_TAG: Final = re.compile(r"\A\[PATCH[^\]]*\]\s*")
_SECTION: Final = re.compile(r"diff --git (?P<old>\S+) (?P<new>\S+)")
_HUNK: Final = re.compile(
    r"(?P<header>@@ -(?P<old>[0-9]{1,9})(?:,(?P<old_count>[0-9]{1,9}))?"
    r" \+(?P<new>[0-9]{1,9})(?:,(?P<new_count>[0-9]{1,9}))? @@)(?: .*)?"
)
_PATH: Final = re.compile(r"[A-Za-z0-9._+@%=,~-]+(?:/[A-Za-z0-9._+@%=,~-]+)*")
_MODE: Final = re.compile(r"(?:new file|deleted file|old|new) mode ([0-7]{1,6})")
_FILE_MODES: Final = frozenset({"100644", "100755"})
_NOWHERE: Final = "/dev/null"
_NO_NEWLINE: Final = "\\ No newline at end of file"
_BESIDE: Final = "Name a file beside the series."
_HEADER: Final = "Begin with From:, Subject:, a blank line and why."
_GIT_DIFF: Final = "Make the diff with git diff or git format-patch."


@dataclass(frozen=True, kw_only=True, slots=True)
class Hunk:
    """One hunk of a file's change."""

    old_start: int
    """First line, counted from 1, that the hunk expects in the old file; git's error messages quote it."""
    header: str
    """The ``@@`` line, up to its second ``@@``."""
    line: int
    """Where the hunk starts in the patch file, counted from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileChange:
    """What a patch does to one file."""

    path: str
    """Relative to the source tree, with ``/``."""
    added: int
    removed: int
    hunks: tuple[Hunk, ...] = ()

    def hunk_at(self, old_start: int) -> int | None:
        """Number, counted from 1, of the hunk that starts at that line of the old file."""
        for number, hunk in enumerate(self.hunks, start=1):
            if hunk.old_start == old_start:
                return number
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """One carried patch."""

    name: str
    """File name, ``0001-….patch``."""
    subject: str
    """Without a ``[PATCH n/m]`` tag."""
    body: str
    """What, why, how it was proven; without the diff statistics."""
    files: tuple[FileChange, ...]
    added: int
    removed: int
    sha256: str
    """Of the patch file's bytes, hexadecimal."""
    text: str = field(repr=False)
    """The whole patch file, for git."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchSeries:
    """Patches in the order in which they apply."""

    name: str
    patches: tuple[Patch, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over the ordered names and hashes, hexadecimal: changes with any byte, name or order."""
        return series_digest((patch.name, patch.sha256) for patch in self.patches)

    @property
    def short(self) -> str:
        """The first 12 digits of the digest, for names."""
        return self.digest[:12]

    @property
    def is_empty(self) -> bool:
        return not self.patches

    @property
    def files(self) -> tuple[str, ...]:
        """Every path that the series touches, sorted, each once."""
        return tuple(sorted({change.path for patch in self.patches for change in patch.files}))


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesEntry:
    """A line of a series file that names a patch."""

    name: str
    line: int


def _refuse(where: str, line: int, problem: str, hint: str | None = None) -> NoReturn:
    raise UsageError(f"{where}:{line}: {problem}", hint=hint)


def decode_text(data: bytes, *, name: str) -> str:
    """The bytes of a patch or series file as text.

    Raises UsageError, with the line, for what is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _refuse(name, line, f"byte 0x{data[error.start]:02x} is not UTF-8", "Save the file as UTF-8.")


def _lines(text: str, *, name: str) -> list[str]:
    """The lines without their ends; every file here ends with a newline and knows no other line end."""
    # Not str.splitlines: that also cuts at form feeds and the Unicode separators.
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if "\r" in line:
            _refuse(name, number, "has a carriage return", "Save the file with Unix line ends (LF).")
        if "\0" in line:
            _refuse(name, number, "has a NUL byte", "A patch is text; binary files can't be carried.")
        if any("\ud800" <= character <= "\udfff" for character in line):
            _refuse(name, number, "is not valid Unicode", "Save the file as UTF-8.")
    if lines[-1]:
        _refuse(name, len(lines), "the last line has no newline", "End the file with a newline.")
    return lines[:-1]


def series_entries(text: str, *, name: str) -> tuple[SeriesEntry, ...]:
    """The patches that a series file names, with their lines; see ``parse_series``."""
    entries: list[SeriesEntry] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(text, name=name) if text else [], start=1):
        word = re.sub(r"(?:\A|\s)#.*", "", line).strip()
        if not word:
            continue
        if word.startswith(("/", "~")) or "\\" in word:
            _refuse(name, number, f"{word!r} is not below this folder", _BESIDE)
        if ".." in word.split("/"):
            _refuse(name, number, f"{word!r} leaves this folder", _BESIDE)
        if not word.endswith(".patch"):
            extra = " Options such as -p1 are not taken." if " " in word or "\t" in word else ""
            _refuse(name, number, f"{word!r} names no .patch file", f"Write one name a line.{extra}")
        if not _PATCH_NAME.fullmatch(word):
            hint = "Use a plain name beside the series: letters, digits, '.', '_', '+' and '-'."
            _refuse(name, number, f"{word!r} is not a plain file name", hint)
        if word in seen:
            _refuse(name, number, f"{word} is named twice, first on line {seen[word]}", "Remove one of them.")
        seen[word] = number
        entries.append(SeriesEntry(name=word, line=number))
    return tuple(entries)


def parse_series(text: str, *, name: str) -> tuple[str, ...]:
    """The patch names of a series file, in order.

    One name a line; blank lines and ``#`` comments are left out. ``name`` is how errors call the file. Raises
    UsageError, with the line, for absolute paths, ``..``, names given twice and names that are no ``.patch``.
    """
    return tuple(entry.name for entry in series_entries(text, name=name))


def parse_patch(name: str, text: str) -> Patch:
    """Read one patch. ``name`` is its file name, also in errors.

    Raises UsageError with name and line for whatever is not a mail-style header (From, Subject, a body that
    says why) followed by a valid unified diff of text files within the tree.
    """
    reader = _Reader(name, _lines(text, name=name))
    subject, body = reader.header()
    files = reader.sections()
    return Patch(
        name=name.rsplit("/", 1)[-1],
        subject=subject,
        body=body,
        files=files,
        added=sum(change.added for change in files),
        removed=sum(change.removed for change in files),
        sha256=hashlib.sha256(text.encode("utf-8")).hexdigest(),
        text=text,
    )


class _Reader:
    """Walks over the lines of one patch. ``at`` is the next line, counted from 0."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self.name = name
        self.lines = lines
        self.at = 0

    def peek(self) -> str | None:
        """The next line; ``None`` at the end."""
        return self.lines[self.at] if self.at < len(self.lines) else None

    def sees(self, *starts: str) -> bool:
        """Whether there is a next line and it starts with one of these."""
        return self.at < len(self.lines) and self.lines[self.at].startswith(starts)

    def refuse(self, problem: str, hint: str | None = None, *, at: int | None = None) -> NoReturn:
        # One past the end stands for "something is missing here"; the last line is the nearest that exists.
        index = min(self.at if at is None else at, max(len(self.lines) - 1, 0))
        _refuse(self.name, index + 1, problem, hint)

    # --- the header ---

    def header(self) -> tuple[str, str]:
        """Subject and body."""
        fields = self._fields()
        for key in ("From", "Subject"):
            if not fields.get(key.lower(), "").strip():
                self.refuse(f"the header has no {key}:", _HEADER, at=0)
        subject = _SUBJECT_TAG.sub("", fields["subject"].strip())
        if not subject:
            self.refuse("the subject is empty", "Say in one line what the patch does.", at=0)
        start = self.at
        while self.peek() not in (None, "---") and not self.sees("diff --git "):
            self._prose()
        body = "\n".join(self.lines[start : self.at]).strip("\n \t")
        if self.peek() is None:
            self.refuse("there is no diff", "After the header comes what git diff prints.")
        if not body:
            self.refuse(
                "the header does not say why", "Above the diff stand what, why and how it was proven."
            )
        # Between "---" and the diff git format-patch puts statistics; they are no part of the change.
        while self.peek() is not None and not self.sees("diff --git "):
            self._prose()
        return subject, body

    def _prose(self) -> None:
        # git apply takes these for a diff wherever they stand, also in the header.
        if self.sees("--- ", "+++ ", "@@ -", "diff "):
            self.refuse("looks like a diff in another form than git's", "Use git diff, or indent it.")
        self.at += 1

    def _fields(self) -> dict[str, str]:
        if _MAILBOX_LINE.match(self.peek() or ""):
            self.at += 1
        fields: dict[str, str] = {}
        last: str | None = None
        while (line := self.peek()) is not None and line.strip(" \t"):
            match = _FIELD.fullmatch(line)
            if line[0] in " \t" and last is not None:
                fields[last] += " " + line.strip()
            elif match is not None:
                last = match[1].lower()
                if last in fields:
                    self.refuse(f"{match[1]}: is given twice", "Keep one.")
                fields[last] = match[2]
            else:
                self.refuse("is no header line", _HEADER)
            self.at += 1
        return fields

    # --- the diff ---

    def sections(self) -> tuple[FileChange, ...]:
        """Every file's change, in the patch's order."""
        changes: dict[str, FileChange] = {}
        while self.peek() not in (None, "-- "):
            start = self.at
            change = self._section()
            if change.path in changes:
                self.refuse(f"{change.path} is changed twice", "Put its hunks into one section.", at=start)
            changes[change.path] = change
        self._signature()
        if not changes:
            self.refuse("there is no diff", "After the header comes what git diff prints.")
        return tuple(changes.values())

    def _signature(self) -> None:
        """``-- `` and git's version, which git format-patch appends. Nothing may hide behind it."""
        for index in range(self.at + 1, len(self.lines)):
            line = self.lines[index]
            if line and not (index == self.at + 1 and re.fullmatch(r"[0-9][0-9A-Za-z. ()-]*", line)):
                self.refuse("there is text behind the end of the diff", "Remove it.", at=index)

    def _section(self) -> FileChange:
        line = self.lines[self.at]
        match = _SECTION.fullmatch(line)
        if match is None:
            problem = "is neither a hunk nor the start of a file's change"
            hint = "The hunk above may hold more or fewer lines than its @@ line says."
            if line.startswith("diff --git "):
                problem, hint = "names no plain paths", "Quoted paths and paths with spaces can't be carried."
            self.refuse(problem, hint)
        path = self._path(match["old"], "a/")
        if path != self._path(match["new"], "b/"):
            self.refuse(f"renames {path}", "Write it as a removed and a new file.")
        start = self.at
        self.at += 1
        created, deleted, changes_mode = self._extended(path)
        hunks: list[Hunk] = []
        added = removed = 0
        if self.sees("--- "):
            self._file_line("--- ", _NOWHERE if created else f"a/{path}")
            self._file_line("+++ ", _NOWHERE if deleted else f"b/{path}")
            while self.sees("@@"):
                hunk, plus, minus = self._hunk(hunks[-1] if hunks else None, is_new=created)
                hunks.append(hunk)
                added += plus
                removed += minus
            if not hunks:
                self.refuse(f"{path} has no hunk", "A change is made of @@ hunks.")
        elif not (created or deleted or changes_mode):
            self.refuse(f"changes nothing in {path}", "Remove the section, or make the diff anew.", at=start)
        return FileChange(path=path, added=added, removed=removed, hunks=tuple(hunks))

    def _path(self, word: str, prefix: str) -> str:
        if word.startswith("/") or '"' in word:
            self.refuse(f"{word} is not a plain path within the tree", "Paths are relative, after a/ and b/.")
        if not word.startswith(prefix):
            self.refuse(f"{word} does not start with {prefix}", "Make the diff without --no-prefix.")
        path = word.removeprefix(prefix)
        parts = path.split("/")
        if ".." in parts or "." in parts or ".git" in (part.lower() for part in parts):
            self.refuse(f"{path} leaves the source tree", "A patch may touch files of the source tree only.")
        if not _PATH.fullmatch(path):
            self.refuse(f"{path} is not a plain path within the tree", "Rename the file.")
        return path

    def _extended(self, path: str) -> tuple[bool, bool, bool]:
        """The lines up to ``---``: is the file created, is it deleted, does its mode change."""
        created = deleted = changes_mode = False
        while not self.sees("--- ", "diff --git ", "@@"):
            line = self.peek()
            if line is None or line == "-- ":
                break
            if line.startswith(("GIT binary patch", "Binary files ")):
                self.refuse(f"{path} is changed as a binary file", "Only text can be carried as a patch.")
            if line.startswith(("rename ", "copy ", "similarity index ", "dissimilarity index ")):
                self.refuse(f"renames or copies {path}", "Make the diff with --no-renames.")
            mode = _MODE.fullmatch(line)
            if mode is not None:
                if mode[1] not in _FILE_MODES:
                    self.refuse(f"{path} gets mode {mode[1]}", "Only plain files: 100644 and 100755.")
                created |= line.startswith("new file")
                deleted |= line.startswith("deleted file")
                changes_mode |= line.startswith(("old mode", "new mode"))
            elif not re.fullmatch(r"index [0-9a-f]{4,64}\.\.[0-9a-f]{4,64}(?: [0-7]{6})?", line):
                self.refuse("is no line of a git diff", _GIT_DIFF)
            self.at += 1
        return created, deleted, changes_mode

    def _file_line(self, prefix: str, expected: str) -> None:
        if self.peek() != prefix + expected:
            self.refuse(f"should be {prefix + expected!r}", _GIT_DIFF)
        self.at += 1

    def _hunk(self, previous: Hunk | None, *, is_new: bool) -> tuple[Hunk, int, int]:
        start = self.at
        match = _HUNK.fullmatch(self.lines[start])
        if match is None:
            self.refuse("is no valid @@ line", "It reads @@ -line,count +line,count @@.")
        old_left, new_left = int(match["old_count"] or 1), int(match["new_count"] or 1)
        hunk = Hunk(old_start=int(match["old"]), header=match["header"], line=start + 1)
        if previous is not None and hunk.old_start <= previous.old_start:
            self.refuse("the hunks are not in order", _GIT_DIFF)
        if is_new and old_left:
            self.refuse("a new file has no old lines", _GIT_DIFF)
        self.at += 1
        added = removed = 0
        while old_left or new_left:
            line = self.peek()
            if line is None:
                self.refuse("the hunk ends before its lines are complete", "Its @@ line promises more.")
            kind = line[:1]
            if kind == "\\":
                self._no_newline()
                continue
            if kind not in (" ", "+", "-"):
                hint = "It starts with ' ', '+' or '-'; an editor may have cut the space of an empty line."
                self.refuse("is no line of a hunk, which is not complete yet", hint)
            old_left -= kind in " -"
            new_left -= kind in " +"
            if old_left < 0 or new_left < 0:
                self.refuse("the hunk holds more lines than its @@ line says", _GIT_DIFF)
            if kind == "+":
                added += 1
                if line != line.rstrip(" \t"):
                    self.refuse("an added line ends in white space", "Remove it from the changed file.")
            removed += kind == "-"
            self.at += 1
        if self.sees("\\"):
            self._no_newline()
        if not (added or removed):
            self.refuse("the hunk changes nothing", _GIT_DIFF, at=start)
        return hunk, added, removed

    def _no_newline(self) -> None:
        if self.peek() != _NO_NEWLINE:
            self.refuse("is no line of a hunk", f"Only {_NO_NEWLINE!r} starts with a backslash.")
        if self.lines[self.at - 1].startswith("+"):
            self.refuse("an added line has no newline", "End the changed file with a newline.")
        self.at += 1


def series_digest(patches: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of a series, from the file names and SHA-256 of its patches in order; all hexadecimal."""
    total = hashlib.sha256()
    for name, sha256 in patches:
        total.update(f"{name}\0{sha256}\n".encode())
    return total.hexdigest()


def is_within(path: str, roots: Iterable[str]) -> bool:
    """Whether a path is one of these files, or lies in one of these folders."""
    return any(path == root or path.startswith(f"{root}/") for root in roots)


def make_series(name: str, patches: Iterable[tuple[str, str]]) -> PatchSeries:
    """A series of the given (file name, text) pairs, parsed; raises UsageError as ``parse_patch`` does."""
    return PatchSeries(name=name, patches=tuple(parse_patch(*pair) for pair in patches))
