"""What the commands print: rows to aligned text and to JSON. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_images.bench import Bench
from llama_images.bench_rows import COLUMN_HEADS, COLUMNS, ratio_rows_of, rows_of
from llama_images.evidence import BAD, Evidence
from llama_images.matrix import Matrix, Source
from llama_images.patch_series import PatchSeries
from llama_images.plan import unpinned
from llama_images.ports import Layer
from llama_images.render import series_of
from llama_images.selection import all_targets, local_reference
from llama_images.series_ports import Comparison
from llama_images.tags import published_tags
from llama_images.words import counted, duration

if TYPE_CHECKING:
    from llama_images.references import Repository
    from llama_images.workflows.build import Built
    from llama_images.workflows.demo import DemoLog, DemoResult
    from llama_images.workflows.prune import Pruning
    from llama_images.workflows.publish import Published
    from llama_images.workflows.scan import ScanResult
    from llama_images.workflows.series import CheckedSeries
    from llama_images.workflows.smoke import SmokeResult
    from llama_images.workflows.tagging import TagResult
    from llama_images.workflows.verify import Verification

WIDTH = 100
"""Columns that a table may take; the last column is wrapped to fit."""

_UNTRIED = "not tried, since one before it can't be applied"

_MEGABYTE = 1e6  # as registries count


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), width: int = WIDTH
) -> str:
    """Aligned columns, two spaces apart; ``right`` names columns of numbers. The last column is wrapped."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    rest = max(20, width - sum(widths[:-1]) - 2 * (len(head) - 1))
    lines: list[str] = []
    for row in (
        head,
        ["-" * min(w, rest if i + 1 == len(widths) else w) for i, w in enumerate(widths)],
        *rows,
    ):
        last = textwrap.wrap(row[-1], rest, break_long_words=False, break_on_hyphens=False) or [""]
        cells = [
            cell.rjust(widths[i]) if i in right and row is not head else cell.ljust(widths[i])
            for i, cell in enumerate(row[:-1])
        ]
        if len(head) - 1 in right and row is not head:
            last = [text.rjust(widths[-1]) for text in last]
        lines.append("  ".join([*cells, last[0]]).rstrip())
        indent = " " * (sum(widths[:-1]) + 2 * (len(head) - 1))
        lines += [indent + text for text in last[1:]]
    return "\n".join(lines)


def matrix_rows(matrix: Matrix, series: Mapping[str, PatchSeries]) -> list[dict[str, Any]]:
    """Every target as a JSON object."""
    rows = []
    for target in all_targets(matrix):
        toolkit, own = target.toolkit, series_of(target, series)
        rows.append(
            {
                "id": target.id,
                "arch": target.architecture.name,
                "family": target.architecture.family,
                "serves": list(target.architecture.serves),
                "flavor": target.flavor,
                "base": target.base.name,
                "platforms": list(target.architecture.platforms),
                "sass": list(target.architecture.sass),
                "ptx": list(target.architecture.ptx),
                "toolkit": toolkit.version if toolkit else None,
                "minimum_driver": toolkit.minimum_driver if toolkit else None,
                "tag": local_reference(target),
                "published_tags": list(published_tags(matrix, target, own).all),
                "source": target.source.name,
                "commit": target.source.commit,
                "series_digest": own.digest if own is not None else None,
                "unpinned": unpinned(target),
            }
        )
    return rows


def matrix_table(matrix: Matrix) -> str:
    """One row an architecture: what makes it, where it runs, what it serves."""
    bases: dict[str, list[str]] = {}
    for target in all_targets(matrix):
        names = bases.setdefault(target.architecture.name, [])
        name = target.base.name + ("*" if unpinned(target) else "")
        if name not in names:
            names.append(name)
    rows = []
    for architecture in matrix.architectures.values():
        toolkit = matrix.toolkits[architecture.toolkit] if architecture.toolkit else None
        rows.append(
            [
                architecture.name,
                " ".join(bases[architecture.name]),
                " ".join(platform.removeprefix("linux/") for platform in architecture.platforms),
                toolkit.version if toolkit else "-",
                toolkit.minimum_driver if toolkit else "-",
                ", ".join(architecture.serves),
            ]
        )
    text = table(("arch", "bases", "platforms", "CUDA", "driver >=", "GPUs"), rows)
    flavors = ", ".join(matrix.flavors)
    default = f"{matrix.defaults.flavor} on {matrix.defaults.base}"
    text += f"\n\nEach in the flavors {flavors}; {default} is the default."
    if any(name.endswith("*") for names in bases.values() for name in names):
        text += "\n* unpinned: an image below has no digest, so it can't be published (invoke pins.update)."
    return text


