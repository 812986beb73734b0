"""A registry on this machine, and questions to any registry that speaks the OCI distribution protocol.

``LocalRegistry`` runs Debian's program ``docker-registry`` for as long as its context lasts: on loopback,
on a free port, with a folder of its own. Docker and podman take a registry on 127.0.0.1 without TLS.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urljoin, urlsplit

import requests

from llama_images.adapters.network import LOOPBACK, reason
from llama_images.adapters.process import termination_as_interrupt
from llama_images.errors import OutsideError
from llama_images.ports import HeldImage
from llama_images.words import last_line

PROGRAM = "docker-registry"
START_SECONDS = 15.0

_CHUNK = 1 << 20


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
            return _get(f"{self.url}/v2/", accept="*/*", timeout=2).status_code == 200
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a registry answers for a reference."""

    digest: str
    """"sha256:…", of the bytes that came."""
    media_type: str
    content: Mapping[str, Any]
    raw: bytes


ACCEPTED = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class RegistryClient:
    """Reads a registry. ``base_url`` is its address with the scheme: ``http://127.0.0.1:5000``.

    Every method raises OutsideError, in one line, where the registry can't be reached, refuses, lacks what
    was asked for, or sends bytes that do not have the digest it states.
    """

    def __init__(self, base_url: str, *, timeout: float = 30.0) -> None:
        self._base = base_url.rstrip("/")
        self._name = urlsplit(base_url).netloc or base_url
        self._timeout = timeout

    def manifest(self, repository: str, reference: str) -> Manifest:
        """A manifest or an index by tag or by digest; ``repository`` is the name without host and tag."""
        what = f"{repository}{'@' if ':' in reference else ':'}{reference}"
        answer = self._ask(f"/v2/{repository}/manifests/{reference}", what, accept=", ".join(ACCEPTED))
        found = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        stated = answer.headers.get("Docker-Content-Digest", found)
        wanted = reference if reference.startswith("sha256:") else stated
        if {stated, wanted} != {found}:
            raise OutsideError(
                f"{self._name} sent {found} for {what} and said {stated}",
                hint="something on the way alters it: try without a proxy",
            )
        content = self._json(answer, what)
        media_type = answer.headers.get("Content-Type", "").partition(";")[0] or str(
            content.get("mediaType", "")
        )
        return Manifest(digest=found, media_type=media_type, content=content, raw=answer.content)

    def blob(self, repository: str, digest: str) -> bytes:
        """A whole blob, checked against its digest; meant for configurations, not for layers."""
        answer = self._ask(f"/v2/{repository}/blobs/{digest}", f"{repository}@{digest}")
        found = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        if found != digest:
            raise OutsideError(f"{self._name} sent {found} for {repository}@{digest}", hint="fetch it again")
        return answer.content

    def read_image(self, repository: str, reference: str) -> HeldImage:
        """Read an image through, see ``ports.RegistryReader``; no layer is held as a whole."""
        top = self.manifest(repository, reference)
        manifests = [top]
        blobs = compressed = 0
        try:
            for entry in top.content.get("manifests", ()):
                manifests.append(self.manifest(repository, str(entry["digest"])))
                self._compare_size(f"{repository}@{entry['digest']}", len(manifests[-1].raw), entry["size"])
            for manifest in manifests:
                if manifest is top and "manifests" in top.content:
                    continue  # an index has no blobs of its own
                config, layers = manifest.content["config"], manifest.content["layers"]
                for part in (config, *layers):
                    self._read_blob(repository, str(part["digest"]), part["size"])
                blobs += 1 + len(layers)
                compressed += sum(layer["size"] for layer in layers)
        except (KeyError, TypeError):
            raise OutsideError(
                f"what {self._name} holds as {repository} {reference} is no image",
                hint="check the name and the tag",
            ) from None
        return HeldImage(digest=top.digest, blobs=blobs, compressed_bytes=compressed)

    def _read_blob(self, repository: str, digest: str, size: int) -> None:
        what = f"{repository}@{digest}"
        answer = self._ask(f"/v2/{repository}/blobs/{digest}", what, stream=True)
        found, count = hashlib.sha256(), 0
        with answer:
            try:
                for chunk in answer.iter_content(_CHUNK):
                    found.update(chunk)
                    count += len(chunk)
            except requests.RequestException as error:
                raise self._unreachable(error) from None
        self._compare_size(what, count, size)
        if digest != f"sha256:{found.hexdigest()}":
            raise OutsideError(
                f"{self._name} sent sha256:{found.hexdigest()} for {what}", hint="fetch it again"
            )

    def _compare_size(self, what: str, found: int, stated: int) -> None:
        if found != stated:
            raise OutsideError(
                f"{self._name} sent {found} bytes for {what}, of which {stated} were stated",
                hint="fetch it again",
            )

    def tags(self, repository: str) -> tuple[str, ...]:
        """Every tag of a repository, sorted; none where the repository is unknown."""
        tags: list[str] = []
        path = f"/v2/{repository}/tags/list"
        for _ in range(1000):  # pages
            try:
                answer = self._ask(path, repository)
            except _Missing:
                return ()
            names = self._json(answer, repository).get("tags") or []
            tags += [str(name) for name in names]
            following = answer.links.get("next", {}).get("url")
            if not following:
                break
            there = urlsplit(urljoin(f"{self._base}{path}", following))
            path = f"{there.path}?{there.query}"
        return tuple(sorted(tags))

    def _ask(self, path: str, what: str, *, accept: str = "*/*", stream: bool = False) -> requests.Response:
        try:
            answer = _get(f"{self._base}{path}", accept=accept, timeout=self._timeout, stream=stream)
        except requests.RequestException as error:
            raise self._unreachable(error) from None
        if answer.status_code != 200:
            answer.close()  # the body of a refusal is not read where it would be streamed
        if answer.status_code == 404:
            raise _Missing(f"{self._name} has no {what}", hint="check the name and the tag")
        if answer.status_code != 200:
            raise OutsideError(
                f"{self._name} answered {answer.status_code} {answer.reason} for {what}",
                hint="log in first" if answer.status_code in (401, 403) else "look at the registry's log",
            )
        return answer

    def _unreachable(self, error: requests.RequestException) -> OutsideError:
        return OutsideError(
            f"the registry {self._name} can't be reached: {reason(error)}",
            hint="check its address, the network and the proxy settings",
        )

    def _json(self, answer: requests.Response, what: str) -> Mapping[str, Any]:
        try:
            content = answer.json()
        except requests.JSONDecodeError:
            content = None
        if not isinstance(content, dict):
            raise OutsideError(f"{self._name} sent no JSON object for {what}", hint="is it a registry?")
        return content


class _Missing(OutsideError):  # noqa: N818 - says what is wrong, as CheckFailed does
    """The registry answers, and does not have it."""


def _get(url: str, *, accept: str, timeout: float, stream: bool = False) -> requests.Response:
    with requests.Session() as session:
        if urlsplit(url).hostname in LOOPBACK:
            session.trust_env = False  # a proxy can't reach this machine's loopback
        return session.get(url, headers={"Accept": accept}, timeout=timeout, stream=stream)
