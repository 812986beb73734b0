"""``invoke run``: the right image with the right options, in a container that a person talks to."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_images.capabilities import runs_on
from llama_images.diagnosis import Machine, capabilities, image_for
from llama_images.errors import CheckFailed, UsageError
from llama_images.fit import Card, Fit, Wanted, choose_fit
from llama_images.gguf_file import ModelFile, further_parts
from llama_images.matrix import Matrix
from llama_images.model_memory import ModelShape
from llama_images.models import choose_model
from llama_images.ports import GpuSurvey, Reporter, Session, SessionEngine
from llama_images.selection import Target, local_reference, select
from llama_images.words import counted
from llama_images.workflows.fit import variables_of

MODELS: Final = "/models"
"""Where a container finds the model."""
COMPILED: Final = "/cache"
"""Where a container finds the code that a driver has compiled for its GPUs."""
COMPILED_BYTES: Final = 4 << 30
"""What CUDA may keep there."""
LONGEST: Final = 2048
"""``-n`` where nobody says how many and more would fit: every reply reserves for so many."""
ON_A_PROCESSOR: Final = 256
"""``-n`` there, where nobody says how many."""

_IMAGE_USER: Final = 10001


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """What a person wants of a run, and where it happens."""

    prompt: str = ""
    """One answer, and the end; empty for a chat."""
    visual: bool = True
    """Show the text while it takes shape, where there is a terminal to show it on."""
    more: tuple[str, ...] = ()
    """Further options of the program; the last word is theirs."""
    input_terminal: bool = False
    """Whether this process's input is a terminal."""
    output_terminal: bool = False
    """Whether both of its outputs are."""
    user: tuple[int, int] = (_IMAGE_USER, _IMAGE_USER)
    """The person's user and group, whose files a container reads and writes."""


def target_of(matrix: Matrix, survey: GpuSurvey, platform: str, arch: str) -> Target:
    """The image to run: the one that ``arch`` names, else the one for this machine's GPUs or its processor.

    Raises UsageError for a word that names none, or several.
    """
    machine = Machine(platform=platform, survey=survey)
    if not arch:
        return image_for(machine, matrix)
    found = select(matrix, [arch], native=lambda: capabilities(machine)).targets
    if len(found) != 1:
        raise UsageError(f"--arch {arch} names {counted(len(found), 'image')}", hint="name one of them")
    return found[0]


def local_model(word: str, matrix: Matrix, models: Path) -> Path:
    """The file that ``word`` names: a path, or a model of the matrix, as ``model.fetch`` leaves it.

    Raises UsageError where it names none; whether a path is there is the reader's matter.
    """
    if not word:
        raise UsageError(
            "no --model given", hint="a GGUF file, or one of the matrix: " + ", ".join(matrix.models)
        )
    path = Path(word).expanduser()
    if word not in matrix.models or path.exists():
        return path.absolute()
    fetched = models / choose_model(matrix, model=word).name
    if not fetched.exists():
        raise UsageError(f"the model {word} is not here yet", hint=f"invoke model.fetch --model {word}")
    return fetched


def fit_for(
    target: Target, survey: GpuSurvey, shape: ModelShape, cards: Sequence[Card], wanted: Wanted
) -> Fit:
    """How the model runs on these cards: ``LONGEST`` where more fits and nobody asked for it.

    Raises CheckFailed where it does not fit, or where the image has no code for a card.
    """
    code = target.architecture
    for state in survey.gpus:
        gpu = state.gpu
        if any(card.index == gpu.index for card in cards) and not runs_on(
            gpu.compute_capability, sass=code.sass, ptx=code.ptx
        ):
            raise CheckFailed(
                f"{local_reference(target)} has no code for {gpu.name} ({gpu.compute_capability})",
                hint="leave --arch out, or name other cards with --gpu",
            )
    fit = choose_fit(shape, cards, wanted)
    if wanted.tokens is None and fit.setting.tokens > LONGEST:
        fit = choose_fit(shape, cards, dataclasses.replace(wanted, tokens=LONGEST))
    if not fit.fits:
        raise CheckFailed(
            f"the model does not fit on {counted(len(cards), 'card')}",
            hint="invoke fit says by how much; fewer --tokens, or a smaller quantisation, needs less",
        )
    return fit


def session_of(
    image: str, model: ModelFile, fit: Fit | None, tokens: int | None, talk: Talk, compiled: Path
) -> Session:
    """The container for a choice; ``fit`` is None on a machine without GPUs, where ``tokens`` is ``-n``.

    ``compiled`` is the folder on this machine that keeps compiled code from one run to the next.
    """
    files = (model.path, *further_parts(model))
    options = ("-n", str(tokens or ON_A_PROCESSOR)) if fit is None else fit.options()
    visual = talk.visual and talk.output_terminal
    # A person's own user reads the person's files; root's would need capabilities for that.
    user = talk.user if talk.user[0] else (_IMAGE_USER, _IMAGE_USER)
    environment = {} if fit is None else dict(variables_of(fit))
    if fit is not None:
        environment |= {"CUDA_CACHE_PATH": COMPILED, "CUDA_CACHE_MAXSIZE": str(COMPILED_BYTES)}
    return Session(
        image=image,
        arguments=(
            *("-m", f"{MODELS}/{model.path.name}", *options),
            *(("-p", talk.prompt) if talk.prompt else ("-cnv",)),
            *(("--diffusion-visual",) if visual else ()),
            *talk.more,
        ),
        environment=environment,
        mounts={file: f"{MODELS}/{file.name}" for file in files},
        writable={} if fit is None else {compiled: COMPILED},
        gpus=fit is not None,
        interactive=not talk.prompt,
        # A container's terminal mixes both outputs, so a lone answer gets one for the picture only.
        terminal=visual if talk.prompt else talk.input_terminal and talk.output_terminal,
        user=f"{user[0]}:{user[1]}",
    )


def hold_session(
    engine: SessionEngine, session: Session, reporter: Reporter, *, summary: str, hint: str
) -> int:
    """Say what starts, run it, and return the program's exit code.

    ``hint`` says what brings the image, where it is missing.

    Raises CheckFailed where the engine has no such image, OutsideError where the container does not start.
    """
    if engine.image(session.image) is None:
        raise CheckFailed(f"there is no image {session.image} on this engine", hint=hint)
    uid, _, gid = (session.user or "").partition(":")
    for folder in session.writable:
        folder.mkdir(parents=True, exist_ok=True)
        if uid and folder.stat().st_uid != int(uid) and os.geteuid() == 0:
            os.chown(folder, int(uid), int(gid))
    reporter.line(summary)
    return engine.hold(session)