def patch_rows(series: Mapping[str, PatchSeries]) -> list[dict[str, Any]]:
    """Every carried patch as a JSON object, in order."""
    return [
        {
            "series": one.name,
            "number": number,
            "name": patch.name,
            "subject": patch.subject,
            "files": [change.path for change in patch.files],
            "added": patch.added,
            "removed": patch.removed,
            "sha256": patch.sha256,
        }
        for one in series.values()
        for number, patch in enumerate(one.patches, 1)
    ]


def patch_table(series: Mapping[str, PatchSeries]) -> str:
    """Every carried patch, series by series."""
    parts = []
    for one in series.values():
        rows = [
            [
                str(number),
                f"+{p.added}",
                f"-{p.removed}",
                p.sha256[:12],
                f"{p.subject} ({', '.join(f.path for f in p.files)})",
            ]
            for number, p in enumerate(one.patches, 1)
        ]
        parts.append(f"{one.name}: {counted(len(rows), 'patch', 'patches')}, digest sha256:{one.digest}")
        parts.append(table(("#", "+", "-", "sha256", "subject and files"), rows, right=(0, 1, 2)))
    return "\n".join(parts)


def check_rows(series: Sequence[CheckedSeries]) -> list[dict[str, Any]]:
    """What was found of every patch, as JSON objects."""
    return [
        {
            "series": one.source.series,
            "number": number,
            "name": checked.name,
            "passed": checked.passed,
            "problems": list(checked.problems),
            "tried": checked.is_tried,
            "compiled": checked.compiled,
        }
        for one in series
        for number, checked in enumerate(one.patches, 1)
    ]


def check_table(checked: CheckedSeries) -> str:
    """What was found of every patch of a series."""
    rows = [
        [
            str(number),
            "FAIL" if one.problems else "ok" if one.is_tried else "-",
            one.compiled,
            "; ".join([one.name, *one.problems, *([] if one.is_tried else [_UNTRIED])]),
        ]
        for number, one in enumerate(checked.patches, 1)
    ]
    fine = [one for one in checked.patches if one.is_tried and not one.problems]
    source = checked.source
    all_of_them = counted(len(rows), "patch", "patches")
    text = table(("#", "check", "compiled", "patch and what is wrong"), rows, right=(0,))
    text += f"\n{source.series}: {len(fine)} of {all_of_them} without a problem on {source.commit[:12]}"
    if uncompiled := sum(one.passed is None for one in fine):
        text += f", {uncompiled} of these not compiled"
    if checked.compile_error is not None:
        text += f"\n{checked.compile_error.message}"
    return text


def status_rows(source: Source, comparison: Comparison) -> dict[str, Any]:
    """How a series fares on another commit, as a JSON object."""
    onto = comparison.onto
    return {
        "series": source.series,
        "pin": source.commit,
        "onto": {
            "name": onto.name,
            "commit": onto.commit,
            "tree": onto.tree,
            "date": onto.date.isoformat(),
            "missing_paths": list(onto.missing_paths),
        },
        "patches": [
            {"number": number, "name": one.name, "state": one.state, "details": list(one.details)}
            for number, one in enumerate(comparison.patches, 1)
        ],
    }


def status_table(source: Source, comparison: Comparison) -> str:
    """How a series fares on another commit."""
    onto = comparison.onto
    rows = [
        [str(number), one.state, "; ".join([one.name, *one.details])]
        for number, one in enumerate(comparison.patches, 1)
    ]
    pin = f"pin {source.commit[:12]} ({source.date:%Y-%m-%d})"
    lines = [
        f"{source.series}: {pin}, tried on {onto.name} at {onto.commit[:12]} ({onto.date:%Y-%m-%d})",
        table(("#", "state", "patch and where"), rows, right=(0,)),
    ]
    lines += [f"{path}, one of the source's paths, is not in this commit" for path in onto.missing_paths]
    return "\n".join(lines)


