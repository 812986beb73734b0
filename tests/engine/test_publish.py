"""Publishing, verifying and pruning with a real registry, and a proxy in front of it that fails."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import tasks
from llama_images import oci
from llama_images.adapters.docker import DockerEngine
from llama_images.adapters.image_store import CachedImages
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.registry_client import RegistryClient
from llama_images.adapters.signing import KeySigner
from llama_images.attestation import EVIDENCE, PROVENANCE, SBOM, Statement, attached
from llama_images.errors import BadAnswer, CheckFailed, OutsideError, UsageError
from llama_images.oci import Manifest
from llama_images.plan import choose, make_plan
from llama_images.publication import TESTED, annotations_of, image_of
from llama_images.references import Reference, Repository
from llama_images.render import series_of
from llama_images.selection import local_reference, select
from llama_images.tags import published_tags
from llama_images.workflows import publish as module
from llama_images.workflows.prune import plan_pruning, prune
from llama_images.workflows.publish import Cell, read_evidence
from llama_images.workflows.scan import scan
from llama_images.workflows.tagging import check_whole, move_tags
from llama_images.workflows.verify import Verification, verify
from tests.engine.publishing import Press, evidence, evidence_document
from tests.engine.registries import Fault, Proxy, needs_registry, proxy, serving
from tests.unit.evidences import case
from tests.unit.fakes import House

pytestmark = needs_registry

MANIFESTS = "/manifests/"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def front(host: str) -> Iterator[Proxy]:
    with proxy(host) as running:
        yield running


@pytest.fixture
def press(tmp_path: Path, front: Proxy) -> Press:
    client = RegistryClient(f"http://{front.host}", sleep=lambda _seconds: None)
    repository = Repository(host=front.host, name=f"tests/{secrets.token_hex(6)}")
    return Press(House(tmp_path), client, repository)


@pytest.fixture
def cells(press: Press) -> list[Cell]:
    """Both flavors of the CPU image, with evidence."""
    press.build("cpu", flavors=["patched", "stock"])
    untested = press.prepare("cpu", flavors=["patched", "stock"])
    return press.prepare(
        "cpu",
        flavors=["patched", "stock"],
        evidence=[evidence(cell) for cell in untested],
        allow_untested=False,
    )


VERSION = "0.1.0"
DATE = datetime(2026, 1, 1, tzinfo=UTC)


def fixed(press: Press) -> list[str]:
    """The tags that never move; those that hold lists of referrers left out."""
    return [tag for tag in press.registry.tags(press.repository.name) if not tag.startswith("sha256-")]


# --- what goes well -------------------------------------------------------------------------------


def test_images_statements_and_tags_are_there(press: Press, cells: list[Cell]) -> None:
    patched, stock = press.publish(cells)
    assert fixed(press) == sorted([*cells[0].tags.all, *cells[1].tags.all])
    assert {press.tag(tag) for tag in cells[0].tags.all} == {patched.index}
    assert {press.tag(tag) for tag in cells[1].tags.all} == {stock.index}
    index = press.registry.manifest(press.repository.name, "cpu")
    (entry,) = index.entries
    assert (entry.digest, entry.platform) == (cells[0].manifest.digest, "linux/amd64")
    assert index.annotations["org.opencontainers.image.version"] == VERSION
    assert index.annotations[TESTED] == entry.annotations[TESTED] == "cpu"
    assert patched.sent_bytes > 0
    assert [tag.change for tag in patched.tags] == ["new"] * 3
    referrers = press.registry.referrers(press.repository.name, patched.image)
    kinds = {entry.annotations["dev.sigstore.bundle.predicateType"] for entry in referrers}
    assert kinds == {SBOM, PROVENANCE, EVIDENCE}
    press.registry.read_image(press.repository.name, "cpu")


def test_a_second_call_changes_nothing(press: Press, front: Proxy, cells: list[Cell]) -> None:
    press.publish(cells)
    before = {tag: press.tag(tag) for tag in press.registry.tags(press.repository.name)}
    front.asked.clear()
    again = press.publish(cells)
    assert {tag: press.tag(tag) for tag in press.registry.tags(press.repository.name)} == before
    assert [result.sent_bytes for result in again] == [0, 0]
    assert all(tag.change == "as it is" for result in again for tag in result.tags)
    assert front.count("PATCH") == 0
    assert len(press.registry.referrers(press.repository.name, again[0].image)) == 3


def test_a_dry_run_says_it_all_and_sends_nothing(press: Press, front: Proxy, cells: list[Cell]) -> None:
    said = press.publish(cells, dry_run=True)
    assert {line.split()[0] for line in front.asked} <= {"GET", "HEAD"}
    assert press.registry.tags(press.repository.name) == ()
    done = press.publish(cells)
    for one, other in zip(said, done, strict=True):
        assert replace(one, sent_bytes=0) == replace(other, sent_bytes=0)


def test_the_next_version_moves_the_moving_tags_alone(press: Press, cells: list[Cell]) -> None:
    first = press.publish(cells[:1])[0]
    second = published(press, "0.1.1", "second build")
    assert press.tag("cpu") == second.index != first.index
    assert press.tag("0.1.0-cpu") == first.index
    assert press.tag("0.1.1-cpu") == second.index
    changes = {tag.tag: (tag.change, tag.why) for tag in second.tags}
    assert changes["cpu"] == ("moves", "")
    assert changes[cells[0].tags.commit] == ("stays", "stays with 0.1.0, the first of this commit")
    assert press.tag(cells[0].tags.commit) == first.index


def test_an_older_version_does_not_take_a_moving_tag(press: Press, cells: list[Cell]) -> None:
    second = published(press, "0.2.0", "second build")
    press.edit("version: 0.2.0", f"version: {VERSION}")
    press.program = "the program, first build"
    press.build("cpu")
    (old,) = press.publish(press.prepare("cpu"))
    assert {tag.tag: tag.why for tag in old.tags}["cpu"] == "stays at 0.2.0, which is newer"
    assert press.tag("cpu") == second.index
    assert press.tag("0.1.0-cpu") == old.index


def published(press: Press, version: str, program: str) -> module.Published:
    """Build and publish another version of the CPU image."""
    (line,) = (
        line
        for line in (press.house.root / "matrix.yaml").read_text().splitlines()
        if line.startswith("    version: ") and '"' not in line
    )
    if line != f"    version: {version}":
        press.edit(f"{line}\n", f"    version: {version}\n")
    press.program = program
    press.build("cpu")
    (result,) = press.publish(press.prepare("cpu"))
    return result


def arm(cell: Cell) -> Cell:
    """The cell as an engine of the other platform would have it."""
    files = cell.packed.files
    config = json.loads(files.configuration) | {"architecture": "arm64"}
    files = replace(files, configuration=oci.encode(config))
    files.blob(oci.Descriptor.of(files.configuration, oci.CONFIG)).write_bytes(files.configuration)
    record = replace(cell.record, parts={**cell.record.parts, "platform": "linux/arm64"})
    manifest = image_of(files, cell.target, cell.packed.series)
    packed = replace(cell.packed, files=files, manifest=manifest)
    return replace(cell, packed=packed, record=record, platform="linux/arm64")


def test_platforms_join_in_one_index_one_after_the_other(press: Press, cells: list[Cell]) -> None:
    press.publish(cells[:1])
    other = arm(cells[0])
    (result,) = press.publish([other])
    for tag in cells[0].tags.all:
        index = press.registry.manifest(press.repository.name, tag)
        assert {entry.platform: entry.digest for entry in index.entries} == {
            "linux/amd64": cells[0].manifest.digest,
            "linux/arm64": other.manifest.digest,
        }
    assert {tag.change for tag in result.tags} == {"moves"}
    found = verification(press, "cpu")
    assert found.problems == ()
    platforms = dict(found.lines)["platforms"]
    assert re.fullmatch(r"linux/amd64 sha256:\S+, \S+ MB; linux/arm64 sha256:\S+, \S+ MB", platforms)


def test_a_new_version_takes_no_platform_from_a_moving_tag(press: Press, cells: list[Cell]) -> None:
    """Who pulls on the other platform keeps the older version until there is a newer one for it."""
    press.publish(cells[:1])
    (first,) = press.publish([arm(cells[0])])
    press.edit(f"    version: {VERSION}\n", "    version: 0.2.0\n")
    press.program = "the program, second build"
    press.build("cpu")
    (cell,) = press.prepare("cpu")
    (second,) = press.publish([cell])
    why = {tag.tag: tag.why for tag in second.tags}["cpu"]
    assert why == "stays until linux/arm64 is published too"
    assert press.tag("cpu") == first.index
    assert press.tag("0.2.0-cpu") == second.index
    (third,) = press.publish([arm(cell)])
    assert press.tag("cpu") == third.index
    assert len(press.registry.manifest(press.repository.name, "cpu").entries) == 2


def test_moving_tags_can_be_left_for_the_end(press: Press, cells: list[Cell]) -> None:
    """Each machine publishes its platform, and one call moves the tags."""
    shop, targets = press.house.shop(), [cell.target for cell in cells]
    with pytest.raises(CheckFailed, match=r"0\.1\.0-cpu is not there, so no tag has moved"):
        move_tags(shop, targets, press.repository, press.registry)
    published = press.publish(cells, move=False)
    published = press.publish([arm(cells[0]), cells[1]], move=False)
    assert [tag.change for tag in published[0].tags] == ["moves", "moves", "stays"]
    assert (press.tag("cpu"), press.tag("stock-cpu")) == (None, None)
    said = move_tags(shop, targets, press.repository, press.registry, dry_run=True)
    assert press.tag("cpu") is None
    moved = move_tags(shop, targets, press.repository, press.registry)
    assert moved == said
    assert [(tag.tag, tag.change, tag.digest) for tag in moved] == [
        ("cpu", "new", published[0].index),
        ("stock-cpu", "new", published[1].index),
    ]
    assert (press.tag("cpu"), press.tag("stock-cpu")) == (published[0].index, published[1].index)
    press.edit("commit: 10a2613a", "commit: 20a2613a")
    shop = press.house.shop()
    other = select(shop.matrix, ["cpu"], native=tuple).targets
    with pytest.raises(CheckFailed, match="is of something else than this matrix says"):
        move_tags(shop, other, press.repository, press.registry)


@pytest.mark.engine
def test_an_engine_pulls_the_image_of_its_platform(
    press: Press, host: str, cells: list[Cell], docker_engine: DockerEngine
) -> None:
    """By one tag; images of the other platform can be pulled here, and not run."""
    press.publish(cells[:1])
    press.publish([arm(cells[0])])
    reference = f"{host}/{press.repository.name}:cpu"
    programs = SystemPrograms()
    for platform in ("linux/arm64", "linux/amd64"):
        try:
            pulled = programs.run(
                ["docker", "pull", "--quiet", "--platform", platform, reference], timeout=120
            )
            assert pulled.returncode == 0, pulled.error_text
            found = programs.run(
                ["docker", "image", "inspect", "--format", "{{.Os}}/{{.Architecture}}", reference], timeout=30
            )
            assert found.text.strip() == platform
        finally:
            docker_engine.remove_tag(reference)


def test_evidence_that_comes_later_takes_the_mark_off(press: Press, cells: list[Cell]) -> None:
    untested = press.prepare("cpu")
    (before,) = press.publish(untested)
    assert before.tested == "no"
    assert press.registry.manifest(press.repository.name, "cpu").annotations[TESTED] == "no"
    (after,) = press.publish(cells[:1])
    assert (after.tested, after.image) == ("cpu", before.image)
    assert press.registry.manifest(press.repository.name, "cpu").annotations[TESTED] == "cpu"
    (again,) = press.publish(untested)
    assert again.tested == "cpu", "what was tested once is not untested again"


def test_layers_are_taken_from_a_staging_repository(press: Press, front: Proxy, cells: list[Cell]) -> None:
    staging = replace(press, repository=replace(press.repository, name=f"{press.repository.name}/staging"))
    staging.publish(cells[:1])
    front.asked.clear()
    (result,) = press.publish(cells[:1], mount_from=[staging.repository.name])
    assert result.sent_bytes == 0
    press.registry.read_image(press.repository.name, "cpu")


# --- what must not be published -------------------------------------------------------------------


def test_without_evidence_nothing_is_published(press: Press) -> None:
    press.build("120")
    with pytest.raises(CheckFailed, match="no evidence that sm120 passed the tests of the gpu tier"):
        press.prepare("120", allow_untested=False)
    (cell,) = press.prepare("120")
    assert cell.tested == "no"
    with pytest.raises(CheckFailed, match="no evidence"):
        press.prepare("120", allow_untested=False, evidence=[evidence(cell, gpus=[])])
    with pytest.raises(CheckFailed, match="only some cases were chosen"):
        press.prepare("120", allow_untested=False, evidence=[evidence(cell, selected=("one",))])
    other = evidence(cell, image_id="sha256:" + "7" * 64)
    with pytest.raises(CheckFailed, match="no evidence"):
        press.prepare("120", allow_untested=False, evidence=[other])
    for digest in (cell.packed.image.id, cell.manifest.digest, cell.manifest.config.digest):
        given = evidence(cell, image_id=digest)
        (tested,) = press.prepare("120", allow_untested=False, evidence=[given])
        assert tested.tested == "gpu"


def test_what_has_failed_is_not_even_published_untested(press: Press) -> None:
    press.build("120")
    (cell,) = press.prepare("120")
    failed = evidence(cell, cases=[case("one"), case("two", "failed")])
    with pytest.raises(CheckFailed, match=r"did not pass its tests: evidence.json: 1 of 2 cases failed"):
        press.prepare("120", evidence=[failed, evidence(cell)], allow_untested=True)


def test_evidence_is_read_from_the_cache_or_from_files(press: Press, tmp_path: Path) -> None:
    shop = press.house.shop()
    assert read_evidence(shop, []) == ()
    folder = shop.cache / "evidence"
    folder.mkdir(parents=True)
    press.build("120")
    (cell,) = press.prepare("120")
    (folder / "a.json").write_text(evidence_document(cell))
    (folder / "bench.json").write_text(json.dumps({"kind": "bench"}))
    (folder / "b.json").write_text("{")
    assert [one.tier for one in read_evidence(shop, [])] == ["gpu"]
    assert any("passed over: " in line and "b.json" in line for line in press.house.reporter.lines)
    good, bad = tmp_path / "good.json", folder / "c.json"
    good.write_text(evidence_document(cell))
    assert [one.name for one in read_evidence(shop, [good])] == [str(good)]
    bad.write_text(evidence_document(cell, cases=[case("one", "failed")]))
    given = read_evidence(shop, [good])
    assert [one.name for one in given] == [str(good), str(bad)]
    with pytest.raises(CheckFailed, match=r"did not pass its tests: \S+c\.json: 1 of 1 case"):
        press.prepare("120", evidence=given, allow_untested=True)
    with pytest.raises(UsageError, match=r"b\.json is no test evidence"):
        read_evidence(shop, [folder / "b.json"])
    with pytest.raises(UsageError, match="can't be read: No such file"):
        read_evidence(shop, [tmp_path / "none.json"])


def test_a_fixed_tag_never_becomes_another_image(press: Press, front: Proxy, cells: list[Cell]) -> None:
    press.publish(cells)
    before = {tag: press.tag(tag) for tag in fixed(press)}
    press.program = "the program, second build"
    press.build("cpu", flavors=["stock", "patched"])
    front.asked.clear()
    with pytest.raises(
        CheckFailed, match=r"the tag 0\.1\.0-cpu means another image for linux/amd64"
    ) as caught:
        press.publish(press.prepare("cpu", flavors=["stock", "patched"]))
    assert "raise the version of pr24423" in str(caught.value.hint)
    assert {line.split()[0] for line in front.asked} <= {"GET", "HEAD"}, "something was sent"
    assert {tag: press.tag(tag) for tag in fixed(press)} == before


@pytest.mark.parametrize("which", [0, 1])
def test_a_fixed_tag_that_somebody_sets_meanwhile_is_left_alone(
    press: Press, cells: list[Cell], monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Two machines have built the same version; the other's tag appears while this one's layers are sent."""
    (cell, _), name = cells, press.repository.name
    tag = cell.tags.all[which]
    config = oci.published_config({**json.loads(cell.packed.files.configuration), "os": "linux"}, DATE)
    other = oci.image_manifest(oci.Descriptor.of(config, oci.CONFIG), [], cell.manifest.annotations)
    entry = replace(other.descriptor, platform=cell.platform, annotations={TESTED: "no"})
    index = oci.index([entry], {**cell.manifest.annotations, TESTED: "no"})
    real = check_whole

    def meanwhile(*arguments: Any) -> None:
        real(*arguments)
        press.registry.push_bytes(name, config, oci.CONFIG)
        press.registry.push_manifest(name, other)
        press.registry.push_manifest(name, index, tag)

    monkeypatch.setattr(module, "check_whole", meanwhile)
    with pytest.raises(CheckFailed, match=rf"the tag {tag} means another image for linux/amd64"):
        press.publish([cell])
    assert press.tag(tag) == index.digest
    assert press.tag("cpu") is None


