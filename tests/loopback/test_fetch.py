"""``invoke model.fetch`` as a user types it, against a hub on the loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loopback.conftest import BODY, COMMIT, FILE, REPOSITORY, SHA256, Hub

ROOT = Path(__file__).resolve().parents[2]
PART = f"{FILE}.{SHA256[:12]}.part"
CHUNK = 10 << 20
"""http_get writes so many bytes at a time; what came beyond the last of them is asked for again."""

pytestmark = pytest.mark.loopback


def start(hub: Hub, out: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    named = ["--repo", REPOSITORY] if "--repo" not in words else []
    named += ["--file", FILE] if "--file" not in words else []
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    env = kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(out.parent / "hf"),  # where tokens of whoever runs the tests do not lie
        "LLAMA_IMAGES_CACHE": str(out.parent / "cache"),
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "invoke", "model.fetch", *named, "--out", str(out), *words],
        cwd=ROOT,
        env=env | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fetch(hub: Hub, out: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    running = start(hub, out, *words, **environment)
    stdout, stderr = running.communicate(timeout=120)
    return subprocess.CompletedProcess(running.args, running.returncode, stdout, stderr)


def assert_fetched(done: subprocess.CompletedProcess[str], target: Path) -> None:
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target}\n"
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == [target.name], "something was left beside it"
    assert SHA256 in done.stderr


def assert_refused(done: subprocess.CompletedProcess[str], code: int, error: str, hint: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines[-2:]] == ["error", "hint"], done.stderr
    assert error in lines[-2]
    assert hint in lines[-1]


def test_an_unpinned_file_comes_whole_and_is_said_to_be_unpinned(hub: Hub, folder: Path) -> None:
    target = folder / "new" / "model.gguf"
    done = fetch(hub, target)
    assert_fetched(done, target)
    assert f"unpinned; to pin what came now: --revision {COMMIT} --sha256 {SHA256}" in done.stderr
    # What the branch named when it was asked is what is fetched, though the branch may move meanwhile; and
    # nothing else is asked.
    assert hub.requests == [
        ("HEAD", f"/{REPOSITORY}/resolve/main/{FILE}", None),
        ("GET", f"/{REPOSITORY}/resolve/{COMMIT}/{FILE}", None),
        ("GET", "/storage", None),
    ]


def test_a_folder_gets_the_file_under_its_own_name(hub: Hub, folder: Path) -> None:
    folder.mkdir()
    assert_fetched(fetch(hub, folder, "--sha256", SHA256), folder / FILE)


def test_a_file_of_the_wanted_hash_is_not_asked_for(hub: Hub, folder: Path) -> None:
    folder.mkdir()
    (folder / FILE).write_bytes(BODY)
    done = fetch(hub, folder, "--sha256", SHA256)
    assert_fetched(done, folder / FILE)
    assert "is there already" in done.stderr
    assert hub.requests == []


def test_another_file_in_its_place_is_left_alone(hub: Hub, folder: Path) -> None:
    folder.mkdir()
    (folder / FILE).write_bytes(b"precious")
    done = fetch(hub, folder)
    assert_refused(done, 2, f"{folder / FILE} is another file", "--out")
    assert (folder / FILE).read_bytes() == b"precious"
    assert hub.ranges == []


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub, folder: Path) -> None:
    hub.cut_after = [15_000_000, 8_000_000]
    assert_fetched(fetch(hub, folder / FILE), folder / FILE)
    assert hub.ranges == [None, f"bytes={CHUNK}-", f"bytes={CHUNK}-"]


def test_an_interrupted_run_goes_on_where_it_stopped(hub: Hub, folder: Path) -> None:
    hub.cut_after = [15_000_000]
    hub.hold.clear()
    running = start(hub, folder / FILE)
    assert hub.sent.wait(60)
    while not (folder / PART).exists() or (folder / PART).stat().st_size < CHUNK:
        assert running.poll() is None, running.communicate()
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr.splitlines()[-1].partition(";")[0]) == (130, "interrupted")
    assert (folder / PART).stat().st_size == CHUNK
    hub.hold.set()
    assert_fetched(fetch(hub, folder / FILE), folder / FILE)
    assert hub.ranges == [None, f"bytes={CHUNK}-"]


def test_a_server_without_ranges_starts_anew(hub: Hub, folder: Path) -> None:
    hub.honours_ranges = False
    folder.mkdir()
    (folder / PART).write_bytes(BODY[:11_000_000])
    assert_fetched(fetch(hub, folder / FILE), folder / FILE)
    assert hub.ranges == ["bytes=11000000-"]


def test_a_part_longer_than_the_file_is_thrown_away(hub: Hub, folder: Path) -> None:
    folder.mkdir()
    (folder / PART).write_bytes(BODY + b"more")
    assert_fetched(fetch(hub, folder / FILE), folder / FILE)
    assert hub.ranges == [None]


def test_a_part_that_is_damaged_is_found_out_and_removed(hub: Hub, folder: Path) -> None:
    folder.mkdir()
    (folder / PART).write_bytes(bytes(1000))
    done = fetch(hub, folder / FILE)
    assert_refused(done, 1, f"not {SHA256} as it should; it was removed", "fetch it again")
    assert list(folder.iterdir()) == []
    assert_fetched(fetch(hub, folder / FILE), folder / FILE)


def test_a_wrong_pin_is_told_before_anything_comes(hub: Hub, folder: Path) -> None:
    done = fetch(hub, folder / FILE, "--sha256", "0" * 64)
    assert_refused(done, 1, f"has sha256 {SHA256}, not {'0' * 64} as it should", "nothing was fetched")
    assert hub.ranges == []
    assert not folder.exists()


def test_a_wrong_pin_is_found_where_the_hub_tells_no_hash(hub: Hub, folder: Path) -> None:
    hub.etag = "a" * 40  # of a file that git itself holds
    done = fetch(hub, folder / FILE, "--sha256", "0" * 64)
    assert_refused(done, 1, f"has sha256 {SHA256}, not {'0' * 64} as it should; it was removed", "again")
    assert list(folder.iterdir()) == []


def test_what_was_altered_on_the_way_is_found_out(hub: Hub, folder: Path) -> None:
    hub.body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    done = fetch(hub, folder / FILE)
    assert_refused(done, 1, f"not {SHA256} as it should; it was removed", "what is between")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "code", "words", "error"),
    [
        (401, "GatedRepo", (), "behind terms that this account has not accepted (401)"),
        (403, "GatedRepo", (), "behind terms that this account has not accepted (403)"),
        (403, None, (), f"the hub refuses {FILE} of {REPOSITORY} (403)"),
        (500, None, (), "the hub answered 500"),
        (429, None, (), "no more questions for now (429)"),
        (200, None, ("--repo", "owner/Nothing"), "no repository owner/Nothing to this account (401)"),
        (200, None, ("--revision", "v9"), "has no revision v9 (404)"),
        (200, None, ("--file", "x.gguf"), "has no file x.gguf at revision main (404)"),
    ],
)
def test_what_the_hub_refuses(
    hub: Hub, folder: Path, status: int, code: str | None, words: tuple[str, ...], error: str
) -> None:
    hub.status, hub.error_code = status, code
    done = fetch(hub, folder / FILE, *words)
    assert_refused(done, 3, error, "")
    assert not folder.exists()


def test_a_token_from_the_environment_opens_a_closed_repository(hub: Hub, folder: Path) -> None:
    hub.token = "hf_secret"
    assert_refused(fetch(hub, folder / FILE), 3, "(401)", "HF_TOKEN")
    done = fetch(hub, folder / FILE, HF_TOKEN="hf_secret")
    assert_fetched(done, folder / FILE)
    assert "hf_secret" not in done.stderr


def test_nobody_answers(hub: Hub, folder: Path) -> None:
    with socket.socket() as bound:  # not listening: a connection is refused, and nobody else gets the port
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        done = fetch(hub, folder / FILE, HF_ENDPOINT=f"http://{address}")
    assert_refused(done, 3, f"the hub {address} can't be reached: connection refused", "HF_ENDPOINT")


def test_a_host_that_has_no_address(hub: Hub, folder: Path) -> None:
    done = fetch(hub, folder / FILE, HF_ENDPOINT="http://hub.invalid", NO_PROXY="*")
    assert_refused(done, 3, "the hub hub.invalid can't be reached: ", "check the network")


def test_offline_mode_is_named(hub: Hub, folder: Path) -> None:
    done = fetch(hub, folder / FILE, HF_HUB_OFFLINE="1")
    assert_refused(done, 3, "HF_HUB_OFFLINE", "unset")


def test_what_is_no_hub_is_told(hub: Hub, folder: Path) -> None:
    hub.is_hub = False
    assert_refused(fetch(hub, folder / FILE), 3, "is no hub", "HF_ENDPOINT")


def test_a_disk_without_room_is_told_before_anything_comes(hub: Hub, folder: Path) -> None:
    hub.size = 10**17
    done = fetch(hub, folder / FILE)
    assert_refused(done, 3, f"100000000.0 GB of {FILE} are to come", "another disk")
    assert hub.ranges == []


def test_a_disk_that_fills_up_on_the_way(hub: Hub, folder: Path) -> None:
    folder.mkdir()
    (folder / PART).symlink_to("/dev/full")  # as a disk that others fill meanwhile: every write fails there
    done = fetch(hub, folder / FILE)
    assert_refused(done, 3, f"the disk is full: {folder / PART}", "go on")
    assert not (folder / FILE).exists()


def test_two_runs_do_not_write_one_file(hub: Hub, folder: Path) -> None:
    hub.cut_after = [12_000_000]
    hub.hold.clear()
    first = start(hub, folder / FILE)
    try:
        assert hub.sent.wait(60)
        assert_refused(fetch(hub, folder / FILE), 3, f"another run is writing {folder / PART}", "finish")
    finally:
        hub.hold.set()
        stdout, stderr = first.communicate(timeout=120)
    done = subprocess.CompletedProcess(first.args, first.returncode, stdout, stderr)
    assert_fetched(done, folder / FILE)


@pytest.mark.slow
def test_a_connection_that_never_holds_ends_it_and_keeps_what_came(hub: Hub, folder: Path) -> None:
    hub.cut_after = [15_000_000] + [0] * 50
    done = fetch(hub, folder / FILE)
    assert_refused(done, 3, "can't be reached: ", "run the same command to go on")
    assert (folder / PART).stat().st_size == CHUNK
