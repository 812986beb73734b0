"""A real podman, where one can run a container: builds, their failures, runs, and what they leave behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_images.adapters.podman import BUILD_ARGUMENTS, RUN_ARGUMENTS, PodmanEngine
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.reporter import ConsoleReporter
from llama_images.buildlog import CcacheStats
from llama_images.errors import OutsideError, UsageError
from llama_images.ports import BuildRequest, RunRequest

MakeName = Callable[[], str]
MakeRequest = Callable[..., BuildRequest]


def containers() -> set[str]:
    argv = ["podman", "ps", "--all", "--external", "--filter", "name=llama-images-", "--format", "{{.ID}}"]
    return set(SystemPrograms().run(argv, timeout=120).text.split())


def every_container() -> set[str]:
    """Those of unfinished builds too."""
    argv = ["podman", "ps", "--all", "--external", "--format", "{{.ID}}"]
    return set(SystemPrograms().run(argv, timeout=120).text.split())


@pytest.fixture
def nothing_left(podman_engine: PodmanEngine) -> Iterator[None]:
    """Every container that the test made is gone at its end."""
    before = containers()
    yield
    assert containers() <= before


def test_podman_is_missing(tmp_path: Path) -> None:
    engine = PodmanEngine(SystemPrograms(environ={"PATH": str(tmp_path)}), ConsoleReporter(plain=True))
    with pytest.raises(OutsideError, match="podman is not installed"):
        engine.info()


def test_options_that_a_shell_could_not_split() -> None:
    extra = {BUILD_ARGUMENTS: "", RUN_ARGUMENTS: '--env "a'}
    engine = PodmanEngine(SystemPrograms(), ConsoleReporter(plain=True), extra=extra)
    with pytest.raises(UsageError, match="LLAMA_IMAGES_PODMAN_RUN_ARGS can't be split into words"):
        engine.run(RunRequest(image="x"))


@pytest.mark.engine("podman")
def test_engine_tells_about_itself(podman_engine: PodmanEngine) -> None:
    info = podman_engine.info()
    assert info.name == "podman"
    assert info.builder.startswith("buildah ")
    assert info.platform.startswith("linux/")
    assert info.version in podman_engine.describe()


@pytest.mark.engine("podman")
def test_build(
    podman_engine: PodmanEngine,
    podman_base: str,
    podman_name: MakeName,
    make_request: MakeRequest,
    tmp_path: Path,
) -> None:
    """Stages, a secret, a cache mount, counts, labels; and nothing is compiled the second time."""
    secret = tmp_path / "token"
    secret.write_text(f"secret-{uuid.uuid4().hex}")
    tag = podman_name()
    request = make_request(
        f"""
FROM {podman_base} AS build
ARG SALT
COPY file.txt /src/file.txt
RUN --mount=type=secret,id=token --mount=type=cache,target=/ccache \\
    wc -c < /run/secrets/token > /size && echo "llama-images: jobs=2 $SALT" && \\
    for i in 1 2 3; do echo "[$i/3] Building CXX object $i.o"; done && \\
    echo "llama-images: ccache direct_cache_hit=1 preprocessed_cache_hit=1 cache_miss=2"
