"""Newer pins: which fit, how they get into the file, and what happens where a question has no answer."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_images.adapters.reporter import ConsoleReporter
from llama_images.adapters.upstreams import listed_versions, locate, reported_wheel
from llama_images.errors import OutsideError, UsageError
from llama_images.located_yaml import KeyPath, Mistakes, read_yaml
from llama_images.matrix import Matrix, Platform, parse_matrix
from llama_images.pins import (
    Change,
    PublishedImage,
    PublishedWheel,
    apply_changes,
    image_candidates,
    placed_wheels,
    wheel_candidates,
)
from llama_images.workflows.pins import update_pins

EXAMPLE = (Path(__file__).parent / "example_matrix.yaml").read_text(encoding="utf-8")
CUDA = ("toolkits", "cuda-13.0")
DEVEL = (*CUDA, "images", "devel")
NVCC = (*CUDA, "wheels", "build", 0)
DIGEST = "sha256:" + "ab" * 32
MATRIX = parse_matrix(EXAMPLE, name="m.yaml")
TOOLKIT = MATRIX.toolkits["cuda-13.0"]


def change(path: KeyPath, old: str | None, new: str) -> Change:
    return Change(path=path, old=old, new=new, why="test")


def changed_lines(old: str, new: str) -> list[str]:
    return [
        line
        for line in difflib.ndiff(old.splitlines(keepends=True), new.splitlines(keepends=True))
        if line[0] in "+-"
    ]


def value_at(matrix: Matrix, path: KeyPath) -> Any:
    value: Any = matrix.model_dump()
    for part in path:
        value = value[part]
    return value


# --- into the text --------------------------------------------------------------------------------


def test_a_digest_is_added_in_the_flow_mapping() -> None:
    result = apply_changes(EXAMPLE, [change((*DEVEL, "digest"), None, DIGEST)])
    assert changed_lines(EXAMPLE, result) == [
        '-       devel: {name: "nvidia/cuda:13.0.1-devel-ubuntu24.04"}\n',
        f'+       devel: {{name: "nvidia/cuda:13.0.1-devel-ubuntu24.04", digest: "{DIGEST}"}}\n',
    ]
    images = parse_matrix(result, name="m.yaml").toolkits["cuda-13.0"].images
    assert images is not None
    assert images.devel.reference == f"nvidia/cuda:13.0.1-devel-ubuntu24.04@{DIGEST}"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_digest_is_added_to_a_block_mapping_behind_its_comment(newline: str) -> None:
    flow = '      devel: {name: "nvidia/cuda:13.0.1-devel-ubuntu24.04"}\n'
    block = "      devel:\n        name: nvidia/cuda:13.0.1-devel-ubuntu24.04  # why this one\n"
    text = EXAMPLE.replace(flow, block).replace("\n", newline)
    assert text != EXAMPLE
    result = apply_changes(text, [change((*DEVEL, "digest"), None, DIGEST)])
    line = f"# why this one{newline}"
    assert result == text.replace(line, f'{line}        digest: "{DIGEST}"{newline}')


def test_name_and_digest_change_together() -> None:
    name = "nvidia/cuda:13.0.1-devel-ubuntu24.04"
    newer = "nvidia/cuda:13.0.2-devel-ubuntu24.04"
    result = apply_changes(
        EXAMPLE, [change((*DEVEL, "digest"), None, DIGEST), change((*DEVEL, "name"), name, newer)]
    )
    assert result == EXAMPLE.replace(f'{{name: "{name}"}}', f'{{name: "{newer}", digest: "{DIGEST}"}}')


@pytest.mark.parametrize(
    ("written", "expected"),
    [("13.0.88", "13.0.89"), ('"13.0.88"', '"13.0.89"'), ("'13.0.88'", "'13.0.89'")],
)
def test_quotes_stay_as_they_were(written: str, expected: str) -> None:
    text = EXAMPLE.replace("version: 13.0.88", f"version: {written} # note", 1)
    result = apply_changes(text, [change((*NVCC, "version"), "13.0.88", "13.0.89")])
    assert result == text.replace(f"version: {written} # note", f"version: {expected} # note", 1)


def test_a_byte_order_mark_stays_and_shifts_nothing() -> None:
    changes = [change((*NVCC, "version"), "13.0.88", "13.0.89")]
    assert apply_changes("\ufeff" + EXAMPLE, changes) == "\ufeff" + apply_changes(EXAMPLE, changes)


def test_what_would_read_as_a_number_is_quoted() -> None:
    path = (*CUDA, "wheels", "build", 3)
    result = apply_changes(EXAMPLE, [change((*path, "version"), "13.0.85", "13.1")])
    assert changed_lines(EXAMPLE, result)[1] == '+           version: "13.1"\n'
    assert value_at(parse_matrix(result, name="m.yaml"), (*path, "version")) == "13.1"
    digits = "1" * 64
    old = value_at(MATRIX, (*path, "sha256", "linux/arm64"))
    result = apply_changes(EXAMPLE, [change((*path, "sha256", "linux/arm64"), old, digits)])
    assert f'linux/arm64: "{digits}"' in result


def test_a_value_that_is_another_by_now_is_refused() -> None:
    with pytest.raises(UsageError, match=r'm\.yaml:\d+: .*version: found "13\.0\.88", expected "13\.0\.80"'):
        apply_changes(EXAMPLE, [change((*NVCC, "version"), "13.0.80", "13.0.89")], name="m.yaml")
    with pytest.raises(UsageError, match="found nothing, expected"):
        apply_changes(EXAMPLE, [change((*DEVEL, "digest"), DIGEST, DIGEST)])
    with pytest.raises(UsageError, match="without this key"):
        apply_changes(EXAMPLE, [change((*DEVEL, "name"), None, "a:b")])


def test_a_block_of_text_is_refused() -> None:
    text = EXAMPLE.replace("version: 13.0.88", "version: |-\n            13.0.88", 1)
    with pytest.raises(UsageError, match="a block of text"):
        apply_changes(text, [change((*NVCC, "version"), "13.0.88", "13.0.89")])


def test_a_result_that_is_no_matrix_is_refused() -> None:
    # The compiler's version must be the toolkit's.
    with pytest.raises(UsageError, match=r"the compiler of this toolkit is 13\.0\.x"):
        apply_changes(EXAMPLE, [change((*NVCC, "version"), "13.0.88", "13.1.5")])
    with pytest.raises(UsageError):
        apply_changes(EXAMPLE, [change((*DEVEL, "digest"), None, 'sha256:"}\nx: {')])


def test_two_changes_of_one_value_are_a_defect() -> None:
    one = change((*NVCC, "version"), "13.0.88", "13.0.89")
    with pytest.raises(ValueError, match="two changes"):
        apply_changes(EXAMPLE, [one, one])


def _pin_changes() -> st.SearchStrategy[list[Change]]:
    """Any number of new pins, of every kind, in any order."""
    hexadecimal = st.text("0123456789abcdef", min_size=64, max_size=64)
    digits = st.integers(0, 99)
    options: list[st.SearchStrategy[Change]] = []

    def option(path: KeyPath, old: str | None, new: st.SearchStrategy[str]) -> None:
        options.append(new.map(lambda text: change(path, old, text)))

    for path, wheel in placed_wheels(TOOLKIT):
        option((*path, "version"), wheel.version, digits.map("13.0.{}".format))
        for platform, sha256 in wheel.sha256.items():
            option((*path, "sha256", platform), sha256, hexadecimal)
    for toolkit in MATRIX.toolkits.values():
        assert toolkit.images is not None
        for role, image in (("devel", toolkit.images.devel), ("runtime", toolkit.images.runtime)):
            path = ("toolkits", toolkit.name, "images", role)
            option((*path, "name"), image.name, digits.map("host:5000/cuda:{}-x".format))
            option((*path, "digest"), None, hexadecimal.map("sha256:{}".format))
    return st.lists(st.one_of(options), unique_by=lambda one: one.path, max_size=12)


@settings(max_examples=25, deadline=None)
@given(changes=_pin_changes())
def test_only_the_changed_values_differ(changes: list[Change]) -> None:
    result = apply_changes(EXAMPLE, changes)
    # The data: what was asked for, and nothing else.
    expected = MATRIX.model_dump()
    for one in changes:
        inner: Any = expected
        for part in one.path[:-1]:
            inner = inner[part] if not isinstance(inner, tuple) else inner[int(part)]
        inner[one.path[-1]] = one.new
    assert parse_matrix(result, name="m.yaml").model_dump() == expected
    # The text: no line comes or goes, and a changed line differs in its value alone.
    old_lines, new_lines = EXAMPLE.split("\n"), result.split("\n")
    document = read_yaml(EXAMPLE, Mistakes(name="m.yaml"))
    wanted = list(old_lines)
    for one in sorted(changes, key=lambda one: one.old is not None):
        place = one.path if one.old is not None else one.path[:-1]
        number = document.line(place) - 1
        if one.old is None:
            wanted[number] = wanted[number].replace('"}', f'", digest: "{one.new}"}}')
        else:
            # What reads as a number is put in quotes.
            written = f'"{one.new}"' if one.new.isdigit() else one.new
            wanted[number] = wanted[number].replace(one.old, written)
    assert new_lines == wanted


def test_what_is_around_a_change_stays_to_the_byte() -> None:
    old = "version: 13.0.88"
    at = EXAMPLE.index(old) + len("version: ")
    result = apply_changes(EXAMPLE, [change((*NVCC, "version"), "13.0.88", "13.0.1234")])
    assert result[:at] == EXAMPLE[:at]
    assert result[at + len("13.0.1234") :] == EXAMPLE[at + len("13.0.88") :]


# --- what fits ------------------------------------------------------------------------------------


def tags(*versions: str, kind: str = "devel") -> list[str]:
    return [f"{version}-{kind}-ubuntu24.04" for version in versions]


def fitting(devel: list[str], runtime: list[str]) -> list[str]:
    return [name.rpartition(":")[2] for name, _ in image_candidates(TOOLKIT, devel, runtime)]


def test_the_newest_patch_release_that_both_images_have() -> None:
    devel = tags("13.0.0", "13.0.1", "13.0.2", "13.0.10", "13.1.0", "12.9.1")
    runtime = tags("13.0.0", "13.0.1", "13.0.2", "13.1.0", kind="runtime")
    assert fitting(devel, runtime) == tags("13.0.2", "13.0.1")
    assert fitting(devel, [*runtime, "13.0.10-runtime-ubuntu24.04"]) == tags("13.0.10", "13.0.2", "13.0.1")
    pairs = image_candidates(TOOLKIT, devel, runtime)
    assert pairs[0] == (
        "nvidia/cuda:13.0.2-devel-ubuntu24.04",
        "nvidia/cuda:13.0.2-runtime-ubuntu24.04",
    )


def test_another_flavour_or_distribution_does_not_fit() -> None:
    devel = ["13.0.2-cudnn-devel-ubuntu24.04", "13.0.2-devel-ubuntu22.04", "13.0.2-devel-rockylinux9"]
    runtime = tags("13.0.1", "13.0.2", kind="runtime")
    assert fitting([*devel, *tags("13.0.1")], runtime) == tags("13.0.1")


def test_images_never_go_backwards() -> None:
    assert fitting(tags("13.0.0"), tags("13.0.0", kind="runtime")) == []


def test_images_follow_a_toolkit_whose_version_was_changed() -> None:
    toolkit = TOOLKIT.model_copy(update={"version": "12.9"})
    devel, runtime = tags("12.9.0", "12.9.1", "13.0.1"), tags("12.9.0", "12.9.1", kind="runtime")
    assert [d.rpartition(":")[2] for d, _ in image_candidates(toolkit, devel, runtime)] == tags(
        "12.9.1", "12.9.0"
    )


def test_a_tag_without_a_version_stays() -> None:
    text = EXAMPLE.replace("nvidia/cuda:13.0.1-devel-ubuntu24.04", "host:5000/cuda:ours")
    toolkit = parse_matrix(text, name="m.yaml").toolkits["cuda-13.0"]
    runtime = tags("13.0.1", "13.0.2", kind="runtime")
    assert image_candidates(toolkit, ["ours"], runtime) == (
        ("host:5000/cuda:ours", "nvidia/cuda:13.0.1-runtime-ubuntu24.04"),
    )
    assert image_candidates(toolkit, ["theirs"], runtime) == ()


WHEELS = {wheel.name: wheel for _, wheel in placed_wheels(TOOLKIT)}


@pytest.mark.parametrize(
    ("name", "available", "expected"),
    [
        ("nvidia-cuda-nvcc", ["13.0.88", "13.0.9", "13.0.100", "13.1.2", "12.9.9"], ["13.0.100", "13.0.88"]),
        ("nvidia-cublas", ["13.0.0.19", "13.0.2.14", "13.1.0.3", "13.10.0.20"], ["13.0.2.14"]),
        # The 13.0 line has no such wheel: the newest of the same major version.
        ("nvidia-cuda-cuobjdump", ["13.2.86", "13.4.92", "13.5.37", "14.0.1"], ["13.5.37", "13.4.92"]),
        ("nvidia-cuda-cuobjdump", ["13.2.86"], []),
        # Once the line has one, it is taken, though its number is lower.
        ("nvidia-cuda-cuobjdump", ["13.0.5", "13.5.37"], ["13.0.5"]),
        ("nvidia-cuda-nvcc", ["13.0.89rc1", "13.0.90.dev1", "13.0.88"], ["13.0.88"]),
        ("nvidia-cuda-nvcc", ["13.0.88", "13.0.88.post1"], ["13.0.88.post1", "13.0.88"]),
        ("nvidia-cuda-nvcc", ["13.0.87", "13.1.0"], []),
        ("nvidia-cuda-nvcc", ["13.0.88.0"], ["13.0.88.0"]),
        ("nvidia-cuda-nvcc", ["rubbish", "13", ""], []),
    ],
)  # fmt: skip
def test_wheels_stay_in_the_toolkits_line(name: str, available: list[str], expected: list[str]) -> None:
    assert list(wheel_candidates(WHEELS[name], TOOLKIT, available)) == expected


# --- answers from outside -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "repository", "tag"),
    [
        ("nvidia/cuda:13.0.1-devel-ubuntu24.04", "nvidia/cuda", "13.0.1-devel-ubuntu24.04"),
        ("debian:bookworm", "library/debian", "bookworm"),
    ],
)
def test_a_name_without_a_host_lies_on_the_default_registry(name: str, repository: str, tag: str) -> None:
    address, *rest = locate(name)
    assert address.startswith("https://")
    assert rest == [repository, tag]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("registry.example:5000/a/b:1", ("https://registry.example:5000", "a/b", "1")),
        ("registry.example/b:1", ("https://registry.example", "b", "1")),
        ("localhost:5000/b:1", ("http://localhost:5000", "b", "1")),
        ("127.0.0.1:5000/a/b:1", ("http://127.0.0.1:5000", "a/b", "1")),
    ],
)
def test_a_name_with_a_host(name: str, expected: tuple[str, str, str]) -> None:
    assert locate(name) == expected


def test_what_pip_prints() -> None:
    text = "nvidia-cublas (13.10.0.20)\nAvailable versions: 13.10.0.20, 13.0.2.14\n  INSTALLED: 1\n"
    assert listed_versions(text) == ("13.10.0.20", "13.0.2.14")
    assert listed_versions("") is None
    item = '{"download_info": {"archive_info": {"hashes": {"sha256": "%s"}}}, "is_yanked": true}' % ("0" * 64)
    assert reported_wheel(f'{{"install": [{item}]}}', "x 1") == PublishedWheel(sha256="0" * 64, yanked=True)
    for broken in (
        "",
        "[]",
        "{}",
        '{"install": []}',
        f'{{"install": [{item}, {item}]}}',
        item.replace("0", "g"),
    ):
        with pytest.raises(OutsideError, match="no sha256 for x 1"):
            reported_wheel(broken, "x 1")


# --- the workflow ---------------------------------------------------------------------------------


class Answers:
    """Upstreams that know newer things; a kind in ``silent`` gives no answer."""

    def __init__(self, *silent: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.silent = silent
        self.meanwhile = meanwhile
        self.asked: list[str] = []
        self.platforms = {"linux/amd64", "linux/arm64"}
        self.versions: Mapping[str, list[str]] = {}
        self.yanked: set[str] = set()

    def _answer(self, kind: str) -> None:
        self.asked.append(kind)
        self.meanwhile()
        if kind in self.silent:
            raise OutsideError(f"{kind} can't be reached", hint="check the network")

    def image_tags(self, name: str) -> tuple[str, ...]:
        self._answer("images")
        versions = ("12.9.1", "12.9.2", "13.0.1", "13.0.2", "13.0.3")
        return (*tags(*versions), *tags(*versions[:-1], kind="runtime"), "latest")

    def image(self, name: str) -> PublishedImage:
        platforms = self.platforms if "13.0.2" in name else {"linux/amd64", "linux/arm64"}
        return PublishedImage(name=name, digest=DIGEST, platforms=frozenset(platforms))

    def wheel_versions(self, name: str, platform: Platform) -> tuple[str, ...]:
        self._answer("wheels")
        return tuple(self.versions.get(name, [WHEELS[name].version]))

    def wheel(self, name: str, version: str, platform: Platform) -> PublishedWheel:
        digit = "d" if platform == "linux/amd64" else "e"
        return PublishedWheel(sha256=digit * 64, yanked=version in self.yanked)

    def head(self, repository: str, ref: str) -> str:
        self._answer("source")
        return "daca8075" * 5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "matrix.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    path.chmod(0o640)
    return path


class Printed(ConsoleReporter):
    def __init__(self) -> None:
        self.to = io.StringIO()
        super().__init__(self.to, plain=True)

    @property
    def text(self) -> str:
        return self.to.getvalue()


def test_everything_is_asked_and_written(path: Path) -> None:
    answers, out = Answers(), Printed()
    answers.versions = {"nvidia-cuda-crt": ["13.0.90", "13.0.88", "13.1.1"]}
    result = update_pins(path, answers, out, show=out.line)
    assert result.written
    matrix = parse_matrix(path.read_text(), name="m.yaml")
    images = matrix.toolkits["cuda-13.0"].images
    assert images is not None
    # 13.0.3 has no runtime image.
    assert images.runtime.reference == f"nvidia/cuda:13.0.2-runtime-ubuntu24.04@{DIGEST}"
    wheels = dict(placed_wheels(matrix.toolkits["cuda-13.0"]))
    crt = wheels[*CUDA, "wheels", "build", 2]
    assert (crt.version, dict(crt.sha256)) == ("13.0.90", {"linux/amd64": "d" * 64, "linux/arm64": "e" * 64})
    # 2 toolkits x 2 images x (name, digest), and one wheel's version with two hashes.
    assert len(result.changes) == 11
    assert "toolkits.cuda-13.0.wheels.build[2].version" in out.text
    assert "13.0.88" in out.text
    assert "run invoke render" in out.text
    # A moved head is told and changes nothing.
    assert matrix.sources == MATRIX.sources
    assert "pull/24423/head is at daca8075daca, the pin stays at 10a2613aa0b2" in out.text
    assert path.stat().st_mode & 0o777 == 0o640
    assert [one.name for one in path.parent.iterdir()] == ["matrix.yaml"]


def test_a_second_run_changes_nothing(path: Path) -> None:
    update_pins(path, Answers(), Printed(), show=print)
    once = path.read_bytes()
    out = Printed()
    result = update_pins(path, Answers(), out, show=out.line)
    assert result.changes == ()
    assert path.read_bytes() == once
    assert "every pin that was asked for is the newest that fits" in out.text


def test_a_dry_run_writes_nothing(path: Path) -> None:
    out = Printed()
    result = update_pins(path, Answers(), out, show=out.line, dry_run=True)
    assert result.changes
    assert not result.written
    assert path.read_text() == EXAMPLE
    assert "nothing was written" in out.text


@pytest.mark.parametrize("only", [["images"], ["wheels"], ["source"], ["source", "images"]])
def test_only_what_is_named_is_asked(path: Path, only: list[str]) -> None:
    answers = Answers()
    update_pins(path, answers, Printed(), show=print, only=only)
    assert set(answers.asked) == set(only)


def test_an_unknown_kind_is_refused_before_anything_is_asked(path: Path) -> None:
    answers = Answers()
    with pytest.raises(UsageError, match='did you mean "wheels"'):
        update_pins(path, answers, Printed(), show=print, only=["wheel"])
    assert answers.asked == []


@pytest.mark.parametrize("silent", ["images", "wheels", "source"])
def test_one_silent_upstream_stops_no_other(path: Path, silent: str) -> None:
    answers, out = Answers(silent), Printed()
    answers.versions = {"nvidia-nvvm": ["13.0.99"]}
    with pytest.raises(OutsideError, match="no answer about the"):
        update_pins(path, answers, out, show=out.line)
    assert set(answers.asked) == {"images", "wheels", "source"}
    assert f"{silent} can't be reached; check the network" in out.text
    text = path.read_text()
    assert ("digest:" in text) == (silent != "images")
    assert ("13.0.99" in text) == (silent != "wheels")
    parse_matrix(text, name="m.yaml")


def test_the_wheels_of_a_toolkit_change_together_or_not_at_all(path: Path) -> None:
    answers = Answers()
    answers.versions = {"nvidia-cuda-nvcc": ["13.0.99"], "nvidia-cublas": ["13.0.1.1"]}
    out = Printed()
    with pytest.raises(OutsideError, match=r"no answer about the wheels of cuda-13\.0"):
        update_pins(path, answers, out, show=out.line, only=["wheels"])
    assert "no nvidia-cublas as new as 13.0.2.14 that fits CUDA 13.0" in out.text
    assert path.read_text() == EXAMPLE


def test_a_yanked_wheel_is_passed_over(path: Path) -> None:
    answers = Answers()
    answers.versions = {"nvidia-nvvm": ["13.0.88", "13.0.90", "13.0.99"]}
    answers.yanked = {"13.0.99"}
    result = update_pins(path, answers, Printed(), show=print, only=["wheels"])
    assert result.changes[0].new == "13.0.90"


def test_an_image_that_lacks_a_platform_is_passed_over(path: Path) -> None:
    answers = Answers()
    answers.platforms = {"linux/amd64"}
    result = update_pins(path, answers, Printed(), show=print, only=["images"])
    news = {one.path: one.new for one in result.changes}
    assert (*DEVEL, "name") not in news, "13.0.1 is the newest with both platforms"
    assert news[*DEVEL, "digest"] == DIGEST


def test_a_matrix_changed_meanwhile_is_not_overwritten(path: Path) -> None:
    theirs = EXAMPLE + "# somebody else was here\n"
    answers = Answers(meanwhile=lambda: path.write_text(theirs))
    with pytest.raises(UsageError, match="somebody changed it while this ran; nothing was written"):
        update_pins(path, answers, Printed(), show=print, only=["images"])
    assert path.read_text() == theirs
    assert [one.name for one in path.parent.iterdir()] == ["matrix.yaml"]


def test_line_ends_and_a_link_are_kept(path: Path, tmp_path: Path) -> None:
    windows = EXAMPLE.replace("\n", "\r\n").encode()
    path.write_bytes(windows)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    update_pins(link, Answers(), Printed(), show=print, only=["images"])
    assert link.is_symlink()
    data = path.read_bytes()
    assert data != windows
    assert data.count(b"\r\n") == data.count(b"\n") == windows.count(b"\n")


def test_a_wrong_or_missing_matrix_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    answers = Answers()
    with pytest.raises(UsageError, match="there is no such file"):
        update_pins(tmp_path / "none.yaml", answers, Printed(), show=print)
    (tmp_path / "bad.yaml").write_text("version: 2\n")
    with pytest.raises(UsageError, match=r"bad\.yaml:1: version"):
        update_pins(tmp_path / "bad.yaml", answers, Printed(), show=print)
    assert answers.asked == []
