"""The command line that engines share, and the error of a build that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_images.adapters.image_build import common_arguments, csv_field, failure_to_error
from llama_images.buildlog import Failure
from llama_images.ports import BuildRequest

LOG = Path("logs/build-sm120.log")


def failure(**known: object) -> Failure:
    fields: dict[str, object] = {
        "step": "[build 3/7] RUN ninja -C /build",
        "exit_code": 1,
        "last_lines": ("a.cpp:7:1: error: no", "ninja: build stopped: subcommand failed."),
        "reason": "process did not complete successfully: exit code: 1",
        "disk_full": False,
        "killed": False,
        "unreachable": False,
        "clipped": False,
        "jobs": None,
        **known,
    }
    return Failure(**fields)  # type: ignore[arg-type]


def told(known: Failure) -> tuple[str, str]:
    error = failure_to_error(known, tag="example:1", log=LOG, returncode=1)
    assert error.exit_code == 3
    assert error.hint is not None
    return error.message, error.hint


def test_failing_step() -> None:
    message, hint = told(failure())
    assert message.splitlines() == [
        "the build of example:1 failed at step [build 3/7] RUN ninja -C /build (exit code 1)",
        "  a.cpp:7:1: error: no",
        "  ninja: build stopped: subcommand failed.",
    ]
    assert hint == "The whole log: logs/build-sm120.log."


def test_full_disk() -> None:
    message, hint = told(failure(disk_full=True))
    assert "RUN ninja -C /build: the engine's disk is full (no space left on device)" in message
    assert hint.startswith("Free space")


@pytest.mark.parametrize(
    ("jobs", "advice"), [(16, "how many jobs run (16 here)"), (None, "how many jobs run.")]
)
def test_compiler_ended_by_the_kernel(jobs: int | None, advice: str) -> None:
    message, hint = told(failure(killed=True, jobs=jobs))
    assert "out of memory" in message
    assert advice in hint
    assert str(LOG) in hint


def test_engine_that_went_away() -> None:
    message, hint = told(failure(unreachable=True, step=None, exit_code=None, last_lines=()))
    assert message.startswith("the build of example:1 stopped: the container engine does not answer any more")
    assert "journalctl" in hint


def test_clipped_output_is_told() -> None:
    assert "left out part of this step's output" in told(failure(clipped=True))[1]


def test_failure_without_a_step() -> None:
    reason = "dockerfile parse error line 2: unknown instruction: RUNN"
    message, _ = told(failure(step=None, exit_code=None, last_lines=(), reason=reason))
    assert message == f"the build of example:1 failed\n  {reason}"


def test_failure_without_a_word() -> None:
    message, _ = told(failure(step=None, exit_code=None, last_lines=(), reason=""))
    assert message == "the build of example:1 failed: its program ended with exit code 1 and said nothing"


def test_long_step_is_one_short_line() -> None:
    message, _ = told(failure(step="[build 3/7] RUN " + "x \\\n  y " * 100))
    assert len(message.splitlines()[0]) < 200
    assert "…" in message.splitlines()[0]


def test_arguments() -> None:
    request = BuildRequest(
        dockerfile=Path("images/sm120/Dockerfile"),
        context=Path("images"),
        tag="example:1",
        platform="linux/arm64",
        labels={"a": "b c"},
        build_args={"JOBS": "2"},
        secrets={"ca": Path("/etc/ca.pem")},
        log=LOG,
    )
    shared = ["--file", "images/sm120/Dockerfile", "--tag", "example:1"]
    rest = ["--label", "a=b c", "--build-arg", "JOBS", "--secret", "id=ca,src=/etc/ca.pem"]
    assert common_arguments(request, default_platform="linux/arm64") == [*shared, *rest]
    for other in ("linux/amd64", None):
        named = common_arguments(request, default_platform=other)
        assert named == [*shared, "--platform", "linux/arm64", *rest]


def test_field_that_needs_quotes() -> None:
    assert csv_field("src=/a b") == "src=/a b"
    assert csv_field('src=/a "b", c') == '"src=/a ""b"", c"'
