"""Looks into images before others do: secrets in layers, and vulnerabilities where a scanner is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from llama_images.ports import Engine, ImageStore
from llama_images.selection import Target
from llama_images.workflows.pack import pack
from llama_images.workflows.smoke import Check
from llama_images.workflows.workshop import Workshop, write_or_remove

SCANNERS: Mapping[str, tuple[str, ...]] = {
    "trivy": ("sbom", "--quiet", "--severity", "HIGH,CRITICAL", "--exit-code", "1", "{bill}"),
    "grype": ("sbom:{bill}", "--quiet", "--fail-on", "high"),
}
"""Programs that look for known vulnerabilities in a bill of materials, and fail where one is grave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanResult:
    """What was found in one image."""

    target: Target
    checks: tuple[Check, ...]
    bill: str
    """The file with its bill of materials."""
    left_out: tuple[str, ...]
    """Scanners that are not installed."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def scan(shop: Workshop, engine: Engine, store: ImageStore, target: Target) -> ScanResult:
    """Search one image, and let every scanner that is installed look at its bill of materials.

    Raises UsageError where there is no such image; what else is wrong is in the result.
    """
    packed = pack(shop, engine, store, target)
    checks = [Check(name=one.name, passed=one.passed, detail=one.detail) for one in packed.findings]
    architecture = json.loads(packed.files.configuration)["architecture"]
    path = shop.cache / "sbom" / f"{target.id}.cdx.json"
    write_or_remove(path, json.dumps(packed.bill(f"linux/{architecture}"), indent=2) + "\n")
    left_out = []
    for name, arguments in SCANNERS.items():
        found = shop.programs.find(name)
        if not found:
            left_out.append(name)
            continue
        with shop.reporter.activity(f"{name} {target.id}"):
            finished = shop.programs.run(
                [str(found[0]), *(word.replace("{bill}", str(path)) for word in arguments)],
                log=shop.log_path(f"scan-{target.id}-{name}"),
            )
        detail = "nothing grave" if finished.returncode == 0 else f"exit {finished.returncode}"
        lines = (finished.text + finished.error_text).strip().splitlines()
        checks.append(
            Check(
                name=f"{name}: known vulnerabilities",
                passed=finished.returncode == 0,
                detail=detail if finished.returncode == 0 else f"{detail}: {' / '.join(lines[-3:])}",
            )
        )
    return ScanResult(target=target, checks=tuple(checks), bill=str(path), left_out=tuple(left_out))
