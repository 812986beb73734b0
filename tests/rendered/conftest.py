"""The real matrix, the real templates, the real series."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_images.adapters.patch_files import load_series
from llama_images.matrix import load_matrix
from llama_images.render import Inputs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def inputs() -> Inputs:
    matrix = load_matrix(ROOT / "matrix.yaml")
    return Inputs(
        matrix=matrix,
        series={s.series: load_series(ROOT / "patches" / s.series) for s in matrix.sources.values()},
        templates={path.name: path.read_text("utf-8") for path in (ROOT / "templates").glob("*.j2")},
        readme=(ROOT / "README.md").read_text("utf-8"),
    )
