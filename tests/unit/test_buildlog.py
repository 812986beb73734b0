"""Real logs of engines (tests/unit/data/buildlog), and anything else that a log may hold.

The samples are as the engines printed them, but for buildx's, which is put together from its documented form:
its steps lack the digest lines of Docker 20.10, number in two digits and name the platform.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_images.adapters.process import LineSplitter
from llama_images.buildlog import LAST_LINES, BuildLog, BuildSummary, CcacheStats, Failure

DATA = Path(__file__).parent / "data" / "buildlog"


def read(name: str) -> BuildLog:
    splitter = LineSplitter()
    log = BuildLog()
    for line in splitter.feed((DATA / f"{name}.txt").read_bytes()) + splitter.close():
        log.feed(line)
    return log


def texts(name: str) -> list[str]:
    """Every text that a build would have shown, in order, repetitions left out."""
    splitter = LineSplitter()
    log = BuildLog()
    shown: list[str] = []
    for line in splitter.feed((DATA / f"{name}.txt").read_bytes()) + splitter.close():
        log.feed(line)
        if not shown or shown[-1] != log.progress():
            shown.append(log.progress())
    return shown


def failure(name: str) -> Failure:
    return read(name).failure()


def summary(name: str) -> BuildSummary:
    return read(name).summary(12.5)


@pytest.mark.parametrize("name", ["docker-20.10-cold", "buildah-1.28-cold"])
def test_counts_of_a_build_that_compiled(name: str) -> None:
    done = summary(name)
    assert done.ccache == CcacheStats(direct_hits=8, preprocessed_hits=1, misses=3)
    assert (done.ccache.total, done.ccache.rate) == (12, 0.75)
    assert done.files_compiled == 12
    assert done.jobs == 2
    assert done.seconds == 12.5


@pytest.mark.parametrize("name", ["docker-20.10-cached", "buildah-1.28-cached"])
def test_a_build_from_the_cache_compiled_nothing(name: str) -> None:
    """The cached step's command line holds the markers, but it did not run."""
    done = summary(name)
    assert done.ccache is None
    assert done.jobs is None
    assert done.files_compiled == 0
    assert [step.cached for step in done.steps if "RUN" in step.name] == [True, True, True]


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("docker-20.10-cold", "sha256:aeca9c7af8499e518f344745964fede376ecf2612abbfd6658409d422449dd79"),
        ("buildah-1.28-cold", "sha256:a6f0c86e93c6227a3c7a1aae08c825316b92f2354e42f0678bfeed69dcc021f4"),
    ],
)
def test_image_id(name: str, image_id: str) -> None:
    assert summary(name).image_id == image_id


def test_steps_and_times_of_buildkit() -> None:
    steps = summary("docker-20.10-cold").steps
    assert [(step.name.split("]")[0] + "]", step.seconds) for step in steps] == [
        ("[toolkit 1/2]", 0.0),
        ("[toolkit 2/2]", 2.3),
        ("[build 1/3]", 0.1),
        ("[build 2/3]", 0.4),
        ("[build 3/3]", 1.8),
        ("[stage-2 1/1]", 0.0),
    ]


def test_times_of_buildah_are_those_of_the_caller() -> None:
    log = BuildLog()
    for at, line in enumerate(
        ["STEP 1/2: FROM scratch", "STEP 2/2: RUN x", "text", "--> 9dd71e59fd9", "more"]
    ):
        log.feed(line, at=float(at))
    assert [(step.name, step.seconds) for step in log.summary(5).steps] == [
        ("[1/2] FROM scratch", 1.0),
        ("[2/2] RUN x", 2.0),
    ]


def test_progress_names_stage_and_files() -> None:
    shown = texts("docker-20.10-cold")
    assert shown[0] == "starting"
    assert "toolkit: nvidia-nvvm" in shown
    assert shown.index("build: 1/12 files") < shown.index("build: 12/12 files")
    assert shown[-1] == "exporting the image"


def test_progress_of_buildah_names_stages_as_buildkit_does() -> None:
    shown = texts("buildah-1.28-cold")
    assert "build: 12/12 files" in shown
    assert "toolkit: nvidia-nvvm" in shown
    assert shown[-1] == "stage-2 3/3"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "llama-images: unpack nvidia_cublas-13.0.2.14-py3-none-manylinux_2_27_x86_64.whl",
            "toolkit: nvidia-cublas",
        ),
        ("Collecting nvidia-cuda-nvcc==13.0.88", "toolkit: nvidia-cuda-nvcc"),
        ("[ 12%] Building CXX object a.cpp.o", "toolkit: 12 %"),
        ("[241/459] Building CXX object a.cpp.o", "toolkit: 241/459 files"),
        ("llama-images: closure of libraries", "toolkit: closure of libraries"),
        ("anything else", "toolkit 2/7"),
    ],
)
def test_progress_of_one_line(line: str, shown: str) -> None:
    log = BuildLog()
    log.feed("#5 [toolkit 2/7] RUN install")
    log.feed(f"#5 1.25 {line}")
    assert log.progress() == shown


