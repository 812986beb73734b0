"""Commits written out as a series, from every shape of work tree, by real git on a small upstream."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_images.adapters.patch_files import PatchFolders, load_series
from llama_images.errors import LlamaImagesError, OutsideError, UsageError
from llama_images.patch_format import MAINTAINERS
from llama_images.patch_series import PatchSeries
from llama_images.workflows.series import Exported, export_series
from tests.patches.series_repo import BODY, Bench, Upstream, changed, git

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

MESSAGE = f"a: by hand\n\n{BODY}"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    upstream = Upstream(tmp_path_factory.mktemp("up stream") / "repo")
    upstream.commit("later", {"src/a.cpp": "zero\n" + changed()})
    return upstream


@pytest.fixture(scope="module")
def series(upstream: Upstream) -> PatchSeries:
    """A change, a new executable and an empty file; then one removed."""
    return upstream.series(
        {"src/a.cpp": changed(line10="ten", line40="forty"), "src/empty.h": ""},
        {"src/a.cpp": changed(line10="TEN", line40="forty"), "src/b.cpp": None},
    )


@pytest.fixture
def bench(upstream: Upstream, tmp_path: Path) -> Bench:
    return Bench(upstream, tmp_path / "the cache")


@pytest.fixture
def patches(tmp_path: Path, series: PatchSeries) -> Path:
    """``patches/`` with the series in it, and with files that are none of its business."""
    folder = tmp_path / "patches" / "small"
    folder.mkdir(parents=True)
    (folder / "series").write_text("# mine\n" + "".join(f"{patch.name}\n" for patch in series.patches))
    for patch in series.patches:
        (folder / patch.name).write_text(patch.text)
    (folder / "NOTES.md").write_text("notes\n")
    return folder.parent


@pytest.fixture
def clone(upstream: Upstream, tmp_path: Path) -> Path:
    """A clone of the user's own, on the pin."""
    git(tmp_path, "clone", "--quiet", "--no-checkout", str(upstream.path), "my clone")
    path = tmp_path / "my clone"
    (path / ".git/info/attributes").write_text("* -text\n")
    git(path, "checkout", "--quiet", "-b", "mine", upstream.pin)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def export(
    bench: Bench,
    patches: Path,
    path: Path | None = None,
    *,
    base: str | None = None,
    overwrite: bool = False,
) -> Exported:
    return export_series(
        bench.work, PatchFolders(patches), bench.source, work_tree=path, base=base, overwrite=overwrite
    )


def commit(path: Path, message: str = MESSAGE, **files: str | None) -> str:
    """A commit of files below src/, by name without its ending."""
    for name, text in files.items():
        file = path / "src" / f"{name}.cpp"
        if text is None:
            file.unlink()
        else:
            file.write_bytes(text.encode())
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--allow-empty", "--allow-empty-message", "--message", message)
    return git(path, "rev-parse", "HEAD")


# --- what is written ---


def test_what_was_imported_is_exported_as_it_was(bench: Bench, series: PatchSeries, patches: Path) -> None:
    before = contents(patches / "small")
    bench.work.start(bench.source, series, repo=bench.repo, onto=bench.source.commit)
    done = export(bench, patches)
    assert not done.is_changed
    assert done.series == series
    assert (done.base, done.path) == (bench.source.commit, bench.path)
    assert contents(patches / "small") == before


def test_a_changed_series_replaces_the_old_one_whole(
    bench: Bench, series: PatchSeries, patches: Path
) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto="later")
    git(bench.path, "reset", "--quiet", "--soft", "HEAD~1")
    git(bench.path, "commit", "--quiet", "--message", f"b: another subject\n\n{BODY}")
    done = export(bench, patches)
    assert done.is_changed
    assert done.base == git(bench.path, "rev-parse", "onto")
    found = contents(patches / "small")
    assert sorted(found) == ["0001-a-step-1.patch", "0002-b-another-subject.patch", "NOTES.md", "series"]
    assert found["series"] == b"# mine\n0001-a-step-1.patch\n0002-b-another-subject.patch\n"
    assert load_series(patches / "small") == done.series
    assert [path.name for path in patches.iterdir()] == ["small"]  # nothing half-written beside it
    assert not export(bench, patches).is_changed
    assert contents(patches / "small") == found
    # It goes on the other commit now, and a new rebase may replace the work tree.
    bench.work.abort(bench.source)
    later = Bench(bench.upstream, bench.cache)
    later.source = bench.upstream.source(
        commit=done.base, tree=git(bench.upstream.path, "rev-parse", "later^{tree}")
    )
    with later.trees.applied(later.source, done.series, repo=later.repo) as applied:
        assert [(step.problem, step.moved) for step in applied.patches] == [(None, ()), (None, ())]


