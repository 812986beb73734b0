"""Rules of the matrix that need more than one value, and the facts of CUDA and llama.cpp behind them.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from llama_images.located_yaml import KeyPath, did_you_mean, listed
from llama_images.matrix_types import Architecture, Base, Defaults, Model, Source, Thresholds, Toolkit, Wheel
from llama_images.platforms import Platform

Report = Callable[[KeyPath, str], None]

FIRST_TOOLKIT: Final[Mapping[int, tuple[int, int]]] = {
    75: (10, 0),
    80: (11, 0),
    86: (11, 1),
    87: (11, 4),
    88: (13, 0),
    89: (11, 8),
    90: (11, 8),
    100: (12, 8),
    103: (12, 9),
    110: (13, 0),
    120: (12, 8),
    121: (12, 9),
}
"""The first CUDA toolkit whose nvcc knows an architecture (CUDA release notes; nvcc --list-gpu-arch)."""

OLD: Final = (50, 52, 53, 60, 61, 62, 70, 72)
"""Architectures that CUDA 13 dropped: Maxwell, Pascal and Volta (CUDA 13.0 release notes)."""

NEWEST_KNOWN: Final = max(FIRST_TOOLKIT)

ARM_ONLY: Final = (53, 62, 72, 87, 110, 121)
"""GPUs on one chip or board with an Arm processor: Jetson, DRIVE Thor and DGX Spark."""

DRIVER_OF: Final[Mapping[int, str]] = {12: "525.60.13", 13: "580.65.06"}
"""The oldest Linux driver of a CUDA major version (CUDA release notes, minor version compatibility)."""

COMPILER: Final = "nvidia-cuda-nvcc"


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What of a matrix is sound row by row. Where ``complete`` is false, rows or sections may be missing."""

    defaults: Defaults | None
    sources: Mapping[str, Source]
    flavors: tuple[str, ...] | None
    bases: Mapping[str, Base]
    toolkits: Mapping[str, Toolkit]
    cpu_variants: Mapping[Platform, tuple[str, ...]]
    architectures: Mapping[str, Architecture]
    thresholds: Thresholds | None
    models: Mapping[str, Model]
    names: Mapping[str, tuple[str, ...]]
    """Names of every row of a section, unsound ones too; a section of the wrong form is left out."""
    complete: bool


def check(draft: Draft, report: Report, *, series: Collection[str] | None) -> None:
    """Report every broken rule, each at the value that would have to change."""
    _defaults(draft, report)
    for source in draft.sources.values():
        if series is not None and source.series not in series:
            text = f"there is no folder patches/{source.series}{did_you_mean(source.series, series)}"
            report(("sources", source.name, "series"), text)
    for base in draft.bases.values():
        _base(draft, base, report)
    _one_bootstrap(draft, report)
    for toolkit in draft.toolkits.values():
        _toolkit(toolkit, report)
    for row in draft.architectures.values():
        _architecture(draft, row, report)
    if draft.thresholds is not None:
        _thresholds(draft.thresholds, report)
    for model in draft.models.values():
        _model(model, report)
    if draft.complete:
        _wheels_by_platform(draft, report)
        _cpu_variants(draft, report)


def _defaults(draft: Draft, report: Report) -> None:
    if draft.defaults is None:
        return
    for key, options in (
        ("source", draft.names.get("sources")),
        ("base", draft.names.get("bases")),
        ("flavor", draft.flavors),
    ):
        _known(getattr(draft.defaults, key), options, ("defaults", key), key, report)
    if draft.defaults.model is not None:
        _known(draft.defaults.model, draft.names.get("models"), ("defaults", "model"), "model", report)


def _known(found: str, options: Collection[str] | None, path: KeyPath, what: str, report: Report) -> bool:
    if options is None or found in options:
        return True
    allowed = f"allowed: {listed(options, 'and')}" if options else f"the file has no {what}"
    report(path, f'found "{found}"; there is no such {what}{did_you_mean(found, options)}; {allowed}')
    return False


