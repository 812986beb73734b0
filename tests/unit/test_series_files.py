"""What the series' adapters write: patch folders, the record of compiled trees, a tree's files, a state."""

from __future__ import annotations

import datetime as dt
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from llama_images.adapters import tree_sync
from llama_images.adapters.compile_folder import CompileFolders
from llama_images.adapters.patch_files import PatchFolders, load_series
from llama_images.adapters.rebase_state import Pick, RebaseState, load_state, save_state
from llama_images.adapters.trees import Blob, blob_id
from llama_images.errors import OutsideError, UsageError
from llama_images.patch_format import format_patch
from llama_images.patch_series import PatchSeries
from llama_images.series_ports import Revision
from tests.unit.fakes import FakeReporter

BODY = "What: a.\n\nWhy: b.\n\nProven: c.\n\nUpstream status: not sent."
DIFF = "diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-one\n+two\n"


def series(*subjects: str) -> PatchSeries:
    patches = (format_patch(number, subject, BODY, DIFF) for number, subject in enumerate(subjects, 1))
    return PatchSeries(name="pr1", patches=tuple(patches))


# --- patches/ ---


def test_a_series_replaces_another_and_leaves_the_rest(tmp_path: Path) -> None:
    folders = PatchFolders(tmp_path)
    assert folders.replace(series("a: one", "a: two"), source="pr1")
    folder = tmp_path / "pr1"
    (folder / "series").write_text((folder / "series").read_text() + "# off: 9999-x.patch\n")
    (folder / "9999-x.patch").write_text("kept, though it is no patch\n")
    (folder / "sub").mkdir()
    assert folders.replace(series("a: one", "b: other"), source="pr1")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["0001-a-one.patch", "0002-b-other.patch", "9999-x.patch", "series", "sub"]
    assert load_series(folder) == series("a: one", "b: other")
    lines = (folder / "series").read_text().splitlines()
    assert lines[1:] == ["# off: 9999-x.patch", "0001-a-one.patch", "0002-b-other.patch"]
    assert [path.name for path in tmp_path.iterdir()] == ["pr1"]


@pytest.mark.parametrize("comment", ["# off: 0002-b-other.patch\n", ""])
def test_a_patch_that_was_put_aside_is_not_written_over(tmp_path: Path, comment: str) -> None:
    folders = PatchFolders(tmp_path)
    folders.replace(series("a: one"), source="pr1")
    folder = tmp_path / "pr1"
    (folder / "series").write_text((folder / "series").read_text() + comment)
    (folder / "0002-b-other.patch").write_text("put aside\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=r"pr1/0002-b-other\.patch is there already"):
        folders.replace(series("a: one", "b: other"), source="pr1")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    # Under another name it stays where it is, and with the same bytes nothing is lost.
    assert folders.replace(series("a: one", "b: third"), source="pr1")
    assert (folder / "0002-b-other.patch").read_text() == "put aside\n"
    (folder / "0002-b-other.patch").write_text(series("a: one", "b: other").patches[1].text)
    assert folders.replace(series("a: one", "b: other"), source="pr1")
    assert load_series(folder).patches[1].subject == "b: other"


def test_what_is_the_same_is_not_written(tmp_path: Path) -> None:
    folders = PatchFolders(tmp_path)
    folders.replace(series("a: one"), source="pr1")
    inode = (tmp_path / "pr1").stat().st_ino
    assert not folders.replace(series("a: one"), source="pr1")
    assert (tmp_path / "pr1").stat().st_ino == inode


def test_a_linked_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "pr1").symlink_to(tmp_path / "elsewhere")
    PatchFolders(tmp_path / "patches").replace(series("a: one"), source="pr1")
    assert (tmp_path / "patches" / "pr1").is_symlink()
    assert (tmp_path / "elsewhere" / "0001-a-one.patch").is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_series_is_there_whole_or_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, nth: int
) -> None:
    folders = PatchFolders(tmp_path)
    folders.replace(series("a: one"), source="pr1")
    before = {path.name: path.read_bytes() for path in (tmp_path / "pr1").iterdir()}
    rename, left = Path.rename, nth

    def failing(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutsideError if isinstance(error, OSError) else KeyboardInterrupt):
        folders.replace(series("b: other"), source="pr1")
    assert {path.name: path.read_bytes() for path in (tmp_path / "pr1").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["pr1"]


def test_a_broken_series_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "pr1").mkdir()
    (tmp_path / "pr1" / "series").write_text("../x.patch\n")
    with pytest.raises(UsageError, match=r"pr1/series:1: "):
        PatchFolders(tmp_path).replace(series("a: one"), source="pr1")
    assert (tmp_path / "pr1" / "series").read_text() == "../x.patch\n"


