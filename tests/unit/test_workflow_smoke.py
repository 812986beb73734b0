"""What a smoke test says of an image before it looks into it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llama_images.ports import ImageInfo
from llama_images.render import labels, series_of
from llama_images.selection import local_reference, make_target
from llama_images.workflows.smoke import smoke
from tests.unit.fakes import House

COMMIT = "org.opencontainers.image.revision"
SERIES = "io.github.llama-images.series-digest"
IMAGE = ImageInfo(
    id="sha256:1", labels={}, environment=(), entrypoint=(), user="", layers=(), size_bytes=1, created=""
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        (
            {SERIES: f"sha256:{'1' * 64}"},
            "was built from the series 111111111111, and {series} is what there is now",
        ),
        ({COMMIT: "2" * 40}, "was built from commit 222222222222, and {commit} is what there is now"),
        ({COMMIT: "2" * 40, SERIES: "sha256:1"}, "was built from commit 222222222222, and {commit} is"),
    ],
)
def test_an_image_of_another_series_is_said_to_be_one(
    tmp_path: Path, change: dict[str, str], said: str | None
) -> None:
    house = House(tmp_path)
    shop = house.shop()
    target = make_target(shop.matrix, "cpu")
    now = labels(target, series_of(target, shop.series))
    reference = local_reference(target)
    house.engine.images[reference] = replace(IMAGE, labels={**now, **change})
    smoke(shop, house.engine, target, tmp_path / "tiny.gguf")
    warnings = [line for line in house.reporter.lines if line.startswith("warning: ")]
    assert len(warnings) == (said is not None)
    if said is not None:
        series, commit = now[SERIES].removeprefix("sha256:")[:12], now[COMMIT][:12]
        assert warnings[0].startswith(f"warning: {reference}: {said.format(series=series, commit=commit)}")
        assert warnings[0].endswith("; invoke build --arch cpu makes it anew")
