"""Whether a case's run gave what the case asks of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from llama_images.cases import (
    Case,
    Finishes,
    Moved,
    OnGpus,
    Optimization,
    Optimized,
    Refuses,
    SameReply,
    Says,
    Stops,
    Turns,
    Validated,
    WithinThresholds,
)
from llama_images.matrix_types import Thresholds
from llama_images.runs import Devices, Run
from llama_images.timing import (
    Measured,
    judge_absolute,
    judge_flat,
    judge_relative,
    known_hardware,
    measured,
)
from llama_images.validators import judge_checks, judge_errors, judge_steps
from llama_images.verdicts import Verdict, few

KILLED_BY_INTERRUPT = 130
"""What a shell and an engine's init make of a program that a SIGINT ended."""

_GPU = re.compile(r"CUDA\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one run of the program gave."""

    exit_code: int
    seconds: float
    run: Run | None
    """None where the output is no run's; then ``last_words`` is all there is."""
    last_words: str
    """The last line of the output."""
    interrupted_after: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a case is judged by besides its own run."""

    thresholds: Thresholds
    gpus: Sequence[tuple[str, int | None]] = ()
    """Name and memory in bytes of the GPUs that the program sees."""
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    """Of the cases before."""
    skipped: Set[str] = frozenset()
    """Those of them that were not run here, for a reason that is no fault."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Everything that was asked of a case, and what could not be."""

    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)


_Plain: TypeAlias = (
    Finishes | Validated | OnGpus | Optimized | SameReply | Turns | Refuses | Says | Moved | Stops
)


def judge_case(case: Case, outcome: Outcome, around: Surroundings) -> Judgement:
    """Judge one run; every demand gives at least one verdict or a note."""
    verdicts: list[Verdict] = []
    notes: list[str] = []
    for demand in case.demands:
        if isinstance(demand, WithinThresholds):
            some, said = _thresholds(demand, outcome, case.name, around)
            verdicts += some
            notes += said
        elif isinstance(demand, SameReply) and _other(demand, around) is None:
            notes.append(f"not compared with the reply of {demand.case}, which was skipped")
        else:
            verdicts += _verdicts(demand, outcome, around)
    return Judgement(verdicts=tuple(verdicts), notes=tuple(notes))


def _other(demand: SameReply, around: Surroundings) -> str | None:
    """The case to compare with; None where every one that would do was skipped."""
    return next(
        (one for one in (demand.case, demand.otherwise) if one is not None and one not in around.skipped),
        None,
    )


def _verdicts(demand: _Plain, outcome: Outcome, around: Surroundings) -> Sequence[Verdict]:
    match demand:
        case Refuses():
            return [_refuses(demand, outcome)]
        case Stops():
            return [_stops(demand, outcome)]
        case Finishes():
            return _finishes(demand, outcome)
    run = outcome.run
    if run is None:
        detail = f"the output is no run's: {outcome.last_words}"
        return [Verdict(name=_NAMES[type(demand)], passed=False, detail=detail)]
    match demand:
        case Validated():
            return judge_checks(run, demand.checks)
        case OnGpus():
            return [_on_gpus(demand, run)]
        case Optimized():
            return [_optimized(demand, run)]
        case SameReply():
            return [_same_reply(_other(demand, around) or demand.case, run, around.outcomes)]
        case Turns():
            return [_turns(demand, run)]
        case Says():
            return [_says(demand, outcome, run)]
        case Moved():
            return [_moved(demand, run)]
    assert_never(demand)


_NAMES: Mapping[type, str] = {
    Validated: "validators",
    OnGpus: "layers on the GPUs",
    Optimized: "optimizations",
    SameReply: "same reply",
    Turns: "turns",
    Says: "says so",
    Moved: "moved buffer",
}


def _finishes(demand: Finishes, outcome: Outcome) -> list[Verdict]:
    ended = Verdict(name="exit code", passed=outcome.exit_code == 0, detail=f"exit code {outcome.exit_code}")
    run = outcome.run
    if run is None:
        what = f"the output is no run's: {outcome.last_words}"
        return [ended, Verdict(name="steps ran", passed=False, detail=what)]
    return [
        ended,
        judge_steps(run),
        judge_errors(run, made_good=demand.made_good),
        Verdict(name="reply", passed=bool(run.text.strip()), detail=f"{len(run.text):,} bytes"),
    ]


