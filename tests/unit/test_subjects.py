"""What is tested: an image with its labels, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llama_images.errors import CheckFailed
from llama_images.ports import ImageInfo, ProgramRun, RunRequest, RunResult
from llama_images.render import labels
from llama_images.selection import Target, local_reference, make_target
from llama_images.workflows.subjects import ImageProgram, binary_subject, image_subject
from tests.unit.fakes import FakeEngine, House


@dataclass
class Recording(FakeEngine):
    requests: list[RunRequest] = field(default_factory=list)

    def run(self, request: RunRequest) -> RunResult:
        self.requests.append(request)
        return RunResult(exit_code=0, stdout=b"", stderr=b"", seconds=1.0)

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


def test_an_image_is_run_as_strictly_as_it_is_offered(house: House) -> None:
    engine = Recording()
    program = ImageProgram(engine=engine, reference="llama-diffusion:sm120")
    model = Path("/a/folder/full.gguf")
    program.run(
        ProgramRun(arguments=("-m", program.place(model)), files=(model,), gpus=True, interrupt_on="x")
    )
    (request,) = engine.requests
    assert request.arguments == ("-m", "/models/full.gguf")
    assert request.mounts == {model: "/models/full.gguf"}
    assert (request.read_only, request.drop_capabilities, request.network) == (True, True, False)
    assert (request.user, request.gpus, request.init) == ("10001", ("all",), True)


def test_what_an_image_is_comes_from_its_labels(house: House) -> None:
    patched, stock = targets(house, "120")
    engine = Recording()
    engine.hold(patched)
    subject = image_subject(engine, patched, stock)
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
    without = image_subject(engine, patched, stock)
    assert without.stock is None
    assert without.why_no_stock == (
        "there is no image llama-diffusion:sm120-stock (invoke build --arch 120 --flavor stock)"
    )
    engine.hold(stock)
    beside = image_subject(engine, patched, stock).stock
    assert beside == ImageProgram(engine=engine, reference="llama-diffusion:sm120-stock")
    itself = image_subject(engine, stock, stock)
    assert itself.stock is itself.program


def test_an_image_that_was_never_built_is_named(house: House) -> None:
    patched, stock = targets(house, "120")
    with pytest.raises(CheckFailed, match="there is no image llama-diffusion:sm120-stock") as caught:
        image_subject(Recording(), stock, stock)
    assert caught.value.hint == "invoke build --arch 120 --flavor stock makes it"
    assert patched.id == "sm120"


def test_a_cpu_image_needs_no_gpu(house: House) -> None:
    patched, stock = targets(house, "cpu")
    engine = Recording()
    engine.hold(patched)
    subject = image_subject(engine, patched, stock)
    assert not subject.on_gpus
    assert subject.record.architectures == ()


def test_a_binary_is_what_it_is_said_to_be(house: House) -> None:
    target, _ = targets(house, "120")
    program = ImageProgram(engine=Recording(), reference="x")
    said = binary_subject(
        program, name="sm120", sha256="ab", flavor="patched", target=target, stock=None, on_gpus=True
    )
    assert said.record.architectures == ("sm_120a",)
    assert said.minimum_driver == "580.65.06"
    assert not said.in_container
    unsaid = binary_subject(
        program,
        name="llama-diffusion-cli",
        sha256="ab",
        flavor="stock",
        target=None,
        stock=None,
        on_gpus=True,
    )
    assert unsaid.record.architectures == ()
    assert unsaid.minimum_driver is None
    assert unsaid.stock is program
