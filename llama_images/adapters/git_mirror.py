"""A bare mirror in the cache that holds one source's commit and the files that the build reads.

It is partial (no other file contents) and shallow (no history). git checks every object's hash when it is
fetched; the commit and its tree are compared with the matrix.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from llama_images.adapters.git_address import read_address, without_user
from llama_images.adapters.git_messages import (
    last_words,
    means_damage,
    means_lacking_commit,
    means_no_repository,
    means_passing_trouble,
)
from llama_images.adapters.git_program import DamagedError, Git
from llama_images.adapters.trees import Blob, blob_id
from llama_images.errors import CheckFailed, OutsideError, UsageError
from llama_images.patch_series import is_within
from llama_images.ports import Reporter

if TYPE_CHECKING:
    from llama_images.matrix import Source

REMOTE: Final = "pin"
"""What a repository of the cache calls the place that its objects come from."""

_REMOTE_SCHEMES: Final = frozenset({"git", "http", "https", "ssh"})
_VARIABLE: Final = "LLAMA_CPP_REPO"
"""Gives the repository where --repo does not."""
_SCP_LIKE: Final = re.compile(r"[^/\s]+:\S+")
FETCH_SECONDS: Final = 3600.0
_TRIES: Final = 3
_PAUSE_SECONDS: Final = 2.0
NO_NETWORK: Final = {"GIT_ALLOW_PROTOCOL": "none"}
"""For questions to a user's own clone: a partial one must not ask its remote for the answer."""
_BARE: Final = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n"
_KILLED: Final = ("*.lock", "refs/pins/*.lock", "objects/tmp_*", "objects/incoming-*", "objects/pack/tmp_*")
"""What a git that was killed leaves in a repository."""


class FetchError(Exception):
    """git fetch failed; ``failure`` is what it said. Never leaves the adapters."""

    def __init__(self, failure: str) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where objects come from."""

    address: str
    """What git is given; holds no password."""
    label: str
    """What the user is shown."""
    git_dir: Path | None
    """The repository itself, where it lies on this machine."""
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables for a git that may ask the repository; see ``git_address.Address``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file of a tree or an index."""

    mode: str
    object_id: str
    path: str


def find_origin(git: Git, source: Source, repo: str | None) -> Origin:
    """Where to fetch from: ``repo`` where one is given, or else the source's own repository.

    A repository on this machine is asked at once. Raises UsageError where there is none, OutsideError where
    it lacks the commit.
    """
    if not repo:
        return _far_away(source.repository)
    wanted = f"Give a clone or bare repository that holds commit {source.commit[:12]}, or its URL."
    if repo.startswith("-") or any(character < " " for character in repo):
        raise UsageError(f"{without_user(repo)!r} is no path or URL of a repository", hint=wanted)
    path = Path(repo).expanduser()
    scheme, separator, _ = repo.partition("://")
    if separator and scheme in _REMOTE_SCHEMES:
        return _far_away(repo)
    if separator and scheme != "file":
        raise UsageError(f"{without_user(repo)}: {scheme}:// is not supported", hint=wanted)
    if separator:
        path = Path(unquote(urlsplit(repo).path))
    elif _SCP_LIKE.fullmatch(repo) and not path.exists():
        return Origin(address=repo, label=repo, git_dir=None)
    path = path.absolute()
    # Who gave no --repo wants to know where the path came from.
    shown = f"{_VARIABLE}={repo}" if os.environ.get(_VARIABLE) == repo else repo
    if not path.exists():
        raise UsageError(f"{shown} does not exist", hint=wanted)
    # Named outright: no repository above the folder is taken for it, and none is refused for its owner.
    git_dir = path / ".git" if (path / ".git").exists() else path
    held = git.run(["cat-file", "-e", f"{source.commit}^{{commit}}"], git_dir=git_dir, env=NO_NETWORK)
    if means_no_repository(held.error_text):
        raise UsageError(f"{shown} is not a git repository", hint=wanted)
    if held.returncode != 0:
        raise OutsideError(
            f"{shown} lacks commit {source.commit}",
            hint=f"Bring it there: git -C {path} fetch {source.repository} {source.commit}",
        )
    return Origin(address=str(path), label=repo, git_dir=git_dir)


def _far_away(url: str) -> Origin:
    """A repository that is asked over the network. Raises UsageError as ``git_address.read_address`` does."""
    address = read_address(url)
    return Origin(address=address.url, label=address.label, git_dir=None, credentials=address.credentials)