def test_a_platform_that_joins_meanwhile_is_not_lost(
    press: Press, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = check_whole

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(module, "check_whole", real)
        real(*arguments)
        press.publish([arm(cells[0])])

    monkeypatch.setattr(module, "check_whole", meanwhile)
    with pytest.raises(OutsideError, match=r"has got another image for linux/arm64 while") as caught:
        press.publish(cells[:1])
    assert "The same command goes on" in str(caught.value.hint)
    press.publish(cells[:1])
    for tag in cells[0].tags.all:
        index = press.registry.manifest(press.repository.name, tag)
        assert [entry.platform for entry in index.entries] == ["linux/amd64", "linux/arm64"]


def test_platforms_of_different_sources_do_not_join(press: Press, cells: list[Cell]) -> None:
    """The pin was raised between two machines, the version was not."""
    (first,) = press.publish(cells[:1])
    press.edit("commit: 10a2613a", "commit: 20a2613a")
    press.build("cpu")
    (cell,) = press.prepare("cpu")
    with pytest.raises(
        CheckFailed, match=r"0\.1\.0-cpu means images of something else: their org\.\S+\.revision is '10a"
    ) as caught:
        press.publish([arm(cell)])
    assert "raise the version of pr24423" in str(caught.value.hint)
    assert press.tag("0.1.0-cpu") == first.index


def test_a_tag_of_somebody_else_is_left_alone(press: Press, cells: list[Cell]) -> None:
    press.registry.push_bytes(press.repository.name, b"{}", oci.CONFIG)
    foreign = oci.image_manifest(oci.Descriptor.of(b"{}", oci.CONFIG), [], {})
    press.registry.push_manifest(press.repository.name, foreign, "0.1.0-cpu")
    with pytest.raises(CheckFailed, match="means something that this project did not publish"):
        press.publish(cells)
    assert press.tag("0.1.0-cpu") == foreign.digest


LEAK = "ghp_" + "a1B2" * 9


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"app/notes.txt": f"token {LEAK}"}, "layer 2, [0-9a-f]{12}: /app/notes.txt holds a GitHub token"),
        ({"app/x": "\x7fELF and " + LEAK}, "it holds a GitHub token"),
        ({"root/.netrc": "machine x"}, "/root/.netrc"),
        ({"var/cache/apt/x.bin": "x"}, "/var/cache/apt/x.bin"),
        (
            {"etc/ssl/certs/company.pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
            "not the distribution's",
        ),
        ({"etc/environment": "https_proxy=http://me:secret@proxy:3128"}, "an address with a password"),
    ],
)
def test_an_image_with_something_secret_in_a_layer_is_not_published(
    press: Press, files: dict[str, str], words: str
) -> None:
    press.build("cpu", files=files)
    with pytest.raises(CheckFailed, match=words) as caught:
        press.prepare("cpu")
    assert LEAK not in caught.value.message


