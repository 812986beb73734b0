"""Synthetic models: their bytes, their weights, what happens around the file, and what is no model."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import jinja2
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_images import synthetic
from llama_images.errors import OutsideError, UsageError
from llama_images.gguf_file import read_model_info
from llama_images.model_shape import (
    LOUD_PAIRS,
    SHAPES,
    TWIN,
    Embedding,
    loud_tokens,
    planned_tensors,
)
from llama_images.model_tokenizer import CHAT_TEMPLATE, FIRST_WORD, tokenizer
from llama_images.model_weights import tensor_data
from llama_images.synthetic import write_model

TINY_SHA256 = "06cda9db7597b2cea1820047130c7269bdcc65829c2fbefa430557b29a38bcee"
FULL_START_SHA256 = "232cbb64c4d37dddbe6dcbef4070ce549c94dfaf563b530314185b46517ae737"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model("tiny", path)
    return path


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A tiny model that a test may spoil, with its record."""
    path = tmp_path / "model.gguf"
    shutil.copy2(tiny, path)
    shutil.copy2(tiny.with_name("tiny.gguf.json"), path.with_name("model.gguf.json"))
    return path


# --- the bytes ------------------------------------------------------------------------------------


def test_the_tiny_model_is_the_same_everywhere(tiny: Path) -> None:
    info = write_model("tiny", tiny)
    assert info.sha256 == TINY_SHA256 == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert info.bytes == tiny.stat().st_size == 28_160_032


def test_the_full_model_starts_the_same_everywhere() -> None:
    """The first 64 MB of tensor data: quantised rows, loud ones among them."""
    _, pieces = next(tensor_data("full", 1))
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece.data)
        size += len(piece)
        if size > 64 << 20:
            break
    assert digest.hexdigest() == FULL_START_SHA256


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    assert write_model("tiny", tmp_path / "2.gguf", seed=2).sha256 != TINY_SHA256


def test_no_piece_is_large() -> None:
    for _, pieces in itertools.islice(tensor_data("full", 1), 12):
        for piece in itertools.islice(pieces, 40):
            assert piece.nbytes <= 100_000_000


# --- the shape, against the table of the real file ------------------------------------------------


def test_the_full_model_has_the_tensors_of_the_real_one() -> None:
    plan = planned_tensors("full")
    assert len(plan) == 692
    assert sum(math.prod(planned.shape) for planned in plan) == 25_250_987_068
    assert Counter(planned.type.name for planned in plan) == {"F32": 423, "Q4_K": 182, "Q5_0": 61, "Q6_K": 26}
    assert sum(planned.bytes for planned in plan) / 1e9 == pytest.approx(15.4, abs=0.05)
    shapes = {planned.name: planned.shape for planned in plan}
    assert shapes["token_embd.weight"] == (2816, 262144)
    assert shapes["blk.0.attn_q.weight"] == (2816, 16 * 256)
    assert shapes["blk.5.attn_q.weight"] == (2816, 16 * 512)
    assert shapes["blk.4.attn_v.weight"] == (2816, 8 * 256)
    assert "blk.5.attn_v.weight" not in shapes
    assert shapes["blk.29.attn_k.weight"] == (2816, 2 * 512)
    assert shapes["blk.7.ffn_gate_up_exps.weight"] == (2816, 1408, 128)
    assert shapes["blk.7.ffn_down_exps.weight"] == (704, 2816, 128)
    assert shapes["rope_freqs.weight"] == (256,)


class Reader(NamedTuple):
    metadata: Callable[[str], Any]
    tensors: dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def reader(tiny: Path) -> Reader:
    """The file by llama.cpp's own reader; tensors as F32, in NumPy's order."""
    found = gguf.GGUFReader(tiny)
    tensors = {tensor.name: np.asarray(tensor.data, dtype=np.float32) for tensor in found.tensors}

    def metadata(key: str) -> Any:
        field = found.get_field(key)
        assert field is not None, key
        return field.contents()

    return Reader(metadata, tensors)


