"""What is tested: an image with its labels, or a bare binary."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_images.errors import CheckFailed, UsageError
from llama_images.matrix import Flavor
from llama_images.ports import ImageInfo, ProgramRun, RunResult
from llama_images.render import labels
from llama_images.selection import Target, local_reference, make_target
from llama_images.workflows.subjects import Subject, binary_subject, image_subject
from tests.unit.fakes import FakeEngine, House


@dataclass(frozen=True)
class Named:
    """A program that is known by its name alone."""

    name: str | Path

    def place(self, file: Path) -> str:
        raise AssertionError("nothing is run here")

    def run(self, request: ProgramRun) -> RunResult:
        raise AssertionError("nothing is run here")


class Recording(FakeEngine):
    def hold(self, target: Target) -> None:
        self.images[local_reference(target)] = ImageInfo(
            id=f"sha256:{target.id}",
            labels=labels(target, None) | {"io.github.llama-images.inputs": "sha256:inputs"},
            environment=(),
            entrypoint=(),
            user="",
            layers=(),
            size_bytes=1,
            created="",
        )


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def targets(house: House, arch: str) -> tuple[Target, Target]:
    matrix = house.shop().matrix
    return make_target(matrix, arch), make_target(matrix, arch, flavor="stock")


def test_what_an_image_is_comes_from_its_labels(house: House) -> None:
    patched, stock = targets(house, "120")
    engine = Recording()
    engine.hold(patched)
    subject = image_subject(engine, patched, stock, Named)
    assert (subject.flavor, subject.on_gpus, subject.in_container) == ("patched", True, True)
    assert subject.minimum_driver == "580.65.06"
    record = subject.record
    assert (record.name, record.image_id, record.inputs) == ("sm120", "sha256:sm120", "sha256:inputs")
    assert (record.toolkit, record.architectures, record.ptx) == ("cuda-13.0", ("sm_120a",), ())
    assert record.revision == patched.source.commit


def test_the_stock_image_beside_it_is_found_or_named(house: House) -> None:
    patched, stock = targets(house, "120")
    engine = Recording()
    engine.hold(patched)
    without = image_subject(engine, patched, stock, Named)
    assert without.stock is None
    assert without.why_no_stock == (
        "there is no image llama-diffusion:sm120-stock (invoke build --arch 120 --flavor stock)"
    )
    engine.hold(stock)
    beside = image_subject(engine, patched, stock, Named).stock
    assert beside == Named("llama-diffusion:sm120-stock")
    itself = image_subject(engine, stock, stock, Named)
    assert itself.stock is itself.program


def test_an_image_that_was_never_built_is_named(house: House) -> None:
    patched, stock = targets(house, "120")
    with pytest.raises(CheckFailed, match="there is no image llama-diffusion:sm120-stock") as caught:
        image_subject(Recording(), stock, stock, Named)
    assert caught.value.hint == "invoke build --arch 120 --flavor stock makes it"
    assert patched.id == "sm120"


def test_a_cpu_image_needs_no_gpu(house: House) -> None:
    patched, stock = targets(house, "cpu")
    engine = Recording()
    engine.hold(patched)
    subject = image_subject(engine, patched, stock, Named)
    assert not subject.on_gpus
    assert subject.record.architectures == ()


def test_a_binary_is_what_it_is_said_to_be(house: House) -> None:
    target, _ = targets(house, "120")
    binary = house.folder / "llama-diffusion-cli"
    binary.write_bytes(b"a program")
    binary.chmod(0o755)

    def made(flavor: Flavor, target: Target | None, stock: Path | None = None) -> Subject:
        return binary_subject(
            binary,
            flavor=flavor,
            target=target,
            stock=stock,
            on_gpus=True,
            make=Named,
            reporter=house.reporter,
        )

    said = made("patched", target, binary)
    assert said.record.architectures == ("sm_120a",)
    assert said.record.binary_sha256 == hashlib.sha256(b"a program").hexdigest()
    assert said.minimum_driver == "580.65.06"
    assert not said.in_container
    assert said.stock == Named(binary)
    unsaid = made("stock", None)
    assert (unsaid.record.name, unsaid.record.architectures) == ("llama-diffusion-cli", ())
    assert unsaid.minimum_driver is None
    assert unsaid.stock is unsaid.program
    assert made("patched", None).stock is None
    with pytest.raises(UsageError, match=r"--stock-binary .*: there is no such file"):
        made("patched", None, house.folder / "none")
    binary.chmod(0o644)
    with pytest.raises(UsageError, match="it is not executable"):
        made("patched", None)
