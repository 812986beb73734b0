"""A model that comes in several files, as llama-gguf-split writes them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from llama_images.errors import UsageError
from llama_images.gguf_file import read_model_info


def write_part(folder: Path, number: int, count: int, *, name: str | None = None) -> Path:
    path = folder / (name or f"model-{number:05}-of-{count:05}.gguf")
    writer = gguf.GGUFWriter(path, "diffusion-gemma")
    writer.add_uint16("split.no", number - 1)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", count)
    writer.add_tensor(f"blk.{number}.x", np.zeros(8 * number, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_all_parts_are_one_model(tmp_path: Path) -> None:
    parts = [write_part(tmp_path, number, 3) for number in (1, 2, 3)]
    model = read_model_info(parts[0])
    assert [(tensor.name, tensor.bytes) for tensor in model.tensors] == [
        ("blk.1.x", 32),
        ("blk.2.x", 64),
        ("blk.3.x", 96),
    ]
    assert model.bytes == sum(part.stat().st_size for part in parts)
    assert model.path == parts[0]


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    parts = [write_part(tmp_path, number, 3) for number in (1, 2, 3)]
    parts[1].unlink()
    with pytest.raises(UsageError, match=r"comes in 3 parts: .*model-00002-of-00003\.gguf does not exist"):
        read_model_info(parts[0])


def test_a_part_that_is_cut_off_is_named(tmp_path: Path) -> None:
    parts = [write_part(tmp_path, number, 2) for number in (1, 2)]
    with parts[1].open("r+b") as file:
        file.truncate(parts[1].stat().st_size - 40)
    with pytest.raises(UsageError, match=r"model-00002-of-00002\.gguf is truncated"):
        read_model_info(parts[0])


def test_another_part_than_the_first_is_refused_and_the_first_one_named(tmp_path: Path) -> None:
    parts = [write_part(tmp_path, number, 2) for number in (1, 2)]
    with pytest.raises(UsageError, match="is not the first of its 2 parts") as caught:
        read_model_info(parts[1])
    assert caught.value.hint == f"give {parts[0]}"


def test_a_part_of_another_name_can_t_have_the_others_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is one of 2 parts, and its name does not say which") as caught:
        read_model_info(write_part(tmp_path, 1, 2, name="renamed.gguf"))
    assert caught.value.hint is not None
    assert "-00001-of-00002.gguf" in caught.value.hint
