"""The command line of a container that a person talks to; Docker's client and podman take the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from llama_images.adapters.image_build import csv_field
from llama_images.errors import OutsideError
from llama_images.ports import Session

PIDS: Final = 4096
"""Processes and threads that a container may have: more than any machine's processors, no flood."""

_ENGINE_FAILED: Final = 125
"""Exit code of both clients where the engine, and not the program, failed."""


def session_words(session: Session, name: str, gpu_options: Sequence[str]) -> list[str]:
    """What stands behind the client's name; ``name`` is the container's."""
    words = ["run", "--rm", "--name", name, "--init", "--pull", "never", "--read-only"]
    words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none"]
    words += ["--pids-limit", str(PIDS), "--ulimit", "core=0"]
    if session.interactive:
        words.append("--interactive")
    if session.terminal:
        words.append("--tty")
    if session.user is not None:
        words += ["--user", session.user]
    words += gpu_options
    for key, value in session.environment.items():
        words += ["--env", f"{key}={value}"]
    words += _mounts(session.mounts, "readonly")
    words += _mounts(session.writable)
    return [*words, session.image, *session.arguments]


def raise_for_start(code: int, session: Session) -> None:
    """Raise OutsideError where an exit code says that there was no container; its client has said why."""
    if code == _ENGINE_FAILED:
        raise OutsideError(
            f"the engine did not start a container of {session.image}",
            hint="what it said is above; `invoke doctor` looks for the usual reasons",
        )


def _mounts(mounts: Mapping[Path, str], *flags: str) -> list[str]:
    words = []
    for path, target in mounts.items():
        fields = ["type=bind", csv_field(f"source={path.resolve()}"), csv_field(f"target={target}"), *flags]
        words += ["--mount", ",".join(fields)]
    return words
