"""Which evidence lets an image be published."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_images.clearance import GivenEvidence, fitting, parse_evidence, summary_of
from llama_images.errors import CheckFailed, UsageError
from llama_images.evidence import Evidence, to_json
from tests.unit.evidences import case, evidence_of

DIGEST, OTHER = "sha256:" + "5" * 64, "sha256:" + "6" * 64
PASSED, FAILED, SKIPPED = case("one"), case("two", "failed"), case("three", "skipped")
AS_IT_SHOULD = case("four", "failed as it should", reason="stock keeps no cache")
WITHOUT_GPU = case("refusal", gpus=0)
ON_CPU: dict[str, Any] = {"gpus": (), "cases": [WITHOUT_GPU, WITHOUT_GPU, SKIPPED]}


def made(**other: Any) -> Evidence:
    return evidence_of(**{"image_id": DIGEST, "cases": [PASSED, PASSED, SKIPPED], **other})


def given(name: str = "evidence.json", **other: Any) -> GivenEvidence:
    found = parse_evidence(to_json(made(**other)).encode(), name)
    assert found is not None
    return found


def text(**other: Any) -> bytes:
    """A document that has these keys instead."""
    return json.dumps(made().model_dump(mode="json") | other).encode()


def test_evidence_for_this_image_and_tier_is_found() -> None:
    own = given()
    assert fitting([given(image_id=OTHER), own], [DIGEST], tier="gpu", what="sm120") is own
    cpu = given(**ON_CPU)
    assert fitting([own, cpu], [DIGEST], tier="cpu", what="cpu") is cpu
    stock = given(cases=[PASSED, AS_IT_SHOULD])
    assert fitting([stock], [DIGEST], tier="gpu", what="sm120-stock") is stock


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "there is no evidence that sm120 passed the tests of the gpu tier$"),
        ([given(image_id=OTHER)], "there is no evidence that sm120"),
        (
            [given(**ON_CPU)],
            "gpu tier; evidence.json is of the cpu tier: 2 cases passed, 1 skipped, on the CPU",
        ),
        ([given(cases=[PASSED, FAILED])], "did not pass its tests: evidence.json: 1 of 2 cases failed"),
        ([given(), given("b.json", cases=[FAILED])], "did not pass its tests: b.json: 1 of 1 case failed"),
        ([given(cases=[case("one", "passed though it should fail")])], "did not pass its tests"),
        ([given(complete=False)], "gpu tier; evidence.json is of the gpu tier: the run was broken off"),
        ([given(selected=("refuse*",))], r"only some cases were chosen: refuse\*"),
        (
            [given(cases=[PASSED, case("soak", "skipped", reason="the deadline has passed")])],
            "its deadline passed before the last case",
        ),
        ([given(cases=[SKIPPED])], "no case was run$"),
        ([given(cases=[])], "no case was run$"),
        ([given(cases=[WITHOUT_GPU, SKIPPED])], "no case was run on a GPU"),
    ],
)
def test_without_it_nothing_is_published(files: list[GivenEvidence], words: str) -> None:
    with pytest.raises(CheckFailed, match=words) as caught:
        fitting(files, [DIGEST], tier="gpu", what="sm120")
    assert caught.value.hint


@pytest.mark.parametrize("empty", [{"complete": False}, {"cases": [SKIPPED]}, {"selected": ("one",)}])
def test_a_run_that_says_nothing_does_not_stand_against_one_that_passed(empty: dict[str, Any]) -> None:
    whole = given()
    assert fitting([given(**empty), whole], [DIGEST], tier="gpu", what="sm120") is whole


@pytest.mark.parametrize("part", [{"complete": False}, {"selected": ("two",)}])
def test_a_case_that_failed_counts_though_the_run_was_not_whole(part: dict[str, Any]) -> None:
    with pytest.raises(CheckFailed, match="did not pass its tests"):
        fitting([given(cases=[FAILED], **part), given()], [DIGEST], tier="gpu", what="sm120")


def test_the_document_is_kept_to_the_letter() -> None:
    assert given().document == json.loads(to_json(made()))


def test_a_document_of_another_kind_is_passed_over() -> None:
    assert parse_evidence(json.dumps({"kind": "bench"}).encode(), "bench.json") is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no test evidence$"),
        (b"\xff\xfe\xff", "is no test evidence$"),
        (b"[]", "is no test evidence$"),
        (b"{}", "is no test evidence$"),
        (b'{"kind": "test"}', "is no test evidence$"),
        (text(cases=None), "is no test evidence: cases: "),
        (text(verdict="passed"), "is no test evidence: verdict: Extra inputs are not permitted"),
        (text(schema_version=2), "is evidence of form 2, this reads form 1"),
        (to_json(made(image_id=None)).encode(), "is about no image"),
        (to_json(made(image_id="llama-diffusion:sm120")).encode(), "is about no image"),
    ],
)
def test_what_is_no_evidence(data: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=rf"^evidence\.json {words}") as caught:
        parse_evidence(data, "evidence.json")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({}, "2 cases passed, 1 skipped, on 2 × NVIDIA H200"),
        ({"cases": [PASSED, FAILED]}, "1 case passed, 1 failed, on 2 × NVIDIA H200"),
        (ON_CPU, "2 cases passed, 1 skipped, on the CPU"),
        ({"gpus": ["A"], "logical": 2}, "2 cases passed, 1 skipped, on 1 × A as 2 devices"),
    ],
)
def test_a_document_in_some_words(other: dict[str, Any], words: str) -> None:
    assert summary_of(made(**other).model_dump(mode="json")) == words


def test_a_document_of_another_form_is_not_guessed_at() -> None:
    assert summary_of({**made().model_dump(mode="json"), "cases": 1}) == "in an unknown form"
