"""What a synthetic model consists of: sizes, every tensor, and with what each is filled.

Shapes and names follow a public dump of diffusiongemma-26B-A4B-it; the graph that uses them is llama.cpp's
``src/models/diffusion-gemma.cpp`` and ``gemma4-common.h``.

How the logits are made peaked: the output head is the token embedding. With 262,144 rows of one length the
soft-max is flat whatever ``output_norm`` is, since the soft-cap closes the gaps that a larger norm opens;
and on a flat distribution the host's and the device's sampler, which add the same numbers in another order,
draw different tokens. Here ``LOUD_PAIRS`` rows, spread over the vocabulary, have the full length and
compete for the argmax; each has a twin, the same row at ``TWIN`` of its length; all others are quiet. With
``OUTPUT_NORM`` the quiet rows together hold about 1e-8 at the first step's temperature and 1e-12 from the
middle on, and the twins keep every entropy above 0.0018, where F32 still gives four digits. (Computed from
20,000 draws of 64 normal logits, capped.)

How the text depends on the network, and not on its last digit: with every norm at 1, attention picks one
key, and 60 sums of length 1 bury the token's own. A change in the seventh digit, as between two ways to
compute the same, then changes 95 of 100 tokens within twelve steps. Self-conditioning at full strength does
the same by itself, as it feeds each step with the last one's rounding. The norms here keep attention soft,
all layers together about as long as the embedding, and self-conditioning weak. Measured on the tiny model
(CPU, 16 steps, 15 pairs of prompt and seed): without the prompt cache 14 texts stay as they are and one
keeps 59 of its 64 tokens; one more letter in the prompt changes 20 % of the tokens, no self-conditioning
about 25 %, another seed all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gguf import GGMLQuantizationType

from llama_images.gguf_file import tensor_bytes
from llama_images.model_tokenizer import FIRST_WORD

Size: TypeAlias = Literal["tiny", "full"]

LOUD_PAIRS = 64
"""Rows of the embedding that compete for the argmax, each with a twin."""
TWIN = 3 / 4
"""Length of a twin, relative to its loud row."""
OUTPUT_NORM = 20.0
"""Weight of the last norm: the standard deviation of a loud token's logit before the soft-cap."""
SELF_COND_NORM = 1 / 16
"""``self_cond_pre_norm``: how strongly the last step's logits speak in the next. At four times this,
chaos."""
SOFT_CAP = 30.0
ROUTER_SCALE = 64.0
"""``ffn_gate_inp.scale``: about sqrt(2816), which undoes the graph's 1/sqrt(width), so experts' weights
differ."""
ROTATED = 0.25
"""Part of a global layer's head that RoPE rotates (proportional RoPE); the rest gets a period without end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a model, in elements; a pair is (sliding layers, global layers)."""

    blocks: int
    width: int
    feed_forward: int
    """Of the dense, shared expert."""
    heads: int
    kv_heads: tuple[int, int]
    head_size: tuple[int, int]
    experts: int
    experts_used: int
    expert_feed_forward: int
    window: int
    context: int
    vocabulary: int
    canvas: int
    quiet: float
    """Length of the embedding's other rows, neither loud nor twin. A token's own logit, about width**0.5
    times this times ``OUTPUT_NORM``, must stay below the loud ones'."""
    query_norm: float
    """``attn_q_norm``: about sqrt(2 / mean head size), so that scores have a standard deviation of 1 to
    1.4."""
    post_norm: float
    """Norms behind attention and experts: about 1/sqrt(2 · blocks), so that all layers add up to about 1."""
    quantised: bool

    def is_global(self, block: int) -> bool:
        """Five sliding layers, then one global, repeated."""
        return block % 6 == 5