def test_evidence_with_something_secret_in_it_is_not_published(press: Press, front: Proxy) -> None:
    press.build("120")
    (cell,) = press.prepare("120")
    given = evidence(cell, cases=[case("one", stdin=f"curl -H 'Authorization: {LEAK}' …")])
    cells = press.prepare("120", evidence=[given], allow_untested=False)
    for dry_run in (True, False):
        with pytest.raises(CheckFailed, match="the test evidence of sm120 holds a GitHub token") as caught:
            press.publish(cells, dry_run=dry_run)
    assert LEAK not in caught.value.message
    assert {line.split()[0] for line in front.asked} <= {"GET", "HEAD"}, "something was sent"


def test_an_image_that_is_not_what_the_matrix_says_is_not_published(press: Press) -> None:
    with pytest.raises(UsageError, match="there is no image llama-diffusion:cpu"):
        press.prepare("cpu")
    press.build("cpu")
    reference = "llama-diffusion:cpu"
    good = press.house.engine.images[reference]
    press.house.engine.images[reference] = replace(
        good, labels={**good.labels, "org.opencontainers.image.revision": "0" * 40}
    )
    with pytest.raises(CheckFailed, match=r"its label org\.opencontainers.image.revision is another"):
        press.prepare("cpu")
    press.house.engine.images[reference] = good
    template = press.house.root / "templates" / "Dockerfile.j2"
    template.write_text(template.read_text().replace("NOTHING", "") + "# changed\n")
    with pytest.raises(CheckFailed, match="its Dockerfile was another"):
        press.prepare("cpu")


