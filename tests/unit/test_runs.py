"""Real output, read: stock and patched, one GPU and two, a processor, a crash, too little memory, a chat.

The ``*.log`` files are whole runs of the full-size synthetic model on one H100, both streams together; the
first line is the command, the last one the exit code. "2gpu" there is two logical devices on that card
(``tests/gpu/logical_gpus.c``), of which ``little-memory`` had a memory limit each. ``cpu-*`` are runs of the
CPU image. Nothing but paths is altered.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_images.runs import AllocationFailure, Buffer, Devices, Fallback, Run, RunUnreadable, parse_run

RUNS = Path(__file__).parent / "data" / "runs"
LOGS = sorted(path.name for path in RUNS.glob("*.log"))


def read(name: str) -> Run:
    if name == "cpu-chat":
        return parse_run((RUNS / "cpu-chat.stderr").read_bytes(), (RUNS / "cpu-chat.stdout").read_bytes())
    return parse_run((RUNS / name).read_bytes())


def test_every_step_carries_its_time() -> None:
    run = read("patched-2gpu-long.log")
    assert len(run.progress) == 72
    assert run.progress[0].at_us == 8_796_336  # 0.08.796.336
    assert run.progress[12].at_us == 9_976_859
    times = [step.at_us for step in run.progress]
    assert None not in times
    assert times == sorted(times, key=lambda at: at or 0)


def test_a_minute_is_sixty_seconds() -> None:
    run = parse_run(b"12.03.004.005 I \rdiffusion step: 0/4 [          ] 0%")
    assert run.progress[0].at_us == ((12 * 60 + 3) * 1000 + 4) * 1000 + 5


def test_a_step_without_a_stamp_has_no_time() -> None:
    run = parse_run(b"\rdiffusion step: 0/4 [          ] 0%")
    assert run.progress[0].at_us is None


def test_a_colour_around_the_stamp_does_not_hide_it() -> None:
    run = read("colours.mixed")
    assert [step.at_us is None for step in run.progress] == [False] * 3


def test_one_prompt_is_one_turn_of_its_blocks() -> None:
    (turn,) = read("patched-2gpu-long.log").turns
    assert [len(block) for block in turn.blocks] == [12] * 6
    assert turn.summary is not None
    assert (turn.summary.steps, turn.summary.blocks) == (72, 6)
    assert turn.text.startswith(b" gimere zara bifupe ")


def test_turns_of_a_chat_keep_their_blocks_and_their_replies() -> None:
    run = read("cpu-chat")
    assert len(run.turns) == 3, "/exit ends it, /help and /clear are no turns"
    assert [[len(block) for block in turn.blocks] for turn in run.turns] == [[3, 3]] * 3
    assert [step.block for turn in run.turns for block in turn.blocks for step in block[:1]] == [*range(6)]
    first, second, third = (turn.text for turn in run.turns)
    assert first.startswith(b" bodi bali besi ")
    assert first.endswith(first.rstrip())
    assert first == third, "after /clear the same prompt has the same reply"
    assert second != first
    assert second.startswith(b" dago bahu dere ")
    assert not any(word in run.text for word in (b"> ", b"commands", b"/help", b"cleared"))


def test_a_reply_that_looks_like_a_prompt_is_kept_outside_a_conversation() -> None:
    stdout = (
        b"\n> \nhello\ntotal time: 1.00ms, time per step: 1.00ms (1 steps over 1 blocks, entropy-bound)\n"
    )
    assert parse_run(b"", stdout).text == b"> \nhello"


def test_a_turn_that_was_cut_off_is_a_turn_without_a_summary() -> None:
    data = (RUNS / "patched-2gpu-long.log").read_bytes()
    run = parse_run(data[: data.rindex(b"8/12 [")])
    (turn,) = run.turns
    assert turn.summary is None
    assert turn.text == b""
    assert sum(len(block) for block in turn.blocks) == len(run.progress) > 12


def test_the_series_says_where_the_model_is() -> None:
    assert read("patched-2gpu-long.log").devices == Devices(
        split="layer",
        layers=(("CUDA0", 16), ("CUDA1", 14)),
        output="CUDA1",
        sc_embd="CUDA1",
        kv_cache=("CUDA0", "CUDA1"),
        gpu_sampling=("CUDA1",),
        sample_reduce=("CUDA1",),
    )
    one = read("patched-1gpu-short.log").devices
    assert one is not None
    assert (one.layers, one.kv_cache) == ((("CUDA0", 30),), ("CUDA0",))


def test_what_is_off_is_an_empty_list() -> None:
    line = (
        b"diffusion_devices: split=none layers=CPU:6 output=CPU sc_embd=none kv_cache=on:CPU "
        b"gpu_sampling=off sample_reduce=off\n"
    )
    devices = parse_run(b"E x\n" + line).devices
    assert devices is not None
    assert (devices.kv_cache, devices.gpu_sampling, devices.sample_reduce) == (("CPU",), (), ())


def test_stock_says_what_it_switched_off() -> None:
    run = read("stock-2gpu-short.log")
    assert run.devices is None
    assert run.switched_off == (
        "kv cache auto-off (2 GPUs; pass --diffusion-kv-cache on to force)",
        "gpu sampling off (2 GPUs; sc_dev is single-device)",
        "gpu sample reduce off (needs --diffusion-gpu-sampling on / sc_dev)",
    )
    assert run.options is not None
    assert (run.options.kv_cache, run.options.gpu_sampling, run.options.sample_reduce) == (False,) * 3
    assert read("stock-1gpu-short.log").switched_off == ()


def test_too_little_memory_shows_what_went_where() -> None:
    run = read("patched-2gpu-little-memory.log")
    assert run.fallbacks == (
        Fallback(
            kind="placement",
            text="no room for sc_embT (1408.00 MiB) on CUDA1, it is on CUDA_Host instead",
            tensor="sc_embT",
            placed_on="CUDA_Host",
        ),
    )
    assert run.allocation_failures == (
        AllocationFailure(device="CUDA1", mebibytes=1408.0),
        AllocationFailure(device="CUDA0", mebibytes=1408.0),
    )
    assert not run.host_sampling
    assert len(run.errors) == 4, "two lines for each allocation"


def test_the_loader_says_how_much_is_on_each_device() -> None:
    run = read("patched-2gpu-little-memory.log")
    assert run.offloaded == (31, 31)
    assert run.buffers[:3] == (
        Buffer(device="CPU_Mapped", kind="model", mebibytes=577.5),
        Buffer(device="CUDA0", kind="model", mebibytes=7538.26),
        Buffer(device="CUDA1", kind="model", mebibytes=7191.68),
    )
    assert {(one.device, one.kind) for one in run.buffers[3:]} == {
        ("CUDA_Host", "output"),
        ("CUDA0", "compute"),
        ("CUDA1", "compute"),
        ("CUDA_Host", "compute"),
    }
    assert [(one.device, one.name) for one in run.found_devices] == [
        ("CUDA0", "NVIDIA H100 80GB HBM3"),
        ("CUDA1", "NVIDIA H100 80GB HBM3"),
    ]
    assert all(4_000 < one.free_mebibytes < 81_000 for one in run.found_devices)


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        (
            "dg_warn: no memory for the prompt KV cache (1804 tokens); running this block without it",
            "prompt cache",
            "no memory for the prompt KV cache (1804 tokens); running this block without it",
        ),
        (
            "f: no memory for device-resident self-conditioning; uploading the logits on every step",
            "self-conditioning",
            "no memory for device-resident self-conditioning; uploading the logits on every step",
        ),
        (
            "f: on-device sampling is not available; using host sampling",
            "sampling",
            "on-device sampling is not available; using host sampling",
        ),
        (
            "f: on-device sampling unsupported on this backend; using host sampling",
            "sampling",
            "on-device sampling unsupported on this backend; using host sampling",
        ),
        (
            "DG_SC_CHECK: not run: 12 of 12 steps without device-resident self-conditioning",
            "check",
            "DG_SC_CHECK: not run: 12 of 12 steps without device-resident self-conditioning",
        ),
    ],
)
def test_warnings_are_told_apart_also_behind_a_progress_bar(line: str, kind: str, text: str) -> None:
    data = b"0.00.000.001 I \rdiffusion step: 0/12 [  ] 0%0.00.000.002 W " + line.encode() + b"\n"
    run = parse_run(data)
    assert [(one.kind, one.text) for one in run.fallbacks] == [(kind, text)]
    assert run.host_sampling == (kind == "sampling")
    assert run.malformed == ()


def test_a_crash_is_read_up_to_its_error() -> None:
    run = read("patched-2gpu-crash.log")
    assert (run.progress, run.turns, run.options) == ((), (), None)
    assert "CUDA error: invalid argument" in run.errors
    assert run.errors[0] == "ggml/src/ggml-cuda/ggml-cuda.cu:104: CUDA error"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("cpu-truncated", "tensor 'blk.2.ffn_down_exps.weight' data is not within the file bounds"),
        ("cpu-wrong-architecture", "key not found in model: gemma-embedding.context_length"),
        ("cpu-unreadable", "failed to open GGUF file '/models/unreadable.gguf' (Permission denied)"),
        ("cpu-missing", "failed to open GGUF file '/models/missing.gguf' (No such file or directory)"),
        ("cpu-prompt-too-long", "error: input too long (9024 tokens), max context is 2304"),
        ("cpu-out-of-memory", "error: failed to create context"),
    ],
)
def test_a_run_that_could_not_be_has_its_reason(name: str, error: str) -> None:
    run = read(f"{name}.mixed")
    assert any(error in line for line in run.errors)
    assert (run.progress, run.turns) == ((), ())


def test_an_allocation_that_a_processor_refused_is_read() -> None:
    (failure,) = read("cpu-out-of-memory.mixed").allocation_failures
    assert failure.device == "CPU"
    assert failure.mebibytes == pytest.approx(3_840_135.86, abs=0.01)


@pytest.mark.parametrize("name", LOGS)
def test_real_runs_have_no_line_that_is_not_understood(name: str) -> None:
    run = read(name)
    assert run.malformed == ()
    if run.summaries:
        assert run.steps == len(run.progress)
        assert len(run.text.split()) == 256 * run.blocks


def test_a_summary_that_counts_more_blocks_than_there_are_takes_all() -> None:
    line = b"total time: 1ms, time per step: 1ms (1 steps over 9999999999999999999 blocks, entropy-bound)\n"
    bars = b"".join(b"\rdiffusion step: %d/2 [ ] 0%%" % step for step in (0, 1, 0, 1))
    (turn,) = parse_run(bars + line).turns
    assert [len(block) for block in turn.blocks] == [2, 2]


# --- whatever comes -------------------------------------------------------------------------------

PIECES = [
    *(b"0.00.000.001 I ", b"9999999.99.999.999 E ", b"\rdiffusion step: ", b"0/12 [=  ] 0%", b"\n", b"\r"),
    *(b"DG_SC_CHECK step 0: ", b"DG_DEVSAMPLE_CHECK", b"got=", b"1", b"99999999999999999999", b"nan", b"-"),
    *(b"total time: 1ms, time per step: 1ms (1 steps over 1 blocks, entropy-bound)", b"throughput: "),
    *(b"diffusion_devices: split=layer layers=", b"CUDA0:16,", b" output=CUDA1 sc_embd=x kv_cache=off"),
    *(b" gpu_sampling=on:CUDA1 sample_reduce=off ", b"no room for ", b"x (1 MiB) on a, it is on b instead"),
    *(b"allocating 1.00 MiB on device 1: x", b"failed to allocate CPU buffer of size ", b"\x1b[0m", b"\xff"),
    *(b"offloaded 31/31 layers to GPU", b" CUDA0 model buffer size = 1.00 MiB", b"using device CUDA0 (x) ("),
    *(b") - 1 MiB free", b"conversation mode: /help for commands", b"> ", b"commands:\n  /x\n", b"\x00"),
    *(b"no memory for the prompt KV cache", b"using host sampling", b"diffusion_eb: --x auto-off (y"),
]


def read_anything(data: bytes, stdout: bytes | None = None) -> None:
    """Fails where anything but RunUnreadable comes out, or a value that is not what its type says."""
    try:
        run = parse_run(data, stdout)
    except RunUnreadable:
        return
    steps = [step for turn in run.turns for block in turn.blocks for step in block]
    assert sorted(steps, key=lambda step: step.block) == list(run.progress)
    assert all(block for turn in run.turns for block in turn.blocks)
    assert all(text.isprintable() for text in (*run.errors, *run.malformed, *run.switched_off))
    assert all("\n" not in fallback.text for fallback in run.fallbacks)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=40), st.none() | st.lists(st.sampled_from(PIECES)))
@example([b"diffusion_devices: split=layer layers= output=CUDA1 sc_embd=x kv_cache=off"], None)
def test_pieces_in_any_order_raise_nothing_else(pieces: list[bytes], told: list[bytes] | None) -> None:
    read_anything(b"".join(pieces), None if told is None else b"".join(told))


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(LOGS), st.data())
def test_a_real_run_with_holes_and_noise_raises_nothing_else(name: str, data: st.DataObject) -> None:
    text = (RUNS / name).read_bytes()
    at = data.draw(st.integers(0, len(text)))
    drop = data.draw(st.integers(0, 400))
    noise = data.draw(st.binary(max_size=40))
    read_anything(text[:at] + noise + text[at + drop :])


def test_a_long_stream_of_the_worst_is_read_in_linear_time() -> None:
    """A pattern that looked far ahead from every byte again would take minutes for this."""
    started = time.process_time()
    for piece in PIECES:
        read_anything(piece * (100_000 // len(piece)))
    assert time.process_time() - started < 20
