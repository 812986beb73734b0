"""Recording fakes of the ports, and a workshop on a copy of what the repository's workflows read."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_images.buildlog import BuildSummary
from llama_images.matrix import Source, load_matrix
from llama_images.patch_series import PatchSeries, make_series
from llama_images.plan import Plan, choose, make_plan
from llama_images.ports import (
    BuildRequest,
    CheckedOut,
    EngineInfo,
    Finished,
    ImageInfo,
    Layer,
    RunRequest,
    RunResult,
)
from llama_images.workflows.workshop import Workshop

ROOT = Path(__file__).resolve().parents[2]
PLATFORM = "linux/amd64"


def archive(files: Mapping[str, bytes | str]) -> Iterator[bytes]:
    """A tar archive in chunks of odd sizes; a text value makes a symbolic link."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    data = raw.getvalue()
    return (data[start : start + 7919] for start in range(0, len(data), 7919))


@dataclass
class FakeReporter:
    """Keeps what was said."""

    lines: list[str] = field(default_factory=list)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")

    @contextlib.contextmanager
    def activity(self, label: str) -> Iterator[FakeReporter]:
        yield self

    def update(self, text: str) -> None:
        self.lines.append(text)


@dataclass
class FakePrograms:
    """Knows mmdebstrap alone: writes the archive that it was asked for, or fails as told."""

    failure: bytes | None = None
    runs: list[tuple[str, ...]] = field(default_factory=list)

    def find(self, name: str) -> tuple[Path, ...]:
        return (Path("/usr/bin") / name,)

    def run(self, argv: Sequence[str], *, log: Path | None = None, **_how: Any) -> Finished:
        assert argv[0] == "mmdebstrap", argv
        self.runs.append(tuple(argv))
        (archive,) = (Path(word) for word in argv if word.endswith(".tar"))
        archive.write_bytes(b"a root file system")
        if log is not None:
            log.write_bytes(self.failure or b"")
        code = 0 if self.failure is None else 25
        return Finished(argv=tuple(argv), returncode=code, stdout=b"", stderr=self.failure or b"")


