"""How a model runs best on these cards: ``-ts``, ``-n`` and, where nothing else fits, ``--n-cpu-moe``. Pure.

The longest text that fits wins. Among the splits that hold it, the one whose fullest card is least full:
the first card takes most blocks, since the last one has the output head, self-conditioning and the logits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from llama_images.errors import UsageError
from llama_images.model_memory import (
    MIB,
    PROMPT_ROOM,
    CardNeed,
    ModelShape,
    Setting,
    card_need,
    host_bytes,
    micro_batch,
    needs,
    split_layers,
)
from llama_images.words import counted

MARGIN: Final = 300 * MIB
"""Room that a choice leaves on each card, for what the estimate does not know."""

_SHARES: Final = 12
"""Largest sum of the small numbers that ``-ts`` is written in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A GPU, as far as a choice asks."""

    name: str
    free_bytes: int
    index: int | None = None
    """Position in PCI bus order; None for a card that was described."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the user has settled."""

    prompt_tokens: int = PROMPT_ROOM
    """Of the longest prompt, its template included."""
    tokens: int | None = None
    """``-n``; None for as many as fit."""
    shares: tuple[float, ...] = ()
    """``-ts``; empty for the best."""
    margin_bytes: int = MARGIN


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """A choice, and what it takes."""

    setting: Setting
    cards: tuple[Card, ...]
    needs: tuple[CardNeed, ...]
    """By card."""
    shares: tuple[float, ...]
    """``-ts``; empty for a single card."""
    micro_batch: int
    host_bytes: int
    """Weights in the machine's memory."""
    margin_bytes: int

    @property
    def left(self) -> tuple[int, ...]:
        """What each card has left, in bytes; negative where the setting does not fit."""
        return tuple(card.free_bytes - need.total for card, need in zip(self.cards, self.needs, strict=True))

    @property
    def fits(self) -> bool:
        """Whether every card that is used keeps the margin."""
        return all(
            left >= self.margin_bytes for left, need in zip(self.left, self.needs, strict=True) if need.total
        )

    @property
    def busiest(self) -> int:
        """The card with the least left."""
        used = [card for card, need in enumerate(self.needs) if need.total]
        return min(used, key=lambda card: self.left[card])

    def options(self) -> tuple[str, ...]:
        """Of the CLI, the model's left out."""
        words = ["-ngl", "99"]
        if self.shares:
            words += ["-ts", ",".join(f"{share:g}" for share in self.shares)]
        if self.setting.cpu_moe:
            words += ["--n-cpu-moe", str(self.setting.cpu_moe)]
        words += ["-n", str(self.setting.tokens)]
        if sum(need.total > 0 for need in self.needs) > 1:
            for name in ("kv-cache", "gpu-sampling", "gpu-sample-reduce"):
                words += [f"--diffusion-{name}", "on"]
        return tuple(words)


def choose_fit(shape: ModelShape, cards: Sequence[Card], wanted: Wanted) -> Fit:
    """The best choice; where none fits, the one that comes nearest, with ``Fit.fits`` false.

    Raises UsageError for a prompt or a text longer than the model can see.
    """
    _check(shape, cards, wanted)
    blocks = len(shape.blocks)
    for cpu_moe in range(blocks + 1):
        plain = _setting(shape, wanted, cpu_moe, wanted.tokens or shape.canvas)
        if _split(shape, plain, cards, wanted) is None:
            continue
        setting = plain if wanted.tokens else _longest(shape, plain, cards, wanted)
        return _balanced(shape, setting, cards, wanted)
    # What comes nearest: all experts in the machine's memory.
    nearest = _setting(shape, wanted, blocks, wanted.tokens or shape.canvas)
    shares = wanted.shares or tuple(float(max(card.free_bytes, 1)) for card in cards)
    layers = split_layers(shares, shape.layers)
    return _fit(shape, cards, dataclasses.replace(nearest, layers=layers), wanted)


def fit_of(
    shape: ModelShape,
    cards: Sequence[Card],
    setting: Setting,
    *,
    margin_bytes: int = MARGIN,
    shares: Sequence[float] = (),
) -> Fit:
    """What a setting takes of these cards; ``shares`` are those that gave its layers, where any did."""
    return Fit(
        setting=setting,
        cards=tuple(cards),
        needs=needs(shape, setting),
        shares=() if len(cards) == 1 else tuple(shares) or shares_for(setting.layers),
        micro_batch=micro_batch(shape, setting.tokens),
        host_bytes=host_bytes(shape, setting),
        margin_bytes=margin_bytes,
    )


def shares_for(counts: Sequence[int]) -> tuple[int, ...]:
    """The smallest whole numbers that, given to ``-ts``, put so many layers on each card."""
    layers = sum(counts)
    for total in range(1, _SHARES + 1):
        shares = tuple(round(count * total / layers) for count in counts)
        if sum(shares) == total and split_layers(shares, layers) == tuple(counts):
            return shares
    return tuple(counts)


