"""Patches as they are written: one form, read back as what was meant."""

from __future__ import annotations

import difflib
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_images.errors import UsageError
from llama_images.patch_format import (
    MAINTAINERS,
    SECTIONS,
    first_difference,
    format_patch,
    missing_sections,
    patch_name,
    series_comments,
    series_text,
    split_message,
)
from llama_images.patch_series import parse_patch, parse_series

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

BODY = "What: a.\n\nWhy: b.\n\nProven: c.\n\nUpstream status: not sent."
DIFF = """\
diff --git a/src/a.cpp b/src/a.cpp
index 1111111111111111111111111111111111111111..2222222222222222222222222222222222222222 100644
--- a/src/a.cpp
+++ b/src/a.cpp
@@ -1,2 +1,2 @@
 index of things
-one
+two
diff --git a/src/empty.h b/src/empty.h
new file mode 100644
index 0000000..e69de29
"""


# --- the body ---


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (BODY, ()),
        (BODY.replace("Proven: c.", "Proven:\n(two GPUs)\nc."), ()),
        (BODY.replace("Proven: c.", "Proven:"), ("Proven",)),
        (BODY.replace("Proven: c.", "Proven:  \n"), ("Proven",)),
        (BODY.replace("Upstream status: not sent.", ""), ("Upstream status",)),
        (BODY.replace("Why: b.", "It says Why: b."), ("Why",)),
        (BODY.replace("What:", "what:"), ("What",)),
        ("", SECTIONS),
    ],
)
def test_a_body_says_all_four_things(body: str, missing: tuple[str, ...]) -> None:
    assert missing_sections(body) == missing


@pytest.mark.parametrize(
    ("message", "subject", "body"),
    [
        ("a: b\n\nWhy: c.\n", "a: b", "Why: c."),
        ("\n\na: b  \nthat goes on\n\n\nWhy: c. \t\n\n\n", "a: b that goes on", "Why: c."),
        ("a: b\n\n#24423 is a line like any other\n", "a: b", "#24423 is a line like any other"),
        ("a: b\n\none\n\n\ntwo\n", "a: b", "one\n\n\ntwo"),
        ("a: b", "a: b", ""),
        ("", "", ""),
    ],
)
def test_a_message_is_cut_into_subject_and_body(message: str, subject: str, body: str) -> None:
    assert split_message(message) == (subject, body)


# --- the file ---


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("diffusion-cli: let thinking be switched off", "diffusion-cli-let-thinking-be-switched-off"),
        ("ggml: keep each layer's place", "ggml-keep-each-layers-place"),
        ("a" * 80, "a" * 60),
        (f"{'a' * 30} {'b' * 29} c", f"{'a' * 30}-{'b' * 29}"),
        (f"{'a' * 30} {'b' * 30}", "a" * 30),
        ("../../etc: x", "etc-x"),
        ("über: größe", "ber-gr-e"),
        ("…", "patch"),
    ],
)
def test_a_file_is_named_by_its_subject(subject: str, name: str) -> None:
    assert patch_name(7, subject) == f"0007-{name}.patch"


@patient
@given(st.integers(1, 9999), st.text(max_size=200))
def test_every_name_may_stand_in_a_series(number: int, subject: str) -> None:
    name = patch_name(number, subject)
    assert parse_series(f"{name}\n", name="series") == (name,)
    assert len(name) <= len("0000-.patch") + 60


def test_a_patch_is_its_header_and_its_diff_and_nothing_more() -> None:
    patch = format_patch(2, "ggml: count", BODY, DIFF)
    wanted = re.sub(r"^index [0-9a-f.]+.*\n", "", DIFF, flags=re.MULTILINE)
    assert wanted.count("index of things") == 1
    assert patch.name == "0002-ggml-count.patch"
    assert patch.text == f"From: {MAINTAINERS}\nSubject: ggml: count\n\n{BODY}\n---\n{wanted}"
    assert [change.path for change in patch.files] == ["src/a.cpp", "src/empty.h"]


