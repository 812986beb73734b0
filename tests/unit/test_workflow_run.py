"""What ``run`` starts: the image, the container and the options, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llama_images.adapters.sessions import raise_for_start, session_words
from llama_images.errors import CheckFailed, OutsideError, UsageError
from llama_images.fit import Card, Fit, Wanted, choose_fit
from llama_images.matrix import load_matrix
from llama_images.model_memory import MIB, shape_of
from llama_images.ports import GpuSurvey, Session
from llama_images.screens import run_summary
from llama_images.selection import local_reference, make_target
from llama_images.workflows.run import (
    LONGEST,
    Talk,
    fit_for,
    hold_session,
    local_model,
    session_of,
    target_of,
)
from tests.unit.fakes import FakeEngine, FakeReporter
from tests.unit.test_diagnosis import gpu, survey
from tests.unit.test_model_memory import full_model
from tests.unit.test_workflow_smoke import IMAGE

MATRIX = load_matrix(Path(__file__).resolve().parents[2] / "matrix.yaml")
MODEL = dataclasses.replace(full_model(), path=Path("/somewhere/full.gguf"))
SHAPE = shape_of(MODEL)
NO_GPU = GpuSurvey(driver=None)
TWO = survey(gpu(0), gpu(1))
TWO_CARDS = tuple(Card(name="NVIDIA GeForce RTX 5060 Ti", free_bytes=16_111 * MIB, index=n) for n in (0, 1))
ON = (
    *("--diffusion-kv-cache", "on", "--diffusion-gpu-sampling", "on"),
    *("--diffusion-gpu-sample-reduce", "on"),
)


def fitted(*cards: Card) -> Fit:
    return fit_for(make_target(MATRIX, "120"), TWO, SHAPE, cards or TWO_CARDS, Wanted())


def session(fit: Fit | None = None, talk: Talk | None = None, tokens: int | None = None) -> Session:
    return session_of("an/image:1", MODEL, fit, tokens, talk or Talk(), Path("/cached/compiled"))


# --- the image ---


def test_the_image_is_the_machine_s_unless_one_is_named() -> None:
    def reference(found: GpuSurvey, arch: str = "") -> str:
        return local_reference(target_of(MATRIX, found, "linux/amd64", arch))

    assert reference(TWO) == "llama-diffusion:sm120"
    assert reference(NO_GPU) == "llama-diffusion:cpu"
    assert reference(TWO, "cpu") == "llama-diffusion:cpu"
    assert reference(TWO, "native") == "llama-diffusion:sm120"
    with pytest.raises(UsageError, match=r"--arch all names .* images"):
        reference(TWO, "all")


def test_an_image_without_code_for_a_card_is_refused() -> None:
    target = make_target(MATRIX, "89")
    with pytest.raises(CheckFailed, match=r"sm89 has no code for NVIDIA GeForce RTX 5060 Ti \(12\.0\)"):
        fit_for(target, TWO, SHAPE, TWO_CARDS, Wanted())
    # Only cards that are used count.
    other = survey(gpu(0), gpu(1, "8.9", "NVIDIA RTX 4000 Ada"))
    assert fit_for(target, other, SHAPE, TWO_CARDS[1:], Wanted()).fits


# --- the options ---


def test_two_cards_get_fit_s_split_and_all_three_switches() -> None:
    fit = fitted()
    assert fit.setting.tokens == LONGEST
    made = session(fit)
    split = ",".join(map(str, fit.shares))
    assert made.arguments == (
        *("-m", "/models/full.gguf", "-ngl", "99", "-ts", split, "-n", str(LONGEST), *ON),
        "-cnv",
    )
    assert made.gpus
    assert made.environment == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "CUDA_CACHE_PATH": "/cache",
        "CUDA_CACHE_MAXSIZE": str(4 << 30),
    }
    assert (made.mounts, made.writable) == (
        {Path("/somewhere/full.gguf"): "/models/full.gguf"},
        {Path("/cached/compiled"): "/cache"},
    )
    assert run_summary(made, fit) == (
        f"an/image:1 on 0 RTX 5060 Ti, 1 RTX 5060 Ti; -n {LONGEST}, -ts {split}"
    )


def test_where_fewer_tokens_fit_than_are_usual_those_are_taken() -> None:
    small = dataclasses.replace(TWO_CARDS[0], free_bytes=9_000 * MIB)
    fit = fitted(small)
    assert fit.setting.tokens < LONGEST
    assert fit.setting.tokens == choose_fit(SHAPE, [small], Wanted()).setting.tokens
    assert "the experts of" in run_summary(session(fit), fit)


def test_a_length_that_was_asked_for_is_kept() -> None:
    target = make_target(MATRIX, "120")
    assert fit_for(target, TWO, SHAPE, TWO_CARDS, Wanted(tokens=4096)).setting.tokens == 4096


def test_what_does_not_fit_is_not_started() -> None:
    with pytest.raises(CheckFailed, match="the model does not fit on 1 card"):
        fitted(dataclasses.replace(TWO_CARDS[0], free_bytes=2_000 * MIB))


def test_a_processor_gets_neither_gpus_nor_their_cache() -> None:
    made = session()
    assert made.arguments == ("-m", "/models/full.gguf", "-n", "256", "-cnv")
    assert (made.gpus, dict(made.environment), dict(made.writable)) == (False, {}, {})
    assert session(tokens=64).arguments[3] == "64"
    assert run_summary(made, None) == "an/image:1 on the processor"


def test_all_parts_of_a_model_are_there() -> None:
    name = "full-{:05}-of-00002.gguf"
    first = Path("/somewhere") / name.format(1)
    parts = dataclasses.replace(
        MODEL, path=first, metadata={**MODEL.metadata, "split.count": 2, "split.no": 0}
    )
    made = session_of("an/image:1", parts, None, None, Talk(), Path("/cached"))
    assert list(made.mounts.values()) == [f"/models/{name.format(number)}" for number in (1, 2)]


# --- the terminal ---


@pytest.mark.parametrize(
    ("prompt", "visual", "input_terminal", "output_terminal", "expected"),
    [
        # (terminal, interactive, picture)
        ("", True, True, True, (True, True, True)),
        ("", False, True, True, (True, True, False)),
        ("", True, False, True, (False, True, True)),
        ("", True, True, False, (False, True, False)),
        ("hi", True, True, True, (True, False, True)),
        ("hi", True, False, True, (True, False, True)),
        ("hi", False, True, True, (False, False, False)),
        ("hi", True, True, False, (False, False, False)),
    ],
)
def test_who_gets_a_terminal(
    prompt: str,
    visual: bool,
    input_terminal: bool,
    output_terminal: bool,
    expected: tuple[bool, bool, bool],
) -> None:
    talk = Talk(prompt=prompt, visual=visual, input_terminal=input_terminal, output_terminal=output_terminal)
    made = session(talk=talk)
    assert (made.terminal, made.interactive, "--diffusion-visual" in made.arguments) == expected


def test_further_options_come_last() -> None:
    made = session(talk=Talk(prompt="hi there", more=("-n", "64")))
    assert made.arguments[-4:] == ("-p", "hi there", "-n", "64")


def test_the_user_s_own_files_are_read_and_root_is_nobody_special() -> None:
    assert session(talk=Talk(user=(1000, 100))).user == "1000:100"
    assert session(talk=Talk(user=(0, 0))).user == "10001:10001"


# --- the model ---


def test_a_model_is_a_path_or_one_that_was_fetched(tmp_path: Path) -> None:
    assert local_model("/a/b.gguf", MATRIX, tmp_path) == Path("/a/b.gguf")
    name = next(iter(MATRIX.models))
    with pytest.raises(UsageError, match=f"the model {name} is not here yet"):
        local_model(name, MATRIX, tmp_path)
    file = tmp_path / MATRIX.models[name].file.rpartition("/")[2]
    file.touch()
    assert local_model(name, MATRIX, tmp_path) == file
    with pytest.raises(UsageError, match="no --model given"):
        local_model("", MATRIX, tmp_path)


# --- the container ---


class Holding(FakeEngine):
    """Keeps the sessions that it was asked to hold."""

    def session_command(self, session: Session) -> tuple[str, ...]:
        return ("fake", "run", session.image)

    def hold(self, session: Session) -> int:
        assert all(folder.is_dir() for folder in session.writable)
        return 130


def test_a_missing_image_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    made, reporter = dataclasses.replace(session(), writable={tmp_path / "c": "/cache"}), FakeReporter()
    with pytest.raises(CheckFailed, match="there is no image an/image:1 on this engine") as caught:
        hold_session(Holding(), made, reporter, summary="what starts", hint="so it is made")
    assert caught.value.hint == "so it is made"
    assert not (tmp_path / "c").exists()
    assert reporter.lines == []


def test_the_container_is_told_of_and_held(tmp_path: Path) -> None:
    engine, reporter = Holding(), FakeReporter()
    made = dataclasses.replace(
        session(fitted()), image="there", user=None, writable={tmp_path / "c" / "d": "/cache"}
    )
    engine.images["there"] = IMAGE
    assert hold_session(engine, made, reporter, summary="what starts", hint="") == 130
    assert reporter.lines == ["what starts"]


def test_the_words_of_a_session() -> None:
    made = session(fitted(), Talk(input_terminal=True, output_terminal=True, user=(1000, 1000)))
    words = session_words(made, "a-name", ["--gpus", "all"])
    line = " ".join(words)
    for part in (
        "run --rm --name a-name --init --pull never --read-only",
        "--cap-drop ALL --security-opt no-new-privileges --network none",
        "--pids-limit 4096 --ulimit core=0 --interactive --tty --user 1000:1000 --gpus all",
        "--env CUDA_DEVICE_ORDER=PCI_BUS_ID",
        "--mount type=bind,source=/somewhere/full.gguf,target=/models/full.gguf,readonly",
        "--mount type=bind,source=/cached/compiled,target=/cache an/image:1 -m /models/full.gguf",
    ):
        assert part in line
    assert words[-len(made.arguments) :] == list(made.arguments)


def test_only_the_engine_s_own_exit_code_is_its_failure() -> None:
    with pytest.raises(OutsideError, match="did not start a container of an/image:1"):
        raise_for_start(125, session())
    for code in (0, 1, 126, 130):
        raise_for_start(code, session())
