"""The page that is attached to an issue: what stands on it, and what does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llama_images.diagnosis import diagnose
from llama_images.matrix import load_matrix
from llama_images.ports import ImageInfo
from llama_images.redaction import Self
from llama_images.report import image_rows, report_text
from llama_images.screens import doctor_screen
from tests.unit.test_diagnosis import gpu, machine, survey

MATRIX = load_matrix(Path(__file__).resolve().parents[2] / "matrix.yaml")
ME = Self(home="/home/jane", user="jane", host="tower")
IMAGE = ImageInfo(
    id="sha256:0123",
    labels={"io.github.llama-images.series-digest": "sha256:4567", "org.opencontainers.image.version": "8"},
    environment=(),
    entrypoint=(),
    user="",
    layers=(),
    size_bytes=1,
    created="",
)


def test_a_page_has_the_versions_and_every_section() -> None:
    page = report_text({"engine": "docker 28 | x"}, {"fit": "does not fit"}, ME, MATRIX)
    assert "| engine | docker 28 / x |" in page.splitlines()
    assert page.endswith("## fit\n\n```\ndoes not fit\n```\n")


def test_an_image_tells_its_series_and_a_missing_one_that_it_is_missing() -> None:
    assert image_rows("an/image:1", IMAGE) == {
        "image": "an/image:1, sha256:0123",
        "image's series-digest": "sha256:4567",
        "image's version": "8",
    }
    assert image_rows("an/image:1", None) == {"image": "an/image:1 is not on this engine"}
    unlabelled = dataclasses.replace(IMAGE, labels={})
    assert image_rows("an/image:1", unlabelled) == {"image": "an/image:1, sha256:0123"}


def test_what_doctor_says_of_a_network_is_without_its_names() -> None:
    found = machine(
        survey(gpu(0)),
        environment={
            "https_proxy": "http://jane:secret@proxy.corp:3128",
            "SSL_CERT_FILE": "/home/jane/ca.pem",
        },
        missing_certificates=("SSL_CERT_FILE",),
        unreached={"https://huggingface.co": "no answer in time", "https://hub.corp/x": "refused"},
    )
    screen = doctor_screen(diagnose(found, MATRIX))
    shown = "".join(span.text for line in screen for span in line)
    assert all(name in shown for name in ("proxy.corp", "/home/jane", "https://hub.corp"))
    page = report_text({}, {"doctor": screen}, ME, MATRIX)
    assert "curl -sSI https://huggingface.co" in page
    assert "RTX 5060 Ti" in page
    for name in ("jane", "secret", "corp"):
        assert name not in page, name
