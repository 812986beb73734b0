"""Which split, text length and place of the experts is chosen, on cards of many sizes."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_images.errors import UsageError
from llama_images.fit import MARGIN, Card, Fit, Wanted, choose_fit, fit_of, shares_for
from llama_images.model_memory import MIB, ModelShape, Setting, needs, shape_of, split_layers
from tests.unit.test_model_memory import full_model

SHAPE = shape_of(full_model())
SIXTEEN = 16_111
"""MiB that a card of 16,311 has left beside a desktop."""


def cards(*mebibytes: int) -> tuple[Card, ...]:
    return tuple(Card(name=f"card {number}", free_bytes=size * MIB) for number, size in enumerate(mebibytes))


def chosen(*mebibytes: int, **wanted: Any) -> Fit:
    return choose_fit(SHAPE, cards(*mebibytes), Wanted(**wanted))


def test_two_cards_of_16_gb() -> None:
    fit = chosen(SIXTEEN, SIXTEEN)
    assert fit.fits
    assert fit.setting.cpu_moe == 0
    assert fit.setting.layers[0] > fit.setting.layers[1], "the last card has the head, so fewer blocks"
    assert split_layers(fit.shares, SHAPE.layers) == fit.setting.layers
    assert fit.options() == (
        *("-ngl", "99", "-ts", ",".join(map(str, fit.shares)), "-n", str(fit.setting.tokens)),
        *("--diffusion-kv-cache", "on", "--diffusion-gpu-sampling", "on"),
        *("--diffusion-gpu-sample-reduce", "on"),
    )


def q4_k_m() -> ModelShape:
    """The published Q4_K_M file: llama.cpp's rule for it gives more bits to some layers.

    The types come out as the public dump of that file counts them, and so does its length, 16.8 GB.
    """
    model = full_model()
    blocks, values = SHAPE.layers - 1, 0
    tensors = []
    for tensor in model.tensors:
        kind = tensor.type
        if tensor.name.endswith("attn_v.weight"):
            kind = GGMLQuantizationType.Q6_K if more_bits(values, 25) else GGMLQuantizationType.Q4_K
            values += 1
        elif re.fullmatch(r"blk\.\d+\.ffn_down(_exps)?\.weight", tensor.name):
            better = more_bits(int(tensor.name.split(".")[1]), blocks)
            kind = GGMLQuantizationType.Q8_0 if better else GGMLQuantizationType.Q5_0
        tensors.append(dataclasses.replace(tensor, type=kind))
    counted = Counter(tensor.type.name for tensor in tensors)
    assert counted == {"F32": 423, "Q4_K": 194, "Q5_0": 33, "Q8_0": 28, "Q6_K": 14}
    assert round(sum(tensor.bytes for tensor in tensors) / 1e9, 1) == 16.8
    return shape_of(dataclasses.replace(model, tensors=tuple(tensors)))


def more_bits(index: int, count: int) -> bool:
    """``use_more_bits`` of llama.cpp's quantiser."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def test_the_write_up_s_split_fits_and_an_evener_one_holds_more_text() -> None:
    shape, two = q4_k_m(), cards(SIXTEEN, SIXTEEN)
    by_hand = choose_fit(shape, two, Wanted(tokens=1536, shares=(7.0, 3.0)))
    assert by_hand.fits
    assert by_hand.setting.cpu_moe == 0
    best = choose_fit(shape, two, Wanted())
    assert best.fits
    assert best.setting.layers < (22, 9), "with 7,3 the first card is full while the second has room"
    as_long = choose_fit(shape, two, Wanted(tokens=best.setting.tokens, shares=(7.0, 3.0)))
    assert not as_long.fits or as_long.setting.cpu_moe > 0


def test_one_card_needs_no_split_and_no_switches() -> None:
    fit = chosen(24_000)
    assert fit.fits
    assert fit.options() == ("-ngl", "99", "-n", str(fit.setting.tokens))


