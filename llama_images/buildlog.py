"""What a container engine's build output means: steps, progress, compiler cache, and the failing step.

Reads what BuildKit prints with ``--progress=plain`` (Docker 20.10's own builder and buildx) and what buildah
prints (``podman build``). Pure: lines in, values out; no line makes it raise.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

LAST_LINES: Final = 15
"""How many lines of a failing step are kept for the error."""

_KEPT: Final = 60
_FIRST_ERROR_LINES: Final = 5
_WIDTH: Final = 300

_VERTEX = re.compile(r"#(\d+) (.*)")
_TIMED_TEXT = re.compile(r"(\d+\.\d+)(?: (.*))?")
_DONE = re.compile(r"DONE (\d+(?:\.\d+)?)s")
_NAMED_STEP = re.compile(r"\[ *(?:[a-z0-9]+/[a-z0-9/]+ +)?(?:([^\]\s]+) +)?(\d+)/(\d+)\] .*")
_BUILDAH_STEP = re.compile(r"(?:\[(\d+)/(\d+)\] )?STEP (\d+)/(\d+): (.*)")
_BUILDAH_COMMIT = re.compile(r"(?:\[\d+/\d+\] )?COMMIT\b")
_BUILDAH_RESULT = re.compile(r"--> (?:Using cache )?[0-9a-f]{10,64}")
_STAGE_NAME = re.compile(r"FROM\b.*\sAS\s+(\S+)\s*", re.IGNORECASE)
_HEX_ID = re.compile(r"[0-9a-f]{64}")
_WRITTEN_IMAGE = re.compile(r"(?:writing image|exporting (?:manifest|config)) (sha256:[0-9a-f]{64})")
_NINJA = re.compile(r"\[(\d{1,9})/(\d{1,9})\] (.*)")
_MAKE = re.compile(r"\[ *(\d{1,3})%\] (.*)")
_OBJECT = re.compile(r"Building \w+ object ")
_MARKER = re.compile(r"llama-images: (\S+) ?(.*)")
_PACKAGE = re.compile(r"(?:llama-images: unpack|Collecting|Downloading) (\S+)")
_PACKAGE_VERSION = re.compile(r"[-=<>!~]+\d")
_PAIR = re.compile(r"(\w+)=(\d{1,15})")
_EXIT_CODE = re.compile(r"exit (?:code:|status) (\d{1,3})")
_DISK_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_KILLED = re.compile(
    r"Killed signal terminated program|internal compiler error: Killed|died due to signal 9|"
    r"exit (?:code:|status) 137\b|signal: killed|virtual memory exhausted|out of memory allocating",
)
_UNREACHABLE = re.compile(
    r"cannot connect to the docker daemon|failed to dial grpc|error reading from server: EOF|"
    r"code = Unavailable|error during connect|unable to connect to podman",
    re.IGNORECASE,
)
_REPORTED = re.compile(r"CMake Error\b|\b(?:fatal )?error: |undefined reference to |^FAILED: ")
_ERROR_START = re.compile(r"(?:ERROR|Error|error|failed to \w+|executor failed)\b")


class Step(NamedTuple):
    """One step of a build that did something or was found in the cache."""

    name: str
    """As the engine prints it, "[build 3/7] RUN cmake …"."""
    seconds: float
    cached: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CcacheStats:
    """What ccache counted while this build compiled."""

    direct_hits: int
    preprocessed_hits: int
    misses: int
    uncacheable: int = 0
    """Compilations that ccache passed on to the compiler."""

    @property
    def hits(self) -> int:
        return self.direct_hits + self.preprocessed_hits

    @property
    def total(self) -> int:
        """Compilations that ccache was asked for."""
        return self.hits + self.misses + self.uncacheable

    @property
    def rate(self) -> float:
        """Share of compilations served from the cache, 0 to 1; 0 where nothing was compiled."""
        return self.hits / self.total if self.total else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSummary:
    """A build that succeeded."""

    steps: tuple[Step, ...]
    ccache: CcacheStats | None
    """None where no step compiled, because the engine had it cached."""
    files_compiled: int
    """Object files that the build tool made, whether by the compiler or from ccache."""
    jobs: int | None
    """Compilers at once, as the build chose them; None where it did not say."""
    seconds: float
    image_id: str | None
    """The image's identifier as the log gives it, "sha256:…"."""

    @property
    def cached_steps(self) -> int:
        return sum(step.cached for step in self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A build that failed, as far as its output tells."""

    step: str | None
    """The failing step, or None where the build failed before one or outside of any."""
    exit_code: int | None
    last_lines: tuple[str, ...]
    """What the step printed last, without the build tool's progress; or the engine's error."""
    reason: str
    """The engine's own error, one line; empty where there is none."""
    disk_full: bool
    killed: bool
    """The kernel ended a compiler, most likely for want of memory."""
    unreachable: bool
    """The engine stopped answering."""
    clipped: bool
    """The engine left out output that was over its limit."""
    jobs: int | None


@dataclass(slots=True)
class _Step:
    name: str
    stage: str
    number: str
    """"3/7", or empty for the engine's own steps."""
    started_at: float | None = None
    seconds: float = 0.0
    cached: bool = False
    done: bool = False
    internal: bool = False
    detail: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT))
    first_error: list[str] = field(default_factory=list)
    """The first line that reports an error and what follows it; other jobs may still print much."""


