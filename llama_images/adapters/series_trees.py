"""The series tried on its pin and on other commits, without a work tree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llama_images.adapters import tree_sync
from llama_images.adapters.git import GitSourceTree
from llama_images.adapters.git_messages import last_words, not_applied
from llama_images.adapters.git_mirror import blobs, find_origin, tree_entries
from llama_images.adapters.git_program import DamagedError, Git
from llama_images.adapters.git_revision import bring_commit, describe, find_commit
from llama_images.adapters.git_scratch import Scratch, moved_words, unreadable
from llama_images.errors import OutsideError
from llama_images.patch_series import Patch, PatchSeries
from llama_images.ports import Reporter
from llama_images.series_ports import AppliedPatch, AppliedSeries, ComparedPatch, Comparison

if TYPE_CHECKING:
    from llama_images.matrix import Source

_MERGE_TREE_GIT: Final = (2, 38)
"""The first git that merges trees without a work tree (merge-tree --write-tree, its release notes)."""


class GitSeriesTrees:
    """Implements ``series_ports.SeriesTrees``; ``trees`` gives the mirror of the pin."""

    def __init__(self, git: Git, trees: GitSourceTree, reporter: Reporter) -> None:
        self._git = git
        self._trees = trees
        self._reporter = reporter

    @contextlib.contextmanager
    def applied(self, source: Source, series: PatchSeries, *, repo: str | None) -> Iterator[AppliedSeries]:
        """The series on its pin; see ``series_ports.SeriesTrees.applied``."""
        mirror = self._trees.mirror(source, repo=repo)
        borrowed = [mirror / "objects"]
        with Scratch.temporary(self._git, borrowed=borrowed, shallow=[source.commit]) as scratch:
            try:
                yield _Applied(source, scratch, scratch.apply_series(series, source.commit))
            except DamagedError as error:
                raise unreadable(mirror, error) from error

    def compare(self, source: Source, series: PatchSeries, *, repo: str | None, onto: str) -> Comparison:
        """The series on another commit; see ``series_ports.SeriesTrees.compare``."""
        self._git.check_version(_MERGE_TREE_GIT)
        origin = find_origin(self._git, source, repo)
        commit = find_commit(self._git, source, origin, onto)
        mirror = self._trees.mirror(source, repo=repo)
        with Scratch.temporary(
            self._git, borrowed=[mirror / "objects"], shallow=[source.commit], origin=origin
        ) as scratch:
            try:
                bring_commit(self._git, source, origin, commit, scratch.git_dir, self._reporter)
                revision = describe(self._git, source, origin, scratch, name=onto, commit=commit, count=False)
                applied = scratch.apply_series(series, source.commit)
                refuse_unapplied(source, applied)
                merges = _Merges(scratch, source, revision.tree)
                before = source.tree
                compared = []
                for patch, step in zip(series.patches, applied, strict=True):
                    assert step.tree is not None
                    compared.append(merges.try_patch(patch, before, step.tree))
                    before = step.tree
            except DamagedError as error:
                raise unreadable(mirror, error) from error
        return Comparison(onto=revision, patches=tuple(compared))


def refuse_unapplied(source: Source, applied: tuple[AppliedPatch, ...]) -> None:
    """Raise CheckFailed where a series does not apply to its own pin."""
    for position, patch in enumerate(applied):
        if patch.problem is not None:
            shown = f"patches/{source.series}/{patch.name}"
            raise not_applied(shown, commit=source.commit, position=position, why=patch.problem)


class _Applied:
    """Implements ``series_ports.AppliedSeries``."""

    def __init__(self, source: Source, scratch: Scratch, patches: tuple[AppliedPatch, ...]) -> None:
        self._source = source
        self._scratch = scratch
        self._patches = patches

    @property
    def patches(self) -> tuple[AppliedPatch, ...]:
        return self._patches

    def lay_out(self, tree: str, folder: Path) -> int:
        listed = self._scratch.read(["ls-tree", "-r", "-z", tree, "--", *self._source.paths])
        entries = tree_entries(listed, name=self._source.name)
        folder.mkdir(parents=True, exist_ok=True)
        removed = tree_sync.remove_others(folder, (entry.path for entry in entries))
        wrong = [
            entry for entry in entries if not tree_sync.holds(folder, entry.path, entry.mode, entry.object_id)
        ]
        wanted = "".join(f"{entry.object_id}\n" for entry in wrong).encode()
        tree_sync.write(folder, blobs(self._scratch.read(["cat-file", "--batch"], stdin=wanted), wrong))
        return len(wrong) + removed


class _Merges:
    """Takes the patches of a series to another commit one by one, as a rebase would."""

    def __init__(self, scratch: Scratch, source: Source, tree: str) -> None:
        self._scratch = scratch
        self._date = source.date
        self._tree = tree
        """The other commit's tree with every patch so far that it takes."""

    def try_patch(self, patch: Patch, old: str, new: str) -> ComparedPatch:
        """``old`` and ``new`` are the trees without and with the patch on its own pin."""
        merged, conflicts = self._merge(old, new)
        if merged is None:
            return ComparedPatch(name=patch.name, state="conflicts", details=conflicts)
        if merged == self._tree:
            return ComparedPatch(name=patch.name, state="absorbed")
        self._scratch.load(self._tree)
        tried = self._scratch.apply(patch, "--check", "--whitespace=nowarn")
        self._tree = merged
        if tried.returncode != 0:
            return ComparedPatch(name=patch.name, state="merges")
        moved = moved_words(tried.error_text)
        return ComparedPatch(name=patch.name, state="moved" if moved else "applies", details=moved)

    def _merge(self, old: str, new: str) -> tuple[str | None, tuple[str, ...]]:
        """The tree that a three-way merge of the step gives, or the files in which it conflicts."""
        # merge-tree finds the base by itself: two children of one commit have that one.
        base = self._scratch.commit(old, None, "base", date=self._date)
        ours = self._scratch.commit(self._tree, base, "ours", date=self._date)
        theirs = self._scratch.commit(new, base, "theirs", date=self._date)
        words = ["merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", ours, theirs]
        finished = self._scratch.run(words)
        if finished.returncode not in (0, 1):
            raise OutsideError(
                f"git can't merge {new[:12]}: {last_words(finished.error_text)}",
                hint="The repository may lack the contents of a file: give a full clone with --repo.",
            )
        tree, *names = filter(None, finished.text.split("\0"))
        return (tree, ()) if finished.returncode == 0 else (None, tuple(sorted(set(names))))
