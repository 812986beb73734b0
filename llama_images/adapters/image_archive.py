"""Reads the tar stream of ``docker save`` (and ``podman save``): how large each layer is."""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from llama_images.errors import OutsideError
from llama_images.ports import Layer

_CHUNK: Final = 1 << 20
_LARGEST_JSON: Final = 4 << 20
_GZIP: Final = 16 + zlib.MAX_WBITS
_GZIP_LEVEL: Final = 6
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_EMPTY_LAYER: Final = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
"""Digest of a tar archive without entries: 1024 zero bytes."""


class ChunkReader:
    """A readable file over an iterator of byte strings, for ``tarfile``'s stream mode."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, fewer only at the end; all of them where ``size`` is negative."""
        if size < 0:
            data, self._rest = self._rest + b"".join(self._chunks), b""
            return data
        parts: list[bytes] = []
        missing = size
        while missing > 0:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes:
    size_bytes: int
    compressed_bytes: int


def read_layers(chunks: Iterable[bytes], on_bytes: Callable[[int], None]) -> tuple[Layer, ...]:
    """Sizes of an image's layers, lowest first, empty ones left out.

    ``chunks`` is the archive of one image, in Docker's old layout or with an OCI layout in it; it is read
    once and never held as a whole. ``compressed_bytes`` is what zlib makes at gzip level 6, the level of
    Docker's push; other gzip programs differ by a few per mille. ``on_bytes`` gets the number of bytes read
    so far, about once a mebibyte. Raises OutsideError where the archive is not of that form.
    """
    contents = _Contents(on_bytes)
    reader: Any = ChunkReader(contents.counted(chunks))
    try:
        with tarfile.open(fileobj=reader, mode="r|", bufsize=_CHUNK) as archive:
            for entry in archive:
                contents.add(entry, archive)
    except tarfile.TarError as error:
        raise OutsideError(f"the engine's image archive can't be read: {error}") from error
    return _assemble(contents.documents, contents.sizes, contents.links)


class _Contents:
    """What is kept of an archive while it streams by."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self.sizes: dict[str, _Sizes] = {}
        self.documents: dict[str, Any] = {}
        self.links: dict[str, str] = {}
        self._on_bytes = on_bytes
        self._count = 0

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._count += len(chunk)
            yield chunk

    def add(self, entry: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        name = posixpath.normpath(entry.name)
        if entry.issym():
            # Docker's old layout keeps a layer that two images share once.
            self.links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.linkname))
        elif entry.islnk():
            self.links[name] = posixpath.normpath(entry.linkname)
        elif entry.isfile():
            content = archive.extractfile(entry)
            assert content is not None
            # Blobs carry no kind in their name, and the list of layers may come after them.
            if entry.size <= _LARGEST_JSON and (name.endswith(".json") or name.startswith("blobs/")):
                self._add_small(name, content.read())
            elif name.endswith(".tar") or name.startswith("blobs/"):
                self.sizes[name] = _measure(iter(lambda: content.read(_CHUNK), b""), self._progressed)

    def _add_small(self, name: str, data: bytes) -> None:
        if data.lstrip()[:1] in (b"{", b"["):
            try:
                self.documents[name] = json.loads(data)
            except ValueError:
                pass
            else:
                return
        self.sizes[name] = _measure(iter((data,)), self._progressed)

    def _progressed(self) -> None:
        self._on_bytes(self._count)


def _measure(chunks: Iterator[bytes], progressed: Callable[[], None]) -> _Sizes:
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
    unpacker: zlib._Decompress | None = None
    read = plain = packed = 0
    for chunk in chunks:
        if read == 0:
            if chunk.startswith(_ZSTD_MAGIC):
                raise OutsideError(
                    "the engine keeps this image's layers zstd-compressed; their sizes can't be read"
                )
            if chunk.startswith(_GZIP_MAGIC):
                unpacker = zlib.decompressobj(_GZIP)
        read += len(chunk)
        if unpacker is not None:
            # The containerd image store hands out layers as a registry would hold them.
            plain += _unpacked_length(unpacker, chunk)
        else:
            packed += len(compressor.compress(chunk))
        progressed()
    if unpacker is not None:
        return _Sizes(size_bytes=plain, compressed_bytes=read)
    return _Sizes(size_bytes=read, compressed_bytes=packed + len(compressor.flush()))


def _unpacked_length(unpacker: zlib._Decompress, chunk: bytes) -> int:
    length = 0
    try:
        while chunk:
            length += len(unpacker.decompress(chunk, _CHUNK))
            chunk = unpacker.unconsumed_tail
    except zlib.error as error:
        raise OutsideError(f"a layer of the engine's image archive is damaged: {error}") from error
    return length


def _assemble(
    documents: dict[str, Any], sizes: dict[str, _Sizes], links: dict[str, str]
) -> tuple[Layer, ...]:
    try:
        manifest = documents["manifest.json"][0]
        config = documents[posixpath.normpath(manifest["Config"])]
        digests: list[str] = config["rootfs"]["diff_ids"] or []
        names = [posixpath.normpath(name) for name in manifest["Layers"] or []]
        history = [entry for entry in config.get("history") or [] if not entry.get("empty_layer")]
        layers = []
        for index, (digest, name) in enumerate(zip(digests, names, strict=True)):
            if digest == _EMPTY_LAYER:
                continue
            measured = sizes[_follow(name, links)]
            layers.append(
                Layer(
                    diff_id=digest,
                    size_bytes=measured.size_bytes,
                    compressed_bytes=measured.compressed_bytes,
                    created_by=_instruction(history[index].get("created_by", ""))
                    if index < len(history)
                    else "",
                )
            )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise OutsideError(f"the engine's image archive has an unknown form: {error!r}") from error
    return tuple(layers)


def _follow(name: str, links: dict[str, str]) -> str:
    for _ in range(len(links)):
        if name not in links:
            break
        name = links[name]
    return name


def _instruction(created_by: str) -> str:
    """A history line as the Dockerfile had it."""
    text = re.sub(r"^/bin/sh -c #\(nop\)\s+", "", created_by)
    return re.sub(r"\s+# buildkit$", "", text).strip()
