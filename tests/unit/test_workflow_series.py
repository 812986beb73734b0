"""The series' workflows: what is found, in which words, and what is started."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from llama_images.errors import CheckFailed, OutsideError, UsageError
from llama_images.matrix import Source
from llama_images.patch_format import format_patch
from llama_images.patch_series import Patch, PatchSeries, make_series, parse_patch
from llama_images.ports import Finished
from llama_images.series_ports import (
    AppliedPatch,
    AppliedSeries,
    ComparedPatch,
    Comparison,
    CompileFolder,
    Conflict,
    ListedPatch,
    Rebase,
    Revision,
)
from llama_images.tables import check_rows, check_table, status_rows, status_table
from llama_images.workflows.series import (
    CheckedSeries,
    check_series,
    raise_for,
    raise_for_conflict,
    rebase_report,
)
from llama_images.workflows.series_compile import (
    Tools,
    configure_options,
    cut_off,
    find_tools,
    first_error,
    result_key,
)
from llama_images.workflows.workshop import Workshop
from tests.unit.fakes import House

BODY = "What: a.\n\nWhy: b.\n\nProven: c.\n\nUpstream status: not sent."
DIFF = "diff --git a/src/a.cpp b/src/a.cpp\n--- a/src/a.cpp\n+++ b/src/a.cpp\n@@ -1 +1 @@\n-one\n+two\n"
GOOD = format_patch(1, "a: one", BODY, DIFF)
ONTO = Revision(
    name="pull/24423/head",
    commit="c" * 40,
    tree="d" * 40,
    date=dt.datetime(2026, 7, 4, 6, 27, 5, tzinfo=dt.UTC),
    build_number=9886,
)


def step(patch: Patch, **other: object) -> AppliedPatch:
    """What became of a patch that applies, unless told otherwise."""
    good = AppliedPatch(name=patch.name, problem=None, tree=patch.sha256[:40], diff=DIFF)
    return replace(good, **other)  # type: ignore[arg-type]


@dataclass
class FakeApplied:
    patches: tuple[AppliedPatch, ...]
    laid_out: list[str] = field(default_factory=list)

    def lay_out(self, tree: str, folder: Path) -> int:
        self.laid_out.append(tree)
        return 1


@dataclass
class FakeTrees:
    """Has applied whatever series it is asked for."""

    result: FakeApplied

    @contextlib.contextmanager
    def applied(self, source: Source, series: PatchSeries, *, repo: str | None) -> Iterator[AppliedSeries]:
        yield self.result

    def compare(self, source: Source, series: PatchSeries, *, repo: str | None, onto: str) -> Comparison:
        raise NotImplementedError


@dataclass
class FakeFolder:
    path: Path
    known: set[str] = field(default_factory=set)
    settings: list[str] = field(default_factory=list)

    @property
    def source(self) -> Path:
        return self.path / "source"

    @property
    def build(self) -> Path:
        return self.path / "build"

    def prepare(self, settings: str) -> None:
        self.settings.append(settings)

    def is_known(self, key: str) -> bool:
        return key in self.known

    def remember(self, key: str) -> None:
        self.known.add(key)

    @contextlib.contextmanager
    def open(self, source: str) -> Iterator[CompileFolder]:
        yield self


@dataclass
class FakeBuilders:
    """cmake, ninja and compilers that do as told."""

    lacking: frozenset[str] = frozenset({"ccache"})
    fails: str = ""
    says: str = ""
    code: int = 1
    runs: list[tuple[str, ...]] = field(default_factory=list)

    def find(self, name: str) -> tuple[Path, ...]:
        return () if name in self.lacking else (Path("/usr/bin") / name,)

    def run(
        self, argv: Sequence[str], *, on_line: Callable[[str], None] | None = None, **_how: Any
    ) -> Finished:
        self.runs.append(tuple(argv))
        text = f"{argv[0]} 1.2\nmore" if "--version" in argv else "3\n" if argv[0] == "sh" else "[1/2] CXX\n"
        if on_line is not None:
            on_line(text)
        code = 0
        if argv[0] == self.fails and "--version" not in argv:
            code, text = self.code, self.says
        return Finished(argv=tuple(argv), returncode=code, stdout=text.encode(), stderr=b"")

    def started(self) -> list[str]:
        return [argv[0] for argv in self.runs if argv[0] in {"cmake", "ninja"} and "--version" not in argv]


def check(
    house: House,
    series: PatchSeries,
    applied: Sequence[AppliedPatch],
    *,
    builders: FakeBuilders | None = None,
    folder: FakeFolder | None = None,
    listed: Sequence[ListedPatch] | None = None,
    jobs: int | None = None,
) -> CheckedSeries:
    shop: Workshop = house.shop()
    source = shop.matrix.sources[shop.matrix.defaults.source]
    programs = builders or FakeBuilders()
    shop = replace(shop, programs=programs)
    return check_series(
        shop,
        FakeTrees(FakeApplied(tuple(applied))),
        (folder or FakeFolder(house.folder)).open,
        source,
        [ListedPatch(name=patch.name, patch=patch) for patch in series.patches] if listed is None else listed,
        repo=None,
        compile_patches=builders is not None,
        jobs=jobs,
    )


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def series_of(*patches: Patch) -> PatchSeries:
    return PatchSeries(name="pr24423", patches=patches)


# --- what a check finds ---


def test_a_good_patch_has_no_problems(house: House) -> None:
    checked = check(house, series_of(GOOD), [step(GOOD)])
    assert [(one.problems, one.compiled) for one in checked.patches] == [((), "left out")]
    raise_for([checked])


def read(text: str, name: str = GOOD.name) -> Patch:
    return parse_patch(name, text)


MOVED = "src/a.cpp, hunk 1: 2 lines further down"
IN_TESTS = DIFF.replace("src/", "tests/")
NO_HUNK = "src/a.cpp, hunk 1 of 1"


def written_otherwise(line: int) -> str:
    return f"line {line} is not as patches.export writes it"


@pytest.mark.parametrize(
    ("patch", "applied", "problem"),
    [
        (read(GOOD.text.replace("Why: b.\n\nProven: c.\n\n", "")), {}, "the header lacks Why:, Proven:"),
        (
            read(GOOD.text.replace("src/a.cpp", "tests/a.cpp")),
            {"diff": IN_TESTS},
            "touches tests/a.cpp, which sources.pr24423.paths leaves out",
        ),
        (GOOD, {"problem": NO_HUNK, "tree": None}, f"does not apply: {NO_HUNK}"),
        (GOOD, {"moved": (MOVED,)}, f"is not exact: {MOVED}"),
        (read(GOOD.text, "0002-a-one.patch"), {}, "should be named 0001-a-one.patch"),
        (read(GOOD.text.replace("maintainers <", "somebody <")), {}, written_otherwise(1)),
        (read(GOOD.text.replace("Subject", "Date: today\nSubject")), {}, written_otherwise(2)),
        (read(GOOD.text.replace("---\ndiff", "---\n a | 2 +-\n\ndiff")), {}, written_otherwise(12)),
        (read(GOOD.text.replace("--- a/", "index 12ab..34cd 100644\n--- a/")), {}, written_otherwise(13)),
        (read(GOOD.text.replace("-1 +1", "-1,1 +1,1")), {}, written_otherwise(15)),
        (read(GOOD.text + "-- \n2.39\n"), {}, written_otherwise(18)),
    ],
)
def test_every_flaw_is_named(house: House, patch: Patch, applied: dict[str, object], problem: str) -> None:
    checked = check(house, series_of(patch), [step(patch, **applied)])
    assert checked.patches[0].problems == (problem,)
    with pytest.raises(CheckFailed, match=f"1 patch.*: {patch.name}"):
        raise_for([checked])


def test_a_conflict_marker_in_a_patch_is_named(house: House) -> None:
    diff = DIFF.replace("+two", "+<<<<<<< HEAD")
    patch = format_patch(1, "a: one", BODY, diff)
    checked = check(house, series_of(patch), [step(patch, diff=diff)])
    assert checked.patches[0].problems == ("line 17 adds a conflict marker",)


def test_what_comes_after_a_patch_that_does_not_apply_is_not_tried(house: House) -> None:
    second = format_patch(2, "a: two", BODY, DIFF)
    checked = check(house, series_of(GOOD, second), [step(GOOD, problem="no", tree=None)])
    assert checked.patches[1].problems == ("not tried, since one before it can't be applied",)


# --- compiling ---


def test_each_prefix_is_compiled_and_remembered(house: House) -> None:
    second = format_patch(2, "a: two", BODY, DIFF)
    series, applied = series_of(GOOD, second), [step(GOOD), step(second)]
    builders, folder = FakeBuilders(), FakeFolder(house.folder / "check")
    checked = check(house, series, applied, builders=builders, folder=folder)
    assert [one.compiled for one in checked.patches] == ["compiled", "compiled"]
    assert builders.started() == ["cmake", "ninja", "cmake", "ninja"]
    (ninja,) = {argv for argv in builders.runs if argv[0] == "ninja" and "--version" not in argv}
    assert ninja == ("ninja", "-C", str(folder.build), "-j", "3", "llama-diffusion-cli")
    assert len(folder.known) == 2
    again = FakeBuilders()
    checked = check(house, series, applied, builders=again, folder=folder)
    assert [one.compiled for one in checked.patches] == ["known", "known"]
    assert again.started() == []
    # ccache has no part in the result, a compiler has.
    cached = FakeBuilders(lacking=frozenset())
    third = series_of(GOOD, second, format_patch(3, "a: three", BODY, DIFF))
    checked = check(house, third, [*applied, step(third.patches[2])], builders=cached, folder=folder, jobs=1)
    assert [one.compiled for one in checked.patches] == ["known", "known", "compiled"]
    (cmake,) = {argv for argv in cached.runs if argv[0] == "cmake" and "--version" not in argv}
    assert "-DCMAKE_CXX_COMPILER_LAUNCHER=/usr/bin/ccache" in cmake
    house.environment["CXX"] = "clang++"
    checked = check(house, series, applied, builders=FakeBuilders(), folder=folder)
    assert [one.compiled for one in checked.patches] == ["compiled", "compiled"]


def test_a_patch_that_does_not_compile_is_named_and_the_others_are_tried(house: House) -> None:
    second = format_patch(2, "a: two", BODY, DIFF)
    builders = FakeBuilders(fails="ninja", says="FAILED: x\nsrc/a.cpp:1:2: error: no\nninja: stopped\n")
    checked = check(house, series_of(GOOD, second), [step(GOOD), step(second)], builders=builders)
    log = house.cache / "logs" / "patches-check-pr24423-0001-compile.log"
    assert checked.patches[0].problems == (
        f"does not compile: src/a.cpp:1:2: error: no; the whole output is in {log}",
    )
    assert [one.compiled for one in checked.patches] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("lacking", "message", "packages"),
    [
        ({"cmake"}, "cmake can't be found", "cmake"),
        ({"ninja", "c++", "cc"}, "ninja, cc and c++ can't be found", "ninja-build g++"),
    ],
)
def test_a_machine_that_can_not_compile_says_so_after_the_rest(
    house: House, lacking: set[str], message: str, packages: str
) -> None:
    builders = FakeBuilders(lacking=frozenset(lacking))
    checked = check(house, series_of(GOOD), [step(GOOD)], builders=builders)
    assert checked.patches[0].problems == ()
    with pytest.raises(OutsideError) as caught:
        raise_for([checked])
    assert caught.value.message == f"the patches can't be compiled: {message}"
    assert caught.value.hint == f"apt-get install {packages}, or leave it out with --no-compile"
    assert builders.started() == []
    # A patch with a flaw counts more.
    flawed = check(house, series_of(GOOD), [step(GOOD, moved=("x",))], builders=builders)
    with pytest.raises(CheckFailed):
        raise_for([flawed])


def test_the_options_are_those_of_the_images_without_cuda(house: House) -> None:
    shop = house.shop()
    source = shop.matrix.sources["pr24423"]
    options = configure_options(
        source, Tools(launcher="", versions=("c++ 1", "cmake 1"), environment={}, jobs=1)
    )
    script = (house.root / "images" / "common" / "compile").read_text("utf-8")
    own = [word for word in options if word not in script.split()]
    # The last two are those that the script gets from the Dockerfile.
    assert own == [
        "-DCMAKE_C_COMPILER_LAUNCHER=",
        "-DCMAKE_CXX_COMPILER_LAUNCHER=",
        f"-DLLAMA_BUILD_COMMIT={source.commit[:9]}",
        f"-DLLAMA_BUILD_NUMBER={source.build_number}",
    ]
    assert not any("CUDA" in word for word in options)


def test_a_result_is_one_tree_in_one_way() -> None:
    keys = {result_key(tree, settings) for tree in ("a", "b") for settings in ("x", "y")}
    assert len(keys) == 4
    assert result_key("a", "x") in keys


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("[1/2] x\nFAILED: x\na.cpp:1:2: error: no\nb.cpp:1: error: also\n", "a.cpp:1:2: error: no"),
        ("a.cpp:1:2: fatal error: x.h: No such file\n", "a.cpp:1:2: fatal error: x.h: No such file"),
        ("CMake Error at x:3 (add):\n\n  Unknown command\n", "CMake Error at x:3 (add): Unknown command"),
        ("ld: x.o: undefined reference to `f'\n", "ld: x.o: undefined reference to `f'"),
        ("c++: internal compiler trouble\n\n", "c++: internal compiler trouble"),
        ("", "no reason was given"),
    ],
)
def test_the_first_error_is_found(output: str, found: str) -> None:
    assert first_error(output) == found


@pytest.mark.parametrize(
    ("output", "code", "found"),
    [
        ("[1/2] x\ncc1plus: No space left on device\n", 1, "cc1plus: No space left on device"),
        (
            "FAILED: x\nc++: fatal error: Killed signal terminated program cc1plus\n",
            1,
            "c++: fatal error: Killed signal terminated program cc1plus",
        ),
        ("clang++: error: unable to execute command: Killed\n", 1, None),
        ("cc1plus: out of memory allocating 65536 bytes after a total of 1 bytes\n", 1, None),
        ("FAILED: x\nKilled\nninja: build stopped: subcommand failed.\n", 1, "Killed"),
        ("ninja: build stopped: interrupted by user.\n", 2, None),
        ("[1/2] x\n", -9, "ended by signal 9"),
    ],
)
def test_what_the_machine_stops_is_no_fault_of_the_patch(
    house: House, output: str, code: int, found: str | None
) -> None:
    found = found or output.strip()
    assert cut_off(output, code) == found
    second = format_patch(2, "a: two", BODY, DIFF)
    builders = FakeBuilders(fails="ninja", says=output, code=code)
    checked = check(house, series_of(GOOD, second), [step(GOOD), step(second)], builders=builders)
    assert [(one.problems, one.compiled, one.passed) for one in checked.patches] == [
        ((), "not tried", None),
        ((), "not tried", None),
    ]
    assert builders.started() == ["cmake", "ninja"]
    with pytest.raises(OutsideError) as caught:
        raise_for([checked])
    log = house.cache / "logs" / "patches-check-pr24423-0001-compile.log"
    wanted = f"{GOOD.name}: ninja could not go on: {found}; the whole output is in {log}"
    assert caught.value.message == wanted
    assert check_table(checked).endswith(f"2 of these not compiled\n{wanted}")


@pytest.mark.parametrize(
    "output",
    [
        'a.cpp:1:2: error: no\n    7 |     die("No space left on device");\n      |     ^~~\n',
        "a.cpp:1:2: error: 'Killed' was not declared\n",
    ],
)
def test_a_source_that_speaks_of_a_full_disk_is_at_fault_itself(output: str) -> None:
    assert cut_off(output, 1) is None


def test_a_patch_that_can_not_be_read_is_a_row_and_ends_nothing(house: House) -> None:
    third = format_patch(3, "a: three", BODY, DIFF)
    broken = ListedPatch(
        name="0002-x.patch", error=UsageError("patches/pr24423/0002-x.patch:7: has a NUL byte")
    )
    listed = [ListedPatch(name=GOOD.name, patch=GOOD), broken, ListedPatch(name=third.name, patch=third)]
    checked = check(house, series_of(), [step(GOOD)], builders=FakeBuilders(), listed=listed)
    assert [(one.name, one.problems, one.compiled) for one in checked.patches] == [
        (GOOD.name, (), "compiled"),
        ("0002-x.patch", ("patches/pr24423/0002-x.patch:7: has a NUL byte",), "not tried"),
        (third.name, ("not tried, since one before it can't be applied",), "not tried"),
    ]
    with pytest.raises(CheckFailed, match=f"2 patches with problems: 0002-x.patch, {third.name}"):
        raise_for([checked])


# --- what compiles ---


@pytest.mark.parametrize("name", ["CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH"])
def test_what_the_environment_tells_the_compiler_is_part_of_the_result(house: House, name: str) -> None:
    shop = replace(house.shop(), programs=FakeBuilders())
    source = shop.matrix.sources["pr24423"]
    before = find_tools(shop, 1).settings(source)
    house.environment[name] = "other"
    after = find_tools(shop, 1)
    assert after.settings(source) != before
    assert after.environment == {name: "other"}


def test_a_launcher_before_the_compiler_will_do(house: House) -> None:
    builders = FakeBuilders(lacking=frozenset())
    house.environment |= {"CXX": "ccache g++ -m64"}
    tools = find_tools(replace(house.shop(), programs=builders), 1)
    assert tools.launcher == ""  # ccache would start ccache
    assert ("ccache", "g++", "-m64", "--version") in builders.runs
    builders = FakeBuilders(lacking=frozenset({"ccache", "g++"}))
    with pytest.raises(OutsideError) as caught:
        find_tools(replace(house.shop(), programs=builders), 1)
    assert caught.value.message == "the patches can't be compiled: ccache and g++ can't be found"
    assert str(caught.value.hint).startswith("apt-get install ccache g++,")


def test_a_compiler_that_can_not_be_read_is_wrong_use(house: House) -> None:
    house.environment["CXX"] = "'g++"
    with pytest.raises(UsageError) as caught:
        find_tools(replace(house.shop(), programs=FakeBuilders()), 1)
    assert caught.value.message == "CXX='g++: no closing quotation"


# --- what is printed ---


def test_a_check_as_a_table_and_as_json(house: House) -> None:
    second = format_patch(2, "a: two", BODY, DIFF)
    checked = check(house, series_of(GOOD, second), [step(GOOD), step(second, moved=("src/a.cpp, x",))])
    lines = check_table(checked).splitlines()
    assert lines[2].split() == ["1", "ok", "left", "out", "0001-a-one.patch"]
    assert lines[3].split()[:2] == ["2", "FAIL"]
    wanted = (
        f"pr24423: 1 of 2 patches without a problem on {checked.source.commit[:12]}, 1 of these not compiled"
    )
    assert lines[-1] == wanted
    rows = json.loads(json.dumps(check_rows([checked])))
    assert [(row["passed"], row["compiled"]) for row in rows] == [(None, "left out"), (False, "left out")]
    assert rows[1]["problems"] == ["is not exact: src/a.cpp, x"]
    assert rows[1]["number"] == 2


def test_a_status_as_a_table_and_as_json(house: House) -> None:
    source = house.shop().matrix.sources["pr24423"]
    found = Comparison(
        onto=replace(ONTO, missing_paths=("pocs",)),
        patches=(
            ComparedPatch(name="0001-a.patch", state="applies"),
            ComparedPatch(name="0002-b.patch", state="conflicts", details=("src/a.cpp", "src/b.cpp")),
        ),
    )
    text = status_table(source, found)
    assert "tried on pull/24423/head at cccccccccccc (2026-07-04)" in text
    assert "2  conflicts  0002-b.patch; src/a.cpp; src/b.cpp" in text
    assert text.endswith("pocs, one of the source's paths, is not in this commit")
    row = json.loads(json.dumps(status_rows(source, found)))
    assert row["onto"]["commit"] == "c" * 40
    assert [patch["state"] for patch in row["patches"]] == ["applies", "conflicts"]


def rebase(**other: object) -> Rebase:
    done = Rebase(path=Path("/w"), onto=ONTO, kept=("0001-a.patch",), absorbed=(), skipped=(), conflict=None)
    return replace(done, **other)  # type: ignore[arg-type]


def test_a_finished_rebase_says_what_to_write_where(house: House) -> None:
    source = house.shop().matrix.sources["pr24423"]
    raise_for_conflict(source, rebase())
    text = rebase_report(source, rebase(absorbed=("0002-b.patch",), skipped=("0003-c.patch",)))
    for line in (
        "absorbed, nothing is left of it: 0002-b.patch",
        "left out: 0003-c.patch",
        f"    commit: {'c' * 40}",
        f"    tree: {'d' * 40}",
        "    build_number: 9886",
        "    date: 2026-07-04T06:27:05Z",
    ):
        assert line in text.splitlines()
    unknown = rebase_report(source, rebase(onto=replace(ONTO, build_number=None, missing_paths=("pocs",))))
    assert f"    build_number: (git rev-list --count {'c' * 40}, in a full clone)" in unknown
    assert "    paths: without pocs, which this commit has not" in unknown
    on_pin = rebase_report(source, rebase(onto=replace(ONTO, commit=source.commit)))
    assert "matrix.yaml" not in on_pin


def test_a_conflict_names_patch_files_and_the_way_on(house: House) -> None:
    source = house.shop().matrix.sources["pr24423"]
    waits = rebase(conflict=Conflict(name="0002-b.patch", files=("src/a.cpp", "src/b.cpp")))
    with pytest.raises(CheckFailed) as caught:
        raise_for_conflict(source, waits)
    wanted = "patches/pr24423/0002-b.patch conflicts with cccccccccccc: src/a.cpp, src/b.cpp"
    assert caught.value.message == wanted
    assert all(word in str(caught.value.hint) for word in ("/w", "--continue", "--skip", "--abort"))


def test_the_series_of_a_source_is_read_by_its_own_name(house: House) -> None:
    # A series file that names no patch is a series too.
    checked = check(house, make_series("pr24423", []), [])
    assert checked.patches == ()
    raise_for([checked])