@dataclass
class FakeSourceTree:
    """A tree of two files for each flavor, or an error."""

    folder: Path
    revision: str = "1"
    error: BaseException | None = None
    asked: list[tuple[str, bool, str | None]] = field(default_factory=list)

    def checkout(self, source: Source, series: PatchSeries | None, *, repo: str | None = None) -> CheckedOut:
        self.asked.append((source.name, series is not None, repo))
        if self.error is not None:
            raise self.error
        path = self.folder / ("stock" if series is None else "patched")
        (path / "src").mkdir(parents=True, exist_ok=True)
        (path / "CMakeLists.txt").write_text("project(x)\n")
        (path / "src" / "main.cpp").write_text("int main() {}\n")
        return CheckedOut(
            path=path, commit=source.commit, tree=source.tree, patched_tree=f"{path.name} {self.revision}"
        )


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A build request, and the context as it lay there while the build ran."""

    request: BuildRequest
    dockerfile: str
    files: frozenset[str]
    executable: frozenset[str]


@dataclass
class FakeEngine:
    """Images by reference. Every build makes an image of its own, unless its tag is told to fail."""

    images: dict[str, ImageInfo] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    failures: dict[str, BaseException] = field(default_factory=dict)
    keeps_results: bool = True
    builds_for: tuple[str, ...] = (PLATFORM,)
    push_error: BaseException | None = None
    pushed: list[tuple[str, str]] = field(default_factory=list)
    """Reference and the image's identifier."""
    archives: dict[str, bytes] = field(default_factory=dict)
    """What a save of a reference gives."""
    saves: list[str] = field(default_factory=list)

    @property
    def built(self) -> list[str]:
        return [seen.request.tag for seen in self.seen]

    def info(self) -> EngineInfo:
        return EngineInfo(
            name="docker",
            version="1",
            client="/usr/bin/docker 1",
            builder="buildx",
            cpus=2,
            memory_bytes=1 << 33,
            platform=PLATFORM,
            builds_for=self.builds_for,
        )

    def describe(self) -> str:
        return "a fake"

    def image(self, reference: str) -> ImageInfo | None:
        return self.images.get(reference)

    def build(self, request: BuildRequest, on_progress: Callable[[str], None]) -> BuildSummary:
        paths = [path for path in request.context.rglob("*") if path.is_file()]
        self.seen.append(
            Seen(
                request=request,
                dockerfile=request.dockerfile.read_text("utf-8"),
                files=frozenset(str(path.relative_to(request.context)) for path in paths),
                executable=frozenset(path.name for path in paths if os.access(path, os.X_OK)),
            )
        )
        on_progress("build 1/1")
        if request.tag in self.failures:
            raise self.failures[request.tag]
        number = len(self.seen)
        if self.keeps_results:
            self.images[request.tag] = ImageInfo(
                id=f"sha256:{number:064x}",
                labels=request.labels,
                environment=(),
                entrypoint=(),
                user="",
                layers=(f"sha256:layer {number}",),
                size_bytes=1_000_000,
                created="2026-01-01T00:00:00Z",
            )
        return BuildSummary(
            steps=(), ccache=None, files_compiled=0, jobs=None, seconds=1.0, image_id=f"sha256:{number:064x}"
        )

    def run(self, request: RunRequest) -> RunResult:
        return RunResult(exit_code=1, stdout=b"", stderr=b"it does not start", seconds=0.1)

    def tag(self, reference: str, new: str) -> None:
        self.images[new] = self.images[reference]

    def remove_tag(self, reference: str) -> None:
        del self.images[reference]

    def push(self, reference: str, on_progress: Callable[[str], None]) -> str:
        if self.push_error is not None:
            raise self.push_error
        self.pushed.append((reference, self.images[reference].id))
        return f"sha256:manifest of {self.images[reference].id}"

    def export_root(self, reference: str, archive: Path) -> None:
        tarfile.open(archive, "w").close()

    def save(self, reference: str, archive: Path, on_bytes: Callable[[int], None]) -> None:
        self.saves.append(reference)
        archive.write_bytes(self.archives[reference])
        on_bytes(archive.stat().st_size)

    def layers(self, reference: str) -> tuple[Layer, ...]:
        return ()


@dataclass
class House:
    """A copy of what the repository's workflows read, and the fakes around it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    engine: FakeEngine = field(default_factory=FakeEngine)
    programs: FakePrograms = field(default_factory=FakePrograms)
    reporter: FakeReporter = field(default_factory=FakeReporter)
    source_tree: FakeSourceTree = field(init=False)

    def __post_init__(self) -> None:
        self.source_tree = FakeSourceTree(self.folder / "trees")
        self.root.mkdir()
        text = (ROOT / "matrix.yaml").read_text("utf-8")
        # Every row is four Dockerfiles to render; these tests need three rows.
        rows = re.compile(r'^  (?:portable|"(?!89"|120")\d+"):\n(?:    .*\n)+', re.MULTILINE)
        (self.root / "matrix.yaml").write_text(rows.sub("", text), "utf-8")
        shutil.copy(ROOT / "README.md", self.root)
        shutil.copytree(ROOT / "templates", self.root / "templates")
        shutil.copytree(ROOT / "images" / "common", self.root / "images" / "common")

    @property
    def root(self) -> Path:
        return self.folder / "repository"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def shop(self) -> Workshop:
        """The repository as its files are now."""
        matrix = load_matrix(self.root / "matrix.yaml")
        return Workshop(
            root=self.root,
            cache=self.cache,
            environment=self.environment,
            matrix=matrix,
            series={source.series: make_series(source.series, []) for source in matrix.sources.values()},
            programs=self.programs,
            reporter=self.reporter,
            source_tree=self.source_tree,
        )

    def plan(self, *words: str) -> Plan:
        shop = self.shop()
        selection = choose(shop.matrix, words, platform=PLATFORM, native=tuple)
        return make_plan(selection, series=shop.series, platform=PLATFORM)

    def contexts(self) -> list[Path]:
        """Build contexts that were left behind; an error where there never was one."""
        return list((self.cache / "contexts").iterdir())
