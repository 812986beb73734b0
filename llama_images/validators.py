"""What a run of ``llama-diffusion-cli`` printed, and whether its two validators passed.

Pure: bytes in, frozen values out. The formats are those of the pin:
``examples/diffusion/diffusion-cli.cpp`` and ``examples/diffusion/diffusion.cpp``.

The stream is not made of lines. A step's progress starts with a carriage return that comes *behind* its
line's time stamp and ends without a newline, so that whatever is printed next follows on the same line.
Standard output (the text, the summary) and standard error (all else) may be mixed, and the text may hold
any byte. So this module looks for the CLI's sentences wherever they stand, in order.

Three traps are judged here. A validator prints only where the device path ran, so a silent fall back to the
host looks like success: a line is demanded for every step. NaN logits leave ``maxabs=0``, because no
comparison with NaN holds: only ``sumabs`` and ``nmiss`` show them. And ``DG_DEVSAMPLE_CHECK`` can't see NaN
at all (both samplers then pick the same tokens), so it is only judged together with ``DG_SC_CHECK``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from llama_images.errors import UsageError

Check: TypeAlias = Literal["sc", "devsample"]

ENTROPY_TOLERANCE = 1e-3
"""Largest relative difference of an entropy between host and device: both sum in F32, in another order."""


class RunUnreadable(UsageError):  # noqa: N818 - says what is wrong, as CheckFailed does
    """The bytes are not the output of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScCheck:
    """A line of ``DG_SC_CHECK=1``: the self-conditioning buffer on the device against the host's logits."""

    block: int
    step: int
    got: int
    """Floats copied from the device."""
    denominator: int
    """Floats compared: canvas times vocabulary."""
    maxabs: float
    sumabs: float
    nmiss: int
    samples: tuple[float, ...]
    """The first value on the device and on the host; empty where the line was cut before them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DevsampleCheck:
    """A line of ``DG_DEVSAMPLE_CHECK=1``: the sampler on the device against the one on the host."""

    block: int
    step: int
    amax_mismatch: int
    tok_diff: int
    positions: int
    max_dh: float
    """Largest difference of an entropy, in nats."""
    max_relh: float
    """The same, relative to the host's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A denoising step that ran to its end."""

    block: int
    """From 0, counted over the whole run."""
    step: int
    """From 0, within its block."""
    of: int
    """Most steps that the block may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The CLI's own account of one turn."""

    milliseconds: float
    milliseconds_per_step: float
    """Prefill included."""
    steps: int
    blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The entropy-bound sampler's options as the CLI says it took them."""

    max_steps: int
    kv_cache: bool
    gpu_sampling: bool
    sample_reduce: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of the CLI; the turns of a conversation are counted together."""

    progress: tuple[Step, ...]
    """Steps by their progress lines, in order."""
    sc_checks: tuple[ScCheck, ...]
    devsample_checks: tuple[DevsampleCheck, ...]
    malformed: tuple[str, ...]
    """Validator lines that could not be read."""
    summaries: tuple[Summary, ...]
    options: Options | None
    host_sampling: bool
    """The CLI warned that it fell back to sampling on the host."""
    text: bytes
    """The generated text, all turns; raw, since a canvas may hold any byte."""
    errors: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Steps that really ran: the summaries' count, or the progress lines' where there is none."""
        return sum(summary.steps for summary in self.summaries) or len(self.progress)

    @property
    def blocks(self) -> int:
        return sum(summary.blocks for summary in self.summaries) or len(
            {step.block for step in self.progress}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The result of one rule."""

    name: str
    passed: bool
    detail: str


_ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_STAMP = rb"(?:\d+\.\d\d\.\d{3}\.\d{3} )"
# What C's %g, %e and %f print; NaN may carry a sign and a payload.
_REAL = rb"(-?(?:\d[\d.]*(?:e[+-]?\d+)?|nan(?:\([^)\s]*\))?|inf(?:inity)?))"
_COUNT = rb"(\d{1,19})"
_INT = rb"(-?\d{1,10})"

_PROGRESS = re.compile(rb"\rdiffusion step: " + _COUNT + rb"/" + _COUNT + rb" \[=* *\] \d+%")
_SC = re.compile(
    rb"DG_SC_CHECK step " + _INT + rb": got=" + _COUNT + rb" maxabs=" + _REAL + rb" sumabs=" + _REAL
    + rb" nmiss=" + _COUNT + rb"/" + _COUNT
    + rb"(?: sc_dev\[0\]=" + _REAL + rb" host\[0\]=" + _REAL + rb")?(?=\s|$)"
)  # fmt: skip
_DEVSAMPLE = re.compile(
    rb"DG_DEVSAMPLE_CHECK step " + _INT + rb": amax_mismatch=" + _INT + rb"/" + _INT
    + rb" tok_diff=" + _INT + rb"/" + _INT + rb" max\|dH\|=" + _REAL + rb" max_relH=" + _REAL + rb"(?=\s|$)"
)  # fmt: skip
_VALIDATOR = re.compile(rb"DG_(?:SC|DEVSAMPLE)_CHECK step[^\r\n]{0,200}")
_SUMMARY = re.compile(
    rb"total time: " + _REAL + rb"ms, time per step: " + _REAL + rb"ms \(" + _COUNT + rb" steps over "
    + _COUNT + rb" blocks, entropy-bound\)"
)  # fmt: skip
_RATE = re.compile(rb"\nthroughput: [^\r\n]*")
_OPTIONS = re.compile(
    rb"diffusion_eb: max_steps=" + _INT + rb" [^\r\n]*?kv_cache=(on|off) gpu_sampling=(on|off)"
    rb" sample_reduce=(on|off)"
)
_HOST = re.compile(rb"using host sampling")
# Errors by the log's level; those that go around the log (asserts, aborts, the CUDA backend) by their words.
_ERROR = re.compile(
    rb"(?:" + _STAMP + rb"E |(?:^|[\r\n])E )([^\r\n]{1,500})"
    rb"|(?:^|[\r\n])((?:error: |terminate called|[^\r\n]{0,200}(?:GGML_ASSERT\(|CUDA error))[^\r\n]{0,500})"
)
_LOG_LINE = re.compile(_STAMP + rb"[IWED] (?:[^\r\n]*\r?\n)?")


def _real(text: bytes) -> float:
    """A number as C prints it. Never raises: what ``_REAL`` lets through and Python does not read is NaN."""
    if b"nan" in text:
        return math.nan
    try:
        return float(text)
    except ValueError:  # "1.2.3"
        return math.nan


def parse_run(data: bytes, stdout: bytes | None = None) -> Run:
    """Read a run's output.

    ``data`` is standard error, or both streams together in the order in which they came. Where the streams
    were kept apart, give ``stdout`` too: it holds the text and the summary, and no validator line in it
    counts, since a model may write anything.

    Raises RunUnreadable where nothing comes from the CLI's sampler. Truncated or damaged output is read as
    far as it goes; ``judge`` then finds what is missing.
    """
    data = _ANSI.sub(b"", data)
    told = data if stdout is None else _ANSI.sub(b"", stdout)
    progress: list[Step] = []
    sc_checks: list[ScCheck] = []
    devsample_checks: list[DevsampleCheck] = []
    patterns: Mapping[str, re.Pattern[bytes]] = {"progress": _PROGRESS, "sc": _SC, "devsample": _DEVSAMPLE}
    block = -1
    for kind, match in _in_order(data, patterns):
        values = match.groups()
        step = int(values[0])
        # A validator's line comes before its step's progress line, so step 0 opens the block to come.
        here = block + 1 if step == 0 else max(block, 0)
        if kind == "progress":
            block = here
            progress.append(Step(block=here, step=step, of=int(values[1])))
        elif kind == "sc":
            _, got, maxabs, sumabs, nmiss, denominator, *samples = values
            sc_checks.append(
                ScCheck(
                    block=here,
                    step=step,
                    got=int(got),
                    denominator=int(denominator),
                    maxabs=_real(maxabs),
                    sumabs=_real(sumabs),
                    nmiss=int(nmiss),
                    samples=tuple(_real(sample) for sample in samples if sample is not None),
                )
            )
        else:
            _, amax_mismatch, _, tok_diff, positions, max_dh, max_relh = values
            devsample_checks.append(
                DevsampleCheck(
                    block=here,
                    step=step,
                    amax_mismatch=int(amax_mismatch),
                    tok_diff=int(tok_diff),
                    positions=int(positions),
                    max_dh=_real(max_dh),
                    max_relh=_real(max_relh),
                )
            )
    malformed = [
        _printable(match.group())
        for match in _VALIDATOR.finditer(data)
        if not (_SC.match(data, match.start()) or _DEVSAMPLE.match(data, match.start()))
    ]
    summaries, text = _turns(told)
    options = None
    for match in _OPTIONS.finditer(data):
        switches = [word == b"on" for word in match.groups()[1:]]
        options = Options(
            max_steps=int(match[1]),
            kv_cache=switches[0],
            gpu_sampling=switches[1],
            sample_reduce=switches[2],
        )
    errors = tuple(_printable(match[1] or match[2]).strip() for match in _ERROR.finditer(data))
    if not (progress or sc_checks or devsample_checks or malformed or summaries or options or errors):
        raise RunUnreadable(
            f"{len(data):,} bytes of output hold nothing that llama-diffusion-cli's sampler prints",
            hint="give the output of a run at the default verbosity",
        )
    return Run(
        progress=tuple(progress),
        sc_checks=tuple(sc_checks),
        devsample_checks=tuple(devsample_checks),
        malformed=tuple(malformed),
        summaries=summaries,
        options=options,
        host_sampling=bool(_HOST.search(data)),
        text=text,
        errors=errors,
    )


def _in_order(
    data: bytes, patterns: Mapping[str, re.Pattern[bytes]]
) -> Iterable[tuple[str, re.Match[bytes]]]:
    found = [(kind, match) for kind, pattern in patterns.items() for match in pattern.finditer(data)]
    return sorted(found, key=lambda pair: pair[1].start())


def _turns(data: bytes) -> tuple[tuple[Summary, ...], bytes]:
    """The summaries, and the texts before them: what follows the last step's progress, without the log's
    lines."""
    summaries: list[Summary] = []
    texts: list[bytes] = []
    done = 0
    for match in _SUMMARY.finditer(data):
        summaries.append(
            Summary(
                milliseconds=_real(match[1]),
                milliseconds_per_step=_real(match[2]),
                steps=int(match[3]),
                blocks=int(match[4]),
            )
        )
        start = done
        for step in _PROGRESS.finditer(data, done, match.start()):
            start = step.end()
        text = _LOG_LINE.sub(b"", data[start : match.start()]).strip(b"\r\n")
        texts.append(
            text.removeprefix(b"> ").strip(b"\r\n") if summaries[1:] else text
        )  # the next turn's prompt
        done = match.end()
        rate = _RATE.match(data, done)
        done = rate.end() if rate else done
    return tuple(summaries), b"\n".join(texts)


def _printable(data: bytes) -> str:
    """One line for a message: what is not UTF-8 or can't be shown is replaced."""
    text = data.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def judge(run: Run, expect: frozenset[Check]) -> tuple[Verdict, ...]:
    """Judge a run in which the validators of ``expect`` were switched on.

    ``expect`` is {"sc"}, or {"sc", "devsample"} where the device samples too. The run passed if every
    verdict did.
    """
    if "sc" not in expect:
        raise ValueError("DG_DEVSAMPLE_CHECK can't see NaN: judge it together with DG_SC_CHECK")
    verdicts = [_judge_steps(run), _judge_errors(run), _judge_device(run, expect)]
    verdicts += _judge_lines("DG_SC_CHECK", run, run.sc_checks, _sc_faults)
    if "devsample" in expect:
        verdicts += _judge_lines("DG_DEVSAMPLE_CHECK", run, run.devsample_checks, _devsample_faults)
    return tuple(verdicts)


def _judge_steps(run: Run) -> Verdict:
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


def _judge_errors(run: Run) -> Verdict:
    if run.errors:
        return Verdict(name="no errors", passed=False, detail=_few(run.errors))
    return Verdict(name="no errors", passed=True, detail="none in the log")


def _judge_device(run: Run, expect: frozenset[Check]) -> Verdict:
    name = "device path"
    if run.host_sampling:
        return Verdict(name=name, passed=False, detail="the CLI fell back to host sampling")
    if run.options is None:
        return Verdict(name=name, passed=False, detail="the CLI did not print its options (diffusion_eb: …)")
    off = []
    if not run.options.gpu_sampling:
        off.append("gpu_sampling=off")
    if "devsample" in expect and not run.options.sample_reduce:
        off.append("sample_reduce=off")
    if off:
        return Verdict(name=name, passed=False, detail=", ".join(off))
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
        name=f"{name} lines", passed=not complaints, detail=_few(complaints) or f"{len(checks)}, one a step"
    )
    found = [f"block {check.block} step {check.step}: {fault}" for check in checks for fault in faults(check)]
    if not checks:
        found = ["nothing to judge"]
    values = Verdict(name=f"{name} values", passed=not found, detail=_few(found) or "all equal")
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


def _few(complaints: Sequence[str]) -> str:
    """The first three, and how many more."""
    shown = "; ".join(complaints[:3])
    return f"{shown}; and {len(complaints) - 3} more" if len(complaints) > 3 else shown