def test_an_image_with_other_wheels_than_the_matrix_names_is_not_published(press: Press) -> None:
    """The statements would name wheels that are not in it."""
    press.build("120")
    press.prepare("120")
    matrix = press.house.root / "matrix.yaml"
    text = matrix.read_text()
    digest = re.findall(r"linux/amd64: ([0-9a-f]{64})", text)[0]
    matrix.write_text(text.replace(digest, "a" * 64))
    with pytest.raises(CheckFailed, match="lists of wheels in images/common were others") as caught:
        press.prepare("120")
    assert caught.value.hint == "invoke build --arch 120 builds it anew"
    matrix.write_text(text)
    press.prepare("120")
    (press.house.root / "images" / "common" / "stage").write_text("#!/bin/sh\n")
    with pytest.raises(CheckFailed, match="the scripts"):
        press.prepare("120")


def test_an_image_without_a_record_is_not_published(press: Press) -> None:
    press.build("cpu")
    for path in (press.house.cache / "builds").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="this cache has no record of it"):
        press.prepare("cpu")


def test_what_stands_on_an_unpinned_image_is_not_published(press: Press) -> None:
    press.build("cpu")
    shop = press.house.shop()
    selection = choose(shop.matrix, ["120"], base="nvidia", platform="linux/amd64", native=tuple)
    plan = make_plan(selection, series=shop.series, platform="linux/amd64")
    with pytest.raises(UsageError, match="without a digest"):
        module.prepare(
            shop, press.house.engine, plan, CachedImages(press.house.cache), evidence=[], allow_untested=True
        )


def test_a_clock_in_the_past_is_noticed(press: Press, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import tzinfo

    class Past(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Past:
            return cls(2001, 1, 1, tzinfo=UTC)

    press.build("cpu")
    monkeypatch.setattr(module, "datetime", Past)
    with pytest.raises(UsageError, match="clock is wrong: it says 2001-01-01, the source is of 2026-06-11"):
        press.prepare("cpu")


def scanner(folder: Path, script: str) -> SystemPrograms:
    """Programs with a stand-in for trivy: it keeps what it was asked, and answers with the script."""
    folder.mkdir()
    program = folder / "trivy"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {folder}/asked\n{script}\n")
    program.chmod(0o755)
    return SystemPrograms(environ={"PATH": f"{folder}:/bin"})


@pytest.mark.parametrize(
    ("script", "passed", "words"),
    [("exit 0", True, "nothing grave"), ("echo CVE-1 is grave; exit 1", False, "exit 1: CVE-1 is grave")],
)
def test_a_scanner_is_given_the_bill_of_materials(
    press: Press, tmp_path: Path, script: str, passed: bool, words: str
) -> None:
    (target,) = press.build("cpu")
    shop = replace(press.house.shop(), programs=scanner(tmp_path / "bin", script))
    result = scan(shop, press.house.engine, CachedImages(press.house.cache / "oci"), target)
    assert result.passed == passed
    assert result.left_out == ("grype",)
    assert result.checks[-1].name == "trivy: known vulnerabilities"
    assert words in result.checks[-1].detail
    assert (tmp_path / "bin" / "asked").read_text().splitlines()[-1] == result.bill
    bill = json.loads(Path(result.bill).read_text())
    assert bill["bomFormat"] == "CycloneDX"


def test_a_scan_finds_what_publishing_refuses(press: Press, tmp_path: Path) -> None:
    (target,) = press.build("cpu", files={"root/.netrc": "machine x"})
    shop = replace(press.house.shop(), programs=SystemPrograms(environ={"PATH": str(tmp_path)}))
    result = scan(shop, press.house.engine, CachedImages(press.house.cache / "oci"), target)
    assert not result.passed
    assert [check.passed for check in result.checks] == [True, False, True]
    assert result.left_out == ("trivy", "grype")


# --- what goes wrong on the way -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("PUT", MANIFESTS, status=500, times=99, skip=7), "answered 500"),
        (Fault("PUT", MANIFESTS, status=403, times=99, skip=7), "answered 403"),
        (Fault("PATCH", "/uploads/", cut_request=0, times=99, skip=4), "can't be reached"),
        (
            Fault("PUT", MANIFESTS, headers={"Docker-Content-Digest": "sha256:" + "1" * 64}, skip=7),
            "stored sha256:1",
        ),
        (Fault("POST", "/uploads/", status=401, times=99, skip=8), "answered 401"),
        (Fault("POST", "/uploads/", status=404, times=99, skip=8), "has no tests/"),
        (Fault("GET", "/blobs/", cut_answer=10, times=99, skip=4), "can't be reached"),
        (Fault("GET", "/blobs/", alter=(b"\x1f\x8b\x08", b"\x1f\x8b\x09"), skip=4), "sent sha256:"),
    ],
)
def test_a_failure_in_between_leaves_the_tags_as_they_were_and_the_next_call_goes_on(
    press: Press, front: Proxy, cells: list[Cell], fault: Fault, words: str
) -> None:
    front.faults.append(fault)
    with pytest.raises(OutsideError, match=words) as caught:
        press.publish(cells)
    assert "\n" not in caught.value.message
    assert fixed(press) == [], "something has a name already"
    front.faults.clear()
    before = front.count("PATCH")
    press.publish(cells)
    assert front.count("PATCH") - before < before, "what was there was sent again"
    assert verification(press, "cpu").problems == ()
    assert verification(press, "stock-cpu").problems == ()


