"""What the workflows need from the outside world, and the values that cross the border.

Each protocol has its adapter under ``llama_images.adapters``; only the edges, ``tasks.py`` and ``cli.py``,
make them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from llama_images.imageroot import LayerContents
from llama_images.oci import Descriptor, Manifest

if TYPE_CHECKING:
    from llama_images.bench_chart import Chart
    from llama_images.buildlog import BuildSummary
    from llama_images.matrix import Source
    from llama_images.patch_series import PatchSeries


class Activity(Protocol):
    """One running piece of work, shown with its elapsed time."""

    def update(self, text: str) -> None:
        """Say what the work is doing now; replaces the last text."""


class Styled(Protocol):
    """A piece of a line, and what kind of text it is."""

    @property
    def text(self) -> str: ...
    @property
    def style(self) -> str: ...


Lines: TypeAlias = Iterable[Sequence[Styled]]
"""What is shown to people on standard output."""


class Reporter(Protocol):
    """Where progress goes. Data that was asked for goes to standard output, not here."""

    def line(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def activity(self, label: str) -> AbstractContextManager[Activity]:
        """A context for long work: a live line on a terminal, plain lines elsewhere, and the time it took."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A program that has ended."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output; what is not UTF-8 is replaced."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        """Standard error; what is not UTF-8 is replaced."""
        return self.stderr.decode("utf-8", "replace")


class Programs(Protocol):
    """Starts programs; the only way this package does."""

    def find(self, name: str) -> tuple[Path, ...]:
        """Every executable of that name on PATH, in order, links to one file counted once."""

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
        log: Path | None = None,
    ) -> Finished:
        """Run to the end and return the result, whatever its exit code.

        ``env`` is added to the environment. ``on_line`` gets each line of both streams as it comes; ``log``
        gets the same bytes. Raises OutsideError where the program is missing or outlives ``timeout`` seconds.
        On Ctrl-C the program's process group is ended before KeyboardInterrupt goes on.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedOut:
    """A source tree ready to be built."""

    path: Path
    commit: str
    tree: str
    """Tree hash of the pin, as verified."""
    patched_tree: str
    """Tree hash after the series; equal to ``tree`` without one."""


class SourceTree(Protocol):
    """The pinned source, verified, with a series applied or without."""

    def checkout(self, source: Source, series: PatchSeries | None, *, repo: str | None = None) -> CheckedOut:
        """Bring the tree into the cache and return where it lies.

        ``repo`` is a clone or bare repository holding the commit, or a URL; without it the source's own
        repository is asked. Raises OutsideError where it can't be reached or lacks the commit, CheckFailed
        where the tree hash differs or a patch does not apply (named by patch, file and hunk).
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """What an engine says of itself and of the machine that it runs on."""

    name: str
    """"docker" or "podman"."""
    version: str
    client: str
    """Path and version of the program that builds."""
    builder: str
    """What builds: "buildx 0.19.0", "BuildKit through the client" or "buildah 1.28.2"."""
    cpus: int
    memory_bytes: int
    platform: str
    """The engine's own platform, "linux/amd64": what it runs."""
    builds_for: tuple[str, ...]
    """Platforms that can be built for: the engine's own first, and what a builder beside it serves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInfo:
    """What an engine knows of an image, without reading its layers."""

    id: str
    """Digest of the image's configuration, "sha256:…"."""
    labels: Mapping[str, str]
    environment: tuple[str, ...]
    entrypoint: tuple[str, ...]
    user: str
    layers: tuple[str, ...]
    """Digests of the uncompressed layers, lowest first."""
    size_bytes: int
    """Uncompressed, all layers."""
    created: str
    """A time as the engine writes it, "2026-06-11T16:49:03Z"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer of an image, as a registry would hold it."""

    diff_id: str
    size_bytes: int
    """Uncompressed."""
    compressed_bytes: int
    """gzip at the engine's default level."""
    created_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """One image to build, and everything that its build is given."""

    dockerfile: Path
    context: Path
    tag: str
    platform: str
    labels: Mapping[str, str] = field(default_factory=dict)
    build_args: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)
    """Identifier to file; shown to single steps and kept out of every layer."""
    local_images: tuple[str, ...] = ()
    """Images of this engine, and of no registry, that the Dockerfile starts from."""
    log: Path
    """Everything the engine prints ends here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """One container to run to its end; as strict as an engine allows where nothing else is said."""

    image: str
    arguments: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[Path, str] = field(default_factory=dict)
    """Host path to container path, read-only."""
    stdin: bytes | None = None
    gpus: tuple[str, ...] = ()
    network: bool = False
    read_only: bool = True
    drop_capabilities: bool = True
    user: str | None = None
    init: bool = False
    """Put the engine's init in front of the program, which then is an ordinary process and no process 1: the
    kernel keeps signals that process 1 has no handler for from it, Ctrl-C's among them."""
    interrupt_on: str | None = None
    """Text on standard error at which the container gets a SIGINT, once, as it does from Ctrl-C."""
    timeout: float = 600.0
    """Seconds, after which the container is ended and OutsideError raised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """A container that has ended."""

    exit_code: int
    """As the engine gives it; of a bare program, minus the number of the signal that ended it."""
    stdout: bytes
    stderr: bytes
    seconds: float
    """From the start to the end, the container's making left out."""
    interrupted_after: float | None = None
    """Seconds from the start to the interrupt that was asked for; None where none was sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A container that a person talks to, without network, capabilities, or a root that it can write."""

    image: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[Path, str] = field(default_factory=dict)
    """Host path to container path, read-only."""
    writable: Mapping[Path, str] = field(default_factory=dict)
    """Host path to container path; what the program leaves behind."""
    gpus: bool = False
    """Whether it sees GPUs at all; which ones is ``CUDA_VISIBLE_DEVICES``'s matter."""
    interactive: bool = False
    """Whether the program gets this process's input."""
    terminal: bool = False
    """Whether its streams are a terminal of the container's own, which takes Ctrl-C."""
    user: str | None = None
    """"UID:GID"; None for the image's own."""


