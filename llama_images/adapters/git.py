"""The pinned source, by git: fetched once, verified, patched, laid out as plain files.

What lies in the cache:

``source/<source>.git``   the mirror (``git_mirror.py``)
``source/<source>.lock``  held by the process that works on the source
``source/gitconfig``      the only git configuration in force (``git_program.py``)
``trees/<source>-<commit>[-<series>]``  a tree for building, and its marker (``trees.py``)
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llama_images.adapters.git_messages import moved_hunks, not_applied, why_not_applied
from llama_images.adapters.git_mirror import Entry, Mirror, Origin, find_origin
from llama_images.adapters.git_program import DamagedError, Git, full_disk
from llama_images.adapters.locks import locked
from llama_images.adapters.trees import Identity, TreeStore
from llama_images.errors import OutsideError, UsageError
from llama_images.patch_series import Patch, PatchSeries, is_within
from llama_images.ports import CheckedOut, Programs, Reporter

if TYPE_CHECKING:
    from llama_images.matrix import Source

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """One tree to be made."""

    name: str
    identity: Identity
    source: Source
    series: PatchSeries | None
    """``None`` also for an empty one."""


class GitSourceTree:
    """Implements ``ports.SourceTree``.

    ``cache`` is the user's cache folder, ``patches`` the folder with one folder for each series. ``environ``
    replaces this process's environment, for tests.
    """

    def __init__(
        self,
        programs: Programs,
        cache: Path,
        reporter: Reporter,
        patches: Path,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._cache = cache.absolute()
        self._reporter = reporter
        self._patches = patches
        self._git = Git(programs, self._cache / "source", os.environ if environ is None else environ)
        self._trees = TreeStore(self._cache / "trees")

    def checkout(self, source: Source, series: PatchSeries | None, *, repo: str | None = None) -> CheckedOut:
        """Bring the tree into the cache and return where it lies; see ``ports.SourceTree.checkout``.

        Where the cache holds the tree, no network is needed. A ``repo`` is looked at even then, so that a
        wrong one is never passed over. Raises UsageError, too: where ``repo`` is no repository, and where the
        series touches what ``source.paths`` leaves out.
        """
        order = _order(source, series)
        self._refuse_outside(order)
        with self._disk_errors():
            origin = find_origin(self._git, source, repo)
            patched_tree = self._trees.ready(order.name, order.identity)
            if patched_tree is None:
                with self._locked(source):
                    # Another process may have made it while this one waited.
                    patched_tree = self._trees.ready(order.name, order.identity)
                    if patched_tree is None:
                        patched_tree = self._make(order, origin)
        path = self._trees.path(order.name)
        return CheckedOut(path=path, commit=source.commit, tree=source.tree, patched_tree=patched_tree)

    def mirror(self, source: Source, *, repo: str | None = None) -> Path:
        """The git directory in the cache that holds the pin and the contents of the files below its paths.

        Needs no network where it holds them already. Raises as ``checkout`` does.
        """
        with self._disk_errors():
            origin = find_origin(self._git, source, repo)
            with self._locked(source):
                return self._with_mirror(source, origin, lambda mirror: mirror.path)

    def _refuse_outside(self, order: _Order) -> None:
        for patch in order.series.patches if order.series is not None else ():
            for change in patch.files:
                if not is_within(change.path, order.source.paths):
                    raise UsageError(
                        f"{self._shown(order, patch)} touches {change.path}, which the source leaves out",
                        hint=f"Add it to sources.{order.source.name}.paths in the matrix.",
                    )

    def _make(self, order: _Order, origin: Origin) -> str:
        if self._trees.path(order.name).exists():
            self._reporter.line(
                f"source {order.source.name}: the tree in the cache is not as it should be; making it anew"
            )
        return self._with_mirror(order.source, origin, lambda mirror: self._lay_out(order, mirror))

    def _with_mirror(self, source: Source, origin: Origin, work: Callable[[Mirror], _T]) -> _T:
        """Bring the mirror up to date and work with it; a damaged one is made anew, once."""
        self._git.check_version()
        mirror = Mirror(self._git, self._cache / "source" / f"{source.name}.git", source, self._reporter)
        try:
            mirror.bring(origin)
            return work(mirror)
        except DamagedError as error:
            self._reporter.warn(
                f"source {source.name}: the mirror in the cache is damaged ({error}); fetching it anew"
            )
        mirror.discard()
        try:
            mirror.bring(origin)
            return work(mirror)
        except DamagedError as error:
            raise OutsideError(
                f"{mirror.path} can't be read: {error}", hint=f"Check the disk, then remove {mirror.path}."
            ) from error

    def _lay_out(self, order: _Order, mirror: Mirror) -> str:
        """Patch the index, and write the files of the patched tree; returns the tree's hash."""
        with self._trees.staging(order.source.name) as staging:
            # Objects that patches make go here: the mirror holds nothing but upstream's.
            objects = staging / "objects"
            (objects / "info").mkdir(parents=True)
            (objects / "pack").mkdir()
            (objects / "info" / "alternates").write_text(f"{mirror.path / 'objects'}\n", encoding="utf-8")
            env = {"GIT_INDEX_FILE": str(staging / "index"), "GIT_OBJECT_DIRECTORY": str(objects)}
            mirror.read(["read-tree", order.source.commit], env=env)
            for position in range(len(order.series.patches) if order.series is not None else 0):
                self._apply(order, position, mirror, env)
            # --missing-ok: the contents of files that the build does not read were never fetched.
            patched_tree = mirror.read(["write-tree", "--missing-ok"], env=env).decode().strip()
            listed = mirror.read(["ls-files", "--stage", "-z"], env=env)
            entries = [entry for entry in _index_entries(listed) if is_within(entry.path, order.source.paths)]
            blobs = mirror.contents(entries, env=env)
            self._trees.put(order.name, order.identity, patched_tree, blobs, staging=staging)
        self._trees.forget_unused(order.source.name)
        return patched_tree

    def _apply(self, order: _Order, position: int, mirror: Mirror, env: Mapping[str, str]) -> None:
        assert order.series is not None
        patch = order.series.patches[position]
        shown = self._shown(order, patch)
        words = ["apply", "--cached", "--whitespace=error-all", "--verbose", "-p1", "-"]
        finished = self._git.run(words, git_dir=mirror.path, env=env, stdin=patch.text.encode("utf-8"))
        if finished.returncode != 0:
            why = why_not_applied(finished.error_text, patch)
            raise not_applied(shown, commit=order.source.commit, position=position, why=why)
        for moved in moved_hunks(finished.error_text):
            self._reporter.warn(f"{shown}: {moved.path}, hunk {moved.hunk} applies {moved.lines} lines off")

    def _shown(self, order: _Order, patch: Patch) -> str:
        folder = order.series.name if order.series is not None else order.source.series
        return f"{self._patches.name}/{folder}/{patch.name}"

    @contextlib.contextmanager
    def _locked(self, source: Source) -> Iterator[None]:
        def waiting() -> None:
            self._reporter.line(
                f"source {source.name}: another process works on it; waiting for it to finish"
            )

        with locked(self._cache / "source" / f"{source.name}.lock", waiting):
            yield

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise full_disk(self._cache) from error
            raise OutsideError(
                f"can't use {error.filename or self._cache}: {error.strerror or error}",
                hint=f"The cache {self._cache} and a given clone must be open to you.",
            ) from error


def _order(source: Source, series: PatchSeries | None) -> _Order:
    carried = series if series is not None and not series.is_empty else None
    name = f"{source.name}-{source.commit[:12]}"
    identity = Identity(
        commit=source.commit,
        tree=source.tree,
        series=carried.digest if carried is not None else None,
        paths=tuple(source.paths),
        time_ns=int(source.date.timestamp()) * 1_000_000_000,
    )
    if carried is not None:
        name += f"-{carried.short}"
    return _Order(name=name, identity=identity, source=source, series=carried)


def _index_entries(listed: bytes) -> Iterator[Entry]:
    """The records of ``git ls-files --stage -z``."""
    for record in filter(None, listed.split(b"\0")):
        facts, _, path = record.partition(b"\t")
        mode, object_id, _stage = facts.decode().split()
        yield Entry(mode=mode, object_id=object_id, path=os.fsdecode(path))