def fetch(
    git: Git,
    git_dir: Path,
    origin: Origin,
    arguments: Sequence[str],
    *,
    leave_out: str = "blob:none",
    stdin: bytes | None = None,
    on_line: Callable[[str], None],
) -> None:
    """Fetch into a repository; ``arguments`` name what. Raises FetchError.

    ``leave_out`` is git's filter: the contents of files, or with "tree:0" everything but commits.
    """
    # The remote is named for this one call only: no other command may ask it for an object in silence.
    remote = {"url": origin.address, "promisor": "true", "partialclonefilter": leave_out}
    words = [word for key, value in remote.items() for word in ("-c", f"remote.{REMOTE}.{key}={value}")]
    words += ["-c", "fetch.negotiationAlgorithm=noop"]
    words += ["fetch", "--progress", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]
    words += [f"--filter={leave_out}", *arguments]
    env = {"GIT_ALLOW_PROTOCOL": "file"} if origin.git_dir is not None else origin.credentials
    for attempt in range(1, _TRIES + 1):
        finished = git.run(
            words, git_dir=git_dir, env=env, stdin=stdin, timeout=FETCH_SECONDS, on_line=on_line
        )
        if finished.returncode == 0:
            return
        failure = finished.error_text
        if attempt == _TRIES or origin.git_dir is not None or not means_passing_trouble(failure):
            raise FetchError(failure)
        on_line(f"{last_words(failure)}; trying again")
        time.sleep(_PAUSE_SECONDS * attempt)


def unfetched(source: Source, commit: str, origin: Origin, failure: str) -> OutsideError:
    """The error for a commit that could not be fetched; ``failure`` is what git said."""
    words = last_words(failure)
    clone = f"give a clone that holds {commit[:12]}: --repo PATH or LLAMA_CPP_REPO=PATH"
    if origin.git_dir is not None:
        return OutsideError(
            f"source {source.name}: can't fetch from {origin.label}: {words}", hint=f"Or {clone}"
        )
    if means_lacking_commit(failure):
        problem = f"{origin.label} does not give out commit {commit}"
        return OutsideError(f"source {source.name}: {problem} ({words})", hint=f"Or {clone}")
    # Short on purpose: it is what every user of a closed-off machine sees first.
    return OutsideError(f"source {source.name}: can't reach {origin.label}: {words}", hint=f"G{clone[1:]}")


def tree_entries(listed: bytes, *, name: str) -> list[Entry]:
    """The records of ``git ls-tree -r -z``; CheckFailed where one is no file. ``name`` is the source's."""
    entries: list[Entry] = []
    for record in filter(None, listed.split(b"\0")):
        facts, _, path = record.partition(b"\t")
        mode, kind, object_id = facts.decode().split()
        if kind != "blob":
            raise CheckFailed(f"sources.{name}.paths: {os.fsdecode(path)} is a {kind}, not a file")
        entries.append(Entry(mode=mode, object_id=object_id, path=os.fsdecode(path)))
    return entries


def blobs(stream: bytes, entries: Sequence[Entry]) -> Iterator[Blob]:
    """The files in what ``git cat-file --batch`` prints of these entries, each hashed again.

    Raises DamagedError where one is missing or another than its hash says.
    """
    at = 0
    for entry in entries:
        end = stream.find(b"\n", at)
        words = stream[at:end].split() if end >= 0 else []
        if len(words) != 3:
            raise DamagedError(f"the content of {entry.path} is missing")
        start, size = end + 1, int(words[2])
        content = stream[start : start + size]
        if blob_id(content) != entry.object_id:
            raise DamagedError(f"the content of {entry.path} has another hash")
        at = start + size + 1
        yield Blob(path=entry.path, mode=entry.mode, object_id=entry.object_id, content=content)


