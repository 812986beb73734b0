"""Filling a registry: Debian's docker-registry behind a proxy that fails as networks and registries do."""

from __future__ import annotations

import datetime as dt
import email.utils
import os
import secrets
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_images import oci
from llama_images.adapters.credentials import Credentials, docker_login
from llama_images.adapters.registry_client import RegistryClient, authorities_for, connect
from llama_images.errors import OutsideError, UsageError
from llama_images.oci import Descriptor, Manifest
from tests.engine.registries import (
    PASSWORD,
    USER,
    Fault,
    Proxy,
    TokenServer,
    basic_auth,
    certificate,
    docker_config,
    needs_registry,
    proxy,
    serving,
    token_server,
)

pytestmark = needs_registry

UPLOAD = "/blobs/uploads/"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def front(host: str) -> Iterator[Proxy]:
    with proxy(host) as running:
        yield running


class Client(RegistryClient):
    """A client that waits for nothing, and keeps what it would have waited and said."""

    def __init__(self, host: str, **options: Any) -> None:
        self.slept: list[float] = []
        self.said: list[str] = []
        super().__init__(
            f"http://{host}", sleep=self.slept.append, on_wait=self.said.append, timeout=20, **options
        )


@pytest.fixture
def client(front: Proxy) -> Client:
    return Client(front.host)


@pytest.fixture
def name() -> str:
    return f"tests/{secrets.token_hex(6)}"


def blob(folder: Path, size: int) -> tuple[Descriptor, Path]:
    """A file of bytes that no registry has seen."""
    data = secrets.token_bytes(size)
    path = folder / secrets.token_hex(4)
    path.write_bytes(data)
    return Descriptor.of(data, oci.LAYER_GZIP), path


def image(client: RegistryClient, name: str, folder: Path) -> Manifest:
    """The manifest of an image whose blobs are in the registry."""
    layer, path = blob(folder, 1000)
    client.push_blob(name, layer, path)
    config = client.push_bytes(name, b'{"os":"linux","architecture":"amd64"}', oci.CONFIG)
    return oci.image_manifest(config, [layer], {"a": "b"})


def one_line(error: BaseException) -> str:
    assert isinstance(error, OutsideError)
    assert "\n" not in error.message
    assert error.exit_code == 3
    return error.message


# --- what goes well -------------------------------------------------------------------------------


def test_a_blob_is_sent_once(client: Client, front: Proxy, name: str, tmp_path: Path) -> None:
    layer, path = blob(tmp_path, 3 << 20)
    there: list[int] = []
    assert client.push_blob(name, layer, path, on_bytes=there.append)
    assert there[-1] == layer.size
    assert front.count("PATCH") == 1
    assert not client.push_blob(name, layer, path)
    assert front.count("PATCH") == 1
    client.read_blob(name, layer.digest, layer.size)
    assert client.slept == []


def test_an_empty_blob_can_be_sent(client: Client, name: str, tmp_path: Path) -> None:
    layer, path = blob(tmp_path, 0)
    client.push_blob(name, layer, path)
    assert client.blob(name, layer.digest) == b""


def test_a_blob_of_another_repository_is_mounted(
    client: Client, front: Proxy, name: str, tmp_path: Path
) -> None:
    layer, path = blob(tmp_path, 1 << 20)
    client.push_blob(f"{name}/staging", layer, path)
    assert front.count("PATCH") == 1
    assert not client.push_blob(name, layer, path, mount_from=["no/such", f"{name}/staging"])
    assert front.count("PATCH") == 1
    client.read_blob(name, layer.digest, layer.size)


def test_a_blob_that_can_not_be_mounted_is_sent(client: Client, name: str, tmp_path: Path) -> None:
    layer, path = blob(tmp_path, 100)
    assert client.push_blob(name, layer, path, mount_from=["no/such"])


