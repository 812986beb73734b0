"""Strict YAML that remembers where each value stood. Pure.

A small part of YAML is taken: one document of mappings, lists and scalars. Anchors, aliases, tags, tabs and
invisible characters are refused, so that what a reviewer sees is what is read, and no file can grow while it
is read.
"""

from __future__ import annotations

import codecs
import difflib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NoReturn

import yaml

from llama_images.errors import UsageError

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top of the file down to a value."""

MAX_DEPTH: Final = 16
SHOWN_MISTAKES: Final = 20

_STR: Final = "tag:yaml.org,2002:str"
_INT: Final = "tag:yaml.org,2002:int"
_FLOAT: Final = "tag:yaml.org,2002:float"
_BOOL: Final = "tag:yaml.org,2002:bool"
_NULL: Final = "tag:yaml.org,2002:null"
# Of the plain scalars that YAML 1.1 resolves, these three stay the text they are: nothing of ours takes them
# as values.
_TEXT: Final = (_STR, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")

NOT_A_VALUE: Final = -0.5
"""Stands in the data for a number that no field takes; the real text is found again by its path."""


def shown(text: str, *, limit: int = 60) -> str:
    """The text in double quotes, cut to ``limit`` characters, with anything unprintable escaped."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut) + '"'


def listed(names: Iterable[str], word: str) -> str:
    """``a, b or c``."""
    items = list(names)
    return (
        items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}" if items else "nothing"
    )


