"""Who we are to a registry: Docker's own configuration and credential helpers, as ``docker login`` left them.

Credentials are never arguments of a command and are kept in no file of ours. Their values have no place in a
``repr``, so that no log and no traceback shows one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import docker.auth
import docker.errors

from llama_images.errors import OutsideError, UsageError

_TOKEN_USER: Final = "<token>"  # noqa: S105 - by which helpers say that the secret is an identity token


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """A name and a password, or an identity token in place of both."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown to anyone."""
        return tuple(secret for secret in (self.password, self.identity_token) if secret)


Login = Callable[[str], Credentials | None]
"""A registry's ``host:port`` to the credentials for it; None where nobody has logged in."""


def docker_login(host: str) -> Credentials | None:
    """The credentials that ``docker login HOST`` has stored; DOCKER_CONFIG names another folder.

    Raises UsageError where the configuration can't be read, OutsideError where a credential helper fails.
    """
    name = docker.auth.resolve_index_name(host)
    try:
        configuration = docker.auth.load_config()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a helper that is not installed is an error below
            found: dict[str, Any] | None = configuration.resolve_authconfig(name)
    except docker.errors.DockerException as error:
        if isinstance(error, docker.errors.InvalidConfigFile):
            raise _unreadable(host) from None
        # The helper's own words stay out of the message: they may quote what it was given.
        raise OutsideError(
            f"Docker's credential helper gives nothing for {host}",
            hint=f"is docker-credential-… on PATH, and unlocked? Run docker login {host}",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise _unreadable(host) from None
    if not found:
        return None
    # Entries of the file and answers of a helper are spelled differently.
    entry = {key.lower(): value for key, value in found.items()}
    user, password, token = entry.get("username"), entry.get("password"), entry.get("identitytoken")
    if user == _TOKEN_USER:
        token, user = password, None
    if token:
        return Credentials(identity_token=token)
    return Credentials(user=user, password=password) if user and password else None


def _unreadable(host: str) -> UsageError:
    return UsageError(
        "Docker's configuration holds a login that can't be read", hint=f"run docker login {host} again"
    )


def nobody(_host: str) -> Credentials | None:
    """A login for what needs none."""
    return None