def test_a_full_disk_stops_it_and_room_lets_it_go_on(press: Press, tmp_path: Path) -> None:
    store = tmp_path / "small"
    store.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(store)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system of 1 MB can't be mounted here")
    try:
        with serving(tmp_path / "registry", store=store) as host:
            small = replace(press, registry=RegistryClient(f"http://{host}", sleep=lambda _seconds: None))
            small.build("cpu", files={"app/weights": secrets.token_hex(2 << 20)})
            cells = small.prepare("cpu")
            with pytest.raises(OutsideError, match=r"has no room for .*: its disk is full") as caught:
                small.publish(cells)
            assert "\n" not in caught.value.message
            assert fixed(small) == []
            subprocess.run(["mount", "-o", "remount,size=64m", str(store)], check=True)
            small.publish(cells)
            assert verification(small, "cpu").problems == ()
    finally:
        subprocess.run(["umount", str(store)], check=True)


def test_a_full_disk_on_this_side_is_named_too(press: Press) -> None:
    folder = press.house.cache / "oci"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system of 1 MB can't be mounted here")
    try:
        press.build("cpu", files={"app/weights": secrets.token_hex(2 << 20)})
        with pytest.raises(OutsideError, match=r"oci can't be written: No space left on device$"):
            press.prepare("cpu")
        subprocess.run(["mount", "-o", "remount,size=16m", str(folder)], check=True)
        assert len(press.prepare("cpu")) == 1
        # Packed by now; to look into its layers takes room once more.
        (folder / "of somebody else").write_bytes(bytes(12 << 20))
        with pytest.raises(OutsideError, match=r"oci can't be written: No space left on device$"):
            press.prepare("cpu")
        assert not list(folder.glob("*-*/*"))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_part_of_another_platform_that_is_gone_stops_the_tags(
    press: Press, front: Proxy, cells: list[Cell]
) -> None:
    """A tag is never moved to an index of which something is missing, whoever published it."""
    (first,) = press.publish(cells[:1])
    config = cells[0].manifest.config.digest
    front.faults.append(Fault("HEAD", config, status=404, times=99))
    with pytest.raises(
        OutsideError, match=rf"for linux/amd64 lacks {config}, so no tag has changed"
    ) as caught:
        press.publish([arm(cells[0])])
    assert caught.value.hint
    assert {press.tag(tag) for tag in cells[0].tags.all} == {first.index}
    front.faults.clear()
    (joined,) = press.publish([arm(cells[0])])
    assert {press.tag(tag) for tag in cells[0].tags.all} == {joined.index} != {first.index}


def second_version(press: Press) -> list[Cell]:
    press.edit(f"    version: {VERSION}\n", "    version: 0.2.0\n")
    press.program = "the program, second build"
    press.build("cpu", flavors=["patched", "stock"])
    return press.prepare("cpu", flavors=["patched", "stock"])


def test_moving_tags_move_together_or_not_at_all(press: Press, front: Proxy, cells: list[Cell]) -> None:
    first = press.publish(cells)
    later = second_version(press)
    front.faults.append(Fault("PUT", f"{MANIFESTS}stock-cpu", status=500, times=99))
    with pytest.raises(OutsideError, match="answered 500"):
        press.publish(later)
    assert (press.tag("cpu"), press.tag("stock-cpu")) == (first[0].index, first[1].index)
    front.faults.clear()
    second = press.publish(later)
    assert (press.tag("cpu"), press.tag("stock-cpu")) == (second[0].index, second[1].index)


def test_a_move_whose_answer_is_lost_is_taken_back_too(press: Press, front: Proxy, cells: list[Cell]) -> None:
    first = press.publish(cells)
    front.faults.append(Fault("GET", f"{MANIFESTS}stock-cpu", status=403, times=1, skip=1))
    with pytest.raises(OutsideError, match="answered 403"):
        press.publish(second_version(press))
    assert (press.tag("cpu"), press.tag("stock-cpu")) == (first[0].index, first[1].index)


