"""Which GPUs a case sees, and what takes their memory away."""

from __future__ import annotations

import pytest

from llama_images.cases import Case, MemoryLimit
from llama_images.errors import UsageError
from llama_images.judging import Outcome
from llama_images.ports import Gpu
from llama_images.runs import parse_run
from llama_images.workflows.devices import device_environment, memory_limits, seen, visible, weights

GPUS = tuple(
    Gpu(index=n, name="x", compute_capability="12.0", memory_bytes=1, uuid=f"GPU-{n}a7c9e0{n}-55aa")
    for n in range(4)
)


def case(gpus: int, memory: MemoryLimit | None = None) -> Case:
    return Case(name="x", about="x", gpus=gpus, arguments=(), demands=(), memory=memory)


def plenty(*mebibytes: float) -> Outcome:
    lines = [
        f"0.00.000.001 I x: CUDA{n} model buffer size = {mib:.2f} MiB" for n, mib in enumerate(mebibytes)
    ]
    run = parse_run("\n".join([*lines, "error: x"]).encode())
    return Outcome(exit_code=0, seconds=1.0, run=run, last_words="x")


@pytest.mark.parametrize(
    ("variable", "indexes"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,3", [2, 3]),
        (" 3 , 0 ", [3, 0]),
        ("GPU-2a7", [2]),
        ("GPU-1a7c9e01-55aa,0", [1, 0]),
    ],
)
def test_the_users_choice_of_gpus_is_kept(variable: str | None, indexes: list[int]) -> None:
    assert [gpu.index for gpu in visible(GPUS, variable)] == indexes


@pytest.mark.parametrize("variable", ["4", "-1", "x", "GPU-", "GPU-9", "0,0", "0,GPU-0a7"])
def test_a_gpu_that_is_not_there_is_no_choice(variable: str) -> None:
    with pytest.raises(UsageError, match="this machine's 4 GPUs"):
        visible(GPUS, variable)


def test_a_case_sees_the_first_of_them() -> None:
    assert [gpu.index for gpu in seen(case(2), GPUS, logical=False)] == [0, 1]
    assert [gpu.index for gpu in seen(case(2), GPUS[:1], logical=True)] == [0, 0]
    assert seen(case(2), (), logical=True) == ()


def test_variables_number_gpus_by_their_bus() -> None:
    assert device_environment(case(2), GPUS[2:], None, preload=None) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "2,3",
    }


def test_a_run_on_the_processor_sees_no_gpu() -> None:
    assert device_environment(case(0), GPUS, None, preload=None) == {"CUDA_VISIBLE_DEVICES": ""}


def test_the_library_is_preloaded_where_there_are_fewer_cards_than_gpus_or_a_limit() -> None:
    two = device_environment(case(2), GPUS[:1], None, preload="/l.so")
    assert two["LD_PRELOAD"] == "/l.so"
    assert (two["LOGICAL_GPUS"], two["CUDA_VISIBLE_DEVICES"]) == ("2", "0")
    assert "LOGICAL_GPU_MIB" not in two
    assert "LD_PRELOAD" not in device_environment(case(1), GPUS[:1], None, preload="/l.so")
    assert "LD_PRELOAD" not in device_environment(case(2), GPUS, None, preload="/l.so")
    limited = device_environment(case(2), GPUS, (0, 9000), preload="/l.so")
    assert limited["LOGICAL_GPU_MIB"] == "0,9000"


def test_a_card_of_another_size() -> None:
    one = case(2, MemoryLimit(card_mib=16_311))
    assert memory_limits(one, None, logical=True) == [(16_311, 16_311)]
    assert memory_limits(one, None, logical=False) == [(15_799, 15_799)], "what its driver takes is not free"


def test_room_beside_the_weights() -> None:
    every = case(2, MemoryLimit(beside_weights_mib=(1700, 1800)))
    assert memory_limits(every, plenty(7538.26, 7191.68), logical=False) == [(9238, 8891), (9338, 8991)]
    last = case(2, MemoryLimit(beside_weights_mib=(1300,), last_only=True))
    assert memory_limits(last, plenty(7538.26, 7191.68), logical=True) == [(0, 9003)]


def test_weights_that_are_not_told_are_not_guessed() -> None:
    assert weights(case(2), plenty(7538.26, 7191.68)) == [7538.26, 7191.68]
    assert weights(case(3), plenty(7538.26, 7191.68)) == []
    assert weights(case(2), None) == []
    assert weights(case(2), Outcome(exit_code=1, seconds=1.0, run=None, last_words="x")) == []
