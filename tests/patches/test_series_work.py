"""A rebase of the series in a work tree, by real git on a small upstream; the pin is not needed."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from llama_images.errors import Interrupted, LlamaImagesError, OutsideError, UsageError
from llama_images.patch_series import PatchSeries
from llama_images.series_ports import Conflict
from tests.patches.seen import Watched
from tests.patches.series_repo import BODY, IDENTITY, Bench, Upstream, changed, git

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

ROOT = Path(__file__).resolve().parents[2]
A, B, C = "0001-a-step-1.patch", "0002-a-step-2.patch", "0003-a-step-3.patch"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    upstream = Upstream(tmp_path_factory.mktemp("up stream") / "repo")
    upstream.commit("clear", {"CMakeLists.txt": "project(y)\n", "src/a.cpp": "zero\n" + changed()})
    upstream.commit("conflict", {"src/a.cpp": changed(line20="zwanzig")})
    upstream.commit("taken", {"src/a.cpp": changed(line10="ten")})
    upstream.commit("removed", {"src/b.cpp": None})
    return upstream


@pytest.fixture(scope="module")
def series(upstream: Upstream) -> PatchSeries:
    """Line 10; line 20 and a new file; line 30 and another file."""
    return upstream.series(
        {"src/a.cpp": changed(line10="ten")},
        {"src/a.cpp": changed(line10="ten", line20="twenty"), "src/new.cpp": "new\n"},
        {"src/a.cpp": changed(line10="ten", line20="twenty", line30="thirty"), "src/b.cpp": "three\n"},
    )


@pytest.fixture
def bench(upstream: Upstream, tmp_path: Path) -> Bench:
    return Bench(upstream, tmp_path / "the cache")


def refused(run: Callable[[], object]) -> LlamaImagesError:
    with pytest.raises(LlamaImagesError) as caught:
        run()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def head(bench: Bench) -> str:
    return git(bench.path, "rev-parse", "HEAD")


# --- without conflicts ---


def test_every_patch_becomes_a_commit_on_the_new_one(
    bench: Bench, upstream: Upstream, series: PatchSeries
) -> None:
    done = bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    assert (done.kept, done.absorbed, done.skipped, done.conflict) == ((A, B, C), (), (), None)
    assert done.path == bench.path == bench.cache / "series" / "small"
    assert done.onto.commit == git(upstream.path, "rev-parse", "clear")
    assert done.onto.tree == git(upstream.path, "rev-parse", "clear^{tree}")
    assert done.onto.build_number == 3
    assert abs(done.onto.date - dt.datetime.now(dt.UTC)) < dt.timedelta(hours=1)
    assert git(bench.path, "log", "--format=%s", "onto..HEAD").splitlines() == [
        "a: step 3",
        "a: step 2",
        "a: step 1",
    ]
    assert git(bench.path, "log", "-1", "--format=%b") == BODY
    assert git(bench.path, "symbolic-ref", "HEAD") == "refs/heads/series"
    assert git(bench.path, "status", "--porcelain") == ""
    assert (bench.path / "src/a.cpp").read_text().startswith("zero\nline 1\n")
    # Only what the build reads is checked out.
    assert not (bench.path / "tests").exists()


def test_a_second_time_it_is_done_already(bench: Bench, series: PatchSeries) -> None:
    done = bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    inode = (bench.path / "src/a.cpp").stat().st_ino
    assert bench.work.start(bench.source, series, repo=bench.repo, onto="clear") == done
    assert bench.work.resume(bench.source, skip=False) == done
    assert (bench.path / "src/a.cpp").stat().st_ino == inode


def test_the_same_rebase_gives_the_same_commits(
    bench: Bench, upstream: Upstream, series: PatchSeries, tmp_path: Path
) -> None:
    other = Bench(upstream, tmp_path / "other")
    for each in (bench, other):
        each.work.start(each.source, series, repo=each.repo, onto="clear")
    assert head(bench) == head(other)


def test_the_pin_itself_gives_a_work_tree_to_edit(bench: Bench, series: PatchSeries) -> None:
    done = bench.work.start(bench.source, series, repo=bench.repo, onto=bench.source.commit[:10])
    assert done.kept == (A, B, C)
    assert done.onto.build_number == bench.source.build_number
    assert (
        git(bench.path, "rev-parse", "HEAD~3") == bench.source.commit == git(bench.path, "rev-parse", "pin")
    )


def test_what_upstream_has_taken_is_dropped(bench: Bench, series: PatchSeries) -> None:
    done = bench.work.start(bench.source, series, repo=bench.repo, onto="taken")
    assert (done.kept, done.absorbed) == ((B, C), (A,))


def test_a_shallow_clone_can_not_count(upstream: Upstream, series: PatchSeries, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth=2", "--no-single-branch", upstream.path.as_uri(), "shallow")
    bench = Bench(upstream, tmp_path / "cache")
    done = bench.work.start(bench.source, series, repo=str(tmp_path / "shallow"), onto="origin/clear")
    assert done.onto.build_number is None


def test_a_new_rebase_replaces_what_nobody_has_touched(bench: Bench, series: PatchSeries) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    assert bench.work.start(bench.source, series, repo=bench.repo, onto="taken").kept == (B, C)


# --- conflicts ---


def stopped(bench: Bench, series: PatchSeries) -> Path:
    """A rebase that waits at the second patch; returns the file in conflict."""
    found = bench.work.start(bench.source, series, repo=bench.repo, onto="conflict")
    assert found.conflict == Conflict(name=B, files=("src/a.cpp",))
    assert found.kept == (A,)
    return bench.path / "src/a.cpp"


def mend(file: Path, line: str) -> None:
    """Take that line, whatever the two sides say."""
    kept, inside = [], False
    for each in file.read_text().splitlines():
        if each.startswith("<<<<<<< "):
            inside = True
            kept.append(line)
        elif each.startswith(">>>>>>> "):
            inside = False
        elif not inside:
            kept.append(each)
    file.write_text("".join(f"{each}\n" for each in kept))


def test_a_conflict_is_mended_in_the_file_and_goes_on(bench: Bench, series: PatchSeries) -> None:
    file = stopped(bench, series)
    text = file.read_text()
    assert "||||||| " in text  # the base is shown too
    number = text.splitlines().index("<<<<<<< HEAD") + 1
    error = refused(lambda: bench.work.resume(bench.source, skip=False))
    assert error.message == f"{bench.path}: conflicts are left: src/a.cpp:{number}"
    assert isinstance(error, UsageError)
    mend(file, "twenty, zwanzig")
    done = bench.work.resume(bench.source, skip=False)
    assert (done.kept, done.conflict) == ((A, B, C), None)
    assert file.read_text() == changed(line10="ten", line20="twenty, zwanzig", line30="thirty")
    assert (bench.path / "src/new.cpp").read_text() == "new\n"
    # The message is the patch's, with the line that begins with a number sign, and nothing about conflicts.
    assert git(bench.path, "log", "-1", "--format=%B", "HEAD~1") == f"a: step 2\n\n{BODY}"
    assert git(bench.path, "log", "-1", "--format=%an", "HEAD~1") == "llama-diffusion images maintainers"


@pytest.mark.parametrize("committed", [False, True])
def test_markers_do_not_pass_for_a_resolution(bench: Bench, series: PatchSeries, committed: bool) -> None:
    file = stopped(bench, series)
    number = file.read_text().splitlines().index("<<<<<<< HEAD") + 1
    git(bench.path, "add", "--all")
    if committed:
        git(bench.path, "rebase", "--continue")
    error = refused(lambda: bench.work.resume(bench.source, skip=False))
    assert error.message == f"{bench.path}: conflicts are left: src/a.cpp:{number}"
    mend(file, "both")
    if committed:
        git(bench.path, "commit", "--quiet", "--all", "--amend", "--no-edit")
    assert bench.work.resume(bench.source, skip=False).kept == (A, B, C)


def test_a_conflict_may_be_mended_with_git_alone(bench: Bench, series: PatchSeries) -> None:
    mend(stopped(bench, series), "both")
    git(bench.path, "add", "src/a.cpp")
    git(bench.path, "rebase", "--continue")
    done = bench.work.resume(bench.source, skip=False)
    assert done.kept == (A, B, C)
    assert git(bench.path, "log", "-1", "--format=%B", "HEAD~1") == f"a: step 2\n\n{BODY}"


def test_one_patch_may_become_two_commits(bench: Bench, series: PatchSeries) -> None:
    mend(stopped(bench, series), "both")
    git(bench.path, "add", "src/a.cpp")
    git(bench.path, "rebase", "--continue")
    (bench.path / "src/more.cpp").write_text("more\n")
    git(bench.path, "add", "src/more.cpp")
    git(bench.path, "commit", "--quiet", "--message", "a: more")
    assert bench.work.resume(bench.source, skip=False).kept == (A, B, C)
    subjects = git(bench.path, "log", "--format=%s", "onto..HEAD").splitlines()
    assert subjects == ["a: step 3", "a: more", "a: step 2", "a: step 1"]


def test_a_step_that_was_given_up_with_git_is_done_anew(bench: Bench, series: PatchSeries) -> None:
    stopped(bench, series)
    git(bench.path, "rebase", "--abort")
    again = bench.work.resume(bench.source, skip=False)
    assert again.conflict == Conflict(name=B, files=("src/a.cpp",))
    mend(bench.path / "src/a.cpp", "both")
    assert bench.work.resume(bench.source, skip=False).kept == (A, B, C)


def test_a_patch_of_which_nothing_was_kept_is_not_called_absorbed(bench: Bench, series: PatchSeries) -> None:
    stopped(bench, series)
    git(bench.path, "checkout", "--quiet", "HEAD", "--", "src/a.cpp")
    git(bench.path, "rm", "--quiet", "--force", "src/new.cpp")
    done = bench.work.resume(bench.source, skip=False)
    assert (done.kept, done.absorbed, done.emptied) == ((A, C), (), (B,))


def test_a_patch_that_was_skipped_with_git_is_not_called_absorbed(bench: Bench, series: PatchSeries) -> None:
    stopped(bench, series)
    git(bench.path, "rebase", "--skip")
    done = bench.work.resume(bench.source, skip=False)
    assert (done.kept, done.absorbed, done.emptied) == ((A, C), (), (B,))


def test_a_patch_can_be_left_out(bench: Bench, series: PatchSeries) -> None:
    stopped(bench, series)
    done = bench.work.resume(bench.source, skip=True)
    assert (done.kept, done.skipped) == ((A, C), (B,))
    assert not (bench.path / "src/new.cpp").exists()
    assert "no patch waits" in refused(lambda: bench.work.resume(bench.source, skip=True)).message


def test_where_one_side_removed_a_file_git_must_be_told(bench: Bench, series: PatchSeries) -> None:
    found = bench.work.start(bench.source, series, repo=bench.repo, onto="removed")
    assert found.conflict == Conflict(name=C, files=("src/b.cpp",))
    error = refused(lambda: bench.work.resume(bench.source, skip=False))
    assert error.message.endswith("conflicts are left: src/b.cpp (git add or git rm it)")
    git(bench.path, "add", "src/b.cpp")
    assert bench.work.resume(bench.source, skip=False).kept == (A, B, C)


def test_a_file_that_no_commit_has_is_pointed_out(bench: Bench, series: PatchSeries) -> None:
    mend(stopped(bench, series), "both")
    (bench.path / "src/a.cpp.orig").write_text("x")
    bench.work.resume(bench.source, skip=False)
    assert bench.lines.warnings == ["src/a.cpp.orig is not part of any commit (git add puts it into one)"]


def test_a_file_where_a_later_patch_adds_one_is_not_overwritten(bench: Bench, upstream: Upstream) -> None:
    first = {"src/a.cpp": changed(line20="twenty")}
    series = upstream.series(first, first | {"src/added.cpp": "the patch's\n"})
    bench.work.start(bench.source, series, repo=bench.repo, onto="conflict")
    mend(bench.path / "src/a.cpp", "both")
    mine = bench.path / "src" / "added.cpp"
    mine.write_text("mine\n")
    for _ in range(2):
        error = refused(lambda: bench.work.resume(bench.source, skip=False))
        assert f"{B} adds src/added.cpp" in error.message
        assert mine.read_text() == "mine\n"
    mine.rename(bench.path / "src" / "elsewhere.cpp")
    assert bench.work.resume(bench.source, skip=False).kept == (A, B)
    assert mine.read_text() == "the patch's\n"


def test_nothing_that_is_not_committed_is_lost(bench: Bench, series: PatchSeries) -> None:
    mend(stopped(bench, series), "both")
    git(bench.path, "add", "src/a.cpp")
    git(bench.path, "rebase", "--continue")
    (bench.path / "src/new.cpp").write_text("an afterthought\n")
    error = refused(lambda: bench.work.resume(bench.source, skip=False))
    assert error.message == f"{bench.path} has changes that are not committed: src/new.cpp"
    assert (bench.path / "src/new.cpp").read_text() == "an afterthought\n"


@pytest.mark.parametrize("onto", ["conflict", "clear"])
def test_a_rebase_that_waits_is_not_passed_over(bench: Bench, series: PatchSeries, onto: str) -> None:
    stopped(bench, series)
    error = refused(lambda: bench.work.start(bench.source, series, repo=bench.repo, onto=onto))
    assert "is under way" in error.message
    assert "--continue" in str(error.hint)


def test_work_that_is_nowhere_else_is_not_thrown_away(bench: Bench, series: PatchSeries) -> None:
    mend(stopped(bench, series), "both")
    bench.work.resume(bench.source, skip=False)

    def again() -> object:
        return bench.work.start(bench.source, series, repo=bench.repo, onto="clear")

    assert refused(again).message == f"{bench.path} holds work that is not in patches/small"
    with bench.work.commits(bench.source, work_tree=None, base=None) as found:
        found.exported(PatchSeries(name="small"))
    # What was written has been taken back since: patches/ has the old series.
    assert refused(again).message == f"{bench.path} holds work that is not in patches/small"
    with bench.work.commits(bench.source, work_tree=None, base=None) as found:
        found.exported(series)
    again()


@pytest.mark.parametrize("committed", [True, False])
def test_changes_by_hand_are_not_thrown_away(bench: Bench, series: PatchSeries, committed: bool) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    (bench.path / "src/a.cpp").write_text("by hand\n")
    if committed:
        git(bench.path, "commit", "--quiet", "--all", "--message", "by hand")
    error = refused(lambda: bench.work.start(bench.source, series, repo=bench.repo, onto="taken"))
    assert "holds work that is not in patches/small" in error.message
    assert (bench.path / "src/a.cpp").read_text() == "by hand\n"


def test_new_files_are_not_thrown_away(bench: Bench, series: PatchSeries) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    build = bench.path / "build" / "x.o"  # upstream wants it ignored
    build.parent.mkdir()
    build.write_text("x")
    mine = bench.path / "src" / "mine.cpp"
    mine.write_text("mine\n")
    error = refused(lambda: bench.work.start(bench.source, series, repo=bench.repo, onto="taken"))
    assert error.message == f"{bench.path} holds files that are in no commit: src/mine.cpp"
    assert mine.read_text() == "mine\n"
    mine.unlink()
    assert bench.work.start(bench.source, series, repo=bench.repo, onto="taken").kept == (B, C)


@pytest.mark.parametrize("where", ["branch", "stash"])
def test_commits_beside_the_series_are_not_thrown_away(bench: Bench, series: PatchSeries, where: str) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    (bench.path / "src/a.cpp").write_text("tried\n")
    if where == "branch":
        git(bench.path, "checkout", "--quiet", "-b", "experiment")
        git(bench.path, "commit", "--quiet", "--all", "--message", "tried")
        git(bench.path, "checkout", "--quiet", "series")
    else:
        git(bench.path, "stash")
    error = refused(lambda: bench.work.start(bench.source, series, repo=bench.repo, onto="taken"))
    assert "holds commits that are not in patches/small" in error.message
    assert git(bench.path, "show", f"{'experiment' if where == 'branch' else 'stash'}:src/a.cpp") == "tried"


def test_a_rebase_of_the_users_own_is_left_alone(bench: Bench, series: PatchSeries) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    before = head(bench)
    (bench.path / "src/a.cpp").write_text("by hand\n")
    git(bench.path, "commit", "--quiet", "--all", "--message", "by hand")
    with pytest.raises(subprocess.CalledProcessError):
        git(bench.path, "rebase", "--quiet", "--onto", "HEAD~3", "HEAD~1")
    for run in (
        lambda: bench.work.resume(bench.source, skip=False),
        lambda: bench.work.start(bench.source, series, repo=bench.repo, onto="clear"),
    ):
        assert "a rebase of your own is under way" in refused(run).message
    git(bench.path, "rebase", "--abort")
    assert git(bench.path, "rev-parse", "series~1") == before


def test_abort_removes_it_all(bench: Bench, series: PatchSeries) -> None:
    stopped(bench, series)
    assert bench.work.abort(bench.source) == bench.path
    assert [path.name for path in (bench.cache / "series").iterdir()] == ["small.lock"]
    for command in (
        lambda: bench.work.abort(bench.source),
        lambda: bench.work.resume(bench.source, skip=False),
    ):
        assert "--onto" in str(refused(command).hint)


# --- interrupted ---


class At:
    """Raises KeyboardInterrupt at the nth command that has this word."""

    def __init__(self, word: str, nth: int) -> None:
        self._word = word
        self._left = nth

    def __call__(self, argv: Sequence[str]) -> None:
        if self._word in argv:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def undisturbed(upstream: Upstream, series: PatchSeries, tmp_path_factory: pytest.TempPathFactory) -> str:
    bench = Bench(upstream, tmp_path_factory.mktemp("undisturbed"))
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    return head(bench)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_ctrl_c_in_a_step_leaves_what_the_same_command_goes_on_with(
    bench: Bench, series: PatchSeries, undisturbed: str, moment: str, nth: int
) -> None:
    programs = Watched(**{moment: At("rebase", nth)})
    with pytest.raises(KeyboardInterrupt) as caught:
        bench.with_programs(programs).work.start(bench.source, series, repo=bench.repo, onto="clear")
    assert not isinstance(caught.value, Interrupted)  # something is there, and stays
    done = bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    assert done.kept == (A, B, C)
    assert head(bench) == undisturbed
    assert bench.lines.lines == [f"{bench.path}: going on with the rebase that was interrupted"]


@pytest.mark.parametrize("word", ["fetch", "apply", "commit-tree", "update-ref", "checkout"])
def test_ctrl_c_before_the_first_step_leaves_nothing(
    bench: Bench, series: PatchSeries, undisturbed: str, word: str
) -> None:
    with bench.trees.applied(bench.source, series, repo=bench.repo):
        pass
    interrupted = bench.with_programs(Watched(after=At(word, 1)))
    with pytest.raises(Interrupted, match="there is no work tree yet; the same command begins it again"):
        interrupted.work.start(bench.source, series, repo=bench.repo, onto="clear")
    assert [path.name for path in (bench.cache / "series").iterdir()] == ["small.lock"]
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    assert head(bench) == undisturbed


def test_ctrl_c_while_a_conflict_is_taken_over(bench: Bench, series: PatchSeries) -> None:
    mend(stopped(bench, series), "both")
    with pytest.raises(KeyboardInterrupt):
        bench.with_programs(Watched(after=At("--continue", 1))).work.resume(bench.source, skip=False)
    assert bench.work.resume(bench.source, skip=False).kept == (A, B, C)


@pytest.mark.parametrize("moment", ["first rename", "second rename", "deletion"])
def test_ctrl_c_while_one_work_tree_replaces_another(
    bench: Bench, series: PatchSeries, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    before = head(bench)
    rename, remove = Path.rename, shutil.rmtree
    renames = 0

    def renamed(path: Path, target: Path) -> Path:
        nonlocal renames
        done = rename(path, target)
        renames += path.parent == bench.cache / "series"
        if renames == {"first rename": 1, "second rename": 2}.get(moment):
            raise KeyboardInterrupt
        return done

    def removed(path: Path, ignore_errors: bool = False) -> None:
        if path.name == ".small.gone":
            remove(path / ".git")
            raise KeyboardInterrupt
        remove(path, ignore_errors)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", renamed)
        patched.setattr(shutil, "rmtree", removed if moment == "deletion" else remove)
        with pytest.raises(KeyboardInterrupt):
            bench.work.start(bench.source, series, repo=bench.repo, onto="taken")
    done = bench.work.resume(bench.source, skip=False)
    if moment == "first rename":
        assert (head(bench), done.kept) == (before, (A, B, C))
    else:
        assert done.kept == (B, C)
    assert {path.name for path in (bench.cache / "series").iterdir()} == {"small", "small.lock"}


def test_ctrl_c_while_a_work_tree_is_removed(
    bench: Bench, series: PatchSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    remove = shutil.rmtree

    def removed(path: Path, ignore_errors: bool = False) -> None:
        remove(path / ".git")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", removed)
        with pytest.raises(KeyboardInterrupt):
            bench.work.abort(bench.source)
    assert bench.work.start(bench.source, series, repo=bench.repo, onto="clear").kept == (A, B, C)
    assert {path.name for path in (bench.cache / "series").iterdir()} == {"small", "small.lock"}


CHILD = """\
import sys
from pathlib import Path
from tests.patches.series_repo import Bench, Upstream

