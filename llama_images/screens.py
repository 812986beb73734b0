"""What ``fit`` and ``doctor`` show: lines of styled words that fit into 80 columns, and JSON. Pure.

What a style looks like on a terminal, and that it is nothing elsewhere, is the adapter's matter.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from llama_images.diagnosis import Diagnosis, State
from llama_images.fit import Fit
from llama_images.gguf_file import ModelFile
from llama_images.model_memory import CardNeed
from llama_images.ports import Session
from llama_images.words import counted

WIDTH: Final = 80

Style: TypeAlias = Literal["plain", "title", "dim", "good", "warn", "bad", "command"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A piece of a line."""

    text: str
    style: Style = "plain"


Line: TypeAlias = tuple[Span, ...]
Screen: TypeAlias = tuple[Line, ...]

_GIB: Final = 1 << 30
_BLANK: Line = ()


def words(text: str, style: Style = "plain") -> Line:
    """A line of one style."""
    return (Span(text=text, style=style),)


def wrapped(text: str, style: Style = "plain", *, indent: int = 0) -> Screen:
    """A paragraph in as many lines as it takes."""
    space = " " * indent
    return tuple(
        words(line, style)
        for line in textwrap.wrap(
            text,
            WIDTH,
            initial_indent=space,
            subsequent_indent=space,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def command_lines(argv: Sequence[str], *, indent: int = 2) -> Screen:
    """A command as a shell takes it, cut between options and continued with a backslash."""
    space, more = " " * indent, " " * (indent + 4)
    lines, line = [], space
    for group in _with_their_values(argv):
        piece = " ".join(shlex.quote(word) for word in group)
        if line.strip() and len(line) + 1 + len(piece) > WIDTH - 2:
            lines.append(f"{line} \\")
            line = more + piece
        else:
            line += piece if not line.strip() else f" {piece}"
    return tuple(words(one, "command") for one in [*lines, line])


def _with_their_values(argv: Sequence[str]) -> Iterable[list[str]]:
    group: list[str] = []
    for word in argv:
        if group and (word.startswith("-") or not group[0].startswith("-") or len(group) == 2):
            yield group
            group = []
        group.append(word)
    yield group


# fit

_COLUMNS: Final[Mapping[str, int]] = {
    "blocks": 6, "weights": 7, "self-c": 6, "compute": 7, "prompt": 6, "CUDA": 5,
    "need": 6, "free": 6, "left": 6,
}  # fmt: skip
"""Their widths; a space stands before each."""
_NAME_WIDTH: Final = WIDTH - sum(width + 1 for width in _COLUMNS.values())


def fit_screen(model: ModelFile, fit: Fit, *commands: Sequence[str]) -> Screen:
    """What a choice takes of every card, and the commands that run it, bare and in a container."""
    setting = fit.setting
    lines: list[Line] = [
        (Span(text=model.path.name, style="title"),),
        words(
            f"{model.bytes / 1e9:.1f} GB; -n {setting.tokens}, prompts of up to "
            f"{setting.prompt_tokens} tokens; micro-batch {fit.micro_batch}",
            "dim",
        ),
        _BLANK,
    ]
    head = "".join(f" {name:>{width}}" for name, width in _COLUMNS.items())
    lines.append(words("GiB".ljust(_NAME_WIDTH) + head, "dim"))
    for card, (gpu, need, left) in enumerate(zip(fit.cards, fit.needs, fit.left, strict=True)):
        lines.append(_card_line(f"{card} {gpu.name}", gpu.free_bytes, need, left, fit.margin_bytes))
    lines.append(_BLANK)
    lines += wrapped(_remark(fit), "good" if fit.fits else "bad")
    for command in commands if fit.fits else ():
        lines += [_BLANK, *command_lines(command)]
    return tuple(lines)


def _card_line(name: str, free: int, need: CardNeed, left: int, margin: int) -> Line:
    blocks = f"{need.blocks}+out" if need.has_output else str(need.blocks)
    sizes = (need.weights, need.self_conditioning, need.compute, need.prompt_kv, need.cuda, need.total, free)
    cells = [blocks, *(f"{size / _GIB:.2f}" if size else "-" for size in sizes), f"{left / _GIB:.2f}"]
    aligned = [f" {cell:>{width}}" for cell, width in zip(cells, _COLUMNS.values(), strict=True)]
    text = shortened(name, _NAME_WIDTH).ljust(_NAME_WIDTH) + "".join(aligned[:-1])
    style: Style = "good" if left >= margin else "warn" if left >= 0 else "bad"
    return (Span(text=text), Span(text=aligned[-1], style=style))


def _remark(fit: Fit) -> str:
    number = fit.busiest
    margin = f"{fit.margin_bytes >> 20} MiB"
    card = "The card" if len(fit.cards) == 1 else f"Card {number}, the fullest,"
    if not fit.fits:
        return (
            f"This does not fit: {card[0].lower() + card[1:]} lacks "
            f"{(fit.margin_bytes - fit.left[number]) / _GIB:.2f} GiB, the margin of {margin} included."
        )
    text = f"{card} keeps {fit.left[number] / _GIB:.2f} GiB, of which {margin} are the margin."
    if fit.setting.cpu_moe:
        text += (
            f" The experts of {counted(fit.setting.cpu_moe, 'block')} stay in the machine's memory "
            f"({fit.host_bytes / _GIB:.1f} GiB there), which makes every step slower."
        )
    return text


def shortened(name: str, width: int) -> str:
    """A GPU's name in so many columns: without what all of NVIDIA's have."""
    for word in ("NVIDIA ", "GeForce ", "Generation "):
        name = name.replace(word, "")
    return name if len(name) <= width else name[: width - 1].rstrip() + "…"


def fit_json(model: ModelFile, fit: Fit, *commands: Sequence[str]) -> dict[str, Any]:
    """A choice as a JSON object; sizes in bytes."""
    return {
        "model": str(model.path),
        "bytes": model.bytes,
        "fits": fit.fits,
        "tokens": fit.setting.tokens,
        "prompt_tokens": fit.setting.prompt_tokens,
        "micro_batch": fit.micro_batch,
        "tensor_split": list(fit.shares),
        "n_cpu_moe": fit.setting.cpu_moe,
        "host_bytes": fit.host_bytes,
        "margin_bytes": fit.margin_bytes,
        "busiest": fit.busiest,
        "cards": [
            {
                "name": card.name,
                "free": card.free_bytes,
                "blocks": need.blocks,
                "output": need.has_output,
                "weights": need.weights,
                "self_conditioning": need.self_conditioning,
                "compute": need.compute,
                "prompt_kv": need.prompt_kv,
                "cuda": need.cuda,
                "total": need.total,
                "left": left,
            }
            for card, need, left in zip(fit.cards, fit.needs, fit.left, strict=True)
        ],
        "commands": [list(command) for command in commands],
    }


# run


def run_summary(session: Session, fit: Fit | None) -> str:
    """One line, before a run: where it runs, and how. What is on, the program says itself."""
    if fit is None:
        return f"{session.image} on the processor"
    used = [card for card, need in zip(fit.cards, fit.needs, strict=True) if need.total]
    names = ", ".join(f"{card.index} {shortened(card.name, WIDTH)}" for card in used)
    text = f"{session.image} on {names}; -n {fit.setting.tokens}"
    if fit.shares:
        text += f", -ts {','.join(f'{share:g}' for share in fit.shares)}"
    if fit.setting.cpu_moe:
        text += f", the experts of {counted(fit.setting.cpu_moe, 'block')} in the machine's memory"
    return text


# doctor

_TOPIC_WIDTH: Final = 10
_MARKS: Final[Mapping[State, tuple[str, Style]]] = {
    "good": ("ok  ", "good"),
    "note": ("note", "dim"),
    "warn": ("warn", "warn"),
    "bad": ("BAD ", "bad"),
}


def doctor_screen(diagnosis: Diagnosis) -> Screen:
    """Every finding with what mends it, then the image and how it is run."""
    lines: list[Line] = []
    for finding in diagnosis.findings:
        mark, style = _MARKS[finding.state]
        indent = len(mark) + 2 + _TOPIC_WIDTH + 1
        first, *rest = wrapped(finding.text, indent=indent) or (words(""),)
        lines.append(
            (
                Span(text=mark, style=style),
                Span(text=f"  {finding.topic:<{_TOPIC_WIDTH}} "),
                Span(text=first[0].text[indent:], style="plain" if finding.state != "bad" else "bad"),
            )
        )
        lines += rest
        for command in finding.mend:
            lines += (
                wrapped(command, "dim", indent=indent)
                if command.startswith("#")
                else (words(" " * indent + command, "command"),)
            )
    summary = f"{counted(diagnosis.bad, 'thing')} to mend." if diagnosis.bad else "Nothing to mend."
    return (
        *lines,
        _BLANK,
        (
            Span(text="Image for this machine: "),
            Span(text=diagnosis.image, style="title"),
            Span(text=f"   {summary}", style="bad" if diagnosis.bad else "good"),
        ),
        _BLANK,
        *command_lines(diagnosis.run),
    )


def doctor_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis as a JSON object."""
    return {
        "image": diagnosis.image,
        "run": list(diagnosis.run),
        "bad": diagnosis.bad,
        "findings": [
            {
                "topic": finding.topic,
                "state": finding.state,
                "text": finding.text,
                "mend": list(finding.mend),
            }
            for finding in diagnosis.findings
        ],
    }
