"""The machine's cards, as ``nvidia-smi`` lists them, and those that a campaign may use.

``CUDA_VISIBLE_DEVICES`` of the caller is a choice of cards. Numbers in it count as those of nvidia-smi do, by
PCI bus: every run is given ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_FROZEN = 120
"""From this architecture on the build makes code for that one alone (``120`` becomes ``120a``)."""
DEFAULT_ARCH = 90
"""Where nothing tells which cards there are."""


class CardError(Exception):
    """What is wrong with the cards, in one line.

    ``exit_code`` is 2 where the caller can choose otherwise, 3 where the machine has none.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One GPU."""

    index: str
    uuid: str
    described: str
    """Name, driver and memory, with commas between."""
    arch: int | None
    """Compute capability without its point, 90 for 9.0; None where the driver is too old to tell."""

    @property
    def name(self) -> str:
        return self.described.partition(",")[0]


def _ask(fields: str) -> list[str]:
    """A line for each card. Raises CardError where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise CardError("no GPU found (nvidia-smi is not in PATH)", 3)
    argv = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CardError(f"no GPU found (nvidia-smi: {error})", 3) from None
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0 or not lines:
        said = [*lines, *done.stderr.strip().splitlines(), "nothing was printed"][0]
        raise CardError(f"no GPU found (nvidia-smi, exit code {done.returncode}: {said})", 3)
    return lines


def read_arch(capability: str) -> int | None:
    """90 for ``9.0``; None for what is no compute capability."""
    digits = capability.strip().replace(".", "", 1)
    return int(digits) if digits.isascii() and digits.isdigit() else None


def read_cards(lines: Sequence[str], capabilities: Sequence[str]) -> tuple[Card, ...]:
    """From nvidia-smi's ``index,uuid,name,driver_version,memory.total`` and ``compute_cap``, a line a card.

    Raises ValueError where a line holds something else.
    """
    cards = []
    for at, line in enumerate(lines):
        index, uuid, described = (word.strip() for word in line.split(",", 2))
        arch = read_arch(capabilities[at]) if len(capabilities) == len(lines) else None
        cards.append(Card(index=index, uuid=uuid, described=described, arch=arch))
    return tuple(cards)


def find_cards() -> tuple[Card, ...]:
    """The machine's cards, in the order of the PCI bus. Raises CardError where there is none."""
    lines = _ask("index,uuid,name,driver_version,memory.total")
    try:
        capabilities = _ask("compute_cap")
    except CardError:  # drivers before 510 don't know the field
        capabilities = []
    try:
        return read_cards(lines, capabilities)
    except ValueError:
        raise CardError(f"no GPU found (nvidia-smi printed: {lines[0]})", 3) from None


def chosen(visible: str | None, needed: int) -> tuple[str, ...]:
    """The first ``needed`` cards of the caller's, as words for ``CUDA_VISIBLE_DEVICES``.

    ``visible`` is the caller's ``CUDA_VISIBLE_DEVICES``, None where it is not set. Raises CardError.
    """
    if visible is None:
        return tuple(str(at) for at in range(needed))
    words: list[str] = []
    for word in (part.strip() for part in visible.split(",")):
        if not word or word == "-1":  # CUDA reads no further
            break
        words.append(word)
    if not words:
        raise CardError(f"no GPU found (CUDA_VISIBLE_DEVICES is '{visible}')", 3)
    if len(words) < needed:
        raise CardError(
            "CUDA_VISIBLE_DEVICES names one GPU, two are needed: name two, or give --logical yes", 2
        )
    if len(set(words)) < len(words):
        raise CardError(f"CUDA_VISIBLE_DEVICES names a GPU twice: {visible}", 2)
    return tuple(words[:needed])


def pick(cards: Sequence[Card], words: Sequence[str]) -> tuple[Card, ...]:
    """The cards that the words name. A part of a card (MIG) is left out: nvidia-smi does not list it.

    Raises CardError where nvidia-smi lists no such card.
    """
    picked = []
    for at, word in enumerate(words):
        found = [card for card in cards if card.index == word or card.uuid.startswith(word)]
        if found:
            picked.append(found[0])
        elif not word.startswith("MIG"):
            if word == str(at) == "1" and len(cards) == 1:
                raise CardError("one GPU found, two are needed: give --logical yes", 2)
            raise CardError(f"CUDA_VISIBLE_DEVICES: nvidia-smi lists no GPU '{word}'", 2)
    return tuple(picked)


def visible(gpus: str, words: Sequence[str]) -> str:
    """A turn's devices, places from 0 with commas between, as ``CUDA_VISIBLE_DEVICES`` must have them."""
    return ",".join(words[int(place)] for place in gpus.split(",")) if gpus else ""


def can_run(card: Card, arch: int) -> bool:
    """Whether the card runs what was built for that architecture, if need be once the driver compiled it."""
    if card.arch is None or card.arch == arch:
        return True
    return arch < card.arch and arch < _FROZEN


def arch_for(cards: Sequence[Card], asked: int | None) -> tuple[int, str | None]:
    """The architecture to build for, and a remark.

    Without ``asked`` it is the lowest of the cards'. Raises CardError where a card can't run it.
    """
    known = [card.arch for card in cards if card.arch is not None]
    lowest = min(known, default=DEFAULT_ARCH)
    arch = asked or lowest
    for card in cards:
        if not can_run(card, arch):
            alike = all(can_run(other, lowest) for other in cards)
            hint = f"give --arch {lowest}" if alike else "choose GPUs that are alike (CUDA_VISIBLE_DEVICES)"
            what = f"GPU {card.index} ({card.name}, architecture {card.arch})"
            raise CardError(f"--arch: {what} can't run code for {arch}: {hint}", 2)
    others = ", ".join(str(other) for other in sorted({*known} - {arch}))
    if others:
        return arch, f"GPUs of architecture {others} compile the code for {arch} as they start"
    return arch, None if known else f"nvidia-smi tells no compute capability: architecture {arch} is taken"
