"""What ``debug-logits.patch`` wrote, and how far two such files agree.

Pure but for reading the files. A file that ends early, or has other steps than the one beside it, is never
taken for one that agrees: ``problem`` says what is wrong, beside the figures of what could be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]

_LOGITS, _NODES = 0x474C4744, 0x4E474744  # "DGLG", "DGGN"
_VERSION = 1


class DumpError(Exception):
    """A dump that is not there, not whole, or no dump; the message names the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Logits:
    """The logits of one step."""

    prompt: int
    """Tokens before the canvas."""
    step: int
    rows: int
    vocabulary: int
    values: Floats
    """``rows`` times ``vocabulary``, row by row."""

    @property
    def head(self) -> tuple[int, int, int, int]:
        return self.prompt, self.step, self.rows, self.vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One node of a graph as it was computed."""

    name: str
    operation: int
    values: Floats
    """The first of them, as many as the dump was told to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two runs' replies and logits, step by step."""

    same_reply: bool
    """Both ended, with the same reply."""
    nmse: Sequence[float]
    """Of each step, as ``nmse`` gives it."""
    first_difference: int | None
    """First step in which a value differs, from 0 over all blocks."""
    problem: str | None
    """What kept steps from being compared."""

    @property
    def worst(self) -> float | None:
        return max(self.nmse, default=None)

    def agrees(self, limit: float) -> bool:
        """Whether the replies are the same, and every step's error is under ``limit``."""
        worst = self.worst
        return self.same_reply and self.problem is None and worst is not None and worst < limit

    def summary(self) -> dict[str, bool | int | float | str | Sequence[float] | None]:
        """As ``summary.json`` has it."""
        found: dict[str, bool | int | float | str | Sequence[float] | None] = {
            "same_reply": self.same_reply,
            "steps": len(self.nmse),
            "first_step_that_differs": self.first_difference,
            "nmse": self.nmse,
            "nmse_max": self.worst,
            "nmse_step_0": self.nmse[0] if self.nmse else None,
        }
        return found if self.problem is None else found | {"problem": self.problem}


def _load(path: Path) -> Bytes:
    try:
        if path.stat().st_size == 0:
            raise DumpError(f"{path.name} is empty")
        return np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise DumpError(f"there is no {path.name}") from None


def _values(data: Bytes, at: int, count: int, what: str) -> Floats:
    piece = data[at : at + 4 * count]
    if count < 0 or len(piece) < 4 * count:
        raise DumpError(f"{what} is cut off")
    return np.frombuffer(piece, np.float32)


def read_logits(path: Path) -> Iterator[Logits]:
    """The steps of a file of logits. Raises DumpError, after the steps that are whole."""
    data, at, number = _load(path), 0, 0
    while at < len(data):
        what = f"step {number} of {path.name}"
        if len(data) - at < 24:
            raise DumpError(f"{what} is cut off")
        magic, version, prompt, step, rows, vocabulary = np.frombuffer(data[at : at + 24], np.int32).tolist()
        if (magic, version) != (_LOGITS, _VERSION):
            raise DumpError(f"{what} does not start as a dump of logits does")
        values = _values(data, at + 24, rows * vocabulary, what)
        yield Logits(prompt=prompt, step=step, rows=rows, vocabulary=vocabulary, values=values)
        at += 24 + 4 * len(values)
        number += 1


def read_nodes(path: Path) -> Iterator[Node]:
    """The nodes of a file, in the order of computation. Raises DumpError, after those that are whole."""
    data, at, number = _load(path), 0, 0
    while at < len(data):
        what = f"node {number} of {path.name}"
        if len(data) - at < 92:
            raise DumpError(f"{what} is cut off")
        if np.frombuffer(data[at : at + 4], np.int32)[0] != _NODES:
            raise DumpError(f"{what} does not start as a dump of nodes does")
        name = bytes(data[at + 4 : at + 68]).split(b"\0")[0].decode("utf-8", "replace")
        operation, *_, count = np.frombuffer(data[at + 68 : at + 92], np.int32).tolist()
        values = _values(data, at + 92, count, what)
        yield Node(name=name, operation=operation, values=values)
        at += 92 + 4 * len(values)
        number += 1


def nmse(a: Floats, b: Floats) -> float:
    """The normalised mean square error of ``b`` against ``a``: mean((a-b)^2) / mean((a-mean a)^2).

    0 where every value agrees, else infinite where one is not finite; NaN agrees with nothing.
    """
    if np.array_equal(a, b):
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    return float(np.mean((wide_a - wide_b) ** 2) / max(float(np.var(wide_a)), 1e-300))


def compare_logits(a: Path, b: Path, *, same_reply: bool) -> Comparison:
    """Two files of logits, as far as both go and are of the same canvas."""
    errors: list[float] = []
    problem = None
    try:
        for x, y in zip_longest(read_logits(a), read_logits(b)):
            if x is None or y is None:
                raise DumpError(
                    f"{(a if x is None else b).name} ends after {len(errors)} steps, the other goes on"
                )
            if x.head != y.head:
                raise DumpError(
                    f"step {len(errors)} is of another prompt, step or canvas: {x.head}, {y.head}"
                )
            errors.append(nmse(x.values, y.values))
    except DumpError as error:
        problem = str(error)
    return Comparison(
        same_reply=same_reply,
        nmse=errors,
        first_difference=next((step for step, error in enumerate(errors) if error != 0), None),
        problem=problem,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeComparison:
    """Two runs' nodes, in the order of computation."""

    nodes: int
    graphs: int
    differing: Sequence[str]
    """A line for each node that differs."""
    nmse: dict[str, float]
    """By graph and node, of those that differ."""
    problem: str | None

    def summary(self) -> dict[str, int | str | Sequence[str] | dict[str, float]]:
        """As ``summary.json`` has it."""
        found: dict[str, int | str | Sequence[str] | dict[str, float]] = {
            "nodes": self.nodes,
            "graphs": self.graphs,
            "differ": len(self.differing),
            "first": self.differing[:12],
            "last": self.differing[-3:],
            "nmse": self.nmse,
        }
        return found if self.problem is None else found | {"problem": self.problem}


def compare_nodes(a: Path, b: Path) -> NodeComparison:
    """Two files of nodes, as far as both go and have the same nodes."""
    count, graph = 0, -1
    differing: list[str] = []
    errors: dict[str, float] = {}
    problem = None
    try:
        for x, y in zip_longest(read_nodes(a), read_nodes(b)):
            if x is None or y is None:
                raise DumpError(f"{(a if x is None else b).name} ends after {count} nodes, the other goes on")
            count += 1
            if x.name != y.name or len(x.values) != len(y.values):
                raise DumpError(f"node {count - 1} is another one: {x.name}, {y.name}")
            graph += x.name.startswith("inp_scaled")  # every graph's first named node
            if not np.array_equal(x.values, y.values, equal_nan=True):
                error = nmse(x.values, y.values)
                errors[f"{graph} {x.name}"] = error
                differing.append(f"graph {graph} {x.name} op {x.operation} nmse {error:.3g}")
    except DumpError as cause:
        problem = str(cause)
    return NodeComparison(nodes=count, graphs=graph + 1, differing=differing, nmse=errors, problem=problem)