def test_manifests_by_digest_and_by_tag(client: Client, name: str, tmp_path: Path) -> None:
    manifest = image(client, name, tmp_path)
    client.push_manifest(name, manifest)
    assert client.tags(name) == ()
    assert client.find(name, "v1") is None
    client.push_manifest(name, manifest, "v1")
    assert client.tags(name) == ("v1",)
    listed = oci.index([manifest.descriptor])
    client.push_manifest(name, listed, "both")
    assert client.manifest(name, "both") == listed
    assert client.read_image(name, "both").compressed_bytes == 1000


def attached(client: RegistryClient, name: str, subject: Manifest, text: bytes) -> Manifest:
    client.push_bytes(name, oci.EMPTY_JSON, oci.EMPTY)
    content = client.push_bytes(name, text, "application/x-test")
    return oci.attachment(
        subject.descriptor, content, artifact_type="application/x-test", annotations={"text": text.decode()}
    )


def test_referrers_without_the_api_are_kept_under_a_tag(client: Client, name: str, tmp_path: Path) -> None:
    subject = image(client, name, tmp_path)
    client.push_manifest(name, subject)
    assert client.referrers(name, subject.digest) == ()
    for text in (b"one", b"two", b"one"):
        client.push_referrer(name, attached(client, name, subject, text))
    found = client.referrers(name, subject.digest)
    assert sorted(entry.annotations["text"] for entry in found) == ["one", "two"]
    assert {entry.artifact_type for entry in found} == {"application/x-test"}
    assert client.tags(name) == (subject.digest.replace(":", "-"),)


def test_referrers_by_the_api(client: Client, front: Proxy, name: str, tmp_path: Path) -> None:
    """docker-registry has no such API: the proxy gives the two answers that make the difference."""
    subject = image(client, name, tmp_path)
    client.push_manifest(name, subject)
    manifest = attached(client, name, subject, b"one")
    listed = oci.index([manifest.descriptor])
    front.faults += [
        Fault("PUT", "/manifests/", headers={"OCI-Subject": subject.digest}),
        Fault("GET", "/referrers/", status=200, body=listed.raw, headers={"Content-Type": oci.INDEX}),
    ]
    client.push_referrer(name, manifest)
    assert client.tags(name) == (), "with the API no tag is needed"


def test_a_registry_that_claims_the_api_and_lists_nothing_is_found_out(
    client: Client, front: Proxy, name: str, tmp_path: Path
) -> None:
    subject = image(client, name, tmp_path)
    client.push_manifest(name, subject)
    front.faults.append(Fault("PUT", "/manifests/", headers={"OCI-Subject": subject.digest}))
    with pytest.raises(OutsideError, match="does not list") as caught:
        client.push_referrer(name, attached(client, name, subject, b"one"))
    one_line(caught.value)


def test_what_is_deleted_is_gone_with_its_tags(client: Client, name: str, tmp_path: Path) -> None:
    manifest = image(client, name, tmp_path)
    client.push_manifest(name, manifest, "v1")
    client.delete(name, manifest.digest)
    client.delete(name, manifest.digest)
    assert client.find(name, manifest.digest) is None
    assert client.find(name, "v1") is None


def test_a_registry_that_deletes_nothing_says_so(tmp_path: Path, name: str) -> None:
    with serving(tmp_path / "registry", delete=False) as host:
        client = Client(host)
        manifest = image(client, name, tmp_path)
        client.push_manifest(name, manifest, "v1")
        with pytest.raises(OutsideError, match="does not let anything be deleted") as caught:
            client.delete(name, manifest.digest)
        one_line(caught.value)


# --- connections that break -----------------------------------------------------------------------


def sizes(front: Proxy) -> list[int]:
    return [int(line.split()[2]) for line in front.asked if line.startswith("PATCH")]


