"""Synthetic models of the architecture ``diffusion-gemma``, for tests and timings without the real weights.

Two sizes: ``tiny`` (28 MB, F16, runs on a CPU in milliseconds a step) and ``full`` (15.4 GB, the shape and
the quantised types of diffusiongemma-26B-A4B-it). A file is a pure function of (generator version, size,
seed), byte for byte, on every machine. ``model_shape`` says why the weights are as they are.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from gguf import GGUFWriter

from llama_images.errors import OutsideError, UsageError
from llama_images.gguf_file import ALIGNMENT, ARCHITECTURE, ModelFile, read_header, read_model_info
from llama_images.model_shape import SHAPES, SOFT_CAP, Size, planned_tensors
from llama_images.model_tokenizer import CHAT_TEMPLATE, tokenizer
from llama_images.model_weights import tensor_data

__all__ = ["GENERATOR", "ModelFile", "ModelInfo", "Size", "read_model_info", "write_model"]

GENERATOR = 1
"""Version of this generator. Raise it with every change that alters a byte of any file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """A synthetic model on disk."""

    path: Path
    bytes: int
    sha256: str


def _header(size: Size, seed: int) -> bytes:
    """Everything before the tensor data, padded to its alignment."""
    shape, words = SHAPES[size], tokenizer(SHAPES[size].vocabulary)
    writer = GGUFWriter(None, ARCHITECTURE)
    writer.add_type("model")
    writer.add_name(f"Synthetic diffusion-gemma, {size}, seed {seed}")
    writer.add_quantization_version(2)
    writer.add_file_type(15 if shape.quantised else 1)  # LLAMA_FTYPE_MOSTLY_Q4_K_M, _F16
    writer.add_uint32("synthetic.generator", GENERATOR)
    writer.add_string("synthetic.size", size)
    writer.add_uint64("synthetic.seed", seed)

    blocks = range(shape.blocks)
    integers: dict[str, int] = {
        "block_count": shape.blocks,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "embedding_length_per_layer_input": 0,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.sliding_window": shape.window,
        "attention.shared_kv_layers": 0,
        "attention.key_length": shape.head_size[1],
        "attention.value_length": shape.head_size[1],
        "attention.key_length_swa": shape.head_size[0],
        "attention.value_length_swa": shape.head_size[0],
        "expert_count": shape.experts,
        "expert_used_count": shape.experts_used,
        "expert_feed_forward_length": shape.expert_feed_forward,
        "rope.dimension_count": shape.head_size[1],
        "rope.dimension_count_swa": shape.head_size[0],
    }
    for key, number in integers.items():
        writer.add_uint32(f"{ARCHITECTURE}.{key}", number)
    reals: dict[str, float] = {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "final_logit_softcapping": SOFT_CAP,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
    }
    for key, real in reals.items():
        writer.add_float32(f"{ARCHITECTURE}.{key}", real)
    writer.add_bool(f"{ARCHITECTURE}.attention.causal", False)
    kv_heads = [shape.kv_heads[shape.is_global(block)] for block in blocks]
    writer.add_array(f"{ARCHITECTURE}.attention.head_count_kv", kv_heads)
    sliding = [not shape.is_global(block) for block in blocks]
    writer.add_array(f"{ARCHITECTURE}.attention.sliding_window_pattern", sliding)
    writer.add_uint32("diffusion.canvas_length", shape.canvas)

    writer.add_string("tokenizer.ggml.model", "gemma4")
    writer.add_array("tokenizer.ggml.tokens", words.tokens)
    writer.add_array("tokenizer.ggml.token_type", words.types)
    writer.add_array("tokenizer.ggml.merges", words.merges)
    ids = {"padding": 0, "eos": 1, "bos": 2, "unknown": 3, "mask": 4}
    for key, number in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    writer.add_bool("tokenizer.ggml.add_space_prefix", False)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_string("tokenizer.chat_template", CHAT_TEMPLATE)

    for planned in planned_tensors(size):
        # The writer takes NumPy's order, and for a raw type the number of elements.
        dimensions = planned.shape[::-1]
        kind = np.dtype(np.float16)
        writer.add_tensor_info(planned.name, dimensions, kind, planned.bytes, raw_dtype=planned.type)
    with tempfile.TemporaryDirectory() as folder:  # the writer can only write to a path
        path = Path(folder, "header")
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = path.read_bytes()
    return header + bytes(-len(header) % ALIGNMENT)


# Writing.

_CHUNK = 8 << 20