def test_ctrl_c_between_two_moves_takes_the_first_back(
    press: Press, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = press.publish(cells)
    later = second_version(press)
    real = press.registry.push_manifest

    def interrupted(repository: str, manifest: Manifest, tag: str | None = None) -> None:
        if tag == "stock-cpu" and manifest.digest != first[1].index:
            raise KeyboardInterrupt
        real(repository, manifest, tag)

    monkeypatch.setattr(press.registry, "push_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        press.publish(later)
    assert (press.tag("cpu"), press.tag("stock-cpu")) == (first[0].index, first[1].index)


@pytest.mark.parametrize("again", [False, True])
def test_what_an_interrupted_call_leaves_moved_is_said(
    press: Press, front: Proxy, cells: list[Cell], monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """The registry does not take the tag back, or the way back is interrupted too."""
    first = press.publish(cells)
    later = second_version(press)
    real = press.registry.push_manifest

    def interrupted(repository: str, manifest: Manifest, tag: str | None = None) -> None:
        if tag == "stock-cpu" and manifest.digest != first[1].index:
            raise KeyboardInterrupt
        if tag == "cpu" and manifest.digest == first[0].index:
            raise KeyboardInterrupt if again else OutsideError("it is away")
        real(repository, manifest, tag)

    monkeypatch.setattr(press.registry, "push_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        press.publish(later)
    assert press.tag("cpu") != first[0].index
    assert press.house.reporter.lines[-1] == (
        "warning: cpu could not be moved back; the same command moves them all"
    )


@dataclass
class Termination(Fault):
    """Ends a process in the middle of a request, as a cancelled job does."""

    process: subprocess.Popen[str] | None = None

    def strikes(self, method: str, path: str) -> bool:
        found = super().strikes(method, path)
        if found and self.process is not None:
            self.process.send_signal(signal.SIGTERM)
        return found


def test_a_cancelled_job_moves_its_tags_back(press: Press, front: Proxy, tmp_path: Path) -> None:
    """The real command, with the repository's own matrix."""
    name, client, shop = press.repository.name, press.registry, tasks._workshop()
    before = oci.index([])
    client.push_bytes(name, b"{}", oci.CONFIG)
    client.push_manifest(name, before, "cpu")
    for target in select(shop.matrix, ["cpu"], flavors=["patched", "stock"], native=tuple).targets:
        series = series_of(target, shop.series)
        annotations = annotations_of(target, series)
        image = oci.image_manifest(oci.Descriptor.of(b"{}", oci.CONFIG), [], annotations)
        client.push_manifest(name, image)
        entries = [replace(image.descriptor, platform="linux/amd64", annotations={TESTED: "no"})]
        tag = published_tags(shop.matrix, target, series).version
        client.push_manifest(name, oci.index(entries, {**annotations, TESTED: "no"}), tag)
    fault = Termination("PUT", f"{MANIFESTS}stock-cpu$", 503, {"Retry-After": "60"})
    front.faults.append(fault)
    words = ["publish", "--arch", "cpu", "--flavor", "patched", "--flavor", "stock", "--move-only"]
    fault.process = subprocess.Popen(
        [sys.executable, "-m", "invoke", *words, "--registry", str(press.repository)],
        cwd=tasks.ROOT,
        env={**os.environ, "LLAMA_IMAGES_CACHE": str(tmp_path / "cache")},
        stderr=subprocess.PIPE,
        text=True,
    )
    with fault.process as process:
        try:
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("interrupted; ")
    assert front.count("PUT", f"{MANIFESTS}cpu ") == 3, "set before, moved, and moved back"
    assert press.tag("cpu") == before.digest


def test_a_tag_that_can_not_be_moved_back_is_named(press: Press, front: Proxy, cells: list[Cell]) -> None:
    press.publish(cells)
    later = second_version(press)
    front.faults += [
        Fault("PUT", f"{MANIFESTS}cpu$", status=403, times=99, skip=1),
        Fault("PUT", f"{MANIFESTS}stock-cpu", status=403, times=99),
    ]
    with pytest.raises(
        OutsideError, match=r"answered 403 .*; stock-cpu, cpu could not be moved back"
    ) as caught:
        press.publish(later)
    assert "the same command goes on" in str(caught.value.hint)


# --- verifying ------------------------------------------------------------------------------------


def verification(press: Press, target: str, signer: KeySigner | None = None) -> Verification:
    tag = None if oci.is_digest(target) else target
    reference = Reference(repository=press.repository, target=target, tag=tag)
    return verify(press.house.shop(), reference, press.registry, (signer or press.signer).verifier)


def test_ten_lines_say_what_an_image_is(press: Press) -> None:
    press.build("120")
    (cell,) = press.prepare("120")
    (cell,) = press.prepare("120", evidence=[evidence(cell)], allow_untested=False)
    (result,) = press.publish([cell])
    found = verification(press, "sm120")
    assert found.problems == ()
    lines = dict(found.lines)
    assert len(found.lines) == len(lines) == 10
    assert lines["image"] == f"{press.repository}@{result.index}"
    assert lines["is"] == "llama-diffusion-cli sm120 0.1.0, patched, on debian"
    assert "RTX 50 series" in lines["for"]
    assert result.image in lines["platforms"]
    assert cell.target.source.commit in lines["source"]
    assert lines["CUDA"] == "13.0, code for sm_120a, driver 580.65.06 or newer"
    assert "libc6 2.36-9+deb12u10" in lines["holds"]
    assert "nvidia-cublas 13.0.2.14" in lines["holds"]
    assert "builders/local with docker 1, 20" in lines["built by"]
    assert "by Dockerfile and scripts of this checkout" in lines["built by"]
    assert lines["tested"] == "1 case passed, 1 skipped, on 2 × A GPU"
    by_digest = verification(press, result.image)
    assert by_digest.problems == ()
    assert dict(by_digest.lines)["tested"] == lines["tested"]


def test_an_untested_image_says_so(press: Press, cells: list[Cell]) -> None:
    press.publish(press.prepare("cpu"))
    found = verification(press, "cpu")
    assert found.problems == ()
    assert dict(found.lines)["tested"] == "no evidence"


def test_another_key_is_no_publisher(press: Press, cells: list[Cell]) -> None:
    press.publish(cells)
    other = KeySigner(Ed25519PrivateKey.generate())
    problems = verification(press, "cpu", other).problems
    assert len(problems) == 3
    assert all("did not sign it" in text for text in problems)


def test_scripts_that_have_changed_since_are_mentioned(press: Press, cells: list[Cell]) -> None:
    press.publish(cells)
    (press.house.root / "images" / "common" / "stage").write_text("#!/bin/sh\n")
    found = verification(press, "cpu")
    assert found.problems == ()
    assert "by other Dockerfile or scripts than this checkout" in dict(found.lines)["built by"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("commit: 10a2613a", "commit: 20a2613a", "provenance: git.*the matrix says 20a2613a"),
        (
            "    version: 0.1.0\n",
            "    version: 0.1.1\n",
            "^it was published as version 0.1.0, this matrix is of 0.1.1$",
        ),
        ("tree: 4c83e46b", "tree: 5c83e46b", "the label io.github.llama-images.source-tree is"),
        ("any x86-64 or 64-bit Arm processor", "something else", "description is"),
    ],
)
def test_a_matrix_that_says_something_else(
    press: Press, cells: list[Cell], old: str, new: str, words: str
) -> None:
    press.publish(cells)
    press.edit(old, new)
    problems = verification(press, "cpu").problems
    assert any(re.search(words, text) for text in problems), problems


def attach(press: Press, subject: Manifest, statement: Statement, signer: KeySigner | None = None) -> None:
    bundle = (signer or press.signer).sign(statement.encode())
    manifest = attached(subject.descriptor, bundle, statement.predicate_type)
    press.registry.push_bytes(press.repository.name, bundle, manifest.layers[0].media_type)
    press.registry.push_referrer(press.repository.name, manifest)


def test_statements_about_another_image_prove_nothing(press: Press, cells: list[Cell]) -> None:
    """An attacker with write access puts signed statements of a good image beside a bad one."""
    press.publish(cells)
    name = press.repository.name
    evil = oci.image_manifest(
        cells[0].manifest.config, cells[1].manifest.layers, cells[0].manifest.annotations
    )
    press.registry.push_manifest(name, evil)
    for referrer in press.registry.referrers(name, cells[0].manifest.digest):
        kind = referrer.annotations["dev.sigstore.bundle.predicateType"]
        (part,) = press.registry.manifest(name, referrer.digest).layers
        bundle = press.registry.blob(name, part.digest)
        press.registry.push_referrer(name, attached(evil.descriptor, bundle, kind))
    entry = replace(evil.descriptor, platform="linux/amd64", annotations={TESTED: "cpu"})
    press.registry.push_manifest(name, oci.index([entry], evil.annotations), "cpu")
    problems = verification(press, "cpu").problems
    assert len(problems) == 3
    assert all("it is about sha256:" in text for text in problems)


def test_an_image_under_the_tag_of_another_is_found(press: Press, cells: list[Cell]) -> None:
    """Everything about it is signed and true, but the tag says something else: stock as patched."""
    press.publish(cells)
    stock = press.registry.manifest(press.repository.name, "stock-cpu")
    press.registry.push_manifest(press.repository.name, stock, "cpu")
    assert verification(press, "cpu").problems[0].startswith("the tag cpu is none of cpu-stock: ")
    assert verification(press, "stock-cpu").problems == ()


def test_a_platform_that_the_index_only_claims_is_found(press: Press, cells: list[Cell]) -> None:
    press.publish(cells)
    held = press.registry.manifest(press.repository.name, "cpu")
    (entry,) = held.entries
    lie = oci.index([replace(entry, platform="linux/arm64")], held.annotations)
    press.registry.push_manifest(press.repository.name, lie, "cpu")
    problems = verification(press, "cpu").problems
    assert "linux/arm64: the image is for linux/amd64" in problems


def broken_bundles(press: Press, cell: Cell) -> None:
    """What anybody with write access may attach: nested without end, gone, huge, or of two kinds at once."""
    name, client = press.repository.name, press.registry
    for number, data in enumerate((b"[" * 100_000, b"gone", bytes((32 << 20) + 1))):
        kind = [SBOM, PROVENANCE, EVIDENCE][number]
        manifest = attached(cell.manifest.descriptor, data, kind)
        client.push_bytes(name, oci.EMPTY_JSON, oci.EMPTY)
        client.push_bytes(name, data, manifest.layers[0].media_type)
        client.push_referrer(name, manifest)


def test_broken_attachments_stop_neither_publishing_nor_verifying(
    press: Press, front: Proxy, cells: list[Cell]
) -> None:
    press.publish(cells[:1])
    broken_bundles(press, cells[0])
    gone = oci.digest_of(b"gone")
    front.faults.append(Fault("GET", f"blobs/{gone}", status=404, times=99))
    assert verification(press, "cpu").problems == ()
    before = press.registry.referrers(press.repository.name, cells[0].manifest.digest)
    press.publish(cells[:1])
    assert press.registry.referrers(press.repository.name, cells[0].manifest.digest) == before
    other = verification(press, "cpu", KeySigner(Ed25519PrivateKey.generate()))
    assert any("is no signed statement" in text for text in other.problems)
    assert any(f"has no {press.repository.name}@{gone}" in text for text in other.problems)
    assert any("sent more than 33554432 bytes" in text for text in other.problems)


def test_an_answer_of_two_kinds_is_taken_for_neither(press: Press, front: Proxy, cells: list[Cell]) -> None:
    press.publish(cells[:1])
    for headers in ({"Content-Type": oci.MANIFEST}, {"Content-Type": oci.DOCKER_LIST}):
        front.faults.append(Fault("GET", f"{MANIFESTS}cpu$", headers=headers))
        with pytest.raises(BadAnswer, match=r"sent no manifest for \S+:cpu: it calls itself"):
            press.registry.manifest(press.repository.name, "cpu")


def test_annotations_of_another_form_are_one_line(press: Press, front: Proxy, cells: list[Cell]) -> None:
    """This registry takes no such manifest; others do."""
    odd = Manifest.made({**cells[0].manifest.content, "annotations": ["a"]})
    index = oci.index([replace(odd.descriptor, platform="linux/amd64")])
    for reference, answer in (("odd", index), (odd.digest, odd)):
        path = f"{MANIFESTS}{reference}$"
        front.faults.append(Fault("GET", path, 200, {"Content-Type": answer.media_type}, answer.raw))
    with pytest.raises(CheckFailed, match="it calls itself None"):
        verification(press, "odd")


def test_a_statement_with_a_lie_that_the_publisher_signed_is_held_against_the_matrix(
    press: Press, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.statements

    def lying(*arguments: Any) -> list[Statement]:
        found = real(*arguments)
        text = found[1].encode().decode().replace(cells[0].target.source.commit, "f" * 40)
        lie = Statement.parse(text.encode())
        assert lie is not None
        return [found[0], lie, *found[2:]]

    monkeypatch.setattr(module, "statements", lying)
    press.publish(cells)
    problems = verification(press, "cpu").problems
    assert len(problems) == 1
    assert "provenance: git+" in problems[0]
    assert "ffffff" in problems[0]


def test_a_missing_layer_is_found(press: Press, front: Proxy, cells: list[Cell]) -> None:
    press.publish(cells)
    digest = cells[0].manifest.layers[1].digest
    front.faults.append(Fault("HEAD", digest, status=404))
    assert any("is missing" in text for text in verification(press, "cpu").problems)


def test_what_is_no_image_of_ours_is_one_line(press: Press) -> None:
    name = press.repository.name
    press.registry.push_bytes(name, b'{"os":"linux","architecture":"amd64"}', oci.CONFIG)
    config = oci.Descriptor.of(b'{"os":"linux","architecture":"amd64"}', oci.CONFIG)
    press.registry.push_manifest(name, oci.image_manifest(config, [], {}), "foreign")
    press.registry.push_manifest(name, oci.index([]), "empty")
    with pytest.raises(CheckFailed, match="is no image of this matrix: it calls itself None"):
        verification(press, "foreign")
    with pytest.raises(CheckFailed, match="the index is empty"):
        verification(press, "empty")
    with pytest.raises(OutsideError, match=f"has no {name}:none"):
        verification(press, "none")


# --- pruning --------------------------------------------------------------------------------------


@pytest.fixture
def history(press: Press) -> list[module.Published]:
    """Four versions of the CPU image, and one of another that is of the first version alone."""
    press.build("120")
    press.publish(press.prepare("120"))
    return [
        published(press, version, f"build {version}") for version in ("0.1.0", "0.2.0", "0.10.0", "0.10.1")
    ]


def test_old_versions_go_with_all_that_hangs_on_them(press: Press, history: list[module.Published]) -> None:
    name = press.repository.name
    attached_before = [entry.digest for entry in press.registry.referrers(name, history[1].image)]
    assert len(attached_before) == 2
    pruning = plan_pruning(press.registry, press.repository, 2)
    assert pruning.kept_versions == ("0.10.1", "0.10.0")
    assert "0.2.0-cpu" in pruning.tags
    assert "0.1.0-cpu" in pruning.tags
    assert "0.1.0-cuda13.0-sm120" in pruning.spared, "its moving tag needs it"
    before = press.registry.tags(name)
    prune(press.registry, press.repository, pruning, press.house.reporter)
    after = press.registry.tags(name)
    assert press.tag("cpu") == press.tag("0.10.1-cpu") == history[3].index
    assert press.tag("0.10.0-cpu") == history[2].index
    assert {"0.1.0-cpu", "0.2.0-cpu"} & set(after) == set()
    for gone in (history[0].index, history[0].image, history[1].image, *attached_before):
        assert press.registry.find(name, gone) is None
    for tag in fixed(press):
        press.registry.read_image(name, tag)
    assert len(press.registry.referrers(name, history[3].image)) == 2
    assert verification(press, "cpu").problems == ()
    assert len(after) < len(before)
    assert plan_pruning(press.registry, press.repository, 2).digests == ()


def test_nothing_goes_before_it_is_asked_for(
    press: Press, front: Proxy, history: list[module.Published]
) -> None:
    front.asked.clear()
    plan_pruning(press.registry, press.repository, 1)
    assert {line.split()[0] for line in front.asked} <= {"GET", "HEAD"}


def test_an_image_that_a_newer_index_still_names_stays(press: Press, history: list[module.Published]) -> None:
    """Two versions may share an image, and another's tag may hold on to an old index."""
    name = press.repository.name
    old = press.registry.manifest(name, "0.1.0-cpu")
    shared = oci.index([*old.entries], {**old.annotations, "org.opencontainers.image.version": "0.10.1"})
    press.registry.push_manifest(name, shared, "0.10.1-cuda13.0-sm89")
    press.registry.push_manifest(name, press.registry.manifest(name, "0.2.0-cpu"), "kept-by-hand")
    pruning = plan_pruning(press.registry, press.repository, 1)
    assert history[0].image not in pruning.digests
    assert history[1].index not in pruning.digests
    assert "0.2.0-cpu" in pruning.spared
    prune(press.registry, press.repository, pruning, press.house.reporter)
    press.registry.read_image(name, "0.10.1-cuda13.0-sm89")
    press.registry.read_image(name, "kept-by-hand")


def test_tags_of_others_stay_whatever_they_look_like(press: Press, history: list[module.Published]) -> None:
    """Somebody keeps other images in the same repository, with versions of their own."""
    name = press.repository.name
    press.registry.push_bytes(name, b"{}", oci.CONFIG)
    config = oci.Descriptor.of(b"{}", oci.CONFIG)
    version = {"org.opencontainers.image.version": "0.0.1"}
    target = {"io.github.llama-images.target": "cpu"}
    theirs = {
        "0.0.1-server": oci.image_manifest(config, [], version),
        "beta-0.0.1-cpu": oci.image_manifest(config, [], version | target),
        "0.0.1-cuda12.0-sm89": oci.image_manifest(config, [], version | target | {"x": "another"}),
        "0123456789ab"[:9] + "-server": oci.image_manifest(config, [], version | {"x": "by commit"}),
    }
    for tag, manifest in theirs.items():
        press.registry.push_manifest(name, manifest, tag)
    pruning = plan_pruning(press.registry, press.repository, 1)
    assert pruning.kept_versions == ("0.10.1",)
    assert "0.2.0-cpu" in pruning.tags
    assert not theirs.keys() & {*pruning.tags, *pruning.spared}
    prune(press.registry, press.repository, pruning, press.house.reporter)
    assert {tag: press.tag(tag) for tag in theirs} == {tag: one.digest for tag, one in theirs.items()}


def test_an_index_that_can_not_be_read_keeps_everything(
    press: Press, front: Proxy, history: list[module.Published]
) -> None:
    """Somebody's index names its images by SHA-512: what it needs is not known."""
    entry = {"mediaType": oci.MANIFEST, "digest": "sha512:" + "1" * 128, "size": 1}
    body = oci.encode({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [entry]})
    press.registry.push_manifest(press.repository.name, oci.index([]), "theirs")
    theirs = Fault("GET", f"{MANIFESTS}theirs$", status=200, headers={"Content-Type": oci.INDEX}, body=body)
    front.faults.append(replace(theirs, times=99))
    with pytest.raises(OutsideError, match="can't be read, so nothing can be removed"):
        plan_pruning(press.registry, press.repository, 1)


def test_what_is_tagged_meanwhile_stays(press: Press, history: list[module.Published]) -> None:
    name = press.repository.name
    pruning = plan_pruning(press.registry, press.repository, 1)
    assert history[1].index in pruning.digests
    press.registry.push_manifest(name, press.registry.manifest(name, "0.2.0-cpu"), "rescued")
    prune(press.registry, press.repository, pruning, press.house.reporter)
    press.registry.read_image(name, "rescued")
    assert any("is needed by now" in line for line in press.house.reporter.lines)


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_version_stays(press: Press, keep: int) -> None:
    with pytest.raises(UsageError, match="at least one version stays"):
        plan_pruning(press.registry, press.repository, keep)


def test_an_empty_repository_has_nothing_to_prune(press: Press) -> None:
    pruning = plan_pruning(press.registry, press.repository, 1)
    assert (pruning.tags, pruning.digests, pruning.kept_versions) == ((), (), ())


def test_local_names_are_the_engines(press: Press, cells: list[Cell]) -> None:
    """What a registry is told is not this machine's name for the image."""
    text = json.dumps([json.loads(one.encode()) for one in module.statements(press.house.shop(), cells[0])])
    assert local_reference(cells[0].target) == "llama-diffusion:cpu"
    assert str(press.house.folder) not in text
    assert f"llama-diffusion:{VERSION}-cpu" in text
