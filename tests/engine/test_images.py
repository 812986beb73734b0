"""The build workflow on a real engine with the real source: images made, looked into, run and compared."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_images import selection
from llama_images.adapters.engines import choose_engine
from llama_images.adapters.git import GitSourceTree
from llama_images.adapters.patch_files import load_series
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.programs import ImageProgram
from llama_images.adapters.reporter import ConsoleReporter
from llama_images.bench import Hardware, from_json
from llama_images.errors import UsageError
from llama_images.matrix import load_matrix
from llama_images.plan import choose, make_plan
from llama_images.ports import Engine
from llama_images.synthetic import write_model
from llama_images.workflows.bench import BenchRequest, image_beds, measure, places_of
from llama_images.workflows.build import Built, build_all
from llama_images.workflows.smoke import smoke
from llama_images.workflows.workshop import Workshop

pytestmark = [pytest.mark.engine, pytest.mark.source]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shop() -> Workshop:
    """A workshop on the user's own cache, so that a compiled tree is compiled once."""
    from llama_images import cli

    programs, reporter = SystemPrograms(), ConsoleReporter(io.StringIO(), plain=True)
    matrix = load_matrix(ROOT / "matrix.yaml")
    cache = cli.cache_folder()
    return Workshop(
        root=ROOT,
        cache=cache,
        environment=os.environ,
        matrix=matrix,
        series={s.series: load_series(ROOT / "patches" / s.series) for s in matrix.sources.values()},
        programs=programs,
        reporter=reporter,
        source_tree=GitSourceTree(
            programs=programs, cache=cache, reporter=reporter, patches=ROOT / "patches"
        ),
    )


@pytest.fixture(scope="module")
def engine(shop: Workshop) -> Engine:
    return choose_engine(None, shop.programs, shop.reporter)


@pytest.fixture(scope="module", autouse=True)
def names_of_their_own() -> Iterator[None]:
    """The images of these tests are not those that somebody has built on this engine to use them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "IMAGE", f"localhost/llama-images-test/{uuid.uuid4().hex[:12]}")
        yield


@pytest.fixture(scope="module")
def built(shop: Workshop, engine: Engine, names_of_their_own: None) -> Iterator[dict[str, Built]]:
    """Both flavors of the CPU image. The engine's cache has their steps where they were built before."""
    platform = engine.info().platform
    chosen = choose(shop.matrix, ["cpu"], flavors=["patched", "stock"], platform=platform, native=tuple)
    plan = make_plan(chosen, series=shop.series, platform=platform)
    try:
        results = build_all(shop, engine, plan, repo=os.environ.get("LLAMA_CPP_REPO"))
        yield {result.target.flavor: result for result in results}
    finally:
        for target in plan.targets:
            engine.remove_tag(selection.local_reference(target))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.parent.chmod(0o755)
    return write_model("tiny", path, on_progress=None).path


def root_files(engine: Engine, reference: str, folder: Path) -> dict[str, str]:
    """Path to digest of every regular file in an image."""
    archive = folder / "root.tar"
    engine.export_root(reference, archive)
    with tarfile.open(archive) as tar:
        return {
            member.name: hashlib.sha256(data.read()).hexdigest()
            for member in tar
            if member.isfile() and (data := tar.extractfile(member)) is not None
        }


def test_a_finished_target_with_the_same_inputs_is_not_built_again(
    shop: Workshop, engine: Engine, built: dict[str, Built]
) -> None:
    platform = engine.info().platform
    plan = make_plan(
        choose(shop.matrix, ["cpu"], platform=platform, native=tuple), series=shop.series, platform=platform
    )
    (again,) = build_all(shop, engine, plan, repo=None)
    assert again.status == "up to date"
    assert again.image.id == built["patched"].image.id


