"""What ``doctor`` asks a machine, and that whatever fails is a finding and no error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from llama_images.diagnosis import Diagnosis
from llama_images.errors import OutsideError
from llama_images.matrix import load_matrix
from llama_images.ports import Finished, GpuSurvey
from llama_images.workflows.doctor import HUB, examine
from tests.unit.fakes import FakeReporter
from tests.unit.test_diagnosis import gpu, survey

MATRIX = load_matrix(Path(__file__).resolve().parents[2] / "matrix.yaml")
IMAGE = "llama-diffusion:sm120"
DOCKER_INFO = json.dumps({"ServerVersion": "28.3.0", "Runtimes": {"runc": {}, "nvidia": {}}})
PODMAN_INFO = json.dumps({"version": {"Version": "5.4.2"}, "store": {"graphRoot": "/nowhere"}})


@dataclass
class Machinery:
    """Programs by their first two words: exit code, output, errors."""

    answers: Mapping[str, tuple[int, str, str]]
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def find(self, name: str) -> tuple[Path, ...]:
        there = any(words.split()[0] == name for words in self.answers)
        return (Path("/usr/bin") / name,) if there else ()

    def run(self, argv: Sequence[str], *, timeout: float | None = None, **_how: Any) -> Finished:
        assert timeout is not None, "a program that hangs would hang doctor"
        self.asked.append(tuple(argv))
        code, text, errors = self.answers[" ".join(argv[:2])]
        if code == -1:
            raise OutsideError(errors)
        return Finished(argv=tuple(argv), returncode=code, stdout=text.encode(), stderr=errors.encode())


@dataclass
class Network:
    silent: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    def why_not(self, url: str) -> str | None:
        self.asked.append(url)
        return "no answer in time" if url in self.silent else None


class Surveyor:
    def __init__(self, found: GpuSurvey | OutsideError) -> None:
        self.found = found

    def survey(self) -> GpuSurvey:
        if isinstance(self.found, OutsideError):
            raise self.found
        return self.found


Answers: TypeAlias = Mapping[str, tuple[int, str, str]]

ALL_WELL: Answers = {
    "docker info": (0, DOCKER_INFO, ""),
    "docker image": (0, "[]", ""),
    "docker run": (0, "Available devices:\n  CUDA0: RTX\n", ""),
    "nvidia-ctk --version": (0, "NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80\n", ""),
}


def examined(tmp_path: Path, answers: Answers = ALL_WELL, **values: Any) -> Diagnosis:
    given: dict[str, Any] = {
        "matrix": MATRIX,
        "surveyor": Surveyor(survey(gpu(0))),
        "programs": Machinery(answers),
        "reach": Network(),
        "reporter": FakeReporter(),
        "environment": {},
        "platform": "linux/amd64",
        "models": tmp_path / "models",
        "bus": (),
        "cdi": (),
    }
    return examine(**given | values)


def texts(diagnosis: Diagnosis, topic: str) -> list[str]:
    return [finding.text for finding in diagnosis.findings if finding.topic == topic]


def test_a_machine_on_which_all_is_well(tmp_path: Path) -> None:
    programs, reach = Machinery(ALL_WELL), Network()
    diagnosis = examined(tmp_path, programs=programs, reach=reach)
    assert texts(diagnosis, "engine") == ["docker 28.3.0"]
    assert texts(diagnosis, "toolkit") == ["NVIDIA's container toolkit 1.17.8, its runtime is set up"]
    assert texts(diagnosis, "container") == [f"{IMAGE} sees 1 GPU in a container"]
    assert (
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--gpus",
        "all",
        IMAGE,
        "--list-devices",
    ) in programs.asked
    assert reach.asked == [MATRIX.sources["pr24423"].repository, HUB]


def test_no_container_is_started_without_the_image_or_a_gpu(tmp_path: Path) -> None:
    without = Machinery({**ALL_WELL, "docker image": (1, "", "No such image")})
    diagnosis = examined(tmp_path, programs=without)
    assert texts(diagnosis, "container")[0].startswith("not tried whether a container gets the GPUs")
    no_gpu = Machinery(ALL_WELL)
    examined(tmp_path, programs=no_gpu, surveyor=Surveyor(GpuSurvey(driver=None)))
    for programs in (without, no_gpu):
        assert not any(argv[1] == "run" for argv in programs.asked)


def test_an_engine_that_is_installed_and_does_not_answer(tmp_path: Path) -> None:
    # Docker's client prints an account of itself, and ends well, where no engine answers.
    client_alone = (0, json.dumps({"ServerVersion": "", "ServerErrors": ["Cannot connect"]}), "")
    for answer in (client_alone, (1, "", "permission denied\n"), (-1, "", "docker took too long")):
        diagnosis = examined(tmp_path, {"docker info": answer})
        assert texts(diagnosis, "engine")[0].startswith("docker is installed and does not answer: ")
        assert diagnosis.bad == 1


def test_podman_is_taken_where_docker_does_not_answer(tmp_path: Path) -> None:
    answers = {
        "docker info": (1, "", "Cannot connect"),
        "podman info": (0, PODMAN_INFO, ""),
        "podman image": (0, "", ""),
        "podman run": (0, "  CUDA0: RTX", ""),
    }
    diagnosis = examined(tmp_path, answers, cdi=(Path("/etc/cdi/nvidia.yaml"),))
    assert texts(diagnosis, "engine") == ["podman 5.4.2"]
    assert texts(diagnosis, "toolkit") == ["NVIDIA's container toolkit, CDI: /etc/cdi/nvidia.yaml"]
    assert diagnosis.bad == 0


def test_no_engine_at_all(tmp_path: Path) -> None:
    assert texts(examined(tmp_path, {}), "engine") == ["no docker or podman on PATH"]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ((125, "", "docker: could not select device driver"), "the engine has no driver for --gpus"),
        ((0, "Available devices:\n", ""), f"{IMAGE} lists no CUDA device"),
        ((-1, "", "docker run took longer than 90 s"), "docker run took longer than 90 s"),
    ],
)
def test_a_container_without_the_gpus(tmp_path: Path, answer: tuple[int, str, str], text: str) -> None:
    diagnosis = examined(tmp_path, {**ALL_WELL, "docker run": answer})
    assert texts(diagnosis, "container") == [f"a container gets no GPU: {text}"]


def test_a_driver_that_fails_is_a_finding(tmp_path: Path) -> None:
    diagnosis = examined(tmp_path, surveyor=Surveyor(OutsideError("the NVIDIA driver does not answer")))
    assert texts(diagnosis, "GPU") == ["the NVIDIA driver does not answer"]


def test_certificates_that_are_there_and_that_are_not(tmp_path: Path) -> None:
    there = tmp_path / "ca.pem"
    there.write_text("")
    environment = {"SSL_CERT_FILE": str(there), "CURL_CA_BUNDLE": str(tmp_path / "gone.pem")}
    found = texts(examined(tmp_path, environment=environment), "CA")
    assert found == [
        f"CURL_CA_BUNDLE names {tmp_path / 'gone.pem'}, which is not there",
        "certificates by SSL_CERT_FILE",
    ]


def test_the_network_is_left_alone_where_that_is_asked_for(tmp_path: Path) -> None:
    reach = Network()
    diagnosis = examined(tmp_path, reach=reach, network=False)
    assert reach.asked == []
    assert texts(diagnosis, "network") == []


def test_another_hub_is_asked_where_the_environment_names_one(tmp_path: Path) -> None:
    reach = Network(silent=frozenset({"https://hub.example"}))
    diagnosis = examined(tmp_path, reach=reach, environment={"HF_ENDPOINT": "https://hub.example"})
    assert "hub.example can't be reached: no answer in time" in texts(diagnosis, "network")


def test_room_is_looked_for_where_the_models_go(tmp_path: Path) -> None:
    (found,) = texts(examined(tmp_path), "disk")
    assert f"free in {tmp_path / 'models'} for a model" in found
