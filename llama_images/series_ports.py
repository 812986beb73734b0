"""What the workflows around the patch series need from the outside world; see ``ports``."""

from __future__ import annotations

import datetime as dt
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from llama_images.errors import UsageError
    from llama_images.matrix import Source
    from llama_images.patch_series import Patch, PatchSeries


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedPatch:
    """A patch that a series file names: either read, or why it can't be."""

    name: str
    patch: Patch | None = None
    error: UsageError | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AppliedPatch:
    """What became of one patch on the pin with the patches before it."""

    name: str
    problem: str | None
    """File and hunk that do not fit, or what is wrong with the white space; ``None`` where it applies."""
    tree: str | None = None
    """Hash of the whole tree afterwards; ``None`` where it does not apply."""
    diff: str = ""
    """What ``git diff-tree -p`` says of the step from the tree before."""
    moved: tuple[str, ...] = ()
    """Hunks that apply at another line than they name: file, hunk, distance."""


class AppliedSeries(Protocol):
    """A series applied on its pin, while the context that gave it is open."""

    @property
    def patches(self) -> tuple[AppliedPatch, ...]:
        """In order, up to and with the first that does not apply."""

    def lay_out(self, tree: str, folder: Path) -> int:
        """Make ``folder`` hold a tree's files that the build reads, and nothing else.

        Files that are right already are not touched, so that a build there compiles only what has changed.
        Returns how many were written or removed.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Revision:
    """A commit of the upstream repository, as the matrix would pin it."""

    name: str
    """As the user gave it: a commit, a branch, ``pull/24423/head``."""
    commit: str
    tree: str
    date: dt.datetime
    """The committer's date, in UTC."""
    build_number: int | None
    """``git rev-list --count``; ``None`` where the history could not be had."""
    missing_paths: tuple[str, ...] = ()
    """Those of the source's paths that this commit has not."""


PatchState = Literal["applies", "moved", "merges", "conflicts", "absorbed"]
"""Of a patch on another commit: each hunk fits where it says; hunks fit at other lines; a three-way merge
takes it; a three-way merge leaves conflicts; what it does is there already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedPatch:
    """How a patch fares on another commit."""

    name: str
    state: PatchState
    details: tuple[str, ...] = ()
    """Of ``moved`` the hunks, of ``conflicts`` the files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How a series fares on another commit."""

    onto: Revision
    patches: tuple[ComparedPatch, ...]
    """In order. A patch that conflicts is left out of what those after it are tried on."""


class SeriesTrees(Protocol):
    """A series tried on commits, in places that are gone afterwards."""

    def applied(
        self, source: Source, series: PatchSeries, *, repo: str | None
    ) -> AbstractContextManager[AppliedSeries]:
        """The series on its pin. Raises OutsideError and CheckFailed as ``SourceTree.checkout`` does."""

    def compare(self, source: Source, series: PatchSeries, *, repo: str | None, onto: str) -> Comparison:
        """The series on another commit, as a rebase would find it.

        Raises UsageError for an unknown ``onto``, OutsideError where it can't be had, CheckFailed where the
        series does not apply to its own pin.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """A patch that stopped a rebase."""

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebase:
    """Where a rebase of the series stands."""

    path: Path
    """The work tree."""
    onto: Revision
    kept: tuple[str, ...]
    """Patches that lie on the new commit, in order."""
    absorbed: tuple[str, ...]
    """Patches of which nothing was left: the new commit does it already."""
    skipped: tuple[str, ...]
    """Patches that the user left out."""
    conflict: Conflict | None
    """What waits for the user; ``None`` where the rebase is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkCommit:
    """One commit of a work tree."""

    commit: str
    message: str
    tree: str
    paths: tuple[str, ...]
    """What it touches."""
    diff: str
    """What ``git diff-tree -p`` prints; empty for an empty commit."""


class WorkCommits(Protocol):
    """The commits of a work tree above its base, while the context that gave them is open."""

    @property
    def path(self) -> Path: ...
    @property
    def base(self) -> str:
        """The upstream commit below them."""

    @property
    def commits(self) -> tuple[WorkCommit, ...]:
        """In order, each the only child of the one before."""

    def applied(self, series: PatchSeries) -> tuple[AppliedPatch, ...]:
        """That series on the base, as ``AppliedSeries.patches``."""

    def exported(self, series: PatchSeries) -> None:
        """Note that the commits are that series: a rebase of it may replace the work tree."""


class SeriesWork(Protocol):
    """A work tree in the cache with one commit for each patch."""

    def start(self, source: Source, series: PatchSeries, *, repo: str | None, onto: str) -> Rebase:
        """Make the work tree and rebase it onto another commit, up to the first conflict.

        A rebase to the same commit that was interrupted goes on. Raises UsageError for an unknown ``onto``,
        where a rebase waits for the user, and where the work tree there holds what is not in the series.
        """

    def resume(self, source: Source, *, skip: bool, repo: str | None = None) -> Rebase:
        """Go on after a conflict that was resolved; ``skip`` leaves the patch out instead.

        The work tree knows the repository that it was made from. Of ``repo`` only user and password are
        taken, which no work tree keeps.

        Raises UsageError where there is no work tree, or where conflicts are left (named by file and line).
        """

    def abort(self, source: Source) -> Path:
        """Remove the work tree, with all that is in it, and return where it was; UsageError without one."""

    def commits(
        self, source: Source, *, work_tree: Path | None, base: str | None
    ) -> AbstractContextManager[WorkCommits]:
        """The commits of a work tree: of the one in the cache, or of any that holds the base.

        The base is what the rebase was onto, or else the pin. Raises UsageError for a work tree that is
        dirty, in the middle of something, not on top of the base, or that has merges above it.
        """


class SeriesFolders(Protocol):
    """The folders below ``patches/``."""

    def listed(self, series: str) -> tuple[ListedPatch, ...]:
        """What the series file names, in order; UsageError for a series file that can't be read."""

    def replace(self, series: PatchSeries, *, source: str) -> bool:
        """Write a series, whole or not at all; returns whether anything changed.

        Comments of the series file and files that are no patches stay. Patches that the old series file
        named and the new one does not are removed. Raises UsageError where a patch would be written over a
        file that the series file does not name, or names in a comment.
        """


class CompileFolder(Protocol):
    """A source and a build folder that outlive a run, for compiling one tree after the other."""

    @property
    def source(self) -> Path: ...
    @property
    def build(self) -> Path: ...
    def prepare(self, settings: str) -> None:
        """Make the build folder empty unless it was used with these very settings before."""

    def is_known(self, key: str) -> bool:
        """Whether what the key names was compiled before."""

    def remember(self, key: str) -> None: ...
