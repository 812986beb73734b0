"""An engine's images as files of the cache: compressed once, and always to the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llama_images import oci
from llama_images.adapters.image_store import CachedImages
from llama_images.errors import OutsideError
from llama_images.ports import ImageInfo, PackedImage
from tests.unit.fakes import FakeEngine, archive

DATE = datetime(2026, 6, 11, 16, 49, 3, tzinfo=UTC)
LAYERS = (b"a layer " * 100_000, b"another layer")
NAME = "llama-diffusion:cpu"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config(*layers: bytes, **other: Any) -> bytes:
    value = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-11-24T15:04:00Z",
        "config": {"User": "10001"},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        "history": [{"created": "2026-11-24T15:04:00Z", "created_by": "COPY"}] * len(layers),
    }
    return json.dumps(value | other).encode()


def engine(raw: bytes, files: dict[str, bytes | str], *names: str) -> FakeEngine:
    saved = json.dumps([{"Config": "config.json", "Layers": names}]).encode()
    chunks = archive({**files, "config.json": raw, "manifest.json": saved})
    image = ImageInfo(
        id=digest(raw), labels={}, environment=(), entrypoint=(), user="", layers=(), size_bytes=1, created=""
    )
    return FakeEngine(images={NAME: image}, archives={NAME: b"".join(chunks)})


def simple(raw: bytes = config(*LAYERS)) -> FakeEngine:
    return engine(raw, {"a/layer.tar": LAYERS[0], "b/layer.tar": LAYERS[1]}, "a/layer.tar", "b/layer.tar")


def pack(store: CachedImages, one: FakeEngine) -> PackedImage:
    return store.pack(one, NAME, DATE, lambda _text: None)


def contents(packed: PackedImage) -> list[bytes]:
    """The layers as they are pulled and unpacked, after a look at their digests."""
    result = []
    for layer in packed.layers:
        data = packed.blob(layer).read_bytes()
        assert (digest(data), len(data)) == (layer.digest, layer.size)
        assert layer.media_type == oci.LAYER_GZIP
        result.append(gzip.decompress(data))
    return result


def test_an_image_becomes_files(tmp_path: Path) -> None:
    packed = pack(CachedImages(tmp_path), simple())
    assert contents(packed) == list(LAYERS)
    assert packed.diff_ids == tuple(digest(layer) for layer in LAYERS)
    assert json.loads(packed.configuration)["created"] == "2026-06-11T16:49:03Z"
    assert (
        packed.blob(oci.Descriptor.of(packed.configuration, oci.CONFIG)).read_bytes() == packed.configuration
    )
    assert json.loads((tmp_path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}


def test_what_was_packed_is_not_asked_for_again(tmp_path: Path) -> None:
    store, one = CachedImages(tmp_path), simple()
    first = pack(store, one)
    assert pack(store, one) == first
    assert one.saves == [NAME]


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_blob_that_is_gone_or_cut_off_is_made_again(tmp_path: Path, damage: str) -> None:
    store, one = CachedImages(tmp_path), simple()
    first = pack(store, one)
    path = first.blob(first.layers[1])
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"x")
    assert pack(store, one) == first
    assert contents(first) == list(LAYERS)
    assert len(one.saves) == 2


def test_two_builds_make_the_same_files_in_two_places(tmp_path: Path) -> None:
    """Times of the build differ, and so does the form in which the engine keeps its layers."""
    packed = gzip.compress(LAYERS[0], mtime=1)
    other = engine(
        config(*LAYERS, created="2027-01-01T00:00:00Z", docker_version="28"),
        {"blobs/sha256/x": packed, "blobs/sha256/y": LAYERS[1]},
        "blobs/sha256/x",
        "blobs/sha256/y",
    )
    one, two = pack(CachedImages(tmp_path / "one"), simple()), pack(CachedImages(tmp_path / "two"), other)
    assert (one.layers, one.configuration) == (two.layers, two.configuration)
    assert contents(two) == list(LAYERS)


def test_a_layer_that_comes_twice_is_kept_once(tmp_path: Path) -> None:
    one = engine(
        config(LAYERS[0], LAYERS[0]),
        {"a/layer.tar": LAYERS[0], "b/layer.tar": "../a/layer.tar"},
        "a/layer.tar",
        "b/layer.tar",
    )
    packed = pack(CachedImages(tmp_path), one)
    assert contents(packed) == [LAYERS[0], LAYERS[0]]
    assert len(list((tmp_path / "blobs" / "sha256").iterdir())) == 2  # the layer and the configuration


def test_other_layers_than_the_configuration_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match="another layer than its configuration names"):
        pack(CachedImages(tmp_path), simple(config(LAYERS[1], LAYERS[0])))
    assert [path for path in (tmp_path / "blobs" / "sha256").iterdir() if path.name.startswith("part-")] == []


@pytest.mark.parametrize(
    "raw",
    [
        config(LAYERS[0]),
        b'{"rootfs": {}}',
        b"[]",
        b"no JSON",
        config(*LAYERS, rootfs={"diff_ids": ["md5:1"]}),
    ],
)
def test_an_unknown_form_is_one_clear_line(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(OutsideError, match="unknown form") as caught:
        pack(CachedImages(tmp_path), simple(raw))
    assert "\n" not in caught.value.message


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match=f"the engine has no image {NAME}"):
        pack(CachedImages(tmp_path), FakeEngine())


def test_packed_images_are_listed_by_name(tmp_path: Path) -> None:
    store = CachedImages(tmp_path)
    packed = pack(store, simple())
    first = oci.image_manifest(oci.Descriptor.of(packed.configuration, oci.CONFIG), packed.layers, {})
    second = replace(first, digest=oci.digest_of(b"x"), raw=b"x")
    for name, manifest in (("cpu", first), ("sm120", first), ("cpu", second)):
        store.list_image(name, manifest)
    entries = json.loads((tmp_path / "index.json").read_bytes())["manifests"]
    names = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in entries}
    assert names == {"cpu": second.digest, "sm120": first.digest}
    assert packed.blob(first.descriptor).read_bytes() == first.raw


def tar(files: dict[str, bytes]) -> bytes:
    return b"".join(archive(dict(files)))


def test_the_contents_of_each_layer_are_looked_at_by_themselves(tmp_path: Path) -> None:
    token = b"ghp_" + b"a1" * 18
    lower, upper = tar({"app/x": b"hidden later", "app/y": token}), tar({"app/x": b"new"})
    one = engine(config(lower, upper), {"a.tar": lower, "b.tar": upper}, "a.tar", "b.tar")
    store = CachedImages(tmp_path)
    packed = pack(store, one)
    first, second = store.contents(packed)
    assert (first.digest, second.digest) == tuple(layer.digest for layer in packed.layers)
    assert first.root.entries["/app/x"].content == b"hidden later"
    assert second.root.files == (("/app/x", 3),)
    assert (first.leaks, second.leaks) == (("a GitHub token",), ())
    packed.blob(packed.layers[0]).write_bytes(b"damaged")
    with pytest.raises(OutsideError, match="can't be read"):
        store.contents(packed)
    assert list(tmp_path.glob("root-*")) == []