FROM scratch
COPY --from=build /size /size
COPY file.txt /file.txt
""",
        tag=tag,
        labels={"org.example.title": "a title, with = and spaces"},
        build_args={"SALT": uuid.uuid4().hex},
        secrets={"token": secret},
    )
    shown: list[str] = []
    done = podman_engine.build(request, shown.append)
    assert done.ccache == CcacheStats(direct_hits=1, preprocessed_hits=1, misses=2)
    assert done.files_compiled == 3
    assert "build: 3/3 files" in shown
    image = podman_engine.image(tag)
    assert image is not None
    assert image.id == done.image_id
    assert image.labels["org.example.title"] == "a title, with = and spaces"
    again = podman_engine.build(request, shown.append)
    assert again.ccache is None
    assert again.cached_steps >= 3

    archive = tmp_path / "out" / "root.tar"
    podman_engine.export_root(tag, archive)
    with tarfile.open(archive) as root:
        size, file = root.extractfile("size"), root.extractfile("file.txt")
        assert size is not None
        assert size.read().strip() == str(len(secret.read_text())).encode()
        assert file is not None
        assert file.read() == b"hello\n"
    for place in (archive, request.log):
        assert secret.read_bytes() not in place.read_bytes()
    layers = podman_engine.layers(tag)
    assert tuple(layer.diff_id for layer in layers) == image.layers
    assert all(0 < layer.compressed_bytes < layer.size_bytes for layer in layers)


@pytest.mark.engine("podman")
def test_failing_step(
    podman_engine: PodmanEngine, podman_base: str, podman_name: MakeName, make_request: MakeRequest
) -> None:
    tag = podman_name()
    request = make_request(
        f"FROM {podman_base} AS build\n"
        'RUN echo "[1/2] Building CXX object a.o"; echo "a.cpp:7:1: error: no" >&2; exit 7\n',
        tag=tag,
    )
    with pytest.raises(OutsideError) as caught:
        podman_engine.build(request, lambda _: None)
    first, *lines = caught.value.message.splitlines()
    assert first.startswith(f"the build of {tag} failed at step [build 2/2] RUN echo")
    assert first.endswith("(exit code 7)")
    assert lines == ["  a.cpp:7:1: error: no"]
    assert caught.value.hint == f"The whole log: {request.log}."
    assert podman_engine.image(tag) is None


@pytest.mark.engine("podman")
def test_interrupt_ends_the_build_and_removes_its_container(
    podman_engine: PodmanEngine, podman_base: str, podman_name: MakeName, make_request: MakeRequest
) -> None:
    tag = podman_name()
    request = make_request(f"FROM {podman_base}\nRUN echo begun && sleep 300\n", tag=tag)
    before = every_container()
    extra = {name: podman_engine._extra.get(name, "") for name in (BUILD_ARGUMENTS, RUN_ARGUMENTS)}
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from llama_images.adapters.podman import PodmanEngine
        from llama_images.adapters.process import SystemPrograms
        from llama_images.adapters.reporter import ConsoleReporter
        from llama_images.ports import BuildRequest

        request = BuildRequest(
            dockerfile=Path({str(request.dockerfile)!r}),
            context=Path({str(request.context)!r}),
            log=Path({str(request.log)!r}),
            tag={tag!r},
            platform={request.platform!r},
        )
        engine = PodmanEngine(SystemPrograms(), ConsoleReporter(plain=True), extra={extra!r})
        try:
            engine.build(request, lambda _: None)
        except KeyboardInterrupt:
            raise SystemExit(130)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        deadline = time.monotonic() + 120
        while not (request.log.is_file() and b"\nbegun\n" in request.log.read_bytes()):
            assert time.monotonic() < deadline
            assert parent.poll() is None
            time.sleep(0.1)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(120) == 130
    assert every_container() <= before
    assert podman_engine.image(tag) is None


@pytest.mark.engine("podman")
@pytest.mark.usefixtures("nothing_left")
def test_run_is_locked_down(podman_engine: PodmanEngine, podman_base: str) -> None:
    """Read-only root without a tmpfs, no network, no capabilities, no new privileges, the user asked for."""
    script = "id -u; ls /sys/class/net; touch /tmp/x 2>&1; cat /proc/self/status"
    request = RunRequest(
        image=podman_base, arguments=("-c", script), entrypoint=("/bin/sh",), user="10001:10001"
    )
    lines = podman_engine.run(request).stdout.decode().splitlines()
    assert lines[:3] == ["10001", "lo", "touch: /tmp/x: Read-only file system"]
    assert "NoNewPrivs:\t1" in lines
    assert "CapBnd:\t0000000000000000" in lines


@pytest.mark.engine("podman")
@pytest.mark.usefixtures("nothing_left")
def test_streams_byte_for_byte(podman_engine: PodmanEngine, podman_base: str, tmp_path: Path) -> None:
    (tmp_path / "model, tiny").mkdir()
    (tmp_path / "model, tiny/file").write_text("content")
    data = bytes(range(256)) * 4096
    result = podman_engine.run(
        RunRequest(
            image=podman_base,
            arguments=("sh", "-c", "cat; cat /models/file; printf \"$A\"; printf 'e\\377' >&2; exit 5"),
            environment={"A": "b c"},
            mounts={tmp_path / "model, tiny": "/models"},
            stdin=data,
        )
    )
    assert result.stdout == data + b"contentb c"
    assert result.stderr == b"e\xff"
    assert result.exit_code == 5


@pytest.mark.engine("podman")
@pytest.mark.usefixtures("nothing_left")
def test_time_out(podman_engine: PodmanEngine, podman_base: str) -> None:
    with pytest.raises(OutsideError, match="did not end within 2 seconds; its container was removed"):
        podman_engine.run(RunRequest(image=podman_base, arguments=("sleep", "300"), timeout=2))


@pytest.mark.engine("podman")
@pytest.mark.usefixtures("nothing_left")
def test_what_cannot_run(podman_engine: PodmanEngine, podman_base: str) -> None:
    with pytest.raises(OutsideError, match="not found"):
        podman_engine.run(RunRequest(image=podman_base, arguments=("frobnicate",)))
    with pytest.raises(OutsideError, match=r"nvidia\.com/gpu=all") as caught:
        podman_engine.run(RunRequest(image=podman_base, arguments=("true",), gpus=("all",)))
    assert caught.value.hint is not None
    assert "nvidia-ctk cdi generate" in caught.value.hint


@pytest.mark.engine("podman")
def test_missing_image(podman_engine: PodmanEngine) -> None:
    name = "localhost/llama-images-test/missing:1"
    assert podman_engine.image(name) is None
    with pytest.raises(OutsideError, match=f"podman has no image {name}"):
        podman_engine.run(RunRequest(image=name))
    with pytest.raises(OutsideError, match=f"podman has no image {name}"):
        podman_engine.tag(name, "localhost/llama-images-test/missing:2")
    with pytest.raises(OutsideError, match=f"podman has no image {name}"):
        podman_engine.layers(name)
    with pytest.raises(OutsideError, match=f"podman has no image {name}"):
        podman_engine.push(name, lambda _: None)
    podman_engine.remove_tag(name)


@pytest.mark.engine("podman")
def test_tags(podman_engine: PodmanEngine, podman_base: str, podman_name: MakeName) -> None:
    first, second = podman_name(), podman_name()
    podman_engine.tag(podman_base, first)
    podman_engine.tag(first, second)
    podman_engine.remove_tag(first)
    assert podman_engine.image(first) is None
    left, base = podman_engine.image(second), podman_engine.image(podman_base)
    assert left is not None
    assert base is not None
    assert left.id == base.id
