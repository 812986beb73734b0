"""What a test run tests: an image of an engine, or a bare binary."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_images.errors import CheckFailed, UsageError
from llama_images.evidence import SubjectRecord
from llama_images.matrix import Flavor
from llama_images.ports import Engine, ImageInfo, Program, Reporter
from llama_images.render import LABEL_PREFIX
from llama_images.selection import Target, local_reference
from llama_images.workflows.files import sha256_of

PROGRAM: Final = "llama-diffusion-cli"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is tested, and what is known of it."""

    program: Program
    stock: Program | None
    """The stock flavor beside it, for comparisons; itself, where that is tested."""
    flavor: Flavor
    in_container: bool
    on_gpus: bool
    minimum_driver: str | None
    record: SubjectRecord
    why_no_stock: str = ""
    """What to do where ``stock`` is missing."""


def image_subject(engine: Engine, target: Target, stock: Target, make: Callable[[str], Program]) -> Subject:
    """The target's image on this engine; ``stock`` is the same target in the stock flavor.

    ``make`` makes a program of an image's name.

    Raises CheckFailed where there is no such image. Without the stock one, there is nothing to compare with.
    """
    reference = local_reference(target)
    image = engine.image(reference)
    if image is None:
        raise CheckFailed(
            f"there is no image {reference} on this engine", hint=f"{_build_command(target)} makes it"
        )
    program = make(reference)
    other: Program | None = program
    if target.flavor != "stock":
        known = engine.image(local_reference(stock)) is not None
        other = make(local_reference(stock)) if known else None
    return Subject(
        program=program,
        stock=other,
        flavor=target.flavor,
        in_container=True,
        on_gpus=target.toolkit is not None,
        minimum_driver=image.labels.get(f"{LABEL_PREFIX}.minimum-driver"),
        record=_record(target.id, target.flavor, reference, image),
        why_no_stock=f"there is no image {local_reference(stock)} ({_build_command(stock)})",
    )


def _build_command(target: Target) -> str:
    flavor = " --flavor stock" if target.flavor == "stock" else ""
    return f"invoke build --arch {target.architecture.name}{flavor}"


def _record(name: str, flavor: str, reference: str, image: ImageInfo) -> SubjectRecord:
    def label(key: str) -> str | None:
        return image.labels.get(f"{LABEL_PREFIX}.{key}")

    return SubjectRecord(
        name=name,
        flavor=flavor,
        image=reference,
        image_id=image.id,
        binary_sha256=None,
        version=image.labels.get("org.opencontainers.image.version"),
        revision=image.labels.get("org.opencontainers.image.revision"),
        series=label("series"),
        series_digest=label("series-digest"),
        inputs=label("inputs"),
        toolkit=label("toolkit"),
        architectures=tuple((label("architectures") or "").split()),
        ptx=tuple((label("ptx") or "").split()),
    )


def binary_subject(
    binary: Path,
    *,
    flavor: Flavor,
    target: Target | None,
    stock: Path | None,
    on_gpus: bool,
    make: Callable[[Path], Program],
    reporter: Reporter,
) -> Subject:
    """A bare binary. ``target`` is what it is said to have been built for; None where nobody says.

    ``make`` makes a program of its path. Raises UsageError where one of the files is no program.
    """
    path = _executable("--binary", binary)
    toolkit = None if target is None else target.toolkit
    architecture = None if target is None else target.architecture
    codes: Sequence[str] = () if architecture is None else architecture.sass
    program = make(path)
    other = None if stock is None else make(_executable("--stock-binary", stock))
    return Subject(
        program=program,
        stock=program if flavor == "stock" else other,
        flavor=flavor,
        in_container=False,
        on_gpus=on_gpus,
        minimum_driver=None if toolkit is None else toolkit.minimum_driver,
        record=SubjectRecord(
            name=path.name if target is None else target.id,
            flavor=flavor,
            image=None,
            image_id=None,
            binary_sha256=sha256_of(path, reporter),
            version=None,
            revision=None,
            series=None,
            series_digest=None,
            inputs=None,
            toolkit=None if toolkit is None else toolkit.name,
            architectures=tuple(f"sm_{code}" for code in codes),
            ptx=() if architecture is None else tuple(f"compute_{code}" for code in architecture.ptx),
        ),
        why_no_stock="no --stock-binary is given",
    )


def _executable(option: str, path: Path) -> Path:
    found = path.expanduser().absolute()
    if not found.is_file():
        raise UsageError(f"{option} {path}: there is no such file")
    if not os.access(found, os.X_OK):
        raise UsageError(f"{option} {path}: it is not executable", hint="chmod +x it")
    return found
