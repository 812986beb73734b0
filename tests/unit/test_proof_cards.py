"""Which cards the proof may use, and what is compiled for them."""

from __future__ import annotations

import pytest

from gpu_proof.cards import Card, CardError, arch_for, can_run, chosen, pick, read_arch, read_cards


def card(index: int, arch: int | None) -> Card:
    return Card(index=str(index), uuid=f"GPU-{index}a", described="NVIDIA L4, 580.1, 23034 MiB", arch=arch)


def test_cards_are_read_as_nvidia_smi_lists_them() -> None:
    lines = ["0, GPU-5f, NVIDIA H100 80GB HBM3, 580.159.04, 81559 MiB"]
    (found,) = read_cards(lines, ["9.0"])
    assert (found.index, found.uuid, found.arch) == ("0", "GPU-5f", 90)
    assert (found.name, found.described) == (
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 80GB HBM3, 580.159.04, 81559 MiB",
    )
    assert read_cards(lines, [])[0].arch is None
    with pytest.raises(ValueError, match="not enough values"):
        read_cards(["No devices were found"], [])


@pytest.mark.parametrize(("text", "arch"), [("9.0", 90), ("12.1 ", 121), ("[N/A]", None), ("", None)])
def test_a_compute_capability_is_read_without_its_point(text: str, arch: int | None) -> None:
    assert read_arch(text) == arch


@pytest.mark.parametrize(
    ("visible", "words"),
    [
        (None, ("0", "1")),
        ("2,3", ("2", "3")),
        (" GPU-5a , 1, 7", ("GPU-5a", "1")),
        ("1,0,-1,5", ("1", "0")),
    ],
)
def test_the_first_two_of_the_caller_s_cards_are_used(visible: str | None, words: tuple[str, ...]) -> None:
    assert chosen(visible, 2) == words
    assert chosen(visible, 1) == words[:1]


@pytest.mark.parametrize(
    ("visible", "code", "error"),
    [
        ("", 3, "no GPU found (CUDA_VISIBLE_DEVICES is '')"),
        ("-1", 3, "no GPU found (CUDA_VISIBLE_DEVICES is '-1')"),
        ("2", 2, "CUDA_VISIBLE_DEVICES names one GPU, two are needed: name two, or give --logical yes"),
        ("2,2", 2, "CUDA_VISIBLE_DEVICES names a GPU twice: 2,2"),
    ],
)
def test_a_choice_that_leaves_too_few_is_refused(visible: str, code: int, error: str) -> None:
    with pytest.raises(CardError) as caught:
        chosen(visible, 2)
    assert (str(caught.value), caught.value.exit_code) == (error, code)


def test_cards_are_picked_by_number_and_by_the_start_of_their_id() -> None:
    cards = [card(0, 90), card(1, 90)]
    assert pick(cards, ("GPU-1", "0")) == (cards[1], cards[0])
    assert pick(cards, ("MIG-7", "0")) == (cards[0],)
    with pytest.raises(CardError, match="nvidia-smi lists no GPU '2'"):
        pick(cards, ("0", "2"))
    with pytest.raises(CardError, match="one GPU found, two are needed: give --logical yes"):
        pick(cards[:1], ("0", "1"))


def test_newer_cards_run_older_code_but_not_that_of_one_architecture_alone() -> None:
    assert can_run(card(0, 90), 90)
    assert can_run(card(0, 121), 90)
    assert not can_run(card(0, 80), 90)
    assert not can_run(card(0, 121), 120)
    assert can_run(card(0, None), 120)


def test_the_architecture_is_that_of_the_cards() -> None:
    assert arch_for([card(0, 90), card(1, 90)], None) == (90, None)
    arch, remark = arch_for([card(0, 90), card(1, 80)], None)
    assert (arch, remark) == (80, "GPUs of architecture 90 compile the code for 80 as they start")
    assert arch_for([card(0, None)], None) == (
        90,
        "nvidia-smi tells no compute capability: architecture 90 is taken",
    )
    assert arch_for([], 86)[0] == 86  # parts of cards, on trust
    with pytest.raises(
        CardError, match=r"GPU 0 .NVIDIA L4, architecture 89. can't run code for 90: give --arch 89"
    ):
        arch_for([card(0, 89)], 90)
    with pytest.raises(CardError, match="can't run code for 120: choose GPUs that are alike"):
        arch_for([card(0, 121), card(1, 120)], None)
