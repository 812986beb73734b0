"""git's words, as git 2.39 prints them under LC_ALL=C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llama_images.adapters.git_messages import (
    MovedHunk,
    last_words,
    means_full_disk,
    means_lacking_commit,
    means_no_repository,
    means_passing_trouble,
    moved_hunks,
    why_not_applied,
)
from llama_images.adapters.git_program import describe_git, git_version
from llama_images.errors import OutsideError
from llama_images.patch_series import parse_patch
from llama_images.ports import Finished

PATCH = parse_patch(
    "0001-x.patch",
    """\
From: Some One <one@example.org>
Subject: x

Why: so.
---
diff --git a/src/a.cpp b/src/a.cpp
--- a/src/a.cpp
+++ b/src/a.cpp
@@ -1 +1 @@ one
-a
+b
@@ -40 +40 @@ two
-c
+d
diff --git a/src/b.cpp b/src/b.cpp
--- a/src/b.cpp
+++ b/src/b.cpp
@@ -7 +7 @@
-a
+b
""",
)


A_1 = "error: patch failed: src/a.cpp:1\nerror: src/a.cpp: patch does not apply\n"
A_40 = "error: patch failed: src/a.cpp:40\nerror: src/a.cpp: patch does not apply\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "fatal: unable to access 'https://example.org/x/': Could not resolve host: example.org\n",
            "Could not resolve host: example.org",
        ),
        (
            "ssh: Could not resolve hostname x: Name or service not known\r\nfatal: Could not read\n",
            "Could not resolve hostname x: Name or service not known",
        ),
        (
            "remote: Counting\nfatal: remote error: upload-pack: not our ref 00\nfatal: it hung up\n",
            "upload-pack: not our ref 00",
        ),
        ("hint: x\nerror: pack is broken.\n", "pack is broken"),
        ("something odd\n", "something odd"),
        ("", "git gave no reason"),
    ],
)
def test_last_words(text: str, words: str) -> None:
    assert last_words(text) == words


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("fatal: remote error: upload-pack: not our ref 10a2", means_lacking_commit),
        ("error: Server does not allow request for unadvertised object 10a2", means_lacking_commit),
        ("fatal: not a git repository: '/tmp'", means_no_repository),
        ("fatal: 'x' does not appear to be a git repository", means_no_repository),
        ("fatal: write error: No space left on device", means_full_disk),
        ("error: unable to write file: Disk quota exceeded", means_full_disk),
        ("fatal: early EOF", means_passing_trouble),
        ("error: RPC failed; curl 56 Recv failure: Connection reset by peer", means_passing_trouble),
        ("fatal: unable to access 'x': The requested URL returned error: 503", means_passing_trouble),
    ],
)
def test_each_failure_has_one_meaning(text: str, meaning: Callable[[str], bool]) -> None:
    every = (means_lacking_commit, means_no_repository, means_full_disk, means_passing_trouble)
    assert [each for each in every if each(text)] == [meaning]


@pytest.mark.parametrize(
    ("failure", "place"),
    [
        (
            f"Checking patch src/a.cpp...\nerror: while searching for:\nc\n\n{A_40}Checking patch x...\n",
            "src/a.cpp, hunk 2 of 2 (@@ -40 +40 @@)",
        ),
        (
            f"{A_1}error: patch failed: src/b.cpp:7\nerror: src/b.cpp: patch does not apply\n",
            "src/a.cpp, hunk 1 of 2 (@@ -1 +1 @@); src/b.cpp, hunk 1 of 1 (@@ -7 +7 @@)",
        ),
        ("error: patch failed: src/a.cpp:3\n", "src/a.cpp, near line 3"),
        ("error: src/b.cpp: does not exist in index\n", "src/b.cpp does not exist in index"),
        ("error: src/b.cpp: already exists in index\n", "src/b.cpp already exists in index"),
        (
            "<stdin>:19: trailing whitespace.\n+d \nerror: 1 line adds whitespace errors.\n",
            "line 19 of the patch: trailing whitespace",
        ),
        ("error: corrupt patch at line 12\n", "line 12 of the patch: corrupt patch"),
        ("fatal: unable to write new index file\n", "unable to write new index file"),
    ],
)
def test_why_a_patch_does_not_apply(failure: str, place: str) -> None:
    assert why_not_applied(failure, PATCH) == place


def test_moved_hunks_are_told_with_their_file() -> None:
    output = (
        "Checking patch src/a.cpp...\nHunk #2 succeeded at 43 (offset 3 lines).\n"
        "Checking patch src/b.cpp...\nHunk #1 succeeded at 6 (offset -1 lines).\n"
        "Applied patch src/b.cpp cleanly.\n"
    )
    assert list(moved_hunks(output)) == [
        MovedHunk(path="src/a.cpp", hunk=2, lines=3),
        MovedHunk(path="src/b.cpp", hunk=1, lines=-1),
    ]


class OneGit:
    """Programs with a git of the given version, or without one."""

    def __init__(self, says: str | None) -> None:
        self._says = says

    def find(self, name: str) -> tuple[Path, ...]:
        return (Path("/usr/bin") / name,) if self._says is not None else ()

    def run(self, argv: Sequence[str], **_how: Any) -> Finished:
        assert tuple(argv) == ("git", "--version")
        return Finished(argv=tuple(argv), returncode=0, stdout=(self._says or "").encode(), stderr=b"")


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("git version 2.39.5\n", (2, 39, 5)),
        ("git version 2.32.0 (Apple Git-132)\n", (2, 32, 0)),
        ("git version 3.0.rc1\n", (3, 0)),
    ],
)
def test_the_version_of_git(says: str, version: tuple[int, ...]) -> None:
    assert git_version(OneGit(says)) == version


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (None, "git is not installed"),
        ("git version 2.30.2\n", "git 2.30.2 is too old, 2.32 is needed"),
        ("who knows\n", "git --version says 'who knows', which names no version"),
    ],
)
def test_a_git_that_will_not_do_names_the_command_that_helps(says: str | None, message: str) -> None:
    with pytest.raises(OutsideError) as caught:
        git_version(OneGit(says))
    assert caught.value.message == message
    assert caught.value.exit_code == 3
    assert "apt-get install git" in str(caught.value.hint)


def test_git_described_for_a_report() -> None:
    assert describe_git(OneGit("git version 2.39.5\n")) == "git 2.39.5 (/usr/bin/git)"
