"""Why a request failed, in the words of its innermost cause."""

from __future__ import annotations

import errno
import os

import pytest
import requests
import urllib3
import urllib3.connectionpool
import urllib3.exceptions

from llama_images.adapters.network import causes, reason


def refused() -> requests.ConnectionError:
    """A refused connection as requests reports it: the cause is among the arguments, three levels down."""
    inner = urllib3.exceptions.ProtocolError(
        "Connection aborted.", ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    )
    pool = urllib3.connectionpool.HTTPConnectionPool("registry.example")
    return requests.ConnectionError(urllib3.exceptions.MaxRetryError(pool, "/v2/", inner))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refused(), "connection refused"),
        (requests.ReadTimeout("Read timed out."), "no answer in time"),
        (requests.exceptions.SSLError("certificate verify failed"), "its TLS certificate is not trusted"),
        (requests.exceptions.InvalidURL("x"), "InvalidURL"),
    ],
)
def test_a_failed_request_is_told_in_a_few_words(error: requests.RequestException, words: str) -> None:
    assert reason(error) == words


def test_each_cause_comes_once_even_where_errors_name_each_other() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__context__ = second, first
    second.args = (first,)
    assert list(causes(first)) == [first, second]
