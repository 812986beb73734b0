"""Names of images as people type them."""

from __future__ import annotations

import pytest

from llama_images.errors import UsageError
from llama_images.references import Repository, parse_reference, parse_repository

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "host", "name"),
    [
        ("ghcr.io/me/llama-diffusion", "ghcr.io", "me/llama-diffusion"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000", "x"),
        ("localhost/a/b__c/d.e", "localhost", "a/b__c/d.e"),
        ("[::1]:5000/x", "[::1]:5000", "x"),
        ("docker://ghcr.io/me/x", "ghcr.io", "me/x"),
    ],
)
def test_a_repository(text: str, host: str, name: str) -> None:
    assert parse_repository(text) == Repository(host=host, name=name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("llama-diffusion", "names no registry"),
        ("me/llama-diffusion", "names no registry"),
        ("", "names no registry"),
        ("https://ghcr.io/me/x", "names no registry"),
        ("user:password@ghcr.io/me/x", "names no registry"),
        ("ghcr.io/", "is no name of a repository"),
        ("ghcr.io/Me/x", "is no name of a repository"),
        ("ghcr.io/me/x:tag", "is no name of a repository"),
        ("ghcr.io/me//x", "is no name of a repository"),
        ("ghcr.io/me/../x", "is no name of a repository"),
        ("ghcr.io/" + "A" * 500, "is no name of a repository"),
    ],
)
def test_what_is_no_repository(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_repository(text)
    assert caught.value.hint
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("text", "shown", "tag"),
    [
        ("ghcr.io/me/x", "ghcr.io/me/x:latest", "latest"),
        ("ghcr.io/me/x:sm120", "ghcr.io/me/x:sm120", "sm120"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest", "latest"),
        ("127.0.0.1:5000/x:cpu", "127.0.0.1:5000/x:cpu", "cpu"),
        (f"ghcr.io/me/x@{DIGEST}", f"ghcr.io/me/x@{DIGEST}", None),
        (f"ghcr.io/me/x:sm120@{DIGEST}", f"ghcr.io/me/x@{DIGEST}", "sm120"),
    ],
)
def test_a_reference(text: str, shown: str, tag: str | None) -> None:
    reference = parse_reference(text)
    assert str(reference) == shown
    assert reference.tag == tag


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x:latest", "names no registry"),
        ("ghcr.io/me/x:", "is no tag"),
        ("ghcr.io/me/x:-a", "is no tag"),
        ("ghcr.io/me/x@sha256:12", "what follows @ is no digest"),
        (f"ghcr.io/me/x@{DIGEST.upper()}", "what follows @ is no digest"),
    ],
)
def test_what_is_no_reference(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_reference(text)