class Engine(Protocol):
    """A container engine: Docker, or podman with buildah."""

    def info(self) -> EngineInfo:
        """Raises OutsideError, with what to do, where no engine answers."""

    def describe(self) -> str:
        """One line: which client and builder were chosen, and why."""

    def image(self, reference: str) -> ImageInfo | None: ...
    def build(self, request: BuildRequest, on_progress: Callable[[str], None]) -> BuildSummary:
        """Build and tag. ``on_progress`` gets short texts ("build 7/12, 241/459 files").

        Raises OutsideError naming the failing step, its last lines and the log's path; a full disk and a dead
        daemon have their own sentence. A failed or interrupted build leaves no tag behind.
        """

    def run(self, request: RunRequest) -> RunResult:
        """Run a container to its end and remove it, also on Ctrl-C and time-out (OutsideError)."""

    def tag(self, reference: str, new: str) -> None: ...
    def remove_tag(self, reference: str) -> None: ...
    def push(self, reference: str, on_progress: Callable[[str], None]) -> str:
        """Push to the registry that the reference names and return the manifest's digest."""

    def export_root(self, reference: str, archive: Path) -> None:
        """Write the image's whole file system, without running it, as a tar archive."""

    def save(self, reference: str, archive: Path, on_bytes: Callable[[int], None]) -> None:
        """Write the image, its configuration and layers, as an archive in the form of ``docker save``.

        ``on_bytes`` gets the number of bytes written so far.
        """

    def layers(self, reference: str) -> tuple[Layer, ...]:
        """Sizes of every layer, lowest first; empty ones left out."""


class SessionEngine(Engine, Protocol):
    """An engine by which a person talks to a container."""

    def session_command(self, session: Session) -> tuple[str, ...]:
        """The command that ``hold`` runs, under another container's name."""

    def hold(self, session: Session) -> int:
        """Run a container with this process's streams and return the program's exit code.

        Ctrl-C goes to the program. The container is gone when this returns or raises. Raises OutsideError
        where the engine does not start it.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramRun:
    """One run of the program under test; its arguments name files by ``Program.place``."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    """Files of this machine that the program may read."""
    stdin: bytes | None = None
    gpus: bool = False
    """Whether it sees GPUs at all; which ones is ``CUDA_VISIBLE_DEVICES``'s matter."""
    interrupt_on: str | None = None
    """See ``RunRequest``."""
    timeout: float = 600.0


