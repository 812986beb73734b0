"""Real programs: what they print, how they end, and what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llama_images.adapters.process import SystemPrograms
from llama_images.errors import OutsideError

PROGRAMS = SystemPrograms(grace=1.0)
PYTHON = sys.executable


def is_alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def test_both_streams_and_exit_code() -> None:
    finished = PROGRAMS.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (finished.returncode, finished.stdout, finished.stderr) == (7, b"out\n", b"err\n")
    assert finished.text == "out\n"


def test_large_input_and_large_output_on_both_streams_do_not_lock_up() -> None:
    """Each is far larger than a pipe holds, and the program reads its input last."""
    program = (
        "import sys; sys.stderr.write('e' * 3_000_000); sys.stdout.write('o' * 3_000_000);"
        "sys.stdout.write(str(len(sys.stdin.buffer.read())))"
    )
    finished = PROGRAMS.run([PYTHON, "-c", program], stdin=b"x" * 3_000_000, timeout=60)
    assert finished.stdout == b"o" * 3_000_000 + b"3000000"
    assert len(finished.stderr) == 3_000_000


def test_program_that_ignores_its_input() -> None:
    assert PROGRAMS.run(["true"], stdin=b"x" * 3_000_000, timeout=60).returncode == 0


def test_lines_come_while_the_program_runs() -> None:
    seen: list[tuple[str, float]] = []
    started = time.monotonic()
    PROGRAMS.run(
        ["sh", "-c", "printf '10%%\\r'; sleep 1; printf 'done\\r\\n'; echo err >&2"],
        on_line=lambda line: seen.append((line, time.monotonic() - started)),
    )
    assert sorted(line for line, _ in seen) == ["10%", "done", "err"]
    times = dict(seen)
    assert times["done"] - times["10%"] > 0.5


def test_log_holds_the_same_bytes_and_no_argument(tmp_path: Path) -> None:
    log = tmp_path / "logs/build.log"
    finished = PROGRAMS.run(["sh", "-c", "printf 'a\\377\\r'; exit 3", "hunter2"], log=log)
    assert finished.returncode == 3
    assert log.read_bytes() == b"a\xff\r"


def test_log_grows_while_the_program_runs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sizes: list[int] = []
    PROGRAMS.run(
        ["sh", "-c", "echo one; sleep 0.3; echo two"],
        log=log,
        on_line=lambda _: sizes.append(log.stat().st_size),
    )
    assert sizes == [4, 8]


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutsideError, match=r"the log .*file/log can't be written"):
        PROGRAMS.run(["true"], log=tmp_path / "file" / "log")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_under_the_log() -> None:
    with pytest.raises(OutsideError, match="No space left on device"):
        PROGRAMS.run(["echo", "text"], log=Path("/dev/full"))


def test_environment_is_added_to() -> None:
    programs = SystemPrograms(environ={"PATH": os.environ["PATH"], "KEPT": "1", "CHANGED": "1"})
    finished = programs.run(["env"], env={"CHANGED": "2", "NEW": "3"})
    assert {"KEPT=1", "CHANGED=2", "NEW=3"} <= set(finished.text.splitlines())
    assert "LC_ALL" not in finished.text


def test_working_folder(tmp_path: Path) -> None:
    assert PROGRAMS.run(["pwd", "-P"], cwd=tmp_path).text.strip() == str(tmp_path.resolve())
    with pytest.raises(
        OutsideError, match=f"pwd can't start: its working folder {tmp_path}/no does not exist"
    ):
        PROGRAMS.run(["pwd"], cwd=tmp_path / "no")


def test_missing_program() -> None:
    programs = SystemPrograms(environ={"PATH": "/nonexistent"})
    with pytest.raises(OutsideError, match="git is not installed") as caught:
        programs.run(["git", "--version"])
    assert caught.value.hint is not None
    assert "apt-get install git" in caught.value.hint


def test_program_that_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("text")
    with pytest.raises(OutsideError, match="tool is not executable"):
        PROGRAMS.run([str(tmp_path / "tool")])
    with pytest.raises(OutsideError, match="missing does not exist"):
        PROGRAMS.run([str(tmp_path / "missing")])


def test_no_shell_reads_the_arguments() -> None:
    assert PROGRAMS.run(["echo", "$HOME; false", "*"]).text == "$HOME; false *\n"


def test_time_out_ends_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' INT TERM; sleep 300 & echo $$ $! > {pids}; wait"
    started = time.monotonic()
    with pytest.raises(OutsideError, match="sh did not end within 1 seconds and was stopped"):
        PROGRAMS.run(["sh", "-c", script], timeout=1)
    assert time.monotonic() - started < 10
    shell, sleep = map(int, pids.read_text().split())
    assert wait_until_gone(shell)
    assert wait_until_gone(sleep)


def test_error_in_on_line_ends_the_program(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def refuse(line: str) -> None:
        pid.write_text(line)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        PROGRAMS.run(["sh", "-c", "echo $$; exec sleep 300"], on_line=refuse)
    assert wait_until_gone(int(pid.read_text()))


def test_a_program_left_in_the_background_holds_nobody_up(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    started = time.monotonic()
    finished = PROGRAMS.run(["sh", "-c", f"sleep 300 & echo $! > {pid}; echo done"])
    try:
        assert finished.text == "done\n"
        assert time.monotonic() - started < 10
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_program_and_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    """The child is polite: it ends on SIGINT alone, and its last words reach the log."""
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from llama_images.adapters.process import SystemPrograms

        child = "trap 'echo last words; exit 0' INT; echo $$; while :; do sleep 0.05; done"
        try:
            log = Path({str(tmp_path / "log")!r})
            SystemPrograms().run(["sh", "-c", child], on_line=lambda line: print(line, flush=True), log=log)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            raise SystemExit(130)
        """
    )
    with subprocess.Popen([PYTHON, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.send_signal(number)
        assert parent.stdout.read() == "interrupted\n"
        assert parent.wait(30) == 130
    assert wait_until_gone(child)
    assert (tmp_path / "log").read_text() == f"{child}\nlast words\n"
