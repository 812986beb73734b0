"""The NVIDIA GPUs of this machine, through NVIDIA's management library (NVML).

NVML comes with the driver and needs no CUDA. It numbers GPUs by PCI bus, as ``CUDA_DEVICE_ORDER=PCI_BUS_ID``
does, and does not heed ``CUDA_VISIBLE_DEVICES``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_images.errors import OutsideError
from llama_images.ports import Gpu


class NvidiaGpus:
    """Implements ``ports.Gpus`` with what NVML says; every call asks anew."""

    def __init__(self, nvml: Any = None) -> None:
        """``nvml`` stands in for the module ``pynvml``; without it that is imported at the first call."""
        self._nvml = nvml

    def compute_capabilities(self) -> tuple[str, ...]:
        """Compute capabilities of the GPUs present, each once, in their order; empty without a driver."""
        return tuple(dict.fromkeys(gpu.compute_capability for gpu in self.gpus()))

    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU that the driver shows; empty where there is no driver.

        Raises OutsideError where there is a driver and it fails.
        """
        with self._session() as nvml:
            if nvml is None:
                return ()
            return tuple(_describe(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))

    def driver_version(self) -> str | None:
        """The driver's version, such as "580.65.06"; None where there is no driver. Raises OutsideError."""
        with self._session() as nvml:
            return None if nvml is None else _text(nvml.nvmlSystemGetDriverVersion())

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """NVML between its init and its shutdown; None where there is no driver to talk to."""
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            if error.value in _absent(nvml):
                yield None
                return
            raise _failed(error) from error
        try:
            yield nvml
        except nvml.NVMLError as error:
            raise _failed(error) from error
        finally:
            nvml.nvmlShutdown()


def _absent(nvml: Any) -> tuple[int, ...]:
    """Errors of ``nvmlInit`` that mean a machine without a usable NVIDIA GPU, rather than a broken one."""
    return (
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        # The library of a driver too old or too partial to hold the entry points.
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    )


def _failed(error: Exception) -> OutsideError:
    return OutsideError(
        f"the NVIDIA driver does not answer: {error}",
        hint="see what nvidia-smi says; after a driver update the machine needs a restart",
    )


def _describe(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        found = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_NOT_SUPPORTED:
            raise
        found = None
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        compute_capability=f"{major}.{minor}",
        memory_bytes=None if found is None else int(found.total),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        free_bytes=None if found is None else int(found.free),
    )


def _text(value: str | bytes) -> str:
    """Older versions of the bindings return bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
