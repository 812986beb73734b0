"""The project's own matrix, its types, its schema, and reading the file."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from llama_images.errors import UsageError
from llama_images.matrix import Matrix, json_schema, load_matrix, parse_matrix

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE_FILE = Path(__file__).parent / "example_matrix.yaml"
EXAMPLE = EXAMPLE_FILE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return parse_matrix(EXAMPLE, name="matrix.yaml")


# --- values ---------------------------------------------------------------------------------------


def test_the_projects_own_matrix_is_sound() -> None:
    own = load_matrix(ROOT / "matrix.yaml")
    assert {"cpu", "70", "75", "80", "86", "89", "90", "100", "103", "110", "120", "121", "portable"} <= set(
        own.architectures
    )
    assert own.defaults.base == "debian"


def test_rows_know_their_names_and_keep_the_order_of_the_file(matrix: Matrix) -> None:
    for section in (matrix.sources, matrix.bases, matrix.toolkits, matrix.architectures, matrix.models):
        assert [row.name for row in section.values()] == list(section)
    assert list(matrix.architectures)[:3] == ["cpu", "70", "75"]
    assert list(matrix.architectures)[-1] == "portable"


def test_values_are_what_the_file_says(matrix: Matrix) -> None:
    source = matrix.sources["pr24423"]
    assert source.commit == "10a2613aa0b2686f7d0608520c4f0ea05219df03"
    assert source.date == datetime(2026, 6, 11, 16, 49, 3, tzinfo=UTC)
    assert source.version == "1.2.3"
    assert source.build_number == 9600
    assert source.paths[-1] == "tools/CMakeLists.txt"
    toolkit = matrix.toolkits["cuda-13.0"]
    assert toolkit.version == "13.0"
    assert toolkit.wheels is not None
    assert toolkit.wheels.build[0].sha256["linux/arm64"].startswith("c7ff28f8")
    assert matrix.bases["nvidia"].suite is None
    assert matrix.bases["nvidia"].packages == ()


@pytest.mark.parametrize(
    ("name", "label", "cmake"),
    [
        ("cpu", "cpu", ""),
        ("70", "sm70", "70-real"),
        ("120", "sm120", "120a-real"),
        (
            "portable",
            "portable",
            "75-real;80-real;86-real;89-real;90-real;100-real;103-real;110-real;120a-real;121a-real;75-virtual",
        ),
    ],
)
def test_label_and_cmake_architectures(matrix: Matrix, name: str, label: str, cmake: str) -> None:
    assert matrix.architectures[name].label == label
    assert matrix.architectures[name].cmake_architectures == cmake


def test_bases_that_can_make_an_architecture(matrix: Matrix) -> None:
    able = {name: matrix.bases_for(row) for name, row in matrix.architectures.items()}
    assert able["cpu"] == ("debian",)
    assert able["70"] == ("nvidia",)
    assert able["120"] == ("debian", "nvidia")
    assert able["portable"] == ("debian", "nvidia")


def test_a_model_may_be_unpinned_and_a_matrix_without_models() -> None:
    unpinned = re.sub(r"    revision: .*\n    sha256: .*\n", "", EXAMPLE)
    model = parse_matrix(unpinned, name="matrix.yaml").models["gemma-q4"]
    assert (model.revision, model.sha256) == (None, None)
    bare = re.sub(r"\nmodels:\n(  .*\n)+|  model: .*\n", "", EXAMPLE)
    assert dict(parse_matrix(bare, name="matrix.yaml").models) == {}


def test_an_image_without_digest_is_named_alone() -> None:
    digest = "sha256:" + "ab" * 32
    pinned = EXAMPLE.replace('13.0.1-devel-ubuntu24.04"', f'13.0.1-devel-ubuntu24.04", digest: "{digest}"')
    images = parse_matrix(pinned, name="m").toolkits["cuda-13.0"].images
    assert images is not None
    assert images.devel.reference == f"nvidia/cuda:13.0.1-devel-ubuntu24.04@{digest}"
    assert images.runtime.reference == "nvidia/cuda:13.0.1-runtime-ubuntu24.04"


def test_nothing_can_be_changed(matrix: Matrix) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        matrix.architectures["120"].family = "ada"  # type: ignore[misc]
    with pytest.raises(TypeError):
        matrix.architectures["120"] = matrix.architectures["70"]  # type: ignore[index]


def test_a_matrix_can_be_hashed_copied_and_pickled(matrix: Matrix) -> None:
    assert pickle.loads(pickle.dumps(matrix)) == matrix
    assert copy.deepcopy(matrix) == matrix
    assert hash(parse_matrix(EXAMPLE, name="other")) == hash(matrix)


def test_a_matrix_can_be_written_as_json(matrix: Matrix) -> None:
    data = json.loads(matrix.model_dump_json())
    assert data["architectures"]["120"]["sass"] == ["120a"]
    assert Matrix.model_validate_json(matrix.model_dump_json()) == matrix


def test_order_of_keys_within_a_row_does_not_matter(matrix: Matrix) -> None:
    text = EXAMPLE.replace("  base: debian\n  flavor: patched\n", "  flavor: patched\n  base: debian\n")
    assert text != EXAMPLE
    assert parse_matrix(text, name="m") == matrix


def test_a_second_source_is_welcome() -> None:
    start = EXAMPLE.index("  pr24423:")
    row = EXAMPLE[start : EXAMPLE.index("flavors:")]
    text = EXAMPLE.replace("flavors:", row.replace("pr24423:", "pr24424:", 1) + "flavors:", 1)
    assert list(parse_matrix(text, name="m").sources) == ["pr24423", "pr24424"]


@pytest.mark.parametrize("family", ["", "    family: blackwell\n"])
def test_a_number_of_a_generation_without_a_name_here_needs_no_family(family: str) -> None:
    row = f'  "130":\n{family}    toolkit: cuda-13.0\n    serves: [a newer GPU]\n'
    row += '    platforms: [linux/amd64]\n    sass: ["130"]\n'
    text = EXAMPLE.replace("  portable:\n", f"{row}  portable:\n").replace(
        '"121a"]\n    ptx', '"121a", "130"]\n    ptx'
    )
    read = parse_matrix(text, name="m").architectures["130"]
    assert read.family == ("blackwell" if family else None)


# --- the file -------------------------------------------------------------------------------------


def write(folder: Path, data: bytes) -> Path:
    path = folder / "matrix.yaml"
    path.write_bytes(data)
    return path


def refused(path: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_matrix(path)
    return caught.value


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path, matrix: Matrix) -> None:
    assert load_matrix(write(tmp_path, b"\xef\xbb\xbf" + EXAMPLE.encode())) == matrix
    assert load_matrix(write(tmp_path, EXAMPLE.replace("\n", "\r\n").encode())) == matrix


def test_not_utf8(tmp_path: Path) -> None:
    error = refused(write(tmp_path, EXAMPLE.encode().replace(b"flavors", b"flav\xe9urs")))
    line = EXAMPLE[: EXAMPLE.index("flavors")].count("\n") + 1
    assert error.message.endswith(f"matrix.yaml:{line}: byte 0xe9 is not UTF-8; save the file as UTF-8")


def test_utf16(tmp_path: Path) -> None:
    assert "is UTF-16; save it as UTF-8" in refused(write(tmp_path, EXAMPLE.encode("utf-16"))).message


def test_empty_file(tmp_path: Path) -> None:
    assert refused(write(tmp_path, b"")).message.endswith("matrix.yaml:1: the file is empty")


def test_a_file_that_is_no_yaml(tmp_path: Path) -> None:
    error = refused(write(tmp_path, b"a: 1\nsome words\n"))
    assert "this is not YAML" in error.message
    assert error.hint == "is this the right file? A matrix is YAML, as matrix.yaml is"


def test_directory(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert error.message == f"{tmp_path}: this is a directory; the matrix is one file"
    assert error.hint is not None


def test_missing_file(tmp_path: Path) -> None:
    error = refused(tmp_path / "matrix.yml")
    assert error.message == f"{tmp_path}/matrix.yml: there is no such file"
    assert error.hint == "is its path right? The project's own is matrix.yaml in its top folder"


def test_file_below_a_file(tmp_path: Path) -> None:
    error = refused(write(tmp_path, b"x") / "matrix.yaml")
    assert "can't be read: Not a directory" in error.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path, EXAMPLE.encode())
    path.chmod(0)
    assert "can't be read: Permission denied" in refused(path).message


def test_unreadable_file_as_the_system_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_args: Any, **_kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, EXAMPLE.encode())
    monkeypatch.setattr(Path, "open", deny)
    assert refused(path).message == f"{path}: can't be read: Permission denied"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "matrix.yaml"
    os.mkfifo(pipe)
    assert "this is no plain file" in refused(pipe).message


def test_a_name_that_no_file_can_have() -> None:
    assert "can't be read" in refused(Path("matrix\0.yaml")).message


def test_too_large(tmp_path: Path) -> None:
    assert "larger than 1 MiB" in refused(write(tmp_path, b"#" * ((1 << 20) + 1))).message


def test_a_file_below_the_current_folder_is_named_as_a_reader_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(write(tmp_path, b"a: 1")).message.startswith("matrix.yaml:1: ")


def test_the_series_of_a_source_must_lie_beside_the_file(tmp_path: Path, matrix: Matrix) -> None:
    path = write(tmp_path, EXAMPLE.encode())
    assert load_matrix(path) == matrix
    (tmp_path / "patches" / "pr24422").mkdir(parents=True)
    assert 'no folder patches/pr24423 (did you mean "pr24422"?)' in refused(path).message
    (tmp_path / "patches" / "pr24423").mkdir()
    assert load_matrix(path) == matrix


# --- the schema -----------------------------------------------------------------------------------


class _AsEditorsRead(yaml.SafeLoader):
    """YAML 1.2, which editors follow, has no timestamps: a date is text."""


_AsEditorsRead.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def schema_errors(text: str) -> list[str]:
    schema = json.loads(json_schema())
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(yaml.load(text, _AsEditorsRead))]


def test_the_schema_is_a_schema_and_the_same_every_time() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(json_schema()))
    assert json_schema() == json_schema()


def test_the_committed_schema_is_the_generated_one() -> None:
    assert (ROOT / "matrix.schema.json").read_text(encoding="utf-8") == json_schema()


def test_both_matrices_follow_the_schema() -> None:
    assert schema_errors(EXAMPLE) == []
    assert schema_errors((ROOT / "matrix.yaml").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    commit:", "    comit:"),
        ("version: 1\n", "version: 2\n"),
        ("version: 1\n", ""),
        ('version: "13.0"', "version: 13.0"),
        ("commit: 10a2", "commit: 10A2"),
        ("family: volta", "family: volt"),
        ("    family: volta", "    name: V100"),
        ("linux/amd64: 56", "linux/amd46: 56"),
        ("serves: [H100, H200, GH200]", "serves: []"),
        ("https://github", "http://github"),
        ('  "120":', "  sm120:"),
        ("flavors: [patched, stock]", "flavors: [patched, patched]"),
        ("suite: bookworm", "suite:"),
        ("[A100,", "[A$100,"),
        ("flavors:", "flavours: 1\nflavors:"),
        ("  gemma-q4:", "  Gemma:"),
        ("repository: owner/", "repository: "),
        ("Q4_K_M.gguf", "Q4_K_M"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(old: str, new: str) -> None:
    assert old in EXAMPLE
    text = EXAMPLE.replace(old, new, 1)
    assert schema_errors(text)
    with pytest.raises(UsageError):
        parse_matrix(text, name="matrix.yaml")


def test_every_key_has_a_description_for_editors() -> None:
    schema = json.loads(json_schema())
    for name, definition in {"Matrix": schema, **schema["$defs"]}.items():
        for key, value in definition["properties"].items():
            assert value.get("description"), f"{name}.{key}"
