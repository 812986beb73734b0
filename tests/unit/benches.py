"""Benches for tests: made ones whose figures are known, and hypothesis's."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from llama_images.bench import (
    Bench,
    BlockRecord,
    Build,
    Configuration,
    Hardware,
    Measurement,
    ModelFile,
    TurnRecord,
)

SHORT = Configuration(gpus=2, workload="short", prompt_tokens=5, blocks=1, canvas=256)
LONG = Configuration(gpus=2, workload="long", prompt_tokens=1780, blocks=2, canvas=256)


def turn(*blocks: tuple[float | None, Sequence[float]], turn_ms: float | None = 1000.0) -> TurnRecord:
    """A turn from its blocks, each its gap and its steps."""
    return TurnRecord(
        blocks=tuple(BlockRecord(gap_ms=gap, steps_ms=tuple(steps)) for gap, steps in blocks),
        turn_ms=turn_ms,
    )


def measurement(configuration: Configuration, flavor: str, number: int, times: TurnRecord) -> Measurement:
    return Measurement(
        configuration=configuration.id,
        flavor=flavor,
        round=number,
        command=("llama-diffusion-cli", "-m", "full.gguf"),
        times=times,
    )


def bench(
    *measurements: Measurement,
    configurations: Sequence[Configuration] = (SHORT, LONG),
    flavors: Sequence[str] = ("stock", "patched"),
    note: str = "",
    gpus: Sequence[str] = ("NVIDIA X, 16,311 MiB", "NVIDIA X, 16,311 MiB"),
) -> Bench:
    return Bench(
        format=1,
        taken_at="2026-01-02T03:04:05Z",
        note=note,
        hardware=Hardware(gpus=tuple(gpus), driver="580.65.06", processor="a CPU", engine="docker 1"),
        model=ModelFile(file="full.gguf", size_bytes=15_400_000_000, sha256="ab" * 32),
        builds=tuple(
            Build(
                flavor=flavor,
                program=f"llama-diffusion:sm120{'-stock' if flavor == 'stock' else ''}",
                digest="sha256:" + "0" * 64,
                series=None if flavor == "stock" else "1" * 64,
            )
            for flavor in flavors
        ),
        configurations=tuple(configurations),
        measurements=tuple(measurements),
    )


def example() -> Bench:
    """Two rounds: stock at 300 and 330 ms a step where patched takes 100; gaps of 2,000 and 1,500 by 500."""
    return bench(
        measurement(SHORT, "stock", 1, turn((None, [290, 300, 310]), turn_ms=3000)),
        measurement(SHORT, "patched", 1, turn((None, [100, 90, 110]), turn_ms=1000)),
        measurement(LONG, "stock", 1, turn((None, [300]), (2000, [600, 600]), turn_ms=9000)),
        measurement(LONG, "patched", 1, turn((None, [100]), (500, [100, 100]), turn_ms=3000)),
        measurement(SHORT, "patched", 2, turn((None, [100, 100, 100]), turn_ms=1000)),
        measurement(SHORT, "stock", 2, turn((None, [330, 330, 330]), turn_ms=3300)),
        measurement(LONG, "patched", 2, turn((None, [100]), (500, [120, 120]), turn_ms=3000)),
        measurement(LONG, "stock", 2, turn((None, [300]), (1500, [660, 660]), turn_ms=9300)),
    )


_ms = st.floats(min_value=0, max_value=1e9, allow_nan=False)
_text = st.text(max_size=12)
_turns = st.builds(
    TurnRecord,
    blocks=st.lists(
        st.builds(BlockRecord, steps_ms=st.lists(_ms, max_size=3).map(tuple), gap_ms=st.none() | _ms),
        max_size=3,
    ).map(tuple),
    turn_ms=st.none() | _ms,
)
_configurations = st.builds(
    Configuration,
    gpus=st.integers(0, 8),
    workload=st.sampled_from(["short", "long", "<b>&\"'"]),
    prompt_tokens=st.integers(0, 10**6),
    blocks=st.integers(0, 30),
    canvas=st.integers(1, 10**4),
)


@st.composite
def benches(draw: st.DrawFn) -> Bench:
    """Whatever a document may hold: no measurements, none of one flavor, odd words, zeros."""
    flavors = draw(st.lists(st.sampled_from(["stock", "patched", "extra", "<i>"]), max_size=3, unique=True))
    configurations = draw(st.lists(_configurations, max_size=3, unique_by=lambda one: one.id))
    count = draw(st.integers(0, 6)) if flavors and configurations else 0
    measurements = [
        measurement(
            draw(st.sampled_from(configurations)),
            draw(st.sampled_from(flavors)),
            draw(st.integers(0, 4)),
            draw(_turns),
        )
        for _ in range(count)
    ]
    return bench(
        *measurements,
        configurations=configurations,
        flavors=flavors,
        note=draw(_text),
        gpus=draw(st.lists(_text, max_size=2)),
    )
