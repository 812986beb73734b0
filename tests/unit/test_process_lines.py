"""Lines out of bytes, and finding programs: what needs no process."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_images.adapters.process import LineSplitter, SystemPrograms, installation_hint

ENDS = re.compile(r"\r\n|\r|\n")


def split(chunks: list[bytes]) -> list[str]:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.close()


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\nb\n", ["a", "b"]),
        (b"10%\r20%\rdone\n", ["10%", "20%", "done"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\x0cb\xe2\x80\xa8c\n", ["a\x0cb\u2028c"]),
        (b"\xff\xfe\n", ["\ufffd\ufffd"]),
    ],
)
def test_lines(data: bytes, lines: list[str]) -> None:
    assert split([data]) == lines


def test_border_of_chunks_makes_no_line() -> None:
    assert split([b"a\r", b"\nb"]) == ["a", "b"]
    assert split([b"\xe2\x80", b"\xa6\n"]) == ["…"]


@given(st.text(alphabet="ab…\r\n"), st.lists(st.integers(0, 40)))
def test_cutting_the_stream_anywhere_changes_nothing(text: str, cuts: list[int]) -> None:
    data = text.encode()
    borders = sorted({0, len(data), *(cut for cut in cuts if cut <= len(data))})
    chunks = [data[start:end] for start, end in itertools.pairwise(borders)]
    expected = ENDS.split(text)
    if expected[-1] == "":
        expected.pop()
    assert split(chunks) == expected


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_every_program_of_a_name_in_order(tmp_path: Path) -> None:
    first, second = executable(tmp_path / "a/docker"), executable(tmp_path / "b/docker")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/docker").symlink_to(first)
    (tmp_path / "d").symlink_to(tmp_path / "b")
    executable(tmp_path / "e/docker").chmod(0o644)
    (tmp_path / "f/docker").mkdir(parents=True)
    folders = [str(tmp_path / name) for name in "cabdef"] + ["", str(tmp_path / "missing")]
    programs = SystemPrograms(environ={"PATH": ":".join(folders)})
    assert programs.find("docker") == (tmp_path / "c/docker", second)
    assert programs.find("podman") == ()


def test_hint_names_the_package() -> None:
    assert (
        installation_hint("mmdebstrap")
        == "Install mmdebstrap (apt-get install mmdebstrap) and put it on PATH."
    )
    assert installation_hint("frobnicate") == "Install frobnicate and put it on PATH."
