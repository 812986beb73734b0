"""Takes out of a text what tells who wrote it and where: for a report that others read. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SHORTEST: Final = 3
"""Names of fewer characters stand inside of too many words."""

_SHAPES: Final = (
    # Credentials, before hosts: user and password stand in front of one.
    (re.compile(r"(?<=//)[^/@\s]+@"), ""),
    (re.compile(r"\b(?:hf|ghp|gho|github_pat|glpat|sk)[_-][A-Za-z0-9_-]{16,}"), "(token)"),
    (re.compile(r"\b(GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"), r"\1-(uuid)"),
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w"), "(address)"),
    (re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE), "(hardware address)"),
    (re.compile(r"\b(no_proxy=)\S+", re.IGNORECASE), r"\1(hosts)"),
    # Not part of a longer dotted number, as in a version.
    (re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"), "(host)"),
)
_URL_HOST: Final = re.compile(r"(?<=://)(\[[0-9A-Fa-f:]+\]|[^\s/:?#]+)")
_OWN_FOLDER: Final = re.compile(r"(?<![\w.-])/(home|Users|root|mnt|media)(?:/[^/\s'\",:]+)?(?=[/\s'\",:]|$)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Self:
    """What is to be taken out of a text by name."""

    home: str
    user: str
    host: str


def redacted(text: str, of: Self, *, public: Iterable[str] = ()) -> str:
    """The text without names of the person, the machine, its network and its cards; ``public`` hosts stay."""
    known = set(public)
    for pattern, instead in _SHAPES:
        text = pattern.sub(instead, text)
    # A host of an address may stand elsewhere without it; the longest first, since one may end in another.
    hosts = {host for host in _URL_HOST.findall(text) if host not in known and host != "(host)"}
    for host in sorted(hosts, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "(host)", text)
    if len(of.home) >= SHORTEST:
        text = re.sub(rf"(?<![\w.-]){re.escape(of.home.rstrip('/'))}(?![\w.-])", "~", text)
    text = _OWN_FOLDER.sub(r"/\1/(name)", text)
    for name, instead in ((of.user, "(user)"), (of.host, "(host)"), (of.host.partition(".")[0], "(host)")):
        if len(name) >= SHORTEST:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", instead, text)
    return text
