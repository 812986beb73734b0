"""A real Docker Engine: builds, their failures, runs, and what stays behind of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import docker.errors
import pytest

from llama_images.adapters.docker import DockerEngine
from llama_images.adapters.docker_client import choose_client
from llama_images.adapters.engines import choose_engine
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.reporter import ConsoleReporter
from llama_images.buildlog import CcacheStats
from llama_images.errors import OutsideError, UsageError
from llama_images.ports import BuildRequest, RunRequest

MakeName = Callable[[], str]
MakeRequest = Callable[..., BuildRequest]

COMPILES = """
FROM {base} AS build
ARG SALT
COPY file.txt /src/file.txt
RUN echo "llama-images: jobs=2" && \\
    for i in 1 2 3; do echo "[$i/3] Building CXX object $i.o"; sleep 0.1; done && \\
    echo "llama-images: ccache direct_cache_hit=1 preprocessed_cache_hit=1 cache_miss=2"
FROM scratch
COPY --from=build /src/file.txt /file.txt
"""


def reporter() -> ConsoleReporter:
    return ConsoleReporter(plain=True)


def build_arguments() -> dict[str, str]:
    """An argument that no build has had, so nothing comes from the engine's cache."""
    return {"SALT": uuid.uuid4().hex}


def containers() -> set[str]:
    with contextlib.closing(docker.from_env()) as client:
        return {entry["Id"] for entry in client.api.containers(all=True, filters={"name": "llama-images-"})}


@pytest.fixture
def nothing_left(docker_engine: DockerEngine) -> Iterator[None]:
    """Every container that the test made is gone at its end."""
    before = containers()
    yield
    assert containers() <= before


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- which client ---


def test_client_without_buildx_is_no_choice(tmp_path: Path) -> None:
    script(
        tmp_path / "docker", '[ "$1" = --version ] && echo "Docker version 28.2.2, build e6534b4" || exit 1'
    )
    programs = SystemPrograms(environ={"PATH": str(tmp_path)})
    with pytest.raises(OutsideError, match=f"{tmp_path}/docker 28.2.2: it has no buildx") as caught:
        choose_client(programs)
    assert caught.value.hint is not None
    assert "docker-buildx" in caught.value.hint


def test_no_client_at_all(tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match="no docker program is on PATH"):
        choose_client(SystemPrograms(environ={"PATH": str(tmp_path)}))


def test_older_client_behind_one_without_buildx(tmp_path: Path) -> None:
    for name, version in (("a", "28.2.2"), ("b", "20.10.24+dfsg1"), ("c", "19.03.1")):
        (tmp_path / name).mkdir()
        script(
            tmp_path / name / "docker",
            f'[ "$1" = --version ] && echo "Docker version {version}, build x" || exit 1',
        )
    programs = SystemPrograms(environ={"PATH": ":".join(str(tmp_path / name) for name in "abc")})
    chosen = choose_client(programs)
    assert (chosen.path, chosen.version, chosen.buildx) == (tmp_path / "b/docker", "20.10.24+dfsg1", None)
    assert chosen.passed_over == (
        f"{tmp_path}/a/docker 28.2.2: it has no buildx",
        f"{tmp_path}/c/docker 19.03.1: another one comes first on PATH",
    )


def test_buildx_goes_before_an_older_client(tmp_path: Path) -> None:
    for name, version in (("a", "20.10.24"), ("b", "27.0.1")):
        (tmp_path / name).mkdir()
        buildx = "echo github.com/docker/buildx v0.14.1 59582a8" if name == "b" else "exit 1"
        script(
            tmp_path / name / "docker",
            f'[ "$1" = --version ] && echo "Docker version {version}, build x" && exit; {buildx}',
        )
    chosen = choose_client(SystemPrograms(environ={"PATH": f"{tmp_path}/a:{tmp_path}/b"}))
    assert (chosen.path, chosen.buildx) == (tmp_path / "b/docker", "v0.14.1")
    assert chosen.passed_over == (f"{tmp_path}/a/docker 20.10.24: one with buildx goes first",)


