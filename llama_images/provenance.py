"""How an image was made, in the form of SLSA's provenance, and what the matrix says it should be. Pure.

https://slsa.dev/spec/v1.0/provenance: the builder, what was asked of it, and what went in, by hash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_images.build_record import BuildRecord
from llama_images.patch_series import PatchSeries
from llama_images.selection import Target

BUILD_TYPE: Final = "https://llama-images.github.io/invoke-build/v1"
LOCAL_BUILDER: Final = "https://llama-images.github.io/builders/local"
"""A machine that says nothing of itself."""

BUILDER_VARIABLE: Final = "LLAMA_IMAGES_BUILDER"
"""Names the builder by an address, for who runs several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A package of the distribution, as dpkg knows it."""

    name: str
    version: str
    architecture: str

    def purl(self, distribution: str) -> str:
        """Its package URL; ``distribution`` is ``debian`` or ``ubuntu``."""
        return f"pkg:deb/{distribution}/{self.name}@{self.version}?arch={self.architecture}"


def parse_packages(text: str) -> tuple[Package, ...]:
    """The packages in a list that a build leaves: name, version and architecture, separated by tabs."""
    rows = (line.split("\t") for line in text.splitlines())
    return tuple(Package(name=row[0], version=row[1], architecture=row[2]) for row in rows if len(row) == 3)


def parameters(target: Target, platform: str) -> dict[str, str]:
    """What was asked of the builder: enough to ask for it again."""
    return {
        "target": target.id,
        "arch": target.architecture.name,
        "flavor": target.flavor,
        "base": target.base.name,
        "source": target.source.name,
        "version": target.source.version,
        "platform": platform,
    }


def materials(target: Target, series: PatchSeries | None, platform: str) -> list[dict[str, Any]]:
    """What the matrix says that goes in, each with its hash: source, patches, wheels, images."""
    source = target.source
    found: list[dict[str, Any]] = [
        {
            "uri": f"git+{source.repository}@{source.ref}",
            "digest": {"gitCommit": source.commit, "gitTree": source.tree},
        }
    ]
    if series is not None:
        found += [
            {"uri": f"patches/{series.name}/{patch.name}", "digest": {"sha256": patch.sha256}}
            for patch in series.patches
        ]
    toolkit = target.toolkit
    if toolkit is not None and target.base.kind == "bootstrap" and toolkit.wheels is not None:
        found += [
            {"uri": f"pkg:pypi/{wheel.name}@{wheel.version}", "digest": {"sha256": digest}}
            for wheel in (*toolkit.wheels.build, *toolkit.wheels.runtime)
            for wheel_platform, digest in wheel.sha256.items()
            if wheel_platform == platform
        ]
    elif toolkit is not None and target.base.kind == "registry" and toolkit.images is not None:
        found += [
            {
                "uri": f"docker-image:{image.name}",
                "digest": {"sha256": image.digest.removeprefix("sha256:")},
            }
            for image in (toolkit.images.devel, toolkit.images.runtime)
            if image.digest is not None
        ]
    return found


def provenance(
    target: Target,
    series: PatchSeries | None,
    record: BuildRecord,
    *,
    build_packages: Sequence[Package],
    distribution: str,
    builder: str,
    tools: Mapping[str, str],
) -> dict[str, Any]:
    """The predicate about one image. ``tools`` are versions of what packed it."""
    platform = str(record.parts["platform"])
    recipe = [{"uri": f"images/{target.id}/Dockerfile", "digest": {"sha256": record.dockerfile_sha256}}]
    recipe += [
        {"uri": f"images/common/{name}", "digest": {"sha256": digest}}
        for name, digest in sorted(record.parts["common"].items())
    ]
    metadata = {"invocationId": record.inputs}
    if record.started is not None and record.finished is not None:
        metadata |= {"startedOn": record.started, "finishedOn": record.finished}
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": parameters(target, platform),
            "internalParameters": {
                "engine": record.engine,
                "patchedTree": record.parts["source"],
                "base": record.parts.get("base"),
                **tools,
            },
            "resolvedDependencies": [
                *materials(target, series, platform),
                *recipe,
                # The distribution's packages are recorded, not pinned; dpkg keeps no hash of them.
                *({"uri": package.purl(distribution)} for package in build_packages),
            ],
        },
        "runDetails": {"builder": {"id": builder}, "metadata": metadata},
    }


def builder_of(environment: Mapping[str, str]) -> str:
    """Who builds: what the environment says, the workflow of a CI run, or a machine of no name."""
    if value := environment.get(BUILDER_VARIABLE):
        return value
    server, workflow = environment.get("GITHUB_SERVER_URL"), environment.get("GITHUB_WORKFLOW_REF")
    if environment.get("GITHUB_ACTIONS") == "true" and server and workflow:
        return f"{server}/{workflow}"
    return LOCAL_BUILDER


def differences(
    predicate: Mapping[str, Any], target: Target, series: PatchSeries | None, platform: str
) -> Iterator[str]:
    """Where a provenance is not what the matrix says, one line for each; nothing where they agree."""
    definition = predicate.get("buildDefinition")
    definition = definition if isinstance(definition, dict) else {}
    if definition.get("buildType") != BUILD_TYPE:
        yield f"it was built another way: {_shown(definition.get('buildType'))}"
        return
    said = definition.get("externalParameters")
    said = said if isinstance(said, dict) else {}
    for key, value in parameters(target, platform).items():
        if said.get(key) != value:
            yield f"{key} is {_shown(said.get(key))}, the matrix says {value}"
    found = _by_uri(definition.get("resolvedDependencies"))
    wanted = {str(one["uri"]): one["digest"] for one in materials(target, series, platform)}
    for uri, digest in wanted.items():
        if found.get(uri) != digest:
            said_digest = _shown(found.get(uri) or "not among the materials")
            yield f"{uri} is {said_digest}, the matrix says {_shown(digest)}"
    for uri in found:
        if re.match(r"patches/|pkg:pypi/|docker-image:|git\+", uri) and uri not in wanted:
            yield f"{uri} went into it, and is not in the matrix"


def recipe_differs(predicate: Mapping[str, Any], rendered: Mapping[str, str]) -> bool:
    """Whether it was made by other Dockerfiles or scripts than these; ``rendered`` is SHA-256 by path."""
    definition = predicate.get("buildDefinition")
    found = _by_uri(definition.get("resolvedDependencies") if isinstance(definition, dict) else None)
    own = {uri: digest for uri, digest in found.items() if uri.startswith("images/")}
    return own != {path: {"sha256": digest} for path, digest in rendered.items()}


def builder_named(predicate: Mapping[str, Any]) -> str:
    """Who built it, as it says."""
    try:
        return str(predicate["runDetails"]["builder"]["id"])
    except (KeyError, TypeError):
        return "nobody"


def _by_uri(values: Any) -> dict[str, Any]:
    rows = values if isinstance(values, list) else []
    return {str(row.get("uri")): row.get("digest") for row in rows if isinstance(row, dict)}


def _shown(value: Any) -> str:
    text = ", ".join(str(part) for part in value.values()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
