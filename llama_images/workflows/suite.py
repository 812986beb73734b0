"""``invoke test``: the cases, run, judged, and recorded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from llama_images.capabilities import driver_is_enough, runs_on
from llama_images.cases import PLENTY, Case, WithinThresholds, chosen, cpu_cases, gpu_cases
from llama_images.errors import TimedOut
from llama_images.evidence import BAD, PAST_DEADLINE, TOO_FEW_GPUS, CaseRecord, Evidence, Status
from llama_images.judging import Judgement, Outcome, Surroundings, judge_case
from llama_images.ports import Gpu, GpuMemory, Gpus, ProgramRun
from llama_images.runs import RunUnreadable, parse_run
from llama_images.timing import block_times, warm_turn
from llama_images.verdicts import Verdict
from llama_images.words import last_line
from llama_images.workflows.devices import device_environment, memory_limits, seen, visible, weights
from llama_images.workflows.model_files import HashedModel, broken_model
from llama_images.workflows.records import case_record, machine_record, model_record
from llama_images.workflows.side_by_side import run_cases
from llama_images.workflows.subjects import Subject
from llama_images.workflows.workshop import Workshop

MEANT: Final = 2
"""GPUs that the tests are about where nobody says how many."""

SOAK_SECONDS: Final = 2 * 3600.0

_BESIDE_WEIGHTS: Final = 2560 << 20
"""Bytes that a model needs on its GPU besides its file's, to be tried there at all."""

_ROOM: Final = 5 << 30
"""Bytes beside its part of the weights that a run has to itself on each GPU, where others run there too."""

_DRIFT: Final = 1.10
"""How many times slower the last of repeated runs may be than the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteOptions:
    """What the user chose."""

    gpus: int = MEANT
    """How many the tests are about."""
    logical: Path | None = None
    """The library that makes each GPU look like several, so that there are ``gpus`` of them."""
    soak_seconds: float = 0.0
    """Length of the soak; 0 for none."""
    patterns: tuple[str, ...] = ()
    """Names of the cases to run, see ``cases.chosen``; none for all."""
    end: float | None = None
    """No case starts later than this, by the suite's clock."""
    at_once: int = 1
    """How many cases run side by side at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rig:
    """What the cases are run on."""

    engine: str
    """The engine and its version, or "host"."""
    platform: str
    gpus: tuple[Gpu, ...] = ()
    """Those that cases may see, in PCI bus order."""
    driver: str | None = None
    memory: GpuMemory
    model: HashedModel | None
    """None where nothing can be run with one."""


def find_gpus(gpus: Gpus, variable: str | None) -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs that cases may see, and the driver's version.

    ``variable`` is CUDA_VISIBLE_DEVICES. Raises UsageError where it names no GPU, OutsideError where the
    driver fails.
    """
    return visible(gpus.gpus(), variable), gpus.driver_version()


def run_suite(
    shop: Workshop,
    subject: Subject,
    rig: Rig,
    options: SuiteOptions,
    *,
    save: Callable[[Evidence], None],
    clock: Callable[[], float] = time.monotonic,
) -> Evidence:
    """Run every case that can be run here, and return the record of all.

    ``save`` gets the record when it is complete, and also where Ctrl-C or a failing engine breaks it off;
    then the error goes on. Raises UsageError before anything is run where a pattern matches no case.
    """
    cases = suite_cases(subject, options)
    started, at = clock(), datetime.now(UTC)
    records: dict[str, CaseRecord] = {}

    def keep(record: CaseRecord) -> None:
        records[record.name] = record
        if record.status in BAD:
            shop.reporter.line(_told(record))

    def evidence(*, complete: bool) -> Evidence:
        return Evidence(
            schema_version=1,
            kind="test",
            complete=complete,
            selected=options.patterns,
            at_once=options.at_once,
            started=at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=round(clock() - started, 3),
            subject=subject.record,
            machine=machine_record(
                rig.engine,
                rig.platform,
                gpus=rig.gpus if subject.on_gpus else (),
                driver=rig.driver if subject.on_gpus else None,
                logical=options.gpus if options.logical is not None else None,
            ),
            model=None if rig.model is None else model_record(rig.model),
            cases=tuple(records[case.name] for case in cases if case.name in records),
        )

    try:
        with tempfile.TemporaryDirectory(prefix="llama-images-") as folder:
            suite = _Suite(shop, subject, rig, options, Path(folder), clock)
            run_cases(
                cases,
                at_once=options.at_once,
                settle=suite.settled,
                work=suite.run,
                fits=suite.fits,
                keep=keep,
            )
    except BaseException:
        save(evidence(complete=False))
        raise
    whole = evidence(complete=True)
    save(whole)
    return whole


