"""What ``invoke bench`` has measured, and what it comes to. Pure.

A run is timed by its progress lines: a step is the time between two of them, and a gap the time from a
block's last line to the next block's first, prefill and that block's first step included.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from llama_images.errors import UsageError

FORMAT: Final = 1
"""Version of the JSON document; it changes when a key's meaning does, or one goes away."""

_HINT: Final = "give the bench.json that `invoke bench` wrote"
_STRICT: Final = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

Milliseconds = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=0, le=10**7)]


@checked(frozen=True, kw_only=True, slots=True, config=_STRICT)
class BlockRecord:
    """One block of a run."""

    steps_ms: tuple[Milliseconds, ...]
    """Milliseconds of every step but the first, which ends the gap; empty for a block of one step."""
    gap_ms: Milliseconds | None
    """Milliseconds from the block before to this one's first step; None for a turn's first block."""


@checked(frozen=True, kw_only=True, slots=True, config=_STRICT)
class TurnRecord:
    """One turn of one run."""

    blocks: tuple[BlockRecord, ...]
    turn_ms: Milliseconds | None
    """The whole turn as the CLI counts it, first prefill included."""


@checked(frozen=True, kw_only=True, slots=True, config=_STRICT)
class Configuration:
    """What is measured: a number of GPUs, and how much is read and written."""

    gpus: Count
    """0 for a CPU."""
    workload: str
    """"short" or "long"."""
    prompt_tokens: Count
    """About so many: the prompt's characters, each of them a token."""
    blocks: Count
    canvas: Annotated[int, Field(ge=1, le=10**6)]
    """Tokens of a block."""

    @property
    def id(self) -> str:
        """``2gpu-long``, ``cpu-short``."""
        return f"{self.place_id}-{self.workload}"

    @property
    def place_id(self) -> str:
        return f"{self.gpus}gpu" if self.gpus else "cpu"

    @property
    def place(self) -> str:
        """ "2 GPUs", "1 GPU", "CPU"."""
        return f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}" if self.gpus else "CPU"

    @property
    def title(self) -> str:
        return f"{self.place}, {self.workload}"

    def context(self, block: int) -> int:
        """Tokens before a block, which counts from 0."""
        return self.prompt_tokens + block * self.canvas


@checked(frozen=True, kw_only=True, slots=True, config=_STRICT)
class Build:
    """A program that was measured."""

    flavor: str
    program: str
    """The image's name, or the file's."""
    digest: str
    """The image's identifier, or the file's SHA-256."""
    series: str | None
    """Digest of the patch series; None for the pin alone, and where nobody knows."""


@checked(frozen=True, kw_only=True, slots=True, config=_STRICT)
class Hardware:
    """Where it was measured."""

    gpus: tuple[str, ...]
    """Each GPU of the machine with its memory, in the order of their numbers."""
    driver: str | None
    processor: str
    engine: str
    """The container engine; "host" where there was none."""


@checked(frozen=True, kw_only=True, slots=True, config=_STRICT)
class ModelFile:
    """The model that was run."""

    file: str
    size_bytes: int
    sha256: str


@checked(frozen=True, kw_only=True, slots=True, config=_STRICT)
class Measurement:
    """One run."""

    configuration: str
    """``Configuration.id``."""
    flavor: str
    round: Count
    """From 1; runs of one round belong together."""
    command: tuple[str, ...]
    times: TurnRecord


@checked(frozen=True, kw_only=True, slots=True, config=_STRICT)
class Bench:
    """Everything of one ``invoke bench``: what the JSON document holds."""

    format: Literal[1]
    taken_at: str
    """Date and time, ISO 8601, UTC."""
    note: str
    hardware: Hardware
    model: ModelFile
    builds: tuple[Build, ...]
    """In the order of the tables; the first is what the others are compared with."""
    configurations: tuple[Configuration, ...]
    measurements: tuple[Measurement, ...]
    """In the order in which they ran."""

    @property
    def flavors(self) -> tuple[str, ...]:
        return tuple(build.flavor for build in self.builds)

    @property
    def rounds(self) -> int:
        return max((one.round for one in self.measurements), default=0)

    def runs(self, configuration: Configuration, flavor: str) -> tuple[Measurement, ...]:
        """A configuration's runs with one flavor, by round."""
        found = [
            one for one in self.measurements if (one.configuration, one.flavor) == (configuration.id, flavor)
        ]
        return tuple(sorted(found, key=lambda one: one.round))


_DOCUMENT: Final[TypeAdapter[Bench]] = TypeAdapter(Bench)


def to_json(bench: Bench) -> str:
    """The document, as text that ends with a newline."""
    return _DOCUMENT.dump_json(bench, indent=1).decode("utf-8") + "\n"


