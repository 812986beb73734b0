"""The demo's errors: what was done before is in its log, and the first error is the one that comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llama_images.errors import CheckFailed, LlamaImagesError, OutsideError
from llama_images.ports import HeldImage
from llama_images.render import base_reference
from llama_images.workflows.demo import DemoLog, DemoResult, demo
from llama_images.workflows.workshop import write_or_remove
from tests.unit.fakes import House

HOST = "localhost:5555"


@dataclass
class FakeRegistry:
    """Counts how often it was started and stopped."""

    start_error: BaseException | None = None
    events: list[str] = field(default_factory=list)
    host: str = HOST
    url: str = f"http://{HOST}"

    def __enter__(self) -> FakeRegistry:
        if self.start_error is not None:
            raise self.start_error
        self.events.append("started")
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None:
        self.events.append("stopped")


@dataclass
class FakeReader:
    """Says that it holds what it is asked for, or something else."""

    url: str
    other: str | None = None

    def read_image(self, repository: str, reference: str) -> HeldImage:
        assert (self.url, repository) == (f"http://{HOST}", "llama-diffusion")
        return HeldImage(digest=self.other or reference, blobs=3, compressed_bytes=2_000_000)


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    for path, text in house.shop().rendered().items():
        write_or_remove(house.root / path, text)
    return house


def run(
    house: House, log: DemoLog, registry: FakeRegistry, *, model: Callable[[], Path], other: str | None = None
) -> DemoResult:
    return demo(
        house.shop(),
        house.engine,
        log,
        repo=None,
        model=model,
        registry=registry,
        reader=lambda url: FakeReader(url, other),
    )


def no_model() -> Path:
    raise AssertionError("the model is made for a built image alone")


def base_of(house: House) -> str:
    (base,) = (base for base in house.shop().matrix.bases.values() if base.kind == "bootstrap")
    return base_reference(base)


def names(log: DemoLog) -> list[str]:
    return [name for name, _text, _seconds in log.parts]


def text_of(log: DemoLog, start: str) -> str:
    (text,) = (text for name, text, _seconds in log.parts if name.startswith(start))
    return text


BEFORE_SOURCE = ["matrix and templates", "plan", "base image"]


def test_without_the_source_the_rest_is_shown_and_the_same_error_comes_out(house: House) -> None:
    error = house.source_tree.error = OutsideError("can't reach the repository", hint="--repo PATH")
    log, registry = DemoLog(), FakeRegistry()
    with pytest.raises(OutsideError) as raised:
        run(house, log, registry, model=no_model)
    assert raised.value is error
    assert names(log)[:4] == [*BEFORE_SOURCE, "source"]
    assert len(log.parts) == 5
    assert text_of(log, "source") == "failed: can't reach the repository"
    assert text_of(log, "registry round trip").startswith("pushed and read back sha256:")
    base = house.engine.images[base_of(house)]
    assert house.engine.pushed == [(f"{HOST}/llama-diffusion:base", base.id)]
    assert set(house.engine.images) == {base_of(house)}
    assert registry.events == ["started", "stopped"]


def test_a_registry_that_does_not_start_does_not_hide_the_sources_error(house: House) -> None:
    error = house.source_tree.error = OutsideError("can't reach the repository")
    log = DemoLog()
    with pytest.raises(OutsideError) as raised:
        run(house, log, FakeRegistry(OutsideError("no port is free")), model=no_model)
    assert raised.value is error
    assert text_of(log, "registry round trip") == "failed: no port is free"


def test_a_push_that_fails_does_not_hide_the_sources_error_and_leaves_no_tag(house: House) -> None:
    error = house.source_tree.error = OutsideError("can't reach the repository")
    house.engine.push_error = OutsideError("the push was refused")
    log, registry = DemoLog(), FakeRegistry()
    with pytest.raises(OutsideError) as raised:
        run(house, log, registry, model=no_model)
    assert raised.value is error
    assert text_of(log, "registry round trip") == "failed: the push was refused"
    assert set(house.engine.images) == {base_of(house)}
    assert registry.events == ["started", "stopped"]


def test_a_registry_that_holds_something_else_does_not_hide_the_sources_error(house: House) -> None:
    error = house.source_tree.error = OutsideError("can't reach the repository")
    log = DemoLog()
    with pytest.raises(LlamaImagesError) as raised:
        run(house, log, FakeRegistry(), model=no_model, other="sha256:other")
    assert raised.value is error
    assert text_of(log, "registry round trip").startswith("failed: the registry holds sha256:other")


def test_a_tree_that_is_not_the_pinned_one_ends_the_demo_there(house: House) -> None:
    error = house.source_tree.error = CheckFailed("the tree hash differs")
    log, registry = DemoLog(), FakeRegistry()
    with pytest.raises(CheckFailed) as raised:
        run(house, log, registry, model=no_model)
    assert raised.value is error
    assert names(log) == [*BEFORE_SOURCE, "source"]
    assert registry.events == []


def test_files_that_drifted_end_the_demo_before_any_work(house: House) -> None:
    dockerfile = house.root / "images" / "cpu" / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text("utf-8") + "RUN true\n", "utf-8")
    log = DemoLog()
    with pytest.raises(CheckFailed, match=r"images/cpu/Dockerfile differs"):
        run(house, log, FakeRegistry(), model=no_model)
    assert names(log) == BEFORE_SOURCE[:1]
    assert (house.engine.built, house.source_tree.asked) == ([], [])


def test_a_base_that_can_not_be_made_is_the_last_part(house: House) -> None:
    house.programs.failure = b"E: no such host\n"
    log, registry = DemoLog(), FakeRegistry()
    with pytest.raises(OutsideError, match="E: no such host"):
        run(house, log, registry, model=no_model)
    assert names(log) == BEFORE_SOURCE
    assert "failed: mmdebstrap" in text_of(log, "base image")
    assert registry.events == []


def test_a_failing_build_is_told_as_such_and_is_not_taken_for_a_missing_source(house: House) -> None:
    error = house.engine.failures["llama-diffusion:cpu"] = OutsideError("step 7 failed")
    log, registry = DemoLog(), FakeRegistry()
    with pytest.raises(OutsideError) as raised:
        run(house, log, registry, model=no_model)
    assert raised.value is error
    assert names(log) == [*BEFORE_SOURCE, "source", "image"]
    assert text_of(log, "image") == "failed: step 7 failed"
    assert len(house.source_tree.asked) == 1, "the source was checked out again for the image"
    assert registry.events == []


def test_an_interrupted_build_is_told_as_such(house: House) -> None:
    house.engine.failures["llama-diffusion:cpu"] = KeyboardInterrupt()
    log = DemoLog()
    with pytest.raises(KeyboardInterrupt):
        run(house, log, FakeRegistry(), model=no_model)
    assert text_of(log, "image") == "interrupted"


def test_an_image_that_does_not_pass_its_checks_is_not_pushed(house: House, tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(b"GGUF")
    log, registry = DemoLog(), FakeRegistry()
    with pytest.raises(CheckFailed, match="llama-diffusion:cpu: "):
        run(house, log, registry, model=lambda: model)
    assert names(log)[-2:] == ["tiny synthetic model", "generation in the container, judged"]
    assert house.engine.pushed == []
    assert registry.events == []