@pytest.mark.parametrize(
    ("subject", "body", "diff", "message"),
    [
        ("[PATCH] a: b", BODY, DIFF, ":2: the subject would be read back as 'a: b'"),
        ("", BODY, DIFF, ":1: the header has no Subject:"),
        ("a: b", "", DIFF, ":5: the header does not say why"),
        ("a: b", f"{BODY}\n---\nmore", DIFF, ":4: the body would be cut short"),
        ("a: b", f"{BODY}\n+++ more", DIFF, ":11: looks like a diff in another form than git's"),
        ("a: b", BODY, "", ": the commit changes nothing that a patch can carry"),
        ("a: b", BODY, DIFF.replace("+two", "+two "), ":18: an added line ends in white space"),
        ("a: b", BODY, DIFF.replace("a.cpp", "a b.cpp"), ":12: names no plain paths"),
    ],
)
def test_what_can_not_be_carried_is_refused(subject: str, body: str, diff: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        format_patch(1, subject, body, diff)
    assert caught.value.message == f"{patch_name(1, subject)}{message}"


LINES = st.lists(
    st.sampled_from(
        ["a", "b", "", "index 12..34", "-- ", "diff --git a/x b/x", "--- a/x", "@@ -1 +1 @@", "\\"]
    ),
    min_size=1,
    max_size=30,
)
PROSE = st.text(st.characters(codec="utf-8"), max_size=80)


@patient
@given(PROSE, PROSE, LINES, LINES)
def test_what_is_written_is_read_back(subject: str, body: str, old: list[str], new: list[str]) -> None:
    diff = [*difflib.unified_diff(old, new, "a/x", "b/x", lineterm="")]
    text = "\n".join(["diff --git a/x b/x", "index 0123..4567 100644", *diff, ""])
    try:
        patch = format_patch(1, subject, body, text)
    except UsageError:
        return
    assert (patch.subject, patch.body) == (subject, body)
    assert parse_patch(patch.name, patch.text) == patch
    assert format_patch(1, patch.subject, patch.body, text) == patch
    added = [line for line in diff[2:] if line.startswith("+")]
    assert patch.added == len(added)
    assert "\nindex 0123..4567" not in patch.text


@patient
@given(st.text(st.characters(codec="utf-8"), max_size=120))
def test_a_message_that_was_cut_stays_as_it_is(message: str) -> None:
    subject, body = split_message(message)
    assert split_message(f"{subject}\n\n{body}") == (subject, body)


def test_the_first_line_that_differs_is_named() -> None:
    one = format_patch(1, "a: b", BODY, DIFF)
    assert first_difference(one, one) is None
    other = format_patch(1, "a: b", BODY.replace("Why: b", "Why: d"), DIFF)
    assert first_difference(one, other) == 6
    signed = parse_patch("0001-a.patch", f"{one.text}-- \n2.39.5\n")
    assert first_difference(signed, one) == len(one.text.split("\n"))


# --- the series file ---


def test_a_series_file_says_what_it_is_and_keeps_its_comments() -> None:
    text = series_text(["0001-a.patch"], source="pr1")
    assert text.splitlines()[1:] == ["0001-a.patch"]
    assert "pins for pr1." in text.splitlines()[0]
    old = "# mine\n\n0001-a.patch # a note\n  # indented\n0002-b.patch\n"
    assert series_comments(old) == ("# mine", "  # indented")
    new = series_text(["0001-c.patch", "0002-d.patch"], source="pr1", comments=series_comments(old))
    assert new == "# mine\n  # indented\n0001-c.patch\n0002-d.patch\n"
    assert parse_series(new, name="series") == ("0001-c.patch", "0002-d.patch")
    assert series_text(["0001-c.patch"], source="x", comments=series_comments(text)) != text
    assert series_text(["0001-a.patch"], source="x", comments=series_comments(text)) == text
