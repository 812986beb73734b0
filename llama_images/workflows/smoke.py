"""Tests of a built image that need no GPU."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from llama_images import runs, validators
from llama_images.imageroot import RootExpectation, check_root
from llama_images.ports import Engine, ImageInfo, RunRequest, RunResult
from llama_images.render import LABEL_PREFIX, build_commit, labels, series_of
from llama_images.selection import Target, build_command, local_reference
from llama_images.workflows.workshop import Workshop, built_image

_SOURCE_LABELS = {
    "org.opencontainers.image.revision": "commit",
    f"{LABEL_PREFIX}.series-digest": "the series",
}
"""Labels that say what a program was built from, and how each is called."""

TINY_STEPS = 12
"""Denoising steps that a smoke test's generation may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SmokeResult:
    """Everything that was looked at in one image."""

    target: Target
    reference: str
    checks: tuple[Check, ...]
    run: runs.Run | None
    """The generation with the tiny model, as parsed; None where it could not be."""
    seconds: float
    """Time of that generation, container start included."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def smoke(shop: Workshop, engine: Engine, target: Target, model: Path) -> SmokeResult:
    """Look into the target's image and run it, hardened, with the tiny model.

    Raises UsageError where there is no such image; what else is wrong is in the result.
    """
    reference = local_reference(target)
    image = built_image(shop, engine, target)
    if (other := _built_from_other(shop, target, image)) is not None:
        shop.reporter.warn(f"{reference}: {other}; {build_command(target, shop.matrix)} makes it anew")
    checks: list[Check] = []
    with shop.reporter.activity(f"smoke {target.id}") as activity:
        activity.update("labels")
        checks += _check_configuration(shop, target, image)
        activity.update("file system")
        checks += _check_root(engine, target, image, reference)
        activity.update("--version, --help")
        checks += _check_start(shop, engine, target, reference)
        activity.update("a generation with the tiny model")
        result = engine.run(generation_request(target, model))
        run, more = _judge(result)
        checks += more
    return SmokeResult(
        target=target, reference=reference, checks=tuple(checks), run=run, seconds=result.seconds
    )


def _built_from_other(shop: Workshop, target: Target, image: ImageInfo) -> str | None:
    """Which other pin or series an image says that it was built from; ``None`` where it is today's."""
    wanted = labels(target, series_of(target, shop.series))
    for key, what in _SOURCE_LABELS.items():
        has, now = (
            value.removeprefix("sha256:")[:12] for value in (image.labels.get(key, ""), wanted.get(key, ""))
        )
        if has and has != now:
            return f"was built from {what} {has}, and {now or 'none'} is what there is now"
    return None


def generation_request(target: Target, model: Path) -> RunRequest:
    """A short generation with self-conditioning checked, in the strictest container that is offered."""
    # Without the series, a single prompt can lose the end of its output when the program leaves. In
    # conversation mode the log is written out before each prompt; an empty standard input ends it there.
    mode = ("-cnv",) if target.flavor == "stock" else ()
    return RunRequest(
        image=local_reference(target),
        arguments=(
            *("-m", f"/models/{model.name}", "-p", "hello", "-n", "64", "--seed", "1", *mode),
            *("--diffusion-eb-max-steps", str(TINY_STEPS), "--diffusion-gpu-sampling", "on"),
        ),
        stdin=b"",
        environment={"DG_SC_CHECK": "1"},
        mounts={model: f"/models/{model.name}"},
        user="10001",
    )


def _check_configuration(shop: Workshop, target: Target, image: ImageInfo) -> list[Check]:
    wanted = labels(target, series_of(target, shop.series))
    wrong = [
        f"{key} is {image.labels.get(key)!r}, should be {value!r}"
        for key, value in wanted.items()
        if image.labels.get(key) != value
    ]
    return [
        Check(
            name="labels", passed=not wrong, detail="; ".join(wrong) or f"{len(wanted)} as the matrix says"
        ),
        Check(
            name="user it runs as",
            passed=image.user == "10001:10001",
            detail=f"runs as {image.user or 'root'}",
        ),
        Check(
            name="entrypoint",
            passed=image.entrypoint == ("/app/llama-diffusion-cli",),
            detail=" ".join(image.entrypoint),
        ),
    ]


def _check_root(engine: Engine, target: Target, image: ImageInfo, reference: str) -> list[Check]:
    variables = dict(line.split("=", 1) for line in image.environment)
    expectation = RootExpectation(
        programs=("/app/llama-diffusion-cli",),
        licences=licence_files(target),
        platform=engine.info().platform,
        library_path=tuple(variables.get("LD_LIBRARY_PATH", "").split(":")),
        from_host=frozenset({"libcuda.so.1"} if target.toolkit is not None else ()),
    )
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "root.tar"
        engine.export_root(reference, archive)
        return [
            Check(name=finding.name, passed=finding.passed, detail=finding.detail)
            for finding in check_root(archive, expectation)
        ]


def licence_files(target: Target) -> tuple[str, ...]:
    """Licence files that the target's image must hold: llama.cpp's, the distribution's, and CUDA's."""
    files = [
        "/usr/share/licenses/llama.cpp/LICENSE",
        *(f"/usr/share/doc/{package}/copyright" for package in ("libc6", "libstdc++6", "libgomp1")),
        *(f"/usr/share/common-licenses/{name}" for name in ("LGPL-2.1", "GPL-3")),
    ]
    toolkit = target.toolkit
    if toolkit is not None and toolkit.wheels is not None and target.base.kind == "bootstrap":
        names = [wheel.name.replace("-", "_") for wheel in toolkit.wheels.runtime]
        files += [f"/usr/share/licenses/cuda/{name}.txt" for name in names]
    return tuple(files)


def _check_start(shop: Workshop, engine: Engine, target: Target, reference: str) -> list[Check]:
    version = engine.run(RunRequest(image=reference, arguments=("--version",), user="10001", timeout=60))
    text = (version.stdout + version.stderr).decode("utf-8", "replace")
    commit = build_commit(target, series_of(target, shop.series))
    first = next((line for line in text.splitlines() if line.startswith("version")), text[:80])
    usage = engine.run(RunRequest(image=reference, arguments=("--help",), user="10001", timeout=60))
    return [
        Check(
            name="--version without a driver",
            passed=version.exit_code == 0 and f"({commit})" in text,
            detail=first,
        ),
        Check(
            name="--help without a driver",
            passed=usage.exit_code == 0 and b"--diffusion-gpu-sampling" in usage.stdout + usage.stderr,
            detail=f"exit {usage.exit_code}",
        ),
    ]


def _judge(result: RunResult) -> tuple[runs.Run | None, list[Check]]:
    name = "generation: read-only, no capabilities, no network, user 10001"
    output = result.stdout + result.stderr
    if result.exit_code != 0:
        lines = output.decode("utf-8", "replace").strip().splitlines()
        return None, [
            Check(name=name, passed=False, detail=f"exit {result.exit_code}: {' / '.join(lines[-3:])}")
        ]
    try:
        run = runs.parse_run(result.stderr, result.stdout)
    except runs.RunUnreadable as error:
        return None, [Check(name=name, passed=False, detail=error.message)]
    verdicts = validators.judge(run, frozenset({"sc"}))
    return run, [
        Check(
            name=name,
            passed=bool(run.text),
            detail=f"{len(run.text)} bytes of text in {result.seconds:.2f} s",
        ),
        *(Check(name=verdict.name, passed=verdict.passed, detail=verdict.detail) for verdict in verdicts),
    ]
