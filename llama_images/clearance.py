"""Which test evidence lets an image be published. Pure.

`invoke test` writes the documents; of all that one says, four things decide here: which image was tested, on
GPUs or without, whether the run came to its end, and whether a case failed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from llama_images.errors import CheckFailed, UsageError
from llama_images.oci import is_digest
from llama_images.words import counted

SCHEMA_VERSION: Final = 1
"""The form of the documents that is read here."""

Tier = Literal["gpu", "cpu"]

_BAD: Final = ("failed", "passed though it should fail")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One evidence document."""

    name: str
    """Its file, for messages."""
    image: str
    """Digest of the image that was tested: of its configuration in the engine, or of a manifest."""
    tier: Tier
    failure: str | None
    """Why it is no evidence that the image is good, in words; None where it is."""
    has_failed: bool
    """Whether a case says that the image is bad, as opposed to nothing."""
    document: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        return self.failure is None

    @property
    def summary(self) -> str:
        """What was run, and on what, in some words."""
        return summary_of(self.document)


def summary_of(document: Mapping[str, Any]) -> str:
    """What an evidence document says, in some words: "31 cases passed, 2 skipped, on 2 × NVIDIA H200"."""
    try:
        statuses = [str(case["status"]) for case in document["cases"]]
        gpus = [str(gpu["name"]) for gpu in document["machine"]["gpus"]]
        logical = document["machine"].get("logical_gpus")
    except (KeyError, TypeError, AttributeError):
        return "in an unknown form"
    skipped, bad = statuses.count("skipped"), sum(status in _BAD for status in statuses)
    parts = [f"{counted(len(statuses) - skipped - bad, 'case')} passed"]
    parts += [f"{bad} failed"] if bad else []
    parts += [f"{skipped} skipped"] if skipped else []
    where = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)) or "the CPU"
    as_if = f" as {logical} devices" if logical else ""
    return f"{', '.join(parts)}, on {where}{as_if}"


def parse_evidence(data: bytes, name: str) -> Evidence | None:
    """The evidence in a file; None where it is a document of another kind, such as a bench.

    Raises UsageError where it is no document of ours, or none about an image.
    """
    try:
        document = json.loads(data)
        if document["kind"] != "test":
            return None
        version, image = document["schema_version"], document["subject"]["image_id"]
        complete = document["complete"]
        statuses = [str(case["status"]) for case in document["cases"]]
        tier: Tier = "gpu" if document["machine"]["gpus"] else "cpu"
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{name} is no test evidence", hint="invoke test writes it") from None
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{name} is evidence of form {version!r}, this reads form {SCHEMA_VERSION}",
            hint="test the image with this checkout",
        )
    if not (isinstance(image, str) and is_digest(image)):
        raise UsageError(f"{name} is about no image", hint="a bare binary can't be published")
    failure = None
    bad = sum(status in _BAD for status in statuses)
    if bad:
        failure = f"{bad} of {counted(len(statuses), 'case')} failed"
    elif complete is not True:
        failure = "the run was broken off"
    elif not any(status != "skipped" for status in statuses):
        failure = "no case was run"
    return Evidence(name=name, image=image, tier=tier, failure=failure, has_failed=bad > 0, document=document)


def fitting(evidence: Collection[Evidence], digests: Collection[str], *, tier: Tier, what: str) -> Evidence:
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
        if one.tier == tier and one.passed:
            return one
    others = (
        f"; {own[0].name} is of the {own[0].tier} tier: {own[0].failure or own[0].summary}" if own else ""
    )
    raise CheckFailed(
        f"there is no evidence that {what} passed the tests of the {tier} tier{others}",
        hint="invoke test makes it, --evidence names it; --allow-untested publishes without, and says so",
    )