upstream = Upstream.__new__(Upstream)
upstream.path, upstream.pin = Path(sys.argv[1]), sys.argv[2]
bench = Bench(upstream, Path(sys.argv[3]))
series = upstream.series_at(sys.argv[4])
bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
"""

SHIM = """\
#!/bin/sh
# A git that is in the middle of the second step: files half written, its own notes and locks lying about.
case " $* " in *" --onto "*)
    [ -e "$MARKER.first" ] || { touch "$MARKER.first"; exec "$REAL_GIT" "$@"; }
    cd "$GIT_WORK_TREE" || exit 9
    mkdir .git/rebase-merge
    echo half > src/a.cpp
    echo half > src/new.cpp
    touch .git/index.lock .git/MERGE_MSG "$MARKER"
    exec sleep 60
esac
exec "$REAL_GIT" "$@"
"""


def test_a_signal_in_the_middle_of_git(
    bench: Bench, upstream: Upstream, series: PatchSeries, undisturbed: str, tmp_path: Path
) -> None:
    patches = tmp_path / "patches" / "small"
    patches.mkdir(parents=True)
    (patches / "series").write_text("".join(f"{patch.name}\n" for patch in series.patches))
    for patch in series.patches:
        (patches / patch.name).write_text(patch.text)
    shim = tmp_path / "bin" / "git"
    shim.parent.mkdir()
    shim.write_text(SHIM)
    shim.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}",
        "REAL_GIT": shutil.which("git") or "",
        "MARKER": str(tmp_path / "marker"),
        "PYTHONPATH": str(ROOT),
    }
    argv = [sys.executable, "-c", CHILD, str(upstream.path), upstream.pin, str(bench.cache), str(patches)]
    child = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "marker").exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert (bench.path / "src/a.cpp").read_text() == "half\n"
    done = bench.work.resume(bench.source, skip=False)
    assert done.kept == (A, B, C)
    assert head(bench) == undisturbed


# --- what is refused ---


def test_an_unknown_commit_leaves_nothing(bench: Bench, series: PatchSeries) -> None:
    error = refused(lambda: bench.work.start(bench.source, series, repo=bench.repo, onto="nosuch"))
    assert isinstance(error, UsageError)
    assert not (bench.cache / "series").exists()


def test_without_upstream_and_without_a_clone(bench: Bench, series: PatchSeries) -> None:
    for onto in ("main", "e" * 40):
        with pytest.raises(OutsideError, match=r"127\.0\.0\.1"):
            bench.work.start(bench.source, series, repo=None, onto=onto)
    assert not bench.path.exists()


def test_a_folder_of_somebody_else_is_left_alone(bench: Bench, series: PatchSeries) -> None:
    (bench.path / ".git").mkdir(parents=True)
    error = refused(lambda: bench.work.start(bench.source, series, repo=bench.repo, onto="clear"))
    assert error.message == f"{bench.path} is not the work tree of a rebase"
    assert "--abort" in str(error.hint)


def test_a_file_in_its_place_is_left_alone(bench: Bench, series: PatchSeries) -> None:
    bench.path.parent.mkdir(parents=True)
    bench.path.write_text("x")
    for run in (
        lambda: bench.work.start(bench.source, series, repo=bench.repo, onto="clear"),
        lambda: bench.work.abort(bench.source),
    ):
        assert isinstance(refused(run), UsageError)
    assert bench.path.read_text() == "x"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}'])
def test_a_damaged_state_is_told(bench: Bench, series: PatchSeries, text: str) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    (bench.path / ".git/llama-images-series.json").write_text(text)
    error = refused(lambda: bench.work.resume(bench.source, skip=False))
    assert isinstance(error, OutsideError)
    assert "--abort" in str(error.hint)
    bench.work.abort(bench.source)


@pytest.mark.parametrize(
    "change",
    [{"head": 5}, {"head": "--all"}, {"results": ["kept"] * 99}, {"results": ["lost"]}, {"is_stopped": 1}],
)
def test_a_state_with_another_value_is_told(
    bench: Bench, series: PatchSeries, change: dict[str, object]
) -> None:
    stopped(bench, series)
    file = bench.path / ".git/llama-images-series.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    for skip in (False, True):
        error = refused(lambda skip=skip: bench.work.resume(bench.source, skip=skip))  # type: ignore[misc]
        assert isinstance(error, OutsideError)
        assert "--abort" in str(error.hint)


def test_a_git_that_fails_is_told_with_its_words(bench: Bench, series: PatchSeries) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="conflict")
    mend(bench.path / "src/a.cpp", "both")
    hooks = bench.path / ".git" / "index.lock"
    hooks.write_text("")
    error = refused(lambda: bench.work.resume(bench.source, skip=False))
    assert isinstance(error, OutsideError)
    assert "index.lock" in error.message
    hooks.unlink()
    assert bench.work.resume(bench.source, skip=False).kept == (A, B, C)


def test_the_users_own_git_sees_an_ordinary_work_tree(bench: Bench, series: PatchSeries) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="clear")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"HOME": "/nonexistent", "GIT_EDITOR": IDENTITY["GIT_EDITOR"]}
    for words in (
        ("fsck", "--connectivity-only"),
        ("show", "--stat", "HEAD"),
        ("show", "HEAD:tests/t.cpp"),  # was never fetched: it comes on demand
        ("commit", "--quiet", "--amend", "--message", "reworded"),
        ("rebase", "--quiet", "--force-rebase", "onto"),
        ("gc", "--quiet"),
    ):
        done = subprocess.run(
            ["git", *words], cwd=bench.path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (words, done.stderr)


# --- from a repository that is not on this machine ---


@pytest.fixture
def served(upstream: Upstream) -> Iterator[str]:
    """The upstream's address, served by git itself on the loopback."""
    core = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()
    if not (Path(core) / "git-daemon").is_file():
        pytest.skip("this git has no git-daemon")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "uploadpack.allowFilter",
        "GIT_CONFIG_VALUE_0": "true",
        "GIT_CONFIG_KEY_1": "uploadpack.allowAnySHA1InWant",
        "GIT_CONFIG_VALUE_1": "true",
    }
    words = ["--listen=127.0.0.1", f"--port={port}", "--export-all", "--reuseaddr", "--informative-errors"]
    argv = [f"{core}/git-daemon", *words, f"--base-path={upstream.path.parent}", str(upstream.path.parent)]
    daemon = subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        yield f"git://127.0.0.1:{port}/repo"
    finally:
        daemon.terminate()
        daemon.wait(timeout=20)


