"""Reads a patch series from its folder."""

from __future__ import annotations

import re
from pathlib import Path

from llama_images.errors import UsageError
from llama_images.patch_series import PatchSeries, decode_text, make_series, series_entries


def load_series(folder: Path) -> PatchSeries:
    """Read ``folder/series`` and the patches that it names; the folder's name is the series' name.

    Raises UsageError, with file and line, for a bad series or patch, for a patch that is missing, and for one
    that lies there without being named (a ``#`` comment that names it will do).
    """
    shown = f"{folder.parent.name}/{folder.name}"
    text = decode_text(_read(folder / "series", f"{shown}/series"), name=f"{shown}/series")
    entries = series_entries(text, name=f"{shown}/series")
    for entry in entries:
        if not (folder / entry.name).is_file():
            raise UsageError(
                f"{shown}/series:{entry.line}: {entry.name} is missing",
                hint=f"Put the file into {shown}, or remove the line.",
            )
    mentioned = set(re.findall(r"\S+\.patch\b", text))
    for path in sorted(folder.glob("*.patch")):
        if path.name not in mentioned:
            raise UsageError(
                f"{shown}/{path.name} is not named by {shown}/series",
                hint="Name it where it belongs, or in a comment to leave it out.",
            )
    names = [f"{shown}/{entry.name}" for entry in entries]
    texts = [decode_text(_read(folder / Path(name).name, name), name=name) for name in names]
    return make_series(folder.name, zip(names, texts, strict=True))


def _read(path: Path, shown: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        hint = "A series is a folder below patches/ with a file named series."
        raise UsageError(f"{shown} does not exist", hint=hint) from error
    except OSError as error:
        raise UsageError(f"{shown} can't be read: {error.strerror or error}") from error
