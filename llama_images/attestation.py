"""Statements about an image, in the forms that others read: in-toto statements in Sigstore's bundles. Pure.

A statement says of an image, by its digest, what it holds (CycloneDX), how it was made (SLSA provenance) or
how it was tested. It is signed as a DSSE envelope, wrapped in a Sigstore bundle, and attached to the image's
manifest as cosign does it (its bundle specification), so that cosign and others find and read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from llama_images import oci
from llama_images.oci import Descriptor, Manifest

STATEMENT: Final = "https://in-toto.io/Statement/v1"
PAYLOAD: Final = "application/vnd.in-toto+json"
BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"

SBOM: Final = "https://cyclonedx.org/bom"
PROVENANCE: Final = "https://slsa.dev/provenance/v1"
EVIDENCE: Final = "https://llama-images.github.io/evidence/v1"

KINDS: Final[Mapping[str, str]] = {
    SBOM: "bill of materials",
    PROVENANCE: "provenance",
    EVIDENCE: "test evidence",
}
"""What is attached to every image, but for evidence of one that was published untested."""

_CONTENT: Final = "dev.sigstore.bundle.content"
_PREDICATE: Final = "dev.sigstore.bundle.predicateType"


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """What is said about one image."""

    name: str
    """What the image is called, without a registry: ``llama-diffusion:0.1.0-cuda13.0-sm120``."""
    digest: str
    """Of the image's manifest, for one platform."""
    predicate_type: str
    predicate: Mapping[str, Any]

    def encode(self) -> bytes:
        """The bytes that are signed."""
        return oci.encode(
            {
                "_type": STATEMENT,
                "subject": [{"name": self.name, "digest": {"sha256": self.digest.removeprefix("sha256:")}}],
                "predicateType": self.predicate_type,
                "predicate": dict(self.predicate),
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """The statement in a signed payload; None where it is none, or about several things."""
        try:
            value = json.loads(data)
            (subject,) = value["subject"]
            if value["_type"] != STATEMENT or not isinstance(value["predicate"], dict):
                return None
            return cls(
                name=str(subject["name"]),
                digest=f"sha256:{subject['digest']['sha256']}",
                predicate_type=str(value["predicateType"]),
                predicate=value["predicate"],
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def attached(subject: Descriptor, bundle: bytes, predicate_type: str) -> Manifest:
    """The manifest that attaches a bundle to an image; without a time, so that it is always the same one."""
    return oci.attachment(
        subject,
        Descriptor.of(bundle, BUNDLE),
        artifact_type=BUNDLE,
        annotations={_CONTENT: "dsse-envelope", _PREDICATE: predicate_type},
    )


def may_hold(referrer: Descriptor, predicate_type: str) -> bool:
    """Whether something attached may be a statement of that kind: its own note, where it has one, decides."""
    return (
        referrer.artifact_type == BUNDLE
        and referrer.annotations.get(_PREDICATE, predicate_type) == predicate_type
    )
