"""The NVIDIA GPUs of this machine, through NVIDIA's management library (NVML).

NVML comes with the driver and needs no CUDA. It numbers GPUs by PCI bus, as ``CUDA_DEVICE_ORDER=PCI_BUS_ID``
does, and does not heed ``CUDA_VISIBLE_DEVICES``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, Final

from llama_images.errors import OutsideError
from llama_images.ports import Gpu, GpuPair, GpuState, GpuSurvey, PcieLink


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

    def survey(self) -> GpuSurvey:
        """Everything that the driver says, see ``ports.GpuSurveyor``."""
        with self._session() as nvml:
            if nvml is None:
                return GpuSurvey(driver=None)
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            return GpuSurvey(
                driver=_text(nvml.nvmlSystemGetDriverVersion()),
                gpus=tuple(_state(nvml, index, handle) for index, handle in enumerate(handles)),
                pairs=tuple(
                    _pair(nvml, handles, first, second)
                    for first, second in combinations(range(len(handles)), 2)
                ),
            )

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


def _asked(nvml: Any, function: str, *arguments: Any) -> Any:
    """What a question that not every GPU answers is answered with; None where this one does not."""
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


def _state(nvml: Any, index: int, handle: Any) -> GpuState:
    link = [
        _asked(nvml, f"nvmlDeviceGet{which}PcieLink{what}", handle)
        for which in ("Curr", "Max")
        for what in ("Generation", "Width")
    ]
    mig = _asked(nvml, "nvmlDeviceGetMigMode", handle)
    mode = _asked(nvml, "nvmlDeviceGetComputeMode", handle)
    return GpuState(
        gpu=_describe(nvml, index),
        pcie=None
        if None in link
        else PcieLink(generation=link[0], width=link[1], most_generation=link[2], most_width=link[3]),
        mig=None if mig is None else bool(mig[0]),
        shared=None if mode is None else mode == nvml.NVML_COMPUTEMODE_DEFAULT,
    )


_PATHS: Final[Mapping[str, str]] = {
    "INTERNAL": "PIX",
    "SINGLE": "PIX",
    "MULTIPLE": "PXB",
    "HOSTBRIDGE": "PHB",
    "NODE": "NODE",
    "SYSTEM": "SYS",
}
"""NVML's levels of topology, as ``nvidia-smi topo -m`` abbreviates them."""


_READ: Final = 0
"""NVML_P2P_CAPS_INDEX_READ. The bindings have a tuple under that name, which the call does not take."""


def _pair(nvml: Any, handles: Sequence[Any], first: int, second: int) -> GpuPair:
    pair = (handles[first], handles[second])

    def capable(of: int) -> bool | None:
        status = _asked(nvml, "nvmlDeviceGetP2PStatus", *pair, of)
        return None if status is None else status == nvml.NVML_P2P_STATUS_OK

    level = _asked(nvml, "nvmlDeviceGetTopologyCommonAncestor", *pair)
    names = {getattr(nvml, f"NVML_TOPOLOGY_{name}"): short for name, short in _PATHS.items()}
    return GpuPair(
        first=first,
        second=second,
        nvlink=capable(nvml.NVML_P2P_CAPS_INDEX_NVLINK),
        peer_access=capable(_READ),
        path=names.get(level, ""),
    )


def _text(value: str | bytes) -> str:
    """Older versions of the bindings return bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
