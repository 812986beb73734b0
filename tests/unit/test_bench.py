"""What a bench comes to, and its JSON document."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_images.bench import (
    Bench,
    Configuration,
    Spread,
    from_json,
    long_prompt,
    order_of_round,
    ratios,
    spread,
    summarize,
    to_json,
)
from llama_images.bench_chart import chart_of
from llama_images.bench_rows import NOTHING, ratio_rows_of, rows_of
from llama_images.bench_times import record_of
from llama_images.errors import CheckFailed, UsageError
from llama_images.runs import parse_run
from llama_images.tables import bench_table
from tests.unit.benches import LONG, SHORT, bench, benches, example, measurement, turn

RUNS = Path(__file__).parent / "data" / "runs"


# --- statistics ---


def test_a_summary_is_the_median_of_the_rounds_medians() -> None:
    found = summarize(example(), SHORT, "stock")
    assert found is not None
    assert found.rounds == 2
    assert found.first == found.last == Spread(median=315, low=300, high=330)
    assert found.turn_ms == Spread(median=3150, low=3000, high=3300)
    assert (found.first_gap, found.last_gap) == (None, None)


def test_gaps_are_those_of_the_second_and_of_the_last_block() -> None:
    times = turn((None, [1]), (10, [1]), (20, [1]), (30, [1]))
    found = summarize(bench(measurement(LONG, "stock", 1, times)), LONG, "stock")
    assert found is not None
    assert (found.first_gap, found.last_gap) == (
        Spread(median=10, low=10, high=10),
        Spread(median=30, low=30, high=30),
    )
    assert [block.context for block in found.blocks] == [1780, 2036, 2292, 2548]


def test_a_summary_goes_as_far_as_the_shortest_run() -> None:
    runs = (turn((None, [1]), (5, [2]), (5, [3])), turn((None, [3]), (5, [4])))
    found = summarize(
        bench(*(measurement(LONG, "stock", number, one) for number, one in enumerate(runs, 1))), LONG, "stock"
    )
    assert found is not None
    assert [block.step_ms and block.step_ms.median for block in found.blocks] == [2, 3]


def test_what_was_not_measured_has_no_summary_and_no_ratio() -> None:
    alone = bench(measurement(LONG, "patched", 1, turn((None, [1]))))
    assert summarize(alone, LONG, "stock") is None
    assert ratios(alone, LONG) == ()
    assert rows_of(alone)[0].flavor == "patched"


def test_ratios_are_taken_within_a_round() -> None:
    (ratio,) = ratios(example(), LONG)
    assert ratio.rounds == (1, 2)
    assert ratio.first == (3.0, 3.0)
    assert ratio.last == (6.0, 5.5)
    assert ratio.last_gap == (4.0, 3.0)
    assert ratio.turn == (3.0, 3.1)


def test_rounds_of_one_flavor_alone_are_no_pair() -> None:
    (ratio,) = ratios(
        bench(
            measurement(SHORT, "stock", 1, turn((None, [300]))),
            measurement(SHORT, "stock", 2, turn((None, [900]))),
            measurement(SHORT, "patched", 2, turn((None, [100]))),
        ),
        SHORT,
    )
    assert (ratio.rounds, ratio.first) == ((2,), (9.0,))


def test_runs_of_different_lengths_are_compared_at_the_same_context() -> None:
    (ratio,) = ratios(
        bench(
            measurement(LONG, "stock", 1, turn((None, [100]), (10, [200]), (90, [900]))),
            measurement(LONG, "patched", 1, turn((None, [100]), (5, [100]))),
        ),
        LONG,
    )
    assert (ratio.last, ratio.last_gap) == ((2.0,), (2.0,))


def test_a_time_of_nothing_is_no_divisor() -> None:
    (ratio,) = ratios(
        bench(
            measurement(SHORT, "stock", 1, turn((None, [100]))),
            measurement(SHORT, "patched", 1, turn((None, [0]), turn_ms=0)),
        ),
        SHORT,
    )
    assert (ratio.first, ratio.turn) == ((None,), (None,))


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=9))
def test_a_spread_holds_its_median(values: list[float | None]) -> None:
    found = spread(values)
    there = [value for value in values if value is not None]
    if found is None:
        assert there == []
        return
    assert found.low == min(there) <= found.median <= max(there) == found.high
    assert found.median == statistics.median(there)


@given(st.integers(1, 400), st.integers(1, 400))
def test_long_prompts_are_as_long_as_asked_and_begin_alike(one: int, other: int) -> None:
    shorter, longer = sorted((long_prompt(one), long_prompt(other)), key=len)
    assert (len(long_prompt(one)), longer.isdigit()) == (one, True)
    assert longer.startswith(shorter)


def test_every_second_round_runs_backwards() -> None:
    assert [order_of_round(("a", "b", "c"), number) for number in (1, 2, 3)] == [
        ("a", "b", "c"),
        ("c", "b", "a"),
        ("a", "b", "c"),
    ]


# --- the tables ---


def test_the_terminals_table() -> None:
    assert (
        bench_table(example())
        == """\