@pytest.mark.engine
@pytest.mark.parametrize("driver", ["docker", "docker-container"])
def test_build_through_buildx(
    driver: str,
    docker_engine: DockerEngine,
    docker_base: str,
    docker_name: MakeName,
    make_request: MakeRequest,
    tmp_path: Path,
) -> None:
    """A stand-in takes buildx's command line and hands the build to a client that this machine has.

    That client needs no image handed to it: it is looked at here and left out.
    """
    real = choose_client(SystemPrograms())
    build = "buildx build" if real.buildx else "build"
    folder = tmp_path / "bin"
    folder.mkdir()
    script(
        folder / "docker",
        f"""
        [ "$1" = --version ] && echo "Docker version 28.2.2, build x" && exit
        [ "$1" = buildx ] || exit 1
        case $2 in
            version) echo "github.com/docker/buildx v0.19.0 abc" ;;
            inspect) echo "Name:   mine"; echo "Driver: {driver}" ;;
            build)
                shift 2
                echo "$@" > {tmp_path}/arguments
                [ "$1" = --load ] || exit 99
                shift
                [ "$1" = --builder ] && shift 2
                left=$#
                while [ $left -gt 0 ]; do
                    if [ "$1" = --build-context ]; then
                        layout=${{2#*=oci-layout://}}
                        [ -s "${{layout%:latest}}/index.json" ] || exit 98
                        shift 2 && left=$((left - 2))
                    else
                        set -- "$@" "$1" && shift && left=$((left - 1))
                    fi
                done
                exec {real.path} {build} "$@" ;;
        esac
        """,
    )
    programs = SystemPrograms(environ={**os.environ, "PATH": f"{folder}:/usr/bin:/bin"})
    engine = DockerEngine(programs, reporter())
    assert "(buildx v0.19.0)" in engine.describe()
    tag = docker_name()
    request = make_request(COMPILES.format(base=docker_base), tag=tag, local_images=(docker_base,))
    engine.build(request, lambda _: None)
    assert docker_engine.image(tag) is not None
    arguments = (tmp_path / "arguments").read_text()
    assert ("--builder default" in arguments) == (driver == "docker-container")
    assert "--build-context" not in arguments
    engine = DockerEngine(programs, reporter(), builder="mine")
    assert f"builder mine of the driver {driver}" in engine.describe()
    engine.build(request, lambda _: None)
    arguments = (tmp_path / "arguments").read_text()
    assert "--load --builder mine --progress=plain" in arguments
    beside = f"--build-context {docker_base}=oci-layout://" in arguments
    assert beside == (f"--platform {request.platform}" in arguments) == (driver == "docker-container")


# --- which engine ---


@pytest.mark.engine
def test_engine_tells_about_itself(docker_engine: DockerEngine) -> None:
    info = docker_engine.info()
    assert info.name == "docker"
    assert re.fullmatch(r"linux/(amd64|arm64)", info.platform)
    assert info.cpus >= 1
    assert info.memory_bytes > 1 << 28
    assert info.version in docker_engine.describe()
    assert info.client in docker_engine.describe()


def test_no_engine_behind_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    with pytest.raises(
        OutsideError, match="engine at DOCKER_HOST=unix:///nonexistent does not answer: there is no socket"
    ) as caught:
        DockerEngine(SystemPrograms(), reporter()).info()
    assert caught.value.hint is not None
    assert "unset DOCKER_HOST" in caught.value.hint
    monkeypatch.delenv("DOCKER_HOST")
    with pytest.raises(OutsideError, match="no Docker Engine runs at unix:///nonexistent: there is no"):
        DockerEngine(SystemPrograms(), reporter(), "unix:///nonexistent").info()


