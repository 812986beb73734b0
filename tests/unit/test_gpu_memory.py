"""Memory that is held: what is asked of the CUDA driver, and what is given back. The driver is made up."""

from __future__ import annotations

import ctypes
import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest

from llama_images.adapters.gpu_memory import CudaMemory
from llama_images.errors import OutsideError
from llama_images.ports import Gpu

MIB = 1 << 20


@dataclass
class Card:
    free: int
    largest: int = 1 << 60
    """Largest piece that can be had at once."""
    contexts: int = 0
    held: list[int] = field(default_factory=list)


@dataclass
class Driver:
    """The functions of ``libcuda`` that are called; a context is the number of its device and one."""

    cards: list[Card]
    uuids: list[uuid.UUID] = field(default_factory=lambda: [uuid.UUID(int=n + 1) for n in range(4)])
    current: list[int] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and name != "current" and name in object.__getattribute__(self, "fails"):
            return lambda *_: self.fails[name]
        return object.__getattribute__(self, name)

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's own names, here and below
        return flags

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.cards)
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal
        return 0

    def cuDeviceGetUuid_v2(self, raw: Any, device: ctypes.c_int) -> int:  # noqa: N802
        raw[:] = self.uuids[device.value].bytes
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:  # noqa: N802
        context._obj.value = device + 1
        self.cards[device].contexts += 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:  # noqa: N802
        card = self.cards[device]
        card.contexts -= 1
        card.free += sum(card.held)
        card.held.clear()
        return 0

    def cuCtxPushCurrent_v2(self, context: ctypes.c_void_p) -> int:  # noqa: N802
        assert context.value is not None
        self.current.append(context.value - 1)
        return 0

    def cuCtxPopCurrent_v2(self, _context: Any) -> int:  # noqa: N802
        self.current.pop()
        return 0

    def cuMemGetInfo_v2(self, left: Any, whole: Any) -> int:  # noqa: N802
        left._obj.value = self.cards[self.current[-1]].free
        whole._obj.value = 80_000 * MIB
        return 0

    def cuMemAlloc_v2(self, block: Any, size: ctypes.c_size_t) -> int:  # noqa: N802
        card = self.cards[self.current[-1]]
        if size.value > min(card.free, card.largest):
            return 2
        block._obj.value = 1
        card.free -= size.value
        card.held.append(size.value)
        return 0

    def cuGetErrorString(self, status: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"an illegal memory access was encountered"
        return 0


def gpu(number: int) -> Gpu:
    return Gpu(
        index=number,
        name="NVIDIA H100",
        compute_capability="9.0",
        memory_bytes=80_000 * MIB,
        uuid=f"GPU-{uuid.UUID(int=number + 1)}",
    )


def test_no_more_than_asked_for_is_free_and_all_comes_back() -> None:
    driver = Driver([Card(free=79_000 * MIB), Card(free=78_000 * MIB)])
    with CudaMemory(driver).leave({gpu(0): 15_799, gpu(1): 9_000}):
        assert [card.free >> 20 for card in driver.cards] == [15_799, 9_000]
        assert [card.contexts for card in driver.cards] == [1, 1]
    assert [card.free >> 20 for card in driver.cards] == [79_000, 78_000]
    assert [card.contexts for card in driver.cards] == [0, 0]
    assert driver.current == []


def test_a_gpu_that_is_not_named_keeps_its_memory() -> None:
    driver = Driver([Card(free=79_000 * MIB), Card(free=78_000 * MIB)])
    with CudaMemory(driver).leave({gpu(1): 9_000}):
        assert driver.cards[0] == Card(free=79_000 * MIB)


def test_memory_in_pieces_is_taken_in_pieces() -> None:
    driver = Driver([Card(free=79_000 * MIB, largest=10_000 * MIB)])
    with CudaMemory(driver).leave({gpu(0): 16_000}):
        assert 16_000 <= driver.cards[0].free >> 20 <= 16_008
        assert len(driver.cards[0].held) > 5
    assert driver.cards[0].free == 79_000 * MIB


def test_memory_comes_back_after_an_error_too() -> None:
    driver = Driver([Card(free=79_000 * MIB)])
    with pytest.raises(KeyboardInterrupt), CudaMemory(driver).leave({gpu(0): 16_000}):
        raise KeyboardInterrupt
    assert driver.cards[0] == Card(free=79_000 * MIB)


def test_a_gpu_that_others_use_has_too_little_to_leave() -> None:
    driver = Driver([Card(free=79_000 * MIB), Card(free=5_000 * MIB)])
    with (
        pytest.raises(OutsideError, match=r"GPU 1 \(NVIDIA H100\) has 5,000 MiB free, 9,000 are needed"),
        CudaMemory(driver).leave({gpu(0): 9_000, gpu(1): 9_000}),
    ):
        pytest.fail("it was entered")
    assert [card.contexts for card in driver.cards] == [0, 0]
    assert driver.cards[0].free == 79_000 * MIB


def test_a_gpu_that_cuda_does_not_show_is_told() -> None:
    driver = Driver([Card(free=79_000 * MIB)])
    with (
        pytest.raises(OutsideError, match=r"GPU 3 .* can.t be reached") as caught,
        CudaMemory(driver).leave({gpu(3): 9_000}),
    ):
        pytest.fail("it was entered")
    assert caught.value.hint is not None
    assert "CUDA_VISIBLE_DEVICES" in caught.value.hint


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        ("cuInit", 100, "the CUDA driver failed in cuInit: an illegal memory access"),
        ("cuMemAlloc_v2", 700, "failed in cuMemAlloc_v2: an illegal memory access"),
        ("cuDevicePrimaryCtxRetain", 2, "failed in cuDevicePrimaryCtxRetain: out of memory"),
    ],
)
def test_an_error_of_the_driver_is_one_line(call: str, status: int, words: str) -> None:
    driver = Driver([Card(free=79_000 * MIB)], fails={call: status})
    with pytest.raises(OutsideError, match=words), CudaMemory(driver).leave({gpu(0): 9_000}):
        pytest.fail("it was entered")


def test_a_machine_without_the_driver_says_so() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(OutsideError, match=r"can't be held: libcuda\.so\.1"), CudaMemory().leave({}):
            pytest.fail("it was entered")
    else:
        pytest.skip("this machine has the driver's library")
