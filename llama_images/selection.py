"""Which images a command is about: words such as ``120``, ``native`` or ``ampere`` to targets. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from llama_images.errors import UsageError
from llama_images.located_yaml import did_you_mean, listed, shown
from llama_images.matrix import FAMILIES, Architecture, Base, Flavor, Matrix, Platform, Source, Toolkit

IMAGE: Final = "llama-diffusion"
"""Name of the images on this machine, before a registry's name is put in front."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One image: an architecture on a base in a flavor from a source. Made by ``make_target``."""

    id: str
    """``sm120``, ``sm120-stock``, ``sm70-nvidia``: what is the matrix's default is left out."""
    architecture: Architecture
    flavor: Flavor
    base: Base
    source: Source
    toolkit: Toolkit | None
    """None for ``cpu``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The targets that were asked for, in the matrix's order, and what a collective word left out."""

    targets: tuple[Target, ...]
    left_out: tuple[str, ...] = field(default=())
    """One line each: which architecture, and why."""


def make_target(
    matrix: Matrix,
    architecture: str,
    *,
    flavor: str | None = None,
    base: str | None = None,
    source: str | None = None,
) -> Target:
    """The target of these names; None takes the matrix's default.

    Raises UsageError for a name that the matrix lacks and for a base that can't make the architecture.
    """
    row = matrix.architectures.get(architecture)
    if row is None:
        raise _unknown("architecture", architecture, matrix.architectures)
    chosen_flavor = _flavor(matrix, flavor)
    chosen_base = _base(matrix, base)
    source_name = matrix.defaults.source if source is None else source
    if source_name not in matrix.sources:
        raise _unknown("source", source_name, matrix.sources)
    if chosen_base.name not in matrix.bases_for(row):
        raise _wrong_base(matrix, row, chosen_base)
    parts = [row.label]
    if source_name != matrix.defaults.source:
        parts.append(source_name)
    if chosen_base.name != matrix.defaults.base:
        parts.append(chosen_base.name)
    if chosen_flavor != matrix.defaults.flavor:
        parts.append(chosen_flavor)
    return Target(
        id="-".join(parts),
        architecture=row,
        flavor=chosen_flavor,
        base=chosen_base,
        source=matrix.sources[source_name],
        toolkit=None if row.toolkit is None else matrix.toolkits[row.toolkit],
    )


def all_targets(matrix: Matrix) -> tuple[Target, ...]:
    """Every architecture on every base that can make it in every flavor, of the default source."""
    return tuple(
        make_target(matrix, row.name, flavor=flavor, base=base)
        for row in matrix.architectures.values()
        for base in matrix.bases_for(row)
        for flavor in matrix.flavors
    )


def local_reference(target: Target) -> str:
    """Name and tag of the target's image on this machine, such as ``llama-diffusion:sm120-stock``."""
    return f"{IMAGE}:{target.id}"


def build_command(target: Target, matrix: Matrix) -> str:
    """The command that makes the target's image; what is the matrix's default is left out."""
    words = ["invoke build --arch", target.architecture.name]
    if target.base.name != matrix.defaults.base:
        words += ["--base", target.base.name]
    if target.flavor != matrix.defaults.flavor:
        words += ["--flavor", target.flavor]
    return " ".join(words)


def target_platform(target: Target, wanted: str) -> Platform:
    """``wanted``, where the target exists on that platform. Raises UsageError where it does not."""
    for platform in target.architecture.platforms:
        if platform == wanted:
            return platform
    platforms = listed(target.architecture.platforms, "or")
    raise UsageError(
        f"{target.id} is built for {platforms}; builds here are for {wanted}",
        hint=f"use an engine of that platform, or --builder with a buildx builder that serves {platforms}",
    )


def valid_words(matrix: Matrix) -> tuple[str, ...]:
    """Every word that ``--arch`` takes, other spellings of a number left out."""
    families = [
        family for family in FAMILIES if any(a.family == family for a in matrix.architectures.values())
    ]
    return (*matrix.architectures, *families, "native", "all")


def select(
    matrix: Matrix,
    words: Sequence[str],
    *,
    flavors: Sequence[str] = (),
    base: str | None = None,
    native: Callable[[], Sequence[str]],
) -> Selection:
    """The targets that ``words`` name, in the matrix's order, each once.

    ``native`` gives the compute capabilities of the GPUs present ("12.0"); it is asked only for the word
    ``native``. Raises UsageError for an unknown word, flavor or base, for an architecture that the base can't
    make, and where ``native`` finds no GPU or one that no row serves.
    """
    chosen_base = _base(matrix, base)
    asked = {_flavor(matrix, flavor) for flavor in flavors} or {matrix.defaults.flavor}
    if not words:
        raise UsageError("no architecture given", hint=f"--arch takes {listed(valid_words(matrix), 'or')}")
    chosen: set[str] = set()
    left_out: dict[str, str] = {}
    for word in words:
        names, collective = _resolve(matrix, word, native)
        makeable = [
            name for name in names if chosen_base.name in matrix.bases_for(matrix.architectures[name])
        ]
        rest = [name for name in names if name not in makeable]
        if rest and (not collective or not makeable):
            raise _wrong_base(matrix, matrix.architectures[rest[0]], chosen_base)
        chosen.update(makeable)
        left_out.update({name: _left_out(matrix, matrix.architectures[name], chosen_base) for name in rest})
    return Selection(
        targets=tuple(
            make_target(matrix, name, flavor=flavor, base=chosen_base.name)
            for name in matrix.architectures
            if name in chosen
            for flavor in matrix.flavors
            if flavor in asked
        ),
        left_out=tuple(left_out[name] for name in matrix.architectures if name in left_out),
    )


