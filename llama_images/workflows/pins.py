"""Newer pins from upstream into ``matrix.yaml``."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llama_images.errors import OutsideError, UsageError
from llama_images.located_yaml import did_you_mean, listed, shown
from llama_images.matrix import Matrix, Toolkit, load_matrix, parse_matrix
from llama_images.pins import (
    TOPICS,
    Change,
    Head,
    PublishedImage,
    Upstreams,
    apply_changes,
    changes_table,
    image_candidates,
    image_changes,
    is_newer,
    needed_platforms,
    placed_wheels,
    wheel_candidates,
    wheel_changes,
)
from llama_images.ports import Activity, Reporter
from llama_images.words import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class PinsUpdate:
    """What was found out, and whether the file now says so."""

    changes: tuple[Change, ...]
    heads: tuple[Head, ...]
    written: bool


def update_pins(
    path: Path,
    upstreams: Upstreams,
    reporter: Reporter,
    *,
    show: Callable[[str], None],
    only: Sequence[str] = (),
    dry_run: bool = False,
) -> PinsUpdate:
    """Ask for the newest fitting pins, write them to the matrix at ``path`` and ``show`` what changed.

    ``only`` takes words of ``pins.TOPICS``; empty means all. The wheels of a toolkit change together or not
    at all, and so do its two images. A source's pin is never changed; what its ref names now is told.

    Raises UsageError for an unknown topic, a wrong matrix, or one that changed meanwhile (nothing is written
    then); OutsideError at the end where any question found no answer. What was answered is written before.
    """
    for word in only:
        if word not in TOPICS:
            raise UsageError(
                f"--only {shown(word)}: there is no such kind of pin{did_you_mean(word, TOPICS)}",
                hint=f"--only takes {listed(TOPICS, 'or')}; give it once for each",
            )
    asked = [topic for topic in TOPICS if topic in only or not only]
    load_matrix(path)  # says what is wrong with the file, or that there is none
    text = _read(path)
    matrix = parse_matrix(text, name=path.name)
    answers = _Answers(reporter)
    if "images" in asked:
        _ask_images(matrix, upstreams, answers)
    if "wheels" in asked:
        _ask_wheels(matrix, upstreams, answers)
    if "source" in asked:
        _ask_heads(matrix, upstreams, answers)
    changes = tuple(answers.changes)
    new = apply_changes(text, changes, name=path.name)
    if changes:
        show(changes_table(changes))
    elif not answers.failed and set(asked) - {"source"}:
        reporter.line(f"{path.name}: every pin that was asked for is the newest that fits")
    for head in answers.heads:
        show(head.text)
    written = bool(changes) and not dry_run
    if written:
        _replace(path, text, new)
        reporter.line(
            f"{path.name}: {counted(len(changes), 'value')} written; run invoke render, then build and test"
        )
    elif changes:
        reporter.line(f"{path.name}: {counted(len(changes), 'value')} would change; nothing was written")
    if answers.failed:
        kept = "what was resolved is written; " if written else ""
        raise OutsideError(
            f"no answer about {listed(answers.failed, 'and')}",
            hint=f"{kept}the warnings above say why; --only asks for single kinds",
        )
    return PinsUpdate(changes=changes, heads=tuple(answers.heads), written=written)


@dataclass(slots=True)
class _Answers:
    """What came back so far; a question without an answer is told and does not stop the others."""

    reporter: Reporter
    changes: list[Change] = field(default_factory=list)
    heads: list[Head] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def question(self, about: str) -> Iterator[Activity]:
        try:
            with self.reporter.activity(f"pins: {about}") as activity:
                yield activity
        except OutsideError as error:
            self.failed.append(about)
            hint = f"; {error.hint}" if error.hint else ""
            self.reporter.warn(f"{about}: {error.message}{hint}")


def _ask_images(matrix: Matrix, upstreams: Upstreams, answers: _Answers) -> None:
    for toolkit in matrix.toolkits.values():
        if toolkit.images is None:
            continue
        with answers.question(f"the images of {toolkit.name}") as activity:
            devel, runtime = _newest_images(matrix, toolkit, upstreams, activity.update)
            answers.changes += image_changes(toolkit, devel, runtime)


def _newest_images(
    matrix: Matrix, toolkit: Toolkit, upstreams: Upstreams, say: Callable[[str], None]
) -> tuple[PublishedImage, PublishedImage]:
    assert toolkit.images is not None
    pinned = (toolkit.images.devel.name, toolkit.images.runtime.name)
    say(f"tags of {pinned[0].rpartition(':')[0]}")
    candidates = image_candidates(toolkit, *(upstreams.image_tags(name) for name in pinned))
    needed = needed_platforms(matrix, toolkit)
    reason = ""
    for names in candidates:
        found = []
        for name in names:
            say(name)
            image = upstreams.image(name)
            if lacking := sorted(needed - image.platforms):
                reason = reason or f"{name} lacks {listed(lacking, 'and')}, which its rows are built for"
                break
            found.append(image)
        else:
            return found[0], found[1]
    raise OutsideError(
        reason or f"the registry has nothing as new as {pinned[0]} and {pinned[1]} of CUDA {toolkit.version}",
        hint="check the names in the matrix",
    )


def _ask_wheels(matrix: Matrix, upstreams: Upstreams, answers: _Answers) -> None:
    for toolkit in matrix.toolkits.values():
        if toolkit.wheels is None:
            continue
        with answers.question(f"the wheels of {toolkit.name}") as activity:
            answers.changes += _newest_wheels(toolkit, upstreams, activity.update)


def _newest_wheels(toolkit: Toolkit, upstreams: Upstreams, say: Callable[[str], None]) -> list[Change]:
    changes: list[Change] = []
    for path, wheel in placed_wheels(toolkit):
        say(wheel.name)
        platforms = tuple(wheel.sha256)
        # A release may lack a platform for a while after it comes out.
        lists = [set(upstreams.wheel_versions(wheel.name, platform)) for platform in platforms]
        for version in wheel_candidates(wheel, toolkit, set.intersection(*lists)):
            if not is_newer(version, wheel.version):
                break  # a file of the index never changes: its hashes are those of the matrix
            say(f"{wheel.name} {version}")
            found = {platform: upstreams.wheel(wheel.name, version, platform) for platform in platforms}
            if any(one.yanked for one in found.values()):
                continue
            hashes = {platform: one.sha256 for platform, one in found.items()}
            why = f"newest {wheel.name} that fits CUDA {toolkit.version}"
            changes += wheel_changes(path, wheel, version, hashes, why=why)
            break
        else:
            raise OutsideError(
                f"the package index has no {wheel.name} as new as {wheel.version} that fits CUDA "
                f"{toolkit.version} on {listed(platforms, 'and')}",
                hint="check the index that pip is set to (pip config list)",
            )
    return changes


def _ask_heads(matrix: Matrix, upstreams: Upstreams, answers: _Answers) -> None:
    for source in matrix.sources.values():
        with answers.question(f"the head of {source.name}") as activity:
            activity.update(f"{source.ref} of {source.repository}")
            now = upstreams.head(source.repository, source.ref)
            answers.heads.append(Head(source=source.name, ref=source.ref, pinned=source.commit, now=now))


def _read(path: Path) -> str:
    # Not read_text: line ends and a byte order mark are kept as they are.
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror or error}") from None


def _replace(path: Path, old: str, new: str) -> None:
    """Write aside and rename, unless the file is no longer ``old``; a link keeps pointing where it does."""
    real = path.resolve()
    part = real.with_name(f"{real.name}.{os.getpid()}.part")
    try:
        part.write_bytes(new.encode("utf-8"))
        shutil.copymode(real, part)
        if real.read_bytes() != old.encode("utf-8"):
            raise UsageError(
                f"{path}: somebody changed it while this ran; nothing was written", hint="run it again"
            )
        part.replace(real)
    except OSError as error:
        raise UsageError(f"{path}: can't be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
