"""What ``invoke pins.update`` may change: which newer pin fits, and how it gets into the matrix's text. Pure.

A pin fits where it stays in the toolkit's own line (CUDA's MAJOR.MINOR):

- Images: the newest patch release of the toolkit's line with the same flavour and distribution in its tag,
  the same for devel and runtime. A tag that does not start with a version stays; only its digest is asked.
- Wheels: the newest final release of the toolkit's line. Where a wheel has none there (nvidia-cuda-cuobjdump
  in 13.0), the newest of the major version that is pinned: such a wheel only reads what the compiler wrote.
  nvidia-cublas counts its releases by itself, 13.0 to 13.1 within CUDA 13.0; it is kept in 13.0, because
  13.1 needs nvidia-cuda-nvrtc besides (the metadata of 13.1.2.11).

Nothing goes backwards within a line: a mirror that lacks the pinned release and all later ones is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import yaml

from llama_images.errors import UsageError
from llama_images.located_yaml import Document, KeyPath, Mistakes, key_path, read_yaml, shown
from llama_images.matrix import Matrix, Platform, Toolkit, Wheel, parse_matrix

TOPICS: Final = ("images", "wheels", "source")
"""What can be asked for, in the order in which it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedImage:
    """What a registry holds under an image's name."""

    name: str
    """With its tag, as in the matrix."""
    digest: str
    """"sha256:…", of the index where there is one, else of the only manifest."""
    platforms: frozenset[str]
    """"linux/amd64", …"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWheel:
    """The file that pip would take for one platform."""

    sha256: str
    yanked: bool


class Upstreams(Protocol):
    """Questions to the outside. Each raises OutsideError, in one line, where no usable answer comes."""

    def image_tags(self, name: str) -> tuple[str, ...]:
        """Every tag of the repository of that image; the tag in ``name`` does not matter."""

    def image(self, name: str) -> PublishedImage: ...
    def wheel_versions(self, name: str, platform: Platform) -> tuple[str, ...]:
        """The versions of which the package index has a wheel for that platform, in any order."""

    def wheel(self, name: str, version: str, platform: Platform) -> PublishedWheel: ...
    def head(self, repository: str, ref: str) -> str:
        """The commit that the ref names now, 40 hex digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One value of the matrix that becomes another."""

    path: KeyPath
    """Keys and list positions, such as ("toolkits", "cuda-13.0", "wheels", "build", 0, "version")."""
    old: str | None
    """What stands there; None where the key is not there yet."""
    new: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Where a source's ref stands upstream. Never a change: the series must be carried over by hand."""

    source: str
    ref: str
    pinned: str
    now: str

    @property
    def text(self) -> str:
        """One line for people."""
        if self.now == self.pinned:
            return f"source {self.source}: {self.ref} is still at the pin, {self.pinned[:12]}"
        return (
            f"source {self.source}: {self.ref} is at {self.now[:12]}, the pin stays at {self.pinned[:12]}; "
            "the series must move with it (docs/bump-the-pin.md)"
        )


# --- into the text --------------------------------------------------------------------------------


def apply_changes(text: str, changes: Sequence[Change], *, name: str = "matrix.yaml") -> str:
    """``text`` with these values changed and every other character as it was.

    A key that is not there yet is put behind the last one of its mapping, in the mapping's own style. Raises
    UsageError where the text does not hold what ``old`` says, where a value is written in a way that can't be
    replaced in place, and where the result is no matrix; ValueError where two changes have one path.
    """
    if len({change.path for change in changes}) != len(changes):
        raise ValueError("two changes of one value")
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    body = text.removeprefix(mark)
    mistakes = Mistakes(name=name)
    document = read_yaml(body, mistakes)
    if mistakes.found:
        raise mistakes.error()
    # Where it begins, where it ends, what goes there; sorted, so that each piece is cut from untouched text.
    edits = sorted(_edit(body, document, change, name=name) for change in changes)
    pieces, end = [], 0
    for start, stop, new in edits:
        pieces += [body[end:start], new]
        end = stop
    result = mark + "".join(pieces) + body[end:]
    parse_matrix(result, name=name)
    return result


