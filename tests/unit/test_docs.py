"""What the documents and the lock promise is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import tasks

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    here = [link for link in links if "://" not in link]
    assert [link for link in here if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|\.venv/bin/)invoke ([a-z][a-z.-]*)", text))
    assert named <= set(tasks.ns.task_names)


def test_the_readme_has_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = set(re.findall(r"^\| `invoke ([a-z.-]+)", text, re.MULTILINE))
    assert table == set(tasks.ns.task_names)


def locked() -> dict[str, str]:
    """Each requirement's name to its whole entry, hashes included."""
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^ *#.*\n", "", LOCK, flags=re.MULTILINE))
    return {entry.split("==")[0].strip(): entry for entry in entries if entry.strip()}


def test_every_locked_file_is_pinned_by_hash() -> None:
    for name, entry in locked().items():
        head, *hashes = entry.replace("\\\n", "\n").split()
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", head), name
        assert any(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes), name


def test_the_lock_names_no_place_to_download_from() -> None:
    # An index, a folder or an address in it would decide for every user where files come from.
    places = re.compile(r"^(?!#).*(?:index-url|--find-links|://| @ |file:).*$", re.MULTILINE)
    assert places.findall(LOCK) == []


def test_the_lock_holds_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[<>=~! ;]", requirement)[0].lower() for requirement in wanted}
    assert names <= locked().keys()
