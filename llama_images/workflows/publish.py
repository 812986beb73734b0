"""From images on this engine to images that others pull.

The order makes that nothing is ever half published: images and what is said about them go up under their
digests, where nobody finds them by name; everything is read back; only then do tags change, the fixed ones
first, the moving ones last and all together.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from llama_images import oci
from llama_images.attestation import EVIDENCE, KINDS, PROVENANCE, SBOM, Statement, attached, may_hold
from llama_images.build_record import BuildRecord
from llama_images.clearance import GivenEvidence, fitting, parse_evidence
from llama_images.errors import BadAnswer, CheckFailed, UsageError
from llama_images.imageroot import search
from llama_images.oci import Descriptor, Manifest
from llama_images.plan import Plan, unpinned
from llama_images.ports import Activity, Engine, ImageStore, Registry, Signer
from llama_images.provenance import builder_of, provenance
from llama_images.publication import (
    TESTED,
    UNTESTED,
    Move,
    commit_tag_stays,
    joined,
    overtaken,
    stays,
    unmoved,
)
from llama_images.references import Repository
from llama_images.render import labels
from llama_images.selection import Target, local_reference
from llama_images.tags import Tags
from llama_images.workflows.build import find_record
from llama_images.workflows.pack import Packed, pack
from llama_images.workflows.tagging import TagResult, check_whole, move_together, results_of
from llama_images.workflows.workshop import Workshop, common_hashes


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One image, ready to be published."""

    packed: Packed
    platform: str
    record: BuildRecord
    evidence: GivenEvidence | None

    @property
    def target(self) -> Target:
        return self.packed.target

    @property
    def tags(self) -> Tags:
        return self.packed.tags

    @property
    def manifest(self) -> Manifest:
        """Of this platform's image."""
        return self.packed.manifest

    @property
    def tested(self) -> str:
        return UNTESTED if self.evidence is None else self.evidence.tier

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Configuration and layers."""
        return (self.manifest.config, *self.manifest.layers)

    @property
    def size_bytes(self) -> int:
        """Compressed, as it is pulled."""
        return sum(layer.size for layer in self.manifest.layers)


NOT_MOVED: Final = "not moved, as it was asked for"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One image in the registry."""

    target: Target
    platform: str
    image: str
    """Digest of the platform's manifest."""
    index: str
    """Digest of the index that the tags mean."""
    size_bytes: int
    sent_bytes: int
    """What the registry did not have; nothing in a dry run."""
    tested: str
    """As the index says it: also by an earlier call."""
    tags: tuple[TagResult, ...]


# --- what can be known before anything is sent -----------------------------------------------------


def read_evidence(shop: Workshop, files: Sequence[Path]) -> tuple[GivenEvidence, ...]:
    """The evidence in ``files``, or in the cache's folder where none is named.

    A failure that the cache knows of counts all the same: naming a better run does not undo it. Raises
    UsageError.
    """
    named = [evidence for path in files if (evidence := _read_evidence(path)) is not None]
    cached: list[GivenEvidence] = []
    for path in sorted((shop.cache / "evidence").glob("*.json")):
        try:
            evidence = _read_evidence(path)
        except UsageError as error:
            shop.reporter.warn(f"passed over: {error.message}")
        else:
            cached += [] if evidence is None or (files and not evidence.has_failed) else [evidence]
    return (*named, *cached)


def _read_evidence(path: Path) -> GivenEvidence | None:
    try:
        return parse_evidence(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"the evidence {path} can't be read: {error.strerror or error}") from None


def prepare(
    shop: Workshop,
    engine: Engine,
    plan: Plan,
    store: ImageStore,
    *,
    evidence: Sequence[GivenEvidence],
    allow_untested: bool,
) -> list[Cell]:
    """Pack the plan's images and look at each: built from this matrix, tested, nothing secret in it.

    Raises CheckFailed, UsageError or OutsideError; nothing has been sent then.
    """
    rendered = shop.rendered()
    common = common_hashes(shop.common_files(rendered))
    cells = []
    for target in plan.targets:
        recipe: dict[str, object] = {
            "dockerfile": rendered[f"images/{target.id}/Dockerfile"],
            "common": common,
            "paths": list(target.source.paths),
        }
        cells.append(_prepare(shop, engine, store, target, recipe, evidence, allow_untested))
    return cells


# What the labels do not tell: they name the source's tree and the series, each by hash. The statements are
# written from the matrix, so that all else which they name has to be what the build read.
_RECIPE_DIFFERS: Final = {
    "dockerfile": "its Dockerfile was another",
    "common": "the scripts and lists of wheels in images/common were others",
    "paths": "other parts of the source were read",
}


