"""Repositories that borrow the objects of others, and an index in them to try patches on."""

from __future__ import annotations

import contextlib
import datetime as dt
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from llama_images.adapters.git_messages import last_words, moved_hunks, why_not_applied
from llama_images.adapters.git_mirror import FETCH_SECONDS, REMOTE, Origin
from llama_images.adapters.git_program import DamagedError, Git
from llama_images.errors import OutsideError
from llama_images.patch_format import MAINTAINERS_EMAIL, MAINTAINERS_NAME
from llama_images.patch_series import Patch, PatchSeries, decode_text
from llama_images.ports import Finished
from llama_images.series_ports import AppliedPatch

_UPLOAD_PACK: Final = "git -c uploadpack.allowFilter=true -c uploadpack.allowAnySHA1InWant=true upload-pack"
"""For a repository on this machine: it may then send single objects, and leave out those that it lacks."""

# Everything that settings or attributes could change is said, so that one pair of trees gives one text.
_DIFF: Final = (
    *(
        "diff-tree",
        "-r",
        "-p",
        "--full-index",
        "--no-renames",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
    ),
    *("--unified=3", "--inter-hunk-context=0", "--diff-algorithm=myers", "--indent-heuristic"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--submodule=short"),
)


_ATTRIBUTES: Final = "* -text -ident -filter !diff !merge !whitespace !working-tree-encoding\n"
"""Files are as upstream has them, and read as any text, whatever its own attributes ask for."""


def make_repository(
    git_dir: Path, *, borrowed: Sequence[Path], shallow: Sequence[str], settings: str, origin: Origin | None
) -> None:
    """Make an empty repository that also reads the objects in the folders ``borrowed``.

    The commits ``shallow`` count as having no parents. What is missing is asked of ``origin`` where one is
    given. By hand, as ``git init`` makes it, since that heeds variables of the environment.
    """
    (git_dir / "objects" / "info").mkdir(parents=True)
    (git_dir / "objects" / "pack").mkdir()
    (git_dir / "refs").mkdir()
    (git_dir / "info").mkdir()
    (git_dir / "info" / "attributes").write_text(_ATTRIBUTES, "utf-8")
    (git_dir / "objects" / "info" / "alternates").write_text("".join(f"{one}\n" for one in borrowed), "utf-8")
    if shallow:
        (git_dir / "shallow").write_text("".join(f"{commit}\n" for commit in shallow), "utf-8")
    (git_dir / "HEAD").write_text("ref: refs/heads/series\n", "utf-8")
    config = f"[core]\n\trepositoryformatversion = 0\n{settings}"
    if origin is not None:
        config += f'[remote "{REMOTE}"]\n\turl = {_quoted(origin.address)}\n'
        config += "\tpromisor = true\n\tpartialclonefilter = blob:none\n"
        if origin.git_dir is not None:
            config += f"\tuploadpack = {_quoted(_UPLOAD_PACK)}\n"
    (git_dir / "config").write_text(config, "utf-8")


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class Scratch:
    """A repository of our own with its index. Nothing here touches files of a work tree."""

    def __init__(self, git: Git, git_dir: Path, *, origin: Origin | None) -> None:
        """``origin`` may be asked for what is missing."""
        self._git = git
        self.git_dir = git_dir
        # Not "index": the repository may be that of a work tree, which has its own.
        self._index = {"GIT_INDEX_FILE": str(git_dir / "scratch-index")}
        self._environment = {
            # None for most commands: they would look for attributes in it, and fetch them.
            "GIT_INDEX_FILE": str(git_dir / "no-index"),
            "GIT_OBJECT_DIRECTORY": str(git_dir / "objects"),
            "GIT_NO_LAZY_FETCH": "1" if origin is None else "0",
            **({} if origin is None else origin.credentials),
        }

    @classmethod
    @contextlib.contextmanager
    def temporary(
        cls, git: Git, *, borrowed: Sequence[Path], shallow: Sequence[str], origin: Origin | None = None
    ) -> Iterator[Scratch]:
        """A bare one in the system's folder for temporary files, gone afterwards whatever happens."""
        with tempfile.TemporaryDirectory(prefix="llama-images-") as folder:
            git_dir = Path(folder) / "scratch.git"
            bare = "\tbare = true\n"
            make_repository(git_dir, borrowed=borrowed, shallow=shallow, settings=bare, origin=origin)
            yield cls(git, git_dir, origin=origin)

    def run(
        self,
        arguments: Sequence[str],
        *,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Finished:
        """The result, whatever the exit code."""
        environment = {**self._environment, **(env or {})}
        return self._git.run(
            arguments, git_dir=self.git_dir, env=environment, stdin=stdin, timeout=FETCH_SECONDS
        )

    def read(
        self, arguments: Sequence[str], *, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> bytes:
        """Output of a command on objects that should be there; raises DamagedError where it fails."""
        finished = self.run(arguments, stdin=stdin, env=env)
        if finished.returncode != 0:
            raise DamagedError(last_words(finished.error_text))
        return finished.stdout

    def word(self, *arguments: str) -> str:
        """Output of a command that prints one word."""
        return self.read(arguments).decode().strip()

    def load(self, tree: str) -> None:
        """Make the index that tree."""
        self.read(["read-tree", tree], env=self._index)

    def tree(self) -> str:
        """Hash of the tree that the index is."""
        # --missing-ok: the contents of files that the build does not read were never fetched.
        return self.read(["write-tree", "--missing-ok"], env=self._index).decode().strip()

    def apply(self, patch: Patch, *options: str) -> Finished:
        """Apply a patch to the index; git says on standard error what it found."""
        words = ["apply", "--cached", "--verbose", "-p1", *options, "-"]
        return self.run(words, stdin=patch.text.encode("utf-8"), env=self._index)

    def diff(self, old: str, new: str, *, name: str) -> str:
        """What git says of the step between two trees; ``name`` is what an error calls it."""
        return decode_text(self.read([*_DIFF, old, new]), name=name)

    def commit(self, tree: str, parent: str | None, message: str, *, date: dt.datetime) -> str:
        """Make a commit by the maintainers and return its hash: the same for the same arguments."""
        words = ["commit-tree", tree, *(["-p", parent] if parent is not None else []), "-F", "-"]
        stdin = f"{message}\n".encode()
        return self.read(words, stdin=stdin, env=identity(date)).decode().strip()

    def apply_series(self, series: PatchSeries, base: str) -> tuple[AppliedPatch, ...]:
        """Apply a series on a commit or tree, exactly, up to and with the first patch that does not fit.

        The index holds what came of it.
        """
        self.load(base)
        before = self.word("rev-parse", "--verify", f"{base}^{{tree}}")
        applied = []
        for patch in series.patches:
            finished = self.apply(patch, "--whitespace=error-all")
            if finished.returncode != 0:
                problem = why_not_applied(finished.error_text, patch)
                applied.append(AppliedPatch(name=patch.name, problem=problem))
                break
            tree = self.tree()
            moved = moved_words(finished.error_text)
            diff = self.diff(before, tree, name=patch.name)
            applied.append(AppliedPatch(name=patch.name, problem=None, tree=tree, diff=diff, moved=moved))
            before = tree
        return tuple(applied)


def identity(date: dt.datetime) -> dict[str, str]:
    """Variables that make a commit the maintainers', of that date."""
    when = f"{int(date.timestamp())} +0000"
    return {
        "GIT_AUTHOR_NAME": MAINTAINERS_NAME,
        "GIT_AUTHOR_EMAIL": MAINTAINERS_EMAIL,
        "GIT_AUTHOR_DATE": when,
        "GIT_COMMITTER_NAME": MAINTAINERS_NAME,
        "GIT_COMMITTER_EMAIL": MAINTAINERS_EMAIL,
        "GIT_COMMITTER_DATE": when,
    }


def moved_words(output: str) -> tuple[str, ...]:
    """The hunks that ``git apply --verbose`` had to look for, each in words."""
    return tuple(
        f"{moved.path}, hunk {moved.hunk}: {abs(moved.lines)} line{'' if abs(moved.lines) == 1 else 's'} "
        f"further {'down' if moved.lines > 0 else 'up'}"
        for moved in moved_hunks(output)
    )


def unreadable(git_dir: Path, error: DamagedError) -> OutsideError:
    """The error for a repository in which git could not do what it should."""
    return OutsideError(f"{git_dir}: git can't go on: {error}", hint="Check the disk and the repository.")
