"""The program under test as a bare binary of this machine, for work on patches where there is no engine."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from llama_images.errors import UsageError
from llama_images.ports import ProgramRun, Programs, RunResult


class HostProgram:
    """Implements ``ports.Program`` with a binary that is started as it is.

    It runs with this user's rights and network. ``interrupt_on`` is not served: how a process ends that a
    terminal interrupts is the shell's matter, not the binary's.
    """

    def __init__(self, programs: Programs, binary: Path) -> None:
        """Raises UsageError where ``binary`` is no program."""
        self._programs = programs
        self._binary = binary.absolute()
        if not self._binary.is_file():
            raise UsageError(f"--binary {binary}: there is no such file")
        if not os.access(self._binary, os.X_OK):
            raise UsageError(f"--binary {binary}: it is not executable", hint="chmod +x it")

    @property
    def name(self) -> str:
        return self._binary.name

    def sha256(self) -> str:
        with self._binary.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def place(self, file: Path) -> str:
        """The file's own path."""
        return str(file.absolute())

    def run(self, request: ProgramRun) -> RunResult:
        """See ``ports.Program.run``; the exit code of a program that a signal ended is negative."""
        if request.interrupt_on is not None:
            raise ValueError("a bare binary is not interrupted")
        started = time.monotonic()
        finished = self._programs.run(
            [str(self._binary), *request.arguments],
            env=request.environment,
            stdin=request.stdin,
            timeout=request.timeout,
        )
        return RunResult(
            exit_code=finished.returncode,
            stdout=finished.stdout,
            stderr=finished.stderr,
            seconds=time.monotonic() - started,
        )