def from_json(text: str | bytes, *, name: str) -> Bench:
    """Read a document back. Raises UsageError naming ``name`` and the first value that is wrong."""
    try:
        bench = _DOCUMENT.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise UsageError(f"{name}: {where}: {first['msg']}", hint=_HINT) from None
    for what, names in (
        ("configuration", [one.id for one in bench.configurations]),
        ("flavor", list(bench.flavors)),
    ):
        if len(set(names)) < len(names):
            raise UsageError(f"{name}: a {what} is listed twice", hint=_HINT)
    known = {one.id for one in bench.configurations}
    for one in bench.measurements:
        if one.configuration not in known or one.flavor not in bench.flavors:
            raise UsageError(
                f"{name}: a measurement is of {one.configuration} with {one.flavor}, which are not listed",
                hint=_HINT,
            )
    return bench


# --- what it comes to ---


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Values of several rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSummary:
    """A block over all rounds."""

    context: int
    """Tokens before it."""
    steps_ms: tuple[float, ...]
    """Every step of every round."""
    step_ms: Spread | None
    """Over the rounds' medians; None where no round had two steps in it."""
    gap_ms: Spread | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A configuration with one flavor over all rounds."""

    configuration: Configuration
    flavor: str
    rounds: int
    blocks: tuple[BlockSummary, ...]
    """As many as the shortest run has."""
    turn_ms: Spread | None

    @property
    def first(self) -> Spread | None:
        return self.blocks[0].step_ms if self.blocks else None

    @property
    def last(self) -> Spread | None:
        return self.blocks[-1].step_ms if self.blocks else None

    @property
    def first_gap(self) -> Spread | None:
        return self.blocks[1].gap_ms if len(self.blocks) > 1 else None

    @property
    def last_gap(self) -> Spread | None:
        return self.blocks[-1].gap_ms if len(self.blocks) > 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """How many times longer the first flavor takes than another, round by round."""

    flavor: str
    rounds: tuple[int, ...]
    first: tuple[float | None, ...]
    """Of the first block's median step, for each round."""
    last: tuple[float | None, ...]
    first_gap: tuple[float | None, ...]
    last_gap: tuple[float | None, ...]
    turn: tuple[float | None, ...]


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median, lowest and highest of the values that are there; None where none is."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(median=statistics.median(there), low=min(there), high=max(there))


def summarize(bench: Bench, configuration: Configuration, flavor: str) -> Summary | None:
    """What the runs of a configuration with one flavor come to; None where there is none."""
    runs = bench.runs(configuration, flavor)
    if not runs:
        return None
    blocks = []
    for index, rounds in enumerate(zip(*(run.times.blocks for run in runs), strict=False)):
        blocks.append(
            BlockSummary(
                context=configuration.context(index),
                steps_ms=tuple(step for block in rounds for step in block.steps_ms),
                step_ms=spread(_middle(block) for block in rounds),
                gap_ms=spread(block.gap_ms for block in rounds),
            )
        )
    return Summary(
        configuration=configuration,
        flavor=flavor,
        rounds=len(runs),
        blocks=tuple(blocks),
        turn_ms=spread(run.times.turn_ms for run in runs),
    )


def ratios(bench: Bench, configuration: Configuration) -> tuple[Ratio, ...]:
    """The first flavor against each of the others, over the rounds that have both."""
    if not bench.flavors:
        return ()
    reference = {one.round: one.times for one in bench.runs(configuration, bench.flavors[0])}
    found = []
    for flavor in bench.flavors[1:]:
        pairs = [
            (one.round, reference[one.round], one.times)
            for one in bench.runs(configuration, flavor)
            if one.round in reference
        ]
        if not pairs:
            continue
        # Blocks of different contexts are no pair: both runs are read up to the last that both have.
        last = [min(len(a.blocks), len(b.blocks)) - 1 for _, a, b in pairs]
        found.append(
            Ratio(
                flavor=flavor,
                rounds=tuple(number for number, _, _ in pairs),
                first=tuple(_of(_step(a, 0), _step(b, 0)) for _, a, b in pairs),
                last=tuple(_of(_step(a, n), _step(b, n)) for (_, a, b), n in zip(pairs, last, strict=True)),
                first_gap=tuple(_of(_gap(a, 1), _gap(b, 1)) for _, a, b in pairs),
                last_gap=tuple(_of(_gap(a, n), _gap(b, n)) for (_, a, b), n in zip(pairs, last, strict=True)),
                turn=tuple(_of(a.turn_ms, b.turn_ms) for _, a, b in pairs),
            )
        )
    return tuple(found)


def _middle(block: BlockRecord) -> float | None:
    return statistics.median(block.steps_ms) if block.steps_ms else None


def _step(times: TurnRecord, block: int) -> float | None:
    return _middle(times.blocks[block]) if 0 <= block < len(times.blocks) else None


def _gap(times: TurnRecord, block: int) -> float | None:
    return times.blocks[block].gap_ms if 0 <= block < len(times.blocks) else None


def _of(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other is not None and other > 0 else None


# --- what is run ---


def long_prompt(tokens: int) -> str:
    """A prompt of so many digits, each of them a token; always the same."""
    return "".join(str(number * number) for number in range(tokens))[:tokens]


def order_of_round(flavors: Sequence[str], number: int) -> tuple[str, ...]:
    """The flavors in a round's order: every second round runs them backwards.

    So a machine that gets slower as it gets warm is not on one flavor's side.
    """
    return tuple(flavors if number % 2 else reversed(flavors))
