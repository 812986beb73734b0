"""podman, whose builds are buildah's, through its command line.

Two environment variables add options that a machine needs and this package can't know, read as a shell would
split them. Everything else belongs into containers.conf, which podman reads itself (CONTAINERS_CONF names
another).

``LLAMA_IMAGES_PODMAN_BUILD_ARGS`` for ``podman build``: "--network host" where no network plugin is installed
``LLAMA_IMAGES_PODMAN_RUN_ARGS``   for containers: "--ulimit nofile=1024:1024" where limits may not be raised
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from llama_images.adapters.image_archive import read_layers
from llama_images.adapters.image_build import check_inputs, common_arguments, csv_field, run_build
from llama_images.adapters.process import hand_over, termination_as_interrupt
from llama_images.adapters.sessions import raise_for_start, session_words
from llama_images.buildlog import BuildSummary
from llama_images.errors import OutsideError, TimedOut, UsageError
from llama_images.ports import (
    BuildRequest,
    EngineInfo,
    Finished,
    ImageInfo,
    Layer,
    Programs,
    Reporter,
    RunRequest,
    RunResult,
    Session,
)
from llama_images.words import last_line

BUILD_ARGUMENTS: Final = "LLAMA_IMAGES_PODMAN_BUILD_ARGS"
RUN_ARGUMENTS: Final = "LLAMA_IMAGES_PODMAN_RUN_ARGS"

_ANSWER_SECONDS: Final = 120
_SAVE_SECONDS: Final = 3600
_LOOPBACK = re.compile(r"(?:127\.\d+\.\d+\.\d+|localhost|\[::1\])(?::\d+)?/")


class PodmanEngine:
    """Implements ``ports.Engine`` with podman and buildah.

    ``extra`` holds the two variables above; without it they are taken from the environment.
    """

    name: Final = "podman"

    def __init__(
        self, programs: Programs, reporter: Reporter, *, extra: Mapping[str, str] | None = None
    ) -> None:
        self._programs = programs
        self._reporter = reporter
        self._extra = os.environ if extra is None else extra

    # --- what there is ---

    def info(self) -> EngineInfo:
        """Raises OutsideError, with what to do, where podman is missing or does not work."""
        info = self._json(["info", "--format", "json"], "tell about itself")
        host, version = info["host"], info["version"]["Version"]
        platform = f"{host.get('os', 'linux')}/{host.get('arch', '')}"
        return EngineInfo(
            name=self.name,
            version=version,
            client=f"{self._path} {version}",
            builder=f"buildah {host.get('buildahVersion', '')}".strip(),
            cpus=int(host.get("cpus", 0)),
            memory_bytes=int(host.get("memTotal", 0)),
            platform=platform,
            builds_for=(platform,),
        )

    def describe(self) -> str:
        """One line: the program, what builds, and the options added by the environment."""
        info = self.info()
        text = f"podman {info.version}, building with {info.client} ({info.builder})"
        added = [name for name in (BUILD_ARGUMENTS, RUN_ARGUMENTS) if self._arguments(name)]
        return f"{text}; options added by {' and '.join(added)}" if added else text

    def image(self, reference: str) -> ImageInfo | None:
        """What podman knows of an image, or None where it has none of that name."""
        finished = self._podman(["image", "inspect", reference])
        if finished.returncode != 0:
            if _is_missing(finished):
                return None
            raise _error(f"inspect {reference}", finished)
        attributes = json.loads(finished.text)[0]
        config = attributes.get("Config") or {}
        return ImageInfo(
            id=f"sha256:{str(attributes['Id']).removeprefix('sha256:')}",
            labels=dict(config.get("Labels") or {}),
            environment=tuple(config.get("Env") or ()),
            entrypoint=tuple(config.get("Entrypoint") or ()),
            user=config.get("User") or "",
            layers=tuple((attributes.get("RootFS") or {}).get("Layers") or ()),
            size_bytes=int(attributes.get("Size") or 0),
            created=attributes.get("Created") or "",
        )

    # --- build ---

    def build(self, request: BuildRequest, on_progress: Callable[[str], None]) -> BuildSummary:
        """Build and tag, see ``ports.Engine.build``. buildah, too, names an image when it is complete."""
        check_inputs(request)
        info = self.info()
        argv = [
            str(self._path),
            "build",
            "--layers",
            *common_arguments(request, default_platform=info.platform),
            *self._arguments(BUILD_ARGUMENTS),
            str(request.context),
        ]
        with termination_as_interrupt():
            before = self._working_containers()
            try:
                summary = run_build(self._programs, argv, env={}, request=request, on_progress=on_progress)
            except KeyboardInterrupt:
                self._remove_working_containers(before)
                raise
        built = self.image(request.tag)
        if built is None:
            raise OutsideError(
                f"{request.tag} was built, but podman does not have it", hint=f"The whole log: {request.log}."
            )
        return replace(summary, image_id=built.id)

    def _working_containers(self) -> set[str]:
        argv = ["ps", "--all", "--external", "--format", "{{.ID}} {{.Command}} {{.Status}}"]
        lines = (line.split() for line in self._podman(argv).text.splitlines())
        return {words[0] for words in lines if words[1:] == ["buildah", "Storage"]}

    def _remove_working_containers(self, before: set[str]) -> None:
        """Remove what an interrupted build leaves: buildah keeps the containers of its unfinished steps."""
        left = self._working_containers() - before
        if left and _a_build_runs():
            self._reporter.warn(
                f"the interrupted build may have left containers: podman rm --force {' '.join(sorted(left))}"
            )
        elif left:
            self._podman(["rm", "--force", *sorted(left)])

    # --- run ---

    def run(self, request: RunRequest) -> RunResult:
        """Run a container to its end and remove it, see ``ports.Engine.run``."""
        with self._container(request.image, self._create_options(request), list(request.arguments)) as name:
            argv = ["start", "--attach", *(["--interactive"] if request.stdin is not None else []), name]
            started = time.monotonic()
            interrupts: list[float] = []

            def watch(line: str) -> None:
                if request.interrupt_on is not None and request.interrupt_on in line and not interrupts:
                    interrupts.append(time.monotonic() - started)
                    self._podman(["kill", "--signal", "INT", name])

            try:
                finished = self._podman(argv, stdin=request.stdin, timeout=request.timeout, on_line=watch)
            except TimedOut as error:
                if self._state(name).get("Running"):
                    raise TimedOut(
                        f"{request.image} did not end within {request.timeout:g} seconds; "
                        "its container was removed"
                    ) from error
                raise
            seconds = time.monotonic() - started
            state = self._state(name)
        # podman's own exit code can't be told from the program's, so the container is asked.
        if str(state.get("Status")) not in ("exited", "stopped"):
            raise _container_error(f"start {request.image}", finished)
        return RunResult(
            exit_code=int(state["ExitCode"]),
            stdout=finished.stdout,
            stderr=finished.stderr,
            seconds=seconds,
            interrupted_after=interrupts[0] if interrupts else None,
        )

    def session_command(self, session: Session) -> tuple[str, ...]:
        """The command that ``hold`` runs, under another container's name."""
        return self._session_command(session, _new_name())

    def hold(self, session: Session) -> int:
        """Run a container with this process's streams, see ``ports.Engine.hold``."""
        name = _new_name()
        try:
            code = hand_over(self._session_command(session, name))
        finally:
            # Where the client was killed, nobody else does it.
            self._podman(["rm", "--force", "--ignore", "--time", "0", "--volumes", name])
        raise_for_start(code, session)
        return code

    def _session_command(self, session: Session, name: str) -> tuple[str, ...]:
        gpus = ["--device", "nvidia.com/gpu=all"] if session.gpus else []
        more = self._arguments(RUN_ARGUMENTS)
        return (str(self._path), *session_words(session, name, [*gpus, *more]))

    def _create_options(self, request: RunRequest) -> list[str]:
        options = ["--log-driver", "none"]
        if request.read_only:
            options += ["--read-only", "--read-only-tmpfs=false"]
        if request.drop_capabilities:
            options += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        if not request.network:
            options += ["--network", "none"]
        if request.user is not None:
            options += ["--user", request.user]
        if request.stdin is not None:
            options.append("--interactive")
        if request.init:
            options.append("--init")
        if request.entrypoint is not None:
            options += ["--entrypoint", json.dumps(list(request.entrypoint))]
        for key, value in request.environment.items():
            options += ["--env", f"{key}={value}"]
        for path, target in request.mounts.items():
            fields = (
                "type=bind",
                csv_field(f"source={path.resolve()}"),
                csv_field(f"target={target}"),
                "ro=true",
            )
            options += ["--mount", ",".join(fields)]
        for gpu in request.gpus:
            options += ["--device", f"nvidia.com/gpu={gpu}"]
        return options + self._arguments(RUN_ARGUMENTS)

    @contextlib.contextmanager
    def _container(self, image: str, options: list[str], arguments: list[str]) -> Iterator[str]:
        """The name of a new container, removed at the end whatever happens."""
        name = _new_name()
        try:
            created = self._podman(["create", "--pull", "never", "--name", name, *options, image, *arguments])
            if created.returncode != 0:
                if _is_missing(created):
                    raise _no_image(image)
                raise _container_error(f"make a container of {image}", created)
            yield name
        finally:
            # Killed first: removing alone gives the program ten seconds to end by itself.
            self._podman(["kill", "--signal", "KILL", name])
            self._podman(["rm", "--force", "--volumes", name])

    def _state(self, name: str) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self._json(["container", "inspect", name], f"inspect {name}")[0]["State"]
        return state

    # --- tags, registries, contents ---

    def tag(self, reference: str, new: str) -> None:
        """Give an image a second name. Raises OutsideError where there is no such image."""
        finished = self._podman(["tag", reference, new])
        if finished.returncode != 0:
            raise _no_image(reference) if _is_missing(finished) else _error(f"tag {reference}", finished)

    def remove_tag(self, reference: str) -> None:
        """Take a name from an image, and the image with its last name; fine where there is no such name."""
        finished = self._podman(["rmi", reference])
        if finished.returncode != 0 and not _is_missing(finished):
            raise _error(f"remove {reference}", finished)

    def push(self, reference: str, on_progress: Callable[[str], None]) -> str:
        """Push to the registry that the reference names and return the manifest's digest.

        A registry on a loopback address may speak plain HTTP, as with Docker.
        """
        if self.image(reference) is None:
            raise _no_image(reference)
        copied = 0

        def read(line: str) -> None:
            nonlocal copied
            if line.startswith("Copying blob"):
                copied += 1
                on_progress(f"push: layer {copied}")

        with tempfile.TemporaryDirectory(prefix="llama-images-") as folder:
            digest = Path(folder) / "digest"
            verify = ["--tls-verify=false"] if _LOOPBACK.match(reference) else []
            finished = self._podman(
                ["push", *verify, "--digestfile", str(digest), reference], timeout=_SAVE_SECONDS, on_line=read
            )
            if finished.returncode != 0:
                raise _error(f"push {reference}", finished)
            return digest.read_text("ascii").strip()

    def export_root(self, reference: str, archive: Path) -> None:
        """Write the image's whole file system, without running it, as a tar archive."""
        partial = archive.with_name(f"{archive.name}.partial")
        archive.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A command must be named, though nothing runs it.
            options = ["--network", "none", *self._arguments(RUN_ARGUMENTS)]
            with self._container(reference, options, ["none"]) as name:
                finished = self._podman(["export", "--output", str(partial), name], timeout=_SAVE_SECONDS)
                if finished.returncode != 0:
                    raise _error(f"export {reference}", finished)
            partial.replace(archive)
        finally:
            partial.unlink(missing_ok=True)

    def layers(self, reference: str) -> tuple[Layer, ...]:
        """Sizes of every layer, lowest first, empty ones left out; needs room for a copy of the image."""
        with (
            self._reporter.activity(f"layers of {reference}") as activity,
            tempfile.TemporaryDirectory(prefix="llama-images-") as folder,
        ):
            archive = Path(folder) / "image.tar"
            self.save(reference, archive, lambda _count: None)
            with archive.open("rb") as file:
                return read_layers(
                    iter(lambda: file.read(1 << 20), b""),
                    lambda count: activity.update(f"{count / 1e6:.0f} MB read"),
                )

    def save(self, reference: str, archive: Path, on_bytes: Callable[[int], None]) -> None:
        """Write the image, its configuration and layers, as an archive of Docker's form."""
        partial = archive.with_name(f"{archive.name}.partial")
        archive.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # podman adds to no archive that is there
        try:
            argv = ["save", "--format", "docker-archive", "--output", str(partial), reference]
            finished = self._podman(argv, timeout=_SAVE_SECONDS)
            if finished.returncode != 0:
                raise _no_image(reference) if _is_missing(finished) else _error(f"save {reference}", finished)
            on_bytes(partial.stat().st_size)
            partial.replace(archive)
        finally:
            partial.unlink(missing_ok=True)

    # --- the program ---

    @cached_property
    def _path(self) -> Path:
        found = self._programs.find("podman")
        if not found:
            raise OutsideError("podman is not installed", hint="Install it: apt-get install podman.")
        return found[0]

    def _podman(
        self,
        arguments: list[str],
        *,
        stdin: bytes | None = None,
        timeout: float = _ANSWER_SECONDS,
        on_line: Callable[[str], None] | None = None,
    ) -> Finished:
        return self._programs.run(
            [str(self._path), *arguments], stdin=stdin, timeout=timeout, on_line=on_line
        )

    def _json(self, arguments: list[str], doing: str) -> Any:
        finished = self._podman(arguments)
        if finished.returncode != 0:
            raise _error(doing, finished)
        try:
            return json.loads(finished.text)
        except ValueError as error:
            raise OutsideError(f"podman can't {doing}: its answer is not JSON") from error

    def _arguments(self, variable: str) -> list[str]:
        try:
            return shlex.split(self._extra.get(variable, ""))
        except ValueError as error:
            raise UsageError(f"{variable} can't be split into words: {error}") from error


