"""A small image for tests with a real engine: a static busybox and nothing else."""

from __future__ import annotations

import contextlib
import io
import platform
import shutil
import struct
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_images.adapters.docker import DockerEngine
from llama_images.adapters.podman import BUILD_ARGUMENTS, RUN_ARGUMENTS, PodmanEngine
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.reporter import ConsoleReporter
from llama_images.errors import OutsideError
from llama_images.platforms import platform_of
from llama_images.ports import BuildRequest, Engine, RunRequest

APPLETS = (
    "sh",
    "cat",
    "echo",
    "env",
    "id",
    "kill",
    "ls",
    "mkdir",
    "printf",
    "seq",
    "sleep",
    "touch",
    "true",
    "wc",
)

MakeRequest = Callable[..., BuildRequest]


def unmet(request: pytest.FixtureRequest, reason: str) -> None:
    """Skip with the reason, or fail under ``--require-engine``."""
    if request.config.getoption("--require-engine", default=False):
        pytest.fail(f"--require-engine: {reason}", pytrace=False)
    pytest.skip(reason)


def needs_a_loader(program: bytes) -> bool:
    """Whether a 64-bit little-endian ELF program names an interpreter (a PT_INTERP segment)."""
    (offset,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    return any(
        struct.unpack_from("<I", program, start) == (3,)
        for start in range(offset, offset + size * count, size)
    )


def quiet() -> ConsoleReporter:
    return ConsoleReporter(io.StringIO(), plain=True)


@pytest.fixture(scope="session")
def busybox_root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar archive with a root file system: busybox, a user 10001, a /tmp that all may write to."""
    busybox = shutil.which("busybox")
    if busybox is None:
        unmet(request, "busybox is not installed (package busybox-static)")
    assert busybox is not None
    if needs_a_loader(Path(busybox).read_bytes()):
        unmet(request, "busybox is not static (package busybox-static)")
    archive = tmp_path_factory.mktemp("busybox") / "root.tar"
    with tarfile.open(archive, "w") as root:
        root.add(busybox, "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            root.addfile(link)
        passwd = b"root:x:0:0::/:/bin/sh\nllama:x:10001:10001::/:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size, entry.mode = len(passwd), 0o644
        root.addfile(entry, io.BytesIO(passwd))
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        root.addfile(folder)
    return archive


@pytest.fixture(scope="session")
def docker_engine(request: pytest.FixtureRequest) -> DockerEngine:
    engine = DockerEngine(SystemPrograms(grace=5), quiet())
    try:
        engine.info()
    except OutsideError as error:
        unmet(request, error.message)
    return engine


@pytest.fixture(scope="session")
def docker_base(docker_engine: DockerEngine, busybox_root: Path) -> Iterator[str]:
    """Name of the busybox image in Docker."""
    import docker

    tag = uuid.uuid4().hex[:12]
    with contextlib.closing(docker.from_env()) as client:
        client.api.import_image_from_file(str(busybox_root), repository="llama-images-test/base", tag=tag)
    name = f"llama-images-test/base:{tag}"
    yield name
    docker_engine.remove_tag(name)


@pytest.fixture(scope="session")
def podman_engine(request: pytest.FixtureRequest, busybox_root: Path) -> PodmanEngine:
    """A podman that can run a container, with the options that this machine turns out to need."""
    plain = PodmanEngine(SystemPrograms(grace=5), quiet())
    try:
        plain.info()
    except OutsideError as error:
        unmet(request, error.message)
    # A sandbox may forbid raising limits, and a machine may lack the network plugins.
    limits = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024"
    tries = (
        plain,
        PodmanEngine(
            SystemPrograms(grace=5),
            quiet(),
            extra={BUILD_ARGUMENTS: f"--network host {limits}", RUN_ARGUMENTS: limits},
        ),
    )
    programs = SystemPrograms()
    name = f"localhost/llama-images-test/probe:{uuid.uuid4().hex[:12]}"
    finished = programs.run(["podman", "import", str(busybox_root), name], timeout=120)
    if finished.returncode != 0:
        unmet(request, f"podman can't import an image: {finished.error_text.strip()[-200:]}")
    reason = ""
    try:
        for engine in tries:
            try:
                if engine.run(RunRequest(image=name, arguments=("true",), timeout=60)).exit_code == 0:
                    return engine
            except OutsideError as error:
                reason = error.message
    finally:
        plain.remove_tag(name)
    unmet(request, f"podman can't run a container: {reason}")
    raise AssertionError


@pytest.fixture(scope="session")
def podman_base(podman_engine: PodmanEngine, busybox_root: Path) -> Iterator[str]:
    """Name of the busybox image in podman."""
    name = f"localhost/llama-images-test/base:{uuid.uuid4().hex[:12]}"
    finished = SystemPrograms().run(["podman", "import", str(busybox_root), name], timeout=120)
    assert finished.returncode == 0, finished.error_text
    yield name
    podman_engine.remove_tag(name)


@contextlib.contextmanager
def fresh_names(engine: Engine) -> Iterator[Callable[[], str]]:
    """Makes image names that nobody else uses, and takes them away again at the end."""
    names: list[str] = []

    def make() -> str:
        names.append(f"localhost/llama-images-test/{uuid.uuid4().hex[:12]}:1")
        return names[-1]

    yield make
    for name in names:
        engine.remove_tag(name)


@pytest.fixture
def docker_name(docker_engine: DockerEngine) -> Iterator[Callable[[], str]]:
    with fresh_names(docker_engine) as make:
        yield make


@pytest.fixture
def podman_name(podman_engine: PodmanEngine) -> Iterator[Callable[[], str]]:
    with fresh_names(podman_engine) as make:
        yield make


@pytest.fixture
def make_request(tmp_path: Path) -> MakeRequest:
    """Makes a build request from a Dockerfile's text; further arguments are those of BuildRequest."""

    def make(dockerfile: str, *, tag: str, **others: object) -> BuildRequest:
        context = tmp_path / "context"
        context.mkdir(exist_ok=True)
        (context / "file.txt").write_text("hello\n")
        path = context / "Dockerfile"
        path.write_text(dockerfile)
        log = tmp_path / "logs" / "build.log"
        fields: dict[str, Any] = {
            "dockerfile": path,
            "context": context,
            "tag": tag,
            "platform": platform_of(platform.machine()),
            "log": log,
            **others,
        }
        return BuildRequest(**fields)

    return make
