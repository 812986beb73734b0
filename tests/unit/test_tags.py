"""Names in a registry: fixed and moving tags of every target."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llama_images.errors import UsageError
from llama_images.matrix import Matrix, parse_matrix
from llama_images.patch_series import PatchSeries, make_series
from llama_images.selection import all_targets, make_target
from llama_images.tags import FixedTag, parse_fixed, published_tags

EXAMPLE = (Path(__file__).parent / "example_matrix.yaml").read_text(encoding="utf-8")
SERIES = make_series("pr24423", [])
SHORT = f"10a2613aa-{SERIES.short}"


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return parse_matrix(EXAMPLE, name="example_matrix.yaml")


def own(flavor: str) -> PatchSeries | None:
    return SERIES if flavor == "patched" else None


@pytest.mark.parametrize(
    ("arch", "flavor", "base", "prefix", "name", "moving"),
    [
        ("120", "patched", None, "", "cuda13.0-sm120", ["sm120"]),
        ("120", "stock", None, "stock-", "cuda13.0-sm120", ["stock-sm120"]),
        ("portable", "patched", None, "", "cuda13.0-portable", ["portable", "latest"]),
        ("portable", "stock", None, "stock-", "cuda13.0-portable", ["stock-portable"]),
        ("portable", "patched", "nvidia", "", "cuda13.0-portable-nvidia", ["portable-nvidia"]),
        ("70", "patched", "nvidia", "", "cuda12.9-sm70-nvidia", ["sm70-nvidia"]),
        ("70", "stock", "nvidia", "stock-", "cuda12.9-sm70-nvidia", ["stock-sm70-nvidia"]),
        ("cpu", "patched", None, "", "cpu", ["cpu"]),
    ],
)
def test_tags_of_a_target(
    matrix: Matrix, arch: str, flavor: str, base: str | None, prefix: str, name: str, moving: list[str]
) -> None:
    tags = published_tags(matrix, make_target(matrix, arch, flavor=flavor, base=base), own(flavor))
    commit = SHORT if flavor == "patched" else "10a2613aa"
    assert tags.all == (f"{prefix}1.2.3-{name}", f"{prefix}{commit}-{name}", *moving)
    assert (tags.version, tags.commit, *tags.moving) == tags.all


def test_no_two_targets_share_a_tag(matrix: Matrix) -> None:
    tags = [
        tag
        for target in all_targets(matrix)
        for tag in published_tags(matrix, target, own(target.flavor)).all
    ]
    assert len(set(tags)) == len(tags)
    assert all(re.fullmatch(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", tag) for tag in tags)


def test_what_is_the_default_of_the_matrix_has_no_prefix() -> None:
    text = EXAMPLE.replace("  flavor: patched", "  flavor: stock")
    matrix = parse_matrix(text, name="example_matrix.yaml")
    assert published_tags(matrix, make_target(matrix, "portable"), None).moving == ("portable", "latest")
    patched = published_tags(matrix, make_target(matrix, "portable", flavor="patched"), SERIES)
    assert patched.moving == ("patched-portable",)


def test_a_matrix_without_portable_has_no_latest() -> None:
    text = EXAMPLE[: EXAMPLE.index("  portable:\n")]
    matrix = parse_matrix(text, name="example_matrix.yaml")
    moving = [tag for target in all_targets(matrix) for tag in published_tags(matrix, target, None).moving]
    assert "latest" not in moving
    assert "sm120" in moving


def test_every_fixed_tag_is_read_back_and_no_moving_one(matrix: Matrix) -> None:
    for target in all_targets(matrix):
        tags = published_tags(matrix, target, own(target.flavor))
        name = tags.moving[0]
        fixed = parse_fixed(tags.version)
        assert fixed == FixedTag(version=(1, 2, 3), name=name)
        own_ids = [other.id for other in all_targets(matrix) if fixed.is_of(other.id)]
        assert own_ids == [target.id]
        assert parse_fixed(tags.commit) == FixedTag(version=None, name=name)
        assert [parse_fixed(tag) for tag in tags.moving] == [None] * len(tags.moving)


@pytest.mark.parametrize(
    "tag",
    [
        *("latest", "sha256-" + "0" * 64, "1.2.3", "1.2-cpu", "v1.2.3-cpu"),
        *("beta-1.2.3-cpu", "v-10a2613aa-cpu"),
        *("01.2.3-cpu", "10a2613a-cpu", "cpu-1.2.3", ""),
    ],
)
def test_other_tags_are_not_taken_for_ours(tag: str) -> None:
    assert parse_fixed(tag) is None


def test_a_name_that_no_registry_takes_is_refused() -> None:
    name = "a" * 100
    text = EXAMPLE.replace("  nvidia:\n", f"  {name}:\n")
    matrix = parse_matrix(text, name="example_matrix.yaml")
    with pytest.raises(UsageError, match=r"the tag .* has 1\d\d characters, a registry takes 128"):
        published_tags(matrix, make_target(matrix, "120", base=name), SERIES)
