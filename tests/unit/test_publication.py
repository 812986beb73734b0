"""What a manifest's annotations say of its version."""

from __future__ import annotations

import pytest

from llama_images.publication import VERSION, version_of


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.10.1", (0, 10, 1)), ("1", (1,)), ("1.²", None), ("1.x", None), ("", None), ("1..2", None)],
)
def test_a_version_is_whole_numbers(text: str, version: tuple[int, ...] | None) -> None:
    assert version_of({VERSION: text}) == version
    assert version_of({}) is None
