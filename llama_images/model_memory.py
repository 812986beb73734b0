"""What a diffusion-gemma model takes of each GPU's memory, from its file's header. Pure.

Follows the pin and the carried series: ``llama_model_base::load_tensors`` (which layer goes where),
``diffusion-cli.cpp`` (the micro-batch that ``-n`` asks for), ``diffusion-gemma.cpp`` (self-conditioning,
the prompt's K and V, the graph that the compute buffers are reserved for).

What llama.cpp allocates is a sum of exact sizes, the compute buffers excepted. Their sizes come out of an
allocator that reuses memory within a graph; ``compute_bytes`` is a bound on them with few terms, compared
with the real allocator in ``tests/unit/test_model_memory.py``. What CUDA takes for itself is ``Allowance``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from gguf import GGMLQuantizationType

from llama_images.errors import UsageError
from llama_images.gguf_file import ARCHITECTURE, ModelFile, Tensor, tensor_bytes

MIB: Final = 1 << 20
PROMPT_ROOM: Final = 2048
"""Tokens for prompt and chat that the CLI adds to those that ``-n`` asks for."""

_FLOAT: Final = 4
_HALF: Final = 2
_ALIGNMENT: Final = 128
"""Of every tensor in a CUDA buffer, in bytes."""
_ROW_PADDING: Final = 512
"""CUDA's kernels read quantised rows in pieces of so many elements; the last row gets a whole piece."""
_STORE_STEP: Final = 1024
"""Step in which the prompt's K,V store grows from turn to turn; a first turn's has steps of 256."""
_KEY_STEP: Final = 256
"""Step of the number of keys that Flash Attention takes on a GPU."""

# As `--n-cpu-moe` writes its pattern (common/common.h).
_EXPERTS = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One layer of a model. Sizes in bytes, as a CUDA buffer holds them."""

    dense_bytes: int
    """All but the experts."""
    expert_bytes: int
    largest_expert_bytes: int
    """The largest of the experts' tensors."""
    head_size: int
    kv_heads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What of a model decides on its memory."""

    blocks: tuple[Block, ...]
    output_bytes: int
    """Weights on the output device: the head (a copy of the embedding where they are tied), the last norm,
    self-conditioning's own."""
    input_bytes: int
    """The embedding, which stays in the machine's memory."""
    canvas: int
    """Tokens of a block of text."""
    context: int
    """Tokens that the model was trained to see at once."""
    vocabulary: int
    width: int
    heads: int
    experts_used: int

    @property
    def layers(self) -> int:
        """What ``-ts`` divides: the blocks and the output, which counts as one."""
        return len(self.blocks) + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """What CUDA and its libraries take of a GPU beside what llama.cpp allocates."""

    context_bytes: int
    """Context, kernels, cuBLAS."""
    pool_bytes_per_token: int
    """Pool of ggml-cuda (quantised activations, conversions), for each token of the longest pass."""


ALLOWANCE: Final = Allowance(context_bytes=688 * MIB, pool_bytes_per_token=24 << 10)
"""What two H200 had used beside llama.cpp's own buffers, with the full synthetic model (driver 580.159,
patches 1 to 10 of the series): 675 to 677 MiB for passes of up to 272 tokens, 713 for 1,808, 744 to 746 for
3,080; 708 on one card that experts were copied to. 527 of them were taken before the model was loaded.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A way to run a model."""

    tokens: int
    """As ``-n`` has them."""
    prompt_tokens: int
    """Of the prompt, its template included."""
    layers: tuple[int, ...]
    """Layers on each card, in order; the output is the last one. Sums up to ``ModelShape.layers``."""
    cpu_moe: int = 0
    """Blocks, from the first on, whose experts stay in the machine's memory: ``--n-cpu-moe``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardNeed:
    """What a setting takes of one card, in bytes."""

    blocks: int
    has_output: bool
    weights: int
    self_conditioning: int
    compute: int
    prompt_kv: int
    cuda: int
    """Context, kernels, libraries and the pool: not llama.cpp's own buffers."""

    @property
    def total(self) -> int:
        return self.weights + self.self_conditioning + self.compute + self.prompt_kv + self.cuda


