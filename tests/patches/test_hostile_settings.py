"""Under any settings of git, a rebase and an export give the same bytes and start none of their programs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_images.adapters.patch_files import PatchFolders
from llama_images.patch_series import PatchSeries
from llama_images.workflows.series import export_series
from tests.patches.series_repo import BODY, Bench, Upstream, changed, git, upstream_ahead

HOOKS = (
    *("post-checkout", "post-commit", "post-rewrite", "pre-rebase", "pre-commit", "commit-msg"),
    *("prepare-commit-msg", "reference-transaction", "post-index-change", "pre-auto-gc"),
)


def settings(marker: Path, hooks: Path) -> dict[str, str]:
    """What a user may have set. Each program leaves ``marker`` behind when it is started."""
    started = f"touch '{marker}'; cat"
    return {
        "core.hooksPath": str(hooks),
        "core.attributesFile": str(hooks / "attributes"),
        "core.autocrlf": "true",
        "core.safecrlf": "true",
        "core.quotePath": "false",
        "core.abbrev": "7",
        "core.commentChar": "#",
        "core.fsmonitor": f"touch '{marker}'",
        "commit.gpgSign": "true",
        "gpg.program": "false",
        "commit.cleanup": "scissors",
        "user.useConfigOnly": "true",
        "diff.noprefix": "true",
        "diff.mnemonicPrefix": "true",
        "diff.external": f"sh -c \"touch '{marker}'\"",
        "diff.algorithm": "patience",
        "diff.context": "1",
        "diff.suppressBlankEmpty": "true",
        "diff.hostile.textconv": f'sh -c "{started}"',
        "filter.hostile.clean": f'sh -c "{started}"',
        "filter.hostile.smudge": f'sh -c "{started}"',
        "filter.hostile.required": "true",
        "merge.hostile.driver": f"touch '{marker}'; false",
        "merge.conflictStyle": "merge",
        "merge.renames": "false",
        "rebase.autoSquash": "true",
        "rebase.autoStash": "true",
        "rerere.enabled": "true",
        "color.ui": "always",
        "log.showSignature": "true",
        "apply.whitespace": "fix",
        "i18n.logOutputEncoding": "latin1",
    }


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "started"


@pytest.fixture
def hostile(tmp_path: Path, marker: Path) -> Mapping[str, str]:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "attributes").write_text("* filter=hostile diff=hostile merge=hostile text eol=crlf\n")
    for name in HOOKS:
        (hooks / name).write_text(f"#!/bin/sh\ntouch '{marker}'\nexit 1\n")
        (hooks / name).chmod(0o755)
    return settings(marker, hooks)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    return upstream_ahead(tmp_path_factory.mktemp("upstream") / "repo")


@pytest.fixture(scope="module")
def series(upstream: Upstream) -> PatchSeries:
    return upstream.series({"src/a.cpp": changed(line10="ten")}, {"src/b.cpp": "b é\n"})


def life(
    bench: Bench, series: PatchSeries, patches: Path, own: Mapping[str, str]
) -> tuple[str, dict[str, bytes]]:
    """A rebase with a conflict, and its export: the last commit, and the files that were written."""
    done = bench.work.start(bench.source, series, repo=bench.repo, onto="conflict")
    assert done.conflict is not None
    for key, value in own.items():
        git(bench.path, "config", key, value)
    (bench.path / "src/a.cpp").write_text(changed(line10="ten"))
    done = bench.work.resume(bench.source, skip=False)
    assert len(done.kept) == 2
    export_series(bench.work, PatchFolders(patches), bench.source, work_tree=None, base=None)
    head = (bench.path / ".git/refs/heads/series").read_text()
    return head, {path.name: path.read_bytes() for path in (patches / "small").iterdir()}


def exported(bench: Bench, clone: Path, patches: Path) -> dict[str, bytes]:
    export_series(bench.work, PatchFolders(patches), bench.source, work_tree=clone, base=None)
    return {path.name: path.read_bytes() for path in (patches / "small").iterdir()}


def write_global(path: Path, hostile: Mapping[str, str]) -> Path:
    for key, value in hostile.items():
        git(path.parent, "config", "--file", str(path), key, value)
    return path


@pytest.mark.parametrize("where", ["global", "environment", "work tree"])
def test_a_rebase_and_its_export_are_the_same_under_any_settings(
    upstream: Upstream,
    series: PatchSeries,
    tmp_path: Path,
    hostile: Mapping[str, str],
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    wanted = life(Bench(upstream, tmp_path / "plain"), series, tmp_path / "plain-patches", {})
    set_up(where, hostile, tmp_path, monkeypatch)
    own = hostile if where == "work tree" else {}
    found = life(Bench(upstream, tmp_path / "cache"), series, tmp_path / "patches", own)
    assert found == wanted
    assert not marker.exists()


def set_up(where: str, hostile: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "global":
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(write_global(folder / "gitconfig", hostile)))
    elif where == "environment":
        monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(hostile)))
        for number, (key, value) in enumerate(hostile.items()):
            monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
            monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)


@pytest.mark.parametrize("where", ["global", "environment", "work tree"])
def test_the_export_of_a_work_tree_of_ones_own_is_the_same_under_any_settings(
    upstream: Upstream,
    tmp_path: Path,
    hostile: Mapping[str, str],
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--no-local", str(upstream.path), str(clone))
    git(clone, "checkout", "--quiet", "--detach", upstream.pin)
    (clone / "src/a.cpp").write_text(changed(line10="ten"))
    git(clone, "-c", "core.autocrlf=false", "commit", "--quiet", "--all", "--message", f"a: ten\n\n{BODY}")
    wanted = exported(Bench(upstream, tmp_path / "plain"), clone, tmp_path / "plain-patches")
    if where == "work tree":
        for key, value in hostile.items():
            git(clone, "config", key, value)
        shutil.copy(hostile["core.attributesFile"], clone / ".git/info/attributes")
    set_up(where, hostile, tmp_path, monkeypatch)
    # git would look into every file, by the filter.
    (clone / ".git/index").touch()
    for file in (clone / "src").iterdir():
        file.touch()
    assert exported(Bench(upstream, tmp_path / "cache"), clone, tmp_path / "patches") == wanted
    assert not marker.exists()
    if where == "work tree":
        git(clone, "status")
        assert marker.exists()  # the settings do what they are to do, where git is left alone with them
