"""An image's archive as an OCI image layout, from each form in which engines save one."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from llama_images.adapters.oci_layout import TAG, write_layout
from llama_images.errors import OutsideError
from tests.unit.fakes import archive

CONFIG = b'{"architecture": "amd64", "os": "linux"}'
LAYER = b"a layer " * 1000
OTHER = b"another layer"


def saved(config: str, *layers: str) -> bytes:
    return json.dumps([{"Config": config, "RepoTags": ["x:1"], "Layers": layers}]).encode()


def hexdigest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob(folder: Path, description: dict[str, Any]) -> bytes:
    """What a description names, after a look whether it is right."""
    algorithm, _, name = description["digest"].partition(":")
    data: bytes = (folder / "blobs" / algorithm / name).read_bytes()
    assert (hexdigest(data), len(data)) == (name, description["size"])
    return data


def read(folder: Path, digest: str) -> tuple[dict[str, Any], list[bytes]]:
    """The manifest under the tag, and the layers."""
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((folder / "index.json").read_bytes())["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": TAG}
    assert entry["digest"] == digest
    manifest: dict[str, Any] = json.loads(blob(folder, entry))
    assert manifest["mediaType"] == entry["mediaType"]
    assert blob(folder, manifest["config"]) == CONFIG
    return manifest, [blob(folder, layer) for layer in manifest["layers"]]


OLD: dict[str, bytes | str] = {
    f"{hexdigest(CONFIG)}.json": CONFIG,
    "a/layer.tar": LAYER,
    "b/layer.tar": OTHER,
    "c/layer.tar": "../a/layer.tar",
    "manifest.json": saved(f"{hexdigest(CONFIG)}.json", "a/layer.tar", "b/layer.tar", "c/layer.tar"),
}


def test_docker_s_old_layout_with_a_layer_that_comes_twice(tmp_path: Path) -> None:
    manifest, layers = read(tmp_path, write_layout(archive(OLD), tmp_path))
    assert layers == [LAYER, OTHER, LAYER]
    kinds = {layer["mediaType"] for layer in manifest["layers"]}
    assert kinds == {"application/vnd.oci.image.layer.v1.tar"}
    assert {path.name for path in tmp_path.iterdir()} == {"blobs", "index.json", "oci-layout"}


def test_blobs_as_the_containerd_image_store_keeps_them(tmp_path: Path) -> None:
    packed = gzip.compress(LAYER)
    config, layer = (f"blobs/sha256/{hexdigest(data)}" for data in (CONFIG, packed))
    files = {config: CONFIG, layer: packed, "manifest.json": saved(config, layer), "index.json": b"{}"}
    manifest, layers = read(tmp_path, write_layout(archive(files), tmp_path))
    assert layers == [packed]
    assert manifest["layers"][0]["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"


def test_one_image_has_one_digest(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    files = dict(reversed(OLD.items()))
    assert write_layout(archive(OLD), first) == write_layout(archive(files), second)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"manifest.json": b"[]"},
        {"manifest.json": b"not JSON"},
        {"manifest.json": b"[1]"},
        {"manifest.json": saved("no-such.json")},
        {"manifest.json": saved("x.json", "gone/layer.tar"), "x.json": CONFIG},
        {"manifest.json": saved("x.json", "a/layer.tar"), "x.json": CONFIG, "a/layer.tar": "../gone"},
    ],
)
def test_another_form_is_told_so(files: dict[str, bytes | str], tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match="has an unknown form"):
        write_layout(archive(files), tmp_path)


def test_what_is_no_archive_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match="has an unknown form"):
        write_layout([b"hello"], tmp_path)
