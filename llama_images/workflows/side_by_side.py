"""Cases run several at a time, each in a thread of its own."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama_images.cases import Case, references
from llama_images.evidence import CaseRecord


def startable(
    waiting: Sequence[Case],
    running: Sequence[Case],
    *,
    at_once: int,
    fits: Callable[[Case, Sequence[Case]], bool],
) -> Case | None:
    """The case of ``waiting`` to start now beside those ``running``; None where one of those has to end.

    A case starts behind those that it refers to. One that must be alone starts when nothing runs, and no
    later one overtakes it. ``fits`` says whether there is room for a case beside others; alone, each has it.
    """
    if len(running) >= at_once or any(case.alone for case in running):
        return None
    unfinished = {case.name for case in (*waiting, *running)}
    for case in waiting:
        if case.alone:
            return case if case is waiting[0] and not running else None
        if not references(case) & unfinished and (not running or fits(case, running)):
            return case
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ended:
    case: Case
    record: CaseRecord | None = None
    error: BaseException | None = None


def run_cases(
    cases: Sequence[Case],
    *,
    at_once: int,
    settle: Callable[[Case], CaseRecord | None],
    work: Callable[[Case], CaseRecord],
    fits: Callable[[Case, Sequence[Case]], bool],
    keep: Callable[[CaseRecord], None],
) -> None:
    """Run all of them, ``at_once`` side by side at most; ``keep`` gets each record as its case ends.

    ``settle`` gives the record of a case that is not to be run, and ``work`` runs one. All but ``work`` are
    called in this thread; with one at once, so is that. The first error, also Ctrl-C, interrupts every case
    that runs, and goes on when all have ended.
    """
    waiting = list(cases)
    team = _Team(work)
    try:
        while waiting or team.cases:
            case = startable(waiting, team.cases, at_once=at_once, fits=fits)
            if case is None:
                keep(team.wait())
                continue
            waiting.remove(case)
            record = settle(case)
            if record is None and at_once == 1:
                record = work(case)
            if record is None:
                team.start(case)
            else:
                keep(record)
    except BaseException:
        team.interrupt()
        raise


class _Team:
    """The threads of the cases that run."""

    def __init__(self, work: Callable[[Case], CaseRecord]) -> None:
        self._work = work
        self._threads: dict[str, threading.Thread] = {}
        self._cases: dict[str, Case] = {}
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()

    @property
    def cases(self) -> tuple[Case, ...]:
        return tuple(self._cases.values())

    def start(self, case: Case) -> None:
        thread = threading.Thread(target=self._run, args=(case,), name=case.name)
        self._cases[case.name] = case
        self._threads[case.name] = thread
        self._busy.add(case.name)
        thread.start()

    def wait(self) -> CaseRecord:
        """The record of the next case that ends. Raises what it raised."""
        ended = self._ended.get()
        self._threads.pop(ended.case.name).join()
        del self._cases[ended.case.name]
        if ended.record is None:
            assert ended.error is not None
            raise ended.error
        return ended.record

    def interrupt(self) -> None:
        """End all, each as Ctrl-C ends what runs in the main thread; another Ctrl-C is handed on too."""
        while True:
            try:
                with self._lock:
                    for name in self._busy:
                        _interrupt(self._threads[name])
                for thread in self._threads.values():
                    thread.join()
                return
            except KeyboardInterrupt:
                continue

    def _run(self, case: Case) -> None:
        try:
            try:
                ended = _Ended(case=case, record=self._work(case))
            finally:
                with self._lock:  # from here on, nobody interrupts this thread
                    self._busy.discard(case.name)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            ended = _Ended(case=case, error=error)
        self._ended.put(ended)


def _interrupt(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in the thread: signals reach the main one alone, and what starts programs and
    containers ends them on an exception.
    """
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
        )
