"""The commits of a work tree above their base, as values. Whose work tree it is does not matter."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llama_images.adapters.git_messages import means_no_repository
from llama_images.adapters.git_mirror import NO_NETWORK
from llama_images.adapters.git_program import DamagedError, Git
from llama_images.adapters.git_scratch import Scratch, unreadable
from llama_images.adapters.rebase_state import load_state, save_state
from llama_images.errors import UsageError
from llama_images.patch_series import PatchSeries, decode_text
from llama_images.series_ports import AppliedPatch, WorkCommit, WorkCommits

if TYPE_CHECKING:
    from llama_images.matrix import Source

_UNDER_WAY: Final[Mapping[str, str]] = {
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
}
_SHOWN: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """A work tree and where git keeps what belongs to it."""

    path: Path
    git_dir: Path
    """Its own; of one that ``git worktree add`` made, not the repository's."""
    objects: Path
    settings: tuple[str, ...] = ()
    """Options for git by which nothing of the work tree's owner is started: no hook, no filter."""


@contextlib.contextmanager
def read_commits(git: Git, source: Source, path: Path, *, base: str | None) -> Iterator[WorkCommits]:
    """The commits of the work tree at ``path``; see ``series_ports.SeriesWork.commits``."""
    place = _find(git, path)
    try:
        _refuse_unfinished(git, source, place)
        root = _base(git, source, place, base)
        head = _word(git, place, "rev-parse", "--verify", "HEAD^{commit}")
        chain = _chain(git, place, root, head)
        # Read through a repository of our own: neither settings nor attributes of theirs shape the diffs.
        with Scratch.temporary(git, borrowed=[place.objects], shallow=[root]) as scratch:
            commits = tuple(
                _commit(scratch, parent, commit)
                for parent, commit in zip((root, *chain[:-1]), chain, strict=True)
            )
            yield _Commits(place, root, head, commits, scratch)
    except DamagedError as error:
        raise unreadable(path, error) from error


def shown(paths: Sequence[str]) -> str:
    """The first few of them, for an error."""
    return ", ".join(paths[:_SHOWN]) + (", …" if len(paths) > _SHOWN else "")


class _Commits:
    """Implements ``series_ports.WorkCommits``."""

    def __init__(
        self, place: _Place, base: str, head: str, commits: tuple[WorkCommit, ...], scratch: Scratch
    ) -> None:
        self._place = place
        self._base = base
        self._head = head
        self._commits = commits
        self._scratch = scratch

    @property
    def path(self) -> Path:
        return self._place.path

    @property
    def base(self) -> str:
        return self._base

    @property
    def commits(self) -> tuple[WorkCommit, ...]:
        return self._commits

    def applied(self, series: PatchSeries) -> tuple[AppliedPatch, ...]:
        return self._scratch.apply_series(series, self._base)

    def exported(self, series: PatchSeries) -> None:
        state = load_state(self._place.git_dir)
        if state is not None:
            done = replace(state, exported=self._head, exported_series=series.digest)
            save_state(self._place.git_dir, done)


def _find(git: Git, path: Path) -> _Place:
    hint = "Name the top folder of a work tree that has the pin and your commits on it."
    if not path.is_dir():
        raise UsageError(f"{path} is no folder", hint=hint)
    words = ["rev-parse", "--path-format=absolute", "--git-dir", "--git-path", "objects"]
    asked = git.run(words, git_dir=path / ".git", work_tree=path)
    if asked.returncode != 0:
        if means_no_repository(asked.error_text):
            raise UsageError(f"{path} is no work tree of git", hint=hint)
        raise unreadable(path, DamagedError(asked.error_text.strip()))
    # Not str.splitlines: a path may hold any of the other line ends.
    git_dir, objects, *more = os.fsdecode(asked.stdout).removesuffix("\n").split("\n")
    if more:
        raise UsageError(f"{path.name!r}: a path with a line end can't be used", hint=hint)
    place = _Place(path=path, git_dir=Path(git_dir), objects=Path(objects))
    return replace(place, settings=_start_nothing(git, place))


def _start_nothing(git: Git, place: _Place) -> tuple[str, ...]:
    """Options that take back what the settings of a work tree would have git start."""
    words = ["config", "--includes", "-z", "--name-only", "--get-regexp", r"^filter\."]
    listed = git.run(words, git_dir=place.git_dir, work_tree=place.path)
    filters = {os.fsdecode(name).rpartition(".")[0] for name in listed.stdout.split(b"\0") if name}
    settings = ["core.fsmonitor=false", f"core.hooksPath={os.devnull}"]
    for name in sorted(filters):
        settings += [f"{name}.clean=", f"{name}.smudge=", f"{name}.process=", f"{name}.required=false"]
    return tuple(word for setting in settings for word in ("-c", setting))


