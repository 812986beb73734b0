"""Which model and which cards ``fit`` is about, and what its screen shows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_images import screens
from llama_images.adapters.screen import show
from llama_images.errors import UsageError
from llama_images.fit import Card, Fit, Wanted, choose_fit
from llama_images.matrix import load_matrix
from llama_images.model_memory import MIB, shape_of
from llama_images.ports import Gpu, HubFile
from llama_images.synthetic import write_model
from llama_images.workflows.fit import cards_of, command_of, container_command_of, read_model
from tests.unit.fakes import FakeReporter
from tests.unit.test_model_memory import full_model

MATRIX = load_matrix(Path(__file__).resolve().parents[2] / "matrix.yaml")
SHAPE = shape_of(full_model())


class FileHub:
    """A hub whose only file is one of this disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, str, str]] = []

    def find(self, repository: str, file: str, revision: str) -> HubFile:
        self.asked.append((repository, file, revision))
        return HubFile(
            repository=repository,
            file=file,
            commit="5" * 40,
            size_bytes=self.path.stat().st_size,
            sha256=None,
        )

    def open(self, file: HubFile) -> IO[bytes]:
        return self.path.open("rb")

    def download(self, file: HubFile, part: Path, on_progress: Callable[[int], None]) -> None:
        raise AssertionError("fit downloads nothing")


class Driver:
    def __init__(self, *gpus: Gpu) -> None:
        self.present = gpus

    def gpus(self) -> tuple[Gpu, ...]:
        return self.present

    def driver_version(self) -> str | None:
        return "580.95.05"


