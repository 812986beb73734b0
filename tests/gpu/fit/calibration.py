"""What ``calibrate.sh`` measured, as JSON, and how far ``fit`` is off.

``python -m tests.gpu.fit.calibration OUT NAME`` reads its folder, prints every card's difference and writes
``tests/unit/data/fit/NAME.json``, which ``tests/unit/test_fit_calibration.py`` holds ``fit`` to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_images.model_memory import MIB, CardNeed, ModelShape, Setting, needs
from llama_images.runs import Devices, Run, parse_run

DATA: Final = Path(__file__).resolve().parents[2] / "unit" / "data" / "fit"

SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "default-256": {"tokens": 256, "prompt_tokens": 16},
    "ts73-512": {"tokens": 512, "prompt_tokens": 16},
    "ts37-1536": {"tokens": 1536, "prompt_tokens": 1800},
    "one-2048": {"tokens": 2048, "prompt_tokens": 16},
    "ncmoe10-256": {"tokens": 256, "prompt_tokens": 16, "cpu_moe": 10},
    "16g-ts73-1536": {"tokens": 1536, "prompt_tokens": 1800},
    "16g-one-moe": {"tokens": 256, "prompt_tokens": 16, "cpu_moe": 24},
    "16g-ts11-32768": {"tokens": 32768, "prompt_tokens": 16},
}
"""What ``calibrate.sh`` asks for, beside the split. Prompts with the template's tokens."""

TOLERANCE: Final = 0.05
TOLERANCE_BYTES: Final = 300 * MIB
"""What an estimate of a card may be off: the larger of the two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Off:
    """One card of one setting."""

    setting: str
    card: int
    estimated: CardNeed
    measured_bytes: int
    """Used at the peak, less what was used before."""

    @property
    def off_bytes(self) -> int:
        return self.estimated.total - self.measured_bytes

    @property
    def within(self) -> bool:
        return abs(self.off_bytes) <= max(TOLERANCE * self.measured_bytes, TOLERANCE_BYTES)


def collect(folder: Path) -> dict[str, Any]:
    """Every setting that was run: what the CLI said of its buffers, and each GPU's used memory, in MiB."""
    found: dict[str, Any] = {}
    head, *rows = (line.split("\t") for line in (folder / "peaks.tsv").read_text("utf-8").splitlines())
    for values in rows:
        row = dict(zip(head, values, strict=True))
        name = row["setting"]
        if name not in found:
            found[name] = _said((folder / f"{name}.log").read_bytes(), row)
        if row["gpu"] in row["visible"].split(","):
            found[name]["gpus"].append(
                {"before_mib": int(row["before_mib"]), "peak_mib": int(row["peak_mib"])}
            )
    return {"settings": found}


def _said(log: bytes, row: Mapping[str, str]) -> dict[str, Any]:
    run = parse_run(log)
    limits = [] if row["limit_mib"] == "none" else [int(one) for one in row["limit_mib"].split(",")]
    return {
        **SETTINGS[row["setting"]],
        "exit_code": int(row["exit"]),
        "limits_mib": limits,
        "layers": None if run.devices is None else _layers(run.devices, run),
        "found": [{"name": one.name, "free_mib": one.free_mebibytes} for one in run.found_devices],
        "buffers": [[one.device, one.kind, one.mebibytes] for one in run.buffers],
        "refused": [[one.device, one.mebibytes] for one in run.allocation_failures],
        "steps": run.steps,
        "gpus": [],
    }


def _layers(devices: Devices, run: Run) -> list[int]:
    """As ``Setting.layers`` has them: with the output, which the CLI's line names apart."""
    names = [one.device for one in run.found_devices]
    counts = dict(devices.layers)
    return [counts.get(name, 0) + (name == devices.output) for name in names]


def differences(shape: ModelShape, measured: Mapping[str, Any]) -> Iterator[Off]:
    """Every card of every setting that ran to its end."""
    for name, one in measured["settings"].items():
        if one["exit_code"] != 0 or one["layers"] is None:
            continue
        for card, (need, gpu) in enumerate(zip(needs(shape, setting_of(one)), one["gpus"], strict=True)):
            yield Off(
                setting=name,
                card=card,
                estimated=need,
                measured_bytes=(gpu["peak_mib"] - gpu["before_mib"]) * MIB,
            )


def setting_of(measured: Mapping[str, Any]) -> Setting:
    return Setting(
        tokens=measured["tokens"],
        prompt_tokens=measured["prompt_tokens"],
        layers=tuple(measured["layers"]),
        cpu_moe=measured.get("cpu_moe", 0),
    )


def main(argv: Sequence[str]) -> int:
    """The command line."""
    from llama_images.model_memory import shape_of
    from tests.unit.test_model_memory import full_model

    folder, name = argv
    measured = collect(Path(folder))
    print("setting          card  weights  self-c  compute  prompt   CUDA  estimate  measured     off  (MiB)")
    for one in differences(shape_of(full_model()), measured):
        need = one.estimated
        sizes = (need.weights, need.self_conditioning, need.compute, need.prompt_kv, need.cuda)
        cells = [f"{size / MIB:8.0f}" for size in (*sizes, need.total, one.measured_bytes, one.off_bytes)]
        print(f"{one.setting:16} {one.card:4} {' '.join(cells)}  {'' if one.within else 'OFF'}")
        said = measured["settings"][one.setting]["buffers"]
        print(
            "   said:",
            ", ".join(f"{kind} {size}" for device, kind, size in said if device == f"CUDA{one.card}"),
        )
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