@pytest.mark.parametrize("name", ["docker-20.10-failing-step", "buildah-1.28-failing-step"])
def test_failing_step(name: str) -> None:
    failed = failure(name)
    assert failed.step is not None
    assert failed.step.startswith("[build 3/3] RUN for i in")
    assert failed.exit_code == 7
    assert failed.last_lines == ("src/llama.cpp:7:1: error: 'llama' does not name a type",)
    assert not failed.disk_full
    assert not failed.killed
    assert not failed.unreachable
    assert not failed.clipped


def test_failing_step_of_buildx() -> None:
    failed = failure("buildx-0.19-failing-step")
    assert failed.step == "[linux/amd64 build 10/12] RUN ninja -C /build"
    assert failed.exit_code == 1
    assert failed.last_lines == (
        "FAILED: src/llama-1.cpp.o ",
        "src/llama.cpp:7:1: error: 'llama' does not name a type",
        "ninja: build stopped: subcommand failed.",
    )
    steps = read("buildx-0.19-failing-step").summary(1).steps
    assert [step.cached for step in steps] == [False, True, False]


def test_lines_of_the_step_that_failed_not_of_the_one_beside_it() -> None:
    failed = failure("docker-20.10-two-stages")
    assert failed.step is not None
    assert failed.step.startswith("[two 2/2]")
    assert failed.exit_code == 3
    assert failed.last_lines == ("two 1", "two 2", "two 3", "two is broken")


def test_full_disk() -> None:
    failed = failure("docker-20.10-disk-full")
    assert failed.disk_full
    assert failed.last_lines[0] == "dd: error writing '/dev/shm/objects': No space left on device"


def test_full_disk_of_the_engine_itself() -> None:
    log = BuildLog()
    log.feed("#9 [build 3/3] COPY a /a")
    log.feed("#9 ERROR: failed to copy files: copy file range failed: no space left on device")
    failed = log.failure()
    assert failed.disk_full
    assert failed.last_lines == ("failed to copy files: copy file range failed: no space left on device",)


@pytest.mark.parametrize(
    "line",
    [
        "c++: fatal error: Killed signal terminated program cc1plus",
        "nvcc error   : 'cicc' died due to signal 9 (Kill signal)",
        "c++: internal compiler error: Killed (program cc1plus)",
    ],
)
def test_compiler_ended_by_the_kernel(line: str) -> None:
    log = BuildLog()
    log.feed("#9 [build 3/3] RUN ninja")
    log.feed("#9 0.1 llama-images: jobs=16")
    log.feed(f"#9 61.5 {line}")
    log.feed('#9 ERROR: process "/bin/sh -c ninja" did not complete successfully: exit code: 1')
    assert log.failure().killed
    assert log.failure().jobs == 16


def test_step_ended_by_the_kernel() -> None:
    failed = failure("docker-20.10-killed")
    assert failed.killed
    assert failed.exit_code == 137
    assert failed.jobs == 8


def test_failure_outside_of_any_step() -> None:
    failed = failure("docker-20.10-bad-dockerfile")
    assert failed.step is None
    assert failed.exit_code is None
    assert failed.reason.endswith("dockerfile parse error line 2: unknown instruction: RUNN")


def test_missing_file() -> None:
    failed = failure("docker-20.10-missing-file")
    assert failed.step == "[2/2] COPY nofile /x"
    assert failed.last_lines[0] == '"/nofile" not found: not found'


def test_dead_engine() -> None:
    log = BuildLog()
    log.feed(
        "failed to dial gRPC: cannot connect to the Docker daemon. Is 'docker daemon' running on this host?"
    )
    assert log.failure().unreachable
    assert log.failure().step is None


def test_last_lines_are_the_last_and_few() -> None:
    log = BuildLog()
    log.feed("#5 [build 1/1] RUN x")
    for number in range(200):
        log.feed(f"#5 1.0 line {number}")
        log.feed(f"#5 1.0 [{number}/200] Building CXX object {number}.o")
    log.feed("#5 ERROR: exit code: 2")
    expected = tuple(f"line {number}" for number in range(200 - LAST_LINES, 200))
    assert log.failure().last_lines == expected


