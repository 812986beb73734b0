"""Pins from the real thing: a registry that an engine pushed to, pip, git."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import threading
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import docker
import pytest
import requests

from llama_images.adapters.docker import DockerEngine
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.registry import LocalRegistry
from llama_images.adapters.registry_client import RegistryClient
from llama_images.adapters.upstreams import PublicUpstreams
from llama_images.errors import OutsideError
from llama_images.matrix import load_matrix, parse_matrix
from llama_images.pins import placed_wheels
from llama_images.workflows.pins import update_pins
from tests.engine.conftest import quiet, unmet

ROOT = Path(__file__).resolve().parents[2]
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture
def upstreams(tmp_path: Path) -> PublicUpstreams:
    return PublicUpstreams(SystemPrograms(), tmp_path / "cache", os.environ)


# --- registries -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalRegistry]:
    programs = SystemPrograms(grace=5)
    if not programs.find("docker-registry"):
        unmet(request, "docker-registry is not installed")
    with LocalRegistry(programs, tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def pushed(registry: LocalRegistry, docker_engine: DockerEngine, docker_base: str) -> Iterator[str]:
    """A small image that docker pushed; its digest."""
    name = f"{registry.host}/team/cuda:single"
    docker_engine.tag(docker_base, name)
    try:
        yield docker_engine.push(name, lambda _text: None)
    finally:
        docker_engine.remove_tag(name)


def put_index(registry: LocalRegistry, digest: str, tag: str, *platforms: str) -> str:
    """Put an index that gives one manifest for several platforms, with a note as buildx adds; its digest."""
    size = len(RegistryClient(registry.url).manifest("team/cuda", digest).raw)
    entries = [{"os": one.split("/")[0], "architecture": one.split("/")[1]} for one in platforms]
    entries += [{"os": "unknown", "architecture": "unknown"}]
    content = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "annotations": {"tag": tag},
        "manifests": [
            {"mediaType": MANIFEST, "digest": digest, "size": size, "platform": one} for one in entries
        ],
    }
    data = json.dumps(content).encode()
    with requests.Session() as session:
        session.trust_env = False
        url = f"{registry.url}/v2/team/cuda/manifests/{tag}"
        answer = session.put(url, data=data, headers={"Content-Type": INDEX}, timeout=30)
    assert answer.status_code == 201, answer.text
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_an_image_that_docker_pushed(
    registry: LocalRegistry, pushed: str, upstreams: PublicUpstreams, docker_engine: DockerEngine
) -> None:
    image = upstreams.image(f"{registry.host}/team/cuda:single")
    assert image.digest == pushed
    assert image.platforms == {docker_engine.info().platform}
    assert "single" in upstreams.image_tags(f"{registry.host}/team/cuda:whatever")


def test_the_engine_resolves_an_index_to_the_same_digest(
    registry: LocalRegistry, pushed: str, upstreams: PublicUpstreams
) -> None:
    digest = put_index(registry, pushed, "many", "linux/amd64", "linux/arm64")
    image = upstreams.image(f"{registry.host}/team/cuda:many")
    assert image.digest == digest
    assert image.digest != pushed
    assert image.platforms >= {"linux/amd64", "linux/arm64"}
    with contextlib.closing(docker.from_env()) as client:
        found = client.images.get_registry_data(f"{registry.host}/team/cuda:many")
        assert found.id == digest


def matrix_text(host: str) -> str:
    text = (ROOT / "tests/unit/example_matrix.yaml").read_text(encoding="utf-8")
    return text.replace('"nvidia/cuda:', f'"{host}/team/cuda:')


def test_the_matrix_is_pinned_from_a_registry(
    registry: LocalRegistry, pushed: str, upstreams: PublicUpstreams, tmp_path: Path
) -> None:
    digests = {}
    both = ("linux/amd64", "linux/arm64")
    for kind in ("devel", "runtime"):
        # 13.0.3 has no arm64: 13.0.2 is the newest that fits.
        for version, platforms in (
            ("12.9.1", both[:1]),
            ("13.0.1", both),
            ("13.0.2", both),
            ("13.0.3", both[:1]),
            ("13.1.0", both),
        ):
            tag = f"{version}-{kind}-ubuntu24.04"
            digests[tag] = put_index(registry, pushed, tag, *platforms)
    path = tmp_path / "matrix.yaml"
    path.write_text(matrix_text(registry.host))
    result = update_pins(path, upstreams, quiet(), show=print, only=["images"])
    assert result.written
    matrix = parse_matrix(path.read_text(), name="matrix.yaml")
    found = {
        ref.reference
        for toolkit in matrix.toolkits.values()
        if toolkit.images is not None
        for ref in (toolkit.images.devel, toolkit.images.runtime)
    }
    assert found == {
        f"{registry.host}/team/cuda:{tag}@{digests[tag]}"
        for version in ("12.9.1", "13.0.2")
        for tag in (f"{version}-devel-ubuntu24.04", f"{version}-runtime-ubuntu24.04")
    }
    assert update_pins(path, upstreams, quiet(), show=print, only=["images"]).changes == ()


def test_a_registry_without_the_image_or_without_an_answer(
    registry: LocalRegistry, pushed: str, upstreams: PublicUpstreams
) -> None:
    with pytest.raises(OutsideError, match="has no team/cuda:none"):
        upstreams.image(f"{registry.host}/team/cuda:none")
    with pytest.raises(OutsideError, match="has no team/other"):
        upstreams.image_tags(f"{registry.host}/team/other:1")
    # Nobody listens on the port of a registry that has ended.
    with pytest.raises(
        OutsideError, match=r"the registry 127\.0\.0\.1:1 can't be reached: connection refused"
    ):
        upstreams.image("127.0.0.1:1/team/cuda:1")


class TokenGate(BaseHTTPRequestHandler):
    """Stands in front of the registry and lets nobody in without a token, as public registries do."""

    registry: str
    token: str
    asked: ClassVar[list[dict[str, list[str]]]]
    challenge: str

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            self.asked.append(parse_qs(url.query))
            self._send(200, json.dumps({"token": self.token}).encode(), {})
        elif self.headers.get("Authorization") != f"Bearer {self.token}":
            self._send(401, b"{}", {"WWW-Authenticate": self.challenge})
        else:
            ask = urllib.request.Request(
                f"{self.registry}{self.path}", headers={"Accept": self.headers["Accept"]}
            )
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(ask, timeout=30) as answer:
                kept = ("Content-Type", "Docker-Content-Digest")
                headers = {key: answer.headers[key] for key in kept if key in answer.headers}
                self._send(200, answer.read(), headers)

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        pass


Gate = Callable[[str], tuple[str, type[TokenGate]]]


@pytest.fixture
def gate(registry: LocalRegistry) -> Iterator[Gate]:
    """Opens a gate with this challenge, in which {address} is the gate's own; gives address and handler."""
    stored = registry
    with contextlib.ExitStack() as stack:

        def start(challenge: str) -> tuple[str, type[TokenGate]]:
            class Here(TokenGate):
                registry = stored.url
                token = uuid.uuid4().hex
                asked: ClassVar[list[dict[str, list[str]]]] = []

            handler = Here
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            address = f"http://127.0.0.1:{server.server_address[1]}"
            handler.challenge = challenge.format(address=address)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(server.shutdown)
            return address, handler

        yield start