def test_a_first_series_makes_its_folder(bench: Bench, clone: Path, tmp_path: Path) -> None:
    commit(clone, a=changed(line5="five"))
    assert export(bench, tmp_path / "fresh", clone).is_changed
    names = {path.name for path in (tmp_path / "fresh" / "small").iterdir()}
    assert names == {"series", "0001-a-by-hand.patch"}
    assert "pins for small." in (tmp_path / "fresh/small/series").read_text()


def test_neither_author_nor_settings_nor_attributes_shape_a_patch(
    bench: Bench, clone: Path, patches: Path, tmp_path: Path
) -> None:
    text = changed(line5="five", line50="fifty")
    commit(clone, a=text)
    plain = export(bench, patches, clone).series.patches[0].text
    assert plain.startswith(
        f"From: {MAINTAINERS}\nSubject: a: by hand\n\n{BODY}\n---\ndiff --git a/src/a.cpp"
    )
    assert not any(word in plain for word in ("Some One", "index ", "Date:", "2.3"))
    for key, value in {
        "diff.noprefix": "true",
        "diff.mnemonicPrefix": "true",
        "diff.algorithm": "patience",
        "diff.context": "1",
        "diff.interHunkContext": "60",
        "diff.suppressBlankEmpty": "true",
        "diff.renames": "copies",
        "diff.external": "false",
        "core.quotePath": "false",
        "core.abbrev": "7",
        "color.ui": "always",
        "diff.cpp.xfuncname": "^line 4$",
        "diff.cpp.binary": "true",
        "core.fsmonitor": f"touch {tmp_path}/started",
    }.items():
        git(clone, "config", key, value)
    (clone / ".git/info/attributes").write_text("*.cpp diff=cpp -text\n")
    done = export(bench, patches, clone)
    assert not done.is_changed
    assert done.series.patches[0].text == plain
    assert not (tmp_path / "started").exists()


def test_a_linked_work_tree_and_a_build_folder_in_it_will_do(
    bench: Bench, clone: Path, patches: Path, upstream: Upstream
) -> None:
    linked = clone.parent / "linked"
    git(clone, "worktree", "add", "--quiet", "--detach", str(linked), upstream.pin)
    commit(linked, a=changed(line5="five"))
    (linked / "build").mkdir()
    (linked / "build" / "x.o").write_text("x")
    assert len(export(bench, patches, linked).series.patches) == 1


def test_the_base_can_be_named(bench: Bench, clone: Path, patches: Path, upstream: Upstream) -> None:
    git(clone, "checkout", "--quiet", "-b", "on-later", "origin/later")
    commit(clone, a="zero\n" + changed(line5="five"))
    done = export(bench, patches, clone, base="origin/later")
    assert done.base == git(upstream.path, "rev-parse", "later")
    assert len(done.series.patches) == 1


