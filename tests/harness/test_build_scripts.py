"""Scripts of images/common that can run outside of a build, and what a build's log makes of their output."""

from __future__ import annotations

import subprocess
from pathlib import Path

from llama_images.buildlog import BuildLog, CcacheStats

COMMON = Path(__file__).resolve().parents[2] / "images" / "common"

# As ccache 4.7.5 and 4.9.1 write it.
MISS = "# {}\ncache_miss\ndirect_cache_miss\nlocal_storage_miss\nlocal_storage_write\n"
DIRECT_HIT = "# {}\ndirect_cache_hit\nlocal_storage_hit\nlocal_storage_read_hit\nlocal_storage_read_hit\n"
PREPROCESSED_HIT = "# {}\ndirect_cache_miss\nlocal_storage_hit\npreprocessed_cache_hit\n"
LINK = "# {}\ncalled_for_link\n"


def counted(log: Path) -> CcacheStats | None:
    done = subprocess.run(
        [COMMON / "ccache-counts", log], capture_output=True, text=True, timeout=60, check=True
    )
    build = BuildLog()
    build.feed("#5 [build 4/5] RUN compile")
    for line in done.stdout.splitlines():
        build.feed(f"#5 1.0 {line}")
    return build.summary(1).ccache


def test_what_ccache_logged_reaches_the_summary(tmp_path: Path) -> None:
    log = tmp_path / "stats"
    entries = [MISS, DIRECT_HIT, DIRECT_HIT, LINK, PREPROCESSED_HIT, DIRECT_HIT, MISS]
    # A file may be called like a counter.
    files = ["a.c", "b.c", "cache_miss", "d.o", "e.c", "direct_cache_hit", "g.cu"]
    log.write_text("".join(entry.format(file) for entry, file in zip(entries, files, strict=True)), "utf-8")
    assert counted(log) == CcacheStats(direct_hits=3, preprocessed_hits=1, misses=2)


def test_what_ccache_could_not_cache_counts_against_the_rate(tmp_path: Path) -> None:
    log = tmp_path / "stats"
    refused = "# f.cu\nunsupported_compiler_option\n"
    log.write_text(refused + DIRECT_HIT.format("a.c") + LINK.format("p.o") + refused, "utf-8")
    found = counted(log)
    assert found == CcacheStats(direct_hits=1, preprocessed_hits=0, misses=0, uncacheable=2)
    assert found.rate == 1 / 3


def test_a_build_that_compiled_nothing_counts_nothing(tmp_path: Path) -> None:
    log = tmp_path / "stats"
    log.write_text("", "utf-8")
    assert counted(log) == CcacheStats(direct_hits=0, preprocessed_hits=0, misses=0)