def closest(found: str, options: Iterable[str]) -> str | None:
    """The option that ``found`` is most likely a slip of; None where none is close."""
    folded = {option.lower(): option for option in options}
    close = difflib.get_close_matches(found.lower()[:80], folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def did_you_mean(found: str, options: Iterable[str]) -> str:
    """`` (did you mean "x"?)`` where one of the options is close, otherwise nothing."""
    close = closest(found, options)
    return f' (did you mean "{close}"?)' if close else ""


def key_path(path: KeyPath) -> str:
    """``architectures.120.sass[0]``; a key that could be misread is quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = re.fullmatch(r"[A-Za-z0-9_./-]{1,60}", part) is not None
            text += ("." if text else "") + (part if plain else shown(part))
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    line: int
    path: KeyPath
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistakes:
    """The mistakes of one file, gathered so that one run shows them all."""

    name: str
    """How the file is called in messages."""
    found: list[Mistake] = field(default_factory=list)
    _places: set[KeyPath] = field(default_factory=set)

    def add(self, line: int, path: KeyPath, text: str, *, again: bool = False) -> None:
        """Note a mistake.

        A second one at the same place is the first one's echo and dropped, unless ``again``.
        """
        if again or not path or path not in self._places:
            self.found.append(Mistake(line=line, path=path, text=text))
        self._places.add(path)

    def error(self) -> UsageError:
        """One line for a mistake, at most ``SHOWN_MISTAKES``; a line at the end counts the rest."""
        ordered = sorted(self.found, key=lambda one: one.line)
        lines = []
        for one in ordered[:SHOWN_MISTAKES]:
            where = f"{key_path(one.path)}: " if one.path else ""
            lines.append(f"{self.name}:{one.line}: {where}{one.text}")
        if len(ordered) > SHOWN_MISTAKES:
            lines.append(f"{self.name}: and {len(ordered) - SHOWN_MISTAKES} more")
        return UsageError("\n".join(lines))


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A file's data as JSON can hold it, and the place of every key and value."""

    data: object
    nodes: dict[KeyPath, yaml.Node] = field(default_factory=dict)
    key_lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """Line of the value at ``path``; of what should hold it where there is none. Lines count from 1."""
        while path:
            node = self.nodes.get(path)
            if isinstance(node, yaml.ScalarNode):
                return node.start_mark.line + 1
            if path in self.key_lines:
                return self.key_lines[path]
            if node is not None:
                return node.start_mark.line + 1
            path = path[:-1]
        root = self.nodes.get(())
        return 1 if root is None else root.start_mark.line + 1

    def found(self, path: KeyPath) -> str:
        """What stands at ``path``, in words."""
        node = self.nodes.get(path)
        if isinstance(node, yaml.MappingNode):
            return "a mapping"
        if isinstance(node, yaml.SequenceNode):
            return "a list"
        if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
            return "nothing"
        if node.tag in (_INT, _FLOAT):
            return f"the number {node.value[:60]}"
        if node.tag == _BOOL:
            return f"the truth value {node.value}"
        return shown(node.value)

    def text(self, path: KeyPath) -> str | None:
        """The scalar at ``path`` as it is written, whatever YAML takes it for; None for anything else."""
        node = self.nodes.get(path)
        return node.value if isinstance(node, yaml.ScalarNode) else None


def decode(data: bytes, *, name: str) -> str:
    """UTF-8 to text; a byte order mark is dropped.

    Raises UsageError naming the line of the first bad byte.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"{name}:1: the file is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def read_yaml(text: str, mistakes: Mistakes) -> Document:
    """The one document in ``text``.

    Raises UsageError at once where there is no structure to go on with; mistakes inside a sound structure
    (keys given twice, keys that are no text, empty values) are noted in ``mistakes``, and what was wrong is
    left out of the data.
    """
    text = text.removeprefix("\ufeff")
    _check_characters(text, mistakes)
    try:
        root = _compose(text, mistakes)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise _stop(
            mistakes, mark.line + 1 if mark else 1, f"this is not YAML: {' '.join(problem.split())}"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets ValueError and OverflowError out, for "\Uffffffff" for one.
        raise _stop(mistakes, 1, f"this is not YAML: {' '.join(str(error).split())}") from None
    if root is None:
        raise _stop(mistakes, 1, "the file is empty")
    document = Document(data=None)
    return Document(
        data=_plain(root, (), document, mistakes), nodes=document.nodes, key_lines=document.key_lines
    )


def _stop(mistakes: Mistakes, line: int, text: str) -> UsageError:
    mistakes.add(line, (), text)
    return UsageError(
        mistakes.error().message, hint="is this the right file? A matrix is YAML, as matrix.yaml is"
    )


def _check_characters(text: str, mistakes: Mistakes) -> None:
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if line.isprintable():
            continue
        character = next(c for c in line if not c.isprintable())
        if character == "\t":
            raise _stop(mistakes, number, "a tab; use spaces")
        name = unicodedata.name(character, "a control character")
        raise _stop(mistakes, number, f"an invisible character, U+{ord(character):04X} ({name}); take it out")


class _StrictLoader(yaml.SafeLoader):
    """Composes nodes, and stops at what could make that dangerous or a reader doubt what it means."""

    def __init__(self, text: str, mistakes: Mistakes) -> None:
        super().__init__(text)
        self._mistakes = mistakes
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, f"the alias *{event.anchor}; aliases aren't taken, write the value out")
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            self._refuse(event, f"the anchor &{event.anchor}; anchors aren't taken, write the value out")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            self._refuse(event, f"the tag {shown(event.tag)}; tags aren't taken")
        # Composing calls itself: without a limit a line of brackets would use up the stack.
        if self._depth >= MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _refuse(self, event: yaml.Event, text: str) -> NoReturn:
        raise _stop(self._mistakes, event.start_mark.line + 1 if event.start_mark else 1, text)


def _compose(text: str, mistakes: Mistakes) -> yaml.Node | None:
    """The root of the only document; None of an empty file."""
    loader = _StrictLoader(text, mistakes)
    try:
        loader.get_event()  # type: ignore[no-untyped-call]  # the start of the stream
        if loader.check_event(yaml.StreamEndEvent):
            return None
        root = loader.compose_document()
        if not loader.check_event(yaml.StreamEndEvent):
            mark = loader.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _stop(mistakes, mark.line + 1, "a second document starts here; one file is one document")
        return root
    finally:
        loader.dispose()


def _plain(node: yaml.Node, path: KeyPath, document: Document, mistakes: Mistakes) -> object:
    """The node as JSON data; notes the place of everything in ``document``."""
    document.nodes[path] = node
    if isinstance(node, yaml.MappingNode):
        return _plain_mapping(node, path, document, mistakes)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), document, mistakes) for index, item in enumerate(node.value)]
    return _plain_scalar(node, path, mistakes)


def _plain_mapping(
    node: yaml.MappingNode, path: KeyPath, document: Document, mistakes: Mistakes
) -> dict[str, object]:
    data: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            mistakes.add(line, path, "a list or mapping as a key; a key is a word")
            continue
        key = key_node.value
        inner = (*path, key)
        if not key or not key.isprintable():
            mistakes.add(line, inner, "a key is a word of visible characters on one line")
            continue
        if inner in document.key_lines:
            first = document.key_lines[inner]
            mistakes.add(line, inner, f"given twice; the first is on line {first}", again=True)
            continue
        document.key_lines[inner] = line
        if key_node.tag not in _TEXT:
            mistakes.add(line, inner, f"the key {key[:60]} is {_kind(key_node.tag)}; quote it: {shown(key)}")
        data[key] = _plain(value_node, inner, document, mistakes)
        if isinstance(value_node, yaml.ScalarNode) and value_node.tag == _NULL:
            mistakes.add(line, inner, "found nothing; write a value or take the key out")
    return data


def _plain_scalar(node: yaml.Node, path: KeyPath, mistakes: Mistakes) -> object:
    value = str(node.value)
    if not value.isprintable():
        line = node.start_mark.line + 1
        mistakes.add(line, path, f"found {shown(value)}; line ends and invisible characters aren't taken")
        return ""
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return True
    if node.tag == _INT:
        return int(value) if re.fullmatch(r"0|[1-9][0-9]{0,14}", value) else NOT_A_VALUE
    if node.tag == _FLOAT:
        return float(value) if re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", value) else NOT_A_VALUE
    return value


def _kind(tag: str) -> str:
    return {_INT: "a number", _FLOAT: "a number", _BOOL: "a truth value", _NULL: "nothing"}.get(
        tag, "no text"
    )
