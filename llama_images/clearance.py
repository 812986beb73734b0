"""The test evidence that publishing needs: which image, tested how, with which result. Pure.

`invoke test` writes the document. Of all that it says, three things decide whether an image may be published.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llama_images.errors import CheckFailed, UsageError
from llama_images.oci import is_digest

TIER: Final = "gpu"
"""The tests that an image for GPUs must have passed."""
CPU_TIER: Final = "cpu"
"""The tests of an image that has nothing for GPUs."""

PASSED: Final = "passed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One evidence document."""

    name: str
    """Its file, for messages."""
    image: str
    """Digest of the image that was tested: of its configuration in the engine, or of its manifest."""
    tier: str
    verdict: str
    document: Mapping[str, Any]


def parse_evidence(data: bytes, name: str) -> Evidence:
    """The evidence in a file. Raises UsageError where it is none."""
    try:
        document = json.loads(data)
        image, tier, verdict = document["image"]["digest"], document["tier"], document["verdict"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{name} is no test evidence: it needs image.digest, tier and verdict",
            hint="invoke test writes it",
        ) from None
    if not (isinstance(image, str) and is_digest(image)):
        raise UsageError(f"{name}: image.digest is no digest", hint="invoke test writes it")
    return Evidence(name=name, image=image, tier=str(tier), verdict=str(verdict), document=document)


def fitting(evidence: Collection[Evidence], digests: Collection[str], *, tier: str, what: str) -> Evidence:
    """The evidence that ``what`` passed the tests of ``tier``; ``digests`` are those of this very image.

    Raises CheckFailed where there is none, and where one says that it failed: a later run does not undo it.
    """
    own = [one for one in evidence if one.image in digests]
    for one in own:
        if one.verdict != PASSED:
            raise CheckFailed(
                f"{what} did not pass its tests: {one.name} says {one.verdict}",
                hint="mend the image and test it again; evidence of another image may lie beside it",
            )
    for one in own:
        if one.tier == tier:
            return one
    others = f"; that of {own[0].name} is of the {own[0].tier} tier" if own else ""
    raise CheckFailed(
        f"there is no evidence that {what} passed the tests of the {tier} tier{others}",
        hint="invoke test makes it, --evidence names it; --allow-untested publishes without, and says so",
    )
