"""Plans are data: made and compared without an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_images.errors import UsageError
from llama_images.matrix import Matrix, load_matrix
from llama_images.patch_series import PatchSeries, make_series
from llama_images.plan import Plan, choose, choose_platform, make_plan
from llama_images.platforms import platform_of
from llama_images.selection import make_target

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return load_matrix(ROOT / "matrix.yaml")


@pytest.fixture(scope="module")
def series() -> dict[str, PatchSeries]:
    return {"pr24423": make_series("pr24423", [])}


def planned(matrix: Matrix, series: dict[str, PatchSeries], *words: str, **options: object) -> Plan:
    platform = str(options.pop("platform", "linux/amd64"))
    selection = choose(matrix, words, platform=platform, native=tuple, **options)  # type: ignore[arg-type]
    return make_plan(selection, series=series, platform=platform)


def test_one_architecture(matrix: Matrix, series: dict[str, PatchSeries]) -> None:
    plan = planned(matrix, series, "120")
    assert [(step.kind, step.subject) for step in plan.steps] == [
        ("source", "pr24423-patched"),
        ("base", "localhost/llama-images/base:bookworm"),
        ("build", "sm120"),
        ("smoke", "sm120"),
    ]


def test_sources_and_bases_are_shared(matrix: Matrix, series: dict[str, PatchSeries]) -> None:
    plan = planned(matrix, series, "89", "cpu", flavors=["patched", "stock"])
    assert [step.subject for step in plan.steps if step.kind == "source"] == [
        "pr24423-patched",
        "pr24423-stock",
    ]
    assert len([step for step in plan.steps if step.kind == "base"]) == 1
    assert [target.id for target in plan.targets] == ["cpu", "cpu-stock", "sm89", "sm89-stock"]


def test_every_image_is_built_before_the_first_is_tested(
    matrix: Matrix, series: dict[str, PatchSeries]
) -> None:
    plan = planned(matrix, series, "ampere")
    assert [(step.kind, step.subject) for step in plan.steps[2:]] == [
        *(("build", target.id) for target in plan.targets),
        *(("smoke", target.id) for target in plan.targets),
    ]
    assert len(plan.targets) > 1


def test_the_nvidia_base_makes_no_base_image(matrix: Matrix, series: dict[str, PatchSeries]) -> None:
    plan = planned(matrix, series, "70", base="nvidia")
    assert [step.kind for step in plan.steps] == ["source", "build", "smoke"]
    assert plan.steps[1].details["unpinned"] == [
        "nvidia/cuda:12.9.1-devel-ubuntu24.04",
        "nvidia/cuda:12.9.1-runtime-ubuntu24.04",
    ]


def test_all_leaves_out_what_another_platform_or_base_makes_and_says_so(
    matrix: Matrix, series: dict[str, PatchSeries]
) -> None:
    plan = planned(matrix, series, "all")
    ids = [target.id for target in plan.targets]
    assert "sm120" in ids
    assert "cpu" in ids
    assert "portable" in ids
    assert not {"sm121", "sm110", "sm70-nvidia"} & set(ids)
    for name in ("sm121", "sm110", "sm70"):
        assert any(reason.startswith(name) for reason in plan.left_out), name


def test_an_architecture_of_another_platform_named_by_itself_is_refused(
    matrix: Matrix, series: dict[str, PatchSeries]
) -> None:
    for word in ("121", "sm_121", "12.1", "sm_121a"):
        with pytest.raises(
            UsageError, match="sm121 is built for linux/arm64; builds here are for linux/amd64"
        ) as caught:
            planned(matrix, series, word, "120")
        assert caught.value.hint is not None
        assert "--builder with a buildx builder that serves linux/arm64" in caught.value.hint
    assert [t.id for t in planned(matrix, series, "121", platform="linux/arm64").targets] == ["sm121"]


@pytest.mark.parametrize(
    ("words", "platform"),
    [
        (["120"], "linux/amd64"),
        (["12.1"], "linux/arm64"),
        (["121", "cpu", "portable"], "linux/arm64"),
        (["cpu"], "linux/amd64"),
        (["all"], "linux/amd64"),
        (["blackwell", "sm_110"], "linux/arm64"),
        (["120", "121"], "linux/amd64"),
        (["native"], "linux/amd64"),
    ],
)
def test_a_builder_of_two_platforms_builds_for_the_one_that_has_what_is_named(
    matrix: Matrix, words: list[str], platform: str
) -> None:
    assert choose_platform(matrix, words, ("linux/amd64", "linux/arm64")) == platform
    assert choose_platform(matrix, words, ("linux/arm64",)) == "linux/arm64"


def test_a_family_of_another_platform_alone_is_refused(
    matrix: Matrix, series: dict[str, PatchSeries]
) -> None:
    with pytest.raises(UsageError, match="nothing to build for linux/arm64"):
        planned(matrix, series, "turing", platform="linux/arm64")


def test_json_is_plain_and_names_each_build(matrix: Matrix, series: dict[str, PatchSeries]) -> None:
    data = json.loads(json.dumps(planned(matrix, series, "120", "cpu").as_json()))
    builds = [step for step in data["steps"] if step["kind"] == "build"]
    assert [(b["arch"], b["tag"], b["toolkit"]) for b in builds] == [
        ("cpu", "llama-diffusion:cpu", None),
        ("120", "llama-diffusion:sm120", "cuda-13.0"),
    ]
    assert builds[1]["labels"]["io.github.llama-images.architectures"] == "sm_120a"


@pytest.mark.parametrize(
    ("machine", "platform"),
    [
        ("x86_64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("arm64", "linux/arm64"),
        ("riscv64", "linux/riscv64"),
    ],
)
def test_platform_of_a_machine(machine: str, platform: str) -> None:
    assert platform_of(machine) == platform


def test_the_matrix_default_is_left_out_of_an_id(matrix: Matrix) -> None:
    assert make_target(matrix, "120").id == "sm120"
    assert make_target(matrix, "120", base="nvidia", flavor="stock").id == "sm120-nvidia-stock"
