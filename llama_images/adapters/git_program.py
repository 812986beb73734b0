"""git as this package runs it: which git, which settings, which environment."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from llama_images.adapters.git_messages import last_words, means_full_disk
from llama_images.errors import OutsideError
from llama_images.ports import Finished, Programs

MINIMUM_GIT: Final = (2, 32)
"""The first git with GIT_CONFIG_GLOBAL (its release notes)."""

_LOCAL_SECONDS: Final = 300.0
_PROTOCOLS: Final = "file:git:http:https:ssh"

# safe.directory: the user names the repository, and only its objects are read; no hook or setting of it runs.
# uploadpack: a repository on this machine is read by this very git, which then may send single objects and
# leave out others, so the large files that some mirrors lack are never asked for.
_CONFIGURATION: Final = """\
[safe]
\tdirectory = *
[core]
\thooksPath = /dev/null
\tattributesFile = /dev/null
[gc]
\tauto = 0
[maintenance]
\tauto = false
[uploadpack]
\tallowFilter = true
\tallowAnySHA1InWant = true
"""


class DamagedError(Exception):
    """Objects that a repository of the cache should hold can't be read. Never leaves the adapters."""


def git_version(programs: Programs, *, minimum: tuple[int, ...] = MINIMUM_GIT) -> tuple[int, ...]:
    """Version of the git on PATH, such as (2, 39, 5).

    Raises OutsideError, with the command that installs it, where git is missing or older than ``minimum``.
    """
    needed = ".".join(map(str, minimum))
    hint = f"Install git {needed} or newer: apt-get install git"
    if not programs.find("git"):
        raise OutsideError("git is not installed", hint=hint)
    text = programs.run(["git", "--version"], timeout=_LOCAL_SECONDS).text
    match = re.search(r"([0-9]+)\.([0-9]+)(?:\.([0-9]+))?", text)
    if match is None:
        raise OutsideError(f"git --version says {text.strip()!r}, which names no version", hint=hint)
    version = tuple(int(part) for part in match.groups() if part is not None)
    if version < minimum:
        raise OutsideError(f"git {match[0]} is too old, {needed} is needed", hint=hint)
    return version


def describe_git(programs: Programs) -> str:
    """One line for a report on this machine: "git 2.39.5 (/usr/bin/git)". Raises as ``git_version`` does."""
    version = git_version(programs)
    return f"git {'.'.join(map(str, version))} ({programs.find('git')[0]})"


class Git:
    """Runs git on named repositories, out of reach of the user's and the system's git settings.

    ``home`` is the folder where the only configuration in force is kept. Proxy and certificate settings of
    the environment stay in force.
    """

    def __init__(self, programs: Programs, home: Path, environ: Mapping[str, str]) -> None:
        self._programs = programs
        self._home = home
        self._environ = environ

    def check_version(self, minimum: tuple[int, ...] = MINIMUM_GIT) -> None:
        """Raises OutsideError where git is missing or too old."""
        git_version(self._programs, minimum=minimum)

    def run(
        self,
        arguments: Sequence[str],
        *,
        git_dir: Path | None = None,
        work_tree: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout: float = _LOCAL_SECONDS,
        on_line: Callable[[str], None] | None = None,
    ) -> Finished:
        """Run to the end and return the result, whatever its exit code; a full disk is OutsideError.

        With ``work_tree`` it runs there.
        """
        where = [f"--git-dir={git_dir}"] if git_dir is not None else []
        environment = self._environment()
        if work_tree is not None:
            environment["GIT_WORK_TREE"] = str(work_tree)
        environment |= env or {}
        finished = self._programs.run(
            ["git", *where, *arguments],
            cwd=work_tree or self._home,
            env=environment,
            stdin=stdin,
            timeout=timeout,
            on_line=on_line,
        )
        if finished.returncode != 0 and means_full_disk(finished.error_text):
            raise full_disk(self._home)
        return finished

    def read(
        self,
        arguments: Sequence[str],
        git_dir: Path,
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
    ) -> bytes:
        """Output of a command on objects that should be there; raises DamagedError where it fails."""
        finished = self.run(arguments, git_dir=git_dir, env=env, stdin=stdin)
        if finished.returncode != 0:
            raise DamagedError(last_words(finished.error_text))
        return finished.stdout

    def _environment(self) -> dict[str, str]:
        environment = {
            "GIT_CONFIG_GLOBAL": str(self._configuration()),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "0",
            "GIT_CONFIG_PARAMETERS": "",
            "GIT_WORK_TREE": str(self._home),  # most commands use none; within a hook there is another
            "GIT_NAMESPACE": "",
            "GIT_ALLOW_PROTOCOL": _PROTOCOLS,
            "GIT_ASKPASS": "",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
            "GIT_HTTP_LOW_SPEED_TIME": "60",
            "GIT_SSH_COMMAND": self._environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
            "LC_ALL": "C",
            "LANGUAGE": "",
        }
        bundle = self._environ.get("SSL_CERT_FILE")
        if bundle and not self._environ.get("GIT_SSL_CAINFO"):
            environment["GIT_SSL_CAINFO"] = bundle  # a git built with GnuTLS does not look at SSL_CERT_FILE
        return environment

    def _configuration(self) -> Path:
        path = self._home / "gitconfig"
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == _CONFIGURATION:
                return path
        self._home.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self._home, prefix=".gitconfig.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(_CONFIGURATION)
        Path(temporary).replace(path)
        return path


def full_disk(folder: Path) -> OutsideError:
    """The sentence for a disk or quota that is used up."""
    return OutsideError(f"the disk that holds {folder} is full", hint="Free some space and run it again.")
