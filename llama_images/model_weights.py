"""The bytes of a synthetic model's tensors, in pieces; little-endian.

Random bits come from the counter-based generator Philox, whose raw stream NumPy guarantees; scales come
from IEEE 754 operations that are exactly rounded (multiplication, division, square root), never from a
library function whose rounding may vary. So the bytes depend on the seed alone.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from llama_images.model_shape import (
    ROTATED,
    TWIN,
    Constant,
    Embedding,
    Planned,
    RopeFactors,
    Size,
    Uniform,
    loud_tokens,
    planned_tensors,
)

Bytes: TypeAlias = npt.NDArray[np.uint8]


_STREAMS = {"pool": 1 << 32, "offset": 1 << 33}
"""Keys of the generator's streams, above those of the tensors, which are their numbers."""


def _random(seed: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    return np.random.Philox(key=(seed << 64) | stream).random_raw(count)


def _random_bytes(seed: int, stream: int, count: int) -> Bytes:
    words = _random(seed, stream, -(-count // 8)).astype("<u8", copy=False)
    return words.view(np.uint8)[:count]


def _integers(seed: int, stream: int, count: int, bound: int) -> npt.NDArray[np.int32]:
    """``count`` integers, evenly spread over -bound … bound."""
    raw = _random_bytes(seed, stream, 4 * count).view("<u4").astype(np.uint64)
    return ((raw * np.uint64(2 * bound + 1)) >> np.uint64(32)).astype(np.int32) - np.int32(bound)


def _uniform(seed: int, stream: int, fan_in: int, count: int) -> npt.NDArray[np.float32]:
    """Zero mean, standard deviation 1/sqrt(fan_in), every value an exact multiple of a power of two.

    Integers of at most 11 bits times a power of two are exact in F16 and F32 alike.
    """
    exponent = (
        2047 * 2047 * fan_in // 3
    ).bit_length() // 2  # the largest that keeps the bound within 11 bits
    bound = math.isqrt(3 * 4**exponent // fan_in)
    while bound > 2047:
        exponent -= 1
        bound = math.isqrt(3 * 4**exponent // fan_in)
    return _integers(seed, stream, count, bound).astype(np.float32) * np.float32(2.0**-exponent)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pool:
    """Random blocks of one quantised type, laid end to end and repeated through every tensor of that type.

    Their number is a prime above the number of rows of the vocabulary, so that no two rows of the embedding
    are alike and no matrix repeats its rows at the same place.
    """

    data: Bytes
    """[blocks, bytes a block]"""
    scale_at: int
    """Offset of the F16 scale in a block."""
    spread: float
    """Standard deviation of the values at scale 1."""

    def scaled(self, scale: float) -> Bytes:
        """The blocks with that scale, which is rounded to F16; alters the pool in place."""
        self.data[:, self.scale_at : self.scale_at + 2] = _half(scale)
        return self.data


def _half(value: float) -> Bytes:
    return np.frombuffer(struct.pack("<e", value), dtype=np.uint8)


_POOL_BLOCKS = {
    GGMLQuantizationType.Q4_K: 262_147,
    GGMLQuantizationType.Q5_0: 524_287,
    GGMLQuantizationType.Q6_K: 262_147,
}
"""Primes. 38, 12 and 55 MB."""


class _Pools:
    """Pools made when first asked for."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pools: dict[GGMLQuantizationType, _Pool] = {}

    def __getitem__(self, kind: GGMLQuantizationType) -> _Pool:
        if kind not in self._pools:
            self._pools[kind] = self._make(kind)
        return self._pools[kind]

    def _make(self, kind: GGMLQuantizationType) -> _Pool:
        blocks, size = _POOL_BLOCKS[kind], GGML_QUANT_SIZES[kind][1]
        data = (
            _random_bytes(self._seed, _STREAMS["pool"] + int(kind), blocks * size)
            .reshape(blocks, size)
            .copy()
        )
        # Block layouts: ggml/src/ggml-common.h.
        match kind:
            case GGMLQuantizationType.Q4_K:
                # f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, 128 bytes of 4-bit values: d·4·q -
                # dmin·30 = 4·d·(q - 7.5), whose mean is zero. scaled() sets d; dmin is the same and set
                # with it.
                data[:, 4:16] = np.array([4] * 4 + [0x5E] * 4 + [0xE4] * 4, dtype=np.uint8)
                return _Pool4(data=data, scale_at=0, spread=4 * math.sqrt((16**2 - 1) / 12))
            case GGMLQuantizationType.Q5_0:
                # f16 d, 4 bytes of fifth bits, 16 bytes of 4-bit values: d·(q - 16). The mean of q - 16 is
                # -1/2: a random sign of d, block by block, takes it away. The sign is the random bytes'
                # own.
                return _PoolSigned(
                    data=data,
                    scale_at=0,
                    spread=math.sqrt((32**2 - 1) / 12 + 0.25),
                    sign=data[:, 1] & np.uint8(0x80),
                )
            case GGMLQuantizationType.Q6_K:
                # 128 bytes of low bits, 64 of high bits, 16 signed 8-bit scales, f16 d: d·scale·(q - 32),
                # with scales of +1 and -1 for the same reason.
                data[:, 192:208] = np.where(data[:, 192:208] & 1, 0xFF, 1)
                return _Pool(data=data, scale_at=208, spread=math.sqrt((64**2 - 1) / 12 + 0.25))
        raise AssertionError(kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pool4(_Pool):
    def scaled(self, scale: float) -> Bytes:
        self.data[:, 0:2] = self.data[:, 2:4] = _half(scale)
        return self.data


@dataclass(frozen=True, kw_only=True, slots=True)
class _PoolSigned(_Pool):
    sign: Bytes

    def scaled(self, scale: float) -> Bytes:
        low, high = _half(scale)
        self.data[:, 0] = low
        self.data[:, 1] = high | self.sign
        return self.data


def _quantised(planned: Planned, number: int, seed: int, pools: _Pools) -> Iterator[Bytes]:
    """The tensor's bytes, in pieces that are views of a pool."""
    pool = pools[planned.type]
    per_block, _ = GGML_QUANT_SIZES[planned.type]
    row = planned.shape[0] // per_block
    rows = math.prod(planned.shape[1:])
    count = len(pool.data)
    start = int(_random(seed, _STREAMS["offset"] + number, 1)[0] % np.uint64(count))
    scale = 1 / math.sqrt(planned.shape[0]) / pool.spread

    def span(first: int, blocks: int) -> Iterator[Bytes]:
        at = (start + first) % count
        while blocks:
            length = min(blocks, count - at)
            yield pool.data[at : at + length].reshape(-1)
            at, blocks = 0, blocks - length

    if not isinstance(planned.fill, Embedding):
        pool.scaled(scale)
        yield from span(0, rows * row)
        return
    pool.scaled(scale * planned.fill.quiet)
    done = 0
    for token in loud_tokens(rows):
        yield from span(done * row, (token - done) * row)
        loud = np.concatenate(list(span(token * row, row))).reshape(row, -1)
        for length in (1.0, TWIN):
            loud[:, pool.scale_at : pool.scale_at + 2] = _half(scale * length)
            yield loud.reshape(-1)
        done = token + 2
    yield from span(done * row, (rows - done) * row)


def _plain(planned: Planned, number: int, seed: int) -> Bytes:
    """The bytes of an F32 or F16 tensor."""
    count = math.prod(planned.shape)
    match planned.fill:
        case Constant(value=value):
            values = np.full(count, value, dtype=np.float32)
        case RopeFactors():
            values = np.full(count, 1e30, dtype=np.float32)
            values[: int(count * ROTATED)] = 1.0
        case Uniform():
            values = _uniform(seed, number, planned.shape[0], count)
        case Embedding(quiet=quiet):
            values = _uniform(seed, number, planned.shape[0], count)
            rows = values.reshape(planned.shape[::-1])
            loud = list(loud_tokens(len(rows)))
            chosen = rows[loud]
            rows *= np.float32(quiet)
            rows[loud] = chosen
            rows[[token + 1 for token in loud]] = chosen * np.float32(TWIN)
    kind = "<f4" if planned.type == GGMLQuantizationType.F32 else "<f2"
    return values.astype(kind).view(np.uint8)


def tensor_data(size: Size, seed: int) -> Iterator[tuple[Planned, Iterator[Bytes]]]:
    """Every tensor with its bytes in pieces. A piece is valid until the next is asked for."""
    pools = _Pools(seed)
    for number, planned in enumerate(planned_tensors(size)):
        if planned.type in _POOL_BLOCKS:
            yield planned, _quantised(planned, number, seed, pools)
        else:
            yield planned, iter((_plain(planned, number, seed),))