def _read(git: Git, place: _Place, arguments: Sequence[str], *, may_fetch: bool = False) -> bytes:
    env = {
        "GIT_NO_LAZY_FETCH": "0" if may_fetch else "1",
        "GIT_INDEX_FILE": str(place.git_dir / "index"),
        "GIT_OBJECT_DIRECTORY": str(place.objects),
        "GIT_OPTIONAL_LOCKS": "0",
    }
    if not may_fetch:
        env |= NO_NETWORK  # git before 2.45 knows no other way to leave a partial clone's remote alone
    finished = git.run([*place.settings, *arguments], git_dir=place.git_dir, work_tree=place.path, env=env)
    if finished.returncode != 0:
        raise DamagedError(finished.error_text.strip().splitlines()[0] if finished.stderr else "no reason")
    return finished.stdout


def _word(git: Git, place: _Place, *arguments: str) -> str:
    return _read(git, place, arguments).decode().strip()


def _refuse_unfinished(git: Git, source: Source, place: _Place) -> None:
    """Raise UsageError for a work tree whose HEAD is not all there is."""
    state = load_state(place.git_dir)
    if state is not None and state.pick is not None:
        raise UsageError(
            f"{place.path}: a rebase onto {state.onto.commit[:12]} is under way",
            hint="invoke patches.rebase --continue goes on with it.",
        )
    for name, what in _UNDER_WAY.items():
        if (place.git_dir / name).exists():
            raise UsageError(f"{place.path}: a {what} is under way", hint="Finish it with git first.")
    words = ["status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=no"]
    listed = _read(git, place, words).decode("utf-8", "replace")
    dirty = [entry[3:] for entry in listed.split("\0") if entry] + _untracked(git, source, place)
    if dirty:
        raise UsageError(
            f"{place.path} has changes that are not committed: {shown(dirty)}",
            hint="Commit them, or take them back (git stash, git checkout, git clean).",
        )


def _untracked(git: Git, source: Source, place: _Place) -> list[str]:
    """Files that no commit has; those outside the paths (build folders) are no business of the series."""
    words = ["ls-files", "--others", "-z"]
    where = ["--", *source.paths]
    listed = _read(git, place, [*words, *where])
    if listed:
        # What to ignore may stand in a .gitignore that a sparse work tree has in its index alone, and a
        # partial clone not even there. Where it can't be had, nothing is ignored.
        with contextlib.suppress(DamagedError):
            listed = _read(git, place, [*words, "--exclude-standard", *where], may_fetch=True)
    return [path for path in listed.decode("utf-8", "replace").split("\0") if path]


def _base(git: Git, source: Source, place: _Place, base: str | None) -> str:
    """The commit that the patches go on: as told, as rebased, or the pin."""
    state = load_state(place.git_dir)
    wanted = base or (state.onto.commit if state is not None else source.commit)
    hint = f"--base names the commit that your commits are on; without it that is the pin, {source.commit}."
    try:
        found = _word(git, place, "rev-parse", "--verify", "--end-of-options", f"{wanted}^{{commit}}")
        _read(git, place, ["merge-base", "--is-ancestor", found, "HEAD"])
    except DamagedError:
        raise UsageError(f"{place.path}: HEAD is not on top of {wanted}", hint=hint) from None
    return found


def _chain(git: Git, place: _Place, base: str, head: str) -> tuple[str, ...]:
    """The commits above the base, the oldest first."""
    words = ["rev-list", "--reverse", "--topo-order", "--parents", f"{base}..{head}"]
    listed = [line.split() for line in _read(git, place, words).decode().splitlines()]
    for commit, *parents in listed:
        if len(parents) != 1:
            raise UsageError(
                f"{place.path}: {commit[:12]} is a merge; a series is a straight line of commits",
                hint=f"git rebase {base[:12]} makes it one.",
            )
    chain = tuple(commit for commit, _parent in listed)
    if not chain:
        raise UsageError(f"{place.path}: there is no commit on top of {base[:12]}", hint="Commit first.")
    return chain


def _commit(scratch: Scratch, parent: str, commit: str) -> WorkCommit:
    name = f"commit {commit[:12]}"
    raw = decode_text(scratch.read(["cat-file", "commit", commit]), name=name)
    listed = scratch.read(["diff-tree", "-r", "-z", "--name-only", "--no-renames", parent, commit])
    return WorkCommit(
        commit=commit,
        message=raw.partition("\n\n")[2],
        tree=scratch.word("rev-parse", "--verify", f"{commit}^{{tree}}"),
        paths=tuple(path for path in listed.decode("utf-8", "replace").split("\0") if path),
        diff=scratch.diff(parent, commit, name=name),
    )