SHAPES: Mapping[Size, Shape] = {
    "tiny": Shape(
        blocks=6, width=256, feed_forward=512, heads=4, kv_heads=(2, 1), head_size=(64, 128), experts=8,
        experts_used=2, expert_feed_forward=256, window=128, context=32768, vocabulary=2048, canvas=64,
        quiet=1 / 16, query_norm=1 / 8, post_norm=1 / 4, quantised=False,
    ),
    "full": Shape(
        blocks=30, width=2816, feed_forward=2112, heads=16, kv_heads=(8, 2), head_size=(256, 512),
        experts=128, experts_used=8, expert_feed_forward=704, window=1024, context=262144,
        vocabulary=262144, canvas=256, quiet=1 / 32, query_norm=1 / 16, post_norm=1 / 8, quantised=True,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform:
    """Zero mean, standard deviation 1/sqrt(fan-in); the fan-in is the tensor's first dimension."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedding:
    """As Uniform, but every row that is neither loud nor a twin is ``quiet`` times as long."""

    quiet: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeFactors:
    """Divisors of RoPE's frequencies: 1 for the rotated part, 1e30 for the rest."""


Fill: TypeAlias = Constant | Uniform | Embedding | RopeFactors


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    fill: Fill

    @property
    def bytes(self) -> int:
        return tensor_bytes(self.shape, self.type)


def planned_tensors(size: Size) -> tuple[Planned, ...]:
    """Every tensor of a model of that size, in the file's order."""
    shape = SHAPES[size]
    f32, f16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16
    # Rows of 704 and 2112 are not multiples of 256, so the down projections can't be K-quants.
    q4, q5, q6 = (
        (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q6_K)
        if shape.quantised
        else (f16, f16, f16)
    )
    plan: list[Planned] = []

    def add(name: str, dimensions: tuple[int, ...], kind: GGMLQuantizationType, fill: Fill) -> None:
        plan.append(Planned(name=name, shape=dimensions, type=kind, fill=fill))

    one, random, post = Constant(value=1.0), Uniform(), Constant(value=shape.post_norm)
    width, hidden = shape.width, shape.feed_forward
    add("token_embd.weight", (width, shape.vocabulary), q6, Embedding(quiet=shape.quiet))
    add("output_norm.weight", (width,), f32, Constant(value=OUTPUT_NORM))
    add("rope_freqs.weight", (shape.head_size[1] // 2,), f32, RopeFactors())
    add("self_cond_pre_norm.weight", (width,), f32, Constant(value=SELF_COND_NORM))
    add("self_cond_gate.weight", (width, hidden), q4, random)
    add("self_cond_up.weight", (width, hidden), q4, random)
    add("self_cond_down.weight", (hidden, width), q5, random)
    for block in range(shape.blocks):
        is_global = shape.is_global(block)
        head, kv = shape.head_size[is_global], shape.kv_heads[is_global]

        def layer(
            name: str, dimensions: tuple[int, ...], kind: GGMLQuantizationType, fill: Fill, block: int = block
        ) -> None:
            add(f"blk.{block}.{name}", dimensions, kind, fill)

        layer("attn_norm.weight", (width,), f32, one)
        layer("attn_q.weight", (width, shape.heads * head), q4, random)
        layer("attn_k.weight", (width, kv * head), q4, random)
        if not is_global:  # global layers use their keys as values
            layer("attn_v.weight", (width, kv * head), q6, random)
        layer("attn_q_norm.weight", (head,), f32, Constant(value=shape.query_norm))
        layer("attn_k_norm.weight", (head,), f32, one)
        layer("attn_output.weight", (shape.heads * head, width), q4, random)
        layer("post_attention_norm.weight", (width,), f32, post)
        layer("ffn_norm.weight", (width,), f32, one)
        layer("ffn_gate.weight", (width, hidden), q4, random)
        layer("ffn_up.weight", (width, hidden), q4, random)
        layer("ffn_down.weight", (hidden, width), q5, random)
        layer("post_ffw_norm.weight", (width,), f32, post)
        layer("post_ffw_norm_1.weight", (width,), f32, one)
        layer("post_ffw_norm_2.weight", (width,), f32, one)
        layer("pre_ffw_norm_2.weight", (width,), f32, one)
        layer("ffn_gate_inp.weight", (width, shape.experts), f32, random)
        layer("ffn_gate_inp.scale", (width,), f32, Constant(value=ROUTER_SCALE))
        layer("ffn_gate_up_exps.weight", (width, 2 * shape.expert_feed_forward, shape.experts), q4, random)
        layer("ffn_down_exps.weight", (shape.expert_feed_forward, width, shape.experts), q5, random)
        layer("ffn_down_exps.scale", (shape.experts,), f32, one)
        layer("layer_output_scale.weight", (1,), f32, one)
        layer("enc_layer_output_scale.weight", (1,), f32, one)
    return tuple(plan)


def loud_tokens(vocabulary: int) -> tuple[int, ...]:
    """Identifiers of the loud tokens: words with a space before them, spread evenly.

    The twin of each is the next one, the same word without the space.
    """
    pairs = (vocabulary - FIRST_WORD) // 2
    return tuple(FIRST_WORD + 2 * (index * pairs // LOUD_PAIRS) for index in range(LOUD_PAIRS))
