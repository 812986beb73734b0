"""Which model a file is, and copies of it that are broken on purpose."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_images.errors import UsageError
from llama_images.gguf_file import read_header
from llama_images.synthetic import write_model
from llama_images.workflows.model_files import broken_model, hashed_model
from tests.unit.fakes import FakeReporter


class Counting(FakeReporter):
    """Keeps what was read, file by file."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    @contextlib.contextmanager
    def activity(self, label: str) -> Iterator[FakeReporter]:
        self.read.append(label)
        yield self


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("tiny", tmp_path_factory.mktemp("model") / "tiny.gguf").path


def test_a_models_hash_is_that_of_the_file(tiny: Path, tmp_path: Path) -> None:
    model = hashed_model(tiny, tmp_path / "notes.json", Counting())
    assert model.sha256 == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert model.bytes == tiny.stat().st_size


def test_it_is_read_once(tiny: Path, tmp_path: Path) -> None:
    notes = tmp_path / "folder" / "notes.json"
    reporter = Counting()
    first = hashed_model(tiny, notes, reporter)
    assert hashed_model(tiny, notes, reporter) == first
    assert reporter.read == ["sha256 of tiny.gguf"]
    assert [path.name for path in notes.parent.iterdir()] == ["notes.json"]


def test_a_file_that_was_touched_is_read_again(tiny: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.json"
    reporter = Counting()
    hashed_model(tiny, notes, reporter)
    os.utime(tiny, ns=(1, 1))
    hashed_model(tiny, notes, reporter)
    assert len(reporter.read) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"PATH": 1}', '{"PATH": {"state": 1, "sha256": "x"}}'])
def test_notes_that_are_broken_are_made_anew(tiny: Path, tmp_path: Path, text: str) -> None:
    notes = tmp_path / "notes.json"
    notes.write_text(text.replace("PATH", str(tiny.resolve())))
    model = hashed_model(tiny, notes, Counting())
    assert len(model.sha256) == 64
    assert json.loads(notes.read_text())[str(tiny.resolve())]["sha256"] == model.sha256


def test_what_is_no_whole_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.json"
    for kind, words in (
        ("truncated", "is truncated"),
        ("of another architecture", "is a model of architecture 'gemma-embedding'"),
        ("missing", "does not exist"),
    ):
        path = broken_model(kind, tiny, tmp_path)  # type: ignore[arg-type] # a literal, in a loop
        with pytest.raises(UsageError, match=words):
            hashed_model(path, notes, Counting())
    assert not notes.exists()


def test_broken_models_are_broken_in_one_way_each(tiny: Path, tmp_path: Path) -> None:
    assert not broken_model("missing", tiny, tmp_path).exists()
    truncated = read_header(broken_model("truncated", tiny, tmp_path))
    assert truncated.architecture == "diffusion-gemma"
    assert truncated.bytes < truncated.expected_bytes
    other = read_header(broken_model("of another architecture", tiny, tmp_path))
    assert other.architecture == "gemma-embedding"
    assert other.bytes == other.expected_bytes
    unreadable = broken_model("unreadable", tiny, tmp_path)
    assert unreadable.stat().st_mode & 0o777 == 0
