"""What is told while the campaign runs, and ``summary.json``, which is whole after every verdict."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


def plain(value: object) -> Json:
    """A value as JSON can hold it: dataclasses as objects, figures that are not finite as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no place in a summary")


class Report:
    """Collects what the parts found; prints it line by line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Json] = {}
        self._verdicts: dict[str, Json] = {}
        self.failed: list[str] = []
        """Names of the verdicts that failed, in their order."""

    def verdict(self, name: str, passed: bool, note: str) -> None:
        """Print and keep the result of one rule."""
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {note}", flush=True)
        self._verdicts[name] = {"ok": passed, "note": note}
        if not passed:
            self.failed.append(name)
        self.keep("verdicts", self._verdicts)

    def note(self, text: str) -> None:
        """Print what is no verdict."""
        print(f"     {text}", flush=True)

    def keep(self, key: str, value: object) -> None:
        """Write ``value`` into the summary under that key, in the place of an earlier one."""
        self._found[key] = plain(value)
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(json.dumps(self._found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(self._path)
