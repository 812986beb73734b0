"""Model files as the tests use them: which one it is, by its hash, and broken copies of a whole one."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from llama_images.cases import ModelKind
from llama_images.gguf_file import ARCHITECTURE, read_model_info
from llama_images.ports import Reporter
from llama_images.workflows.files import replace_file, sha256_of

_OTHER = "gemma-embedding"
"""Another architecture that llama.cpp knows, with a name of the same length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedModel:
    """A whole model file."""

    path: Path
    bytes: int
    sha256: str


def hashed_model(path: Path, notes: Path, reporter: Reporter) -> HashedModel:
    """The file with its SHA-256, which is read from ``notes`` where size and time of change are those noted.

    Raises UsageError where there is no such file, or it is no whole model of this architecture.
    """
    read_model_info(path)
    found = path.stat()
    key, state = str(path.resolve()), [found.st_size, found.st_mtime_ns]
    known = _read(notes)
    entry = known.get(key)
    if isinstance(entry, dict) and entry.get("state") == state and isinstance(entry.get("sha256"), str):
        return HashedModel(path=path, bytes=found.st_size, sha256=str(entry["sha256"]))
    sha256 = sha256_of(path, reporter)
    known[key] = {"state": state, "sha256": sha256}
    with contextlib.suppress(OSError):  # without the note, the next run hashes again
        replace_file(notes, json.dumps(known, indent=1).encode() + b"\n")
    return HashedModel(path=path, bytes=found.st_size, sha256=sha256)


def _read(notes: Path) -> dict[str, object]:
    try:
        known = json.loads(notes.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def broken_model(kind: ModelKind, whole: Path, folder: Path) -> Path:
    """A file of that kind in ``folder``, made of a whole, small model; of "missing", the path alone."""
    path = folder / f"{kind.replace(' ', '-')}.gguf"
    if kind == "missing":
        return path
    data = whole.read_bytes()
    if kind == "truncated":
        data = data[: len(data) // 2]
    if kind == "of another architecture":
        data = data.replace(ARCHITECTURE.encode(), _OTHER.encode(), 1)
    path.write_bytes(data)
    path.chmod(0 if kind == "unreadable" else 0o644)
    return path
