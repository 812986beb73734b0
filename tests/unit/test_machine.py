"""What the kernel and the files of other programs tell of this machine."""

from __future__ import annotations

import platform
from pathlib import Path

from llama_images.adapters.machine import cdi_files, nvidia_devices, processor


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


def test_nvidia_s_cards_are_on_the_bus_with_or_without_a_driver(tmp_path: Path) -> None:
    for name, vendor, kind in (
        ("0000:02:00.0", "0x10de", "0x030000"),
        ("0000:01:00.0", "0x10de", "0x030200"),
        ("0000:01:00.1", "0x10de", "0x040300"),  # the card's sound
        ("0000:00:02.0", "0x8086", "0x030000"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    (tmp_path / "0000:03:00.0").mkdir()  # one that tells nothing
    assert nvidia_devices(tmp_path) == ("0000:01:00.0", "0000:02:00.0")
    assert nvidia_devices(tmp_path / "nothing") == ()


def test_files_of_the_container_device_interface(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text("cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n")
    (tmp_path / "other.yaml").write_text("kind: vendor.com/net\n")
    (tmp_path / "notes.txt").write_text("nvidia.com/gpu\n")
    assert cdi_files((tmp_path, tmp_path / "nothing")) == (tmp_path / "nvidia.yaml",)
