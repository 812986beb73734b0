"""Whether the CLI's two validators passed, judged on what a run printed.

Three traps are judged here. A validator prints only where the device path ran, so a silent fall back to the
host looks like success: a line is demanded for every step. NaN logits leave ``maxabs=0``, because no
comparison with NaN holds: only ``sumabs`` and ``nmiss`` show them. And ``DG_DEVSAMPLE_CHECK`` can't see NaN
at all (both samplers then pick the same tokens), so it is only judged together with ``DG_SC_CHECK``.

Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from llama_images.runs import DevsampleCheck, Run, ScCheck
from llama_images.verdicts import Verdict, few

Check: TypeAlias = Literal["sc", "devsample"]

ENTROPY_TOLERANCE = 1e-3
"""Largest relative difference of an entropy between host and device: both sum in F32, in another order."""


def judge(run: Run, expect: frozenset[Check]) -> tuple[Verdict, ...]:
    """Judge a whole run in which the validators of ``expect`` were switched on; see ``judge_checks``.

    The run passed if every verdict did.
    """
    return (judge_steps(run), judge_errors(run), *judge_checks(run, expect))


def judge_steps(run: Run) -> Verdict:
    """Whether steps ran, and as many as the summaries count."""
    name = "steps ran"
    if run.steps == 0:
        return Verdict(name=name, passed=False, detail="no step ran")
    if not run.summaries:
        # The CLI's log is written by a thread that its end does not wait for: the last lines can be lost.
        detail = (
            f"no summary after {run.steps} steps: the run did not finish, or the end of its output is lost"
        )
        return Verdict(name=name, passed=False, detail=detail)
    if run.steps != len(run.progress):
        detail = f"the summary counts {run.steps} steps, the progress lines {len(run.progress)}"
        return Verdict(name=name, passed=False, detail=detail)
    return Verdict(name=name, passed=True, detail=f"{run.steps} steps over {run.blocks} blocks")


def judge_errors(run: Run, *, made_good: bool = False) -> Verdict:
    """Whether the log holds no error.

    With ``made_good``, an allocation that failed is none: the program said where else it put the buffer.
    """
    errors = [line for line in run.errors if not (made_good and _is_allocation(line))]
    if errors:
        return Verdict(name="no errors", passed=False, detail=few(errors))
    passed_over = len(run.errors)
    detail = (
        f"none but {passed_over} of allocations made good elsewhere" if passed_over else "none in the log"
    )
    return Verdict(name="no errors", passed=True, detail=detail)


def _is_allocation(line: str) -> bool:
    return "cudaMalloc failed" in line or "failed to allocate" in line


def judge_checks(run: Run, expect: frozenset[Check]) -> tuple[Verdict, ...]:
    """Whether the device path ran, with a line of each validator for every step, and none with a fault.

    ``expect`` is {"sc"}, or {"sc", "devsample"} where the device samples too.
    """
    if "sc" not in expect:
        raise ValueError("DG_DEVSAMPLE_CHECK can't see NaN: judge it together with DG_SC_CHECK")
    verdicts = [_judge_device(run, expect)]
    verdicts += _judge_lines("DG_SC_CHECK", run, run.sc_checks, _sc_faults)
    if "devsample" in expect:
        verdicts += _judge_lines("DG_DEVSAMPLE_CHECK", run, run.devsample_checks, _devsample_faults)
    return tuple(verdicts)


def _judge_device(run: Run, expect: frozenset[Check]) -> Verdict:
    name = "device path"
    if run.host_sampling:
        return Verdict(name=name, passed=False, detail="the CLI fell back to host sampling")
    told = [one.text for one in run.fallbacks if one.kind in ("self-conditioning", "check")]
    if told:
        return Verdict(name=name, passed=False, detail=few(told))
    if run.options is None:
        return Verdict(name=name, passed=False, detail="the CLI did not print its options (diffusion_eb: …)")
    off = []
    if not run.options.gpu_sampling:
        off.append("gpu_sampling=off")
    if "devsample" in expect and not run.options.sample_reduce:
        off.append("sample_reduce=off")
    if off:
        why = f"; the CLI says: {few(run.switched_off)}" if run.switched_off else ""
        return Verdict(name=name, passed=False, detail=", ".join(off) + why)
    return Verdict(name=name, passed=True, detail="on, and no fall back to host sampling")


def _judge_lines(
    name: str,
    run: Run,
    checks: Sequence[ScCheck] | Sequence[DevsampleCheck],
    faults: Callable[[ScCheck | DevsampleCheck], Sequence[str]],
) -> list[Verdict]:
    """Two verdicts: a line for every step, and every line without fault."""
    complaints = [f"unreadable: {line}" for line in run.malformed if line.startswith(name)]
    wanted = Counter((step.block, step.step) for step in run.progress)
    given = Counter((check.block, check.step) for check in checks)
    complaints += [f"no line for block {block} step {step}" for block, step in (wanted - given).elements()]
    complaints += [f"a line too many for block {block} step {step}" for block, step in given - wanted]
    if not checks:
        complaints = [f"no {name} line at all"]
    lines = Verdict(
        name=f"{name} lines", passed=not complaints, detail=few(complaints) or f"{len(checks)}, one a step"
    )
    found = [f"block {check.block} step {check.step}: {fault}" for check in checks for fault in faults(check)]
    if not checks:
        found = ["nothing to judge"]
    values = Verdict(name=f"{name} values", passed=not found, detail=few(found) or "all equal")
    return [lines, values]


def _sc_faults(check: ScCheck | DevsampleCheck) -> Sequence[str]:
    assert isinstance(check, ScCheck)
    faults = []
    if check.got != check.denominator or check.got == 0:
        faults.append(f"got={check.got}, {check.denominator} wanted")
    # "not equal to zero" holds for NaN too
    if check.maxabs != 0:
        faults.append(f"maxabs={check.maxabs:g}")
    if check.sumabs != 0:
        faults.append(f"sumabs={check.sumabs:g}")
    if check.nmiss != 0:
        faults.append(f"nmiss={check.nmiss}/{check.denominator}")
    if not all(math.isfinite(sample) for sample in check.samples):
        faults.append("a logit is not a finite number")
    return faults


def _devsample_faults(check: ScCheck | DevsampleCheck) -> Sequence[str]:
    assert isinstance(check, DevsampleCheck)
    faults = []
    if check.positions <= 0:
        faults.append("no positions compared")
    if check.amax_mismatch != 0:
        faults.append(f"amax_mismatch={check.amax_mismatch}/{check.positions}")
    if check.tok_diff != 0:
        faults.append(f"tok_diff={check.tok_diff}/{check.positions}")
    if not check.max_relh <= ENTROPY_TOLERANCE:  # so that NaN fails
        faults.append(f"max_relH={check.max_relh:g}, at most {ENTROPY_TOLERANCE:g} wanted")
    if not math.isfinite(check.max_dh):
        faults.append(f"max|dH|={check.max_dh:g}")
    return faults
