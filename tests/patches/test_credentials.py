"""A repository that wants a password, over HTTP: git gets it, and nobody else sees it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from llama_images.adapters.git_address import credentials_for
from llama_images.adapters.git_program import Git
from llama_images.adapters.process import SystemPrograms
from llama_images.adapters.work_tree import WorkTree
from llama_images.errors import LlamaImagesError, OutsideError, UsageError
from llama_images.patch_series import PatchSeries
from tests.patches.git_http import Served, serve
from tests.patches.series_repo import Bench, Upstream, changed, git, upstream_ahead

USER = "someone"
PASSWORD = "s3cr3t'\"$(x)\\n/@:%"
WRITTEN = quote(PASSWORD, safe="")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    return upstream_ahead(tmp_path_factory.mktemp("upstream") / "repo")


@pytest.fixture(scope="module")
def series(upstream: Upstream) -> PatchSeries:
    return upstream.series({"src/a.cpp": changed(line10="ten")}, {"src/b.cpp": "b\n"})


@pytest.fixture
def bench(upstream: Upstream, tmp_path: Path) -> Bench:
    return Bench(upstream, tmp_path / "cache")


@pytest.fixture
def served(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in ("http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(upstream.path.parent, user=USER, password=PASSWORD) as state:
        yield state


def address(served: Served, *, user: str = USER, password: str = WRITTEN) -> str:
    return f"http://{user}:{password}@{served.address}/repo"


def work_tree(bench: Bench, repo: str | None) -> WorkTree:
    git_ = Git(SystemPrograms(), bench.cache / "source", os.environ)
    return WorkTree(git_, bench.path, bench.source, credentials=credentials_for(repo))


def assert_nowhere(secret: str, served: Served, bench: Bench) -> None:
    """Neither in a file of the cache, nor on a command line, nor in what the user was shown."""
    files = [file for file in bench.cache.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if secret.encode() in file.read_bytes()]
    assert any(served.url in line for line in served.arguments)
    assert not [line for line in served.arguments if secret in line]
    shown = bench.lines.lines + bench.lines.warnings + bench.lines.activities
    assert any(served.url in line for line in shown)
    assert not [line for line in shown if secret in line]


def test_a_password_reaches_git_and_nobody_else(bench: Bench, series: PatchSeries, served: Served) -> None:
    repo = address(served)
    found = bench.trees.compare(bench.source, series, repo=repo, onto="clear")
    assert [one.state for one in found.patches] == ["moved", "applies"]
    done = bench.work.start(bench.source, series, repo=repo, onto="clear")
    assert len(done.kept) == 2
    assert done.onto.build_number == 3
    assert (served.refused, served.answered) > (0, 0)
    assert git(bench.path, "config", "remote.pin.url") == served.url
    for secret in (PASSWORD, WRITTEN, USER):
        assert_nowhere(secret, served, bench)


def test_a_rebase_goes_on_with_the_password_of_the_variable(
    bench: Bench, series: PatchSeries, served: Served
) -> None:
    done = bench.work.start(bench.source, series, repo=address(served), onto="conflict")
    assert done.conflict is not None
    (bench.path / "src/a.cpp").write_text(changed(line10="ten"))
    before = served.answered
    done = bench.work.resume(bench.source, skip=False, repo=address(served))
    assert len(done.kept) == 2
    # What the rebase had no need for is still asked of the server, by whoever has the password.
    with pytest.raises(LlamaImagesError, match="could not read Username"):
        work_tree(bench, None).need(["show", "HEAD:tests/t.cpp"])
    assert work_tree(bench, address(served)).need(["show", "HEAD:tests/t.cpp"]) == "t\n"
    assert served.answered > before
    assert_nowhere(PASSWORD, served, bench)


def test_a_token_may_stand_for_the_user(bench: Bench, upstream: Upstream) -> None:
    with serve(upstream.path.parent, user="t0ken", password="") as served:
        repo = f"http://t0ken@{served.address}/repo"
        assert bench.source_tree.checkout(bench.source, None, repo=repo).tree == bench.source.tree
        assert_nowhere("t0ken", served, bench)


def test_a_wrong_password_is_told_without_it(bench: Bench, served: Served) -> None:
    with pytest.raises(OutsideError) as caught:
        bench.source_tree.checkout(bench.source, None, repo=address(served, password="wr0ng"))
    assert caught.value.message.startswith(f"source small: can't reach {served.url}: Authentication failed")
    assert "wr0ng" not in f"{caught.value.message} {caught.value.hint}"
    assert served.answered == 0
    assert_nowhere("wr0ng", served, bench)


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("https://u:s3cret/word@example.org/x", "the URL of the repository is not valid"),
        ("https://u:s3cret@[example.org/x", "the URL of the repository is not valid"),
        ("https://u:s3cret@exa\u2100mple.org/x", "the URL of the repository is not valid"),
        ("https://u:s3cret%0a@example.org/x", "https://example.org/x: a user or a password with"),
        ("https://u:s3cret\n@example.org/x", "'https://example.org/x' is no path or URL"),
        ("ssh://u:s3cret@example.org/x", "ssh://example.org/x: ssh:// takes no password"),
        ("git://u:s3cret@example.org/x", "git://example.org/x: git:// takes no password"),
        ("ftp://u:s3cret@example.org/x", "ftp://example.org/x: ftp:// is not supported"),
    ],
)
def test_an_address_that_will_not_do_is_told_without_the_password(
    bench: Bench, repo: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        bench.source_tree.checkout(bench.source, None, repo=repo)
    assert caught.value.message.startswith(message)
    assert "s3cret" not in f"{caught.value.message} {caught.value.hint}"
