"""What an image holds, as a CycloneDX bill of materials. Pure.

Three kinds of things are in an image: llama.cpp with its patches, the distribution's libraries, and NVIDIA's.
The first and the last are pinned in the matrix; the distribution's are read from the image.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cyclonedx.model import HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import (
    Component,
    ComponentType,
    Diff,
    Patch,
    PatchClassification,
    Pedigree,
)
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from llama_images.patch_series import PatchSeries
from llama_images.provenance import Package
from llama_images.render import LABEL_PREFIX, build_commit
from llama_images.selection import Target

STATUS_FOLDER: Final = "/var/lib/dpkg/status.d"
"""Where an image keeps the entries of its packages."""

_NAMES: Final = uuid.UUID("6f0d1a52-0f6c-5d0e-9a55-1f9d2f6f6a31")
"""Name space of the documents' serial numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """Where an image's packages come from."""

    name: str
    """``debian``."""
    version: str
    """``12``."""


def parse_distribution(os_release: str) -> Distribution:
    """The distribution that ``/etc/os-release`` names."""
    pairs = (line.partition("=") for line in os_release.splitlines() if "=" in line)
    values = {key.strip(): value.strip().strip('"') for key, _, value in pairs}
    return Distribution(name=values.get("ID", "linux"), version=values.get("VERSION_ID", ""))


def parse_status(text: str) -> Package | None:
    """The package of an entry in dpkg's form; None where it names none."""
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith(" "))
    fields = {key: value.strip() for key, colon, value in pairs if colon}
    try:
        return Package(name=fields["Package"], version=fields["Version"], architecture=fields["Architecture"])
    except KeyError:
        return None


def bill_of_materials(
    target: Target,
    series: PatchSeries | None,
    *,
    name: str,
    digest: str,
    platform: str,
    packages: Iterable[Package],
    distribution: Distribution,
) -> dict[str, Any]:
    """The bill of one image, as JSON; the same for the same image.

    ``name`` and ``digest`` are those of the image's manifest.
    """
    image = Component(
        type=ComponentType.CONTAINER,
        bom_ref="image",
        name=name.partition(":")[0],
        version=name.partition(":")[2],
        purl=_purl(f"pkg:oci/{name.partition(':')[0]}@{digest}?tag={name.partition(':')[2]}"),
        properties=[Property(name=f"{LABEL_PREFIX}.platform", value=platform)],
    )
    llama = _llama(target, series)
    parts = [llama, *_patches(series), *_packages(packages, distribution), *_wheels(target, platform)]
    bom = Bom(components=parts, serial_number=uuid.uuid5(_NAMES, digest), version=1)
    bom.metadata.component = image
    bom.metadata.timestamp = target.source.date
    bom.register_dependency(image, parts)
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    document: dict[str, Any] = json.loads(text)
    return document


def _llama(target: Target, series: PatchSeries | None) -> Component:
    source = target.source
    path = source.repository.removeprefix("https://")
    host, _, rest = path.partition("/")
    kind = f"github/{rest}" if host == "github.com" else f"generic/{rest.rpartition('/')[2]}"
    return Component(
        type=ComponentType.APPLICATION,
        bom_ref="llama.cpp",
        name="llama.cpp",
        version=build_commit(target, series),
        licenses=[LicenseExpression("MIT")],
        purl=_purl(f"pkg:{kind}@{source.commit}"),
        pedigree=Pedigree(
            patches=[
                Patch(
                    type=PatchClassification.UNOFFICIAL,
                    diff=Diff(url=XsUri(f"patches/{series.name}/{patch.name}")),
                )
                for patch in series.patches
            ],
            notes=f"{source.ref} at {source.commit}, tree {source.tree}",
        )
        if series is not None and series.patches
        else None,
    )


def _patches(series: PatchSeries | None) -> Sequence[Component]:
    return [
        Component(
            type=ComponentType.FILE,
            bom_ref=f"patches/{series.name}/{patch.name}",
            name=f"patches/{series.name}/{patch.name}",
            description=patch.subject,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=patch.sha256)],
        )
        for series in ([] if series is None else [series])
        for patch in series.patches
    ]


def _packages(packages: Iterable[Package], distribution: Distribution) -> Sequence[Component]:
    release = f"&distro={distribution.name}-{distribution.version}" if distribution.version else ""
    return [
        Component(
            type=ComponentType.LIBRARY,
            bom_ref=f"deb/{package.name}",
            name=package.name,
            version=package.version,
            purl=_purl(f"{package.purl(distribution.name)}{release}"),
        )
        for package in sorted(packages, key=lambda one: one.name)
    ]


def _wheels(target: Target, platform: str) -> Sequence[Component]:
    toolkit = target.toolkit
    if toolkit is None:
        return []
    if target.base.kind == "registry":
        assert toolkit.images is not None
        image = toolkit.images.runtime
        return [
            Component(
                type=ComponentType.CONTAINER,
                bom_ref="cuda",
                name=image.name.rpartition(":")[0],
                version=image.name.rpartition(":")[2],
                description="the image that CUDA's libraries were taken from",
                hashes=[
                    HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))
                    for digest in (image.digest,)
                    if digest is not None
                ],
            )
        ]
    assert toolkit.wheels is not None
    hashes: Mapping[str, str] = {
        wheel.name: digest
        for wheel in toolkit.wheels.runtime
        for wheel_platform, digest in wheel.sha256.items()
        if wheel_platform == platform
    }
    return [
        Component(
            type=ComponentType.LIBRARY,
            bom_ref=f"pypi/{wheel.name}",
            name=wheel.name,
            version=wheel.version,
            licenses=[LicenseExpression("LicenseRef-NVIDIA-CUDA-EULA")],
            purl=_purl(f"pkg:pypi/{wheel.name}@{wheel.version}"),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=hashes[wheel.name])]
            if wheel.name in hashes
            else None,
        )
        for wheel in toolkit.wheels.runtime
    ]


def _purl(text: str) -> PackageURL:
    return PackageURL.from_string(text)
