"""The life of the carried series, on the pinned commit and on later ones of the pull request."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from llama_images.adapters.git import GitSourceTree
from llama_images.adapters.git_program import Git
from llama_images.adapters.patch_files import PatchFolders, load_series
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.series_trees import GitSeriesTrees
from llama_images.adapters.series_work import GitSeriesWork
from llama_images.errors import UsageError
from llama_images.matrix import load_matrix
from llama_images.patch_format import format_patch
from llama_images.patch_series import PatchSeries
from llama_images.series_ports import Conflict
from llama_images.workflows.series import export_series
from tests.patches.seen import Lines
from tests.patches.series_repo import BODY, git

ROOT = Path(__file__).resolve().parents[2]
MATRIX = load_matrix(ROOT / "matrix.yaml")
SOURCE = MATRIX.sources[MATRIX.defaults.source]
PATCHES = ROOT / "patches"

LATER = {
    "4a6735f1cf0594250958bcc839267696c7b998a4": "drops the validators",
    "ef5e2dcce81881ffad262576d073f25ca6c1ad50": "chunked causal prefill",
    "73d820aff0a55539981edd55ddce1784e5330f8a": "the sampler on ROCm and MUSA, master merged",
    "c3fb97241295c196e09b783e705e84b96cd1bd74": "tool calling, master merged again",
}
"""Commits of the pull request after the pin."""


def repository() -> str | None:
    """Where the pin is near: the given clone, else the mirror of an earlier build, else upstream."""
    cache = Path(os.environ.get("LLAMA_IMAGES_CACHE") or platformdirs.user_cache_dir("llama-images"))
    mirror = cache / "source" / f"{SOURCE.name}.git"
    return os.environ.get("LLAMA_CPP_REPO") or (str(mirror) if mirror.is_dir() else None)


@pytest.fixture
def work(tmp_path: Path, cache: Path) -> GitSeriesWork:
    """The work trees of a cache of their own; the mirror of the pin is shared."""
    trees = adapters(cache)[0]
    return GitSeriesWork(git_of(cache), trees, tmp_path / "work", Lines())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def git_of(cache: Path) -> Git:
    return Git(SystemPrograms(), cache / "source", os.environ)


def adapters(cache: Path) -> tuple[GitSourceTree, GitSeriesTrees]:
    trees = GitSourceTree(SystemPrograms(), cache, Lines(), PATCHES)
    return trees, GitSeriesTrees(git_of(cache), trees, Lines())


def held(commit: str) -> str:
    """The clone that holds a later commit, or a skip that says why there is none."""
    repo = os.environ.get("LLAMA_CPP_REPO")
    if not repo:
        pytest.skip("LLAMA_CPP_REPO names no clone that could hold later commits")
    path = Path(repo)
    git_dir = path / ".git" if (path / ".git").exists() else path
    asks = ["git", f"--git-dir={git_dir}", "cat-file", "-e", f"{commit}^{{commit}}"]
    quiet = os.environ | {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
    if subprocess.run(asks, capture_output=True, env=quiet, check=False).returncode != 0:
        pytest.skip(f"the clone does not hold {commit[:12]}")
    return repo


@pytest.mark.source
def test_the_committed_series_is_what_an_export_writes(work: GitSeriesWork, tmp_path: Path) -> None:
    shutil.copytree(PATCHES, tmp_path / "patches")
    folder = tmp_path / "patches" / SOURCE.series
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    series = load_series(folder)
    rebase = work.start(SOURCE, series, repo=repository(), onto=SOURCE.commit)
    assert rebase.kept == tuple(patch.name for patch in series.patches)
    for _ in range(2):
        done = export_series(work, PatchFolders(tmp_path / "patches"), SOURCE, work_tree=None, base=None)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert not done.is_changed


@pytest.mark.source
def test_check_and_status_print_their_result_on_standard_output(tmp_path: Path) -> None:
    environment = os.environ | {"LLAMA_IMAGES_CACHE": str(tmp_path), "LLAMA_CPP_REPO": repository() or ""}
    series = load_series(PATCHES / SOURCE.series)
    for words, state in (
        (["patches.check", "--no-compile", "--json"], ("passed", None)),
        (["patches.status", "--onto", SOURCE.commit, "--json"], ("state", "applies")),
    ):
        argv = [sys.executable, "-m", "invoke", *words]
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        rows = found if isinstance(found, list) else found["patches"]
        assert [row["name"] for row in rows] == [patch.name for patch in series.patches]
        assert {row[state[0]] for row in rows} == {state[1]}
        done = subprocess.run(
            argv[:-1], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert all(patch.name in done.stdout for patch in series.patches)


@pytest.mark.parametrize("commit", LATER, ids=[commit[:9] for commit in LATER])
def test_the_status_against_a_later_commit_is_what_its_rebase_finds(
    work: GitSeriesWork, cache: Path, commit: str
) -> None:
    repo = held(commit)
    series = load_series(PATCHES / SOURCE.series)
    status = adapters(cache)[1].compare(SOURCE, series, repo=repo, onto=commit[:9])
    assert status.onto.commit == commit
    assert [one.name for one in status.patches] == [patch.name for patch in series.patches]
    rebase = work.start(SOURCE, series, repo=repo, onto=commit)
    assert rebase.onto.build_number is not None
    assert rebase.onto.build_number > SOURCE.build_number
    stops = [one for one in status.patches if one.state == "conflicts"]
    if stops:
        assert rebase.conflict == Conflict(name=stops[0].name, files=stops[0].details)
    else:
        absorbed = tuple(one.name for one in status.patches if one.state == "absorbed")
        assert (rebase.conflict, rebase.absorbed) == (None, absorbed)


HEADER = "include/llama.h"


def test_a_conflict_with_a_later_commit_is_mended_exported_and_given_up(
    work: GitSeriesWork, tmp_path: Path
) -> None:
    commit = "ef5e2dcce81881ffad262576d073f25ca6c1ad50"
    repo = held(commit)
    path = Path(repo)
    where = path / ".git" if (path / ".git").exists() else path
    old, new = (
        git(tmp_path, f"--git-dir={where}", "show", f"{each}:{HEADER}").split("\n")
        for each in (SOURCE.commit, commit)
    )
    # One patch changes a line that the later commit changes too; one that goes before it is out of its way.
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    at = next(i for tag, i, _, _, _ in matcher.get_opcodes() if tag == "replace")
    middle = ["// first", *old]
    last = list(middle)
    last[at + 1] += " // changed"
    patches = []
    for number, (before, after) in enumerate(((old, middle), (middle, last)), 1):
        diff = difflib.unified_diff(before, after, f"a/{HEADER}", f"b/{HEADER}", lineterm="")
        text = "\n".join([f"diff --git a/{HEADER} b/{HEADER}", *diff]) + "\n"
        patches.append(format_patch(number, f"llama: step {number}", BODY, text))
    series = PatchSeries(name=SOURCE.series, patches=tuple(patches))

    found = work.start(SOURCE, series, repo=repo, onto=commit[:12])
    assert found.conflict == Conflict(name="0002-llama-step-2.patch", files=(HEADER,))
    with pytest.raises(UsageError, match="conflicts are left"):
        work.resume(SOURCE, skip=False)
    file = found.path / HEADER
    file.write_text("\n".join(["// first", *new[:1], "// changed", *new[1:]]) + "\n")
    done = work.resume(SOURCE, skip=False)
    assert (done.kept, done.conflict) == (tuple(patch.name for patch in patches), None)
    exported = export_series(work, PatchFolders(tmp_path / "patches"), SOURCE, work_tree=None, base=None)
    assert exported.base == commit
    assert [patch.name for patch in exported.series.patches] == [patch.name for patch in patches]
    assert exported.series.patches[1].added == 1
    assert work.abort(SOURCE) == done.path
    assert not done.path.exists()
