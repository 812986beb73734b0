"""Tags in a registry: all that one is about to mean is looked at, and moving ones move together.

Publishing ends with it. By itself it is for a run whose platforms were published one by one, on machines of
their own: the moving tags move once, when all of them are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llama_images import oci
from llama_images.errors import CheckFailed, LlamaImagesError, OutsideError
from llama_images.oci import Manifest
from llama_images.ports import Registry, Reporter
from llama_images.publication import TESTED, Move, annotations_of, stays, unmoved
from llama_images.references import Repository
from llama_images.render import series_of
from llama_images.selection import Target
from llama_images.tags import published_tags
from llama_images.workflows.workshop import Workshop


@dataclass(frozen=True, kw_only=True, slots=True)
class TagResult:
    """What became of one tag, or what would become of it."""

    tag: str
    digest: str
    change: Literal["new", "moves", "as it is", "stays"]
    why: str = ""


def check_whole(index: Manifest, repository: Repository, registry: Registry) -> None:
    """Look once more at all that a tag is about to mean, also at platforms that another machine published.

    Raises OutsideError where a part is missing or is something else.
    """
    for entry in index.entries:
        what = f"{repository}@{entry.digest} for {entry.platform}"
        try:
            image = registry.manifest(repository.name, entry.digest)
            missing = [
                blob for blob in (image.config, *image.layers) if not registry.has_blob(repository.name, blob)
            ]
        except oci.NotOci as error:
            raise OutsideError(
                f"{what} is no image: {error}", hint="remove the tag there, and publish it anew"
            ) from None
        if missing:
            raise OutsideError(
                f"{what} lacks {missing[0].digest}, so no tag has changed",
                hint="publish it again from where it was built: what is missing is sent",
            )


def move_together(
    moves: Sequence[Move], repository: Repository, registry: Registry, reporter: Reporter
) -> None:
    """Move every tag, or none: where one fails, those that have moved go back. What can't is said."""
    done: list[Move] = []
    try:
        for move in moves:
            done.append(move)  # a move whose answer is lost may have been made
            registry.push_manifest(repository.name, move.index, move.tag)
    except BaseException as error:
        left = [move.tag for move in reversed(done)]
        try:
            for move in reversed(done):
                if _move_back(move, repository, registry):
                    left.remove(move.tag)
        finally:
            # Also where it is interrupted once more: else nobody knows what the tags mean.
            if left:
                reporter.warn(f"{', '.join(left)} could not be moved back; the same command moves them all")
        if left and isinstance(error, LlamaImagesError):
            raise OutsideError(
                f"{error.message}; {', '.join(left)} could not be moved back",
                hint="the same command goes on, and moves them all",
            ) from None
        raise


def _move_back(move: Move, repository: Repository, registry: Registry) -> bool:
    try:
        if move.before is not None:
            registry.push_manifest(repository.name, move.before, move.tag)
            return True
        # A tag that was not there can't be taken away again: registries delete manifests, not names.
        return registry.find(repository.name, move.tag) is None
    except OutsideError:
        return False


def results_of(tags: Sequence[str], moves: Sequence[Move], kept: Mapping[str, str]) -> tuple[TagResult, ...]:
    """What becomes of each of ``tags``; ``kept`` are those that stay, with the reason."""
    found = []
    for tag in tags:
        if tag in kept:
            found.append(TagResult(tag=tag, digest="", change="stays", why=kept[tag]))
            continue
        (move,) = (move for move in moves if move.tag == tag)
        change: Literal["new", "moves", "as it is"] = "moves"
        if move.is_done:
            change = "as it is"
        elif move.before is None:
            change = "new"
        found.append(TagResult(tag=tag, digest=move.index.digest, change=change))
    return tuple(found)


def move_tags(
    shop: Workshop,
    targets: Sequence[Target],
    repository: Repository,
    registry: Registry,
    *,
    dry_run: bool = False,
) -> tuple[TagResult, ...]:
    """Move the moving tags of these targets to what their versions' tags mean; in a dry run, only say so.

    Raises CheckFailed where a version is not there, or is of something else than this matrix says, and
    OutsideError where the registry fails; the moving tags are then as they were.
    """
    moves: list[Move] = []
    kept: dict[str, str] = {}
    names: list[str] = []
    for target in targets:
        series = series_of(target, shop.series)
        tags = published_tags(shop.matrix, target, series)
        index = registry.find(repository.name, tags.version)
        _refuse_foreign(index, annotations_of(target, series), f"{repository}:{tags.version}")
        assert index is not None
        check_whole(index, repository, registry)
        for tag in tags.moving:
            names.append(tag)
            held = registry.find(repository.name, tag)
            why = stays(held, index, target.architecture.platforms)
            if why is not None:
                kept[tag] = why
            else:
                moves.append(Move(tag=tag, index=index, before=held))
    if not dry_run:
        move_together(unmoved(moves), repository, registry, shop.reporter)
    return results_of(names, moves, kept)


def _refuse_foreign(index: Manifest | None, wanted: Mapping[str, str], what: str) -> None:
    if index is None:
        raise CheckFailed(f"{what} is not there, so no tag has moved", hint="publish it first")
    if {key: text for key, text in index.annotations.items() if key != TESTED} != wanted:
        raise CheckFailed(
            f"{what} is of something else than this matrix says, so no tag has moved",
            hint="is this the checkout that it was published from?",
        )