def _prepare(
    shop: Workshop,
    engine: Engine,
    store: ImageStore,
    target: Target,
    recipe: Mapping[str, object],
    evidence: Sequence[GivenEvidence],
    allow_untested: bool,
) -> Cell:
    if names := unpinned(target):
        raise UsageError(
            f"{target.id} stands on {', '.join(names)} without a digest, so nobody could say what is in it",
            hint="invoke pins.update writes the digests into the matrix",
        )
    now = datetime.now(UTC)
    if now < target.source.date:
        raise UsageError(
            f"this machine's clock is wrong: it says {now:%Y-%m-%d}, the source is of "
            f"{target.source.date:%Y-%m-%d}",
            hint="set it; what is signed now would be dated before it was made",
        )
    packed = pack(shop, engine, store, target)
    reference, build = local_reference(target), f"invoke build --arch {target.architecture.name} builds it"
    wanted = labels(target, packed.series)
    wrong = [key for key, value in wanted.items() if packed.image.labels.get(key) != value]
    record = find_record(shop, packed.image)
    other = [] if record is None else [key for key in recipe if record.parts.get(key) != recipe[key]]
    if wrong or other:
        what = f"its label {wrong[0]} is another" if wrong else _RECIPE_DIFFERS[other[0]]
        raise CheckFailed(f"{reference} is not what the matrix says: {what}", hint=f"{build} anew")
    if record is None:
        raise UsageError(
            f"nothing is known of how {reference} was built: this cache has no record of it", hint=build
        )
    platform = str(record.parts["platform"])
    if json.loads(packed.files.configuration)["architecture"] != platform.removeprefix("linux/"):
        raise CheckFailed(f"{reference} is not for {platform}, as its record says", hint=f"{build} anew")
    for finding in packed.findings:
        if not finding.passed:
            raise CheckFailed(f"{reference}: {finding.name}: {finding.detail}", hint="it is not published")
    return Cell(
        packed=packed,
        platform=platform,
        record=record,
        evidence=_evidence_for(packed, evidence, allow_untested),
    )


def _evidence_for(
    packed: Packed, evidence: Sequence[GivenEvidence], allow_untested: bool
) -> GivenEvidence | None:
    target, manifest = packed.target, packed.manifest
    # Each of these means this very image: in the engine that built it, in one that pulled it, in a registry.
    digests = (packed.image.id, manifest.config.digest, manifest.digest)
    try:
        return fitting(evidence, digests, tier="cpu" if target.toolkit is None else "gpu", what=target.id)
    except CheckFailed:
        if not allow_untested or any(one.has_failed for one in evidence if one.image in digests):
            raise
        return None


# --- publishing -----------------------------------------------------------------------------------


def publish(
    shop: Workshop,
    cells: Sequence[Cell],
    repository: Repository,
    registry: Registry,
    signer: Signer | None,
    *,
    mount_from: Sequence[str] = (),
    dry_run: bool = False,
    move: bool = True,
) -> list[Published]:
    """Bring prepared images into a registry; in a dry run, say what would change and change nothing.

    Without ``move`` the moving tags stay as they are, for ``tagging.move_tags`` once all platforms are there.
    ``signer`` may be None in a dry run alone. Raises CheckFailed where a fixed tag means another image, and
    OutsideError where the registry fails; the moving tags are then as they were, and the same call goes on.
    """
    # What speaks against it is found before anything is sent.
    indexes = [_index(cell, repository, registry) for cell in cells]
    said = [_harmless(statements(shop, cell), cell) for cell in cells]
    sent = [0] * len(cells)
    if not dry_run:
        assert signer is not None
        for number, (cell, index) in enumerate(zip(cells, indexes, strict=True)):
            with shop.reporter.activity(f"publish {cell.target.id}") as activity:
                sent[number] = _send(cell, repository, registry, mount_from, activity)
                for statement in said[number]:
                    _attach(statement, cell, repository, registry, signer, activity)
                registry.push_manifest(repository.name, index)
        for index in indexes:
            check_whole(index, repository, registry)
    fixed, moving, kept = _moves(cells, indexes, repository, registry, move)
    moves = [*(wanted for _, wanted in fixed), *moving]
    if not dry_run:
        for cell, wanted in fixed:
            if not wanted.is_done:
                _set_fixed(cell, wanted, repository, registry)
        move_together(unmoved(moving), repository, registry, shop.reporter)
    return [
        Published(
            target=cell.target,
            platform=cell.platform,
            image=cell.manifest.digest,
            index=index.digest,
            size_bytes=cell.size_bytes,
            sent_bytes=count,
            tested=index.annotations[TESTED],
            tags=results_of(cell.tags.all, moves, kept),
        )
        for cell, index, count in zip(cells, indexes, sent, strict=True)
    ]


def _harmless(found: list[Statement], cell: Cell) -> list[Statement]:
    """Statements are for everybody: none may hold a secret, such as evidence that quotes a command line."""
    for statement in found:
        if leaks := search(statement.encode()):
            raise CheckFailed(
                f"the {KINDS[statement.predicate_type]} of {cell.target.id} holds {leaks[0]}",
                hint="it is not published",
            )
    return found