def _base(draft: Draft, base: Base, report: Report) -> None:
    path = ("bases", base.name)
    if base.kind == "bootstrap":
        if base.suite is None:
            report(
                (*path, "suite"), "missing: a bootstrap base needs the distribution's suite, such as bookworm"
            )
        if not base.packages:
            report(
                (*path, "packages"),
                "missing or empty: a bootstrap base needs packages, such as [ca-certificates]",
            )
    else:
        if base.suite is not None:
            report((*path, "suite"), "a registry base has no suite; its images bring their distribution")
        if base.packages:
            report(
                (*path, "packages"), "a registry base has no packages; its images bring their distribution"
            )
    # Both become parts of a tag: sm120-nvidia-stock.
    if base.name in ("patched", "stock") or base.name in draft.names.get("sources", ()):
        report(path, f'"{base.name}" is the name of a flavor or source too; tags could not tell them apart')


def _model(model: Model, report: Report) -> None:
    """A hash without its revision goes wrong when the branch moves; a revision without one proves nothing."""
    for key, other in (("revision", "sha256"), ("sha256", "revision")):
        if getattr(model, key) is None and getattr(model, other) is not None:
            report(
                ("models", model.name, key), "missing; revision and sha256 are pinned together, or neither"
            )


def _one_bootstrap(draft: Draft, report: Report) -> None:
    """A bootstrap base is rendered to images/base, and named by its suite alone: there is room for one."""
    names = [base.name for base in draft.bases.values() if base.kind == "bootstrap"]
    for name in names[1:]:
        report(
            ("bases", name, "kind"),
            f'found "bootstrap"; {names[0]} is one already, and images/base is the place of one alone: '
            "change that one, or use a registry base",
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _toolkit(toolkit: Toolkit, report: Report) -> None:
    path = ("toolkits", toolkit.name)
    if toolkit.wheels is None and toolkit.images is None:
        report(path, "neither wheels nor images; no base could use this toolkit")
    major = toolkit.major_minor[0]
    oldest = DRIVER_OF.get(major)
    if oldest is None:
        allowed = listed([f"{one}.x" for one in DRIVER_OF], "and")
        report(
            (*path, "version"),
            f'found "{toolkit.version}"; the drivers of CUDA {allowed} are known, no others',
        )
    elif _version(toolkit.minimum_driver) < _version(oldest):
        report(
            (*path, "minimum_driver"),
            f'found "{toolkit.minimum_driver}"; CUDA {major} runs on no driver before {oldest}',
        )
    if toolkit.wheels is None:
        return
    if toolkit.major_minor < (13, 0):
        report((*path, "wheels"), "the wheels of CUDA 12 and older hold no nvcc; such a toolkit needs images")
        return
    _wheels(toolkit, toolkit.wheels.build, toolkit.wheels.runtime, report)


def _wheels(toolkit: Toolkit, build: tuple[Wheel, ...], runtime: tuple[Wheel, ...], report: Report) -> None:
    path = ("toolkits", toolkit.name, "wheels")
    if all(wheel.name != COMPILER for wheel in build):
        report((*path, "build"), f"{COMPILER} is missing; without it nothing is compiled")
    seen: set[str] = set()
    for part, wheels in (("build", build), ("runtime", runtime)):
        for index, wheel in enumerate(wheels):
            if wheel.name in seen:
                report((*path, part, index, "name"), f"{wheel.name} is listed twice")
            seen.add(wheel.name)
            if wheel.name == COMPILER and _version(wheel.version)[:2] != toolkit.major_minor:
                report(
                    (*path, part, index, "version"),
                    f'found "{wheel.version}"; the compiler of this toolkit is {toolkit.version}.x',
                )


def _architecture(draft: Draft, row: Architecture, report: Report) -> None:
    path = ("architectures", row.name)
    if row.name == "cpu":
        for key in ("family", "toolkit", "sass", "ptx"):
            if getattr(row, key):
                report((*path, key), f"cpu has no {key}; take the key out")
        return
    if row.toolkit is None:
        report((*path, "toolkit"), f"missing: one of {listed(draft.names.get('toolkits', ()), 'or')}")
    elif _known(row.toolkit, draft.names.get("toolkits"), (*path, "toolkit"), "toolkit", report):
        toolkit = draft.toolkits.get(row.toolkit)
        if toolkit is not None:
            _toolkit_fits(draft, row, toolkit, report)
    if row.name == "portable":
        _portable(draft, row, report)
    else:
        _numbered(row, report)


def _toolkit_fits(draft: Draft, row: Architecture, toolkit: Toolkit, report: Report) -> None:
    path = ("architectures", row.name)
    if row.name != "portable":
        reason = _impossible(int(row.name), toolkit)
        if reason is not None:
            report((*path, "toolkit"), f'found "{toolkit.name}"; {reason}')
    else:
        for key, entries in (("sass", row.sass), ("ptx", row.ptx)):
            for index, entry in enumerate(entries):
                reason = _impossible(int(entry.rstrip("af")), toolkit)
                if reason is not None:
                    report((*path, key, index), f'found "{entry}"; {reason}')
    kinds = {base.kind for base in draft.bases.values()}
    able = (toolkit.wheels is not None and "bootstrap" in kinds) or (
        toolkit.images is not None and "registry" in kinds
    )
    if draft.complete and not able and (toolkit.wheels or toolkit.images):
        report((*path, "toolkit"), f'found "{toolkit.name}"; no base of this file can use that toolkit')


def _impossible(number: int, toolkit: Toolkit) -> str | None:
    """Why the toolkit can't compile for sm_number; None where it can."""
    if number in OLD or number < min(FIRST_TOOLKIT):
        return (
            f"CUDA 13 dropped sm_{number}; it needs a CUDA 12 toolkit"
            if toolkit.major_minor >= (13, 0)
            else None
        )
    first = FIRST_TOOLKIT.get(number)
    if first is not None and toolkit.major_minor < first:
        return f"sm_{number} needs CUDA {first[0]}.{first[1]} or later, this is {toolkit.version}"
    return None


def _is_12x(number: int) -> bool:
    return 120 <= number <= 129


def _right_sass(number: int) -> str:
    return f"{number}a" if _is_12x(number) else str(number)


def _family(number: int) -> str | None:
    """NVIDIA's name of the generation; None where it isn't known here."""
    if number in (70, 72):
        return "volta"
    if number in (75, 89):
        return {75: "turing", 89: "ada"}[number]
    return {8: "ampere", 9: "hopper", 10: "blackwell", 11: "blackwell", 12: "blackwell"}.get(number // 10)


def _numbered(row: Architecture, report: Report) -> None:
    path = ("architectures", row.name)
    number = int(row.name)
    if number == 101:
        report(path, 'sm_101 is called 110 since CUDA 13; write "110"')
        return
    known = [str(one) for one in sorted((*OLD, *FIRST_TOOLKIT))]
    if number <= NEWEST_KNOWN and row.name not in known:
        report(path, f"there is no sm_{number}{did_you_mean(row.name, known)}")
        return
    family = _family(number)
    # A number newer than any that is known here may be of a generation that has no name here either.
    if family is not None and row.family is None:
        report((*path, "family"), f"missing: NVIDIA's name of the generation, here {family}")
    elif family is not None and row.family != family:
        report((*path, "family"), f'found "{row.family}"; sm_{number} is {family}')
    if number in ARM_ONLY and row.platforms != ("linux/arm64",):
        report((*path, "platforms"), f"sm_{number} exists with Arm processors only: [linux/arm64]")
    right = _right_sass(number)
    if not row.sass:
        report((*path, "sass"), f'missing or empty: write ["{right}"]')
    for index, entry in enumerate(row.sass):
        if entry == right:
            continue
        reason = f'an image of sm_{number} holds its own code alone: write "{right}"'
        if entry.rstrip("af") == row.name and _is_12x(number):
            reason = f'12X is built as 12Xa: write "{right}"'
        report((*path, "sass", index), f'found "{entry}"; {reason}')
    if row.ptx:
        report((*path, "ptx"), f"an image of sm_{number} has no PTX; take the key out, portable has the PTX")


def _portable(draft: Draft, row: Architecture, report: Report) -> None:
    path = ("architectures", "portable")
    if row.family is not None:
        report((*path, "family"), "portable has no family; take the key out")
    for index, entry in enumerate(row.sass):
        number = int(entry.rstrip("af"))
        if entry != _right_sass(number):
            why = "12X is built as 12Xa: " if _is_12x(number) else ""
            report((*path, "sass", index), f'found "{entry}"; {why}write "{_right_sass(number)}"')
    if draft.complete:
        _portable_is_complete(draft, row, report)
    if not row.sass:
        return
    floor = min(int(entry.rstrip("af")) for entry in row.sass)
    if row.ptx != (str(floor),):
        quoted = [f'"{entry}"' for entry in row.ptx]
        found = f"found {listed(quoted, 'and')}" if quoted else "missing or empty"
        report(
            (*path, "ptx"),
            f'{found}; exactly one PTX is needed, of the lowest architecture in sass: ["{floor}"]',
        )


def _portable_is_complete(draft: Draft, row: Architecture, report: Report) -> None:
    """Real code for every listed architecture of the same toolkit, and for nothing else."""
    path = ("architectures", "portable", "sass")
    toolkit = draft.toolkits.get(row.toolkit) if row.toolkit else None
    same = [
        one.name
        for one in draft.architectures.values()
        if one.name.isdigit()
        and one.toolkit == row.toolkit
        # A pair that can't be has been reported where it stands.
        and (toolkit is None or _impossible(int(one.name), toolkit) is None)
    ]
    have = [entry.rstrip("af") for entry in row.sass]
    lacking = [f'"{_right_sass(int(name))}"' for name in same if name not in have]
    if lacking:
        report(path, f"lacks {listed(lacking, 'and')}, which the same toolkit builds for a row of its own")
    for index, number in enumerate(have):
        if number not in same:
            report((*path, index), f'found "{row.sass[index]}"; no row of that architecture has this toolkit')


def _wheels_by_platform(draft: Draft, report: Report) -> None:
    """A wheel is needed on every platform that something is compiled for with its toolkit."""
    for toolkit in draft.toolkits.values():
        users: dict[Platform, list[str]] = {}
        for row in draft.architectures.values():
            if row.toolkit == toolkit.name:
                for platform in row.platforms:
                    users.setdefault(platform, []).append(row.name)
        if toolkit.wheels is None:
            continue
        for part, wheels in (("build", toolkit.wheels.build), ("runtime", toolkit.wheels.runtime)):
            for index, wheel in enumerate(wheels):
                for platform, names in users.items():
                    if platform not in wheel.sha256:
                        report(
                            ("toolkits", toolkit.name, "wheels", part, index, "sha256"),
                            f"no hash of {wheel.name} for {platform}, which {listed(names, 'and')} need",
                        )


def _cpu_variants(draft: Draft, report: Report) -> None:
    for platform, variants in draft.cpu_variants.items():
        for index, variant in enumerate(variants):
            arm = variant.startswith("armv")
            if arm != (platform == "linux/arm64"):
                report(
                    ("cpu_variants", platform, index), f'found "{variant}"; that is no variant of {platform}'
                )
    needed: dict[Platform, str] = {}
    for row in draft.architectures.values():
        for platform in row.platforms:
            needed.setdefault(platform, row.name)
    for platform, name in needed.items():
        if platform not in draft.cpu_variants:
            report(("cpu_variants", platform), f"missing; {name} is built for that platform")


def _thresholds(thresholds: Thresholds, report: Report) -> None:
    """GPUs are found by name, number and memory, so two rows of the same would contradict each other."""
    seen: dict[tuple[str, int, int], int] = {}
    for index, row in enumerate(thresholds.hardware):
        first = seen.setdefault((row.gpu.lower(), row.count, row.memory_gib), index)
        if first != index:
            what = f"{row.count} x {row.gpu} with {row.memory_gib} GiB"
            report(
                ("thresholds", "hardware", index, "gpu"),
                f"{what} has its thresholds in hardware[{first}] already",
            )
