"""From what was run and found to what evidence keeps of it, and into a file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from llama_images.cases import Case
from llama_images.evidence import (
    BlockRecord,
    CaseRecord,
    Evidence,
    GpuRecord,
    JudgedRule,
    MachineRecord,
    ModelRecord,
    Placement,
    Status,
    TurnRecord,
    to_json,
    to_junit,
)
from llama_images.judging import Judgement, Outcome
from llama_images.ports import Gpu
from llama_images.runs import Run, Turn
from llama_images.timing import block_times
from llama_images.workflows.model_files import HashedModel
from llama_images.workflows.subjects import PROGRAM
from llama_images.workflows.workshop import write_or_remove


def case_record(
    case: Case,
    judged: Judgement,
    outcome: Outcome | None,
    *,
    model: str,
    folders: Sequence[Path],
    status: Status,
    reason: str | None,
    limit: tuple[int, ...] | None,
    runs: int,
    medians: tuple[float, ...],
) -> CaseRecord:
    """A case with what became of it.

    ``model`` is the name of the whole model's file. ``folders`` are taken from the paths in messages: a bare
    binary names files by their paths on this machine.
    """

    def shown(text: str) -> str:
        for folder in folders:
            text = text.replace(f"{folder}/", "")
        return text

    run = None if outcome is None else outcome.run
    return CaseRecord(
        name=case.name,
        about=case.about,
        status=status,
        reason=reason,
        command=(
            *(PROGRAM, "-m", model if case.model == "whole" else f"a model that is {case.model}"),
            *case.arguments,
        ),
        environment=dict(case.environment),
        stdin=None if case.stdin is None else case.stdin.decode(),
        gpus=case.gpus,
        memory_mib=limit,
        runs=runs,
        exit_code=None if outcome is None else outcome.exit_code,
        seconds=None if outcome is None else round(outcome.seconds, 3),
        verdicts=tuple(
            JudgedRule(name=rule.name, passed=rule.passed, detail=shown(rule.detail))
            for rule in judged.verdicts
        ),
        notes=judged.notes,
        turns=() if run is None else turn_records(run),
        medians_ms=tuple(round(ms, 3) for ms in medians),
        placement=None if run is None else _placement(run),
    )


def turn_records(run: Run) -> tuple[TurnRecord, ...]:
    """Every turn with the times of its blocks."""
    return tuple(
        TurnRecord(
            steps=sum(len(block) for block in turn.blocks) if turn.summary is None else turn.summary.steps,
            total_ms=_total(turn),
            reply_bytes=len(turn.text),
            reply_sha256=hashlib.sha256(turn.text).hexdigest(),
            blocks=tuple(
                BlockRecord(
                    steps_ms=tuple(round(ms, 3) for ms in times.steps_ms),
                    median_ms=None if times.median_ms is None else round(times.median_ms, 3),
                    gap_ms=None if times.gap_ms is None else round(times.gap_ms, 3),
                )
                for times in block_times(turn)
            ),
        )
        for turn in run.turns
    )


def _total(turn: Turn) -> float | None:
    """The program's own time for the turn; None where it gave none that JSON can hold."""
    if turn.summary is None or not math.isfinite(turn.summary.milliseconds):
        return None
    return turn.summary.milliseconds


def _placement(run: Run) -> Placement:
    switches = {}
    if run.options is not None:
        switches = {
            "kv_cache": run.options.kv_cache,
            "gpu_sampling": run.options.gpu_sampling,
            "sample_reduce": run.options.sample_reduce,
        }
    return Placement(
        layers={} if run.devices is None else dict(run.devices.layers),
        offloaded=run.offloaded,
        on=tuple(name for name, on in switches.items() if on),
        off=tuple(name for name, on in switches.items() if not on),
        fallbacks=tuple(one.text for one in run.fallbacks),
    )


def machine_record(
    engine: str, platform: str, *, gpus: Sequence[Gpu], driver: str | None, logical: int | None
) -> MachineRecord:
    """Where it ran; ``logical`` is how many devices were made of the GPUs."""
    return MachineRecord(
        engine=engine,
        platform=platform,
        driver=driver,
        gpus=tuple(
            GpuRecord(name=gpu.name, compute_capability=gpu.compute_capability, memory_bytes=gpu.memory_bytes)
            for gpu in gpus
        ),
        logical_gpus=logical,
    )


def write_evidence(folder: Path, evidence: Evidence) -> Path:
    """Write the JSON document and the JUnit XML beside it, each aside and renamed; the document's path."""
    stamp = evidence.started.replace("-", "").replace(":", "")
    path = folder / f"{stamp}-{evidence.subject.name}.json"
    write_or_remove(path.with_suffix(".xml"), to_junit(evidence))
    write_or_remove(path, to_json(evidence))
    return path


def model_record(model: HashedModel) -> ModelRecord:
    return ModelRecord(name=model.path.name, bytes=model.bytes, sha256=model.sha256)
