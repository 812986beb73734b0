"""The series file and the patches, as text."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_images.adapters.patch_files import load_series
from llama_images.errors import UsageError
from llama_images.patch_series import (
    PatchSeries,
    decode_text,
    make_series,
    parse_patch,
    parse_series,
    series_entries,
)

# A busy machine may stop a test for seconds at any place: time says nothing here.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PATCHES = Path(__file__).resolve().parents[2] / "patches"

HEADER = """\
From: Some One <one@example.org>
Subject: [PATCH 1/2] ggml: keep the count

Why: it was lost.
---
"""
DIFF = """\
diff --git a/src/a.cpp b/src/a.cpp
--- a/src/a.cpp
+++ b/src/a.cpp
@@ -1,3 +1,4 @@ int main() {
 one
-two
+TWO
+two and a half
 three
@@ -10,2 +11,1 @@
 ten
-eleven
diff --git a/src/new.cpp b/src/new.cpp
new file mode 100644
--- /dev/null
+++ b/src/new.cpp
@@ -0,0 +1,2 @@
+a
+b
diff --git a/old.txt b/old.txt
deleted file mode 100644
--- a/old.txt
+++ /dev/null
@@ -1 +0,0 @@
-gone
"""
VALID = HEADER + DIFF


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_patch("0001-x.patch", text)
    assert caught.value.exit_code == 2
    return caught.value.message


# --- the series file ---


def test_series_names_come_in_order_without_comments_and_blank_lines() -> None:
    text = "# first the fix\n0002-b.patch\n\n  0001-a.patch  # then the rest\n#0003-c.patch\n"
    assert parse_series(text, name="series") == ("0002-b.patch", "0001-a.patch")
    assert [entry.line for entry in series_entries(text, name="series")] == [2, 4]


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n"])
def test_a_series_may_be_empty(text: str) -> None:
    assert parse_series(text, name="series") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.patch\n/etc/b.patch\n", "s:2: '/etc/b.patch' is not below this folder"),
        ("~/b.patch\n", "s:1: '~/b.patch' is not below this folder"),
        ("C:\\b.patch\n", "s:1: 'C:\\\\b.patch' is not below this folder"),
        ("../b.patch\n", "s:1: '../b.patch' leaves this folder"),
        ("x/../../b.patch\n", "s:1: 'x/../../b.patch' leaves this folder"),
        ("x/b.patch\n", "s:1: 'x/b.patch' is not a plain file name"),
        ("a.diff\n", "s:1: 'a.diff' names no .patch file"),
        ("a.patch -p1\n", "s:1: 'a.patch -p1' names no .patch file"),
        ("a.patch b.patch\n", "s:1: 'a.patch b.patch' is not a plain file name"),
        (".patch\n", "s:1: '.patch' is not a plain file name"),
        ("a.patch\nb.patch\na.patch\n", "s:3: a.patch is named twice, first on line 1"),
        ("a.patch\r\n", "s:1: has a carriage return"),
        ("a.patch\nb.patch", "s:2: the last line has no newline"),
        ("a\0.patch\n", "s:1: has a NUL byte"),
    ],
)
def test_a_bad_series_names_its_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_series(text, name="s")
    assert caught.value.message == message
    assert caught.value.hint


@patient
@given(st.text())
def test_any_text_as_a_series_raises_nothing_but_usage_errors(text: str) -> None:
    try:
        names = parse_series(text, name="s")
    except UsageError:
        return
    assert all("/" not in name and name.endswith(".patch") for name in names)
    assert len(set(names)) == len(names)


# --- one patch ---


def test_a_patch_as_values() -> None:
    patch = parse_patch("patches/p/0001-x.patch", VALID)
    assert patch.name == "0001-x.patch"
    assert patch.subject == "ggml: keep the count"
    assert patch.body == "Why: it was lost."
    assert [(f.path, f.added, f.removed) for f in patch.files] == [
        ("src/a.cpp", 2, 2),
        ("src/new.cpp", 2, 0),
        ("old.txt", 0, 1),
    ]
    assert (patch.added, patch.removed) == (4, 3)
    assert patch.sha256 == hashlib.sha256(VALID.encode()).hexdigest()
    assert [(h.old_start, h.header) for h in patch.files[0].hunks] == [
        (1, "@@ -1,3 +1,4 @@"),
        (10, "@@ -10,2 +11,1 @@"),
    ]
    assert [VALID.split("\n")[h.line - 1][:6] for h in patch.files[0].hunks] == ["@@ -1,", "@@ -10"]
    assert patch.files[0].hunk_at(10) == 2
    assert patch.files[0].hunk_at(2) is None


def test_what_git_format_patch_writes_is_taken() -> None:
    header = (
        f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n"
        "From: Some One <one@example.org>\nDate: Thu, 11 Jun 2026 16:49:03 +0000\n"
        "Subject: [PATCH] a subject that goes on\n on the next line\n\nWhy: so.\n---\n"
        " src/a.cpp | 5 +++--\n 1 file changed\n\n"
    )
    patch = parse_patch("0001-x.patch", f"{header}{DIFF}-- \n2.39.5\n\n")
    assert patch.subject == "a subject that goes on on the next line"
    assert patch.body == "Why: so."


def test_modes_index_lines_and_empty_files_are_taken() -> None:
    diff = (
        "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n"
        "diff --git a/empty b/empty\nnew file mode 100644\nindex 0000000..e69de29\n"
    )
    assert [f.path for f in parse_patch("0001-x.patch", HEADER + diff).files] == ["run.sh", "empty"]


def test_an_old_line_may_lack_its_newline() -> None:
    diff = "diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-x\n\\ No newline at end of file\n+x\n"
    assert parse_patch("0001-x.patch", HEADER + diff).added == 1


def edited(old: str, new: str) -> str:
    assert VALID.count(old) == 1
    return VALID.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the header has no From:"),
        ("nonsense\n", ":1: is no header line"),
        (DIFF, ":1: is no header line"),
        (edited("From: Some One <one@example.org>\n", ""), ":1: the header has no From:"),
        (edited("Subject: [PATCH 1/2] ggml: keep the count\n", ""), ":1: the header has no Subject:"),
        (edited("ggml: keep the count", ""), ":1: the subject is empty"),
        (edited("Subject:", "From: x\nSubject:"), ":2: From: is given twice"),
        (edited("Why: it was lost.\n", ""), ":4: the header does not say why"),
        (HEADER, ":5: there is no diff"),
        (edited("Why: it", "--- a/x\nWhy: it"), ":4: looks like a diff in another form than git's"),
        (HEADER + DIFF.split("\n", 1)[1], ":6: looks like a diff in another form than git's"),
        (VALID[:-1], ":30: the last line has no newline"),
        (edited(" one\n", " one\r\n"), ":10: has a carriage return"),
        (edited(" one\n", " one\0\n"), ":10: has a NUL byte"),
        (edited("+TWO", "+\ud800"), ":12: is not valid Unicode"),
        (edited("+TWO", "+TWO "), ":12: an added line ends in white space"),
        (edited("+TWO", "+\t"), ":12: an added line ends in white space"),
        (edited("+b\n", "+b\n\\ No newline at end of file\n"), ":25: an added line has no newline"),
        (edited(" three\n", ""), ":14: is no line of a hunk, which is not complete yet"),
        (edited(" three\n", " three\n four\n"), ":15: is neither a hunk nor the start of a file's change"),
        (edited(" three\n", "\n"), ":14: is no line of a hunk, which is not complete yet"),
        (edited("-1,3 +1,4", "-1,2 +1,4"), ":14: the hunk holds more lines than its @@ line says"),
        (edited("-1,3 +1,4", "-x +1,4"), ":9: is no valid @@ line"),
        (edited("-10,2 +11,1", "-1,2 +11,1"), ":15: the hunks are not in order"),
        (edited("-10,2 +11,1", f"-{'9' * 5000},2 +11,1"), ":15: is no valid @@ line"),
        (edited("-eleven\n", " eleven\n").replace("+11,1", "+11,2"), ":15: the hunk changes nothing"),
        (VALID[: VALID.index("-gone")], ":29: the hunk ends before its lines are complete"),
        (VALID[: VALID.index("@@ -1 +0,0")], ":28: old.txt has no hunk"),
        (edited("+++ b/src/a.cpp", "+++ b/src/b.cpp"), ":8: should be '+++ b/src/a.cpp'"),
        (
            edited("a/src/a.cpp b/src/a.cpp", "a//etc/x b//etc/x"),
            ":6: /etc/x is not a plain path within the tree",
        ),
        (
            edited("a/src/a.cpp b/src/a.cpp", "/etc/x /etc/x"),
            ":6: /etc/x is not a plain path within the tree",
        ),
        (edited("a/src/a.cpp b/src/a.cpp", "a/../x b/../x"), ":6: ../x leaves the source tree"),
        (
            edited("a/src/a.cpp b/src/a.cpp", "a/s/../../x b/s/../../x"),
            ":6: s/../../x leaves the source tree",
        ),
        (
            edited("a/src/a.cpp b/src/a.cpp", "a/.git/hooks/x b/.git/hooks/x"),
            ":6: .git/hooks/x leaves the source tree",
        ),
        (edited("a/src/a.cpp b/src/a.cpp", "src/a.cpp src/a.cpp"), ":6: src/a.cpp does not start with a/"),
        (edited("a/src/a.cpp b/src/a.cpp", "a/src/a.cpp b/src/b.cpp"), ":6: renames src/a.cpp"),
        (edited("a/src/a.cpp b/src/a.cpp", "a/s a.cpp b/s a.cpp"), ":6: names no plain paths"),
        (
            edited("a/src/a.cpp b/src/a.cpp", '"a/\\303" "b/\\303"'),
            ':6: "a/\\303" is not a plain path within the tree',
        ),
        (edited("new file mode 100644", "new file mode 120000"), ":19: src/new.cpp gets mode 120000"),
        (edited("new file mode 100644", "new file mode 160000"), ":19: src/new.cpp gets mode 160000"),
        (edited("new file mode 100644", "rename from x"), ":19: renames or copies src/new.cpp"),
        (edited("new file mode 100644", "nonsense"), ":19: is no line of a git diff"),
        (edited("@@ -0,0 +1,2 @@", "@@ -1,1 +1,2 @@"), ":22: a new file has no old lines"),
        (VALID + "-- \n2.39.5\n" + DIFF, ":33: there is text behind the end of the diff"),
        (VALID + DIFF, ":31: src/a.cpp is changed twice"),
        (HEADER + "diff --git a/x b/x\n", ":6: changes nothing in x"),
        (
            HEADER + "diff --git a/x.png b/x.png\nGIT binary patch\nliteral 1\nIcmZ\n",
            ":7: x.png is changed as a binary file",
        ),
        (
            HEADER + "diff --git a/x.png b/x.png\nBinary files a/x.png and b/x.png differ\n",
            ":7: x.png is changed as a binary file",
        ),
    ],
)
def test_a_bad_patch_names_its_line(text: str, message: str) -> None:
    assert refusal(text) == f"0001-x.patch{message}"


def test_bytes_that_are_no_utf8_name_their_line() -> None:
    with pytest.raises(UsageError) as caught:
        decode_text(b"one\ntwo\n\xff\n", name="x.patch")
    assert caught.value.message == "x.patch:3: byte 0xff is not UTF-8"


@patient
@given(st.text(alphabet=st.characters(codec=None)))
def test_any_text_as_a_patch_raises_nothing_but_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        parse_patch("x.patch", text)


@patient
@given(st.data())
def test_any_edit_of_a_patch_raises_nothing_but_usage_errors(data: st.DataObject) -> None:
    lines = VALID.split("\n")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        kind = data.draw(st.sampled_from(["drop", "double", "insert", "replace", "cut"]))
        if kind == "drop":
            del lines[at]
        elif kind == "double":
            lines.insert(at, lines[at])
        elif kind == "insert":
            lines.insert(at, data.draw(st.one_of(st.text(max_size=12), st.sampled_from(lines))))
        elif kind == "replace":
            lines[at] = data.draw(st.text(max_size=12))
        else:
            lines[at] = lines[at][: data.draw(st.integers(0, 20))]
        lines = lines or [""]
    try:
        patch = parse_patch("x.patch", "\n".join(lines))
    except UsageError:
        return
    assert patch.files
    assert all(".." not in change.path.split("/") for change in patch.files)


LINES = st.lists(st.sampled_from(["a", "b", "c", "", "  d", "+e", "-- f", "@@ g", "\\ h"]), max_size=30)


@patient
@given(LINES, LINES)
def test_the_counts_are_those_of_the_diff(old: list[str], new: list[str]) -> None:
    diff = list(difflib.unified_diff(old, new, "a/x", "b/x", lineterm=""))
    if not diff or not old or not new:
        return
    text = HEADER + "\n".join(["diff --git a/x b/x", *diff]) + "\n"
    change = parse_patch("x.patch", text).files[0]
    assert change.added == sum(line.startswith("+") for line in diff[2:])
    assert change.removed == sum(line.startswith("-") for line in diff[2:])
    assert len(change.hunks) == sum(line.startswith("@@ -") for line in diff[2:])


# --- the series as a value ---


def test_the_digest_changes_with_every_byte_name_and_order() -> None:
    one, two = ("0001-a.patch", VALID), ("0002-b.patch", VALID.replace("lost", "gone"))
    series = [
        make_series("s", []),
        make_series("s", [one]),
        make_series("s", [one, two]),
        make_series("s", [two, one]),
        make_series("s", [("0001-b.patch", one[1])]),
        make_series("s", [(one[0], one[1].replace("lost", "list"))]),
    ]
    assert len({each.digest for each in series}) == len(series)
    assert series[2].digest == make_series("of another name", [one, two]).digest
    assert series[2].short == series[2].digest[:12]
    assert series[0].is_empty
    assert not series[1].is_empty
    assert series[2].files == ("old.txt", "src/a.cpp", "src/new.cpp")
    assert PatchSeries(name="s") == series[0]


def test_the_digest_can_be_recomputed_by_hand() -> None:
    listed = f"0001-a.patch\0{hashlib.sha256(VALID.encode()).hexdigest()}\n"
    assert make_series("s", [("0001-a.patch", VALID)]).digest == hashlib.sha256(listed.encode()).hexdigest()


# --- the folder ---


def folder(tmp_path: Path, series: str | None, **patches: str) -> Path:
    path = tmp_path / "patches" / "p"
    path.mkdir(parents=True)
    if series is not None:
        (path / "series").write_text(series)
    for stem, text in patches.items():
        (path / f"{stem}.patch").write_text(text)
    return path


def test_a_folder_is_read_in_the_order_of_its_series(tmp_path: Path) -> None:
    series = load_series(folder(tmp_path, "b.patch\na.patch\n# off: c.patch\n", a=VALID, b=VALID, c="broken"))
    assert series.name == "p"
    assert [patch.name for patch in series.patches] == ["b.patch", "a.patch"]


@pytest.mark.parametrize(
    ("series", "patches", "message"),
    [
        (None, {}, "patches/p/series does not exist"),
        ("# one\na.patch\nb.patch\n", {"a": VALID}, "patches/p/series:3: b.patch is missing"),
        ("a.patch\n", {"a": VALID, "b": VALID}, "patches/p/b.patch is not named by patches/p/series"),
        (
            "a.patch\n",
            {"a": VALID.replace("+TWO", "+TWO ")},
            "patches/p/a.patch:12: an added line ends in white space",
        ),
    ],
)
def test_a_bad_folder_names_the_file(
    tmp_path: Path, series: str | None, patches: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_series(folder(tmp_path, series, **patches))
    assert caught.value.message == message


def test_a_patch_that_is_a_folder_is_missing(tmp_path: Path) -> None:
    path = folder(tmp_path, "a.patch\n")
    (path / "a.patch").mkdir()
    with pytest.raises(UsageError, match=r"series:1: a.patch is missing"):
        load_series(path)


# --- the patches that this project carries ---


@pytest.mark.parametrize("path", sorted(PATCHES.glob("*/series")), ids=lambda path: path.parent.name)
def test_every_carried_patch_says_what_it_is(path: Path) -> None:
    series = load_series(path.parent)
    assert [patch.name for patch in series.patches] == sorted(patch.name for patch in series.patches)
    for number, patch in enumerate(series.patches, start=1):
        assert patch.name.startswith(f"{number:04}-")
        for heading in ("What:", "Why:", "Proven:", "Upstream status:"):
            assert f"\n{heading} " in f"\n{patch.body}", f"{patch.name} does not say {heading}"
        assert "\nindex " not in patch.text, f"{patch.name}: index lines change without need"
        assert "\nDate:" not in patch.text
