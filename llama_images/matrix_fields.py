"""The values that ``matrix.yaml`` may hold: shapes of single fields, and a mapping that can't be changed.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
    WrapSerializer,
)
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Flavor = Literal["patched", "stock"]
Family = Literal["volta", "turing", "ampere", "ada", "hopper", "blackwell"]

FLAVORS: Final[tuple[Flavor, ...]] = get_args(Flavor)
FAMILIES: Final[tuple[Family, ...]] = get_args(Family)

INJECTED: Final[JsonDict] = {"injected": True}
"""Marks a field that the file gives as a row's key; it is no key of the row itself."""

K = TypeVar("K")
V = TypeVar("V")


class FrozenMapping(Mapping[K, V]):
    """A mapping that keeps its order and can't be changed; it can be hashed and pickled."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"FrozenMapping({self._items!r})"


def _as_dict(value: Mapping[Any, Any], handler: Any) -> Any:
    return handler(dict(value))


Frozen = Annotated[Mapping[K, V], AfterValidator(FrozenMapping), WrapSerializer(_as_dict)]


def mistake(text: str) -> PydanticCustomError:
    # The text goes in as a value: braces in it must not be taken for fields of the template.
    return PydanticCustomError("matrix", "{text}", {"text": text})


def shaped(pattern: str, right: str) -> AfterValidator:
    """A string that ``pattern`` matches from end to end; ``right`` says what would be right."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise mistake(right)
        return value

    return AfterValidator(check)


def unique(values: tuple[V, ...]) -> tuple[V, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise mistake(f'"{value}" is listed twice')
    return values


HEX40: Final = r"[0-9a-f]{40}"
HEX64: Final = r"[0-9a-f]{64}"
# A row's name becomes part of folder names, image tags and Dockerfile lines.
NAME: Final = r"[a-z0-9]+([._-][a-z0-9]+)*"
PACKAGE: Final = r"[a-z0-9][a-z0-9+.-]+"
WHEEL_NAME: Final = r"[a-z0-9]+(-[a-z0-9]+)*"
WHEEL_VERSION: Final = r"[0-9]+(\.[0-9]+)+(\.?(post|rc|dev)[0-9]+)?"
TOOLKIT_VERSION: Final = r"[1-9][0-9]\.[0-9]"
DRIVER: Final = r"[1-9][0-9]{2}\.[0-9]{2,3}(\.[0-9]{2})?"
IMAGE: Final = (
    r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?/)?"
    r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
)
# Three numbers and nothing else: it begins a tag, and its form tells it from a commit.
VERSION: Final = r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})"
SUITE: Final = r"[a-z][a-z0-9-]*"
DIGEST: Final = rf"sha256:{HEX64}"
REPOSITORY: Final = r"https://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9_][A-Za-z0-9._-]*)+"
REF: Final = r"[A-Za-z0-9_][A-Za-z0-9_-]*([./][A-Za-z0-9_][A-Za-z0-9_-]*)*"
VARIANT: Final = r"[a-z][a-z0-9]*([._][a-z0-9]+)*"
ARCHITECTURE: Final = r"cpu|portable|[1-9][0-9]{1,2}"
SASS: Final = r"[1-9][0-9]{1,2}[af]?"
PTX: Final = r"[1-9][0-9]{1,2}"
# The hub's own rules for the two parts of a repository's name, less names of one part.
HUB_REPOSITORY: Final = (
    r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?/[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?"
)
HUB_FILE: Final = r"([A-Za-z0-9_][A-Za-z0-9._-]*/)*[A-Za-z0-9_][A-Za-z0-9._-]*\.gguf"
# Goes into labels, tables and Dockerfile lines: no quote, back quote, $ or backslash; line ends can't occur
# in YAML scalars that were checked for printable characters.
PLAIN: Final = r"[^\s\"'`$\\]([^\"'`$\\]*[^\s\"'`$\\])?"
DATE: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})"


