"""Which test evidence lets an image be published. Pure.

`invoke test` writes the documents (`evidence.py`). Of all that one says, this decides here: which image was
tested, on GPUs or without, whether everything that can be asked of it was asked, and whether a case failed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from pydantic import ValidationError

from llama_images.errors import CheckFailed, UsageError
from llama_images.evidence import PAST_DEADLINE, Evidence
from llama_images.oci import is_digest
from llama_images.words import counted

SCHEMA_VERSION: Final = 1
"""The form of the documents that is read here."""

Tier: TypeAlias = Literal["gpu", "cpu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenEvidence:
    """One evidence document that is about an image."""

    name: str
    """Its file, for messages."""
    image: str
    """Digest of the image that was tested: of its configuration in the engine, or of a manifest."""
    record: Evidence

    @property
    def tier(self) -> Tier:
        return "gpu" if self.record.machine.gpus else "cpu"

    @property
    def has_failed(self) -> bool:
        """Whether a case says that the image is bad, as opposed to nothing."""
        return bool(self.record.failed)

    @property
    def failure(self) -> str | None:
        """Why it is no evidence that the image is good, in words; None where it is."""
        record = self.record
        ran = [case for case in record.cases if case.status != "skipped"]
        if record.failed:
            return f"{len(record.failed)} of {counted(len(record.cases), 'case')} failed"
        if not record.complete:
            return "the run was broken off"
        if record.selected:
            return f"only some cases were chosen: {', '.join(record.selected)}"
        if any(case.reason == PAST_DEADLINE for case in record.skipped):
            return "its deadline passed before the last case"
        if not ran:
            return "no case was run"
        if self.tier == "gpu" and not any(case.gpus for case in ran):
            return "no case was run on a GPU"
        return None

    @property
    def document(self) -> dict[str, Any]:
        """The whole of it, as JSON values."""
        return self.record.model_dump(mode="json")

    @property
    def summary(self) -> str:
        """What was run, and on what, in some words."""
        return _summary(self.record)


def summary_of(document: Mapping[str, Any]) -> str:
    """What an evidence document says, in some words: "31 cases passed, 2 skipped, on 2 × NVIDIA H200"."""
    try:
        return _summary(Evidence.model_validate_json(json.dumps(document)))
    except ValidationError:
        return "in an unknown form"


def _summary(record: Evidence) -> str:
    bad, skipped = len(record.failed), len(record.skipped)
    parts = [f"{counted(len(record.cases) - skipped - bad, 'case')} passed"]
    parts += [f"{bad} failed"] if bad else []
    parts += [f"{skipped} skipped"] if skipped else []
    gpus = [gpu.name for gpu in record.machine.gpus]
    where = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)) or "the CPU"
    logical = record.machine.logical_gpus
    return f"{', '.join(parts)}, on {where}{f' as {logical} devices' if logical else ''}"


def parse_evidence(data: bytes, name: str) -> GivenEvidence | None:
    """The evidence in a file; None where it is a document of another kind, such as a bench.

    Raises UsageError where it is no document of ours, or none about an image.
    """
    try:
        document = json.loads(data)
        if document["kind"] != "test":
            return None
        version = document["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{name} is no test evidence", hint="invoke test writes it") from None
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{name} is evidence of form {version!r}, this reads form {SCHEMA_VERSION}",
            hint="test the image with this checkout",
        )
    try:
        record = Evidence.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{name} is no test evidence: {where}: {first['msg']}", hint="invoke test writes it"
        ) from None
    image = record.subject.image_id
    if image is None or not is_digest(image):
        raise UsageError(f"{name} is about no image", hint="a bare binary can't be published")
    return GivenEvidence(name=name, image=image, record=record)


def fitting(
    evidence: Collection[GivenEvidence], digests: Collection[str], *, tier: Tier, what: str
) -> GivenEvidence:
    """The evidence that ``what`` passed the tests of ``tier``; ``digests`` are those of this very image.

    Raises CheckFailed where there is none, and where a case has failed: a later run does not undo it.
    """
    own = [one for one in evidence if one.image in digests]
    for one in own:
        if one.has_failed:
            raise CheckFailed(
                f"{what} did not pass its tests: {one.name}: {one.failure}",
                hint="mend the image and test it again, or take the file away if the test was at fault",
            )
    for one in own:
        if one.tier == tier and one.failure is None:
            return one
    others = (
        f"; {own[0].name} is of the {own[0].tier} tier: {own[0].failure or own[0].summary}" if own else ""
    )
    raise CheckFailed(
        f"there is no evidence that {what} passed the tests of the {tier} tier{others}",
        hint="invoke test makes it, --evidence names it; --allow-untested publishes without, and says so",
    )
