"""What is published upstream: images in registries, wheels in the package index, refs of a repository.

Registries are asked over the OCI distribution protocol, with an anonymous token where one wants that. The
package index is asked through pip, so that the user's own settings count (index, certificates, proxies,
constraints).
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import docker.auth

from llama_images.adapters.git_mirror import Origin
from llama_images.adapters.git_program import Git
from llama_images.adapters.git_revision import remote_commit
from llama_images.adapters.network import LOOPBACK
from llama_images.adapters.registry_client import RegistryClient
from llama_images.errors import OutsideError, Refused
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
        self._clients: dict[str, RegistryClient] = {}
        self._tags: dict[tuple[str, str], tuple[str, ...]] = {}

    # --- registries

    def image_tags(self, name: str) -> tuple[str, ...]:
        """Every tag of the image's repository, sorted."""
        address, repository, _ = locate(name)
        key = (address, repository)
        if key not in self._tags:
            with _open_to_everybody(address, repository):
                tags = self._client(address).tags(repository)
            if not tags:
                raise OutsideError(
                    f"{urlsplit(address).netloc} has no {repository}", hint="check the name in the matrix"
                )
            self._tags[key] = tags
        return self._tags[key]

    def image(self, name: str) -> PublishedImage:
        """Digest and platforms of the image; of an index where the tag names one."""
        address, repository, tag = locate(name)
        client = self._client(address)
        with _open_to_everybody(address, f"{repository}:{tag}"):
            manifest = client.manifest(repository, tag)
            try:
                if manifest.is_index:
                    entries = [
                        entry["platform"] for entry in manifest.content["manifests"] if "platform" in entry
                    ]
                else:
                    entries = [json.loads(client.blob(repository, manifest.content["config"]["digest"]))]
                platforms = frozenset(f"{entry['os']}/{entry['architecture']}" for entry in entries)
            except (KeyError, TypeError, ValueError):
                raise OutsideError(
                    f"what the registry holds as {name} is no image that can be run",
                    hint="check the name in the matrix",
                ) from None
        return PublishedImage(name=name, digest=manifest.digest, platforms=platforms)

    def _client(self, address: str) -> RegistryClient:
        if address not in self._clients:
            # Without a login: what the matrix names must be there for everybody.
            self._clients[address] = RegistryClient(address, timeout=self._timeout)
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


@contextlib.contextmanager
def _open_to_everybody(address: str, what: str) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        if error.status not in (401, 403):
            raise
        raise OutsideError(
            f"{urlsplit(address).netloc} does not show {what} to everybody",
            hint="log in, pull it, and write the digest that `docker image inspect` shows into the matrix",
        ) from None


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
