"""What adapters that speak HTTP share: why a request failed, and which hosts no proxy reaches."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from typing import Final

import requests

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
"""Hosts that are this machine: a proxy can't reach them."""

_PATIENCE: Final = 8.0
"""Seconds that a host gets to answer."""


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine itself."""
    if host is None or host in LOOPBACK:
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and every other one inside of it: requests and urllib3 keep theirs among the arguments."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        waiting += [other for other in inner if isinstance(other, BaseException)]


def reason(error: requests.RequestException) -> str:
    """Why a request failed, in a few words; requests wraps it in pages of names."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return _tls_reason(error)
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    return type(error).__name__


class Web:
    """Implements ``ports.Reach``, through the proxies and with the certificates of the environment."""

    def why_not(self, url: str) -> str | None:
        """Ask for the headers alone, see ``ports.Reach.why_not``."""
        try:
            requests.head(url, timeout=_PATIENCE, allow_redirects=False)
        except requests.RequestException as error:
            return reason(error)
        return None


_TLS_REASONS: Final = {
    9: "its TLS certificate is not valid yet by this machine's clock",
    10: "its TLS certificate has expired by this machine's clock",
    62: "its TLS certificate is for another host",
    64: "its TLS certificate is for another address",
}
"""X509_V_ERR_… of OpenSSL."""


def _tls_reason(error: requests.exceptions.SSLError) -> str:
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _TLS_REASONS.get(cause.verify_code, "its TLS certificate is not trusted")
    return "its TLS certificate is not trusted" if "CERTIFICATE" in str(error).upper() else "no TLS there"
