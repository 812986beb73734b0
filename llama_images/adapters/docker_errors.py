"""Docker's errors as sentences: what is wrong, and the command that mends it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Final

import docker.errors
import requests.exceptions

from llama_images.adapters.network import causes
from llama_images.errors import OutsideError, TimedOut
from llama_images.ports import RunRequest

ANSWER_SECONDS: Final = 60
"""How long the engine may take for one answer; removing or committing a large layer can be slow."""


def connection_error(error: BaseException, address: str) -> OutsideError:
    """The error for an engine that can't be reached: no socket, nobody listening, or no permission."""
    where = f" at {address}"
    found = list(causes(error))
    text = " ".join(str(cause) for cause in found)
    if any(isinstance(cause, PermissionError) for cause in found) or "Permission denied" in text:
        return OutsideError(
            f"you may not use the Docker Engine{where}: its socket refuses this user",
            hint="Run `sudo usermod -aG docker $USER` and log in again, or use sudo.",
        )
    missing = any(isinstance(c, FileNotFoundError) for c in found) or "No such file or directory" in text
    refused = any(isinstance(c, ConnectionRefusedError) for c in found) or "Connection refused" in text
    if (missing or refused) and os.environ.get("DOCKER_HOST") == address:
        return OutsideError(
            f"the engine at DOCKER_HOST={address} does not answer: "
            + ("there is no socket" if missing else "nothing listens there"),
            hint="Start it, or unset DOCKER_HOST to use this machine's own.",
        )
    if missing:
        if shutil.which("dockerd") is None:
            return OutsideError(
                f"no Docker Engine runs{where}: there is no socket, and dockerd is not installed here",
                hint="`./bootstrap` installs one; for an engine elsewhere set DOCKER_HOST.",
            )
        return OutsideError(
            f"no Docker Engine runs{where}: there is no socket",
            hint="Start it: `sudo systemctl start docker`, or `sudo dockerd` without systemd.",
        )
    if refused:
        if not address.startswith("unix:"):
            return OutsideError(
                f"no Docker Engine answers{where}: nothing listens there",
                hint="Start it on that machine, or correct the address (DOCKER_HOST, `docker context ls`).",
            )
        return OutsideError(
            f"the Docker Engine{where} is dead: its address is there, but nothing listens",
            hint="Start it anew: `sudo systemctl restart docker`, or `sudo dockerd` without systemd.",
        )
    if isinstance(error, requests.exceptions.Timeout) or "timed out" in text:
        return OutsideError(
            f"the Docker Engine{where} gave no answer in {ANSWER_SECONDS} seconds",
            hint="See what it does (`journalctl -u docker`), then try again.",
        )
    return OutsideError(
        f"the Docker Engine{where} can't be reached: {_one_line(str(error))}",
        hint="See `docker version`; DOCKER_HOST and `docker context ls` say which engine is meant.",
    )


@contextlib.contextmanager
def image_must_exist(reference: str) -> Iterator[None]:
    try:
        yield
    except docker.errors.ImageNotFound as error:
        raise OutsideError(
            f"the engine has no image {reference}", hint="Build it, or pull it, first."
        ) from error


def api_error(doing: str, error: docker.errors.APIError) -> OutsideError:
    text = _one_line(str(error.explanation or error))
    if "no space left on device" in text.lower():
        return OutsideError(
            f"the engine can't {doing}: its disk is full (no space left on device)",
            hint="Free space where the engine keeps its images.",
        )
    return OutsideError(f"the engine can't {doing}: {text}")


def start_error(request: RunRequest, error: docker.errors.APIError) -> OutsideError:
    text = _one_line(str(error.explanation or error))
    if "could not select device driver" in text or "nvidia-container" in text:
        return OutsideError(
            f"the engine can't give GPUs to {request.image}: {text}",
            hint="Install the NVIDIA driver and nvidia-container-toolkit, then restart the engine.",
        )
    if "bind source path does not exist" in text:
        return OutsideError(
            f"the engine can't mount a path into {request.image}: {text}",
            hint="The path must exist on the engine's own machine.",
        )
    return api_error(f"run {request.image}", error)


def push_error(reference: str, text: str) -> OutsideError:
    message = f"{reference} was not pushed: {_one_line(text)}"
    lower = text.lower()
    if "server gave http response" in lower:
        return OutsideError(
            message, hint="The registry speaks HTTP: name it as 127.0.0.1, or add it to insecure-registries."
        )
    if "denied" in lower or "unauthorized" in lower or "authentication required" in lower:
        return OutsideError(message, hint="Log in with `docker login` as a user who may push there.")
    if "connection refused" in lower or "no such host" in lower or "timeout" in lower:
        return OutsideError(message, hint="Is the registry up, and its name right?")
    return OutsideError(message)


def too_long(request: RunRequest) -> TimedOut:
    return TimedOut(
        f"{request.image} did not end within {request.timeout:g} seconds; its container was removed"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