def test_dead_engine(tmp_path: Path) -> None:
    """The daemon is gone and its socket is still there."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(OutsideError, match=r"docker\.sock is dead: .*nothing listens") as caught:
        DockerEngine(SystemPrograms(), reporter(), f"unix://{path}").info()
    assert caught.value.hint is not None
    assert "restart docker" in caught.value.hint


@pytest.mark.skipif(os.getuid() == 0, reason="root may use every socket")
def test_socket_of_others(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0)
        with pytest.raises(OutsideError, match="you may not use the Docker Engine") as caught:
            DockerEngine(SystemPrograms(), reporter(), f"unix://{path}").info()
    assert caught.value.hint is not None
    assert "usermod -aG docker" in caught.value.hint


def test_nobody_at_a_network_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(OutsideError, match=f"no Docker Engine answers at tcp://127.0.0.1:{port}"):
        DockerEngine(SystemPrograms(), reporter(), f"tcp://127.0.0.1:{port}").info()


def test_no_engine_of_any_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    programs = SystemPrograms(environ={"PATH": str(tmp_path)})
    with pytest.raises(OutsideError) as caught:
        choose_engine(None, programs, reporter())
    assert "docker: the engine at DOCKER_HOST=unix:///nonexistent does not answer" in caught.value.message
    assert "podman: podman is not installed" in caught.value.message
    assert caught.value.hint == "Start it, or unset DOCKER_HOST to use this machine's own."


def test_engine_that_does_not_exist() -> None:
    with pytest.raises(UsageError) as caught:
        choose_engine("dokcer", SystemPrograms(), reporter())
    assert caught.value.message == '"dokcer" is not a container engine (did you mean "docker"?)'
    assert caught.value.hint == "--engine takes docker or podman"


@pytest.mark.engine
def test_docker_is_taken_first(docker_engine: DockerEngine) -> None:
    assert choose_engine(None, SystemPrograms(), reporter()).info().name == "docker"
    assert choose_engine("docker", SystemPrograms(), reporter()).info().name == "docker"


# --- build ---


@pytest.mark.engine
def test_build(
    docker_engine: DockerEngine, docker_base: str, docker_name: MakeName, make_request: MakeRequest
) -> None:
    tag = docker_name()
    request = make_request(
        COMPILES.format(base=docker_base),
        tag=tag,
        labels={"org.example.title": "a title, with = and spaces"},
        build_args=build_arguments(),
    )
    shown: list[str] = []
    done = docker_engine.build(request, shown.append)
    assert done.ccache == CcacheStats(direct_hits=1, preprocessed_hits=1, misses=2)
    assert (done.files_compiled, done.jobs) == (3, 2)
    assert done.seconds > 0.3
    assert "build: 3/3 files" in shown
    assert "[3/3] Building CXX object 3.o" in request.log.read_text()
    image = docker_engine.image(tag)
    assert image is not None
    assert image.id == done.image_id
    assert image.labels["org.example.title"] == "a title, with = and spaces"
    assert len(image.layers) == 1
    again = docker_engine.build(request, shown.append)
    assert again.ccache is None
    assert again.cached_steps >= 3
    assert again.image_id == done.image_id


@pytest.mark.engine
def test_failing_step(
    docker_engine: DockerEngine, docker_base: str, docker_name: MakeName, make_request: MakeRequest
) -> None:
    """It is named with its last lines and its log; it leaves no tag, and one from before stays as it was."""
    tag = docker_name()
    fails = (
        f"FROM {docker_base} AS build\nARG SALT\n"
        'RUN echo "[1/2] Building CXX object a.o"; echo "a.cpp:7:1: error: no" >&2; exit 7\n'
    )
    request = make_request(fails, tag=tag, build_args=build_arguments())
    with pytest.raises(OutsideError) as caught:
        docker_engine.build(request, lambda _: None)
    first, *lines = caught.value.message.splitlines()
    assert first.startswith(f"the build of {tag} failed at step [2/2] RUN echo")
    assert first.endswith("(exit code 7)")
    assert lines == ["  a.cpp:7:1: error: no"]
    assert caught.value.hint == f"The whole log: {request.log}."
    assert "a.cpp:7:1: error: no" in request.log.read_text()
    assert docker_engine.image(tag) is None

    docker_engine.tag(docker_base, tag)
    before = docker_engine.image(tag)
    with pytest.raises(OutsideError):
        docker_engine.build(make_request(fails, tag=tag, build_args=build_arguments()), lambda _: None)
    assert docker_engine.image(tag) == before


@pytest.mark.engine
def test_full_disk(
    docker_engine: DockerEngine, docker_base: str, docker_name: MakeName, make_request: MakeRequest
) -> None:
    """/dev/shm of a build holds 64 MiB."""
    text = f"FROM {docker_base}\nRUN busybox dd if=/dev/zero of=/dev/shm/objects bs=1M count=100\n"
    with pytest.raises(OutsideError, match=r"disk is full \(no space left on device\)") as caught:
        docker_engine.build(make_request(text, tag=docker_name()), lambda _: None)
    assert caught.value.hint is not None
    assert "Free space" in caught.value.hint


@pytest.mark.engine
def test_dockerfile_that_cannot_be_read(
    docker_engine: DockerEngine, docker_name: MakeName, make_request: MakeRequest
) -> None:
    with pytest.raises(OutsideError, match="unknown instruction: RUNN"):
        docker_engine.build(make_request("FROM scratch\nRUNN x\n", tag=docker_name()), lambda _: None)


@pytest.mark.engine
def test_missing_files_of_a_build(
    docker_engine: DockerEngine, docker_name: MakeName, make_request: MakeRequest, tmp_path: Path
) -> None:
    secret = {"token": tmp_path / "token"}
    request = make_request("FROM scratch\nCOPY file.txt /\n", tag=docker_name(), secrets=secret)
    with pytest.raises(UsageError, match=f"build secret 'token': {tmp_path}/token does not exist"):
        docker_engine.build(request, lambda _: None)
    request.dockerfile.unlink()
    with pytest.raises(UsageError, match=r"Dockerfile does not exist"):
        docker_engine.build(request, lambda _: None)


@pytest.mark.engine
def test_secret_reaches_its_step_and_no_layer(
    docker_engine: DockerEngine,
    docker_base: str,
    docker_name: MakeName,
    make_request: MakeRequest,
    tmp_path: Path,
) -> None:
    value = f"secret-{uuid.uuid4().hex}"
    path = tmp_path / 'a "secret", with a comma'
    path.write_text(value)
    tag = docker_name()
    request = make_request(
        f"FROM {docker_base}\nARG SALT\n"
        "RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /size && ls /run > /seen\n",
        tag=tag,
        secrets={"token": path},
        build_args=build_arguments(),
    )
    docker_engine.build(request, lambda _: None)
    archive = tmp_path / "root.tar"
    docker_engine.export_root(tag, archive)
    with tarfile.open(archive) as root:
        size = root.extractfile("size")
        assert size is not None
        assert size.read().strip() == str(len(value)).encode()
    with contextlib.closing(docker.from_env()) as client:
        saved = b"".join(client.api.get_image(tag))
    for place in (archive.read_bytes(), saved, request.log.read_bytes()):
        assert value.encode() not in place


@pytest.mark.engine
def test_interrupt_ends_the_build(
    docker_engine: DockerEngine,
    docker_base: str,
    docker_name: MakeName,
    make_request: MakeRequest,
    tmp_path: Path,
) -> None:
    tag = docker_name()
    seconds = 100_000 + uuid.uuid4().int % 800_000
    request = make_request(f"FROM {docker_base}\nRUN echo begun && sleep {seconds}\n", tag=tag)
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from llama_images.adapters.docker import DockerEngine
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
        try:
            DockerEngine(SystemPrograms(), ConsoleReporter(plain=True)).build(request, lambda _: None)
        except KeyboardInterrupt:
            raise SystemExit(130)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        assert wait_for(lambda: request.log.is_file() and b" begun" in request.log.read_bytes(), 60)
        # Where the engine is on this machine, the step's process can be seen from here.
        seen = wait_for(lambda: runs(f"sleep\0{seconds}"), 10)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(60) == 130
    if seen:
        assert wait_for(lambda: not runs(f"sleep\0{seconds}"), 30)
    assert not runs(tag)
    assert docker_engine.image(tag) is None


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def runs(text: str) -> bool:
    """Whether the command line of a process on this machine, this one aside, holds the text."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if int(path.parent.name) != os.getpid() and text.encode() in path.read_bytes():
                return True
    return False


