"""``invoke run`` on the CPU image, as a person has it: a terminal, Ctrl-C, and nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker
import gguf
import pytest

import tasks
from llama_images import selection
from llama_images.adapters.docker import DockerEngine
from llama_images.adapters.podman import PodmanEngine
from llama_images.plan import choose, make_plan
from llama_images.ports import Session
from llama_images.runs import parse_run
from llama_images.synthetic import write_model
from llama_images.workflows.build import build_all

pytestmark = [pytest.mark.engine, pytest.mark.source, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 90.0


@pytest.fixture(scope="module")
def image(docker_engine: DockerEngine) -> Iterator[str]:
    """The CPU image under a name of its own; the engine's cache has its steps."""
    shop, platform = tasks._workshop(), docker_engine.info().platform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "IMAGE", f"localhost/llama-images-test/{uuid.uuid4().hex[:12]}")
        chosen = choose(shop.matrix, ["cpu"], platform=platform, native=tuple)
        plan = make_plan(chosen, series=shop.series, platform=platform)
        name = selection.local_reference(plan.targets[0])
        try:
            build_all(shop, docker_engine, plan, repo=os.environ.get("LLAMA_CPP_REPO"))
            yield name
        finally:
            docker_engine.remove_tag(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("tiny", tmp_path_factory.mktemp("model") / "tiny.gguf").path


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = containers()
    yield
    assert containers() <= before


def containers() -> set[str]:
    with contextlib.closing(docker.from_env()) as client:
        return {entry["Id"] for entry in client.api.containers(all=True, filters={"name": "llama-images-"})}


def command(model: Path, image: str, *words: str) -> list[str]:
    run = [sys.executable, "-m", "llama_images", "run", str(model), "--engine", "docker", "--arch", "cpu"]
    few = ("--options", "--diffusion-eb-max-steps 4")
    return [*run, "--image", image, "--tokens", "64", *few, *words]


def piped(argv: Sequence[str], typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=ROOT, input=typed, capture_output=True, text=True, timeout=SECONDS, check=False
    )


class Terminal:
    """A program in a terminal of 24 lines and 80 columns."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.child = subprocess.Popen(
            # A session of its own, whose terminal this is: Ctrl-C comes from it as it does from a keyboard.
            [sys.executable, "-c", _IN_TERMINAL, *argv],
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = b""
        self._seen = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the window, which ends what still runs in it."""
        with contextlib.suppress(OSError):
            os.close(self.master)
        self.child.wait(SECONDS)

    def wait_for(self, text: bytes) -> None:
        """Read until it has been shown, behind what was waited for before."""
        end = time.monotonic() + SECONDS
        while (found := self.shown.find(text, self._seen)) < 0:
            assert time.monotonic() < end, self.shown[-2000:]
            assert self._read(), self.shown[-2000:]
        self._seen = found + len(text)

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def end(self) -> int:
        while self._read():
            pass
        return self.child.wait(SECONDS)

    def _read(self) -> bool:
        if not select.select([self.master], [], [], SECONDS)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the last program that had the terminal has ended
            return False
        self.shown += data
        return bool(data)


_IN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup leaves it ignored
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


# --- without a terminal ---


def test_one_answer_is_on_standard_output_and_the_program_says_what_is_on(image: str, model: Path) -> None:
    finished = piped(command(model, image, "--prompt", "hello"))
    assert finished.returncode == 0, finished.stderr
    assert f"{image} on the processor" in finished.stderr
    devices = parse_run(finished.stderr.encode()).devices
    assert devices is not None
    assert devices.layers == (("CPU", 6),)
    assert "throughput:" in finished.stdout
    assert "\x1b" not in finished.stdout


def test_a_chat_takes_its_turns_from_a_pipe(image: str, model: Path) -> None:
    finished = piped(command(model, image), "hi\n/exit\n")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("throughput:") == 1


def test_options_of_the_program_are_passed_on_and_its_exit_code_is_told(image: str, model: Path) -> None:
    finished = piped(command(model, image, "--prompt", "hi", "--options", "--seed 7 --no-such-option"))
    assert finished.returncode == 1
    assert "--no-such-option" in finished.stderr
    assert finished.stderr.endswith(
        "error: the program ended with exit code 1\nhint: what it said is above\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_container(image: str, model: Path, number: signal.Signals) -> None:
    argv = command(model, image, "--prompt", "hi", "--tokens", "8192")
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as child:
        assert child.stderr is not None
        seen = b""
        while b"diffusion step" not in seen:
            data = os.read(child.stderr.fileno(), 65536)
            assert data, seen
            seen += data
        # A terminal tells all programs of the group; what ends a service tells its first one.
        if number == signal.SIGINT:
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)
        child.communicate(timeout=SECONDS)
    assert child.returncode == 130


# --- in a terminal ---


def test_a_chat_in_a_terminal_draws_the_canvas_and_ends_with_ctrl_c(image: str, model: Path) -> None:
    with Terminal(command(model, image)) as terminal:
        terminal.wait_for(b"diffusion_devices: ")
        terminal.wait_for(b"\r\n> ")
        terminal.type(b"hi\r")
        terminal.wait_for(b"\x1b[?2026h")  # a frame of the picture
        terminal.wait_for(b"throughput:")
        terminal.wait_for(b"\r\n> ")
        terminal.type(b"\x03")
        assert terminal.end() == 130
    assert terminal.shown.endswith(b"\x1b[?25h\r\n"), "the cursor shows again"


def test_ctrl_c_ends_an_answer_that_is_being_drawn(image: str, model: Path) -> None:
    with Terminal(command(model, image, "--prompt", "hi", "--tokens", "8192")) as terminal:
        terminal.wait_for(b"\x1b[?2026h")
        terminal.type(b"\x03")
        assert terminal.end() == 130


def test_a_closed_window_ends_the_container(image: str, model: Path) -> None:
    with Terminal(command(model, image)) as terminal:
        terminal.wait_for(b"\r\n> ")
    assert terminal.child.returncode  # 130, or another where the last words had no window to go to


def test_without_the_picture_an_answer_needs_no_terminal_of_the_container(image: str, model: Path) -> None:
    with Terminal(command(model, image, "--prompt", "hi", "--no-visual")) as terminal:
        assert terminal.end() == 0
    assert b"\x1b[?2026h" not in terminal.shown
    assert b"throughput:" in terminal.shown


# --- what goes wrong before ---


def test_what_is_wrong_is_told_before_a_container_starts(image: str, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(other, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    missing = piped(command(tmp_path / "none.gguf", image))
    assert (missing.returncode, missing.stderr.splitlines()[0]) == (
        2,
        f"error: {tmp_path / 'none.gguf'} does not exist",
    )
    wrong = piped(command(other, image))
    assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (
        2,
        f"error: {other} is a model of architecture 'llama'",
    )
    none = piped(command(model, "localhost/llama-images-test/none:1"))
    assert (none.returncode, none.stderr.splitlines()) == (
        1,
        [
            "error: there is no image localhost/llama-images-test/none:1 on this engine",
            "hint: docker pull localhost/llama-images-test/none:1 brings it",
        ],
    )


def test_a_dry_run_prints_the_command_that_a_shell_can_run(image: str, model: Path) -> None:
    dry = piped(command(model, image, "--prompt", "hello there", "--dry-run"))
    assert dry.returncode == 0
    argv = shlex.split(dry.stdout)
    assert argv[argv.index("-p") + 1] == "hello there"
    for word in ("--rm", "--init", "--read-only", "no-new-privileges", "ALL"):
        assert word in argv
    finished = piped(argv)
    assert finished.returncode == 0, finished.stderr
    assert "throughput:" in finished.stdout


# --- the engines' own part ---


def test_an_engine_that_does_not_start_the_container_is_told(
    docker_engine: DockerEngine, docker_base: str
) -> None:
    from llama_images.errors import OutsideError

    session = Session(image=docker_base, arguments=(), mounts={Path("/no/such/file"): "/models/none.gguf"})
    with pytest.raises(OutsideError, match="did not start a container"):
        docker_engine.hold(session)


def test_podman_holds_a_session(podman_engine: PodmanEngine, podman_base: str, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    session = Session(
        image=podman_base,
        arguments=("sh", "-c", 'test "$A" = b && touch /cache/done && ! touch /root-file && exit 7'),
        environment={"A": "b"},
        writable={tmp_path / "cache": "/cache"},
    )
    assert podman_engine.hold(session) == 7
    assert (tmp_path / "cache" / "done").exists()
