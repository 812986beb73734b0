"""The cases are data: names, references, command lines, and what the stock flavor must fail."""

from __future__ import annotations

import pytest

from llama_images.cases import (
    CARD_MIB,
    PLENTY,
    Case,
    Finishes,
    OnGpus,
    Optimized,
    Refuses,
    SameReply,
    Turns,
    Validated,
    chosen,
    cpu_cases,
    gpu_cases,
    long_prompt,
    references,
    switches,
)
from llama_images.errors import UsageError
from llama_images.matrix import FLAVORS, Flavor

SUITES = {
    f"{kind} {flavor}": cases
    for flavor in FLAVORS
    for kind, cases in {
        "cpu": cpu_cases(flavor),
        "1 GPU": gpu_cases(1, flavor),
        "2 GPUs": gpu_cases(2, flavor, soak_seconds=7200),
        "3 GPUs": gpu_cases(3, flavor),
        "2 logical GPUs": gpu_cases(2, flavor, logical=True),
    }.items()
}


def named(cases: tuple[Case, ...]) -> dict[str, Case]:
    return {case.name: case for case in cases}


@pytest.mark.parametrize("name", SUITES)
def test_names_are_unique_and_fit_a_file_name(name: str) -> None:
    names = [case.name for case in SUITES[name]]
    assert len(set(names)) == len(names)
    assert all(set(one) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for one in names)


@pytest.mark.parametrize("name", SUITES)
def test_a_case_refers_to_earlier_ones_alone(name: str) -> None:
    seen: set[str] = set()
    for case in SUITES[name]:
        assert references(case) <= seen
        seen.add(case.name)


def test_a_case_refers_to_what_it_is_compared_with() -> None:
    cases = named(gpu_cases(2, "patched"))
    assert references(cases["reply-512-row"]) == {"reply-512-1gpu", "reply-512-2gpu"}
    assert references(cases["speed-long"]) == {"speed-short", "speed-short-stock", "speed-long-stock"}
    assert references(cases["memory-all-full"]) == {PLENTY}
    assert references(cases["card-16gb-short"]) == set()


def test_chosen_cases_bring_what_they_are_compared_with() -> None:
    cases = gpu_cases(2, "patched")

    def names(*patterns: str) -> list[str]:
        return [case.name for case in chosen(cases, patterns)]

    assert chosen(cases, ()) == cases
    assert names("*") == [case.name for case in cases]
    assert names("refuses-*") == ["refuses-split-tensor", "refuses-reduce-without-sampling"]
    assert names("memory-a*", "reply-512-row") == [
        *("reply-512-1gpu", "reply-512-2gpu", "reply-512-row"),
        *(PLENTY, "memory-all-full"),
    ]
    assert names("speed-long") == ["speed-short-stock", "speed-long-stock", "speed-short", "speed-long"]


def test_a_pattern_that_matches_no_case_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--case Reply-\*: no case has such a name") as raised:
        chosen(gpu_cases(2, "patched"), ["reply-*", "Reply-*"])
    assert "reply-512-1gpu" in str(raised.value.hint)


@pytest.mark.parametrize("name", SUITES)
def test_every_case_asks_for_something_and_says_what_it_shows(name: str) -> None:
    assert [case.name for case in SUITES[name] if not case.demands or not case.about] == []


@pytest.mark.parametrize("name", [name for name in SUITES if "GPU" in name])
def test_no_run_on_gpus_may_end_on_the_processor_unseen(name: str) -> None:
    for case in SUITES[name]:
        assert case.gpus > 0
        asked = [type(demand) for demand in case.demands]
        assert OnGpus in asked or asked == [Refuses], case.name
        assert "-ngl" in case.arguments
        assert case.arguments[case.arguments.index("-lv") + 1] == "4", "its device lines are judged"


def test_what_the_issue_lists_is_there() -> None:
    cases = named(gpu_cases(2, "patched"))
    for length in ("short", "long"):
        for count in (1, 2):
            case = cases[f"validators-{length}-{count}gpu"]
            assert case.gpus == count
            assert case.environment == {"DG_SC_CHECK": "1", "DG_DEVSAMPLE_CHECK": "1"}
            assert Validated(checks=frozenset({"sc", "devsample"})) in case.demands
    for tokens in (512, 1024, 1536, 2048):
        assert SameReply(case=f"reply-{tokens}-1gpu") in cases[f"reply-{tokens}-2gpu"].demands
        assert cases[f"reply-{tokens}-2gpu"].arguments[2:4] == ("-n", str(tokens))
    assert cases["reply-512-ts-7-3"].arguments[-2:] == ("-ts", "7,3")
    assert cases["reply-512-ts-3-7"].arguments[-2:] == ("-ts", "3,7")
    assert cases["reply-512-row"].arguments[-2:] == ("-sm", "row")
    assert {"memory-last-full", "memory-all-full", "card-16gb-512", "card-16gb-1536"} <= set(cases)
    assert {"refuses-split-tensor", "refuses-reduce-without-sampling"} <= set(cases)
    assert "soak" not in cases
    assert named(gpu_cases(2, "patched", soak_seconds=7200))["soak"].repeat_seconds == 7200


