"""Cases judged on real output: the runs of ``test_runs``, and made lines where a GPU would be needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llama_images.cases import (
    ALL,
    Case,
    Demand,
    Finishes,
    Moved,
    OnGpus,
    Optimized,
    Refuses,
    SameReply,
    Says,
    Stops,
    Turns,
    Validated,
    WithinThresholds,
    gpu_cases,
)
from llama_images.judging import Judgement, Outcome, Surroundings, judge_case
from llama_images.matrix import load_matrix
from llama_images.runs import Run, parse_run
from llama_images.verdicts import Verdict

RUNS = Path(__file__).parent / "data" / "runs"
THRESHOLDS = load_matrix(Path(__file__).resolve().parents[2] / "matrix.yaml").thresholds
BOTH = Validated(checks=frozenset({"sc", "devsample"}))
ON = Optimized(on=ALL)


def read(name: str) -> Run:
    if name == "cpu-chat":
        return parse_run((RUNS / "cpu-chat.stderr").read_bytes(), (RUNS / "cpu-chat.stdout").read_bytes())
    return parse_run((RUNS / name).read_bytes())


def outcome(run: Run | None, exit_code: int = 0, **more: float) -> Outcome:
    return Outcome(exit_code=exit_code, seconds=10.0, run=run, last_words="the end", **more)


def judge(
    run: Run | Outcome | None, *demands: Demand, others: dict[str, Run] | None = None
) -> dict[str, Verdict]:
    case = Case(name="x", about="x", gpus=2, arguments=(), demands=demands)
    around = Surroundings(
        thresholds=THRESHOLDS,
        outcomes={name: outcome(other) for name, other in (others or {}).items()},
    )
    done = run if isinstance(run, Outcome) else outcome(run)
    verdicts = judge_case(case, done, around).verdicts
    return {verdict.name: verdict for verdict in verdicts}


def failing(verdicts: dict[str, Verdict]) -> dict[str, str]:
    return {name: verdict.detail for name, verdict in verdicts.items() if not verdict.passed}


# --- it finishes ----------------------------------------------------------------------------------


def test_a_good_run_finishes() -> None:
    verdicts = judge(read("patched-2gpu-long.log"), Finishes())
    assert failing(verdicts) == {}
    assert list(verdicts) == ["exit code", "steps ran", "no errors", "reply"]


def test_a_good_run_with_a_bad_exit_code_does_not_finish() -> None:
    done = outcome(read("patched-2gpu-long.log"), exit_code=-6)
    assert failing(judge(done, Finishes())) == {"exit code": "exit code -6"}


def test_a_crash_fails_everything_and_says_what_it_was() -> None:
    found = failing(judge(outcome(read("patched-2gpu-crash.log"), -6), Finishes()))
    assert set(found) == {"exit code", "steps ran", "no errors", "reply"}
    assert "CUDA error: invalid argument" in found["no errors"]


def test_output_that_is_no_runs_is_shown() -> None:
    found = failing(judge(None, Finishes(), BOTH, OnGpus(count=2), SameReply(case="y"), Turns(count=1)))
    assert set(found) == {"steps ran", "validators", "layers on the GPUs", "same reply", "turns"}
    assert all("the end" in detail for detail in found.values())


def test_an_allocation_that_was_made_good_is_an_error_only_where_nobody_expects_it() -> None:
    run = read("patched-2gpu-little-memory.log")
    assert failing(judge(run, Finishes(made_good=True))) == {}
    assert "cudaMalloc failed" in failing(judge(run, Finishes()))["no errors"]


# --- where it ran ---------------------------------------------------------------------------------


def test_layers_on_two_gpus() -> None:
    run = read("patched-2gpu-little-memory.log")
    verdicts = judge(run, OnGpus(count=2))
    assert failing(verdicts) == {}
    assert verdicts["layers on the GPUs"].detail == "all, on CUDA0, CUDA1 (CUDA0 16, CUDA1 14)"


def test_two_gpus_are_not_three_and_not_one() -> None:
    run = read("patched-2gpu-little-memory.log")
    assert "2 GPUs compute layers, 3 should" in failing(judge(run, OnGpus(count=3)))["layers on the GPUs"]
    assert "2 GPUs hold weights, 1 should" in failing(judge(run, OnGpus(count=1)))["layers on the GPUs"]


def test_a_fall_back_to_the_processor_is_found() -> None:
    found = failing(judge(read("cpu-chat"), OnGpus(count=1)))["layers on the GPUs"]
    assert found == "the run does not say where its layers are; 0 GPUs hold weights, 1 should"


def text(*lines: str) -> Run:
    """A run that printed these lines, and an error, without which it would be no run."""
    return parse_run("".join(f"0.00.000.001 I {line}\n" for line in lines).encode() + b"error: x\n")


DEVICES = (
    "diffusion_devices: split={} layers={} output=CUDA1 sc_embd=CUDA1 kv_cache=on:CUDA0,CUDA1 "
    "gpu_sampling=on:CUDA1 sample_reduce=on:CUDA1"
)
WEIGHTS = [f"load_tensors:        CUDA{n} model buffer size =  7538.26 MiB" for n in (0, 1)]


def test_layers_partly_on_the_processor_are_found() -> None:
    run = text(
        "load_tensors: offloaded 30/31 layers to GPU", DEVICES.format("layer", "CPU:1,CUDA0:15,CUDA1:14")
    )
    found = failing(judge(run, OnGpus(count=2)))["layers on the GPUs"]
    assert "30 of 31 layers are on GPUs" in found
    assert "CPU computes 1 layers" in found


@pytest.mark.parametrize(
    ("layers", "shares", "passed"),
    [
        ("CUDA0:22,CUDA1:8", (7, 3), True),  # as two GPUs of an H100 were given
        ("CUDA0:10,CUDA1:20", (3, 7), True),
        ("CUDA0:16,CUDA1:14", (7, 3), False),
        ("CUDA0:22,CUDA1:8", (3, 7), False),
    ],
)
def test_a_split_is_found_again_in_the_layers(layers: str, shares: tuple[int, ...], passed: bool) -> None:
    run = text(DEVICES.format("layer", layers), *WEIGHTS)
    assert (failing(judge(run, OnGpus(count=2, shares=shares))) == {}) == passed


def test_another_split_than_was_asked_for_is_found() -> None:
    run = text(DEVICES.format("layer", "CUDA0:16,CUDA1:14"), *WEIGHTS)
    found = failing(judge(run, OnGpus(count=2, split="row")))
    assert found == {"layers on the GPUs": "split=layer, should be row"}
    row = text(DEVICES.format("row", "CUDA0:30"))
    assert failing(judge(row, OnGpus(count=2, split="row"))) == {}


def test_stock_can_not_show_that_it_split_as_it_was_told() -> None:
    run = text("load_tensors: offloaded 31/31 layers to GPU", *WEIGHTS)
    assert failing(judge(run, OnGpus(count=2))) == {}
    assert set(failing(judge(run, OnGpus(count=2, shares=(7, 3))))) == {"layers on the GPUs"}


# --- what was on ----------------------------------------------------------------------------------


def test_optimizations_by_the_programs_own_word() -> None:
    assert failing(judge(read("patched-2gpu-long.log"), ON)) == {}
    assert failing(judge(read("stock-1gpu-short.log"), ON)) == {}
    found = failing(judge(read("stock-2gpu-short.log"), ON))["optimizations"]
    assert found.startswith(
        "gpu_sampling=off; kv_cache=off; sample_reduce=off; the CLI says: kv cache auto-off"
    )


def test_what_should_be_off_and_is_on_is_found() -> None:
    off = Optimized(on=ALL - {"kv_cache"}, off=frozenset({"kv_cache"}))
    found = failing(judge(read("patched-2gpu-long.log"), off))
    assert found["optimizations"] == "kv_cache=on; kv_cache is on CUDA0, CUDA1"


def test_on_by_its_options_and_yet_not_what_ran() -> None:
    data = (RUNS / "patched-2gpu-short.log").read_bytes()
    warning = (
        b"0.09.000.000 W x: no memory for the prompt KV cache (9 tokens); running this block without it\n"
    )
    found = failing(judge(parse_run(data + warning), ON))
    assert found["optimizations"].startswith("no memory for the prompt KV cache")


def test_the_two_lines_about_it_must_not_contradict_each_other() -> None:
    data = (RUNS / "patched-2gpu-short.log").read_bytes()
    altered = data.replace(b"kv_cache=on:CUDA0,CUDA1", b"kv_cache=on:CUDA1")
    assert altered != data
    assert failing(judge(parse_run(altered), ON)) == {"optimizations": "no kv_cache on CUDA0"}


def test_a_run_that_does_not_print_its_options_has_none() -> None:
    found = failing(judge(read("cpu-missing.mixed"), ON))
    assert "did not print its options" in found["optimizations"]


# --- replies --------------------------------------------------------------------------------------


def test_the_same_reply() -> None:
    one, two = read("patched-1gpu-short.log"), read("patched-2gpu-short.log")
    assert failing(judge(two, SameReply(case="one"), others={"one": one})) == {}


def test_another_reply_is_told_by_its_first_byte() -> None:
    stock, patched = read("stock-2gpu-short.log"), read("patched-2gpu-short.log")
    found = failing(judge(patched, SameReply(case="stock"), others={"stock": stock}))["same reply"]
    at = int(found.split("byte ")[1].split(" ")[0].replace(",", ""))
    assert stock.text[:at] == patched.text[:at]
    assert stock.text[at] != patched.text[at]


def test_a_reply_that_is_only_longer_is_another_one() -> None:
    short = parse_run(b"\nab\ntotal time: 1ms, time per step: 1ms (1 steps over 1 blocks, entropy-bound)\n")
    long = parse_run(b"\nabc\ntotal time: 1ms, time per step: 1ms (1 steps over 1 blocks, entropy-bound)\n")
    assert (
        "at byte 2 of 3 and 2" in failing(judge(long, SameReply(case="y"), others={"y": short}))["same reply"]
    )


def test_nothing_to_compare_with_is_a_failure() -> None:
    assert set(failing(judge(read("patched-2gpu-short.log"), SameReply(case="none")))) == {"same reply"}


def test_a_case_that_was_skipped_is_compared_with_its_stand_in_or_not_at_all() -> None:
    run, other = read("patched-2gpu-short.log"), read("stock-2gpu-short.log")
    case = Case(name="x", about="x", gpus=2, arguments=(), demands=(SameReply(case="one", otherwise="two"),))
    for skipped, outcomes, passed, notes in (
        ({"one"}, {"two": outcome(run)}, [True], 0),
        ({"one"}, {"two": outcome(other)}, [False], 0),
        ({"one"}, {}, [False], 0),  # it was run and gave nothing
        ({"one", "two"}, {}, [], 1),
        (set[str](), {"one": outcome(run), "two": outcome(other)}, [True], 0),
    ):
        around = Surroundings(thresholds=THRESHOLDS, outcomes=outcomes, skipped=skipped)
        judged = judge_case(case, outcome(run), around)
        assert [verdict.passed for verdict in judged.verdicts] == passed
        assert len(judged.notes) == notes


def test_turns_are_counted_and_compared() -> None:
    run = read("cpu-chat")
    assert failing(judge(run, Turns(count=3, same=(0, 2)))) == {}
    assert failing(judge(run, Turns(count=2)))["turns"] == "3 turns, 2 wanted"
    assert failing(judge(run, Turns(count=3, same=(0, 1))))["turns"] == "the replies of turns 1 and 2 differ"


# --- refusals, notes, stops -----------------------------------------------------------------------

REFUSAL = b"0.00.012.345 E error: --split-mode tensor is not supported by diffusion models, use layer\n"


def test_a_refusal_is_one_line_and_exit_code_1() -> None:
    verdicts = judge(outcome(parse_run(REFUSAL), 1), Refuses(words="--split-mode tensor"))
    assert failing(verdicts) == {}
    assert verdicts["refused"].detail.startswith("error: --split-mode tensor is not supported")


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (REFUSAL, 0, "exit code 0, 1 wanted"),
        (REFUSAL, -6, "exit code -6, 1 wanted"),
        (REFUSAL + REFUSAL, 1, "2 lines of errors, one wanted"),
        (b"0.00.012.345 E error: something else\n", 1, "no error says '--split-mode tensor'"),
        (REFUSAL + b"\rdiffusion step: 0/1 [ ] 0%", 1, "1 steps ran"),
    ],
)
def test_what_is_no_refusal(data: bytes, code: int, words: str) -> None:
    found = failing(judge(outcome(parse_run(data), code), Refuses(words="--split-mode tensor")))
    assert words in found["refused"]


def test_a_silent_exit_is_no_refusal_unless_words_can_be_lost() -> None:
    assert "no error says" in failing(judge(outcome(None, 1), Refuses(words="x")))["refused"]
    assert failing(judge(outcome(None, 1), Refuses(words="", one_line=False))) == {}


def test_a_model_that_does_not_load_says_why_and_which() -> None:
    done = outcome(read("cpu-truncated.mixed"), 1)
    for words in ("corrupted or incomplete", "failed to load model '/models/truncated.gguf'"):
        assert failing(judge(done, Refuses(words=words, one_line=False))) == {}


def test_a_prompt_that_is_too_long_is_told() -> None:
    run = read("cpu-prompt-too-long.mixed")
    verdicts = judge(run, Says(words="input too long ("))
    assert verdicts["says so"].passed
    assert verdicts["says so"].detail.endswith("max context is 2304 (exit code 0)")
    assert set(failing(judge(outcome(run, 139), Says(words="input too long (")))) == {"says so"}
    assert set(failing(judge(run, Says(words="thinking off")))) == {"says so"}


def test_a_note_about_an_option_counts() -> None:
    assert failing(judge(text("diffusion: thinking off"), Says(words="thinking off"))) == {}


def test_an_interrupt_must_end_it_soon_and_by_its_signal() -> None:
    run = read("good.stderr")
    assert failing(judge(outcome(run, 130, interrupted_after=8.0), Stops(seconds=5))) == {}
    assert (
        "8.0 s after the interrupt"
        in failing(judge(outcome(run, 130, interrupted_after=2.0), Stops(seconds=5)))["stopped"]
    )
    assert set(failing(judge(outcome(run, 0, interrupted_after=8.0), Stops(seconds=5)))) == {"stopped"}
    assert "ended before its interrupt" in failing(judge(outcome(run, 0), Stops(seconds=5)))["stopped"]


# --- memory ---------------------------------------------------------------------------------------


def test_a_buffer_that_moved() -> None:
    run = read("patched-2gpu-little-memory.log")
    assert failing(judge(run, Moved(to="the host"))) == {}
    assert set(failing(judge(run, Moved(to="another GPU")))) == {"moved buffer"}
    found = failing(judge(read("patched-2gpu-short.log"), Moved(to="the host")))
    assert found["moved buffer"] == "everything found room where it belongs"


# --- thresholds -----------------------------------------------------------------------------------


def timed(*blocks_ms: int) -> Run:
    """Two turns of so many milliseconds a step, block by block; the first turn is three times as slow."""
    data, at = b"", 0
    for factor in (3, 1):
        for ms in blocks_ms:
            for step in range(4):
                at += factor * ms
                stamp = b"%d.%02d.%03d.000" % (at // 60_000, at // 1000 % 60, at % 1000)
                data += stamp + b" I \rdiffusion step: %d/4 [ ] 0%%" % step
        data += b"\nx\ntotal time: 1ms, time per step: 1ms (%d steps over %d blocks, entropy-bound)\n" % (
            4 * len(blocks_ms),
            len(blocks_ms),
        )
    return parse_run(data)


def judge_speed(
    short: Run, long: Run, *, stock: tuple[Run, Run] | None, gpu: str = "NVIDIA GeForce RTX 5060 Ti"
) -> Judgement:
    demand = WithinThresholds(short="short", long="long", stock_short="stock-s", stock_long="stock-l")
    case = Case(name="long", about="x", gpus=2, arguments=(), demands=(demand,))
    outcomes = {"short": outcome(short)}
    if stock is not None:
        outcomes |= {"stock-s": outcome(stock[0]), "stock-l": outcome(stock[1])}
    around = Surroundings(thresholds=THRESHOLDS, gpus=[(gpu, 16_311 << 20)] * 2, outcomes=outcomes)
    return judge_case(case, outcome(long), around)


def test_the_write_ups_figures_are_within_the_thresholds_and_stocks_are_not() -> None:
    stock = (timed(335), timed(400, 542))
    patched = judge_speed(timed(217), timed(233, 233), stock=stock)
    assert patched.passed
    assert patched.notes == ()
    assert {verdict.name for verdict in patched.verdicts} == {
        "flat over the context",
        "short, ms/step",
        "last block, ms/step",
        "short against stock",
        "last block against stock",
    }
    itself = judge_speed(*stock, stock=stock)
    assert [verdict.passed for verdict in itself.verdicts] == [False] * 5


def test_unknown_hardware_and_no_stock_image_leave_notes_and_no_verdicts() -> None:
    judged = judge_speed(timed(70), timed(75, 78), stock=None, gpu="NVIDIA H200")
    assert [verdict.name for verdict in judged.verdicts] == ["flat over the context"]
    assert judged.notes == (
        "the matrix has no times for 2 x NVIDIA H200: short 70.0, first block 75.0, last block 78.0 ms/step",
        "not compared with stock, which was not run",
    )


def test_a_stock_run_that_failed_is_no_comparison_that_passed() -> None:
    judged = judge_speed(timed(70), timed(75, 78), stock=(timed(335), read("cpu-missing.mixed")), gpu="x")
    found = {verdict.name: verdict.passed for verdict in judged.verdicts}
    assert found["short against stock"]
    assert not found["last block against stock"]


# --- whole cases ----------------------------------------------------------------------------------


def test_a_real_run_passes_its_case() -> None:
    cases = {case.name: case for case in gpu_cases(2, "patched", logical=True)}
    run = read("patched-2gpu-little-memory.log")
    around = Surroundings(thresholds=THRESHOLDS, outcomes={"memory-plenty": outcome(run)})
    judged = judge_case(cases["memory-all-full"], outcome(run), around)
    assert [verdict.name for verdict in judged.verdicts if not verdict.passed] == []
    assert len(judged.verdicts) == 8
    other = judge_case(cases["memory-last-full"], outcome(run), around)
    assert [verdict.name for verdict in other.verdicts if not verdict.passed] == ["moved buffer"]


def test_a_case_without_a_verdict_has_not_passed() -> None:
    nothing = Judgement(verdicts=())
    assert not nothing.passed
    assert not replace(nothing, notes=("x",)).passed
