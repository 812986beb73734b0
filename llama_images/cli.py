"""``llama-images``: the user's commands, for those who have the package and no clone of the repository.

``tasks.py`` has the same commands, and all others; both print, exit and make adapters, and nothing else does.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import getpass
import io
import os
import platform as machine
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from json import dumps
from pathlib import Path
from typing import Any, Final

import platformdirs

from llama_images.adapters.engines import choose_engine
from llama_images.adapters.gpus import NvidiaGpus
from llama_images.adapters.hub import HuggingFaceHub
from llama_images.adapters.machine import cdi_files, nvidia_devices
from llama_images.adapters.network import Web
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.reporter import ConsoleReporter
from llama_images.adapters.screen import show
from llama_images.diagnosis import Diagnosis, Machine, image_for
from llama_images.errors import CheckFailed, Interrupted, LlamaImagesError, OutsideError, UsageError
from llama_images.fit import Fit, Wanted, choose_fit
from llama_images.gguf_file import ModelFile
from llama_images.matrix import Matrix, load_matrix
from llama_images.model_memory import PROMPT_ROOM, shape_of
from llama_images.platforms import platform_of
from llama_images.redaction import Self
from llama_images.report import image_rows, report_text
from llama_images.screens import Screen, doctor_json, doctor_screen, fit_json, fit_screen, run_summary
from llama_images.selection import build_command, local_reference
from llama_images.words import counted, printable
from llama_images.workflows.doctor import examine
from llama_images.workflows.files import replace_file
from llama_images.workflows.fit import cards_of, command_of, container_command_of, read_model
from llama_images.workflows.run import (
    LONGEST,
    ON_A_PROCESSOR,
    Talk,
    fit_for,
    hold_session,
    local_model,
    session_of,
    target_of,
)

CACHE_VARIABLE: Final = "LLAMA_IMAGES_CACHE"


def cache_folder() -> Path:
    """The user's cache of this project; safe to delete."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("llama-images"))
    return folder.expanduser().absolute()


def own_matrix() -> Matrix:
    """The matrix that came with the package: in its folder where it was installed, beside it in a clone."""
    package = Path(__file__).resolve().parent
    inside = package / "matrix.yaml"
    return load_matrix(inside if inside.exists() else package.parent / "matrix.yaml")


