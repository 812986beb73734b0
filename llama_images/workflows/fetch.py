"""``invoke model.fetch``: a model of the hub onto this disk, whole and checked, or not at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_images.errors import CheckFailed, OutsideError, UsageError
from llama_images.models import WantedModel
from llama_images.ports import Activity, HubFile, ModelHub, Reporter
from llama_images.words import duration
from llama_images.workflows.files import sha256_of

_SPARE_BYTES: Final = 64 << 20
"""Room that is left on the disk beside the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """A model file that is in place."""

    path: Path
    size_bytes: int
    sha256: str
    commit: str | None
    """The hub's commit; None where the file was there and its hash is the wanted one, so nobody was asked."""
    pinned: bool
    """The hash was known before, and is this."""


def fetch_model(
    hub: ModelHub,
    reporter: Reporter,
    wanted: WantedModel,
    target: Path,
) -> Fetched:
    """Bring the file to ``target``, unless it is there; go on where an earlier run stopped.

    What arrives is kept in a file beside it, named by its content, until all of it is there and its SHA-256
    is right. Raises UsageError where another file stands at ``target``; CheckFailed where the hash is not the
    wanted one; OutsideError where the hub fails, or the disk has no room for what is still missing.
    """
    if target.is_dir():
        target /= wanted.name
    there = sha256_of(target, reporter) if target.exists() else None
    if there is not None and there == wanted.sha256:
        reporter.line(f"{target} is there already, and its sha256 is the wanted one")
        return Fetched(path=target, size_bytes=target.stat().st_size, sha256=there, commit=None, pinned=True)
    with reporter.activity(f"ask the hub about {wanted.name}"):
        found = hub.find(wanted.repository, wanted.file, wanted.revision)
    if wanted.sha256 is not None and found.sha256 not in (None, wanted.sha256):
        raise CheckFailed(
            f"{wanted.file} of {wanted.repository} at {wanted.revision} has sha256 {found.sha256}, not "
            f"{wanted.sha256} as it should",
            hint="nothing was fetched; is it the right revision? --sha256 says what is wanted",
        )
    if there is not None:
        return _take_what_is_there(target, there, wanted, found)
    part = target.with_name(f"{target.name}.{(found.sha256 or found.commit)[:12]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    with reporter.activity(f"fetch {wanted.name}") as activity:
        _make_sure_of_room(part, found)
        hub.download(found, part, _progress(activity, part.stat().st_size, found.size_bytes))
    sha256 = sha256_of(part, reporter)
    right = wanted.sha256 or found.sha256
    if right is not None and sha256 != right:
        part.unlink()
        raise CheckFailed(
            f"what came as {wanted.file} has sha256 {sha256}, not {right} as it should; it was removed",
            hint="fetch it again; if that is no better, look at what is between this machine and the hub",
        )
    part.replace(target)
    return _result(target, sha256, wanted, found)


def _result(target: Path, sha256: str, wanted: WantedModel, found: HubFile) -> Fetched:
    return Fetched(
        path=target,
        size_bytes=target.stat().st_size,
        sha256=sha256,
        commit=found.commit,
        pinned=wanted.sha256 is not None,
    )


def _take_what_is_there(target: Path, there: str, wanted: WantedModel, found: HubFile) -> Fetched:
    if wanted.sha256 is None and there == found.sha256:
        return _result(target, there, wanted, found)
    right = wanted.sha256 or found.sha256 or "a hash that the hub does not tell"
    raise UsageError(
        f"{target} is another file: its sha256 is {there}, that of {wanted.file} is {right}",
        hint="move it away, or name another place: --out",
    )


def _make_sure_of_room(part: Path, found: HubFile) -> None:
    if part.stat().st_size > found.size_bytes:
        part.write_bytes(b"")  # damaged: nothing of ours is longer than the file itself
    missing = found.size_bytes - part.stat().st_size
    free = shutil.disk_usage(part.parent).free
    if missing + _SPARE_BYTES > free:
        raise OutsideError(
            f"{part.parent} has {free / 1e9:.1f} GB free; {missing / 1e9:.1f} GB of {found.file} are to come",
            hint="make room, or name a place on another disk: --out",
        )


def _progress(activity: Activity, had: int, total: int) -> Callable[[int], None]:
    started = time.monotonic()

    def show(held: int) -> None:
        seconds = time.monotonic() - started
        text = f"{held / 1e9:.2f} of {total / 1e9:.2f} GB"
        if seconds > 1 and held > had:
            rate = (held - had) / seconds
            text += f", {rate / 1e6:.0f} MB/s, {duration((total - held) / rate)} left"
        activity.update(text)

    return show
