"""The source adapter against real git and small repositories made on the spot; the pin is not needed."""

from __future__ import annotations

import datetime as dt
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llama_images.adapters.git import GitSourceTree
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.trees import TreeStore
from llama_images.errors import CheckFailed, OutsideError, UsageError
from llama_images.matrix import Source
from llama_images.patch_series import PatchSeries, make_series
from llama_images.ports import CheckedOut, Finished, Programs
from tests.patches.seen import DATE, NOWHERE, Lines, Watched

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

LINES = "".join(f"line {number}\n" for number in range(1, 61))
PATHS = ("CMakeLists.txt", "src", "tools/CMakeLists.txt")
FILES = {
    "CMakeLists.txt",
    "src/a.cpp",
    "src/run.sh",
    "src/deep/er/b.cpp",
    "src/crlf.txt",
    "tools/CMakeLists.txt",
}
IDENTITY = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(*words: str | Path) -> str:
    finished = subprocess.run(
        ["git", *map(str, words)], check=True, capture_output=True, text=True, env=os.environ | IDENTITY
    )
    return finished.stdout.strip()


class Upstream:
    """A repository with two commits, and the source that pins the second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        git("init", "--quiet", "--initial-branch=main", path)
        for name, text in {
            "CMakeLists.txt": "project(x)\n",
            "src/a.cpp": LINES,
            "src/deep/er/b.cpp": "b\n",
            "src/crlf.txt": "kept\r\nas it is\r\n",
            "tools/CMakeLists.txt": "# tools\n",
            "tools/ui/page.txt": "page\n",
            "models/big.gguf": "big\n" * 1000,
            ".gitattributes": "*.cpp text eol=crlf\n*.txt ident\n",
        }.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(text.encode())
        (path / "src/run.sh").write_text("#!/bin/sh\n")
        (path / "src/run.sh").chmod(0o755)
        git("-C", path, "-c", "core.autocrlf=false", "add", "--all")
        git("-C", path, "commit", "--quiet", "--message=one", "--allow-empty")
        git("-C", path, "commit", "--quiet", "--message=two", "--allow-empty")
        self.commit = git("-C", path, "rev-parse", "HEAD")
        self.tree = git("-C", path, "rev-parse", "HEAD^{tree}")

    def source(self, **other: object) -> Source:
        values: dict[str, object] = {
            "name": "small",
            "repository": NOWHERE,
            "ref": "main",
            "commit": self.commit,
            "tree": self.tree,
            "version": "0.1.0",
            "build_number": 2,
            "date": DATE,
            "paths": PATHS,
            "series": "small",
        }
        return Source.model_validate(values | other)


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    return Upstream(tmp_path_factory.mktemp("up stream") / "repo")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "the cache"


@pytest.fixture
def lines() -> Lines:
    return Lines()


def adapter(cache: Path, lines: Lines, programs: Programs | None = None) -> GitSourceTree:
    return GitSourceTree(programs or SystemPrograms(), cache, lines, Path("patches"))


@pytest.fixture
def tree(cache: Path, lines: Lines) -> GitSourceTree:
    return adapter(cache, lines)


def files_below(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*") if not each.is_dir()}


def hunk(line: int, new: str) -> str:
    """Replaces one line of src/a.cpp."""
    return f"@@ -{line - 1},3 +{line - 1},3 @@\n line {line - 1}\n-line {line}\n+{new}\n line {line + 1}\n"


def series(*diffs: str) -> PatchSeries:
    header = "From: Some One <one@example.org>\nSubject: x\n\nWhy: a test.\n---\n"
    names = [f"{number:04}-x.patch" for number in range(1, len(diffs) + 1)]
    return make_series("small", zip(names, (header + diff for diff in diffs), strict=True))


A_CPP = "diff --git a/src/a.cpp b/src/a.cpp\n--- a/src/a.cpp\n+++ b/src/a.cpp\n"
NEW = "diff --git a/src/new.sh b/src/new.sh\nnew file mode 100755\n--- /dev/null\n+++ b/src/new.sh\n"
GOOD = series(A_CPP + hunk(10, "ten") + hunk(40, "forty"), NEW + "@@ -0,0 +1 @@\n+#!/bin/sh\n")


def no_program(argv: Sequence[str]) -> Finished | None:
    pytest.fail(f"started {argv}")


# --- what comes out ---


def test_only_the_named_paths_come_as_plain_files(
    tree: GitSourceTree, upstream: Upstream, lines: Lines, cache: Path
) -> None:
    out = tree.checkout(upstream.source(), None, repo=str(upstream.path))
    assert out == CheckedOut(
        path=cache / "trees" / f"small-{upstream.commit[:12]}",
        commit=upstream.commit,
        tree=upstream.tree,
        patched_tree=upstream.tree,
    )
    assert files_below(out.path) == FILES
    assert (out.path / "src/a.cpp").read_text() == LINES  # whatever .gitattributes asks for
    assert (out.path / "src/crlf.txt").read_bytes() == b"kept\r\nas it is\r\n"
    for each in (out.path, *out.path.rglob("*")):
        executable = each.is_dir() or each.name == "run.sh"
        assert stat.S_IMODE(each.stat().st_mode) == (0o755 if executable else 0o644), each
        assert each.stat().st_mtime == DATE.timestamp(), each
    assert lines.warnings == []


def test_modes_do_not_depend_on_the_umask(tree: GitSourceTree, upstream: Upstream) -> None:
    before = os.umask(0o077)
    try:
        out = tree.checkout(upstream.source(), None, repo=str(upstream.path))
    finally:
        os.umask(before)
    assert stat.S_IMODE((out.path / "src/a.cpp").stat().st_mode) == 0o644
    assert stat.S_IMODE((out.path / "src").stat().st_mode) == 0o755


def test_a_series_is_applied_and_leaves_the_stock_tree_alone(
    tree: GitSourceTree, upstream: Upstream, lines: Lines, cache: Path
) -> None:
    stock = tree.checkout(upstream.source(), None, repo=str(upstream.path))
    out = tree.checkout(upstream.source(), GOOD, repo=str(upstream.path))
    assert out.path == cache / "trees" / f"small-{upstream.commit[:12]}-{GOOD.short}"
    expected = LINES.replace("line 10\n", "ten\n").replace("line 40\n", "forty\n")
    assert (out.path / "src/a.cpp").read_text() == expected
    assert os.access(out.path / "src/new.sh", os.X_OK)
    assert (stock.path / "src/a.cpp").read_text() == LINES
    assert files_below(out.path) == FILES | {"src/new.sh"}
    assert lines.warnings == []
    # git itself comes to the same tree.
    clone = cache / "clone"
    git("clone", "--quiet", upstream.path, clone)
    for patch in GOOD.patches:
        (cache / patch.name).write_text(patch.text)
        git("-C", clone, "apply", "--index", cache / patch.name)
    assert out.patched_tree == git("-C", clone, "write-tree")


def test_an_empty_series_is_the_stock_tree(tree: GitSourceTree, upstream: Upstream) -> None:
    stock = tree.checkout(upstream.source(), None, repo=str(upstream.path))
    assert tree.checkout(upstream.source(), PatchSeries(name="small"), repo=str(upstream.path)) == stock


# --- every shape of repository ---


def bare(upstream: Upstream, folder: Path) -> str:
    git("clone", "--quiet", "--bare", upstream.path, folder / "bare repo.git")
    return str(folder / "bare repo.git")


def worktree(upstream: Upstream, folder: Path) -> str:
    git("clone", "--quiet", upstream.path, folder / "main")
    git("-C", folder / "main", "worktree", "add", "--quiet", "--detach", folder / "work")
    assert (folder / "work/.git").is_file()
    return str(folder / "work")


def shallow(upstream: Upstream, folder: Path) -> str:
    git("clone", "--quiet", "--depth=1", upstream.path.as_uri(), folder / "shallow")
    return str(folder / "shallow")


def borrowing(upstream: Upstream, folder: Path) -> str:
    git("clone", "--quiet", "--shared", upstream.path, folder / "shared")
    return str(folder / "shared")


def without_big_blobs(upstream: Upstream, folder: Path) -> str:
    """A mirror as some sites make them: no configuration, and the large files are not there."""
    path = folder / "mirror"
    git("clone", "--quiet", "--bare", upstream.path, path)
    packs = folder / "packs"
    (path / "objects/pack").rename(packs)
    (path / "objects/pack").mkdir()
    for pack in packs.glob("*.pack"):
        with pack.open("rb") as stream:
            subprocess.run(["git", "-C", path, "unpack-objects", "-q"], stdin=stream, check=True)
    blob = git("-C", path, "rev-parse", "HEAD:models/big.gguf")
    (path / "objects" / blob[:2] / blob[2:]).unlink()
    for extra in ("config", "hooks", "info", "description"):
        each = path / extra
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink(missing_ok=True)
    return str(path)


def detached_dot_git(upstream: Upstream, folder: Path) -> str:
    git("clone", "--quiet", f"--separate-git-dir={folder / 'elsewhere'}", upstream.path, folder / "here")
    return str(folder / "here")


@pytest.mark.parametrize(
    "shape",
    [
        lambda upstream, _: str(upstream.path),
        lambda upstream, _: f"{upstream.path}/.git",
        lambda upstream, _: upstream.path.as_uri(),
        bare,
        worktree,
        shallow,
        borrowing,
        without_big_blobs,
        detached_dot_git,
    ],
    ids=["clone", "dot-git", "file-url", "bare", "worktree", "shallow", "shared", "missing-blobs", "gitfile"],
)
def test_every_shape_of_repository_gives_the_same_tree(
    tree: GitSourceTree, upstream: Upstream, tmp_path: Path, shape: Callable[[Upstream, Path], str]
) -> None:
    out = tree.checkout(upstream.source(), GOOD, repo=shape(upstream, tmp_path))
    assert files_below(out.path) == FILES | {"src/new.sh"}
    assert out.tree == upstream.tree


def test_a_relative_path_is_taken_from_the_working_folder(
    tree: GitSourceTree, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(upstream.path.parent)
    assert files_below(tree.checkout(upstream.source(), None, repo="repo").path) == FILES


def test_the_repository_of_another_user_can_be_read(
    tree: GitSourceTree, upstream: Upstream, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    path = Path(bare(upstream, tmp_path))
    for each in (path, *path.rglob("*")):
        os.chown(each, 12345, 12345)
    assert files_below(tree.checkout(upstream.source(), None, repo=str(path)).path) == FILES


def test_the_users_own_git_settings_have_no_say(
    cache: Path, lines: Lines, upstream: Upstream, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    hook = home / "hooks/reference-transaction"
    hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/hooked'\nexit 1\n")
    hook.chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\n autocrlf = true\n fileMode = false\n hooksPath = {home}/hooks\n"
        f'[url "{NOWHERE}"]\n insteadOf = {upstream.path}\n[apply]\n whitespace = fix\n'
    )
    environ = os.environ | {
        "HOME": str(home),
        "GIT_DIR": str(tmp_path / "another.git"),  # as within a hook
        "GIT_INDEX_FILE": str(tmp_path / "index"),
        "GIT_WORK_TREE": str(tmp_path),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.hooksPath",
        "GIT_CONFIG_VALUE_0": f"{home}/hooks",
    }
    environ.pop("GIT_CONFIG_GLOBAL", None)
    tree = adapter(cache, lines, SystemPrograms(environ=environ))
    out = tree.checkout(upstream.source(), GOOD, repo=str(upstream.path))
    assert files_below(out.path) == FILES | {"src/new.sh"}
    assert not (tmp_path / "hooked").exists()
    assert not (tmp_path / "index").exists()


# --- the cache ---


def test_with_everything_in_the_cache_no_program_is_started(
    tree: GitSourceTree, upstream: Upstream, cache: Path, lines: Lines
) -> None:
    first = tree.checkout(upstream.source(), GOOD, repo=str(upstream.path))
    inode = (first.path / "src/a.cpp").stat().st_ino
    assert adapter(cache, lines, Watched(before=no_program)).checkout(upstream.source(), GOOD) == first
    assert (first.path / "src/a.cpp").stat().st_ino == inode


def test_another_series_needs_no_repository_once_the_mirror_is_there(
    tree: GitSourceTree, upstream: Upstream, lines: Lines
) -> None:
    tree.checkout(upstream.source(), None, repo=str(upstream.path))
    lines.activities.clear()
    assert tree.checkout(upstream.source(), GOOD).patched_tree != upstream.tree
    assert lines.activities == []


def change_content(path: Path) -> None:
    before = (path / "src/a.cpp").stat()
    (path / "src/a.cpp").write_text(LINES.replace("line 7\n", "LINE 7\n"))
    os.utime(path / "src/a.cpp", ns=(before.st_atime_ns, before.st_mtime_ns))


def add_file(path: Path) -> None:
    (path / "src/extra.cpp").write_text("x")


def add_file_unseen(path: Path) -> None:
    before = (path / "src").stat()
    add_file(path)
    os.utime(path / "src", ns=(before.st_atime_ns, before.st_mtime_ns))


def link_instead(path: Path) -> None:
    (path / "src/a.cpp").rename(path.parent / "moved")
    (path / "src/a.cpp").symlink_to(path.parent / "moved")


def file_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


@pytest.mark.parametrize(
    "damage",
    [
        change_content,
        add_file,
        add_file_unseen,
        link_instead,
        lambda path: (path / "src/a.cpp").unlink(),
        lambda path: (path / "src/a.cpp").write_text(""),
        lambda path: (path / "src/a.cpp").chmod(0o755),
        lambda path: os.utime(path / "src/a.cpp"),
        lambda path: (path / "src/empty").mkdir(),
        lambda path: shutil.rmtree(path / "src/deep"),
        shutil.rmtree,
        file_instead,
        lambda path: path.with_name(f"{path.name}.json").unlink(),
        lambda path: path.with_name(f"{path.name}.json").write_text("{"),
        lambda path: path.with_name(f"{path.name}.json").write_text("[]"),
        lambda path: path.with_name(f"{path.name}.json").write_bytes(b"\xff"),
    ],
)
def test_a_tampered_tree_is_made_anew(
    tree: GitSourceTree, upstream: Upstream, damage: Callable[[Path], object]
) -> None:
    out = tree.checkout(upstream.source(), None, repo=str(upstream.path))
    damage(out.path)
    assert tree.checkout(upstream.source(), None) == out
    assert files_below(out.path) == FILES
    assert (out.path / "src/a.cpp").read_text() == LINES
    assert not (out.path / "src/a.cpp").is_symlink()
    assert not (out.path / "src/empty").exists()
    assert stat.S_IMODE((out.path / "src/a.cpp").stat().st_mode) == 0o644


def test_a_tree_that_was_only_moved_to_another_disk_is_kept(
    tree: GitSourceTree, upstream: Upstream, cache: Path, lines: Lines
) -> None:
    out = tree.checkout(upstream.source(), None, repo=str(upstream.path))
    copy = cache.with_name("copy")
    shutil.copytree(cache, copy)  # keeps times and modes, but not the inodes' change times
    programs = Watched(before=no_program)
    for _ in range(2):
        again = adapter(copy, lines, programs).checkout(upstream.source(), None)
        assert again.path == copy / "trees" / out.path.name


@pytest.mark.parametrize("other", [{"paths": ("src",)}, {"date": DATE + dt.timedelta(days=1)}])
def test_another_date_or_other_paths_make_the_tree_anew(
    tree: GitSourceTree, upstream: Upstream, other: dict[str, object]
) -> None:
    tree.checkout(upstream.source(), None, repo=str(upstream.path))
    source = upstream.source(**other)
    out = tree.checkout(source, None)
    assert files_below(out.path) == {
        name for name in FILES if source.paths == PATHS or name.startswith("src/")
    }
    assert out.path.stat().st_mtime == source.date.timestamp()


def test_a_tree_that_nobody_used_for_a_month_goes(tree: GitSourceTree, upstream: Upstream) -> None:
    old = tree.checkout(upstream.source(), None, repo=str(upstream.path))
    marker = old.path.with_name(f"{old.path.name}.json")
    long_ago = time.time() - 31 * 24 * 3600
    os.utime(marker, (long_ago, long_ago))
    tree.checkout(upstream.source(), None)
    assert time.time() - marker.stat().st_mtime < 3600
    os.utime(marker, (long_ago, long_ago))
    kept = tree.checkout(upstream.source(), GOOD)
    assert not old.path.exists()
    assert not marker.exists()
    assert kept.path.is_dir()


# --- half-made things ---


def nothing_half_made(cache: Path) -> bool:
    trees = cache / "trees"
    left = {each.name for each in trees.iterdir() if each.name != ".staging"} if trees.exists() else set()
    staging = list((trees / ".staging").rglob("*/*")) if trees.exists() else []
    return not left and not staging


@pytest.mark.parametrize("command", ["fetch", "rev-parse", "read-tree", "apply", "ls-files", "cat-file"])
def test_ctrl_c_leaves_nothing_half_made(cache: Path, lines: Lines, upstream: Upstream, command: str) -> None:
    def interrupt(argv: Sequence[str]) -> None:
        if command in argv and ("--batch" in argv or command != "cat-file"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapter(cache, lines, Watched(before=interrupt)).checkout(
            upstream.source(), GOOD, repo=str(upstream.path)
        )
    assert nothing_half_made(cache)
    out = adapter(cache, lines).checkout(upstream.source(), GOOD, repo=str(upstream.path))
    assert files_below(out.path) == FILES | {"src/new.sh"}


def test_what_a_killed_process_left_is_cleared_away(
    tree: GitSourceTree, upstream: Upstream, cache: Path
) -> None:
    tree.checkout(upstream.source(), None, repo=str(upstream.path))
    stale = cache / "trees/.staging/small/tmpdead/tree/src"
    stale.mkdir(parents=True)
    (stale / "a.cpp").write_text("half")
    mirror = cache / "source/small.git"
    (mirror / "shallow.lock").write_text("")
    (mirror / "config.lock").write_text("")
    (mirror / "objects/pack/tmp_pack_dead").write_text("half")
    half = cache / "trees" / f"small-{upstream.commit[:12]}-{GOOD.short}"
    (half / "src").mkdir(parents=True)
    out = tree.checkout(upstream.source(), GOOD)
    assert files_below(out.path) == FILES | {"src/new.sh"}
    assert not stale.exists()
    assert not list(mirror.rglob("*.lock"))
    assert not list(mirror.rglob("tmp_*"))


def test_a_mirror_that_was_only_begun_is_completed(
    tree: GitSourceTree, upstream: Upstream, cache: Path, lines: Lines
) -> None:
    def stop(argv: Sequence[str]) -> None:
        if "--stdin" in argv:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapter(cache, lines, Watched(before=stop)).checkout(upstream.source(), None, repo=str(upstream.path))
    lines.activities.clear()
    assert files_below(tree.checkout(upstream.source(), None, repo=str(upstream.path)).path) == FILES
    assert len(lines.activities) == 1  # the commit was there; only the files were fetched


@pytest.mark.parametrize("pattern", ["objects/pack/*.pack", "objects/pack/*.idx", "HEAD", "objects", "refs"])
def test_a_damaged_mirror_is_fetched_anew(
    tree: GitSourceTree, upstream: Upstream, cache: Path, lines: Lines, pattern: str
) -> None:
    tree.checkout(upstream.source(), None, repo=str(upstream.path))
    mirror = cache / "source/small.git"
    for each in mirror.glob(pattern):
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.chmod(0o644)
            content = bytearray(each.read_bytes())
            middle = len(content) // 2
            content[middle : middle + 40] = bytes(40)
            each.write_bytes(content)
    out = tree.checkout(upstream.source(), GOOD, repo=str(upstream.path))
    assert files_below(out.path) == FILES | {"src/new.sh"}
    expected = LINES.replace("line 10\n", "ten\n").replace("line 40\n", "forty\n")
    assert (out.path / "src/a.cpp").read_text() == expected


def test_a_full_disk_is_said_so(
    tree: GitSourceTree, upstream: Upstream, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TreeStore, "put", full)
    with pytest.raises(OutsideError) as caught:
        tree.checkout(upstream.source(), None, repo=str(upstream.path))
    assert caught.value.message == f"the disk that holds {cache} is full"
    assert nothing_half_made(cache)


def test_a_full_disk_told_by_git_is_said_so(cache: Path, lines: Lines, upstream: Upstream) -> None:
    def full(argv: Sequence[str]) -> Finished | None:
        if "fetch" not in argv:
            return None
        return Finished(
            argv=tuple(argv),
            returncode=128,
            stdout=b"",
            stderr=b"fatal: write error: No space left on device\n",
        )

    with pytest.raises(OutsideError, match=r"the disk that holds .* is full"):
        adapter(cache, lines, Watched(before=full)).checkout(upstream.source(), None, repo=str(upstream.path))


def test_a_cache_that_is_a_file_is_said_so(tmp_path: Path, lines: Lines, upstream: Upstream) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutsideError, match="can't use"):
        adapter(tmp_path / "file", lines).checkout(upstream.source(), None, repo=str(upstream.path))


# --- two processes ---

HOLDER = """\
import sys
import filelock
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits_for_the_lock_and_says_so(
    tree: GitSourceTree, upstream: Upstream, cache: Path, lines: Lines
) -> None:
    (cache / "source").mkdir(parents=True)
    found: list[CheckedOut] = []
    worker = threading.Thread(
        target=lambda: found.append(tree.checkout(upstream.source(), None, repo=str(upstream.path)))
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(cache / "source/small.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        worker.start()
        deadline = time.monotonic() + 20
        while not lines.lines and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lines.lines == ["source small: another process works on it; waiting for it to finish"]
        assert not (cache / "trees").exists()
    worker.join(timeout=20)
    assert files_below(found[0].path) == FILES


def test_many_at_once_make_one_tree(cache: Path, upstream: Upstream) -> None:
    reporters = [Lines() for _ in range(4)]
    found: list[CheckedOut] = []
    workers = [
        threading.Thread(
            target=lambda each=each: found.append(
                adapter(cache, each).checkout(upstream.source(), GOOD, repo=str(upstream.path))
            )
        )
        for each in reporters
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert sum(len(each.activities) for each in reporters) == 2  # one fetched the commit and the files
    assert files_below(found[0].path) == FILES | {"src/new.sh"}


# --- what is refused ---


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("{tmp}/nothing", "{tmp}/nothing does not exist"),
        ("file://{tmp}/nothing", "file://{tmp}/nothing does not exist"),
        ("{tmp}", "{tmp} is not a git repository"),
        ("file://{tmp}", "file://{tmp} is not a git repository"),
        ("{tmp}/file", "{tmp}/file is not a git repository"),
        ("{upstream}/src", "{upstream}/src is not a git repository"),
        ("{tmp}/broken", "{tmp}/broken is not a git repository"),
        ("--upload-pack=touch", "'--upload-pack=touch' is no path or URL of a repository"),
        ("a\nb", "'a\\nb' is no path or URL of a repository"),
        ("ext::sh -c true", "ext::sh -c true does not exist"),
        ("ftp://example.org/x", "ftp://example.org/x: ftp:// is not supported"),
    ],
)
@pytest.mark.parametrize("is_warm", [False, True])
def test_what_is_no_repository_is_wrong_use(
    tree: GitSourceTree, upstream: Upstream, tmp_path: Path, repo: str, message: str, is_warm: bool
) -> None:
    if is_warm:
        tree.checkout(upstream.source(), None, repo=str(upstream.path))
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/.git").write_text("gitdir: /nowhere/at/all\n")
    with pytest.raises(UsageError) as caught:
        tree.checkout(upstream.source(), None, repo=repo.format(tmp=tmp_path, upstream=upstream.path))
    assert caught.value.message == message.format(tmp=tmp_path, upstream=upstream.path)
    assert upstream.commit[:12] in str(caught.value.hint)


@pytest.mark.parametrize("is_warm", [False, True])
def test_a_repository_without_the_commit_says_what_brings_it(
    tree: GitSourceTree, upstream: Upstream, tmp_path: Path, is_warm: bool
) -> None:
    if is_warm:
        tree.checkout(upstream.source(), None, repo=str(upstream.path))
    fresh = tmp_path / "fresh"
    git("init", "--quiet", fresh)
    with pytest.raises(OutsideError) as caught:
        tree.checkout(upstream.source(), None, repo=str(fresh))
    assert caught.value.message == f"{fresh} lacks commit {upstream.commit}"
    assert caught.value.hint == f"Bring it there: git -C {fresh} fetch {NOWHERE} {upstream.commit}"


def test_a_partial_clone_without_the_files_names_one_and_is_left_alone(
    tree: GitSourceTree, upstream: Upstream, tmp_path: Path, lines: Lines
) -> None:
    partial = tmp_path / "partial"
    git("-C", upstream.path, "config", "uploadpack.allowFilter", "true")
    git("-C", upstream.path, "config", "uploadpack.allowAnySHA1InWant", "true")
    git("clone", "--quiet", "--no-checkout", "--filter=blob:none", upstream.path.as_uri(), partial)
    before = git("-C", partial, "count-objects", "-v")
    with pytest.raises(OutsideError) as caught:
        tree.checkout(upstream.source(), None, repo=str(partial))
    assert caught.value.message == (
        f"{partial} holds commit {upstream.commit[:12]} without the content of 6 files that the build reads, "
        "CMakeLists.txt among them"
    )
    assert git("-C", partial, "count-objects", "-v") == before
    assert lines.warnings == []


@pytest.mark.parametrize("repo", [None, "https://user:secret@127.0.0.1:1/x", "git://127.0.0.1:1/x"])
def test_an_unreachable_upstream_is_a_line_and_a_hint_how_to_give_a_clone(
    tree: GitSourceTree, upstream: Upstream, repo: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OutsideError) as caught:
        tree.checkout(upstream.source(), None, repo=repo)
    message = caught.value.message
    where = NOWHERE if repo is None else repo.replace("user:secret@", "")
    assert message.startswith(f"source small: can't reach {where}: ")
    clone = f"a clone that holds {upstream.commit[:12]}: --repo PATH or LLAMA_CPP_REPO=PATH"
    assert caught.value.hint == f"Give {clone}"
    assert "secret" not in message
    assert "\n" not in message
    assert caught.value.exit_code == 3


def test_a_transfer_that_breaks_off_is_tried_again(
    cache: Path, lines: Lines, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_images.adapters.git_mirror._PAUSE_SECONDS", 0.0)
    tries: list[Sequence[str]] = []

    def break_off(argv: Sequence[str]) -> Finished | None:
        if "fetch" not in argv:
            return None
        tries.append(argv)
        return Finished(argv=tuple(argv), returncode=128, stdout=b"", stderr=b"fatal: early EOF\n")

    with pytest.raises(OutsideError, match="early EOF"):
        adapter(cache, lines, Watched(before=break_off)).checkout(upstream.source(), None)
    assert len(tries) == 3


@pytest.mark.parametrize("series_", [None, GOOD])
def test_another_tree_hash_fails_the_check(
    tree: GitSourceTree, upstream: Upstream, series_: PatchSeries | None, cache: Path
) -> None:
    wrong = "0123456789" * 4
    with pytest.raises(CheckFailed) as caught:
        tree.checkout(upstream.source(tree=wrong), series_, repo=str(upstream.path))
    assert caught.value.message == (
        f"sources.small.tree: commit {upstream.commit[:12]} has tree {upstream.tree}, the matrix says {wrong}"
    )
    assert nothing_half_made(cache)


def test_another_tree_hash_fails_the_check_in_a_warm_cache_too(
    tree: GitSourceTree, upstream: Upstream
) -> None:
    tree.checkout(upstream.source(), None, repo=str(upstream.path))
    with pytest.raises(CheckFailed, match=r"sources\.small\.tree"):
        tree.checkout(upstream.source(tree="0123456789" * 4), None)


def test_a_path_that_the_commit_lacks_is_named(tree: GitSourceTree, upstream: Upstream) -> None:
    with pytest.raises(CheckFailed, match=r"sources\.small\.paths: commit .* has no vendor"):
        tree.checkout(upstream.source(paths=(*PATHS, "vendor")), None, repo=str(upstream.path))


@pytest.mark.parametrize(
    ("carried", "problem"),
    [
        (
            series(A_CPP + hunk(10, "ten") + hunk(40, "forty").replace(" line 39", " line thirty-nine")),
            "src/a.cpp, hunk 2 of 2 (@@ -39,3 +39,3 @@)",
        ),
        (
            series(A_CPP + hunk(10, "ten"), A_CPP + hunk(10, "TEN")),
            "src/a.cpp, hunk 1 of 1 (@@ -9,3 +9,3 @@)",
        ),
        (
            series((A_CPP + hunk(10, "ten")).replace("a.cpp", "z.cpp")),
            "src/z.cpp does not exist in index",
        ),
        (
            series(NEW.replace("new.sh", "run.sh") + "@@ -0,0 +1 @@\n+#!/bin/sh\n"),
            "src/run.sh already exists in index",
        ),
        (
            series(A_CPP + hunk(10, " \tten")),
            "line 12 of the patch: space before tab in indent",
        ),
    ],
)
def test_a_broken_patch_is_named_by_patch_file_and_hunk(
    tree: GitSourceTree, upstream: Upstream, cache: Path, carried: PatchSeries, problem: str
) -> None:
    with pytest.raises(CheckFailed) as caught:
        tree.checkout(upstream.source(), carried, repo=str(upstream.path))
    count = len(carried.patches)
    onto = upstream.commit[:12] + (f" with the {count - 1} before it" if count > 1 else "")
    patch = f"patches/small/{carried.patches[-1].name}"
    assert caught.value.message == f"{patch} does not apply to {onto}: {problem}"
    assert caught.value.hint
    assert nothing_half_made(cache)


def test_no_fuzz_is_allowed(tree: GitSourceTree, upstream: Upstream) -> None:
    # patch(1) would drop the outer context lines and take this.
    near = "@@ -9,3 +9,3 @@\n line nine\n-line 10\n+ten\n line eleven\n"
    with pytest.raises(CheckFailed, match=r"hunk 1 of 1"):
        tree.checkout(upstream.source(), series(A_CPP + near), repo=str(upstream.path))


def test_a_hunk_that_moved_is_told(tree: GitSourceTree, upstream: Upstream, lines: Lines) -> None:
    moved = hunk(10, "ten").replace("@@ -9,3 +9,3 @@", "@@ -6,3 +6,3 @@")
    out = tree.checkout(upstream.source(), series(A_CPP + moved), repo=str(upstream.path))
    assert "\nten\n" in (out.path / "src/a.cpp").read_text()
    assert lines.warnings == ["patches/small/0001-x.patch: src/a.cpp, hunk 1 applies 3 lines off"]


def test_a_patch_of_a_path_that_is_left_out_is_refused(tree: GitSourceTree, upstream: Upstream) -> None:
    diff = A_CPP.replace("src/a.cpp", "tools/ui/page.txt")
    with pytest.raises(UsageError) as caught:
        tree.checkout(
            upstream.source(), series(f"{diff}@@ -1 +1 @@\n-page\n+PAGE\n"), repo=str(upstream.path)
        )
    assert caught.value.message == (
        "patches/small/0001-x.patch touches tools/ui/page.txt, which the source leaves out"
    )


def test_without_git_the_command_that_installs_it_is_named(
    cache: Path, lines: Lines, upstream: Upstream, tmp_path: Path
) -> None:
    programs = SystemPrograms(environ={"PATH": str(tmp_path)})
    with pytest.raises(OutsideError) as caught:
        adapter(cache, lines, programs).checkout(upstream.source(), None)
    assert caught.value.message == "git is not installed"
    assert "apt-get install git" in str(caught.value.hint)