def _edit(text: str, document: Document, change: Change, *, name: str) -> tuple[int, int, str]:
    node = document.nodes.get(change.path)
    where = f"{name}:{document.line(change.path)}: {key_path(change.path)}"
    if change.old is None:
        parent = document.nodes.get(change.path[:-1])
        if node is not None or not isinstance(parent, yaml.MappingNode) or not parent.value:
            raise UsageError(f"{where}: expected a mapping without this key", hint="run it again")
        return _insertion(text, parent, str(change.path[-1]), change.new, where=where)
    if not isinstance(node, yaml.ScalarNode) or node.value != change.old:
        raise UsageError(
            f"{where}: found {document.found(change.path)}, expected {shown(change.old)}", hint="run it again"
        )
    start, stop = _span(node, where)
    return start, stop, _scalar(change.new, quote=node.style)


def _insertion(
    text: str, parent: yaml.MappingNode, key: str, value: str, *, where: str
) -> tuple[int, int, str]:
    last_key, last_value = parent.value[-1]
    if not isinstance(last_value, yaml.ScalarNode):
        raise UsageError(f"{where}: the last key of this mapping holds no single value; add the key by hand")
    _, at = _span(last_value, where)
    entry = f"{key}: {_scalar(value, quote=chr(34))}"
    if parent.flow_style:
        return at, at, f", {entry}"
    # Behind the comment that may follow the last value on its line.
    line_end = re.compile(r"[^\r\n]*").match(text, at)
    assert line_end is not None
    newline = "\r\n" if "\r\n" in text else "\n"
    return line_end.end(), line_end.end(), f"{newline}{' ' * last_key.start_mark.column}{entry}"


def _span(node: yaml.ScalarNode, where: str) -> tuple[int, int]:
    if node.style in ("|", ">"):
        raise UsageError(f"{where}: a block of text; write the value behind its key, on one line")
    return node.start_mark.index, node.end_mark.index


def _scalar(value: str, *, quote: str | None) -> str:
    """The value as YAML: quoted as what it replaces was, or plain where that reads as the same text."""
    if quote == "'":
        return "'" + value.replace("'", "''") + "'"
    if quote is None and re.fullmatch(r"[A-Za-z0-9._/:@+-]+", value):
        try:
            if yaml.safe_load(f"[{value}]") == [value]:
                return value
        except (yaml.YAMLError, ValueError):
            pass  # such as 13:0, which is a number to base 60, or a date that is none
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def changes_table(changes: Sequence[Change]) -> str:
    """Key, old and new value, reason; digests are cut short."""
    rows = [(key_path(one.path), _short(one.old), "->", _short(one.new), one.why) for one in changes]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]])
        for row in rows
    )


def _short(value: str | None) -> str:
    if value is None:
        return "(none)"
    return f"{value[:-52]}…" if re.fullmatch(r"(sha256:)?[0-9a-f]{64}", value) else value


# --- images ---------------------------------------------------------------------------------------


def image_candidates(
    toolkit: Toolkit, devel_tags: Iterable[str], runtime_tags: Iterable[str]
) -> tuple[tuple[str, str], ...]:
    """Names of the devel and the runtime image that fit, newest first; empty where nothing does.

    The tags are those that the two repositories have.
    """
    assert toolkit.images is not None
    names = (toolkit.images.devel.name, toolkit.images.runtime.name)
    parts = [found for name in names if (found := _tag_parts(name)) is not None]
    if len(parts) < len(names):
        held = all(
            name.rpartition(":")[2] in tags
            for name, tags in zip(names, (set(devel_tags), set(runtime_tags)), strict=True)
        )
        return (names,) if held else ()
    devel = _releases(parts[0][1], devel_tags, toolkit)
    runtime = _releases(parts[1][1], runtime_tags, toolkit)
    pinned = [version for version, _ in parts if version[:2] == toolkit.major_minor]
    both = sorted(
        (version for version in devel.keys() & runtime.keys() if version >= max(pinned, default=version)),
        reverse=True,
    )
    repositories = [name.rpartition(":")[0] for name in names]
    return tuple(
        (f"{repositories[0]}:{devel[version]}", f"{repositories[1]}:{runtime[version]}") for version in both
    )


def _tag_parts(name: str) -> tuple[tuple[int, ...], str] | None:
    """((13, 0, 1), "-devel-ubuntu24.04") of "nvidia/cuda:13.0.1-devel-ubuntu24.04"; None of another tag."""
    found = re.fullmatch(r"([0-9]+\.[0-9]+\.[0-9]+)(-.*)?", name.rpartition(":")[2])
    return None if found is None else (tuple(map(int, found[1].split("."))), found[2] or "")