_NUMBER: Final = re.compile(r"(?:sm[_-]?|compute_)?([1-9][0-9]{0,2})(?:\.([0-9]))?([af]?)")


def number_of(word: str) -> str | None:
    """``120`` of ``120``, ``sm_120``, ``sm120``, ``sm_120a`` or ``12.0``; None of anything else."""
    match = _NUMBER.fullmatch(word.strip().lower())
    if match is None:
        return None
    major, minor, _suffix = match.groups()
    number = major + (minor or "")
    # "12" alone is no architecture, and "120.0" no compute capability.
    return number if len(number) in (2, 3) and (minor is None or len(major) < 3) else None


def _resolve(matrix: Matrix, word: str, native: Callable[[], Sequence[str]]) -> tuple[list[str], bool]:
    """Names that the word stands for, and whether it is a word for many."""
    plain = word.strip().lower()
    if plain == "all":
        return list(matrix.architectures), True
    if plain == "native":
        return _native(matrix, native()), False
    if plain in matrix.architectures:
        return [plain], False
    family = [row.name for row in matrix.architectures.values() if row.family == plain]
    if family:
        return family, True
    number = number_of(plain)
    if number is not None and number in matrix.architectures:
        return [number], False
    row, option = _target_id(matrix, plain)
    if row is not None:
        raise UsageError(
            f"--arch {shown(word)}: that is a target, not an architecture", hint=f"--arch {row} {option}"
        )
    options = valid_words(matrix)
    hint = f"--arch takes {listed(options, 'or')}"
    if "," in plain or " " in plain:
        hint = f"give --arch once for each; {hint}"
    elif number is not None and "portable" in matrix.architectures:
        hint = f"{hint}; portable serves GPUs that have no row of their own"
    # "12" is the start of 120 before it is one letter away from "72".
    starts = [name for name in options if len(plain) > 1 and name.startswith(plain)]
    meant = f' (did you mean "{starts[0]}"?)' if starts else did_you_mean(plain, options)
    raise UsageError(f"--arch {shown(word)}: there is no such architecture{meant}", hint=hint)


def _target_id(matrix: Matrix, word: str) -> tuple[str | None, str]:
    """Architecture and options of a word such as ``sm120-stock`` or ``120-nvidia``; None where it is none."""
    first, *rest = word.split("-")
    name = first if first in matrix.architectures else number_of(first)
    if name not in matrix.architectures or not rest:
        return None, ""
    options = []
    for one in rest:
        if one in matrix.flavors:
            options.append(f"--flavor {one}")
        elif one in matrix.bases:
            options.append(f"--base {one}")
        else:
            return None, ""
    return name, " ".join(options)


def _native(matrix: Matrix, capabilities: Sequence[str]) -> list[str]:
    if not capabilities:
        raise UsageError(
            "--arch native: no NVIDIA GPU answers on this machine",
            hint="name the architecture (`invoke matrix` shows which GPU has which), or build --arch cpu",
        )
    names = []
    for capability in capabilities:
        number = number_of(capability)
        if number is None or number not in matrix.architectures:
            raise UsageError(
                f"--arch native: a GPU has compute capability {shown(capability)}; no row serves it",
                hint=_without_a_row(matrix, number),
            )
        names.append(number)
    return names


def _without_a_row(matrix: Matrix, number: str | None) -> str:
    portable = matrix.architectures.get("portable")
    if portable is None or number is None:
        return "add a row for it to matrix.yaml"
    floor = min(int(one) for one in portable.ptx)
    if int(number) < floor:
        return f"portable starts at compute capability {floor // 10}.{floor % 10}: only --arch cpu runs there"
    return "build --arch portable, whose PTX the driver compiles for it, or add a row to matrix.yaml"


def _flavor(matrix: Matrix, flavor: str | None) -> Flavor:
    if flavor is None:
        return matrix.defaults.flavor
    for one in matrix.flavors:
        if one == flavor.strip().lower():
            return one
    raise _unknown("flavor", flavor, matrix.flavors)


def _base(matrix: Matrix, base: str | None) -> Base:
    name = matrix.defaults.base if base is None else base.strip().lower()
    if name not in matrix.bases:
        raise _unknown("base", name, matrix.bases)
    return matrix.bases[name]


def _unknown(what: str, found: str, options: Iterable[str]) -> UsageError:
    names = tuple(options)
    return UsageError(
        f"there is no {what} {shown(found)}{did_you_mean(found, names)}",
        hint=f"the matrix has {listed(names, 'and')}",
    )


def _wrong_base(matrix: Matrix, row: Architecture, base: Base) -> UsageError:
    able = matrix.bases_for(row)
    hint = f"add --base {listed(able, 'or')}" if able else "no base of the matrix can make it"
    if matrix.defaults.base in able:
        hint = "leave --base out"
    return UsageError(f"base {base.name} can't make {row.label}: {_reason(row, base)}", hint=hint)


def _left_out(matrix: Matrix, row: Architecture, base: Base) -> str:
    able = matrix.bases_for(row)
    return f"{row.label}: {_reason(row, base)}" + (f"; --base {listed(able, 'or')} makes it" if able else "")


def _reason(row: Architecture, base: Base) -> str:
    if row.toolkit is None:
        return f"{row.name} is built without CUDA images"
    needed = "wheels" if base.kind == "bootstrap" else "images"
    return f"toolkit {row.toolkit} has no {needed} for it"
