"""The parts that look at what is computed: validators, ties, equal results, and builds broken on purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from gpu_proof.dumps import Comparison, compare_logits
from gpu_proof.judging import argmax_mismatches, how_it_ended, validated
from gpu_proof.report import Report
from gpu_proof.runs import BOTH, CHECKS, FIRST, ON, SHORT, Bench, Ran, Turn, together

LIMIT = 1e-6
"""Normalised mean square error under which two runs' logits count as the same."""
DEVICES: Mapping[int, str] = {1: FIRST, 2: BOTH}


def compare(bench: Bench, a: Ran, b: Ran) -> Comparison:
    """The replies and the dumped logits of two runs. One that ended badly agrees with none."""
    same_reply = a.reply is not None and a.reply == b.reply
    found = compare_logits(bench.dump(a.name), bench.dump(b.name), same_reply=same_reply)
    for ran in (a, b):
        if ran.exit_code != 0:
            return dataclasses.replace(found, problem=f"{ran.name}: {how_it_ended(ran)}")
    return found


def validate(bench: Bench, report: Report) -> None:
    """Both validators on every step, on one device and on two, short and long."""
    prompts = {"short": SHORT, "long": ("-p", bench.long_prompt, "-n", "1536")}
    turns = [
        Turn(
            name=f"validate-{size}-{count}gpu",
            binary="patched",
            options=(*prompt, *ON),
            gpus=gpus,
            env=CHECKS,
        )
        for size, prompt in prompts.items()
        for count, gpus in DEVICES.items()
    ]
    for name, ran in together(turns, bench, at_once=4).items():
        found = validated(ran)
        report.verdict(name, found.passed, found.note)


