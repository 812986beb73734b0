"""What a build would do, as data. Pure: made without an engine, tested without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from llama_images.errors import UsageError
from llama_images.matrix import Matrix, Platform
from llama_images.patch_series import PatchSeries
from llama_images.render import base_reference, bootstrap_argv, build_commit, labels, series_of
from llama_images.selection import Selection, Target, local_reference, number_of, select, target_platform
from llama_images.words import counted

StepKind = Literal["source", "base", "build", "smoke"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing that a build does."""

    kind: StepKind
    subject: str
    """What it is done to: a source and flavor, a base, or a target's id."""
    text: str
    target: Target
    """The target that it is done for, the first of those that share it."""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Steps in order; every source and base once, however many targets need it."""

    platform: Platform
    steps: tuple[Step, ...]
    left_out: tuple[str, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets that are built, in order."""
        return tuple(step.target for step in self.steps if step.kind == "build")

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: what CI turns into a job matrix."""
        return {
            "platform": self.platform,
            "steps": [
                {"kind": step.kind, "subject": step.subject, "text": step.text, **step.details}
                for step in self.steps
            ],
            "left_out": list(self.left_out),
        }


def choose_platform(matrix: Matrix, words: Sequence[str], platforms: Sequence[str]) -> str:
    """The first of ``platforms`` that has every architecture which ``words`` name by itself.

    Where none has them all it is the first, and ``choose`` says what that one lacks.
    """
    rows = [matrix.architectures[name] for name in _named(words) if name in matrix.architectures]
    for platform in platforms:
        if all(platform in row.platforms for row in rows):
            return platform
    return platforms[0]


def _named(words: Sequence[str]) -> set[str]:
    return {number_of(word) or word.strip().lower() for word in words}


def choose(
    matrix: Matrix,
    words: Sequence[str],
    *,
    flavors: Sequence[str] = (),
    base: str | None = None,
    platform: str,
    native: Callable[[], Sequence[str]],
) -> Selection:
    """The targets of ``words`` that can be built for ``platform``.

    A collective word (``all``, a family) leaves out what the platform lacks and says so; an architecture
    named by itself that it lacks is an error. Raises UsageError.
    """
    selection = select(matrix, words, flavors=flavors, base=base, native=native)
    named = _named(words)
    targets: list[Target] = []
    left_out = list(selection.left_out)
    for target in selection.targets:
        if platform in target.architecture.platforms:
            targets.append(target)
        elif target.architecture.name in named:
            target_platform(target, platform)
        else:
            left_out.append(
                f"{target.id}: only for {', '.join(target.architecture.platforms)}; this is {platform}"
            )
    if not targets:
        raise UsageError(
            f"nothing to build for {platform}: {'; '.join(left_out)}",
            hint="use an engine of another platform, or --builder with a buildx builder of one",
        )
    return replace(selection, targets=tuple(targets), left_out=tuple(left_out))


def source_subject(target: Target) -> str:
    """The subject of the step that checks the target's source out: one for each source and flavor."""
    return f"{target.source.name}-{target.flavor}"


def make_plan(selection: Selection, *, series: Mapping[str, PatchSeries], platform: str) -> Plan:
    """The steps that build and smoke-test ``selection`` on ``platform``."""
    sources: dict[str, Step] = {}
    bases: dict[str, Step] = {}
    builds: list[Step] = []
    smokes: list[Step] = []
    for target in selection.targets:
        source, base = target.source, target.base
        own_series = series_of(target, series)
        what = (
            f"with {counted(len(own_series.patches), 'patch', 'patches')}"
            if own_series is not None
            else "as it is"
        )
        subject = source_subject(target)
        sources.setdefault(
            subject,
            Step(
                kind="source",
                subject=subject,
                text=f"check out {source.commit[:12]} of {source.repository} {what}",
                target=target,
                details={"commit": source.commit, "tree": source.tree, "flavor": target.flavor},
            ),
        )
        if base.kind == "bootstrap":
            reference = base_reference(base)
            bases.setdefault(
                reference,
                Step(
                    kind="base",
                    subject=reference,
                    text=f"make {reference} from the packages of {base.suite}",
                    target=target,
                    details={"command": list(bootstrap_argv(base, platform, "."))},
                ),
            )
        tag = local_reference(target)
        builds.append(
            Step(
                kind="build",
                subject=target.id,
                text=f"build {tag}"
                + (f" for {target.architecture.cmake_architectures}" if target.toolkit else ""),
                target=target,
                details={
                    "arch": target.architecture.name,
                    "flavor": target.flavor,
                    "base": base.name,
                    "toolkit": target.toolkit.name if target.toolkit else None,
                    "tag": tag,
                    "dockerfile": f"images/{target.id}/Dockerfile",
                    "version": build_commit(target, own_series),
                    "unpinned": unpinned(target),
                    "labels": labels(target, own_series),
                },
            )
        )
        smokes.append(
            Step(
                kind="smoke",
                subject=target.id,
                text=f"test {tag} without a GPU",
                target=target,
                details={"arch": target.architecture.name, "tag": tag},
            )
        )
    found: Platform = target_platform(selection.targets[0], platform)
    return Plan(
        platform=found,
        steps=(*sources.values(), *bases.values(), *builds, *smokes),
        left_out=selection.left_out,
    )


def unpinned(target: Target) -> list[str]:
    """Names of the registry images under the target that have no digest; such a target can't be published."""
    images = target.toolkit.images if target.toolkit is not None and target.base.kind == "registry" else None
    return (
        [] if images is None else [ref.name for ref in (images.devel, images.runtime) if ref.digest is None]
    )