class Mirror:
    """The mirror of one source. Callers hold the source's lock."""

    def __init__(self, git: Git, path: Path, source: Source, reporter: Reporter) -> None:
        self._git = git
        self.path = path
        self._source = source
        self._reporter = reporter

    def bring(self, origin: Origin) -> None:
        """Make the mirror hold the commit, its trees, and the contents of the files below ``source.paths``.

        Fetches only what is missing. Raises OutsideError where that can't be had, CheckFailed where the tree
        hash is another than the matrix says or a path is not in the commit, DamagedError where the mirror
        can't be read.
        """
        source = self._source
        short = source.commit[:12]
        is_new = self._prepare()
        try:
            held = self._git.run(["cat-file", "-e", f"{source.commit}^{{commit}}"], git_dir=self.path)
            if held.returncode != 0:
                label = f"source {source.name}: fetching {short} from {origin.label}"
                refspec = f"+{source.commit}:refs/pins/{source.commit}"
                with self._reporter.activity(label) as activity:
                    fetch(
                        self._git, self.path, origin, ["--depth=1", REMOTE, refspec], on_line=activity.update
                    )
            self._check_tree()
            entries = self._listing()
            missing = self._missing(entry.object_id for entry in entries)
            if missing:
                label = f"source {source.name}: fetching {len(missing)} files of {short} from {origin.label}"
                stdin = "".join(f"{object_id}\n" for object_id in missing).encode()
                with self._reporter.activity(label) as activity:
                    try:
                        fetch(
                            self._git,
                            self.path,
                            origin,
                            ["--stdin", REMOTE],
                            stdin=stdin,
                            on_line=activity.update,
                        )
                    except FetchError:
                        self._explain(origin, entries)
                        raise
        except FetchError as error:
            # The repository at hand answers, so what can't be read is more likely the mirror.
            if not is_new and (origin.git_dir is not None or means_damage(error.failure)):
                raise DamagedError(last_words(error.failure)) from error
            raise unfetched(source, source.commit, origin, error.failure) from error

    def _check_tree(self) -> None:
        source = self._source
        tree = self.read(["rev-parse", "--verify", f"{source.commit}^{{tree}}"]).decode().strip()
        if tree != source.tree:
            raise CheckFailed(
                f"sources.{source.name}.tree: commit {source.commit[:12]} has tree {tree}, "
                f"the matrix says {source.tree}",
                hint="One of commit and tree is wrong in the matrix; find out which, and who changed it.",
            )

    def read(
        self, arguments: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: bytes | None = None
    ) -> bytes:
        """Output of a git command on the mirror; raises DamagedError where it fails."""
        return self._git.read(arguments, self.path, env=env, stdin=stdin)

    def contents(self, entries: Sequence[Entry], *, env: Mapping[str, str]) -> Iterator[Blob]:
        """The files with their contents, each hashed again; raises DamagedError where one is wrong."""
        wanted = "".join(f"{entry.object_id}\n" for entry in entries).encode()
        return blobs(self.read(["cat-file", "--batch"], env=env, stdin=wanted), entries)

    def discard(self) -> None:
        """Remove the mirror; the next ``bring`` makes it anew."""
        shutil.rmtree(self.path)

    def _prepare(self) -> bool:
        """Make an empty repository where there is none; returns whether it did."""
        parts = (
            (self.path / "HEAD").is_file(),
            (self.path / "objects").is_dir(),
            (self.path / "refs").is_dir(),
        )
        if not all(parts):
            # What git init --bare makes. By hand, since git init heeds a GIT_WORK_TREE of the environment.
            shutil.rmtree(self.path, ignore_errors=True)
            (self.path / "objects" / "pack").mkdir(parents=True)
            (self.path / "refs").mkdir()
            (self.path / "config").write_text(_BARE, encoding="utf-8")
            (self.path / "HEAD").write_text("ref: refs/heads/none\n", encoding="utf-8")
            return True
        for pattern in _KILLED:
            for stale in self.path.glob(pattern):
                if stale.is_dir():
                    shutil.rmtree(stale)
                else:
                    stale.unlink()
        return False

    def _explain(self, origin: Origin, entries: Sequence[Entry]) -> None:
        """Raise OutsideError with names where a local repository lacks contents that the build reads."""
        if origin.git_dir is None:
            return
        # Unlike cat-file, this lists what is missing without ever asking the clone's own remote for it.
        words = [
            "rev-list",
            "--objects",
            "--no-object-names",
            "--no-walk",
            "--missing=print",
            self._source.commit,
        ]
        listed = self._git.run(words, git_dir=origin.git_dir, env=NO_NETWORK).text.splitlines()
        missing = {line.removeprefix("?") for line in listed if line.startswith("?")}
        names = [entry.path for entry in entries if entry.object_id in missing]
        if names:
            raise OutsideError(
                f"{origin.label} holds commit {self._source.commit[:12]} without the content of {len(names)} "
                f"files that the build reads, {names[0]} among them",
                hint="It is a partial clone: check the commit out there once, or give another clone.",
            )

    def _listing(self) -> list[Entry]:
        """Every file below ``source.paths`` at the pin."""
        source = self._source
        listed = self.read(["ls-tree", "-r", "-z", source.commit, "--", *source.paths])
        entries = tree_entries(listed, name=source.name)
        for root in source.paths:
            if not any(is_within(entry.path, (root,)) for entry in entries):
                raise CheckFailed(
                    f"sources.{source.name}.paths: commit {source.commit[:12]} has no {root}",
                    hint="Correct the path in the matrix.",
                )
        return entries

    def _missing(self, object_ids: Iterable[str]) -> list[str]:
        """Those of the objects that the mirror does not hold, each once."""
        wanted = "".join(f"{object_id}\n" for object_id in dict.fromkeys(object_ids)).encode()
        answer = self.read(["cat-file", "--batch-check"], stdin=wanted).decode()
        return [line.split()[0] for line in answer.splitlines() if line.endswith(" missing")]
