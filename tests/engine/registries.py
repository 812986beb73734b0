"""Registries for tests: Debian's docker-registry in several settings, and a proxy in front of one that fails.

Nothing here imitates a registry: every answer that is not a fault comes from the real program.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import http.server
import ipaddress
import json
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.registry import PROGRAM

needs_registry = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")

USER = "publisher"
PASSWORD = "correct-horse-battery-staple-5b1d"
# bcrypt of the password; nothing that tests need makes one.
HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuu0Ta99dQJnchQcVQQR7ytoJfSYTOpwA6\n"


@contextlib.contextmanager
def serving(
    folder: Path,
    *,
    auth: Mapping[str, Any] | None = None,
    tls: tuple[Path, Path] | None = None,
    store: Path | None = None,
    delete: bool = True,
) -> Iterator[str]:
    """Runs docker-registry; gives its ``127.0.0.1:PORT``. ``tls`` is certificate and key."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    settings: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(store or folder / "store")},
            "delete": {"enabled": delete},
        },
        "http": {"addr": host},
    }
    if auth is not None:
        settings["auth"] = auth
    if tls is not None:
        settings["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    (folder / "config.json").write_text(json.dumps(settings))
    running = SystemPrograms(grace=5).start(
        [PROGRAM, "serve", str(folder / "config.json")], log=folder / "registry.log"
    )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(tuple_of(host), timeout=1):
                break
            assert running.poll() is None, (folder / "registry.log").read_text()
            time.sleep(0.05)
        yield host
    finally:
        running.stop()


def tuple_of(host: str) -> tuple[str, int]:
    name, _, port = host.rpartition(":")
    return name, int(port)


def basic_auth(folder: Path) -> dict[str, Any]:
    """A registry's setting for the one user that there is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_text(HTPASSWD)
    return {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}


def docker_config(folder: Path, host: str, password: str = PASSWORD) -> Path:
    """A folder as DOCKER_CONFIG wants it, with a login for ``host``."""
    folder.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return folder


# --- certificates ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Certificate and key as files in PEM form."""
        folder.mkdir(parents=True, exist_ok=True)
        pem = serialization.Encoding.PEM
        (folder / "cert.pem").write_bytes(self.certificate.public_bytes(pem))
        (folder / "key.pem").write_bytes(
            self.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return folder / "cert.pem", folder / "key.pem"


def certificate(
    issuer: Certificate | None = None,
    *,
    name: str = "tests",
    host: str = "127.0.0.1",
    begins: dt.timedelta = dt.timedelta(days=-1),
    lasts: dt.timedelta = dt.timedelta(days=2),
) -> Certificate:
    """An authority where there is no issuer, else a server's certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = dt.datetime.now(dt.UTC) + begins
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + lasts)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        address = x509.IPAddress(ipaddress.ip_address(host))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    signed = builder.sign(key if issuer is None else issuer.key, hashes.SHA256())
    return Certificate(key, signed)


# --- tokens ---------------------------------------------------------------------------------------


@dataclass
class TokenServer:
    """Gives out tokens to who knows the password, as a registry's own token service does."""

    signer: Certificate
    address: str = ""
    seconds: int = 300
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    refuse: bool = False

    def setting(self, bundle: Path) -> dict[str, Any]:
        """A registry's setting for tokens of this server."""
        bundle.write_bytes(self.signer.certificate.public_bytes(serialization.Encoding.PEM))
        return {
            "token": {
                "realm": f"{self.address}/token",
                "service": "tests",
                "issuer": "tests",
                "rootcertbundle": str(bundle),
            }
        }

    def token(self, user: str, scopes: list[str]) -> str:
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        der = self.signer.certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        claims: dict[str, Any] = {"iss": "tests", "aud": "tests", "sub": user, "jti": uuid.uuid4().hex}
        claims |= {"iat": now, "nbf": now - 10, "exp": now + self.seconds, "access": access}
        text = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        signature = self.signer.key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = utils.decode_dss_signature(signature)
        return f"{text}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextlib.contextmanager
def token_server() -> Iterator[TokenServer]:
    server = TokenServer(certificate())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            server.asked.append(query)
            expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if server.refuse or self.headers.get("Authorization") != expected:
                answer(self, 401, b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}')
                return
            scopes = " ".join(query.get("scope", [])).split()
            answer(
                self,
                200,
                json.dumps({"token": server.token(USER, scopes), "expires_in": server.seconds}).encode(),
            )

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            server.asked.append({key: value for key, value in form.items() if key != "refresh_token"})
            if form.get("refresh_token") != [PASSWORD]:
                answer(self, 401, b"{}")
                return
            scopes = " ".join(form.get("scope", [])).split()
            answer(self, 200, json.dumps({"access_token": server.token(USER, scopes)}).encode())

        def log_message(self, *_: object) -> None: ...

    with listening(Handler) as address:
        server.address = f"http://{address}"
        yield server


def answer(
    handler: http.server.BaseHTTPRequestHandler,
    code: int,
    body: bytes,
    headers: Mapping[str, str] | None = None,
) -> None:
    handler.send_response_only(code)  # without a date and a name of its own
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    if "Content-Length" not in (headers or {}):
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


@contextlib.contextmanager
def listening(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# --- a proxy that fails ---------------------------------------------------------------------------


@dataclass
class Fault:
    """What goes wrong with the requests that match, ``times`` times after ``skip`` went well."""

    method: str
    path: str
    """A regular expression, searched."""
    status: int | None = None
    """Answered in place of the registry."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of that answer, or put into the registry's own."""
    body: bytes = b""
    cut_request: int | None = None
    """The connection breaks after so many bytes of what is sent; the registry gets them."""
    alter_request: bool = False
    """The last byte of what is sent becomes another."""
    keep: bool = False
    """With ``cut_request``: what came stays, as where uploads are found by their identifier alone."""
    cut_answer: int | None = None
    """The connection breaks after so many bytes of the answer's body."""
    alter: tuple[bytes, bytes] | None = None
    """Bytes of the answer that become others of the same length."""
    times: int = 1
    skip: int = 0

    def strikes(self, method: str, path: str) -> bool:
        if method != self.method or not re.search(self.path, path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times <= 0:
            return False
        self.times -= 1
        return True


@dataclass
class Proxy:
    """In front of a registry on loopback; keeps a list of what was asked."""

    upstream: str
    host: str = ""
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """``PATCH /v2/… 1000``: method, path without query, bytes of the body."""
    headers: list[dict[str, str]] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    """Path of an upload to the query that the registry knows it by, since a part of it was kept."""

    def count(self, method: str, path: str = "") -> int:
        return sum(line.startswith(f"{method} ") and re.search(path, line) is not None for line in self.asked)


@contextlib.contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    state = Proxy(upstream)
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            with lock:
                state.asked.append(f"{self.command} {urlsplit(self.path).path} {length}")
                state.headers.append(dict(self.headers.items()))
                fault = next((one for one in state.faults if one.strikes(self.command, self.path)), None)
            self.close_connection = True
            if fault is not None and fault.status is not None:
                while length > 0 and (data := self.rfile.read(min(length, 65536))):
                    length -= len(data)
                answer(self, fault.status, fault.body, fault.headers)
                return
            connection = http.client.HTTPConnection(*tuple_of(state.upstream), timeout=30)
            with contextlib.closing(connection):
                self.forward(connection, length, fault)

        def forward(self, connection: http.client.HTTPConnection, length: int, fault: Fault | None) -> None:
            path, _, query = self.path.partition("?")
            keep = fault is not None and fault.keep
            if path in state.kept and "digest=" not in query:
                query = state.kept[path] if self.command == "GET" else state.kept.pop(path)
            connection.putrequest(self.command, f"{path}?{query}" if query else path, True, True)
            for name, value in self.headers.items():
                if keep and fault is not None and name.lower() == "content-length":
                    connection.putheader(name, str(fault.cut_request))
                elif name.lower() not in ("connection", "content-range"):
                    connection.putheader(name, value)
            connection.endheaders()
            sent = 0
            while sent < length:
                limit = length if fault is None or fault.cut_request is None else fault.cut_request
                data = self.rfile.read(min(65536, limit - sent))
                sent += len(data)
                if sent == length and fault is not None and fault.alter_request:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                connection.send(data)
                if sent >= limit < length:
                    if keep:
                        location = connection.getresponse().headers["Location"]
                        state.kept[path] = urlsplit(location).query
                    self.break_off(connection)
                    return
            response = connection.getresponse()
            body = response.read()
            headers = {key: value for key, value in response.getheaders() if key.lower() != "connection"}
            if fault is not None:
                headers |= fault.headers
                if fault.alter is not None:
                    body = body.replace(*fault.alter)
                if fault.cut_answer is not None:
                    headers["Content-Length"] = str(len(body))
                    body = body[: fault.cut_answer]
            headers = {key: value for key, value in headers.items() if key.lower() != "transfer-encoding"}
            answer(self, response.status, body, headers)
            if fault is not None and fault.cut_answer is not None:
                self.wfile.flush()
                self.break_off(connection)

        def break_off(self, connection: http.client.HTTPConnection) -> None:
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError):
                super().finish()

        def log_message(self, *_: object) -> None: ...

    with listening(Handler) as host:
        state.host = host
        yield state
