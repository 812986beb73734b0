"""Each patch compiled on its own, by the real cmake, ninja and compiler, on a project of two files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_images.adapters.compile_folder import CompileFolders
from llama_images.adapters.process import SystemPrograms
from llama_images.errors import OutsideError
from llama_images.matrix import load_matrix
from llama_images.patch_series import PatchSeries
from llama_images.ports import Programs
from llama_images.series_ports import ListedPatch
from llama_images.workflows.series import CheckedSeries, check_series, raise_for
from llama_images.workflows.workshop import Workshop
from tests.patches.seen import Watched
from tests.patches.series_repo import Bench, Upstream

ROOT = Path(__file__).resolve().parents[2]

MISSING = [name for name in ("git", "cmake", "ninja", "cc", "c++") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} can't be found")

PROJECT = """\
cmake_minimum_required(VERSION 3.14)
project(small C CXX)
file(GLOB SOURCES src/*.cpp)
add_executable(llama-diffusion-cli ${SOURCES})
"""
MAIN = '#include "value.h"\n\nint main() {\n    return value();\n}\n'
VALUE = '#include "value.h"\n\nint value() {\n    return 0;\n}\n'
HEADER = "#pragma once\n\nint value();\n"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    upstream = Upstream(tmp_path_factory.mktemp("up stream") / "repo")
    files = {"CMakeLists.txt": PROJECT, "src/main.cpp": MAIN, "src/value.cpp": VALUE, "src/value.h": HEADER}
    upstream.pin = upstream.commit("main", {"src/a.cpp": None, "src/b.cpp": None, **files})
    return upstream


@dataclass
class Recorder:
    """Which programs were started, and how."""

    started: list[tuple[str, ...]]

    def __call__(self, argv: Sequence[str]) -> None:
        self.started.append(tuple(argv))

    def names(self) -> list[str]:
        """cmake and ninja, in order; without questions for a version."""
        words = [argv[0] for argv in self.started if "--version" not in argv]
        return [word for word in words if word in {"cmake", "ninja"}]


def check(
    bench: Bench, series: PatchSeries, *, programs: Programs | None = None, **environment: str
) -> CheckedSeries:
    programs = programs or SystemPrograms()
    shop = Workshop(
        root=ROOT,
        cache=bench.cache,
        environment={**os.environ, **environment},
        matrix=load_matrix(ROOT / "matrix.yaml"),
        series={},
        programs=programs,
        reporter=bench.lines,
        source_tree=bench.source_tree,
    )
    folders = CompileFolders(bench.cache, bench.lines)
    return check_series(
        shop,
        bench.trees,
        folders.open,
        bench.source,
        [ListedPatch(name=patch.name, patch=patch) for patch in series.patches],
        repo=bench.repo,
        compile_patches=True,
        jobs=1,
    )


def states(checked: CheckedSeries) -> list[str]:
    return [one.compiled for one in checked.patches]


def test_every_prefix_is_compiled_once(upstream: Upstream, tmp_path: Path) -> None:
    bench = Bench(upstream, tmp_path / "the cache")
    series = upstream.series(
        {"src/value.cpp": VALUE.replace("return 0", "return 1")},
        {"src/more.h": "#pragma once\n", "src/value.cpp": VALUE.replace("return 0", "return 2")},
    )
    recorder = Recorder([])
    checked = check(bench, series, programs=Watched(before=recorder))
    assert states(checked) == ["compiled", "compiled"]
    assert [one.passed for one in checked.patches] == [True, True]
    assert recorder.names() == ["cmake", "ninja"] * 2
    logs = sorted((bench.cache / "logs").glob("patches-check-small-*-compile.log"))
    objects = [log.read_text().count("Building CXX object") for log in logs]
    assert objects == [2, 1]  # main.cpp did not change with the second
    program = bench.cache / "check/small/build/llama-diffusion-cli"
    assert SystemPrograms().run([str(program)]).returncode == 2
    # Once more: nothing is started. A longer series: the new one alone.
    recorder.started.clear()
    assert states(check(bench, series, programs=Watched(before=recorder))) == ["known", "known"]
    assert recorder.names() == []
    longer = upstream.series(
        {"src/value.cpp": VALUE.replace("return 0", "return 1")},
        {"src/more.h": "#pragma once\n", "src/value.cpp": VALUE.replace("return 0", "return 2")},
        {"src/more.h": None},
    )
    assert states(check(bench, longer, programs=Watched(before=recorder))) == ["known", "known", "compiled"]
    assert recorder.names() == ["cmake", "ninja"]
    assert not (bench.cache / "check/small/source/src/more.h").exists()


def test_a_patch_that_needs_the_next_one_is_named(upstream: Upstream, tmp_path: Path) -> None:
    bench = Bench(upstream, tmp_path / "cache")
    series = upstream.series(
        {"src/main.cpp": MAIN.replace("value()", "other()")},
        {"src/value.h": f"{HEADER}int other();\n", "src/other.cpp": "int other() {\n    return 0;\n}\n"},
        {"CMakeLists.txt": PROJECT.replace("GLOB", "GLUB")},
    )
    checked = check(bench, series)
    assert states(checked) == ["failed", "compiled", "failed"]
    first, second, third = (one.problems for one in checked.patches)
    assert second == ()
    assert first[0].startswith("does not compile: src/main.cpp:4:12: error: ")
    assert "other" in first[0]
    assert third[0].startswith("does not compile: CMake Error at CMakeLists.txt:3 (file):")
    log = bench.cache / "logs" / "patches-check-small-0001-compile.log"
    assert first[0].endswith(f"the whole output is in {log}")
    assert "error:" in log.read_text()


def test_an_interrupted_check_goes_on_where_it_was(upstream: Upstream, tmp_path: Path) -> None:
    bench = Bench(upstream, tmp_path / "cache")
    series = upstream.series(
        {"src/value.cpp": VALUE.replace("return 0", "return 1")},
        {"src/value.cpp": VALUE.replace("return 0", "return 2")},
    )
    left = 2

    def interrupt(argv: Sequence[str]) -> None:
        nonlocal left
        if argv[0] == "ninja" and "--version" not in argv:
            left -= 1
            if not left:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(bench, series, programs=Watched(before=interrupt))
    assert states(check(bench, series)) == ["known", "compiled"]


def test_other_settings_compile_anew(upstream: Upstream, tmp_path: Path) -> None:
    bench = Bench(upstream, tmp_path / "cache")
    series = upstream.series({"src/value.cpp": VALUE.replace("return 0", "return 1")})
    assert states(check(bench, series)) == ["compiled"]
    bench.source = upstream.source(build_number=3)
    assert states(check(bench, series)) == ["compiled"]
    bench.source = upstream.source()
    assert states(check(bench, series)) == ["known"]


def test_without_a_compiler_the_rest_is_checked_and_it_is_said(upstream: Upstream, tmp_path: Path) -> None:
    bench = Bench(upstream, tmp_path / "cache")
    series = upstream.series({"src/value.cpp": VALUE.replace("return 0", "return 1")})
    checked = check(bench, series, CXX="no-such-compiler -x")
    assert states(checked) == ["not tried"]
    assert [one.passed for one in checked.patches] == [None]
    with pytest.raises(OutsideError) as caught:
        raise_for([checked])
    assert caught.value.message == "the patches can't be compiled: no-such-compiler can't be found"
    assert caught.value.hint == "apt-get install g++, or leave it out with --no-compile"


def test_a_launcher_in_the_variable_starts_the_compiler(upstream: Upstream, tmp_path: Path) -> None:
    if shutil.which("ccache") is None:
        pytest.skip("ccache can't be found")
    bench = Bench(upstream, tmp_path / "cache")
    series = upstream.series({"src/value.cpp": VALUE.replace("return 0", "return 1")})
    compiler = shutil.which("c++")
    assert states(check(bench, series, CXX=f"ccache {compiler}")) == ["compiled"]
    commands = (bench.cache / "check/small/build/CMakeFiles/rules.ninja").read_text()
    assert f"ccache {compiler}" in " ".join(commands.split())
    assert states(check(bench, series)) == ["compiled"]  # another way


def test_flags_of_the_environment_reach_the_compiler(upstream: Upstream, tmp_path: Path) -> None:
    bench = Bench(upstream, tmp_path / "cache")
    series = upstream.series({"src/value.cpp": VALUE.replace("return 0", "return THE_VALUE")})
    checked = check(bench, series, CXXFLAGS="-DTHE_VALUE=3")
    assert states(checked) == ["compiled"]
    assert states(check(bench, series)) == ["failed"]
    assert states(check(bench, series, CXXFLAGS="-DTHE_VALUE=3")) == ["known"]


def test_a_compiler_that_is_killed_is_no_fault_of_the_patch(upstream: Upstream, tmp_path: Path) -> None:
    bench = Bench(upstream, tmp_path / "cache")
    series = upstream.series({"src/value.cpp": VALUE.replace("return 0", "return 1")})
    # As the driver of gcc when the kernel ends the compiler proper: the real driver, with another cc1plus.
    proper = tmp_path / "proper"
    proper.mkdir()
    (proper / "cc1plus").write_text("#!/bin/sh\nkill -KILL $$\n")
    (proper / "cc1plus").chmod(0o755)
    if "Free Software Foundation" not in SystemPrograms().run(["c++", "--version"]).text:
        pytest.skip("c++ is no gcc")
    compiler = tmp_path / "c++"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *value.cpp*) exec c++ -B "{proper}" "$@";; *) exec c++ "$@";; esac\n'
    )
    compiler.chmod(0o755)
    checked = check(bench, series, CXX=str(compiler))
    assert states(checked) == ["not tried"]
    with pytest.raises(
        OutsideError, match=r"ninja could not go on: .*Killed signal terminated program cc1plus"
    ):
        raise_for([checked])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_full_is_no_fault_of_the_patch(upstream: Upstream, tmp_path: Path) -> None:
    bench = Bench(upstream, tmp_path / "cache")
    series = upstream.series({"src/value.cpp": VALUE.replace("return 0", "return 1")})
    compiler = tmp_path / "c++"
    # The real compiler, sent to a device that is full.
    full = 'for last; do :; done; exec c++ -c "$last" -o /dev/full'
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *value.cpp*) {full};; *) exec c++ "$@";; esac\n')
    compiler.chmod(0o755)
    checked = check(bench, series, CXX=str(compiler))
    assert states(checked) == ["not tried"]
    with pytest.raises(OutsideError, match=r"ninja could not go on: .*No space left on device"):
        raise_for([checked])
