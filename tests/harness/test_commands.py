"""The commands as a user types them: what is printed where, and the exit code. None needs an engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ROOT = Path(__file__).resolve().parents[2]


def invoke(
    cache: Path,
    *words: str,
    root: Path = ROOT,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, with a cache of its own; what it prints is kept, or goes elsewhere."""
    env = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_REPO"}
    env |= {"LLAMA_IMAGES_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    return subprocess.run(
        [sys.executable, "-m", "invoke", *words],
        cwd=root,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        timeout=120,
        check=False,
    )


def assert_refused(
    done: subprocess.CompletedProcess[str], code: int, *, error: str, hint: str | None = None
) -> None:
    """One line that says what, at most one that says what to do, nothing else, nothing on standard output."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines, "it failed without a word"
    assert [line.partition(": ")[0] for line in lines] == ["error", "hint"][: 1 if hint is None else 2]
    assert error in lines[0]
    if hint is not None:
        assert hint in lines[1]


def test_matrix_prints_json_and_nothing_else(tmp_path: Path) -> None:
    done = invoke(tmp_path, "matrix", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    assert {"llama-diffusion:cpu", "llama-diffusion:sm120", "llama-diffusion:sm120-stock"} <= {
        value for row in rows for value in row.values() if isinstance(value, str)
    }
    assert list(tmp_path.iterdir()) == []


def test_plan_prints_json_and_does_none_of_it(tmp_path: Path) -> None:
    # `all` and not 120 alone: which numbers can be built depends on this machine's processor.
    done = invoke(tmp_path, "plan", "--arch", "all", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    kinds = [step["kind"] for step in plan["steps"]]
    assert kinds[:2] == ["source", "base"]
    assert kinds.count("build") == kinds.count("smoke") == len(kinds[2:]) // 2
    assert "cpu" in [step["subject"] for step in plan["steps"] if step["kind"] == "build"]
    assert len(plan["left_out"]) == len([line for line in done.stderr.splitlines() if "left out" in line]) > 0
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_architecture_is_refused_in_two_lines(tmp_path: Path) -> None:
    done = invoke(tmp_path, "plan", "--arch", "12")
    assert_refused(done, 2, error='"12": there is no such architecture', hint="portable")


def test_a_broken_matrix_is_refused_with_file_and_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    text = (ROOT / "matrix.yaml").read_text("utf-8")
    line = next(n for n, line in enumerate(text.splitlines(), 1) if line.strip().startswith("suite:"))
    broken.write_text(text.replace("    suite:", "    suit:", 1), "utf-8")
    done = invoke(tmp_path / "cache", "matrix", "--json", "--file", str(broken))
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: {broken}:{line}: ")
    assert "suit" in done.stderr.splitlines()[0]


def checkout(tmp_path: Path) -> Path:
    """A copy of what the commands read of this repository, to change."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (
        "tasks.py",
        "matrix.yaml",
        "matrix.schema.json",
        "evidence.schema.json",
        "docker-bake.json",
        "README.md",
    ):
        shutil.copy(ROOT / name, copy)
    for name in ("llama_images", "templates", "images", "patches", ".github"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "src"))
    return copy


def test_a_patch_that_can_not_be_read_stops_only_what_needs_it(tmp_path: Path) -> None:
    copy = checkout(tmp_path)
    patch = min((copy / "patches" / "pr24423").glob("*.patch"))
    patch.write_text(patch.read_text("utf-8").replace("From: ", "Form: ", 1), "utf-8")
    needed = invoke(tmp_path / "cache", "patches.list", root=copy)
    assert_refused(needed, 2, error=f"{patch.name}:1: the header has no From:", hint="Subject")
    assert invoke(tmp_path / "cache", "matrix", root=copy).returncode == 0
    for words, error in (
        (("patches.rebase", "--continue"), "there is no rebase of pr24423 to go on with"),
        (("patches.rebase", "--abort"), "there is no work tree of pr24423 to remove"),
        (("patches.export",), "there is no work tree of pr24423"),
    ):
        assert_refused(invoke(tmp_path / "cache", *words, root=copy), 2, error=error, hint="--onto")