def suite_cases(subject: Subject, options: SuiteOptions) -> tuple[Case, ...]:
    """What is to be run, in this order. Raises UsageError where a pattern matches no case."""
    if not subject.on_gpus:
        return chosen(cpu_cases(subject.flavor), options.patterns)
    cases = gpu_cases(
        options.gpus,
        subject.flavor,
        logical=options.logical is not None,
        soak_seconds=options.soak_seconds,
    )
    return chosen(cases, options.patterns)


def _told(record: CaseRecord) -> str:
    """A case that came out wrong, in one line."""
    first = next((rule for rule in record.verdicts if not rule.passed), None)
    why = record.reason if first is None else f"{first.name}: {first.detail}"
    return f"{record.name}: {record.status} ({why})"


@dataclass(slots=True)
class _Suite:
    """The run of all cases, and what is known after those so far."""

    shop: Workshop
    subject: Subject
    rig: Rig
    options: SuiteOptions
    folder: Path
    """For broken copies of the model."""
    clock: Callable[[], float]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    unfit: bool = False
    """Nothing can run on these GPUs, and it has been said."""

    @property
    def logical(self) -> bool:
        return self.options.logical is not None

    def settled(self, case: Case) -> CaseRecord | None:
        """The record of a case that can't be run here; None where it can."""
        unfit = _why_unfit(self.subject, self.rig) if case.gpus and not self.unfit else None
        if unfit is not None:
            # Told once, as a failure: an image that can't run here must not look like one that wasn't tested.
            self.unfit = True
            return self.record(case, _failed("runs on these GPUs", unfit), None, status="failed")
        reason = self.why_not(case)
        if reason is not None:
            self.skipped.add(case.name)
            return self.record(case, Judgement(verdicts=()), None, status="skipped", reason=reason)
        return None

    def run(self, case: Case) -> CaseRecord:
        """Run the case. Several threads may do that, each with a case of its own: what a case reads of others
        is of those that it refers to, which have ended.
        """
        with self.shop.reporter.activity(case.name) as activity:
            activity.update(case.about)
            return self.repeat(case) if case.repeat_seconds else self.once(case)

    # --- what can't be run ---

    def why_not(self, case: Case) -> str | None:
        """Why the case is skipped; None where it can be run."""
        if self.options.end is not None and self.clock() >= self.options.end:
            return PAST_DEADLINE
        if case.gpus and self.unfit:
            return "the image does not run on these GPUs"
        if case.in_container and not self.subject.in_container:
            return "it means nothing outside a container"
        here = len(self.rig.gpus)
        if case.gpus and not here:
            return f"{TOO_FEW_GPUS}: no NVIDIA GPU answers"
        if case.gpus > here and not self.logical:
            return f"{TOO_FEW_GPUS}: {case.gpus} needed, {here} here"
        if case.by_stock and self.subject.stock is None:
            return self.subject.why_no_stock
        model = self.rig.model
        return "there is no model" if model is None else self.why_no_memory(case, model)

    def why_no_memory(self, case: Case, model: HashedModel) -> str | None:
        sizes = [gpu.memory_bytes for gpu in self.seen(case)]
        needed = model.bytes + _BESIDE_WEIGHTS
        if case.gpus == 1 and sizes[0] is not None and sizes[0] < needed:
            return f"the model needs {needed / 2**30:.1f} GiB on one GPU, which has {sizes[0] / 2**30:.1f}"
        limit = case.memory
        if limit is None:
            return None
        if limit.card_mib is not None and any(size is None or size < limit.card_mib << 20 for size in sizes):
            return f"a GPU here has less than the {limit.card_mib:,} MiB that are emulated"
        if limit.beside_weights_mib and not weights(case, self.outcomes.get(PLENTY)):
            return f"{PLENTY} did not say how large the weights are"
        return None

    def fits(self, case: Case, running: Sequence[Case]) -> bool:
        """Whether the GPUs hold the case beside those running."""
        needed: dict[str, int] = {}
        for one in (case, *running):
            for gpu in self.seen(one):
                part = 0 if self.rig.model is None else self.rig.model.bytes // one.gpus
                needed[gpu.uuid] = needed.get(gpu.uuid, 0) + part + _ROOM
        sizes = {gpu.uuid: gpu.memory_bytes for gpu in self.rig.gpus}
        return all((size := sizes[uuid]) is None or bytes_ <= size for uuid, bytes_ in needed.items())

    def seen(self, case: Case) -> tuple[Gpu, ...]:
        return seen(case, self.rig.gpus, logical=self.logical)

    # --- runs ---

    def once(self, case: Case) -> CaseRecord:
        """The case run with all memory, or with one limit after the other until what it asks for happens."""
        limits: Sequence[tuple[int, ...] | None] = [None]
        if case.memory is not None:
            limits = memory_limits(case, self.outcomes.get(PLENTY), logical=self.logical)
        for limit in limits:
            outcome, judged = self.judged(case, limit)
            if all(rule.passed for rule in judged.verdicts if rule.name == "moved buffer"):
                break
        return self.finish(case, outcome, judged, limit=limit)

    def repeat(self, case: Case) -> CaseRecord:
        """The case run again until its time is over or a run fails, and the runs compared with the first."""
        end = self.clock() + case.repeat_seconds
        first: Outcome | None = None
        medians: list[float] = []
        runs, differs = 0, None
        while True:
            outcome, judged = self.judged(case, None)
            runs += 1
            if outcome is not None and (ms := _last_median(outcome)) is not None:
                medians.append(ms)
            first = outcome if first is None else first
            if not judged.passed or outcome is None or first is None:
                break
            if _text(outcome) != _text(first):
                differs = f"run {runs} replied otherwise than the first"
                break
            if self.clock() >= end:
                break
        slower = bool(medians) and medians[-1] > _DRIFT * medians[0]
        told = f"{medians[0]:.1f} to {medians[-1]:.1f} ms/step" if medians else "no times"
        more = (
            Verdict(name="same replies", passed=differs is None, detail=differs or f"in {runs} runs"),
            Verdict(
                name="no drift",
                passed=bool(medians) and not slower,
                detail=f"{told}, at most {_DRIFT:g} times as long",
            ),
        )
        judged = replace(judged, verdicts=(*judged.verdicts, *more))
        return self.finish(case, outcome, judged, runs=runs, medians=tuple(medians))

    def judged(self, case: Case, limit: tuple[int, ...] | None) -> tuple[Outcome | None, Judgement]:
        """One run with that memory, judged; no outcome where it outlived its time."""
        try:
            outcome = self.start(case, limit)
        except TimedOut as error:
            return None, _failed("ends in time", error.message)
        around = Surroundings(
            thresholds=self.shop.matrix.thresholds,
            gpus=[(gpu.name, gpu.memory_bytes) for gpu in self.seen(case)],
            outcomes=self.outcomes,
            skipped=self.skipped,
        )
        judgement = judge_case(case, outcome, around)
        compares = any(isinstance(demand, WithinThresholds) for demand in case.demands)
        if compares and self.subject.stock is None:
            judgement = replace(judgement, notes=(*judgement.notes, self.subject.why_no_stock))
        return outcome, judgement

    def start(self, case: Case, limit: tuple[int, ...] | None) -> Outcome:
        """One run of the program, parsed."""
        program = self.subject.program
        if case.by_stock:
            assert self.subject.stock is not None, "why_not has seen to that"
            program = self.subject.stock
        model = self.model(case)
        files = [model] if model.exists() else []
        library = self.options.logical
        devices = device_environment(
            case, self.rig.gpus, limit, preload=None if library is None else program.place(library)
        )
        if library is not None and "LD_PRELOAD" in devices:
            files.append(library)
        held: AbstractContextManager[None] = nullcontext()
        if limit is not None and library is None:
            left = {gpu: mib for gpu, mib in zip(self.seen(case), limit, strict=True) if mib}
            held = self.rig.memory.leave(left)
        with held:
            result = program.run(
                ProgramRun(
                    arguments=("-m", program.place(model), *case.arguments),
                    environment={**case.environment, **devices},
                    files=tuple(files),
                    stdin=case.stdin,
                    gpus=case.gpus > 0,
                    interrupt_on=case.interrupt_on,
                    timeout=case.timeout,
                )
            )
        self.keep(case, result.stderr + b"\n" + result.stdout)
        try:
            run = parse_run(result.stderr, result.stdout)
        except RunUnreadable:
            run = None
        text = (result.stdout + result.stderr).decode("utf-8", "replace")
        return Outcome(
            exit_code=result.exit_code,
            seconds=result.seconds,
            run=run,
            last_words=last_line(text, otherwise="nothing was printed")[:300],
            interrupted_after=result.interrupted_after,
        )

    def model(self, case: Case) -> Path:
        whole = self.rig.model
        assert whole is not None, "why_not has seen to that"
        if case.model == "whole":
            return whole.path
        return broken_model(case.model, whole.path, self.folder)

    # --- what is kept ---

    def keep(self, case: Case, output: bytes) -> None:
        """The raw output of the case's last run, for whoever wants to know more."""
        path = self.shop.cache / "logs" / f"test-{self.subject.record.name}" / f"{case.name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(output)

    def finish(
        self,
        case: Case,
        outcome: Outcome | None,
        judged: Judgement,
        *,
        limit: tuple[int, ...] | None = None,
        runs: int = 1,
        medians: tuple[float, ...] = (),
    ) -> CaseRecord:
        if outcome is not None:
            self.outcomes[case.name] = outcome
        status: Status = "passed" if judged.passed else "failed"
        reason = case.fails_on_stock if self.subject.flavor == "stock" else None
        if reason is not None:
            status = "passed though it should fail" if judged.passed else "failed as it should"
        return self.record(
            case, judged, outcome, status=status, reason=reason, limit=limit, runs=runs, medians=medians
        )

    def record(
        self,
        case: Case,
        judged: Judgement,
        outcome: Outcome | None,
        *,
        status: Status,
        reason: str | None = None,
        limit: tuple[int, ...] | None = None,
        runs: int = 0,
        medians: tuple[float, ...] = (),
    ) -> CaseRecord:
        return case_record(
            case,
            judged,
            outcome,
            model="MODEL" if self.rig.model is None else self.rig.model.path.name,
            folders=[
                self.folder,
                *([] if self.rig.model is None else [self.rig.model.path.absolute().parent]),
            ],
            status=status,
            reason=reason,
            limit=limit,
            runs=runs,
            medians=medians,
        )


def _why_unfit(subject: Subject, rig: Rig) -> str | None:
    """Why no case can run on these GPUs, by the image's labels: its machine code, and the driver it needs."""
    record = subject.record
    for gpu in rig.gpus:
        if (record.architectures or record.ptx) and not runs_on(
            gpu.compute_capability, sass=record.architectures, ptx=record.ptx
        ):
            carried = " ".join((*record.architectures, *record.ptx))
            return (
                f"GPU {gpu.index} ({gpu.name}) has compute capability {gpu.compute_capability}; "
                f"{record.name} carries {carried}"
            )
    wanted, driver = subject.minimum_driver, rig.driver
    if rig.gpus and wanted and driver and not driver_is_enough(driver, wanted):
        return f"driver {driver} is older than {wanted}, which {record.toolkit} needs"
    return None


def _failed(name: str, detail: str) -> Judgement:
    return Judgement(verdicts=(Verdict(name=name, passed=False, detail=detail),))


def _last_median(outcome: Outcome) -> float | None:
    turn = None if outcome.run is None else warm_turn(outcome.run)
    times = () if turn is None else block_times(turn)
    return times[-1].median_ms if times else None


def _text(outcome: Outcome) -> bytes:
    return b"" if outcome.run is None else outcome.run.text
