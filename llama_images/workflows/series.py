"""The series' life: checked, compared with newer commits, rebased, written out again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llama_images.errors import CheckFailed, LlamaImagesError, OutsideError, UsageError
from llama_images.matrix import Source
from llama_images.patch_format import (
    conflict_line,
    first_difference,
    format_patch,
    missing_sections,
    split_message,
)
from llama_images.patch_series import Patch, PatchSeries, is_within
from llama_images.series_ports import (
    AppliedPatch,
    AppliedSeries,
    CompileFolder,
    ListedPatch,
    Rebase,
    Revision,
    SeriesFolders,
    SeriesTrees,
    SeriesWork,
    WorkCommit,
)
from llama_images.words import counted
from llama_images.workflows.series_compile import Tools, compile_tree, find_tools, result_key
from llama_images.workflows.workshop import Workshop

CompileState = Literal["compiled", "known", "failed", "not tried", "left out"]
"""``known``: this very tree was compiled before with these very settings. ``left out``: was not asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedPatch:
    """What was found of one patch."""

    name: str
    problems: tuple[str, ...]
    compiled: CompileState

    @property
    def passed(self) -> bool | None:
        """``None`` where nothing was found and it was not compiled."""
        if self.problems:
            return False
        return True if self.compiled in ("compiled", "known") else None


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedSeries:
    """What was found of one series."""

    source: Source
    patches: tuple[CheckedPatch, ...]
    compile_error: LlamaImagesError | None
    """Why not all could be compiled; ``None`` where they could, or that was not asked for."""


def check_series(
    shop: Workshop,
    trees: SeriesTrees,
    folders: Callable[[str], AbstractContextManager[CompileFolder]],
    source: Source,
    patches: Sequence[ListedPatch],
    *,
    repo: str | None,
    compile_patches: bool,
    jobs: int | None,
) -> CheckedSeries:
    """Look at every patch of a source's series: header, form, paths, whether it applies, whether it compiles.

    ``patches`` is the series as its folder has it. What is wrong is in the result, a patch that can't be read
    too. A machine that can't compile is told at the end, after all the rest. Raises OutsideError and
    CheckFailed where the pin can't be had.
    """
    readable = [one.patch for one in itertools.takewhile(lambda one: one.patch is not None, patches)]
    series = PatchSeries(name=source.series, patches=tuple(patch for patch in readable if patch is not None))
    state: CompileState = "not tried" if compile_patches else "left out"
    error: LlamaImagesError | None = None
    with trees.applied(source, series, repo=repo) as applied:
        checked = _look(source, patches, applied.patches, state)
        if compile_patches:
            try:
                tools = find_tools(shop, jobs)
            except OutsideError as missing:
                return CheckedSeries(source=source, patches=checked, compile_error=missing)
            with folders(source.name) as folder:
                checked, error = _compile_each(shop, folder, source, tools, applied, checked)
    return CheckedSeries(source=source, patches=checked, compile_error=error)


def _look(
    source: Source, patches: Sequence[ListedPatch], applied: Sequence[AppliedPatch], state: CompileState
) -> tuple[CheckedPatch, ...]:
    checked = []
    for index, listed in enumerate(patches):
        patch = listed.patch
        if patch is None:
            problem = listed.error.message if listed.error is not None else "can't be read"
            checked.append(CheckedPatch(name=listed.name, problems=(problem,), compiled=state))
            continue
        problems = [*_header_problems(patch), *_path_problems(source, patch)]
        if (line := conflict_line(patch)) is not None:
            problems.append(f"line {line} adds a conflict marker")
        if index < len(applied):
            step = applied[index]
            if step.problem is not None:
                problems.append(f"does not apply: {step.problem}")
            problems += [f"is not exact: {moved}" for moved in step.moved]
            if step.problem is None and not step.moved:
                problems += _form_problems(index + 1, patch, step.diff)
        else:
            problems.append("not tried, since one before it can't be applied")
        checked.append(CheckedPatch(name=patch.name, problems=tuple(problems), compiled=state))
    return tuple(checked)


