"""What is published upstream: images in registries, wheels in the package index, refs of a repository.

Registries are asked over the OCI distribution protocol, with an anonymous token where one wants that. The
package index is asked through pip, so that the user's own settings count (index, certificates, proxies,
constraints).
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import docker.auth
import requests

from llama_images.adapters.git_mirror import Origin
from llama_images.adapters.git_program import Git
from llama_images.adapters.git_revision import remote_commit
from llama_images.adapters.network import LOOPBACK, reason
from llama_images.adapters.registry import RegistryClient
from llama_images.errors import OutsideError
from llama_images.pins import PublishedImage, PublishedWheel
from llama_images.platforms import MACHINES, Platform
from llama_images.ports import Finished, Programs

_GLIBC: Final = range(17, 37)
"""Minor versions of glibc 2 that wheels may ask for: up to that of Debian 12, the oldest base."""

_PIP_SECONDS: Final = 1800.0
"""A pip that finds no metadata in the index fetches whole wheels, of up to 450 MB."""

_INDEX_HINT: Final = "check the network, the proxy and the index that pip is set to (pip config list)"


class PublicUpstreams:
    """Implements ``pins.Upstreams``.

    ``cache`` is where git's own configuration is kept; ``environ`` is the environment that ``programs`` start
    from; ``python`` is an interpreter that has pip.
    """

    def __init__(
        self,
        programs: Programs,
        cache: Path,
        environ: Mapping[str, str],
        *,
        python: str = sys.executable,
        timeout: float = 30.0,
    ) -> None:
        self._programs = programs
        self._git = Git(programs, cache / "source", environ)
        self._environ = environ
        self._python = python
        self._timeout = timeout
        self._clients: dict[str, TokenRegistryClient] = {}
        self._tags: dict[tuple[str, str], tuple[str, ...]] = {}

    # --- registries

    def image_tags(self, name: str) -> tuple[str, ...]:
        """Every tag of the image's repository, sorted."""
        address, repository, _ = locate(name)
        key = (address, repository)
        if key not in self._tags:
            self._tags[key] = self._client(address).tags(repository)
        return self._tags[key]

    def image(self, name: str) -> PublishedImage:
        """Digest and platforms of the image; of an index where the tag names one."""
        address, repository, tag = locate(name)
        client = self._client(address)
        manifest = client.manifest(repository, tag)
        try:
            if "manifests" in manifest.content:
                entries = [
                    entry["platform"] for entry in manifest.content["manifests"] if "platform" in entry
                ]
            else:
                digest = manifest.content["config"]["digest"]
                entries = [json.loads(client.blob(repository, digest))]
            platforms = frozenset(f"{entry['os']}/{entry['architecture']}" for entry in entries)
        except (KeyError, TypeError, ValueError):
            raise OutsideError(
                f"what the registry holds as {name} is no image that can be run",
                hint="check the name in the matrix",
            ) from None
        return PublishedImage(name=name, digest=manifest.digest, platforms=platforms)

    def _client(self, address: str) -> TokenRegistryClient:
        if address not in self._clients:
            self._clients[address] = TokenRegistryClient(address, timeout=self._timeout)
        return self._clients[address]

    # --- the package index

    def wheel_versions(self, name: str, platform: Platform) -> tuple[str, ...]:
        """Versions with a wheel for the platform, newest first, as pip lists them."""
        finished = self._pip(["index", "versions", *_for(platform), name])
        versions = listed_versions(finished.text)
        if finished.returncode != 0 or versions is None:
            raise _pip_failed(finished, f"which versions of {name} there are for {platform}")
        return versions

    def wheel(self, name: str, version: str, platform: Platform) -> PublishedWheel:
        """The wheel that pip would install on the platform."""
        with tempfile.TemporaryDirectory(prefix="pins-") as folder:
            options = ["--dry-run", "--quiet", "--ignore-installed", "--no-deps", "--target", folder]
            finished = self._pip(
                ["install", *options, "--report", "-", *_for(platform), f"{name}=={version}"]
            )
        if finished.returncode != 0:
            raise _pip_failed(finished, f"for {name} {version} for {platform}")
        return reported_wheel(finished.text, f"{name} {version}")

    def _pip(self, arguments: Sequence[str]) -> Finished:
        # What would silence pip's answer or contradict the options; the user's other settings stay in force.
        settings = {"PIP_QUIET": "0", "PIP_VERBOSE": "0", "PIP_USER": "0", "PIP_NO_INPUT": "1", "LC_ALL": "C"}
        bundle = self._environ.get("SSL_CERT_FILE")
        if bundle and not self._environ.get("PIP_CERT"):
            settings["PIP_CERT"] = bundle  # pip before 24.2 does not look at SSL_CERT_FILE
        argv = [self._python, "-m", "pip", "--disable-pip-version-check", *arguments]
        return self._programs.run(argv, env=settings, timeout=_PIP_SECONDS)

    # --- the source

    def head(self, repository: str, ref: str) -> str:
        """The commit that ``ref`` names in ``repository`` now; an annotated tag's commit."""
        # No password to keep: the matrix refuses an address with a user.
        origin = Origin(address=repository, label=repository, git_dir=None)
        hint = "check the network, the proxy and the source's repository in the matrix"
        commit = remote_commit(self._git, origin, ref, hint=hint)
        if commit is not None:
            return commit
        raise OutsideError(f"{repository} has no {ref}", hint="check the source's ref in the matrix")


