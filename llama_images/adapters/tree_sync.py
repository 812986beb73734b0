"""Brings a folder to a tree's files and touches nothing that is right already."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from llama_images.adapters.trees import Blob, blob_id

_MODES: Final[Mapping[str, int]] = {"100644": 0o644, "100755": 0o755}
_SYMLINK: Final = "120000"


def holds(folder: Path, path: str, mode: str, object_id: str) -> bool:
    """Whether a file is there with that mode (git's) and that content (git's hash)."""
    file = folder / path
    try:
        if mode == _SYMLINK:
            return file.is_symlink() and blob_id(os.fsencode(file.readlink())) == object_id
        if file.is_symlink() or not file.is_file() or file.stat().st_mode & 0o777 != _MODES[mode]:
            return False
        return blob_id(file.read_bytes()) == object_id
    except OSError:
        return False


def write(folder: Path, blobs: Iterable[Blob]) -> None:
    """Write files, each aside and renamed; what stands in the way is removed."""
    for blob in blobs:
        file = folder / blob.path
        _clear_way(folder, file)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.part")
        part.unlink(missing_ok=True)
        if blob.mode == _SYMLINK:
            part.symlink_to(os.fsdecode(blob.content))
        else:
            part.write_bytes(blob.content)
            part.chmod(_MODES[blob.mode])
        part.replace(file)


def _clear_way(folder: Path, file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    for parent in file.parents:
        if parent == folder:
            return
        if parent.is_symlink() or parent.is_file():
            parent.unlink()


def remove_others(folder: Path, wanted: Iterable[str]) -> int:
    """Remove every file that is not wanted, and folders that are empty then; returns how many files."""
    keep = set(wanted)
    removed = 0
    for current, folders, files in os.walk(folder, topdown=False):
        links = [name for name in folders if (Path(current) / name).is_symlink()]
        for name in (*files, *links):
            path = Path(current) / name
            if path.relative_to(folder).as_posix() not in keep:
                path.unlink()
                removed += 1
        if Path(current) != folder and not any(Path(current).iterdir()):
            Path(current).rmdir()
    return removed