def _check(shape: ModelShape, cards: Sequence[Card], wanted: Wanted) -> None:
    if wanted.shares and len(wanted.shares) != len(cards):
        raise UsageError(
            f"-ts has {counted(len(wanted.shares), 'share')} for {counted(len(cards), 'card')}",
            hint="give one for each card, such as 7,3",
        )
    if not 1 <= wanted.prompt_tokens <= shape.context - shape.canvas:
        raise UsageError(
            f"a prompt of {wanted.prompt_tokens:,} tokens does not go into the model's context of "
            f"{shape.context:,} with a block of {shape.canvas}",
            hint="give a number of tokens from 1",
        )
    if wanted.tokens is None:
        return
    batch = micro_batch(shape, wanted.tokens)
    if wanted.tokens < 1 or batch > shape.context:
        raise UsageError(
            f"-n {wanted.tokens:,}: the model sees {shape.context:,} tokens at once, "
            f"{PROMPT_ROOM:,} of them are kept for the prompt",
            hint="give a smaller number, from 1",
        )
    if wanted.prompt_tokens + shape.canvas > batch:
        raise UsageError(
            f"a prompt of {wanted.prompt_tokens:,} tokens does not go into the micro-batch of {batch:,} that "
            f"-n {wanted.tokens:,} makes",
            hint="the CLI makes it longer with a larger -n",
        )


def _setting(shape: ModelShape, wanted: Wanted, cpu_moe: int, tokens: int) -> Setting:
    # Room for a prompt beyond what -n comes with is had by a larger -n only.
    missing = max(wanted.prompt_tokens - PROMPT_ROOM, 0) if wanted.tokens is None else 0
    return Setting(
        tokens=tokens + missing + -missing % shape.canvas,
        prompt_tokens=wanted.prompt_tokens,
        layers=(),
        cpu_moe=cpu_moe,
    )


def _split(
    shape: ModelShape,
    setting: Setting,
    cards: Sequence[Card],
    wanted: Wanted,
    *,
    fullness: float = 1.0,
    before: float | None = None,
) -> tuple[int, ...] | None:
    """Layers for each card with at most so much of each taken; None where there is no such split.

    ``before`` is for the cards before the one with the output. What a card needs grows with its blocks, so
    filling one after the other finds a split where there is one; the output goes to the last card, or to one
    before it where the last can't hold it.
    """
    rooms = [card.free_bytes - wanted.margin_bytes for card in cards]
    if wanted.shares:
        layers = split_layers(wanted.shares, shape.layers)
        taken = needs(shape, dataclasses.replace(setting, layers=layers))
        full = all(need.total <= room * fullness for need, room in zip(taken, rooms, strict=True))
        return layers if full else None
    blocks = len(shape.blocks)
    for last in range(len(cards) - 1, -1, -1):
        counts: list[int] = []
        for room in rooms[:last]:
            start = sum(counts)
            holds = functools.partial(
                _holds, shape, setting, start, room * (fullness if before is None else before)
            )
            counts.append(_most(blocks - start, holds))
        rest = range(sum(counts), blocks)
        if card_need(shape, setting, rest, output=True).total <= rooms[last] * fullness:
            return (*counts, len(rest) + 1, *(0 for _ in rooms[last + 1 :]))
    return None


def _holds(shape: ModelShape, setting: Setting, start: int, room: float, count: int) -> bool:
    return card_need(shape, setting, range(start, start + count), output=False).total <= room


def _most(highest: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to ``highest`` for which it holds, as it does for all below; 0 at least."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _longest(shape: ModelShape, setting: Setting, cards: Sequence[Card], wanted: Wanted) -> Setting:
    def longer(blocks: int) -> Setting:
        return dataclasses.replace(setting, tokens=setting.tokens + blocks * shape.canvas)

    most = (shape.context - PROMPT_ROOM - setting.tokens) // shape.canvas
    return longer(
        _most(max(most, 0), lambda blocks: _split(shape, longer(blocks), cards, wanted) is not None)
    )


def _balanced(shape: ModelShape, setting: Setting, cards: Sequence[Card], wanted: Wanted) -> Fit:
    """The split whose fullest card is least full; then the cards before the output as evenly as can be."""
    steps = 1000
    least = steps - _most(
        steps,
        lambda less: _split(shape, setting, cards, wanted, fullness=(steps - less) / steps) is not None,
    )
    fullness = least / steps
    before = least - _most(
        least,
        lambda less: (
            _split(shape, setting, cards, wanted, fullness=fullness, before=(least - less) / steps)
            is not None
        ),
    )
    layers = _split(shape, setting, cards, wanted, fullness=fullness, before=before / steps)
    assert layers is not None
    return _fit(shape, cards, dataclasses.replace(setting, layers=layers), wanted)


def _fit(shape: ModelShape, cards: Sequence[Card], setting: Setting, wanted: Wanted) -> Fit:
    return fit_of(shape, cards, setting, margin_bytes=wanted.margin_bytes, shares=wanted.shares)
