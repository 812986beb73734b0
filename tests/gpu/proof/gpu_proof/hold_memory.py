"""Fill GPUs but for some MiB, until standard input ends: ``hold_memory.py GPU:MIB...``. Needs PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """The command line; prints ``ready`` once the memory is held."""
    import torch

    held = []
    for word in argv:
        gpu, leave = (int(part) for part in word.split(":"))
        device = f"cuda:{gpu}"
        torch.zeros(1, device=device)  # the context takes memory of its own
        free, _ = torch.cuda.mem_get_info(gpu)
        held.append(torch.empty(max(free - (leave << 20), 0), dtype=torch.uint8, device=device))
        print(gpu, torch.cuda.mem_get_info(gpu)[0] >> 20, "MiB free", flush=True)
    print("ready", flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