def build_table(results: Sequence[Built]) -> str:
    """What became of each target."""
    rows = []
    for built in results:
        summary = built.summary
        ccache = summary.ccache if summary is not None else None
        rows.append(
            [
                built.target.id,
                built.status,
                duration(summary.seconds) if summary is not None else "-",
                f"{ccache.hits}/{ccache.total} ({100 * ccache.hits // max(ccache.total, 1)}%)"
                if ccache is not None
                else "-",
                f"{built.image.size_bytes / _MEGABYTE:.1f}",
                built.reference,
            ]
        )
    return table(("target", "status", "time", "ccache hits", "MB", "image"), rows, right=(2, 3, 4))


def smoke_table(result: SmokeResult) -> str:
    """Every check of one image."""
    rows = [["ok" if check.passed else "FAIL", check.name, check.detail] for check in result.checks]
    passed = sum(check.passed for check in result.checks)
    return (
        table((result.target.id, "check", "found"), rows)
        + f"\n{result.reference}: {passed} of {len(rows)} checks passed"
    )


def suite_table(evidence: Evidence) -> str:
    """Every case of a test run, and of those that failed every verdict that did."""
    rows = []
    for case in evidence.cases:
        said = [case.reason] if case.reason else []
        if case.status in BAD:
            said = [f"{rule.name}: {rule.detail}" for rule in case.verdicts if not rule.passed] or said
        elif case.status == "passed":
            said = [case.about]
        seconds = "-" if case.seconds is None else duration(case.seconds)
        rows.append([_MARKS[case.status], case.name, seconds, "; ".join([*said, *case.notes])])
    bad, skipped = len(evidence.failed), len(evidence.skipped)
    passed = len(rows) - bad - skipped
    return (
        table((evidence.subject.name, "case", "time", "found"), rows, right=(2,))
        + f"\n{passed} passed, {bad} failed, {skipped} skipped"
    )


_MARKS = {
    "passed": "ok",
    "failed": "FAIL",
    "skipped": "skip",
    "failed as it should": "ok, fails",
    "passed though it should fail": "FAIL",
}


def scan_table(result: ScanResult) -> str:
    """Every check of one image, and where its bill of materials is."""
    rows = [["ok" if check.passed else "FAIL", check.name, check.detail] for check in result.checks]
    text = table((result.target.id, "check", "found"), rows)
    if result.left_out:
        text += f"\nleft out, not installed: {', '.join(result.left_out)}"
    return f"{text}\nbill of materials: {result.bill}"


def layer_rows(sizes: Mapping[str, Sequence[Layer]]) -> dict[str, list[dict[str, Any]]]:
    """Layers of each target as JSON objects."""
    return {
        name: [
            {
                "diff_id": layer.diff_id,
                "bytes": layer.size_bytes,
                "compressed_bytes": layer.compressed_bytes,
                "created_by": layer.created_by,
            }
            for layer in layers
        ]
        for name, layers in sizes.items()
    }


def layer_table(sizes: Mapping[str, Sequence[Layer]]) -> str:
    """Layers of each target with their sizes, and the sums."""
    rows = []
    for name, layers in sizes.items():
        for number, layer in enumerate(layers, 1):
            rows.append(
                [
                    name,
                    str(number),
                    f"{layer.size_bytes / _MEGABYTE:.1f}",
                    f"{layer.compressed_bytes / _MEGABYTE:.1f}",
                    f"{layer.diff_id.removeprefix('sha256:')[:12]} {layer.created_by}",
                ]
            )
        rows.append(
            [
                name,
                "all",
                f"{sum(layer.size_bytes for layer in layers) / _MEGABYTE:.1f}",
                f"{sum(layer.compressed_bytes for layer in layers) / _MEGABYTE:.1f}",
                "",
            ]
        )
    return table(("target", "layer", "MB", "gzip MB", "digest, made by"), rows, right=(1, 2, 3))


def demo_table(log: DemoLog) -> str:
    """What the demo did and how long each part took."""
    rows = [[name, duration(seconds), text] for name, text, seconds in log.parts]
    total = sum(seconds for _, _, seconds in log.parts)
    return table(("step", "time", "result"), [*rows, ["all", duration(total), ""]], right=(1,))


