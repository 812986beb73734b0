"""The header of a GGUF file, as far as this project asks: which model it is, whether it is whole, its
tensors.

Read here and not with ``gguf.GGUFReader``, which makes an array of each of the 262,144 tokens and takes
seconds. Layout: llama.cpp's ``gguf-py`` and ``ggml/src/gguf.cpp``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from llama_images.errors import UsageError

ARCHITECTURE = "diffusion-gemma"
ALIGNMENT = 32
"""Of the tensor data, where the file does not say."""


def tensor_bytes(shape: Iterable[int], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor of that shape and type, without padding."""
    per_block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // per_block * size


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A tensor as the file's header names it."""

    name: str
    shape: tuple[int, ...]
    """In ggml's order: the fastest dimension first."""
    type: GGMLQuantizationType
    offset: int
    """From the start of the tensor data, in bytes."""

    @property
    def bytes(self) -> int:
        return tensor_bytes(self.shape, self.type)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFile:
    """What a GGUF file's header says; arrays of more than ``KEPT_ARRAY`` elements are left out of
    ``metadata``."""

    path: Path
    """Of the first part, where it comes in several; the file's name on the hub, where it was read there."""
    bytes: int
    """Of all parts together."""
    expected_bytes: int
    """Length that the header asks for."""
    architecture: str
    metadata: Mapping[str, object]
    array_lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    data_offset: int

    @property
    def canvas(self) -> int | None:
        """Tokens denoised at once; None where the file does not say."""
        value = self.metadata.get("diffusion.canvas_length")
        return value if isinstance(value, int) else None

    @property
    def vocabulary(self) -> int | None:
        return self.array_lengths.get("tokenizer.ggml.tokens")

    @property
    def synthetic(self) -> tuple[int, str, int] | None:
        """(generator version, size, seed) of a file that ``synthetic.write_model`` made; None for any
        other."""
        keys = ("synthetic.generator", "synthetic.size", "synthetic.seed")
        generator, size, seed = (self.metadata.get(key) for key in keys)
        if isinstance(generator, int) and isinstance(size, str) and isinstance(seed, int):
            return generator, size, seed
        return None


KEPT_ARRAY = 1024
_MOST = 1 << 24  # no honest header has more entries, or a longer key
_SIMPLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class _HeaderError(Exception):
    """The header asks for more than the file holds, or for what the format does not have."""


class _Reader:
    def __init__(self, file: IO[bytes], length: int) -> None:
        self._file, self._length, self.at = file, length, 0

    def take(self, count: int) -> bytes:
        if count > self._length - self.at:
            raise _HeaderError("ends in the middle of its header")
        data = self._file.read(count)
        if len(data) != count:
            raise _HeaderError("ends in the middle of its header")
        self.at += count
        return data

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.text()
        if kind in _SIMPLE:
            return self.number(_SIMPLE[kind])
        raise _HeaderError(f"holds a value of unknown type {kind}")

    def array(self) -> tuple[int, list[object] | None]:
        """Length, and the elements where they are few."""
        kind, count = self.number("I"), self.number("Q")
        if count > self._length:
            raise _HeaderError("holds an array longer than itself")
        if count <= KEPT_ARRAY:
            return count, [self.value(kind) for _ in range(count)]
        if kind in _SIMPLE:
            self.take(count * struct.calcsize("<" + _SIMPLE[kind]))
        elif kind == _STRING:
            for _ in range(count):
                self.take(self.number("Q"))
        else:
            raise _HeaderError(f"holds an array of unknown type {kind}")
        return count, None


def read_model_info(path: Path, read: Callable[[Path], ModelFile] | None = None) -> ModelFile:
    """Read the header of a model that the CLI can load, and check that the file is whole.

    ``read`` reads one header, where the file is not on this machine. A model in several parts is read as one;
    its ``tensors`` are those of all parts, and their offsets count within their own part. Raises UsageError,
    naming the file, where it or a part of it is missing, a directory, unreadable, truncated, no GGUF file,
    another than the first part, or of another architecture than diffusion-gemma.
    """
    read = read or read_header
    model = read(path)
    if model.architecture != ARCHITECTURE:
        raise UsageError(
            f"{path} is a model of architecture '{model.architecture}'",
            hint=f"give a GGUF file of architecture '{ARCHITECTURE}'",
        )
    parts = [_whole(model), *(_whole(_read_part(model, part, read)) for part in further_parts(model))]
    if len(parts) == 1:
        return model
    return dataclasses.replace(
        model,
        bytes=sum(part.bytes for part in parts),
        expected_bytes=sum(part.expected_bytes for part in parts),
        tensors=tuple(tensor for part in parts for tensor in part.tensors),
    )


