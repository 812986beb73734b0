"""Whether a source tree compiles, with the CPU backend, on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llama_images.errors import OutsideError, UsageError
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
_VERSIONED: Final = ("cc", "c++", "cmake")
_VARIABLES: Final = (
    *("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"),
    *("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH"),
)
"""What of the environment cmake and compilers heed."""
_LAUNCHERS: Final = frozenset({"ccache", "sccache", "distcc", "icecc"})
"""Programs that CC and CXX may name before the compiler."""
_NINJA: Final = re.compile(r"\[([0-9]+)/([0-9]+)\] .*")
_ERROR: Final = re.compile(r"CMake Error\b|\b(?:fatal )?error: |undefined reference to ")
# gcc, clang, the shell that ninja starts, ninja itself.
_CUT_OFF: Final = re.compile(
    r"No space left on device|Disk quota exceeded|[Cc]annot allocate memory|virtual memory exhausted"
    r"|out of memory allocating|(?:Killed|Terminated) signal terminated program"
    r"|unable to execute command: (?:Killed|Terminated)|internal compiler error: (?:Killed|Terminated)"
    r"|(?:^|: )Killed$|build stopped: interrupted by user"
)
_QUOTED: Final = re.compile(r"\s*[0-9]*\s*\|")
"""A line of the source, as compilers show it below an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """What compiles here."""

    launcher: str
    """ccache's path; empty where there is none."""
    versions: tuple[str, ...]
    """First lines of what compilers and cmake say of themselves."""
    environment: Mapping[str, str]
    """What compilers are told by variables."""
    jobs: int

    def settings(self, source: Source) -> str:
        """Everything besides the tree that a result depends on, as text; ccache is no part of it."""
        options = configure_options(source, replace(self, launcher=""))
        return json.dumps([options, *self.versions, sorted(self.environment.items())])


def configure_options(source: Source, tools: Tools) -> list[str]:
    """cmake's options for a source."""
    # Said also where it is empty: cmake would remember the one of an earlier run.
    launchers = [f"-DCMAKE_{language}_COMPILER_LAUNCHER={tools.launcher}" for language in ("C", "CXX")]
    # Always the pin's: a number of each patch's own would compile more than the patch has changed.
    numbers = [f"-DLLAMA_BUILD_COMMIT={source.commit[:9]}", f"-DLLAMA_BUILD_NUMBER={source.build_number}"]
    return [*_OPTIONS, *launchers, *numbers]


def find_tools(shop: Workshop, jobs: int | None) -> Tools:
    """What this machine compiles with; ``jobs`` is how many compilers run at once, or as many as fit.

    Raises OutsideError that names everything that is missing, UsageError for a CC or CXX that can't be read.
    """
    wanted = {
        "cmake": ["cmake"],
        "ninja": ["ninja"],
        "cc": _compiler(shop.environment, "CC", "cc"),
        "c++": _compiler(shop.environment, "CXX", "c++"),
    }
    missing: dict[str, str] = {}
    for name, words in wanted.items():
        for program in words[:2] if _is_launched(words) else words[:1]:
            if not _is_there(shop.programs, program):
                missing.setdefault(program, "ccache" if program in _LAUNCHERS else _PACKAGES[name])
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        raise OutsideError(
            f"the patches can't be compiled: {listed(tuple(missing), 'and')} can't be found",
            hint=f"apt-get install {packages}, or leave it out with --no-compile",
        )
    # ccache refuses to start ccache.
    has_own = _is_launched(wanted["cc"]) or _is_launched(wanted["c++"])
    ccache = () if has_own else shop.programs.find("ccache")
    return Tools(
        launcher=str(ccache[0]) if ccache else "",
        versions=tuple(_first_line(shop.programs, [*wanted[name], "--version"]) for name in _VERSIONED),
        environment={name: value for name in _VARIABLES if (value := shop.environment.get(name))},
        jobs=jobs or _jobs(shop),
    )


def _compiler(environment: Mapping[str, str], variable: str, default: str) -> list[str]:
    """The words of CC or CXX, which may name a launcher before the compiler and options behind it."""
    value = environment.get(variable, "").strip()
    if Path(value).is_file():
        return [value]  # cmake, too, takes a path with a space in it for one word
    try:
        return shlex.split(value) or [default]
    except ValueError as error:
        raise UsageError(
            f"{variable}={value}: {str(error).lower()}",
            hint="It reads as in a shell: [ccache] COMPILER [OPTION …]",
        ) from error


def _is_launched(words: Sequence[str]) -> bool:
    return len(words) > 1 and Path(words[0]).name in _LAUNCHERS


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
    logs that begin with ``name``. Raises OutsideError where a program can't be started, and where the machine
    stopped it: a full disk, a process that was killed.
    """
    options = configure_options(source, tools)
    configure = ["cmake", "-S", str(folder.source), "-B", str(folder.build), "-G", "Ninja", *options]
    build = ["ninja", "-C", str(folder.build), "-j", str(tools.jobs), TARGET]
    environment = {
        "NINJA_STATUS": "[%f/%t] ",
        "CCACHE_BASEDIR": str(folder.source),
        "CCACHE_NOHASHDIR": "1",
        **tools.environment,
    }
    for step, argv in (("configure", configure), ("compile", build)):
        on_progress(step)
        log = shop.log_path(f"{name}-{step}")
        finished = shop.programs.run(
            argv, env=environment, on_line=lambda line: _tell(line, on_progress), log=log
        )
        if finished.returncode != 0:
            output = f"{finished.text}\n{finished.error_text}"
            if (reason := cut_off(output, finished.returncode)) is not None:
                raise OutsideError(
                    f"{argv[0]} could not go on: {reason}; the whole output is in {log}",
                    hint="It is no fault of the patch. Free some space or memory, or give fewer --jobs.",
                )
            problem = first_error(output)
            # Compilers name files from the build folder.
            for prefix in (f"{folder.source}/", f"{os.path.relpath(folder.source, folder.build)}/"):
                problem = problem.replace(prefix, "")
            return f"{problem}; the whole output is in {log}"
    return None


def _tell(line: str, on_progress: Callable[[str], None]) -> None:
    match = _NINJA.fullmatch(line)
    if match is not None:
        on_progress(f"{match[1]}/{match[2]} files")


def cut_off(output: str, returncode: int) -> str | None:
    """What the machine had against it, in what a build printed; ``None`` where the source is at fault."""
    for line in output.splitlines():
        if _CUT_OFF.search(line) and not _QUOTED.match(line):
            return line.strip()
    return f"ended by signal {-returncode}" if returncode < 0 else None


def first_error(output: str) -> str:
    """The first error in what cmake or a compiler printed, or the last line where none is marked as one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if _ERROR.search(line):
            # cmake says on the next line what it is about.
            more = lines[number + 1 : number + 2] if line.startswith("CMake Error") else []
            return " ".join([line, *more])
    return lines[-1] if lines else "no reason was given"
