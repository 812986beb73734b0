"""What an ELF file asks of its loader: just the headers, the dynamic section and whether symbols are left.

Pure: reads from a seekable file, also one inside a tar archive, without holding the file in memory. Layout:
the System V ABI and ``elf.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO

MAGIC = b"\x7fELF"
MACHINES = {62: "x86-64", 183: "AArch64"}
"""``e_machine`` of the platforms that this project builds for."""

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
_SYMTAB = 2
_NEEDED, _STRTAB, _SONAME, _RPATH, _RUNPATH = 1, 5, 14, 15, 29
_MOST_ENTRIES = 100_000
_MOST_TEXT = 4096


class ElfDamaged(Exception):  # noqa: N818
    """The file starts as ELF and can't be read as such."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Elf:
    machine: int
    """``e_machine``; ``MACHINES`` names the two that matter here."""
    bits: int
    interpreter: str | None
    """The loader of a program; None for libraries and static programs."""
    soname: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    """Folders of DT_RPATH, searched before LD_LIBRARY_PATH; empty where there is a DT_RUNPATH."""
    runpath: tuple[str, ...]
    stripped: bool
    """No symbol table is left (``.symtab``); the dynamic one is no matter."""


def read_elf(file: IO[bytes]) -> Elf | None:
    """Read the file's headers; None where it is no ELF file. Raises ElfDamaged."""
    head = _at(file, 0, 64, short=True)
    if not head.startswith(MAGIC):
        return None
    if len(head) < 52:
        raise ElfDamaged("ends in its header")
    bits, order = {1: 32, 2: 64}.get(head[4]), {1: "<", 2: ">"}.get(head[5])
    if bits is None or order is None:
        raise ElfDamaged("is of an unknown class or byte order")
    try:
        return _read(file, head, bits, order)
    except struct.error:
        raise ElfDamaged("ends in its header") from None


def _read(file: IO[bytes], head: bytes, bits: int, order: str) -> Elf:
    wide = bits == 64
    machine = struct.unpack_from(order + "H", head, 18)[0]
    offsets = struct.unpack_from(order + ("QQ" if wide else "II"), head, 32 if wide else 28)
    entry_sizes = struct.unpack_from(order + "HHHH", head, 54 if wide else 42)
    segments = _table(file, offsets[0], entry_sizes[0], entry_sizes[1])
    sections = _table(file, offsets[1], entry_sizes[2], entry_sizes[3])

    loads: list[tuple[int, int, int]] = []
    interpreter: str | None = None
    dynamic = b""
    for segment in segments:
        if wide:
            kind, _, offset, address, _, size = struct.unpack_from(order + "IIQQQQ", segment)
        else:
            kind, offset, address, _, size = struct.unpack_from(order + "IIIII", segment)
        if kind == _LOAD:
            loads.append((address, offset, size))
        elif kind == _INTERP:
            interpreter = _at(file, offset, min(size, _MOST_TEXT)).split(b"\0")[0].decode("utf-8", "replace")
        elif kind == _DYNAMIC:
            dynamic = _at(file, offset, min(size, 16 * _MOST_ENTRIES))

    entry = struct.Struct(order + ("qQ" if wide else "iI"))
    tags = list(entry.iter_unpack(dynamic[: len(dynamic) // entry.size * entry.size]))
    end = next((number for number, (tag, _) in enumerate(tags) if tag == 0), len(tags))
    tags = tags[:end]
    strings = _file_offset(loads, next((value for tag, value in tags if tag == _STRTAB), None))

    def texts(wanted: int) -> tuple[str, ...]:
        found = []
        for tag, value in tags:
            if tag == wanted:
                if strings is None:
                    raise ElfDamaged("has a dynamic section without its strings")
                text, ending, _ = _at(file, strings + value, _MOST_TEXT, short=True).partition(b"\0")
                if not ending:
                    raise ElfDamaged("has a name without an end")
                found.append(text.decode("utf-8", "replace"))
        return tuple(found)

    def folders(wanted: int) -> tuple[str, ...]:
        return tuple(folder for text in texts(wanted) for folder in text.split(":") if folder)

    runpath = folders(_RUNPATH)
    kinds = [struct.unpack_from(order + "I", section, 4)[0] for section in sections]
    return Elf(
        machine=machine,
        bits=bits,
        interpreter=interpreter,
        soname=next(iter(texts(_SONAME)), None),
        needed=texts(_NEEDED),
        rpath=() if runpath else folders(_RPATH),
        runpath=runpath,
        stripped=_SYMTAB not in kinds,
    )


def _file_offset(loads: list[tuple[int, int, int]], address: int | None) -> int | None:
    if address is None:
        return None
    for start, offset, size in loads:
        if start <= address < start + size:
            return offset + address - start
    raise ElfDamaged("has a dynamic section that points outside of it")


def _table(file: IO[bytes], offset: int, size: int, count: int) -> list[bytes]:
    if not offset or not count:
        return []
    if size < 32:
        raise ElfDamaged("has a header table of impossible entries")
    data = _at(file, offset, size * count)
    return [data[at : at + size] for at in range(0, len(data), size)]


def _at(file: IO[bytes], offset: int, count: int, *, short: bool = False) -> bytes:
    try:
        file.seek(offset)
        data = file.read(count)
    except (OSError, OverflowError, ValueError):
        raise ElfDamaged("points outside of itself") from None
    if len(data) != count and not short:
        raise ElfDamaged("points outside of itself")
    return data