def _header_problems(patch: Patch) -> list[str]:
    missing = missing_sections(patch.body)
    return [f"the header lacks {', '.join(f'{name}:' for name in missing)}"] if missing else []


def _path_problems(source: Source, patch: Patch) -> list[str]:
    outside = [change.path for change in patch.files if not is_within(change.path, source.paths)]
    return [f"touches {path}, which sources.{source.name}.paths leaves out" for path in outside]


def _form_problems(number: int, patch: Patch, diff: str) -> list[str]:
    """Where a patch differs from what an export of the same commit would write."""
    try:
        wanted = format_patch(number, patch.subject, patch.body, diff)
    except UsageError as error:
        return [error.message]
    problems = [f"should be named {wanted.name}"] if patch.name != wanted.name else []
    line = first_difference(patch, wanted)
    if line is not None:
        problems.append(f"line {line} is not as patches.export writes it")
    return problems


def _compile_each(
    shop: Workshop,
    folder: CompileFolder,
    source: Source,
    tools: Tools,
    applied: AppliedSeries,
    checked: tuple[CheckedPatch, ...],
) -> tuple[tuple[CheckedPatch, ...], OutsideError | None]:
    """The patches with what compiling has found, and what stopped it before the last."""
    settings = tools.settings(source)
    folder.prepare(settings)
    result = list(checked)
    for index, step in enumerate(applied.patches):
        if step.tree is None:
            break
        key = result_key(step.tree, settings)
        if folder.is_known(key):
            shop.reporter.line(f"{step.name}: this tree was compiled before")
            result[index] = replace(result[index], compiled="known")
            continue
        name = f"patches-check-{source.name}-{index + 1:04}"
        with shop.reporter.activity(f"compile {index + 1}/{len(checked)} {step.name}") as activity:
            activity.update("laying out the source")
            applied.lay_out(step.tree, folder.source)
            try:
                problem = compile_tree(shop, folder, source, tools, name=name, on_progress=activity.update)
            except OutsideError as error:
                return tuple(result), OutsideError(f"{step.name}: {error.message}", hint=error.hint)
        if problem is None:
            folder.remember(key)
            result[index] = replace(result[index], compiled="compiled")
        else:
            problems = (*result[index].problems, f"does not compile: {problem}")
            result[index] = replace(result[index], compiled="failed", problems=problems)
    return tuple(result), None


def raise_for(checked: Sequence[CheckedSeries]) -> None:
    """Raise CheckFailed where a patch has a problem, or else OutsideError where none could be compiled."""
    bad = [one.name for series in checked for one in series.patches if one.problems]
    if bad:
        raise CheckFailed(
            f"{counted(len(bad), 'patch', 'patches')} with problems: {', '.join(bad)}",
            hint="the table above says which",
        )
    for series in checked:
        if series.compile_error is not None:
            raise series.compile_error


# --- rebase ---


def raise_for_conflict(source: Source, rebase: Rebase) -> None:
    """Raise CheckFailed where a rebase waits for the user."""
    if rebase.conflict is not None:
        patch = f"patches/{source.series}/{rebase.conflict.name}"
        files = ", ".join(rebase.conflict.files)
        raise CheckFailed(
            f"{patch} conflicts with {rebase.onto.commit[:12]}: {files}",
            hint=f"Mend the files in {rebase.path}, then invoke patches.rebase --continue "
            "(--skip leaves the patch out, --abort gives up).",
        )


