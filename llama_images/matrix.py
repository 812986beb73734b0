"""What can be built: how the text of ``matrix.yaml`` becomes the types of ``matrix_types``.

``parse_matrix`` is pure. ``load_matrix`` reads the file. Every mistake of a file is reported at once, each
with file, line, key, what was found and what is allowed. Rules that need more than one value are in
``matrix_rules``.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, TypeGuard, TypeVar

from pydantic import BaseModel, ValidationError

from llama_images import matrix_rules
from llama_images.errors import UsageError
from llama_images.located_yaml import Document, KeyPath, Mistakes, decode, listed, read_yaml
from llama_images.matrix_fields import (
    ARCHITECTURE,
    FAMILIES,
    FLAVORS,
    NAME,
    Family,
    Flavor,
    FrozenMapping,
)
from llama_images.matrix_messages import explain, keys_of, without_echoes
from llama_images.matrix_types import (
    Architecture,
    Base,
    Defaults,
    HardwareThresholds,
    ImageRef,
    Matrix,
    Model,
    RelativeThresholds,
    Source,
    Thresholds,
    Toolkit,
    ToolkitImages,
    Wheel,
    Wheels,
)
from llama_images.platforms import Platform

__all__ = [
    "FAMILIES",
    "FLAVORS",
    "Architecture",
    "Base",
    "Defaults",
    "Family",
    "Flavor",
    "FrozenMapping",
    "HardwareThresholds",
    "ImageRef",
    "Matrix",
    "Model",
    "Platform",
    "RelativeThresholds",
    "Source",
    "Thresholds",
    "Toolkit",
    "ToolkitImages",
    "Wheel",
    "Wheels",
    "json_schema",
    "load_matrix",
    "parse_matrix",
]

MAX_BYTES: Final = 1 << 20
"""A matrix of the project's size is 7 KB; a larger file is a mistake, and reading YAML is slow."""


_Model = TypeVar("_Model", bound=BaseModel)

_ROWS: Final[Mapping[str, type[BaseModel]]] = {
    "sources": Source,
    "bases": Base,
    "toolkits": Toolkit,
    "architectures": Architecture,
    "models": Model,
}
"""The sections whose rows are keyed by name; the name is copied into the row."""


def parse_matrix(text: str, *, name: str, series: Collection[str] | None = None) -> Matrix:
    """The matrix that ``text`` describes. Pure.

    ``name`` is what messages call the file; ``series`` are the patch series that exist, None where that is
    unknown. Raises UsageError with one line for each mistake, at most twenty.
    """
    mistakes = Mistakes(name=name)
    document = read_yaml(text, mistakes)
    data = _with_names(document, mistakes)
    # Through JSON, because pydantic's strict mode takes a list for a tuple there and is as strict as in
    # Python otherwise.
    whole: Matrix | None = None
    try:
        whole = Matrix.model_validate_json(json.dumps(data))
    except ValidationError as error:
        for detail in without_echoes(error.errors(include_url=False), Matrix):
            line, path, message = explain(detail, document, Matrix, rows=tuple(_ROWS))
            mistakes.add(line, path, message)

    def report(path: KeyPath, text: str) -> None:
        mistakes.add(document.line(path), path, text)

    # A row left out for a mistake of its form would make rules about all rows fail too.
    draft = _draft(data, None if mistakes.found else whole)
    matrix_rules.check(draft, report, series=series)
    if whole is None or mistakes.found:
        raise mistakes.error()
    return whole


def load_matrix(path: str | os.PathLike[str]) -> Matrix:
    """Read and check a matrix file.

    Where a ``patches`` folder lies beside it, every series that the file names must be in there. Raises
    UsageError.
    """
    name = _shown_path(path)
    text = decode(_read(Path(path), name), name=name)
    patches = Path(path).parent / "patches"
    try:
        series = {entry.name for entry in patches.iterdir() if entry.is_dir()} if patches.is_dir() else None
    except OSError as error:
        raise UsageError(f"{patches}: {error.strerror}") from None
    return parse_matrix(text, name=name, series=series)


def json_schema() -> str:
    """The JSON Schema of the file, as text that is the same on every run.

    Editors complete and check with it.
    """
    schema = Matrix.model_json_schema(mode="validation")
    for definition in (schema, *schema["$defs"].values()):
        _as_in_file(definition)
    for row, names in (
        ("Source", NAME),
        ("Base", NAME),
        ("Toolkit", NAME),
        ("Architecture", ARCHITECTURE),
        ("Model", NAME),
    ):
        for section in schema["properties"].values():
            values = section.get("additionalProperties")
            if isinstance(values, dict) and values.get("$ref") == f"#/$defs/{row}":
                section["propertyNames"] = {"pattern": f"^({names})$"}
    ordered = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The matrix of llama-diffusion images",
        **{key: value for key, value in schema.items() if key not in ("$defs", "title")},
        "$defs": dict(sorted(schema["$defs"].items())),
    }
    return json.dumps(ordered, indent=2, ensure_ascii=False) + "\n"


