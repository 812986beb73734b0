"""The suite, run on a program that prints what the real one would: all passes where it does what it should,
and each fault fails the cases that are there for it and no other.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest

from llama_images.cases import gpu_cases
from llama_images.errors import OutsideError, UsageError
from llama_images.evidence import (
    CaseRecord,
    Evidence,
    JudgedRule,
    MachineRecord,
    SubjectRecord,
    json_schema,
    to_json,
    to_junit,
)
from llama_images.matrix import Flavor
from llama_images.ports import Gpu, Program, ProgramRun, RunResult
from llama_images.workflows.model_files import HashedModel
from llama_images.workflows.records import write_evidence
from llama_images.workflows.subjects import Subject
from llama_images.workflows.suite import Rig, SuiteOptions, run_suite
from tests.unit.fakes import House
from tests.unit.pretend import Pretend

GPUS = tuple(
    Gpu(
        index=number,
        name="NVIDIA GeForce RTX 5060 Ti",
        compute_capability="12.0",
        memory_bytes=81_559 << 20,
        uuid=f"GPU-{number}",
    )
    for number in range(2)
)


@dataclass
class HeldMemory:
    """Implements ``ports.GpuMemory`` for a program that pretends."""

    program: Pretend
    left: list[dict[int, int]] = field(default_factory=list)

    @contextlib.contextmanager
    def leave(self, mebibytes: Mapping[Gpu, int]) -> Iterator[None]:
        now = {gpu.index: mib for gpu, mib in mebibytes.items()}
        self.left.append(now)
        self.program.free_mib = now.get
        try:
            yield
        finally:
            self.program.free_mib = lambda _gpu: None


def subject(program: Program, flavor: Flavor, stock: Program | None, codes: tuple[str, ...]) -> Subject:
    return Subject(
        program=program,
        stock=stock,
        flavor=flavor,
        in_container=True,
        on_gpus=True,
        minimum_driver="580.65.06",
        record=SubjectRecord(
            name="sm120" if flavor == "patched" else "sm120-stock",
            flavor=flavor,
            image="llama-diffusion:sm120",
            image_id="sha256:1",
            binary_sha256=None,
            version="1-2",
            revision="1",
            series=None,
            series_digest=None,
            inputs=None,
            toolkit="cuda-13.0",
            architectures=codes,
            ptx=(),
        ),
        why_no_stock="there is no image llama-diffusion:sm120-stock (invoke build --arch 120 --flavor stock)",
    )


@dataclass
class Stage:
    """Runs the suite on a program."""

    house: House
    saved: list[Evidence] = field(default_factory=list)
    memory: HeldMemory | None = None

    def run(
        self,
        program: Pretend,
        *,
        gpus: tuple[Gpu, ...] = GPUS,
        driver: str = "580.159.04",
        stock: Program | None = None,
        codes: tuple[str, ...] = ("sm_120a",),
        options: SuiteOptions | None = None,
    ) -> Evidence:
        self.memory = HeldMemory(program)
        rig = Rig(
            engine="docker 20.10",
            platform="linux/amd64",
            gpus=gpus,
            driver=driver,
            memory=self.memory,
            model=HashedModel(path=self.house.folder / "full.gguf", bytes=15_400_000_000, sha256="ab" * 32)
            if gpus
            else None,
        )
        flavor: Flavor = "patched" if program.flavor == "patched" else "stock"
        tested = subject(program, flavor, program if flavor == "stock" else stock, codes)
        clock = iter(range(10**6))
        return run_suite(
            self.house.shop(),
            tested,
            rig,
            options or SuiteOptions(),
            save=self.saved.append,
            clock=lambda: float(next(clock)),
        )


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    (tmp_path / "full.gguf").write_bytes(b"")
    return Stage(House(tmp_path))


def statuses(evidence: Evidence) -> dict[str, str]:
    return {case.name: case.status for case in evidence.cases}


def bad(evidence: Evidence) -> set[str]:
    return {case.name for case in evidence.failed}


def verdicts_of(evidence: Evidence, name: str) -> dict[str, str]:
    (case,) = (case for case in evidence.cases if case.name == name)
    return {rule.name: rule.detail for rule in case.verdicts if not rule.passed}


# --- it passes what does what it should -----------------------------------------------------------


def test_a_program_that_does_what_it_should_passes_everything(stage: Stage) -> None:
    evidence = stage.run(Pretend(), stock=Pretend(flavor="stock", step_ms=110))
    assert set(statuses(evidence).values()) == {"passed"}
    assert evidence.complete
    assert [case.name for case in evidence.cases] == [case.name for case in gpu_cases(2, "patched")]
    assert stage.saved == [evidence]


def test_so_does_one_card_that_looks_like_two(stage: Stage) -> None:
    library = stage.house.folder / "logical_gpus.so"
    library.write_bytes(b"")
    program = Pretend(logical=True)
    evidence = stage.run(program, gpus=GPUS[:1], options=SuiteOptions(logical=library))
    assert set(statuses(evidence).values()) == {"passed"}
    assert evidence.machine.logical_gpus == 2
    limited = [run.environment for run in program.asked if "LOGICAL_GPU_MIB" in run.environment]
    assert {one["LOGICAL_GPU_MIB"] for one in limited} == {"0,9312", "9312,9312", "16311,16311"}
    for run in program.asked:
        two = run.environment.get("LOGICAL_GPUS") == "2"
        assert two == ("LD_PRELOAD" in run.environment) == (library in run.files)
        assert run.environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert stage.memory is not None
    assert stage.memory.left == []


def test_memory_is_held_where_gpus_are_real(stage: Stage) -> None:
    stage.run(Pretend(), stock=Pretend(flavor="stock", step_ms=110))
    assert stage.memory is not None
    # 15,000 MiB of weights over two, 1,700 beside them; then a card of 16,311 less what its driver takes.
    assert stage.memory.left == [{1: 9200}, {0: 9200, 1: 9200}, *[{0: 15_799, 1: 15_799}] * 3]


def test_the_next_margin_is_tried_where_the_first_moved_nothing(stage: Stage) -> None:
    class Roomy(Pretend):
        def run(self, request: ProgramRun) -> RunResult:
            limits, free = [], self.free_mib
            for gpu in (0, 1):
                mib = free(gpu)
                limits.append(None if mib is None else mib + 150)
            self.free_mib = lambda gpu: limits[gpu]
            return super().run(request)

    evidence = stage.run(Roomy(), stock=Pretend(flavor="stock", step_ms=110))
    assert bad(evidence) == set()
    assert stage.memory is not None
    assert stage.memory.left[:3] == [{1: 9200}, {1: 9300}, {1: 9000}]


def test_every_run_sees_its_gpus_and_no_others(stage: Stage) -> None:
    program = Pretend()
    gpus = tuple(replace(gpu, index=gpu.index + 4) for gpu in GPUS)
    stage.run(program, gpus=gpus)
    assert {run.environment["CUDA_VISIBLE_DEVICES"] for run in program.asked} == {"4", "4,5"}
    assert {run.environment["CUDA_DEVICE_ORDER"] for run in program.asked} == {"PCI_BUS_ID"}
    assert all(run.gpus for run in program.asked)
    assert all(run.arguments[:2] == ("-m", "/models/full.gguf") for run in program.asked)


# --- the negative control -------------------------------------------------------------------------


def test_stock_fails_exactly_what_it_should(stage: Stage) -> None:
    evidence = stage.run(Pretend(flavor="stock", step_ms=110))
    assert bad(evidence) == set()
    found = statuses(evidence)
    assert {name for name, status in found.items() if status == "passed"} == {
        case.name for case in gpu_cases(2, "stock") if case.fails_on_stock is None
    }
    assert {status for status in found.values() if status != "passed"} == {"failed as it should"}
    reasons = {case.reason for case in evidence.cases if case.status == "failed as it should"}
    assert len(reasons) == 3


def test_a_stock_image_that_holds_the_series_is_found_out(stage: Stage) -> None:
    class Mislabelled(Pretend):
        def run(self, request: ProgramRun) -> RunResult:
            self.flavor = "patched"
            return super().run(request)

    evidence = stage.run(Mislabelled(flavor="stock"))
    assert bad(evidence) == {case.name for case in gpu_cases(2, "stock") if case.fails_on_stock}
    assert {case.status for case in evidence.failed} == {"passed though it should fail"}


# --- each fault fails what is there for it --------------------------------------------------------

TWO = {
    *("validators-short-2gpu", "validators-long-2gpu"),
    *(f"reply-{tokens}-2gpu" for tokens in (512, 1024, 1536, 2048)),
    *("reply-512-ts-7-3", "reply-512-ts-3-7", "reply-512-row"),
}
REPLIES = {name for name in TWO if name.startswith("reply")}
ONE = {
    *("validators-short-1gpu", "validators-long-1gpu"),
    *(f"reply-{tokens}-1gpu" for tokens in (512, 1024, 1536, 2048)),
}
MEMORY = {"memory-plenty", "memory-last-full", "memory-all-full"}
CARDS = {f"card-16gb-{name}" for name in ("short", "512", "1536")}
SPEED = {"speed-short", "speed-long"}
WITHOUT = {"without-kv-cache", "without-gpu-sampling", "without-sample-reduce"}
REFUSALS = {"refuses-split-tensor", "refuses-reduce-without-sampling"}
ALL = {case.name for case in gpu_cases(2, "patched")} - {"speed-short-stock", "speed-long-stock"}


@pytest.mark.parametrize(
    ("fault", "cases"),
    [
        ("layers on the processor", ALL - REFUSALS),
        ("a validator's line is lost", {name for name in ONE | TWO if name.startswith("validators")}),
        ("split shows", REPLIES),
        ("drops -ts", {"reply-512-ts-7-3", "reply-512-ts-3-7"}),
        ("drops -sm", {"reply-512-row"}),
        ("refuses nothing", REFUSALS),
        ("never moves", {"memory-last-full", "memory-all-full"}),
        ("no memory", {"memory-last-full", "memory-all-full", *CARDS}),
        ("turns differ", {*SPEED, *REPLIES, "memory-last-full", "memory-all-full"}),
        ("kv stays off", ONE | TWO | MEMORY | CARDS | SPEED | (WITHOUT - {"without-kv-cache"})),
        (
            "sample-reduce stays off",
            ONE | TWO | MEMORY | CARDS | SPEED | {"without-kv-cache"},
        ),
    ],
)  # fmt: skip
def test_a_fault_fails_the_cases_that_are_there_for_it(stage: Stage, fault: str, cases: set[str]) -> None:
    evidence = stage.run(Pretend(faults=frozenset({fault})), stock=Pretend(flavor="stock", step_ms=110))
    assert bad(evidence) == cases


def test_steps_that_take_too_long_fail_the_thresholds_alone(stage: Stage) -> None:
    gpus = tuple(replace(gpu, memory_bytes=16_311 << 20) for gpu in GPUS)
    evidence = stage.run(Pretend(step_ms=300), gpus=gpus, stock=Pretend(flavor="stock", step_ms=301))
    assert bad(evidence) == {"speed-long"}
    assert set(verdicts_of(evidence, "speed-long")) == {"short, ms/step", "last block, ms/step"}


def test_a_program_that_hangs_fails_and_the_next_case_is_run(stage: Stage) -> None:
    evidence = stage.run(Pretend(faults=frozenset({"hangs"})), options=SuiteOptions(gpus=1))
    assert {case.status for case in evidence.cases} == {"failed"}
    assert verdicts_of(evidence, "defaults-1gpu") == {"ends in time": "it did not end within 600 seconds"}
    assert all(case.exit_code is None for case in evidence.cases)


# --- what is left out -----------------------------------------------------------------------------


def test_without_a_gpu_everything_is_skipped_with_the_reason(stage: Stage) -> None:
    program = Pretend()
    evidence = stage.run(program, gpus=())
    assert {case.status for case in evidence.cases} == {"skipped"}
    assert {case.reason for case in evidence.cases} == {"too few GPUs: no NVIDIA GPU answers"}
    assert evidence.short_of_gpus
    assert evidence.model is None
    assert program.asked == []


def test_with_one_gpu_what_needs_two_is_skipped(stage: Stage) -> None:
    evidence = stage.run(Pretend(), gpus=GPUS[:1])
    found = statuses(evidence)
    assert {name for name, status in found.items() if status == "passed"} == ONE | {"defaults-1gpu"}
    assert {case.reason for case in evidence.skipped} == {"too few GPUs: 2 needed, 1 here"}
    assert evidence.short_of_gpus


def test_asking_for_one_gpu_is_no_want_of_gpus(stage: Stage) -> None:
    evidence = stage.run(Pretend(), options=SuiteOptions(gpus=1))
    assert evidence.skipped == ()
    assert not evidence.short_of_gpus


def test_without_a_stock_image_times_are_taken_and_not_compared(stage: Stage) -> None:
    evidence = stage.run(Pretend())
    assert bad(evidence) == set()
    assert {case.name for case in evidence.skipped} == {"speed-short-stock", "speed-long-stock"}
    assert not evidence.short_of_gpus
    (long,) = (case for case in evidence.cases if case.name == "speed-long")
    assert long.notes[-1].startswith("there is no image llama-diffusion:sm120-stock (invoke build")


def test_a_card_too_small_for_the_model_is_not_asked_to_hold_it(stage: Stage) -> None:
    gpus = tuple(replace(gpu, memory_bytes=16_311 << 20) for gpu in GPUS)
    evidence = stage.run(Pretend(), gpus=gpus)
    skipped = {case.name: case.reason for case in evidence.skipped}
    assert {name for name in skipped if name.endswith("1gpu")} == ONE | {"defaults-1gpu"}
    assert skipped["defaults-1gpu"] == "the model needs 16.8 GiB on one GPU, which has 15.9"
    assert bad(evidence) == set()
    notes = {case.name: case.notes for case in evidence.cases if case.name.startswith("reply-512-")}
    assert notes["reply-512-2gpu"] == ("not compared with the reply of reply-512-1gpu, which was skipped",)
    # Two GPUs are compared with two, then.
    (uneven,) = (case for case in evidence.cases if case.name == "reply-512-ts-7-3")
    assert [rule.detail for rule in uneven.verdicts if rule.name == "same reply"] == [
        "35 bytes, as reply-512-2gpu"
    ]


@pytest.mark.parametrize(
    ("codes", "driver", "words"),
    [
        (("sm_90",), "580.159.04", "has compute capability 12.0; sm120 carries sm_90"),
        (("sm_120a",), "570.1", "driver 570.1 is older than 580.65.06, which cuda-13.0 needs"),
    ],
)
def test_an_image_that_can_not_run_here_is_one_failure(
    stage: Stage, codes: tuple[str, ...], driver: str, words: str
) -> None:
    program = Pretend()
    evidence = stage.run(program, codes=codes, driver=driver)
    first, *others = evidence.cases
    assert first.status == "failed"
    assert words in first.verdicts[0].detail
    assert {case.status for case in others} == {"skipped"}
    assert {case.reason for case in others} == {"the image does not run on these GPUs"}
    assert not evidence.short_of_gpus
    assert program.asked == []


def test_only_the_chosen_cases_are_run_and_the_record_says_so(stage: Stage) -> None:
    evidence = stage.run(Pretend(), options=SuiteOptions(patterns=("reply-512-row", "refuses-*")))
    assert statuses(evidence) == dict.fromkeys(
        (
            *("reply-512-1gpu", "reply-512-2gpu", "reply-512-row"),
            *("refuses-split-tensor", "refuses-reduce-without-sampling"),
        ),
        "passed",
    )
    assert evidence.selected == ("reply-512-row", "refuses-*")


def test_a_pattern_that_matches_no_case_runs_nothing_and_leaves_no_record(stage: Stage) -> None:
    program = Pretend()
    with pytest.raises(UsageError, match="--case nonsense"):
        stage.run(program, options=SuiteOptions(patterns=("nonsense",)))
    assert program.asked == []
    assert stage.saved == []


def test_no_case_starts_behind_the_deadline(stage: Stage) -> None:
    # The stage's clock counts how often it is asked: once at the start, and once for each case.
    evidence = stage.run(Pretend(), options=SuiteOptions(gpus=1, end=4.0))
    run = [case.name for case in evidence.cases if case.status == "passed"]
    assert run == [case.name for case in gpu_cases(1, "patched")][:3]
    assert {case.reason for case in evidence.skipped} == {"the deadline has passed"}
    assert len(evidence.cases) == len(gpu_cases(1, "patched"))
    assert evidence.complete


def test_side_by_side_the_record_is_the_same(stage: Stage) -> None:
    def run(at_once: int) -> Evidence:
        return stage.run(
            Pretend(), stock=Pretend(flavor="stock", step_ms=110), options=SuiteOptions(at_once=at_once)
        )

    one, several = run(1), run(4)
    assert several.at_once == 4
    assert several.cases == one.cases


def test_a_gpu_gets_no_more_cases_than_it_holds(stage: Stage) -> None:
    most, lock = 0, threading.Lock()

    class Watched(Pretend):
        running = 0

        def run(self, request: ProgramRun) -> RunResult:
            nonlocal most
            with lock:
                self.running += 1
                most = max(most, self.running)
            time.sleep(0.01)
            result = super().run(request)
            with lock:
                self.running -= 1
            return result

    # Each needs 15.4 GB and 5 GiB: two of them are more than these 32 GiB.
    gpus = (replace(GPUS[0], memory_bytes=32 << 30),)
    evidence = stage.run(Watched(), gpus=gpus, options=SuiteOptions(gpus=1, at_once=4))
    assert bad(evidence) == set()
    assert most == 1


# --- a soak ---------------------------------------------------------------------------------------


def test_a_soak_repeats_until_its_time_is_over(stage: Stage) -> None:
    evidence = stage.run(Pretend(), options=SuiteOptions(gpus=2, soak_seconds=10))
    (soak,) = (case for case in evidence.cases if case.name == "soak")
    assert soak.status == "passed"
    # The clock of this test moves on by a second whenever it is looked at, once a run.
    assert soak.runs == 10
    assert soak.medians_ms == (70.0,) * 10
    assert {"same replies", "no drift"} <= {rule.name for rule in soak.verdicts}


def test_a_soak_ends_at_the_first_reply_that_differs(stage: Stage) -> None:
    class Drifting(Pretend):
        def run(self, request: ProgramRun) -> RunResult:
            result = super().run(request)
            # Both turns of a run are the same; the run before had other ones.
            return replace(result, stdout=result.stdout.replace(b"reply", b"reply %d" % len(self.asked)))

    evidence = stage.run(Drifting(), options=SuiteOptions(gpus=1, soak_seconds=10))
    assert verdicts_of(evidence, "soak") == {"same replies": "run 2 replied otherwise than the first"}


def test_a_soak_that_gets_slower_fails(stage: Stage) -> None:
    class Tiring(Pretend):
        def run(self, request: ProgramRun) -> RunResult:
            self.step_ms += 2
            return super().run(request)

    evidence = stage.run(Tiring(), options=SuiteOptions(gpus=1, soak_seconds=10))
    assert set(verdicts_of(evidence, "soak")) == {"no drift"}


# --- evidence -------------------------------------------------------------------------------------


@pytest.fixture
def evidence(stage: Stage) -> Evidence:
    return stage.run(
        Pretend(faults=frozenset({"drops -ts"})), gpus=GPUS, options=SuiteOptions(soak_seconds=3)
    )


def test_the_document_is_as_its_schema_says(evidence: Evidence) -> None:
    text = to_json(evidence)
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(text), schema)
    assert Evidence.model_validate_json(text) == evidence


def test_the_committed_schema_is_the_generated_one() -> None:
    root = Path(__file__).resolve().parents[2]
    assert (root / "evidence.schema.json").read_text("utf-8") == json_schema()


def test_the_document_holds_steps_verdicts_and_commands(evidence: Evidence) -> None:
    cases = {case["name"]: case for case in json.loads(to_json(evidence))["cases"]}
    long = cases["speed-long"]
    assert [len(block["steps_ms"]) for block in long["turns"][1]["blocks"]] == [11] * 6
    assert long["turns"][1]["blocks"][0]["median_ms"] == 70.0
    assert long["turns"][1]["blocks"][1]["gap_ms"] == 370.0
    assert long["turns"][1]["reply_sha256"] == long["turns"][0]["reply_sha256"]
    assert long["command"][:3] == ["llama-diffusion-cli", "-m", "full.gguf"]
    assert long["placement"]["layers"] == {"CUDA0": 15, "CUDA1": 15}
    assert long["placement"]["on"] == ["kv_cache", "gpu_sampling", "sample_reduce"]
    assert cases["validators-short-2gpu"]["environment"] == {"DG_SC_CHECK": "1", "DG_DEVSAMPLE_CHECK": "1"}
    moved = cases["memory-all-full"]
    assert moved["memory_mib"] == [9200, 9200]
    assert moved["placement"]["fallbacks"] == [
        "no room for sc_embT (1408.00 MiB) on CUDA1, it is on CUDA_Host instead"
    ]
    assert cases["soak"]["runs"] == 3


def test_no_path_of_the_machine_is_in_it(evidence: Evidence, stage: Stage) -> None:
    assert str(stage.house.folder) not in to_json(evidence)
    assert str(stage.house.folder) not in to_junit(evidence)


def test_messages_that_name_files_name_them_without_their_folders(stage: Stage) -> None:
    model = stage.house.folder / "full.gguf"

    class Naming(Pretend):
        def run(self, request: ProgramRun) -> RunResult:
            result = super().run(request)
            return replace(result, stderr=result.stderr + f"\nerror: can't read {model}\n".encode())

    found = stage.run(Naming(), options=SuiteOptions(gpus=1))
    assert verdicts_of(found, "defaults-1gpu") == {"no errors": "error: can't read full.gguf"}


def test_junit_counts_the_same(evidence: Evidence) -> None:
    suite = ET.fromstring(to_junit(evidence))
    assert suite.tag == "testsuite"
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase")) == len(evidence.cases)
    failures = suite.findall("testcase/failure")
    assert int(suite.attrib["failures"]) == len(failures) == 2
    assert all("layers on the GPUs" in one.attrib["message"] for one in failures)
    assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped")) == 2
    assert suite.attrib["errors"] == "0"


def test_junit_holds_what_xml_can_hold() -> None:
    case = CaseRecord(
        name="x",
        about="x",
        status="failed",
        reason=None,
        command=(),
        environment={},
        stdin=None,
        gpus=0,
        memory_mib=None,
        runs=1,
        exit_code=1,
        seconds=1.0,
        verdicts=(JudgedRule(name="x", passed=False, detail="a\x00\x1b\ud800<&>\U0001f600"),),
        notes=(),
        turns=(),
        medians_ms=(),
        placement=None,
    )
    record = subject(Pretend(), "patched", None, ()).record
    whole = Evidence(
        schema_version=1,
        kind="test",
        complete=True,
        selected=(),
        at_once=1,
        started="2026-01-01T00:00:00Z",
        seconds=1.0,
        subject=record,
        machine=MachineRecord(engine="host", platform="x", driver=None, gpus=(), logical_gpus=None),
        model=None,
        cases=(case,),
    )
    (failure,) = ET.fromstring(to_junit(whole)).findall("testcase/failure")
    assert failure.attrib["message"] == "x: a\ufffd\ufffd\ufffd<&>\U0001f600"


def test_a_run_that_is_broken_off_leaves_what_it_has(stage: Stage) -> None:
    class Dying(Pretend):
        def run(self, request: ProgramRun) -> RunResult:
            if len(self.asked) == 3:
                raise OutsideError("the engine does not answer")
            return super().run(request)

    with pytest.raises(OutsideError, match="does not answer"):
        stage.run(Dying())
    (saved,) = stage.saved
    assert not saved.complete
    assert [case.status for case in saved.cases] == ["passed"] * 3
    assert ET.fromstring(to_junit(saved)).attrib["errors"] == "1"


def test_evidence_is_two_files_of_one_name_and_nothing_half_written(
    evidence: Evidence, tmp_path: Path
) -> None:
    folder = tmp_path / "evidence"
    path = write_evidence(folder, evidence)
    assert sorted(one.name for one in folder.iterdir()) == [path.name, path.with_suffix(".xml").name]
    assert path.name.endswith("Z-sm120.json")
    assert Evidence.model_validate_json(path.read_text("utf-8")) == evidence


def test_raw_output_is_kept_for_every_case(stage: Stage) -> None:
    stage.run(Pretend(), options=SuiteOptions(gpus=1))
    folder = stage.house.cache / "logs" / "test-sm120"
    names = {path.stem for path in folder.iterdir()}
    assert names == {case.name for case in gpu_cases(1, "patched")}
    assert b"\rdiffusion step: " in (folder / "defaults-1gpu.log").read_bytes()