class _HashedFile:
    """Writes and hashes the same bytes at the same time; both let other Python threads run."""

    def __init__(self, file: IO[bytes], total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self._file, self._total, self._on_progress = file, total, on_progress
        self._hash = hashlib.sha256()
        self._worker = ThreadPoolExecutor(max_workers=1)
        self.written = 0

    def write(self, data: memoryview | bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(view), _CHUNK):
            piece = view[at : at + _CHUNK]
            hashed = self._worker.submit(self._hash.update, piece)
            self._file.write(piece)
            hashed.result()
            self.written += len(piece)
            if self._on_progress:
                self._on_progress(self.written, self._total)

    def close(self) -> str:
        self._worker.shutdown()
        return self._hash.hexdigest()


def write_model(
    size: Size,
    path: Path,
    *,
    seed: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> ModelInfo:
    """Write a synthetic model to ``path``, or recognise the same one there and leave it.

    The file appears under its name only when it is whole; beside it lies ``NAME.json`` with its SHA-256.
    ``on_progress`` gets bytes written and bytes in all. Raises UsageError for an unknown size, a seed that
    is not in 0 … 2^63 - 1, a folder that can't be written and a path that holds something else;
    OutsideError where the disk lacks the room or fails, or another process is writing the same file.
    """
    if size not in SHAPES:
        raise UsageError(f"no synthetic model of size '{size}'", hint=f"sizes: {', '.join(SHAPES)}")
    if not 0 <= seed < 1 << 63:
        raise UsageError(f"seed {seed} is out of range", hint="give a number from 0 to 2^63 - 1")
    known = _existing(size, path, seed)
    if known:
        return known
    header = _header(size, seed)
    total = len(header) + sum(planned.bytes + -planned.bytes % ALIGNMENT for planned in planned_tensors(size))
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("ab")  # not truncated before the lock is held
    except OSError as error:
        raise UsageError(
            f"can't write to {path.parent}: {_reason(error)}",
            hint="name a file in a folder that you can write to",
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutsideError(
                f"{path} is being written by another process", hint="wait for it, or name another file"
            ) from None
        if not _still_there(part, file):
            # Between our opening and our locking, its writer finished and renamed it.
            return write_model(size, path, seed=seed, on_progress=on_progress)
        try:
            file.truncate(0)
            _check_room(path, total)
            out = _HashedFile(file, total, on_progress)
            try:
                _write(out, header, size, seed)
            finally:
                sha256 = out.close()
            assert out.written == total
            file.flush()
            part.replace(path)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                _raise_disk(path, total, error)
            raise
    _note(size, seed, path, sha256)
    return ModelInfo(path=path, bytes=total, sha256=sha256)


def _still_there(part: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(part.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _write(out: _HashedFile, header: bytes, size: Size, seed: int) -> None:
    out.write(header)
    for planned, pieces in tensor_data(size, seed):
        for piece in pieces:
            out.write(piece.data)
        out.write(bytes(-planned.bytes % ALIGNMENT))


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _check_room(path: Path, total: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < total:
        raise OutsideError(
            f"{path.parent} has {free / 1e9:.1f} GB free, and the model takes {total / 1e9:.1f} GB",
            hint="make room, or name a file on another disk",
        )


def _raise_disk(path: Path, total: int, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise OutsideError(
            f"the disk of {path.parent} ran full while writing a model of {total / 1e9:.1f} GB",
            hint="make room, or name a file on another disk",
        ) from None
    raise OutsideError(f"writing {path} failed: {_reason(error)}", hint="check the disk") from None


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _record(size: Size, seed: int, path: Path, sha256: str) -> dict[str, object]:
    stat = path.stat()
    return {
        "generator": GENERATOR,
        "size": size,
        "seed": seed,
        "bytes": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "sha256": sha256,
    }


def _note(size: Size, seed: int, path: Path, sha256: str) -> None:
    with contextlib.suppress(OSError):  # a read-only folder: the next call hashes again
        _sidecar(path).write_text(json.dumps(_record(size, seed, path, sha256)) + "\n")


def _existing(size: Size, path: Path, seed: int) -> ModelInfo | None:
    """The same model, where ``path`` holds it; None where there is none, or one that this function's caller
    made."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"can't look at {path}: {_reason(error)}", hint="name another file") from None
    refuse = UsageError(
        f"{path} exists and is no synthetic model", hint="name another file, or remove this one"
    )
    if path.is_dir():
        raise UsageError(
            f"{path} is a directory", hint=f"name a file in it, such as {path / (size + '.gguf')}"
        )
    try:
        model = read_header(path)
    except UsageError:
        raise refuse from None
    if model.synthetic is None:
        raise refuse
    if model.synthetic != (GENERATOR, size, seed) or model.bytes != model.expected_bytes:
        return None
    try:
        record = json.loads(_sidecar(path).read_text())
    except (OSError, ValueError):
        record = None
    if isinstance(record, dict):
        sha256 = record.get("sha256")
        if isinstance(sha256, str) and record == _record(size, seed, path, sha256):
            return ModelInfo(path=path, bytes=found.st_size, sha256=sha256)
    # Touched, copied or without its record: the header and the length fit, so only the hash is made anew.
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    _note(size, seed, path, sha256)
    return ModelInfo(path=path, bytes=found.st_size, sha256=sha256)
