"""Names of images in registries: ``HOST/NAMESPACE``, with a tag or a digest. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from llama_images.errors import UsageError
from llama_images.oci import is_digest

_HOST: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_REPOSITORY: Final = re.compile(
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
)
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHOWN: Final = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """Where images are published."""

    host: str
    """``ghcr.io``, ``127.0.0.1:5000``."""
    name: str
    """``me/llama-diffusion``: without the host."""

    def __str__(self) -> str:
        return f"{self.host}/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """One image of a repository."""

    repository: Repository
    target: str
    """A tag or a digest; a digest where both were given."""
    tag: str | None
    """The tag that was named, also beside a digest."""

    def __str__(self) -> str:
        return f"{self.repository}{'@' if is_digest(self.target) else ':'}{self.target}"


def parse_repository(text: str) -> Repository:
    """``HOST/NAMESPACE`` as it is given to ``--registry``. Raises UsageError."""
    host, slash, name = text.removeprefix("docker://").partition("/")
    if not slash or not _is_host(host):
        raise UsageError(
            f"{_shown(text)} names no registry",
            hint="HOST/NAMESPACE is needed, as in ghcr.io/me/llama-diffusion",
        )
    if not _REPOSITORY.fullmatch(name):
        raise UsageError(
            f"{_shown(text)}: {_shown(name)} is no name of a repository",
            hint="lower-case letters and digits, joined by . _ - and /; tags come from the matrix",
        )
    return Repository(host=host, name=name)


def parse_reference(text: str) -> Reference:
    """``HOST/NAMESPACE:TAG`` or ``HOST/NAMESPACE@DIGEST``; ``latest`` without either. Raises UsageError."""
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise UsageError(
            f"{_shown(text)}: what follows @ is no digest",
            hint="a digest is sha256: and 64 lower-case hex digits",
        )
    head, slash, last = rest.rpartition("/")
    name, colon, tag = last.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise UsageError(
            f"{_shown(text)}: {_shown(tag)} is no tag", hint="`invoke matrix --json` has the tags"
        )
    repository = parse_repository(f"{head}{slash}{name}")
    named = tag if colon else None if at else "latest"
    return Reference(repository=repository, target=digest or named or "", tag=named)


def _is_host(text: str) -> bool:
    # As Docker tells a host from the first part of a name on its own hub.
    return _HOST.fullmatch(text) is not None and ("." in text or ":" in text or text == "localhost")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
