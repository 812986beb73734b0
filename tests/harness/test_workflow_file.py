"""Scripts of the rendered workflow, run as a CI would run them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_images.render import WORKFLOW

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder like a checkout that bootstrap has made ready."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv"):
            (folder / path.name).symlink_to(path)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "invoke").symlink_to(Path(sys.executable).parent / "invoke")
    return folder


def planned(checkout: Path, arch: str, flavor: str = "patched") -> tuple[int, list[dict[str, Any]], str]:
    """Exit code of the plan's script, its targets, and what it printed."""
    document = yaml.safe_load((ROOT / WORKFLOW).read_text("utf-8"))
    (script,) = (step["run"] for step in document["jobs"]["plan"]["steps"] if step.get("id") == "plan")
    output = checkout / "output"
    output.write_text("")
    shell = document["defaults"]["run"]["shell"].replace("{0}", "-c").split()
    done = subprocess.run(
        [*shell, script],
        cwd=checkout,
        env={
            "PATH": "/usr/bin:/bin",
            "ARCH": arch,
            "FLAVOR": flavor,
            "GITHUB_OUTPUT": str(output),
            "HOME": "/",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    name, _, value = output.read_text().partition("=")
    return done.returncode, json.loads(value) if name == "targets" else [], done.stderr


def test_all_is_every_architecture_on_each_of_its_platforms(checkout: Path) -> None:
    code, targets, text = planned(checkout, "all")
    assert code == 0, text
    found = {(one["target"], one["machine"]) for one in targets}
    assert {("cpu", "amd64"), ("cpu", "arm64"), ("sm120", "amd64"), ("sm121", "arm64")} <= found
    assert ("sm121", "amd64") not in found
    assert {one["label"] for one in targets} >= {"cpu", "portable", "sm120"}


def test_one_architecture_and_flavor(checkout: Path) -> None:
    assert planned(checkout, "120", "stock")[1] == [
        {
            "target": "sm120-stock",
            "arch": "120",
            "flavor": "stock",
            "label": "sm120",
            "platform": "linux/amd64",
            "machine": "amd64",
        }
    ]


def test_what_nobody_can_build_ends_the_plan(checkout: Path) -> None:
    code, targets, text = planned(checkout, "$(touch evil)")
    assert (code, targets) == (1, [])
    assert "there is nothing to build" in text
    assert not (checkout / "evil").exists()