def rebase_report(source: Source, rebase: Rebase) -> str:
    """What a finished rebase has come to, and what to do with it."""
    onto = rebase.onto
    lines = [
        f"{counted(len(rebase.kept), 'patch', 'patches')} on {onto.commit} ({onto.name}), in {rebase.path}"
    ]
    lines += [f"absorbed, nothing is left of it: {name}" for name in rebase.absorbed]
    lines += [f"left out: {name}" for name in rebase.skipped]
    lines += ["", "Next:", f"  invoke patches.export      writes them to patches/{source.series}"]
    if onto.commit != source.commit:
        lines += [f"  sources.{source.name} in matrix.yaml:", *_matrix_lines(onto)]
        lines += [f"    paths: without {path}, which this commit has not" for path in onto.missing_paths]
    lines += [
        "  invoke render              the images take the digest of the series along",
        "  invoke patches.check       every patch applies and compiles",
    ]
    return "\n".join(lines)


def _matrix_lines(onto: Revision) -> list[str]:
    number = onto.build_number
    count = str(number) if number is not None else f"(git rev-list --count {onto.commit}, in a full clone)"
    return [
        f"    commit: {onto.commit}",
        f"    tree: {onto.tree}",
        f"    build_number: {count}",
        f"    date: {onto.date.strftime('%Y-%m-%dT%H:%M:%SZ')}",
    ]


# --- export ---


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote."""

    series: PatchSeries
    path: Path
    """The work tree."""
    base: str
    """The commit that the series goes on."""
    is_changed: bool
    """Whether patches/ is another than before."""


def export_series(
    work: SeriesWork,
    folders: SeriesFolders,
    source: Source,
    *,
    work_tree: Path | None,
    base: str | None,
) -> Exported:
    """Write the commits of a work tree as the series of a source.

    Raises UsageError for a commit that can't be carried: empty, with an incomplete header, outside the paths
    of the build, or of another form than a patch may have. What is written was applied before, and gave the
    work tree's own trees.
    """
    with work.commits(source, work_tree=work_tree, base=base) as found:
        patches = tuple(
            _as_patch(source, number, commit) for number, commit in enumerate(found.commits, start=1)
        )
        series = PatchSeries(name=source.series, patches=patches)
        _prove(found.commits, found.applied(series))
        changed = folders.replace(series, source=source.name)
        found.exported(series)
        return Exported(series=series, path=found.path, base=found.base, is_changed=changed)


def _as_patch(source: Source, number: int, commit: WorkCommit) -> Patch:
    subject, body = split_message(commit.message)
    name = f"commit {commit.commit[:12]} ({subject})"
    if not commit.paths:
        raise UsageError(f"{name} is empty", hint="Drop it: git rebase -i in the work tree.")
    outside = [path for path in commit.paths if not is_within(path, source.paths)]
    if outside:
        raise UsageError(
            f"{name} touches {outside[0]}, which sources.{source.name}.paths leaves out",
            hint="Take it out of the commit, or add it to the paths in matrix.yaml.",
        )
    missing = missing_sections(body)
    if missing:
        raise UsageError(
            f"{name}: the message lacks {', '.join(f'{one}:' for one in missing)}",
            hint="Reword it (git rebase -i in the work tree); docs/patches.md has the form.",
        )
    try:
        patch = format_patch(number, subject, body, commit.diff)
    except UsageError as error:
        raise UsageError(f"{name} can't be carried: {error.message}", hint=error.hint) from error
    if (line := conflict_line(patch)) is not None:
        raise UsageError(
            f"{name} can't be carried: {patch.name}:{line}: a conflict marker",
            hint="Mend the file and the commit: git rebase -i in the work tree.",
        )
    return patch


def _prove(commits: Sequence[WorkCommit], applied: Sequence[AppliedPatch]) -> None:
    for commit, step in zip(commits, applied, strict=False):
        if step.problem is not None or step.tree != commit.tree:
            why = step.problem or "it gives another tree than the commit has"
            raise CheckFailed(
                f"commit {commit.commit[:12]}: {step.name} does not apply as it should: {why}",
                hint="Nothing was written. Mend the commit at that place.",
            )
