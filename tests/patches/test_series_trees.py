"""The series tried on commits, by real git on a small upstream; the pin is not needed."""

from __future__ import annotations

import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_images.errors import CheckFailed, OutsideError, UsageError
from llama_images.patch_series import PatchSeries, make_series
from tests.patches.seen import NOWHERE
from tests.patches.series_repo import LINES, Bench, Upstream, changed, git

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

NEW = "src/new.cpp"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    return Upstream(tmp_path_factory.mktemp("up stream") / "repo")


@pytest.fixture(scope="module")
def series(upstream: Upstream) -> PatchSeries:
    """Two hunks and a new file; then a line that the first patch has written."""
    return upstream.series(
        {"src/a.cpp": changed(line10="ten", line40="forty"), NEW: "new\n"},
        {"src/a.cpp": changed(line10="TEN", line40="forty")},
    )


@pytest.fixture
def bench(upstream: Upstream, tmp_path: Path) -> Bench:
    return Bench(upstream, tmp_path / "the cache")


# --- on the pin ---


def test_every_patch_gives_a_tree_and_the_diff_that_made_it(
    bench: Bench, upstream: Upstream, series: PatchSeries
) -> None:
    with bench.trees.applied(bench.source, series, repo=bench.repo) as applied:
        first, second = applied.patches
    assert (first.problem, second.problem) == (None, None)
    assert first.tree == git(upstream.path, "rev-parse", "HEAD~1^{tree}")
    assert second.tree == git(upstream.path, "rev-parse", "HEAD^{tree}")
    # Attributes of the source have no say: with diff=cpp the heading of the second hunk would be another.
    hunks = [line for line in first.diff.splitlines() if line.startswith("@@")]
    assert hunks == ["@@ -7,7 +7,7 @@ line 6", "@@ -37,7 +37,7 @@ line 36", "@@ -0,0 +1 @@"]
    assert (first.moved, second.moved) == ((), ())


def test_a_hunk_that_does_not_name_its_line_is_told(bench: Bench, series: PatchSeries) -> None:
    text = series.patches[0].text.replace("@@ -37,7 +37,7 @@", "@@ -35,7 +35,7 @@")
    moved = make_series("small", [(series.patches[0].name, text)])
    with bench.trees.applied(bench.source, moved, repo=bench.repo) as applied:
        assert applied.patches[0].moved == ("src/a.cpp, hunk 2: 2 lines further down",)


def test_what_does_not_fit_is_told_and_ends_it(bench: Bench, series: PatchSeries) -> None:
    text = series.patches[0].text.replace("-line 40\n", "-line forty\n")
    bad = make_series(
        "small", [(series.patches[0].name, text), (series.patches[1].name, series.patches[1].text)]
    )
    with bench.trees.applied(bench.source, bad, repo=bench.repo) as applied:
        (only,) = applied.patches
    assert only.tree is None
    assert only.problem == "src/a.cpp, hunk 2 of 2 (@@ -37,7 +37,7 @@)"


def test_white_space_is_judged_by_git(bench: Bench, series: PatchSeries) -> None:
    text = series.patches[0].text.replace("+forty\n", "+ \tforty\n")
    bad = make_series("small", [(series.patches[0].name, text)])
    with bench.trees.applied(bench.source, bad, repo=bench.repo) as applied:
        assert applied.patches[0].problem is not None
        assert "space before tab in indent" in applied.patches[0].problem


def test_a_tree_is_laid_out_and_what_is_right_is_not_touched(
    bench: Bench, series: PatchSeries, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    with bench.trees.applied(bench.source, series, repo=bench.repo) as applied:
        first, second = (step.tree or "" for step in applied.patches)
        assert applied.lay_out(first, folder) == 4
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
            *("CMakeLists.txt", "src/a.cpp", "src/b.cpp", NEW)
        }
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        assert applied.lay_out(second, folder) == 1
        after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        assert [path.name for path in before if before[path] != after[path]] == ["a.cpp"]
        assert (folder / "src/a.cpp").read_text() == changed(line10="TEN", line40="forty")
        # Whatever somebody did there is put right.
        (folder / "src/b.cpp").chmod(0o755)
        (folder / "src/a.cpp").unlink()
        (folder / "src/a.cpp").mkdir()
        (folder / "src/a.cpp/x").write_text("x")
        (folder / NEW).unlink()
        (folder / NEW).symlink_to("/nowhere")
        (folder / "extra/deep").mkdir(parents=True)
        (folder / "extra/deep/file").write_text("x")
        assert applied.lay_out(first, folder) == 5
        assert applied.lay_out(first, folder) == 0
    assert not (folder / "extra").exists()
    assert stat.S_IMODE((folder / "src/b.cpp").stat().st_mode) == 0o644
    assert (folder / NEW).read_text() == "new\n"


