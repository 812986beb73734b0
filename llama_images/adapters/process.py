"""Starts programs. No other module of this package does."""

from __future__ import annotations

import codecs
import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, BinaryIO, Final

from llama_images.errors import OutsideError, TimedOut
from llama_images.ports import Finished

_CHUNK: Final = 65536

_INSTALLED_BY: Final[Mapping[str, str]] = {
    "cc": "apt-get install gcc libc6-dev",
    "docker": "apt-get install docker.io, or ./bootstrap",
    "docker-registry": "apt-get install docker-registry",
    "git": "apt-get install git",
    "mmdebstrap": "apt-get install mmdebstrap",
    "podman": "apt-get install podman",
}


def installation_hint(program: str) -> str:
    """How ``program`` usually comes onto a Debian or Ubuntu machine, as one sentence."""
    known = _INSTALLED_BY.get(program)
    if known is None:
        return f"Install {program} and put it on PATH."
    return f"Install {program} ({known}) and put it on PATH."


class LineSplitter:
    """Cuts a stream of bytes into lines at ``\\n``, ``\\r`` and ``\\r\\n``.

    Progress bars end their lines with ``\\r``, so both ends count. Bytes that are not UTF-8 are replaced; a
    character cut in two by the pipe is put together again.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._after_return = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes, without their ends."""
        return self._cut(self._decoder.decode(data))

    def close(self) -> list[str]:
        """What is left when the stream ends: one line, or none."""
        lines = self._cut(self._decoder.decode(b"", final=True))
        if self._rest:
            lines.append(self._rest)
            self._rest = ""
        return lines

    def _cut(self, text: str) -> list[str]:
        lines: list[str] = []
        if self._after_return and text:
            # The "\n" of a "\r\n" that fell on the border of two chunks ends no second line.
            text = text.removeprefix("\n")
            self._after_return = False
        if not text:
            return lines
        self._after_return = text.endswith("\r")
        # str.splitlines would also cut at form feeds and the Unicode separators, which compilers may print.
        pieces = (self._rest + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = pieces.pop()
        lines.extend(pieces)
        return lines


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Within the context, SIGTERM and SIGHUP raise KeyboardInterrupt, so what was started is also ended then.

    A child runs in a session of its own: a closed terminal or a cancelled CI job reaches only this process.
    Handlers that somebody else has set are left alone, and so are threads other than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    changed: list[signal.Signals] = []
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                changed.append(number)
                signal.signal(number, interrupt)
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _interrupt_left_to_child() -> Iterator[None]:
    """Within the context, SIGINT does nothing to this process.

    By a handler, which a child does not inherit as it would an ignored signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def hand_over(argv: Sequence[str], *, env: Mapping[str, str] | None = None, grace: float = 10.0) -> int:
    """Let a program have this process's terminal and streams, and return its exit code.

    It stays in this process's group: the terminal sends Ctrl-C to both, and only the program heeds it. Where
    this process is told to end, so is the program, which gets ``grace`` seconds. Raises OutsideError where
    the program can't start.
    """
    with termination_as_interrupt(), _interrupt_left_to_child():
        try:
            child = subprocess.Popen(argv, env={**os.environ, **(env or {})})
        except OSError as error:
            raise OutsideError(f"{argv[0]} can't start: {error.strerror or error}") from error
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(grace)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise


class SystemPrograms:
    """The programs of this machine; implements ``ports.Programs``.

    ``environ`` replaces this process's environment, for tests. ``grace`` is how many seconds a program gets
    to end by itself after each of SIGINT and SIGTERM.
    """

    def __init__(self, *, environ: Mapping[str, str] | None = None, grace: float = 10.0) -> None:
        self._environ = environ
        self._grace = grace

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment that programs start from."""
        return os.environ if self._environ is None else self._environ

    def find(self, name: str) -> tuple[Path, ...]:
        """Every executable of that name on PATH, in order, links to one file counted once."""
        found: dict[Path, Path] = {}
        for folder in self.environ.get("PATH", os.defpath).split(os.pathsep):
            if not folder:
                continue  # an empty entry means the current folder: nothing there is meant
            candidate = Path(folder) / name
            if candidate.is_file() and os.access(candidate, os.X_OK):
                found.setdefault(candidate.resolve(), candidate)
        return tuple(found.values())

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
        log: Path | None = None,
    ) -> Finished:
        """Run to the end and return the result, whatever its exit code; see ``ports.Programs.run``.

        The program runs without a terminal, in a session of its own: it can't wait for a passphrase. Neither
        the log nor an error repeats the arguments, since they may hold secrets. Raises OutsideError where the
        program is missing, outlives ``timeout`` seconds, or the log can't be written.
        """
        words = tuple(argv)
        with contextlib.ExitStack() as stack:
            stack.enter_context(termination_as_interrupt())
            sink = stack.enter_context(_open_log(log)) if log is not None else None
            child = self._start(words, cwd=cwd, env=env, has_stdin=stdin is not None)
            run = _Run(child, name=Path(words[0]).name, on_line=on_line, sink=sink, log=log)
            try:
                run.begin(stdin)
                run.follow(timeout)
            except BaseException:
                # Also for an error in on_line: nothing that this call started may outlive it.
                run.end(self._grace)
                raise
            return Finished(argv=words, returncode=run.returncode, stdout=run.stdout, stderr=run.stderr)

    def _start(
        self,
        argv: tuple[str, ...],
        *,
        cwd: Path | None,
        env: Mapping[str, str] | None,
        has_stdin: bool,
        output: int | BinaryIO = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:
        name = Path(argv[0]).name
        if cwd is not None and not cwd.is_dir():
            raise OutsideError(f"{name} can't start: its working folder {cwd} does not exist")
        try:
            return subprocess.Popen(
                argv,
                cwd=cwd,
                env={**self.environ, **(env or {})},
                stdin=subprocess.PIPE if has_stdin else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                bufsize=0,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            if os.sep in argv[0]:
                raise OutsideError(f"{argv[0]} does not exist", hint=installation_hint(name)) from error
            raise OutsideError(f"{name} is not installed", hint=installation_hint(name)) from error
        except PermissionError as error:
            raise OutsideError(f"{argv[0]} is not executable", hint=installation_hint(name)) from error
        except OSError as error:
            raise OutsideError(f"{name} can't start: {error.strerror or error}") from error

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> Started:
        """Start a program that outlives this call, in a session of its own; the caller stops it.

        Both of its streams go to ``log``, or nowhere. Raises OutsideError as ``run`` does.
        """
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(_open_log(log)) if log is not None else None
            # The child has its own copy of the log's descriptor.
            output = subprocess.DEVNULL if sink is None else sink
            child = self._start(tuple(argv), cwd=None, env=env, has_stdin=False, output=output)
        return Started(child, grace=self._grace)


class Started:
    """A program that ``SystemPrograms.start`` started."""

    def __init__(self, child: subprocess.Popen[bytes], *, grace: float) -> None:
        self._child = child
        self._grace = grace

    @property
    def pid(self) -> int:
        return self._child.pid

    def poll(self) -> int | None:
        """The exit code, or None while the program runs."""
        return self._child.poll()

    def stop(self) -> None:
        """End the program's process group, by force where it does not end itself. May be called again."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            # Once the leader has been waited for, its number may belong to somebody else's group.
            if self._child.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(self._grace)


@contextlib.contextmanager
def _open_log(path: Path) -> Iterator[BinaryIO]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise OutsideError(f"the log {path} can't be written: {error.strerror or error}") from error
    with file:
        yield file


class _Run:
    """One started program: threads that read it, and the main thread's side of that."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        *,
        name: str,
        on_line: Callable[[str], None] | None,
        sink: BinaryIO | None,
        log: Path | None,
    ) -> None:
        self._child = child
        self._name = name
        self._on_line = on_line
        self._sink = sink
        self._log = log
        self._chunks: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._collected: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._splitters = (LineSplitter(), LineSplitter())
        self._open = {0, 1}

    @property
    def returncode(self) -> int:
        """The exit code, or minus the number of the signal that ended the program."""
        return self._child.wait()

    @property
    def stdout(self) -> bytes:
        return bytes(self._collected[0])

    @property
    def stderr(self) -> bytes:
        return bytes(self._collected[1])

    def begin(self, stdin: bytes | None) -> None:
        # Threads only move bytes; lines and the log are handled by the caller's thread, so on_line needs no
        # lock and may raise.
        for index, stream in ((0, self._child.stdout), (1, self._child.stderr)):
            assert stream is not None
            threading.Thread(target=self._read, args=(index, stream), daemon=True).start()
        if stdin is not None:
            threading.Thread(target=self._write, args=(stdin,), daemon=True).start()

    def follow(self, timeout: float | None) -> None:
        """Handle output until the program has ended and both streams are read."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ended_at: float | None = None
        while self._open:
            try:
                index, data = self._chunks.get(timeout=0.2)
            except queue.Empty:
                if ended_at is None and self._child.poll() is not None:
                    ended_at = time.monotonic()
                # Something that the program left in the background may hold the pipes for ever.
                if ended_at is not None and time.monotonic() - ended_at > 1.0:
                    break
            else:
                self._handle(index, data)
            if deadline is not None and time.monotonic() > deadline and self._child.poll() is None:
                raise TimedOut(f"{self._name} did not end within {timeout:g} seconds and was stopped")
        for index in sorted(self._open):
            self._finish_stream(index)
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            self._child.wait(remaining)
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"{self._name} did not end within {timeout:g} seconds and was stopped") from error

    def end(self, grace: float) -> None:
        """End the process group: SIGINT, then SIGTERM, then SIGKILL, each given ``grace`` seconds."""
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                if not self._signal(number) or self._gone_within(grace):
                    break
        except KeyboardInterrupt:
            pass  # a second Ctrl-C: don't be polite any longer
        finally:
            self._signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(5)
        self._on_line = None
        with contextlib.suppress(queue.Empty, OutsideError):
            while self._open:
                self._handle(*self._chunks.get(timeout=0.2))

    def _signal(self, number: signal.Signals) -> bool:
        try:
            os.killpg(self._child.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        leader_gone_at: float | None = None
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                try:
                    os.killpg(self._child.pid, 0)
                except (ProcessLookupError, PermissionError):
                    return True
                # An init that reaps nothing leaves dead grandchildren in the group: don't wait long for them.
                leader_gone_at = leader_gone_at or time.monotonic()
                if time.monotonic() - leader_gone_at > 1.0:
                    return False
            time.sleep(0.02)
        return False

    def _read(self, index: int, stream: IO[bytes]) -> None:
        try:
            while data := stream.read(_CHUNK):
                self._chunks.put((index, data))
        except (OSError, ValueError):
            pass
        finally:
            with contextlib.suppress(OSError):
                stream.close()
            self._chunks.put((index, b""))

    def _write(self, data: bytes) -> None:
        stream = self._child.stdin
        assert stream is not None
        # A program may end, or close its input, before it has read everything: its exit code tells.
        with contextlib.suppress(OSError), stream:
            view = memoryview(data)
            while view:
                written = stream.write(view)
                view = view[written or 0 :]

    def _handle(self, index: int, data: bytes) -> None:
        if not data:
            self._open.discard(index)
            self._finish_stream(index)
            return
        self._collected[index].extend(data)
        if self._sink is not None:
            try:
                view = memoryview(data)
                while view:  # an unbuffered file may take less than it is given
                    view = view[self._sink.write(view) :]
            except OSError as error:
                raise OutsideError(
                    f"the log {self._log} can't be written: {error.strerror or error}"
                ) from error
        for line in self._splitters[index].feed(data):
            if self._on_line is not None:
                self._on_line(line)

    def _finish_stream(self, index: int) -> None:
        for line in self._splitters[index].close():
            if self._on_line is not None:
                self._on_line(line)
