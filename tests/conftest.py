"""What every test gets: a guard around the unit tests, honest skips, and a closing list of what was left out.

A test says by a marker what it needs (``engine``, ``gpu``, ``source``). Where the need is not met it is
skipped with the reason; ``--require-engine``, ``--require-gpu`` and ``--require-source`` turn that skip into
a failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path

import platformdirs
import pytest

TESTS = Path(__file__).resolve().parent

# --- the guard ------------------------------------------------------------------------------------

GUARDED_FOLDERS = ("unit", "rendered")
"""Tests below these may start no process and open no socket."""

FORBIDDEN_EVENTS = {
    "os.exec": "replaced the process",
    "os.fork": "forked",
    "os.forkpty": "forked",
    "os.posix_spawn": "started a process",
    "os.startfile": "started a process",
    "os.system": "started a process",
    "pty.spawn": "started a process",
    "socket.__new__": "opened a socket",
    "socket.getaddrinfo": "asked for a host's address",
    "subprocess.Popen": "started a process",
}
"""Audit events of the interpreter (the "Audit events table" of the library reference), in words."""


class _Guard:
    """What the running test did that it may not do; ``None`` while no guarded test runs."""

    def __init__(self) -> None:
        self.offences: list[str] | None = None

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.offences is None or event not in FORBIDDEN_EVENTS:
            return
        offence = f"a unit test {FORBIDDEN_EVENTS[event]} ({event} {arguments[:2]!r})"
        self.offences.append(offence)
        # Derives from BaseException, so `except Exception` in the code under test does not hide it.
        raise pytest.fail.Exception(offence, pytrace=True)


_guard = _Guard()
# An audit hook sees what patched names miss: `from subprocess import run` and C code. It can't be removed.
sys.addaudithook(_guard.audit)


def _is_below(path: Path, *folders: str) -> bool:
    return any(path.is_relative_to(TESTS / folder) for folder in folders)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    # Around the whole test, so that fixtures of every scope are guarded too.
    _guard.offences = [] if _is_below(item.path, *GUARDED_FOLDERS) else None
    try:
        return (yield)
    finally:
        _guard.offences = None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None:
        # The session ends within its last test; other folders' fixtures clean up here.
        _guard.offences = None


# --- what a test needs ----------------------------------------------------------------------------


@cache
def _missing_engine(name: str = "docker") -> str | None:
    if name == "docker":
        import docker
        import docker.errors

        try:
            with contextlib.closing(docker.from_env(timeout=5)) as client:
                client.ping()
        except (docker.errors.DockerException, OSError):
            return "no container engine answers"
        return None
    program = shutil.which(name)
    if program is None:
        return f"{name} is not installed"
    finished = subprocess.run([program, "info"], capture_output=True, timeout=60, check=False)
    return None if finished.returncode == 0 else f"{name} is installed but does not work"


@cache
def _missing_gpu() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return "no NVIDIA GPU or driver"
    return None if count else "no NVIDIA GPU"


@cache
def _missing_source() -> str | None:
    from llama_images.matrix import load_matrix

    if os.environ.get("LLAMA_CPP_REPO"):
        return None  # a clone that can't be read is an error of the test that reads it, not a reason to skip
    git = shutil.which("git")
    if git is None:
        return "git is not installed"
    matrix = load_matrix(TESTS.parent / "matrix.yaml")
    source = matrix.sources[matrix.defaults.source]
    quiet = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    for store in sorted((_cache_folder() / "source").glob("*.git")):
        holds = [git, "--git-dir", str(store), "cat-file", "-e", f"{source.commit}^{{commit}}"]
        # A partial clone must say what it has without asking its remote.
        local = quiet | {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
        if subprocess.run(holds, capture_output=True, env=local, check=False).returncode == 0:
            return None
    asks = [git, "ls-remote", "--exit-code", source.repository, source.ref]
    with contextlib.suppress(subprocess.TimeoutExpired):
        if subprocess.run(asks, capture_output=True, env=quiet, timeout=15, check=False).returncode == 0:
            return None
    return "upstream can't be reached and LLAMA_CPP_REPO names no clone"


def _cache_folder() -> Path:
    return Path(os.environ.get("LLAMA_IMAGES_CACHE") or platformdirs.user_cache_dir("llama-images"))


NEEDS: dict[str, Callable[..., str | None]] = {
    "engine": _missing_engine,
    "source": _missing_source,
    "gpu": _missing_gpu,
}
"""Marker to a function that says what is missing, or ``None``; it gets the marker's arguments.

``engine("podman")`` is about one engine by name. ``--require-engine`` asks for an engine, not for that one.
"""

FOLDERS = {"engine": "engine", "gpu": "gpu", "patches": "source"}
"""Folder to the need of every file in it, for files that skip as a whole."""

UNMET = "left out for want of"
"""Key of the user property that carries the need; properties reach the summary under xdist too."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("llama-images")
    for need in NEEDS:
        group.addoption(
            f"--require-{need}",
            action="store_true",
            help=f"fail, not skip, where a test marked {need!r} finds none",
        )


def _is_required(config: pytest.Config, need: str) -> bool:
    return bool(config.getoption(f"--require-{need}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for need, missing in NEEDS.items():
        for marker in item.iter_markers(need):
            reason = missing(*marker.args)
            if reason is None:
                continue
            if _is_required(item.config, need) and not marker.args:
                pytest.fail(f"--require-{need}: {reason}", pytrace=False)
            item.user_properties.append((UNMET, need))
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _guard.offences:
        if report.passed:
            report.outcome = "failed"
            report.longrepr = f"{_guard.offences[0]}, and the code under test hid the error"
        _guard.offences.clear()
    if report.skipped and not hasattr(report, "wasxfail") and UNMET not in dict(report.user_properties):
        # The test skipped itself; under --require-… only a missing need of another kind, told above, may.
        for need in NEEDS:
            if _is_required(item.config, need) and any(not mark.args for mark in item.iter_markers(need)):
                report.outcome = "failed"
                report.longrepr = f"--require-{need}: {_reason(report)}"
                break
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    for folder, need in FOLDERS.items():
        if report.skipped and _is_below(collector.path, folder) and _is_required(collector.config, need):
            report.outcome = "failed"
            report.longrepr = f"--require-{need}: {_reason(report)}"
    return report


# --- the closing list -----------------------------------------------------------------------------


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    groups: Counter[tuple[str, str]] = Counter()
    for report in terminalreporter.getreports("skipped"):
        need = dict(getattr(report, "user_properties", ())).get(UNMET)
        what = "file" if isinstance(report, pytest.CollectReport) else "test"
        groups[f"{need} {what}" if need else what, _reason(report)] += 1
    if not groups:
        return
    terminalreporter.ensure_newline()
    for (kind, reason), count in sorted(groups.items(), key=lambda group: (-group[1], group[0])):
        terminalreporter.line(f"left out: {count} {kind}{'' if count == 1 else 's'}: {reason}")
