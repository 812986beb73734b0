"""The record of one test run, as JSON and as JUnit XML.

The JSON document is versioned: ``schema_version`` changes when a reader of the old form would misread the new
one. ``evidence.schema.json`` is its JSON Schema, made from these types. Paths of the machine are left out:
files go by their names.

Pure.
"""

from __future__ import annotations

import json
import re
from typing import Final, Literal, TypeAlias
from xml.etree import ElementTree as ET

from pydantic import BaseModel, ConfigDict, Field

from llama_images.matrix_fields import Frozen

Status: TypeAlias = Literal[
    "passed", "failed", "skipped", "failed as it should", "passed though it should fail"
]
"""The last two are the stock flavor's, in cases that name why it fails them."""

BAD: Final[frozenset[Status]] = frozenset({"failed", "passed though it should fail"})


TOO_FEW_GPUS: Final = "too few GPUs"
"""How the reason of a case begins that was skipped for want of GPUs."""
PAST_DEADLINE: Final = "the deadline has passed"
"""The reason of a case that was not started because it was too late."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class JudgedRule(_Part):
    """One verdict."""

    name: str
    passed: bool
    detail: str


class BlockRecord(_Part):
    """The times of one block."""

    steps_ms: tuple[float, ...] = Field(
        description="between one step's end and the next one's, milliseconds, in order"
    )
    median_ms: float | None = Field(description="median of steps_ms")
    gap_ms: float | None = Field(
        description="from the end of the block before to the first step's; it holds the prefill"
    )


class TurnRecord(_Part):
    """One prompt and its reply."""

    steps: int = Field(description="steps that the program counted")
    total_ms: float | None = Field(description="the program's own time for the turn; null where it broke off")
    reply_bytes: int
    reply_sha256: str
    blocks: tuple[BlockRecord, ...]


class Placement(_Part):
    """Where the program says that it ran."""

    layers: Frozen[str, int] = Field(
        description="layers computed on each device; empty where the program does not say"
    )
    offloaded: tuple[int, int] | None = Field(description="layers on GPUs, and all of them, by the loader")
    on: tuple[str, ...] = Field(description="optimizations that were on")
    off: tuple[str, ...] = Field(description="optimizations that were off")
    fallbacks: tuple[str, ...] = Field(description="warnings that something ran otherwise than asked for")


class CaseRecord(_Part):
    """One case: what was run, what was asked of it, and what became of it."""

    name: str
    about: str
    status: Status
    reason: str | None = Field(
        description="why it was skipped, or why the stock flavor has to fail it; null otherwise"
    )
    command: tuple[str, ...] = Field(description="program and arguments, files by their place or name")
    environment: Frozen[str, str] = Field(description="variables set for it")
    stdin: str | None = Field(description="what it read from standard input")
    gpus: int = Field(description="GPUs that it was to see")
    memory_mib: tuple[int, ...] | None = Field(
        description="limit of each GPU's memory that was emulated, 0 for none; null where there was no limit"
    )
    runs: int = Field(description="how often it was run")
    exit_code: int | None = Field(description="of the last run; null where it did not run or end")
    seconds: float | None = Field(description="of the last run, start included")
    verdicts: tuple[JudgedRule, ...]
    notes: tuple[str, ...] = Field(description="what could not be asked, and why")
    turns: tuple[TurnRecord, ...] = Field(description="of the last run")
    medians_ms: tuple[float, ...] = Field(
        description="of each run that was repeated: its last block's median"
    )
    placement: Placement | None


class SubjectRecord(_Part):
    """What was tested."""

    name: str = Field(description="the target, such as sm120-stock, or the binary's file name")
    flavor: str
    image: str | None = Field(description="the image's reference; null for a bare binary")
    image_id: str | None = Field(description="digest of the image's configuration")
    binary_sha256: str | None = Field(description="of a bare binary")
    version: str | None = Field(description="commit and series, as --version prints them")
    revision: str | None = Field(description="the pinned commit")
    series: str | None
    series_digest: str | None
    inputs: str | None = Field(description="digest of everything that went into the image")
    toolkit: str | None
    architectures: tuple[str, ...] = Field(description="machine code in it")
    ptx: tuple[str, ...]


class GpuRecord(_Part):
    """One GPU."""

    name: str
    compute_capability: str
    memory_bytes: int | None


class MachineRecord(_Part):
    """Where it ran."""

    engine: str = Field(description='"docker 20.10", or "host" for a bare binary')
    platform: str
    driver: str | None
    gpus: tuple[GpuRecord, ...] = Field(description="those that cases could see, in their order")
    logical_gpus: int | None = Field(
        description="devices that a preloaded library made of them; null where they are what they are"
    )


class ModelRecord(_Part):
    """The model file."""

    name: str
    bytes: int
    sha256: str


class Evidence(_Part):
    """Everything that one test run did and found."""

    schema_version: Literal[1] = Field(description="the version of this document's form")
    kind: Literal["test"]
    complete: bool = Field(description="false where the run was broken off: cases are missing then")
    selected: tuple[str, ...] = Field(
        description="patterns of the cases that were chosen, with what they are compared with; empty for all"
    )
    at_once: int = Field(description="how many cases ran side by side at most", ge=1)
    started: str = Field(description="ISO 8601, UTC", pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")
    seconds: float
    subject: SubjectRecord
    machine: MachineRecord
    model: ModelRecord | None = Field(description="null where there was no GPU to run one on")
    cases: tuple[CaseRecord, ...]

    @property
    def failed(self) -> tuple[CaseRecord, ...]:
        return tuple(case for case in self.cases if case.status in BAD)

    @property
    def skipped(self) -> tuple[CaseRecord, ...]:
        return tuple(case for case in self.cases if case.status == "skipped")

    @property
    def short_of_gpus(self) -> bool:
        """Whether a case was skipped for want of GPUs."""
        return any((case.reason or "").startswith(TOO_FEW_GPUS) for case in self.skipped)


def to_json(evidence: Evidence) -> str:
    """The document, as text that ends with a line's end."""
    return json.dumps(evidence.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def json_schema() -> str:
    """The JSON Schema of the document, as text that is the same on every run."""
    schema = Evidence.model_json_schema(mode="validation")
    ordered = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A test run of a llama-diffusion image",
        **{key: value for key, value in schema.items() if key not in ("$defs", "title")},
        "$defs": dict(sorted(schema["$defs"].items())),
    }
    return json.dumps(_without_titles(ordered), indent=2, ensure_ascii=False) + "\n"