def test_an_anonymous_token_is_fetched_once_and_renewed(
    pushed: str, gate: Gate, upstreams: PublicUpstreams
) -> None:
    scope = "repository:team/cuda:pull"
    address, handler = gate(f'Bearer realm="{{address}}/token",service="gate",scope="{scope}"')
    name = f"{urlsplit(address).netloc}/team/cuda:single"
    assert upstreams.image(name).digest == pushed
    assert "single" in upstreams.image_tags(name)
    assert handler.asked == [{"service": ["gate"], "scope": [scope]}]
    handler.token = "another"  # the old one has run out
    assert upstreams.image(name).digest == pushed
    assert len(handler.asked) == 2


@pytest.mark.parametrize(
    "challenge",
    ['Basic realm="x"', "", 'Bearer realm="file:///etc/passwd"', 'Bearer realm="{address}/none"', "Bearer"],
)
def test_a_registry_that_gives_no_token(
    pushed: str, gate: Gate, challenge: str, upstreams: PublicUpstreams
) -> None:
    address, handler = gate(challenge)
    with pytest.raises(OutsideError, match="does not show team/cuda:single to everybody"):
        upstreams.image(f"{urlsplit(address).netloc}/team/cuda:single")
    assert handler.asked == []


# --- wheels ---------------------------------------------------------------------------------------


