"""Builders of buildx: what is read of them, and the command line that builds on one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llama_images.adapters.buildx import (
    Builder,
    build_arguments,
    choose_builder,
    extra_arguments,
    needed_images,
    parse_builder,
    served,
)
from llama_images.errors import OutsideError, UsageError
from llama_images.ports import BuildRequest, Finished
from tests.unit.fakes import FakeReporter

DOCKER = Path("/usr/bin/docker")
BASE = "localhost/llama-images/base:bookworm"

REMOTE = """Name:          mine
Driver:        remote
Last Activity: 2026-11-24 15:33:14 +0000 UTC

Nodes:
Name:             mine0
Endpoint:         unix:///run/buildkit.sock
Status:           running
BuildKit version: v0.32.2
Platforms:        linux/amd64, linux/amd64/v2, linux/386
Labels:
 org.mobyproject.buildkit.worker.executor:         oci

Name:             mine1
Endpoint:         tcp://node.example:1234
Driver Options:   default-load="true"
Status:           running
Platforms:        linux/arm64*, linux/amd64
"""
OWN = """Name:   default
Driver: docker

Nodes:
Name:      default
Endpoint:  default
Status:    running
Platforms: linux/amd64
"""
MINE = Builder(name="mine", driver="docker-container", platforms=("linux/arm64", "linux/amd64"))
ENGINE = Builder(name="", driver="docker", platforms=())


@dataclass
class Inspect:
    """A docker program that knows `buildx inspect` alone."""

    stdout: str = ""
    stderr: str = ""
    returncode: int = 0
    runs: list[tuple[str, ...]] = field(default_factory=list)

    def find(self, name: str) -> tuple[Path, ...]:
        return (DOCKER,)

    def run(self, argv: Sequence[str], **_how: Any) -> Finished:
        self.runs.append(tuple(argv))
        return Finished(
            argv=tuple(argv),
            returncode=self.returncode,
            stdout=self.stdout.encode(),
            stderr=self.stderr.encode(),
        )


def request(**others: object) -> BuildRequest:
    fields: dict[str, object] = {
        "dockerfile": Path("context/Dockerfile"),
        "context": Path("context"),
        "tag": "example:1",
        "platform": "linux/amd64",
        "local_images": (BASE,),
        "log": Path("log"),
        **others,
    }
    return BuildRequest(**fields)  # type: ignore[arg-type]


# --- which one ---


def test_what_inspect_prints_is_read() -> None:
    assert parse_builder(OWN) == Builder(name="default", driver="docker", platforms=("linux/amd64",))
    assert parse_builder(REMOTE) == Builder(
        name="mine",
        driver="remote",
        platforms=("linux/amd64", "linux/amd64/v2", "linux/386", "linux/arm64"),
    )


@pytest.mark.parametrize("text", ["", "Name: x\n", "Driver: docker\n", "no builder"])
def test_another_text_describes_no_builder(text: str) -> None:
    assert parse_builder(text) is None


def test_a_named_builder_is_started_and_taken() -> None:
    programs = Inspect(REMOTE)
    builder = choose_builder(programs, DOCKER, "mine", {}, FakeReporter())
    assert (builder.name, builder.driver) == ("mine", "remote")
    assert programs.runs == [(str(DOCKER), "buildx", "inspect", "--bootstrap", "mine")]


def test_a_builder_that_can_not_be_used_is_told_with_buildx_s_own_words() -> None:
    programs = Inspect(stderr='WARNING: x\nERROR: no builder "mine" found\n', returncode=1)
    with pytest.raises(OutsideError) as raised:
        choose_builder(programs, DOCKER, "mine", {}, FakeReporter())
    assert raised.value.message == "the builder 'mine' can't be used: no builder \"mine\" found"
    assert raised.value.hint is not None
    assert "docker buildx ls" in raised.value.hint


@pytest.mark.parametrize("programs", [Inspect(OWN), Inspect(returncode=1)], ids=["docker", "not told"])
def test_without_a_name_the_engine_builds(programs: Inspect) -> None:
    reporter = FakeReporter()
    assert choose_builder(programs, DOCKER, None, {}, reporter) == ENGINE
    assert reporter.lines == []
    assert programs.runs == [(str(DOCKER), "buildx", "inspect")]


def test_a_current_builder_beside_the_engine_is_passed_over_and_told() -> None:
    reporter = FakeReporter()
    builder = choose_builder(Inspect(REMOTE), DOCKER, None, {}, reporter)
    assert (builder.name, builder.is_the_engine) == ("default", True)
    (line,) = reporter.lines
    assert line.startswith("warning: the current buildx builder mine (remote)")
    assert "--builder mine" in line


# --- what it serves ---


@pytest.mark.parametrize(
    ("builder", "platforms"),
    [
        (ENGINE, ("linux/amd64",)),
        (MINE, ("linux/amd64", "linux/arm64")),
        (Builder(name="arm", driver="kubernetes", platforms=("linux/arm64",)), ("linux/arm64",)),
        (Builder(name="silent", driver="remote", platforms=()), ("linux/amd64",)),
    ],
)
def test_the_engine_s_platform_comes_first_where_it_is_served(
    builder: Builder, platforms: tuple[str, ...]
) -> None:
    assert served(builder, "linux/amd64") == platforms


# --- its command line ---


def test_the_engine_s_own_builder_needs_neither_platform_nor_images() -> None:
    assert needed_images(ENGINE, request()) == ()
    assert build_arguments(ENGINE, request(), engine_platform="linux/amd64", layouts={}) == [
        *("buildx", "build", "--load", "--progress=plain"),
        *("--file", "context/Dockerfile", "--tag", "example:1", "context"),
    ]


def test_another_builder_is_told_the_platform_gets_the_base_and_loads_its_result() -> None:
    assert needed_images(MINE, request()) == (BASE,)
    layouts = {BASE: Path("/tmp/layout")}
    assert build_arguments(MINE, request(), engine_platform="linux/amd64", layouts=layouts) == [
        *("buildx", "build", "--load", "--builder", "mine", "--progress=plain"),
        *("--file", "context/Dockerfile", "--tag", "example:1", "--platform", "linux/amd64"),
        *("--build-context", f"{BASE}=oci-layout:///tmp/layout:latest", "context"),
    ]


def test_the_engine_builds_for_another_platform_where_it_is_asked_to() -> None:
    words = build_arguments(
        ENGINE, request(platform="linux/arm64"), engine_platform="linux/amd64", layouts={}
    )
    assert words[-3:] == ["--platform", "linux/arm64", "context"]


def test_the_environment_adds_options() -> None:
    extra = extra_arguments({"LLAMA_IMAGES_BUILDX_ARGS": "--cache-from 'type=registry,ref=r.example/x'"})
    assert extra == ["--cache-from", "type=registry,ref=r.example/x"]
    words = build_arguments(MINE, request(), engine_platform="linux/amd64", layouts={}, extra=extra)
    assert words[-3:] == [*extra, "context"]
    assert extra_arguments({}) == []
    with pytest.raises(UsageError, match="LLAMA_IMAGES_BUILDX_ARGS can't be split"):
        extra_arguments({"LLAMA_IMAGES_BUILDX_ARGS": "'"})