def _new_name() -> str:
    return f"llama-images-{uuid.uuid4().hex[:12]}"


def _a_build_runs() -> bool:
    """Whether another build is under way here: its containers look like those of one that ended."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if Path(os.fsdecode(words[0])).name in ("podman", "buildah") and {b"build", b"bud"} & set(
                words[1:]
            ):
                return True
    return False


# --- errors ---


def _is_missing(finished: Finished) -> bool:
    text = finished.error_text.lower()
    return "image not known" in text or "no such image" in text or "failed to find image" in text


def _no_image(reference: str) -> OutsideError:
    return OutsideError(f"podman has no image {reference}", hint="Build it, or pull it, first.")


def _error(doing: str, finished: Finished) -> OutsideError:
    if "no space left on device" in finished.error_text.lower():
        return OutsideError(
            f"podman can't {doing}: its disk is full (no space left on device)",
            hint="Free space where podman keeps its images (`podman info`, graphRoot).",
        )
    words = last_line(finished.error_text, otherwise=f"exit code {finished.returncode}")
    return OutsideError(f"podman can't {doing}: {words.removeprefix('Error: ')}")


def _container_error(doing: str, finished: Finished) -> OutsideError:
    """The error for a container that can't be made or started, with what usually mends it."""
    error = _error(doing, finished)
    if "nvidia.com/gpu" in finished.error_text:
        error.hint = (
            "Install nvidia-container-toolkit and describe the GPUs: "
            "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`."
        )
    elif "rlimit" in finished.error_text.lower():
        error.hint = (
            f"This machine may not raise limits; set {RUN_ARGUMENTS}, as in --ulimit nofile=1024:1024."
        )
    return error
