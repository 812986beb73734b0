"""The whole way of a real image: built, published with a login, pulled by digest, run, verified."""

from __future__ import annotations

import base64
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from invoke.context import Context

import tasks
from llama_images import selection
from llama_images.adapters.docker import DockerEngine
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.signing import KeySigner
from llama_images.plan import choose, make_plan
from llama_images.ports import RunRequest
from llama_images.workflows.build import build_all
from llama_images.workflows.workshop import Workshop
from tests.engine.publishing import key_files
from tests.engine.registries import PASSWORD, USER, basic_auth, docker_config, needs_registry, serving

pytestmark = [pytest.mark.engine, pytest.mark.source, pytest.mark.slow, needs_registry]


@dataclass(frozen=True)
class Place:
    """A registry that wants a login, a login for it, and keys."""

    host: str
    store: Path
    """Where the registry keeps what it is given."""
    private: Path
    public: Path

    @property
    def repository(self) -> str:
        return f"{self.host}/me/llama-diffusion"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """The real workshop, with image names of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "IMAGE", f"localhost/llama-images-test/{uuid.uuid4().hex[:12]}")
        yield tasks._workshop()


@pytest.fixture(scope="module")
def reference(shop: Workshop, docker_engine: DockerEngine) -> Iterator[str]:
    """The CPU image under that name."""
    platform = docker_engine.info().platform
    chosen = choose(shop.matrix, ["cpu"], platform=platform, native=tuple)
    plan = make_plan(chosen, series=shop.series, platform=platform)
    (built,) = build_all(shop, docker_engine, plan, repo=os.environ.get("LLAMA_CPP_REPO"))
    yield built.reference
    docker_engine.remove_tag(built.reference)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    private, public = key_files(KeySigner(Ed25519PrivateKey.generate()), tmp_path)
    with serving(tmp_path / "registry", auth=basic_auth(tmp_path / "auth")) as host:
        monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", host)))
        yield Place(host=host, store=tmp_path / "registry" / "store", private=private, public=public)


Say = Callable[[], str]


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Say:
    """What was printed since the last time, on both streams."""
    return lambda: "".join(capfd.readouterr())


def publish(place: Place, **options: object) -> None:
    fields = {"arch": ["cpu"], "flavor": [], "evidence": [], "mount_from": [], "engine": "docker", **options}
    tasks.publish(Context(), **fields, registry=place.repository, key=str(place.private))


def test_from_a_build_to_a_verified_run(
    place: Place, reference: str, docker_engine: DockerEngine, said: Say, tmp_path: Path
) -> None:
    publish(place, allow_untested=True, dry_run=True)
    planned = said()
    assert "would be published to" in planned
    publish(place, allow_untested=True)
    text = said()
    digests = re.findall(r"linux/[a-z0-9]+: (sha256:[0-9a-f]{64})", text)
    assert re.findall(r"linux/[a-z0-9]+: (sha256:[0-9a-f]{64})", planned) == digests
    assert "marked as untested: cpu" in text
    (digest,) = digests

    pulled = f"{place.repository}@{digest}"
    programs = SystemPrograms()
    finished = programs.run(["docker", "pull", "--quiet", pulled], timeout=300)
    assert finished.returncode == 0, finished.error_text
    try:
        run = docker_engine.run(RunRequest(image=pulled, arguments=("--version",), user="10001"))
        assert run.exit_code == 0
        assert b"10a2613aa" in run.stdout + run.stderr
        by_tag = programs.run(["docker", "pull", "--quiet", f"{place.repository}:cpu"], timeout=300)
        assert by_tag.returncode == 0, by_tag.error_text
        one, other = (docker_engine.image(name) for name in (pulled, f"{place.repository}:cpu"))
        assert one is not None
        assert other is not None
        assert one.id == other.id
    finally:
        docker_engine.remove_tag(f"{place.repository}:cpu")
        docker_engine.remove_tag(pulled)

    said()
    tasks.verify(Context(), f"{place.repository}:cpu", key=str(place.public))
    lines = said().splitlines()
    assert len([line for line in lines if re.match(r"[a-zA-Z ]+  +\S", line)]) == 10
    assert lines[-1].endswith("and as this matrix says")
    tasks.verify(Context(), pulled, key=str(place.public))

    # The same image again, from another cache: nothing is sent, and every digest is the same.
    said()
    publish(place, allow_untested=True)
    again = said()
    assert re.findall(r"linux/[a-z0-9]+: (sha256:[0-9a-f]{64})", again) == digests
    assert "as it is" in again


def test_what_invoke_test_writes_lets_an_image_be_published(
    place: Place, reference: str, said: Say, shop: Workshop, tmp_path: Path
) -> None:
    folder = tmp_path / "evidence"
    tasks.run_tests(Context(), arch=["cpu"], flavor=[], case=[], engine="docker", out=str(folder))
    (document,) = folder.glob("*.json")
    cases = json.loads(document.read_text("utf-8"))["cases"]
    ran = [case for case in cases if case["status"] != "skipped"]
    assert ran
    publish(place, evidence=[str(document)])
    assert "marked as untested" not in said()
    tasks.verify(Context(), f"{place.repository}:cpu", key=str(place.public))
    counted = rf"^tested +{len(ran)} cases passed(, \d+ skipped)?, on the CPU$"
    assert re.search(counted, said(), re.MULTILINE)

    tasks.run_tests(
        Context(), arch=["cpu"], flavor=[], case=["chat"], engine="docker", out=str(tmp_path / "few")
    )
    (few,) = (tmp_path / "few").glob("*.json")
    with pytest.raises(SystemExit) as caught:
        publish(place, evidence=[str(few)])
    assert caught.value.code == 1
    assert "only some cases were chosen: chat" in said()


def test_a_built_image_holds_nothing_secret(reference: str, said: Say, shop: Workshop) -> None:
    tasks.scan(Context(), arch=["cpu"], flavor=[], engine="docker")
    text = said()
    assert "FAIL" not in text
    assert len(re.findall(r"^ok .*nothing secret in", text, re.MULTILINE)) == 3
    bill = json.loads((shop.cache / "sbom" / "cpu.cdx.json").read_text())
    assert {"libc6", "libstdc++6", "llama.cpp"} <= {part["name"] for part in bill["components"]}


def test_a_wrong_key_ends_with_exit_code_1(place: Place, reference: str, said: Say, tmp_path: Path) -> None:
    publish(place, allow_untested=True)
    (tmp_path / "other").mkdir()
    _, other = key_files(KeySigner(Ed25519PrivateKey.generate()), tmp_path / "other")
    said()
    with pytest.raises(SystemExit) as caught:
        tasks.verify(Context(), f"{place.repository}:cpu", key=str(other))
    assert caught.value.code == 1
    assert "did not sign it" in said()


def test_untested_images_are_not_published_by_mistake(place: Place, reference: str, said: Say) -> None:
    with pytest.raises(SystemExit) as caught:
        publish(place)
    assert caught.value.code == 1
    assert "error: there is no evidence that cpu passed" in said()


def secrets_of(place: Place) -> dict[str, bytes]:
    """What must be nowhere: the password as it is and as it is sent, and the private key."""
    body = b"".join(place.private.read_bytes().splitlines()[1:-1])
    return {
        "password": PASSWORD.encode(),
        "basic": base64.b64encode(f"{USER}:{PASSWORD}".encode()),
        "key": body,
    }


def holding(folder: Path, secret: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_neither_login_nor_key_is_left_anywhere(
    place: Place, reference: str, said: Say, shop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Searched: what is printed, arguments of programs, our cache, and all that the registry was given."""
    started: list[str] = []
    run = SystemPrograms.run

    def watched(self: SystemPrograms, argv: list[str], **options: object) -> object:
        started.extend(argv)
        return run(self, argv, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SystemPrograms, "run", watched)
    publish(place, allow_untested=True)
    tasks.verify(Context(), f"{place.repository}:cpu", key=str(place.public))
    printed = said()
    docker_config(tmp_path / "docker", place.host, "a-wrong-password-77aa")
    with pytest.raises(SystemExit) as caught:
        publish(place, allow_untested=True)
    assert caught.value.code == 3
    printed += said()
    assert "does not take the login that is stored" in printed
    assert "a-wrong-password-77aa" not in printed
    assert started, "no program was started, so its arguments prove nothing"
    for name, secret in secrets_of(place).items():
        assert secret.decode() not in printed, name
        assert secret.decode() not in " ".join(started), name
        assert holding(shop.cache, secret) == [], name
        assert holding(place.store, secret) == [], name
    # The search finds what is there.
    assert holding(tmp_path, secrets_of(place)["basic"]) == []
    docker_config(tmp_path / "docker", place.host)
    assert holding(tmp_path, secrets_of(place)["basic"]) == [tmp_path / "docker" / "config.json"]
