"""``invoke check``: everything that this machine can look at, one after the other."""

from __future__ import annotations

from pathlib import Path

from llama_images.render import drift, drifted_paths
from llama_images.workflows.workshop import Workshop

CODE = ("llama_images", "tests", "tasks.py")

_OPTIONAL = {"hadolint": ("images/*/Dockerfile",), "zizmor": (".github/workflows/*.yml",)}
"""Programs that look at rendered files, where they are installed, and the files."""

_OPTIONS = {"hadolint": (), "zizmor": ("--offline", "--no-progress")}


def run_checks(shop: Workshop, tools: Path, *, fix: bool = False) -> list[str]:
    """Run every check, whatever the earlier ones said, and return the names of those that failed.

    ``tools`` is the folder of the virtual environment's programs. Their output is passed on as it is; the
    tests run last, so that their closing line is the last one.
    """
    failed: list[str] = []

    def step(name: str, *argv: str) -> None:
        shop.reporter.line(f"--- {name}")
        finished = shop.programs.run(
            [str(tools / argv[0]), *argv[1:]], cwd=shop.root, on_line=shop.reporter.line
        )
        if finished.returncode != 0:
            failed.append(name)

    step("ruff", "ruff", "check", *(["--fix"] if fix else []), *CODE)
    step("ruff format", "ruff", "format", *([] if fix else ["--check"]), *CODE)
    step("mypy", "mypy", *CODE)
    step("imports", "lint-imports")
    shop.reporter.line("--- rendered files")
    rendered = shop.rendered()
    if stale := list(drifted_paths(rendered, shop.present(rendered))):
        shop.reporter.line(drift(rendered, shop.present(rendered)))
        failed.append(f"rendered files ({', '.join(stale[:3])})")
    for name, files in _OPTIONAL.items():
        found = shop.programs.find(name)
        if found:
            paths = sorted(
                str(path.relative_to(shop.root)) for glob in files for path in shop.root.glob(glob)
            )
            step(name, str(found[0]), *_OPTIONS[name], *paths)
        else:
            shop.reporter.line(f"--- {name}\nleft out: {name} is not installed")
    step("tests", "python", "-m", "pytest")
    return failed
