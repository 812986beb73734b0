"""``invoke fit``: a model's header, from this disk or from the hub, and the cards that it must fit on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from llama_images.errors import UsageError
from llama_images.fit import Card, Fit
from llama_images.gguf_file import ModelFile, parse_header, read_model_info
from llama_images.located_yaml import shown
from llama_images.matrix import Matrix
from llama_images.models import WantedModel, choose_model
from llama_images.ports import Gpu, Gpus, ModelHub, Reporter

HUB: Final = "hf:"
"""What stands before a file of the hub: ``hf:OWNER/NAME/FILE.gguf``, or ``…/FILE.gguf@REVISION``."""

_UNITS: Final[Mapping[str, int]] = {"": 1 << 20, "MIB": 1 << 20, "GIB": 1 << 30, "MB": 10**6, "GB": 10**9}


def read_model(word: str, matrix: Matrix, hub: ModelHub, reporter: Reporter) -> ModelFile:
    """The header of the model that ``word`` names: a path, a model of the matrix, or a file of the hub.

    Of the hub's file only the header is fetched. Raises UsageError where it names none or what it names is no
    diffusion-gemma model, OutsideError where the hub fails.
    """
    if not word:
        raise UsageError(
            "no --model given",
            hint="a GGUF file, hf:OWNER/NAME/FILE.gguf, or one of the matrix: " + ", ".join(matrix.models),
        )
    if word.startswith(HUB):
        return _read_of_hub(_hub_file(matrix, word), hub, reporter)
    path = Path(word).expanduser()
    if word in matrix.models and not path.exists():
        return _read_of_hub(choose_model(matrix, model=word), hub, reporter)
    return read_model_info(path)


def _hub_file(matrix: Matrix, word: str) -> WantedModel:
    name, _, revision = word.removeprefix(HUB).partition("@")
    parts = name.split("/", 2)
    if len(parts) < 3 or not parts[2].endswith(".gguf"):
        raise UsageError(f"{shown(word)} names no file of the hub", hint="hf:OWNER/NAME/FILE.gguf")
    return choose_model(matrix, repository="/".join(parts[:2]), file=parts[2], revision=revision or None)


def _read_of_hub(wanted: WantedModel, hub: ModelHub, reporter: Reporter) -> ModelFile:
    def read(path: Path) -> ModelFile:
        found = hub.find(wanted.repository, str(PurePosixPath(path)), wanted.revision)
        with hub.open(found) as stream:
            return parse_header(stream, found.size_bytes, path)

    with reporter.activity(f"read the header of {wanted.name} on the hub"):
        return read_model_info(Path(wanted.file), read)


def cards_of(gpus: Gpus, chosen: Sequence[str], memory: Sequence[str]) -> tuple[Card, ...]:
    """The cards to fit: those of this machine, some of them by index, or such as ``--memory`` describes.

    Raises UsageError where there is no GPU and none was described, OutsideError where the driver fails.
    """
    if memory:
        return tuple(Card(name="(described)", free_bytes=_size(word)) for word in memory)
    present = gpus.gpus()
    if not present:
        raise UsageError(
            "no NVIDIA GPU answers on this machine",
            hint="describe the cards that are meant, one --memory for each: --memory 16GiB --memory 16GiB",
        )
    if chosen:
        by_index = {str(gpu.index): gpu for gpu in present}
        if wrong := [word for word in chosen if word not in by_index]:
            raise UsageError(
                f"--gpu {shown(wrong[0])}: there is no such GPU", hint=f"there are {', '.join(by_index)}"
            )
        present = tuple(by_index[word] for word in chosen)
    return tuple(_card(gpu) for gpu in present)


def _card(gpu: Gpu) -> Card:
    if gpu.free_bytes is None:
        raise UsageError(
            f"{gpu.name} shares the machine's memory, and the driver does not say how much is free",
            hint="say what it may take: --memory 64GiB",
        )
    return Card(name=gpu.name, free_bytes=gpu.free_bytes, index=gpu.index)


def _size(word: str) -> int:
    match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?) ?([A-Za-z]*)", word)
    unit = None if match is None else _UNITS.get(match[2].upper())
    if match is None or unit is None or float(match[1]) <= 0:
        raise UsageError(
            f"--memory {shown(word)}: it is no size",
            hint="such as 16311MiB or 16GiB; MiB where no unit is given",
        )
    return int(float(match[1]) * unit)


def command_of(fit: Fit, model: str) -> tuple[str, ...]:
    """The program's command line for a choice, with the variables by which it sees these cards in order."""
    return (*_seen(fit), "llama-diffusion-cli", "-m", model, *fit.options())


def container_command_of(fit: Fit, model: Path, image: str) -> tuple[str, ...]:
    """The same in a container of Docker's, with the folder of the model in it."""
    folder = model.parent.absolute() if model.exists() else Path("/path/to/models")
    variables = [word for variable in _seen(fit) for word in ("-e", variable)]
    return (
        *("docker", "run", "--rm", "-it", "--gpus", "all", *variables),
        *("-v", f"{folder}:/models:ro", image, "-m", f"/models/{model.name}", *fit.options()),
    )


def variables_of(fit: Fit) -> Mapping[str, str]:
    """What CUDA is told, so that it shows these cards and no others, in this order."""
    indices = [str(card.index) for card in fit.cards if card.index is not None]
    if not indices:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(indices)}


def _seen(fit: Fit) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in variables_of(fit).items())
