"""Rows to text: aligned, wrapped, complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_images.matrix import Matrix, load_matrix
from llama_images.patch_series import PatchSeries, make_series
from llama_images.ports import Layer
from llama_images.tables import (
    demo_table,
    layer_rows,
    layer_table,
    matrix_rows,
    matrix_table,
    patch_rows,
    table,
)
from llama_images.workflows.demo import DemoLog

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return load_matrix(ROOT / "matrix.yaml")


@pytest.fixture(scope="module")
def series(matrix: Matrix) -> dict[str, PatchSeries]:
    return {source.series: make_series(source.series, []) for source in matrix.sources.values()}


def test_columns_line_up_and_numbers_go_right() -> None:
    text = table(("name", "size", "what"), [["a", "1", "x"], ["long name", "1000", "y"]], right=(1,))
    assert text.splitlines() == [
        "name       size  what",
        "---------  ----  ----",
        "a             1  x",
        "long name  1000  y",
    ]


def test_the_last_column_is_wrapped_under_itself() -> None:
    text = table(("a", "b"), [["x", "one two three four five six seven"]], width=24)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 24
    assert lines[3].startswith("   ")
    assert " ".join(" ".join(line[3:].split()) for line in lines[2:]) == "one two three four five six seven"


@given(st.lists(st.lists(st.text("abc é-", max_size=30), min_size=3, max_size=3), max_size=5))
def test_no_cell_is_lost(rows: list[list[str]]) -> None:
    text = table(("a", "b", "c"), rows)
    found = text.split()
    for row in rows:
        for cell in row:
            for word in cell.split():
                assert any(word in part for part in found)


def test_the_matrix_table_has_a_row_for_every_architecture(matrix: Matrix) -> None:
    text = matrix_table(matrix)
    names = [
        line.split()[0] for line in text.splitlines()[2:] if line and not line.startswith((" ", "Each", "*"))
    ]
    assert names == list(matrix.architectures)
    assert max(map(len, text.splitlines())) <= 100
    assert "nvidia*" in text
    assert "unpinned" in text


def test_matrix_rows_are_json_and_name_what_is_unpinned(
    matrix: Matrix, series: dict[str, PatchSeries]
) -> None:
    rows = json.loads(json.dumps(matrix_rows(matrix, series)))
    by_id = {row["id"]: row for row in rows}
    assert by_id["sm120"]["unpinned"] == []
    assert by_id["sm120"]["series_digest"] == series["pr24423"].digest
    assert by_id["sm120-stock"]["series_digest"] is None
    assert len(by_id["sm120-nvidia"]["unpinned"]) == 2


def test_patch_rows_of_an_empty_series(series: dict[str, PatchSeries]) -> None:
    assert patch_rows(series) == []


def test_layers_are_summed() -> None:
    layers = [
        Layer(
            diff_id="sha256:" + "a" * 64,
            size_bytes=2_000_000,
            compressed_bytes=1_000_000,
            created_by="COPY a",
        ),
        Layer(
            diff_id="sha256:" + "b" * 64, size_bytes=3_000_000, compressed_bytes=500_000, created_by="COPY b"
        ),
    ]
    last = layer_table({"cpu": layers}).splitlines()[-1].split()
    assert last == ["cpu", "all", "5.0", "1.5"]
    assert [row["bytes"] for row in layer_rows({"cpu": layers})["cpu"]] == [2_000_000, 3_000_000]


def test_the_demo_log_is_true_when_a_part_fails() -> None:
    log = DemoLog()
    with log.part("one") as say:
        say("fine")
    with pytest.raises(ValueError, match="broken"), log.part("two"):
        raise ValueError("broken")
    text = demo_table(log)
    assert "fine" in text
    assert "failed: ValueError('broken')" in text
    assert text.splitlines()[-1].startswith("all")
