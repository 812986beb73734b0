"""Dumps of logits and nodes, written as ``debug-logits.patch`` does, whole and damaged."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from gpu_proof.dumps import DumpError, compare_logits, compare_nodes, nmse, read_logits, read_nodes

LIMIT = 1e-6


def logits(*steps: Sequence[float], prompt: int = 9, rows: int = 2, first: int = 0) -> bytes:
    return b"".join(
        struct.pack("<6i", 0x474C4744, 1, prompt, first + number, rows, len(values) // rows)
        + struct.pack(f"<{len(values)}f", *values)
        for number, values in enumerate(steps)
    )


def node(name: str, *values: float, operation: int = 7) -> bytes:
    shape = (len(values), 1, 1, 1)
    head = struct.pack("<i64s6i", 0x4E474744, name.encode(), operation, *shape, len(values))
    return head + struct.pack(f"<{len(values)}f", *values)


ONE = (1.0, 2.0, 3.0, 4.0)
TWO = (4.0, 3.0, 2.0, 1.0)
WHOLE = logits(ONE, TWO)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def to(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return to


Write = Callable[[str, bytes], Path]


def test_a_dump_is_read_step_by_step(write: Write) -> None:
    steps = list(read_logits(write("a", WHOLE)))
    assert [step.head for step in steps] == [(9, 0, 2, 2), (9, 1, 2, 2)]
    assert [step.values.tolist() for step in steps] == [list(ONE), list(TWO)]


def test_equal_dumps_agree(write: Write) -> None:
    found = compare_logits(write("a", WHOLE), write("b", WHOLE), same_reply=True)
    assert (found.nmse, found.first_difference, found.problem) == ([0.0, 0.0], None, None)
    assert found.agrees(LIMIT)
    assert found.summary() == {
        "same_reply": True,
        "steps": 2,
        "first_step_that_differs": None,
        "nmse": [0.0, 0.0],
        "nmse_max": 0.0,
        "nmse_step_0": 0.0,
    }


def test_equal_logits_with_another_reply_do_not_agree(write: Write) -> None:
    assert not compare_logits(write("a", WHOLE), write("b", WHOLE), same_reply=False).agrees(LIMIT)


def test_the_error_is_normalised_by_the_variance_and_judged_by_the_worst_step(write: Write) -> None:
    found = compare_logits(write("a", WHOLE), write("b", logits(ONE, (4.0, 3.0, 2.0, 1.5))), same_reply=True)
    assert found.nmse == [0.0, pytest.approx(0.25 / 4 / 1.25)]
    assert found.first_difference == 1
    assert found.worst == pytest.approx(0.05)
    assert not found.agrees(LIMIT)
    assert found.agrees(0.06)


def test_a_value_that_is_no_number_agrees_with_nothing(write: Write) -> None:
    broken = logits(ONE, (4.0, math.nan, 2.0, 1.0))
    for other in (WHOLE, broken):
        found = compare_logits(write("a", broken), write("b", other), same_reply=True)
        assert found.nmse == [0.0, math.inf]
        assert not found.agrees(LIMIT)


def test_nan_in_a_later_step_is_not_hidden_by_the_ones_before() -> None:
    # max() of numbers and NaN depends on their order; an infinite error does not.
    nan = np.array([math.nan], np.float32)
    assert max(0.0, nmse(nan, nan), 0.0) == math.inf


@pytest.mark.parametrize(
    ("data", "problem", "steps"),
    [
        (WHOLE[:-4], "step 1 of b is cut off", 1),
        (WHOLE[:-1], "step 1 of b is cut off", 1),
        (WHOLE[: len(WHOLE) // 2 + 10], "step 1 of b is cut off", 1),
        (WHOLE[: len(WHOLE) // 2], "b ends after 1 steps, the other goes on", 1),
        (WHOLE + logits(ONE, first=2), "a ends after 2 steps, the other goes on", 2),
        (b"", "b is empty", 0),
        (b"GGUF" + WHOLE[4:], "step 0 of b does not start as a dump of logits does", 0),
        (
            logits(ONE, TWO, rows=1),
            "step 0 is of another prompt, step or canvas: (9, 0, 2, 2), (9, 0, 1, 4)",
            0,
        ),
        (
            logits(ONE, TWO, prompt=8),
            "step 0 is of another prompt, step or canvas: (9, 0, 2, 2), (8, 0, 2, 2)",
            0,
        ),
        (struct.pack("<6i", 0x474C4744, 1, 9, 0, -2, 2) + WHOLE, "step 0 of b is cut off", 0),
    ],
)
def test_what_can_not_be_compared_is_said_and_does_not_agree(
    write: Write, data: bytes, problem: str, steps: int
) -> None:
    found = compare_logits(write("a", WHOLE), write("b", data), same_reply=True)
    assert (found.problem, len(found.nmse)) == (problem, steps)
    assert not found.agrees(LIMIT)
    assert found.summary()["problem"] == problem


def test_a_run_without_a_dump_agrees_with_nothing(write: Write, tmp_path: Path) -> None:
    found = compare_logits(write("a", WHOLE), tmp_path / "b", same_reply=True)
    assert (found.problem, found.worst, found.agrees(LIMIT)) == ("there is no b", None, False)


def test_the_whole_steps_of_a_dump_that_is_cut_off_are_read(write: Write) -> None:
    steps = read_logits(write("a", WHOLE[:-1]))
    assert next(steps).values.tolist() == list(ONE)
    with pytest.raises(DumpError, match="step 1 of a is cut off"):
        next(steps)


GRAPHS = node("inp_scaled", 1.0, 2.0) + node("l_out-0", 3.0, math.nan)


def test_nodes_are_read_in_the_order_of_computation(write: Write) -> None:
    nodes = list(read_nodes(write("a", GRAPHS)))
    assert [(one.name, one.operation, len(one.values)) for one in nodes] == [
        ("inp_scaled", 7, 2),
        ("l_out-0", 7, 2),
    ]


def test_equal_nodes_do_not_differ_even_where_they_are_no_number(write: Write) -> None:
    found = compare_nodes(write("a", GRAPHS * 2), write("b", GRAPHS * 2))
    assert found.summary() == {"nodes": 4, "graphs": 2, "differ": 0, "first": [], "last": [], "nmse": {}}


def test_a_node_that_differs_is_named_with_its_graph(write: Write) -> None:
    other = GRAPHS + node("inp_scaled", 1.0, 2.5) + node("l_out-0", 3.0, math.nan)
    found = compare_nodes(write("a", GRAPHS * 2), write("b", other))
    assert found.differing == ["graph 1 inp_scaled op 7 nmse 0.5"]
    assert found.nmse == {"1 inp_scaled": 0.5}
    assert found.problem is None


@pytest.mark.parametrize(
    ("data", "problem", "nodes"),
    [
        (GRAPHS[:-1], "node 1 of b is cut off", 1),
        (GRAPHS[:-50], "node 1 of b is cut off", 1),
        (GRAPHS[: len(GRAPHS) // 2], "b ends after 1 nodes, the other goes on", 1),
        (
            node("inp_scaled", 1.0, 2.0) + node("l_out-1", 3.0, 4.0),
            "node 1 is another one: l_out-0, l_out-1",
            2,
        ),
        (b"", "b is empty", 0),
        (WHOLE * 2, "node 0 of b does not start as a dump of nodes does", 0),
    ],
)
def test_nodes_that_can_not_be_compared_are_said(write: Write, data: bytes, problem: str, nodes: int) -> None:
    found = compare_nodes(write("a", GRAPHS), write("b", data))
    assert (found.problem, found.nodes) == (problem, nodes)
    assert found.summary()["problem"] == problem
