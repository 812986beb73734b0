"""A CA bundle and proxies on their way through a build: its steps see them, the image does not hold them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from llama_images import selection
from llama_images.adapters.docker import DockerEngine
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.reporter import ConsoleReporter
from llama_images.errors import OutsideError
from llama_images.matrix import load_matrix
from llama_images.patch_series import make_series
from llama_images.plan import choose, make_plan
from llama_images.workflows.build import Built, build_all
from llama_images.workflows.workshop import Workshop
from tests.unit.fakes import FakeSourceTree

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]

CERTIFICATE = f"certificate-{uuid.uuid4().hex}"
PASSWORD = f"password-{uuid.uuid4().hex}"
PROXY = f"http://user:{PASSWORD}@proxy.example:3128"

# By their lengths: what a step's text held would be in the image's history. The salt keeps each step from the
# engine's cache, where it would prove nothing.
SEES = f"""FROM {{base}} AS build
ENV SALT={{salt}}
RUN --mount=type=secret,id=ca test "$(wc -c < /run/secrets/ca)" = {len(CERTIFICATE)}
RUN test "$(printf %s "$https_proxy" | wc -c)" = {len(PROXY)}
RUN test "$(printf %s "$HTTP_PROXY" | wc -c)" = {len(PROXY)} && echo seen > /seen
FROM {{base}}
ENV SALT={{salt}}
COPY --from=build /seen /seen
RUN --mount=type=secret,id=ca test -s /run/secrets/ca && test -n "$https_proxy"
"""

LEAKS = {
    "a file in a layer": "RUN --mount=type=secret,id=ca cat /run/secrets/ca > /kept\n",
    "a variable": "ARG https_proxy\nENV KEPT=$https_proxy\n",
    "the history": "ARG https_proxy\nLABEL kept=$https_proxy\n",
}

Build = Callable[..., Built]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Somewhere in an image, and what is there."""

    name: str
    content: bytes


def places(reference: str) -> Iterator[Place]:
    """Everything that an image consists of: configuration, history, and each file of `docker save`."""
    with contextlib.closing(docker.from_env()) as client:
        api: Any = client.api  # the stubs leave these without types
        yield Place(name="inspect", content=json.dumps(api.inspect_image(reference)).encode())
        yield Place(name="history", content=json.dumps(api.history(reference)).encode())
        archive = io.BytesIO(b"".join(api.get_image(reference)))
    with tarfile.open(fileobj=archive) as saved:
        for member in saved:
            if member.isfile() and (file := saved.extractfile(member)) is not None:
                content = file.read()
                if content.startswith(b"\x1f\x8b"):  # layers of the containerd image store
                    content = zlib.decompress(content, 16 + zlib.MAX_WBITS)
                yield Place(name=member.name, content=content)


def found(reference: str) -> list[str]:
    """Names of the places that hold the certificate or the proxy's password."""
    return [
        place.name
        for place in places(reference)
        if CERTIFICATE.encode() in place.content or PASSWORD.encode() in place.content
    ]


@pytest.fixture
def build(
    docker_engine: DockerEngine, docker_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Build]:
    """The build workflow with a Dockerfile's text in place of the template, under a name of its own."""
    monkeypatch.setattr(selection, "IMAGE", f"localhost/llama-images-test/{uuid.uuid4().hex[:12]}")
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "templates", root / "templates")
    shutil.copytree(ROOT / "images" / "common", root / "images" / "common")
    shutil.copy(ROOT / "README.md", root)
    matrix = load_matrix(ROOT / "matrix.yaml")
    references: list[str] = []

    def make(dockerfile: str, environment: dict[str, str]) -> Built:
        text = dockerfile.format(base=docker_base, salt=uuid.uuid4().hex)
        (root / "templates" / "Dockerfile.j2").write_text(text, "utf-8")
        shop = Workshop(
            root=root,
            cache=tmp_path / "cache",
            environment=environment,
            matrix=matrix,
            series={one.series: make_series(one.series, []) for one in matrix.sources.values()},
            programs=SystemPrograms(),
            reporter=ConsoleReporter(io.StringIO(), plain=True),
            source_tree=FakeSourceTree(tmp_path / "trees"),
        )
        platform = docker_engine.info().platform
        chosen = choose(matrix, ["90"], base="nvidia", platform=platform, native=tuple)
        references.append(selection.local_reference(chosen.targets[0]))
        plan = make_plan(chosen, series=shop.series, platform=platform)
        (built,) = build_all(shop, docker_engine, plan, repo=None)
        return built

    yield make
    for reference in references:
        docker_engine.remove_tag(reference)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    bundle = tmp_path / "company.pem"
    bundle.write_text(CERTIFICATE)
    return {"SSL_CERT_FILE": str(bundle), "https_proxy": PROXY, "HTTP_PROXY": PROXY}


def test_a_build_sees_the_bundle_and_the_proxies_and_its_image_holds_neither(
    build: Build, environment: dict[str, str]
) -> None:
    built = build(SEES, environment)
    assert found(built.reference) == []
    assert any(b"seen\n" in place.content for place in places(built.reference)), "the steps did not run"
    assert built.log is not None
    log = built.log.read_text("utf-8")
    assert CERTIFICATE not in log
    assert PASSWORD not in log


@pytest.mark.parametrize("left_out", ["SSL_CERT_FILE", "https_proxy", "HTTP_PROXY"])
def test_without_one_of_them_the_same_build_fails(
    build: Build, environment: dict[str, str], left_out: str
) -> None:
    del environment[left_out]
    with pytest.raises(OutsideError, match="failed at step"):
        build(SEES, environment)


@pytest.mark.parametrize("leak", LEAKS)
def test_the_search_finds_a_leak(build: Build, environment: dict[str, str], leak: str) -> None:
    """Dockerfiles that let them out, so that the test above is known to look where it should."""
    places_found = found(build(SEES + LEAKS[leak], environment).reference)
    if leak == "a file in a layer":
        assert places_found
        assert not {"inspect", "history"} & set(places_found)
    else:
        assert {"inspect", "history"} <= set(places_found)
