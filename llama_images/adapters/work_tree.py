"""git in the work tree of a rebase: what it is asked, and how it is brought back to a commit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llama_images.adapters.git_messages import last_words
from llama_images.adapters.git_mirror import FETCH_SECONDS
from llama_images.adapters.git_program import Git
from llama_images.adapters.git_scratch import identity
from llama_images.adapters.rebase_state import Pick
from llama_images.errors import OutsideError
from llama_images.patch_format import CONFLICT_MARKERS
from llama_images.ports import Finished

if TYPE_CHECKING:
    from llama_images.matrix import Source

_MARKERS: Final = tuple(marker.encode() for marker in CONFLICT_MARKERS)
# The owner may set these in the work tree. A rebase gives the same commits all the same, and starts nothing.
_SETTINGS: Final = tuple(
    word
    for setting in (
        *(f"core.hooksPath={os.devnull}", "core.fsmonitor=false", f"core.attributesFile={os.devnull}"),
        *("core.autocrlf=false", "core.safecrlf=false", "core.commentChar=;"),
        *(
            "commit.gpgSign=false",
            "commit.cleanup=default",
            "merge.conflictStyle=diff3",
            "rerere.enabled=false",
        ),
        *("rebase.autoSquash=false", "rebase.autoStash=false", "rebase.updateRefs=false"),
    )
    for word in ("-c", setting)
)
_CUT_OFF: Final = ("index.lock", "HEAD.lock", "CHERRY_PICK_HEAD", "REBASE_HEAD", "AUTO_MERGE", "MERGE_MSG")


class WorkTree:
    """git in one work tree of the cache, out of reach of the user's settings."""

    def __init__(self, git: Git, path: Path, source: Source, *, credentials: Mapping[str, str]) -> None:
        """``credentials`` are for the repository that git asks for what is missing."""
        self._git = git
        self.path = path
        self.git_dir = path / ".git"
        self.source = source
        committer = {
            key: value for key, value in identity(source.date).items() if key.startswith("GIT_COMMITTER")
        }
        self._environment: Mapping[str, str] = {
            "GIT_INDEX_FILE": str(self.git_dir / "index"),
            "GIT_OBJECT_DIRECTORY": str(self.git_dir / "objects"),
            "GIT_NO_LAZY_FETCH": "0",
            "GIT_EDITOR": ":",
            "GIT_SEQUENCE_EDITOR": ":",
            **committer,
            **credentials,
        }

    def run(self, arguments: Sequence[str]) -> Finished:
        return self._git.run(
            [*_SETTINGS, *arguments],
            git_dir=self.git_dir,
            work_tree=self.path,
            env=self._environment,
            timeout=FETCH_SECONDS,
        )

    def need(self, arguments: Sequence[str]) -> str:
        """Output of a command that should do; raises OutsideError where it does not."""
        finished = self.run(arguments)
        if finished.returncode != 0:
            raise OutsideError(
                f"git {arguments[0]} failed in {self.path}: {last_words(finished.error_text)}",
                hint="Look at it there with git status.",
            )
        return finished.text

    def head(self) -> str:
        return self.need(["rev-parse", "--verify", "HEAD^{commit}"]).strip()

    def is_rebasing(self) -> bool:
        return (self.git_dir / "rebase-merge").is_dir() or (self.git_dir / "rebase-apply").is_dir()

    def changed(self) -> list[str]:
        """Tracked files that differ from HEAD."""
        words = ["status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=no"]
        return [entry[3:] for entry in self.need(words).split("\0") if entry]

    def untracked(self, *paths: str) -> list[str]:
        """Files that no commit has, below these paths or anywhere; without those that git is to ignore."""
        words = ["ls-files", "--others", "-z"]
        listed = self.need([*words, "--", *paths])
        if listed:
            # The .gitignore is in the index alone. Where it can't be had, nothing is ignored.
            finished = self.run([*words, "--exclude-standard", "--", *paths])
            listed = finished.text if finished.returncode == 0 else listed
        return [path for path in listed.split("\0") if path]

    def has_other_commits(self, known: Sequence[str]) -> bool:
        """Whether a branch, a tag or a stash holds a commit that is not in HEAD nor in one of these."""
        return bool(self.need(["rev-list", "--max-count=1", "--all", "--not", "HEAD", *known]))

    def unmerged(self) -> dict[str, frozenset[int]]:
        """Files in conflict, with the sides that there are: 1 the base, 2 the new commit's, 3 the patch's."""
        found: dict[str, set[int]] = {}
        for record in filter(None, self.need(["ls-files", "--unmerged", "-z"]).split("\0")):
            facts, _, path = record.partition("\t")
            found.setdefault(path, set()).add(int(facts.split()[2]))
        return {path: frozenset(sides) for path, sides in found.items()}

    def unresolved(self, head: str, pick: Pick) -> list[str]:
        """Conflicts that nobody has resolved, each in words.

        A file that both sides have is resolved once it holds no conflict marker, whatever git was told with
        git add. Where one side has removed or moved it, only git add or git rm can say what is meant.
        """
        unmerged = self.unmerged()
        touched = set(unmerged) | self._names(pick.parent, pick.commit) | self._names(head)
        left = []
        for path in sorted(touched):
            file = self.path / path
            if path in unmerged and (not {2, 3} <= unmerged[path] or not file.is_file()):
                left.append(f"{path} (git add or git rm it)")
            elif file.is_file() and not file.is_symlink():
                marked = _marked(file.read_bytes())
                if marked and not marked.keys() <= self._marked_before(path, head, pick.commit):
                    left.append(f"{path}:{min(marked.values())}")
        return left

    def _names(self, *commits: str) -> set[str]:
        """Files that differ between two commits, or between one and the work tree."""
        words = ["diff-tree", "-r"] if len(commits) > 1 else ["diff-index"]
        listed = self.need([*words, "-z", "--no-renames", "--name-only", *commits])
        return {path for path in listed.split("\0") if path}

    def _marked_before(self, path: str, *commits: str) -> set[bytes]:
        """Lines of a file that look like conflict markers and that one of the commits already has."""
        found = [self.run(["cat-file", "blob", f"{commit}:{path}"]) for commit in commits]
        return {line for one in found if one.returncode == 0 for line in _marked(one.stdout)}

    def clean_up(self, head: str, pick: Pick) -> None:
        """Be at that commit as if the step had never begun."""
        for name in ("rebase-merge", "rebase-apply"):
            shutil.rmtree(self.git_dir / name, ignore_errors=True)
        for name in _CUT_OFF:
            (self.git_dir / name).unlink(missing_ok=True)
        self.need(["update-ref", "--no-deref", "HEAD", head])
        self.need(["reset", "--quiet", "--hard", head])
        # New files that were written before the index knew of them would be in the way.
        for path in self.in_the_way(pick):
            (self.path / path).unlink()

    def in_the_way(self, pick: Pick) -> list[str]:
        """Files that no commit has and that the pick adds. git overwrites them in a sparse work tree."""
        words = ["diff-tree", "-r", "-z", "--no-renames", "--name-only", "--diff-filter=A"]
        added = [path for path in self.need([*words, pick.parent, pick.commit]).split("\0") if path]
        if not added:
            return []
        # Also those that git is to ignore: it would overwrite them too.
        return [path for path in self.need(["ls-files", "--others", "-z", "--", *added]).split("\0") if path]


def _marked(content: bytes) -> dict[bytes, int]:
    """The lines that are conflict markers, each with its first number, counted from 1."""
    found: dict[bytes, int] = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.startswith(_MARKERS):
            found.setdefault(line, number)
    return found
