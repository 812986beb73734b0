"""The page stands alone, says what was measured, and lets nothing of the data become markup."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings

from llama_images.bench import Bench
from llama_images.bench_page import TEMPLATE, render_page, shown
from tests.unit.benches import benches, example

TEXT = (Path(__file__).resolve().parents[2] / "templates" / TEMPLATE).read_text("utf-8")
SVG = '<svg viewBox="0 0 1 1"><path d="M0 0"/></svg>'
VOID = {"meta", "br", "path"}
HARMLESS = {"charset", "class", "content", "d", "lang", "name", "viewbox"}
"""Attributes of the page itself; none of them names a place."""


class Page(HTMLParser):
    """Elements, attributes and words of a page; fails where an end fits no start."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_it_says_what_was_measured_where_and_how() -> None:
    page = Page(render_page(example(), SVG, TEXT))
    for words in (
        "stock against patched",
        "2 × NVIDIA X, 16,311 MiB · full.gguf · 2 rounds · 2026-01-02",
        "2 GPUs, long",
        "5.75×",
        "5.50 to 6.00×",
        "in milliseconds",
        "in seconds",
        "15,400,000,000 bytes",
        "580.65.06",
        "sha256:" + "0" * 64,
        "llama-diffusion-cli -m full.gguf",
    ):
        assert words in page.text, words


def test_it_asks_for_nothing() -> None:
    text = render_page(example(), SVG, TEXT)
    page = Page(text)
    assert page.open == []
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(page.tags)
    assert page.attributes <= HARMLESS
    assert re.findall(r"https?:|//|url\(|@import|@font-face", text) == []


def test_it_has_colours_for_the_dark() -> None:
    style = re.search(r"<style>(.*?)</style>", TEXT, re.DOTALL)
    assert style
    light, dark = style[1].split("@media (prefers-color-scheme: dark)")
    names = re.findall(r"(--chart-[a-z0-9-]+):", light)
    assert names
    assert sorted(names) == sorted(re.findall(r"(--chart-[a-z0-9-]+):", dark.split("* {")[0]))
    assert set(re.findall(r"var\((--chart-[a-z0-9-]+)", style[1])) <= set(names)


@given(benches())
@settings(max_examples=60, deadline=None)
def test_data_never_become_markup(bench: Bench) -> None:
    page = Page(render_page(bench, SVG, TEXT))
    assert page.open == []
    assert page.attributes <= HARMLESS
    assert {"b", "i"}.isdisjoint(page.tags)


def test_a_hostile_note_is_only_words() -> None:
    note = "</p><script>alert(1)</script>\" onload='x'"
    page = Page(render_page(dataclasses.replace(example(), note=note), SVG, TEXT))
    assert "script" not in page.tags
    assert note in " ".join(page.words)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (("a", "-p", "two words", "$PWD:/models:ro"), "a -p 'two words' '$PWD:/models:ro'"),
        (("a", "-p", "0149" * 100), "a -p 014901490149014901490149…(400 characters)"),
    ],
)
def test_commands_are_shown_as_a_shell_takes_them(command: tuple[str, ...], text: str) -> None:
    assert shown(command) == text
