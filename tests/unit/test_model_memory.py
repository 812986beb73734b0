"""What a model takes of each card: against sizes that real runs logged, and the rules of the source."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_images.errors import UsageError
from llama_images.gguf_file import ModelFile, Tensor, read_header
from llama_images.model_memory import (
    MIB,
    ModelShape,
    Setting,
    compute_bytes,
    host_bytes,
    micro_batch,
    needs,
    prefix_tokens,
    shape_of,
    split_layers,
    store_positions,
)
from llama_images.model_shape import SHAPES, planned_tensors
from llama_images.synthetic import write_model

FULL = SHAPES["full"]


@functools.cache
def full_model() -> ModelFile:
    """The header of the full synthetic model, without the 15 GB behind it."""
    sliding = [not FULL.is_global(block) for block in range(FULL.blocks)]
    keys: Mapping[str, object] = {
        "block_count": FULL.blocks,
        "context_length": FULL.context,
        "embedding_length": FULL.width,
        "attention.head_count": FULL.heads,
        "attention.head_count_kv": tuple(FULL.kv_heads[not slides] for slides in sliding),
        "attention.sliding_window_pattern": tuple(sliding),
        "attention.key_length": FULL.head_size[1],
        "attention.key_length_swa": FULL.head_size[0],
        "expert_used_count": FULL.experts_used,
    }
    tensors, offset = [], 0
    for planned in planned_tensors("full"):
        tensors.append(Tensor(name=planned.name, shape=planned.shape, type=planned.type, offset=offset))
        offset += planned.bytes + -planned.bytes % 32
    return ModelFile(
        path=Path("full.gguf"),
        bytes=offset,
        expected_bytes=offset,
        architecture="diffusion-gemma",
        metadata={
            **{f"diffusion-gemma.{key}": value for key, value in keys.items()},
            "diffusion.canvas_length": FULL.canvas,
        },
        array_lengths={"tokenizer.ggml.tokens": FULL.vocabulary},
        tensors=tuple(tensors),
        data_offset=0,
    )


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return shape_of(full_model())


def setting(layers: Sequence[int], **values: Any) -> Setting:
    return Setting(**{"tokens": 256, "prompt_tokens": 16, "layers": tuple(layers), **values})


# --- what a run on two H100 logged: -ts 1,1, the full synthetic model -----------------------------


def test_weights_are_those_of_a_run(shape: ModelShape) -> None:
    first, second = needs(shape, setting(split_layers((1, 1), shape.layers)))
    assert (first.blocks, first.has_output) == (16, False)
    assert (second.blocks, second.has_output) == (14, True)
    assert round(first.weights / MIB, 2) == 7538.26
    assert round(second.weights / MIB, 2) == 7191.68
    assert round(host_bytes(shape, setting((16, 15))) / MIB, 2) == 577.50


# --- what ggml's allocator reserved, CPU backend, six layers of the full model's shape ------------

# Micro-batch → MiB. With a vocabulary of 2,048 words the layers are alone, with the full one there are
# self-conditioning and the logits too.
LAYERS = {2304: 444.14, 2560: 495.77, 3584: 707.28, 4096: 816.03, 6144: 1271.05, 8192: 1758.06}
LOGITS = {
    2304: 499.02, 2560: 528.52, 3072: 655.02, 3584: 728.53, 4096: 804.03, 6144: 1060.05, 8192: 1520.06,
}  # fmt: skip


@pytest.mark.parametrize(("batch", "reserved"), LAYERS.items())
def test_the_layers_compute_buffer_is_a_near_bound(shape: ModelShape, batch: int, reserved: float) -> None:
    found = compute_bytes(shape, setting((31,), tokens=batch - 2048), range(6), output=False) / MIB
    assert reserved <= found <= 1.03 * reserved


@pytest.mark.parametrize(("batch", "reserved"), LOGITS.items())
def test_the_output_s_compute_buffer_is_a_bound(shape: ModelShape, batch: int, reserved: float) -> None:
    found = compute_bytes(shape, setting((31,), tokens=batch - 2048), range(6), output=True) / MIB
    assert 0.999 * reserved <= found <= 1.23 * reserved


def test_the_prompt_store_has_half_of_what_a_run_in_f32_logged(shape: ModelShape) -> None:
    # "prompt KV buffer size = 440.00 MiB (1024 positions)", all layers on one device, before it was F16
    (need,) = needs(shape, setting((31,)))
    assert need.prompt_kv / MIB == 440.0 / 2


def test_self_conditioning_is_on_the_output_s_card(shape: ModelShape) -> None:
    first, second = needs(shape, setting((16, 15)))
    assert first.self_conditioning == 0
    assert second.self_conditioning == 262144 * 2816 * 2 + 262144 * 256 * 4


# --- rules of the source -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ((1, 1), (16, 15)),
        ((7, 3), (22, 9)),
        ((3, 7), (10, 21)),
        ((0.7, 0.3), (22, 9)),
        ((1, 0), (31, 0)),
        ((0, 1), (0, 31)),
        ((1,), (31,)),
    ],
)
def test_layers_fall_where_llama_cpp_puts_them(shares: Sequence[float], counts: Sequence[int]) -> None:
    assert split_layers(shares, 31) == counts


@given(st.lists(st.integers(0, 99), min_size=1, max_size=8).filter(any), st.integers(1, 80))
def test_every_layer_is_somewhere(shares: list[int], layers: int) -> None:
    counts = split_layers(shares, layers)
    assert sum(counts) == layers
    assert all(count == 0 for share, count in zip(shares, counts, strict=True) if share == 0)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=8).filter(any), st.integers(1, 80))
def test_the_split_is_that_of_32_bit_floats(shares: list[int], layers: int) -> None:
    # numpy's own float32 against the module's rounding
    edges = np.cumsum(np.array(shares, np.float32), dtype=np.float32)
    edges /= edges[-1]
    at = np.arange(layers, dtype=np.float32) / np.float32(layers)
    cards = np.searchsorted(edges, at, side="right")
    assert split_layers(shares, layers) == tuple(np.bincount(cards, minlength=len(shares)).tolist())


@pytest.mark.parametrize(
    ("tokens", "batch"), [(1, 2304), (256, 2304), (257, 2560), (1536, 3584), (2048, 4096)]
)
def test_the_micro_batch_has_whole_blocks_and_the_prompt_s_room(
    shape: ModelShape, tokens: int, batch: int
) -> None:
    assert micro_batch(shape, tokens) == batch


@pytest.mark.parametrize(
    ("tokens", "prompt", "prefix", "positions"),
    [
        (256, 16, 16, 1024),
        (256, 512, 512, 1024),
        (256, 513, 513, 1024),
        (256, 514, 514, 2048),
        (1536, 1800, 1800 + 5 * 256, 4096),
        (512, 2048, 2048 + 256, 3072),
        # The second block no longer goes into the micro-batch of 2,560.
        (512, 2200, 2200, 3072),
    ],
)
def test_the_store_grows_in_the_cli_s_steps(
    shape: ModelShape, tokens: int, prompt: int, prefix: int, positions: int
) -> None:
    asked = setting((31,), tokens=tokens, prompt_tokens=prompt)
    assert prefix_tokens(shape, asked) == prefix
    assert store_positions(shape, asked) == positions


@given(st.integers(0, 31), st.integers(1, 20_000), st.integers(1, 2048), st.integers(0, 30))
def test_more_text_needs_more_and_no_weight_is_lost(
    first: int, tokens: int, prompt: int, cpu_moe: int
) -> None:
    shape = shape_of(full_model())
    one = setting((first, 31 - first), tokens=tokens, prompt_tokens=prompt, cpu_moe=cpu_moe)
    longer = dataclasses.replace(one, tokens=tokens + 256)
    for less, more in zip(needs(shape, one), needs(shape, longer), strict=True):
        assert more.total > less.total or more.total == less.total == 0
    whole = sum(block.dense_bytes + block.expert_bytes for block in shape.blocks)
    placed = sum(need.weights for need in needs(shape, one)) + host_bytes(shape, one)
    assert placed == whole + shape.output_bytes + shape.input_bytes


def test_experts_in_the_machine_s_memory_are_those_of_the_first_blocks(shape: ModelShape) -> None:
    first, second = needs(shape, setting((16, 15), cpu_moe=10))
    before, same = needs(shape, setting((16, 15)))
    assert second == same
    moved = sum(block.expert_bytes for block in shape.blocks[:10])
    assert before.weights - first.weights == moved
    assert host_bytes(shape, setting((16, 15), cpu_moe=10)) - shape.input_bytes == moved


# --- headers -------------------------------------------------------------------------------------


def test_a_real_file_gives_the_shape(tmp_path: Path) -> None:
    tiny = write_model("tiny", tmp_path / "tiny.gguf").path
    shape = shape_of(read_header(tiny))
    assert (len(shape.blocks), shape.canvas, shape.vocabulary, shape.width) == (6, 64, 2048, 256)
    assert [block.kv_heads for block in shape.blocks] == [2, 2, 2, 2, 2, 1]
    assert [block.head_size for block in shape.blocks] == [64, 64, 64, 64, 64, 128]


def without(model: ModelFile, key: str) -> ModelFile:
    metadata = {name: value for name, value in model.metadata.items() if not name.endswith(key)}
    lengths = {name: value for name, value in model.array_lengths.items() if not name.endswith(key)}
    return dataclasses.replace(model, metadata=metadata, array_lengths=lengths)


@pytest.mark.parametrize(
    "key",
    ["block_count", "head_count_kv", "sliding_window_pattern", "key_length", "canvas_length", "ggml.tokens"],
)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(UsageError, match=rf"full\.gguf lacks the key .*{key}"):
        shape_of(without(full_model(), key))


def test_a_missing_tensor_is_named() -> None:
    model = full_model()
    kept = tuple(tensor for tensor in model.tensors if not tensor.name.startswith("blk.7."))
    with pytest.raises(UsageError, match="lacks the tensors of block 7"):
        shape_of(dataclasses.replace(model, tensors=kept))
    with pytest.raises(UsageError, match=r"lacks the tensor token_embd\.weight"):
        shape_of(dataclasses.replace(model, tensors=model.tensors[1:]))


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "30", (1, 2)])
def test_a_key_of_the_wrong_kind_is_named(value: object) -> None:
    model = full_model()
    metadata = {**model.metadata, "diffusion-gemma.embedding_length": value}
    with pytest.raises(UsageError, match=r"embedding_length is .*, not a whole number from 1"):
        shape_of(dataclasses.replace(model, metadata=metadata))


def test_an_output_of_its_own_takes_the_place_of_the_embedding() -> None:
    model = full_model()
    head = Tensor(name="output.weight", shape=(2816, 262144), type=gguf.GGMLQuantizationType.Q8_0, offset=0)
    tied, own = (
        shape_of(model).output_bytes,
        shape_of(dataclasses.replace(model, tensors=(*model.tensors, head))).output_bytes,
    )
    # The last row of each is padded to a whole piece.
    assert own - tied == pytest.approx(head.bytes - model.tensors[0].bytes, abs=512)
