"""Every kind of broken matrix names file, line, key, what was found and what would be right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_images.errors import UsageError
from llama_images.matrix import parse_matrix

EXAMPLE = (Path(__file__).parent / "example_matrix.yaml").read_text(encoding="utf-8")
COMMIT = "10a2613aa0b2686f7d0608520c4f0ea05219df03"
HASH = "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03"
ARM_HASH = "            linux/arm64: c7ff28f86a24effdc6c034fa15230c549a273e4771b10a7fec14996f8cf3307f\n"
SOURCE = "sources.pr24423."
CUDA = "toolkits.cuda-13.0."


@dataclass(frozen=True)
class Broken:
    """The example with ``old`` replaced once by ``new``; ``at`` is text on the line that must be named."""

    id: str
    old: str
    new: str
    at: str
    key: str
    words: tuple[str, ...]


def b(id: str, old: str, new: str, at: str, key: str, *words: str) -> Broken:  # noqa: A002 - pytest's word
    return Broken(id, old, new, at, key, words)


BROKEN = [
    # The form of the file.
    b("tab", "  source: pr", "\tsource: pr", "\tsource", "", "a tab", "spaces"),
    b("no-break space", "family: volta", "family:\u00a0volta", "\u00a0volta", "", "U+00A0", "NO-BREAK SPACE"),
    b("control character", "V100", "V1\x0700", "V1\x07", "", "U+0007"),
    b(
        "alias",
        "flavors: [patched, stock]",
        "flavors: *all",
        "*all",
        "",
        "alias",
        "*all",
        "write the value out",
    ),
    b("anchor", "flavors: [", "flavors: &all [", "&all", "", "anchor", "&all"),
    b("tag", "suite: bookworm", "suite: !!python/name:os.system x", "!!python", "", "tag"),
    b("two documents", "flavors:", "---\nflavors:", "---", "", "second document"),
    b("unclosed list", "flavors: [patched, stock]", "flavors: [patched, stock", "bases", "", "not YAML"),
    b("bad indent", "  base: debian", "   base: debian", "   base", "", "not YAML"),
    b("deep nesting", "flavors: [patched, stock]", "flavors: " + "[" * 40 + "]" * 40, "[[", "", "nested"),
    b("merge key", "  source: pr24423", "  <<: x", "<<: x", 'defaults."<<"', "unknown key"),
    # Keys.
    b(
        "unknown key",
        "    commit:",
        "    comit:",
        "comit",
        SOURCE + "comit",
        'did you mean "commit"',
        "repository, ref",
    ),
    b(
        "unknown section",
        "cpu_variants:",
        "cpu_variant:",
        "cpu_variant:",
        "cpu_variant",
        'did you mean "cpu_variants"',
    ),
    b(
        "name as a key",
        "    family: volta",
        "    name: V100",
        "name: V100",
        "architectures.70.name",
        "own key is its name",
    ),
    b(
        "duplicate key",
        "  base: debian",
        "  base: debian\n  base: nvidia",
        "nvidia",
        "defaults.base",
        "given twice",
    ),
    b(
        "duplicate architecture",
        '  "121":',
        '  "120":',
        "",
        "architectures.120",
        "given twice",
        "first is on line",
    ),
    b("duplicate, once a number", '  "121":', "  120:", "  120:", "architectures.120", "given twice"),
    b("number as a key", '  "86":', "  86:", "  86:", "architectures.86", "is a number", 'quote it: "86"'),
    b(
        "truth value as a key",
        "  source: pr",
        "  on: x\n  source: pr",
        "on: x",
        "defaults.on",
        "truth value",
        "quote it",
    ),
    b(
        "list as a key",
        "  source: pr24423",
        "  ? [a]\n  : b\n  source: pr24423",
        "[a]",
        "defaults",
        "a key is a word",
    ),
    b("architecture spelt sm_", '  "121":', "  sm_121:", "sm_121", "architectures.sm_121", 'write "121"'),
    b("architecture by capability", '  "86":', '  "8.6":', '"8.6"', "architectures.8.6", 'write "86"'),
    b("row name in capitals", "  pr24423:", "  PR 24423:", "PR 24423", 'sources."PR 24423"', "lower-case"),
    b(
        "unknown platform",
        "linux/amd64: 56",
        "linux/amd46: 56",
        "amd46",
        "linux/amd46",
        'did you mean "linux/amd64"',
    ),
    # Missing and empty.
    b(
        "missing pin",
        f"    commit: {COMMIT}\n",
        "",
        "pr24423:",
        SOURCE + "commit",
        "missing",
        "40 hex digits",
    ),
    b(
        "missing tree",
        "    tree: 4c83e46ba71595d2c1ae02aee7520cf5c8cecd44\n",
        "",
        "pr24423:",
        SOURCE + "tree",
        "missing",
    ),
    b("missing version", "version: 1\n", "", "defaults", "version", "missing"),
    b("missing section", "flavors: [patched, stock]\n", "", "version: 1", "flavors", "missing"),
    b(
        "missing toolkit",
        "    toolkit: cuda-12.9\n",
        "",
        '"70":',
        "architectures.70.toolkit",
        "missing",
        "cuda-13.0",
    ),
    b(
        "missing family",
        "    family: hopper\n",
        "",
        '"90":',
        "architectures.90.family",
        "missing",
        "here hopper",
    ),
    b("missing sass", '    sass: ["89"]\n', "", '"89":', "architectures.89.sass", "missing", '["89"]'),
    b("empty value", "suite: bookworm", "suite:", "suite:", "bases.debian.suite", "found nothing"),
    b(
        "empty list",
        "serves: [H100, H200, GH200]",
        "serves: []",
        "serves: []",
        "architectures.90.serves",
        "at least one",
    ),
    b(
        "empty hashes",
        "          sha256:\n            linux/amd64: 56fe",
        "          sha256: {}\n          x:\n            a: ",
        "sha256: {}",
        CUDA + "wheels.build[0].sha256",
        "at least one",
    ),
    b(
        "empty build packages",
        "[cmake, g++, ninja-build, ccache]",
        "[]",
        "[]",
        "bases.nvidia.build_packages",
        "at least one",
    ),
    # Wrong types.
    b("other version", "version: 1\n", "version: 2\n", "version: 2", "version", "the number 2", "version 1"),
    b(
        "version as text",
        "version: 1\n",
        'version: "1"\n',
        'version: "1"',
        "version",
        'found "1"',
        "version 1",
    ),
    b(
        "number for text",
        '"13.0"',
        "13.0",
        "version: 13.0",
        CUDA + "version",
        "the number 13.0",
        'quote it: "13.0"',
    ),
    b(
        "number in sass",
        'sass: ["86"]',
        "sass: [86]",
        "[86]",
        "architectures.86.sass[0]",
        "number 86",
        'quote it: "86"',
    ),
    b(
        "truth value for text",
        "suite: bookworm",
        "suite: yes",
        "suite: yes",
        "bases.debian.suite",
        "truth value yes",
    ),
    b(
        "list for a mapping",
        "defaults:\n",
        "defaults: [a]\nx:\n",
        "defaults: [a]",
        "defaults",
        "found a list",
        "mapping",
    ),
    b(
        "text for a mapping",
        'devel: {name: "nvidia/cuda:13.0.1-devel-ubuntu24.04"}',
        "devel: cuda",
        "devel: cuda",
        CUDA + "images.devel",
        'found "cuda"',
        "a mapping is needed",
    ),
    b("list for a section", "toolkits:\n", "toolkits: []\nx:\n", "toolkits: []", "toolkits", "found a list"),
    b(
        "mapping for a list",
        "flavors: [patched, stock]",
        "flavors: {a: 1}",
        "flavors",
        "flavors",
        "found a mapping",
        "a list",
    ),
    b(
        "text for a list",
        'sass: ["86"]',
        'sass: "86"',
        'sass: "86"',
        "architectures.86.sass",
        'found "86"',
        "a list",
    ),
    b(
        "text for a number",
        "build_number: 9600",
        "build_number: many",
        "many",
        SOURCE + "build_number",
        "whole number",
    ),
    b(
        "hexadecimal number",
        "build_number: 9600",
        "build_number: 0x10",
        "0x10",
        SOURCE + "build_number",
        "number 0x10",
    ),
    b(
        "negative number",
        "build_number: 9600",
        "build_number: -1",
        "-1",
        SOURCE + "build_number",
        "number -1",
    ),
    b("zero", "build_number: 9600", "build_number: 0", ": 0", SOURCE + "build_number", "above 0"),
    b("fraction", "build_number: 9600", "build_number: 1.5", "1.5", SOURCE + "build_number", "number 1.5"),
    # Thresholds.
    b(
        "unknown threshold",
        "    last_over_first:",
        "    last_over_frist:",
        "frist",
        "thresholds.relative.last_over_frist",
        'did you mean "last_over_first"',
    ),
    b(
        "unknown key of known hardware",
        "      short_ms:",
        "      short:",
        "short:",
        "thresholds.hardware[0].short",
        'did you mean "short_ms"',
    ),
    b(
        "text for a ratio",
        "short_speedup: 1.5",
        'short_speedup: "1.5"',
        '"1.5"',
        "thresholds.relative.short_speedup",
        'found "1.5"',
        "a number is needed, without quotes",
    ),
    b(
        "a ratio below one",
        "last_over_first: 1.1",
        "last_over_first: 0.9",
        "0.9",
        "thresholds.relative.last_over_first",
        "the number 0.9",
        "a ratio from 1 to 100",
    ),
    b(
        "no number at all",
        "short_ms: 217",
        "short_ms: .nan",
        ".nan",
        "thresholds.hardware[0].short_ms",
        "the number .nan",
        "a time in milliseconds",
    ),
    b(
        "infinity",
        "long_ms: 233",
        "long_ms: .inf",
        ".inf",
        "thresholds.hardware[0].long_ms",
        "the number .inf",
        "a time in milliseconds",
    ),
    b(
        "a power of ten",
        "long_ms: 233",
        "long_ms: 2.3e+2",
        "2.3e+2",
        "thresholds.hardware[0].long_ms",
        "the number 2.3e+2",
    ),
    b(
        "no GPU",
        "count: 2",
        "count: 0",
        "count: 0",
        "thresholds.hardware[0].count",
        "a number of GPUs from 1 to 16",
    ),
    b(
        "half a GPU",
        "count: 2",
        "count: 1.5",
        "count: 1.5",
        "thresholds.hardware[0].count",
        "a whole number is needed",
    ),
    b(
        "a tolerance of more than all",
        "tolerance_percent: 10",
        "tolerance_percent: 110",
        "110",
        "thresholds.hardware[0].tolerance_percent",
        "a percentage from 0 to 100",
    ),
    b(
        "the same hardware twice",
        "  hardware:\n",
        "  hardware:\n    - {gpu: nvidia geforce rtx 5060 ti, count: 2, memory_gib: 16, "
        "short_ms: 1, long_ms: 1, tolerance_percent: 0}\n",
        "- gpu: NVIDIA",
        "thresholds.hardware[1].gpu",
        "hardware[0] already",
    ),
    # The source.
    b("version in two parts", "version: 1.2.3", "version: 1.2", "1.2", SOURCE + "version", "the number 1.2"),
    b("version with a v", "1.2.3", "v1.2.3", "v1.2.3", SOURCE + "version", "three numbers, such as 0.1.0"),
    b("version with a zero", "1.2.3", "1.02.3", "1.02.3", SOURCE + "version", "three numbers"),
    b("short commit", COMMIT, "10a2613aa", "10a2613aa", SOURCE + "commit", "9 digits", "40 lower-case"),
    b("upper-case commit", COMMIT, COMMIT.upper(), "10A26", SOURCE + "commit", "lower-case"),
    b("numeric commit", COMMIT, "1" * 40, "1111", SOURCE + "commit", "the number 111", "quote it"),
    b("bad tree", "4c83e46ba", "xyz3e46ba", "xyz3", SOURCE + "tree", "tree hash"),
    b("plain http", "https://github", "http://github", "http:", SOURCE + "repository", "https://"),
    b(
        "repository with a user",
        "https://github",
        "https://me:pw@github",
        "me:pw",
        SOURCE + "repository",
        "without user",
    ),
    b(
        "repository as a file",
        "https://github.com/ggml-org/llama.cpp",
        "/srv/llama.cpp",
        "/srv",
        SOURCE + "repository",
        "https",
    ),
    b("ref with spaces", "pull/24423/head", "pull 24423", "pull 24423", SOURCE + "ref", "without spaces"),
    b("ref with dots", "pull/24423/head", "pull/../head", "..", SOURCE + "ref", "a ref is"),
    b("ref as an option", "ref: pull/24423/head", "ref: --upload-pack=x", "--up", SOURCE + "ref", "a ref is"),
    b("date without zone", "16:49:03Z", "16:49:03", "16:49:03", SOURCE + "date", "zone"),
    b("impossible date", "2026-06-11T", "2026-13-41T", "2026-13", SOURCE + "date", "no such time"),
    b("absolute path", "[CMakeLists.txt,", "[/etc,", "/etc", SOURCE + "paths[0]", "relative"),
    b("path upwards", "[CMakeLists.txt,", "[src/../.., ", "..", SOURCE + "paths[0]", '".."'),
    b("path of models", "[CMakeLists.txt,", "[models/x,", "models", SOURCE + "paths[0]", "stay out"),
    b("path of tests", "[CMakeLists.txt,", "[tests,", "tests", SOURCE + "paths[0]", "stay out"),
    b(
        "path of the web interface",
        "[CMakeLists.txt,",
        "[tools/ui,",
        "tools/ui",
        SOURCE + "paths[0]",
        "stay out",
    ),
    b(
        "path of all tools",
        "[CMakeLists.txt,",
        "[tools,",
        "[tools",
        SOURCE + "paths[0]",
        "tools/CMakeLists.txt",
    ),
    b("path with a shell sign", "[CMakeLists.txt,", "['a;b',", "a;b", SOURCE + "paths[0]", "letters, digits"),
    b("path twice", "[CMakeLists.txt,", "[cmake,", "paths:", SOURCE + "paths", '"cmake" is listed twice'),
    b(
        "unknown series",
        "series: pr24423",
        "series: pr24424",
        "pr24424",
        SOURCE + "series",
        "no folder",
        '"pr24423"',
    ),
    b("series upwards", "series: pr24423", "series: ../x", "../x", SOURCE + "series", "name of a folder"),
    # Defaults.
    b(
        "unknown default source",
        "source: pr24423",
        "source: pr24433",
        "source:",
        "defaults.source",
        '"pr24423"',
        "allowed",
    ),
    b(
        "unknown default base",
        "base: debian",
        "base: debain",
        "debain",
        "defaults.base",
        'did you mean "debian"',
        "nvidia",
    ),
    b(
        "unknown default flavor",
        "flavor: patched",
        "flavor: pached",
        "pached",
        "defaults.flavor",
        'mean "patched"',
        "stock",
    ),
    b(
        "default flavor left out",
        "[patched, stock]",
        "[stock]",
        "flavor: patched",
        "defaults.flavor",
        "allowed: stock",
    ),
    b("unknown flavor", "[patched, stock]", "[patched, stok]", "stok", "flavors[1]", 'did you mean "stock"'),
    b("flavor twice", "[patched, stock]", "[patched, patched]", "flavors:", "flavors", "listed twice"),
    # Bases.
    b(
        "unknown kind",
        "kind: registry",
        "kind: registri",
        "registri",
        "bases.nvidia.kind",
        '"registry"',
        "bootstrap",
    ),
    b(
        "bootstrap without suite",
        "    suite: bookworm\n",
        "",
        "debian:",
        "bases.debian.suite",
        "missing",
        "bookworm",
    ),
    b(
        "bootstrap without packages",
        "    packages: [ca-certificates]\n",
        "",
        "debian:",
        "bases.debian.packages",
        "missing",
    ),
    b(
        "registry with suite",
        "kind: registry",
        "kind: registry\n    suite: jammy",
        "jammy",
        "bases.nvidia.suite",
        "no suite",
    ),
    b(
        "registry with packages",
        "kind: registry",
        "kind: registry\n    packages: [ab]",
        "[ab]",
        "bases.nvidia.packages",
        "no pack",
    ),
    b(
        "package as an option",
        "[ca-certificates]",
        "[--force]",
        "--force",
        "bases.debian.packages[0]",
        "package name",
    ),
    b(
        "package twice",
        "[ca-certificates]",
        "[ab, ab]",
        "[ab, ab]",
        "bases.debian.packages",
        '"ab" is listed twice',
    ),
    b(
        "two bootstrap bases",
        "  nvidia:\n    kind: registry\n",
        "  trixie:\n    kind: bootstrap\n    suite: trixie\n    packages: [ca-certificates]\n"
        "    build_packages: [g++]\n  nvidia:\n    kind: registry\n",
        "kind: bootstrap",
        "bases.trixie.kind",
        "debian is one already",
        "images/base",
    ),
    b("base named as a flavor", "  nvidia:", "  stock:", "stock:", "bases.stock", "flavor"),
    # Toolkits.
    b(
        "toolkit without wheels and images",
        '    images:\n      devel: {name: "nvidia/cuda:12.9.1-devel-ubuntu24.04"}\n'
        '      runtime: {name: "nvidia/cuda:12.9.1-runtime-ubuntu24.04"}\n',
        "",
        "cuda-12.9:",
        "toolkits.cuda-12.9",
        "neither wheels nor images",
    ),
    b("bad driver version", "580.65.06", "580", '"580"', CUDA + "minimum_driver", "580.65.06"),
    b("driver too old", "580.65.06", "570.86.10", "570.86", CUDA + "minimum_driver", "CUDA 13", "580.65.06"),
    b("bad toolkit version", '"13.0"', '"13"', 'version: "13"', CUDA + "version", "MAJOR.MINOR"),
    b(
        "unheard-of toolkit version",
        '"12.9"',
        '"14.0"',
        '"14.0"',
        "toolkits.cuda-12.9.version",
        "12.x and 13.x",
    ),
    b("wheels of CUDA 12", '"13.0"', '"12.9"', "wheels:", CUDA + "wheels", "hold no nvcc"),
    b(
        "wheels without nvcc",
        "name: nvidia-cuda-nvcc",
        "name: nvidia-cuda-x",
        "build:",
        CUDA + "wheels.build",
        "cuda-nvcc is missing",
    ),
    b("nvcc of another toolkit", "13.0.88", "12.9.86", "12.9.86", CUDA + "wheels.build[0].version", "13.0.x"),
    b(
        "wheel twice",
        "name: nvidia-cublas",
        "name: nvidia-nvvm",
        "",
        CUDA + "wheels.runtime[1].name",
        "listed twice",
    ),
    b(
        "malformed wheel hash",
        HASH,
        HASH[:-1],
        "56fe",
        CUDA + "wheels.build[0].sha256.linux/amd64",
        "64 lower-case",
    ),
    b(
        "wheel lacks a platform",
        ARM_HASH,
        "",
        "sha256:",
        CUDA + "wheels.build[0].sha256",
        "nvidia-cuda-nvcc",
        "linux/arm64",
    ),
    b(
        "wheel version as a range",
        "version: 13.0.96",
        'version: ">=13"',
        ">=13",
        CUDA + "wheels.runtime[0].version",
        "one fixed",
    ),
    b(
        "image without tag",
        "nvidia/cuda:13.0.1-devel-ubuntu24.04",
        "nvidia/cuda",
        "nvidia/cuda",
        CUDA + "images.devel.name",
        "NAME:TAG",
    ),
    b(
        "image with digest in its name",
        "13.0.1-devel-ubuntu24.04",
        f"13.0.1@sha256:{HASH}",
        "@sha256",
        "images.devel.name",
        "under the key digest",
    ),
    b(
        "bad digest",
        '13.0.1-devel-ubuntu24.04"',
        '13.0.1", digest: "sha256:12"',
        "sha256:12",
        "images.devel.digest",
        "64",
    ),
    # CPU variants.
    b(
        "variant with a shell sign",
        "haswell",
        '"x64;rm"',
        "x64;rm",
        "cpu_variants.linux/amd64[1]",
        "llama.cpp's names",
    ),
    b(
        "variant with a CMake sign",
        "haswell",
        '"${X}"',
        "${X}",
        "cpu_variants.linux/amd64[1]",
        "llama.cpp's names",
    ),
    b(
        "variant of the other platform",
        "haswell",
        "armv8.0_1",
        "armv8.0_1",
        "cpu_variants.linux/amd64[1]",
        "no variant of",
    ),
    b(
        "no variants of a platform",
        "  linux/arm64: [armv8.0_1, armv8.2_2, armv8.6_1, armv9.2_2]\n",
        "",
        "cpu_variants",
        "cpu_variants.linux/arm64",
        "missing",
        "cpu is built",
    ),
    # Architectures.
    b(
        "unknown family",
        "family: ada",
        "family: adda",
        "adda",
        "architectures.89.family",
        'did you mean "ada"',
        "hopper",
    ),
    b(
        "wrong family",
        "family: hopper",
        "family: ada",
        "family: ada",
        "architectures.90.family",
        "sm_90 is hopper",
    ),
    b(
        "unknown toolkit",
        "toolkit: cuda-12.9",
        "toolkit: cuda-12.8",
        "cuda-12.8",
        "architectures.70.toolkit",
        "mean",
        "allowed",
    ),
    b(
        "Volta on CUDA 13",
        "toolkit: cuda-12.9",
        "toolkit: cuda-13.0",
        "cuda-13.0",
        "architectures.70.toolkit",
        "dropped sm_70",
    ),
    b(
        "12X without its a",
        '["120a"]',
        '["120"]',
        '["120"]',
        "architectures.120.sass[0]",
        "12Xa",
        'write "120a"',
    ),
    b(
        "code of another",
        'sass: ["86"]',
        'sass: ["89"]',
        'sass: ["89"]',
        "architectures.86.sass[0]",
        'write "86"',
    ),
    b("code of two", 'sass: ["86"]', 'sass: ["86", "87"]', '"87"', "architectures.86.sass[1]", 'found "87"'),
    b("malformed code", 'sass: ["86"]', 'sass: ["8.6"]', '"8.6"', "architectures.86.sass[0]", "such as"),
    b(
        "PTX in a row of its own",
        'sass: ["86"]',
        'sass: ["86"]\n    ptx: ["86"]',
        "ptx:",
        "architectures.86.ptx",
        "no PTX",
    ),
    b("no such architecture", '  "86":', '  "112":', '"112"', "architectures.112", "there is no sm_112"),
    b("Thor's old name", '  "110":', '  "101":', '"101"', "architectures.101", "called 110"),
    b(
        "Thor on x86",
        "platforms: [linux/arm64]",
        "platforms: [linux/amd64]",
        "platforms: [linux/amd64]",
        "architectures.110.platforms",
        "Arm",
    ),
    b(
        "unknown platform of a row",
        "platforms: [linux/amd64]",
        "platforms: [linux/amd32]",
        "amd32",
        "architectures.70.platforms[0]",
        'did you mean "linux/amd64"',
        "linux/arm64",
    ),
    b(
        "platform twice",
        "platforms: [linux/amd64]",
        "platforms: [linux/amd64, linux/amd64]",
        "amd64, linux",
        "architectures.70.platforms",
        "twice",
    ),
    b(
        "cpu with toolkit",
        "  cpu:\n",
        "  cpu:\n    toolkit: cuda-13.0\n",
        "toolkit",
        "architectures.cpu.toolkit",
        "cpu has no",
    ),
    b(
        "cpu with code",
        "  cpu:\n",
        '  cpu:\n    sass: ["86"]\n',
        "sass",
        "architectures.cpu.sass",
        "cpu has no",
    ),
    b("cpu with PTX", "  cpu:\n", '  cpu:\n    ptx: ["86"]\n', "ptx", "architectures.cpu.ptx", "cpu has no"),
    b("quote in a label", "[A100,", "['A\"100',", 'A"100', "architectures.80.serves[0]", "no quotes"),
    b("dollar in a label", "[A100,", "[A$100,", "A$100", "architectures.80.serves[0]", "plain text"),
    b("backslash in a label", "[A100,", "[A\\100,", "A\\100", "architectures.80.serves[0]", "plain text"),
    b(
        "line end in a label",
        "[A100,",
        '["A100\\nRUN x",',
        "RUN x",
        "architectures.80.serves[0]",
        "line ends",
    ),
    # portable.
    b("portable lacks one", '"86", "89", ', '"86", ', "sass:", "architectures.portable.sass", 'lacks "89"'),
    b(
        "portable has one too many",
        '"86", "89", ',
        '"86", "87", "89", ',
        '"87"',
        "architectures.portable.sass[3]",
        'found "87"',
    ),
    b(
        "portable with plain 12X",
        '"120a", ',
        '"120", ',
        '"120"',
        "architectures.portable.sass[8]",
        'write "120a"',
    ),
    b(
        "portable with Volta",
        'sass: ["75", ',
        'sass: ["70", "75", ',
        '"70"',
        "architectures.portable.sass[0]",
        "dropped",
    ),
    b(
        "portable without PTX",
        '    ptx: ["75"]\n',
        "",
        "portable:",
        "architectures.portable.ptx",
        "missing",
        '["75"]',
    ),
    b(
        "portable with a higher floor",
        'ptx: ["75"]',
        'ptx: ["80"]',
        "ptx",
        "architectures.portable.ptx",
        'found "80"',
        '["75"]',
    ),
    b(
        "portable with two floors",
        'ptx: ["75"]',
        'ptx: ["75", "90"]',
        "ptx",
        "architectures.portable.ptx",
        "exactly one",
    ),
    b(
        "portable with a family",
        "  portable:\n",
        "  portable:\n    family: ada\n",
        "family",
        "architectures.portable.family",
        "no fam",
    ),
    # Models.
    b("a model nobody lists", "  model: gemma-q4", "  model: gemma-q5", "gemma-q5", "defaults.model", "mean"),
    b(
        "a repository of one word",
        "owner/Gemma-26B-GGUF",
        "Gemma",
        "Gemma",
        "gemma-q4.repository",
        "OWNER/NAME",
    ),
    b("an address as repository", "owner/Gem", "https://h/Gem", "https", "gemma-q4.repository", "OWNER/NAME"),
    b("a file that is no model", "Q4_K_M.gguf", "Q4_K_M.bin", "Q4_K_M.bin", "gemma-q4.file", ".gguf"),
    b("a file above the repository", "file: Gem", "file: ../Gem", "../Gem", "gemma-q4.file", ".gguf"),
    b(
        "a branch as revision",
        "revision: 5f3c0b1a9e8d7c6b5a4938271605f4e3d2c1b0a9",
        "revision: main",
        "main",
        "gemma-q4.revision",
        "40",
    ),
    b(
        "a hash without revision",
        "    revision: 5f3c0b1a9e8d7c6b5a4938271605f4e3d2c1b0a9\n",
        "",
        "",
        "gemma-q4.revision",
        "together",
    ),
    b(
        "a revision without hash",
        "    sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n",
        "",
        "",
        "gemma-q4.sha256",
        "together",
    ),
]


def message_of(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_matrix(text, name="matrix.yaml", series=["pr24423"])
    return caught.value.message


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.id)
def test_says_where_and_what(case: Broken) -> None:
    assert case.old in EXAMPLE
    text = EXAMPLE.replace(case.old, case.new, 1)
    message = message_of(text)
    lines = message.split("\n")
    matching = [line for line in lines if case.key in line and all(word in line for word in case.words)]
    assert matching, message
    match = re.fullmatch(r"matrix\.yaml:(\d+): (.*)", matching[0])
    assert match, message
    assert case.at in text.split("\n")[int(match[1]) - 1]
    if case.key:
        assert match[2].split(": ")[0].endswith(case.key)


@pytest.mark.parametrize(
    ("number", "toolkit"),
    [("100", "12.8"), ("120", "12.8"), ("103", "12.9"), ("121", "12.9"), ("110", "13.0")],
)
def test_first_toolkit_of_the_newer_architectures(number: str, toolkit: str) -> None:
    major, minor = toolkit.split(".")
    older = "12.9" if toolkit == "13.0" else f"{major}.{int(minor) - 1}"
    on_12 = re.sub(
        rf'(  "{number}":\n    family: blackwell\n    toolkit: )cuda-13.0', r"\1cuda-12.9", EXAMPLE
    )
    assert on_12 != EXAMPLE
    text = on_12.replace('version: "12.9"', f'version: "{older}"')
    line = next(one for one in message_of(text).split("\n") if f"architectures.{number}.toolkit" in one)
    assert f"sm_{number} needs CUDA {toolkit} or later, this is {older}" in line
    if toolkit != "13.0":
        # One step newer, that complaint is gone; portable's own list then no longer fits, and says so.
        newer = on_12.replace('version: "12.9"', f'version: "{toolkit}"')
        assert f"architectures.{number}.toolkit" not in message_of(newer)
        assert "architectures.portable.sass" in message_of(newer)


def test_a_mistake_has_no_echo() -> None:
    for old, new in [
        ("    commit:", "    comit:"),
        ('  "121":', "  sm_121:"),
        ('  "121":', '  "120":'),
        ("sources:\n", "sources: []\nother:\n"),
        ("flavors: [patched, stock]", "flavors: x"),
    ]:
        lines = message_of(EXAMPLE.replace(old, new, 1)).split("\n")
        assert len(lines) == (2 if "other" in new else 1), lines


def test_all_mistakes_come_at_once_in_the_order_of_the_file() -> None:
    text = EXAMPLE.replace("flavor: patched", "flavor: x").replace("suite: bookworm", "suite: [a]")
    text = text.replace('["120a"]', '["120"]').replace("toolkit: cuda-12.9", "toolkit: cuda-13.0")
    lines = message_of(text).split("\n")
    keys = [line.split(": ")[1] for line in lines]
    assert keys == [
        "defaults.flavor",
        "bases.debian.suite",
        "architectures.70.toolkit",
        "architectures.120.sass[0]",
    ]
    numbers = [int(line.split(":")[1]) for line in lines]
    assert numbers == sorted(numbers)


def test_no_more_than_twenty_are_shown_and_the_rest_counted() -> None:
    text = EXAMPLE + "".join(f"extra_{index}: 1\n" for index in range(30))
    lines = message_of(text).split("\n")
    assert len(lines) == 21
    assert lines[-1] == "matrix.yaml: and 10 more"


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but words\n", "---\n", "\ufeff"])
def test_an_empty_file(text: str) -> None:
    message = message_of(text)
    assert message.startswith("matrix.yaml:")
    assert "empty" in message or "found nothing" in message


@pytest.mark.parametrize(
    ("text", "found"), [("- a\n", "a list"), ("hello\n", '"hello"'), ("12\n", "the number 12")]
)
def test_no_mapping_at_the_top(text: str, found: str) -> None:
    message = message_of(text)
    assert message.startswith("matrix.yaml:1: ")
    assert found in message
    assert "a mapping is needed" in message


def test_alias_bomb_is_refused_at_its_first_anchor() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [*{p}, *{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert message_of(bomb) == "matrix.yaml:1: the anchor &a; anchors aren't taken, write the value out"
