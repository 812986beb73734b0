"""This machine: its processor, the graphics cards on its bus, files that programs left."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
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


def nvidia_devices(devices: Path = Path("/sys/bus/pci/devices")) -> tuple[str, ...]:
    """PCI addresses of NVIDIA's graphics cards, whether or not a driver has them."""
    found = []
    for device in sorted(devices.glob("*")):
        try:
            vendor, kind = ((device / name).read_text("utf-8").strip() for name in ("vendor", "class"))
        except OSError:
            continue
        # 0x03: display controllers; the cards' sound devices are of another class.
        if vendor == "0x10de" and kind.startswith("0x03"):
            found.append(device.name)
    return tuple(found)


def cdi_files(folders: Sequence[Path] = (Path("/etc/cdi"), Path("/var/run/cdi"))) -> tuple[Path, ...]:
    """Files that tell engines of NVIDIA's devices, by the Container Device Interface."""
    found = []
    for folder in folders:
        for path in sorted(folder.glob("*.*")):
            try:
                text = path.read_text("utf-8", "replace") if path.suffix in (".json", ".yaml") else ""
            except OSError:
                continue
            if "nvidia.com/gpu" in text:
                found.append(path)
    return tuple(found)