def ties(bench: Bench, report: Report) -> None:
    """A model in which two words have exactly the same highest logit: the sampler must take the first."""
    small = ("-p", "hello", "-n", "64")
    turns = [
        Turn(name=name, binary=binary, options=(*small, *more), gpus=gpus, env=CHECKS, model="ties.gguf")
        for name, binary, more, gpus in (
            ("ties-1gpu", "patched", ON, FIRST),
            ("ties-2gpu", "patched", ON, BOTH),
            ("ties-stock-1gpu", "stock", (), FIRST),
        )
    ]
    runs = together(turns, bench, at_once=3)
    for name in ("ties-1gpu", "ties-2gpu"):
        found = validated(runs[name])
        report.verdict(name, found.passed, found.note)
    control = runs["ties-stock-1gpu"]
    mismatches = argmax_mismatches(control)
    note = f"the unpatched sampler must miss one: amax_mismatch {mismatches}"
    if not mismatches:
        note += f"; {how_it_ended(control)}"
    report.verdict("ties-control", any(mismatches), note)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One configuration that must compute what one device computes."""

    name: str
    gpus: str = BOTH
    options: tuple[str, ...] = ()
    two_cards: bool = False
    """Whether it means nothing where two devices are made of one card."""


REFERENCE = Case(name="1gpu", gpus=FIRST)
CASES = (
    Case(name="1gpu-again", gpus=FIRST),
    Case(name="1gpu-other", gpus="1", two_cards=True),
    Case(name="2gpu"),
    Case(name="2gpu-again"),
    Case(name="2gpu-ts73", options=("-ts", "7,3")),
    Case(name="2gpu-ts37", options=("-ts", "3,7")),
    Case(name="2gpu-swapped", gpus="1,0", two_cards=True),
    Case(name="sm-none", options=("-sm", "none")),
)


def identity(bench: Bench, report: Report) -> None:
    """The same reply and the same logits on one device, on two and on every split."""
    table: dict[str, object] = {}
    cases = [case for case in CASES if not (bench.logical and case.two_cards)]
    for size, prompt in {"short": SHORT, "long": ("-p", bench.long_prompt, "-n", "512")}.items():
        if bench.deadline.left() < 60:
            report.verdict(f"identity-{size}", False, "no time")
            continue
        turns = [
            Turn(
                name=f"id-{size}-{case.name}",
                binary="patched-dump",
                options=(*prompt, *ON, *case.options),
                gpus=case.gpus,
                dumps=True,
            )
            for case in (REFERENCE, *cases)
        ]
        runs = together(turns, bench, at_once=5)
        reference = runs[f"id-{size}-{REFERENCE.name}"]
        for case in cases:
            found = compare(bench, reference, runs[f"id-{size}-{case.name}"])
            table[f"{size} {case.name}"] = found.summary()
            report.verdict(f"identity-{size}-1gpu-{case.name}", found.agrees(LIMIT), _differences(found))
        table[f"{size} replies"] = {
            name: (ran.digest, len(ran.reply or ""), ran.devices) for name, ran in runs.items()
        }
    report.keep("identity", table)


def drift(bench: Bench, report: Report) -> None:
    """Every step's logits against the pin's, over the canvases that the pin went through.

    Left to themselves the two part at the first word that differs; so the series is made to read the pin's.
    The yardstick is what the pin makes of its own two kinds of attention, since 8-bit activations and the
    choice of experts make much of any rounding.
    """
    prompts = {"short": SHORT, "long": ("-p", bench.long_prompt, "-n", "512")}
    canvases = {size: str(bench.scratch / f"{size}.canvas") for size in prompts}
    references = together(
        [
            Turn(
                name=f"drift-{size}-stock",
                binary="stock-dump",
                options=prompt,
                gpus=FIRST,
                env={"DG_DUMP_CANVAS": canvases[size]},
                dumps=True,
            )
            for size, prompt in prompts.items()
        ],
        bench,
        at_once=2,
    )
    pin = [
        Turn(
            name=f"drift-{size}-stock-fa",
            binary="stock-dump",
            options=(*prompt, "-fa", "on"),
            gpus=FIRST,
            env={"DG_FORCE_CANVAS": canvases[size]},
            dumps=True,
        )
        for size, prompt in prompts.items()
    ]
    forced = together(
        [
            *pin,
            *(
                Turn(
                    name=f"drift-{size}-{count}gpu",
                    binary="patched-dump",
                    options=(*prompt, *ON),
                    gpus=gpus,
                    env={"DG_FORCE_CANVAS": canvases[size]},
                    dumps=True,
                )
                for size, prompt in prompts.items()
                for count, gpus in DEVICES.items()
            ),
        ],
        bench,
        at_once=6,
    )
    table: dict[str, object] = {}
    for size in prompts:
        reference = references[f"drift-{size}-stock"]
        own = compare(bench, reference, forced[f"drift-{size}-stock-fa"])
        table[f"drift-{size}-stock-fa"] = own.summary()
        limit = LIMIT if own.problem is not None or own.worst is None else max(LIMIT, 2 * own.worst)
        for count in DEVICES:
            name = f"drift-{size}-{count}gpu"
            found = compare(bench, reference, forced[name])
            table[name] = found.summary()
            note = f"NMSE median {median(found.nmse) if found.nmse else None}, max {found.worst}"
            note += f"; {limit} at most (the pin with and without Flash Attention: {own.worst})"
            for problem in (own.problem, found.problem):
                note += "" if problem is None else f"; {problem}"
            report.verdict(name, found.agrees(limit), note)
    report.keep("drift", table)


def _differences(found: Comparison) -> str:
    note = (
        f"same reply {found.same_reply}, NMSE max {found.worst}, first step that differs "
        f"{found.first_difference} of {len(found.nmse)}"
    )
    return note if found.problem is None else f"{note}; {found.problem}"


def negative(bench: Bench, report: Report) -> None:
    """Builds that are broken on purpose must be found: two by a validator, one by its logits alone."""
    names = ("broken-copy", "broken-pointer")
    turns = [Turn(name=name, binary=name, options=(*SHORT, *ON), env=CHECKS, steps=4) for name in names]
    for name, ran in together(turns, bench, at_once=2).items():
        seen = validated(ran)
        report.verdict(f"negative-{name}", seen.found_fault, f"a validator must find it: {seen.note}")
    turns = [
        Turn(name=name, binary=binary, options=(*SHORT, *ON), steps=4, dumps=True)
        for name, binary in (("kv-good", "patched-dump"), ("broken-kv", "broken-kv"))
    ]
    runs = together(turns, bench, at_once=2)
    found = compare(bench, runs["kv-good"], runs["broken-kv"])
    note = f"NMSE must exceed {LIMIT}: {found.worst}"
    if found.problem is not None:
        note += f"; {found.problem}"
    seen_in_logits = runs["broken-kv"].exit_code == 0 and found.worst is not None and found.worst > LIMIT
    report.verdict("negative-broken-kv", seen_in_logits, note)
