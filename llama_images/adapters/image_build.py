"""Runs a build program of any engine and turns its output into a summary or one clear error."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llama_images.buildlog import BuildLog, BuildSummary, Failure
from llama_images.errors import OutsideError, UsageError
from llama_images.ports import BuildRequest, Programs

_STEP_WIDTH = 100


def check_inputs(request: BuildRequest) -> None:
    """Raise UsageError where a file that the build needs is missing."""
    if not request.dockerfile.is_file():
        raise UsageError(
            f"{request.dockerfile} does not exist", hint="`invoke render` writes the Dockerfiles."
        )
    if not request.context.is_dir():
        raise UsageError(f"the build context {request.context} is not a folder")
    for identifier, path in request.secrets.items():
        if not path.is_file():
            raise UsageError(f"build secret {identifier!r}: {path} does not exist")


def common_arguments(request: BuildRequest, *, default_platform: str | None) -> list[str]:
    """The options that docker and podman share, without the context.

    ``default_platform`` is what is built where none is named; None where that is not known.
    """
    arguments = ["--file", str(request.dockerfile), "--tag", request.tag]
    if request.platform != default_platform:
        arguments += ["--platform", request.platform]
    for name, value in request.labels.items():
        arguments += ["--label", f"{name}={value}"]
    for name in request.build_args:
        # The value comes by the environment (run_build): ps shows arguments, and it may hold a password.
        arguments += ["--build-arg", name]
    for identifier, path in request.secrets.items():
        arguments += ["--secret", f"id={identifier},{csv_field(f'src={path.resolve()}')}"]
    return arguments


def run_build(
    programs: Programs,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    request: BuildRequest,
    on_progress: Callable[[str], None],
) -> BuildSummary:
    """Run ``argv`` and read its output. Raises OutsideError, see ``failure_to_error``."""
    parsed = BuildLog()
    started = time.monotonic()
    said = ""

    def read(line: str) -> None:
        nonlocal said
        parsed.feed(line, at=time.monotonic() - started)
        text = parsed.progress()
        if text != said:
            said = text
            on_progress(text)

    finished = programs.run(argv, env={**env, **request.build_args}, on_line=read, log=request.log)
    if finished.returncode != 0:
        raise failure_to_error(
            parsed.failure(), tag=request.tag, log=request.log, returncode=finished.returncode
        )
    return parsed.summary(time.monotonic() - started)


def failure_to_error(failure: Failure, *, tag: str, log: Path, returncode: int) -> OutsideError:
    """The error for a failed build: what failed, where, its last lines, and what to do."""
    hints = [f"The whole log: {log}."]
    where = f" at step {_shorten(failure.step)}" if failure.step else ""
    code = f" (exit code {failure.exit_code})" if failure.exit_code is not None else ""
    if failure.disk_full:
        message = f"the build of {tag} failed{where}: the engine's disk is full (no space left on device)"
        hints.insert(0, "Free space where the engine keeps its images, then build again.")
    elif failure.killed:
        message = f"the build of {tag} failed{where}{code}: the kernel ended a compiler, out of memory"
        jobs = f" ({failure.jobs} here)" if failure.jobs else ""
        hints.insert(0, f"Give the engine more memory: it decides how many jobs run{jobs}.")
    elif failure.unreachable:
        message = f"the build of {tag} stopped{where}: the container engine does not answer any more"
        hints.insert(0, "See why the engine ended (`journalctl -u docker`), start it and build again.")
    elif failure.step or failure.reason:
        message = f"the build of {tag} failed{where}{code}"
    else:
        message = f"the build of {tag} failed: its program ended with exit code {returncode} and said nothing"
    if failure.clipped:
        hints.append("The engine left out part of this step's output, since it was long.")
    lines = failure.last_lines or ((failure.reason,) if failure.reason else ())
    return OutsideError("\n".join([message, *(f"  {line}" for line in lines)]), hint=" ".join(hints))


def _shorten(step: str) -> str:
    step = " ".join(step.split())
    return step if len(step) <= _STEP_WIDTH else step[: _STEP_WIDTH - 1] + "…"


def csv_field(text: str) -> str:
    """The engines read ``--secret`` and ``--mount`` as CSV: a comma or quote in a path needs quoting."""
    if "," not in text and '"' not in text:
        return text
    doubled = text.replace('"', '""')
    return f'"{doubled}"'
