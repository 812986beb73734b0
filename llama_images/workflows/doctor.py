"""``invoke doctor``: looks at a machine, and changes nothing on it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from llama_images.diagnosis import (
    CA_VARIABLES,
    IMAGE_BYTES,
    MODEL_BYTES,
    Diagnosis,
    EngineState,
    Machine,
    Room,
    Trial,
    diagnose,
    image_for,
)
from llama_images.errors import OutsideError
from llama_images.matrix import Matrix
from llama_images.ports import GpuSurveyor, Programs, Reach, Reporter
from llama_images.selection import local_reference
from llama_images.words import last_line

HUB: Final = "https://huggingface.co"
"""Where models are fetched from where ``HF_ENDPOINT`` does not say otherwise."""

_PATIENCE: Final = 20.0
"""Seconds that a program gets to answer."""
_TRIAL: Final = 90.0
"""Seconds that the container gets."""


def examine(
    *,
    matrix: Matrix,
    surveyor: GpuSurveyor,
    programs: Programs,
    reach: Reach,
    reporter: Reporter,
    environment: Mapping[str, str],
    platform: str,
    models: Path,
    bus: Sequence[str],
    cdi: Sequence[Path],
    network: bool = True,
) -> Diagnosis:
    """Look at everything and judge it; what fails is a finding and no error.

    ``models`` is where models go. ``bus`` and ``cdi`` are NVIDIA's cards on the bus and the files that tell
    engines of them.
    """
    with reporter.activity("look at this machine") as activity:
        activity.update("GPUs")
        try:
            survey, driver_error = surveyor.survey(), ""
        except OutsideError as error:
            survey, driver_error = None, error.message
        activity.update("container engine")
        engine, engine_error = _engine(programs)
        machine = Machine(
            platform=platform,
            survey=survey,
            driver_error=driver_error,
            bus=tuple(bus),
            environment=environment,
            engine=engine,
            engine_error=engine_error,
            toolkit=_toolkit(programs),
            cdi=tuple(cdi),
            rooms=_rooms(models, engine),
            missing_certificates=tuple(
                name
                for name in CA_VARIABLES
                if environment.get(name) and not Path(environment[name]).exists()
            ),
        )
        reference = local_reference(image_for(machine, matrix))
        if engine is not None and survey is not None and survey.gpus:
            activity.update("a container with all GPUs")
            machine = dataclasses.replace(machine, trial=_trial(programs, engine, reference))
        if network:
            activity.update("network")
            urls = [source.repository for source in matrix.sources.values()]
            urls.append(environment.get("HF_ENDPOINT") or HUB)
            machine = dataclasses.replace(machine, unreached={url: reach.why_not(url) for url in urls})
    return diagnose(machine, matrix)


def _answer(programs: Programs, argv: Sequence[str], *, timeout: float = _PATIENCE) -> tuple[int, str, str]:
    try:
        finished = programs.run(argv, timeout=timeout)
    except OutsideError as error:
        return -1, "", error.message
    return finished.returncode, finished.text, finished.error_text


def _engine(programs: Programs) -> tuple[EngineState | None, str]:
    """The first engine that answers, and why those before it don't."""
    reasons = []
    names: tuple[Literal["docker", "podman"], ...] = ("docker", "podman")
    for name in names:
        if not programs.find(name):
            continue
        form = "{{json .}}" if name == "docker" else "json"
        code, text, errors = _answer(programs, [name, "info", "--format", form])
        try:
            found = json.loads(text) if code == 0 else None
        except ValueError:
            found = None
        state = _engine_state(name, found) if isinstance(found, dict) else None
        if state is not None:
            return state, ""
        reasons.append(f"{name} is installed and does not answer: {last_line(errors, otherwise='no word')}")
    return None, "; ".join(reasons) or "no docker or podman on PATH"


def _engine_state(name: Literal["docker", "podman"], info: Mapping[str, object]) -> EngineState | None:
    if name == "docker":
        version, root = info.get("ServerVersion"), info.get("DockerRootDir")
        if not version:
            return None  # the client's own account, without an engine behind it
        runtimes = info.get("Runtimes")
        return EngineState(
            name=name,
            version=str(version),
            nvidia_runtime=isinstance(runtimes, dict) and "nvidia" in runtimes,
            root=Path(str(root)) if root else None,
        )
    versions, store = info.get("version"), info.get("store")
    return EngineState(
        name=name,
        version=str(versions.get("Version", "")) if isinstance(versions, dict) else "",
        nvidia_runtime=False,
        root=Path(str(store["graphRoot"])) if isinstance(store, dict) and "graphRoot" in store else None,
    )


def _toolkit(programs: Programs) -> str | None:
    if not programs.find("nvidia-ctk"):
        return None
    _, text, _ = _answer(programs, ["nvidia-ctk", "--version"])
    found = re.search(r"\d+\.\d+\.\d+\S*", text)
    return found[0] if found else "of unknown version"


def _trial(programs: Programs, engine: EngineState, image: str) -> Trial | None:
    """Let the image list its devices; None where the engine has no such image."""
    code, _, _ = _answer(programs, [engine.name, "image", "inspect", image])
    if code != 0:
        return None
    gpus = ["--device", "nvidia.com/gpu=all"] if engine.name == "podman" else ["--gpus", "all"]
    code, text, errors = _answer(
        programs,
        [engine.name, "run", "--rm", "--network", "none", *gpus, image, "--list-devices"],
        timeout=_TRIAL,
    )
    return Trial(image=image, exit_code=code, output=text + errors)


def _rooms(models: Path, engine: EngineState | None) -> tuple[Room, ...]:
    wanted = [("a model", models, MODEL_BYTES)]
    if engine is not None and engine.root is not None:
        wanted.append(("images", engine.root, IMAGE_BYTES))
    rooms = []
    for purpose, path, needed in wanted:
        there = next((folder for folder in (path, *path.parents) if folder.exists()), None)
        # An engine's folder that does not show here belongs to another machine.
        if there is None or (purpose == "images" and there != path):
            continue
        free = shutil.disk_usage(there).free
        rooms.append(Room(purpose=purpose, path=path, free_bytes=free, needed_bytes=needed))
    return tuple(rooms)