def test_render_check_shows_what_differs(tmp_path: Path) -> None:
    copy = checkout(tmp_path)
    clean = invoke(tmp_path / "cache", "render", "--check", root=copy)
    assert (clean.returncode, clean.stdout) == (0, ""), clean.stdout
    assert "rendered files are as they should be" in clean.stderr
    dockerfile = copy / "images" / "sm120" / "Dockerfile"
    text = dockerfile.read_text("utf-8") + "RUN an-edit-by-hand\n"
    dockerfile.write_text(text, "utf-8")
    drifted = invoke(tmp_path / "cache", "render", "--check", root=copy)
    assert drifted.returncode == 1, drifted.stderr
    changes = [line for line in drifted.stdout.splitlines() if line[:1] in "+-" and line[:3] not in "+++---"]
    assert changes == ["-RUN an-edit-by-hand"]
    assert "images/sm120/Dockerfile" in drifted.stdout
    assert drifted.stderr.splitlines() == [
        "error: 1 file not as the matrix and templates say: images/sm120/Dockerfile",
        "hint: run invoke render and commit the result",
    ]
    assert dockerfile.read_text("utf-8") == text, "--check wrote"
    merged = invoke(tmp_path / "cache", "render", "--check", root=copy, stderr=subprocess.STDOUT).stdout
    assert merged == drifted.stdout + drifted.stderr


def test_an_engine_of_an_unknown_name_is_refused(tmp_path: Path) -> None:
    done = invoke(tmp_path, "build", "--arch", "cpu", "--engine", "nosuch")
    assert_refused(done, 2, error='"nosuch" is not a container engine', hint="docker or podman")


@pytest.mark.parametrize("command", ["build", "smoke", "layers", "test"])
@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        ((), "no --arch given", "--arch 120"),
        (("--arch", "foo"), '--arch "foo": there is no such architecture', "--arch takes"),
        (("--arch", "cpu", "--flavor", "foo"), 'there is no flavor "foo"', "patched and stock"),
        (("--arch", "cpu", "--base", "foo"), 'there is no base "foo"', "debian and nvidia"),
    ],
)
def test_wrong_words_are_refused_before_an_engine_is_asked(
    tmp_path: Path, command: str, words: tuple[str, ...], error: str, hint: str
) -> None:
    done = invoke(tmp_path, command, *words, DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert_refused(done, 2, error=error, hint=hint)


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (("--engine", "host"), "--engine host needs --binary", "name the llama-diffusion-cli"),
        (("--engine", "host", "--binary", "/nosuch"), "--binary /nosuch: there is no such file", None),
        (("--engine", "host", "--binary", "README.md"), "it is not executable", "chmod +x"),
        (("--arch", "cpu", "--binary", "/bin/true"), "--binary is for --engine host", "tested as they are"),
        (("--arch", "120", "--gpus", "0"), "--gpus 0: a number of GPUs from 1 to 16", None),
        (("--arch", "120", "--logical-gpus", "two"), "--logical-gpus two: a number of GPUs", None),
        (("--arch", "120", "--gpus", "2", "--logical-gpus", "2"), "both say how many", "one of the two"),
        (
            (
                "--engine",
                "host",
                "--binary",
                "/bin/true",
                "--arch",
                "cpu",
                "--case",
                "chat",
                "--case",
                "chats",
            ),
            "--case chats: no case has such a name",
            "there are validators, repeat",
        ),
        (("--arch", "cpu", "--deadline", "soon"), "--deadline soon: not a number", "from 1 to 9999"),
        (("--engine", "host", "--binary", "/bin/true", "--arch", "ada", "--arch", "120"), "of one", "once"),
        (
            ("--engine", "host", "--binary", "/bin/true", "--arch", "cpu", "--model", "/nosuch"),
            "exist",
            "GGUF",
        ),
    ],
)
def test_what_test_can_not_do_is_refused(
    tmp_path: Path, words: tuple[str, ...], error: str, hint: str | None
) -> None:
    done = invoke(tmp_path, "test", *words)
    lines = done.stderr.splitlines()[-1 if hint is None else -2 :]
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(": ")[0] for line in lines] == ["error", "hint"][: len(lines)]
    assert error in lines[0]
    assert hint is None or hint in lines[1]