def shape_of(model: ModelFile) -> ModelShape:
    """Read a header's metadata and tensors.

    Raises UsageError where a key or a tensor that the CLI needs is missing, or of the wrong kind.
    """
    count = _whole(model, "block_count")
    sliding = _each(model, "attention.sliding_window_pattern", count)
    kv_heads = _each(model, "attention.head_count_kv", count)
    sizes = (_whole(model, "attention.key_length"), _whole(model, "attention.key_length_swa"))
    vocabulary = model.vocabulary
    if vocabulary is None or model.canvas is None:
        key = "diffusion.canvas_length" if vocabulary else "tokenizer.ggml.tokens"
        raise _lacks(model, f"the key {key}")
    named = {tensor.name: tensor for tensor in model.tensors}
    embedding = named.get("token_embd.weight")
    if embedding is None:
        raise _lacks(model, "the tensor token_embd.weight")
    tied = [] if "output.weight" in named else [embedding]
    blocks: list[list[Tensor]] = [[] for _ in range(count)]
    output = [*tied]
    for tensor in model.tensors:
        match = _BLOCK.match(tensor.name)
        if match is None:
            if tensor is not embedding:
                output.append(tensor)
        elif int(match[1]) < count:
            blocks[int(match[1])].append(tensor)
    if empty := [str(index) for index, tensors in enumerate(blocks) if not tensors]:
        raise _lacks(model, f"the tensors of block {empty[0]}")
    return ModelShape(
        blocks=tuple(
            Block(
                dense_bytes=_held(tensor for tensor in tensors if not _EXPERTS.search(tensor.name)),
                expert_bytes=_held(tensor for tensor in tensors if _EXPERTS.search(tensor.name)),
                largest_expert_bytes=max(
                    (_held([tensor]) for tensor in tensors if _EXPERTS.search(tensor.name)), default=0
                ),
                head_size=sizes[bool(slides)],
                kv_heads=heads,
            )
            for tensors, slides, heads in zip(blocks, sliding, kv_heads, strict=True)
        ),
        output_bytes=_held(output),
        input_bytes=embedding.bytes,
        canvas=model.canvas,
        context=_whole(model, "context_length"),
        vocabulary=vocabulary,
        width=_whole(model, "embedding_length"),
        heads=_whole(model, "attention.head_count"),
        experts_used=_whole(model, "expert_used_count"),
    )


def split_layers(shares: Sequence[float], layers: int) -> tuple[int, ...]:
    """How many of a model's layers each card gets for a ``-ts`` of these shares.

    llama.cpp's own arithmetic, in its 32-bit floats, so that a share on an edge falls on the same side.
    """
    sums = [0.0]
    for share in shares:
        sums.append(_f32(sums[-1] + _f32(share)))
    edges = [_f32(edge / sums[-1]) for edge in sums[1:]]
    counts = [0] * len(shares)
    for layer in range(layers):
        at = _f32(_f32(layer) / layers)
        counts[next(card for card, edge in enumerate(edges) if edge > at)] += 1
    return tuple(counts)


