"""The processor's name, from the kernel's own list."""

from __future__ import annotations

import platform
from pathlib import Path

from llama_images.adapters.machine import processor


def test_the_name_is_that_of_the_kernels_list(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: AMD EPYC 7763 64-Core Processor\nflags\t\t: fpu\n", "utf-8"
    )
    assert processor(cpuinfo).startswith("AMD EPYC 7763 64-Core Processor, ")


def test_a_kernel_without_names_gives_the_machines_kind(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for text in ("processor\t: 0\nBogoMIPS\t: 50.00\n", "model name\t:\n"):
        cpuinfo.write_text(text, "utf-8")
        assert processor(cpuinfo).startswith(f"{platform.machine()}, ")
    assert processor(tmp_path / "nothing").startswith(f"{platform.machine()}, ")