def test_exit_code_on_a_line_of_its_own() -> None:
    """A command of several lines spreads the engine's error over as many."""
    log = BuildLog()
    for line in (
        "#5 [build 1/1] RUN <<EOF",
        '#5 ERROR: process "/bin/sh -c set -e',
        "false",
        '" did not complete successfully: exit code: 4',
    ):
        log.feed(line)
    assert log.failure().exit_code == 4


def test_ccache_counts_of_several_steps_add_up() -> None:
    log = BuildLog()
    log.feed("#5 [a 1/1] RUN x")
    counts = "cache_miss=3 direct_cache_hit=8 local_storage_hit=9 preprocessed_cache_hit=1 "
    log.feed(f"#5 1.0 llama-images: ccache {counts}")
    log.feed("#6 [b 1/1] RUN x")
    log.feed("#6 1.0 llama-images: ccache cache_miss=1 direct_cache_hit=1")
    assert log.summary(1).ccache == CcacheStats(direct_hits=9, preprocessed_hits=1, misses=4)


@pytest.mark.parametrize(
    "line",
    [
        "llama-images: ccache",
        "llama-images: ccache cache_miss=x direct_cache_hit=1",
        "+ echo llama-images: ccache cache_miss=3 direct_cache_hit=8",
    ],
)
def test_half_a_ccache_line_counts_nothing(line: str) -> None:
    log = BuildLog()
    log.feed("#5 [a 1/1] RUN x")
    log.feed(f"#5 1.0 {line}")
    assert log.summary(1).ccache is None


def test_rate_of_no_compilation_is_zero() -> None:
    assert CcacheStats(direct_hits=0, preprocessed_hits=0, misses=0).rate == 0.0


FRAGMENTS = st.sampled_from(
    [
        "#1 ",
        "#2 ",
        "[internal] load build context",
        "[build 3/7] ",
        "[1/2] STEP 3/7: ",
        "STEP 1/1: ",
        "FROM x AS y",
        "RUN z",
        "CACHED",
        "DONE 3.2s",
        "DONE 9999999999999999999s",
        "ERROR: ",
        "...",
        "0.123 ",
        "[241/459] Building CXX object ",
        "[ 7%] ",
        "llama-images: ccache ",
        "direct_cache_hit=1 cache_miss=\u0663",
        "llama-images: jobs=\u00b2",
        "------",
        "--> ",
        "Using cache ",
        "0123456789abcdef" * 4,
        "writing image sha256:" + "0123456789abcdef" * 4,
        "exit code: 137",
        "exit status \u0667",
        "COMMIT x",
        "Error: ",
        "Collecting ",
    ]
)
LINES = st.lists(st.one_of(st.text(), st.lists(st.one_of(FRAGMENTS, st.text(max_size=5))).map("".join)))


@given(LINES)
def test_any_output_is_read(lines: list[str]) -> None:
    log = BuildLog()
    for at, line in enumerate(lines):
        log.feed(line, at=float(at))
        assert log.progress()
    failed = log.failure()
    assert len(failed.last_lines) <= LAST_LINES
    assert failed.exit_code is None or failed.exit_code >= 0
    done = log.summary(1.0)
    assert done.files_compiled >= 0
    assert all(step.seconds >= 0 for step in done.steps)
    if done.ccache is not None:
        assert 0 <= done.ccache.rate <= 1


def test_the_first_error_is_shown_however_much_follows_it() -> None:
    """CMake goes on configuring after an error, and ninja ends the other jobs first."""
    log = BuildLog()
    log.feed("#9 [build 3/4] RUN compile")
    log.feed("#9 1.0 CMake Error at ggml/CMakeLists.txt:3 (project):")
    log.feed("#9 1.0   project could not find requested file:")
    for number in range(200):
        log.feed(f"#9 2.0 -- later line {number}")
    log.feed("#9 ERROR: executor failed running [/bin/sh -c compile]: exit code: 1")
    failure = log.failure()
    assert failure.last_lines[0] == "CMake Error at ggml/CMakeLists.txt:3 (project):"
    assert failure.last_lines[1].strip() == "project could not find requested file:"
    assert failure.last_lines[-1] == "-- later line 199"
    assert len(failure.last_lines) <= 15


def test_an_error_among_the_last_lines_is_shown_once() -> None:
    log = BuildLog()
    log.feed("#9 [build 3/4] RUN compile")
    log.feed("#9 1.0 a.cpp:1:1: error: expected something")
    log.feed("#9 1.0 ninja: build stopped: subcommand failed.")
    log.feed("#9 ERROR: executor failed running [/bin/sh -c compile]: exit code: 1")
    assert log.failure().last_lines == (
        "a.cpp:1:1: error: expected something",
        "ninja: build stopped: subcommand failed.",
    )