def test_the_text_is_as_long_as_fits() -> None:
    fit = chosen(SIXTEEN, SIXTEEN)
    tokens = fit.setting.tokens + SHAPE.canvas
    for first in range(SHAPE.layers + 1):
        setting = Setting(tokens=tokens, prompt_tokens=2048, layers=(first, SHAPE.layers - first))
        assert not fit_of(SHAPE, fit.cards, setting).fits, f"{first} layers on the first card hold {tokens}"


def test_experts_go_to_the_machine_s_memory_only_where_nothing_else_fits() -> None:
    fit = chosen(SIXTEEN)
    assert fit.fits
    assert fit.setting.cpu_moe > 0
    assert fit.options()[:4] == ("-ngl", "99", "--n-cpu-moe", str(fit.setting.cpu_moe))
    one_less = Setting(tokens=SHAPE.canvas, prompt_tokens=2048, layers=(31,), cpu_moe=fit.setting.cpu_moe - 1)
    assert not fit_of(SHAPE, fit.cards, one_less).fits


def test_a_split_and_a_length_that_were_asked_for_are_kept() -> None:
    fit = chosen(SIXTEEN, SIXTEEN, tokens=1536, shares=(7.0, 3.0), prompt_tokens=1800)
    assert fit.fits
    assert (fit.setting.layers, fit.setting.tokens, fit.setting.cpu_moe) == ((22, 9), 1536, 0)
    assert fit.options()[2:6] == ("-ts", "7,3", "-n", "1536")
    too_much = chosen(SIXTEEN, SIXTEEN, tokens=65_536, shares=(1.0, 1.0))
    assert not too_much.fits
    assert too_much.left[too_much.busiest] < MARGIN


@pytest.mark.parametrize("sizes", [(2000,), (5000,), (2500, 2500)])
def test_what_fits_nowhere_is_shown_with_what_is_missing(sizes: Sequence[int]) -> None:
    fit = chosen(*sizes)
    assert not fit.fits
    assert fit.left[fit.busiest] == min(fit.left)
    assert fit.left[fit.busiest] < fit.margin_bytes


def test_many_cards_share_evenly() -> None:
    fit = chosen(*[11_000] * 4)
    assert fit.fits
    assert max(fit.setting.layers[:-1]) - min(fit.setting.layers[:-1]) <= 2


def test_a_small_last_card_is_left_out_where_the_head_does_not_fit() -> None:
    fit = chosen(32_000, 2_000)
    assert fit.fits
    assert fit.setting.layers == (31, 0)
    assert fit.left[1] == 2_000 * MIB
    assert "--diffusion-kv-cache" not in fit.options()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"prompt_tokens": 300_000}, "a prompt of 300,000 tokens does not go into the model's context"),
        ({"prompt_tokens": 0}, "a prompt of 0 tokens"),
        ({"tokens": 300_000}, "-n 300,000: the model sees 262,144 tokens"),
        ({"tokens": 256, "prompt_tokens": 4000}, "does not go into the micro-batch of 2,304"),
        ({"shares": (1.0, 1.0, 1.0)}, "-ts has 3 shares for 2 cards"),
    ],
)
def test_what_can_t_be_is_wrong_use(wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        chosen(SIXTEEN, SIXTEEN, **wanted)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(500, 90_000), min_size=1, max_size=4), st.sampled_from([16, 2048, 6000]))
def test_a_choice_holds_what_it_promises(sizes: list[int], prompt: int) -> None:
    fit = chosen(*sizes, prompt_tokens=prompt)
    assert sum(fit.setting.layers) == SHAPE.layers
    assert fit.needs == needs(SHAPE, fit.setting)
    assert fit.setting.tokens % SHAPE.canvas == 0
    if fit.shares:
        assert split_layers(fit.shares, SHAPE.layers) == fit.setting.layers
    if fit.fits:
        assert min(left for left, need in zip(fit.left, fit.needs, strict=True) if need.total) >= MARGIN
    else:
        assert fit.setting.cpu_moe == len(SHAPE.blocks)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(any))
def test_shares_give_back_the_layers(counts: list[int]) -> None:
    shares = shares_for(counts)
    assert split_layers(shares, sum(counts)) == tuple(counts)


def test_shares_are_written_small() -> None:
    assert shares_for((22, 9)) == (7, 3)
    assert shares_for((16, 15)) == (1, 1)