def _index(cell: Cell, repository: Repository, registry: Registry, tag: str | None = None) -> Manifest:
    """The index that a fixed tag gets by what the registry holds now; that of the version, unless named."""
    tag = tag or cell.tags.version
    return joined(
        registry.find(repository.name, tag),
        cell.manifest,
        cell.platform,
        tested=cell.tested,
        target=cell.target,
        series=cell.packed.series,
        tag=tag,
    )


def _set_fixed(cell: Cell, move: Move, repository: Repository, registry: Registry) -> None:
    """Set a tag that never moves. Layers take minutes to send: what it means may be another by now.

    Raises CheckFailed or OutsideError where somebody else has set it; no registry compares and sets at once,
    so that two calls within the same moment are not told from each other.
    """
    overtaken(_index(cell, repository, registry, move.tag), move.index, move.tag)
    registry.push_manifest(repository.name, move.index, move.tag)


def _send(
    cell: Cell, repository: Repository, registry: Registry, mount_from: Sequence[str], activity: Activity
) -> int:
    """Send what the registry lacks of an image and read that back; the number of bytes sent."""
    sent = 0
    for blob in cell.blobs:
        progress = _progress(activity, "sent", blob.size)
        if registry.push_blob(
            repository.name, blob, cell.packed.files.blob(blob), mount_from=mount_from, on_bytes=progress
        ):
            sent += blob.size
            registry.read_blob(
                repository.name, blob.digest, blob.size, _progress(activity, "read back", blob.size)
            )
    activity.update("manifest")
    registry.push_manifest(repository.name, cell.manifest)
    return sent


def _progress(activity: Activity, doing: str, size: int) -> Callable[[int], None]:
    return lambda count: activity.update(f"{doing}: {count / 1e6:.1f} of {size / 1e6:.1f} MB of a layer")


def _attach(
    statement: Statement,
    cell: Cell,
    repository: Repository,
    registry: Registry,
    signer: Signer,
    activity: Activity,
) -> None:
    """Sign a statement and attach it, unless the very same one is there."""
    activity.update(f"attach {statement.predicate_type}")
    payload = statement.encode()
    for referrer in registry.referrers(repository.name, cell.manifest.digest):
        if may_hold(referrer, statement.predicate_type) and _says(
            referrer, payload, repository, registry, signer
        ):
            return
    bundle = signer.sign(payload)
    registry.push_bytes(repository.name, oci.EMPTY_JSON, oci.EMPTY)
    manifest = attached(cell.manifest.descriptor, bundle, statement.predicate_type)
    registry.push_bytes(repository.name, bundle, manifest.layers[0].media_type)
    registry.push_referrer(repository.name, manifest)


def _says(
    referrer: Descriptor, payload: bytes, repository: Repository, registry: Registry, signer: Signer
) -> bool:
    try:
        (layer,) = registry.manifest(repository.name, referrer.digest).layers
        return signer.verifier.open(registry.blob(repository.name, layer.digest)) == payload
    except (BadAnswer, CheckFailed, oci.NotOci, ValueError):
        return False  # somebody else's, another kind of thing, or broken


def _moves(
    cells: Sequence[Cell],
    indexes: Sequence[Manifest],
    repository: Repository,
    registry: Registry,
    move: bool,
) -> tuple[list[tuple[Cell, Move]], list[Move], dict[str, str]]:
    """Fixed tags with what they are for, moving tags, and those that stay where they are with the reason."""
    fixed: list[tuple[Cell, Move]] = []
    moving: list[Move] = []
    kept: dict[str, str] = {}
    for cell, index in zip(cells, indexes, strict=True):
        for tag in cell.tags.all:
            held = registry.find(repository.name, tag)
            why = None
            if tag == cell.tags.commit:
                why = commit_tag_stays(held, index)
            elif tag in cell.tags.moving:
                why = NOT_MOVED if not move else stays(held, index, cell.target.architecture.platforms)
            wanted = Move(tag=tag, index=index, before=held)
            if why is not None:
                kept[tag] = why
            elif tag in cell.tags.moving:
                moving.append(wanted)
            else:
                fixed.append((cell, wanted))
    return fixed, moving, kept


# --- what is said about an image ------------------------------------------------------------------


def statements(shop: Workshop, cell: Cell) -> list[Statement]:
    """Bill of materials, provenance, and evidence where there is some."""
    packages = cell.packed.packages()

    def about(kind: str, predicate: dict[str, object]) -> Statement:
        return Statement(
            name=cell.packed.name, digest=cell.manifest.digest, predicate_type=kind, predicate=predicate
        )

    result = [
        about(SBOM, cell.packed.bill(cell.platform)),
        about(
            PROVENANCE,
            provenance(
                cell.target,
                cell.packed.series,
                cell.record,
                build_packages=packages.built_with,
                distribution=packages.distribution.name,
                builder=builder_of(shop.environment),
                tools={"zlib": zlib.ZLIB_RUNTIME_VERSION},
            ),
        ),
    ]
    if cell.evidence is not None:
        result.append(about(EVIDENCE, cell.evidence.document))
    return result
