"""The tests that need no GPU, on the CPU image of both flavors: in containers, and one as a bare binary.

The stock flavor is the negative control: it has to fail what the series mends, and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import stat
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest

from llama_images import selection
from llama_images.adapters.engines import choose_engine
from llama_images.adapters.git import GitSourceTree
from llama_images.adapters.gpu_memory import CudaMemory
from llama_images.adapters.patch_files import load_series
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.programs import BareProgram, ImageProgram
from llama_images.adapters.reporter import ConsoleReporter
from llama_images.cases import cpu_cases
from llama_images.cli import cache_folder
from llama_images.evidence import Evidence, json_schema
from llama_images.matrix import Flavor, load_matrix
from llama_images.plan import choose, make_plan
from llama_images.ports import Engine
from llama_images.selection import Target, make_target
from llama_images.synthetic import write_model
from llama_images.workflows.build import build_all
from llama_images.workflows.model_files import HashedModel, hashed_model
from llama_images.workflows.records import write_evidence
from llama_images.workflows.subjects import Subject, binary_subject, image_subject
from llama_images.workflows.suite import Rig, SuiteOptions, run_suite
from llama_images.workflows.workshop import Workshop

pytestmark = [pytest.mark.engine, pytest.mark.source]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workshop that keeps its logs to itself and shares the source with the user's other builds."""
    programs, reporter = SystemPrograms(), ConsoleReporter(io.StringIO(), plain=True)
    matrix = load_matrix(ROOT / "matrix.yaml")
    return Workshop(
        root=ROOT,
        cache=tmp_path_factory.mktemp("cache"),
        environment=os.environ,
        matrix=matrix,
        series={s.series: load_series(ROOT / "patches" / s.series) for s in matrix.sources.values()},
        programs=programs,
        reporter=reporter,
        source_tree=GitSourceTree(
            programs=programs, cache=cache_folder(), reporter=reporter, patches=ROOT / "patches"
        ),
    )


@pytest.fixture(scope="module")
def engine(shop: Workshop) -> Engine:
    return choose_engine(None, shop.programs, shop.reporter)


@pytest.fixture(scope="module")
def targets(shop: Workshop, engine: Engine) -> Iterator[dict[Flavor, Target]]:
    """Both flavors of the CPU image under names of their own; the engine's cache has their steps."""
    platform = engine.info().platform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "IMAGE", f"localhost/llama-images-test/{uuid.uuid4().hex[:12]}")
        chosen = choose(shop.matrix, ["cpu"], flavors=["patched", "stock"], platform=platform, native=tuple)
        plan = make_plan(chosen, series=shop.series, platform=platform)
        try:
            build_all(shop, engine, plan, repo=os.environ.get("LLAMA_CPP_REPO"))
            yield {target.flavor: target for target in plan.targets}
        finally:
            for target in plan.targets:
                engine.remove_tag(selection.local_reference(target))


@pytest.fixture(scope="module")
def model(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> HashedModel:
    folder = tmp_path_factory.mktemp("model")
    return hashed_model(write_model("tiny", folder / "tiny.gguf").path, folder / "notes.json", shop.reporter)


def run(shop: Workshop, subject: Subject, model: HashedModel, folder: Path) -> tuple[Evidence, Any]:
    """The record, and the document as it was written."""
    rig = Rig(engine="tests", platform="linux/amd64", memory=CudaMemory(), model=model)
    written: list[Path] = []
    evidence = run_suite(
        shop,
        subject,
        rig,
        SuiteOptions(),
        save=lambda evidence: written.append(write_evidence(folder, evidence)),
    )
    return evidence, json.loads(written[0].read_text("utf-8"))


def told(evidence: Evidence) -> list[str]:
    """Everything that failed, for the test's own message."""
    return [
        f"{case.name}: {rule.name}: {rule.detail}"
        for case in evidence.failed
        for rule in case.verdicts
        if not rule.passed or case.status == "passed though it should fail"
    ]


def test_the_patched_image_passes_every_case(
    shop: Workshop, engine: Engine, targets: dict[Flavor, Target], model: HashedModel, tmp_path: Path
) -> None:
    subject = image_subject(
        engine, targets["patched"], targets["stock"], functools.partial(ImageProgram, engine)
    )
    evidence, document = run(shop, subject, model, tmp_path)
    assert told(evidence) == []
    assert [case.status for case in evidence.cases] == ["passed"] * len(cpu_cases("patched"))
    jsonschema.validate(document, json.loads(json_schema()))
    assert document["subject"]["series_digest"].startswith("sha256:")
    assert document["model"]["sha256"] == model.sha256
    (xml,) = tmp_path.glob("*.xml")
    assert ET.parse(xml).getroot().attrib["failures"] == "0"
    # Ctrl-C ended its container, and what was run left none.
    assert containers_of(targets["patched"]) == []


def test_the_stock_image_fails_exactly_what_it_should(
    shop: Workshop, engine: Engine, targets: dict[Flavor, Target], model: HashedModel, tmp_path: Path
) -> None:
    make = functools.partial(ImageProgram, engine)
    subject = image_subject(engine, targets["stock"], targets["stock"], make)
    evidence, _ = run(shop, subject, model, tmp_path)
    assert told(evidence) == []
    failed = {case.name for case in evidence.cases if case.status == "failed as it should"}
    assert failed == {case.name for case in cpu_cases("stock") if case.fails_on_stock} != set()


def test_a_bare_binary_passes_what_means_something_outside_a_container(
    shop: Workshop, engine: Engine, targets: dict[Flavor, Target], model: HashedModel, tmp_path: Path
) -> None:
    """The image's own program, taken out of it."""
    archive = tmp_path / "root.tar"
    engine.export_root(selection.local_reference(targets["patched"]), archive)
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith("app")]
        tar.extractall(tmp_path / "root", members=members, filter="data")
    binary = tmp_path / "root" / "app" / "llama-diffusion-cli"
    assert binary.stat().st_mode & stat.S_IXUSR
    version = shop.programs.run([str(binary), "--version"], timeout=60)
    if version.returncode != 0:
        pytest.skip(f"the image's program does not start on this system: {version.error_text.strip()[-200:]}")
    subject = binary_subject(
        binary,
        flavor="patched",
        target=make_target(shop.matrix, "cpu"),
        stock=None,
        on_gpus=False,
        make=functools.partial(BareProgram, shop.programs),
        reporter=shop.reporter,
    )
    evidence, document = run(shop, subject, model, tmp_path / "evidence")
    assert told(evidence) == []
    assert {case.name for case in evidence.skipped} == {"model-unreadable", "ctrl-c"}
    assert str(tmp_path) not in json.dumps(document)
    assert str(model.path.parent) not in json.dumps(document)


def containers_of(target: Target) -> list[str]:
    import docker

    with contextlib.closing(docker.from_env()) as client:
        name = selection.local_reference(target)
        return [one.id for one in client.containers.list(all=True, filters={"ancestor": name}) if one.id]
