"""What the GPU adapter makes of NVML's answers. The fake raises the real bindings' own errors."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pynvml
import pytest

from llama_images.adapters.gpus import NvidiaGpus
from llama_images.diagnosis import EngineState, Machine, diagnose
from llama_images.errors import OutsideError
from llama_images.matrix import load_matrix
from llama_images.ports import Gpu, GpuPair, GpuSurvey, PcieLink

RTX_5090 = {
    "name": "NVIDIA GeForce RTX 5090",
    "capability": (12, 0),
    "memory": 34190917632,
    "uuid": "GPU-5090",
}
RTX_3090 = {
    "name": b"NVIDIA GeForce RTX 3090",
    "capability": (8, 6),
    "memory": 25769803776,
    "uuid": b"GPU-3090",
}
GB10 = {"name": "NVIDIA GB10", "capability": (12, 1), "memory": None, "uuid": "GPU-gb10"}


READ = 0  # in nvml.h; the bindings' NVML_P2P_CAPS_INDEX_READ is a tuple


class FakeNvml:
    """The part of ``pynvml`` that the adapter uses, over a list of GPUs."""

    NVMLError = pynvml.NVMLError
    NVML_ERROR_LIBRARY_NOT_FOUND = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    NVML_ERROR_DRIVER_NOT_LOADED = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    NVML_ERROR_FUNCTION_NOT_FOUND = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    NVML_ERROR_NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED

    def __init__(
        self,
        *gpus: dict[str, Any],
        init_error: int | None = None,
        lost: bool = False,
        driver: str = "580.95.05",
    ) -> None:
        self.driver = driver
        self.present = gpus
        self.init_error = init_error
        self.lost = lost
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name, as all below
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return self.driver

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        assert self.open == 1
        return len(self.present)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        if self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.present[index]

    def nvmlDeviceGetCudaComputeCapability(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return handle["capability"]

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return handle["name"]

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return handle["uuid"]

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        if handle["memory"] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=handle["memory"], free=handle.get("free", handle["memory"] - (1 << 30)))

    # What a GPU or a pair of them does not answer is an error, as in NVML.

    NVML_COMPUTEMODE_DEFAULT = pynvml.NVML_COMPUTEMODE_DEFAULT
    NVML_P2P_STATUS_OK = pynvml.NVML_P2P_STATUS_OK
    NVML_P2P_CAPS_INDEX_NVLINK = pynvml.NVML_P2P_CAPS_INDEX_NVLINK
    NVML_TOPOLOGY_INTERNAL = pynvml.NVML_TOPOLOGY_INTERNAL
    NVML_TOPOLOGY_SINGLE = pynvml.NVML_TOPOLOGY_SINGLE
    NVML_TOPOLOGY_MULTIPLE = pynvml.NVML_TOPOLOGY_MULTIPLE
    NVML_TOPOLOGY_HOSTBRIDGE = pynvml.NVML_TOPOLOGY_HOSTBRIDGE
    NVML_TOPOLOGY_NODE = pynvml.NVML_TOPOLOGY_NODE
    NVML_TOPOLOGY_SYSTEM = pynvml.NVML_TOPOLOGY_SYSTEM

    def answer(self, handle: dict[str, Any], name: str) -> Any:
        if name not in handle:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return handle[name]

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return self.answer(handle, "link")[0]

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return self.answer(handle, "link")[1]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return self.answer(handle, "link")[2]

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return self.answer(handle, "link")[3]

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return self.answer(handle, "mig")

    def nvmlDeviceGetComputeMode(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return self.answer(handle, "mode")

    def nvmlDeviceGetP2PStatus(self, one: dict[str, Any], other: dict[str, Any], index: int) -> Any:  # noqa: N802
        assert one is not other
        ctypes.c_uint(index)  # as the bindings hand it to C: a number, and nothing else
        return self.answer(one, "peer")[index]

    def nvmlDeviceGetTopologyCommonAncestor(self, one: dict[str, Any], other: dict[str, Any]) -> Any:  # noqa: N802
        assert one is not other
        return self.answer(one, "ancestor")


def test_a_survey_asks_everything() -> None:
    joined = {READ: 0, pynvml.NVML_P2P_CAPS_INDEX_NVLINK: 0}
    first = RTX_3090 | {
        "link": (1, 8, 4, 16),
        "mig": [0, 0],
        "mode": pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS,
        "peer": joined,
        "ancestor": pynvml.NVML_TOPOLOGY_HOSTBRIDGE,
    }
    found = NvidiaGpus(FakeNvml(first, RTX_3090)).survey()
    assert found.driver == "580.95.05"
    state, silent = found.gpus
    assert state.pcie == PcieLink(generation=1, width=8, most_generation=4, most_width=16)
    assert (state.mig, state.shared) == (False, False)
    assert (silent.pcie, silent.mig, silent.shared) == (None, None, None)
    assert found.pairs == (GpuPair(first=0, second=1, nvlink=True, peer_access=True, path="PHB"),)


MACHINES = Path(__file__).resolve().parent / "data" / "machine"


def nvidia_smi(name: str) -> FakeNvml:
    """NVML as ``nvidia-smi -q -x``, ``topo -m`` and ``topo -p2p r`` showed it on a machine of two GPUs."""
    root = ET.parse(MACHINES / f"{name}.xml").getroot()

    def cell(kind: str) -> str:
        row = next(
            line
            for line in (MACHINES / f"{name}.{kind}").read_text("utf-8").splitlines()
            if "GPU0" in line and "X" in line
        )
        return row.split()[2]

    def told(gpu: ET.Element, path: str) -> str:
        return (gpu.findtext(path) or "").strip()

    def number(gpu: ET.Element, path: str) -> int:
        found = re.match(r"\d+", told(gpu, path))
        assert found is not None
        return int(found[0])

    link = "pci/pci_gpu_link_info"
    gpus = [
        {
            "name": told(gpu, "product_name"),
            "capability": {"Hopper": (9, 0)}[told(gpu, "product_architecture")],
            "memory": number(gpu, "fb_memory_usage/total") << 20,
            "free": number(gpu, "fb_memory_usage/free") << 20,
            "uuid": told(gpu, "uuid"),
            "link": tuple(
                number(gpu, f"{link}/{path}")
                for path in (
                    "pcie_gen/current_link_gen",
                    "link_widths/current_link_width",
                    "pcie_gen/max_link_gen",
                    "link_widths/max_link_width",
                )
            ),
            "mig": [int(told(gpu, "mig_mode/current_mig") == "Enabled")] * 2,
            "mode": {"Default": pynvml.NVML_COMPUTEMODE_DEFAULT}[told(gpu, "compute_mode")],
            "peer": {
                READ: {"OK": pynvml.NVML_P2P_STATUS_OK}[cell("p2p")],
                pynvml.NVML_P2P_CAPS_INDEX_NVLINK: pynvml.NVML_P2P_STATUS_OK
                if cell("topo").startswith("NV")
                else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED,
            },
        }
        for gpu in root.iter("gpu")
    ]
    return FakeNvml(*gpus, driver=root.findtext("driver_version") or "")


def test_two_h200_as_nvidia_smi_shows_them() -> None:
    found = NvidiaGpus(nvidia_smi("two-h200")).survey()
    assert found.driver == "580.159.04"
    first, second = found.gpus
    assert first.gpu == Gpu(
        index=0,
        name="NVIDIA H200",
        compute_capability="9.0",
        memory_bytes=143771 << 20,
        uuid="GPU-00000000-0000-0000-0000-000000000000",
        free_bytes=143156 << 20,
    )
    assert first.pcie == PcieLink(generation=5, width=16, most_generation=5, most_width=16)
    assert (second.gpu.index, second.mig, second.shared) == (1, False, True)
    assert found.pairs == (GpuPair(first=0, second=1, nvlink=True, peer_access=True, path=""),)


def test_the_doctor_finds_nothing_to_mend_on_two_h200() -> None:
    matrix = load_matrix(Path(__file__).resolve().parents[2] / "matrix.yaml")
    machine = Machine(
        platform="linux/amd64",
        survey=NvidiaGpus(nvidia_smi("two-h200")).survey(),
        engine=EngineState(name="docker", version="28.3.0", nvidia_runtime=True, root=None),
        toolkit="1.17.8",
    )
    diagnosis = diagnose(machine, matrix)
    said = [(one.topic, one.state, one.text) for one in diagnosis.findings if one.topic.startswith("GPU")]
    card = "NVIDIA H200, compute capability 9.0, 139.8 of 140.4 GiB free, PCIe 5 x16"
    assert said == [("GPU 0", "good", card), ("GPU 1", "good", card), ("GPU 0-1", "good", "NVLink")]
    assert diagnosis.bad == 0
    assert diagnosis.image == "llama-diffusion:sm90"


def test_what_gpus_do_not_answer_is_left_open() -> None:
    found = NvidiaGpus(FakeNvml(RTX_3090, RTX_5090)).survey()
    assert found.pairs == (GpuPair(first=0, second=1, nvlink=None, peer_access=None, path=""),)


def test_a_survey_without_a_driver_is_empty() -> None:
    nvml = FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert NvidiaGpus(nvml).survey() == GpuSurvey(driver=None)


def test_gpus_in_the_driver_s_order() -> None:
    nvml = FakeNvml(RTX_5090, RTX_3090)
    assert NvidiaGpus(nvml).gpus() == (
        Gpu(
            index=0,
            name="NVIDIA GeForce RTX 5090",
            compute_capability="12.0",
            memory_bytes=34190917632,
            uuid="GPU-5090",
            free_bytes=33117175808,
        ),
        Gpu(
            index=1,
            name="NVIDIA GeForce RTX 3090",
            compute_capability="8.6",
            memory_bytes=25769803776,
            uuid="GPU-3090",
            free_bytes=24696061952,
        ),
    )
    assert nvml.open == 0


def test_each_compute_capability_once() -> None:
    gpus = NvidiaGpus(FakeNvml(RTX_5090, RTX_3090, RTX_5090))
    assert gpus.compute_capabilities() == ("12.0", "8.6")


def test_a_gpu_that_shares_the_machine_s_memory_has_no_size() -> None:
    (gpu,) = NvidiaGpus(FakeNvml(GB10)).gpus()
    assert gpu.memory_bytes is None
    assert gpu.compute_capability == "12.1"


def test_driver_version() -> None:
    assert NvidiaGpus(FakeNvml()).driver_version() == "580.95.05"


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    ],
)
def test_no_driver_is_no_gpu(code: int) -> None:
    gpus = NvidiaGpus(FakeNvml(RTX_5090, init_error=code))
    assert gpus.gpus() == ()
    assert gpus.compute_capabilities() == ()
    assert gpus.driver_version() is None


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_NO_PERMISSION])
def test_a_driver_that_fails_is_said(code: int) -> None:
    with pytest.raises(OutsideError, match="the NVIDIA driver does not answer") as caught:
        NvidiaGpus(FakeNvml(init_error=code)).compute_capabilities()
    assert caught.value.hint is not None
    assert "nvidia-smi" in caught.value.hint


def test_a_lost_gpu_is_said_and_nvml_closed() -> None:
    nvml = FakeNvml(RTX_5090, lost=True)
    with pytest.raises(OutsideError, match=r"(?i)lost"):
        NvidiaGpus(nvml).gpus()
    assert nvml.open == 0


def test_the_bindings_have_what_the_adapter_calls() -> None:
    for name in dir(FakeNvml):
        if name.startswith(("nvml", "NVML")):
            assert hasattr(pynvml, name), name


def test_the_real_bindings_on_this_machine_agree_with_themselves() -> None:
    gpus = NvidiaGpus()
    found = gpus.gpus()
    assert bool(found) <= (gpus.driver_version() is not None)
    assert set(gpus.compute_capabilities()) == {gpu.compute_capability for gpu in found}
