"""Which container engine to use: the one that was named, or the first that answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from llama_images.adapters.docker import DockerEngine
from llama_images.adapters.podman import PodmanEngine
from llama_images.errors import OutsideError, UsageError
from llama_images.located_yaml import did_you_mean, listed, shown
from llama_images.ports import Programs, Reporter, SessionEngine

ENGINES: Final = ("docker", "podman")
"""Names of the engines, in the order in which they are tried."""


def choose_engine(
    name: str | None, programs: Programs, reporter: Reporter, builder: str | None = None
) -> SessionEngine:
    """The engine called ``name``, or the first that answers where there is no name.

    ``builder`` is a buildx builder; only Docker has them. Raises UsageError for a name that is no engine's,
    OutsideError, with what was tried, where none answers.
    """
    makers: Mapping[str, Callable[[], SessionEngine]] = {
        "docker": lambda: DockerEngine(programs, reporter, builder=builder),
        "podman": lambda: PodmanEngine(programs, reporter),
    }
    if name is not None and name not in makers:
        raise UsageError(
            f"{shown(name)} is not a container engine{did_you_mean(name, ENGINES)}",
            hint=f"--engine takes {listed(ENGINES, 'or')}",
        )
    if builder is not None and name == "podman":
        raise UsageError("podman has no builders", hint="Leave --builder out, or use docker with buildx.")
    if builder is not None:
        name = "docker"
    if name is not None:
        engine = makers[name]()
        engine.info()
        return engine
    tried: list[str] = []
    hints: list[str] = []
    for candidate in ENGINES:
        try:
            engine = makers[candidate]()
            engine.info()
        except OutsideError as error:
            tried.append(f"{candidate}: {error.message}")
            hints += [error.hint] if error.hint else []
        else:
            return engine
    raise OutsideError(
        f"no container engine answers ({'; '.join(tried)})",
        # An address that somebody set is theirs to mend: bootstrap leaves it alone too.
        hint=" ".join(
            hints[:1] if os.environ.get("DOCKER_HOST") else ["`./bootstrap` installs one.", *hints[:1]]
        ),
    )