medians of 2 rounds: step and gap in ms, of the first and last block; turn in s

configuration  build            step 1st  step last  gap 1st  gap last  turn
-------------  ---------------  --------  ---------  -------  --------  -----
2 GPUs, short  stock                 315        315        –         –   3.15
               patched               100        100        –         –   1.00
               stock ÷ patched     3.15×      3.15×        –         –  3.15×
2 GPUs, long   stock                 300        630    1,750     1,750   9.15
               patched               100        110      500       500   3.00
               stock ÷ patched     3.00×      5.75×    3.50×     3.50×  3.05×

configuration  ratio            of                 round by round
-------------  ---------------  -----------------  --------------
2 GPUs, short  stock ÷ patched  step               3.00×  3.30×
2 GPUs, short  stock ÷ patched  turn               3.00×  3.30×
2 GPUs, long   stock ÷ patched  step, first block  3.00×  3.00×
2 GPUs, long   stock ÷ patched  step, last block   6.00×  5.50×
2 GPUs, long   stock ÷ patched  gap, last block    4.00×  3.00×
2 GPUs, long   stock ÷ patched  turn               3.00×  3.10×"""
    )


def test_the_table_fits_80_columns() -> None:
    assert max(len(line) for line in bench_table(example()).splitlines()) <= 80


def test_a_range_is_told_where_rounds_differ() -> None:
    stock, patched, ratio, *_ = rows_of(example())
    assert (stock.cells[0].text, stock.cells[0].range) == ("315", "300 to 330")
    assert (patched.cells[0].text, patched.cells[0].range) == ("100", "")
    assert (ratio.cells[0].text, ratio.cells[0].range) == ("3.15×", "3.00 to 3.30×")
    assert stock.cells[2].text == NOTHING


# --- the document ---


def test_the_document_reads_back() -> None:
    text = to_json(example())
    assert from_json(text, name="bench.json") == example()
    assert text.endswith("}\n")
    assert json.loads(text)["format"] == 1


@given(benches())
@settings(max_examples=60, deadline=None)
def test_every_document_reads_back(one: Bench) -> None:
    assert from_json(to_json(one), name="x") == one


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"format": 1', '"format": 2', ("format",)),
        ('"gap_ms": 2000.0', '"gap_ms": -1', ("measurements.2.times.blocks.1.gap_ms",)),
        ('"gap_ms": 2000.0', '"gap_ms": NaN', ("gap_ms",)),
        ('"gap_ms": 2000.0', '"gap_ms": "2000"', ("gap_ms",)),
        ('"note": ""', '"not": ""', ("note",)),
        ('"canvas": 256', '"canvas": 0', ("canvas",)),
        ('"configuration": "2gpu-short"', '"configuration": "3gpu-short"', ("3gpu-short", "not listed")),
        ('"flavor": "patched",\n   "program"', '"flavor": "stock",\n   "program"', ("flavor", "twice")),
        ('"workload": "short"', '"workload": "long"', ("configuration", "twice")),
        ("{", "[", ("the document",)),
    ],
)
def test_a_wrong_document_is_told_by_its_place(old: str, new: str, words: tuple[str, ...]) -> None:
    text = to_json(example())
    assert old in text
    with pytest.raises(UsageError) as caught:
        from_json(text.replace(old, new, 1), name="some/bench.json")
    assert caught.value.message.startswith("some/bench.json: ")
    assert all(word in caught.value.message for word in words), caught.value.message


@given(st.binary(max_size=60))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        from_json(data, name="x")


# --- from a run ---


def chat() -> tuple[bytes, bytes]:
    return (RUNS / "cpu-chat.stderr").read_bytes(), (RUNS / "cpu-chat.stdout").read_bytes()


def test_a_real_conversations_last_turn_is_recorded() -> None:
    stderr, stdout = chat()
    record = record_of(parse_run(stderr, stdout))
    assert [(len(block.steps_ms), block.gap_ms is None) for block in record.blocks] == [(2, True), (2, False)]
    assert all(step > 0 for block in record.blocks for step in block.steps_ms)
    assert record.turn_ms == parse_run(stderr, stdout).summaries[-1].milliseconds
    # The CLI's account holds the prefill, so it is longer than what lies between the first and last line.
    between = sum(sum(block.steps_ms) + (block.gap_ms or 0) for block in record.blocks)
    assert between < record.turn_ms


def test_a_single_turn_is_not_warm() -> None:
    with pytest.raises(CheckFailed, match="no turn that came to its end after another"):
        record_of(parse_run((RUNS / "patched-2gpu-long.log").read_bytes()))


def test_a_lost_time_stamp_is_no_faster_step() -> None:
    stderr, stdout = chat()
    at = stderr.rindex(b" I \rdiffusion step: ")
    start = at - len(b"0.08.116.387")
    broken = stderr[:start] + b"?" * (at - start) + stderr[at:]
    parsed = parse_run(broken, stdout)
    with pytest.raises(CheckFailed, match="block 2 has progress lines without a time stamp"):
        record_of(parsed)


# --- the chart ---


def test_workloads_stand_apart_and_blocks_side_by_side() -> None:
    chart = chart_of(example())
    assert [(slot.left, slot.context) for slot in chart.slots] == [(0, 5), (1.6, 1780), (2.6, 2036)]
    assert [(one.text, one.left, one.right) for one in chart.headings] == [
        ("short", 0, 1),
        ("long", 1.6, 3.6),
    ]
    (panel,) = chart.panels
    stock, patched = panel.series
    assert [[group.median_ms for group in run] for run in stock.runs] == [[315], [300, 630]]
    assert [list(steps) for steps in patched.runs[1][1].rounds_ms] == [[100, 100], [120, 120]]
    assert [(gap.left, gap.low_ms, gap.high_ms) for gap in stock.gaps] == [(2.6, 1500, 2000)]
    assert panel.missing == ()


def test_the_caption_counts_gpus_and_says_what_is_special() -> None:
    special = bench(note="one card as two devices")
    assert chart_of(special).caption == (
        "2 × NVIDIA X, 16,311 MiB · full.gguf · 0 rounds · 2026-01-02 · one card as two devices"
    )
    assert chart_of(bench(gpus=())).caption.startswith("a CPU · ")


def test_what_is_missing_is_said() -> None:
    one = bench(measurement(SHORT, "stock", 1, turn((None, [1]))))
    assert chart_of(one).panels[0].missing == ("stock, long", "patched, short", "patched, long")


@given(benches())
@settings(max_examples=60, deadline=None)
def test_every_group_stands_in_a_slot_of_its_own(one: Bench) -> None:
    chart = chart_of(one)
    lefts = [slot.left for slot in chart.slots]
    assert all(after - before > 1 - 1e-9 for before, after in pairwise(lefts))
    for panel in chart.panels:
        for series in panel.series:
            assert 0 <= series.flavor < len(chart.flavors)
            for run in series.runs:
                assert len({group.left for group in run}) == len(run) > 0
                assert {group.left for group in run} <= set(lefts)
            assert {gap.left for gap in series.gaps} <= set(lefts)
            assert all(gap.low_ms <= gap.median_ms <= gap.high_ms for gap in series.gaps)


@given(benches())
@settings(max_examples=60, deadline=None)
def test_every_bench_has_tables(one: Bench) -> None:
    rows = rows_of(one)
    assert all(len(row.cells) == 5 for row in rows)
    assert all(len(row.rounds) == one.rounds for row in ratio_rows_of(one))
    assert bench_table(one)
    measured = {(run.configuration, run.flavor) for run in one.measurements}
    assert len([row for row in rows if not row.is_ratio]) == len(measured)


def test_identifiers_and_titles() -> None:
    cpu = Configuration(gpus=0, workload="short", prompt_tokens=5, blocks=1, canvas=64)
    assert (cpu.id, cpu.title) == ("cpu-short", "CPU, short")
    assert (LONG.id, LONG.title) == ("2gpu-long", "2 GPUs, long")
