"""The proof's own way to apply a patch: exactly, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from apply_patch import PatchError, apply, main, read_hunks

TEXT = "one\ntwo\nthree\nfour\nfive\nsix\nseven\n"
HEAD = "Subject: a change\n\nWhy: a test.\n---\ndiff --git a/a.txt b/a.txt\n--- a/a.txt\n+++ b/a.txt\n"


def patched(folder: Path, *diffs: str, text: str = TEXT) -> str:
    (folder / "a.txt").write_text(text)
    paths = []
    for number, diff in enumerate(diffs):
        paths.append(folder / f"{number}.patch")
        paths[-1].write_text(HEAD + diff)
    try:
        apply(folder, paths)
    except PatchError:
        assert (folder / "a.txt").read_text() == text, "a patch that was refused changed a file"
        raise
    return (folder / "a.txt").read_text()


def test_lines_are_changed_added_and_removed(tmp_path: Path) -> None:
    first = "@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
    second = "@@ -5,3 +5,3 @@ in a function\n five\n-six\n seven\n+eight\n"
    assert patched(tmp_path, first + second) == "one\nTWO\nthree\nfour\nfive\nseven\neight\n"


def test_a_hunk_may_stand_at_another_line(tmp_path: Path) -> None:
    assert patched(tmp_path, "@@ -40 +40 @@\n-six\n+SIX\n") == TEXT.replace("six", "SIX")


def test_of_several_places_the_nearest_is_taken(tmp_path: Path) -> None:
    text = "x\ny\n" * 5
    assert patched(tmp_path, "@@ -6 +6 @@\n-y\n+Y\n", text=text) == "x\ny\nx\ny\nx\nY\nx\ny\nx\ny\n"


def test_what_an_earlier_hunk_added_moves_the_next_one(tmp_path: Path) -> None:
    text = "a\n" + "x\n" * 6
    diff = "@@ -1 +1,3 @@\n a\n+b\n+c\n@@ -5 +7 @@\n-x\n+X\n"
    assert patched(tmp_path, diff, text=text) == "a\nb\nc\nx\nx\nx\nX\nx\nx\n"


def test_lines_are_put_behind_the_line_that_a_hunk_without_old_ones_names(tmp_path: Path) -> None:
    assert patched(tmp_path, "@@ -2,0 +3 @@\n+between\n") == TEXT.replace("two\n", "two\nbetween\n")


def test_the_second_patch_sees_what_the_first_one_did(tmp_path: Path) -> None:
    first, second = "@@ -1 +1 @@\n-one\n+uno\n", "@@ -1 +1 @@\n-uno\n+un\n"
    assert patched(tmp_path, first, second) == TEXT.replace("one", "un")


def test_an_empty_line_of_context_may_have_lost_its_blank(tmp_path: Path) -> None:
    text = "one\n\ntwo\n"
    assert patched(tmp_path, "@@ -1,3 +1,3 @@\n one\n\n-two\n+TWO\n", text=text) == "one\n\nTWO\n"


@pytest.mark.parametrize(
    ("diff", "message"),
    [
        ("@@ -1,2 +1,2 @@\n one \n-two\n+TWO\n", "the hunk at line 1 does not apply to a.txt"),
        ("@@ -1,2 +1 @@\n one\n-three\n", "the hunk at line 1 does not apply to a.txt"),
        ("@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n", "ends in the middle of a hunk"),
        ("@@ -1,2 +1,2 @@\n one\n", "ends in the middle of a hunk"),
        ("@@ -1,2 +1,2 @@\n one\n*two\n", "no line of a hunk"),
        ("@@ -1 +1,2 @@\n-one\n-two\n+1\n+2\n", "other lines than its header counts"),
        ("", "holds no diff"),
        ("--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+new\n", "only changed here"),
        ("--- a/a.txt\n@@ -1 +1 @@\n-one\n+uno\n", "no line"),
        ("--- a/b.txt\n+++ b/b.txt\n@@ -1 +1 @@\n-one\n+uno\n", "No such file"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, diff: str, message: str) -> None:
    with pytest.raises(PatchError, match=message):
        patched(tmp_path, diff)


def test_a_later_patch_that_is_refused_leaves_the_files_of_the_first_alone(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r"1\.patch: the hunk at line 1"):
        patched(tmp_path, "@@ -1 +1 @@\n-one\n+uno\n", "@@ -1 +1 @@\n-one\n+un\n")


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    patch = tmp_path / "p.patch"
    patch.write_text(HEAD + "@@ -1 +1 @@\n-eins\n+uno\n")
    assert main([str(tmp_path), str(patch)]) == 2
    assert capsys.readouterr().err == "apply_patch: p.patch: the hunk at line 1 does not apply to a.txt\n"
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_negative_controls_are_patches_that_change_one_place_each() -> None:
    folder = Path(__file__).resolve().parents[1] / "gpu" / "proof"
    names = ("broken-copy", "broken-pointer", "broken-kv")
    hunks = [list(read_hunks((folder / f"{name}.patch").read_text(), name)) for name in names]
    assert [len(found) for found in hunks] == [1, 1, 1]
    for (hunk,) in hunks:
        assert len(hunk.old) == len(hunk.new)
        assert sum(old != new for old, new in zip(hunk.old, hunk.new, strict=True)) == 1