@pytest.mark.parametrize("flavor", ["patched", "stock"])
def test_the_image_passes_its_smoke_test(
    shop: Workshop, engine: Engine, built: dict[str, Built], model: Path, flavor: str
) -> None:
    result = smoke(shop, engine, built[flavor].target, model)
    assert [check for check in result.checks if not check.passed] == []
    assert result.run is not None
    assert len(result.run.sc_checks) == result.run.steps > 0


def test_a_smoke_test_finds_what_is_wrong(
    shop: Workshop, engine: Engine, built: dict[str, Built], model: Path
) -> None:
    """The stock image under the patched one's name: labels, version and program are not the patched ones."""
    patched, stock = built["patched"], built["stock"]
    engine.tag(patched.reference, f"{patched.reference}-kept")
    try:
        engine.tag(stock.reference, patched.reference)
        result = smoke(shop, engine, patched.target, model)
    finally:
        engine.tag(f"{patched.reference}-kept", patched.reference)
        engine.remove_tag(f"{patched.reference}-kept")
    assert {"labels", "--version without a driver"} <= {c.name for c in result.checks if not c.passed}


def test_an_image_that_was_never_built_is_named(shop: Workshop, engine: Engine, model: Path) -> None:
    platform = engine.info().platform
    (target,) = choose(shop.matrix, ["90"], flavors=["stock"], platform=platform, native=tuple).targets
    with pytest.raises(UsageError, match=f"there is no image {selection.IMAGE}:sm90-stock") as raised:
        smoke(shop, engine, target, model)
    assert raised.value.hint == "invoke build --arch 90 --flavor stock makes it"


def test_a_bench_runs_both_flavors_in_their_images(
    shop: Workshop, engine: Engine, built: dict[str, Built], model: Path, tmp_path: Path
) -> None:
    targets = (built["stock"].target, built["patched"].target)
    request = BenchRequest(
        places=places_of((), present=0, targets=targets),
        workloads=("short",),
        rounds=1,
        seed=1,
        max_steps=4,
        note="",
        taken_at="2026-01-02T03:04:05Z",
        hardware=Hardware(gpus=(), driver=None, processor="a CPU", engine="an engine"),
        folder=tmp_path / "out",
    )
    beds = image_beds(shop, engine, targets, functools.partial(ImageProgram, engine))
    bench = measure(beds, model, request, shop.reporter)
    assert [one.flavor for one in bench.measurements] == ["stock", "patched"]
    assert [build.digest for build in bench.builds] == [built[name].image.id for name in bench.flavors]
    assert [build.series is None for build in bench.builds] == [True, False]
    (configuration,) = bench.configurations
    assert (configuration.id, configuration.canvas) == ("cpu-short", 64)
    for one in bench.measurements:
        assert [len(block.steps_ms) for block in one.times.blocks] == [3], (
            "four steps, the first ends the gap"
        )
        assert min(one.times.blocks[0].steps_ms) > 0
        assert one.times.turn_ms is not None
        assert one.command[1] == "run"
        assert f"/models/{model.name}" in one.command
    assert from_json((tmp_path / "out" / "bench.json").read_bytes(), name="bench.json") == bench


def test_stock_and_patched_differ_only_where_they_should(
    shop: Workshop, engine: Engine, built: dict[str, Built], tmp_path: Path
) -> None:
    patched = root_files(engine, built["patched"].reference, tmp_path)
    stock = root_files(engine, built["stock"].reference, tmp_path)
    assert set(patched) == set(stock)
    different = {path for path in patched if patched[path] != stock[path]}
    # The program, its options and the model are patched; libggml-base holds the commit that --version prints
    # of ggml. No CPU backend is touched.
    patched_objects = {"app/llama-diffusion-cli", "app/libllama-common.so.0", "app/libllama.so.0"}
    assert patched_objects <= different
    assert different <= {*patched_objects, "app/libggml-base.so.0"}
    one, other = built["patched"].image, built["stock"].image
    assert one.layers[:-1] == other.layers[:-1], "the system layer must not move when a patch does"
    assert one.layers[-1] != other.layers[-1]
    assert one.entrypoint == other.entrypoint
    assert one.environment == other.environment
