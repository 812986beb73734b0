"""Docker Engine: docker-py for everything but builds, which go through a client program.

docker-py can't drive BuildKit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import docker
import docker.constants
import docker.errors
import docker.types
import requests.exceptions
import urllib3.exceptions
from docker.context import ContextAPI
from docker.utils import parse_repository_tag

from llama_images.adapters.buildx import (
    Builder,
    build_arguments,
    choose_builder,
    extra_arguments,
    needed_images,
    served,
)
from llama_images.adapters.docker_client import BUILDX_HINT, DockerClient, choose_client
from llama_images.adapters.docker_errors import (
    ANSWER_SECONDS,
    api_error,
    connection_error,
    image_must_exist,
    push_error,
    start_error,
    too_long,
)
from llama_images.adapters.docker_streams import Attached
from llama_images.adapters.image_archive import read_layers
from llama_images.adapters.image_build import check_inputs, common_arguments, run_build
from llama_images.adapters.oci_layout import write_layout
from llama_images.adapters.process import hand_over, termination_as_interrupt
from llama_images.adapters.sessions import raise_for_start, session_words
from llama_images.buildlog import BuildSummary
from llama_images.errors import OutsideError
from llama_images.platforms import platform_of
from llama_images.ports import (
    BuildRequest,
    EngineInfo,
    ImageInfo,
    Layer,
    Programs,
    Reporter,
    RunRequest,
    RunResult,
    Session,
)


class DockerEngine:
    """Implements ``ports.Engine`` with a Docker Engine.

    ``host`` is an address such as "unix:///run/user/1000/docker.sock"; without it DOCKER_HOST and the current
    context decide, as they do for the client program. ``builder`` is a buildx builder's name.
    """

    name: Final = "docker"

    def __init__(
        self, programs: Programs, reporter: Reporter, host: str | None = None, *, builder: str | None = None
    ) -> None:
        self._programs = programs
        self._reporter = reporter
        self._host = host
        self._builder_name = builder
        self._api_version: str | None = None

    # --- what there is ---

    def info(self) -> EngineInfo:
        """Raises OutsideError, with what to do, where no engine answers or no client can build."""
        with self._connected("info") as client:
            info = client.info()
        chosen = self._client
        builder = self._builder if self._builder_name is not None else None
        platform = platform_of(str(info.get("Architecture", "")), system=info.get("OSType") or "linux")
        how = f"buildx {chosen.buildx}" if chosen.buildx else "BuildKit through the client"
        if builder is not None:
            how += f", builder {builder.name} of the driver {builder.driver}"
        return EngineInfo(
            name=self.name,
            version=str(info.get("ServerVersion", "")),
            client=f"{chosen.path} {chosen.version}",
            builder=how,
            cpus=int(info.get("NCPU", 0)),
            memory_bytes=int(info.get("MemTotal", 0)),
            platform=platform,
            builds_for=(platform,) if builder is None else served(builder, platform),
        )

    def describe(self) -> str:
        """One line: the engine, the client and builder that were chosen, and why others were not."""
        info = self.info()
        text = (
            f"Docker Engine {info.version} at {self._address()}, building with {info.client} ({info.builder})"
        )
        if self._client.passed_over:
            text += f"; passed over: {', '.join(self._client.passed_over)}"
        return text

    def image(self, reference: str) -> ImageInfo | None:
        """What the engine knows of an image, or None where it has none of that name."""
        with self._connected("inspect an image") as client:
            try:
                attributes = _api(client).inspect_image(reference)
            except docker.errors.ImageNotFound:
                return None
        config = attributes.get("Config") or {}
        return ImageInfo(
            id=attributes["Id"],
            labels=dict(config.get("Labels") or {}),
            environment=tuple(config.get("Env") or ()),
            entrypoint=tuple(config.get("Entrypoint") or ()),
            user=config.get("User") or "",
            layers=tuple(attributes.get("RootFS", {}).get("Layers") or ()),
            size_bytes=int(attributes.get("Size") or 0),
            created=attributes.get("Created") or "",
        )

    # --- build ---

    def build(self, request: BuildRequest, on_progress: Callable[[str], None]) -> BuildSummary:
        """Build and tag, see ``ports.Engine.build``.

        BuildKit names an image when all of its steps are done: a failed or interrupted build leaves no tag,
        and one that an earlier build left stays with that build's image.
        """
        check_inputs(request)
        info = self.info()
        with contextlib.ExitStack() as stack:
            if self._builder is None:
                words = ["build", "--progress=plain"]
                words += [*common_arguments(request, default_platform=info.platform), str(request.context)]
            else:
                layouts = {
                    reference: stack.enter_context(self._layout(reference))
                    for reference in needed_images(self._builder, request)
                }
                words = build_arguments(
                    self._builder,
                    request,
                    engine_platform=info.platform,
                    layouts=layouts,
                    extra=extra_arguments(os.environ),
                )
            summary = run_build(
                self._programs,
                [str(self._client.path), *words],
                env=self._environment,
                request=request,
                on_progress=on_progress,
            )
        built = self.image(request.tag)
        if built is None:
            raise OutsideError(
                f"{request.tag} was built but did not reach the engine",
                hint=f"Can its builder load images (`docker buildx ls`)? The whole log: {request.log}.",
            )
        return dataclasses.replace(summary, image_id=built.id)

    @contextlib.contextmanager
    def _layout(self, reference: str) -> Iterator[Path]:
        """A folder with the engine's image in OCI's layout, for the length of a build."""
        with tempfile.TemporaryDirectory(prefix="llama-images-") as folder:
            with self._connected(f"save {reference}") as client, image_must_exist(reference):
                _api(client).inspect_image(reference)  # a save names a missing image in other words
                write_layout(client.api.get_image(reference), Path(folder))
            yield Path(folder)

    # --- run ---

    def run(self, request: RunRequest) -> RunResult:
        """Run a container to its end and remove it, see ``ports.Engine.run``.

        Output is taken from the container's streams, byte for byte; the engine keeps no log of it.
        """
        name = _new_name()
        with termination_as_interrupt(), self._connected("run a container") as client:
            try:
                return self._run(client, name, request)
            except docker.errors.ImageNotFound as error:
                raise OutsideError(
                    f"the engine has no image {request.image}", hint="Build it, or pull it, first."
                ) from error
            except docker.errors.APIError as error:
                raise start_error(request, error) from error
            finally:
                # By name: Ctrl-C may come between the container's creation and its identifier's arrival.
                with contextlib.suppress(docker.errors.NotFound):
                    client.api.remove_container(name, v=True, force=True)

    def _run(self, client: docker.DockerClient, name: str, request: RunRequest) -> RunResult:
        api = _api(client)
        api.create_container_from_config(_container_config(client, request), name)
        stream = api.attach_socket(
            name, {"stdout": 1, "stderr": 1, "stream": 1, "stdin": int(request.stdin is not None)}
        )
        attached = Attached(stream)
        try:
            started = time.monotonic()
            deadline = started + request.timeout
            api.start(name)
            attached.begin(request.stdin)
            interrupted_after: float | None = None
            while not attached.ended_within(0.2):
                if time.monotonic() > deadline:
                    raise too_long(request)
                if interrupted_after is None and _is_due(request, attached):
                    interrupted_after = time.monotonic() - started
                    api.kill(name, signal="SIGINT")
            # The streams end with the container; its exit code may take a moment more.
            try:
                code = api.wait(name, timeout=max(5, int(deadline - time.monotonic())))["StatusCode"]
            except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError) as error:
                if time.monotonic() > deadline:
                    raise too_long(request) from error
                raise
            seconds = time.monotonic() - started
        finally:
            attached.close()
        return RunResult(
            exit_code=int(code),
            stdout=bytes(attached.stdout),
            stderr=bytes(attached.stderr),
            seconds=seconds,
            interrupted_after=interrupted_after,
        )

    def session_command(self, session: Session) -> tuple[str, ...]:
        """The command that ``hold`` runs, under another container's name."""
        return self._session_command(session, _new_name())

    def hold(self, session: Session) -> int:
        """Run a container with this process's streams, see ``ports.Engine.hold``.

        The client program does it: a terminal's size and its raw mode are its trade.
        """
        name = _new_name()
        try:
            code = hand_over(self._session_command(session, name), env=self._environment)
        finally:
            # Where the client was killed, nobody else does it.
            with self._connected("remove a container") as client, contextlib.suppress(docker.errors.NotFound):
                client.api.remove_container(name, v=True, force=True)
        raise_for_start(code, session)
        return code

    def _session_command(self, session: Session, name: str) -> tuple[str, ...]:
        gpus = ["--gpus", "all"] if session.gpus else []
        return (str(self._client.path), *session_words(session, name, gpus))

    # --- tags, registries, contents ---

    def tag(self, reference: str, new: str) -> None:
        """Give an image a second name. Raises OutsideError where there is no such image."""
        repository, tag = parse_repository_tag(new)
        with self._connected(f"tag {reference}") as client, image_must_exist(reference):
            client.api.tag(reference, repository, tag or "latest")

    def remove_tag(self, reference: str) -> None:
        """Take a name from an image, and the image with its last name; fine where there is no such name."""
        with (
            self._connected(f"remove {reference}") as client,
            contextlib.suppress(docker.errors.ImageNotFound),
        ):
            client.api.remove_image(reference)

    def push(self, reference: str, on_progress: Callable[[str], None]) -> str:
        """Push to the registry that the reference names and return the manifest's digest."""
        repository, tag = parse_repository_tag(reference)
        digest: str | None = None
        layers: dict[str, bool] = {}
        with self._connected(f"push {reference}") as client, image_must_exist(reference):
            _api(client).inspect_image(reference)  # the push itself reports a missing image as a mere text
            for record in client.api.push(repository, tag or "latest", stream=True, decode=True):
                if "error" in record:
                    raise push_error(reference, str(record["error"]))
                if "Digest" in (record.get("aux") or {}):
                    digest = record["aux"]["Digest"]
                if record.get("id") and record.get("status"):
                    status = str(record["status"])
                    if status.startswith(
                        ("Preparing", "Waiting", "Pushing", "Pushed", "Layer already", "Mounted")
                    ):
                        layers[record["id"]] = status.startswith(("Pushed", "Layer already", "Mounted"))
                        on_progress(f"push: {sum(layers.values())}/{len(layers)} layers")
        if digest is None:
            raise OutsideError(f"the registry gave no digest for {reference}", hint="Push it again.")
        return digest

    def export_root(self, reference: str, archive: Path) -> None:
        """Write the image's whole file system, without running it, as a tar archive.

        The engine adds what it would mount into a container: ``.dockerenv``, ``dev``, ``proc``, ``sys`` and
        empty ``etc/hostname``, ``etc/hosts``, ``etc/resolv.conf``, ``etc/mtab``.
        """
        name = f"llama-images-{uuid.uuid4().hex[:12]}"
        with termination_as_interrupt(), self._connected(f"export {reference}") as client:
            try:
                with image_must_exist(reference):
                    # A command must be named, though nothing runs it.
                    client.api.create_container(reference, command=["none"], name=name, network_disabled=True)
                _write(archive, client.api.export(name), lambda _count: None)
            finally:
                with contextlib.suppress(docker.errors.NotFound):
                    client.api.remove_container(name, v=True, force=True)

    def save(self, reference: str, archive: Path, on_bytes: Callable[[int], None]) -> None:
        """Write the image, its configuration and layers, as the engine's own archive."""
        with self._connected(f"save {reference}") as client, image_must_exist(reference):
            _api(client).inspect_image(reference)  # a save names a missing image in other words
            _write(archive, client.api.get_image(reference), on_bytes)

    def layers(self, reference: str) -> tuple[Layer, ...]:
        """Sizes of every layer, lowest first, empty ones left out; reads the whole image once."""
        with (
            self._reporter.activity(f"layers of {reference}") as activity,
            self._connected(f"save {reference}") as client,
            image_must_exist(reference),
        ):
            _api(client).inspect_image(reference)  # a save names a missing image in other words
            return read_layers(
                client.api.get_image(reference), lambda count: activity.update(f"{count / 1e6:.0f} MB read")
            )

    # --- the connection ---

    @cached_property
    def _client(self) -> DockerClient:
        return choose_client(self._programs)

    @cached_property
    def _builder(self) -> Builder | None:
        """buildx's builder; None where the client has no buildx and asks the engine's BuildKit itself."""
        if self._client.buildx:
            return choose_builder(
                self._programs, self._client.path, self._builder_name, self._environment, self._reporter
            )
        if self._builder_name is not None:
            raise OutsideError(
                f"builder {self._builder_name!r} needs buildx, which {self._client.path} does not have",
                hint=BUILDX_HINT,
            )
        return None

    @property
    def _environment(self) -> dict[str, str]:
        """What the client program is told besides its arguments."""
        environment = {"DOCKER_BUILDKIT": "1", "DOCKER_CLI_HINTS": "false"}
        # The image alone, not an index with an attestation beside it: `publish` attests.
        environment["BUILDX_NO_DEFAULT_ATTESTATIONS"] = "1"
        if self._host:
            environment["DOCKER_HOST"] = self._host
        return environment

    def _address(self) -> str:
        """Where the engine is, by the client program's own rules."""
        return (
            self._host
            or os.environ.get("DOCKER_HOST")
            or ContextAPI.kwargs_from_context().get("base_url")
            or docker.constants.DEFAULT_UNIX_SOCKET
        ).replace("http+unix://", "unix://")

    @contextlib.contextmanager
    def _connected(self, doing: str) -> Iterator[docker.DockerClient]:
        """A connection for one piece of work; the engine's errors come out as OutsideError."""
        address = self._address()
        try:
            _probe(address)
            version = self._api_version or "auto"
            if self._host:
                client = docker.DockerClient(
                    base_url=self._host, version=version, timeout=ANSWER_SECONDS, use_ssh_client=True
                )
            else:
                client = docker.from_env(version=version, timeout=ANSWER_SECONDS, use_ssh_client=True)
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
            raise connection_error(error, address) from error
        with contextlib.closing(client):
            self._api_version = client.api.api_version
            try:
                yield client
            except docker.errors.APIError as error:
                raise api_error(doing, error) from error
            except (
                docker.errors.DockerException,
                requests.exceptions.RequestException,
                urllib3.exceptions.HTTPError,
            ) as error:
                raise connection_error(error, address) from error


