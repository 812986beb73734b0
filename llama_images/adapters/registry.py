"""A registry on this machine, for trying things and for tests.

``LocalRegistry`` runs Debian's program ``docker-registry`` for as long as its context lasts: on loopback,
on a free port, with a folder of its own. Docker and podman take a registry on 127.0.0.1 without TLS.
"""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import requests

from llama_images.adapters.process import termination_as_interrupt
from llama_images.errors import OutsideError
from llama_images.words import last_line

PROGRAM = "docker-registry"
START_SECONDS = 15.0


class Running(Protocol):
    """A program that was started and goes on."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """The exit code, or None while the program runs."""

    def stop(self) -> None:
        """End the program and everything that it started, and wait. Does nothing the second time."""


class Starter(Protocol):
    """Starts programs that outlive the call."""

    def find(self, name: str) -> tuple[Path, ...]: ...

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> Running:
        """Start a program in a process group of its own; both of its streams go to ``log``."""


class LocalRegistry:
    """A registry for the length of a ``with`` block.

    ``folder`` holds the images and stays; give a temporary one to throw them away. Raises OutsideError,
    naming the package, where the program is missing, and with its last words where it does not answer.
    """

    def __init__(self, programs: Starter, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._host = ""

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``, as it stands in front of an image's name."""
        return self._host

    @property
    def url(self) -> str:
        return f"http://{self._host}"

    def __enter__(self) -> Self:
        if not self._programs.find(PROGRAM):
            raise OutsideError(
                f"the program {PROGRAM} is not installed",
                hint="install Debian's package docker-registry; `./bootstrap` does",
            )
        with contextlib.ExitStack() as stack:
            stack.enter_context(termination_as_interrupt())  # a cancelled job must not leave it running
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="registry-")))
            # Another program may take the port between our look and the registry's start.
            for last_try in (False, False, True):
                try:
                    self._start(scratch, stack)
                except _PortTaken:
                    if last_try:
                        raise OutsideError(f"{PROGRAM} found no free port", hint="try again") from None
                else:
                    break
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, scratch: Path, stack: contextlib.ExitStack) -> None:
        self._host = f"127.0.0.1:{_free_port()}"
        config, log = scratch / "config.json", scratch / "log"
        # The program reads YAML, of which JSON is a part: no quoting to get wrong.
        config.write_text(json.dumps(_configuration(self._folder, self._host)))
        running = self._programs.start([PROGRAM, "serve", str(config)], log=log)
        stack.callback(running.stop)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            code = running.poll()
            if code is None and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            said = log.read_text(errors="replace") if log.exists() else ""
            if code is not None and "address already in use" in said:
                raise _PortTaken
            state = f"ended with code {code}" if code is not None else f"is silent after {START_SECONDS:g} s"
            words = last_line(said, otherwise="it printed nothing")[:300]
            raise OutsideError(
                f"{PROGRAM} {state}: {words}", hint="run 'docker-registry serve' by hand to see why"
            )

    def _answers(self) -> bool:
        try:
            with requests.Session() as session:
                session.trust_env = False  # a proxy can't reach this machine's loopback
                return session.get(f"{self.url}/v2/", timeout=2).status_code == 200
        except requests.RequestException:
            return False


class _PortTaken(Exception):  # noqa: N818 - a signal within this module
    pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _configuration(folder: Path, host: str) -> Mapping[str, object]:
    return {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(folder.absolute())},
            "delete": {"enabled": True},
        },
        "http": {"addr": host},
    }
