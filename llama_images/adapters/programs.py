"""The program under test, in an image or as a bare binary: both ways to run it are alike to the workflows."""

from __future__ import annotations

import time
from pathlib import Path

from llama_images.ports import Engine, ProgramRun, Programs, RunRequest, RunResult


class ImageProgram:
    """Implements ``ports.Program`` with an image, in a container as strict as the smoke test's."""

    def __init__(self, engine: Engine, reference: str) -> None:
        self._engine = engine
        self._reference = reference

    def place(self, file: Path) -> str:
        """Below /models, under the file's own name."""
        return f"/models/{file.name}"

    def run(self, request: ProgramRun) -> RunResult:
        """Run it to its end, see ``ports.Program.run``."""
        return self._engine.run(
            RunRequest(
                image=self._reference,
                arguments=request.arguments,
                environment=request.environment,
                mounts={file: self.place(file) for file in request.files},
                stdin=request.stdin,
                gpus=("all",) if request.gpus else (),
                user="10001",
                init=request.interrupt_on is not None,
                interrupt_on=request.interrupt_on,
                timeout=request.timeout,
            )
        )


class BareProgram:
    """Implements ``ports.Program`` with a binary of this machine, for machines without an engine."""

    def __init__(self, programs: Programs, binary: Path) -> None:
        self._programs = programs
        self._binary = binary

    def place(self, file: Path) -> str:
        """Where it lies."""
        return str(file)

    def run(self, request: ProgramRun) -> RunResult:
        """Run it to its end, see ``ports.Program.run``; without ``interrupt_on``, which needs an engine."""
        if request.interrupt_on is not None:
            raise NotImplementedError("a bare program is not interrupted")
        hidden = {} if request.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        started = time.monotonic()
        finished = self._programs.run(
            [str(self._binary), *request.arguments],
            env={**hidden, **request.environment},
            stdin=request.stdin,
            timeout=request.timeout,
        )
        return RunResult(
            exit_code=finished.returncode,
            stdout=finished.stdout,
            stderr=finished.stderr,
            seconds=time.monotonic() - started,
        )