def micro_batch(shape: ModelShape, tokens: int) -> int:
    """The micro-batch that the CLI makes of ``-n``: whole blocks, and room for prompt and chat."""
    return -(-tokens // shape.canvas) * shape.canvas + PROMPT_ROOM


def prefix_tokens(shape: ModelShape, setting: Setting) -> int:
    """The longest text that a turn reads: the prompt and every block but the last."""
    batch = micro_batch(shape, setting.tokens)
    blocks = -(-setting.tokens // shape.canvas)
    # The CLI ends a turn early where prompt and blocks don't fit into a micro-batch.
    fitting = max((batch - setting.prompt_tokens) // shape.canvas, 1)
    return setting.prompt_tokens + (min(blocks, fitting) - 1) * shape.canvas


def store_positions(shape: ModelShape, setting: Setting) -> int:
    """Positions that the prompt's K,V store holds at its largest: the text before, and the canvas behind.

    That is a chat's, which grows; that of a single turn is at most 768 smaller.
    """
    return _padded(prefix_tokens(shape, setting) + shape.canvas + _KEY_STEP - 1, _STORE_STEP)


def needs(shape: ModelShape, setting: Setting, *, allowance: Allowance = ALLOWANCE) -> tuple[CardNeed, ...]:
    """What each card must have free; a card without a layer takes nothing."""
    assert sum(setting.layers) == shape.layers
    last = max(card for card, count in enumerate(setting.layers) if count)
    return tuple(
        card_need(
            shape, setting, range(end - count, end - (card == last)), output=card == last, allowance=allowance
        )
        for card, (end, count) in enumerate(zip(accumulate(setting.layers), setting.layers, strict=True))
    )


def card_need(
    shape: ModelShape,
    setting: Setting,
    blocks: range,
    *,
    output: bool,
    allowance: Allowance = ALLOWANCE,
) -> CardNeed:
    """What a card with these blocks, and with the output, must have free; ``setting.layers`` has no say."""
    if not blocks and not output:
        return _NOTHING
    positions = store_positions(shape, setting)
    return CardNeed(
        blocks=len(blocks),
        has_output=output,
        weights=_weights(shape, blocks, setting.cpu_moe) + (shape.output_bytes if output else 0),
        self_conditioning=_self_conditioning(shape) if output else 0,
        compute=compute_bytes(shape, setting, blocks, output=output),
        prompt_kv=sum(
            2 * shape.blocks[block].kv_heads * shape.blocks[block].head_size * positions * _HALF
            for block in blocks
        ),
        # A pass forwards what the store lacks: the whole prompt at most.
        cuda=allowance.context_bytes
        + allowance.pool_bytes_per_token * max(setting.prompt_tokens, shape.canvas),
    )


def host_bytes(shape: ModelShape, setting: Setting) -> int:
    """Weights that stay in the machine's memory."""
    return shape.input_bytes + sum(block.expert_bytes for block in shape.blocks[: setting.cpu_moe])


def compute_bytes(shape: ModelShape, setting: Setting, blocks: range, *, output: bool) -> int:
    """A bound on the compute buffer of a card with these blocks, and with the output.

    The graph that it is reserved for has a whole micro-batch of tokens, two masks of them in F16, and the
    logits of a canvas: Flash Attention and the prompt's K,V store are taken to be on, as they are on GPUs.
    """
    n = micro_batch(shape, setting.tokens)
    row = shape.width * _FLOAT
    masks = 2 * n * _padded(n, _KEY_STEP) * _HALF
    sizes = [0]
    if blocks:
        query = shape.heads * max(shape.blocks[block].head_size for block in blocks) * _FLOAT
        sizes.append(masks + n * (2 * query + 4 * row))
        sizes.append(masks + n * (2 * shape.experts_used * row + 3 * row // 2))
    if output:
        # Self-conditioning takes as much as the logits, before the layers: a hole that they fill in part.
        sizes.append(masks + shape.canvas * shape.vocabulary * _FLOAT + 11 * n * row)
    kept = [shape.blocks[block] for block in blocks if block < setting.cpu_moe]
    # Experts in the machine's memory are copied to the card for each product.
    return max(sizes) + max((block.largest_expert_bytes for block in kept), default=0)


_NOTHING: Final = CardNeed(
    blocks=0, has_output=False, weights=0, self_conditioning=0, compute=0, prompt_kv=0, cuda=0
)


def _weights(shape: ModelShape, blocks: range, cpu_moe: int) -> int:
    return sum(
        shape.blocks[block].dense_bytes + (shape.blocks[block].expert_bytes if block >= cpu_moe else 0)
        for block in blocks
    )


def _self_conditioning(shape: ModelShape) -> int:
    """The transposed F16 embedding, and the logits of the step before."""
    return shape.vocabulary * (shape.width * _HALF + shape.canvas * _FLOAT)


def _held(tensors: Iterable[Tensor]) -> int:
    """Bytes of a CUDA buffer that holds these tensors."""
    return sum(_padded(tensor.bytes + _row_padding(tensor), _ALIGNMENT) for tensor in tensors)


def _row_padding(tensor: Tensor) -> int:
    unquantised = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
    missing = -tensor.shape[0] % _ROW_PADDING
    return 0 if tensor.type in unquantised or not missing else tensor_bytes([missing], tensor.type)


def _padded(number: int, step: int) -> int:
    return number + -number % step


def _f32(number: float) -> float:
    (rounded,) = struct.unpack("<f", struct.pack("<f", number))
    assert isinstance(rounded, float)
    return rounded


def _lacks(model: ModelFile, what: str) -> UsageError:
    return UsageError(
        f"{model.path} lacks {what}",
        hint="convert it again, or give another GGUF file of a diffusion-gemma model",
    )


def _whole(model: ModelFile, key: str) -> int:
    name = f"{ARCHITECTURE}.{key}"
    value = model.metadata.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise (
            _lacks(model, f"the key {name}")
            if value is None
            else UsageError(f"{model.path}: {name} is {value!r}, not a whole number from 1")
        )
    return value


def _each(model: ModelFile, key: str, count: int) -> tuple[int, ...]:
    """A key with a value for each block; where it is one value, the same for all."""
    name = f"{ARCHITECTURE}.{key}"
    value: object = model.metadata.get(name)
    values = value if isinstance(value, tuple) else (value,) * count
    if value is None:
        raise _lacks(model, f"the key {name}")
    if len(values) != count or not all(isinstance(one, int) for one in values):
        raise UsageError(f"{model.path}: {name} does not hold a number for each of {count} blocks")
    return tuple(int(one) for one in values if isinstance(one, int))
