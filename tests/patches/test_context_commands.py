"""The git commands in a Dockerfile's header, run by a shell on a small upstream with a patch made for it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from llama_images.matrix import load_matrix
from llama_images.patch_series import make_series
from llama_images.render import context_commands
from llama_images.selection import make_target

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("flavor", "expected"), [("patched", "three\n"), ("stock", "one\n")])
def test_the_git_commands_prepare_a_tree(tmp_path: Path, flavor: str, expected: str) -> None:
    upstream = tmp_path / "upstream"
    upstream.mkdir()

    def git(*argv: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        argv = ("git", *identity, "-C", str(upstream), *argv)
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    (upstream / "a.txt").write_text("one\n")
    git("add", "a.txt")
    git("commit", "--quiet", "-m", "pin")
    pin, tree = git("rev-parse", "HEAD"), git("rev-parse", "HEAD^{tree}")
    (upstream / "a.txt").write_text("two\n")
    git("commit", "--quiet", "-am", "later")
    work = tmp_path / "work"
    (work / "patches" / "small").mkdir(parents=True)
    text = (
        "From: t <t@t>\nSubject: a: three\n\nWhy: a test.\n---\n"
        "diff --git a/a.txt b/a.txt\n--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-one\n+three\n"
    )
    (work / "patches" / "small" / "0001-a.patch").write_text(text)
    (work / "patches" / "small" / "series").write_text("# in order\n\n0001-a.patch # the first\n")
    # One that the series does not name must not be applied.
    (work / "patches" / "small" / "0002-b.patch").write_text(text.replace("three", "four"))
    series = make_series("small", [("0001-a.patch", text)]) if flavor == "patched" else None
    target = make_target(load_matrix(ROOT / "matrix.yaml"), "cpu", flavor=flavor)
    source = target.source.model_copy(
        update={"repository": upstream.as_uri(), "commit": pin, "tree": tree, "series": "small"}
    )
    commands = [
        command.split("   ")[0] for command in context_commands(replace(target, source=source), series)
    ]
    script = "\n".join(commands)
    ran = subprocess.run(["sh", "-ec", script], cwd=work, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (work / "images" / "src" / f"{source.name}-{flavor}" / "a.txt").read_text() == expected
    if flavor == "stock":
        assert ran.stdout.strip() == tree