def test_a_blob_that_breaks_off_is_sent_again(
    client: Client, front: Proxy, name: str, tmp_path: Path
) -> None:
    """docker-registry finds an upload no more once a part of it has broken off."""
    layer, path = blob(tmp_path, 4 << 20)
    front.faults.append(Fault("PATCH", UPLOAD, cut_request=3 << 20))
    client.push_blob(name, layer, path)
    client.read_blob(name, layer.digest, layer.size)
    assert sizes(front) == [layer.size, layer.size]
    assert len(client.slept) == 1
    assert "can't be reached" in client.said[0]
    assert "again in" in client.said[0]


def test_a_blob_that_breaks_off_is_continued_where_the_registry_has_it(
    client: Client, front: Proxy, name: str, tmp_path: Path
) -> None:
    layer, path = blob(tmp_path, 4 << 20)
    front.faults += [
        Fault("PATCH", UPLOAD, cut_request=3 << 20, keep=True),
        Fault("PATCH", UPLOAD, cut_request=100_000, keep=True),
    ]
    there: list[int] = []
    client.push_blob(name, layer, path, on_bytes=there.append)
    client.read_blob(name, layer.digest, layer.size)
    assert sizes(front) == [4 << 20, 1 << 20, (1 << 20) - 100_000]
    assert there[-1] == layer.size
    assert front.count("POST") == 1


def test_an_upload_that_the_registry_loses_is_begun_anew(
    client: Client, front: Proxy, name: str, tmp_path: Path
) -> None:
    layer, path = blob(tmp_path, 1 << 20)
    front.faults += [
        Fault("PATCH", UPLOAD, cut_request=500_000),
        Fault("GET", UPLOAD, status=404, body=b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}'),
    ]
    client.push_blob(name, layer, path)
    assert front.count("POST") == 2
    client.read_blob(name, layer.digest, layer.size)


def test_a_connection_that_always_breaks_is_given_up_and_leaves_nothing(
    client: Client, front: Proxy, name: str, tmp_path: Path
) -> None:
    layer, path = blob(tmp_path, 1 << 20)
    front.faults.append(Fault("PATCH", UPLOAD, cut_request=0, times=99))
    with pytest.raises(OutsideError, match=r"can't be reached: .* \(5 tries\)") as caught:
        client.push_blob(name, layer, path)
    one_line(caught.value)
    assert len(client.slept) == 4
    assert client.slept == sorted(client.slept), "each wait is longer than the last"
    assert not client.has_blob(name, layer)


def test_a_blob_that_is_altered_on_the_way_is_sent_again(
    client: Client, front: Proxy, name: str, tmp_path: Path
) -> None:
    layer, path = blob(tmp_path, 1 << 20)
    front.faults.append(Fault("PATCH", UPLOAD, alter_request=True))
    client.push_blob(name, layer, path)
    assert front.count("PATCH") == 2
    client.read_blob(name, layer.digest, layer.size)


def test_a_read_that_breaks_off_is_repeated(client: Client, front: Proxy, name: str, tmp_path: Path) -> None:
    layer, path = blob(tmp_path, 1 << 20)
    client.push_blob(name, layer, path)
    front.faults.append(Fault("GET", layer.digest, cut_answer=1000))
    client.read_blob(name, layer.digest, layer.size)
    assert len(client.slept) == 1


def test_an_answer_that_is_lost_is_asked_for_again(
    client: Client, front: Proxy, name: str, tmp_path: Path
) -> None:
    """The registry has done it, and we never heard: doing it again must be the same."""
    layer, path = blob(tmp_path, 1000)
    manifest = image(client, name, tmp_path)
    front.faults += [
        Fault("PUT", UPLOAD, cut_answer=0, headers={"Content-Length": "5"}),
        Fault("PUT", "/manifests/", cut_answer=0, headers={"Content-Length": "5"}),
    ]
    client.push_blob(name, layer, path)
    client.push_manifest(name, manifest, "v1")
    assert client.manifest(name, "v1") == manifest


# --- answers that are wrong -----------------------------------------------------------------------

WRONG = "sha256:" + "1" * 64