def _on_gpus(demand: OnGpus, run: Run) -> Verdict:
    """By the program's own line, where the series prints it, and by the loader's lines in any case."""
    complaints: list[str] = []
    if run.offloaded is not None:
        some, all_layers = run.offloaded
        if some != all_layers:
            complaints.append(f"{some} of {all_layers} layers are on GPUs")
    devices = run.devices
    if devices is not None:
        complaints += _where_layers_are(demand, devices)
    elif run.offloaded is None:
        complaints.append("the run does not say where its layers are")
    elif demand.shares or demand.split != "layer":
        complaints.append("the run does not say how it was split")
    holders = {one.device for one in run.buffers if one.kind == "model" and _GPU.fullmatch(one.device)}
    if demand.split == "layer" and len(holders) != demand.count:
        complaints.append(f"{len(holders)} GPUs hold weights, {demand.count} should")
    where = "" if devices is None else ", ".join(f"{name} {count}" for name, count in devices.layers)
    return Verdict(
        name=_NAMES[OnGpus],
        passed=not complaints,
        detail=few(complaints)
        or f"all, on {', '.join(sorted(holders)) or where}" + (f" ({where})" * bool(where)),
    )


def _where_layers_are(demand: OnGpus, devices: Devices) -> list[str]:
    complaints = []
    layers = [count for name, count in devices.layers if _GPU.fullmatch(name)]
    elsewhere = [
        f"{name} computes {count} layers" for name, count in devices.layers if not _GPU.fullmatch(name)
    ]
    complaints += elsewhere
    if devices.split != demand.split:
        complaints.append(f"split={devices.split}, should be {demand.split}")
    if demand.split == "layer" and len(layers) != demand.count:
        complaints.append(f"{len(layers)} GPUs compute layers, {demand.count} should")
    if demand.shares and len(layers) == len(demand.shares):
        whole = sum(layers)
        for found, share in zip(layers, demand.shares, strict=True):
            meant = whole * share / sum(demand.shares)
            # The output layer counts for the split and not for the line; layers can't be cut.
            if abs(found - meant) > 1.5:
                complaints.append(f"{found} of {whole} layers for a share of {share} in {sum(demand.shares)}")
    return complaints


def _optimized(demand: Optimized, run: Run) -> Verdict:
    name = _NAMES[Optimized]
    if run.options is None:
        return Verdict(name=name, passed=False, detail="the CLI did not print its options (diffusion_eb: …)")
    found: dict[Optimization, bool] = {
        "kv_cache": run.options.kv_cache,
        "gpu_sampling": run.options.gpu_sampling,
        "sample_reduce": run.options.sample_reduce,
    }
    wrong = [f"{one}=off" for one in sorted(demand.on) if not found[one]]
    wrong += [f"{one}=on" for one in sorted(demand.off) if found[one]]
    if run.devices is not None:
        wrong += _on_devices(demand, run.devices)
    # Asked for and told to be on, and yet not what ran.
    kinds = {"kv_cache": "prompt cache", "gpu_sampling": "self-conditioning", "sample_reduce": "sampling"}
    wrong += [one.text for one in run.fallbacks if any(one.kind == kinds[which] for which in demand.on)]
    if wrong:
        why = f"; the CLI says: {few(run.switched_off)}" if run.switched_off else ""
        return Verdict(name=name, passed=False, detail=few(wrong) + why)
    told = ", ".join(f"{one}={'on' if on else 'off'}" for one, on in found.items())
    return Verdict(name=name, passed=True, detail=told)


def _on_devices(demand: Optimized, devices: Devices) -> list[str]:
    """Where the line with the devices and the one with the options contradict each other."""
    where: dict[Optimization, tuple[str, ...]] = {
        "kv_cache": devices.kv_cache,
        "gpu_sampling": devices.gpu_sampling,
        "sample_reduce": devices.sample_reduce,
    }
    wrong = [f"{one} is on no device" for one in sorted(demand.on) if not where[one]]
    wrong += [f"{one} is on {', '.join(where[one])}" for one in sorted(demand.off) if where[one]]
    missing = {name for name, count in devices.layers if count} - set(devices.kv_cache)
    if "kv_cache" in demand.on and devices.kv_cache and missing:
        wrong.append(f"no kv_cache on {', '.join(sorted(missing))}")
    return wrong


def _same_reply(case: str, run: Run, outcomes: Mapping[str, Outcome]) -> Verdict:
    name, other = _NAMES[SameReply], outcomes.get(case)
    if other is None or other.run is None:
        return Verdict(name=name, passed=False, detail=f"{case} gave no reply to compare with")
    mine, theirs = run.text, other.run.text
    if mine == theirs:
        return Verdict(name=name, passed=True, detail=f"{len(mine):,} bytes, as {case}")
    at = next(
        (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs))
    )
    return Verdict(
        name=name,
        passed=False,
        detail=f"differs from {case} at byte {at:,} of {len(mine):,} and {len(theirs):,}",
    )


