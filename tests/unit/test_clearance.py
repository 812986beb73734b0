"""Which evidence lets an image be published."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_images.clearance import Evidence, fitting, parse_evidence, summary_of
from llama_images.errors import CheckFailed, UsageError

DIGEST, OTHER = "sha256:" + "5" * 64, "sha256:" + "6" * 64
PASSED, FAILED, SKIPPED = ({"status": status} for status in ("passed", "failed", "skipped"))
AS_IT_SHOULD = {"status": "failed as it should"}


def document(**other: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "test",
        "complete": True,
        "subject": {"image_id": DIGEST},
        "machine": {"gpus": [{"name": "NVIDIA H200"}, {"name": "NVIDIA H200"}], "logical_gpus": None},
        "cases": [PASSED, PASSED, SKIPPED],
        **other,
    }


def evidence(name: str = "evidence.json", **other: Any) -> Evidence:
    found = parse_evidence(json.dumps(document(**other)).encode(), name)
    assert found is not None
    return found


CPU: dict[str, Any] = {"machine": {"gpus": [], "logical_gpus": None}}
ABOUT_ANOTHER: dict[str, Any] = {"subject": {"image_id": OTHER}}


def test_evidence_for_this_image_and_tier_is_found() -> None:
    own = evidence()
    assert fitting([evidence(**ABOUT_ANOTHER), own], [DIGEST], tier="gpu", what="sm120") is own
    cpu = evidence(**CPU)
    assert fitting([own, cpu], [DIGEST], tier="cpu", what="cpu") is cpu
    stock = evidence(cases=[PASSED, AS_IT_SHOULD])
    assert fitting([stock], [DIGEST], tier="gpu", what="sm120-stock") is stock


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "there is no evidence that sm120 passed the tests of the gpu tier$"),
        ([evidence(**ABOUT_ANOTHER)], "there is no evidence that sm120"),
        (
            [evidence(**CPU)],
            "gpu tier; evidence.json is of the cpu tier: 2 cases passed, 1 skipped, on the CPU",
        ),
        ([evidence(cases=[PASSED, FAILED])], "did not pass its tests: evidence.json: 1 of 2 cases failed"),
        ([evidence(), evidence("b.json", cases=[FAILED])], "did not pass its tests: b.json"),
        ([evidence(cases=[{"status": "passed though it should fail"}])], "did not pass its tests"),
        ([evidence(complete=False)], "gpu tier; evidence.json is of the gpu tier: the run was broken off"),
        ([evidence(cases=[SKIPPED])], "no case was run"),
        ([evidence(cases=[])], "no case was run"),
    ],
)
def test_without_it_nothing_is_published(given: list[Evidence], words: str) -> None:
    with pytest.raises(CheckFailed, match=words) as caught:
        fitting(given, [DIGEST], tier="gpu", what="sm120")
    assert caught.value.hint


@pytest.mark.parametrize("empty", [{"complete": False}, {"cases": [SKIPPED]}])
def test_a_run_that_says_nothing_does_not_stand_against_one_that_passed(empty: dict[str, Any]) -> None:
    whole = evidence()
    assert fitting([evidence(**empty), whole], [DIGEST], tier="gpu", what="sm120") is whole


def test_a_case_that_failed_counts_though_the_run_was_broken_off() -> None:
    broken = evidence(complete=False, cases=[FAILED])
    with pytest.raises(CheckFailed, match="did not pass its tests"):
        fitting([broken, evidence()], [DIGEST], tier="gpu", what="sm120")


def test_a_document_of_another_kind_is_passed_over() -> None:
    assert parse_evidence(json.dumps({"kind": "bench"}).encode(), "bench.json") is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no test evidence"),
        (b"[]", "is no test evidence"),
        (b"{}", "is no test evidence"),
        (json.dumps(document(cases=None)).encode(), "is no test evidence"),
        (json.dumps(document(schema_version=2)).encode(), "is evidence of form 2, this reads form 1"),
        (json.dumps(document(subject={"image_id": None})).encode(), "is about no image"),
        (json.dumps(document(subject={"image_id": "llama-diffusion:sm120"})).encode(), "is about no image"),
    ],
)
def test_what_is_no_evidence(data: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=rf"^evidence\.json {words}"):
        parse_evidence(data, "evidence.json")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({}, "2 cases passed, 1 skipped, on 2 × NVIDIA H200"),
        ({"cases": [PASSED, FAILED]}, "1 case passed, 1 failed, on 2 × NVIDIA H200"),
        (CPU, "2 cases passed, 1 skipped, on the CPU"),
        (
            {"machine": {"gpus": [{"name": "A"}], "logical_gpus": 2}},
            "2 cases passed, 1 skipped, on 1 × A as 2 devices",
        ),
        ({"cases": 1}, "in an unknown form"),
    ],
)
def test_a_document_in_some_words(other: dict[str, Any], words: str) -> None:
    assert summary_of(document(**other)) == words
