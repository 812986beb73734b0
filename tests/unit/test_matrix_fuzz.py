"""Whatever is in the file, the only error that comes out is UsageError."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_images.errors import UsageError
from llama_images.located_yaml import decode
from llama_images.matrix import Matrix, parse_matrix

EXAMPLE = (Path(__file__).parent / "example_matrix.yaml").read_text(encoding="utf-8")
DATA = yaml.load(EXAMPLE, yaml.BaseLoader)
"""The example with every scalar as text."""


def with_numbers() -> Any:
    """The example as data that is sound: what takes a number has one."""
    data = copy.deepcopy(DATA)
    data["version"] = 1
    data["sources"]["pr24423"]["build_number"] = 9600
    relative, hardware = data["thresholds"]["relative"], data["thresholds"]["hardware"]
    for row in (relative, *hardware):
        for key, value in row.items():
            if key != "gpu":
                row[key] = yaml.safe_load(value)
    return data


quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
cheap = settings(max_examples=300, deadline=None)


def outcome(data: bytes | str) -> Matrix | UsageError:
    """What reading gives; any other exception fails the test."""
    try:
        text = decode(data, name="m.yaml") if isinstance(data, bytes) else data
        matrix = parse_matrix(text, name="m.yaml")
    except UsageError as error:
        refusal = error
    else:
        return matrix
    lines = refusal.message.split("\n")
    assert all(line.startswith("m.yaml:") and line.isprintable() and len(line) < 1000 for line in lines)
    return refusal


@cheap
@given(st.binary(max_size=300))
def test_bytes(data: bytes) -> None:
    assert isinstance(outcome(data), UsageError)


@cheap
@given(st.text(max_size=300))
def test_text(text: str) -> None:
    assert isinstance(outcome(text), UsageError)


@cheap
@given(st.text(alphabet=list("ab1: -[]{},\n'\"#&*!|>%@`?~<=.0xU\\"), max_size=80))
def test_yaml_like_text(text: str) -> None:
    assert isinstance(outcome(text), UsageError)


@quick
@given(st.integers(0, len(EXAMPLE) - 1), st.text(max_size=6), st.integers(0, 6))
def test_a_spliced_example(at: int, put: str, drop: int) -> None:
    outcome(EXAMPLE[:at] + put + EXAMPLE[at + drop :])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            found += places(inner, (*path, index))
    return found


PLACES = places(DATA)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=5), st.integers(), st.none()), st.integers(), max_size=3),
    st.sampled_from(
        ["debian", "nvidia", "cuda-13.0", "cuda-12.9", "120a", "75", "stock", "[key]", "name", "portable"]
    ),
)


def parent_of(data: Any, path: tuple[Any, ...]) -> Any:
    for part in path[:-1]:
        data = data[part]
    return data


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """The example with one to three of its values dropped, retyped, renamed or given twice, as YAML text."""
    data = with_numbers()
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        kind = draw(st.sampled_from(["drop", "retype", "rename", "twice"]))
        try:
            parent = parent_of(data, path)
            if kind == "drop":
                del parent[path[-1]]
            elif kind == "retype":
                parent[path[-1]] = draw(VALUES)
            elif kind == "rename" and isinstance(parent, dict):
                parent[
                    draw(
                        st.one_of(
                            st.text(max_size=8), st.sampled_from(["name", "[key]", "112", "130", "cpu"])
                        )
                    )
                ] = parent.pop(path[-1])
            elif kind == "twice" and isinstance(parent, list):
                parent.append(copy.deepcopy(parent[path[-1]]))
            elif kind == "twice":
                parent["twin"] = copy.deepcopy(parent[path[-1]])
        except (KeyError, IndexError, TypeError, AttributeError):
            # An earlier mutation took this place away.
            continue
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


@settings(quick, max_examples=60)
@given(mutations())
def test_mutations_of_the_example(text: str) -> None:
    outcome(text)


def test_the_mutations_start_from_a_sound_matrix() -> None:
    data = with_numbers()
    assert isinstance(outcome(yaml.safe_dump(data, sort_keys=False)), Matrix)


@pytest.mark.parametrize(
    "path", [one for one in PLACES if len(one) <= 3 and isinstance(one[-1], str)], ids=str
)
def test_every_key_is_needed_or_has_a_rule(path: tuple[Any, ...]) -> None:
    data = with_numbers()
    del parent_of(data, path)[path[-1]]
    result = outcome(yaml.safe_dump(data, sort_keys=False))
    # These leave a matrix that is smaller and still sound.
    smaller = path in [
        ("architectures", "cpu"),
        ("architectures", "70"),
        ("architectures", "portable"),
    ] or path in [
        ("bases", "nvidia", "packages"),
        ("toolkits", "cuda-13.0", "images"),
        ("toolkits", "cuda-13.0", "wheels"),
        ("defaults", "model"),
    ]
    assert isinstance(result, Matrix) == smaller


@pytest.mark.parametrize(
    "text",
    [
        '"\\Uffffffff"',
        '"\\ud800": 1',
        'a: "\\ud800"',
        "%YAML 9.9\n--- a",
        "%FOO bar\n--- a: 1",
        "? \n: ",
        "a: !!binary x",
        "a: !<%0A%07x> y",
        "k" * 5000 + ": 1",
        "9" * 900 + ": 1",
        "'" + "a b" * 900 + "': 1",
        "version: " + "9" * 6000,
        "version: 1:30:00",
        "version: .inf",
        "version: 0o17",
        "[key]: 1",
        "cpu_variants:\n  '[key]': [a]",
        "architectures:\n  '120': {name: {name: 1}}",
        "architectures:\n  name: {name: x}",
        "[" * 5000,
        "{" * 5000,
        "- " * 5000,
        "a: |\n  text\n  more",
        "\x85",
        "a: b\u2028c: d",
    ],
)
def test_known_traps_of_yaml_readers(text: str) -> None:
    assert isinstance(outcome(text), UsageError)