def locate(name: str) -> tuple[str, str, str]:
    """Address of the registry, repository and tag of an image's name, as the engines read it.

    A name without a host lies on the engines' default registry, there below library/ where it has one part.
    """
    image, _, tag = name.rpartition(":")
    host, repository = docker.auth.resolve_repository_name(image)
    if host == docker.auth.INDEX_NAME:
        host = urlsplit(docker.auth.INDEX_URL).netloc
        repository = repository if "/" in repository else f"library/{repository}"
    scheme = "http" if urlsplit(f"//{host}").hostname in LOOPBACK else "https"
    return f"{scheme}://{host}", repository, tag


class TokenRegistryClient(RegistryClient):
    """A registry that may want a token first, which it gives to anybody.

    Fetched as the distribution specification's token authentication says, from the address that the registry
    names, and kept until it is refused.
    """

    def __init__(self, base_url: str, *, timeout: float = 30.0) -> None:
        super().__init__(base_url, timeout=timeout)
        self._token: str | None = None

    def _ask(self, path: str, what: str, *, accept: str = "*/*", stream: bool = False) -> requests.Response:
        headers = {"Accept": accept}
        answer = self._send(f"{self._base}{path}", headers, stream=stream)
        if answer.status_code == 401:
            self._token = self._new_token(answer, what)
            answer = self._send(f"{self._base}{path}", headers, stream=stream)
        if answer.status_code == 404:
            raise OutsideError(f"{self._name} has no {what}", hint="check the name and the tag in the matrix")
        if answer.status_code == 429:
            raise OutsideError(
                f"{self._name} answers no more questions about {what} for now (429)", hint="try again later"
            )
        if answer.status_code in (401, 403):
            raise self._wants_login(what)
        if answer.status_code != 200:
            raise OutsideError(
                f"{self._name} answered {answer.status_code} {answer.reason} for {what}",
                hint="try again later",
            )
        return answer

    def _send(
        self,
        url: str,
        headers: Mapping[str, str],
        parameters: Mapping[str, str] | None = None,
        *,
        stream: bool = False,
    ) -> requests.Response:
        token = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            with requests.Session() as session:
                if urlsplit(url).hostname in LOOPBACK:
                    session.trust_env = False  # a proxy can't reach this machine's loopback
                # requests takes the token off again where it is redirected to another host.
                return session.get(
                    url,
                    headers={**headers, **token},
                    params=parameters,
                    timeout=self._timeout,
                    stream=stream,
                )
        except requests.RequestException as error:
            host = urlsplit(url).netloc
            raise OutsideError(
                f"the registry {host} can't be reached: {reason(error)}",
                hint="check the network and the proxy, or leave the images out: --only wheels --only source",
            ) from None

    def _new_token(self, refusal: requests.Response, what: str) -> str:
        self._token = None
        challenge = parse_challenge(refusal.headers.get("WWW-Authenticate", ""))
        realm = urlsplit(challenge.get("realm", ""))
        # The realm comes from the network: it may name no other kind of address, and no less safe one.
        if not realm.hostname or realm.scheme not in ("https", urlsplit(self._base).scheme):
            raise self._wants_login(what)
        parameters: dict[str, str] = {key: challenge[key] for key in ("service", "scope") if key in challenge}
        answer = self._send(realm.geturl(), {"Accept": "application/json"}, parameters)
        try:
            content = answer.json() if answer.status_code == 200 else {}
            token = content.get("token") or content.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
            raise self._wants_login(what)
        return token

    def _wants_login(self, what: str) -> OutsideError:
        return OutsideError(
            f"{self._name} does not show {what} to everybody",
            hint="log in, pull it, and write the digest that `docker image inspect` shows into the matrix",
        )


def parse_challenge(header: str) -> dict[str, str]:
    """Parameters of a ``Bearer`` challenge (RFC 6750); empty for any other."""
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() != "bearer":
        return {}
    return {key.lower(): value for key, value in re.findall(r'([A-Za-z_]+)="([^"]*)"', rest)}


def _for(platform: Platform) -> list[str]:
    """pip's options for the wheels that run on a platform with the base's glibc."""
    machine = MACHINES[platform]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in reversed(_GLIBC)] + [f"manylinux2014_{machine}"]
    return ["--only-binary=:all:", *(word for tag in tags for word in ("--platform", tag))]


def listed_versions(text: str) -> tuple[str, ...] | None:
    """The versions in what ``pip index versions`` prints; None where it prints none."""
    found = re.search(r"^Available versions: (.+)$", text, re.MULTILINE)
    return None if found is None else tuple(found[1].strip().split(", "))


def reported_wheel(text: str, what: str) -> PublishedWheel:
    """The only wheel of pip's installation report (its format is version 1 of pip's documentation)."""
    try:
        (item,) = json.loads(text)["install"]
        sha256: Any = item["download_info"]["archive_info"]["hashes"]["sha256"]
        yanked = bool(item.get("is_yanked", False))
    except (KeyError, TypeError, ValueError):
        sha256, yanked = None, False
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise OutsideError(
            f"pip reports no sha256 for {what}", hint="run it with pip 22.3 or newer: ./bootstrap"
        )
    return PublishedWheel(sha256=sha256, yanked=yanked)


def _pip_failed(finished: Finished, question: str) -> OutsideError:
    lines = [line.strip() for line in finished.error_text.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return OutsideError(
            "this Python has no pip, which asks the package index", hint="run ./bootstrap again"
        )
    if any("Retrying (" in line for line in lines):
        return OutsideError(f"the package index can't be reached; asked {question}", hint=_INDEX_HINT)
    said = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    words = (said or lines or ["it printed nothing"])[-1][:300]
    return OutsideError(f"pip was asked {question}: {words}", hint=_INDEX_HINT)