def test_each_patch_is_read_or_told_why_not(tmp_path: Path) -> None:
    folders = PatchFolders(tmp_path)
    folders.replace(series("a: one", "a: two", "a: three", "a: four"), source="pr1")
    folder = tmp_path / "pr1"
    (folder / "0001-a-one.patch").write_bytes(b"From: a\n\xff\n")
    (folder / "0002-a-two.patch").unlink()
    (folder / "0003-a-three.patch").unlink()
    (folder / "0003-a-three.patch").mkdir()
    listed = folders.listed("pr1")
    assert [one.error.message if one.error else one.patch for one in listed] == [
        f"{tmp_path.name}/pr1/0001-a-one.patch:2: byte 0xff is not UTF-8",
        f"{tmp_path.name}/pr1/series:3: 0002-a-two.patch is missing",
        f"{tmp_path.name}/pr1/series:4: 0003-a-three.patch is missing",
        series("a: one", "a: two", "a: three", "a: four").patches[3],
    ]
    with pytest.raises(UsageError, match=r"0001-a-one.patch:2: "):
        load_series(folder)


# --- what was compiled ---


def test_what_was_compiled_is_known_the_next_time(tmp_path: Path) -> None:
    folders = CompileFolders(tmp_path, FakeReporter())
    with folders.open("pr1") as folder:
        assert not folder.is_known("a")
        folder.remember("a")
        folder.remember("b")
    with folders.open("pr1") as folder:
        assert folder.is_known("a")
        assert folder.is_known("b")
        for number in range(300):
            folder.remember(str(number))
        assert not folder.is_known("a")  # the oldest go
        assert folder.is_known("299")
    with folders.open("pr2") as folder:
        assert not folder.is_known("299")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "keys": ["a"]}', '{"format": 1}', "\0"])
def test_a_damaged_record_knows_nothing(tmp_path: Path, text: str) -> None:
    folders = CompileFolders(tmp_path, FakeReporter())
    with folders.open("pr1") as folder:
        folder.remember("a")
    (tmp_path / "check/pr1/compiled.json").write_text(text)
    with folders.open("pr1") as folder:
        assert not folder.is_known("a")
        folder.remember("b")
        assert folder.is_known("b")


def test_a_build_folder_of_other_settings_is_emptied(tmp_path: Path) -> None:
    with CompileFolders(tmp_path, FakeReporter()).open("pr1") as folder:
        folder.prepare("x")
        folder.build.mkdir()
        folder.prepare("x")
        assert folder.build.is_dir()
        folder.prepare("y")
        assert not folder.build.exists()


# --- a tree's files ---


def blob(path: str, content: bytes, mode: str = "100644") -> Blob:
    return Blob(path=path, mode=mode, object_id=blob_id(content), content=content)


def test_files_are_written_recognised_and_removed(tmp_path: Path) -> None:
    blobs = [
        blob("a", b"a\n"),
        blob("deep/er/run.sh", b"#!\n", "100755"),
        blob("link", b"deep/er", "120000"),
    ]
    for each in blobs:
        assert not tree_sync.holds(tmp_path, each.path, each.mode, each.object_id)
    (tmp_path / "deep").write_text("in the way")
    (tmp_path / "a").mkdir()
    tree_sync.write(tmp_path, blobs)
    for each in blobs:
        assert tree_sync.holds(tmp_path, each.path, each.mode, each.object_id)
    assert stat.S_IMODE((tmp_path / "deep/er/run.sh").stat().st_mode) == 0o755
    assert os.readlink(tmp_path / "link") == "deep/er"  # noqa: PTH115
    assert not tree_sync.holds(tmp_path, "a", "100755", blobs[0].object_id)
    assert not tree_sync.holds(tmp_path, "a", "100644", blobs[1].object_id)
    assert not tree_sync.holds(tmp_path, "link", "100644", blobs[2].object_id)
    assert tree_sync.remove_others(tmp_path, ["a"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_behind_a_link_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("theirs\n")
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "src").symlink_to(tmp_path / "outside")
    tree_sync.write(folder, [blob("src/file", b"ours\n")])
    assert (tmp_path / "outside" / "file").read_text() == "theirs\n"
    assert (folder / "src" / "file").read_text() == "ours\n"
    (folder / "more").symlink_to(tmp_path / "outside")
    assert tree_sync.remove_others(folder, ["src/file"]) == 1
    assert (tmp_path / "outside" / "file").read_text() == "theirs\n"


# --- the state of a rebase ---

STATE = RebaseState(
    series="ab" * 32,
    onto=Revision(
        name="main",
        commit="c" * 40,
        tree="d" * 40,
        date=dt.datetime(2026, 7, 4, tzinfo=dt.UTC),
        build_number=None,
        missing_paths=("pocs",),
    ),
    picks=tuple(Pick(name=f"{n:04}-x.patch", commit=f"{n}" * 40, parent="e" * 40) for n in (1, 2, 3)),
    head="c" * 40,
)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    for state in (STATE, replace(STATE, is_stopped=True, is_touched=True, exported="f" * 40)):
        save_state(tmp_path, state)
        assert load_state(tmp_path) == state
    assert len(list(tmp_path.iterdir())) == 1


def test_a_state_counts_what_is_done() -> None:
    state = STATE
    for result in ("kept", "absorbed", "skipped"):
        assert state.pick is not None
        state = replace(state, is_stopped=True).done(result, f"after {state.pick.name}")
        assert not state.is_stopped
    assert state.pick is None
    assert state.head == "after 0003-x.patch"
    assert state.names("absorbed") == ("0002-x.patch",)