def _as_in_file(definition: dict[str, Any]) -> None:
    """Turn a row's schema into the file's: no injected name, no null, no titles from attribute names."""
    properties = definition.get("properties", {})
    for key in [key for key, value in properties.items() if value.get("injected")]:
        del properties[key]
        definition["required"] = [one for one in definition["required"] if one != key]
    for key, value in properties.items():
        properties[key] = _tidy(value)
    if "description" in definition:
        definition["description"] = " ".join(definition["description"].split())


def _tidy(value: dict[str, Any]) -> dict[str, Any]:
    kept = {key: one for key, one in value.items() if key not in ("title", "default")}
    for option in kept.pop("anyOf", []):
        if option.get("type") != "null":
            kept = {**option, **kept}
    return kept


def _read(path: Path, name: str) -> bytes:
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise UsageError(
                f"{name}: this is a directory; the matrix is one file", hint="give the file's own path"
            )
        if not stat.S_ISREG(kind):
            raise UsageError(f"{name}: this is no plain file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(
            f"{name}: there is no such file",
            hint="is its path right? The project's own is matrix.yaml in its top folder",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{name}: can't be read: {reason}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name}: larger than {MAX_BYTES >> 20} MiB; a matrix is a few kilobytes")
    return data


def _shown_path(path: str | os.PathLike[str]) -> str:
    """The path as a reader would write it: relative where it lies below the current folder."""
    text = os.fspath(path)
    here = str(Path.cwd())
    return text[len(here) + 1 :] if text.startswith(here + os.sep) else text


def _with_names(document: Document, mistakes: Mistakes) -> object:
    """The document's data with the rows' keys copied into the rows."""
    if not isinstance(document.data, dict):
        return document.data
    data: dict[str, Any] = dict(document.data)
    for section, model in _ROWS.items():
        rows = data.get(section)
        if not isinstance(rows, dict):
            continue
        for key, row in rows.items():
            if isinstance(row, dict) and "name" in row:
                path = (section, key, "name")
                allowed = listed(keys_of(model), "and")
                mistakes.add(
                    document.line(path),
                    path,
                    f"unknown key; the row's own key is its name; allowed: {allowed}",
                )
        data[section] = {
            key: {**row, "name": key} if isinstance(row, dict) else row for key, row in rows.items()
        }
    return data


def _sound(model: type[_Model], value: object) -> _Model | None:
    """The section as its type; None where it is not of its form."""
    try:
        return model.model_validate_json(json.dumps(value))
    except ValidationError:
        return None


def _are_flavors(data: object) -> TypeGuard[list[str]]:
    return isinstance(data, list) and bool(data) and all(one in FLAVORS for one in data)


def _draft(data: object, whole: Matrix | None) -> matrix_rules.Draft:
    """What of the file is sound by itself: rules are checked there even where another row is broken."""
    if whole is not None:
        return matrix_rules.Draft(
            defaults=whole.defaults,
            sources=whole.sources,
            flavors=whole.flavors,
            bases=whole.bases,
            toolkits=whole.toolkits,
            cpu_variants=whole.cpu_variants,
            architectures=whole.architectures,
            thresholds=whole.thresholds,
            models=whole.models,
            names={section: tuple(getattr(whole, section)) for section in _ROWS},
            complete=True,
        )
    top = data if isinstance(data, dict) else {}
    sound: dict[str, dict[str, Any]] = {section: {} for section in _ROWS}
    names: dict[str, tuple[str, ...]] = {}
    for section, model in _ROWS.items():
        rows = top.get(section)
        if isinstance(rows, dict):
            names[section] = tuple(rows)
        for key, row in rows.items() if isinstance(rows, dict) else ():
            if (row := _sound(model, row)) is not None:
                sound[section][key] = row
    flavors = top.get("flavors")
    return matrix_rules.Draft(
        defaults=_sound(Defaults, top.get("defaults")),
        sources=sound["sources"],
        flavors=tuple(flavors) if _are_flavors(flavors) else None,
        bases=sound["bases"],
        toolkits=sound["toolkits"],
        cpu_variants={},
        architectures=sound["architectures"],
        thresholds=_sound(Thresholds, top.get("thresholds")),
        models=sound["models"],
        names=names,
        complete=False,
    )