def test_another_digest_for_a_blob(client: Client, front: Proxy, name: str, tmp_path: Path) -> None:
    layer, path = blob(tmp_path, 1000)
    front.faults.append(Fault("PUT", UPLOAD, headers={"Docker-Content-Digest": WRONG}))
    with pytest.raises(OutsideError, match=f"stored {WRONG} for {name}@{layer.digest}") as caught:
        client.push_blob(name, layer, path)
    one_line(caught.value)


def test_another_digest_for_a_manifest(client: Client, front: Proxy, name: str, tmp_path: Path) -> None:
    manifest = image(client, name, tmp_path)
    front.faults.append(Fault("PUT", "/manifests/", headers={"Docker-Content-Digest": WRONG}))
    with pytest.raises(OutsideError, match=f"stored {WRONG} .* sent was {manifest.digest}") as caught:
        client.push_manifest(name, manifest)
    one_line(caught.value)


def test_other_bytes_read_back(client: Client, front: Proxy, name: str, tmp_path: Path) -> None:
    manifest = image(client, name, tmp_path)
    front.faults.append(Fault("GET", "/manifests/v1", alter=(b'"a":"b"', b'"a":"c"')))
    with pytest.raises(
        OutsideError, match=f"sent sha256:.* for {name}:v1 and said {manifest.digest}"
    ) as caught:
        client.push_manifest(name, manifest, "v1")
    one_line(caught.value)


def test_another_size_of_a_blob_that_is_there(
    client: Client, front: Proxy, name: str, tmp_path: Path
) -> None:
    layer, path = blob(tmp_path, 1000)
    client.push_blob(name, layer, path)
    front.faults.append(Fault("HEAD", layer.digest, headers={"Content-Length": "999"}))
    with pytest.raises(OutsideError, match=r"sent 999 bytes .* of which 1000 were stated"):
        client.push_blob(name, layer, path)


# --- answers that refuse, and those that pass ------------------------------------------------------


def refusal(code: str, message: str) -> bytes:
    return f'{{"errors":[{{"code":"{code}","message":"{message}"}}]}}'.encode()


@pytest.mark.parametrize(
    ("status", "body", "words", "hint"),
    [
        (401, b"", "answered 401 Unauthorized for NAME@", "docker login"),
        (
            403,
            refusal("DENIED", "not yours"),
            "answered 403 Forbidden for NAME@.*: not yours",
            "may this account",
        ),
        (404, refusal("NAME_UNKNOWN", "who?"), "has no NAME@", "check the name"),
        (413, b"<html>", "answered 413 .* for NAME@", "registry's log"),
    ],
)
def test_a_refusal_is_one_line_and_is_not_repeated(
    client: Client, front: Proxy, name: str, tmp_path: Path, status: int, body: bytes, words: str, hint: str
) -> None:
    layer, path = blob(tmp_path, 1000)
    front.faults.append(Fault("POST", UPLOAD, status=status, body=body))
    with pytest.raises(OutsideError, match=words.replace("NAME", name)) as caught:
        client.push_blob(name, layer, path)
    one_line(caught.value)
    assert hint in str(caught.value.hint)
    assert client.slept == []
    assert front.count("POST") == 1
    assert not client.has_blob(name, layer)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_fault_of_the_registry_passes(
    client: Client, front: Proxy, name: str, tmp_path: Path, status: int
) -> None:
    manifest = image(client, name, tmp_path)
    front.faults.append(Fault("PUT", "/manifests/", status=status, times=3))
    client.push_manifest(name, manifest, "v1")
    assert client.manifest(name, "v1") == manifest
    assert len(client.slept) == 3
    assert f"answered {status}" in client.said[0]


def test_a_fault_that_stays_is_given_up(client: Client, front: Proxy, name: str, tmp_path: Path) -> None:
    manifest = image(client, name, tmp_path)
    front.faults.append(
        Fault("PUT", "/manifests/", status=500, times=99, body=refusal("UNKNOWN", "broken\\nstore"))
    )
    with pytest.raises(OutsideError, match=r"answered 500 .* for .*:v1: broken store \(5 tries\)") as caught:
        client.push_manifest(name, manifest, "v1")
    one_line(caught.value)
    assert client.find(name, "v1") is None


