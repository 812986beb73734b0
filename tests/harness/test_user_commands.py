"""The package's own commands, from its wheel, far from any clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest

from llama_images.synthetic import write_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip would install, and nothing else of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "llama-images = llama_images.cli:main" in archive.read(
            next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        ).decode("utf-8")
        archive.extractall(folder / "site")
    assert (folder / "site" / "llama_images" / "matrix.yaml").is_file()
    return folder / "site"


def user(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llama_images", *words],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(site),
            "LLAMA_IMAGES_CACHE": str(folder / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("tiny", tmp_path_factory.mktemp("model") / "tiny.gguf").path


def test_fit_without_a_clone(unpacked: Path, tiny: Path, tmp_path: Path) -> None:
    done = user(unpacked, tmp_path, "fit", str(tiny), "--memory", "8GiB", "--memory", "8GiB", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"]
    assert len(found["cards"]) == 2
    plain = user(unpacked, tmp_path, "fit", "--model", str(tiny), "--memory", "8GiB")
    assert plain.returncode == 0
    assert "\x1b" not in plain.stdout
    assert "llama-diffusion-cli -m" in plain.stdout


def test_doctor_without_a_clone(unpacked: Path, tmp_path: Path) -> None:
    done = user(unpacked, tmp_path, "doctor", "--offline", "--json")
    assert done.returncode in (0, 1), done.stderr  # this machine may lack an engine
    found = json.loads(done.stdout)
    assert (found["bad"] > 0) == (done.returncode == 1)
    assert found["image"].startswith("llama-diffusion:")
    assert {"engine", "disk"} <= {finding["topic"] for finding in found["findings"]}


def other_architecture(folder: Path) -> Path:
    path = folder / "other.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", np.zeros(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def first_of_two(folder: Path) -> Path:
    path = folder / "model-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "diffusion-gemma")
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 2)
    writer.add_tensor("x", np.zeros(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_error_is_one_line_and_a_hint(unpacked: Path, tiny: Path, tmp_path: Path) -> None:
    for words, code, message in (
        (["--memory", "8GiB"], 2, "no --model given"),
        (["gone.gguf", "--memory", "8GiB"], 2, "gone.gguf does not exist"),
        ([str(other_architecture(tmp_path)), "--memory", "8GiB"], 2, "is a model of architecture 'llama'"),
        ([str(first_of_two(tmp_path)), "--memory", "8GiB"], 2, "model-00002-of-00002.gguf does not exist"),
        ([str(tiny), "--memory", "100MiB"], 1, "tiny.gguf does not fit on this card"),
        ([str(tiny), "--memory", "lots"], 2, "--memory"),
        ([str(tiny), "--memory", "8GiB", "--tokens", "many"], 2, "--tokens many: not a number"),
        ([str(tiny), "--memory", "8GiB", "--tensor-split", "a,b"], 2, "--tensor-split a,b: not shares"),
    ):
        done = user(unpacked, tmp_path, "fit", *words)
        assert done.returncode == code, (words, done.stderr)
        lines = done.stderr.splitlines()
        assert [line.partition(": ")[0] for line in lines] == ["error", "hint"], done.stderr
        assert message in lines[0]


def test_a_report_is_one_file_without_the_user_s_folders(unpacked: Path, tmp_path: Path) -> None:
    finished = user(unpacked, tmp_path, "report", "--offline", "--out", "report.md")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{tmp_path / 'report.md'}\n"
    page = (tmp_path / "report.md").read_text("utf-8")
    assert page.startswith("# Report\n")
    assert "## doctor" in page
    assert str(Path.home()) not in page
    assert [path.name for path in tmp_path.glob("report*")] == ["report.md"]


def test_run_refuses_a_file_that_is_not_there(unpacked: Path, tmp_path: Path) -> None:
    finished = user(unpacked, tmp_path, "run", "none.gguf")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[0] == f"error: {tmp_path / 'none.gguf'} does not exist"
