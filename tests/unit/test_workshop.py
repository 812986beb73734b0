"""What a workshop finds in the environment and writes into the repository."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from llama_images.errors import UsageError
from llama_images.matrix import load_matrix
from llama_images.ports import Programs, Reporter, SourceTree
from llama_images.selection import make_target
from llama_images.workflows.workshop import Workshop, built_image, write_or_remove
from tests.unit.fakes import FakeEngine

ROOT = Path(__file__).resolve().parents[2]


def workshop(environment: dict[str, str], cache: Path) -> Workshop:
    unused = object()  # no port is touched by what is tested here
    return Workshop(
        root=ROOT,
        cache=cache,
        environment=environment,
        matrix=load_matrix(ROOT / "matrix.yaml"),
        series={},
        programs=cast("Programs", unused),
        reporter=cast("Reporter", unused),
        source_tree=cast("SourceTree", unused),
    )


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_custom_ca_bundle_becomes_a_secret(tmp_path: Path, variable: str) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("a certificate")
    assert workshop({variable: str(bundle)}, tmp_path).secrets() == {"ca": bundle}


def test_without_a_bundle_there_is_no_secret(tmp_path: Path) -> None:
    assert workshop({}, tmp_path).secrets() == {}
    assert workshop({"SSL_CERT_FILE": str(tmp_path / "gone.pem")}, tmp_path).secrets() == {}


def test_proxies_of_either_case_become_build_arguments(tmp_path: Path) -> None:
    environment = {"https_proxy": "http://p:3128", "NO_PROXY": "localhost", "HTTP_PROXY": "", "PATH": "/bin"}
    assert workshop(environment, tmp_path).proxies() == {
        "https_proxy": "http://p:3128",
        "NO_PROXY": "localhost",
    }


def test_a_file_is_written_aside_and_renamed(tmp_path: Path) -> None:
    path = tmp_path / "a" / "Dockerfile"
    write_or_remove(path, "FROM scratch\n")
    assert path.read_text() == "FROM scratch\n"
    assert [p.name for p in path.parent.iterdir()] == ["Dockerfile"]


def test_a_leftover_goes_with_its_folder_once_empty(tmp_path: Path) -> None:
    kept, gone = tmp_path / "a" / "kept", tmp_path / "a" / "Dockerfile"
    write_or_remove(kept, "x")
    write_or_remove(gone, "y")
    write_or_remove(gone, None)
    assert kept.exists()
    write_or_remove(kept, None)
    assert not kept.parent.exists()


@pytest.mark.parametrize(
    ("names", "command"),
    [
        ({}, "invoke build --arch 89 makes it"),
        ({"flavor": "stock"}, "invoke build --arch 89 --flavor stock makes it"),
        ({"base": "nvidia"}, "invoke build --arch 89 --base nvidia makes it"),
    ],
)
def test_an_image_that_was_not_built_is_wrong_use_and_its_command_is_told(
    tmp_path: Path, names: dict[str, str], command: str
) -> None:
    shop = workshop({}, tmp_path)
    target = make_target(shop.matrix, "89", **names)
    with pytest.raises(UsageError, match=f"there is no image llama-diffusion:{target.id} on") as raised:
        built_image(shop, FakeEngine(), target)
    assert raised.value.hint == command
