"""From a name in a registry to what the image is, who says so, and whether the matrix says the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llama_images import oci
from llama_images.attestation import EVIDENCE, KINDS, PROVENANCE, SBOM, Statement, may_hold
from llama_images.clearance import summary_of
from llama_images.errors import BadAnswer, CheckFailed
from llama_images.oci import Manifest
from llama_images.patch_series import PatchSeries
from llama_images.ports import Registry, Verifier
from llama_images.provenance import builder_named, differences, recipe_differs
from llama_images.publication import TARGET, TESTED, UNTESTED, VERSION, annotations_of
from llama_images.references import Reference
from llama_images.render import labels, series_of
from llama_images.selection import IMAGE, Target, all_targets
from llama_images.tags import published_tags
from llama_images.words import counted
from llama_images.workflows.workshop import Workshop, common_hashes


@dataclass(slots=True)
class _Image:
    """One platform's image, as far as it has been looked at."""

    platform: str
    manifest: Manifest
    tested: str
    statements: dict[str, Statement] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was found out about one name."""

    lines: tuple[tuple[str, str], ...]
    """What the image is: ten lines, each with a word for what it tells."""
    problems: tuple[str, ...]
    """Every mismatch; none in an image that is what it says."""


def verify(shop: Workshop, reference: Reference, registry: Registry, verifier: Verifier) -> Verification:
    """Look at an image in a registry: its signatures, its provenance and its labels against the matrix.

    Raises CheckFailed where the name means nothing that this project could have published, OutsideError where
    the registry fails; every other mismatch is in the result.
    """
    name = reference.repository.name
    top = registry.manifest(name, reference.target)
    images = list(_images(registry, name, top))
    target = _target_of(shop, images[0].manifest, reference)
    series = series_of(target, shop.series)
    problems: list[str] = []
    tags = published_tags(shop.matrix, target, series)
    version = images[0].manifest.annotations.get(VERSION)
    if version != target.source.version:
        # Everything else would differ too, and say nothing more.
        problems.append(f"it was published as version {version}, this matrix is of {target.source.version}")
    elif reference.tag is not None and reference.tag not in tags.all:
        problems.append(f"the tag {reference.tag} is none of {target.id}: {', '.join(tags.all)}")
    for image in images if version == target.source.version else ():
        found = [
            *_check_manifest(registry, name, image, target, series),
            *_collect(registry, name, image, verifier, f"{IMAGE}:{tags.version}"),
        ]
        if PROVENANCE in image.statements:
            predicate = image.statements[PROVENANCE].predicate
            found += [
                f"provenance: {text}" for text in differences(predicate, target, series, image.platform)
            ]
        problems += [f"{image.platform}: {text}" for text in found]
    lines = _describe(shop, reference, top, images, target, series)
    return Verification(lines=tuple(lines), problems=tuple(problems))


def _images(registry: Registry, name: str, top: Manifest) -> Iterator[_Image]:
    try:
        if not top.is_index:
            config = _json(registry.blob(name, top.config.digest))
            yield _Image(f"{config.get('os')}/{config.get('architecture')}", top, "")
            return
        if not top.entries:
            raise oci.NotOci("the index is empty")
        for entry in top.entries:
            if entry.platform is None:
                raise oci.NotOci("an image in the index has no platform")
            tested = entry.annotations.get(TESTED, UNTESTED)
            yield _Image(entry.platform, registry.manifest(name, entry.digest), tested)
    except oci.NotOci as error:
        raise CheckFailed(f"{name}@{top.digest} is no image of this project: {error}") from None


def _target_of(shop: Workshop, manifest: Manifest, reference: Reference) -> Target:
    named = manifest.annotations.get(TARGET)
    for target in all_targets(shop.matrix):
        if target.id == named:
            return target
    raise CheckFailed(
        f"{reference} is no image of this matrix: it calls itself {named!r}",
        hint="invoke matrix lists those that are; is this checkout the one that it was published from?",
    )


def _check_manifest(
    registry: Registry, name: str, image: _Image, target: Target, series: PatchSeries | None
) -> Iterator[str]:
    """Annotations, labels, platform and layers, against the matrix and against each other."""
    for key, value in annotations_of(target, series).items():
        if image.manifest.annotations.get(key) != value:
            yield f"{key} is {image.manifest.annotations.get(key)!r}, the matrix says {value!r}"
    if image.platform not in target.architecture.platforms:
        yield f"the matrix has no {target.id} for this platform"
    try:
        config = _json(registry.blob(name, image.manifest.config.digest))
        found = f"{config.get('os')}/{config.get('architecture')}"
        if found != image.platform:
            yield f"the image is for {found}"
        own = (config.get("config") or {}).get("Labels") or {}
        for key, value in labels(target, series).items():
            if own.get(key) != value:
                yield f"the label {key} is {own.get(key)!r}, the matrix says {value!r}"
        if len(config["rootfs"]["diff_ids"]) != len(image.manifest.layers):
            yield "the configuration names other layers than the manifest"
        for layer in image.manifest.layers:
            if not registry.has_blob(name, layer):
                yield f"the layer {layer.digest[:19]}… is missing"
    except (oci.NotOci, KeyError, TypeError, AttributeError):
        yield "its configuration has an unknown form"


def _collect(registry: Registry, name: str, image: _Image, verifier: Verifier, called: str) -> Iterator[str]:
    """Find what is said about an image and signed by the publisher; yields what is wrong or missing."""
    refused: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for referrer in registry.referrers(name, image.manifest.digest):
        for kind in KINDS:
            if not may_hold(referrer, kind):
                continue
            try:
                (layer,) = registry.manifest(name, referrer.digest).layers
                payload = verifier.open(registry.blob(name, layer.digest))
            except (oci.NotOci, ValueError):
                refused[kind].append("it is no attachment of ours")
                continue
            except (BadAnswer, CheckFailed) as error:  # anybody may attach anything: the others count
                refused[kind].append(error.message)
                continue
            statement = Statement.parse(payload)
            if statement is None or statement.predicate_type != kind:
                continue  # signed, and something else
            if statement.digest != image.manifest.digest:
                refused[kind].append(f"it is about {statement.digest[:19]}…")
            elif statement.name != called:
                refused[kind].append(f"it is about {statement.name}, not {called}")
            else:
                image.statements[kind] = statement
    for kind, word in KINDS.items():
        if kind in image.statements or (kind == EVIDENCE and image.tested == UNTESTED):
            continue
        if kind == EVIDENCE and not image.tested and not refused[kind]:
            continue  # named by its own digest: no index says whether it was tested
        why = f": {'; '.join(sorted(set(refused[kind])))}" if refused[kind] else ", signed or not"
        yield f"no {word} that {verifier.name[:19]}… signed is attached{why}"


def _describe(
    shop: Workshop,
    reference: Reference,
    top: Manifest,
    images: list[_Image],
    target: Target,
    series: PatchSeries | None,
) -> Iterator[tuple[str, str]]:
    first = images[0]
    provenance = first.statements[PROVENANCE].predicate if PROVENANCE in first.statements else {}
    bill = first.statements[SBOM].predicate if SBOM in first.statements else {}
    source, toolkit = target.source, target.toolkit
    version = first.manifest.annotations.get(VERSION, "unknown")
    yield "image", f"{reference.repository}@{top.digest}"
    yield "is", f"llama-diffusion-cli {target.id} {version}, {target.flavor}, on {target.base.name}"
    yield "for", ", ".join(target.architecture.serves)
    yield (
        "platforms",
        "; ".join(f"{one.platform} {one.manifest.digest}, {_megabytes(one)} MB" for one in images),
    )
    yield "source", f"{source.repository} {source.ref} at {source.commit}"
    if series is None:
        yield "patches", "none"
    else:
        yield (
            "patches",
            f"{counted(len(series.patches), 'patch', 'patches')} of {series.name}, sha256:{series.digest}",
        )
    if toolkit is None:
        yield "CUDA", "none"
    else:
        code = " ".join(
            [
                *(f"sm_{one}" for one in target.architecture.sass),
                *(f"compute_{one}" for one in target.architecture.ptx),
            ]
        )
        yield "CUDA", f"{toolkit.version}, code for {code}, driver {toolkit.minimum_driver} or newer"
    yield "holds", _holds(bill)
    yield "built by", _built_by(shop, provenance, target)
    yield "tested", _tested(images)


def _megabytes(image: _Image) -> str:
    try:
        return f"{sum(layer.size for layer in image.manifest.layers) / 1e6:.1f}"
    except oci.NotOci:
        return "?"


def _holds(bill: Mapping[str, Any]) -> str:
    parts = bill.get("components")
    if not isinstance(parts, list):
        return "unknown: there is no bill of materials"
    names = [f"{part.get('name')} {part.get('version')}" for part in parts if part.get("type") == "library"]
    return ", ".join(names)


def _built_by(shop: Workshop, provenance: Mapping[str, Any], target: Target) -> str:
    if not provenance:
        return "unknown: there is no provenance"
    definition = provenance.get("buildDefinition", {})
    engine = definition.get("internalParameters", {}).get("engine", "an unknown engine")
    when = provenance.get("runDetails", {}).get("metadata", {}).get("finishedOn", "at an unknown time")
    rendered = shop.rendered()
    dockerfile = f"images/{target.id}/Dockerfile"
    hashes = {dockerfile: hashlib.sha256(rendered[dockerfile].encode()).hexdigest()}
    common = common_hashes(shop.common_files(rendered))
    hashes |= {f"images/common/{name}": digest for name, digest in common.items()}
    same = (
        "other Dockerfile or scripts than"
        if recipe_differs(provenance, hashes)
        else "Dockerfile and scripts of"
    )
    return f"{builder_named(provenance)} with {engine}, {when}, by {same} this checkout"


def _tested(images: list[_Image]) -> str:
    words = []
    for image in images:
        evidence = image.statements.get(EVIDENCE)
        said = "no evidence" if evidence is None else summary_of(evidence.predicate)
        words.append(f"{image.platform} {said}" if len(images) > 1 else said)
    return "; ".join(words)


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise oci.NotOci("its configuration is no JSON object")
    return value