def test_metadata_is_what_the_loader_asks_for(reader: Reader) -> None:
    prefix = "diffusion-gemma"
    assert reader.metadata("general.architecture") == prefix
    assert reader.metadata(f"{prefix}.attention.sliding_window_pattern") == [True] * 5 + [False]
    assert reader.metadata(f"{prefix}.attention.head_count_kv") == [2] * 5 + [1]
    assert reader.metadata(f"{prefix}.attention.causal") is False
    assert reader.metadata(f"{prefix}.final_logit_softcapping") == 30.0
    assert reader.metadata("diffusion.canvas_length") == 64
    assert reader.metadata("tokenizer.ggml.model") == "gemma4"
    assert reader.metadata("tokenizer.ggml.tokens")[:5] == ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    ids = {
        name: reader.metadata(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown", "mask")
    }
    assert ids == {"bos": 2, "eos": 1, "unknown": 3, "mask": 4}
    assert len(reader.metadata("tokenizer.ggml.merges")) > 100


def test_weights_have_the_spread_of_their_fan_in(reader: Reader) -> None:
    plan = {planned.name: planned for planned in planned_tensors("tiny")}
    assert reader.tensors.keys() == plan.keys()
    for name, values in reader.tensors.items():
        assert np.isfinite(values).all(), name
        if values.ndim > 1 and name != "token_embd.weight":
            spread = values.std() * math.sqrt(plan[name].shape[0])
            assert spread == pytest.approx(1, abs=0.03), name
            assert abs(values.mean()) < 5 * values.std() / math.sqrt(values.size), name


def check_rows(rows: npt.NDArray[Any], vocabulary: int, quiet: float, first: int = 0) -> None:
    """Lengths of the embedding's rows from number ``first`` on; a full row has length 1."""
    lengths = np.linalg.norm(rows, axis=1)
    loud = np.array(
        [token - first for token in loud_tokens(vocabulary) if first <= token < first + len(rows) - 1]
    )
    assert lengths[loud] == pytest.approx(1, abs=0.2)
    np.testing.assert_allclose(rows[loud + 1], rows[loud] * TWIN, rtol=2e-3, atol=1e-6)
    others = np.delete(lengths, np.concatenate([loud, loud + 1]))
    assert others.max() < 1.3 * quiet
    assert others.mean() == pytest.approx(quiet, rel=0.02)


def test_loud_rows_twins_and_quiet_ones(reader: Reader) -> None:
    rows = reader.tensors["token_embd.weight"]
    check_rows(rows, len(rows), SHAPES["tiny"].quiet)
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight"]
)
def test_quantised_weights_have_the_spread_of_their_fan_in(name: str) -> None:
    planned, pieces = next(pair for pair in tensor_data("full", 1) if pair[0].name == name)
    per_row = planned.bytes // math.prod(planned.shape[1:])
    raw = b""
    for piece in pieces:
        raw += bytes(piece)
        if len(raw) > 5000 * per_row:  # more than two loud rows of the embedding
            break
    raw = raw[: min(len(raw) // per_row, 5000) * per_row]
    rows = dequantize(np.frombuffer(raw, np.uint8).reshape(-1, per_row), planned.type)
    assert len(rows) > 2000
    assert np.isfinite(rows).all()
    if isinstance(planned.fill, Embedding):
        check_rows(rows, planned.shape[1], planned.fill.quiet)
    else:
        assert rows.std() * math.sqrt(planned.shape[0]) == pytest.approx(1, abs=0.01)
        assert abs(rows.mean()) * math.sqrt(planned.shape[0]) < 0.01
    assert len(np.unique(rows, axis=0)) == len(rows)


# --- the tokenizer --------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [2048, 262144])
def test_tokens_are_distinct_and_cover_every_byte(vocabulary: int) -> None:
    words = tokenizer(vocabulary)
    assert len(words.tokens) == len(words.types) == len(set(words.tokens)) == vocabulary
    bytes_at = [index for index, kind in enumerate(words.types) if kind == 6]
    assert [words.tokens[index] for index in bytes_at] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert all(chr(code) in words.tokens for code in range(0x21, 0x7F))
    assert "" not in words.tokens
    known = set(words.tokens)
    for merge in words.merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known


def test_loud_tokens_are_words_with_a_space_and_their_twins_without() -> None:
    for vocabulary in (2048, 262144):
        words = tokenizer(vocabulary)
        loud = loud_tokens(vocabulary)
        assert len(set(loud)) == LOUD_PAIRS
        assert min(loud) == FIRST_WORD
        for token in loud:
            assert words.tokens[token] == "\u2581" + words.tokens[token + 1]
            assert words.tokens[token + 1].isalpha()


def render(messages: list[dict[str, str]], **more: Any) -> str:
    template = jinja2.Environment(undefined=jinja2.Undefined, autoescape=False).from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, bos_token="<bos>", add_generation_prompt=True, **more)


def test_the_chat_template_has_a_thinking_switch() -> None:
    user = [{"role": "user", "content": " hello "}]
    assert render(user, enable_thinking=True) == (
        "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nhello<turn|>\n<|turn>model\n"
    )
    without = "<bos><|turn>user\nhello<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    assert render(user, enable_thinking=False) == render(user) == without


def test_the_chat_template_keeps_a_system_prompt_and_the_history() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    turns = "<|turn>user\na<turn|>\n<|turn>model\nb<turn|>\n<|turn>user\nc<turn|>\n<|turn>model\n"
    assert (
        render(messages, enable_thinking=True) == f"<bos><|turn>system\n<|think|>\nbe brief<turn|>\n{turns}"
    )
    assert render(messages).startswith(f"<bos><|turn>system\nbe brief<turn|>\n{turns}")


# --- the file -------------------------------------------------------------------------------------


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    info = write_model(
        "tiny", tmp_path / "m.gguf", on_progress=lambda done, total: seen.append((done, total))
    )
    assert {total for _, total in seen} == {info.bytes}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (info.bytes, info.bytes)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def unexpected(_done: int, _total: int) -> None:
    pytest.fail("the model was written again")


def test_the_same_model_is_not_written_again(copy: Path) -> None:
    before = copy.stat()
    assert write_model("tiny", copy, on_progress=unexpected).sha256 == TINY_SHA256
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("record", [None, b"", b"{}", b"\xff", b'{"sha256": 1}', b"[]"])
def test_a_lost_record_is_made_anew_without_writing_the_model(copy: Path, record: bytes | None) -> None:
    beside = copy.with_name("model.gguf.json")
    good = beside.read_bytes()
    if record is None:
        beside.unlink()
    else:
        beside.write_bytes(record)
    assert write_model("tiny", copy, on_progress=unexpected).sha256 == TINY_SHA256
    assert beside.read_bytes() == good


def test_a_changed_file_is_hashed_again(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert write_model("tiny", copy, on_progress=unexpected).sha256 == hashlib.sha256(data).hexdigest()


def test_a_model_of_another_seed_or_a_cut_one_is_replaced(copy: Path) -> None:
    other = write_model("tiny", copy, seed=7)
    assert other.sha256 != TINY_SHA256
    assert read_model_info(copy).synthetic == (synthetic.GENERATOR, "tiny", 7)
    with copy.open("r+b") as file:
        file.truncate(20_000_000)
    assert write_model("tiny", copy, seed=7).sha256 == other.sha256
    assert names(copy.parent) == {"model.gguf", "model.gguf.json"}


def test_a_model_of_an_older_generator_is_replaced(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "GENERATOR", synthetic.GENERATOR + 1)
    write_model("tiny", copy)
    assert read_model_info(copy).synthetic == (synthetic.GENERATOR, "tiny", 1)


@pytest.mark.parametrize("content", [b"", b"precious", b"GGUF", b"GGUF" + bytes(100)])
def test_a_file_of_somebody_else_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="exists and is no synthetic model"):
        write_model("tiny", path)
    assert path.read_bytes() == content
    assert names(tmp_path) == {"mine.gguf"}


def test_a_real_model_is_never_replaced(tmp_path: Path) -> None:
    path = other_architecture(tmp_path, "diffusion-gemma")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists and is no synthetic model"):
        write_model("tiny", path)
    assert path.read_bytes() == before


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory") as caught:
        write_model("tiny", tmp_path)
    assert caught.value.hint == f"name a file in it, such as {tmp_path / 'tiny.gguf'}"


@pytest.mark.parametrize("path", ["/proc/nothing/model.gguf", "/dev/null/model.gguf", "/proc/model.gguf"])
def test_a_folder_that_cannot_be_written_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match=r"can't (write to|look at) ") as caught:
        write_model("tiny", Path(path))
    assert "\n" not in caught.value.message


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no synthetic model of size 'huge'") as caught:
        write_model("huge", tmp_path / "m.gguf")  # type: ignore[arg-type]
    assert caught.value.hint == "sizes: tiny, full"
    for seed in (-1, 1 << 63):
        with pytest.raises(UsageError, match="out of range"):
            write_model("tiny", tmp_path / "m.gguf", seed=seed)
    assert names(tmp_path) == set()


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "m.gguf"
    write_model("tiny", path)
    assert path.is_file()