def make_wheel(folder: Path, name: str, version: str, tag: str) -> str:
    """A wheel with nothing in it; its sha256."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-{tag}\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    target = folder / f"{module}-{version}-py3-none-{tag}.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return hashlib.sha256(target.read_bytes()).hexdigest()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


def with_shelf(shelf: Path, tmp_path: Path) -> PublicUpstreams:
    """Asks a pip whose settings name the folder alone: what the user has set counts."""
    settings = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(shelf),
        "PIP_QUIET": "2",
    }
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")} | settings
    return PublicUpstreams(SystemPrograms(environ=environ), tmp_path / "cache", environ)


@pytest.mark.slow
def test_wheels_through_pip(shelf: Path, tmp_path: Path) -> None:
    name = "nvidia-cuda-crt"
    amd64 = make_wheel(shelf, name, "13.0.90", "manylinux2014_x86_64.manylinux_2_17_x86_64")
    arm64 = make_wheel(shelf, name, "13.0.90", "manylinux_2_27_aarch64")
    make_wheel(shelf, name, "13.0.91", "manylinux_2_28_aarch64")
    make_wheel(shelf, name, "13.0.92", "manylinux_2_99_aarch64")
    make_wheel(shelf, name, "13.0.93", "win_amd64")
    upstreams = with_shelf(shelf, tmp_path)
    assert upstreams.wheel_versions(name, "linux/amd64") == ("13.0.90",)
    assert upstreams.wheel_versions(name, "linux/arm64") == ("13.0.91", "13.0.90")
    assert upstreams.wheel(name, "13.0.90", "linux/amd64").sha256 == amd64
    assert upstreams.wheel(name, "13.0.90", "linux/arm64").sha256 == arm64
    with pytest.raises(
        OutsideError, match=r"pip was asked for nvidia-cuda-crt 13\.0\.91 for linux/amd64: No "
    ):
        upstreams.wheel(name, "13.0.91", "linux/amd64")
    with pytest.raises(OutsideError, match=r"pip was asked which versions of nvidia-none .*: No matching"):
        upstreams.wheel_versions("nvidia-none", "linux/amd64")


def test_an_index_that_nobody_answers_for(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environ |= {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:1/simple",
        "PIP_RETRIES": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    upstreams = PublicUpstreams(SystemPrograms(environ=environ), tmp_path / "cache", environ)
    with pytest.raises(
        OutsideError, match="the package index can't be reached; asked which versions of nvidia"
    ):
        upstreams.wheel_versions("nvidia-cuda-crt", "linux/amd64")


def test_a_python_without_pip(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    upstreams = PublicUpstreams(SystemPrograms(), tmp_path / "cache", os.environ, python=str(python))
    with pytest.raises(OutsideError, match="this Python has no pip"):
        upstreams.wheel_versions("nvidia-cuda-crt", "linux/amd64")


@pytest.mark.network
@pytest.mark.slow
def test_the_pinned_hashes_are_those_of_the_index(upstreams: PublicUpstreams) -> None:
    toolkit = load_matrix(ROOT / "matrix.yaml").toolkits["cuda-13.0"]
    # The smallest one: a pip that finds no metadata in the index fetches the whole file.
    wheel = next(one for _, one in placed_wheels(toolkit) if one.name == "nvidia-cuda-crt")
    try:
        versions = upstreams.wheel_versions(wheel.name, "linux/arm64")
    except OutsideError as error:
        pytest.skip(f"the package index: {error.message}")
    assert wheel.version in versions
    assert upstreams.wheel(wheel.name, wheel.version, "linux/arm64").sha256 == wheel.sha256["linux/arm64"]


# --- the source -----------------------------------------------------------------------------------


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., str]:
    programs = SystemPrograms()
    names = ("AUTHOR", "COMMITTER")
    env = {f"GIT_{who}_{what}": "a@example.org" for who in names for what in ("NAME", "EMAIL")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull}
    repository = tmp_path / "upstream"
    repository.mkdir()

    def run(*arguments: str) -> str:
        finished = programs.run(["git", "-C", str(repository), *arguments], env=env)
        assert finished.returncode == 0, finished.error_text
        return finished.text.strip()

    run("init", "--quiet", "--initial-branch", "main")
    return run


def test_the_head_of_a_pull_request(
    git: Callable[..., str], upstreams: PublicUpstreams, tmp_path: Path
) -> None:
    repository = str(tmp_path / "upstream")
    git("commit", "--quiet", "--allow-empty", "-m", "one")
    first = git("rev-parse", "HEAD")
    git("update-ref", "refs/pull/24423/head", first)
    assert upstreams.head(repository, "pull/24423/head") == first
    git("commit", "--quiet", "--allow-empty", "-m", "two")
    second = git("rev-parse", "HEAD")
    # Another ref that ends in the same words is not the one that is meant.
    git("update-ref", "refs/backup/pull/24423/head", second)
    assert upstreams.head(repository, "pull/24423/head") == first
    git("update-ref", "refs/pull/24423/head", second)
    assert upstreams.head(repository, "pull/24423/head") == second
    git("tag", "-a", "-m", "x", "v1", first)
    assert git("rev-parse", "v1") != first
    assert upstreams.head(repository, "v1") == first
    assert upstreams.head(repository, "main") == second
    with pytest.raises(OutsideError, match="has no pull/1/head"):
        upstreams.head(repository, "pull/1/head")
    with pytest.raises(OutsideError, match=r"can't be asked for main: .*does not"):
        upstreams.head(str(tmp_path / "none"), "main")
