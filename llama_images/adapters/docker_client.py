"""Which ``docker`` program builds.

A machine may have several on PATH, and not each of them can build: a client from 23 on needs the buildx
plugin, an older one talks to the engine's BuildKit itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_images.errors import OutsideError
from llama_images.ports import Programs

BUILDX_HINT: Final = (
    "Install buildx (package docker-buildx of Debian and Ubuntu, docker-buildx-plugin of Docker's own "
    "repository), or a docker client older than 23."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DockerClient:
    """A docker program that can build."""

    path: Path
    version: str
    buildx: str | None
    """Version of its buildx, or None where the client itself talks to the engine's BuildKit."""
    passed_over: tuple[str, ...]
    """Other docker programs on PATH, each with the reason why it was not taken."""


def choose_client(programs: Programs) -> DockerClient:
    """The first docker program on PATH with buildx, else the first one older than 23.

    Raises OutsideError, naming every program found, where none can build.
    """
    found = programs.find("docker")
    if not found:
        raise OutsideError(
            "no docker program is on PATH", hint="Install one (package docker.io, or docker-cli)."
        )
    versions = {path: _client_version(programs, path) for path in found}
    passed_over: list[str] = []
    older: Path | None = None
    for path in found:
        buildx = _buildx_version(programs, path)
        if buildx is not None:
            others = [
                f"{other} {versions[other]}: one with buildx goes first" for other in found if other != path
            ]
            return DockerClient(
                path=path, version=versions[path], buildx=buildx, passed_over=tuple(passed_over or others)
            )
        major = re.match(r"\d+", versions[path])
        if major is None:
            passed_over.append(f"{path}: it does not tell its version")
        elif int(major[0]) >= 23:
            passed_over.append(f"{path} {versions[path]}: it has no buildx")
        elif older is None:
            older = path
        else:
            passed_over.append(f"{path} {versions[path]}: another one comes first on PATH")
    if older is None:
        raise OutsideError(
            f"no docker program on PATH can build with BuildKit ({'; '.join(passed_over)})", hint=BUILDX_HINT
        )
    return DockerClient(path=older, version=versions[older], buildx=None, passed_over=tuple(passed_over))


def _client_version(programs: Programs, path: Path) -> str:
    finished = programs.run([str(path), "--version"], timeout=30)
    match = re.search(r"version ([^\s,]+)", finished.text)
    return match[1] if match else "of unknown version"


def _buildx_version(programs: Programs, path: Path) -> str | None:
    finished = programs.run([str(path), "buildx", "version"], timeout=30)
    if finished.returncode != 0:
        return None
    words = finished.text.split()
    return words[1] if len(words) > 1 else "of unknown version"
