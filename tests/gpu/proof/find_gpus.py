"""Look for the GPUs of the proof, before anything is compiled: ``find_gpus.py COUNT [ARCH]``.

Prints the architecture to build for: ARCH, if the first COUNT GPUs of ``CUDA_VISIBLE_DEVICES`` can
run it; without it, theirs. One line on standard error, and exit code 3, where there are no GPUs, 2 where
they don't suit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gpu_proof.cards import CardError, arch_for, chosen, find_cards, pick


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if not 1 <= len(argv) <= 2 or not all(word.isdigit() for word in argv):
        print("proof: find_gpus.py takes a number of GPUs, and an architecture", file=sys.stderr)
        return 2
    count, *asked = (int(word) for word in argv)
    try:
        words = chosen(os.environ.get("CUDA_VISIBLE_DEVICES"), count)
        arch, remark = arch_for(pick(find_cards(), words), asked[0] if asked else None)
    except CardError as error:
        print(f"proof: {error}", file=sys.stderr)
        return error.exit_code
    if remark:
        print(f"proof: {remark}", file=sys.stderr)
    print(arch)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
