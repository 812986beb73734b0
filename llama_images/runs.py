"""What a run of ``llama-diffusion-cli`` printed.

Pure: bytes in, frozen values out. The formats are those of the pin (``examples/diffusion/diffusion-cli.cpp``,
``examples/diffusion/diffusion.cpp``, the loader's and the scheduler's lines at ``-lv 4``) and of the carried
series (``diffusion_devices:`` and its warnings).

The stream is not made of lines. A step's progress starts with a carriage return that comes *behind* its
line's time stamp and ends without a newline, so that whatever is printed next follows on the same line.
Standard output (the text, the summary) and standard error (all else) may be mixed, and the text may hold
any byte. So this module looks for the CLI's sentences wherever they stand, in order.

What a run's output means is judged elsewhere: ``validators``, ``timing``, ``judging``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

from llama_images.errors import UsageError


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
    at_us: int | None
    """When it ended, in microseconds after the program's start; None where its line has no time stamp."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The CLI's own account of one turn."""

    milliseconds: float
    milliseconds_per_step: float
    """Prefill included."""
    steps: int
    blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One prompt and its reply. A single prompt is one turn, a conversation has several."""

    blocks: tuple[tuple[Step, ...], ...]
    """Steps by block, in order; never an empty block."""
    summary: Summary | None
    """None where the turn did not come to its end."""
    text: bytes
    """The reply; raw, since a canvas may hold any byte. Empty where there is no summary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The entropy-bound sampler's options as the CLI says it took them."""

    max_steps: int
    kv_cache: bool
    gpu_sampling: bool
    sample_reduce: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """The line ``diffusion_devices:``: where the model is and what is on. Builds with the series print it."""

    split: str
    """"none", "layer" or "row"."""
    layers: tuple[tuple[str, int], ...]
    """Devices in their order, each with the number of layers that it computes."""
    output: str
    sc_embd: str
    """Buffer type that holds the self-conditioning embedding; "none" where there is none."""
    kv_cache: tuple[str, ...]
    """Devices that it is on; empty where it is off. So are the next two."""
    gpu_sampling: tuple[str, ...]
    sample_reduce: tuple[str, ...]


