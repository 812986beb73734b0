"""``invoke bench``: the pin with its series against the pin alone, in turns, timed by progress lines."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_images.bench import (
    FORMAT,
    Bench,
    Build,
    Configuration,
    Hardware,
    Measurement,
    ModelFile,
    TurnRecord,
    from_json,
    long_prompt,
    order_of_round,
    to_json,
)
from llama_images.bench_chart import chart_of
from llama_images.bench_page import TEMPLATE, render_page
from llama_images.bench_times import record_of
from llama_images.errors import CheckFailed, LlamaImagesError, UsageError
from llama_images.located_yaml import did_you_mean, listed, shown
from llama_images.plan import Plan
from llama_images.ports import Artist, Engine, Gpu, Program, ProgramRun, Reporter, RunResult
from llama_images.render import series_of
from llama_images.runs import parse_run
from llama_images.selection import Target, local_reference
from llama_images.words import last_line
from llama_images.workflows.files import replace_file, sha256_of
from llama_images.workflows.workshop import Workshop

HOST: Final = "host"
"""In place of an engine's name: the programs run without a container."""

WORKLOADS: Final = ("short", "long")
SHORT_PROMPT: Final = "hello"
LONG_BLOCKS: Final = 6
LONG_PROMPT_CANVASES: Final = 7
"""With canvases of 256 tokens: a prompt of 1,780, and 1,536 tokens of reply."""

_PROMPT_ROOM: Final = 12
"""Tokens of the chat template around a prompt."""

