"""Takes memory of GPUs away, through the CUDA driver's library: a big card has as little free as a small one.

The memory is held by this process and comes back with its end, whatever way it ends. Plain allocations: no
managed memory, which a driver could move out of the way.
"""

from __future__ import annotations

import contextlib
import ctypes
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final

from llama_images.errors import OutsideError
from llama_images.ports import Gpu

_MIB: Final = 1 << 20
_CLOSE_ENOUGH: Final = 8
"""MiB by which the free memory may miss what was asked for: allocations are rounded, and contexts move."""

_OUT_OF_MEMORY: Final = 2  # CUDA_ERROR_OUT_OF_MEMORY


class CudaMemory:
    """Implements ``ports.GpuMemory`` with ``libcuda``."""

    def __init__(self, library: Any = None) -> None:
        """``library`` stands in for ``libcuda.so.1``; without it that is loaded at the first use."""
        self._library = library

    def leave(self, mebibytes: Mapping[Gpu, int]) -> AbstractContextManager[None]:
        """See ``ports.GpuMemory.leave``. Raises OutsideError also where CUDA does not show a GPU."""
        return self._leave(mebibytes)

    @contextmanager
    def _leave(self, mebibytes: Mapping[Gpu, int]) -> Iterator[None]:
        if self._library is None:
            try:
                self._library = ctypes.CDLL("libcuda.so.1")
            except OSError as error:
                raise OutsideError(f"GPU memory can't be held: {error}") from error
        driver = _Driver(self._library)
        driver("cuInit", 0)
        devices = driver.devices()
        with ExitStack() as stack:
            for gpu, wanted in mebibytes.items():
                device = devices.get(gpu.uuid)
                if device is None:
                    raise OutsideError(
                        f"GPU {gpu.index} ({gpu.name}) can't be reached through CUDA",
                        hint="is it hidden by CUDA_VISIBLE_DEVICES? Unset that",
                    )
                stack.enter_context(_held(driver, device, gpu, wanted * _MIB))
            yield


@contextmanager
def _held(driver: _Driver, device: int, gpu: Gpu, wanted: int) -> Iterator[None]:
    """Within the context, no more than ``wanted`` bytes are free on the device."""
    context = ctypes.c_void_p()
    driver("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    blocks: list[ctypes.c_uint64] = []
    try:
        driver("cuCtxPushCurrent_v2", context)
        try:
            free = _fill(driver, wanted, blocks)
        finally:
            driver("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        if free < wanted - _CLOSE_ENOUGH * _MIB:
            raise OutsideError(
                f"GPU {gpu.index} ({gpu.name}) has {free >> 20:,} MiB free, {wanted >> 20:,} are needed",
                hint="end what else runs on it",
            )
        yield
    finally:
        # The primary context goes with its last user, and takes its memory along.
        driver("cuDevicePrimaryCtxRelease_v2", device)


def _fill(driver: _Driver, wanted: int, blocks: list[ctypes.c_uint64]) -> int:
    """Allocate until no more than ``wanted`` bytes are free; the bytes that are then."""
    free = driver.free()
    while free > wanted + _CLOSE_ENOUGH * _MIB:
        size = free - wanted
        block = ctypes.c_uint64()
        # Free memory can be in pieces: half of it, then, and again.
        while driver.call("cuMemAlloc_v2", ctypes.byref(block), ctypes.c_size_t(size)) == _OUT_OF_MEMORY:
            size //= 2
            if size < _MIB:
                return free
        blocks.append(block)
        free = driver.free()
    return free


class _Driver:
    """The driver's functions; a call that fails raises OutsideError."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> int:
        """The function's status: 0, or out of memory. Raises OutsideError for any other."""
        status = int(getattr(self._library, name)(*arguments))
        if status not in (0, _OUT_OF_MEMORY):
            text = ctypes.c_char_p()
            with contextlib.suppress(AttributeError):
                self._library.cuGetErrorString(status, ctypes.byref(text))
            words = (text.value or b"").decode("utf-8", "replace")
            raise OutsideError(f"the CUDA driver failed in {name}: {words or f'error {status}'}")
        return status

    def __call__(self, name: str, *arguments: Any) -> None:
        if self.call(name, *arguments) != 0:
            raise OutsideError(f"the CUDA driver failed in {name}: out of memory")

    def devices(self) -> dict[str, int]:
        """UUIDs as NVML writes them, to device handles."""
        count = ctypes.c_int()
        self("cuDeviceGetCount", ctypes.byref(count))
        found = {}
        for ordinal in range(count.value):
            device = ctypes.c_int()
            self("cuDeviceGet", ctypes.byref(device), ordinal)
            raw = (ctypes.c_ubyte * 16)()
            self("cuDeviceGetUuid_v2", raw, device)
            found[f"GPU-{uuid.UUID(bytes=bytes(raw))}"] = device.value
        return found

    def free(self) -> int:
        """Free bytes of the current context's device."""
        left, whole = ctypes.c_size_t(), ctypes.c_size_t()
        self("cuMemGetInfo_v2", ctypes.byref(left), ctypes.byref(whole))
        return left.value
