"""A registry on this machine: Debian's docker-registry, filled by docker-py and read by our client."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import docker
import pytest
from docker.models.images import Image

from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.registry import PROGRAM, LocalRegistry
from llama_images.adapters.registry_client import RegistryClient
from llama_images.errors import OutsideError
from llama_images.ports import HeldImage

needs_program = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with LocalRegistry(SystemPrograms(grace=5), tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def client(registry: LocalRegistry) -> RegistryClient:
    return RegistryClient(registry.url)


class Pushed:
    """A tiny image in the registry under two tags."""

    repository = "tests/tiny"
    text = b"hello from the registry\n"

    def __init__(self, registry: LocalRegistry, engine: docker.DockerClient) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            info = tarfile.TarInfo("hello")
            info.size = len(self.text)
            tar.addfile(info, io.BytesIO(self.text))
        name = f"{registry.host}/{self.repository}"
        engine.api.import_image_from_data(archive.getvalue(), repository=name, tag="one")
        self.image: Image = engine.images.get(f"{name}:one")
        self.image.tag(name, "two")
        self.digests: dict[str, str] = {}
        for tag in ("one", "two"):
            for record in engine.images.push(name, tag=tag, stream=True, decode=True):
                assert "error" not in record, record
                if "Digest" in (record.get("aux") or {}):
                    self.digests[tag] = record["aux"]["Digest"]
        for tag in ("one", "two"):
            engine.images.remove(f"{name}:{tag}")


@pytest.fixture(scope="module")
def pushed(registry: LocalRegistry) -> Iterator[Pushed]:
    with contextlib.closing(docker.from_env(timeout=60)) as engine:
        yield Pushed(registry, engine)


@needs_program
@pytest.mark.engine
def test_a_pushed_image_is_found_by_tag_and_by_digest(client: RegistryClient, pushed: Pushed) -> None:
    by_tag = client.manifest(pushed.repository, "one")
    assert by_tag.digest == pushed.digests["one"] == pushed.digests["two"]
    assert by_tag.media_type == "application/vnd.docker.distribution.manifest.v2+json"
    assert by_tag.content["config"]["digest"] == pushed.image.id
    assert client.manifest(pushed.repository, by_tag.digest) == by_tag
    assert client.tags(pushed.repository) == ("one", "two")


@needs_program
@pytest.mark.engine
def test_a_pushed_image_is_read_through(client: RegistryClient, pushed: Pushed) -> None:
    manifest = client.manifest(pushed.repository, "one").content
    held = client.read_image(pushed.repository, pushed.digests["one"])
    assert held == HeldImage(
        digest=pushed.digests["one"], blobs=2, compressed_bytes=manifest["layers"][0]["size"]
    )
    layer = client.blob(pushed.repository, manifest["layers"][0]["digest"])
    with tarfile.open(fileobj=io.BytesIO(layer), mode="r:gz") as tar:
        file = tar.extractfile("hello")
        assert file is not None
        assert file.read() == pushed.text
    config = json.loads(client.blob(pushed.repository, manifest["config"]["digest"]))
    assert config["os"] == "linux"


@needs_program
def test_what_the_registry_lacks_is_one_clear_line(client: RegistryClient, registry: LocalRegistry) -> None:
    nothing = "sha256:" + "0" * 64
    assert client.tags("no/such") == ()
    for ask in (
        lambda: client.manifest("no/such", "tag"),
        lambda: client.manifest("no/such", nothing),
        lambda: client.read_image("no/such", nothing),
        lambda: client.blob("no/such", nothing),
    ):
        with pytest.raises(OutsideError, match=f"^{registry.host} has no no/such[:@]") as caught:
            ask()
        assert "\n" not in caught.value.message


@needs_program
def test_the_registry_ends_with_its_context_and_keeps_its_folder(tmp_path: Path) -> None:
    programs = SystemPrograms(grace=5)
    with LocalRegistry(programs, tmp_path / "store") as registry:
        assert registry.host.startswith("127.0.0.1:")
        client = RegistryClient(registry.url)
        assert client.tags("x") == ()
    with pytest.raises(OutsideError, match="can't be reached: connection refused"):
        client.tags("x")
    with LocalRegistry(programs, tmp_path / "store") as again:
        assert RegistryClient(again.url).tags("x") == ()


@needs_program
def test_an_error_inside_the_context_ends_the_registry(tmp_path: Path) -> None:
    started: list[str] = []

    def fail() -> None:
        with LocalRegistry(SystemPrograms(grace=5), tmp_path) as registry:
            started.append(registry.url)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(OutsideError, match="can't be reached"):
        RegistryClient(started[0]).tags("x")


@needs_program
def test_a_proxy_does_not_stand_between_us_and_loopback(
    client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert client.tags("x") == ()


def test_a_missing_program_names_its_package(tmp_path: Path) -> None:
    programs = SystemPrograms(environ={"PATH": str(tmp_path)})
    with (
        pytest.raises(OutsideError, match="docker-registry is not installed") as caught,
        LocalRegistry(programs, tmp_path),
    ):
        pass
    assert caught.value.hint is not None
    assert "package docker-registry" in caught.value.hint


def test_a_program_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / PROGRAM
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho first; echo 'store is broken' >&2; exit 7\n")
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    with (
        pytest.raises(OutsideError, match="docker-registry ended with code 7: store is broken"),
        LocalRegistry(SystemPrograms(environ={"PATH": path}), tmp_path / "store"),
    ):
        pass


def test_started_programs_log_and_stop(tmp_path: Path) -> None:
    """``SystemPrograms.start``: both streams in the log, the whole group ended, twice is once."""
    log = tmp_path / "log"
    script = "echo out; echo err >&2; sleep 600 & echo $! > child; wait"
    running = SystemPrograms(grace=5).start(["sh", "-c", f"cd '{tmp_path}'; {script}"], log=log)
    child = tmp_path / "child"
    wait = threading.Event()
    while not (child.exists() and child.read_text().strip()):
        wait.wait(0.02)
    assert running.poll() is None
    running.stop()
    running.stop()
    assert running.poll() is not None
    assert set(log.read_text().split()) == {"out", "err"}
    state = Path("/proc", child.read_text().strip(), "stat")
    for _ in range(100):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        wait.wait(0.02)
    else:
        pytest.fail("the program's child is still there")


def test_starting_a_missing_program_is_one_clear_line() -> None:
    with pytest.raises(OutsideError, match="no-such-program is not installed"):
        SystemPrograms().start(["no-such-program"])


# --- a registry that does wrong -------------------------------------------------------------------


@contextlib.contextmanager
def serving(answers: Mapping[str, tuple[int, Mapping[str, str], bytes]]) -> Iterator[RegistryClient]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            code, headers, body = answers.get(self.path, (404, {}, b"{}"))
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers and self.command == "GET":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield RegistryClient(
                f"http://127.0.0.1:{server.server_port}/", timeout=5, sleep=lambda _seconds: None
            )
        finally:
            server.shutdown()
            thread.join()


BODY = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
DIGEST = "sha256:" + hashlib.sha256(BODY).hexdigest()
OTHER = "sha256:" + "1" * 64


def test_an_index_is_read_and_its_type_is_taken_from_the_body_where_the_header_is_missing() -> None:
    with serving({"/v2/a/manifests/t": (200, {}, BODY)}) as client:
        manifest = client.manifest("a", "t")
    assert (manifest.digest, manifest.media_type) == (DIGEST, "application/vnd.oci.image.index.v1+json")
    assert manifest.raw == BODY


@pytest.mark.parametrize(
    ("reference", "headers"),
    [("t", {"Docker-Content-Digest": OTHER}), (OTHER, {}), (OTHER, {"Docker-Content-Digest": DIGEST})],
)
def test_bytes_of_another_digest_are_refused(reference: str, headers: dict[str, str]) -> None:
    served = serving({f"/v2/a/manifests/{reference}": (200, headers, BODY)})
    with served as client, pytest.raises(OutsideError, match=f"sent {DIGEST}"):
        client.manifest("a", reference)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {}, b""), "answered 401 Unauthorized for a:t"),
        ((500, {}, b"oops"), "answered 500 Internal Server Error for a:t"),
        ((200, {}, b"<html>"), "sent no manifest for a:t: it is no JSON object"),
        ((200, {}, b"[]"), "sent no manifest for a:t: it is no JSON object"),
        ((302, {"Location": "/v2/a/manifests/t"}, b""), "can't be reached: TooManyRedirects"),
        ((200, {"Content-Length": "1000"}, b"short"), "can't be reached: "),
    ],
)
def test_wrong_answers_are_one_clear_line(answer: tuple[int, Mapping[str, str], bytes], words: str) -> None:
    served = serving({"/v2/a/manifests/t": answer})
    with served as client, pytest.raises(OutsideError, match=words) as caught:
        client.manifest("a", "t")
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 3


def test_tags_come_in_pages() -> None:
    pages: dict[str, tuple[int, Mapping[str, str], bytes]] = {
        "/v2/a/tags/list": (
            200,
            {"Link": '</v2/a/tags/list?last=b&n=2>; rel="next"'},
            b'{"tags": ["c", "b"]}',
        ),
        "/v2/a/tags/list?last=b&n=2": (200, {}, b'{"tags": ["a"]}'),
    }
    with serving(pages) as client:
        assert client.tags("a") == ("a", "b", "c")
    with serving({"/v2/a/tags/list": (200, {}, b'{"tags": null}')}) as client:
        assert client.tags("a") == ()


def test_a_blob_is_checked() -> None:
    served = serving({f"/v2/a/blobs/{OTHER}": (200, {}, BODY)})
    with served as client, pytest.raises(OutsideError, match=f"sent {DIGEST} for a@{OTHER}"):
        client.blob("a", OTHER)


def described(data: bytes) -> dict[str, object]:
    return {"digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)}


CONFIG, LAYER = b'{"os": "linux"}', bytes(range(256)) * 9000
IMAGE = json.dumps({"config": described(CONFIG), "layers": [described(LAYER)]}).encode()
INDEX = json.dumps({"manifests": [described(IMAGE)]}).encode()


def held(tag: bytes) -> dict[str, tuple[int, Mapping[str, str], bytes]]:
    """What a sound registry answers about an image or an index under the tag "t"."""
    answers: dict[str, tuple[int, Mapping[str, str], bytes]] = {"/v2/a/manifests/t": (200, {}, tag)}
    answers[f"/v2/a/manifests/{described(IMAGE)['digest']}"] = (200, {}, IMAGE)
    for blob in (CONFIG, LAYER):
        answers[f"/v2/a/blobs/{described(blob)['digest']}"] = (200, {}, blob)
    return answers


@pytest.mark.parametrize("tag", [IMAGE, INDEX], ids=["image", "index"])
def test_an_image_is_read_to_its_last_byte(tag: bytes) -> None:
    with serving(held(tag)) as client:
        read = client.read_image("a", "t")
    assert read == HeldImage(digest=str(described(tag)["digest"]), blobs=2, compressed_bytes=len(LAYER))


@pytest.mark.parametrize(
    ("blob", "answer", "words"),
    [
        (LAYER, (200, {}, LAYER[:-1]), f"sent {len(LAYER) - 1} bytes .* of which {len(LAYER)} were stated"),
        (LAYER, (200, {}, LAYER[:-1] + b"x"), "sent sha256:[0-9a-f]{64} for a@sha256:"),
        (LAYER, (200, {"Content-Length": str(len(LAYER))}, LAYER[:1000]), "can't be reached: "),
        (LAYER, (404, {}, b""), "has no a@sha256:"),
        (CONFIG, (200, {}, CONFIG[::-1]), "sent sha256:[0-9a-f]{64} for a@sha256:"),
        (IMAGE, (200, {}, IMAGE + b" "), "sent sha256:[0-9a-f]{64} for a@sha256:"),
    ],
    ids=["short layer", "other layer", "cut layer", "no layer", "other configuration", "other manifest"],
)
def test_a_part_that_is_lost_or_altered_is_found(
    blob: bytes, answer: tuple[int, Mapping[str, str], bytes], words: str
) -> None:
    digest = str(described(blob)["digest"])
    answers = {path: answer if path.endswith(digest) else sound for path, sound in held(INDEX).items()}
    with serving(answers) as client, pytest.raises(OutsideError, match=words) as caught:
        client.read_image("a", "t")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("body", [b"{}", b'{"config": 1, "layers": 2}', b'{"manifests": [{}]}'])
def test_what_is_no_image_is_told_so(body: bytes) -> None:
    served = serving({"/v2/a/manifests/t": (200, {}, body)})
    with served as client, pytest.raises(OutsideError, match="holds as a t is no image"):
        client.read_image("a", "t")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[::1]:9/", "https://no-such-host.invalid"])
def test_a_registry_that_is_not_there_is_one_clear_line(url: str) -> None:
    with pytest.raises(OutsideError, match=r"^the registry .* can't be reached: ") as caught:
        RegistryClient(url, timeout=2).tags("a")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 120
