"""Write the synthetic models of the proof: ``write_models.py FULL.gguf``.

``tiny.gguf`` and ``ties.gguf`` come to lie beside the full one. Needs the packages llama_images and gguf.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gguf import GGUFReader

from llama_images.errors import LlamaImagesError
from llama_images.model_shape import loud_tokens
from llama_images.synthetic import write_model


def copies_of(loud: Sequence[int], vocabulary: int) -> dict[int, int]:
    """Words that may take the embedding of a loud word, and which one each takes.

    A copy stands further up in the vocabulary, in a lane of the sampler's reduction that is met earlier. It
    is itself neither a loud word nor the twin of one.
    """
    taken = set(loud)
    found = {}
    for word in sorted(taken):
        copy = (word // 256 + 1) * 256 + word % 256 // 2
        if copy < vocabulary and not {copy, copy - 1} & taken:
            found[copy] = word
    return found


def write_ties(tiny: Path, path: Path) -> None:
    """A copy of the tiny model in which the highest logit is there twice, exactly."""
    part = path.with_name(path.name + ".part")
    shutil.copy(tiny, part)
    reader = GGUFReader(part, "r+")
    rows = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight").data
    for copy, word in copies_of(loud_tokens(len(rows)), len(rows)).items():
        rows[copy] = rows[word]
    reader.data.flush()
    part.replace(path)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if len(argv) != 1:
        print("write_models: give the full model's file name", file=sys.stderr)
        return 2
    began = time.monotonic()
    full = Path(argv[0])
    tiny = full.with_name("tiny.gguf")
    try:
        print(write_model("tiny", tiny))
        write_ties(tiny, full.with_name("ties.gguf"))
        print(write_model("full", full), f"{time.monotonic() - began:.1f} s")
    except LlamaImagesError as error:
        print(f"write_models: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
