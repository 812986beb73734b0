"""A small upstream with a pin, commits after it, and a series made for it. No test is in here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from llama_images.adapters.git import GitSourceTree
from llama_images.adapters.git_program import Git
from llama_images.adapters.patch_files import load_series
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.series_trees import GitSeriesTrees
from llama_images.adapters.series_work import GitSeriesWork
from llama_images.matrix import Source
from llama_images.patch_format import format_patch
from llama_images.patch_series import PatchSeries
from llama_images.ports import Programs
from tests.patches.seen import DATE, NOWHERE, Lines

PATHS = ("CMakeLists.txt", "src")
BODY = "What: a.\n\nWhy: b,\n#1 at the start of a line is no comment.\n\nProven: c.\n\nUpstream status: no."
LINES = [f"line {number}" for number in range(1, 61)]

IDENTITY = {
    "GIT_AUTHOR_NAME": "Some One",
    "GIT_AUTHOR_EMAIL": "one@example.org",
    "GIT_COMMITTER_NAME": "Some One",
    "GIT_COMMITTER_EMAIL": "one@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_EDITOR": ":",
}


def git(folder: Path, *words: str, stdin: str | None = None) -> str:
    """Standard output of a git command that does, as a user would run it."""
    finished = subprocess.run(
        ["git", "-C", str(folder), *words],
        check=True,
        capture_output=True,
        text=True,
        input=stdin,
        env=os.environ | IDENTITY,
    )
    return finished.stdout.strip()


def changed(**lines: str) -> str:
    """src/a.cpp with some lines replaced: ``line10="ten"``; an empty text removes one."""
    new = [lines.get(line.replace(" ", ""), line) for line in LINES]
    return "".join(f"{line}\n" for line in new if line)


class Upstream:
    """A repository whose second commit is the pin. Branches of it are made by ``commit``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        git(path, "init", "--quiet", "--initial-branch=main")
        for message in ("one", "two"):
            self.write(
                {"CMakeLists.txt": "project(x)\n", "src/a.cpp": changed(), "src/b.cpp": message + "\n"}
            )
            self.write({"tests/t.cpp": "t\n", ".gitignore": "/build*\n"})
            self.write({".gitattributes": "*.cpp text eol=crlf diff=cpp\n"})
            git(path, "-c", "core.autocrlf=false", "add", "--all")
            git(path, "commit", "--quiet", "--message", message)
        self.pin = git(path, "rev-parse", "HEAD")

    def write(self, files: Mapping[str, str | None]) -> None:
        for name, text in files.items():
            file = self.path / name
            if text is None:
                file.unlink()
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode())

    def commit(self, branch: str, files: Mapping[str, str | None]) -> str:
        """A commit on the pin, on a branch of its own."""
        git(self.path, "checkout", "--quiet", "-B", branch, self.pin)
        self.write(files)
        git(self.path, "add", "--all")
        git(self.path, "commit", "--quiet", "--message", branch)
        return git(self.path, "rev-parse", "HEAD")

    def source(self, **other: object) -> Source:
        values: dict[str, object] = {
            "name": "small",
            "repository": NOWHERE,
            "ref": "main",
            "commit": self.pin,
            "tree": git(self.path, "rev-parse", f"{self.pin}^{{tree}}"),
            "version": "0.1.0",
            "build_number": 2,
            "date": DATE,
            "paths": PATHS,
            "series": "small",
        }
        return Source.model_validate(values | other)

    def series(self, *steps: Mapping[str, str | None]) -> PatchSeries:
        """One patch for each step; a step gives whole files as they are after it."""
        git(self.path, "checkout", "--quiet", "--detach", self.pin)
        patches = []
        for number, step in enumerate(steps, 1):
            self.write(step)
            git(self.path, "add", "--all")
            git(self.path, "commit", "--quiet", "--message", "step")
            # Read elsewhere: the attributes give C++ another heading for hunks.
            words = (
                "-c",
                "core.attributesFile=/dev/null",
                "diff-tree",
                "-p",
                "--no-renames",
                "HEAD~1",
                "HEAD",
            )
            diff = git(self.path.parent, f"--git-dir={self.path / '.git'}", "--work-tree=.", *words) + "\n"
            patches.append(format_patch(number, f"a: step {number}", BODY, diff))
        return PatchSeries(name="small", patches=tuple(patches))

    @staticmethod
    def series_at(folder: str) -> PatchSeries:
        """A series that was written to a folder."""
        return load_series(Path(folder))


def upstream_ahead(folder: Path) -> Upstream:
    """An upstream that went on: on ``clear`` a change of line 10 still fits, on ``conflict`` it does not."""
    made = Upstream(folder)
    made.commit("clear", {"src/a.cpp": "new\n" + changed()})
    made.commit("conflict", {"src/a.cpp": changed(line10="zehn")})
    return made


class Bench:
    """The adapters on a cache of their own."""

    def __init__(self, upstream: Upstream, cache: Path, programs: Programs | None = None) -> None:
        self.upstream = upstream
        self.source = upstream.source()
        self.repo = str(upstream.path)
        self.cache = cache
        self.lines = Lines()
        programs = programs or SystemPrograms()
        runner = Git(programs, cache / "source", os.environ)
        self.source_tree = source_tree = GitSourceTree(programs, cache, self.lines, Path("patches"))
        self.trees = GitSeriesTrees(runner, source_tree, self.lines)
        self.work = GitSeriesWork(runner, source_tree, cache, self.lines)

    @property
    def path(self) -> Path:
        """The work tree of a rebase."""
        return self.work.path(self.source)

    def with_programs(self, programs: Programs) -> Bench:
        """The same cache, other programs."""
        return Bench(self.upstream, self.cache, programs)