def _without_titles(value: object, *, top: bool = True) -> object:
    """Without the titles that pydantic makes of attribute names."""
    if isinstance(value, list):
        return [_without_titles(one, top=False) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_titles(one, top=False)
        for key, one in value.items()
        if top or key != "title" or not isinstance(one, str)
    }


def to_junit(evidence: Evidence) -> str:
    """The same as JUnit XML, one test case a case, for what shows test results.

    A case that the stock flavor failed as it should is one that passed.
    """
    suite = ET.Element(
        "testsuite",
        name=f"llama-diffusion {evidence.subject.name}",
        timestamp=evidence.started.removesuffix("Z"),
        time=f"{evidence.seconds:.3f}",
        tests=str(len(evidence.cases)),
        failures=str(len(evidence.failed)),
        errors="0" if evidence.complete else "1",
        skipped=str(len(evidence.skipped)),
    )
    for case in evidence.cases:
        element = ET.SubElement(
            suite,
            "testcase",
            classname=evidence.subject.name,
            name=case.name,
            time=f"{case.seconds or 0:.3f}",
        )
        lines = [f"{'ok  ' if rule.passed else 'FAIL'} {rule.name}: {rule.detail}" for rule in case.verdicts]
        lines += [f"note {note}" for note in case.notes]
        if case.status == "skipped":
            ET.SubElement(element, "skipped", message=_xml(case.reason or ""))
        elif case.status in BAD:
            first = next((rule for rule in case.verdicts if not rule.passed), None)
            why = f"{first.name}: {first.detail}" if first is not None else case.status
            ET.SubElement(element, "failure", message=_xml(why)).text = _xml("\n".join(lines))
        if case.status not in BAD and lines:
            said = [f"{case.status}: {case.reason}"] if case.status == "failed as it should" else []
            ET.SubElement(element, "system-out").text = _xml("\n".join(said + lines))
    if not evidence.complete:
        element = ET.SubElement(suite, "testcase", classname=evidence.subject.name, name="the run itself")
        ET.SubElement(element, "error", message="the run was broken off; cases are missing")
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 can't hold."""
    return _NOT_XML.sub("\ufffd", text)