class Program(Protocol):
    """``llama-diffusion-cli`` where the tests run it: in an image, or as a bare binary."""

    def place(self, file: Path) -> str:
        """The path by which the program finds a file of this machine."""

    def run(self, request: ProgramRun) -> RunResult:
        """Run it to its end. Raises OutsideError where it can't be started or outlives its time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU as the driver describes it."""

    index: int
    """Position in PCI bus order."""
    name: str
    compute_capability: str
    """Major and minor: "12.0"."""
    memory_bytes: int | None
    """All of the GPU's own memory; None where it shares the machine's and NVML gives no size (GB10)."""
    uuid: str
    free_bytes: int | None = None
    """What no program holds now; None where NVML does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PcieLink:
    """A GPU's link to the machine, as it is now and as GPU and slot could have it together."""

    generation: int
    width: int
    most_generation: int
    most_width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuState:
    """A GPU, and what may keep a program from it. None where the driver does not say."""

    gpu: Gpu
    pcie: PcieLink | None
    mig: bool | None
    """Whether it is cut into instances."""
    shared: bool | None
    """Whether programs may use it side by side, as is usual; False in the modes exclusive and prohibited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuPair:
    """How two GPUs reach each other."""

    first: int
    second: int
    nvlink: bool | None
    peer_access: bool | None
    """Whether one reads the other's memory without the machine's; None where the driver does not say."""
    path: str
    """What lies between them, as ``nvidia-smi topo -m`` abbreviates it: "PIX", "PHB"; empty if unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuSurvey:
    """Everything that the driver says."""

    driver: str | None
    """None without a driver; the rest is empty then."""
    gpus: tuple[GpuState, ...] = ()
    pairs: tuple[GpuPair, ...] = ()


class GpuSurveyor(Protocol):
    """Asks the driver everything."""

    def survey(self) -> GpuSurvey:
        """Raises OutsideError where there is a driver and it fails."""


class Reach(Protocol):
    """Asks whether an address answers."""

    def why_not(self, url: str) -> str | None:
        """None where it answers, whatever it says; else why not, in a few words."""


class Gpus(Protocol):
    """The NVIDIA GPUs of this machine."""

    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU in PCI bus order; empty without a driver. Raises OutsideError where the driver fails."""

    def driver_version(self) -> str | None:
        """The driver's version, such as "580.65.06"; None without one. Raises OutsideError."""


class GpuMemory(Protocol):
    """Takes GPU memory away from the programs that are tested."""

    def leave(self, mebibytes: Mapping[Gpu, int]) -> AbstractContextManager[None]:
        """A context in which only so much is free on each GPU. Raises OutsideError where there is less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldImage:
    """An image that a registry holds, every byte of it read."""

    digest: str
    """Of its manifest, or of its index where it is for several platforms."""
    blobs: int
    """How many were read: configurations and layers."""
    compressed_bytes: int
    """Sum of the layers, as they are pulled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedImage:
    """An image as it is published, in files of the cache."""

    folder: Path
    """An OCI image layout; blobs lie below ``blobs/sha256``."""
    configuration: bytes
    """As it is published, see ``oci.published_config``."""
    layers: tuple[Descriptor, ...]
    """Compressed, lowest first."""
    diff_ids: tuple[str, ...]
    """Digests of the uncompressed layers."""

    def blob(self, descriptor: Descriptor) -> Path:
        """The file of a blob."""
        return self.folder / "blobs" / "sha256" / descriptor.digest.removeprefix("sha256:")


class ImageStore(Protocol):
    """Images of an engine as files that a registry takes."""

    def pack(
        self,
        engine: Engine,
        reference: str,
        created: datetime,
        on_progress: Callable[[str], None],
        *,
        without_labels: Collection[str] = (),
    ) -> PackedImage:
        """Bring an image into the cache, its configuration dated ``created``; what is there is kept.

        Equal images make equal files. Raises OutsideError where the engine lacks the image or the cache has
        no room.
        """

    def contents(self, packed: PackedImage) -> tuple[LayerContents, ...]:
        """The files of each layer by itself, lowest first: also those that a later layer hides."""

    def list_image(self, name: str, manifest: Manifest) -> None:
        """Enter a packed image into the layout under a name, so that other tools can read it from there."""


SMALL_BLOB: Final = 32 << 20
"""Bytes of a blob that is read as a whole: a configuration, a signed statement."""


