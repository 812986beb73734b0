"""One turn of ``llama-diffusion-cli``: its command, its environment, and what came of it.

Standard output and standard error are read together, in the order in which they come, and times are taken
as progress lines arrive. Every run's raw output is kept in ``logs``.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gpu_proof.cards import visible

FIRST = "0"
BOTH = "0,1"
"""Devices of a turn: places in the campaign's list of cards."""

ON = (
    *("--diffusion-kv-cache", "on"),
    *("--diffusion-gpu-sampling", "on"),
    *("--diffusion-gpu-sample-reduce", "on"),
)
OFF = tuple("off" if word == "on" else word for word in ON)
SHORT = ("-p", "hello", "-n", "256")
ROWS = 16
"""Canvas rows of each step that are dumped and compared."""
CHECKS: Mapping[str, str] = {"DG_SC_CHECK": "1", "DG_DEVSAMPLE_CHECK": "1"}

_LONGEST = 240.0
"""Seconds after which a run is ended as hung."""
_SHORTEST = 30.0
"""Seconds that a run gets, however little time is left."""
_PROGRESS = re.compile(rb"diffusion step: (\d+)/")
_DEVICES = re.compile(r"diffusion_devices: .*")


def long_prompt(digits: int) -> str:
    """A prompt of that many tokens: in the synthetic vocabulary a digit is one token."""
    return "".join(str(number * number % 7919) for number in range(digits))[:digits]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadline:
    """When the campaign must be over, by the monotonic clock."""

    end: float

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What every run of a campaign shares."""

    binaries: Path
    built: Path
    """A file that exists once no more binaries come."""
    model: Path
    """Other models lie beside it."""
    long_prompt: str
    logs: Path
    scratch: Path
    """For dumps."""
    logical: Path | None
    """``logical_gpus.so``, where two devices are made of one card."""
    at_once: int
    """Runs that share the GPUs, where they are not timed."""
    deadline: Deadline
    cards: Sequence[str] = ("0", "1")
    """The cards, as ``CUDA_VISIBLE_DEVICES`` has them; one is enough where two devices are made of it."""
    extra: bool = False
    """Whether the builds with one patch more are run; those of an earlier campaign may still be there."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set to end every run."""

    def dump(self, name: str) -> Path:
        """Where the run of that name writes its logits."""
        return self.scratch / f"{name}.logits"

    def wait_until_built(self, *, keep: float) -> None:
        """Wait for the compiler's end, at most until ``keep`` seconds are left."""
        while not self.built.exists() and self.deadline.left() > keep:
            time.sleep(0.5)

    def find(self, binary: str) -> Path | None:
        """A binary, as soon as it is built; None where it does not come in time."""
        path = self.binaries / binary
        while True:
            # Asked before the look, so that a binary that comes with the end is not missed.
            last = self.built.exists() or self.deadline.left() < 20 or self.stop.is_set()
            if path.exists():
                return path
            if last:
                return None
            time.sleep(0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One run to be made."""

    name: str
    """Of its log and its dump."""
    binary: str
    options: Sequence[str]
    gpus: str = BOTH
    env: Mapping[str, str] = field(default_factory=dict)
    steps: int = 12
    """Most denoising steps of a block."""
    model: str | None = None
    """File name of another model."""
    gpu_layers: int = 99
    dumps: bool = False
    """Whether it writes its logits, which needs a binary that can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """What came of a turn."""

    name: str
    exit_code: int | None
    """None: it was not started; ``output`` says why."""
    stamps: Sequence[tuple[int, float]] = ()
    """Step within its block, and the second by the monotonic clock at which its progress line came."""
    output: bytes = b""
    killed: bool = False
    """It took too long, or the campaign was ended."""

    @property
    def text(self) -> str:
        return self.output.decode("utf-8", "replace").replace("\r", "\n")

    @property
    def reply(self) -> str | None:
        """What stands between the last progress line and the turn's total; None where it did not end."""
        text = self.text
        start = text.find("\n", text.rfind("diffusion step:"))
        end = text.find("total time: ")
        return (text[start + 1 : end] or None) if 0 <= start < end else None

    @property
    def digest(self) -> str | None:
        """Of the reply. Comparable with those in ``results/``."""
        reply = self.reply
        return None if reply is None else hashlib.sha256(reply.encode()).hexdigest()[:16]

    @property
    def devices(self) -> str | None:
        """The series' start-up line; the pin prints none."""
        found = _DEVICES.search(self.text)
        return None if found is None else found[0]


class ProgressStamps:
    """Finds the progress lines of an output that comes in pieces."""

    def __init__(self) -> None:
        self.stamps: list[tuple[int, float]] = []
        self._tail = b""

    def feed(self, piece: bytes, now: float) -> None:
        """A further piece of the output, which came at the time ``now``."""
        self._tail += piece
        end = 0
        for match in _PROGRESS.finditer(self._tail):
            self.stamps.append((int(match[1]), now))
            end = match.end()
        self._tail = self._tail[max(end, len(self._tail) - 64) :]


def command(turn: Turn, binary: Path, bench: Bench) -> list[str]:
    """The turn's argument list."""
    model = bench.model.with_name(turn.model) if turn.model else bench.model
    return [
        *(str(binary), "-m", str(model), "--seed", "1", "--diffusion-eb-max-steps", str(turn.steps)),
        *turn.options,
        *("-ngl", str(turn.gpu_layers)),
    ]


def environment(turn: Turn, bench: Bench) -> dict[str, str]:
    """What the turn adds to the environment."""
    two_of_one = bench.logical is not None and turn.gpus == BOTH
    gpus = visible(FIRST if two_of_one else turn.gpus, bench.cards)
    added = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpus, **turn.env}
    if turn.dumps:
        added |= {"DG_DUMP_LOGITS": str(bench.dump(turn.name)), "DG_DUMP_ROWS": str(ROWS)}
    if two_of_one:
        added |= {"LOGICAL_GPUS": "2", "LD_PRELOAD": str(bench.logical)}
    return added


