"""How a carried patch is written: its file name, its header, its diff. Pure: text in, frozen values out.

There is one form, so that the same commits always give the same bytes: one author, no dates, no hashes of
blobs, no statistics, no version of git. ``patch_series`` reads many forms; this module writes one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from llama_images.errors import UsageError
from llama_images.patch_series import Patch, parse_patch

MAINTAINERS_NAME: Final = "llama-diffusion images maintainers"
MAINTAINERS_EMAIL: Final = "maintainers@users.noreply.github.com"
MAINTAINERS: Final = f"{MAINTAINERS_NAME} <{MAINTAINERS_EMAIL}>"
"""The author of every carried patch; who else deserves credit is named in its body."""

SECTIONS: Final = ("What", "Why", "Proven", "Upstream status")
"""What the body of a patch's header must say, each in a paragraph that starts with the word and a colon."""

CONFLICT_MARKERS: Final = ("<<<<<<< ", "||||||| ", ">>>>>>> ")
"""What git begins lines with that nobody has decided on yet."""

_SECTION: Final = re.compile(rf"^({'|'.join(SECTIONS)}):", re.MULTILINE)
_SLUG_LENGTH: Final = 60
_NO_DIFF: Final = "the commit changes nothing that a patch can carry"


def missing_sections(body: str) -> tuple[str, ...]:
    """The sections that a patch's body lacks or leaves empty, in their order."""
    pieces = _SECTION.split(body)
    found = {name for name, text in zip(pieces[1::2], pieces[2::2], strict=True) if text.strip()}
    return tuple(name for name in SECTIONS if name not in found)


def conflict_line(patch: Patch) -> int | None:
    """The line of a patch, counted from 1, that adds a conflict marker; ``None`` without one."""
    added = tuple(f"+{marker}" for marker in CONFLICT_MARKERS)
    return next((at for at, line in enumerate(patch.text.split("\n"), 1) if line.startswith(added)), None)


def split_message(message: str) -> tuple[str, str]:
    """Subject and body of a commit's message, as git cuts it: the first paragraph is the subject.

    White space at the ends of lines and of the whole is left out. Either may be empty.
    """
    lines = [line.rstrip(" \t") for line in message.strip("\n \t").split("\n")]
    end = lines.index("") if "" in lines else len(lines)
    subject = " ".join(line.strip(" \t") for line in lines[:end])
    return subject, "\n".join(lines[end:]).strip("\n \t")


def patch_name(number: int, subject: str) -> str:
    """``0001-diffusion-cli-let-thinking-be-switched-off.patch``; ``number`` counts from 1.

    At most 60 characters of the subject, cut between words.
    """
    slug = ""
    for word in re.findall(r"[a-z0-9]+", re.sub(r"['’]", "", subject.lower())):
        longer = f"{slug}-{word}" if slug else word[:_SLUG_LENGTH]
        if len(longer) > _SLUG_LENGTH:
            break
        slug = longer
    return f"{number:04}-{slug or 'patch'}.patch"


def format_patch(number: int, subject: str, body: str, diff: str) -> Patch:
    """The patch of one commit, written in the one form there is.

    ``diff`` is what ``git diff-tree -p`` prints. Raises UsageError, with the line, for what can't be carried
    (see ``parse_patch``) and for a message that would be read back as another one.
    """
    name = patch_name(number, subject)
    if not diff:
        raise UsageError(f"{name}: {_NO_DIFF}", hint="Leave it out.")
    text = f"From: {MAINTAINERS}\nSubject: {subject}\n\n{body}\n---\n{_without_hashes(diff)}"
    patch = parse_patch(name, text)
    if patch.subject != subject:
        hint = "Begin it with the part that it touches, without a [PATCH] tag."
        raise UsageError(f"{name}:2: the subject would be read back as {patch.subject!r}", hint=hint)
    if patch.body != body:
        hint = "No line of it may be '---' or start with 'diff --git'."
        raise UsageError(f"{name}:4: the body would be cut short", hint=hint)
    return patch


def _without_hashes(diff: str) -> str:
    # Within a hunk every line starts with ' ', '+', '-' or a backslash: "index" stands in front of it only.
    return "\n".join(line for line in diff.split("\n") if not line.startswith("index "))


def first_difference(patch: Patch, wanted: Patch) -> int | None:
    """First line, counted from 1, in which two patches differ; ``None`` where they are equal."""
    if patch.text == wanted.text:
        return None
    old, new = patch.text.split("\n"), wanted.text.split("\n")
    pairs = zip(old, new, strict=False)
    return next((at for at, (a, b) in enumerate(pairs, 1) if a != b), min(len(old), len(new)))


def series_comments(text: str) -> tuple[str, ...]:
    """The lines of a series file that hold nothing but a comment, as they are."""
    return tuple(line for line in text.split("\n") if line.lstrip().startswith("#"))


def series_text(names: Sequence[str], *, source: str, comments: Sequence[str] = ()) -> str:
    """The series file of these patches. Without ``comments`` it begins with a line that says what it is."""
    standard = f"# Applied in this order onto the commit that matrix.yaml pins for {source}."
    head = comments or (f"{standard} Each patch says why it is there.",)
    return "".join(f"{line}\n" for line in (*head, *names))
