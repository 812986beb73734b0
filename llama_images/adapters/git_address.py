"""The address of a repository, and apart from it the password that a user wrote into it.

A password in an address would stand on git's command line, in the configuration of a work tree and in
messages. So git is given the address without it, and asks for it by a credential helper: a line of
configuration in the environment, which reads the password there and is asked for that one host alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from llama_images.errors import UsageError

_HTTP: Final = frozenset({"http", "https"})
_USER: Final = "LLAMA_IMAGES_GIT_USER"
_PASSWORD: Final = "LLAMA_IMAGES_GIT_PASSWORD"  # noqa: S105 - the variable's name
# git asks with "get", and tells later with "store" or "erase" whether the password was right.
_HELPER: Final = (
    f'!f() {{ test "$1" != get || printf \'username=%s\\npassword=%s\\n\' "${_USER}" "${_PASSWORD}"; }}; f'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a repository is, in two parts."""

    url: str
    """What git is given; holds no password."""
    label: str
    """What the user is shown; holds no user either."""
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables for a git that may ask the repository; empty where the address held no user."""


def read_address(url: str) -> Address:
    """Take user and password out of a URL.

    Raises UsageError, which does not repeat the URL, where it is no valid one, and for a password that git
    has no use for: over ssh:// and git://.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        host = None
    if host is None:
        raise UsageError(
            "the URL of the repository is not valid",
            hint="A '/', '#', '?', '@' or ':' in a user or a password is written %2F, %23, %3F, %40, %3A.",
        )
    userinfo, _, place = parts.netloc.rpartition("@")
    label = urlunsplit(parts._replace(netloc=place))
    if parts.scheme not in _HTTP:
        if ":" in userinfo:
            raise UsageError(
                f"{label}: {parts.scheme}:// takes no password from an address",
                hint="Leave it out; ssh has its keys." if parts.scheme == "ssh" else "Leave it out.",
            )
        return Address(url=url, label=label)
    if not userinfo:
        return Address(url=label, label=label)
    user, _, password = (unquote(word) for word in userinfo.partition(":"))
    if any(character < " " for character in user + password):
        raise UsageError(f"{label}: a user or a password with a control character can't be used")
    credentials = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"credential.{parts.scheme}://{place}.helper",
        "GIT_CONFIG_VALUE_0": _HELPER,
        _USER: user,
        _PASSWORD: password,
    }
    return Address(url=label, label=label, credentials=credentials)


def without_user(text: str) -> str:
    """What may be no valid URL, without all that could be a user and a password in it."""
    scheme, separator, rest = text.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else text


def credentials_for(repo: str | None) -> Mapping[str, str]:
    """The variables of what a user gave as repository; empty for a path, and where nothing was given."""
    return read_address(repo).credentials if repo and repo.partition("://")[0] in _HTTP else {}
