"""The carried patches on the commit that the matrix pins."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import platformdirs
import pytest

from apply_patch import apply, read_hunks
from llama_images.adapters.git import GitSourceTree
from llama_images.adapters.patch_files import load_series
from llama_images.adapters.process import SystemPrograms
from llama_images.errors import CheckFailed
from llama_images.matrix import Source, load_matrix
from llama_images.patch_series import PatchSeries, make_series
from llama_images.ports import CheckedOut
from tests.patches.seen import Lines

ROOT = Path(__file__).resolve().parents[2]
MATRIX = load_matrix(ROOT / "matrix.yaml")

pytestmark = [pytest.mark.source, pytest.mark.parametrize("name", sorted(MATRIX.sources), scope="module")]


@pytest.fixture(scope="module")
def source(name: str) -> Source:
    return MATRIX.sources[name]


@pytest.fixture(scope="module")
def repo(source: Source) -> str | None:
    """Where the commit is near: the given clone, else the mirror of an earlier build, else upstream."""
    cache = Path(os.environ.get("LLAMA_IMAGES_CACHE") or platformdirs.user_cache_dir("llama-images"))
    mirror = cache / "source" / f"{source.name}.git"
    return os.environ.get("LLAMA_CPP_REPO") or (str(mirror) if mirror.is_dir() else None)


@pytest.fixture(scope="module")
def cache(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(source.name)


@pytest.fixture(scope="module")
def reporter(source: Source) -> Lines:
    return Lines()


@pytest.fixture(scope="module")
def tree(cache: Path, reporter: Lines) -> GitSourceTree:
    return GitSourceTree(SystemPrograms(), cache, reporter, ROOT / "patches")


@pytest.fixture(scope="module")
def series(source: Source) -> PatchSeries:
    return load_series(ROOT / "patches" / source.series)


@pytest.fixture(scope="module")
def stock(tree: GitSourceTree, source: Source, repo: str | None) -> CheckedOut:
    return tree.checkout(source, None, repo=repo)


@pytest.fixture(scope="module")
def patched(tree: GitSourceTree, source: Source, series: PatchSeries, repo: str | None) -> CheckedOut:
    return tree.checkout(source, series, repo=repo)


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(each.relative_to(path)): (each.stat().st_mode, each.read_bytes())
        for each in path.rglob("*")
        if each.is_file()
    }


def test_the_tree_is_the_pinned_one_without_models_tests_and_web_interface(
    stock: CheckedOut, source: Source
) -> None:
    assert stock.tree == stock.patched_tree == source.tree
    assert (stock.path / "CMakeLists.txt").is_file()
    assert (stock.path / "examples/diffusion/diffusion-cli.cpp").is_file()
    tops = {each.name for each in stock.path.iterdir()}
    assert tops == {path.split("/")[0] for path in source.paths}
    assert sorted(each.name for each in (stock.path / "tools").iterdir()) == ["CMakeLists.txt"]


def test_the_series_applies_where_it_says(patched: CheckedOut, stock: CheckedOut, reporter: Lines) -> None:
    assert patched.patched_tree != stock.patched_tree
    assert patched.tree == stock.tree
    assert reporter.warnings == []  # no hunk is even a line off


def test_stock_and_patched_differ_in_the_files_that_the_series_names(
    stock: CheckedOut, patched: CheckedOut, series: PatchSeries
) -> None:
    before, after = contents(stock.path), contents(patched.path)
    differing = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert sorted(differing) == list(series.files)


def test_a_second_run_takes_no_time(
    tree: GitSourceTree, patched: CheckedOut, source: Source, series: PatchSeries
) -> None:
    start = time.monotonic()
    assert tree.checkout(source, series) == patched
    assert time.monotonic() - start < 1


def test_a_patch_broken_in_its_last_hunk_is_named(
    tree: GitSourceTree, source: Source, series: PatchSeries, repo: str | None
) -> None:
    last = series.patches[-1]
    change = last.files[-1]
    lines = last.text.split("\n")
    first_context = next(
        at
        for at in range(change.hunks[-1].line, len(lines))
        if lines[at].startswith(" ") and lines[at].strip()
    )
    lines[first_context] += " // no such line"
    broken = make_series(
        series.name,
        [(patch.name, patch.text) for patch in series.patches[:-1]] + [(last.name, "\n".join(lines))],
    )
    with pytest.raises(CheckFailed) as caught:
        tree.checkout(source, broken, repo=repo)
    assert f"patches/{series.name}/{last.name} does not apply" in caught.value.message
    count = len(change.hunks)
    assert f": {change.path}, hunk {count} of {count} ({change.hunks[-1].header})" in caught.value.message


def test_a_damaged_file_is_mended_from_the_mirror_alone(
    tree: GitSourceTree, patched: CheckedOut, source: Source, series: PatchSeries
) -> None:
    target = patched.path / series.files[0]
    before, times = target.read_bytes(), target.stat()
    target.write_bytes(before[:-2] + b"?\n")
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.rmtree(patched.path / "licenses")
    assert tree.checkout(source, series) == patched
    assert target.read_bytes() == before
    assert (patched.path / "licenses").is_dir()


def copied(stock: CheckedOut, patches: Sequence[Path], folder: Path) -> Path:
    """The files of the pinned tree that the patches touch, before any of them."""
    touched = {hunk.path for patch in patches for hunk in read_hunks(patch.read_text(), patch.name)}
    for path in touched:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stock.path / path, folder / path)
    return folder


def test_the_proof_applies_the_series_as_git_does(
    stock: CheckedOut, patched: CheckedOut, series: PatchSeries, source: Source, tmp_path: Path
) -> None:
    patches = [ROOT / "patches" / source.series / patch.name for patch in series.patches]
    apply(copied(stock, patches, tmp_path), patches)
    for path in series.files:
        assert (tmp_path / path).read_bytes() == (patched.path / path).read_bytes(), path


@pytest.mark.parametrize("extra", [None, "broken-copy", "broken-pointer", "broken-kv", "router"])
def test_what_the_proof_puts_on_top_of_the_series_applies(
    stock: CheckedOut, series: PatchSeries, source: Source, tmp_path: Path, extra: str | None
) -> None:
    proof = ROOT / "tests" / "gpu" / "proof"
    carried = [ROOT / "patches" / source.series / patch.name for patch in series.patches]
    patches = [*carried, proof / "debug-logits.patch", *([proof / f"{extra}.patch"] if extra else [])]
    apply(copied(stock, patches, tmp_path), patches)


def test_what_dumps_logits_applies_to_the_pin_alone(stock: CheckedOut, tmp_path: Path) -> None:
    patch = ROOT / "tests" / "gpu" / "proof" / "debug-logits.patch"
    apply(copied(stock, [patch], tmp_path), [patch])
