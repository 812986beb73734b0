"""This machine's processor."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name and number of processors: "AMD EPYC 7763 64-Core Processor, 16 CPUs".

    Arm's kernels tell no name; the machine's kind stands in for it.
    """
    try:
        text = cpuinfo.read_text("utf-8", "replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE)
    count = len(os.sched_getaffinity(0))
    return f"{found[1].strip() if found else platform.machine()}, {count} CPU{'' if count == 1 else 's'}"