def gpu(index: int, free: int | None = 16_000 * MIB) -> Gpu:
    return Gpu(
        index=index,
        name="NVIDIA GeForce RTX 5060 Ti",
        compute_capability="12.0",
        memory_bytes=16_311 * MIB,
        uuid=f"GPU-{index}",
        free_bytes=free,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("tiny", tmp_path_factory.mktemp("model") / "tiny.gguf").path


# --- the model -----------------------------------------------------------------------------------


def test_a_path_is_read_here(tiny: Path) -> None:
    hub = FileHub(tiny)
    assert read_model(str(tiny), MATRIX, hub, FakeReporter()).path == tiny
    assert hub.asked == []


def test_a_model_of_the_matrix_is_read_on_the_hub(tiny: Path) -> None:
    hub = FileHub(tiny)
    name = MATRIX.defaults.model
    assert name is not None
    pin = MATRIX.models[name]
    assert read_model(name, MATRIX, hub, FakeReporter()).path == Path(pin.file)
    assert [(repository, file) for repository, file, _ in hub.asked] == [(pin.repository, pin.file)]


@pytest.mark.parametrize(
    ("word", "asked"),
    [
        ("hf:owner/name/model.gguf", ("owner/name", "model.gguf", "main")),
        ("hf:owner/name/Q4/model.gguf", ("owner/name", "Q4/model.gguf", "main")),
        ("hf:owner/name/model.gguf@v2", ("owner/name", "model.gguf", "v2")),
    ],
)
def test_a_file_of_the_hub_is_named_by_repository_file_and_revision(
    tiny: Path, word: str, asked: tuple[str, str, str]
) -> None:
    hub = FileHub(tiny)
    read_model(word, MATRIX, hub, FakeReporter())
    assert hub.asked == [asked]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("", "no --model given$"),
        ("nowhere.gguf", r"nowhere\.gguf does not exist"),
        ("hf:owner/name", "names no file of the hub"),
        ("hf:owner/name/model.bin", "names no file of the hub"),
    ],
)
def test_what_names_no_model_is_one_line_with_a_hint(tiny: Path, word: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        read_model(word, MATRIX, FileHub(tiny), FakeReporter())
    assert "\n" not in caught.value.message
    assert caught.value.hint


# --- the cards -----------------------------------------------------------------------------------


def test_cards_are_those_of_the_driver_or_some_of_them() -> None:
    driver = Driver(gpu(0), gpu(1, 8_000 * MIB))
    assert [card.free_bytes for card in cards_of(driver, (), ())] == [16_000 * MIB, 8_000 * MIB]
    assert [card.index for card in cards_of(driver, ("1",), ())] == [1]
    assert [card.index for card in cards_of(driver, ("1", "0"), ())] == [1, 0]


@pytest.mark.parametrize(
    ("word", "size"),
    [
        ("16311", 16_311 * MIB),
        ("16GiB", 16 << 30),
        ("15.5 gib", 31 << 29),
        ("24GB", 24 * 10**9),
    ],
)
def test_described_cards_need_no_driver(word: str, size: int) -> None:
    assert cards_of(Driver(), (), (word, word)) == (Card(name="(described)", free_bytes=size),) * 2


@pytest.mark.parametrize(
    ("driver", "chosen", "memory", "words"),
    [
        (Driver(), (), (), "no NVIDIA GPU answers"),
        (Driver(gpu(0)), ("1",), (), '--gpu "1": there is no such GPU'),
        (Driver(gpu(0, None)), (), (), "shares the machine's memory"),
        (Driver(), (), ("much",), "it is no size"),
        (Driver(), (), ("0",), "it is no size"),
        (Driver(), (), ("16 apples",), "it is no size"),
    ],
)
def test_cards_that_can_t_be_had(
    driver: Driver, chosen: Sequence[str], memory: Sequence[str], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        cards_of(driver, chosen, memory)
    assert caught.value.hint


# --- the screen ----------------------------------------------------------------------------------


def choice(*mebibytes: int, name: str = "NVIDIA GeForce RTX 5060 Ti") -> Fit:
    cards = [Card(name=name, free_bytes=size * MIB, index=index) for index, size in enumerate(mebibytes)]
    return choose_fit(SHAPE, cards, Wanted())


def text_of(lines: screens.Screen) -> str:
    stream = io.StringIO()
    show(lines, stream)
    return stream.getvalue()


def test_the_screen_of_two_cards() -> None:
    fit = choice(16_111, 16_111)
    text = text_of(screens.fit_screen(full_model(), fit, command_of(fit, "full.gguf")))
    lines = text.splitlines()
    head, first, second = lines[3:6]
    assert head.split() == ["GiB", *screens._COLUMNS]
    assert len(head) == len(first) == len(second) == screens.WIDTH
    assert first.startswith("0 RTX 5060 Ti ")
    assert second.startswith("1 RTX 5060 Ti ")
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1" in text
    assert "\x1b" not in text


def test_the_command_can_be_typed() -> None:
    fit = choice(16_111, 16_111)
    shown = text_of(screens.command_lines(command_of(fit, "my model.gguf"))).splitlines()
    assert all(line.endswith("\\") for line in shown[:-1])
    typed = " ".join(line.rstrip("\\").strip() for line in shown)
    assert typed.split(" -m ")[1].startswith("'my model.gguf' -ngl 99 -ts")


def test_the_command_of_a_container_has_the_model_s_folder_and_the_cards(tiny: Path) -> None:
    fit = choice(16_111, 16_111)
    command = container_command_of(fit, tiny, "llama-diffusion:sm120")
    assert command[:10] == (
        *("docker", "run", "--rm", "-it", "--gpus", "all"),
        *("-e", "CUDA_DEVICE_ORDER=PCI_BUS_ID", "-e", "CUDA_VISIBLE_DEVICES=0,1"),
    )
    assert command[10:15] == (
        *("-v", f"{tiny.parent}:/models:ro", "llama-diffusion:sm120"),
        *("-m", "/models/tiny.gguf"),
    )
    assert command[15:] == fit.options()
    assert "/path/to/models:/models:ro" in container_command_of(fit, Path("Q4/of-the-hub.gguf"), "x")


@settings(max_examples=200)
@given(st.text(max_size=12))
def test_any_word_is_a_size_or_wrong_use(word: str) -> None:
    try:
        (card,) = cards_of(Driver(), (), (word,))
    except UsageError:
        return
    assert 0 < card.free_bytes < 10**20


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1_000, 140_000), min_size=1, max_size=8),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=60),
)
def test_no_line_is_wider_than_80_columns(sizes: list[int], name: str) -> None:
    fit = choice(*sizes, name=name)
    lines = screens.fit_screen(full_model(), fit, command_of(fit, "/models/full.gguf"))
    assert max(sum(len(span.text) for span in line) for line in lines) <= screens.WIDTH


def test_what_does_not_fit_shows_no_command() -> None:
    fit = choice(3_000)
    text = text_of(screens.fit_screen(full_model(), fit, command_of(fit, "full.gguf")))
    assert "This does not fit: the card lacks" in text
    assert "llama-diffusion-cli" not in text


def test_json_says_the_same() -> None:
    fit = choice(16_111, 16_111)
    found = json.loads(json.dumps(screens.fit_json(full_model(), fit, command_of(fit, "full.gguf"))))
    assert found["tensor_split"] == list(fit.shares)
    assert [card["left"] for card in found["cards"]] == list(fit.left)
    assert found["commands"][0][2] == "llama-diffusion-cli"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    show([screens.words("good", "good")], coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    show([screens.words("good", "good")], plain)
    assert coloured.getvalue() == "\x1b[32mgood\x1b[0m\n"
    assert plain.getvalue() == "good\n"