def guarded(body: Callable[..., None]) -> Callable[..., None]:
    """Known errors become a line, a hint and an exit code; a defect becomes a line and a file."""

    @functools.wraps(body)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # In a log that takes both streams, a table stands before the error that points to it.
            sys.stdout.reconfigure(line_buffering=True)
        try:
            body(*args, **kwargs)
            sys.stdout.flush()
        except LlamaImagesError as error:
            # Messages quote outside systems: a registry's words, names and annotations in it.
            print(f"error: {printable(error.message)}", file=sys.stderr)
            if error.hint:
                print(f"hint: {printable(error.hint)}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt as stop:
            left = "what was finished stays, run the same command to go on"
            print(f"interrupted; {stop.message if isinstance(stop, Interrupted) else left}", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:
            # The reader of our output has gone (`invoke matrix | head`): nothing is left to say, and what the
            # command would have found is not known. The code is the one of a program that SIGPIPE ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except OSError as error:
            # A write that fails does not say to which file.
            where = error.filename or f"standard output, or {cache_folder()}"
            print(f"error: {where}: {error.strerror or error}", file=sys.stderr)
            print(
                f"hint: is there room, and is it yours? {CACHE_VARIABLE} names another cache", file=sys.stderr
            )
            raise SystemExit(3) from None
        except Exception as error:
            report = cache_folder() / "logs" / "defect.txt"
            with contextlib.suppress(OSError):
                report.parent.mkdir(parents=True, exist_ok=True)
                report.write_text(traceback.format_exc(), "utf-8")
            print(f"error: a defect in this project: {error!r}", file=sys.stderr)
            print(f"hint: please report it, with {report}", file=sys.stderr)
            raise SystemExit(1) from None

    return wrapped


@dataclass(frozen=True, kw_only=True, slots=True)
class FitWords:
    """What the command line of ``fit`` says, as it says it."""

    model: str = ""
    gpu: Sequence[str] = ()
    memory: Sequence[str] = ()
    tokens: str = ""
    prompt: str = ""
    tensor_split: str = ""
    json: bool = False


FIT_HELP: Final[Mapping[str, str]] = {
    "model": "a GGUF file, hf:OWNER/NAME/FILE.gguf, or a model of the matrix; only its header is read",
    "gpu": "index of a GPU, in PCI bus order; repeatable; all by default",
    "memory": "free memory of a card that is not here, such as 16GiB; repeatable",
    "tokens": "-n of the program; as many as fit by default",
    "prompt": f"tokens of the longest prompt, {PROMPT_ROOM} by default",
    "tensor_split": "-ts of the program, such as 7,3; the best by default",
    "json": "print JSON on standard output and nothing else there",
}


def _fitted(said: FitWords) -> tuple[ModelFile, Fit, list[tuple[str, ...]]]:
    """The model, the choice, and the commands that run it."""
    wanted = Wanted(
        prompt_tokens=_number(said.prompt, "--prompt") or PROMPT_ROOM,
        tokens=_number(said.tokens, "--tokens"),
        shares=_shares(said.tensor_split),
    )
    gpus, matrix = NvidiaGpus(), own_matrix()
    cards = cards_of(gpus, said.gpu, said.memory)
    model = read_model(said.model, matrix, HuggingFaceHub(), ConsoleReporter())
    fit = choose_fit(shape_of(model), cards, wanted)
    commands = [command_of(fit, str(model.path))]
    if not said.memory:
        here = Machine(platform=platform_of(machine.machine()), survey=gpus.survey())
        commands.append(container_command_of(fit, model.path, local_reference(image_for(here, matrix))))
    return model, fit, commands


def fit_model(said: FitWords) -> None:
    """Choose how a model runs on the cards, and show it. Raises CheckFailed where it does not fit."""
    model, fit, commands = _fitted(said)
    if said.json:
        print(dumps(fit_json(model, fit, *commands), indent=2))
    else:
        show(fit_screen(model, fit, *commands))
    if not fit.fits:
        raise CheckFailed(
            f"{model.path.name} does not fit on {_these(len(fit.cards))}",
            hint="a shorter prompt (--prompt), fewer tokens (--tokens), or a smaller quantisation needs less",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunWords:
    """What the command line of ``run`` says, as it says it."""

    model: str = ""
    prompt: str = ""
    arch: str = ""
    image: str = ""
    engine: str = ""
    gpu: Sequence[str] = ()
    tokens: str = ""
    tensor_split: str = ""
    options: str = ""
    visual: bool = True
    dry_run: bool = False


RUN_HELP: Final[Mapping[str, str]] = {
    "model": "a GGUF file, or a model of the matrix that model.fetch has brought",
    "prompt": "one answer to this, and the end; a chat by default",
    "arch": "as for build; the image for this machine's GPUs by default, the CPU's without any",
    "image": "another image than the local one of that architecture, such as one of a registry",
    "engine": "docker or podman; the first that answers by default",
    "gpu": FIT_HELP["gpu"],
    "tokens": f"-n of the program; {LONGEST} by default, or as many as fit; {ON_A_PROCESSOR} without a GPU",
    "tensor_split": FIT_HELP["tensor_split"],
    "options": "further options of the program, in quotes, such as '--seed 7'",
    "visual": "show the text while it takes shape, on a terminal (on by default)",
    "dry_run": "print the command and run nothing",
}


def run_model(said: RunWords) -> None:
    """Run a model in the right image with the right options. Raises SystemExit with 130 after Ctrl-C."""
    matrix, reporter, programs = own_matrix(), ConsoleReporter(), SystemPrograms()
    tokens = _number(said.tokens, "--tokens")
    shares = _shares(said.tensor_split)
    path = local_model(said.model, matrix, cache_folder() / "models")
    model = read_model(str(path), matrix, HuggingFaceHub(), reporter)
    gpus = NvidiaGpus()
    survey = gpus.survey()
    target = target_of(matrix, survey, platform_of(machine.machine()), said.arch)
    fit = None
    if survey.gpus and target.toolkit is not None:
        wanted = Wanted(tokens=tokens, shares=shares)
        fit = fit_for(target, survey, shape_of(model), cards_of(gpus, said.gpu, ()), wanted)
    elif said.gpu or shares:
        raise UsageError("--gpu and --tensor-split are for GPUs, and this run has none")
    session = session_of(
        said.image or local_reference(target),
        model,
        fit,
        tokens,
        Talk(
            prompt=said.prompt,
            visual=said.visual,
            more=_words(said.options),
            input_terminal=sys.stdin.isatty(),
            output_terminal=sys.stdout.isatty() and sys.stderr.isatty(),
            user=(os.getuid(), os.getgid()),
        ),
        cache_folder() / "compiled",
    )
    engine = choose_engine(said.engine or None, programs, reporter)
    if said.dry_run:
        print(shlex.join(engine.session_command(session)))
        return
    pull = f"{engine.info().name} pull {said.image}" if said.image else build_command(target, matrix)
    code = hold_session(
        engine, session, reporter, summary=run_summary(session, fit), hint=f"{pull} brings it"
    )
    if code == _INTERRUPTED:
        if session.terminal:
            sys.stdout.write(_SHOW_CURSOR)  # the program hides it while it draws
        raise SystemExit(code)
    if code:
        raise CheckFailed(f"the program ended with exit code {code}", hint="what it said is above")


_INTERRUPTED: Final = 130
"""Exit code of a program that Ctrl-C has ended."""
_SHOW_CURSOR: Final = "\x1b[?25h\n"


DOCTOR_HELP: Final[Mapping[str, str]] = {
    "offline": "ask no address on the network",
    "json": FIT_HELP["json"],
}


def _examined(*, offline: bool) -> Diagnosis:
    programs = SystemPrograms()
    return examine(
        matrix=own_matrix(),
        surveyor=NvidiaGpus(),
        programs=programs,
        reach=Web(),
        reporter=ConsoleReporter(),
        environment=os.environ,
        platform=platform_of(machine.machine()),
        models=cache_folder() / "models",
        bus=nvidia_devices(),
        cdi=cdi_files(),
        network=not offline,
    )


def diagnose_machine(*, json: bool, offline: bool) -> None:
    """Look at this machine and say what to mend. Raises CheckFailed where something is to be mended."""
    diagnosis = _examined(offline=offline)
    if json:
        print(dumps(doctor_json(diagnosis), indent=2))
    else:
        show(doctor_screen(diagnosis))
    if diagnosis.bad:
        raise CheckFailed(
            f"{counted(diagnosis.bad, 'thing')} to mend on this machine",
            hint="the commands above mend them, from the top; then run doctor again",
        )


REPORT_HELP: Final[Mapping[str, str]] = {
    "model": "what fit is to say something of; nothing by default",
    "out": "the file to write; llama-images-report.md by default",
    "offline": DOCTOR_HELP["offline"],
}


def report_machine(*, model: str, out: str, offline: bool) -> None:
    """Write what doctor and fit say, and the versions, into one file without names; print its path."""
    matrix, reporter = own_matrix(), ConsoleReporter()
    diagnosis = _examined(offline=offline)
    rows = {
        "llama-images": _own_version(),
        "Python": machine.python_version(),
        "machine": f"{machine.system()} {machine.release()}, {machine.machine()}",
        "source": ", ".join(f"{one.ref} at {one.commit}" for one in matrix.sources.values()),
    }
    try:
        engine = choose_engine(None, SystemPrograms(), reporter)
        info = engine.info()
        rows["engine"] = f"{info.name} {info.version}, {info.builder}"
        rows |= image_rows(diagnosis.image, engine.image(diagnosis.image))
    except OutsideError as error:
        rows["engine"] = error.message
    sections: dict[str, Screen | str] = {"doctor": doctor_screen(diagnosis)}
    if model:
        try:
            read, fit, commands = _fitted(FitWords(model=model))
            sections["fit"] = fit_screen(read, fit, *commands)
        except LlamaImagesError as error:
            sections["fit"] = f"{error.message}\n{error.hint or ''}".rstrip()
    user = getpass.getuser()
    of = Self(home=str(Path.home()), user="" if user == "root" else user, host=machine.node())
    path = Path(out or "llama-images-report.md").expanduser().absolute()
    replace_file(path, report_text(rows, sections, of, matrix).encode("utf-8"))
    reporter.line("read it before you hand it on: a name that looks like a common word may have stayed")
    print(path)


def _own_version() -> str:
    try:
        return version("llama-images")
    except PackageNotFoundError:
        return "not installed"


def _these(count: int) -> str:
    return "this card" if count == 1 else f"these {count} cards"


def _number(word: str, option: str) -> int | None:
    if not word:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,6}", word):
        raise UsageError(f"{option} {word}: not a number", hint="a whole number from 1")
    return int(word)


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--options {text}: {str(error).lower()}") from None


def _shares(word: str) -> tuple[float, ...]:
    if not word:
        return ()
    parts = word.split(",")
    if not all(re.fullmatch(r"\d{1,6}(\.\d{1,6})?", part) for part in parts) or not any(map(float, parts)):
        raise UsageError(f"--tensor-split {word}: not shares", hint="a number for each card, such as 7,3")
    return tuple(map(float, parts))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of ``llama-images``."""
    parser = argparse.ArgumentParser(
        prog="llama-images",
        description="What a person with a GPU does with the images of llama-diffusion-cli.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "how a model runs best on the cards, and what it takes of each"
    fit = commands.add_parser("fit", help=text, description=text)
    fit.add_argument("model", nargs="?", default="", help=FIT_HELP["model"])
    fit.add_argument("--model", dest="named", default="", metavar="FILE", help="the same")
    for name in ("gpu", "memory"):
        fit.add_argument(f"--{name}", action="append", default=[], help=FIT_HELP[name])
    for name in ("tokens", "prompt", "tensor_split"):
        fit.add_argument(f"--{name.replace('_', '-')}", default="", metavar="N", help=FIT_HELP[name])
    fit.add_argument("--json", action="store_true", help=FIT_HELP["json"])
    fit.set_defaults(
        run=lambda said: fit_model(
            FitWords(
                model=said.named or said.model,
                gpu=said.gpu,
                memory=said.memory,
                tokens=said.tokens,
                prompt=said.prompt,
                tensor_split=said.tensor_split,
                json=said.json,
            )
        )
    )
    text = "run a model in the right image with the right options: a chat, or one answer"
    run = commands.add_parser("run", help=text, description=text)
    run.add_argument("model", nargs="?", default="", help=RUN_HELP["model"])
    run.add_argument("--model", dest="named", default="", metavar="FILE", help="the same")
    run.add_argument("-p", "--prompt", default="", metavar="TEXT", help=RUN_HELP["prompt"])
    run.add_argument("--gpu", action="append", default=[], help=RUN_HELP["gpu"])
    for name in ("arch", "image", "engine", "tokens", "tensor_split", "options"):
        run.add_argument(f"--{name.replace('_', '-')}", default="", metavar="WORD", help=RUN_HELP[name])
    run.add_argument("--no-visual", action="store_true", help="show the text when it is done only")
    run.add_argument("--dry-run", action="store_true", help=RUN_HELP["dry_run"])
    run.set_defaults(
        run=lambda said: run_model(
            RunWords(
                model=said.named or said.model,
                prompt=said.prompt,
                arch=said.arch,
                image=said.image,
                engine=said.engine,
                gpu=said.gpu,
                tokens=said.tokens,
                tensor_split=said.tensor_split,
                options=said.options,
                visual=not said.no_visual,
                dry_run=said.dry_run,
            )
        )
    )
    text = "what this machine lacks for the images, and the commands that mend it"
    doctor = commands.add_parser("doctor", help=text, description=text)
    for name in ("offline", "json"):
        doctor.add_argument(f"--{name}", action="store_true", help=DOCTOR_HELP[name])
    doctor.set_defaults(run=lambda said: diagnose_machine(json=said.json, offline=said.offline))
    text = "one file to attach to an issue: doctor, fit and versions, without names"
    report = commands.add_parser("report", help=text, description=text)
    for name in ("model", "out"):
        report.add_argument(f"--{name}", default="", metavar="FILE", help=REPORT_HELP[name])
    report.add_argument("--offline", action="store_true", help=REPORT_HELP["offline"])
    report.set_defaults(run=lambda said: report_machine(model=said.model, out=said.out, offline=said.offline))
    said = parser.parse_args(argv)
    guarded(said.run)(said)
