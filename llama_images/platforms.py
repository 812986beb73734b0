"""The platforms that images are built for, by the names that engines and kernels give them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Platform = Literal["linux/amd64", "linux/arm64"]

MACHINES: Final[Mapping[Platform, str]] = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
"""What `uname -m` prints on each: scripts of a build and Python's wheels go by it."""

_ARCHITECTURES: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64"}


def platform_of(machine: str, *, system: str = "linux") -> str:
    """The platform of a machine called "x86_64" or "amd64"; one that no image is built for too."""
    return f"{system}/{_ARCHITECTURES.get(machine, machine)}"
