"""``fit`` on a file of the hub, as a user types it: only the header is fetched, by ranges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_images.gguf_file import read_header
from llama_images.synthetic import write_model
from tests.loopback.conftest import COMMIT, FILE, REPOSITORY, Hub

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.loopback


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("tiny", tmp_path_factory.mktemp("model") / "tiny.gguf").path


def fit(
    hub: Hub, folder: Path, *words: str, name: str = FILE, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return subprocess.run(
        [
            *(sys.executable, "-m", "llama_images", "fit", f"hf:{REPOSITORY}/{name}"),
            *("--memory", "16GiB", *words),
        ],
        cwd=folder,
        env=kept
        | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hf"),
            "LLAMA_IMAGES_CACHE": str(folder / "cache"),
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def asked_bytes(hub: Hub) -> int:
    total = 0
    for asked in hub.ranges:
        assert asked is not None, "the whole file was asked for"
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        total += last - first + 1
    return total


def test_only_the_header_is_fetched(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    hub.body = tiny.read_bytes()
    done = fit(hub, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["bytes"], found["fits"], found["model"]) == (len(hub.body), True, FILE)
    assert read_header(tiny).data_offset <= asked_bytes(hub) <= 4 << 20
    # The commit that the branch named at first is the one that is read.
    assert hub.requests[0][:2] == ("HEAD", f"/{REPOSITORY}/resolve/main/{FILE}")
    assert hub.requests[1][:2] == ("GET", f"/{REPOSITORY}/resolve/{COMMIT}/{FILE}")


def test_a_header_longer_than_a_piece_comes_in_several(hub: Hub, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "long.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.scores", [0.5] * 2_500_000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    hub.body = path.read_bytes()
    done = fit(hub, tmp_path)
    assert done.returncode == 2
    assert f"error: {FILE} is a model of architecture 'llama'" in done.stderr
    assert len(hub.ranges) == 3
    assert asked_bytes(hub) == len(hub.body)


def test_a_hub_without_ranges_is_told(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    hub.body, hub.honours_ranges = tiny.read_bytes(), False
    done = fit(hub, tmp_path)
    assert done.returncode == 3
    assert "sends only the whole of" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_one_line(hub: Hub, tmp_path: Path) -> None:
    done = fit(hub, tmp_path, name="other.gguf")
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert lines[-2] == f"error: {REPOSITORY} has no file other.gguf at revision main (404)"
    assert lines[-1].startswith("hint: ")


def test_a_connection_that_breaks_is_one_line(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    hub.body, hub.cut_after = tiny.read_bytes(), [1000]
    done = fit(hub, tmp_path)
    assert done.returncode == 3
    assert "can't be reached" in done.stderr
    assert "Traceback" not in done.stderr
