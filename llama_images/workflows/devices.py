"""Which GPUs a case sees, and with how much memory.

Memory is taken away in one of two ways. Memory that is held leaves what is free on a real GPU. A preloaded
library (``tests/gpu/logical_gpus.c``) makes a card look like one of another size, or like several. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llama_images.cases import Case
from llama_images.errors import UsageError
from llama_images.judging import Outcome
from llama_images.ports import Gpu

RESERVED_MIB: Final = 512
"""What the driver takes of a card before a program's first byte, as ``logical_gpus.c`` counts it."""


def visible(gpus: Sequence[Gpu], variable: str | None) -> tuple[Gpu, ...]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, by number in PCI bus order or by UUID; all without it.

    Raises UsageError for a value that names no GPU, or one twice.
    """
    if variable is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for word in (word.strip() for word in variable.split(",") if word.strip()):
        matching = [gpu for gpu in gpus if word == str(gpu.index) or _is_uuid(word, gpu)]
        if len(matching) != 1 or matching[0] in chosen:
            raise UsageError(
                f"CUDA_VISIBLE_DEVICES={variable}: {word} is not one more of this machine's {len(gpus)} GPUs",
                hint="numbers count from 0 in the order of nvidia-smi; a UUID starts with GPU-",
            )
        chosen.append(matching[0])
    return tuple(chosen)


def _is_uuid(word: str, gpu: Gpu) -> bool:
    return len(word) > len("GPU-") and gpu.uuid.startswith(word)


def seen(case: Case, gpus: Sequence[Gpu], *, logical: bool) -> tuple[Gpu, ...]:
    """The GPUs that the case sees; where they are ``logical``, each as often as it is shown."""
    if logical and gpus:
        return tuple(gpus[number % len(gpus)] for number in range(case.gpus))
    return tuple(gpus[: case.gpus])


def device_environment(
    case: Case, gpus: Sequence[Gpu], limit: Sequence[int] | None, *, preload: str | None
) -> dict[str, str]:
    """Variables that say which GPUs the program sees, in which order, and with how much memory.

    ``preload`` is where the program finds the library that makes each GPU look like several; None where GPUs
    are what they are. ``limit`` is in MiB, 0 for a GPU without one.
    """
    if not case.gpus:
        return {"CUDA_VISIBLE_DEVICES": ""}
    real = dict.fromkeys(gpu.index for gpu in seen(case, gpus, logical=preload is not None))
    variables = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, real)),
    }
    if preload is not None and (case.gpus > len(real) or limit is not None):
        variables |= {"LD_PRELOAD": preload, "LOGICAL_GPUS": str(case.gpus)}
        if limit is not None:
            variables["LOGICAL_GPU_MIB"] = ",".join(map(str, limit))
    return variables


def memory_limits(case: Case, plenty: Outcome | None, *, logical: bool) -> list[tuple[int, ...]]:
    """The limits to try, one after the other: MiB of each GPU, 0 for all that it has.

    The preloaded library takes the size of a whole card and counts what the driver takes of it; memory that
    is held leaves what is free.
    """
    memory = case.memory
    assert memory is not None
    if memory.card_mib is not None:
        return [(memory.card_mib - (0 if logical else RESERVED_MIB),) * case.gpus]
    beside = RESERVED_MIB if logical else 0
    return [
        tuple(
            0 if memory.last_only and number + 1 < case.gpus else int(mebibytes) + room + beside
            for number, mebibytes in enumerate(weights(case, plenty))
        )
        for room in memory.beside_weights_mib
    ]


def weights(case: Case, plenty: Outcome | None) -> list[float]:
    """MiB of weights on each GPU, by the run with plenty of memory; empty where that did not tell."""
    if plenty is None or plenty.run is None:
        return []
    found = {one.device: one.mebibytes for one in plenty.run.buffers if one.kind == "model"}
    names = [f"CUDA{number}" for number in range(case.gpus)]
    return [found[name] for name in names] if set(names) <= set(found) else []