_RUN_SECONDS: Final = 3600.0
_PROGRESS: Final = re.compile(r"\rdiffusion step: [^\r\n%]*%")
_CANVAS: Final = re.compile(rb"\(canvas_length=(\d{1,6})\)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bed:
    """A flavor's program, and what a reader is told of it."""

    build: Build
    program: Program
    launcher: tuple[str, ...]
    """What stands before the image's name in the recorded command; empty for a bare program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRequest:
    """What is measured, and where it goes."""

    places: tuple[int, ...]
    """Numbers of GPUs; 0 is the CPU."""
    workloads: tuple[str, ...]
    rounds: int
    seed: int
    max_steps: int
    note: str
    taken_at: str
    """Now, ISO 8601, UTC."""
    hardware: Hardware
    folder: Path
    """bench.json, bench.html, bench.png and logs/ go here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchFiles:
    """What was written."""

    document: Path
    page: Path
    picture: Path


def image_beds(
    shop: Workshop, engine: Engine, targets: Sequence[Target], program: Callable[[str], Program]
) -> tuple[Bed, ...]:
    """A bed for each target; ``program`` makes one from an image's name.

    Raises CheckFailed where the engine lacks an image.
    """
    beds: list[Bed] = []
    launcher = (engine.info().name, "run", "--rm", "-i", "-v", "$PWD:/models:ro")
    for target in targets:
        reference = local_reference(target)
        image = engine.image(reference)
        if image is None:
            raise CheckFailed(
                f"there is no image {reference} on this engine",
                hint="both are made by: invoke build --flavor stock --flavor patched --arch "
                + target.architecture.name,
            )
        series = series_of(target, shop.series)
        build = Build(
            flavor=target.flavor,
            program=reference,
            digest=image.id,
            series=series.digest if series is not None else None,
        )
        beds.append(Bed(build=build, program=program(reference), launcher=launcher))
    return tuple(beds)


def host_beds(
    reporter: Reporter, *, stock: str, patched: str, program: Callable[[Path], Program]
) -> tuple[Bed, ...]:
    """A bed for each binary; ``program`` makes one from its path.

    Raises UsageError where one is not named, or there is no such file.
    """
    beds: list[Bed] = []
    for option, flavor, name in (("--stock-binary", "stock", stock), ("--binary", "patched", patched)):
        if not name:
            raise UsageError(
                f"no {option} given", hint="--engine host takes --binary FILE and --stock-binary FILE"
            )
        binary = Path(name).expanduser().absolute()
        if not binary.is_file():
            raise UsageError(
                f"{option} {name}: there is no such file", hint="name llama-diffusion-cli itself"
            )
        build = Build(
            flavor=flavor,
            program=binary.name,
            digest=f"sha256:{sha256_of(binary, reporter)}",
            series=None,
        )
        beds.append(Bed(build=build, program=program(binary), launcher=()))
    return tuple(beds)


def both_flavors(plan: Plan) -> tuple[Target, Target]:
    """The plan's stock and patched target, in this order. Raises UsageError for another number of them."""
    found = {target.flavor: target for target in plan.targets}
    if len(plan.targets) != 2 or set(found) != {"stock", "patched"}:
        raise UsageError(
            "these are the targets of more than one architecture, or of one flavor alone: "
            + ", ".join(target.id for target in plan.targets),
            hint="--arch takes one architecture that has both flavors",
        )
    return found["stock"], found["patched"]


def places_of(given: Sequence[str], *, present: int, targets: Sequence[Target]) -> tuple[int, ...]:
    """Numbers of GPUs that are measured, 0 for the CPU.

    ``present`` GPUs are in this machine. An image without a toolkit runs on the CPU alone, one with on GPUs
    alone; a bare program may do both. Raises UsageError for what can't be.
    """
    on_cpu = any(target.toolkit is None for target in targets)
    on_gpu = any(target.toolkit is not None for target in targets)
    if not given:
        counts = [0] if on_cpu or (present == 0 and not on_gpu) else [one for one in (1, 2) if one <= present]
        if not counts:
            raise UsageError("there is no NVIDIA GPU here", hint="--arch cpu measures the CPU's images")
        return tuple(counts)
    for word in given:
        if not re.fullmatch("[0-9]{1,2}", word):
            raise UsageError(f"--gpus {shown(word)}: it is a number", hint="1, 2, … or 0 for the CPU")
        count = int(word)
        if count > present:
            raise UsageError(f"--gpus {count}: there are {present} NVIDIA GPUs here", hint="give fewer")
        if (count == 0 and on_gpu) or (count > 0 and on_cpu):
            raise UsageError(
                f"--gpus {count}: the images of {targets[0].architecture.name} are for "
                + ("GPUs" if on_gpu else "a CPU"),
                hint="--arch cpu measures the CPU's images",
            )
    return tuple(dict.fromkeys(int(word) for word in given))


def workloads_of(given: Sequence[str]) -> tuple[str, ...]:
    """The workloads by name, all of them where none is given. Raises UsageError for an unknown one."""
    for word in given:
        if word not in WORKLOADS:
            raise UsageError(
                f"--workload {shown(word)}: there is no such workload{did_you_mean(word, WORKLOADS)}",
                hint=f"it is {listed(WORKLOADS, 'or')}",
            )
    return tuple(dict.fromkeys(given)) or WORKLOADS


def described(gpu: Gpu) -> str:
    """Name, memory and compute capability in one line."""
    memory = f"{gpu.memory_bytes >> 20:,} MiB" if gpu.memory_bytes is not None else "memory shared"
    return f"{gpu.name}, {memory}, compute capability {gpu.compute_capability}"


def read_document(path: Path) -> Bench:
    """A bench from its JSON document. Raises UsageError."""
    try:
        return from_json(path.read_bytes(), name=str(path))
    except OSError as error:
        raise UsageError(
            f"{path}: can't be read: {error.strerror or error}", hint="it is the bench.json of an earlier run"
        ) from None


def measure(
    beds: Sequence[Bed],
    model: Path,
    request: BenchRequest,
    reporter: Reporter,
) -> Bench:
    """Run every configuration with every bed, round by round, and return it all.

    The document is written after every round, so that an interrupted bench keeps what it has. Raises
    CheckFailed, naming the log, where a run fails or can't be timed.
    """
    if request.rounds < 1 or request.max_steps < 2:
        raise UsageError(
            f"--rounds {request.rounds} --steps {request.max_steps}: one round at least, and two steps",
            hint="a step's time is that between two of them",
        )
    if not model.is_file():
        raise UsageError(f"{model}: there is no such model", hint="invoke model.synthetic makes one")
    canvas = {bed.build.flavor: _warm_up(bed, request, model, reporter) for bed in beds}
    if len(set(canvas.values())) != 1:
        raise CheckFailed(f"the builds do not agree on the model's canvas: {canvas}")
    configurations = configurations_of(request, next(iter(canvas.values())))
    bench = Bench(
        format=FORMAT,
        taken_at=request.taken_at,
        note=request.note,
        hardware=request.hardware,
        model=ModelFile(file=model.name, size_bytes=model.stat().st_size, sha256=sha256_of(model, reporter)),
        builds=tuple(bed.build for bed in beds),
        configurations=configurations,
        measurements=(),
    )
    by_flavor = {bed.build.flavor: bed for bed in beds}
    logs = request.folder / "logs"
    measurements: list[Measurement] = []
    for number in range(1, request.rounds + 1):
        for configuration in configurations:
            for flavor in order_of_round(bench.flavors, number):
                bed = by_flavor[flavor]
                run = conversation(bed.program.place(model), configuration, request, model)
                label = f"round {number} of {request.rounds}: {configuration.title}, {flavor}"
                with reporter.activity(label):
                    output = bed.program.run(run)
                path = _keep(logs / f"{configuration.id}-{flavor}-{number}.log", output)
                if output.exit_code != 0:
                    raise _failed(label, output, path)
                measurements.append(
                    Measurement(
                        configuration=configuration.id,
                        flavor=flavor,
                        round=number,
                        command=command_of(bed, run),
                        times=_times(label, output, path),
                    )
                )
        bench = dataclasses.replace(bench, measurements=tuple(measurements))
        replace_file(request.folder / "bench.json", to_json(bench).encode("utf-8"))
    return bench


def configurations_of(request: BenchRequest, canvas: int) -> tuple[Configuration, ...]:
    """Every place with every workload, in the model's own measure: canvases."""
    return tuple(
        Configuration(
            gpus=gpus,
            workload=workload,
            prompt_tokens=(
                len(SHORT_PROMPT) if workload == "short" else LONG_PROMPT_CANVASES * canvas - _PROMPT_ROOM
            ),
            blocks=1 if workload == "short" else LONG_BLOCKS,
            canvas=canvas,
        )
        for gpus in request.places
        for workload in request.workloads
    )


def conversation(place: str, configuration: Configuration, request: BenchRequest, model: Path) -> ProgramRun:
    """A run: the same prompt in two turns, of which the first warms up. ``place`` is the model's for the CLI.

    A conversation also for another reason: at the pin, the end of a single prompt's output can be lost.
    """
    prompt = SHORT_PROMPT if configuration.workload == "short" else long_prompt(configuration.prompt_tokens)
    return ProgramRun(
        arguments=(
            *("-m", place, "-cnv", "-p", prompt, "-n", str(configuration.blocks * configuration.canvas)),
            *("--seed", str(request.seed), "--diffusion-eb-max-steps", str(request.max_steps)),
            *(("-ngl", "99") if configuration.gpus else ()),
        ),
        environment=_visible(configuration.gpus),
        files=(model,),
        stdin=f"/clear\n{prompt}\n/exit\n".encode(),
        gpus=configuration.gpus > 0,
        timeout=_RUN_SECONDS,
    )


def command_of(bed: Bed, run: ProgramRun) -> tuple[str, ...]:
    """What a reader types for such a run. Files by their names alone: their folders are nobody's business."""
    folders = {bed.program.place(file): file.name for file in run.files} if not bed.launcher else {}
    arguments = [folders.get(word, word) for word in run.arguments]
    variables = [f"{key}={value}" for key, value in run.environment.items()]
    if not bed.launcher:
        return (*variables, bed.build.program, *arguments)
    options = [word for variable in variables for word in ("-e", variable)]
    options += ["--gpus", "all"] if run.gpus else []
    return (*bed.launcher, *options, bed.build.program, *arguments)


def _visible(gpus: int) -> dict[str, str]:
    """The first so many GPUs, in the order of nvidia-smi's numbers."""
    if gpus == 0:
        return {}
    numbers = ",".join(str(number) for number in range(gpus))
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": numbers}


def write_results(bench: Bench, folder: Path, *, artist: Artist, template: str) -> BenchFiles:
    """Write the document, the page and the picture."""
    drawing = artist.draw(chart_of(bench))
    files = BenchFiles(
        document=folder / "bench.json", page=folder / "bench.html", picture=folder / "bench.png"
    )
    replace_file(files.document, to_json(bench).encode("utf-8"))
    replace_file(files.page, render_page(bench, drawing.svg, template).encode("utf-8"))
    replace_file(files.picture, drawing.png)
    return files


def page_template(root: Path) -> str:
    """The page's template, from the repository."""
    return (root / "templates" / TEMPLATE).read_text("utf-8")


def _keep(path: Path, output: RunResult) -> Path:
    """A run's output, for those who want to see what a figure came from."""
    replace_file(path, output.stderr + b"\n--- standard output ---\n" + output.stdout)
    return path


def _times(label: str, output: RunResult, log: Path) -> TurnRecord:
    try:
        return record_of(parse_run(output.stderr, output.stdout))
    except LlamaImagesError as error:
        raise CheckFailed(f"{label}: {error.message}", hint=f"the whole output: {log}") from error


def _warm_up(bed: Bed, request: BenchRequest, model: Path, reporter: Reporter) -> int:
    """Load the model once, which brings it into the page cache, and learn its canvas: tokens of a block."""
    gpus = max(request.places)
    flavor = bed.build.flavor
    run = ProgramRun(
        arguments=(
            *("-m", bed.program.place(model), "-cnv", "-p", SHORT_PROMPT, "-n", "1"),
            *("--diffusion-eb-max-steps", "1"),
            *(("-ngl", "99") if gpus else ()),
        ),
        environment=_visible(gpus),
        files=(model,),
        stdin=b"/exit\n",
        gpus=gpus > 0,
        timeout=_RUN_SECONDS,
    )
    with reporter.activity(f"warm up {flavor}"):
        output = bed.program.run(run)
    path = _keep(request.folder / "logs" / f"warm-up-{flavor}.log", output)
    found = _CANVAS.search(output.stderr + output.stdout)
    if output.exit_code != 0 or found is None:
        raise _failed(f"warm up {flavor}", output, path)
    return int(found[1])


def _failed(what: str, output: RunResult, log: Path) -> CheckFailed:
    # A step's progress ends without a newline: what is printed next stands on the same line.
    text = _PROGRESS.sub("\n", output.stderr.decode("utf-8", "replace"))
    said = last_line(text, otherwise="it printed nothing")
    return CheckFailed(f"{what}: exit code {output.exit_code}: {said[:200]}", hint=f"the whole output: {log}")