def demo_result(result: DemoResult) -> str:
    """The generated text and the validator's lines."""
    run = result.run
    lines = ["text generated inside the container (random weights make random words):", ""]
    lines += textwrap.wrap(
        run.text.decode("utf-8", "replace"), WIDTH - 4, initial_indent="    ", subsequent_indent="    "
    )
    lines += ["", f"DG_SC_CHECK, a line for each of {run.steps} steps:"]
    lines += [
        f"    step {one.step}: got={one.got} maxabs={one.maxabs:g} sumabs={one.sumabs:g} "
        f"nmiss={one.nmiss}/{one.denominator}"
        for one in run.sc_checks
    ]
    return "\n".join(lines)


def bench_table(bench: Bench) -> str:
    """Medians of every configuration and flavor, their ratios, and those round by round; 80 columns."""
    rounds = f"{bench.rounds} round{'' if bench.rounds == 1 else 's'}"
    rows: list[list[str]] = []
    shown = ""
    for row in rows_of(bench):
        title = row.configuration if row.configuration != shown else ""
        shown = row.configuration
        rows.append([title, row.flavor, *(cell.text for cell in row.cells)])
    text = f"medians of {rounds}: step and gap in ms, of the first and last block; turn in s\n\n"
    head = ("configuration", "build", *(COLUMN_HEADS[column] for column in COLUMNS))
    text += table(head, rows, right=(2, 3, 4, 5, 6), width=80)
    found = ratio_rows_of(bench)
    if bench.rounds > 1 and found:
        text += "\n\n" + table(
            ("configuration", "ratio", "of", "round by round"),
            [[row.configuration, row.flavor, row.quantity, "  ".join(row.rounds)] for row in found],
            width=80,
        )
    return text


def published_table(repository: Repository, results: Sequence[Published], *, dry_run: bool) -> str:
    """Every tag, digest and size of what was published, or of what would be."""
    rows = []
    for result in results:
        for number, tag in enumerate(result.tags):
            rows.append(
                [
                    tag.tag,
                    tag.change,
                    f"{result.size_bytes / _MEGABYTE:.1f}" if number == 0 else "",
                    f"{result.sent_bytes / _MEGABYTE:.1f}" if number == 0 and not dry_run else "",
                    tag.why or tag.digest,
                ]
            )
        rows.append(["", "", "", "", f"{result.platform}: {result.image}"])
    text = table(("tag", "change", "MB", "sent MB", "digest"), rows, right=(2, 3), width=160)
    untested = [result.target.id for result in results if result.tested == "no"]
    if untested:
        text += f"\nmarked as untested: {', '.join(untested)}"
    done = "would be published to" if dry_run else "published to"
    return f"{text}\n{counted(len(results), 'image', 'images')} {done} {repository}"


def moved_table(repository: Repository, results: Sequence[TagResult], *, dry_run: bool) -> str:
    """Every moving tag, and what became of it, or would."""
    rows = [[tag.tag, tag.change, tag.why or tag.digest] for tag in results]
    text = table(("tag", "change", "digest"), rows, width=160)
    return f"{text}\n{'as it would be' if dry_run else 'as it is'} in {repository}"


def verification_table(result: Verification) -> str:
    """What an image is, in ten lines."""
    width = max(len(word) for word, _ in result.lines)
    return "\n".join(f"{word.ljust(width)}  {text}" for word, text in result.lines)


def pruning_table(repository: Repository, pruning: Pruning, *, applied: bool) -> str:
    """What went, or would go, and what stays all the same."""
    lines = [f"kept: {', '.join(pruning.kept_versions) or 'no version is there'}"]
    lines += [f"spared, since something else needs it: {tag}" for tag in pruning.spared]
    lines += [f"{'removed' if applied else 'would go'}: {tag}" for tag in pruning.tags]
    count = counted(len(pruning.digests), "manifest", "manifests")
    last = "removed from" if applied else "would go from"
    lines.append(
        f"{count} {last} {repository}" + ("" if applied or not pruning.digests else "; --apply removes")
    )
    return "\n".join(lines)
