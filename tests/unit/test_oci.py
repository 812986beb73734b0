"""Descriptors, manifests, indexes and configurations as values."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from llama_images import oci
from llama_images.oci import Descriptor, Manifest, NotOci

DATE = datetime(2026, 6, 11, 16, 49, 3, tzinfo=UTC)
LAYER = Descriptor.of(b"layer", oci.LAYER_GZIP)
CONFIG = Descriptor.of(b"config", oci.CONFIG)


def image(**annotations: str) -> Manifest:
    return oci.image_manifest(CONFIG, [LAYER], annotations)


def test_equal_values_are_equal_bytes() -> None:
    assert oci.encode({"b": 1, "a": {"d": 2, "c": "é"}}) == '{"a":{"c":"é","d":2},"b":1}'.encode()
    assert image(a="1", b="2").digest == image(b="2", a="1").digest
    assert image(a="1").digest != image(a="2").digest


def test_an_image_names_its_parts() -> None:
    manifest = image(a="b")
    assert manifest.media_type == json.loads(manifest.raw)["mediaType"] == oci.MANIFEST
    assert (manifest.config, manifest.layers) == (CONFIG, (LAYER,))
    assert manifest.descriptor == Descriptor(
        media_type=oci.MANIFEST,
        digest=oci.digest_of(manifest.raw),
        size=len(manifest.raw),
        annotations={"a": "b"},
    )
    assert not manifest.is_index


def test_an_attachment_names_what_it_belongs_to_and_what_it_is() -> None:
    subject = image(a="b")
    manifest = oci.attachment(
        subject.descriptor, LAYER, artifact_type="application/x", annotations={"k": "v"}
    )
    content = json.loads(manifest.raw)
    assert content["subject"] == {
        "mediaType": oci.MANIFEST,
        "digest": subject.digest,
        "size": len(subject.raw),
    }
    assert content["config"]["digest"] == oci.digest_of(b"{}")
    assert manifest.descriptor.artifact_type == "application/x"
    assert manifest.descriptor.annotations == {"k": "v"}


def test_an_attachment_without_a_kind_has_that_of_its_configuration() -> None:
    content = {"mediaType": oci.MANIFEST, "config": {"mediaType": "application/y"}, "subject": {}}
    assert Manifest.made(content).descriptor.artifact_type == "application/y"


def test_an_index_is_the_same_whatever_the_order() -> None:
    arm = Descriptor(media_type=oci.MANIFEST, digest=LAYER.digest, size=1, platform="linux/arm64")
    amd = Descriptor(media_type=oci.MANIFEST, digest=CONFIG.digest, size=2, platform="linux/amd64")
    first, second = oci.index([arm, amd], {"a": "b"}), oci.index([amd, arm], {"a": "b"})
    assert first == second
    assert first.entries == (amd, arm)
    assert first.is_index
    assert first.annotations == {"a": "b"}


def test_descriptors_are_read_back() -> None:
    whole = Descriptor(
        media_type="m",
        digest=LAYER.digest,
        size=3,
        platform="linux/arm64",
        artifact_type="t",
        annotations={"k": "v"},
    )
    assert Descriptor.parse(json.loads(json.dumps(whole.as_json()))) == whole
    assert Descriptor.parse(LAYER.as_json()) == LAYER


@pytest.mark.parametrize(
    "value",
    [
        None, [], "x", {}, {"mediaType": "m", "digest": "sha256:1", "size": 1},
        {"mediaType": "m", "digest": LAYER.digest, "size": -1},
        {"mediaType": "m", "digest": LAYER.digest, "size": True},
        {"mediaType": "m", "digest": LAYER.digest, "size": "1"}, {"digest": LAYER.digest, "size": 1},
        {"mediaType": "m", "digest": LAYER.digest, "size": 1, "platform": {"os": "linux"}},
        {"mediaType": "m", "digest": LAYER.digest, "size": 1, "annotations": ["x"]},
    ],
)  # fmt: skip
def test_what_is_no_descriptor_is_refused(value: Any) -> None:
    with pytest.raises(NotOci, match="is no descriptor"):
        Descriptor.parse(value)


def test_what_is_no_image_is_refused() -> None:
    for name in ("config", "layers", "entries"):
        with pytest.raises(NotOci):
            getattr(Manifest.made({"mediaType": "x"}), name)


def engine_config(**other: Any) -> dict[str, Any]:
    """A configuration as an engine keeps it, with what tells of its build."""
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-11-24T15:04:00.788622253Z",
        "container": "3b1c",
        "docker_version": "20.10.24",
        "moby.buildkit.cache.v0": "bm90ZXM=",
        "config": {
            "Hostname": "a-machine",
            "User": "10001:10001",
            "Env": ["A=b"],
            "WorkingDir": "/",
            "OnBuild": None,
            "Image": "sha256:…",
            "Labels": {"k": "v"},
            "Entrypoint": ["/app/x"],
            "Cmd": None,
        },
        "rootfs": {"type": "layers", "diff_ids": [LAYER.digest]},
        "history": [
            {"created": "2026-11-24T15:00:23.019385886Z", "created_by": "COPY", "comment": "buildkit"},
            {"created": "2026-11-24T15:04:00.788622253Z", "created_by": "USER", "empty_layer": True},
        ],
        **other,
    }


def test_a_published_configuration_tells_nothing_of_the_build() -> None:
    config = json.loads(oci.published_config(engine_config(), DATE))
    stamp = "2026-06-11T16:49:03Z"
    assert config == {
        "architecture": "amd64",
        "os": "linux",
        "created": stamp,
        "config": {"User": "10001:10001", "Env": ["A=b"], "Labels": {"k": "v"}, "Entrypoint": ["/app/x"]},
        "rootfs": {"type": "layers", "diff_ids": [LAYER.digest]},
        "history": [
            {"created": stamp, "created_by": "COPY", "comment": "buildkit"},
            {"created": stamp, "created_by": "USER", "empty_layer": True},
        ],
    }


def test_two_builds_of_one_image_are_published_alike() -> None:
    later = engine_config(created="2027-01-01T00:00:00Z", container="other", docker_version="28.0.1")
    later["config"] = {**later["config"], "Hostname": "b-machine", "WorkingDir": ""}
    later["history"] = [{**entry, "created": "2027-01-01T00:00:00Z"} for entry in later["history"]]
    assert oci.published_config(later, DATE) == oci.published_config(engine_config(), DATE)
    other = engine_config(rootfs={"type": "layers", "diff_ids": [CONFIG.digest]})
    assert oci.published_config(other, DATE) != oci.published_config(engine_config(), DATE)


@pytest.mark.parametrize(
    "config", [{}, {"config": 1}, {"history": 3}, {"architecture": "amd64", "os": "linux"}]
)
def test_what_is_no_configuration_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(NotOci):
        oci.published_config(config, DATE)


INDEX = oci.index([image().descriptor])
BOTH = {**INDEX.content, "config": image().content["config"]}


@pytest.mark.parametrize(
    ("content", "stated", "words"),
    [
        (BOTH, oci.INDEX, "an index and an image at once"),
        ({**INDEX.content, "layers": []}, "", "an index and an image at once"),
        (INDEX.content, oci.MANIFEST, "it calls itself .*index.* and came as .*manifest"),
        (image().content, oci.DOCKER_MANIFEST, "it calls itself"),
        ({**INDEX.content, "mediaType": oci.MANIFEST}, oci.MANIFEST, "it has no config"),
        ({"schemaVersion": 2, "config": {}}, oci.INDEX, "it has no manifests"),
        ({**image().content, "mediaType": 1}, oci.MANIFEST, "it calls itself 1"),
    ],
)
def test_a_manifest_that_can_be_read_as_two_things_is_none(
    content: dict[str, Any], stated: str, words: str
) -> None:
    with pytest.raises(NotOci, match=words):
        Manifest.read(oci.encode(content), stated)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b"[]", b"", b"\xff"])
def test_a_manifest_that_is_no_object_is_none(raw: bytes) -> None:
    with pytest.raises(NotOci, match="no JSON object"):
        Manifest.read(raw, oci.MANIFEST)


@pytest.mark.parametrize("stated", [oci.INDEX, "", "application/json"])
def test_a_manifest_is_what_it_calls_itself(stated: str) -> None:
    assert Manifest.read(INDEX.raw, stated) == INDEX
    bare = {key: value for key, value in INDEX.content.items() if key != "mediaType"}
    assert Manifest.read(oci.encode(bare), oci.DOCKER_LIST).media_type == oci.DOCKER_LIST


@pytest.mark.parametrize("annotations", [["a"], "a", None, 1])
def test_annotations_of_another_form_are_none(annotations: Any) -> None:
    odd = Manifest.made({**image().content, "annotations": annotations})
    assert odd.annotations == odd.descriptor.annotations == {}