def test_a_registry_says_how_long_to_wait(client: Client, front: Proxy, name: str) -> None:
    front.faults.append(Fault("GET", "/tags/", status=429, headers={"Retry-After": "7"}))
    client.tags(name)
    assert client.slept == [7.0]
    assert client.said[0].endswith("; again in 7.0 s")


def test_a_time_to_wait_for_is_taken_by_the_registrys_clock(client: Client, front: Proxy, name: str) -> None:
    """A clock that is years behind on either side changes nothing."""
    past = dt.datetime(2001, 1, 1, 12, 0, 0, tzinfo=dt.UTC)
    now, later = (
        email.utils.format_datetime(when, usegmt=True) for when in (past, past + dt.timedelta(seconds=9))
    )
    front.faults.append(Fault("GET", "/tags/", status=503, headers={"Retry-After": later, "Date": now}))
    client.tags(name)
    assert client.slept == [9.0]


def test_a_registry_that_wants_hours_is_not_waited_for(client: Client, front: Proxy, name: str) -> None:
    front.faults.append(Fault("GET", "/tags/", status=429, headers={"Retry-After": "7200"}))
    with pytest.raises(OutsideError, match=r"answered 429 .*: it asks to wait 7200 s") as caught:
        client.tags(name)
    one_line(caught.value)
    assert client.slept == []


def test_a_full_disk_is_named_and_not_waited_for(tmp_path: Path, name: str) -> None:
    store = tmp_path / "small"
    store.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(store)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system of 1 MB can't be mounted here")
    try:
        with serving(tmp_path / "registry", store=store) as host:
            client = Client(host)
            layer, path = blob(tmp_path, 3 << 20)
            with pytest.raises(OutsideError, match=r"has no room for .*: its disk is full") as caught:
                client.push_blob(name, layer, path)
            one_line(caught.value)
            assert client.slept == []
            assert not client.has_blob(name, layer)
    finally:
        subprocess.run(["umount", str(store)], check=True)


# --- who we are -----------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    """A registry that wants a password."""
    with serving(tmp_path / "locked", auth=basic_auth(tmp_path / "auth")) as host:
        yield host


