"""Layers out of ``docker save``'s archives, in each layout that engines write."""

from __future__ import annotations

import gzip
import hashlib
import json
import random

import pytest

from llama_images.adapters.image_archive import ChunkReader, read_layers
from llama_images.errors import OutsideError
from llama_images.ports import Layer
from tests.unit.fakes import archive

ZEROS = b"\0" * 3_000_000
NOISE = random.Random(1).randbytes(200_000)
EMPTY = b"\0" * 1024


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config(*layers: bytes) -> bytes:
    return json.dumps(
        {
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            "history": [
                {"created_by": "RUN /bin/sh -c dd # buildkit"},
                {"created_by": "LABEL a=b", "empty_layer": True},
                {"created_by": "/bin/sh -c #(nop) COPY file:1 in /x "},
                {"created_by": "WORKDIR /x"},
            ],
        }
    ).encode()


def manifest(config_name: str, *layers: str) -> bytes:
    return json.dumps([{"Config": config_name, "RepoTags": ["x:1"], "Layers": layers}]).encode()


def check(layers: tuple[Layer, ...]) -> None:
    zeros, noise = layers
    assert (zeros.diff_id, zeros.size_bytes) == (digest(ZEROS), len(ZEROS))
    assert 1000 < zeros.compressed_bytes < 10_000
    assert zeros.created_by == "RUN /bin/sh -c dd"
    assert (noise.diff_id, noise.size_bytes) == (digest(NOISE), len(NOISE))
    assert noise.compressed_bytes == pytest.approx(len(NOISE), rel=0.01)
    assert noise.created_by == "COPY file:1 in /x"


def test_old_layout() -> None:
    """The manifest comes last; a layer shared with another image is a link; an empty layer is left out."""
    counts: list[int] = []
    layers = read_layers(
        archive(
            {
                "aaa/VERSION": b"1.0",
                "aaa/json": b"{}",
                "aaa/layer.tar": "../bbb/layer.tar",
                "bbb/layer.tar": ZEROS,
                "ccc/layer.tar": NOISE,
                "ddd/layer.tar": EMPTY,
                "eee.json": config(ZEROS, NOISE, EMPTY),
                "manifest.json": manifest("eee.json", "aaa/layer.tar", "ccc/layer.tar", "ddd/layer.tar"),
                "repositories": b"{}",
            }
        ),
        counts.append,
    )
    check(layers)
    assert counts == sorted(counts)
    assert counts[-1] > 3_200_000


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_oci_layout(pack: type[bytes]) -> None:
    """Blobs have no kind in their names; the containerd store hands out layers compressed."""
    blobs = {f"blobs/sha256/{hashlib.sha256(data).hexdigest()}": data for data in (pack(ZEROS), pack(NOISE))}
    names = list(blobs)
    layers = read_layers(
        archive(
            {
                "blobs/sha256/00": b'{"mediaType": "application/vnd.oci.image.index.v1+json"}',
                "blobs/sha256/11": config(ZEROS, NOISE),
                **blobs,
                "index.json": b"{}",
                "manifest.json": manifest("blobs/sha256/11", *names),
                "oci-layout": b"{}",
            }
        ),
        lambda _: None,
    )
    check(layers)


def test_size_of_a_compressed_layer_is_its_blob() -> None:
    packed = gzip.compress(NOISE, compresslevel=1)
    (layer,) = read_layers(
        archive(
            {
                "blobs/sha256/11": config(NOISE),
                "blobs/sha256/22": packed,
                "manifest.json": manifest("blobs/sha256/11", "blobs/sha256/22"),
            }
        ),
        lambda _: None,
    )
    assert (layer.size_bytes, layer.compressed_bytes) == (len(NOISE), len(packed))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"manifest.json": b"[]"},
        {"manifest.json": b'{"a": 1}'},
        {"manifest.json": manifest("missing.json", "x/layer.tar")},
        {"manifest.json": manifest("c.json", "x/layer.tar"), "c.json": config(NOISE)},
        {"manifest.json": manifest("c.json"), "c.json": config(NOISE)},
        {"manifest.json": manifest("c.json", "l"), "c.json": config(NOISE), "l": "l"},
    ],
)
def test_unknown_form(files: dict[str, bytes | str]) -> None:
    with pytest.raises(OutsideError, match="unknown form"):
        read_layers(archive(files), lambda _: None)


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100])
def test_no_archive(data: bytes) -> None:
    with pytest.raises(OutsideError, match="the engine's image archive"):
        read_layers([data], lambda _: None)


def test_archive_cut_short() -> None:
    chunks = list(archive({"aaa/layer.tar": NOISE, "manifest.json": b"[]"}))
    with pytest.raises(OutsideError, match="the engine's image archive"):
        read_layers(chunks[: len(chunks) // 2], lambda _: None)


def test_zstd_is_named() -> None:
    with pytest.raises(OutsideError, match="zstd"):
        read_layers(archive({"blobs/sha256/22": b"\x28\xb5\x2f\xfd" + NOISE}), lambda _: None)


def test_reader_gives_what_was_asked_for() -> None:
    reader = ChunkReader([b"abc", b"defg"])
    assert [reader.read(2), reader.read(4), reader.read(9), reader.read(1)] == [b"ab", b"cdef", b"g", b""]
    assert ChunkReader([b"abc", b"defg"]).read() == b"abcdefg"