def test_upstream_itself_serves_commits_files_and_their_count(
    bench: Bench, upstream: Upstream, series: PatchSeries, served: str
) -> None:
    clear = git(upstream.path, "rev-parse", "clear")
    found = bench.trees.compare(bench.source, series, repo=served, onto="clear")
    assert [one.state for one in found.patches] == ["moved", "moved", "moved"]
    assert found.onto.commit == clear
    done = bench.work.start(bench.source, series, repo=served, onto=clear)
    assert done.kept == (A, B, C)
    assert done.onto.build_number == 3
    # A file outside the paths of the build comes when it is asked for.
    assert git(bench.path, "show", "HEAD:tests/t.cpp") == "t"
    with bench.work.commits(bench.source, work_tree=None, base=None) as commits:
        assert len(commits.commits) == 3


@pytest.mark.parametrize(
    ("onto", "message"),
    [
        ("nosuch", "no such commit or ref in {served}: nosuch"),
        ("{short}", "no such commit or ref in {served}: {short}"),
        ("e" * 40, "{served} does not give out commit " + "e" * 40),
    ],
)
def test_what_upstream_does_not_have_is_told(
    bench: Bench, upstream: Upstream, series: PatchSeries, served: str, onto: str, message: str
) -> None:
    short = git(upstream.path, "rev-parse", "--short", "clear")
    error = refused(
        lambda: bench.work.start(bench.source, series, repo=served, onto=onto.format(short=short))
    )
    assert message.format(served=served, short=short) in error.message
    assert not bench.path.exists()