# --- run ---


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_run_is_locked_down(docker_engine: DockerEngine, docker_base: str) -> None:
    """Read-only root, no network, and the user that was asked for."""
    result = docker_engine.run(
        RunRequest(
            image=docker_base,
            arguments=(
                "-c",
                "id -u; id -g; ls /sys/class/net; touch /tmp/x 2>&1",
            ),
            entrypoint=("/bin/busybox", "sh"),
            user="10001:10001",
        )
    )
    assert result.stdout.decode().splitlines() == [
        "10001",
        "10001",
        "lo",
        "touch: /tmp/x: Read-only file system",
    ]


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_root_in_the_container_has_no_capability(docker_engine: DockerEngine, docker_base: str) -> None:
    status = ("cat", "/proc/self/status")
    locked = docker_engine.run(RunRequest(image=docker_base, arguments=status)).stdout.decode()
    assert "CapEff:\t0000000000000000\n" in locked
    assert "NoNewPrivs:\t1\n" in locked
    open_ = docker_engine.run(
        RunRequest(image=docker_base, arguments=status, drop_capabilities=False)
    ).stdout.decode()
    assert "CapEff:\t0000000000000000\n" not in open_


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_streams_byte_for_byte(docker_engine: DockerEngine, docker_base: str) -> None:
    """Output that is no text, input larger than any buffer, both streams apart, and the exit code."""
    data = bytes(range(256)) * 8192
    result = docker_engine.run(
        RunRequest(
            image=docker_base,
            arguments=("sh", "-c", "cat; printf 'e\\377' >&2; printf \"$A\"; exit 5"),
            environment={"A": "b c"},
            stdin=data,
        )
    )
    assert result.stdout == data + b"b c"
    assert result.stderr == b"e\xff"
    assert result.exit_code == 5
    assert result.seconds > 0


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_mount_is_read_only(docker_engine: DockerEngine, docker_base: str, tmp_path: Path) -> None:
    (tmp_path / "model, tiny").mkdir()
    (tmp_path / "model, tiny/file").write_text("content")
    tmp_path.chmod(0o755)
    result = docker_engine.run(
        RunRequest(
            image=docker_base,
            arguments=("sh", "-c", "cat /models/file; echo x > /models/file"),
            mounts={tmp_path / "model, tiny": "/models"},
        )
    )
    assert result.stdout == b"content"
    assert b"Read-only file system" in result.stderr
    assert (tmp_path / "model, tiny/file").read_text() == "content"


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_writable_root_where_asked(docker_engine: DockerEngine, docker_base: str) -> None:
    request = RunRequest(image=docker_base, arguments=("touch", "/x"), read_only=False)
    assert docker_engine.run(request).exit_code == 0


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_time_out(docker_engine: DockerEngine, docker_base: str) -> None:
    started = time.monotonic()
    with pytest.raises(OutsideError, match="did not end within 1 seconds; its container was removed"):
        docker_engine.run(RunRequest(image=docker_base, arguments=("sleep", "300"), timeout=1))
    assert time.monotonic() - started < 30


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_missing_image(docker_engine: DockerEngine) -> None:
    name = "localhost/llama-images-test/missing:1"
    assert docker_engine.image(name) is None
    with pytest.raises(OutsideError, match=f"the engine has no image {name}"):
        docker_engine.run(RunRequest(image=name))
    with pytest.raises(OutsideError, match=f"the engine has no image {name}"):
        docker_engine.tag(name, "localhost/llama-images-test/missing:2")
    with pytest.raises(OutsideError, match=f"the engine has no image {name}"):
        docker_engine.layers(name)
    with pytest.raises(OutsideError, match=f"the engine has no image {name}"):
        docker_engine.push(name, lambda _: None)
    docker_engine.remove_tag(name)


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_program_that_is_not_in_the_image(docker_engine: DockerEngine, docker_base: str) -> None:
    with pytest.raises(OutsideError, match="executable file not found"):
        docker_engine.run(RunRequest(image=docker_base, arguments=("frobnicate",)))


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_missing_mount(docker_engine: DockerEngine, docker_base: str, tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match=f"can't mount a path .*{tmp_path}/no"):
        docker_engine.run(RunRequest(image=docker_base, mounts={tmp_path / "no": "/models"}))


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_an_interrupt_reaches_a_program_behind_the_engines_init(
    docker_engine: DockerEngine, docker_base: str
) -> None:
    words = ("sh", "-c", "echo ready >&2; exec sleep 30")
    result = docker_engine.run(
        RunRequest(image=docker_base, arguments=words, init=True, interrupt_on="ready", timeout=20)
    )
    assert result.exit_code == 130
    assert result.interrupted_after is not None
    assert result.seconds - result.interrupted_after < 5


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_process_1_without_a_handler_never_sees_an_interrupt(
    docker_engine: DockerEngine, docker_base: str
) -> None:
    """Why ``--init`` is in every ``docker run`` of the documents."""
    words = ("sh", "-c", "echo ready >&2; exec sleep 30")
    with pytest.raises(OutsideError, match="did not end within 3 seconds"):
        docker_engine.run(RunRequest(image=docker_base, arguments=words, interrupt_on="ready", timeout=3))


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_text_that_never_comes_interrupts_nothing(docker_engine: DockerEngine, docker_base: str) -> None:
    result = docker_engine.run(RunRequest(image=docker_base, arguments=("true",), interrupt_on="ready"))
    assert (result.exit_code, result.interrupted_after) == (0, None)


