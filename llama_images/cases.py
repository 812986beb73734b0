"""The tests of an image by running it: what is run, and what is asked of each run.

Data alone: the cases are made by a function of how many GPUs there are, ``workflows.suite`` runs them, and
``judging`` decides. A case says what it costs the stock flavor too, so that the pin without its series is a
negative control: it has to fail exactly the cases that name a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias

from llama_images.errors import UsageError
from llama_images.matrix_fields import Flavor
from llama_images.validators import Check

Optimization: TypeAlias = Literal["kv_cache", "gpu_sampling", "sample_reduce"]

OPTIONS: Final[Mapping[Optimization, str]] = {
    "kv_cache": "--diffusion-kv-cache",
    "gpu_sampling": "--diffusion-gpu-sampling",
    "sample_reduce": "--diffusion-gpu-sample-reduce",
}
"""The three optimizations, and what switches them. On several GPUs each is off unless it is asked for."""

ALL: Final = frozenset(OPTIONS)


# --- what can be asked of a run -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Finishes:
    """Exit code 0, a summary that counts what ran, a reply, no error."""

    made_good: bool = False
    """Allocations may fail where the program says what it did instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validated:
    """The device path ran, with a faultless line of each of these validators for every step."""

    checks: frozenset[Check]


@dataclass(frozen=True, kw_only=True, slots=True)
class OnGpus:
    """Every layer is on a GPU, and the model on as many GPUs as are meant."""

    count: int
    split: str = "layer"
    shares: tuple[int, ...] = ()
    """What ``-ts`` asked for, to be found again in the layers of each GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimized:
    """These optimizations are on by the program's own word, and these are off."""

    on: frozenset[Optimization] = frozenset()
    off: frozenset[Optimization] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class SameReply:
    """The reply of another case, byte for byte."""

    case: str
    otherwise: str | None = None
    """Another one to compare with, where that is skipped here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """A conversation of so many turns; the replies to ``same``, counted from 0, are equal."""

    count: int
    same: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Refuses:
    """Exit code 1 before any step, and an error with these words."""

    words: str
    one_line: bool = True
    """And no other error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Says:
    """A warning, a note or an error with these words; the program ends by itself all the same."""

    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """The self-conditioning embedding did not fit where it belongs, and the program says where it went."""

    to: Literal["another GPU", "the host"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stops:
    """An interrupt ends it within so many seconds, with the exit code of a program that it killed."""

    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WithinThresholds:
    """Times of these cases' warm turns are within the matrix's thresholds."""

    short: str
    long: str
    stock_short: str | None = None
    stock_long: str | None = None


Demand: TypeAlias = (
    Finishes
    | Validated
    | OnGpus
    | Optimized
    | SameReply
    | Turns
    | Refuses
    | Says
    | Moved
    | Stops
    | WithinThresholds
)


# --- a case ---------------------------------------------------------------------------------------

ModelKind: TypeAlias = Literal["whole", "missing", "unreadable", "truncated", "of another architecture"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLimit:
    """How much memory the program finds on its GPUs."""

    card_mib: int | None = None
    """All of them look like cards of this size."""
    beside_weights_mib: tuple[int, ...] = ()
    """Or: so much is free beside the weights of ``plenty``. Tried one after the other until the program moves
    a buffer: what CUDA itself takes differs from card to card and is printed nowhere."""
    last_only: bool = False
    """The limit holds for the last GPU alone, which has the output layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One run of the program, and what is asked of it."""

    name: str
    about: str
    """What it shows, in half a line."""
    gpus: int
    """How many GPUs the program sees; 0 for a run on the processor."""
    arguments: tuple[str, ...]
    """Behind ``-m MODEL``."""
    demands: tuple[Demand, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes | None = None
    model: ModelKind = "whole"
    memory: MemoryLimit | None = None
    interrupt_on: str | None = None
    """Text at which the program gets what Ctrl-C sends."""
    by_stock: bool = False
    """Run with the stock flavor's image, whatever is tested: the other side of a comparison."""
    in_container: bool = False
    """It means nothing outside a container."""
    alone: bool = False
    """Nothing may run beside it: it takes times, or it is about how much memory is free."""
    fails_on_stock: str | None = None
    """Why the pin without the series fails it; None where it must pass."""
    repeat_seconds: float = 0.0
    """Run again and again for so long."""
    timeout: float = 600.0
    """Seconds that one run may take."""


CHECKED: Final[Mapping[str, str]] = {"DG_SC_CHECK": "1", "DG_DEVSAMPLE_CHECK": "1"}
_SC_ONLY: Final[Mapping[str, str]] = {"DG_SC_CHECK": "1"}

_OFF_ON_SEVERAL = "the pin switches all three optimizations off where it sees more than one GPU"
_DROPPED = "the pin parses -ts and -sm and drops them"
_NOT_REFUSED = "the pin accepts what it can't do"

PLENTY: Final = "memory-plenty"
CARD_MIB: Final = 16_311
"""What the driver shows of a 16 GB RTX 5060 Ti, the write-up's card."""

LONG_DIGITS: Final = 1780
"""With the chat template a prompt of 1,800 tokens."""


def long_prompt(digits: int = LONG_DIGITS) -> str:
    """Text of as many tokens: a digit is one, in the synthetic vocabulary and in Gemma's."""
    return "".join(str(number * number % 7919) for number in range(digits))[:digits]


SHORT: Final = ("-p", "hello", "-n", "256")


def _long(tokens: int) -> tuple[str, ...]:
    return ("-p", long_prompt(), "-n", str(tokens))


def switches(on: frozenset[Optimization] = ALL) -> tuple[str, ...]:
    """The three options, each said outright."""
    return tuple(word for name, option in OPTIONS.items() for word in (option, "on" if name in on else "off"))


def _one_turn(flavor: Flavor) -> tuple[tuple[str, ...], bytes | None]:
    """How a single prompt is run so that the end of its output can't be lost.

    Without the series it can: the program does not wait for its log. In conversation mode the log is written
    out before each prompt, and an empty standard input ends it there.
    """
    return (("-cnv",), b"") if flavor == "stock" else ((), None)


def gpu_cases(
    gpus: int, flavor: Flavor, *, logical: bool = False, soak_seconds: float = 0.0
) -> tuple[Case, ...]:
    """Everything that is run on so many GPUs, in this order; a case refers to earlier ones alone.

    ``logical`` is whether the GPUs are several devices made of one card: nothing is timed then, and little
    memory is a matter of the preloaded library's limits, for which other margins are known.
    """
    cases = [
        *_defaults(gpus, flavor),
        *_validators(gpus, flavor),
        *_replies(gpus, flavor),
        *_switched_off(gpus, flavor),
        *_refusals(gpus, flavor),
    ]
    if gpus > 1 and not logical:
        cases += _speed(gpus)
    if gpus > 1:
        # Behind what is timed: how often these run is found by trying.
        cases += _memory(gpus, flavor, logical=logical)
    if soak_seconds:
        about = "the same two turns again and again"
        cases.append(_conversation("soak", about, gpus, _long(1536), repeat_seconds=soak_seconds))
    return tuple(cases)


def chosen(cases: Sequence[Case], patterns: Sequence[str]) -> tuple[Case, ...]:
    """The cases whose names match one of the patterns (``*``, ``?``, ``[…]``), and those that they are
    compared with; all of them without a pattern. The order stays.

    Raises UsageError for a pattern that no name matches.
    """
    if not patterns:
        return tuple(cases)
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise UsageError(
                f"--case {pattern}: no case has such a name",
                hint=f"there are {', '.join(case.name for case in cases)}",
            )
    kept: list[Case] = []
    referred: set[str] = set()
    for case in reversed(cases):  # a case refers to earlier ones alone
        if case.name in referred or any(fnmatchcase(case.name, pattern) for pattern in patterns):
            kept.append(case)
            referred |= references(case)
    return tuple(reversed(kept))


def references(case: Case) -> frozenset[str]:
    """The names of the earlier cases that this one is judged or limited by."""
    names: set[str | None] = set()
    for demand in case.demands:
        match demand:
            case SameReply():
                names |= {demand.case, demand.otherwise}
            case WithinThresholds():
                names |= {demand.short, demand.long, demand.stock_short, demand.stock_long}
            case _:
                pass
    if case.memory is not None and case.memory.beside_weights_mib:
        names.add(PLENTY)
    return frozenset(name for name in names if name is not None) - {case.name}


def _counts(gpus: int) -> tuple[int, ...]:
    return (1, gpus) if gpus > 1 else (1,)


_GENERATION: Final = ("--seed", "1", "--diffusion-eb-max-steps", "12", "-ngl", "99", "-lv", "4")
"""At ``-lv 4`` the loader says what is on which device."""


def _generation(
    name: str,
    about: str,
    flavor: Flavor,
    where: OnGpus,
    prompt: tuple[str, ...],
    *demands: Demand,
    more: tuple[str, ...] = (),
    on: frozenset[Optimization] = ALL,
    environment: Mapping[str, str] | None = None,
    memory: MemoryLimit | None = None,
    fails_on_stock: str | None = None,
) -> Case:
    """One prompt with every optimization said outright."""
    mode, stdin = _one_turn(flavor)
    moves = any(isinstance(demand, Moved) for demand in demands)
    return Case(
        name=name,
        about=about,
        gpus=where.count,
        arguments=(*prompt, *_GENERATION, *mode, *switches(on), *more),
        stdin=stdin,
        environment=environment or {},
        demands=(Finishes(made_good=moves), where, Optimized(on=on, off=ALL - on), *demands),
        memory=memory,
        fails_on_stock=fails_on_stock or (_OFF_ON_SEVERAL if where.count > 1 else None),
    )


def _defaults(gpus: int, flavor: Flavor) -> list[Case]:
    mode, stdin = _one_turn(flavor)
    return [
        Case(
            name=f"defaults-{count}gpu",
            about="no option about devices: what a user types",
            gpus=count,
            arguments=(*SHORT, *_GENERATION, *mode),
            stdin=stdin,
            demands=(Finishes(), OnGpus(count=count)),
        )
        for count in _counts(gpus)
    ]


def _validators(gpus: int, flavor: Flavor) -> list[Case]:
    return [
        _generation(
            f"validators-{length}-{count}gpu",
            f"both validators on every step of a {length} prompt",
            flavor,
            OnGpus(count=count),
            prompt,
            Validated(checks=frozenset({"sc", "devsample"})),
            environment=CHECKED,
        )
        for count in _counts(gpus)
        for length, prompt in (("short", SHORT), ("long", _long(1536)))
    ]


def _replies(gpus: int, flavor: Flavor) -> list[Case]:
    """The reply must not depend on how many GPUs the model spans, nor on how it is split."""
    cases = []
    for tokens in (512, 1024, 1536, 2048):
        alone, prompt = f"reply-{tokens}-1gpu", _long(tokens)
        cases.append(_generation(alone, f"-n {tokens} on one GPU", flavor, OnGpus(count=1), prompt))
        if gpus > 1:
            name, about = f"reply-{tokens}-{gpus}gpu", f"-n {tokens} on {gpus} GPUs: the same reply"
            same = SameReply(case=alone)
            cases.append(_generation(name, about, flavor, OnGpus(count=gpus), prompt, same))
    if gpus == 1:
        return cases
    same = SameReply(case="reply-512-1gpu", otherwise=f"reply-512-{gpus}gpu")
    cases += [
        _generation(
            "reply-512-ts-" + "-".join(map(str, shares)),
            "the model split unevenly: the same reply",
            flavor,
            OnGpus(count=gpus, shares=shares),
            _long(512),
            same,
            more=("-ts", ",".join(map(str, shares))),
            fails_on_stock=_DROPPED,
        )
        for shares in ((7, *[3] * (gpus - 1)), (*[3] * (gpus - 1), 7))
    ]
    cases.append(
        _generation(
            "reply-512-row",
            "rows split over the GPUs: the same reply",
            flavor,
            OnGpus(count=gpus, split="row"),
            _long(512),
            same,
            more=("-sm", "row"),
            fails_on_stock=_DROPPED,
        )
    )
    return cases


def _switched_off(gpus: int, flavor: Flavor) -> list[Case]:
    off: tuple[tuple[Optimization, ...], ...] = (
        ("kv_cache",),
        ("gpu_sampling", "sample_reduce"),  # the second needs the first
        ("sample_reduce",),
    )
    return [
        _generation(
            f"without-{names[0].replace('_', '-')}",
            "one optimization off, the others on",
            flavor,
            OnGpus(count=gpus),
            SHORT,
            on=ALL - frozenset(names),
        )
        for names in off
    ]


def _refusals(gpus: int, flavor: Flavor, generation: tuple[str, ...] = _GENERATION) -> list[Case]:
    mode, stdin = _one_turn(flavor)
    reduce_alone = (OPTIONS["sample_reduce"], "on", OPTIONS["gpu_sampling"], "off")
    return [
        Case(
            name=name,
            about="what can't work is refused with one line",
            gpus=gpus,
            arguments=(*SHORT, *generation, *mode, *words),
            stdin=stdin,
            demands=(Refuses(words=error),),
            fails_on_stock=_NOT_REFUSED,
        )
        for name, words, error in (
            ("refuses-split-tensor", ("-sm", "tensor"), "--split-mode tensor"),
            ("refuses-reduce-without-sampling", reduce_alone, "--diffusion-gpu-sample-reduce on needs"),
        )
    ]


def _memory(gpus: int, flavor: Flavor, *, logical: bool) -> list[Case]:
    # A small micro-batch: the compute buffers must be smaller than the buffer that has to move.
    small = ("-p", "hello", "-ub", "384", "-b", "384", "-c", "384", "-ts", ",".join(["1"] * gpus))
    # Beside the weights: what was found to hold everything but that buffer, with each way to limit memory.
    rooms = (1300, 1100, 900) if logical else (1700, 1800, 1500, 1900, 2000)
    where = OnGpus(count=gpus)
    cases = [_generation(PLENTY, "the reply that little memory must not change", flavor, where, small)]
    moves: tuple[tuple[str, bool, Moved], ...] = (
        ("memory-last-full", True, Moved(to="another GPU")),
        ("memory-all-full", False, Moved(to="the host")),
    )
    for name, last_only, moved in moves:
        cases.append(
            _generation(
                name,
                f"a buffer that finds no room goes to {moved.to}: the same reply",
                flavor,
                where,
                small,
                moved,
                SameReply(case=PLENTY),
                memory=MemoryLimit(beside_weights_mib=rooms, last_only=last_only),
            )
        )
    for name, prompt in (("short", SHORT), ("512", _long(512)), ("1536", _long(1536))):
        cases.append(
            _generation(
                f"card-16gb-{name}",
                "each GPU with the memory of a 16 GB card",
                flavor,
                where,
                prompt,
                memory=MemoryLimit(card_mib=CARD_MIB),
            )
        )
    return [replace(case, alone=True) for case in cases]


def _conversation(
    name: str,
    about: str,
    gpus: int,
    prompt: tuple[str, ...],
    *demands: Demand,
    by_stock: bool = False,
    repeat_seconds: float = 0.0,
) -> Case:
    """The same prompt twice, from a cleared history: the first turn warms up, the second one is judged."""
    on = () if by_stock else (Optimized(on=ALL),)
    return Case(
        name=name,
        about=about,
        gpus=gpus,
        arguments=(*prompt, "-cnv", *_GENERATION, *(() if by_stock else switches())),
        stdin=f"/clear\n{prompt[1]}\n/exit\n".encode(),
        demands=(Finishes(), OnGpus(count=gpus), *on, Turns(count=2, same=(0, 1)), *demands),
        by_stock=by_stock,
        alone=True,
        repeat_seconds=repeat_seconds,
        fails_on_stock=_OFF_ON_SEVERAL if gpus > 1 and not by_stock else None,
    )


def _speed(gpus: int) -> list[Case]:
    """Timed runs, validators off, and the stock flavor's beside them. On one GPU stock has all three on."""
    judged = WithinThresholds(
        short="speed-short", long="speed-long", stock_short="speed-short-stock", stock_long="speed-long-stock"
    )
    long = _long(1536)
    return [
        _conversation("speed-short-stock", "stock, a short prompt, timed", gpus, SHORT, by_stock=True),
        _conversation("speed-long-stock", "stock, a long prompt, timed", gpus, long, by_stock=True),
        _conversation("speed-short", "a short prompt, timed", gpus, SHORT),
        _conversation("speed-long", "a long prompt, timed; both against the thresholds", gpus, long, judged),
    ]


# --- without a GPU --------------------------------------------------------------------------------


def cpu_cases(flavor: Flavor) -> tuple[Case, ...]:
    """What is run on a processor, with the tiny synthetic model.

    Each runs read-only, without capabilities or network, as an unprivileged user.
    """
    mode, stdin = _one_turn(flavor)
    # One thread: a step is short, and threads that wait for each other on a busy machine take far longer.
    base = ("--seed", "1", "--diffusion-eb-max-steps", "4", "-t", "1")
    # Two blocks of the tiny model's canvas of 64.
    generation = ("-p", "hello", "-n", "128", *base, *mode)
    sc = frozenset[Check]({"sc"})
    no_reduce = frozenset[Optimization]({"sample_reduce"})
    cases = [
        Case(
            name="validators",
            about="self-conditioning checked on every step of two blocks",
            gpus=0,
            arguments=(*generation, OPTIONS["kv_cache"], "on", OPTIONS["gpu_sampling"], "on"),
            stdin=stdin,
            environment=_SC_ONLY,
            demands=(Finishes(), Validated(checks=sc), Optimized(on=ALL - no_reduce)),
        ),
        Case(
            name="repeat",
            about="the same seed gives the same reply, validators off",
            gpus=0,
            arguments=generation,
            stdin=stdin,
            demands=(Finishes(), SameReply(case="validators")),
        ),
        Case(
            name="without-kv-cache",
            about="the prompt computed anew on every step, checked",
            gpus=0,
            arguments=(*generation, OPTIONS["kv_cache"], "off", OPTIONS["gpu_sampling"], "on"),
            stdin=stdin,
            environment=_SC_ONLY,
            demands=(
                Finishes(),
                Validated(checks=sc),
                Optimized(on=frozenset({"gpu_sampling"}), off=frozenset({"kv_cache"})),
            ),
        ),
        Case(
            name="host-sampling",
            about="logits handed through the host, the same reply",
            gpus=0,
            arguments=(*generation, OPTIONS["gpu_sampling"], "off"),
            stdin=stdin,
            demands=(
                Finishes(),
                Optimized(off=frozenset({"gpu_sampling"})),
                SameReply(case="validators"),
            ),
        ),
        Case(
            name="chat",
            about="-cnv with /help, /clear and /exit: a cleared history gives the first reply again",
            gpus=0,
            arguments=("-cnv", "-n", "64", *base),
            stdin=b"hello\n/help\nhello again\n/clear\nhello\n/exit\nnever read\n",
            demands=(Finishes(), Turns(count=3, same=(0, 2))),
        ),
        Case(
            name="thinking-off",
            about="--diffusion-no-think is understood",
            gpus=0,
            arguments=("-p", "hello", "-n", "64", *base, *mode, "--diffusion-no-think"),
            stdin=stdin,
            demands=(Finishes(), Says(words="thinking off")),
            fails_on_stock="the option comes with the series",
        ),
        Case(
            name="prompt-too-long",
            about="a prompt that does not fit is named by its tokens",
            gpus=0,
            arguments=("-p", long_prompt(9000), "-n", "64", *base, *mode),
            stdin=stdin,
            demands=(Says(words="input too long ("),),
        ),
    ]
    cases += _refusals(0, flavor, base)
    broken: tuple[tuple[ModelKind, str], ...] = (
        ("missing", "No such file or directory"),
        ("unreadable", "Permission denied"),
        ("truncated", "corrupted or incomplete"),
        ("of another architecture", "error loading model"),
    )
    for model, words in broken:
        refusals = [Refuses(words=one, one_line=False) for one in (words, "failed to load model '")]
        cases.append(
            Case(
                name=f"model-{model.replace(' ', '-').removeprefix('of-')}",
                about=f"a model file that is {model} is told by its name",
                gpus=0,
                arguments=("-p", "hello", "-n", "64", *base),
                model=model,
                # Without the series the program does not wait for its log: its last words can be missing.
                demands=tuple(refusals) if flavor == "patched" else (Refuses(words="", one_line=False),),
                in_container=model == "unreadable",  # a program that runs as root reads it
            )
        )
    cases.append(
        Case(
            name="ctrl-c",
            about="an interrupt ends a running container at once",
            gpus=0,
            arguments=("-p", "hello", "-n", "4096", "-t", "1", "--diffusion-eb-max-steps", "2000"),
            demands=(Stops(seconds=5),),
            interrupt_on="diffusion step",
            in_container=True,
            alone=True,
            timeout=60,
        )
    )
    return tuple(cases)