def _whole(model: ModelFile) -> ModelFile:
    if model.bytes < model.expected_bytes:
        raise UsageError(
            f"{model.path} is truncated: {model.bytes:,} of {model.expected_bytes:,} bytes",
            hint="fetch or write it again",
        )
    return model


_PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def further_parts(model: ModelFile) -> tuple[Path, ...]:
    """Where the parts behind the first lie, by the names that the loader looks for; none in most models."""
    count = model.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return ()
    match = _PART_NAME.fullmatch(model.path.name)
    if match is None or int(match[3]) != count:
        raise UsageError(
            f"{model.path} is one of {count} parts, and its name does not say which",
            hint=f"give it back its name, which ends in -00001-of-{count:05}.gguf; the loader goes by it",
        )

    def name(number: int) -> Path:
        return model.path.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf")

    number = model.metadata.get("split.no")
    if number != 0 or int(match[2]) != 1:
        raise UsageError(f"{model.path} is not the first of its {count} parts", hint=f"give {name(1)}")
    return tuple(name(number) for number in range(2, count + 1))


def _read_part(model: ModelFile, path: Path, read: Callable[[Path], ModelFile]) -> ModelFile:
    try:
        return read(path)
    except UsageError as error:
        raise UsageError(
            f"{model.path} comes in {model.metadata['split.count']} parts: {error.message}",
            hint="all parts lie in one folder, under the names that they were published with",
        ) from error


def read_header(path: Path) -> ModelFile:
    """Read one file's header. Raises UsageError, naming the file, where there is none."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory", hint=_HINT)
    try:
        with path.open("rb") as file:
            return parse_header(file, os.fstat(file.fileno()).st_size, path)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", hint=_HINT) from None
    except OSError as error:
        raise UsageError(f"can't read {path}: {(error.strerror or str(error)).lower()}", hint=_HINT) from None


_HINT = "give a GGUF file of a diffusion-gemma model"


def parse_header(file: IO[bytes], length: int, path: Path) -> ModelFile:
    """Read a header from a stream of a file of so many bytes; ``path`` is what it is called in errors.

    Raises UsageError where it is no GGUF file or a damaged one.
    """
    if file.read(4) != b"GGUF":
        raise UsageError(f"{path} is not a GGUF file" + (" (it is empty)" if not length else ""), hint=_HINT)
    reader = _Reader(file, length)
    reader.at = 4
    try:
        return _parse(path, reader, length)
    except _HeaderError as error:
        raise UsageError(f"{path} is damaged: it {error}", hint="fetch or write it again") from None


def _parse(path: Path, reader: _Reader, length: int) -> ModelFile:
    version = reader.number("I")
    if version not in (2, 3):
        raise _HeaderError(f"is of GGUF version {version}; 2 and 3 are known")
    tensor_count, key_count = reader.number("Q"), reader.number("Q")
    if max(tensor_count, key_count) > min(_MOST, length):
        raise _HeaderError("names more entries than it can hold")
    metadata: dict[str, object] = {}
    lengths: dict[str, int] = {}
    for _ in range(key_count):
        key, kind = reader.text(), reader.number("I")
        if kind == _ARRAY:
            lengths[key], elements = reader.array()
            if elements is not None:
                metadata[key] = tuple(elements)
        else:
            metadata[key] = reader.value(kind)
    tensors = tuple(_tensor(reader) for _ in range(tensor_count))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise _HeaderError("has no valid alignment")
    data_offset = reader.at + -reader.at % alignment
    # The last tensor's padding is left out by some writers; the loader does without it.
    end = max((tensor.offset + tensor.bytes for tensor in tensors), default=0)
    return ModelFile(
        path=path,
        bytes=length,
        expected_bytes=_expected(data_offset, end, length),
        architecture=str(metadata.get("general.architecture", "")),
        metadata=metadata,
        array_lengths=lengths,
        tensors=tensors,
        data_offset=data_offset,
    )


def _expected(data_offset: int, end: int, length: int) -> int:
    """The length that the tensors ask for; padding behind the last one may be there or not."""
    needed = data_offset + end
    return length if needed <= length < needed + ALIGNMENT else needed


def _tensor(reader: _Reader) -> Tensor:
    name, count = reader.text(), reader.number("I")
    if not 1 <= count <= 4:
        raise _HeaderError(f"has a tensor of {count} dimensions")
    shape = [reader.number("Q") for _ in range(count)]
    kind, offset = reader.number("I"), reader.number("Q")
    try:
        known = GGMLQuantizationType(kind)
    except ValueError:
        raise _HeaderError(f"has a tensor of unknown type {kind}") from None
    return Tensor(name=name, shape=tuple(shape), type=known, offset=offset)
