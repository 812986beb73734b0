"""A hub on this machine's loopback: what the Hugging Face Hub answers for a file, and its mishaps."""

from __future__ import annotations

import hashlib
import http.server
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = "owner/Tiny-GGUF"
FILE = "Tiny-Q4_K_M.gguf"
COMMIT = "5f3c0b1a9e8d7c6b5a4938271605f4e3d2c1b0a9"
# http_get writes 10 MiB at a time: only a longer file can be half there.
BODY = random.Random(1).randbytes(25_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Hub:
    """What the server does; a test changes it. Requests are kept as (method, path, Range)."""

    body: bytes = BODY
    etag: str | None = SHA256
    size: int | None = None
    """What is announced; the body's own where None."""
    status: int = 200
    error_code: str | None = None
    cut_after: list[int] = field(default_factory=list)
    """For each download in turn, the bytes after which its connection breaks."""
    honours_ranges: bool = True
    is_hub: bool = True
    token: str | None = None
    """What must come as a bearer token."""
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent: threading.Event = field(default_factory=threading.Event)
    """Set when a download has been cut."""
    hold: threading.Event = field(default_factory=threading.Event)
    """A cut download stays open until this is set."""

    def __post_init__(self) -> None:
        self.hold.set()

    @property
    def ranges(self) -> list[str | None]:
        """The Range of every download that reached the storage."""
        return [asked for method, path, asked in self.requests if method == "GET" and path == "/storage"]


def handler_of(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its parent's name
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            hub.requests.append((self.command, self.path, self.headers.get("Range")))
            if self.path == "/storage":
                self.storage()
                return None
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            code = hub.error_code
            if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.plain(401, "RepoNotFound")
            if hub.status != 200:
                return self.plain(hub.status, code)
            if found is None or found[1] != REPOSITORY:
                return self.plain(401, "RepoNotFound")
            if found[2] not in ("main", COMMIT):
                return self.plain(404, "RevisionNotFound")
            if found[3] != FILE:
                return self.plain(404, "EntryNotFound")
            self.send_response(302)
            if hub.is_hub:
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Linked-Size", str(len(hub.body) if hub.size is None else hub.size))
            if hub.etag is not None:
                self.send_header("X-Linked-Etag", f'"{hub.etag}"')
            # Another host, as in reality: the client asks it for the bytes alone, and shows it no token.
            self.send_header("Location", f"{hub.url.replace('127.0.0.1', 'localhost')}/storage")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def plain(self, status: int, code: str | None) -> None:
            self.send_response(status)
            if code is not None:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def storage(self) -> None:
            assert "Authorization" not in self.headers
            asked = self.headers.get("Range")
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked) if asked and hub.honours_ranges else None
            start = int(found[1]) if found else 0
            end = int(found[2]) + 1 if found and found[2] else len(hub.body)
            body = hub.body[start:end]
            self.send_response(206 if found else 200)
            if found:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(hub.body)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cut_after:
                body = body[: hub.cut_after.pop(0)]
                self.wfile.write(body)
                self.wfile.flush()
                hub.sent.set()
                hub.hold.wait(30)
                self.close_connection = True
                return
            self.wfile.write(body)

    return Handler


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is what some tests are about."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()
    with Server(("127.0.0.1", 0), handler_of(state)) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            state.hold.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"
