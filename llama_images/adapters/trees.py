"""Source trees as plain files in the cache: written whole, proven whole, mended when damaged.

A tree ``NAME`` lies in ``<folder>/NAME``; beside it ``<folder>/NAME.json`` says which files it holds, with
their git hashes. The marker is written last: a tree without one does not count. Nothing here runs git.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_FORMAT: Final = 1
_STAGING: Final = ".staging"
_MODES: Final[Mapping[str, int]] = {"100644": 0o644, "100755": 0o755}
_SYMLINK: Final = "120000"
_UNUSED_SECONDS: Final = 30 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """One file of a tree with its content."""

    path: str
    """Relative, with ``/``."""
    mode: str
    """git's: "100644", "100755" or "120000" (a symbolic link)."""
    object_id: str
    """git's hash of the content, 40 hex digits."""
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a tree was made from. A marker of another identity proves nothing."""

    commit: str
    tree: str
    series: str | None
    """Digest of the patch series; ``None`` for the pin alone."""
    paths: tuple[str, ...]
    time_ns: int
    """Modification time of every file and folder, nanoseconds since 1970."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recorded:
    """A file as the marker knows it."""

    mode: str
    object_id: str
    size: int
    changed_ns: int
    """Its inode's change time, which no program can set: unchanged means that the content is."""


def blob_id(content: bytes) -> str:
    """git's SHA-1 hash of a file's content."""
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


class TreeStore:
    """The trees below one folder. Callers hold the lock of the source; ``ready`` needs none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        return self._folder / name

    def marker(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def ready(self, name: str, identity: Identity) -> str | None:
        """The tree hash of a complete, unharmed tree of that identity; ``None`` where it must be made anew.

        Looks at every file's size, mode and times; a file whose inode has changed is hashed. About 20 ms for
        1,600 files.
        """
        marker = self.marker(name)
        try:
            saved = json.loads(marker.read_text(encoding="utf-8"))
            if saved["format"] != _FORMAT or saved["identity"] != _as_json(identity):
                return None
            files = {path: _recorded(row) for path, row in saved["files"].items()}
            patched_tree = str(saved["patched_tree"])
            touched = _compare(self.path(name), files, identity.time_ns)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # no marker, a foreign or damaged one, or a tree that went away meanwhile
        if touched is None:
            return None
        with contextlib.suppress(OSError):  # a cache that can't be written still serves
            if touched:
                # Copied to another disk, perhaps, but right: remember the new change times.
                self._write_marker(name, identity, patched_tree, files)
            os.utime(marker)  # for forget_unused
        return patched_tree

    def forget_unused(self, source: str) -> None:
        """Remove the source's trees that nobody used for 30 days: each change of a patch leaves one."""
        ours = re.compile(rf"{re.escape(source)}-[0-9a-f]{{12}}(?:-[0-9a-f]{{12}})?")
        for marker in self._folder.glob(f"{source}-*.json"):
            if ours.fullmatch(marker.stem) and time.time() - marker.stat().st_mtime > _UNUSED_SECONDS:
                marker.unlink()
                shutil.rmtree(self.path(marker.stem), ignore_errors=True)

    @contextlib.contextmanager
    def staging(self, source: str) -> Iterator[Path]:
        """A private folder on the same file system, gone afterwards whatever happens.

        What a killed process left there is removed first.
        """
        below = self._folder / _STAGING / source
        shutil.rmtree(below, ignore_errors=True)
        below.mkdir(parents=True)
        staging = Path(tempfile.mkdtemp(dir=below))
        try:
            yield staging
        finally:
            shutil.rmtree(below, ignore_errors=True)

    def put(
        self, name: str, identity: Identity, patched_tree: str, blobs: Iterable[Blob], *, staging: Path
    ) -> Path:
        """Write a tree and its marker, and return the tree's path.

        The tree comes into being in ``staging`` and gets its name in one step, so it is there whole or not at
        all. Raises OSError as the file system does.
        """
        fresh = staging / "tree"
        recorded: dict[str, _Recorded] = {}
        for blob in blobs:
            _write(fresh, blob)
            recorded[blob.path] = _Recorded(
                mode=blob.mode, object_id=blob.object_id, size=len(blob.content), changed_ns=0
            )
        _set_times(fresh, recorded, identity.time_ns)
        final = self.path(name)
        self.marker(name).unlink(missing_ok=True)
        if final.is_symlink() or final.is_file():
            final.unlink()
        elif final.exists():
            final.rename(staging / "old")
        fresh.rename(final)
        self._write_marker(name, identity, patched_tree, recorded)
        return final

    def _write_marker(
        self, name: str, identity: Identity, patched_tree: str, files: Mapping[str, _Recorded]
    ) -> None:
        tree = self.path(name)
        rows = {
            path: [row.mode, row.object_id, row.size, (tree / path).lstat().st_ctime_ns]
            for path, row in files.items()
        }
        document = {
            "format": _FORMAT,
            "identity": _as_json(identity),
            "patched_tree": patched_tree,
            "files": rows,
        }
        marker = self.marker(name)
        # Not a fixed name: `ready` may refresh a marker without holding the lock.
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(document, stream, separators=(",", ":"))
            Path(temporary).replace(marker)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _as_json(identity: Identity) -> dict[str, object]:
    return {
        "commit": identity.commit,
        "tree": identity.tree,
        "series": identity.series,
        "paths": list(identity.paths),
        "time_ns": identity.time_ns,
    }