class BuildLog:
    """Reads a build's output line by line."""

    def __init__(self) -> None:
        self._steps: dict[str, _Step] = {}
        self._current: _Step | None = None
        self._failed: _Step | None = None
        self._buildah = False
        self._after_steps = False
        self._stage_names: dict[str, str] = {}
        self._errors: deque[str] = deque(maxlen=_KEPT)
        self._other: deque[str] = deque(maxlen=_KEPT)
        self._direct_hits = self._preprocessed_hits = self._misses = self._uncacheable = 0
        self._ccache_seen = False
        self._files_compiled = 0
        self._jobs: int | None = None
        self._image_id: str | None = None
        self._exit_code: int | None = None
        self._disk_full = self._killed = self._unreachable = self._clipped = False

    def feed(self, line: str, *, at: float | None = None) -> None:
        """Read one line without its end.

        ``at`` is the time in seconds, from any starting point; buildah prints no times, so without it its
        steps take 0 seconds.
        """
        self._disk_full = self._disk_full or _DISK_FULL.search(line) is not None
        self._killed = self._killed or _KILLED.search(line) is not None
        self._unreachable = self._unreachable or _UNREACHABLE.search(line) is not None
        self._clipped = self._clipped or "[output clipped, log limit" in line
        step = _BUILDAH_STEP.fullmatch(line)
        if step and (self._buildah or not self._steps):
            self._buildah_step(step, at)
        elif self._buildah:
            self._buildah_line(line, at)
        elif vertex := _VERTEX.fullmatch(line):
            self._after_steps = False
            self._vertex_line(vertex[1], vertex[2])
        else:
            self._bare_line(line)

    def progress(self) -> str:
        """What the build does now: "build: 241/459 files", "toolkit: nvidia-cublas", "build 3/7"."""
        step = self._current
        if step is None:
            return "starting"
        if step.internal:
            return step.detail or "exporting the image"
        if step.detail:
            return f"{step.stage}: {step.detail}" if step.stage else step.detail
        return f"{step.stage} {step.number}".strip()

    def failure(self) -> Failure:
        """Why the build failed; call it after a build whose exit code says so."""
        step = self._failed
        if step is None and self._buildah and self._current is not None:
            step = self._current
        lines = [line for line in step.tail if not _is_progress(line)] if step else []
        reason = self._errors[-1] if self._errors else ""
        last_lines = lines or list(self._errors) or [line for line in self._other if line.strip()]
        return Failure(
            step=_clip(step.name) if step else None,
            exit_code=self._exit_code,
            last_lines=_excerpt(step.first_error if step else [], last_lines),
            reason=reason or (last_lines[-1] if last_lines else ""),
            disk_full=self._disk_full,
            killed=self._killed,
            unreachable=self._unreachable,
            clipped=self._clipped,
            jobs=self._jobs,
        )

    def summary(self, seconds: float) -> BuildSummary:
        """What a build that took ``seconds`` did; call it after one that succeeded."""
        ccache = None
        if self._ccache_seen:
            ccache = CcacheStats(
                direct_hits=self._direct_hits,
                preprocessed_hits=self._preprocessed_hits,
                misses=self._misses,
                uncacheable=self._uncacheable,
            )
        return BuildSummary(
            steps=tuple(
                Step(_clip(step.name), step.seconds, step.cached)
                for step in self._steps.values()
                if not step.internal
            ),
            ccache=ccache,
            files_compiled=self._files_compiled,
            jobs=self._jobs,
            seconds=seconds,
            image_id=self._image_id,
        )

    # --- BuildKit ---

    def _vertex_line(self, key: str, rest: str) -> None:
        step = self._steps.get(key)
        if step is None:
            self._steps[key] = step = _buildkit_step(rest)
            if not step.internal or step.detail:
                self._current = step
            return
        if step.internal and (image := _WRITTEN_IMAGE.match(rest)):
            # The containerd store names the manifest first, and that is what it calls the image's identifier.
            self._image_id = self._image_id or image[1]
        elif rest == "CACHED":
            step.cached = step.done = True
        elif done := _DONE.fullmatch(rest):
            step.seconds += float(done[1])
            step.done = True
            if not step.internal:
                step.detail = ""
        elif rest.startswith("ERROR: "):
            self._failed = self._failed or step
            self._error(rest.removeprefix("ERROR: "))
        elif rest == step.name:
            self._current = step  # the engine names a step anew whenever it comes back to it
        elif timed := _TIMED_TEXT.fullmatch(rest):
            self._text(step, timed[2] or "")

    def _bare_line(self, line: str) -> None:
        if line.startswith("------"):
            self._after_steps = True
        elif self._failed and self._exit_code is None and (codes := _EXIT_CODE.findall(line)):
            self._exit_code = int(codes[-1])  # the end of an error whose command has several lines
        elif _ERROR_START.match(line):
            self._error(re.sub(r"(?i)^error: ", "", line))
        elif self._current is not None and not self._after_steps and _is_progress(line):
            # The second half of a line that held a carriage return.
            self._text(self._current, line)
        elif not self._after_steps:
            self._other.append(line[:_WIDTH])
            if _HEX_ID.fullmatch(line):
                self._image_id = f"sha256:{line}"

    # --- buildah ---

    def _buildah_step(self, match: re.Match[str], at: float | None) -> None:
        stage, stages, number, count, text = match.groups()
        self._finish_buildah_step(at)
        self._buildah = True
        stage_key = stage or "1"
        if named := _STAGE_NAME.fullmatch(text):
            self._stage_names[stage_key] = named[1]
        name = self._stage_names.get(stage_key, f"stage-{int(stage_key) - 1}" if stages else "")
        label = f"{name} {number}/{count}".strip()
        step = _Step(name=f"[{label}] {text}", stage=name, number=f"{number}/{count}", started_at=at)
        self._steps[f"{stage_key}:{number}"] = step
        self._current = step

    def _buildah_line(self, line: str, at: float | None) -> None:
        step = self._current
        if line.startswith("--> Using cache ") and step is not None:
            step.cached = True
        elif _BUILDAH_RESULT.fullmatch(line) or _BUILDAH_COMMIT.match(line):
            self._finish_buildah_step(at)
        elif _HEX_ID.fullmatch(line):
            self._image_id = f"sha256:{line}"
        elif line.startswith("Successfully tagged "):
            pass
        elif line.startswith(("Error: ", "error building ")):
            self._error(line.removeprefix("Error: "))
        elif step is not None:
            self._text(step, line)

    def _finish_buildah_step(self, at: float | None) -> None:
        step = self._current
        if step is None or step.done:
            return
        step.done = True
        if at is not None and step.started_at is not None:
            step.seconds = max(0.0, at - step.started_at)

    # --- both ---

    def _text(self, step: _Step, text: str) -> None:
        step.tail.append(_clip(text))
        wanted = step.first_error or _REPORTED.search(text)
        if wanted and len(step.first_error) < _FIRST_ERROR_LINES:
            step.first_error.append(_clip(text))
        self._current = step
        if ninja := _NINJA.match(text):
            step.detail = f"{ninja[1]}/{ninja[2]} files"
            self._files_compiled += _OBJECT.match(ninja[3]) is not None
        elif make := _MAKE.match(text):
            step.detail = f"{make[1]} %"
            self._files_compiled += _OBJECT.match(make[2]) is not None
        elif package := _PACKAGE.match(text):
            step.detail = _PACKAGE_VERSION.split(package[1])[0].replace("_", "-")[:60]
        elif marker := _MARKER.match(text):
            self._marker(step, marker[1], marker[2])

    def _marker(self, step: _Step, word: str, rest: str) -> None:
        if word == "ccache":
            counts = {name: int(count) for name, count in _PAIR.findall(rest)}
            if not counts.keys() >= {"direct_cache_hit", "cache_miss"}:
                return
            # A build may compile in more than one step.
            self._ccache_seen = True
            self._direct_hits += counts["direct_cache_hit"]
            self._preprocessed_hits += counts.get("preprocessed_cache_hit", 0)
            self._misses += counts["cache_miss"]
            self._uncacheable += counts.get("uncacheable", 0)
        elif jobs := re.fullmatch(r"jobs=(\d{1,6})", word):
            self._jobs = int(jobs[1])
        else:
            step.detail = _clip(f"{word} {rest}".strip().removeprefix(f"{step.stage} "))[:60]

    def _error(self, text: str) -> None:
        self._errors.append(_clip(text))
        # The command itself may hold such words: the engine's verdict comes last.
        if codes := _EXIT_CODE.findall(text):
            self._exit_code = int(codes[-1])


def _excerpt(first_error: Sequence[str], last_lines: Sequence[str]) -> tuple[str, ...]:
    """The last lines, headed by the first error where they no longer hold it."""
    last = tuple(last_lines[-LAST_LINES:])
    if not first_error or first_error[0] in last:
        return last
    shown = tuple(line for line in first_error if not _is_progress(line))
    return (*shown, "…", *last[len(shown) + 1 :])


def _buildkit_step(name: str) -> _Step:
    match = _NAMED_STEP.fullmatch(name)
    if match is None:
        exporting = name.startswith("exporting")
        return _Step(
            name=name, stage="", number="", internal=True, detail="exporting the image" if exporting else ""
        )
    return _Step(name=name, stage=match[1] or "", number=f"{match[2]}/{match[3]}")


def _is_progress(line: str) -> bool:
    return _NINJA.match(line) is not None or _MAKE.match(line) is not None


def _clip(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