def test_each_optimization_is_switched_off_alone() -> None:
    cases = named(gpu_cases(2, "patched"))
    off = {
        name: demand.off
        for name, case in cases.items()
        if name.startswith("without-")
        for demand in case.demands
        if isinstance(demand, Optimized)
    }
    assert off == {
        "without-kv-cache": {"kv_cache"},
        "without-gpu-sampling": {"gpu_sampling", "sample_reduce"},
        "without-sample-reduce": {"sample_reduce"},
    }
    words = cases["without-kv-cache"].arguments
    assert words[words.index("--diffusion-kv-cache") + 1] == "off"
    assert words[words.index("--diffusion-gpu-sampling") + 1] == "on"


def test_options_are_said_outright() -> None:
    assert switches(frozenset({"kv_cache"})) == (
        *("--diffusion-kv-cache", "on"),
        *("--diffusion-gpu-sampling", "off"),
        *("--diffusion-gpu-sample-reduce", "off"),
    )


def test_timed_runs_have_a_turn_to_throw_away_and_no_validators() -> None:
    cases = named(gpu_cases(2, "patched"))
    for name in ("speed-short", "speed-long", "speed-short-stock", "speed-long-stock"):
        case = cases[name]
        assert case.environment == {}
        assert Turns(count=2, same=(0, 1)) in case.demands
        prompt = case.arguments[1]
        assert case.arguments[0] == "-p"
        assert "-cnv" in case.arguments
        assert case.stdin == f"/clear\n{prompt}\n/exit\n".encode()
        assert case.by_stock == name.endswith("stock")


def test_devices_made_of_one_card_are_not_timed() -> None:
    assert not any("speed" in name for name in named(gpu_cases(2, "patched", logical=True)))


def test_one_gpu_is_compared_with_nothing() -> None:
    cases = gpu_cases(1, "patched")
    assert {case.gpus for case in cases} == {1}
    assert not any(isinstance(demand, SameReply) for case in cases for demand in case.demands)
    assert not any(case.fails_on_stock for case in cases if not case.name.startswith("refuses"))


def test_more_than_two_gpus_have_a_share_each() -> None:
    cases = named(gpu_cases(3, "patched"))
    assert cases["reply-512-ts-7-3-3"].arguments[-2:] == ("-ts", "7,3,3")
    assert cases["memory-last-full"].gpus == 3
    small = cases[PLENTY].arguments
    assert small[small.index("-ts") + 1] == "1,1,1"


def test_little_memory_is_that_of_the_write_ups_card() -> None:
    limits = [case.memory for case in gpu_cases(2, "patched") if case.name.startswith("card-16gb")]
    assert len(limits) == 3
    assert all(limit is not None and limit.card_mib == CARD_MIB == 16_311 for limit in limits)


# --- the negative control -------------------------------------------------------------------------


def test_stock_must_fail_what_the_series_mends_and_nothing_else() -> None:
    cases = gpu_cases(2, "stock")
    passes = {case.name for case in cases if case.fails_on_stock is None}
    assert passes == {
        "defaults-1gpu",
        "defaults-2gpu",
        "validators-short-1gpu",
        "validators-long-1gpu",
        *(f"reply-{tokens}-1gpu" for tokens in (512, 1024, 1536, 2048)),
        "speed-short-stock",
        "speed-long-stock",
    }
    assert {case.name for case in cpu_cases("stock") if case.fails_on_stock} == {
        "thinking-off",
        "refuses-split-tensor",
        "refuses-reduce-without-sampling",
    }


@pytest.mark.parametrize("flavor", FLAVORS)
def test_only_stock_needs_a_conversation_for_one_prompt(flavor: Flavor) -> None:
    for case in (*cpu_cases(flavor), *gpu_cases(2, flavor)):
        if Finishes() in case.demands and not any(isinstance(one, Turns) for one in case.demands):
            assert ("-cnv" in case.arguments) == (flavor == "stock"), case.name
            assert case.stdin == (b"" if flavor == "stock" else None)


def test_the_long_prompt_is_digits() -> None:
    prompt = long_prompt()
    assert prompt.isdigit()
    assert len(prompt) == 1780
    assert prompt.startswith("0149162536")
