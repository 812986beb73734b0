"""Real output of the CLI, and copies of it broken by hand, one kind of failure each.

``good``, ``two-blocks``, ``host``, ``colours``, ``nan`` and ``bad-model`` were printed by the CLI at the
pin (CPU, the tiny synthetic model; for ``nan`` one whose last norm is NaN). ``broken-*`` are ``good`` with
one change, but for ``broken-pointer-2gpu``: a build whose sampler reads the row before its own, run for real.
The ``device`` lines follow the format string of ``diffusion.cpp``, since they need a GPU.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_images.errors import UsageError
from llama_images.runs import Run, RunUnreadable, parse_run
from llama_images.validators import Check, judge
from llama_images.verdicts import Verdict

RUNS = Path(__file__).parent / "data" / "runs"
SC: frozenset[Check] = frozenset({"sc"})
BOTH: frozenset[Check] = frozenset({"sc", "devsample"})


def read(name: str) -> Run:
    stdout = (RUNS / "good.stdout").read_bytes() if name.endswith(".stderr") else None
    return parse_run((RUNS / name).read_bytes(), stdout)


def failed(verdicts: tuple[Verdict, ...]) -> dict[str, str]:
    return {verdict.name: verdict.detail for verdict in verdicts if not verdict.passed}


def test_a_good_run_is_read_in_full() -> None:
    run = read("good.stderr")
    assert (run.steps, run.blocks) == (6, 1)
    assert [(step.block, step.step, step.of) for step in run.progress] == [
        (0, number, 6) for number in range(6)
    ]
    assert len(run.sc_checks) == 6
    first = run.sc_checks[0]
    assert (first.got, first.denominator) == (131072, 131072) == (64 * 2048, 64 * 2048)
    assert (first.maxabs, first.sumabs, first.nmiss) == (0.0, 0.0, 0)
    assert len(set(first.samples)) == 1
    assert run.options is not None
    assert run.options.max_steps == 6
    assert (run.options.kv_cache, run.options.gpu_sampling, run.options.sample_reduce) == (True, True, False)
    assert run.summaries[0].milliseconds == pytest.approx(6 * run.summaries[0].milliseconds_per_step, abs=0.1)
    assert run.text.startswith(b" doma boha bodi ")
    assert run.text.endswith(b" dime")
    assert not run.host_sampling
    assert run.errors == run.malformed == ()


def test_a_good_run_passes_and_says_so() -> None:
    verdicts = judge(read("good.stderr"), SC)
    assert failed(verdicts) == {}
    assert [(verdict.name, verdict.detail) for verdict in verdicts] == [
        ("steps ran", "6 steps over 1 blocks"),
        ("no errors", "none in the log"),
        ("device path", "on, and no fall back to host sampling"),
        ("DG_SC_CHECK lines", "6, one a step"),
        ("DG_SC_CHECK values", "all equal"),
    ]


@pytest.mark.parametrize("name", ["two-blocks.mixed", "colours.mixed"])
def test_mixed_streams_colours_and_several_blocks_pass(name: str) -> None:
    run = read(name)
    assert failed(judge(run, SC)) == {}
    assert b"DG_SC" not in run.text
    assert b"diffusion step" not in run.text
    assert len(run.text.split()) == 64 * run.blocks


def test_blocks_are_counted_over_the_run() -> None:
    run = read("two-blocks.mixed")
    assert (run.steps, run.blocks) == (8, 2)
    places = [(block, step) for block in (0, 1) for step in range(4)]
    assert [(step.block, step.step) for step in run.progress] == places
    assert [(check.block, check.step) for check in run.sc_checks] == places


def test_a_run_on_a_gpu_passes_both() -> None:
    """The full-size synthetic model on an H200, stock at the pin."""
    run = parse_run((RUNS / "gpu-full.stderr").read_bytes(), (RUNS / "gpu-full.stdout").read_bytes())
    assert failed(judge(run, BOTH)) == {}
    assert (run.steps, run.blocks, len(run.devsample_checks)) == (12, 1, 12)
    assert {check.denominator for check in run.sc_checks} == {256 * 262144}
    assert {check.positions for check in run.devsample_checks} == {256}
    assert 0 < max(check.max_relh for check in run.devsample_checks) < 1e-3
    assert run.options is not None
    assert run.options.sample_reduce


def test_a_device_run_passes_both() -> None:
    run = read("device.stderr")
    assert failed(judge(run, BOTH)) == {}
    check = run.devsample_checks[3]
    assert (check.step, check.amax_mismatch, check.tok_diff, check.positions) == (3, 0, 0, 64)
    assert (check.max_dh, check.max_relh) == (2.384e-07, 3.301e-06)


@pytest.mark.parametrize(
    ("name", "verdict", "words"),
    [
        ("broken-missing-line", "DG_SC_CHECK lines", "no line for block 0 step 3"),
        ("broken-line-twice", "DG_SC_CHECK lines", "a line too many for block 0 step 2"),
        ("broken-no-lines", "DG_SC_CHECK lines", "no DG_SC_CHECK line at all"),
        ("broken-cut-line", "DG_SC_CHECK lines", "unreadable: DG_SC_CHECK step 5: got=131072 maxabs=0 sum"),
        ("broken-got-short", "DG_SC_CHECK values", "step 4: got=131071, 131072 wanted"),
        ("broken-got-zero", "DG_SC_CHECK values", "step 0: got=0, 131072 wanted"),
        ("broken-maxabs", "DG_SC_CHECK values", "maxabs=1.90735e-06; block 0 step 2: sumabs=0.00247"),
        ("broken-nan-sum", "DG_SC_CHECK values", "step 5: sumabs=nan; block 0 step 5: nmiss=64/131072"),
        ("broken-inf", "DG_SC_CHECK values", "step 1: maxabs=inf"),
        ("broken-nmiss-only", "DG_SC_CHECK values", "step 3: nmiss=7/131072"),
        ("broken-nan-sample", "DG_SC_CHECK values", "step 1: a logit is not a finite number"),
        ("broken-host-sampling", "device path", "fell back to host sampling"),
        ("broken-sampling-off", "device path", "gpu_sampling=off"),
        ("broken-cuda-error", "no errors", "CUDA error: out of memory"),
        ("broken-decode-error", "no errors", "failed to decode at step 4"),
        ("broken-no-steps", "steps ran", "the summary counts 6 steps, the progress lines 0"),
        ("broken-truncated", "steps ran", "the summary counts 6 steps, the progress lines 4"),
    ],
)  # fmt: skip
def test_each_kind_of_failure_is_found(name: str, verdict: str, words: str) -> None:
    assert words in failed(judge(read(name + ".stderr"), SC))[verdict]


@pytest.mark.parametrize(
    ("name", "verdict", "words"),
    [
        ("broken-device-argmax", "DG_DEVSAMPLE_CHECK values", "step 2: amax_mismatch=1/64"),
        ("broken-device-token", "DG_DEVSAMPLE_CHECK values", "step 1: tok_diff=37/64"),
        ("broken-device-entropy", "DG_DEVSAMPLE_CHECK values", "max_relH=0.0012, at most 0.001 wanted"),
        ("broken-device-nan", "DG_DEVSAMPLE_CHECK values", "max_relH=nan"),
        ("broken-device-missing", "DG_DEVSAMPLE_CHECK lines", "no line for block 0 step 3"),
        ("broken-device-off", "device path", "sample_reduce=off"),
        ("good", "DG_DEVSAMPLE_CHECK lines", "no DG_DEVSAMPLE_CHECK line at all"),
    ],
)
def test_each_kind_of_device_failure_is_found(name: str, verdict: str, words: str) -> None:
    assert words in failed(judge(read(name + ".stderr"), BOTH))[verdict]


def test_every_broken_file_breaks_something() -> None:
    broken = sorted(RUNS.glob("broken-*"))
    assert len(broken) == 24
    for path in broken:
        expect = BOTH if "device" in path.name or "2gpu" in path.name else SC
        assert failed(judge(read(path.name), expect)), path.name


def test_real_nan_shows_in_the_sum_and_the_count_alone() -> None:
    run = read("nan.mixed")
    assert all(check.maxabs == 0 for check in run.sc_checks)
    assert all(math.isnan(check.sumabs) for check in run.sc_checks)
    assert set(failed(judge(run, SC))) == {"DG_SC_CHECK values"}
    assert run.text == b""


def test_a_host_run_is_no_device_run() -> None:
    found = failed(judge(read("host.mixed"), SC))
    assert found["device path"].startswith("gpu_sampling=off; the CLI says: gpu sample reduce off")
    assert found["DG_SC_CHECK lines"] == "no DG_SC_CHECK line at all"


def test_a_model_that_does_not_load_is_an_error_and_no_step() -> None:
    run = read("bad-model.mixed")
    assert run.errors[-1] == "error: failed to load model '/tmp/model.gguf'"
    assert failed(judge(run, SC))["steps ran"] == "no step ran"


def test_a_run_without_its_summary_fails() -> None:
    run = parse_run((RUNS / "good.stderr").read_bytes())
    assert run.steps == 6
    assert "no summary after 6 steps" in failed(judge(run, SC))["steps ran"]


def test_lines_that_the_model_wrote_do_not_count_where_streams_are_apart() -> None:
    line = b"DG_SC_CHECK step 3: got=131072 maxabs=0 sumabs=0 nmiss=0/131072 sc_dev[0]=0.1 host[0]=0.1\n"
    stdout = (RUNS / "good.stdout").read_bytes()
    forged = parse_run((RUNS / "broken-missing-line.stderr").read_bytes(), b"\n" + line + stdout)
    assert "no line for block 0 step 3" in failed(judge(forged, SC))["DG_SC_CHECK lines"]
    assert line.strip() in forged.text


def test_several_turns_are_counted_together() -> None:
    stderr, stdout = (RUNS / "good.stderr").read_bytes(), (RUNS / "good.stdout").read_bytes()
    run = parse_run(stderr + stderr, stdout + stdout)
    assert (run.steps, run.blocks) == (12, 2)
    assert failed(judge(run, SC)) == {}
    one = read("good.stderr").text
    assert run.text == one + b"\n" + one


def test_the_text_may_hold_any_byte() -> None:
    stdout = (RUNS / "good.stdout").read_bytes().replace(b" doma", b"\xff\xfe\x00\r\nq")
    assert parse_run((RUNS / "good.stderr").read_bytes(), stdout).text.startswith(b"\xff\xfe\x00\r\nq boha")


def test_devsample_alone_is_not_judged() -> None:
    with pytest.raises(ValueError, match="NaN"):
        judge(read("device.stderr"), frozenset({"devsample"}))


@pytest.mark.parametrize(
    "data", [b"", b"\n\r\n", b"hello", b"\x00\xff" * 1000, b"usage: llama-cli [options]\n"]
)
def test_what_is_no_run_is_one_clear_line(data: bytes) -> None:
    with pytest.raises(RunUnreadable, match="hold nothing that llama-diffusion-cli") as caught:
        parse_run(data)
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message


GOOD = (RUNS / "good.stderr").read_bytes() + (RUNS / "good.stdout").read_bytes()


@settings(deadline=None)
@given(st.binary(max_size=400))
@example(b"DG_SC_CHECK step -1: got=1 maxabs=1.2.3 sumabs=0 nmiss=0/1\n")
@example(b"\rdiffusion step: 99999999999999999999/1 [] 0%")
def test_garbage_raises_nothing_else(data: bytes) -> None:
    for both in (data, GOOD[:700] + data + GOOD[700:]):
        try:
            run = parse_run(both)
        except RunUnreadable:
            continue
        judge(run, BOTH)


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 300))
def test_a_run_with_a_hole_passes_only_where_nothing_judged_is_lost(at: int, count: int) -> None:
    data = GOOD[:at] + GOOD[at + count :]
    try:
        run = parse_run(data)
    except RunUnreadable:
        return
    if failed(judge(run, SC)) == {}:
        assert run.steps == len(run.sc_checks) == len(run.progress) > 0
        assert all(check.got == check.denominator for check in run.sc_checks)


@given(st.floats(min_value=1e-300), st.sampled_from(["maxabs", "sumabs"]), st.integers(0, 5))
def test_any_difference_fails(value: float, name: str, step: int) -> None:
    start = b"DG_SC_CHECK step %d: got=131072 " % step
    before, rest = GOOD.split(start)
    altered = before + start + rest.replace(f"{name}=0".encode(), f"{name}={value:.6g}".encode(), 1)
    found = failed(judge(parse_run(altered), SC))
    assert name in found["DG_SC_CHECK values"]


def test_a_run_on_two_devices_passes_both() -> None:
    run = read("patched-2gpu-validators.log")
    assert failed(judge(run, BOTH)) == {}
    assert (len(run.sc_checks), len(run.devsample_checks)) == (12, 12)


def test_stock_on_two_devices_fails_and_gives_its_own_reasons() -> None:
    found = failed(judge(read("stock-2gpu-short.log"), BOTH))
    assert set(found) == {
        "device path",
        "DG_SC_CHECK lines",
        "DG_SC_CHECK values",
        "DG_DEVSAMPLE_CHECK lines",
        "DG_DEVSAMPLE_CHECK values",
    }
    assert found["device path"].startswith(
        "gpu_sampling=off, sample_reduce=off; the CLI says: kv cache auto-off"
    )


def test_a_sampler_that_reads_the_wrong_row_is_found() -> None:
    found = failed(judge(read("broken-pointer-2gpu.log"), BOTH))
    assert set(found) == {"DG_DEVSAMPLE_CHECK values"}
    assert "amax_mismatch=238/256" in found["DG_DEVSAMPLE_CHECK values"]


@pytest.mark.parametrize(
    "warning",
    [
        b"DG_SC_CHECK: not run: 6 of 6 steps without device-resident self-conditioning",
        b"f: no memory for device-resident self-conditioning; uploading the logits on every step",
    ],
)
def test_a_warning_that_a_validator_did_not_run_fails_the_device_path(warning: bytes) -> None:
    stderr, stdout = (RUNS / "good.stderr").read_bytes(), (RUNS / "good.stdout").read_bytes()
    found = failed(judge(parse_run(stderr + b"0.01.000.000 W " + warning + b"\n", stdout), SC))
    assert set(found) == {"device path"}