class Disk(NamedTuple):
    free: int


def test_a_disk_without_room_is_known_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(free=28_000_000))
    with pytest.raises(OutsideError, match=r"has 0\.0 GB free, and the model takes 0\.0 GB"):
        write_model("tiny", tmp_path / "m.gguf", on_progress=unexpected)
    assert names(tmp_path) == set()


def interrupt(_done: int, _total: int) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_model("tiny", tmp_path / "m.gguf", on_progress=interrupt)
    assert names(tmp_path) == set()


def test_ctrl_c_leaves_the_old_model(copy: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_model("tiny", copy, seed=5, on_progress=interrupt)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == TINY_SHA256
    assert names(copy.parent) == {"model.gguf", "model.gguf.json"}


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "ran full while writing"), (errno.EIO, r"writing .*m\.gguf failed: ")],
)
def test_a_failing_disk_is_one_clear_line(tmp_path: Path, number: int, words: str) -> None:
    def fail(_done: int, _total: int) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(OutsideError, match=words):
        write_model("tiny", tmp_path / "m.gguf", on_progress=fail)
    assert names(tmp_path) == set()


def test_a_second_writer_is_turned_away(tmp_path: Path) -> None:
    part = tmp_path / "m.gguf.part"
    with part.open("wb") as file:
        file.write(b"theirs")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutsideError, match="is being written by another process"):
            write_model("tiny", tmp_path / "m.gguf")
        assert part.read_bytes() == b"theirs"


