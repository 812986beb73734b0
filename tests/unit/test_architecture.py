"""What the import contracts in pyproject.toml can't see: calls, the standard library, and words in files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "llama_images"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROCESS = PACKAGE / "adapters" / "process.py"
EDGE = PACKAGE / "cli.py"
OTHERS = [path for path in (*MODULES, ROOT / "tasks.py") if path != PROCESS]

PROCESS_MODULES = {"_posixsubprocess", "multiprocessing", "pexpect", "pty", "subprocess"}
PROCESS_CALLS = {
    *("system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp"),
    *(f"exec{kind}" for kind in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *(f"spawn{kind}" for kind in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
}
"""Functions of ``os`` that start a program or a process."""


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative imports are banned"
            yield node.module, node.lineno
            yield from ((f"{node.module}.{name.name}", node.lineno) for name in node.names)


def process_starts(tree: ast.Module) -> Iterator[str]:
    """Every line that imports or calls something that starts a process."""
    for module, line in imports(tree):
        top, _, name = module.partition(".")
        if top in PROCESS_MODULES or (top == "os" and name in PROCESS_CALLS):
            yield f"line {line}: imports {module}"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
            and node.attr in PROCESS_CALLS
        ):
            yield f"line {node.lineno}: os.{node.attr}"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "path", [path for path in (*MODULES, ROOT / "tasks.py") if path != PROCESS], ids=name_of
)
def test_only_the_process_adapter_starts_programs(path: Path) -> None:
    assert list(process_starts(parse(path))) == []


def test_the_process_adapter_is_found_out_by_the_same_search() -> None:
    assert list(process_starts(parse(PROCESS))), "the search above finds nothing, so it proves nothing"


@pytest.mark.parametrize(
    "code",
    [
        "import subprocess",
        "from subprocess import run",
        "import multiprocessing.pool",
        "from os import execvp",
        "import os\nos.system('true')",
        "import os\nspawn = os.posix_spawn",
    ],
)
def test_ways_to_start_a_program_are_seen(code: str) -> None:
    assert len(list(process_starts(ast.parse(code)))) > 0


@pytest.mark.parametrize("path", [path for path in MODULES if path != EDGE], ids=name_of)
def test_no_module_prints_or_exits(path: Path) -> None:
    # Output goes through the reporter, errors through llama_images.errors; the edges alone print and exit.
    found = [
        f"line {node.lineno}: {ast.unparse(node.func)}"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"print", "sys.exit", "exit", "os._exit", "input"}
    ]
    assert found == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_in_the_package_imports_its_tasks_or_tests(path: Path) -> None:
    assert [
        name for name, _ in imports(parse(path)) if name.split(".")[0] in {"tasks", "tests", "invoke"}
    ] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_are_for(path: Path) -> None:
    assert ast.get_docstring(parse(path)), f"{name_of(path)} has no docstring"
