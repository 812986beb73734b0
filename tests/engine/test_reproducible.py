"""The CPU image built twice, every step anew: the same layers, the same digests."""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_images import oci, selection
from llama_images.adapters.engines import choose_engine
from llama_images.adapters.git import GitSourceTree
from llama_images.adapters.image_store import CachedImages
from llama_images.adapters.patch_files import load_series
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.reporter import ConsoleReporter
from llama_images.cli import cache_folder
from llama_images.matrix import load_matrix
from llama_images.plan import choose, make_plan
from llama_images.ports import Engine, ImageInfo
from llama_images.render import INPUTS_LABEL
from llama_images.workflows.build import build_all
from llama_images.workflows.workshop import Workshop

pytestmark = [pytest.mark.engine, pytest.mark.source, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
COLD = "LLAMA_IMAGES_TEST_COLD"
"""Set to anything, the second build takes nothing from the compiler's cache: ten minutes on two cores."""


@dataclass(frozen=True)
class Once:
    """One build, and what would be published of it."""

    image: ImageInfo
    configuration: bytes
    layers: tuple[oci.Descriptor, ...]
    reused: tuple[str, ...]
    """Steps of the build stages that the engine took from its cache."""


Build = Callable[[str], Once]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """Builds the CPU image from a copy of the repository, in a place of its own, all steps anew."""
    references: list[tuple[Engine, str]] = []
    reporter = ConsoleReporter(io.StringIO(), plain=True)
    programs = SystemPrograms()

    def make(name: str) -> Once:
        monkeypatch.setattr(selection, "IMAGE", f"localhost/llama-images-test/{uuid.uuid4().hex[:12]}")
        root = tmp_path / name / "repository"
        for part in ("templates", "patches"):
            shutil.copytree(ROOT / part, root / part)
        shutil.copytree(ROOT / "images" / "common", root / "images" / "common")
        for part in ("README.md", "matrix.yaml"):
            shutil.copy(ROOT / part, root)
        template = root / "templates" / "Dockerfile.j2"
        text = template.read_text("utf-8")
        # The engine's `--no-cache` would empty the compiler's cache of everybody. What is set in the build
        # stages does not reach the image, which is made from scratch.
        line = "ENV DEBIAN_FRONTEND=noninteractive\n"
        assert text.count(line) == 1
        salt = f"ENV SALT={uuid.uuid4().hex}\n"
        if name == "two" and os.environ.get(COLD):
            # Not CCACHE_DISABLE: without ccache the compiler is given other paths, which asserts quote.
            salt += "ENV CCACHE_RECACHE=1\n"
        template.write_text(text.replace(line, line + salt), "utf-8")
        cache = cache_folder()  # the source is the same wherever it lies: the build context is copied
        matrix = load_matrix(root / "matrix.yaml")
        shop = Workshop(
            root=root,
            cache=cache if name == "one" else tmp_path / name / "a longer path" / "cache",
            environment=os.environ,
            matrix=matrix,
            series={s.series: load_series(root / "patches" / s.series) for s in matrix.sources.values()},
            programs=programs,
            reporter=reporter,
            source_tree=GitSourceTree(
                programs=programs, cache=cache, reporter=reporter, patches=root / "patches"
            ),
        )
        engine = choose_engine(None, programs, reporter)
        platform = engine.info().platform
        plan = make_plan(
            choose(matrix, ["cpu"], platform=platform, native=tuple), series=shop.series, platform=platform
        )
        reference = selection.local_reference(plan.targets[0])
        references.append((engine, reference))
        (built,) = build_all(shop, engine, plan, repo=os.environ.get("LLAMA_CPP_REPO"))
        assert built.summary is not None
        packed = CachedImages(tmp_path / name / "oci").pack(
            engine,
            reference,
            plan.targets[0].source.date,
            lambda _text: None,
            without_labels=[INPUTS_LABEL],
        )
        return Once(
            image=built.image,
            configuration=packed.configuration,
            layers=packed.layers,
            # Copies that find nothing new are not made again; that alone says that the files are the same.
            reused=tuple(step.name for step in built.summary.steps if step.cached and "RUN" in step.name),
        )

    yield make
    for engine, reference in references:
        engine.remove_tag(reference)


def test_two_builds_in_two_places_are_published_as_one_image(build: Build) -> None:
    one, two = build("one"), build("two")
    assert one.image.id != two.image.id, "the second build was not made at all"
    assert (one.reused, two.reused) == ((), ())
    assert one.image.layers == two.image.layers
    assert one.layers == two.layers
    assert json.loads(one.configuration) == json.loads(two.configuration)
    digests = [
        oci.image_manifest(oci.Descriptor.of(each.configuration, oci.CONFIG), each.layers, {}).digest
        for each in (one, two)
    ]
    assert digests[0] == digests[1]
