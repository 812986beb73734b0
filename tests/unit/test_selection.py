"""Words to targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_images.errors import UsageError
from llama_images.matrix import Matrix, parse_matrix
from llama_images.selection import (
    Selection,
    all_targets,
    local_reference,
    make_target,
    select,
    target_platform,
    valid_words,
)

MATRIX = parse_matrix(
    (Path(__file__).parent / "example_matrix.yaml").read_text(encoding="utf-8"), name="example_matrix.yaml"
)
WITHOUT_PORTABLE = parse_matrix(
    (Path(__file__).parent / "example_matrix.yaml").read_text(encoding="utf-8").split("  portable:")[0],
    name="example",
)


def never() -> Sequence[str]:
    raise AssertionError("the GPUs were asked for without need")


def ids(selection: Selection) -> list[str]:
    return [target.id for target in selection.targets]


def chosen(*words: str, flavors: Sequence[str] = (), base: str | None = None) -> list[str]:
    return ids(select(MATRIX, words, flavors=flavors, base=base, native=never))


def refused(
    *words: str, base: str | None = None, gpus: Sequence[str] = (), matrix: Matrix = MATRIX
) -> UsageError:
    with pytest.raises(UsageError) as caught:
        select(matrix, words, base=base, native=lambda: gpus)
    return caught.value


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["120", "sm_120", "sm120", "SM_120", "sm-120", "12.0", "sm_120a", "120a", "compute_120", " 120 "]
)
def test_spellings_of_a_number(word: str) -> None:
    assert chosen(word) == ["sm120"]


@pytest.mark.parametrize(
    ("word", "target"), [("8.6", "sm86"), ("10.3", "sm103"), ("9.0", "sm90"), ("sm_90a", "sm90")]
)
def test_compute_capabilities(word: str, target: str) -> None:
    assert chosen(word) == [target]


@pytest.mark.parametrize(
    ("word", "targets"),
    [
        ("cpu", ["cpu"]),
        ("portable", ["portable"]),
        ("turing", ["sm75"]),
        ("Ampere", ["sm80", "sm86"]),
        ("ada", ["sm89"]),
        ("hopper", ["sm90"]),
        ("blackwell", ["sm100", "sm103", "sm110", "sm120", "sm121"]),
    ],
)
def test_rows_and_families(word: str, targets: list[str]) -> None:
    assert chosen(word) == targets


def test_order_is_the_matrix_s_and_duplicates_collapse() -> None:
    assert chosen("120", "cpu", "12.0", "75", "blackwell") == [
        "cpu", "sm75", "sm100", "sm103", "sm110", "sm120", "sm121",
    ]  # fmt: skip


def test_all_is_what_the_base_can_make_and_the_rest_is_named() -> None:
    debian = select(MATRIX, ["all"], native=never)
    assert ids(debian)[0] == "cpu"
    assert ids(debian)[-1] == "portable"
    assert "sm70" not in " ".join(ids(debian))
    assert debian.left_out == ("sm70: toolkit cuda-12.9 has no wheels for it; --base nvidia makes it",)
    nvidia = select(MATRIX, ["all"], base="nvidia", native=never)
    assert ids(nvidia)[0] == "sm70-nvidia"
    assert nvidia.left_out == ("cpu: cpu is built without CUDA images; --base debian makes it",)


def test_flavors() -> None:
    assert chosen("120", flavors=["stock"]) == ["sm120-stock"]
    assert chosen("120", "cpu", flavors=["stock", "patched", "stock"]) == [
        "cpu",
        "cpu-stock",
        "sm120",
        "sm120-stock",
    ]


def test_native_takes_every_gpu_once() -> None:
    selection = select(MATRIX, ["native"], native=lambda: ["12.0", "8.6", "12.0"])
    assert ids(selection) == ["sm86", "sm120"]


# --- refusals -------------------------------------------------------------------------------------


def test_an_unknown_word_lists_the_valid_ones() -> None:
    error = refused("blackwel")
    assert error.message == '--arch "blackwel": there is no such architecture (did you mean "blackwell"?)'
    assert error.hint is not None
    for word in ("cpu", "70", "121", "portable", "hopper", "native", "all"):
        assert word in error.hint.replace(",", "").split()


@pytest.mark.parametrize(
    "word", ["", "12", "1200", "sm_", "120.0", "12.00", "130", "nativ", "١٢٠", "120;rm", "x" * 500]
)
def test_unknown_words(word: str) -> None:
    assert "there is no such architecture" in refused(word).message


def test_an_unknown_number_is_pointed_to_portable() -> None:
    hint = refused("87").hint
    assert hint is not None
    assert "portable serves" in hint
    without = refused("87", matrix=WITHOUT_PORTABLE).hint
    assert without is not None
    assert "portable" not in without


def test_two_words_in_one_are_told_apart() -> None:
    hint = refused("120,89").hint
    assert hint is not None
    assert hint.startswith("give --arch once for each")


def test_no_word() -> None:
    assert refused().message == "no architecture given"


@pytest.mark.parametrize("word", ["70", "volta", "sm_70"])
def test_a_row_that_the_base_can_t_make_names_the_one_that_can(word: str) -> None:
    error = refused(word)
    assert error.message == "base debian can't make sm70: toolkit cuda-12.9 has no wheels for it"
    assert error.hint == "add --base nvidia"
    assert refused("120", word).hint == "add --base nvidia"


def test_cpu_on_the_registry_base() -> None:
    error = refused("cpu", base="nvidia")
    assert error.message == "base nvidia can't make cpu: cpu is built without CUDA images"
    assert error.hint == "leave --base out"


def test_the_start_of_a_number_goes_before_a_likeness() -> None:
    assert refused("12").message.endswith('(did you mean "120"?)')


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("sm120-stock", "--arch 120 --flavor stock"),
        ("120-nvidia", "--arch 120 --base nvidia"),
        ("cpu-stock", "--arch cpu --flavor stock"),
        ("sm120-nvidia-stock", "--arch 120 --base nvidia --flavor stock"),
    ],
)
def test_a_targets_id_is_taken_apart(word: str, hint: str) -> None:
    error = refused(word)
    assert error.message == f'--arch "{word}": that is a target, not an architecture'
    assert error.hint == hint


def test_unknown_base_and_flavor() -> None:
    assert refused("120", base="debain").message == 'there is no base "debain" (did you mean "debian"?)'
    with pytest.raises(UsageError, match=r'there is no flavor "stok" \(did you mean "stock"\?\)') as caught:
        select(MATRIX, ["120"], flavors=["stok"], native=never)
    assert caught.value.hint == "the matrix has patched and stock"


def test_native_without_a_gpu() -> None:
    error = refused("native")
    assert error.message == "--arch native: no NVIDIA GPU answers on this machine"
    assert error.hint is not None
    assert "cpu" in error.hint


def test_native_with_a_newer_gpu_than_the_matrix_knows() -> None:
    error = refused("native", gpus=["12.0", "13.0"])
    assert error.message == '--arch native: a GPU has compute capability "13.0"; no row serves it'
    assert error.hint is not None
    assert "build --arch portable" in error.hint
    assert refused("native", gpus=["13.0"], matrix=WITHOUT_PORTABLE).hint == "add a row for it to matrix.yaml"


def test_native_with_a_gpu_too_old_for_portable() -> None:
    hint = refused("native", gpus=["6.1"]).hint
    assert hint == "portable starts at compute capability 7.5: only --arch cpu runs there"


def test_native_on_the_wrong_base() -> None:
    assert refused("native", gpus=["7.0"]).hint == "add --base nvidia"


# --- targets --------------------------------------------------------------------------------------


def test_identifiers_leave_the_defaults_out() -> None:
    assert make_target(MATRIX, "120").id == "sm120"
    assert make_target(MATRIX, "120", flavor="stock").id == "sm120-stock"
    assert make_target(MATRIX, "70", base="nvidia").id == "sm70-nvidia"
    assert make_target(MATRIX, "120", base="nvidia", flavor="stock").id == "sm120-nvidia-stock"
    assert make_target(MATRIX, "portable", flavor="stock").id == "portable-stock"
    assert local_reference(make_target(MATRIX, "120", flavor="stock")) == "llama-diffusion:sm120-stock"


def test_a_target_knows_its_parts() -> None:
    target = make_target(MATRIX, "120")
    assert target.architecture is MATRIX.architectures["120"]
    assert target.toolkit is MATRIX.toolkits["cuda-13.0"]
    assert target.base is MATRIX.bases["debian"]
    assert target.source is MATRIX.sources["pr24423"]
    assert make_target(MATRIX, "cpu").toolkit is None


@pytest.mark.parametrize(
    "names",
    [
        {"architecture": "87"},
        {"architecture": "120", "flavor": "x"},
        {"architecture": "120", "base": "x"},
        {"architecture": "120", "source": "x"},
        {"architecture": "70", "base": "debian"},
    ],
)
def test_a_target_that_can_t_be(names: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        make_target(MATRIX, **names)


def test_every_target_once_with_an_identifier_of_its_own() -> None:
    targets = all_targets(MATRIX)
    assert len({target.id for target in targets}) == len(targets) == len(set(targets))
    # 13 rows: cpu on debian alone, 70 on nvidia alone, eleven on both; two flavors each.
    assert len(targets) == 2 * (1 + 1 + 2 * 11)
    assert {target.id for target in targets} >= {"cpu", "sm70-nvidia-stock", "portable-nvidia", "sm120"}


def test_platform_of_a_target() -> None:
    assert target_platform(make_target(MATRIX, "80"), "linux/arm64") == "linux/arm64"
    with pytest.raises(UsageError) as caught:
        target_platform(make_target(MATRIX, "121"), "linux/amd64")
    assert caught.value.message == "sm121 is built for linux/arm64; builds here are for linux/amd64"


# --- anything -------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(valid_words(MATRIX)),
    st.from_regex(r"(sm_)?[0-9]{1,4}(\.[0-9])?[af]?", fullmatch=True),
)


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(WORDS, max_size=4),
    flavors=st.lists(st.one_of(st.text(max_size=5), st.sampled_from(MATRIX.flavors)), max_size=2),
    base=st.one_of(st.none(), st.text(max_size=5), st.sampled_from(list(MATRIX.bases))),
    gpus=st.lists(WORDS, max_size=3),
)
def test_any_words_give_targets_or_a_usage_error(
    words: list[str], flavors: list[str], base: str | None, gpus: list[str]
) -> None:
    try:
        selection = select(MATRIX, words, flavors=flavors, base=base, native=lambda: gpus)
    except UsageError as error:
        refusal = error
    else:
        order = list(all_targets(MATRIX))
        places = [order.index(target) for target in selection.targets]
        assert places
        assert places == sorted(set(places))
        return
    assert refusal.message.isprintable()
    assert len(refusal.message) < 300
