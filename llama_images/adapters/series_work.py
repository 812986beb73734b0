"""The series as commits in a work tree of the cache, rebased by git onto another commit.

``series/<source>/`` is an ordinary work tree: its owner may use git there as anywhere. Each patch is a
``git rebase`` of its own. A whole series in one rebase could lose a patch: git takes a pick off its list
before it has done it, and does not come back to it when it was killed in between.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llama_images.adapters.git import GitSourceTree
from llama_images.adapters.git_address import credentials_for
from llama_images.adapters.git_messages import last_words
from llama_images.adapters.git_mirror import Origin, find_origin
from llama_images.adapters.git_program import DamagedError, Git
from llama_images.adapters.git_revision import bring_commit, describe, find_commit
from llama_images.adapters.git_scratch import Scratch, make_repository, unreadable
from llama_images.adapters.locks import locked
from llama_images.adapters.rebase_state import Pick, RebaseState, load_state, save_state
from llama_images.adapters.series_commits import read_commits, shown
from llama_images.adapters.series_trees import refuse_unapplied
from llama_images.adapters.work_tree import WorkTree
from llama_images.errors import OutsideError, UsageError
from llama_images.patch_format import MAINTAINERS_EMAIL, MAINTAINERS_NAME
from llama_images.patch_series import PatchSeries
from llama_images.ports import Reporter
from llama_images.series_ports import Conflict, Rebase, WorkCommits

if TYPE_CHECKING:
    from llama_images.matrix import Source

# commentChar: git would take a line of a message that starts with "#24423" for a comment.
_SETTINGS: Final = f"""\
\tbare = false
\tsparseCheckout = true
\tautocrlf = false
\tcommentChar = ";"
[user]
\tname = {MAINTAINERS_NAME}
\temail = {MAINTAINERS_EMAIL}
[merge]
\tconflictStyle = diff3
[gc]
\tauto = 0
[maintenance]
\tauto = false
"""
_REBASE: Final = ("rebase", "--merge", "--empty=drop", "--no-stat", "--no-verify", "--no-gpg-sign")
_START: Final = "invoke patches.rebase --onto REV starts one."


class GitSeriesWork:
    """Implements ``series_ports.SeriesWork``; ``trees`` gives the mirror of the pin."""

    def __init__(self, git: Git, trees: GitSourceTree, cache: Path, reporter: Reporter) -> None:
        self._git = git
        self._trees = trees
        self._folder = cache.absolute() / "series"
        self._reporter = reporter

    def path(self, source: Source) -> Path:
        """Where the work tree of a source lies."""
        return self._folder / source.name

    def start(self, source: Source, series: PatchSeries, *, repo: str | None, onto: str) -> Rebase:
        """Make the work tree and rebase it; see ``series_ports.SeriesWork.start``."""
        origin = find_origin(self._git, source, repo)
        commit = find_commit(self._git, source, origin, onto)
        path = self.path(source)
        work = WorkTree(self._git, path, source, credentials=origin.credentials)
        with self._locked(source):
            if path.exists():
                state = self._present(path)
                is_same = state.onto.commit == commit and state.series == series.digest
                if state.pick is None and is_same:
                    return self._finish(work, state)
                if state.pick is not None:
                    if state.is_stopped or not is_same:
                        raise UsageError(
                            f"{path}: a rebase onto {state.onto.commit[:12]} is under way",
                            hint="invoke patches.rebase --continue goes on with it, --abort removes it.",
                        )
                    self._reporter.line(f"{path}: going on with the rebase that was interrupted")
                    return self._advance(work, state)
                self._refuse_loss(work, state, series)
            mirror = self._trees.mirror(source, repo=repo)
            state = self._make(source, series, origin, mirror, commit=commit, onto=onto)
            return self._advance(work, state)

    def resume(self, source: Source, *, skip: bool, repo: str | None = None) -> Rebase:
        """Go on after a conflict; see ``series_ports.SeriesWork.resume``."""
        path = self.path(source)
        with self._locked(source):
            if not path.exists():
                raise UsageError(f"there is no rebase of {source.name} to go on with", hint=_START)
            state = self._present(path)
            work = WorkTree(self._git, path, source, credentials=credentials_for(repo))
            if skip and not state.is_stopped:
                raise UsageError(f"{path}: no patch waits to be left out", hint="--skip is for a conflict.")
            if state.is_stopped:
                state = self._skip(work, state) if skip else self._take_resolved(work, state)
                save_state(work.git_dir, state)
            return self._advance(work, state)

    def abort(self, source: Source) -> Path:
        """Remove the work tree; see ``series_ports.SeriesWork.abort``."""
        path = self.path(source)
        with self._locked(source):
            if not path.exists():
                raise UsageError(f"there is no work tree of {source.name} to remove", hint=_START)
            if not path.is_dir():
                raise UsageError(f"{path} is no folder", hint="Remove it by hand.")
            path.rename(self._gone(source))
            self._recover(source)
        return path

    @contextlib.contextmanager
    def commits(self, source: Source, *, work_tree: Path | None, base: str | None) -> Iterator[WorkCommits]:
        """The commits of a work tree; see ``series_ports.SeriesWork.commits``."""
        path = work_tree.absolute() if work_tree is not None else self.path(source)
        with contextlib.ExitStack() as stack:
            if path == self.path(source):
                stack.enter_context(self._locked(source))
                if not path.exists():
                    hint = f"{_START} --worktree names another work tree."
                    raise UsageError(f"there is no work tree of {source.name}", hint=hint)
            yield stack.enter_context(read_commits(self._git, source, path, base=base))

    @contextlib.contextmanager
    def _locked(self, source: Source) -> Iterator[None]:
        def waiting() -> None:
            self._reporter.line(
                f"series {source.name}: another process works on it; waiting for it to finish"
            )

        with locked(self._folder / f"{source.name}.lock", waiting):
            self._recover(source)
            yield

    # A work tree is whole under its name or has none: it is put there and taken away by renaming.

    def _old(self, source: Source) -> Path:
        """The work tree that another is about to replace."""
        return self._folder / f".{source.name}.old"

    def _gone(self, source: Source) -> Path:
        """A work tree that is being deleted."""
        return self._folder / f".{source.name}.gone"

    def _put(self, source: Source, staging: Path) -> None:
        path, old = self.path(source), self._old(source)
        if path.exists():
            path.rename(old)
        staging.rename(path)
        self._recover(source)

    def _recover(self, source: Source) -> None:
        """Finish what was interrupted between two names, and delete what is to go."""
        old, gone = self._old(source), self._gone(source)
        if gone.exists():
            shutil.rmtree(gone)
        if old.exists():
            if not self.path(source).exists():
                old.rename(self.path(source))
            else:
                old.rename(gone)
                shutil.rmtree(gone)

    def _present(self, path: Path) -> RebaseState:
        state = load_state(path / ".git") if path.is_dir() else None
        if state is None:
            hint = "Move it out of the way, or remove it"
            hint += ": invoke patches.rebase --abort." if path.is_dir() else "."
            raise UsageError(f"{path} is not the work tree of a rebase", hint=hint)
        return state

    def _refuse_loss(self, work: WorkTree, state: RebaseState, series: PatchSeries) -> None:
        """Raise UsageError where removing the work tree would lose what is nowhere else.

        ``series`` is what patches/ holds.
        """
        head = work.head()
        is_automatic = head == state.head and not state.is_touched
        is_exported = head == state.exported and series.digest == state.exported_series
        if work.changed() or not (is_automatic or is_exported):
            raise UsageError(
                f"{work.path} holds work that is not in patches/{work.source.series}",
                hint="invoke patches.export writes it there; invoke patches.rebase --abort throws it away.",
            )
        hint = "Move them elsewhere; invoke patches.rebase --abort throws the whole work tree away."
        if new := work.untracked():
            raise UsageError(f"{work.path} holds files that are in no commit: {shown(new)}", hint=hint)
        if work.has_other_commits([state.onto.commit, *(pick.commit for pick in state.picks)]):
            raise UsageError(
                f"{work.path} holds commits that are not in patches/{work.source.series}, on a branch, a tag "
                "or a stash",
                hint=hint,
            )

    def _make(
        self, source: Source, series: PatchSeries, origin: Origin, mirror: Path, *, commit: str, onto: str
    ) -> RebaseState:
        """Make a work tree at the new commit, and the picks; it gets its name once it is whole."""
        staging = self._folder / f".{source.name}.new"
        shutil.rmtree(staging, ignore_errors=True)
        git_dir = staging / ".git"
        try:
            make_repository(
                git_dir,
                borrowed=[mirror / "objects"],
                shallow=[source.commit],
                settings=_SETTINGS,
                origin=origin,
            )
            sparse = "".join(f"/{path}\n" for path in source.paths)
            (git_dir / "info" / "sparse-checkout").write_text(sparse, "utf-8")
            bring_commit(self._git, source, origin, commit, git_dir, self._reporter)
            scratch = Scratch(self._git, git_dir, origin=origin)
            with self._reporter.activity(f"series {source.name}: making a work tree") as activity:
                activity.update(f"{len(series.patches)} patches as commits on {source.commit[:12]}")
                picks = _import(scratch, source, series)
                revision = describe(self._git, source, origin, scratch, name=onto, commit=commit, count=True)
                for tag, target in (("pin", source.commit), ("onto", commit)):
                    scratch.read(["update-ref", f"refs/tags/{tag}", target])
                activity.update(f"checking out {commit[:12]}")
                work = WorkTree(self._git, staging, source, credentials=origin.credentials)
                work.need(["checkout", "--quiet", "--detach", commit])
            state = RebaseState(series=series.digest, onto=revision, picks=picks, head=commit)
            save_state(git_dir, state)
            self._put(source, staging)
        except DamagedError as error:
            raise unreadable(staging, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return state

    def _advance(self, work: WorkTree, state: RebaseState) -> Rebase:
        """Do the picks that are left, up to the first that conflicts."""
        label = f"series {work.source.name}: rebase onto {state.onto.commit[:12]}"
        with self._reporter.activity(label) as activity:
            while (pick := state.pick) is not None:
                activity.update(f"{len(state.results) + 1}/{len(state.picks)} {pick.name}")
                if work.head() != state.head or work.is_rebasing() or work.changed():
                    work.clean_up(state.head, pick)  # a step that was cut off
                if mine := work.in_the_way(pick):
                    raise UsageError(
                        f"{work.path}: {pick.name} adds {shown(mine)}, and there is a file already",
                        hint="Move it away; then invoke patches.rebase --continue.",
                    )
                finished = work.run([*_REBASE, "--onto", state.head, pick.parent, pick.commit])
                if finished.returncode == 0:
                    head = work.head()
                    state = state.done("absorbed" if head == state.head else "kept", head)
                elif work.is_rebasing() and (unmerged := work.unmerged()):
                    state = replace(state, is_stopped=True, is_touched=True)
                    save_state(work.git_dir, state)
                    return _report(work, state, Conflict(name=pick.name, files=tuple(unmerged)))
                else:
                    work.clean_up(state.head, pick)
                    raise OutsideError(
                        f"git rebase failed at {pick.name}: {last_words(finished.error_text)}",
                        hint=f"The work tree is {work.path}; invoke patches.rebase --continue tries again.",
                    )
                save_state(work.git_dir, state)
        return self._finish(work, state)

    def _finish(self, work: WorkTree, state: RebaseState) -> Rebase:
        """Leave the work tree on a branch, for whoever goes on there."""
        if work.is_rebasing():
            raise UsageError(
                f"{work.path}: the series is rebased; a rebase of your own is under way there",
                hint="Finish it with git rebase --continue, or git rebase --abort.",
            )
        if work.run(["symbolic-ref", "--quiet", "HEAD"]).returncode != 0:
            work.need(["update-ref", "refs/heads/series", "HEAD"])
            work.need(["symbolic-ref", "HEAD", "refs/heads/series"])
        return _report(work, state, None)

    def _take_resolved(self, work: WorkTree, state: RebaseState) -> RebaseState:
        """Take over what the user made of a conflict, by files alone or with git."""
        assert state.pick is not None
        if left := work.unresolved(state.head, state.pick):
            raise UsageError(
                f"{work.path}: conflicts are left: {', '.join(left)}",
                hint="Mend them there (git commit --amend where they are committed); "
                "then invoke patches.rebase --continue again.",
            )
        if work.is_rebasing():
            work.need(["add", "--update"])
            work.need(["rebase", "--continue"])
        elif changed := work.changed():
            raise UsageError(
                f"{work.path} has changes that are not committed: {', '.join(changed)}",
                hint="Commit them or take them back; then invoke patches.rebase --continue again.",
            )
        head = work.head()
        if head == state.head:
            return state.done("absorbed", head)
        if work.run(["merge-base", "--is-ancestor", state.head, head]).returncode == 0:
            for path in work.untracked(*work.source.paths):
                self._reporter.warn(f"{path} is not part of any commit (git add puts it into one)")
            return state.done("kept", head)
        # The user gave this step up with git rebase --abort: it is done anew.
        return replace(state, is_stopped=False)

    def _skip(self, work: WorkTree, state: RebaseState) -> RebaseState:
        assert state.pick is not None
        work.clean_up(state.head, state.pick)
        return state.done("skipped", state.head)


def _import(scratch: Scratch, source: Source, series: PatchSeries) -> tuple[Pick, ...]:
    """Make the commits of a series on its pin."""
    applied = scratch.apply_series(series, source.commit)
    refuse_unapplied(source, applied)
    parent = source.commit
    picks = []
    for patch, step in zip(series.patches, applied, strict=True):
        assert step.tree is not None
        commit = scratch.commit(step.tree, parent, f"{patch.subject}\n\n{patch.body}", date=source.date)
        picks.append(Pick(name=patch.name, commit=commit, parent=parent))
        parent = commit
    return tuple(picks)


def _report(work: WorkTree, state: RebaseState, conflict: Conflict | None) -> Rebase:
    return Rebase(
        path=work.path,
        onto=state.onto,
        kept=state.names("kept"),
        absorbed=state.names("absorbed"),
        skipped=state.names("skipped"),
        conflict=conflict,
    )
