"""Files that more than one workflow reads or writes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from llama_images.ports import Reporter

_BLOCK: Final = 1 << 20


def sha256_of(path: Path, reporter: Reporter) -> str:
    """SHA-256 of a file, as hex digits; models are large, so it is shown how far it is."""
    digest = hashlib.sha256()
    with path.open("rb") as file, reporter.activity(f"sha256 of {path.name}") as activity:
        total, done = path.stat().st_size, 0
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if done % (_BLOCK << 8) == 0:
                activity.update(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB")
    return digest.hexdigest()


def replace_file(path: Path, data: bytes) -> None:
    """Write the file aside and rename it, so that nobody sees half of it; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
