"""What a registry's headers say."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from llama_images.adapters.registry_http import RegistryHttp, SafeSession, parse_challenge, retry_after
from llama_images.errors import BadAnswer

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
        ({"Retry-After": "Mon, 01 Jan 2001 12:00:09 -0000", "Date": DATE}, None),
        ({"Retry-After": "soon", "Date": DATE}, None),
        ({"Retry-After": "-5"}, None),
        ({}, None),
    ],
)
def test_a_time_to_wait_is_taken_by_the_registrys_clock(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers) == seconds


def redirect(there: str, here: str = "https://registry.test/v2/a/blobs/x") -> requests.Response:
    answer = requests.Response()
    answer.status_code, answer.url, answer.headers["Location"] = 307, here, there
    answer.request = requests.Request("GET", here, headers={"Authorization": "Bearer x"}).prepare()
    return answer


@pytest.mark.parametrize(
    ("there", "kept"), [("https://registry.test/there", "Bearer x"), ("https://blobs.test/x", None)]
)
def test_a_redirect_takes_no_password_along_and_fetches_none(
    there: str, kept: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine blobs.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert requests.utils.get_netrc_auth("https://blobs.test/x") == ("me", "secret")
    request = requests.Request("GET", there, headers={"Authorization": "Bearer x"}).prepare()
    with SafeSession(lambda _url: True) as session:
        session.rebuild_auth(request, redirect(there))
    assert request.headers.get("Authorization") == kept


@pytest.mark.parametrize(
    ("base", "address", "safe"),
    [
        ("https://registry.test", "https://blobs.test/x", True),
        ("https://registry.test", "http://blobs.test/x", False),
        ("https://registry.test", "http://127.0.0.1:80/x", False),
        ("https://registry.test", "file:///etc/passwd", False),
        ("http://127.0.0.1:5000", "http://localhost:5001/x", True),
        ("http://127.0.0.1:5000", "http://registry.test/x", False),
        ("http://127.0.0.1:5000", "https://registry.test/x", True),
        ("http://registry.test", "http://registry.test/x", False),
    ],
)
def test_nothing_goes_without_tls_but_on_this_machine(base: str, address: str, safe: bool) -> None:
    http = RegistryHttp(base)
    with SafeSession(http._is_safe) as session:
        if safe:
            assert session.get_redirect_target(redirect(address)) == address
            return
        with pytest.raises(BadAnswer, match=r"leads to .* without TLS"):
            session.get_redirect_target(redirect(address))
    # The place of an upload, an address of the caller's.
    with pytest.raises(BadAnswer, match="without TLS"):
        http.ask("PUT", address, "an upload", scope="a:push")