def _releases(rest: str, tags: Iterable[str], toolkit: Toolkit) -> dict[tuple[int, ...], str]:
    """Tags of the toolkit's line that end in ``rest``, by version."""
    found = {}
    for tag in tags:
        parts = _tag_parts(f":{tag}")
        if parts is not None and parts[1] == rest and parts[0][:2] == toolkit.major_minor:
            found[parts[0]] = tag
    return found


def needed_platforms(matrix: Matrix, toolkit: Toolkit) -> frozenset[str]:
    """The platforms that images are built for with this toolkit."""
    rows = (row for row in matrix.architectures.values() if row.toolkit == toolkit.name)
    return frozenset(platform for row in rows for platform in row.platforms)


def image_changes(toolkit: Toolkit, devel: PublishedImage, runtime: PublishedImage) -> list[Change]:
    """What differs between the matrix and what the registry holds."""
    assert toolkit.images is not None
    changes = []
    for role, pinned, found in (
        ("devel", toolkit.images.devel, devel),
        ("runtime", toolkit.images.runtime, runtime),
    ):
        path = ("toolkits", toolkit.name, "images", role)
        moved = pinned.name != found.name
        if moved:
            why = f"newest {role} image of CUDA {toolkit.version}"
            changes.append(Change(path=(*path, "name"), old=pinned.name, new=found.name, why=why))
        if pinned.digest != found.digest:
            why = "its digest" if moved else "was unpinned" if pinned.digest is None else "the tag has moved"
            changes.append(Change(path=(*path, "digest"), old=pinned.digest, new=found.digest, why=why))
    return changes


# --- wheels ---------------------------------------------------------------------------------------


def wheel_candidates(wheel: Wheel, toolkit: Toolkit, available: Iterable[str]) -> tuple[str, ...]:
    """The versions that fit, newest first; empty where the index has nothing as new as the pin."""
    finals = {text: key for text in available if (key := _version_key(text)) is not None}
    fitting = {text: key for text, key in finals.items() if _is_of(key, toolkit.major_minor)}
    pinned = _version_key(wheel.version)
    if pinned is not None and (not fitting or _is_of(pinned, toolkit.major_minor)):
        candidates = fitting or {text: key for text, key in finals.items() if _is_of(key, pinned[0][:1])}
        fitting = {text: key for text, key in candidates.items() if key >= pinned}
    # Else the wheel was pinned outside the line for want of one in it: it goes back, also to a lower number.
    return tuple(sorted(fitting, key=lambda text: fitting[text], reverse=True))


_VersionKey = tuple[tuple[int, ...], int]


def _version_key(text: str) -> _VersionKey | None:
    """A final release to compare by, PEP 440's zeros at the end left out; None of anything else."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)+)(?:\.?post([0-9]+))?", text)
    if found is None:
        return None
    numbers = [int(part) for part in found[1].split(".")]
    while len(numbers) > 2 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), -1 if found[2] is None else int(found[2])


def _is_of(key: _VersionKey, line: tuple[int, ...]) -> bool:
    return key[0][: len(line)] == line


def is_newer(version: str, pinned: str) -> bool:
    """Whether these are different releases; 13.0 and 13.0.0 are one."""
    keys = _version_key(version), _version_key(pinned)
    return version != pinned if None in keys else keys[0] != keys[1]


def placed_wheels(toolkit: Toolkit) -> list[tuple[KeyPath, Wheel]]:
    """Every wheel of the toolkit with its place in the file."""
    if toolkit.wheels is None:
        return []
    path = ("toolkits", toolkit.name, "wheels")
    parts = (("build", toolkit.wheels.build), ("runtime", toolkit.wheels.runtime))
    return [((*path, part, index), one) for part, wheels in parts for index, one in enumerate(wheels)]


def wheel_changes(
    path: KeyPath, wheel: Wheel, version: str, sha256: Mapping[Platform, str], *, why: str
) -> list[Change]:
    """The new version and its hash for each platform."""
    hashes = [
        Change(
            path=(*path, "sha256", platform),
            old=wheel.sha256[platform],
            new=new,
            why=f"its file for {platform}",
        )
        for platform, new in sha256.items()
        if wheel.sha256[platform] != new
    ]
    return [Change(path=(*path, "version"), old=wheel.version, new=version, why=why), *hashes]