def test_a_clone_that_has_gone_is_not_missed(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    series = upstream.series({"src/a.cpp": changed(line10="ten")})
    patches = tmp_path / "patches"
    PatchFolders(patches).replace(series, source="small")
    git(tmp_path, "clone", "--quiet", "--bare", str(upstream.path), "clone.git")
    later = git(upstream.path, "rev-parse", "later")
    bench.work.start(bench.source, series, repo=str(tmp_path / "clone.git"), onto=later)
    (tmp_path / "clone.git").rename(tmp_path / "away.git")
    assert len(export(bench, patches).series.patches) == 1
    # What upstream wants ignored can't be asked for: a new file counts as one.
    (bench.path / "src/forgotten.cpp").write_text("x")
    with pytest.raises(UsageError, match=r"not committed: src/forgotten\.cpp"):
        export(bench, patches)


def test_a_work_tree_that_git_can_not_read_is_an_outside_error(
    bench: Bench, clone: Path, patches: Path
) -> None:
    commit(clone, a=changed(line5="five"))
    (clone / ".git/index").write_text("junk")
    with pytest.raises(OutsideError, match="git can't go on"):
        export(bench, patches, clone)


def test_a_work_tree_may_have_an_odd_name(bench: Bench, clone: Path, patches: Path) -> None:
    odd = clone.rename(clone.parent / "odd\u2028name")
    commit(odd, a=changed(line5="five"))
    assert len(export(bench, patches, odd).series.patches) == 1


def test_a_line_end_in_the_path_of_a_work_tree_is_wrong_use(bench: Bench, clone: Path, patches: Path) -> None:
    odd = clone.rename(clone.parent / "odd\nname")
    commit(odd, a=changed(line5="five"))
    with pytest.raises(UsageError, match="a path with a line end") as caught:
        export(bench, patches, odd)
    assert "\n" not in caught.value.message


# --- what would be lost ---


def edit_header(folder: Path) -> None:
    """A hand edit that nobody has committed."""
    patch = folder / "0001-a-step-1.patch"
    patch.write_text(patch.read_text().replace("Proven: c.", "Proven: c, and again."))


def pull_another(folder: Path) -> None:
    """A patch that came with a pull."""
    text = (folder / "0002-a-step-2.patch").read_text().replace("a: step 2", "a: step 3")
    (folder / "0003-a-step-3.patch").write_text(text)
    (folder / "series").write_text((folder / "series").read_text() + "0003-a-step-3.patch\n")


def remove_one(folder: Path) -> None:
    (folder / "0002-a-step-2.patch").unlink()


@pytest.mark.parametrize("is_exported", [False, True], ids=["rebased", "exported"])
@pytest.mark.parametrize(
    ("edit", "lost"),
    [
        (edit_header, "1 changed: 0001-a-step-1.patch"),
        (pull_another, "1 removed: 0003-a-step-3.patch"),
        (remove_one, "1 added: 0002-a-step-2.patch"),
    ],
)
def test_what_changed_in_patches_meanwhile_is_not_undone(
    bench: Bench,
    series: PatchSeries,
    patches: Path,
    edit: Callable[[Path], None],
    lost: str,
    is_exported: bool,
) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto=bench.source.commit)
    if is_exported:
        export(bench, patches)
    edit(patches / "small")
    before = contents(patches / "small")
    with pytest.raises(UsageError) as caught:
        export(bench, patches)
    assert caught.value.message == (
        f"patches/small was changed after {bench.path} was made, and that would be lost ({lost})"
    )
    assert "--overwrite" in str(caught.value.hint)
    assert contents(patches / "small") == before
    assert str(export(bench, patches, overwrite=True).change) == lost
    assert load_series(patches / "small") == series


def test_an_edit_that_the_work_tree_has_too_is_no_loss(
    bench: Bench, series: PatchSeries, patches: Path
) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto=bench.source.commit)
    last = patches / "small/0002-a-step-2.patch"
    last.write_text(last.read_text().replace("Proven: c.", "Proven: d."))
    git(bench.path, "commit", "--quiet", "--amend", "--message", f"a: step 2\n\n{BODY}".replace("c.", "d."))
    before = contents(patches / "small")
    assert not export(bench, patches).is_changed
    assert contents(patches / "small") == before


def test_an_export_goes_on_what_the_last_one_wrote(bench: Bench, series: PatchSeries, patches: Path) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto=bench.source.commit)
    for word in ("d", "e"):
        message = f"a: step 2\n\n{BODY}".replace("Proven: c", f"Proven: {word}")
        git(bench.path, "commit", "--quiet", "--amend", "--message", message)
        assert str(export(bench, patches).change) == "1 changed: 0002-a-step-2.patch"
    # What patches/ held at first is in the work tree's history: git checkout patches is no edit of its own.
    (patches / "small/0002-a-step-2.patch").write_text(series.patches[1].text)
    assert export(bench, patches).is_changed
    assert (patches / "small/0002-a-step-2.patch").read_text() != series.patches[1].text


