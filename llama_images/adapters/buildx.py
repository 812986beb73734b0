"""buildx's builders: which one builds, what it serves, and what it has to be given.

A builder of the driver "docker" is the engine itself. Any other (docker-container, kubernetes, remote) is a
BuildKit of its own: it loads its result into the engine where it is told to, and sees none of its images.

``LLAMA_IMAGES_BUILDX_ARGS`` adds options to ``docker buildx build``, read as a shell would split them:
"--cache-from type=registry,ref=…" and "--cache-to …", where builds begin without a cache.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_images.adapters.image_build import common_arguments
from llama_images.adapters.oci_layout import TAG
from llama_images.errors import OutsideError, UsageError
from llama_images.ports import BuildRequest, Programs, Reporter
from llama_images.words import last_line

EXTRA_VARIABLE: Final = "LLAMA_IMAGES_BUILDX_ARGS"

_ANSWER_SECONDS: Final = 60
_START_SECONDS: Final = 600
"""A builder in a container of its own may have to be pulled first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Builder:
    """What `docker buildx inspect` tells of a builder."""

    name: str
    driver: str
    platforms: tuple[str, ...]
    """What its nodes serve, in its own order; empty where it does not say."""

    @property
    def is_the_engine(self) -> bool:
        """Whether it builds inside of the engine, from the engine's images and into them."""
        return self.driver == "docker"


def choose_builder(
    programs: Programs, docker: Path, name: str | None, environment: Mapping[str, str], reporter: Reporter
) -> Builder:
    """The builder called ``name``, started where it is not running; without a name, the engine's own.

    Raises OutsideError where there is none of that name, or it does not start.
    """
    argv = [str(docker), "buildx", "inspect"]
    if name is None:
        finished = programs.run(argv, env=environment, timeout=_ANSWER_SECONDS)
        current = parse_builder(finished.text) if finished.returncode == 0 else None
        if current is None or current.is_the_engine:
            return Builder(name="", driver="docker", platforms=())
        reporter.warn(
            f"the current buildx builder {current.name} ({current.driver}) is not the engine's own, which "
            f"builds unless --builder {current.name} is given"
        )
        return Builder(name="default", driver="docker", platforms=())
    finished = programs.run([*argv, "--bootstrap", name], env=environment, timeout=_START_SECONDS)
    builder = parse_builder(finished.text) if finished.returncode == 0 else None
    if builder is None:
        words = last_line(finished.error_text, otherwise="buildx gave no reason").removeprefix("ERROR: ")
        raise OutsideError(
            f"the builder {name!r} can't be used: {words}",
            hint="`docker buildx ls` lists the builders, `docker buildx create` makes one",
        )
    return builder


def parse_builder(text: str) -> Builder | None:
    """The builder that `docker buildx inspect` describes; None where the text has another form."""
    name = re.search(r"^Name:[ \t]+(\S+)", text, re.MULTILINE)
    driver = re.search(r"^Driver:[ \t]+(\S+)", text, re.MULTILINE)
    if name is None or driver is None:
        return None
    platforms: dict[str, None] = {}
    for line in re.findall(r"^Platforms:[ \t]+(.+)$", text, re.MULTILINE):
        # A star marks what a node was set to, as opposed to what it has found out.
        platforms.update(dict.fromkeys(re.findall(r"[a-z0-9]+/[a-z0-9/]+", line)))
    return Builder(name=name[1], driver=driver[1], platforms=tuple(platforms))


def build_arguments(
    builder: Builder,
    request: BuildRequest,
    *,
    engine_platform: str,
    layouts: Mapping[str, Path],
    extra: Sequence[str] = (),
) -> list[str]:
    """The words after `docker` that build on ``builder``; the result goes to the engine.

    ``layouts`` are folders in OCI's image layout, by the name of the engine's image that each one holds;
    ``extra`` are options that the environment adds.
    """
    words = ["buildx", "build", "--load"]
    if builder.name:
        words += ["--builder", builder.name]
    words.append("--progress=plain")
    # What a builder takes where no platform is named is the engine's platform on the engine alone.
    words += common_arguments(request, default_platform=engine_platform if builder.is_the_engine else None)
    for reference, folder in layouts.items():
        words += ["--build-context", f"{reference}=oci-layout://{folder}:{TAG}"]
    return [*words, *extra, str(request.context)]


def extra_arguments(environment: Mapping[str, str]) -> list[str]:
    """The options in ``LLAMA_IMAGES_BUILDX_ARGS``, split as a shell would. Raises UsageError."""
    try:
        return shlex.split(environment.get(EXTRA_VARIABLE, ""))
    except ValueError as error:
        raise UsageError(f"{EXTRA_VARIABLE} can't be split into words: {error}") from error


def served(builder: Builder, engine_platform: str) -> tuple[str, ...]:
    """Platforms that can be built for: the engine's own first, where the builder serves that."""
    if builder.is_the_engine or not builder.platforms:
        return (engine_platform,)
    return tuple(sorted(builder.platforms, key=lambda platform: platform != engine_platform))


def needed_images(builder: Builder, request: BuildRequest) -> Sequence[str]:
    """Images of the engine that have to be handed to the builder."""
    return () if builder.is_the_engine else request.local_images