# --- on another commit ---

TEN = {"src/a.cpp": changed(line10="ten", line40="forty"), NEW: "new\n"}
MOVED = {"src/a.cpp": "zero\n" + changed()}
MERGED = {"src/a.cpp": changed(line7="seven")}
"""Within the context of the first hunk, not beside the change."""
TAKEN = dict(TEN)
TAKEN_FURTHER = {"src/a.cpp": changed(line10="ten", line40="forty", line1="one"), NEW: "new\n"}
TAKEN_AND_WORKED_ON = {"src/a.cpp": changed(line10="ten", line11="eleven", line40="forty"), NEW: "new\n"}
TAKES_PART = {"src/a.cpp": changed(line10="ten")}
OTHERWISE = {"src/a.cpp": changed(line10="zehn")}


@pytest.mark.parametrize(
    ("files", "first", "second"),
    [
        ({"src/b.cpp": "another\n"}, ("applies", ()), ("applies", ())),
        (
            MOVED,
            ("moved", tuple(f"src/a.cpp, hunk {hunk}: 1 line further down" for hunk in (1, 2))),
            ("moved", ("src/a.cpp, hunk 1: 1 line further down",)),
        ),
        (MERGED, ("merges", ()), ("merges", ())),
        (TAKEN, ("absorbed", ()), ("applies", ())),
        (TAKEN_FURTHER, ("absorbed", ()), ("applies", ())),
        (TAKEN_AND_WORKED_ON, ("conflicts", ("src/a.cpp",)), ("conflicts", ("src/a.cpp",))),
        (TAKES_PART, ("merges", ()), ("applies", ())),
        (OTHERWISE, ("conflicts", ("src/a.cpp",)), ("conflicts", ("src/a.cpp",))),
        ({"src/a.cpp": None}, ("conflicts", ("src/a.cpp",)), ("conflicts", ("src/a.cpp",))),
        (
            {"src/a.cpp": None, "src/renamed.cpp": "".join(f"{line}\n" for line in LINES)},
            ("merges", ()),
            ("merges", ()),
        ),
        ({NEW: "other\n"}, ("conflicts", (NEW,)), ("conflicts", ("src/a.cpp",))),
    ],
    ids=[
        *("elsewhere", "moved", "merged", "taken", "taken-further", "worked-on", "takes-part", "otherwise"),
        *("removed", "renamed", "both-new"),
    ],
)
def test_each_patch_fares_as_a_rebase_would_find_it(
    bench: Bench,
    upstream: Upstream,
    series: PatchSeries,
    files: Mapping[str, str | None],
    first: tuple[str, tuple[str, ...]],
    second: tuple[str, tuple[str, ...]],
) -> None:
    commit = upstream.commit("later", files)
    found = bench.trees.compare(bench.source, series, repo=bench.repo, onto="later")
    assert [(one.state, one.details) for one in found.patches] == [first, second]
    assert [one.name for one in found.patches] == [patch.name for patch in series.patches]
    assert (found.onto.commit, found.onto.name) == (commit, "later")
    assert found.onto.tree == git(upstream.path, "rev-parse", f"{commit}^{{tree}}")
    # The rebase is the judge: it stops at the first conflict, and goes through without one.
    rebase = bench.work.start(bench.source, series, repo=bench.repo, onto=commit)
    conflict = next((one for one in found.patches if one.state == "conflicts"), None)
    if conflict is None:
        assert rebase.conflict is None
        absorbed = tuple(one.name for one in found.patches if one.state == "absorbed")
        assert rebase.absorbed == absorbed
    else:
        assert rebase.conflict is not None
        assert (rebase.conflict.name, rebase.conflict.files) == (conflict.name, conflict.details)


