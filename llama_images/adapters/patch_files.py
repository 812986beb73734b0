"""Reads a patch series from its folder, and writes one."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from llama_images.errors import OutsideError, UsageError
from llama_images.patch_format import series_comments, series_text
from llama_images.patch_series import (
    PatchSeries,
    SeriesEntry,
    decode_text,
    parse_patch,
    parse_series,
    series_entries,
)
from llama_images.series_ports import ListedPatch


def load_series(folder: Path) -> PatchSeries:
    """Read ``folder/series`` and the patches that it names; the folder's name is the series' name.

    Raises UsageError as ``list_patches`` does, and with file and line for a patch that can't be read.
    """
    patches = []
    for one in list_patches(folder):
        if one.error is not None:
            raise one.error
        assert one.patch is not None
        patches.append(one.patch)
    return PatchSeries(name=folder.name, patches=tuple(patches))


def list_patches(folder: Path) -> tuple[ListedPatch, ...]:
    """Read ``folder/series``, and of the patches that it names each that can be read.

    Raises UsageError, with file and line, for a bad series file, and for a patch that lies there without
    being named (a ``#`` comment that names it will do).
    """
    shown = f"{folder.parent.name}/{folder.name}"
    text = decode_text(_read(folder / "series", f"{shown}/series"), name=f"{shown}/series")
    entries = series_entries(text, name=f"{shown}/series")
    mentioned = set(re.findall(r"\S+\.patch\b", text))
    for path in sorted(folder.glob("*.patch")):
        if path.name not in mentioned:
            raise UsageError(
                f"{shown}/{path.name} is not named by {shown}/series",
                hint="Name it where it belongs, or in a comment to leave it out.",
            )
    return tuple(_listed(folder, entry) for entry in entries)


def _listed(folder: Path, entry: SeriesEntry) -> ListedPatch:
    shown = f"{folder.parent.name}/{folder.name}"
    path, name = folder / entry.name, f"{shown}/{entry.name}"
    try:
        if not path.is_file():
            raise UsageError(
                f"{shown}/series:{entry.line}: {entry.name} is missing",
                hint=f"Put the file into {shown}, or remove the line.",
            )
        patch = parse_patch(name, decode_text(_read(path, name), name=name))
    except UsageError as error:
        return ListedPatch(name=entry.name, error=error)
    return ListedPatch(name=entry.name, patch=patch)


def _read(path: Path, shown: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        hint = "A series is a folder below patches/ with a file named series."
        raise UsageError(f"{shown} does not exist", hint=hint) from error
    except OSError as error:
        raise UsageError(f"{shown} can't be read: {error.strerror or error}") from error


class LazySeries(Mapping[str, PatchSeries]):
    """The series below ``patches`` by their names, each read when it is first asked for.

    So a broken patch stops only the commands that need it. Asking raises as ``load_series`` does.
    """

    def __init__(self, patches: Path, names: Iterable[str]) -> None:
        self._patches = patches
        self._names = tuple(dict.fromkeys(names))
        self._read: dict[str, PatchSeries] = {}

    def __getitem__(self, name: str) -> PatchSeries:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._read:
            self._read[name] = load_series(self._patches / name)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class PatchFolders:
    """Implements ``series_ports.SeriesFolders``; ``patches`` holds one folder for each series."""

    def __init__(self, patches: Path) -> None:
        self._patches = patches

    def listed(self, series: str) -> tuple[ListedPatch, ...]:
        """The patches of a series; see ``series_ports.SeriesFolders.listed``."""
        return list_patches(self._patches / series)

    def replace(self, series: PatchSeries, *, source: str) -> bool:
        """Write a series; see ``series_ports.SeriesFolders.replace``.

        Raises UsageError for a series file that can't be read and for a patch that would be written over,
        OutsideError where nothing can be written.
        """
        folder = (self._patches / series.name).resolve()
        shown = f"{self._patches.name}/{series.name}"
        old = _contents(folder)
        listed = decode_text(old.get("series", b""), name=f"{shown}/series")
        gone = set(parse_series(listed, name=f"{shown}/series"))
        new = {name: data for name, data in old.items() if name not in gone}
        names = [patch.name for patch in series.patches]
        for patch in series.patches:
            if patch.name in new and new[patch.name] != patch.text.encode("utf-8"):
                raise UsageError(
                    f"{shown}/{patch.name} is there already, and is not one of the series: it would be lost",
                    hint="Move the file away, or give the commit another subject. Nothing was written.",
                )
        text = series_text(names, source=source, comments=series_comments(listed))
        new |= {patch.name: patch.text.encode("utf-8") for patch in series.patches}
        new["series"] = text.encode("utf-8")
        if new == old:
            return False
        try:
            _swap(folder, {name: data for name, data in new.items() if old.get(name) != data}, set(new))
        except OSError as error:
            raise OutsideError(
                f"{shown} can't be written: {error.strerror or error}", hint="Nothing in it was changed."
            ) from error
        return True


def _contents(folder: Path) -> dict[str, bytes]:
    """The plain files of a folder, by name; none where there is no folder."""
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _swap(folder: Path, changed: dict[str, bytes], wanted: set[str]) -> None:
    """Put a copy of the folder with other files in it into its place: whole, or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    fresh, old = staging / "new", staging / "old"
    try:
        if folder.is_dir():
            shutil.copytree(folder, fresh, symlinks=True)
        else:
            fresh.mkdir()
        for path in list(fresh.iterdir()):
            if path.is_file() and path.name not in wanted:
                path.unlink()
        for name, data in changed.items():
            (fresh / name).unlink(missing_ok=True)
            (fresh / name).write_bytes(data)
        try:
            if folder.is_dir():
                folder.rename(old)
            fresh.rename(folder)
        except BaseException:
            if old.is_dir() and not folder.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
