"""Which cases run beside which, and what ends them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from llama_images.cases import Case, SameReply, cpu_cases, gpu_cases
from llama_images.errors import OutsideError
from llama_images.evidence import CaseRecord
from llama_images.workflows.side_by_side import run_cases, startable

PATIENCE = 30.0
"""Seconds after which a test that waits for another thread fails."""


def case(name: str, *, alone: bool = False, like: str | None = None) -> Case:
    demands = () if like is None else (SameReply(case=like),)
    return Case(name=name, about="", gpus=0, arguments=(), demands=demands, alone=alone)


def record(of: Case) -> CaseRecord:
    return CaseRecord(
        name=of.name,
        about="",
        status="passed",
        command=(),
        environment={},
        stdin=None,
        gpus=0,
        memory_mib=None,
        reason=None,
        runs=1,
        exit_code=0,
        seconds=1.0,
        verdicts=(),
        notes=(),
        turns=(),
        medians_ms=(),
        placement=None,
    )


def there_is_room(_case: Case, _running: Sequence[Case]) -> bool:
    return True


def there_is_none(_case: Case, _running: Sequence[Case]) -> bool:
    return False


def never_settled(_case: Case) -> CaseRecord | None:
    return None


A, B, LIKE_A, ALONE = case("a"), case("b"), case("like-a", like="a"), case("alone", alone=True)


@pytest.mark.parametrize(
    ("waiting", "running", "started"),
    [
        ([A, B], [], A),
        ([B], [A], B),
        ([LIKE_A], [A], None),
        ([LIKE_A, B], [A], B),
        ([LIKE_A], [B], LIKE_A),
        ([B], [A, LIKE_A], None),
        ([ALONE], [A], None),
        ([ALONE, B], [A], None),
        ([ALONE, B], [], ALONE),
        ([B], [ALONE], None),
        ([], [A], None),
    ],
)
def test_what_starts_beside_what_runs(waiting: list[Case], running: list[Case], started: Case | None) -> None:
    assert startable(waiting, running, at_once=2, fits=there_is_room) is started


def test_without_room_a_case_waits_for_the_others_and_then_runs_all_the_same() -> None:
    assert startable([B], [A], at_once=2, fits=there_is_none) is None
    assert startable([B], [], at_once=2, fits=there_is_none) is B


def test_what_takes_times_or_memory_or_is_about_ctrl_c_runs_alone() -> None:
    cases = (*gpu_cases(2, "patched", soak_seconds=1), *cpu_cases("patched"))
    assert {one.name for one in cases if one.alone} == {
        one.name for one in cases if one.name.startswith(("speed-", "memory-", "card-", "soak", "ctrl-c"))
    }


def test_cases_run_side_by_side_and_never_beside_one_that_must_be_alone() -> None:
    both, busy, kept = threading.Barrier(2), set[str](), list[str]()

    def work(of: Case) -> CaseRecord:
        busy.add(of.name)
        if of.alone:
            assert busy == {of.name}
        else:
            both.wait(PATIENCE)  # passes only where two are here at the same time
        busy.remove(of.name)
        return record(of)

    run_cases(
        [A, B, ALONE, LIKE_A, case("c")],
        at_once=2,
        settle=never_settled,
        work=work,
        fits=there_is_room,
        keep=lambda one: kept.append(one.name),
    )
    assert set(kept[:2]) == {"a", "b"}
    assert kept[2] == "alone"
    assert set(kept[3:]) == {"like-a", "c"}


def test_one_at_a_time_runs_in_this_thread_and_in_order() -> None:
    threads, kept = set[threading.Thread](), list[str]()

    def work(of: Case) -> CaseRecord:
        threads.add(threading.current_thread())
        return record(of)

    run_cases(
        [A, B, ALONE, LIKE_A],
        at_once=1,
        settle=lambda of: record(of) if of is B else None,
        work=work,
        fits=there_is_room,
        keep=lambda one: kept.append(one.name),
    )
    assert threads == {threading.current_thread()}
    assert kept == ["a", "b", "alone", "like-a"]


@pytest.mark.parametrize("error", [OutsideError("the engine does not answer"), KeyboardInterrupt()])
def test_an_error_interrupts_the_others_and_goes_on_when_they_have_ended(error: BaseException) -> None:
    started, ended = threading.Event(), list[str]()

    def work(of: Case) -> CaseRecord:
        if of is B:
            assert started.wait(PATIENCE)
            raise error
        never = threading.Event()
        try:
            started.set()
            for _ in range(int(PATIENCE * 50)):
                never.wait(0.02)
        except KeyboardInterrupt:
            ended.append(of.name)
            raise
        return record(of)

    with pytest.raises(type(error)):
        run_cases(
            [A, B, LIKE_A],
            at_once=2,
            settle=never_settled,
            work=work,
            fits=there_is_room,
            keep=lambda one: ended.append(f"{one.name} was kept"),
        )
    assert ended == ["a"]
