"""What a registry's headers say."""

from __future__ import annotations

import pytest

from llama_images.adapters.registry_http import parse_challenge, retry_after

BEARER = 'Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push"'
PARAMETERS = {
    "realm": "https://auth.example/token",
    "service": "r.example",
    "scope": "repository:a/b:pull,push",
}
DATE = "Mon, 01 Jan 2001 12:00:00 GMT"


@pytest.mark.parametrize(
    ("header", "kind", "parameters"),
    [
        (BEARER, "bearer", PARAMETERS),
        (BEARER.replace("Bearer", "bearer").replace(",s", ", s"), "bearer", PARAMETERS),
        (f'Basic realm="x", {BEARER}', "bearer", PARAMETERS),
        ('Basic realm="x"', "basic", {"realm": "x"}),
        ("Bearer", "", {}),
        ("Negotiate", "", {}),
        ("", "", {}),
    ],
)
def test_a_challenge_is_read_and_a_token_goes_before_a_password(
    header: str, kind: str, parameters: dict[str, str]
) -> None:
    assert parse_challenge(header) == (kind, parameters)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 0 "}, 0.0),
        ({"Retry-After": "Mon, 01 Jan 2001 12:00:09 GMT", "Date": DATE}, 9.0),
        ({"Retry-After": "Mon, 01 Jan 2001 11:00:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Mon, 01 Jan 2001 12:00:09 GMT"}, None),
        ({"Retry-After": "soon", "Date": DATE}, None),
        ({"Retry-After": "-5"}, None),
        ({}, None),
    ],
)
def test_a_time_to_wait_is_taken_by_the_registrys_clock(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers) == seconds
