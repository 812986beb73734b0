"""What is found on machines of many kinds, and which command is told to mend it."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_images import screens
from llama_images.adapters.screen import show
from llama_images.diagnosis import (
    Diagnosis,
    EngineState,
    Finding,
    Machine,
    Room,
    Trial,
    capabilities,
    diagnose,
)
from llama_images.matrix import load_matrix
from llama_images.ports import Gpu, GpuPair, GpuState, GpuSurvey, PcieLink

MATRIX = load_matrix(Path(__file__).resolve().parents[2] / "matrix.yaml")
DOCKER = EngineState(name="docker", version="28.3.0", nvidia_runtime=True, root=None)


def gpu(index: int, capability: str = "12.0", name: str = "NVIDIA GeForce RTX 5060 Ti") -> GpuState:
    return GpuState(
        gpu=Gpu(
            index=index,
            name=name,
            compute_capability=capability,
            memory_bytes=16_311 << 20,
            uuid=f"GPU-{index}aaa",
            free_bytes=15_900 << 20,
        ),
        pcie=PcieLink(generation=1, width=8, most_generation=5, most_width=8),
        mig=None,
        shared=True,
    )


def survey(*gpus: GpuState, driver: str = "580.95.05", pairs: Sequence[GpuPair] = ()) -> GpuSurvey:
    return GpuSurvey(driver=driver, gpus=gpus, pairs=tuple(pairs))


def machine(found: GpuSurvey | None = None, **values: Any) -> Machine:
    """A machine with two RTX 5060 Ti on which all is well."""
    good: dict[str, Any] = {
        "platform": "linux/amd64",
        "survey": found or survey(gpu(0), gpu(1), pairs=[pair()]),
        "engine": DOCKER,
        "toolkit": "1.17.8",
        "trial": Trial(
            image="llama-diffusion:sm120",
            exit_code=0,
            output="Available devices:\n  CUDA0: RTX (16311 MiB, 15900 MiB free)\n  CUDA1: RTX (16311 MiB)\n",
        ),
        "rooms": (Room(purpose="a model", path=Path("/m"), free_bytes=10**11, needed_bytes=17 * 10**9),),
    }
    return Machine(**good | values)


def pair(*, nvlink: bool | None = False, peer: bool | None = False, path: str = "PHB") -> GpuPair:
    return GpuPair(first=0, second=1, nvlink=nvlink, peer_access=peer, path=path)


def diagnosed(found: GpuSurvey | None = None, **values: Any) -> Diagnosis:
    return diagnose(machine(found, **values), MATRIX)


def only(diagnosis: Diagnosis, state: str) -> Finding:
    (finding,) = [one for one in diagnosis.findings if one.state == state]
    return finding


def test_a_machine_on_which_all_is_well() -> None:
    diagnosis = diagnosed()
    assert diagnosis.bad == 0
    assert diagnosis.image == "llama-diffusion:sm120"
    assert diagnosis.run[:7] == ("docker", "run", "--rm", "-it", "--gpus", "all", "-e")
    assert diagnosis.run[-8:-2] == (
        *("--diffusion-kv-cache", "on", "--diffusion-gpu-sampling", "on"),
        *("--diffusion-gpu-sample-reduce", "on"),
    )
    assert not any(finding.mend for finding in diagnosis.findings)


# --- the image -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "image"),
    [
        (["12.0"], "sm120"),
        (["12.1"], "portable"),  # an image of 120a does nothing on 121, and this platform has no 121
        (["8.6", "8.6"], "sm86"),
        (["9.0"], "sm90"),
        (["7.0"], "sm70-nvidia"),
        (["8.6", "12.0"], "portable"),
        (["8.7"], "sm80"),
        (["6.1"], "cpu"),
        ([], "cpu"),
    ],
)
def test_the_image_runs_on_every_gpu(found: Sequence[str], image: str) -> None:
    gpus = [gpu(index, one) for index, one in enumerate(found)]
    chosen = diagnosed(survey(*gpus), trial=None).image
    if image == "sm80":
        # Machine code of 8.0 or 8.6 runs on 8.7; which of them is the matrix's order.
        assert chosen in ("llama-diffusion:sm80", "llama-diffusion:sm86")
    else:
        assert chosen == f"llama-diffusion:{image}"


def test_a_gpu_for_which_there_is_no_image_is_told() -> None:
    finding = only(diagnosed(survey(gpu(0, "6.1")), trial=None), "bad")
    assert "no image has code for compute capability 6.1" in finding.text


# --- what is wrong, and what mends it ------------------------------------------------------------


def lacking(**values: Any) -> EngineState:
    return dataclasses.replace(DOCKER, **values)


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a driver too old": (
        {"found": survey(gpu(0), driver="570.86.10"), "trial": None},
        "570.86.10 is too old: llama-diffusion:sm120 has CUDA 13.0 and needs 580.65.06 or newer",
        "sudo ubuntu-drivers install",
    ),
    "a card without a driver": (
        {"found": GpuSurvey(driver=None), "bus": ("0000:01:00.0",), "trial": None},
        "1 NVIDIA card on the bus (0000:01:00.0), and no driver that answers",
        "sudo ubuntu-drivers install",
    ),
    "an exclusive GPU": (
        {
            "found": survey(dataclasses.replace(gpu(0), shared=False)),
            "trial": Trial(image="x", exit_code=0, output="CUDA0: x"),
        },
        "it is kept for one program",
        "sudo nvidia-smi -i 0 -c DEFAULT",
    ),
    "no engine": (
        {"engine": None, "engine_error": "no docker or podman on PATH", "trial": None},
        "no docker or podman on PATH",
        "sudo apt-get install -y docker.io",
    ),
    "no toolkit": (
        {"engine": lacking(nvidia_runtime=False), "toolkit": None, "trial": None},
        "NVIDIA's container toolkit is not installed",
        "sudo apt-get install -y nvidia-container-toolkit",
    ),
    "a toolkit that docker does not know": (
        {"engine": lacking(nvidia_runtime=False), "trial": None},
        "NVIDIA's container toolkit 1.17.8 is installed, and docker does not know it",
        "sudo nvidia-ctk runtime configure --runtime=docker",
    ),
    "podman without CDI": (
        {"engine": lacking(name="podman"), "trial": None},
        "and podman does not know it",
        "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    ),
    "an engine without GPU access": (
        {
            "trial": Trial(
                image="llama-diffusion:sm120",
                exit_code=125,
                output="docker: Error response from daemon: could not select device driver "
                "\"\" with capabilities: [[gpu]]\n\nRun 'docker run --help' for more information\n",
            )
        },
        "a container gets no GPU: the engine has no driver for --gpus",
        "sudo nvidia-ctk runtime configure --runtime=docker",
    ),
    "a container that sees one of two": (
        {"trial": Trial(image="llama-diffusion:sm120", exit_code=0, output="  CUDA0: RTX")},
        "llama-diffusion:sm120 sees 1 of 2 GPUs in a container",
        "sudo nvidia-ctk runtime configure --runtime=docker",
    ),
    "a full disk": (
        {"rooms": (Room(purpose="a model", path=Path("/m"), free_bytes=10**9, needed_bytes=17 * 10**9),)},
        "1 GB free in /m for a model, which takes 17 GB",
        "docker system df",
    ),
    "certificates that are gone": (
        {"environment": {"SSL_CERT_FILE": "/gone.pem"}, "missing_certificates": ("SSL_CERT_FILE",)},
        "SSL_CERT_FILE names /gone.pem, which is not there",
        "unset SSL_CERT_FILE",
    ),
}


@pytest.mark.parametrize(("values", "text", "command"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_finding_with_its_command(
    values: dict[str, Any], text: str, command: str
) -> None:
    diagnosis = diagnosed(**values)
    finding = only(diagnosis, "bad")
    assert text in finding.text
    assert any(line.startswith(command) for line in finding.mend)
    assert diagnosis.bad == 1


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            "docker: failed to create task\n\nRun 'docker run --help' for more information\n",
            "failed to create",
        ),
        ("Error: unresolvable CDI devices nvidia.com/gpu=all\n", "knows no CDI device nvidia.com/gpu=all"),
        ("", "it ended with exit code 125"),
    ],
)
def test_an_engine_s_own_words_are_told(output: str, text: str) -> None:
    diagnosis = diagnosed(trial=Trial(image="x", exit_code=125, output=output))
    assert text in only(diagnosis, "bad").text
    assert "--help" not in only(diagnosis, "bad").text


def test_a_driver_that_fails_is_told_in_its_own_words() -> None:
    found = diagnose(
        dataclasses.replace(
            machine(trial=None), survey=None, driver_error="the NVIDIA driver does not answer: GPU is lost"
        ),
        MATRIX,
    )
    assert only(found, "bad").text == "the NVIDIA driver does not answer: GPU is lost"


@pytest.mark.parametrize(
    ("chosen", "hidden"),
    [
        ("0", 1),
        ("", 2),
        ("-1", 2),
        ("1,0", 0),
        ("0,0", 1),
        ("5,0", 2),
        ("GPU-1aaa", 1),
        ("GPU-", 2),
        ("NoDevFiles", 2),
    ],
)
def test_a_hidden_gpu_is_told(chosen: str, hidden: int) -> None:
    diagnosis = diagnosed(environment={"CUDA_VISIBLE_DEVICES": chosen})
    if not hidden:
        assert all(finding.state == "good" or not finding.mend for finding in diagnosis.findings)
        return
    finding = only(diagnosis, "warn")
    assert f"CUDA_VISIBLE_DEVICES={chosen} hides {hidden} of 2 GPUs" in finding.text
    assert finding.mend == ("unset CUDA_VISIBLE_DEVICES",)


def test_unlike_gpus_need_an_order() -> None:
    unlike = survey(gpu(0, "8.6"), gpu(1))
    assert "export CUDA_DEVICE_ORDER=PCI_BUS_ID" in only(diagnosed(unlike), "note").mend
    told = diagnosed(unlike, environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert all(finding.state == "good" for finding in told.findings)


@pytest.mark.parametrize(
    ("found", "state", "text"),
    [
        (pair(nvlink=True, peer=True), "good", "NVLink"),
        (pair(peer=True), "good", "PCIe (PHB), each reads the other's memory"),
        (pair(peer=None, path=""), "note", "PCIe; the driver says no more"),
        (pair(), "note", "PCIe (PHB), no peer access: what one sends the other goes through the machine's"),
    ],
)
def test_links(found: GpuPair, state: str, text: str) -> None:
    (finding,) = [
        one for one in diagnosed(survey(gpu(0), gpu(1), pairs=[found])).findings if one.topic == "GPU 0-1"
    ]
    assert finding.state == state
    assert finding.text.startswith(text)


def test_lanes_that_are_missing_and_instances() -> None:
    link = PcieLink(generation=4, width=4, most_generation=5, most_width=16)
    cut = dataclasses.replace(gpu(0), pcie=link, mig=True)
    one = Trial(image="x", exit_code=0, output="CUDA0: x")
    lanes, mig = [found for found in diagnosed(survey(cut), trial=one).findings if found.state == "warn"]
    assert "4 of 16 lanes" in lanes.text
    assert mig.mend == ("sudo nvidia-smi -i 0 -mig 0",)


def test_proxies_are_shown_without_their_passwords() -> None:
    diagnosis = diagnosed(environment={"HTTPS_PROXY": "http://me:secret@proxy:3128"})
    (finding,) = [one for one in diagnosis.findings if one.topic == "proxy"]
    assert finding.text == "https_proxy=http://…@proxy:3128"


def test_addresses_that_do_not_answer_are_a_warning() -> None:
    asked = {"https://a.example/x": None, "https://b.example": "no answer in time"}
    diagnosis = diagnosed(unreached=asked)
    assert only(diagnosis, "warn").text == "b.example can't be reached: no answer in time"
    assert diagnosis.bad == 0


def test_a_machine_without_a_gpu_says_so_and_runs_the_cpu_s_image() -> None:
    diagnosis = diagnosed(GpuSurvey(driver=None), trial=None)
    assert only(diagnosis, "note").text.startswith("no NVIDIA GPU on this machine")
    assert diagnosis.bad == 0
    assert diagnosis.image == "llama-diffusion:cpu"
    assert "--gpus" not in diagnosis.run
    assert "-ngl" not in diagnosis.run


def test_podman_names_its_devices() -> None:
    engine = lacking(name="podman", nvidia_runtime=False)
    diagnosis = diagnosed(engine=engine, cdi=(Path("/etc/cdi/nvidia.yaml"),))
    assert diagnosis.bad == 0
    assert diagnosis.run[:6] == ("podman", "run", "--rm", "-it", "--device", "nvidia.com/gpu=all")


# --- the screen ----------------------------------------------------------------------------------


def text_of(diagnosis: Diagnosis) -> str:
    stream = io.StringIO()
    show(screens.doctor_screen(diagnosis), stream)
    return stream.getvalue()


@pytest.mark.parametrize(("values", "text", "command"), WRONG.values(), ids=WRONG)
def test_every_line_fits_and_every_command_stands_alone(
    values: dict[str, Any], text: str, command: str
) -> None:
    lines = text_of(diagnosed(**values)).splitlines()
    # A command is not cut: only one that is longer by itself may go beyond.
    assert all(len(line) <= screens.WIDTH for line in lines if "https://" not in line)
    assert any(line.startswith("BAD   ") for line in lines)
    assert any(line.strip().startswith(command) for line in lines)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40))
def test_names_of_any_length_keep_the_screen(name: str) -> None:
    text = text_of(diagnosed(survey(gpu(0, name=name)), trial=None))
    assert all(len(line) <= screens.WIDTH for line in text.splitlines() if name not in line)
    assert re.search(r"^ok    GPU 0 ", text, re.MULTILINE)


def test_json_has_every_finding() -> None:
    diagnosis = diagnosed()
    found = screens.doctor_json(diagnosis)
    assert found["image"] == diagnosis.image
    assert [one["text"] for one in found["findings"]] == [one.text for one in diagnosis.findings]


def test_capabilities_are_told_once() -> None:
    assert capabilities(machine(survey(gpu(0), gpu(1), gpu(2, "8.6")))) == ("12.0", "8.6")
