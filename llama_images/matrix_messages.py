"""Pydantic's errors in the words of ``matrix.yaml``: where, what was found, what is allowed. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from llama_images.located_yaml import Document, KeyPath, closest, did_you_mean, listed, shown
from llama_images.matrix_fields import INJECTED


def explain(
    detail: ErrorDetails, document: Document, root: type[BaseModel], *, rows: tuple[str, ...]
) -> tuple[int, KeyPath, str]:
    """Line, key path and text of one error of ``root``; ``rows`` names the sections of named rows."""
    path: KeyPath = detail["loc"]
    if path and path[-1] == "[key]" and path not in document.nodes:
        path = path[:-1]
        allowed = get_args(get_args(_bare(type_at(root, path[:-1])))[0])
        return document.key_lines.get(path, 1), path, _unknown_key(str(path[-1]), allowed)
    if len(path) == 3 and path[0] in rows and path[-1] == "name":
        # The name is the row's key, copied into the row before it was checked.
        path = path[:-1]
        return document.key_lines.get(path, 1), path, _wrong_name(str(path[-1]), _text_of(detail))
    if detail["type"] == "extra_forbidden":
        allowed = tuple(keys_of(type_at(root, path[:-1])))
        return document.key_lines.get(path, 1), path, _unknown_key(str(path[-1]), allowed)
    return document.line(path), path, _wrong_value(detail, path, document, root)


def without_echoes(details: list[ErrorDetails], root: type[BaseModel]) -> list[ErrorDetails]:
    """The errors without those of a missing key that is there, misspelt: the unknown key says it all."""
    meant = {
        (*one["loc"][:-1], closest(str(one["loc"][-1]), keys_of(type_at(root, one["loc"][:-1]))))
        for one in details
        if one["type"] == "extra_forbidden"
    }
    return [one for one in details if one["type"] != "missing" or one["loc"] not in meant]


def keys_of(model: Any) -> list[str]:
    """Keys that a mapping of the file may have where it is read as ``model``."""
    return [key for key, field in model.model_fields.items() if field.json_schema_extra is not INJECTED]


def type_at(root: type[BaseModel], path: KeyPath) -> Any:
    """The type of the value at ``path`` below ``root``: a model, a mapping, a tuple or a scalar's type."""
    kind: Any = root
    for part in path:
        kind = _bare(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(part)].annotation
        elif isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
            kind = get_args(kind)[1]
        else:
            kind = get_args(kind)[0]
    return _bare(kind)


def _bare(kind: Any) -> Any:
    """The type without its annotations and without ``| None``."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif NoneType in get_args(kind):
            kind = next(one for one in get_args(kind) if one is not NoneType)
        else:
            return kind


def _text_of(detail: ErrorDetails) -> str:
    return str(detail.get("ctx", {}).get("text", detail["msg"]))


def _unknown_key(key: str, allowed: tuple[str, ...]) -> str:
    return f"unknown key{did_you_mean(key, allowed)}; allowed: {listed(allowed, 'and')}"


def _wrong_name(key: str, right: str) -> str:
    found = f"found the key {shown(key)}"
    number = re.fullmatch(r"(?:sm|compute)?[_-]?([0-9]{1,3})\.?([0-9])?[af]?", key.lower())
    if number and "architecture" in right:
        return f'{found}; {right}; write "{number[1]}{number[2] or ""}"'
    return f"{found}; {right}"


def _wrong_value(detail: ErrorDetails, path: KeyPath, document: Document, root: type[BaseModel]) -> str:
    found = document.found(path)
    written = document.text(path)
    match detail["type"]:
        case "missing":
            description = type_at(root, path[:-1]).model_fields[str(path[-1])].description
            return f"missing: {description}"
        case "string_type":
            quote = f": quote it: {shown(written)}" if written else ""
            return f"found {found}; text is needed{quote}"
        case "int_type" | "int_from_float":
            return f"found {found}; a whole number is needed, without quotes"
        case "float_type":
            return f"found {found}; a number is needed, without quotes"
        case "greater_than" | "less_than":
            return f"found {found}; a whole number above 0 and below 10 million is needed"
        case "tuple_type":
            return f"found {found}; a list is needed, such as [a, b]"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"found {found}; a mapping is needed (lines of KEY: VALUE)"
        case "too_short":
            return "there is nothing in it; at least one entry is needed"
        case "literal_error" if path == ("version",):
            return f"found {found}; this program reads version 1"
        case "literal_error":
            kind = type_at(root, path)
            allowed = get_args(kind) if get_origin(kind) is Literal else ()
            return f"found {found}{did_you_mean(written or '', allowed)}; allowed: {listed(allowed, 'and')}"
    if written is not None and re.fullmatch(r"[0-9A-Fa-f]{5,39}", written) and path[-1] in ("commit", "tree"):
        found = f"{found}, {len(written)} digits"
    return f"found {found}; {_text_of(detail)}"
