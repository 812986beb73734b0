"""What a target is called in a registry. Pure.

Two kinds of tags. A fixed one always means the same image, and says which: by the version of its source
(``0.1.0-cuda13.0-sm120``) and by its commit and series (``10a2613aa-1e8d06814fc7-cuda13.0-sm120``, what the
program's ``--version`` prints). A moving one is the newest: ``sm120``, ``portable``, ``latest``. Images of
another flavor than the default have its name in front: ``stock-sm120``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from llama_images.errors import UsageError
from llama_images.matrix import Matrix
from llama_images.matrix_fields import FLAVORS, VERSION
from llama_images.patch_series import PatchSeries
from llama_images.render import build_commit
from llama_images.selection import Target, make_target

LATEST: Final = "latest"
NEWEST: Final = "portable"
"""The architecture that ``latest`` means: the image that runs on most machines."""

_LONGEST: Final = 128  # OCI distribution specification, "Pulling manifests"
_FIXED: Final = re.compile(
    rf"(?:(?P<flavor>{'|'.join(FLAVORS)})-)?(?:(?P<version>{VERSION})|(?P<commit>[0-9a-f]{{9}}(?:-[0-9a-f]{{12}})?))"
    r"(?:-cuda(?P<cuda>[0-9.]+))?-(?P<name>[a-z][a-z0-9._-]*)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tags:
    """The tags of one target."""

    version: str
    """By the source's version."""
    commit: str
    """By pin and series."""
    moving: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return (self.version, self.commit, *self.moving)


def published_tags(matrix: Matrix, target: Target, series: PatchSeries | None) -> Tags:
    """The tags of ``target``; ``series`` is the one that it is built with, None for the stock flavor.

    Raises UsageError where the names of the matrix make one that is longer than a registry takes.
    """
    plain = target.flavor == matrix.defaults.flavor
    name = target.id if plain else target.id.removesuffix(f"-{target.flavor}")
    flavor = "" if plain else f"{target.flavor}-"
    cuda = "" if target.toolkit is None else f"cuda{target.toolkit.version}-"
    moving = [f"{flavor}{name}"]
    if NEWEST in matrix.architectures and target.id == make_target(matrix, NEWEST).id:
        moving.append(LATEST)
    tags = Tags(
        version=f"{flavor}{target.source.version}-{cuda}{name}",
        commit=f"{flavor}{build_commit(target, series)}-{cuda}{name}",
        moving=tuple(moving),
    )
    for tag in tags.all:
        if len(tag) > _LONGEST:
            raise UsageError(
                f"the tag {tag} has {len(tag)} characters, a registry takes {_LONGEST}",
                hint="give the source or the base in matrix.yaml a shorter name",
            )
    return tags


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedTag:
    """What a fixed tag says."""

    version: tuple[int, int, int] | None
    """None in a tag by commit."""
    name: str
    """``sm120``, with the flavor in front as in the moving tag."""

    def is_of(self, target: str) -> bool:
        """Whether an image of that target (``sm120-stock``) can have it, by this matrix or an older one."""
        flavor, _, rest = self.name.partition("-")
        return self.name == target or (flavor in FLAVORS and target == f"{rest}-{flavor}")


def parse_fixed(tag: str) -> FixedTag | None:
    """What a fixed tag says, also one of an older matrix; None for every other tag."""
    match = _FIXED.fullmatch(tag)
    if match is None:
        return None
    version = None
    if match["version"] is not None:
        major, minor, patch = (int(number) for number in match["version"].split("."))
        version = (major, minor, patch)
    return FixedTag(
        version=version, name=f"{match['flavor']}-{match['name']}" if match["flavor"] else match["name"]
    )
