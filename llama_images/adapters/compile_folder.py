"""Where patches are compiled one after the other, and what has been compiled there."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llama_images.adapters.locks import locked
from llama_images.ports import Reporter
from llama_images.series_ports import CompileFolder

_FORMAT: Final = 1
_KEPT: Final = 200
"""How many keys are remembered; the oldest go."""


class CompileFolders:
    """Folders below ``check/`` of the cache, one for each source."""

    def __init__(self, cache: Path, reporter: Reporter) -> None:
        self._folder = cache.absolute() / "check"
        self._reporter = reporter

    @contextlib.contextmanager
    def open(self, source: str) -> Iterator[CompileFolder]:
        """The folder of a source, while no other process uses it."""

        def waiting() -> None:
            self._reporter.line(f"patches of {source}: another process compiles; waiting for it to finish")

        with locked(self._folder / f"{source}.lock", waiting):
            yield _Folder(self._folder / source)


class _Folder:
    """Implements ``series_ports.CompileFolder``."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._record = path / "compiled.json"

    @property
    def source(self) -> Path:
        return self._path / "source"

    @property
    def build(self) -> Path:
        return self._path / "build"

    def prepare(self, settings: str) -> None:
        marker = self._path / "settings"
        if marker.is_file() and marker.read_text("utf-8") == settings:
            return
        marker.unlink(missing_ok=True)
        if self.build.exists():
            shutil.rmtree(self.build)
        marker.write_text(settings, "utf-8")

    def is_known(self, key: str) -> bool:
        return key in self._keys()

    def remember(self, key: str) -> None:
        keys = [*(known for known in self._keys() if known != key), key][-_KEPT:]
        part = self._record.with_name(f"{self._record.name}.part")
        part.write_text(json.dumps({"format": _FORMAT, "keys": keys}) + "\n", "utf-8")
        part.replace(self._record)

    def _keys(self) -> list[str]:
        try:
            document = json.loads(self._record.read_text("utf-8"))
            keys = document["keys"] if document["format"] == _FORMAT else []
            return [str(key) for key in keys]
        except (OSError, ValueError, LookupError, TypeError):
            return []  # none yet, or a damaged one: everything is compiled again
