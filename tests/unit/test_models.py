"""Which file the command line and the matrix mean together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_images.errors import UsageError
from llama_images.matrix import parse_matrix
from llama_images.models import choose_model

EXAMPLE = (Path(__file__).parent / "example_matrix.yaml").read_text(encoding="utf-8")
MATRIX = parse_matrix(EXAMPLE, name="m.yaml")
WITHOUT = parse_matrix(re.sub(r"\nmodels:\n(  .*\n)+|  model: .*\n", "", EXAMPLE), name="m.yaml")
PIN = MATRIX.models["gemma-q4"]
OTHER = "0" * 40
HASH = "1" * 64


def test_the_default_is_the_pinned_file() -> None:
    wanted = choose_model(MATRIX)
    assert (wanted.repository, wanted.file) == ("owner/Gemma-26B-GGUF", "Gemma-26B-Q4_K_M.gguf")
    assert (wanted.revision, wanted.sha256) == (PIN.revision, PIN.sha256)
    assert choose_model(MATRIX, model="gemma-q4") == wanted


def test_what_names_the_pinned_file_again_keeps_its_hash() -> None:
    same = choose_model(MATRIX, repository=PIN.repository, file=PIN.file, revision=PIN.revision)
    assert same == choose_model(MATRIX)


def test_another_revision_is_another_file() -> None:
    assert choose_model(MATRIX, revision=OTHER).sha256 is None
    assert choose_model(MATRIX, revision=OTHER, sha256=HASH).sha256 == HASH


def test_another_file_of_the_repository_keeps_the_revision_and_loses_the_hash() -> None:
    wanted = choose_model(MATRIX, file="sub/Gemma-26B-Q8_0.gguf")
    assert (wanted.revision, wanted.sha256, wanted.name) == (PIN.revision, None, "Gemma-26B-Q8_0.gguf")


def test_another_repository_loses_revision_and_hash() -> None:
    wanted = choose_model(MATRIX, repository="else/Gemma")
    assert (wanted.file, wanted.revision, wanted.sha256) == (PIN.file, "main", None)


def test_a_matrix_without_models_takes_both_names_from_the_command_line() -> None:
    wanted = choose_model(WITHOUT, repository="a/b", file="c.gguf")
    assert (wanted.repository, wanted.file, wanted.revision, wanted.sha256) == ("a/b", "c.gguf", "main", None)
    for half in ({}, {"repository": "a/b"}, {"file": "c.gguf"}):
        with pytest.raises(UsageError, match="names no model") as caught:
            choose_model(WITHOUT, **half)
        assert caught.value.hint is not None
        assert "--repo" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "gemma-q5"}, ('--model "gemma-q5"', 'did you mean "gemma-q4"')),
        ({"repository": "https://h/a/b"}, ("--repo", "OWNER/NAME")),
        ({"repository": "a"}, ("--repo", "OWNER/NAME")),
        ({"file": "../x.gguf"}, ("--file", ".gguf")),
        ({"file": "x.bin"}, ("--file", ".gguf")),
        ({"revision": "a b"}, ("--revision", "branch")),
        ({"revision": "../.."}, ("--revision", "branch")),
        ({"sha256": "ABC"}, ("--sha256", "64")),
    ],
)
def test_what_has_the_wrong_form_is_named(options: dict[str, str], words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        choose_model(MATRIX, **options)
    assert all(word in caught.value.message for word in words), caught.value.message


@given(
    repository=st.none() | st.just(PIN.repository) | st.text(max_size=12),
    file=st.none() | st.just(PIN.file) | st.text(max_size=12),
    revision=st.none() | st.just(PIN.revision) | st.sampled_from(["main", "v1"]) | st.text(max_size=12),
    sha256=st.none() | st.just(HASH) | st.text(max_size=12),
)
def test_the_pinned_hash_is_only_asked_of_the_pinned_file(
    repository: str | None, file: str | None, revision: str | None, sha256: str | None
) -> None:
    refusal: UsageError | None = None
    try:
        wanted = choose_model(MATRIX, repository=repository, file=file, revision=revision, sha256=sha256)
    except UsageError as error:
        refusal = error
    if refusal is not None:
        assert refusal.message.isprintable()
        return
    if wanted.sha256 == PIN.sha256:
        assert (wanted.repository, wanted.file, wanted.revision) == (PIN.repository, PIN.file, PIN.revision)
    else:
        assert wanted.sha256 in (None, HASH)
    assert not wanted.name.startswith(".")
    assert "/" not in wanted.name
