"""Values of the OCI image specification: descriptors, manifests, indexes. Pure: values in, bytes out.

Documents are written with sorted keys and without spaces, so that equal values are equal bytes and have equal
digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Self

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP: Final = f"{LAYER}+gzip"
EMPTY: Final = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"

_SHAPES: Final[Mapping[str, str]] = {
    INDEX: "manifests",
    DOCKER_LIST: "manifests",
    MANIFEST: "config",
    DOCKER_MANIFEST: "config",
}
"""What each kind of manifest has."""

EMPTY_JSON: Final = b"{}"
"""The content of an empty configuration."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class NotOci(ValueError):  # noqa: N818 - says what it is
    """A document that is not of the form that it should have; the text says what is missing."""


def digest_of(data: bytes) -> str:
    """``sha256:…`` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether a reference is a digest; only SHA-256 is in use."""
    return _DIGEST.fullmatch(text) is not None


def encode(document: Mapping[str, Any]) -> bytes:
    """The document as bytes, always the same ones."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptor:
    """What one document says of another: kind, digest, size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: str | None = None
    """``linux/amd64``; in an index only."""
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes, media_type: str) -> Self:
        """The descriptor of some bytes."""
        return cls(media_type=media_type, digest=digest_of(data), size=len(data))

    @classmethod
    def parse(cls, value: Any) -> Self:
        """The descriptor in a document. Raises NotOci."""
        try:
            digest, size = value["digest"], value["size"]
            platform = value.get("platform")
            annotations = value.get("annotations") or {}
            if not (is_digest(digest) and type(size) is int and size >= 0 and isinstance(annotations, dict)):
                raise NotOci(f"{value!r} is no descriptor")
            name = None if platform is None else f"{platform['os']}/{platform['architecture']}"
            return cls(
                media_type=str(value["mediaType"]),
                digest=digest,
                size=size,
                platform=name,
                artifact_type=value.get("artifactType"),
                annotations={str(key): str(text) for key, text in annotations.items()},
            )
        except (KeyError, TypeError, AttributeError):
            raise NotOci(f"{value!r} is no descriptor") from None

    def as_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.platform is not None:
            system, _, architecture = self.platform.partition("/")
            value["platform"] = {"os": system, "architecture": architecture}
        if self.artifact_type is not None:
            value["artifactType"] = self.artifact_type
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A manifest or an index: what a registry holds under a tag or a digest."""

    digest: str
    """``sha256:…``, of the bytes."""
    media_type: str
    content: Mapping[str, Any]
    raw: bytes

    @classmethod
    def made(cls, content: Mapping[str, Any]) -> Self:
        """The manifest of that content, which names its own media type."""
        raw = encode(content)
        return cls(digest=digest_of(raw), media_type=content["mediaType"], content=content, raw=raw)

    @classmethod
    def read(cls, raw: bytes, stated: str = "") -> Self:
        """The manifest or index in a registry's answer; ``stated`` is the media type that came with it.

        Raises NotOci where it could be read as two things: where types or shape disagree, one reader takes it
        for an image, the next for an index of others.
        """
        try:
            content = json.loads(raw)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise NotOci("it is no JSON object")
        own = content.get("mediaType")
        media_type = stated if stated in _SHAPES or not isinstance(own, str) else own
        if own is not None and own != media_type:
            raise NotOci(f"it calls itself {own!r}, and came as {stated}")
        shape = {"manifests"} & content.keys() or {"config"} & content.keys()
        if "manifests" in content and {"config", "layers"} & content.keys():
            raise NotOci("it is an index and an image at once")
        if media_type in _SHAPES and shape != {_SHAPES[media_type]}:
            raise NotOci(f"it is no {media_type}: it has no {_SHAPES[media_type]}")
        return cls(digest=digest_of(raw), media_type=media_type, content=content, raw=raw)

    @property
    def descriptor(self) -> Descriptor:
        """The manifest as another document names it, with its own annotations and kind of artifact."""
        config = self.content.get("config")
        kind = self.content.get("artifactType") or (
            config.get("mediaType") if "subject" in self.content and isinstance(config, dict) else None
        )
        return Descriptor(
            media_type=self.media_type,
            digest=self.digest,
            size=len(self.raw),
            artifact_type=kind,
            annotations=self.annotations,
        )

    @property
    def is_index(self) -> bool:
        return "manifests" in self.content

    @property
    def annotations(self) -> Mapping[str, str]:
        """None where it has them in another form."""
        values = self.content.get("annotations")
        return {str(key): str(text) for key, text in values.items()} if isinstance(values, dict) else {}

    @property
    def entries(self) -> tuple[Descriptor, ...]:
        """What an index names. Raises NotOci where it is none."""
        return _descriptors(self.content.get("manifests"))

    @property
    def config(self) -> Descriptor:
        """The configuration of an image. Raises NotOci where this is none."""
        return Descriptor.parse(self.content.get("config"))

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The layers of an image, lowest first. Raises NotOci where this is none."""
        return _descriptors(self.content.get("layers"))