FallbackKind: TypeAlias = Literal["placement", "prompt cache", "self-conditioning", "sampling", "check"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fallback:
    """A warning that something ran elsewhere, or not at all, instead of as it was asked for."""

    kind: FallbackKind
    text: str
    tensor: str | None = None
    """For a placement: what was placed …"""
    placed_on: str | None = None
    """… and where, by the buffer's name ("CUDA0", "CUDA_Host")."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocationFailure:
    """An allocation that a backend refused. The program may have gone on with another one."""

    device: str
    mebibytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
    """A buffer's line at ``-lv 4``."""

    device: str
    """The buffer's name: "CUDA0", "CUDA_Host", "CPU_Mapped"."""
    kind: str
    """"model", "compute", "output" or "prompt KV"."""
    mebibytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundDevice:
    """A device that the loader says it uses, at ``-lv 4``."""

    device: str
    name: str
    free_mebibytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of the CLI."""

    progress: tuple[Step, ...]
    """Steps by their progress lines, in order, of all turns."""
    turns: tuple[Turn, ...]
    sc_checks: tuple[ScCheck, ...]
    devsample_checks: tuple[DevsampleCheck, ...]
    malformed: tuple[str, ...]
    """Validator lines that could not be read."""
    options: Options | None
    devices: Devices | None
    switched_off: tuple[str, ...]
    """What the CLI says that it left off by itself, in its own words."""
    fallbacks: tuple[Fallback, ...]
    allocation_failures: tuple[AllocationFailure, ...]
    found_devices: tuple[FoundDevice, ...]
    offloaded: tuple[int, int] | None
    """Layers on GPUs, and all of them, output included; None below ``-lv 4`` and without a GPU backend."""
    buffers: tuple[Buffer, ...]
    notes: tuple[str, ...]
    """What the CLI says about its options ("diffusion: thinking off")."""
    errors: tuple[str, ...]
    """Lines of the level E, and what asserts, aborts and the CUDA backend print around the log."""

    @property
    def summaries(self) -> tuple[Summary, ...]:
        return tuple(turn.summary for turn in self.turns if turn.summary is not None)

    @property
    def text(self) -> bytes:
        """The generated text, all turns that came to their end."""
        return b"\n".join(turn.text for turn in self.turns if turn.summary is not None)

    @property
    def steps(self) -> int:
        """Steps that really ran: the summaries' count, or the progress lines' where there is none."""
        return sum(summary.steps for summary in self.summaries) or len(self.progress)

    @property
    def blocks(self) -> int:
        return sum(summary.blocks for summary in self.summaries) or len(
            {step.block for step in self.progress}
        )

    @property
    def host_sampling(self) -> bool:
        """The CLI warned that it fell back to sampling on the host."""
        return any(fallback.kind == "sampling" for fallback in self.fallbacks)


_ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
# Minutes, seconds, milliseconds, microseconds since the start (common/log.cpp).
_STAMP = rb"(?:\d{1,7}\.\d\d\.\d{3}\.\d{3} )"
_STAMP_PARTS = rb"(?:(\d{1,7})\.(\d\d)\.(\d{3})\.(\d{3}) [IWED] )?"
# What C's %g, %e and %f print; NaN may carry a sign and a payload.
_REAL = rb"(-?(?:\d[\d.]*(?:e[+-]?\d+)?|nan(?:\([^)\s]*\))?|inf(?:inity)?))"
_COUNT = rb"(\d{1,19})"
_INT = rb"(-?\d{1,10})"

_PROGRESS = re.compile(_STAMP_PARTS + rb"\rdiffusion step: " + _COUNT + rb"/" + _COUNT + rb" \[=* *\] \d+%")
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
_CONVERSATION = b"conversation mode: /help for commands"
# What a conversation prints before a reply: prompts, answers to commands.
_PROMPTS = re.compile(
    rb"(?:\s*> (?:conversation history cleared(?=\n)|commands:\n(?: {2}/[^\n]*\n){0,9})?)+(?=\s)"
)
_OPTIONS = re.compile(
    rb"diffusion_eb: max_steps=" + _INT + rb" [^\r\n]*?kv_cache=(on|off) gpu_sampling=(on|off)"
    rb" sample_reduce=(on|off)"
)
_DEVICES = re.compile(
    rb"diffusion_devices: split=(\w+) layers=((?:\w+:\d{1,6},?)*) output=(\w+) sc_embd=(\w+)"
    rb" kv_cache=(off|on:[\w,]+) gpu_sampling=(off|on:[\w,]+) sample_reduce=(off|on:[\w,]+)(?=\s|$)"
)
_SWITCHED_OFF = re.compile(
    rb"diffusion_eb: ((?:kv cache|gpu sampling|gpu sample reduce|--[a-z-]+) (?:auto-)?off \([^\r\n]{1,200})"
)
_FALLBACKS: Mapping[FallbackKind, re.Pattern[bytes]] = {
    "placement": re.compile(rb"no room for (\w+) \([^)\r\n]{1,40}\) on \w+, it is on (\w+) instead"),
    "prompt cache": re.compile(rb"no memory for the prompt KV cache[^\r\n]{0,200}"),
    "self-conditioning": re.compile(rb"no memory for device-resident self-conditioning[^\r\n]{0,200}"),
    "sampling": re.compile(rb"on-device sampling [^\r\n;]{1,100}; using host sampling|using host sampling"),
    "check": re.compile(rb"DG_(?:SC|DEVSAMPLE)_CHECK: not run[^\r\n]{0,200}"),
}
_ALLOCATION = re.compile(
    rb"allocating (\d{1,12}\.\d\d) MiB on device (\d{1,3}): [^\r\n]{1,200}"
    rb"|failed to allocate (CPU\w*|\w*Host) buffer of size (\d{1,19})"
)
_FOUND = re.compile(rb"using device (\w+) \(([^\r\n]{1,200}?)\) \([^()\r\n]{0,40}\) - (\d{1,12}) MiB free")
_OFFLOADED = re.compile(rb"offloaded (\d{1,6})/(\d{1,6}) layers to GPU")
_BUFFER = re.compile(rb"(?<=[ :])(\w+) +(model|compute|output|prompt KV) buffer size = *(\d{1,12}\.\d\d) MiB")
# Errors by the log's level; those that go around the log (asserts, aborts, the CUDA backend) by their words.
_ERROR = re.compile(
    rb"(?:" + _STAMP + rb"E |(?:^|[\r\n])E )([^\r\n]{1,500})"
    rb"|(?:^|[\r\n])((?:error: |terminate called|[^\r\n]{0,200}(?:GGML_ASSERT\(|CUDA error))[^\r\n]{0,500})"
)
_NOTE = re.compile(_STAMP + rb"[IW] (diffusion: [^\r\n]{1,500})")
_LOG_LINE = re.compile(_STAMP + rb"[IWED] (?:[^\r\n]*\r?\n)?")
_UP_TO_STAMP = re.compile(rb"^" + _STAMP + rb"[IWED] ")


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

    Raises RunUnreadable where nothing comes from the CLI. Truncated or damaged output is read as far as it
    goes; a judge then finds what is missing.
    """
    data = _ANSI.sub(b"", data)
    told = data if stdout is None else _ANSI.sub(b"", stdout)
    progress, sc_checks, devsample_checks = _steps(data)
    malformed = [
        _printable(match.group())
        for match in _VALIDATOR.finditer(data)
        if not (_SC.match(data, match.start()) or _DEVSAMPLE.match(data, match.start()))
    ]
    turns = _turns(told, progress, conversation=_CONVERSATION in data)
    options = None
    for match in _OPTIONS.finditer(data):
        switches = [word == b"on" for word in match.groups()[1:]]
        options = Options(
            max_steps=int(match[1]),
            kv_cache=switches[0],
            gpu_sampling=switches[1],
            sample_reduce=switches[2],
        )
    offloaded = [(int(match[1]), int(match[2])) for match in _OFFLOADED.finditer(data)]
    errors = tuple(_error(match[1] or match[2]) for match in _ERROR.finditer(data))
    if not (progress or sc_checks or devsample_checks or malformed or turns or options or errors):
        raise RunUnreadable(
            f"{len(data):,} bytes of output hold nothing that llama-diffusion-cli's sampler prints",
            hint="give the output of a run at the default verbosity",
        )
    return Run(
        progress=tuple(progress),
        turns=turns,
        sc_checks=tuple(sc_checks),
        devsample_checks=tuple(devsample_checks),
        malformed=tuple(malformed),
        options=options,
        devices=_devices(data),
        switched_off=tuple(_printable(match[1]) for match in _SWITCHED_OFF.finditer(data)),
        fallbacks=_fallbacks(data),
        allocation_failures=tuple(_allocation(match) for match in _ALLOCATION.finditer(data)),
        found_devices=tuple(
            FoundDevice(device=_ascii(match[1]), name=_printable(match[2]), free_mebibytes=int(match[3]))
            for match in _FOUND.finditer(data)
        ),
        offloaded=offloaded[-1] if offloaded else None,
        buffers=tuple(
            Buffer(device=_ascii(match[1]), kind=_ascii(match[2]), mebibytes=_real(match[3]))
            for match in _BUFFER.finditer(data)
        ),
        notes=tuple(_printable(match[1]) for match in _NOTE.finditer(data)),
        errors=errors,
    )


def _steps(data: bytes) -> tuple[list[Step], list[ScCheck], list[DevsampleCheck]]:
    """Progress and validator lines in the order in which they came, each with its block."""
    progress: list[Step] = []
    sc_checks: list[ScCheck] = []
    devsample_checks: list[DevsampleCheck] = []
    patterns: Mapping[str, re.Pattern[bytes]] = {"progress": _PROGRESS, "sc": _SC, "devsample": _DEVSAMPLE}
    block = -1
    for kind, match in _in_order(data, patterns):
        values = match.groups()
        step = int(values[4] if kind == "progress" else values[0])
        # A validator's line comes before its step's progress line, so step 0 opens the block to come.
        here = block + 1 if step == 0 else max(block, 0)
        if kind == "progress":
            block = here
            progress.append(Step(block=here, step=step, of=int(values[5]), at_us=_microseconds(values[:4])))
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
    return progress, sc_checks, devsample_checks


def _in_order(
    data: bytes, patterns: Mapping[str, re.Pattern[bytes]]
) -> Iterable[tuple[str, re.Match[bytes]]]:
    found = [(kind, match) for kind, pattern in patterns.items() for match in pattern.finditer(data)]
    return sorted(found, key=lambda pair: pair[1].start())


def _microseconds(parts: tuple[bytes | None, ...]) -> int | None:
    """A time stamp's value, from its four groups."""
    numbers = [int(part) for part in parts if part is not None]
    if len(numbers) < 4:
        return None
    minutes, seconds, milliseconds, microseconds = numbers
    return ((minutes * 60 + seconds) * 1000 + milliseconds) * 1000 + microseconds


def _turns(told: bytes, progress: list[Step], *, conversation: bool) -> tuple[Turn, ...]:
    """Summaries and replies, each with its blocks.

    A summary says how many blocks its turn had. That is how blocks find their turn: where the streams were
    kept apart, nothing else tells which step came before which summary.
    """
    blocks = [tuple(steps) for _, steps in groupby(progress, key=lambda step: step.block)]
    turns: list[Turn] = []
    for summary, text in _replies(told, conversation=conversation):
        turns.append(Turn(blocks=tuple(blocks[: summary.blocks]), summary=summary, text=text))
        blocks = blocks[summary.blocks :]
    if blocks:  # a turn that did not come to its end
        turns.append(Turn(blocks=tuple(blocks), summary=None, text=b""))
    return tuple(turns)


def _replies(data: bytes, *, conversation: bool) -> Iterable[tuple[Summary, bytes]]:
    """The summaries, and the texts before them: what follows the last step's progress, without the log's
    lines."""
    done = 0
    for match in _SUMMARY.finditer(data):
        start = done
        for step in _PROGRESS.finditer(data, done, match.start()):
            start = step.end()
        text = _LOG_LINE.sub(b"", data[start : match.start()])
        if conversation and (prompts := _PROMPTS.match(text)):
            text = text[prompts.end() :]
        yield (
            Summary(
                milliseconds=_real(match[1]),
                milliseconds_per_step=_real(match[2]),
                steps=int(match[3]),
                blocks=int(match[4]),
            ),
            text.strip(b"\r\n"),
        )
        done = match.end()
        rate = _RATE.match(data, done)
        done = rate.end() if rate else done


def _devices(data: bytes) -> Devices | None:
    match = None
    for match in _DEVICES.finditer(data):  # noqa: B007 - the last one
        pass
    if match is None:
        return None
    split, layers, output, sc_embd, *switches = (_ascii(group) for group in match.groups())
    kv_cache, gpu_sampling, sample_reduce = (
        () if word == "off" else tuple(word.removeprefix("on:").split(",")) for word in switches
    )
    pairs = (pair.partition(":") for pair in layers.split(",") if pair)
    return Devices(
        split=split,
        layers=tuple((device, int(count)) for device, _, count in pairs),
        output=output,
        sc_embd=sc_embd,
        kv_cache=kv_cache,
        gpu_sampling=gpu_sampling,
        sample_reduce=sample_reduce,
    )


def _fallbacks(data: bytes) -> tuple[Fallback, ...]:
    found: list[tuple[int, Fallback]] = []
    for kind, pattern in _FALLBACKS.items():
        for match in pattern.finditer(data):
            tensor, place = match.groups() if kind == "placement" else (None, None)
            fallback = Fallback(
                kind=kind,
                text=_printable(match.group()),
                tensor=None if tensor is None else _ascii(tensor),
                placed_on=None if place is None else _ascii(place),
            )
            found.append((match.start(), fallback))
    return tuple(fallback for _, fallback in sorted(found, key=lambda pair: pair[0]))


def _error(line: bytes) -> str:
    """The CUDA backend's own lines may come through the log too, with its time stamp."""
    return _printable(_UP_TO_STAMP.sub(b"", line)).strip()


def _allocation(match: re.Match[bytes]) -> AllocationFailure:
    if match[1] is not None:
        return AllocationFailure(device=f"CUDA{int(match[2])}", mebibytes=_real(match[1]))
    return AllocationFailure(device=_ascii(match[3]), mebibytes=int(match[4]) / (1 << 20))


def _ascii(data: bytes) -> str:
    """Text that a pattern of this module has already restricted; ``\\w`` of bytes is ASCII."""
    return data.decode("ascii")


def _printable(data: bytes) -> str:
    """One line for a message: what is not UTF-8 or can't be shown is replaced."""
    text = data.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