@pytest.mark.engine
def test_interrupt_removes_the_container(docker_engine: DockerEngine, docker_base: str) -> None:
    before = containers()
    program = textwrap.dedent(
        f"""
        from llama_images.adapters.docker import DockerEngine
        from llama_images.adapters.process import SystemPrograms
        from llama_images.adapters.reporter import ConsoleReporter
        from llama_images.ports import RunRequest

        try:
            request = RunRequest(image={docker_base!r}, arguments=("sleep", "300"))
            DockerEngine(SystemPrograms(), ConsoleReporter(plain=True)).run(request)
        except KeyboardInterrupt:
            raise SystemExit(130)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        assert wait_for(lambda: bool(containers() - before), 60)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(60) == 130
    assert containers() <= before


# --- tags and contents ---


@pytest.mark.engine
def test_tags(docker_engine: DockerEngine, docker_base: str, docker_name: MakeName) -> None:
    first, second = docker_name(), docker_name()
    docker_engine.tag(docker_base, first)
    docker_engine.tag(first, second)
    docker_engine.remove_tag(first)
    assert docker_engine.image(first) is None
    left, base = docker_engine.image(second), docker_engine.image(docker_base)
    assert left is not None
    assert left == base


@pytest.mark.engine
def test_layers(
    docker_engine: DockerEngine, docker_base: str, docker_name: MakeName, make_request: MakeRequest
) -> None:
    """Lowest first, with the instruction that made each; what only changes the configuration makes none."""
    tag = docker_name()
    text = (
        f"FROM {docker_base}\nRUN busybox dd if=/dev/zero of=/zeros bs=1k count=3000\n"
        "LABEL a=b\nRUN busybox dd if=/dev/urandom of=/noise bs=1k count=500\n"
    )
    docker_engine.build(make_request(text, tag=tag), lambda _: None)
    base, zeros, noise = docker_engine.layers(tag)
    image = docker_engine.image(tag)
    assert image is not None
    assert image.layers == (base.diff_id, zeros.diff_id, noise.diff_id)
    assert zeros.size_bytes == pytest.approx(3_072_000, abs=10_000)
    assert zeros.compressed_bytes < 10_000
    assert zeros.created_by == "RUN /bin/sh -c busybox dd if=/dev/zero of=/zeros bs=1k count=3000"
    assert noise.compressed_bytes == pytest.approx(512_000, abs=10_000)


@pytest.mark.engine
@pytest.mark.usefixtures("nothing_left")
def test_export_of_an_image_without_a_command(
    docker_engine: DockerEngine,
    docker_name: MakeName,
    make_request: MakeRequest,
    tmp_path: Path,
) -> None:
    tag = docker_name()
    docker_engine.build(make_request("FROM scratch\nCOPY file.txt /app/file.txt\n", tag=tag), lambda _: None)
    archive = tmp_path / "out" / "root.tar"
    docker_engine.export_root(tag, archive)
    with tarfile.open(archive) as root:
        member = root.extractfile("app/file.txt")
        assert member is not None
        assert member.read() == b"hello\n"
    assert [path.name for path in archive.parent.iterdir()] == ["root.tar"]


@pytest.mark.engine
def test_push_without_a_registry(docker_engine: DockerEngine, docker_base: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    name = f"127.0.0.1:{port}/llama-images-test/base:1"
    docker_engine.tag(docker_base, name)
    try:
        with pytest.raises(OutsideError, match=f"{name} was not pushed: .*connection refused") as caught:
            docker_engine.push(name, lambda _: None)
    finally:
        docker_engine.remove_tag(name)
    assert caught.value.hint == "Is the registry up, and its name right?"


def test_save(docker_engine: DockerEngine, docker_base: str, tmp_path: Path) -> None:
    archive, sizes = tmp_path / "new" / "image.tar", list[int]()
    docker_engine.save(docker_base, archive, sizes.append)
    with tarfile.open(archive) as tar:
        saved = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert saved[0]["RepoTags"] == [docker_base]
    assert sizes[-1] == archive.stat().st_size
    assert list(archive.parent.iterdir()) == [archive]
    with pytest.raises(OutsideError, match="the engine has no image no-such:1"):
        docker_engine.save("no-such:1", archive, sizes.append)