def _descriptors(values: Any) -> tuple[Descriptor, ...]:
    if not isinstance(values, list):
        raise NotOci("a list of descriptors is missing")
    return tuple(Descriptor.parse(value) for value in values)


def image_manifest(
    config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str]
) -> Manifest:
    """The manifest of an image."""
    return Manifest.made(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.as_json(),
            "layers": [layer.as_json() for layer in layers],
            "annotations": dict(annotations),
        }
    )


def attachment(
    subject: Descriptor, content: Descriptor, *, artifact_type: str, annotations: Mapping[str, str]
) -> Manifest:
    """The manifest of something that belongs to ``subject``: a referrer.

    Its configuration is the empty one (``EMPTY_JSON``), which must be pushed too.
    """
    return Manifest.made(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": Descriptor.of(EMPTY_JSON, EMPTY).as_json(),
            "layers": [content.as_json()],
            "subject": replace(subject, annotations={}, platform=None, artifact_type=None).as_json(),
            "annotations": dict(annotations),
        }
    )


def index(entries: Iterable[Descriptor], annotations: Mapping[str, str] | None = None) -> Manifest:
    """An index of these entries, images by platform first."""
    ordered = sorted(entries, key=lambda entry: (entry.platform is None, entry.platform or "", entry.digest))
    content: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [entry.as_json() for entry in ordered],
    }
    if annotations:
        content["annotations"] = dict(annotations)
    return Manifest.made(content)


def referrers_tag(digest: str) -> str:
    """The tag that holds the referrers of a digest in a registry without the referrers API.

    See the OCI distribution specification, "Referrers Tag Schema".
    """
    return digest.replace(":", "-")


# What a configuration says about the image itself. The rest (host names, the engine's version, its cache's
# notes) tells of one build on one machine.
_CONFIG_KEYS: Final = ("architecture", "os", "variant", "rootfs")
_RUNTIME_KEYS: Final = (
    *("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes"),
    *("WorkingDir", "Labels", "StopSignal", "Healthcheck", "Shell"),
)


def published_config(
    config: Mapping[str, Any], created: datetime, without_labels: Collection[str] = ()
) -> bytes:
    """An engine's configuration of an image as it is published: dated by its source, not by its build.

    Equal images have equal configurations, whenever and wherever they were built. ``without_labels`` are
    labels that tell of the build. Raises NotOci where ``config`` is no image's.
    """
    stamp = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        result: dict[str, Any] = {key: config[key] for key in _CONFIG_KEYS if config.get(key)}
        runtime = config.get("config") or {}
        result["config"] = {key: runtime[key] for key in _RUNTIME_KEYS if runtime.get(key)}
        if "Labels" in result["config"]:
            labels = result["config"]["Labels"].items()
            result["config"]["Labels"] = {key: text for key, text in labels if key not in without_labels}
        if result["config"].get("WorkingDir") == "/":
            del result["config"]["WorkingDir"]  # the default, which some engines write out
        result["created"] = stamp
        result["history"] = [
            {
                "created": stamp,
                **{key: entry[key] for key in ("created_by", "comment", "empty_layer") if entry.get(key)},
            }
            for entry in config.get("history") or []
        ]
        missing = [key for key in ("architecture", "os", "rootfs") if key not in result]
    except (KeyError, TypeError, AttributeError):
        raise NotOci("this is no configuration of an image") from None
    if missing:
        raise NotOci(f"the image's configuration has no {missing[0]}")
    return encode(result)