def _turns(demand: Turns, run: Run) -> Verdict:
    name = _NAMES[Turns]
    turns = [turn for turn in run.turns if turn.summary is not None]
    if len(turns) != demand.count:
        return Verdict(name=name, passed=False, detail=f"{len(turns)} turns, {demand.count} wanted")
    if len({turns[index].text for index in demand.same}) > 1:
        which = " and ".join(str(index + 1) for index in demand.same)
        return Verdict(name=name, passed=False, detail=f"the replies of turns {which} differ")
    return Verdict(name=name, passed=True, detail=f"{len(turns)}, each with its reply")


def _refuses(demand: Refuses, outcome: Outcome) -> Verdict:
    name = "refused"
    errors = () if outcome.run is None else outcome.run.errors
    complaints = []
    if outcome.exit_code != 1:
        complaints.append(f"exit code {outcome.exit_code}, 1 wanted")
    if outcome.run is not None and outcome.run.progress:
        complaints.append(f"{len(outcome.run.progress)} steps ran")
    if not any(demand.words in line for line in errors) and demand.words:
        complaints.append(f"no error says {demand.words!r}")
    if demand.one_line and len(errors) > 1:
        complaints.append(f"{len(errors)} lines of errors, one wanted")
    said = next((line for line in errors if demand.words in line), "without a word")
    return Verdict(name=name, passed=not complaints, detail=few(complaints) or said)


def _says(demand: Says, outcome: Outcome, run: Run) -> Verdict:
    name = _NAMES[Says]
    said = next((line for line in (*run.errors, *run.notes) if demand.words in line), None)
    if said is None:
        return Verdict(name=name, passed=False, detail=f"no line says {demand.words!r}")
    # The program tells a failed turn by its words alone: it ends with 0 all the same.
    return Verdict(
        name=name, passed=outcome.exit_code in (0, 1), detail=f"{said} (exit code {outcome.exit_code})"
    )


def _moved(demand: Moved, run: Run) -> Verdict:
    name = _NAMES[Moved]
    placed = [one for one in run.fallbacks if one.kind == "placement"]
    if not placed:
        return Verdict(name=name, passed=False, detail="everything found room where it belongs")
    on_gpu = all(_GPU.fullmatch(one.placed_on or "") for one in placed)
    nowhere = all(not _GPU.fullmatch(one.placed_on or "") for one in placed)
    return Verdict(
        name=name,
        passed=on_gpu if demand.to == "another GPU" else nowhere,
        detail=few([one.text for one in placed]),
    )


def _stops(demand: Stops, outcome: Outcome) -> Verdict:
    name = "stopped"
    if outcome.interrupted_after is None:
        return Verdict(name=name, passed=False, detail=f"it ended before its interrupt: {outcome.last_words}")
    took = outcome.seconds - outcome.interrupted_after
    return Verdict(
        name=name,
        passed=took <= demand.seconds and outcome.exit_code == KILLED_BY_INTERRUPT,
        detail=f"{took:.1f} s after the interrupt, at most {demand.seconds:g} wanted; "
        f"exit code {outcome.exit_code}, {KILLED_BY_INTERRUPT} wanted",
    )


def _thresholds(
    demand: WithinThresholds, outcome: Outcome, case: str, around: Surroundings
) -> tuple[list[Verdict], list[str]]:
    def run_of(name: str | None) -> Run | None:
        found = outcome if name == case else around.outcomes.get(name or "")
        return None if found is None else found.run

    mine = measured(short=run_of(demand.short), long=run_of(demand.long))
    verdicts = [judge_flat(mine, around.thresholds.relative)]
    notes = []
    hardware = known_hardware(around.thresholds, around.gpus)
    if hardware is not None:
        verdicts += judge_absolute(mine, hardware)
    else:
        names = ", ".join(sorted({name for name, _ in around.gpus}))
        notes.append(f"the matrix has no times for {len(around.gpus)} x {names}: {_told(mine)}")
    stock = [run_of(demand.stock_short), run_of(demand.stock_long)]
    if any(run is not None for run in stock):
        theirs = measured(short=stock[0], long=stock[1])
        verdicts += judge_relative(mine, theirs, around.thresholds.relative)
    else:
        notes.append("not compared with stock, which was not run")
    return verdicts, notes


def _told(found: Measured) -> str:
    values = (("short", found.short_ms), ("first block", found.first_ms), ("last block", found.last_ms))
    return ", ".join(f"{name} {'-' if ms is None else f'{ms:.1f}'}" for name, ms in values) + " ms/step"
