"""Evidence documents as `invoke test` writes them, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_images.evidence import CaseRecord, Evidence, GpuRecord, MachineRecord, Status, SubjectRecord


def case(name: str, status: Status = "passed", *, gpus: int = 1, **other: Any) -> CaseRecord:
    """One case; ``other`` are fields of CaseRecord."""
    return CaseRecord(
        **{
            "name": name,
            "about": f"about {name}",
            "status": status,
            "reason": "too few GPUs" if status == "skipped" else None,
            "command": ("llama-diffusion-cli", "-m", "model.gguf"),
            "environment": {},
            "stdin": None,
            "gpus": gpus,
            "memory_mib": None,
            "runs": 0 if status == "skipped" else 1,
            "exit_code": None if status == "skipped" else 0,
            "seconds": None if status == "skipped" else 1.5,
            "verdicts": (),
            "notes": (),
            "turns": (),
            "medians_ms": (),
            "placement": None,
            **other,
        }
    )


def evidence_of(
    image_id: str | None,
    cases: Sequence[CaseRecord],
    *,
    gpus: Sequence[str] = ("NVIDIA H200", "NVIDIA H200"),
    logical: int | None = None,
    name: str = "sm120",
    **other: Any,
) -> Evidence:
    """A document about an image; ``other`` are fields of Evidence."""
    return Evidence(
        **{
            "schema_version": 1,
            "kind": "test",
            "complete": True,
            "selected": (),
            "at_once": 1,
            "started": "2026-11-24T15:04:00Z",
            "seconds": 60.0,
            "subject": SubjectRecord(
                name=name,
                flavor="patched",
                image=f"llama-diffusion:{name}",
                image_id=image_id,
                binary_sha256=None,
                version="1-2",
                revision="1",
                series=None,
                series_digest=None,
                inputs=None,
                toolkit="cuda-13.0" if gpus else None,
                architectures=(),
                ptx=(),
            ),
            "machine": MachineRecord(
                engine="docker 20.10",
                platform="linux/amd64",
                driver="580.159.04" if gpus else None,
                gpus=tuple(
                    GpuRecord(name=gpu, compute_capability="12.0", memory_bytes=1 << 34) for gpu in gpus
                ),
                logical_gpus=logical,
            ),
            "model": None,
            "cases": tuple(cases),
            **other,
        }
    )
