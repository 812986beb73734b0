"""Which image runs on which GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_images.capabilities import driver_is_enough, runs_on
from llama_images.matrix import load_matrix

MATRIX = load_matrix(Path(__file__).resolve().parents[2] / "matrix.yaml")


@pytest.mark.parametrize(
    ("capability", "sass", "ptx", "runs"),
    [
        ("12.0", ["120a"], [], True),
        ("12.1", ["120a"], [], False),
        ("12.0", ["121a"], [], False),
        ("9.0", ["90"], [], True),
        ("9.0", ["120a"], [], False),
        ("8.9", ["86"], [], True),  # same major number, higher minor one
        ("8.0", ["86"], [], False),
        ("9.0", ["86"], [], False),
        ("10.3", ["100f"], [], True),
        ("12.0", ["75"], ["75"], True),  # PTX, compiled by the driver
        ("7.0", ["75"], ["75"], False),
        ("9.0", ["sm_90"], [], True),
        ("9.0", [], ["compute_75"], True),
        ("9.0", [], [], False),
        ("", ["90"], [], False),
        ("[N/A]", ["90"], ["75"], False),
    ],
)
def test_runs_on(capability: str, sass: list[str], ptx: list[str], runs: bool) -> None:
    assert runs_on(capability, sass=sass, ptx=ptx) == runs


@pytest.mark.parametrize("name", [name for name in MATRIX.architectures if name.isdigit()])
def test_every_image_runs_on_the_gpus_that_it_is_for_and_so_does_portable(name: str) -> None:
    row = MATRIX.architectures[name]
    capability = f"{int(name) // 10}.{int(name) % 10}"
    assert runs_on(capability, sass=row.sass, ptx=row.ptx)
    portable = MATRIX.architectures["portable"]
    assert runs_on(capability, sass=portable.sass, ptx=portable.ptx) == (row.toolkit == portable.toolkit)


@pytest.mark.parametrize(
    ("found", "wanted", "enough"),
    [
        ("580.65.06", "580.65.06", True),
        ("580.159.04", "580.65.06", True),
        ("580.159", "580.65.06", True),
        ("575.57.08", "580.65.06", False),
        ("580.65", "580.65.06", False),
        ("1000.1", "580.65.06", True),
    ],
)
def test_driver_is_enough(found: str, wanted: str, enough: bool) -> None:
    assert driver_is_enough(found, wanted) == enough
