"""The picture, as matplotlib draws it. Not a unit test: matplotlib starts fc-list when it looks for fonts."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from llama_images.adapters.figures import MatplotlibArtist
from llama_images.bench import Bench
from llama_images.bench_chart import chart_of
from llama_images.ports import Drawing
from tests.unit.benches import LONG, bench, benches, example, measurement, turn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def artist(tmp_path_factory: pytest.TempPathFactory) -> MatplotlibArtist:
    return MatplotlibArtist(tmp_path_factory.mktemp("matplotlib"))


@pytest.fixture(scope="module")
def drawing(artist: MatplotlibArtist) -> Drawing:
    return artist.draw(chart_of(example()))


def words(svg: str) -> list[str]:
    return [text.strip() for text in ET.fromstring(svg).itertext() if text.strip()]


def test_the_same_chart_gives_the_same_bytes(artist: MatplotlibArtist, drawing: Drawing) -> None:
    assert artist.draw(chart_of(example())) == drawing


def test_the_png_is_one_of_a_readable_size(drawing: Drawing) -> None:
    assert drawing.png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", drawing.png[16:24])
    assert width >= 1000
    assert height >= 800


def test_axes_have_names_and_units_and_values_stand_in_the_picture(drawing: Drawing) -> None:
    said = words(drawing.svg)
    for label in ("time of a step, ms", "gap before the block, ms", "context before the block, tokens"):
        assert label in said
    for label in ("2 GPUs", "short", "long", "5", "1,780", "2,036"):
        assert label in said
    # First and last median of each flavor, and every gap.
    assert {"315", "300", "630", "100", "110", "1,750", "500"} <= set(said)
    assert any("stock" in text for text in said)
    assert any("patched" in text for text in said)


def test_the_element_takes_all_its_colours_from_the_page(drawing: Drawing) -> None:
    bare = re.sub(r"var\(--chart-[a-z0-9-]+, #[0-9a-f]{6}\)", "", drawing.svg)
    assert re.findall(r"#[0-9a-f]{6}\b", bare) == []
    template = (ROOT / "templates" / "bench.html.j2").read_text("utf-8")
    assert set(re.findall(r"var\((--chart-[a-z0-9-]+)", drawing.svg)) <= set(
        re.findall(r"(--chart-[a-z0-9-]+):", template)
    )


def test_the_element_names_no_place_but_its_own_parts(drawing: Drawing) -> None:
    assert drawing.svg.startswith("<svg ")
    assert set(re.findall(r'(?:href="|url\()([^")]*)', drawing.svg)) <= {
        f"#{name}" for name in re.findall(r'id="([^"]+)"', drawing.svg)
    }
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"' ]+", drawing.svg)) <= namespaces


def test_flavors_differ_by_line_marker_and_hatch(drawing: Drawing) -> None:
    assert "stroke-dasharray" in drawing.svg
    assert "<pattern" in drawing.svg


def test_a_bench_without_gaps_has_no_empty_row(artist: MatplotlibArtist) -> None:
    one = bench(measurement(LONG, "stock", 1, turn((None, [1.0, 2.0]))))
    said = words(artist.draw(chart_of(one)).svg)
    assert "gap before the block, ms" not in said
    assert any(text.startswith("not measured: stock, short") for text in said)


def test_steps_far_off_do_not_flatten_the_rest_and_are_counted(artist: MatplotlibArtist) -> None:
    one = bench(measurement(LONG, "stock", 1, turn((None, [20.0] * 9 + [1900.0, 1800.0]))))
    said = words(artist.draw(chart_of(one)).svg)
    assert any("2 single steps above the scale" in text for text in said)
    assert "30" in said, "the scale is that of the medians"
    assert "1,500" not in said


@given(one=benches())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_bench_can_be_drawn(artist: MatplotlibArtist, one: Bench) -> None:
    drawing = artist.draw(chart_of(one))
    assert ET.fromstring(drawing.svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert drawing.png
