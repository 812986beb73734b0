"""git in the work tree of a rebase: what it is asked, and how it is brought back to a commit."""

from __future__ import annotations

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
from llama_images.ports import Finished

if TYPE_CHECKING:
    from llama_images.matrix import Source

_MARKERS: Final = (b"<<<<<<< ", b"||||||| ", b">>>>>>> ")
_CUT_OFF: Final = ("index.lock", "HEAD.lock", "CHERRY_PICK_HEAD", "REBASE_HEAD", "AUTO_MERGE", "MERGE_MSG")


class WorkTree:
    """git in one work tree of the cache, out of reach of the user's settings."""

    def __init__(self, git: Git, path: Path, source: Source) -> None:
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
        }

    def run(self, arguments: Sequence[str]) -> Finished:
        return self._git.run(
            arguments,
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

    def unresolved(self) -> list[str]:
        """Conflicts that nobody has resolved, each in words.

        A file that both sides have is resolved once it holds no conflict marker. Where one side has removed
        or moved it, only git add or git rm can say what is meant.
        """
        left = []
        for path, sides in self.unmerged().items():
            file = self.path / path
            if not {2, 3} <= sides or not file.is_file():
                left.append(f"{path} (git add or git rm it)")
                continue
            lines = file.read_bytes().split(b"\n")
            marked = [number for number, line in enumerate(lines, 1) if line.startswith(_MARKERS)]
            if marked:
                left.append(f"{path}:{marked[0]}")
        return left

    def clean_up(self, head: str, pick: Pick) -> None:
        """Be at that commit as if the step had never begun."""
        for name in ("rebase-merge", "rebase-apply"):
            shutil.rmtree(self.git_dir / name, ignore_errors=True)
        for name in _CUT_OFF:
            (self.git_dir / name).unlink(missing_ok=True)
        self.need(["update-ref", "--no-deref", "HEAD", head])
        self.need(["reset", "--quiet", "--hard", head])
        # New files that were written before the index knew of them would be in the way.
        words = ["diff-tree", "-r", "-z", "--no-renames", "--name-only", "--diff-filter=A"]
        added = set(self.need([*words, pick.parent, pick.commit]).split("\0"))
        for path in added & set(self.untracked(*self.source.paths)):
            (self.path / path).unlink()