def run(turn: Turn, bench: Bench) -> Ran:
    """Make one turn. A run that hangs is killed: after 240 s, or when the time is up and it had 30 s."""
    if bench.deadline.left() < 0 or bench.stop.is_set():
        return Ran(name=turn.name, exit_code=None, output=b"no time")
    binary = bench.find(turn.binary)
    if binary is None:
        return Ran(name=turn.name, exit_code=None, output=f"no binary {turn.binary}".encode())
    argv, added = command(turn, binary, bench), environment(turn, bench)
    bench.dump(turn.name).unlink(missing_ok=True)  # it is appended to
    began = time.monotonic()
    last = max(began + _SHORTEST, min(began + _LONGEST, bench.deadline.end))
    progress, output, killed = ProgressStamps(), bytearray(), False
    with (bench.logs / f"{turn.name}.log").open("wb") as log:
        words = [f"{name}={value}" for name, value in added.items()]
        words += [word if len(word) < 60 else f"{word[:57]}..." for word in argv]
        log.write(f"$ {' '.join(words)}\n".encode())
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **added},
        )
        with child:
            assert child.stdout is not None
            pipe = child.stdout.fileno()
            try:
                while True:
                    ready, _, _ = select.select([pipe], [], [], 0.25)
                    now = time.monotonic()
                    if now > last or bench.stop.is_set():
                        child.kill()
                        killed = True
                    if not ready:
                        continue
                    piece = os.read(pipe, 1 << 16)
                    if not piece:
                        break
                    progress.feed(piece, now)
                    output += piece
                    log.write(piece)
            except BaseException:
                child.kill()
                raise
        log.write(f"\n[exit code {child.returncode}, {time.monotonic() - began:.1f} s]\n".encode())
    return Ran(
        name=turn.name,
        exit_code=child.returncode,
        stamps=tuple(progress.stamps),
        output=bytes(output),
        killed=killed,
    )


def together(turns: Sequence[Turn], bench: Bench, *, at_once: int) -> dict[str, Ran]:
    """Make turns that share the GPUs, at most ``at_once`` at a time; results by name, in the turns' order."""
    with ThreadPoolExecutor(min(at_once, bench.at_once)) as pool:
        waiting = [pool.submit(run, turn, bench) for turn in turns]
        try:
            return {ran.name: ran for ran in [future.result() for future in waiting]}
        except BaseException:
            bench.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
