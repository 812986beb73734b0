"""What is kept of a build."""

from __future__ import annotations

import hashlib
import json

import pytest

from llama_images.build_record import BuildRecord, input_digest

PARTS = {
    "dockerfile": "FROM scratch\n",
    "common": {"compile": "0" * 64},
    "source": "1" * 40,
    "paths": ["src"],
    "base": None,
    "platform": "linux/amd64",
}
RECORD = BuildRecord(
    parts=PARTS, engine="docker 20.10.24", started="2026-11-24T15:00:00Z", finished="2026-11-24T15:01:00Z"
)


def test_input_digest_depends_on_every_part_and_not_on_their_order() -> None:
    one = input_digest({"a": "1", "b": ["x"]})
    assert one == input_digest({"b": ["x"], "a": "1"})
    assert len({one, input_digest({"a": "2", "b": ["x"]}), input_digest({"a": "1", "b": ["y"]})}) == 3


def test_a_record_is_read_back() -> None:
    read = BuildRecord.parse(json.dumps(RECORD.as_json()))
    assert read == RECORD
    assert read.inputs == input_digest(PARTS)
    assert read.dockerfile_sha256 == hashlib.sha256(b"FROM scratch\n").hexdigest()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"parts": {}, "engine": "x", "started": null, "finished": null}', '{"parts": 1}'],
)
def test_what_is_no_record_is_not_taken_for_one(text: str) -> None:
    assert BuildRecord.parse(text) is None
