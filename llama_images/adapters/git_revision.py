"""A commit by the name that a user gives it, in a clone or in a repository far away."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llama_images.adapters.git_messages import last_words
from llama_images.adapters.git_mirror import NO_NETWORK, REMOTE, FetchError, Origin, fetch, unfetched
from llama_images.adapters.git_program import Git
from llama_images.adapters.git_scratch import Scratch
from llama_images.errors import OutsideError, UsageError
from llama_images.ports import Reporter
from llama_images.series_ports import Revision

if TYPE_CHECKING:
    from llama_images.matrix import Source

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_ASK_SECONDS: Final = 120.0
_HINT: Final = "Give a commit, or a ref such as pull/24423/head."
_NO_ANSWER: Final = "Check the network and the proxy, or give a clone: --repo PATH or LLAMA_CPP_REPO=PATH"


def remote_commit(git: Git, origin: Origin, ref: str, *, hint: str) -> str | None:
    """The commit that ``ref`` names in a repository far away, an annotated tag's commit; ``None`` without it.

    Raises OutsideError, with ``hint``, where the repository does not answer.
    """
    words = ["ls-remote", "--", origin.address, ref, f"{ref}^{{}}"]
    finished = git.run(words, env=origin.credentials, timeout=_ASK_SECONDS)
    if finished.returncode != 0:
        raise OutsideError(
            f"{origin.label} can't be asked for {ref}: {last_words(finished.error_text)}",
            hint=hint,
        )
    lines = (line.partition("\t") for line in finished.text.splitlines())
    names = {name: commit for commit, _, name in lines}
    # git's own order (gitrevisions): the name as it is, below refs, a tag, a branch.
    for prefix in ("", "refs/", "refs/tags/", "refs/heads/"):
        for full in (f"{prefix}{ref}^{{}}", f"{prefix}{ref}"):
            if _COMMIT.fullmatch(names.get(full, "")):
                return names[full]
    return None


def find_commit(git: Git, source: Source, origin: Origin, name: str) -> str:
    """The hash of the commit that a user names; the pin needs no repository.

    Raises UsageError where there is no such commit, OutsideError where nobody can be asked.
    """
    if not name or name.startswith("-") or any(character <= " " for character in name):
        raise UsageError(f"{name!r} is no name of a commit", hint=_HINT)
    if re.fullmatch(r"[0-9a-f]{7,40}", name) and source.commit.startswith(name):
        return source.commit
    if origin.git_dir is None:
        if _COMMIT.fullmatch(name):
            return name  # the fetch will tell
        found = remote_commit(git, origin, name, hint=_NO_ANSWER)
        if found is None:
            hint = f"{_HINT} A repository that is not on this machine wants all 40 digits of a commit."
            raise UsageError(f"{origin.label} has no {name}", hint=hint)
        return found
    words = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"]
    asked = git.run(words, git_dir=origin.git_dir, env=NO_NETWORK)
    commit = asked.text.strip()
    if asked.returncode != 0 or not _COMMIT.fullmatch(commit):
        wanted = name if _COMMIT.fullmatch(name) else f"{name}:refs/{name.removeprefix('refs/')}"
        raise UsageError(
            f"{origin.label} has no {name}",
            hint=f"Bring it there: git -C {origin.label} fetch {source.repository} {wanted}",
        )
    return commit


def bring_commit(
    git: Git, source: Source, origin: Origin, commit: str, git_dir: Path, reporter: Reporter
) -> None:
    """Fetch a commit and its trees, without history or contents, unless the repository holds it."""
    if git.run(["cat-file", "-e", f"{commit}^{{commit}}"], git_dir=git_dir).returncode == 0:
        return
    label = f"source {source.name}: fetching {commit[:12]} from {origin.label}"
    refspec = f"+{commit}:refs/pins/{commit}"
    with reporter.activity(label) as activity:
        try:
            fetch(git, git_dir, origin, ["--depth=1", REMOTE, refspec], on_line=activity.update)
        except FetchError as error:
            raise unfetched(source, commit, origin, error.failure) from error


def describe(
    git: Git, source: Source, origin: Origin, scratch: Scratch, *, name: str, commit: str, count: bool
) -> Revision:
    """What the matrix would say of a commit that ``scratch`` holds. ``count`` asks for the build number."""
    tree, seconds = scratch.word("log", "-1", "--format=%T %ct", commit).split()
    listed = scratch.read(["ls-tree", "-z", "--name-only", commit, "--", *source.paths])
    present = set(listed.decode("utf-8", "replace").split("\0"))
    return Revision(
        name=name,
        commit=commit,
        tree=tree,
        date=dt.datetime.fromtimestamp(int(seconds), dt.UTC),
        build_number=_build_number(git, source, origin, commit) if count else None,
        missing_paths=tuple(path for path in source.paths if path not in present),
    )


def _build_number(git: Git, source: Source, origin: Origin, commit: str) -> int | None:
    if commit == source.commit:
        return source.build_number
    if origin.git_dir is not None:
        return _count(git, origin.git_dir, commit)
    # The commits alone, without a tree: some megabytes for ten thousand of them.
    with Scratch.temporary(git, borrowed=(), shallow=()) as history:
        wanted = [REMOTE, f"+{commit}:refs/pins/{commit}"]
        try:
            fetch(git, history.git_dir, origin, wanted, leave_out="tree:0", on_line=lambda _line: None)
        except FetchError:
            return None
        return _count(git, history.git_dir, commit)


def _count(git: Git, git_dir: Path, commit: str) -> int | None:
    shallow = git.run(["rev-parse", "--is-shallow-repository"], git_dir=git_dir, env=NO_NETWORK)
    if shallow.text.strip() != "false":
        return None
    counted = git.run(["rev-list", "--count", commit], git_dir=git_dir, env=NO_NETWORK)
    return int(counted.text) if counted.returncode == 0 else None