def test_commits_that_a_work_tree_holds_are_not_left_out(
    bench: Bench, series: PatchSeries, patches: Path
) -> None:
    bench.work.start(bench.source, series, repo=bench.repo, onto=bench.source.commit)
    below = git(bench.path, "rev-parse", "HEAD~1")
    pin = bench.source.commit[:12]
    lost = "left out of patches/small (1 removed: 0002-a-step-2.patch)"
    before = contents(patches / "small")
    with pytest.raises(UsageError) as caught:
        export(bench, patches, base="HEAD~1")
    assert caught.value.message.startswith(
        f"{bench.path}: 1 commit between {pin} and {below[:12]}, the base: left out of patches/small ("
    )
    git(bench.path, "checkout", "--quiet", "--detach", "HEAD~1")
    with pytest.raises(UsageError) as caught:
        export(bench, patches)
    branch = "1 commit of the branch series, as HEAD is detached below"
    assert caught.value.message == f"{bench.path}: {branch}: {lost}"
    assert contents(patches / "small") == before
    assert str(export(bench, patches, overwrite=True).change) == "1 removed: 0002-a-step-2.patch"
    # A commit that its owner has dropped from the branch is no loss.
    git(bench.path, "checkout", "--quiet", "series")
    assert str(export(bench, patches).change) == "1 added: 0002-a-step-2.patch"
    git(bench.path, "reset", "--quiet", "--hard", "HEAD~1")
    assert str(export(bench, patches).change) == "1 removed: 0002-a-step-2.patch"


# --- what is refused ---


def untracked(path: Path) -> None:
    commit(path, a=changed(line5="five"))
    (path / "src/forgotten.cpp").write_text("x")


def unstaged(path: Path) -> None:
    commit(path, a=changed(line5="five"))
    (path / "src/a.cpp").write_text("x\n")


def staged(path: Path) -> None:
    unstaged(path)
    git(path, "add", "--all")


def merge(path: Path) -> None:
    commit(path, a=changed(line5="five"))
    git(path, "merge", "--quiet", "--no-edit", "origin/later")


def rebase(path: Path) -> None:
    commit(path, a=changed(line1="one"))
    with pytest.raises(Exception, match="rebase"):
        git(path, "rebase", "--quiet", "origin/later")


def cherry_pick(path: Path) -> None:
    commit(path, a=changed(line1="one"))
    with pytest.raises(Exception, match="cherry-pick"):
        git(path, "cherry-pick", "origin/later")


def incomplete(path: Path) -> None:
    commit(path, f"a: by hand\n\n{BODY}".replace("Proven:", "Proved:"), a=changed(line5="five"))


def outside(path: Path) -> None:
    (path / "tests/t.cpp").write_text("T\n")
    commit(path, a=changed(line5="five"))


def empty(path: Path) -> None:
    commit(path, a=changed(line5="five"))
    commit(path)


def renamed(path: Path) -> None:
    git(path, "mv", "src/b.cpp", "src/b c.cpp")
    commit(path)


def linked(path: Path) -> None:
    (path / "src/link.cpp").symlink_to("a.cpp")
    commit(path)


def binary(path: Path) -> None:
    (path / "src/x.png").write_bytes(b"\0\1")
    commit(path)


def late_zero(path: Path) -> None:
    """git looks for a zero byte in the first 8,000 only."""
    (path / "src/x.bin").write_bytes(b"a\n" * 5000 + b"\0\n")
    commit(path, a=changed(line5="five"))


def latin(path: Path) -> None:
    (path / "src/x.cpp").write_bytes(b"\xe9\n")
    commit(path)


