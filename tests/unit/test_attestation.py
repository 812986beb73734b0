"""What is said about an image: bill of materials, provenance, evidence, and their statements."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_images import oci
from llama_images.attestation import BUNDLE, PROVENANCE, SBOM, Statement, attached, may_hold
from llama_images.build_record import BuildRecord
from llama_images.matrix import Matrix, parse_matrix
from llama_images.oci import Descriptor
from llama_images.patch_series import PatchSeries, make_series
from llama_images.provenance import (
    LOCAL_BUILDER,
    Package,
    builder_named,
    builder_of,
    differences,
    parse_packages,
    provenance,
    recipe_differs,
)
from llama_images.sbom import Distribution, bill_of_materials, parse_distribution, parse_status
from llama_images.selection import Target, make_target

EXAMPLE = (Path(__file__).parent / "example_matrix.yaml").read_text(encoding="utf-8")
PLATFORM = "linux/amd64"
DIGEST = "sha256:" + "5" * 64
PACKAGES = (
    Package(name="libstdc++6", version="12.2.0-14+deb12u1", architecture="amd64"),
    Package(name="libc6", version="2.36-9", architecture="amd64"),
)
PATCH = """From: A <a@b.example>
Subject: [PATCH] one: do it

Because.

diff --git a/x b/x
--- a/x
+++ b/x
@@ -1 +1 @@
-a
+b
"""
SERIES = make_series("pr24423", [("0001-one.patch", PATCH)])
RECORD = BuildRecord(
    parts={
        "dockerfile": "FROM scratch\n",
        "common": {"stage": "1" * 64, "compile": "2" * 64},
        "source": "3" * 40,
        "paths": ["src"],
        "base": ["sha256:" + "4" * 64],
        "platform": PLATFORM,
    },
    engine="docker 20.10.24",
    started="2026-11-24T15:00:00Z",
    finished="2026-11-24T15:01:00Z",
)


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return parse_matrix(EXAMPLE, name="example_matrix.yaml")


@pytest.fixture(scope="module")
def target(matrix: Matrix) -> Target:
    return make_target(matrix, "120")


# --- statements -----------------------------------------------------------------------------------


def statement(**other: Any) -> Statement:
    fields = {"name": "llama-diffusion:1", "digest": DIGEST, "predicate_type": SBOM, "predicate": {"a": 1}}
    return Statement(**(fields | other))


def test_a_statement_is_in_totos() -> None:
    assert json.loads(statement().encode()) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "llama-diffusion:1", "digest": {"sha256": "5" * 64}}],
        "predicateType": "https://cyclonedx.org/bom",
        "predicate": {"a": 1},
    }
    assert Statement.parse(statement().encode()) == statement()


@pytest.mark.parametrize("change", ["_type", "subject", "predicateType", "predicate"])
def test_what_lacks_a_part_is_no_statement(change: str) -> None:
    value = json.loads(statement().encode())
    del value[change]
    assert Statement.parse(json.dumps(value).encode()) is None


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", statement().encode().replace(b"Statement/v1", b"Statement/v0.1")]
)
def test_what_is_no_statement(data: bytes) -> None:
    assert Statement.parse(data) is None


def test_a_statement_about_two_things_is_not_taken() -> None:
    value = json.loads(statement().encode())
    value["subject"] *= 2
    assert Statement.parse(json.dumps(value).encode()) is None


def test_a_bundle_is_attached_as_cosign_does_it() -> None:
    subject = Descriptor(
        media_type=oci.MANIFEST, digest=DIGEST, size=7, annotations={"x": "y"}, platform=PLATFORM
    )
    manifest = attached(subject, b"{}", PROVENANCE)
    content = manifest.content
    assert content["artifactType"] == content["layers"][0]["mediaType"] == BUNDLE
    assert content["subject"] == {"mediaType": oci.MANIFEST, "digest": DIGEST, "size": 7}
    assert content["annotations"] == {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": PROVENANCE,
    }
    assert may_hold(manifest.descriptor, PROVENANCE)
    assert not may_hold(manifest.descriptor, SBOM)
    assert may_hold(replace(manifest.descriptor, annotations={}), SBOM), "a registry need not pass notes on"
    assert not may_hold(replace(manifest.descriptor, artifact_type="x"), PROVENANCE)


# --- provenance -----------------------------------------------------------------------------------


def made(target: Target, series: PatchSeries | None = SERIES, record: BuildRecord = RECORD) -> dict[str, Any]:
    predicate = provenance(
        target,
        series,
        record,
        build_packages=PACKAGES,
        distribution="debian",
        builder="https://builder.example",
        tools={"zlib": "1.2.13"},
    )
    result: dict[str, Any] = json.loads(json.dumps(predicate))
    return result


def test_a_provenance_says_what_went_in(target: Target) -> None:
    predicate = made(target)
    found = {one["uri"]: one.get("digest") for one in predicate["buildDefinition"]["resolvedDependencies"]}
    assert found["git+https://github.com/ggml-org/llama.cpp@pull/24423/head"] == {
        "gitCommit": target.source.commit,
        "gitTree": target.source.tree,
    }
    assert found["patches/pr24423/0001-one.patch"] == {"sha256": SERIES.patches[0].sha256}
    assert found["pkg:pypi/nvidia-cublas@13.0.2.14"]["sha256"].startswith("0cf238ff"), (
        "the platform's own wheel"
    )
    assert found["images/sm120/Dockerfile"] == {"sha256": RECORD.dockerfile_sha256}
    assert found["images/common/stage"] == {"sha256": "1" * 64}
    assert found["pkg:deb/debian/libc6@2.36-9?arch=amd64"] is None
    assert predicate["runDetails"]["builder"]["id"] == builder_named(predicate) == "https://builder.example"
    assert predicate["runDetails"]["metadata"] == {
        "invocationId": RECORD.inputs,
        "startedOn": "2026-11-24T15:00:00Z",
        "finishedOn": "2026-11-24T15:01:00Z",
    }
    assert list(differences(predicate, target, SERIES, PLATFORM)) == []


def test_a_build_without_known_times_says_none(target: Target) -> None:
    predicate = made(target, record=replace(RECORD, started=None, finished=None))
    assert predicate["runDetails"]["metadata"] == {"invocationId": RECORD.inputs}


def test_stock_and_cpu_have_fewer_materials(matrix: Matrix) -> None:
    target = make_target(matrix, "cpu", flavor="stock")
    text = json.dumps(made(target, series=None))
    assert "patches/" not in text
    assert "pkg:pypi" not in text
    assert list(differences(made(target, series=None), target, None, PLATFORM)) == []


def test_images_below_are_materials_where_they_are_pinned() -> None:
    pinned = EXAMPLE.replace('13.0.1-devel-ubuntu24.04"}', f'13.0.1-devel-ubuntu24.04", digest: "{DIGEST}"}}')
    matrix = parse_matrix(pinned, name="m")
    target = make_target(matrix, "120", base="nvidia")
    found = {one["uri"]: one.get("digest") for one in made(target)["buildDefinition"]["resolvedDependencies"]}
    assert found["docker-image:nvidia/cuda:13.0.1-devel-ubuntu24.04"] == {"sha256": "5" * 64}
    assert not [uri for uri in found if uri.startswith("pkg:pypi")]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"sm120"', '"sm121"', "target is sm121, the matrix says sm120"),
        ('"1.2.3"', '"1.2.4"', "version is 1.2.4, the matrix says 1.2.3"),
        ('"linux/amd64"', '"linux/arm64"', "platform is linux/arm64"),
        ("10a2613aa0b2", "20a2613aa0b2", r"git\+.*20a2613aa0b2.* the matrix says 10a2613aa0b2"),
        ("0001-one", "0001-two", "0001-one.patch is not among the materials"),
        (SERIES.patches[0].sha256, "9" * 64, "0001-one.patch is 999.*, the matrix says"),
        ("0cf238ff", "1cf238ff", "nvidia-cublas@13.0.2.14 is 1cf238ff"),
        ("invoke-build/v1", "other/v1", "built another way"),
    ],
)
def test_what_is_not_as_the_matrix_says_is_named(target: Target, old: str, new: str, words: str) -> None:
    text = json.dumps(made(target))
    assert old in text
    found = list(differences(json.loads(text.replace(old, new)), target, SERIES, PLATFORM))
    assert any(re.search(words, line) for line in found), found


def test_a_material_that_the_matrix_does_not_have_is_named(target: Target) -> None:
    predicate = made(target)
    predicate["buildDefinition"]["resolvedDependencies"].append({"uri": "patches/pr24423/0002-evil.patch"})
    assert list(differences(predicate, target, SERIES, PLATFORM)) == [
        "patches/pr24423/0002-evil.patch went into it, and is not in the matrix"
    ]


@pytest.mark.parametrize(
    "predicate", [{}, {"buildDefinition": 1}, {"buildDefinition": {"resolvedDependencies": 1}}]
)
def test_nonsense_is_not_what_the_matrix_says(target: Target, predicate: dict[str, Any]) -> None:
    assert list(differences(predicate, target, SERIES, PLATFORM))
    assert builder_named(predicate) == "nobody"
    assert recipe_differs(predicate, {"images/sm120/Dockerfile": "x"})


def test_the_recipe_is_compared_by_hash(target: Target) -> None:
    rendered = {"images/sm120/Dockerfile": RECORD.dockerfile_sha256}
    rendered |= {f"images/common/{name}": digest for name, digest in RECORD.parts["common"].items()}
    assert not recipe_differs(made(target), rendered)
    assert recipe_differs(made(target), rendered | {"images/common/stage": "7" * 64})


@pytest.mark.parametrize(
    ("environment", "builder"),
    [
        ({}, LOCAL_BUILDER),
        ({"LLAMA_IMAGES_BUILDER": "https://b.example"}, "https://b.example"),
        (
            {"GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://g", "GITHUB_WORKFLOW_REF": "me/x/w@r"},
            "https://g/me/x/w@r",
        ),
        ({"GITHUB_SERVER_URL": "https://g", "GITHUB_WORKFLOW_REF": "w", "HOSTNAME": "secret"}, LOCAL_BUILDER),
    ],
)  # fmt: skip
def test_the_builder_is_what_the_environment_says_and_never_a_machines_name(
    environment: dict[str, str], builder: str
) -> None:
    assert builder_of(environment) == builder


def test_a_list_of_packages_is_read() -> None:
    text = "g++\t4:12.2.0-3\tamd64\nbroken line\nlibc6\t2.36-9\tamd64\n"
    assert [package.name for package in parse_packages(text)] == ["g++", "libc6"]


# --- bill of materials ----------------------------------------------------------------------------


def bill(target: Target, series: PatchSeries | None = SERIES) -> dict[str, Any]:
    return bill_of_materials(
        target,
        series,
        name="llama-diffusion:1.2.3-cuda13.0-sm120",
        digest=DIGEST,
        platform=PLATFORM,
        packages=PACKAGES,
        distribution=Distribution(name="debian", version="12"),
    )


def test_a_bill_names_every_part(target: Target) -> None:
    document = bill(target)
    parts = {part["bom-ref"]: part for part in document["components"]}
    assert document["metadata"]["component"]["purl"].startswith("pkg:oci/llama-diffusion@sha256")
    assert parts["llama.cpp"]["purl"] == f"pkg:github/ggml-org/llama.cpp@{target.source.commit}"
    assert parts["deb/libstdc++6"]["version"] == "12.2.0-14+deb12u1"
    assert "distro=debian-12" in parts["deb/libc6"]["purl"]
    cublas = parts["pypi/nvidia-cublas"]
    assert cublas["hashes"][0]["content"].startswith("0cf238ff")
    assert parts["patches/pr24423/0001-one.patch"]["hashes"] == [
        {"alg": "SHA-256", "content": SERIES.patches[0].sha256}
    ]
    (patch,) = parts["llama.cpp"]["pedigree"]["patches"]
    assert patch["diff"]["url"] == "patches/pr24423/0001-one.patch"
    assert "pypi/nvidia-cuda-nvcc" not in parts, "the compiler does not ship"


def test_a_bill_is_valid_cyclonedx(target: Target, matrix: Matrix) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for one, series in (
        (target, SERIES),
        (make_target(matrix, "cpu", flavor="stock"), None),
        (make_target(matrix, "70", base="nvidia"), SERIES),
    ):
        error = validator.validate_str(json.dumps(bill(one, series)))
        assert error is None, error
    assert validator.validate_str('{"bomFormat": "CycloneDX", "specVersion": "1.6", "x": 1}') is not None


def test_a_bill_is_the_same_for_the_same_image(target: Target) -> None:
    assert bill(target) == bill(target)
    assert bill(target)["metadata"]["timestamp"] == "2026-06-11T16:49:03+00:00"


def test_entries_of_dpkg_are_read() -> None:
    text = "Package: libc6\nVersion: 2.36-9+deb12u10\nArchitecture: amd64\nDescription: a\n b: c\n"
    assert parse_status(text) == Package(name="libc6", version="2.36-9+deb12u10", architecture="amd64")
    assert parse_status("Package: x\n") is None


def test_the_distribution_is_read() -> None:
    text = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n'
    assert parse_distribution(text) == Distribution(name="debian", version="12")
    assert parse_distribution("") == Distribution(name="linux", version="")
