"""The library that makes one card look like several, compiled on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llama_images.errors import OutsideError
from llama_images.words import last_line
from llama_images.workflows.workshop import Workshop

SOURCE = Path("tests") / "gpu" / "logical_gpus.c"


def logical_gpus_library(shop: Workshop) -> Path:
    """The compiled library, in the cache under the digest of its source; made where it is missing.

    Raises OutsideError where it can't be compiled.
    """
    source = shop.root / SOURCE
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    library = shop.cache / "lib" / f"logical_gpus-{digest}.so"
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    part = library.with_name(library.name + ".part")
    try:
        finished = shop.programs.run(
            ["cc", "-shared", "-fPIC", "-O2", "-o", str(part), str(source), "-ldl"], timeout=120
        )
        if finished.returncode != 0:
            why = last_line(finished.error_text, otherwise=f"exit code {finished.returncode}")
            raise OutsideError(f"{SOURCE} can't be compiled: {why}", hint="see what cc says of it")
        part.replace(library)
    finally:
        part.unlink(missing_ok=True)
    return library