def _new_name() -> str:
    return f"llama-images-{uuid.uuid4().hex[:12]}"


def _write(archive: Path, chunks: Iterable[bytes], on_bytes: Callable[[int], None]) -> None:
    """Write a file aside and rename it once it is whole; ``on_bytes`` gets the number of bytes so far."""
    partial = archive.with_name(f"{archive.name}.partial")
    count = 0
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                count += len(chunk)
                on_bytes(count)
        partial.replace(archive)
    except OSError as error:
        if isinstance(error, requests.exceptions.RequestException):
            raise
        raise OutsideError(f"{archive} can't be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _probe(address: str) -> None:
    """Connect to a Unix socket and leave, since docker-py hides what went wrong and leaks the socket."""
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(ANSWER_SECONDS)
            probe.connect(address.removeprefix("unix://"))


def _api(client: docker.DockerClient) -> Any:
    """The low-level client, untyped: the stubs leave many of its methods without types."""
    return client.api


def _container_config(client: docker.DockerClient, request: RunRequest) -> Any:
    api = client.api
    host = api.create_host_config(
        read_only=request.read_only,
        cap_drop=["ALL"] if request.drop_capabilities else None,
        security_opt=["no-new-privileges:true"] if request.drop_capabilities else None,
        network_mode=None if request.network else "none",
        mounts=[
            docker.types.Mount(target=target, source=str(path.resolve()), type="bind", read_only=True)
            for path, target in request.mounts.items()
        ],
        device_requests=_device_requests(request.gpus),
        init=request.init or None,
        # The streams are read as they come; a log would hold them again, and not byte for byte.
        log_config=docker.types.LogConfig(type="none"),
    )
    return api.create_container_config(
        request.image,
        list(request.arguments) or None,  # type: ignore[arg-type] # None means the image's own command
        entrypoint=None if request.entrypoint is None else list(request.entrypoint),
        environment=dict(request.environment),
        user=request.user,
        stdin_open=request.stdin is not None,
        host_config=host,
    )


def _is_due(request: RunRequest, attached: Attached) -> bool:
    """Whether the container has printed what it is to be interrupted at."""
    return request.interrupt_on is not None and request.interrupt_on.encode() in attached.stderr


def _device_requests(gpus: tuple[str, ...]) -> list[docker.types.DeviceRequest] | None:
    if not gpus:
        return None
    if gpus == ("all",):
        return [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return [docker.types.DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])]
