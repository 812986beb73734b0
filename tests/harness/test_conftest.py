"""The test suite's own rules, tried in small suites of their own: the guard, the skips, the closing list."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

INI = """
[pytest]
addopts = --strict-markers -p no:cacheprovider
markers =
    engine
    gpu
    source
"""


def run_suite(folder: Path, files: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on files given by their path below ``tests/``, with this project's conftest."""
    tests = folder / "tests"
    tests.mkdir()
    shutil.copy(TESTS / "conftest.py", tests)
    (folder / "pytest.ini").write_text(INI)
    for name, text in files.items():
        path = tests / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "tests", *options]
    # An engine that does not answer, whatever this machine has.
    env = os.environ | {"DOCKER_HOST": "unix:///nonexistent/docker.sock", "COLUMNS": "300"}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )


OFFENCES = """
import os, socket, subprocess, pytest

def test_run(): subprocess.run(["true"])
def test_system(): os.system("true")
def test_fork(): os.fork()
def test_socket(): socket.socket()
def test_address(): socket.getaddrinfo("localhost", 80)

def test_hidden():
    try:
        subprocess.run(["true"])
    except Exception:
        pass

def test_well_hidden():
    try:
        subprocess.run(["true"])
    except BaseException:
        pass

@pytest.fixture(scope="session")
def started(): return subprocess.run(["true"])

def test_fixture(started): pass
"""


@pytest.mark.parametrize("folder", ["unit", "rendered"])
def test_a_unit_test_starts_no_process_and_opens_no_socket(tmp_path: Path, folder: str) -> None:
    done = run_suite(tmp_path, {f"{folder}/test_it.py": OFFENCES}, "-rfE")
    assert done.stdout.splitlines()[-1].startswith("7 failed, 1 error"), done.stdout
    found = dict(re.findall(r"^(?:FAILED|ERROR) \S+::test_(\w+) - (.*)", done.stdout, re.MULTILINE))
    assert "a unit test started a process (subprocess.Popen" in found["run"]
    assert "a unit test started a process (os.system" in found["system"]
    assert "a unit test forked" in found["fork"]
    assert "a unit test opened a socket" in found["socket"]
    assert "a unit test asked for a host's address" in found["address"]
    assert "a unit test started a process" in found["hidden"]
    assert "hid the error" in found["well_hidden"]
    assert "a unit test started a process" in found["fixture"]


MARKED = """
import pytest
pytestmark = pytest.mark.engine
def test_one(): assert False, "must not run"
def test_two(): assert False, "must not run"
"""


def test_what_was_left_out_is_listed_by_reason_before_the_closing_line(tmp_path: Path) -> None:
    files = {
        "engine/test_marked.py": MARKED,
        "unit/test_skips.py": "import pytest\ndef test_it(): pytest.skip('not on a Tuesday')\n",
        "unit/test_file.py": "import pytest\npytest.importorskip('no_such_module')\n",
    }
    done = run_suite(tmp_path, files)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert "left out: 2 engine tests: no container engine answers" in lines
    assert "left out: 1 test: not on a Tuesday" in lines
    assert any(line.startswith("left out: 1 file: could not import 'no_such_module'") for line in lines)
    assert lines[-1].startswith("4 skipped")


def test_other_tests_may_start_programs_and_nothing_left_out_is_not_mentioned(tmp_path: Path) -> None:
    files = {
        "unit/test_pure.py": "def test_it(): pass\n",
        "patches/test_git.py": "import subprocess\ndef test_it(): subprocess.run(['true'], check=True)\n",
    }
    done = run_suite(tmp_path, files)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 passed")
    assert "left out" not in done.stdout


def test_a_required_engine_that_is_missing_fails(tmp_path: Path) -> None:
    done = run_suite(tmp_path, {"engine/test_marked.py": MARKED}, "--require-engine")
    assert done.returncode == 1
    assert "--require-engine: no container engine answers" in done.stdout
    assert "left out" not in done.stdout


def test_no_other_skip_gets_past_a_requirement(tmp_path: Path) -> None:
    # The probe finds a GPU here, so that what the tests say themselves is what counts.
    code = """
import conftest, pytest
conftest.NEEDS["gpu"] = lambda: None
@pytest.mark.gpu
def test_skips(): pytest.skip("this card is too old")
@pytest.mark.gpu
@pytest.mark.skipif(True, reason="a Tuesday")
def test_skipif(): pass
"""
    files = {
        "gpu/test_it.py": code,
        "gpu/test_file.py": "import pytest\npytest.importorskip('no_such_module')\n",
    }
    done = run_suite(tmp_path, files, "--require-gpu", "--continue-on-collection-errors")
    assert done.stdout.splitlines()[-1].startswith("1 failed, 2 errors"), done.stdout
    assert "--require-gpu: this card is too old" in done.stdout
    assert "--require-gpu: a Tuesday" in done.stdout
    assert "--require-gpu: could not import 'no_such_module'" in done.stdout


def test_a_requirement_concerns_its_own_tests_alone(tmp_path: Path) -> None:
    done = run_suite(tmp_path, {"engine/test_marked.py": MARKED}, "--require-gpu")
    assert done.returncode == 0, done.stdout
    assert "left out: 2 engine tests: no container engine answers" in done.stdout