def test_a_stored_login_opens_a_registry(
    locked: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", locked)))
    client = connect(locked)
    manifest = image(client, name, tmp_path)
    client.push_manifest(name, manifest, "v1")
    assert client.tags(name) == ("v1",)


@pytest.mark.parametrize(
    ("password", "words", "hint"),
    [
        (None, "answered 401", "log in first: docker login"),
        ("wrong", "answered 401", "does not take the login"),
    ],
)
def test_no_login_and_a_wrong_one(
    locked: str,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    password: str | None,
    words: str,
    hint: str,
) -> None:
    host = locked if password else "another.example"
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", host, password or PASSWORD)))
    layer, path = blob(tmp_path, 10)
    with pytest.raises(OutsideError, match=words) as caught:
        connect(locked).push_blob(name, layer, path)
    one_line(caught.value)
    assert hint in str(caught.value.hint)
    assert str(password) not in caught.value.message


def helper(folder: Path, answer: str) -> Path:
    """Docker's credential helper ``tests``, as a program on PATH."""
    folder.mkdir()
    program = folder / "docker-credential-tests"
    program.write_text(f"#!/bin/sh\ncat > {folder}/asked\n{answer}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "config.json").write_text('{"credsStore": "tests"}')
    return folder


def test_a_credential_helper_is_asked(
    locked: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = helper(tmp_path / "bin", f'echo \'{{"Username":"{USER}","Secret":"{PASSWORD}"}}\'')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    assert connect(locked).tags(name) == ()
    assert (folder / "asked").read_text() == locked


@pytest.mark.parametrize("installed", [True, False])
def test_a_helper_that_fails_is_named_without_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    folder = helper(tmp_path / "bin", f"echo {PASSWORD}; echo {PASSWORD} >&2; exit 1")
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    if installed:
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(OutsideError, match=r"credential helper gives nothing for r\.example") as caught:
        docker_login("r.example")
    one_line(caught.value)
    assert PASSWORD not in f"{caught.value!r} {caught.value.hint}"
    assert caught.value.__suppress_context__, "the cause quotes the helper"


def test_a_login_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"auths": {"r.example": {"auth": "no base64!"}}}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(UsageError, match="a login that can't be read"):
        docker_login("r.example")


def test_credentials_do_not_show_themselves() -> None:
    known = Credentials(user=USER, password=PASSWORD, identity_token="identity")
    assert PASSWORD not in repr(known)
    assert "identity" not in repr(known)
    assert known.secrets == (PASSWORD, "identity")


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with token_server() as server:
        yield server


@pytest.fixture
def guarded(tokens: TokenServer, tmp_path: Path) -> Iterator[str]:
    """A registry that wants tokens."""
    with serving(tmp_path / "guarded", auth=tokens.setting(tmp_path / "bundle.pem")) as host:
        yield host


def known(host: str) -> Credentials | None:
    return Credentials(user=USER, password=PASSWORD)


def asked_for(tokens: TokenServer) -> list[list[str]]:
    """What each token was for, by action."""
    return [
        sorted({action for one in query["scope"] for action in one.split(":")[2].split(",")})
        for query in tokens.asked
    ]


def test_a_token_is_kept_for_what_it_allows(
    guarded: str, tokens: TokenServer, tmp_path: Path, name: str
) -> None:
    client = Client(guarded, login=known)
    manifest = image(client, name, tmp_path)
    client.push_manifest(name, manifest, "v1")
    assert asked_for(tokens) == [["pull"], ["pull", "push"]]
    assert all(query["account"] == [USER] and query["service"] == ["tests"] for query in tokens.asked)
    client.delete(name, manifest.digest)
    assert asked_for(tokens)[2:] == [["delete"]]


def test_who_is_going_to_write_asks_for_that_at_once(
    guarded: str, tokens: TokenServer, tmp_path: Path, name: str
) -> None:
    client = Client(guarded, login=known, writes=True)
    client.push_manifest(name, image(client, name, tmp_path), "v1")
    assert asked_for(tokens) == [["pull", "push"]]


def test_a_mount_needs_a_token_for_both(guarded: str, tokens: TokenServer, tmp_path: Path, name: str) -> None:
    client = Client(guarded, login=known)
    layer, path = blob(tmp_path, 1000)
    client.push_blob(f"{name}/staging", layer, path)
    assert not client.push_blob(name, layer, path, mount_from=[f"{name}/staging"])


def test_a_token_that_the_registry_no_longer_takes_is_renewed(
    guarded: str, tokens: TokenServer, tmp_path: Path, name: str
) -> None:
    tokens.seconds = -3600  # run out already, by the registry's clock
    client = Client(guarded, login=known)
    with pytest.raises(OutsideError, match="answered 401"):
        client.tags(name)
    tokens.seconds = 300
    assert client.tags(name) == ()


def test_an_identity_token_is_exchanged(guarded: str, tokens: TokenServer, name: str) -> None:
    client = Client(guarded, login=lambda _host: Credentials(identity_token=PASSWORD))
    assert client.tags(name) == ()
    assert tokens.asked[0]["grant_type"] == ["refresh_token"]


def test_a_token_server_that_refuses(guarded: str, tokens: TokenServer, name: str) -> None:
    tokens.refuse = True
    with pytest.raises(OutsideError, match=r"answered 401 .*: wrong password") as caught:
        Client(guarded, login=known).tags(name)
    one_line(caught.value)
    assert PASSWORD not in caught.value.message


def test_a_password_goes_to_its_registry_alone(
    front: Proxy, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to a host that the registry redirects to, and never to one that did not ask."""
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    client = Client(front.host, login=known)
    assert client.tags(name) == ()
    assert not [line for line in front.headers if "Authorization" in line]
    with proxy(front.upstream) as other:
        front.faults += [
            Fault("GET", "/tags/", status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}),
            Fault(
                "GET",
                "/tags/",
                status=307,
                headers={"Location": f"http://localhost:{other.host[10:]}/v2/{name}/tags/list"},
            ),
        ]
        assert client.tags(name) == ()
        assert "Authorization" in front.headers[-1]
        assert other.asked
        assert not [line for line in other.headers if "Authorization" in line]


@pytest.mark.parametrize("realm", ["http://r.example/token", "file:///etc/passwd", "", "ftp://r.example/"])
def test_a_realm_that_is_less_safe_is_not_asked(realm: str) -> None:
    """A registry with TLS that sends us, and our password, to a place without."""
    from llama_images.adapters.registry_http import RegistryHttp

    http = RegistryHttp("https://r.example", login=known)
    assert not http._answer_challenge(f'Bearer realm="{realm}",service="x"', "scope", "what")


# --- TLS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begins", "lasts", "address", "words"),
    [
        (
            dt.timedelta(days=1),
            dt.timedelta(days=2),
            "127.0.0.1",
            "not valid yet by this machine's clock",
        ),
        (
            dt.timedelta(days=-3),
            dt.timedelta(days=1),
            "127.0.0.1",
            "has expired by this machine's clock",
        ),
        (
            dt.timedelta(days=-1),
            dt.timedelta(days=2),
            "127.0.0.9",
            "certificate is for another address",
        ),
    ],
)
def test_certificates_that_do_not_hold(
    tmp_path: Path, name: str, begins: dt.timedelta, lasts: dt.timedelta, address: str, words: str
) -> None:
    """The first is what a clock in the past looks like."""
    authority = certificate(begins=dt.timedelta(days=-9), lasts=dt.timedelta(days=99))
    root, _ = authority.write(tmp_path / "root")
    files = certificate(authority, name="server", begins=begins, lasts=lasts, host=address).write(
        tmp_path / "server"
    )
    with serving(tmp_path / "tls", tls=files) as host, pytest.raises(OutsideError, match=words) as caught:
        connect(host, authorities=root).tags(name)
    one_line(caught.value)
    assert ("clock" in str(caught.value.hint)) == ("clock" in words)


def test_tls_with_an_authority_of_ones_own(tmp_path: Path, name: str) -> None:
    authority = certificate()
    root, _ = authority.write(tmp_path / "root")
    files = certificate(authority, name="server").write(tmp_path / "server")
    with serving(tmp_path / "tls", tls=files) as host:
        client = connect(host, authorities=authorities_for(host, {"SSL_CERT_FILE": str(root)}, tmp_path))
        manifest = image(client, name, tmp_path)
        client.push_manifest(name, manifest, "v1")
        assert client.tags(name) == ("v1",)
        with pytest.raises(OutsideError, match="its TLS certificate is not trusted") as caught:
            connect(host).tags(name)
        assert "SSL_CERT_FILE" in str(caught.value.hint)
        with pytest.raises(OutsideError, match="holds no certificate authority"):
            connect(host, authorities=tmp_path / "root" / "key.pem").tags(name)


def test_docker_names_an_authority_too(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "docker" / "certs.d" / "r.example:5000"
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_text("x")
    assert authorities_for("r.example:5000", {}, tmp_path) == folder / "ca.crt"
    assert authorities_for("r.example", {}, tmp_path) is None


def test_only_loopback_may_do_without_tls(host: str, name: str) -> None:
    assert connect(host).tags(name) == ()
    assert connect("registry.example")._http.base == "https://registry.example"
    assert connect("docker.io")._http.base == "https://registry-1.docker.io"