def test_a_part_left_by_a_killed_writer_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "m.gguf.part").write_bytes(b"old" * 1000)
    assert write_model("tiny", tmp_path / "m.gguf").sha256 == TINY_SHA256
    assert names(tmp_path) == {"m.gguf", "m.gguf.json"}


# --- reading --------------------------------------------------------------------------------------


def test_a_model_is_described(tiny: Path) -> None:
    model = read_model_info(tiny)
    assert (model.canvas, model.vocabulary, len(model.tensors)) == (64, 2048, 144)
    assert model.synthetic == (synthetic.GENERATOR, "tiny", 1)
    assert model.bytes == model.expected_bytes
    found = gguf.GGUFReader(tiny)
    assert model.data_offset == found.data_offset
    assert [(tensor.name, tensor.bytes, tensor.offset + model.data_offset) for tensor in model.tensors] == [
        (tensor.name, tensor.n_bytes, tensor.data_offset) for tensor in found.tensors
    ]


def other_architecture(folder: Path, name: str) -> Path:
    path = folder / "other.gguf"
    writer = gguf.GGUFWriter(path, name)
    writer.add_array("tokenizer.ggml.scores", [0.5] * 2000)
    writer.add_tensor("x", np.zeros(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_another_architecture_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a model of architecture 'llama'") as caught:
        read_model_info(other_architecture(tmp_path, "llama"))
    assert caught.value.hint == "give a GGUF file of architecture 'diffusion-gemma'"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is not a GGUF file \(it is empty\)"),
        (b"PK\x03\x04", "is not a GGUF file$"),
        (b"GGUF", "damaged: it ends in the middle of its header"),
        (b"GGUF\x01\0\0\0", "damaged: it is of GGUF version 1"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "damaged: it names more entries than it can hold"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7) + b"\xff" * 8, "damaged: it ends in the middle"),
    ],
)
def test_what_is_no_model_is_one_clear_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_model_info(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_model_info(tmp_path / "gone.gguf")
    with pytest.raises(UsageError, match="is a directory"):
        read_model_info(tmp_path)


def test_an_unreadable_file(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # root may read everything

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match=r"can't read .*tiny\.gguf: permission denied"):
        read_model_info(tiny)


@pytest.mark.parametrize("length", [4, 20, 5_000, 60_000, 1_000_000, 28_160_000])
def test_a_truncated_model_is_refused(copy: Path, length: int) -> None:
    with copy.open("r+b") as file:
        file.truncate(length)
    with pytest.raises(UsageError, match=r"is truncated: |is damaged: it ends in the middle"):
        read_model_info(copy)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_damaged_headers_raise_nothing_else(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    with tiny.open("rb") as file:
        head = bytearray(file.read(80_000))
    for _ in range(data.draw(st.integers(1, 6))):
        head[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.gguf"
    path.write_bytes(head)
    with pytest.raises(UsageError):
        read_model_info(path)


def test_types_of_the_plan_are_known_to_the_reader() -> None:
    assert {planned.type for planned in planned_tensors("full")} == {
        GGMLQuantizationType.F32,
        GGMLQuantizationType.Q4_K,
        GGMLQuantizationType.Q5_0,
        GGMLQuantizationType.Q6_K,
    }
