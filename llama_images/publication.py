"""What publishing means: which index a tag gets, and which tags move. Pure.

Everything is decided by what the registry holds already, so that a second call goes on where the first one
stopped, and that nothing which was published under a fixed tag becomes something else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from llama_images import oci
from llama_images.errors import CheckFailed, OutsideError
from llama_images.oci import Descriptor, Manifest
from llama_images.patch_series import PatchSeries
from llama_images.ports import PackedImage
from llama_images.render import LABEL_PREFIX, labels
from llama_images.selection import Target

VERSION: Final = "org.opencontainers.image.version"
TESTED: Final = f"{LABEL_PREFIX}.tested"
"""Annotation of an index, and of each image in it: the tier of the tests that it has passed, or "no"."""

TARGET: Final = f"{LABEL_PREFIX}.target"
"""Annotation of an index and of an image: which target it is."""

UNTESTED: Final = "no"


def annotations_of(target: Target, series: PatchSeries | None) -> dict[str, str]:
    """The annotations of an image's manifest: its labels of OCI's own, and the version it is published as."""
    own = {key: text for key, text in labels(target, series).items() if key.startswith("org.opencontainers.")}
    return own | {VERSION: target.source.version, TARGET: target.id}


def image_of(packed: PackedImage, target: Target, series: PatchSeries | None) -> Manifest:
    """The manifest of one platform's image."""
    config = Descriptor.of(packed.configuration, oci.CONFIG)
    return oci.image_manifest(config, packed.layers, annotations_of(target, series))


def joined(
    held: Manifest | None,
    image: Manifest,
    platform: str,
    *,
    tested: str,
    target: Target,
    series: PatchSeries | None,
    tag: str,
) -> Manifest:
    """The index that a fixed tag gets: what it has, and this image.

    ``held`` is what the registry has under the tag. An index may gain a platform, and an image in it may turn
    out to be tested. Raises CheckFailed where the tag already means another image of this platform, or images
    that were made of something else: of another commit, say, under the same version.
    """
    annotations = annotations_of(target, series)
    raise_it = f"a fixed tag never changes: raise the version of {target.source.name} in matrix.yaml"
    entries = {} if held is None else _platforms(held, tag)
    before = entries.get(platform)
    if before is not None and before.digest != image.digest:
        raise CheckFailed(
            f"the tag {tag} means another image for {platform}, {before.digest[:19]}…; this one is "
            f"{image.digest[:19]}…",
            hint=raise_it,
        )
    if held is not None:
        there = {key: text for key, text in held.annotations.items() if key != TESTED}
        for key in sorted(there.keys() | annotations.keys()):
            if there.get(key) != annotations.get(key):
                raise CheckFailed(
                    f"the tag {tag} means images of something else: their {key} is {there.get(key)!r}, "
                    f"this one's {annotations.get(key)!r}",
                    hint=raise_it,
                )
    if tested == UNTESTED and before is not None:
        tested = before.annotations.get(TESTED, UNTESTED)
    entries[platform] = replace(image.descriptor, platform=platform, annotations={TESTED: tested})
    marks = {entry.annotations.get(TESTED, UNTESTED) for entry in entries.values()}
    whole = UNTESTED if UNTESTED in marks else ", ".join(sorted(marks))
    return oci.index(entries.values(), annotations | {TESTED: whole})


def overtaken(now: Manifest, index: Manifest, tag: str) -> None:
    """Raise OutsideError where setting a tag to ``index`` would take something from it.

    ``now`` is what the tag should get by what it means at this moment, ``index`` what was made ready for it.
    """
    ready = {entry.platform: entry.digest for entry in index.entries}
    for entry in now.entries:
        if ready.get(entry.platform) != entry.digest:
            raise OutsideError(
                f"the tag {tag} has got another image for {entry.platform} while this one was sent",
                hint="does somebody else publish there at the same time? The same command goes on",
            )


def _platforms(held: Manifest, tag: str) -> dict[str, Descriptor]:
    try:
        entries = held.entries
    except oci.NotOci:
        entries = ()
    found = {entry.platform: entry for entry in entries if entry.platform is not None}
    if not found or len(found) != len(entries):
        raise CheckFailed(
            f"the tag {tag} means something that this project did not publish",
            hint="give another --registry, or remove the tag there",
        )
    return found


def stays(held: Manifest | None, index: Manifest, platforms: Collection[str]) -> str | None:
    """Why a moving tag stays where it is, in words; None where it moves to ``index``.

    ``platforms`` are those that the matrix has for it: none of them is taken from who pulls by the tag.
    """
    if held is None or held.digest == index.digest:
        return None
    before, now = version_of(held.annotations), version_of(index.annotations)
    if before is not None and now is not None and before > now:
        return f"stays at {held.annotations[VERSION]}, which is newer"
    lost = (_platform_names(held) - _platform_names(index)) & set(platforms)
    return f"stays until {' and '.join(sorted(lost))} is published too" if lost else None


def _platform_names(held: Manifest) -> set[str]:
    try:
        return {entry.platform for entry in held.entries if entry.platform is not None}
    except oci.NotOci:
        return set()  # somebody else's


def commit_tag_stays(held: Manifest | None, index: Manifest) -> str | None:
    """Why a tag by commit stays with the image that had it first; None where it may be set.

    Two versions can be made of one commit: the later one has newer packages of the distribution.
    """
    if held is None or version_of(held.annotations) == version_of(index.annotations):
        return None
    return f"stays with {held.annotations.get(VERSION, 'another image')}, the first of this commit"


def version_of(values: Mapping[str, str]) -> tuple[int, ...] | None:
    """The version in a manifest's annotations, to be compared; None where there is none."""
    parts = values.get(VERSION, "").split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A tag and what it is to mean."""

    tag: str
    index: Manifest
    before: Manifest | None
    """What it means in the registry."""

    @property
    def is_done(self) -> bool:
        return self.before is not None and self.before.digest == self.index.digest


def unmoved(moves: Sequence[Move]) -> tuple[Move, ...]:
    """Those that are still to be made."""
    return tuple(move for move in moves if not move.is_done)