def test_nothing_is_left_behind(
    bench: Bench, upstream: Upstream, series: PatchSeries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.commit("later", OTHERWISE)
    with bench.trees.applied(bench.source, series, repo=bench.repo):
        pass  # the mirror of the pin is made
    before = {path for path in bench.cache.rglob("*") if path.is_file()}
    theirs = {path for path in upstream.path.rglob("*") if path.is_file()}
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    bench.trees.compare(bench.source, series, repo=bench.repo, onto="later")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert {path for path in bench.cache.rglob("*") if path.is_file()} == before
    assert {path for path in upstream.path.rglob("*") if path.is_file()} == theirs


def test_a_path_that_the_commit_has_not_is_told(
    bench: Bench, upstream: Upstream, series: PatchSeries
) -> None:
    upstream.commit("later", {"CMakeLists.txt": None})
    found = bench.trees.compare(bench.source, series, repo=bench.repo, onto="later")
    assert found.onto.missing_paths == ("CMakeLists.txt",)


def test_a_series_that_does_not_apply_to_its_own_pin_is_named(bench: Bench, series: PatchSeries) -> None:
    second = series.patches[1]
    alone = make_series("small", [(second.name, second.text)])
    for run in (bench.trees.compare, bench.work.start):
        with pytest.raises(CheckFailed) as caught:
            run(bench.source, alone, repo=bench.repo, onto="main")
        pin = bench.source.commit[:12]
        assert caught.value.message.startswith(f"patches/small/{second.name} does not apply to {pin}: ")
        assert "sources.small.commit in matrix.yaml is not the one" in str(caught.value.hint)


# --- which commit ---


_UNKNOWN = "no such commit or ref in {repo}: {name}"
_GIVE = "Give a commit, or a ref such as pull/24423/head. A branch"
_FETCH = "If upstream has it: git -C {repo} fetch {url}"


@pytest.mark.parametrize("name", ["{pin}", "{short}", "main", "refs/heads/main", "v1", "pull/7/head"])
def test_a_commit_has_many_names(bench: Bench, upstream: Upstream, series: PatchSeries, name: str) -> None:
    git(upstream.path, "update-ref", "refs/pull/7/head", upstream.pin)
    git(upstream.path, "tag", "--force", "--annotate", "--message=v1", "v1", upstream.pin)
    name = name.format(pin=upstream.pin, short=upstream.pin[:8])
    assert bench.trees.compare(bench.source, series, repo=bench.repo, onto=name).onto.commit == upstream.pin


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("nosuch", _UNKNOWN, _GIVE),
        ("pull/9/head", _UNKNOWN, f"{_FETCH} refs/pull/9/head:refs/pull/9/head"),
        ("refs/heads/x", _UNKNOWN, f"{_FETCH} refs/heads/x:refs/heads/x"),
        ("f" * 40, _UNKNOWN, f"{_FETCH} {'f' * 40}"),
        ("main:src", _UNKNOWN, _GIVE),
        ("--all", "'--all' is no name of a commit", "Give a commit"),
        ("a b", "'a b' is no name of a commit", "Give a commit"),
    ],
)
def test_an_unknown_commit_is_wrong_use(
    bench: Bench, series: PatchSeries, name: str, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        bench.trees.compare(bench.source, series, repo=bench.repo, onto=name)
    assert caught.value.message == message.format(repo=bench.repo, name=name)
    assert str(caught.value.hint).startswith(hint.format(repo=shlex.quote(bench.repo), url=NOWHERE))


@pytest.mark.parametrize("name", ["main", "f" * 40])
def test_without_a_clone_upstream_is_asked(bench: Bench, series: PatchSeries, name: str) -> None:
    with pytest.raises(OutsideError) as caught:
        bench.trees.compare(bench.source, series, repo=None, onto=name)
    assert "https://127.0.0.1:1/llama.cpp" in caught.value.message
    assert "LLAMA_CPP_REPO" in f"{caught.value.message} {caught.value.hint}"


def test_the_pin_needs_nobody_once_it_is_in_the_cache(bench: Bench, series: PatchSeries) -> None:
    with bench.trees.applied(bench.source, series, repo=bench.repo):
        pass
    found = bench.trees.compare(bench.source, series, repo=None, onto=bench.source.commit)
    assert [one.state for one in found.patches] == ["applies", "applies"]


def test_a_clone_that_lacks_a_file_is_no_trouble_unless_it_is_needed(
    upstream: Upstream, series: PatchSeries, tmp_path: Path
) -> None:
    # As mirrors that leave large files out: tests/t.cpp stands for models/.
    upstream.commit("later", MERGED)
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(upstream.path), str(bare))
    for pack in (bare / "objects/pack").glob("*.pack"):
        moved = tmp_path / pack.name
        pack.rename(moved)
        with moved.open("rb") as stream:
            subprocess.run(["git", "-C", bare, "unpack-objects", "-q"], stdin=stream, check=True)
    blob = git(bare, "rev-parse", "later:tests/t.cpp")
    (bare / "objects" / blob[:2] / blob[2:]).unlink()
    bench = Bench(upstream, tmp_path / "cache")
    found = bench.trees.compare(bench.source, series, repo=str(bare), onto="later")
    assert [one.state for one in found.patches] == ["merges", "merges"]
    rebase = bench.work.start(bench.source, series, repo=str(bare), onto="later")
    assert rebase.conflict is None