def test_a_program_that_is_none_fails_its_cases_and_leaves_evidence(tmp_path: Path) -> None:
    words = ("--engine", "host", "--binary", "/bin/true", "--arch", "cpu", "--out", str(tmp_path / "out"))
    done = invoke(tmp_path, "test", *words)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "validators: failed (steps ran: the output is no run's: nothing was printed)" in done.stderr
    (path,) = (tmp_path / "out").glob("*.json")
    document = json.loads(path.read_text("utf-8"))
    assert {case["status"] for case in document["cases"]} == {"failed", "skipped"}
    assert path.with_suffix(".xml").is_file()


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_library_for_several_gpus_is_compiled_once(tmp_path: Path) -> None:
    words = ("--engine", "host", "--binary", "/bin/true", "--arch", "cpu", "--logical-gpus", "2")
    first = invoke(tmp_path, "test", *words)
    (library,) = (tmp_path / "lib").iterdir()
    assert library.read_bytes()[:4] == b"\x7fELF"
    made = library.stat().st_mtime_ns
    second = invoke(tmp_path, "test", *words)
    assert [library.stat().st_mtime_ns, *(tmp_path / "lib").iterdir()] == [made, library]
    assert first.returncode == second.returncode, (first.stderr, second.stderr)


def test_an_engine_that_does_not_answer_is_an_outside_error(tmp_path: Path) -> None:
    socket = "unix:///nonexistent/docker.sock"
    done = invoke(tmp_path, "build", "--arch", "cpu", "--engine", "docker", DOCKER_HOST=socket)
    assert_refused(done, 3, error=socket, hint="Start it")


def test_an_engine_that_docker_host_names_is_told_by_it(tmp_path: Path) -> None:
    socket = "unix:///nonexistent/docker.sock"
    done = invoke(tmp_path, "build", "--arch", "cpu", "--engine", "docker", DOCKER_HOST=socket)
    assert_refused(done, 3, error=f"DOCKER_HOST={socket} does not answer", hint="unset DOCKER_HOST")


def test_a_repository_of_the_environment_is_told_by_its_variable(tmp_path: Path) -> None:
    done = invoke(tmp_path, "patches.status", LLAMA_CPP_REPO="/nonexistent")
    assert_refused(done, 2, error="LLAMA_CPP_REPO=/nonexistent does not exist", hint="clone")


def test_an_upstream_out_of_reach_is_a_line_and_a_hint(tmp_path: Path) -> None:
    # Port 9 of this machine: nothing listens there, and no proxy is asked.
    done = invoke(tmp_path, "source", "--repo", "http://127.0.0.1:9/x.git", NO_PROXY="*", no_proxy="*")
    assert done.returncode == 3
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: source pr24423: can't reach http://127.0.0.1:9/x.git: ")
    assert hint.startswith("hint: Give a clone that holds ")


def test_a_cache_that_can_not_be_written_is_told_by_its_path(tmp_path: Path) -> None:
    # Below a file nobody can make a folder, root included.
    cache = tmp_path / "file" / "cache"
    cache.parent.write_text("")
    clone = tmp_path / "clone"
    subprocess.run(["git", "init", "--quiet", str(clone)], check=True)
    done = invoke(cache, "source", "--repo", str(clone))
    assert_refused(done, 3, error=str(cache), hint=str(cache))


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (("rebase",), "takes one of --onto REV, --continue, --skip and --abort", None),
        (("rebase", "--onto", "main", "--abort"), "takes one of", None),
        (("rebase", "--continue"), "there is no rebase of pr24423 to go on with", "--onto"),
        (("rebase", "--abort"), "there is no work tree of pr24423", "--onto"),
        (("rebase", "--continue", "--repo", "x"), "--repo has no use with --continue", "--onto"),
        (("rebase", "--skip", "--repo", "x"), "--repo has no use with --skip", "--onto"),
        (("rebase", "--abort", "--repo", "x"), "--repo has no use with --abort", "--onto"),
        (("check", "--no-compile", "--jobs", "2"), "--jobs has no use with --no-compile", "leave one"),
        (("export",), "there is no work tree of pr24423", "--worktree"),
        (("export", "--worktree", "/nonexistent"), "/nonexistent is no folder", "top folder"),
        (("check", "--jobs", "many"), "--jobs many: not a number", "a whole number from 1 to 9999"),
        (("check", "--source", "nosuch"), "--source nosuch: there is no such source", "pr24423"),
        (("status", "--repo", "/nonexistent"), "/nonexistent does not exist", "clone"),
    ],
)
def test_wrong_use_of_the_series_commands_is_one_line(
    tmp_path: Path, words: tuple[str, ...], error: str, hint: str | None
) -> None:
    done = invoke(tmp_path, f"patches.{words[0]}", *words[1:])
    assert_refused(done, 2, error=error, hint=hint)


