"""``fit`` against used memory on real GPUs, as ``tests/gpu/fit`` measured it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_images.fit import MARGIN, Card, fit_of
from llama_images.model_memory import MIB, Setting, micro_batch, shape_of
from tests.gpu.fit.calibration import DATA, SETTINGS, collect, differences, setting_of
from tests.unit.test_model_memory import full_model

SHAPE = shape_of(full_model())
MEASURED = sorted(DATA.glob("*.json"))

# Lines of a run of the series on an H100 that was made two devices.
LOG = b"""\
$  CUDA_VISIBLE_DEVICES=0,1 patched -m full.gguf
0.00.343.808 I llama_prepare_model_devices: \
using device CUDA0 (NVIDIA H100 80GB HBM3) (0000:00:06.0) - 80552 MiB free
0.00.343.820 I llama_prepare_model_devices: \
using device CUDA1 (NVIDIA H100 80GB HBM3) (0000:00:06.1) - 80552 MiB free
0.00.859.942 I load_tensors:   CPU_Mapped model buffer size =   577.50 MiB
0.00.859.943 I load_tensors:        CUDA0 model buffer size =  7538.26 MiB
0.00.859.944 I load_tensors:        CUDA1 model buffer size =  7191.68 MiB
0.08.600.861 I sched_reserve:      CUDA0 compute buffer size =    73.13 MiB
0.08.600.878 I sched_reserve:      CUDA1 compute buffer size =   388.12 MiB
0.08.604.181 I diffusion_devices: split=layer layers=CUDA0:16,CUDA1:14 output=CUDA1 sc_embd=CUDA1 \
kv_cache=on:CUDA0,CUDA1 gpu_sampling=on:CUDA1 sample_reduce=on:CUDA1
0.09.213.737 I \rdiffusion step: 0/6 [                                                  ] 0%
"""


@pytest.mark.parametrize("file", MEASURED, ids=lambda file: file.stem)
def test_every_card_is_estimated_within_the_tolerance(file: Path) -> None:
    found = list(differences(SHAPE, json.loads(file.read_text("utf-8"))))
    assert len({one.setting for one in found}) >= 5
    assert [one for one in found if not one.within] == []


@pytest.mark.parametrize("file", MEASURED, ids=lambda file: file.stem)
def test_what_ran_under_a_limit_fits_and_what_failed_does_not(file: Path) -> None:
    for name, one in json.loads(file.read_text("utf-8"))["settings"].items():
        if not one["limits_mib"]:
            continue
        cards = [Card(name=name, free_bytes=limit * MIB) for limit in one["limits_mib"]]
        layers = one["layers"] or [16, 15]  # what failed for want of memory is -ts 1,1
        setting = setting_of({**one, "layers": layers})
        fit = fit_of(SHAPE, cards, setting, margin_bytes=MARGIN)
        assert fit.fits == (one["exit_code"] == 0), name


def test_there_are_measurements() -> None:
    if not MEASURED:
        pytest.skip("fit has not been measured on GPUs yet: tests/gpu/fit says how")
    assert all(json.loads(file.read_text("utf-8"))["settings"].keys() <= SETTINGS.keys() for file in MEASURED)


def test_a_run_is_read_from_its_log_and_its_peaks(tmp_path: Path) -> None:
    (tmp_path / "default-256.log").write_bytes(LOG)
    (tmp_path / "peaks.tsv").write_text(
        "setting\tvisible\tlimit_mib\texit\tseconds\tgpu\tbefore_mib\tpeak_mib\n"
        "default-256\t0,1\tnone\t0\t11\t0\t4\t9004\n"
        "default-256\t0,1\tnone\t0\t11\t1\t5\t12005\n"
    )
    one = collect(tmp_path)["settings"]["default-256"]
    assert one["layers"] == [16, 15]
    assert setting_of(one) == Setting(tokens=256, prompt_tokens=16, layers=(16, 15))
    assert one["found"][0] == {"name": "NVIDIA H100 80GB HBM3", "free_mib": 80552}
    assert ["CUDA1", "compute", 388.12] in one["buffers"]
    first, second = differences(SHAPE, {"settings": {"default-256": one}})
    assert (first.measured_bytes, second.measured_bytes) == (9000 * MIB, 12000 * MIB)
    assert first.off_bytes == first.estimated.total - 9000 * MIB


def test_the_settings_are_those_of_the_script() -> None:
    script = (Path(__file__).resolve().parents[1] / "gpu" / "fit" / "calibrate.sh").read_text("utf-8")
    for name, values in SETTINGS.items():
        (line,) = [one for one in script.splitlines() if one.strip().startswith(f"{name})")]
        assert f"-n {values['tokens']}" in line
        assert (f"--n-cpu-moe {values['cpu_moe']}" in line) if "cpu_moe" in values else "moe" not in line
        assert ('-p "$LONG"' in line) == (values["prompt_tokens"] > 16)
        assert micro_batch(SHAPE, values["tokens"]) > values["prompt_tokens"]
