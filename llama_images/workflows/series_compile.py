"""Whether a source tree compiles, with the CPU backend, on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llama_images.errors import OutsideError
from llama_images.located_yaml import listed
from llama_images.matrix import Source
from llama_images.ports import Programs
from llama_images.series_ports import CompileFolder
from llama_images.workflows.workshop import Workshop

TARGET: Final = "llama-diffusion-cli"

# What images/common/compile builds with, less what only a shipped image needs: one CPU backend, linked in.
_OPTIONS: Final = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=OFF", "-DGGML_CCACHE=OFF"),
    *("-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_TOOLS=OFF"),
    *("-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF"),
)
_PACKAGES: Final = {"cmake": "cmake", "ninja": "ninja-build", "cc": "g++", "c++": "g++"}
_NINJA: Final = re.compile(r"\[([0-9]+)/([0-9]+)\] .*")
_ERROR: Final = re.compile(r"CMake Error\b|\b(?:fatal )?error: |undefined reference to ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """What compiles here."""

    launcher: str
    """ccache's path; empty where there is none."""
    versions: tuple[str, ...]
    """First lines of what compiler and cmake say of themselves."""
    jobs: int

    def settings(self, source: Source) -> str:
        """Everything besides the tree that a result depends on, as text; ccache is no part of it."""
        return json.dumps([configure_options(source, replace(self, launcher="")), *self.versions])


def configure_options(source: Source, tools: Tools) -> list[str]:
    """cmake's options for a source."""
    # Said also where it is empty: cmake would remember the one of an earlier run.
    launchers = [f"-DCMAKE_{language}_COMPILER_LAUNCHER={tools.launcher}" for language in ("C", "CXX")]
    # Always the pin's: a number of each patch's own would compile more than the patch has changed.
    numbers = [f"-DLLAMA_BUILD_COMMIT={source.commit[:9]}", f"-DLLAMA_BUILD_NUMBER={source.build_number}"]
    return [*_OPTIONS, *launchers, *numbers]


def find_tools(shop: Workshop, jobs: int | None) -> Tools:
    """What this machine compiles with; ``jobs`` is how many compilers run at once, or as many as fit.

    Raises OutsideError that names everything that is missing.
    """
    compilers = {
        "cc": shop.environment.get("CC", "").split()[:1] or ["cc"],
        "c++": shop.environment.get("CXX", "").split()[:1] or ["c++"],
    }
    wanted = {"cmake": "cmake", "ninja": "ninja", **{name: word[0] for name, word in compilers.items()}}
    missing = {name: program for name, program in wanted.items() if not _is_there(shop.programs, program)}
    if missing:
        packages = " ".join(dict.fromkeys(_PACKAGES[name] for name in missing))
        raise OutsideError(
            f"the patches can't be compiled: {listed(tuple(missing.values()), 'and')} can't be found",
            hint=f"apt-get install {packages}, or leave it out with --no-compile",
        )
    ccache = shop.programs.find("ccache")
    versions = tuple(_first_line(shop.programs, [wanted[name], "--version"]) for name in ("c++", "cmake"))
    return Tools(launcher=str(ccache[0]) if ccache else "", versions=versions, jobs=jobs or _jobs(shop))


def _is_there(programs: Programs, program: str) -> bool:
    return Path(program).is_file() if "/" in program else bool(programs.find(program))


def _first_line(programs: Programs, argv: Sequence[str]) -> str:
    lines = programs.run(argv, timeout=60).text.splitlines()
    return lines[0] if lines else ""


def _jobs(shop: Workshop) -> int:
    """As many as cores and memory allow, by the rule of the images."""
    script = shop.root / "images" / "common" / "jobs"
    text = shop.programs.run(["sh", str(script), "1"], timeout=60).text.strip()
    return int(text) if text.isdigit() else 1


def result_key(tree: str, settings: str) -> str:
    """Names one tree compiled in one way."""
    return hashlib.sha256(f"{tree}\n{settings}".encode()).hexdigest()


def compile_tree(
    shop: Workshop,
    folder: CompileFolder,
    source: Source,
    tools: Tools,
    *,
    name: str,
    on_progress: Callable[[str], None],
) -> str | None:
    """Configure and compile what lies in the folder; what is wrong, in a few words, or ``None``.

    Compiles only what has changed since the last time. Everything that cmake and the compiler print goes to
    logs that begin with ``name``. Raises OutsideError where a program can't be started.
    """
    options = configure_options(source, tools)
    configure = ["cmake", "-S", str(folder.source), "-B", str(folder.build), "-G", "Ninja", *options]
    build = ["ninja", "-C", str(folder.build), "-j", str(tools.jobs), TARGET]
    environment = {
        "NINJA_STATUS": "[%f/%t] ",
        "CCACHE_BASEDIR": str(folder.source),
        "CCACHE_NOHASHDIR": "1",
    }
    for step, argv in (("configure", configure), ("compile", build)):
        on_progress(step)
        log = shop.log_path(f"{name}-{step}")
        finished = shop.programs.run(
            argv, env=environment, on_line=lambda line: _tell(line, on_progress), log=log
        )
        if finished.returncode != 0:
            problem = first_error(f"{finished.text}\n{finished.error_text}")
            # Compilers name files from the build folder.
            for prefix in (f"{folder.source}/", f"{os.path.relpath(folder.source, folder.build)}/"):
                problem = problem.replace(prefix, "")
            return f"{problem}; the whole output is in {log}"
    return None


def _tell(line: str, on_progress: Callable[[str], None]) -> None:
    match = _NINJA.fullmatch(line)
    if match is not None:
        on_progress(f"{match[1]}/{match[2]} files")


def first_error(output: str) -> str:
    """The first error in what cmake or a compiler printed, or the last line where none is marked as one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if _ERROR.search(line):
            # cmake says on the next line what it is about.
            more = lines[number + 1 : number + 2] if line.startswith("CMake Error") else []
            return " ".join([line, *more])
    return lines[-1] if lines else "no reason was given"