def elsewhere(path: Path) -> None:
    git(path, "checkout", "--quiet", "--orphan", "alone")
    commit(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda _path: None, "{path}: there is no commit on top of {pin}"),
        (untracked, "{path} has changes that are not committed: src/forgotten.cpp"),
        (unstaged, "{path} has changes that are not committed: src/a.cpp"),
        (staged, "{path} has changes that are not committed: src/a.cpp"),
        (merge, "{path}: {head} is a merge; a series is a straight line of commits"),
        (rebase, "{path}: a rebase is under way"),
        (cherry_pick, "{path}: a cherry-pick is under way"),
        (incomplete, "commit {head} (a: by hand): the message lacks Proven:"),
        (lambda path: commit(path, "", a="x\n"), "commit {head} (): the message lacks What:, Why:, "),
        (
            lambda path: commit(path, f"[PATCH] a\n\n{BODY}", a="x\n"),
            "commit {head} ([PATCH] a) can't be carried: 0001-patch-a.patch:2: the subject would be read",
        ),
        (
            lambda path: commit(path, f"{MESSAGE}\n---\nmore", a="x\n"),
            "commit {head} (a: by hand) can't be carried: 0001-a-by-hand.patch:4: the body would be cut",
        ),
        (outside, "commit {head} (a: by hand) touches tests/t.cpp, which sources.small.paths leaves out"),
        (empty, "commit {head} (a: by hand) is empty"),
        (lambda path: commit(path, a="x \n"), "commit {head} (a: by hand) can't be carried: "),
        (lambda path: commit(path, a="x"), "commit {head} (a: by hand) can't be carried: "),
        (lambda path: commit(path, new="x\r\n"), "commit {head} (a: by hand) can't be carried: "),
        (lambda path: commit(path, new=" \tx\n"), "commit {head}: 0001-a-by-hand.patch does not apply"),
        (renamed, "commit {head} (a: by hand) can't be carried: "),
        (linked, "commit {head} (a: by hand) can't be carried: "),
        (binary, "commit {head}: src/x.png is binary; a patch can't carry it"),
        (late_zero, "commit {head}: src/x.bin is binary, or in another encoding than UTF-8; a patch can't"),
        (latin, "commit {head}: src/x.cpp is binary, or in another encoding than UTF-8; a patch can't"),
        (
            lambda path: commit(path, a=changed(line5="<<<<<<< HEAD")),
            "commit {head} (a: by hand) can't be carried: 0001-a-by-hand.patch:21: a conflict marker",
        ),
        (elsewhere, "{path}: HEAD is not on top of {whole}"),
    ],
    ids=[
        *("nothing", "untracked", "unstaged", "staged", "merge", "rebase", "cherry-pick", "incomplete"),
        *("no-message", "tag", "cut-body", "outside", "empty", "white-space", "no-newline", "crlf"),
        *("space-before-tab", "odd-name", "symlink", "binary", "late-zero", "latin-1", "marker", "unrelated"),
    ],
)
def test_what_can_not_be_a_series_is_named_and_nothing_is_written(
    bench: Bench, clone: Path, patches: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(clone)
    before = contents(patches / "small")
    with pytest.raises(LlamaImagesError) as caught:
        export(bench, patches, clone)
    pin = bench.source.commit
    wanted = message.format(path=clone, pin=pin[:12], whole=pin, head=git(clone, "rev-parse", "HEAD")[:12])
    assert caught.value.message.startswith(wanted)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert contents(patches / "small") == before


def test_a_removed_and_a_new_file_may_stand_for_a_rename(bench: Bench, clone: Path, patches: Path) -> None:
    git(clone, "mv", "src/b.cpp", "src/c.cpp")
    commit(clone)
    (patch,) = export(bench, patches, clone).series.patches
    assert [change.path for change in patch.files] == ["src/b.cpp", "src/c.cpp"]


@pytest.mark.parametrize(
    ("where", "message"),
    [("nothing", "is no folder"), ("file", "is no folder"), (".", "is no work tree of git")],
)
def test_what_is_no_work_tree_is_wrong_use(
    bench: Bench, patches: Path, tmp_path: Path, where: str, message: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=message):
        export(bench, patches, tmp_path / where)


def test_an_unknown_base_is_wrong_use(bench: Bench, clone: Path, patches: Path) -> None:
    commit(clone, a="x\n")
    with pytest.raises(UsageError) as caught:
        export(bench, patches, clone, base="nosuch")
    assert caught.value.message == f"no such commit or ref in {clone}: nosuch"
    assert bench.source.commit[:12] in str(caught.value.hint)


def test_without_a_work_tree_there_is_nothing_to_export(bench: Bench, patches: Path) -> None:
    with pytest.raises(UsageError, match="there is no work tree of small") as caught:
        export(bench, patches)
    assert "--worktree" in str(caught.value.hint)


def test_a_rebase_that_waits_is_not_exported(bench: Bench, upstream: Upstream, patches: Path) -> None:
    upstream.commit("conflict", {"src/a.cpp": changed(line10="zehn")})
    found = bench.work.start(bench.source, load_series(patches / "small"), repo=bench.repo, onto="conflict")
    assert found.conflict is not None
    with pytest.raises(UsageError, match=r"a rebase onto .* is under way"):
        export(bench, patches)
