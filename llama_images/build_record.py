"""What is known of a build once it is done: everything that went into it, by name and hash. Pure.

The record lies in the cache, not in the image: it names the builder and the time, which would make equal
images differ. An image's label holds the digest over the record's parts and so says which record is its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


def input_digest(parts: Mapping[str, object]) -> str:
    """SHA-256 over everything that a build reads, by name; equal inputs need no second build."""
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRecord:
    """One build of one image."""

    parts: Mapping[str, Any]
    """``dockerfile``: its text. ``common``: SHA-256 of each script by name. ``source``: tree hash with the
    series.
    ``paths``: what of it is read. ``base``: the base image's layers, or null. ``platform``."""
    engine: str
    """What built it: "docker 20.10.24", without the machine's name."""
    started: str | None
    """UTC, as in RFC 3339; null where the image was found finished."""
    finished: str | None

    @property
    def inputs(self) -> str:
        """What the image's label holds."""
        return input_digest(self.parts)

    @property
    def dockerfile_sha256(self) -> str:
        return hashlib.sha256(str(self.parts["dockerfile"]).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        return {
            "parts": dict(self.parts),
            "engine": self.engine,
            "started": self.started,
            "finished": self.finished,
        }

    @classmethod
    def parse(cls, text: str | bytes) -> Self | None:
        """The record in a file; None where it is none, as after a cut."""
        try:
            value = json.loads(text)
            parts = value["parts"]
            if not {"dockerfile", "common", "source", "platform"} <= parts.keys():
                return None
            return cls(
                parts=parts, engine=str(value["engine"]), started=value["started"], finished=value["finished"]
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