def _recorded(row: list[object]) -> _Recorded:
    mode, object_id, size, changed_ns = row
    if not (isinstance(size, int) and isinstance(changed_ns, int)):
        raise TypeError("sizes and times are numbers")
    return _Recorded(mode=str(mode), object_id=str(object_id), size=size, changed_ns=changed_ns)


def _folders(paths: Iterable[str]) -> Set[str]:
    """Every folder above these paths, the root ("") included."""
    found = {""}
    for path in paths:
        found.update(str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")
    return found


def _write(tree: Path, blob: Blob) -> None:
    target = tree / blob.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if blob.mode == _SYMLINK:
        target.symlink_to(os.fsdecode(blob.content))
        return
    with target.open("xb") as stream:
        stream.write(blob.content)
    target.chmod(_MODES[blob.mode])  # whatever the umask says: the image must not depend on it


def _set_times(tree: Path, files: Iterable[str], time_ns: int) -> None:
    paths = list(files)
    folders = sorted(
        _folders(paths), reverse=True
    )  # the deepest first: a folder's time changes with its entries
    for folder in folders:
        (tree / folder).chmod(0o755)
    for path in (*paths, *folders):
        os.utime(tree / path, ns=(time_ns, time_ns), follow_symlinks=False)


def _compare(tree: Path, files: Mapping[str, _Recorded], time_ns: int) -> Set[str] | None:
    """Paths whose inode has changed but whose content has not; ``None`` where the tree is not as recorded."""
    folders = _folders(files)
    touched: set[str] = set()
    seen = 0
    pending = [""]
    while pending:
        folder = pending.pop()
        if (tree / folder).lstat().st_mtime_ns != time_ns:
            return None
        with os.scandir(tree / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if path not in folders:
                        return None
                    pending.append(path)
                    continue
                row = files.get(path)
                if row is None:
                    return None
                seen += 1
                found = entry.stat(follow_symlinks=False)
                if not _fits(found, row, time_ns):
                    return None
                if found.st_ctime_ns != row.changed_ns:
                    if blob_id(_content(Path(entry.path), row)) != row.object_id:
                        return None
                    touched.add(path)
    return touched if seen == len(files) else None


def _fits(found: os.stat_result, row: _Recorded, time_ns: int) -> bool:
    if found.st_size != row.size or found.st_mtime_ns != time_ns:
        return False
    if row.mode == _SYMLINK:
        return stat.S_ISLNK(found.st_mode)
    return stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == _MODES[row.mode]


def _content(path: Path, row: _Recorded) -> bytes:
    return os.fsencode(path.readlink()) if row.mode == _SYMLINK else path.read_bytes()