class RegistryReader(Protocol):
    """Questions to a registry."""

    def read_image(self, repository: str, reference: str) -> HeldImage:
        """Read an image's manifest and every blob that it names, and compare sizes and digests with it.

        Raises OutsideError where the registry can't be reached, or lacks or alters a part.
        """


class Registry(RegistryReader, Protocol):
    """A registry that is filled. ``repository`` is a name without host and tag.

    Every method raises OutsideError, in one line, where the registry can't be reached, refuses, or alters
    what it is given or gives. BadAnswer says that it is this one thing which can't be had.
    """

    def manifest(self, repository: str, reference: str) -> Manifest:
        """What lies under a tag or a digest; an error where nothing does."""

    def find(self, repository: str, reference: str) -> Manifest | None: ...
    def blob(self, repository: str, digest: str) -> bytes:
        """A whole blob, checked against its digest; for small ones. Raises BadAnswer above SMALL_BLOB."""

    def read_blob(
        self, repository: str, digest: str, size: int, on_bytes: Callable[[int], None] = ...
    ) -> None:
        """Read a blob to its end and compare size and digest; it is not kept."""

    def has_blob(self, repository: str, blob: Descriptor) -> bool: ...
    def tags(self, repository: str) -> tuple[str, ...]:
        """Every tag, sorted; none where there is no such repository."""

    def referrers(self, repository: str, digest: str) -> tuple[Descriptor, ...]:
        """What is attached to a manifest."""

    def push_blob(
        self,
        repository: str,
        blob: Descriptor,
        path: Path,
        *,
        mount_from: Sequence[str] = (),
        on_bytes: Callable[[int], None] = ...,
    ) -> bool:
        """Send a file; False where the registry has it, or has it in one of ``mount_from``."""

    def push_bytes(self, repository: str, data: bytes, media_type: str) -> Descriptor: ...
    def push_manifest(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        """Send a manifest or an index under its digest, or under a tag, and compare what is there then."""

    def push_referrer(self, repository: str, manifest: Manifest) -> None:
        """Send a manifest that belongs to another, so that it is found from there."""

    def delete(self, repository: str, digest: str) -> None:
        """Remove a manifest and every tag that means it; fine where it is not there."""


class Verifier(Protocol):
    """Knows a publisher."""

    @property
    def name(self) -> str:
        """Who that is: a key's fingerprint, or an identity."""

    def open(self, bundle: bytes) -> bytes:
        """The statement in a signed bundle. Raises CheckFailed where the publisher did not sign it."""


class Signer(Protocol):
    """Signs statements, with a key or without."""

    @property
    def name(self) -> str: ...
    @property
    def verifier(self) -> Verifier:
        """Opens what this has signed."""

    def sign(self, payload: bytes) -> bytes:
        """The signed statement as a Sigstore bundle."""


class RegistryServer(Protocol):
    """A registry of our own, running while its context is open."""

    @property
    def host(self) -> str:
        """Host and port, as they stand in front of an image's name."""

    @property
    def url(self) -> str: ...
    def __enter__(self) -> RegistryServer: ...
    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """A file as the hub describes it, before any of it is read."""

    repository: str
    file: str
    commit: str
    """The commit that the revision names now."""
    size_bytes: int
    sha256: str | None
    """Of the whole file; None where the hub tells none, as for files that it keeps in git itself."""


class ModelHub(Protocol):
    """A hub of models that are files in repositories."""

    def find(self, repository: str, file: str, revision: str) -> HubFile:
        """Ask about a file.

        Raises OutsideError where the hub can't be reached, refuses, or has no such file.
        """

    def open(self, file: HubFile) -> IO[bytes]:
        """A stream of the file's bytes, fetched piece by piece as they are read; nothing is kept.

        Opening asks nothing. Reading raises OutsideError where the hub fails or does not serve pieces.
        """

    def download(self, file: HubFile, part: Path, on_progress: Callable[[int], None]) -> None:
        """Append to ``part`` what it lacks of the file.

        ``on_progress`` gets the bytes that are there. Raises OutsideError where the hub fails for good or the
        disk is full; what has arrived stays in ``part``, also on Ctrl-C.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A picture, twice."""

    svg: str
    """An ``svg`` element to stand in a page; its colours are variables that the page may set."""
    png: bytes
    """On white."""


class Artist(Protocol):
    """Draws charts."""

    def draw(self, chart: Chart) -> Drawing: ...
