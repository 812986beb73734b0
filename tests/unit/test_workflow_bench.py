"""What of ``invoke bench`` needs no program: who is measured where, and the commands that are recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_images.bench import Build, Configuration, Hardware
from llama_images.errors import CheckFailed, UsageError
from llama_images.plan import Plan, choose, make_plan
from llama_images.ports import Gpu, ProgramRun, RunResult
from llama_images.selection import Target
from llama_images.workflows.bench import (
    Bed,
    BenchRequest,
    both_flavors,
    command_of,
    configurations_of,
    conversation,
    described,
    image_beds,
    places_of,
    workloads_of,
)
from tests.unit.fakes import PLATFORM, House

MODEL = Path("/some/where/full.gguf")


class Placed:
    """Programs that only say where they find a file."""

    def __init__(self, place: Callable[[Path], str]) -> None:
        self.place = place

    def run(self, request: ProgramRun) -> RunResult:
        raise AssertionError("nothing is to run")


IN_IMAGE = Bed(
    build=Build(flavor="stock", program="llama-diffusion:sm120-stock", digest="sha256:0", series=None),
    program=Placed(lambda file: f"/models/{file.name}"),
    launcher=("docker", "run", "--rm", "-i", "-v", "$PWD:/models:ro"),
)
BARE = Bed(
    build=Build(flavor="stock", program="llama-diffusion-cli", digest="sha256:0", series=None),
    program=Placed(str),
    launcher=(),
)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def plan(house: House, *words: str, flavors: tuple[str, ...] = ("patched", "stock")) -> Plan:
    shop = house.shop()
    selection = choose(shop.matrix, words, flavors=flavors, platform=PLATFORM, native=tuple)
    return make_plan(selection, series=shop.series, platform=PLATFORM)


def request(**changed: object) -> BenchRequest:
    fields: dict[str, object] = {
        "places": (1, 2),
        "workloads": ("short", "long"),
        "rounds": 1,
        "seed": 1,
        "max_steps": 12,
        "note": "",
        "taken_at": "2026-01-02T03:04:05Z",
        "hardware": Hardware(gpus=(), driver=None, processor="", engine=""),
        "folder": Path("out"),
    }
    return BenchRequest(**(fields | changed))  # type: ignore[arg-type]


# --- who ---


def test_stock_comes_first_whatever_the_plans_order(house: House) -> None:
    assert [target.id for target in both_flavors(plan(house, "120"))] == ["sm120-stock", "sm120"]


@pytest.mark.parametrize(
    ("words", "flavors"), [(("120", "89"), ("patched", "stock")), (("120",), ("patched",))]
)
def test_it_takes_two_flavors_to_compare(
    house: House, words: tuple[str, ...], flavors: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError, match=r"more than one architecture, or of one flavor alone: .*sm120"):
        both_flavors(plan(house, *words, flavors=flavors))


def test_an_image_that_is_missing_is_named_with_what_makes_it(house: House) -> None:
    targets = both_flavors(plan(house, "120"))
    with pytest.raises(CheckFailed, match="no image llama-diffusion:sm120-stock") as caught:
        image_beds(house.shop(), house.engine, targets, lambda _: Placed(str))
    assert caught.value.hint == ("both are made by: invoke build --flavor stock --flavor patched --arch 120")


# --- where ---


@pytest.mark.parametrize(
    ("arch", "present", "places"),
    [
        ("120", 1, (1,)),
        ("120", 2, (1, 2)),
        ("120", 8, (1, 2)),
        ("cpu", 0, (0,)),
        ("cpu", 2, (0,)),
        (None, 0, (0,)),
        (None, 2, (1, 2)),
    ],
)
def test_places_without_being_told(
    house: House, arch: str | None, present: int, places: tuple[int, ...]
) -> None:
    targets: tuple[Target, ...] = both_flavors(plan(house, arch)) if arch else ()
    assert places_of((), present=present, targets=targets) == places


@pytest.mark.parametrize(
    ("arch", "present", "given", "words"),
    [
        ("120", 0, (), "no NVIDIA GPU here"),
        ("120", 1, ("2",), "--gpus 2: there are 1 NVIDIA GPUs here"),
        ("120", 1, ("0",), "--gpus 0: the images of 120 are for GPUs"),
        ("cpu", 1, ("1",), "--gpus 1: the images of cpu are for a CPU"),
        (None, 1, ("-1",), '--gpus "-1": it is a number'),
        (None, 1, ("1,2",), '--gpus "1,2": it is a number'),
    ],
)
def test_places_that_can_not_be(
    house: House, arch: str | None, present: int, given: tuple[str, ...], words: str
) -> None:
    targets: tuple[Target, ...] = both_flavors(plan(house, arch)) if arch else ()
    with pytest.raises(UsageError) as caught:
        places_of(given, present=present, targets=targets)
    assert words in caught.value.message
    assert caught.value.hint


def test_what_is_named_twice_is_measured_once() -> None:
    assert places_of(("2", "1", "2"), present=4, targets=()) == (2, 1)
    assert workloads_of(("long", "long")) == ("long",)
    assert workloads_of(()) == ("short", "long")
    with pytest.raises(UsageError, match='did you mean "long"'):
        workloads_of(("lang",))


def test_a_gpu_is_described_with_what_decides() -> None:
    gpu = Gpu(index=0, name="NVIDIA X", compute_capability="12.0", memory_bytes=16_311 << 20, uuid="GPU-1")
    assert described(gpu) == "NVIDIA X, 16,311 MiB, compute capability 12.0"


# --- what ---


def test_configurations_are_in_the_models_own_measure() -> None:
    found = configurations_of(request(), canvas=256)
    assert [one.id for one in found] == ["1gpu-short", "1gpu-long", "2gpu-short", "2gpu-long"]
    assert [(one.prompt_tokens, one.blocks) for one in found[:2]] == [(5, 1), (1780, 6)]


def test_the_program_sees_the_first_gpus_alone_in_nvidia_smis_order() -> None:
    two = Configuration(gpus=2, workload="short", prompt_tokens=5, blocks=1, canvas=256)
    run = conversation("/models/full.gguf", two, request(), MODEL)
    assert run.environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert (run.gpus, run.files, run.arguments[-2:]) == (True, (MODEL,), ("-ngl", "99"))
    cpu = Configuration(gpus=0, workload="short", prompt_tokens=5, blocks=1, canvas=256)
    run = conversation("/models/full.gguf", cpu, request(), MODEL)
    assert (run.gpus, run.environment, "-ngl" in run.arguments) == (False, {}, False)


def test_a_recorded_command_can_be_typed() -> None:
    two = Configuration(gpus=2, workload="short", prompt_tokens=5, blocks=1, canvas=256)
    run = conversation(IN_IMAGE.program.place(MODEL), two, request(), MODEL)
    assert " ".join(command_of(IN_IMAGE, run)) == (
        "docker run --rm -i -v $PWD:/models:ro -e CUDA_DEVICE_ORDER=PCI_BUS_ID -e CUDA_VISIBLE_DEVICES=0,1 "
        "--gpus all llama-diffusion:sm120-stock -m /models/full.gguf -cnv -p hello -n 256 --seed 1 "
        "--diffusion-eb-max-steps 12 -ngl 99"
    )


def test_a_recorded_command_names_no_folder_of_this_machine() -> None:
    one = Configuration(gpus=1, workload="short", prompt_tokens=5, blocks=1, canvas=256)
    run = conversation(BARE.program.place(MODEL), one, request(), MODEL)
    command = command_of(BARE, run)
    assert command[:5] == (
        "CUDA_DEVICE_ORDER=PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES=0",
        "llama-diffusion-cli",
        "-m",
        "full.gguf",
    )
    assert not any("/" in word for word in command)
