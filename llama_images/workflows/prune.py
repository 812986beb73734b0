"""Removes old versions from a registry, and nothing that anything else needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llama_images import oci
from llama_images.errors import OutsideError, UsageError
from llama_images.oci import Descriptor, Manifest
from llama_images.ports import Registry, Reporter
from llama_images.publication import TARGET, version_of
from llama_images.references import Repository
from llama_images.tags import parse_fixed

Version = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruning:
    """What goes and what stays."""

    kept_versions: tuple[str, ...]
    """Newest first."""
    tags: tuple[str, ...]
    """Tags that go, sorted."""
    digests: tuple[str, ...]
    """Manifests that go, in the order in which they go: indexes before what they name."""
    spared: tuple[str, ...]
    """Old fixed tags that stay, since a moving tag or a newer index needs what they mean."""


@dataclass(slots=True)
class _Reach:
    """Everything that hangs on some manifests: images of an index, and what is attached to each."""

    registry: Registry
    repository: str
    order: list[str] = field(default_factory=list)

    def add(self, manifest: Manifest) -> None:
        if manifest.digest in self.order:
            return
        self.order.append(manifest.digest)
        if manifest.is_index:
            for entry in self._entries(manifest):
                child = self.registry.find(self.repository, entry.digest)
                if child is not None:
                    self.add(child)
        for referrer in self.registry.referrers(self.repository, manifest.digest):
            if referrer.digest not in self.order:
                self.order.append(referrer.digest)
        # Where the registry has no list of referrers of its own, a tag holds one.
        held = self.registry.find(self.repository, oci.referrers_tag(manifest.digest))
        if held is not None and held.digest not in self.order:
            self.order.append(held.digest)

    def _entries(self, index: Manifest) -> tuple[Descriptor, ...]:
        try:
            return index.entries
        except oci.NotOci as error:
            # What it needs is not known, so that nothing is known to be of no use.
            raise OutsideError(
                f"{self.repository}@{index.digest} can't be read, so nothing can be removed: {error}",
                hint="remove it there, or use the registry's own interface",
            ) from None


def plan_pruning(registry: Registry, repository: Repository, keep: int) -> Pruning:
    """What would go if the newest ``keep`` versions stayed.

    Raises UsageError for less than one, OutsideError where the registry fails or holds what can't be read.

    A tag that is none of ours stays, and so does all that a tag which stays leads to.
    """
    if keep < 1:
        raise UsageError(
            f"--keep {keep}: at least one version stays", hint="to remove all, delete the repository there"
        )
    name = repository.name
    held: dict[str, Manifest] = {}
    for tag in registry.tags(name):
        manifest = registry.find(name, tag)
        if manifest is not None and not _lists_referrers(tag):
            held[tag] = manifest
    versions = {
        tag: version for tag, manifest in held.items() if (version := _version(tag, manifest)) is not None
    }
    newest = sorted(set(versions.values()), reverse=True)[:keep]
    old = {tag: held[tag] for tag, version in versions.items() if version not in newest}
    needed = _reach(registry, name, [manifest for tag, manifest in held.items() if tag not in old])
    doomed = [digest for digest in _reach(registry, name, list(old.values())) if digest not in needed]
    going = set(doomed)
    return Pruning(
        kept_versions=tuple(".".join(str(part) for part in version) for version in newest),
        tags=tuple(sorted(tag for tag, manifest in old.items() if manifest.digest in going)),
        digests=tuple(doomed),
        spared=tuple(sorted(tag for tag, manifest in old.items() if manifest.digest not in going)),
    )


def _lists_referrers(tag: str) -> bool:
    return oci.is_digest(tag.replace("-", ":", 1))


def _version(tag: str, manifest: Manifest) -> Version | None:
    """The version that a fixed tag of ours belongs to; None of every other tag.

    A repository may hold other things under names like ours: a tag is ours only where what it means says so.
    """
    fixed = parse_fixed(tag)
    if fixed is None or not fixed.is_of(manifest.annotations.get(TARGET, "")):
        return None
    return fixed.version if fixed.version is not None else version_of(manifest.annotations)


def _reach(registry: Registry, repository: str, manifests: Sequence[Manifest]) -> list[str]:
    reach = _Reach(registry, repository)
    for manifest in manifests:
        reach.add(manifest)
    return reach.order


def prune(registry: Registry, repository: Repository, pruning: Pruning, reporter: Reporter) -> None:
    """Remove what was planned. Raises OutsideError where the registry does not let anything be removed.

    Tags are looked at once more before: what somebody has published meanwhile stays.
    """
    moved: Mapping[str, Manifest | None] = {
        tag: registry.find(repository.name, tag)
        for tag in registry.tags(repository.name)
        if tag not in pruning.tags
    }
    alive = [
        manifest for tag, manifest in moved.items() if manifest is not None and not _lists_referrers(tag)
    ]
    needed = set(_reach(registry, repository.name, alive))
    with reporter.activity(f"prune {repository}") as activity:
        for number, digest in enumerate(pruning.digests, 1):
            if digest in needed:
                reporter.warn(f"{digest[:19]}… is needed by now, and stays")
                continue
            activity.update(f"{number} of {len(pruning.digests)} manifests")
            registry.delete(repository.name, digest)