def schema_pattern(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^({pattern})$"})


Name = Annotated[
    str,
    shaped(NAME, "a name is lower-case letters and digits, joined by single dots, dashes or underscores"),
    schema_pattern(NAME),
]
Commit = Annotated[
    str,
    shaped(HEX40, "a commit is its 40 lower-case hex digits, all of them"),
    schema_pattern(HEX40),
]
Tree = Annotated[
    str,
    shaped(HEX40, "a tree hash is 40 lower-case hex digits: `git rev-parse COMMIT^{tree}` prints it"),
    schema_pattern(HEX40),
]
Repository = Annotated[
    str,
    shaped(REPOSITORY, "a repository is an https:// address without user, query or fragment"),
    schema_pattern(REPOSITORY),
]
Ref = Annotated[
    str,
    shaped(REF, 'a ref is a branch, tag or pull/N/head, without spaces, ".." or signs'),
    schema_pattern(REF),
]
Sha256 = Annotated[str, shaped(HEX64, "a hash is 64 lower-case hex digits"), schema_pattern(HEX64)]
HubRepository = Annotated[
    str,
    shaped(HUB_REPOSITORY, "a repository of the hub is OWNER/NAME"),
    schema_pattern(HUB_REPOSITORY),
]
HubFile = Annotated[
    str,
    shaped(HUB_FILE, "a model is the path of a .gguf file in its repository"),
    schema_pattern(HUB_FILE),
]
Package = Annotated[
    str,
    shaped(PACKAGE, "a package name is lower-case letters, digits, plus, minus and dots"),
    schema_pattern(PACKAGE),
]
Plain = Annotated[
    str,
    shaped(PLAIN, "plain text is needed: no quotes, back quotes, $ or backslashes, no space at an end"),
    schema_pattern(PLAIN),
]
Variant = Annotated[
    str,
    shaped(VARIANT, "a CPU variant is one of llama.cpp's names, such as haswell or armv8.2_2"),
    schema_pattern(VARIANT),
]
Sass = Annotated[
    str, shaped(SASS, 'machine code is named by its number, such as "89" or "120a"'), schema_pattern(SASS)
]
Ptx = Annotated[str, shaped(PTX, 'PTX is named by its number, such as "75"'), schema_pattern(PTX)]


def check_source_path(value: str) -> str:
    """A file or folder of the source that the build needs.

    The web interface, the tests and the vocabulary models are large and no part of the build; some mirrors
    lack their blobs, so a checkout that asked for them would die.
    """
    if not re.fullmatch(r"[A-Za-z0-9._+/-]+", value):
        raise mistake("a path holds letters, digits, dots, dashes, underscores and slashes only")
    parts = value.split("/")
    if parts[0] == "":
        raise mistake("a path is relative to the top of the source")
    if any(part in ("", ".", "..") for part in parts) or parts[0].startswith("-"):
        raise mistake('a path has no "..", ".", empty part, slash at its end or dash at its start')
    if parts[0] in ("models", "tests") or parts[:2] == ["tools", "ui"]:
        raise mistake("models, tests and tools/ui stay out of the build")
    if parts == ["tools"]:
        raise mistake("tools holds the web interface; list tools/CMakeLists.txt instead")
    return value


WheelName = Annotated[
    str, shaped(WHEEL_NAME, "a wheel's name is lower-case words joined by dashes"), schema_pattern(WHEEL_NAME)
]
WheelVersion = Annotated[
    str,
    shaped(WHEEL_VERSION, "a wheel's version is one fixed version, such as 13.0.88"),
    schema_pattern(WHEEL_VERSION),
]
ImageName = Annotated[
    str,
    shaped(IMAGE, "an image is NAME:TAG; its digest, if any, goes under the key digest"),
    schema_pattern(IMAGE),
]
Digest = Annotated[
    str, shaped(DIGEST, "a digest is sha256: and 64 lower-case hex digits"), schema_pattern(DIGEST)
]
Series = Annotated[
    str,
    shaped(
        NAME, "a series is the name of a folder under patches/: lower-case letters, digits, dots and dashes"
    ),
    schema_pattern(NAME),
]
Version = Annotated[
    str,
    shaped(VERSION, "a version is three numbers, such as 0.1.0"),
    schema_pattern(VERSION),
]
Suite = Annotated[
    str, shaped(SUITE, "a suite is one lower-case word, such as bookworm"), schema_pattern(SUITE)
]
ToolkitVersion = Annotated[
    str,
    shaped(TOOLKIT_VERSION, 'a toolkit version is MAJOR.MINOR, such as "13.0"'),
    schema_pattern(TOOLKIT_VERSION),
]
DriverVersion = Annotated[
    str, shaped(DRIVER, 'a driver version looks like "580.65.06"'), schema_pattern(DRIVER)
]
ArchitectureName = Annotated[
    str,
    shaped(ARCHITECTURE, 'an architecture is cpu, portable or a number such as "120"'),
    schema_pattern(ARCHITECTURE),
]


SourcePath = Annotated[
    str,
    AfterValidator(check_source_path),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9._+-][A-Za-z0-9._+/-]*$"}),
]


def parse_date(value: object) -> object:
    """Text to an aware datetime; anything else goes on to pydantic's own check."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(DATE, value):
        raise mistake("a time with its zone is needed, such as 2026-06-11T16:49:03Z")
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise mistake("there is no such time; one looks like 2026-06-11T16:49:03Z") from None


Date = Annotated[AwareDatetime, BeforeValidator(parse_date)]


@dataclass(frozen=True, slots=True)
class Within:
    """A number from ``low`` to ``high``, both taken, for the reader and the schema alike."""

    low: float
    high: float
    right: str
    """What would be right, for the one who wrote something else."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "minimum": self.low, "maximum": self.high}

    def _check(self, value: float) -> float:
        if not self.low <= value <= self.high:
            raise mistake(self.right)
        return value


Ratio = Annotated[float, Within(1, 100, "a ratio from 1 to 100 is needed, such as 1.5")]
Milliseconds = Annotated[
    float, Within(0.01, 100_000, "a time in milliseconds is needed, from 0.01 to 100000")
]
Percent = Annotated[float, Within(0, 100, "a percentage from 0 to 100 is needed")]
GpuCount = Annotated[int, Within(1, 16, "a number of GPUs from 1 to 16 is needed")]
Gibibytes = Annotated[int, Within(1, 4096, "a memory size in whole GiB is needed, such as 16")]