def test_a_model_is_named_on_standard_output_and_its_hash_beside(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    done = invoke(tmp_path, "model.synthetic", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}\n"), done.stderr
    assert "sha256" in done.stderr


@pytest.mark.parametrize("words", [("matrix",), ("matrix", "--json")])
def test_a_reader_that_has_gone_ends_a_command_in_silence(tmp_path: Path, words: tuple[str, ...]) -> None:
    # `invoke matrix | head`, with a head that has left before the first line.
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = invoke(tmp_path, *words, stdout=write_end)
    finally:
        os.close(write_end)
    # As of a program that SIGPIPE ends: what the command would have found is not known, so it is no success.
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_standard_output_is_told_from_a_bad_file(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = invoke(tmp_path, "matrix", "--json", stdout=full)
    assert done.returncode == 3
    assert done.stderr.startswith("error: standard output, or ")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("model.synthetic", "out.gguf"), "--seed"),
        (("bench", "--arch", "cpu"), "--rounds"),
        (("bench", "--arch", "cpu"), "--steps"),
        (("bench", "--from-json", "bench.json"), "--seed"),
    ],
)
def test_what_is_no_number_is_wrong_use(tmp_path: Path, words: tuple[str, ...], option: str) -> None:
    for value in ("abc", "0", "1.5", "-1"):
        done = invoke(tmp_path, *words, f"{option}={value}")
        assert_refused(done, 2, error=f"{option} {value}: not a number", hint="a whole number from 1 to 9999")


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["publish", "--arch", "cpu"], "no --registry given", "ghcr.io/me/llama-diffusion"),
        (["publish", "--arch", "cpu", "--registry", "me/x"], "'me/x' names no registry", "HOST/NAMESPACE"),
        (["publish", "--arch", "cpu", "--registry", "r.example/x"], "no key was given", "openssl genpkey"),
        (["verify", "me/x:latest"], "'me/x' names no registry", "HOST/NAMESPACE"),
        (["publish", "--arch", "999", "--registry", "r.example/x"], "no such architecture", "portable"),
        (["scan"], "no --arch given", "invoke matrix"),
        (["scan", "--arch", "999"], "no such architecture", "portable"),
        (["verify", "r.example/x:sm120"], "no key was given", "the publisher's public key"),
        (["verify", "r.example/x@sha256:12"], "what follows @ is no digest", "64 lower-case"),
        (["registry.prune"], "no --registry given", "HOST/NAMESPACE"),
        (
            ["registry.prune", "--registry", "r.example/x", "--keep", "abc"],
            "--keep abc: not a number",
            "1 to 9999",
        ),
        (
            ["registry.prune", "--registry", "r.example/x", "--keep", "0"],
            "--keep 0: not a number",
            "1 to 9999",
        ),
        (
            ["publish", "--arch", "cpu", "--registry", "r.example/x", "--no-move", "--move-only"],
            "no use",
            "leave",
        ),
        (["plan", "--arch", "cpu", "--platform", "linux/s390x"], "there is no such platform", "linux/amd64"),
    ],
)
def test_publishing_refuses_what_can_not_be_meant(
    tmp_path: Path, words: list[str], error: str, hint: str
) -> None:
    # No engine can mend it, so none is asked: the one that is named here is not there.
    nowhere = f"unix://{tmp_path}/none.sock"
    done = invoke(tmp_path, *words, LLAMA_IMAGES_KEY="", DOCKER_HOST=nowhere)
    assert_refused(done, 2, error=error, hint=hint)


def test_a_registry_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    for words in (
        ["verify", "127.0.0.1:1/x:cpu", "--key", str(key)],
        ["registry.prune", "--registry", "127.0.0.1:1/x"],
    ):
        done = invoke(tmp_path, *words)
        assert done.returncode == 3, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert errors == ["error: the registry 127.0.0.1:1 can't be reached: connection refused"]
        assert "Traceback" not in done.stderr
