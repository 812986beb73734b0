"""What a rebase of the series has done and has yet to do: a file in the work tree's git directory."""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from llama_images.errors import OutsideError
from llama_images.series_ports import Revision

_FILE: Final = "llama-images-series.json"
_FORMAT: Final = 1

_HASH: Final = re.compile(r"[0-9a-f]{40}")

Result = Literal["kept", "absorbed", "skipped", "emptied"]
"""``absorbed``: git found nothing left to do. ``emptied``: it conflicted, and its user kept nothing of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """A patch as a commit on the pin."""

    name: str
    commit: str
    parent: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RebaseState:
    """Written before and after every step, so that an interrupted one can be taken up."""

    series: str
    """Digest of the series that the picks were made of."""
    onto: Revision
    picks: tuple[Pick, ...]
    head: str
    """The commit that the next pick goes on; once all are done, the last one of the series."""
    results: tuple[Result, ...] = ()
    """Of the picks that are done."""
    is_stopped: bool = False
    """The next pick waits for the user. If not, whatever lies there is a step that was cut off."""
    is_touched: bool = False
    """The user had a hand in it."""
    exported: str | None = None
    """The commit whose series was written to patches/."""
    exported_series: str | None = None
    """Digest of what was written: only as long as patches/ has it, the commit is there."""

    @property
    def pick(self) -> Pick | None:
        """The next one; ``None`` once all are done."""
        return self.picks[len(self.results)] if len(self.results) < len(self.picks) else None

    def done(self, result: Result, head: str) -> RebaseState:
        """The state with one pick more behind it."""
        return replace(self, results=(*self.results, result), head=head, is_stopped=False)

    def names(self, result: Result) -> tuple[str, ...]:
        """The patches that came to this."""
        pairs = zip(self.picks, self.results, strict=False)
        return tuple(pick.name for pick, found in pairs if found == result)


def save_state(git_dir: Path, state: RebaseState) -> None:
    """Write it aside and rename it."""
    document = {"format": _FORMAT, **asdict(state)}
    document["onto"] |= {"date": state.onto.date.isoformat()}
    part = git_dir / f"{_FILE}.part"
    part.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    part.replace(git_dir / _FILE)


def load_state(git_dir: Path) -> RebaseState | None:
    """The state of a work tree; ``None`` where there is none. Raises OutsideError for a damaged one."""
    path = git_dir / _FILE
    try:
        document = json.loads(path.read_text("utf-8"))
        if document.pop("format") != _FORMAT:
            raise ValueError("another format")
        onto = document.pop("onto")
        onto["date"] = dt.datetime.fromisoformat(onto["date"])
        onto["missing_paths"] = tuple(onto["missing_paths"])
        picks = tuple(Pick(**pick) for pick in document.pop("picks"))
        results = tuple(document.pop("results"))
        state = RebaseState(onto=Revision(**onto), picks=picks, results=results, **document)
        if not _is_sound(state):
            raise ValueError("a value is not as it was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise OutsideError(
            f"{path} can't be read: {error}",
            hint="invoke patches.rebase --abort removes the work tree that it belongs to.",
        ) from error
    return state


def _is_sound(state: Any) -> bool:
    """Whether a state read from a file holds what its types promise."""
    onto = state.onto
    hashes = [state.head, onto.commit, onto.tree, *(one for p in state.picks for one in (p.commit, p.parent))]
    hashes += [state.exported] if state.exported is not None else []
    texts = [state.series, onto.name, *onto.missing_paths, *(pick.name for pick in state.picks)]
    texts += [state.exported_series] if state.exported_series is not None else []
    return bool(
        all(isinstance(one, str) and _HASH.fullmatch(one) for one in hashes)
        and all(isinstance(text, str) for text in texts)
        and isinstance(onto.build_number, int | None)
        and isinstance(state.is_stopped, bool)
        and isinstance(state.is_touched, bool)
        and set(state.results) <= set(get_args(Result))
        and len(state.results) <= len(state.picks)
    )
