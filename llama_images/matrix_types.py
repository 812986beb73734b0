"""The types of ``matrix.yaml``: frozen, complete, and nothing more than the file says. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from llama_images.matrix_fields import (
    INJECTED,
    ArchitectureName,
    Commit,
    Date,
    Digest,
    DriverVersion,
    Family,
    Flavor,
    Frozen,
    FrozenMapping,
    Gibibytes,
    GpuCount,
    HubFile,
    HubRepository,
    ImageName,
    Milliseconds,
    Name,
    Package,
    Percent,
    Plain,
    Ptx,
    Ratio,
    Ref,
    Repository,
    Sass,
    Series,
    Sha256,
    SourcePath,
    Suite,
    ToolkitVersion,
    Tree,
    Variant,
    Version,
    WheelName,
    WheelVersion,
    unique,
)
from llama_images.platforms import Platform


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Wheel(_Row):
    """A Python wheel of NVIDIA's, pinned for every platform."""

    name: WheelName = Field(description="the wheel's name")
    version: WheelVersion = Field(description="the wheel's version")
    sha256: Frozen[Platform, Sha256] = Field(
        description="the wheel file's SHA-256 for each platform", min_length=1
    )


class ImageRef(_Row):
    """An image of a registry; without a digest it is unpinned."""

    name: ImageName = Field(description="the image's name with its tag")
    digest: Digest | None = Field(default=None, description="the digest that the tag had when it was pinned")

    @property
    def reference(self) -> str:
        """What a FROM line takes: ``name:tag@sha256:…``, or ``name:tag`` where unpinned."""
        return self.name if self.digest is None else f"{self.name}@{self.digest}"


class Source(_Row):
    """A pinned commit of llama.cpp and the patch series that belongs to it."""

    name: Name = Field(description="the source's name", json_schema_extra=INJECTED)
    repository: Repository = Field(description="the https address of the upstream repository")
    ref: Ref = Field(description="the ref that the commit is reachable from")
    commit: Commit = Field(description="the pinned commit, 40 hex digits")
    tree: Tree = Field(description="the tree hash of that commit, 40 hex digits")
    version: Version = Field(
        description="the version of what is published from this source; raised with every change of it"
    )
    build_number: int = Field(gt=0, lt=10**7, description="`git rev-list --count` of the commit")
    date: Date = Field(description="the committer date of the commit")
    paths: Annotated[tuple[SourcePath, ...], AfterValidator(unique)] = Field(
        min_length=1,
        description="the files and folders that the build reads",
        json_schema_extra={"uniqueItems": True},
    )
    series: Series = Field(description="the folder under patches/ with the series of this source")


class Base(_Row):
    """Where the layers under the binary come from."""

    name: Name = Field(description="the base's name", json_schema_extra=INJECTED)
    kind: Literal["bootstrap", "registry"] = Field(
        description="bootstrap: made on the spot from the distribution's packages; registry: pulled images"
    )
    suite: Suite | None = Field(default=None, description="the distribution's suite, of a bootstrap base")
    packages: Annotated[tuple[Package, ...], AfterValidator(unique)] = Field(
        default=(),
        description="packages of every image of this base",
        json_schema_extra={"uniqueItems": True},
    )
    build_packages: Annotated[tuple[Package, ...], AfterValidator(unique)] = Field(
        min_length=1,
        description="packages that the build stage adds",
        json_schema_extra={"uniqueItems": True},
    )
    toolkit_packages: Annotated[tuple[Package, ...], AfterValidator(unique)] = Field(
        default=(),
        description="packages that unpacking a toolkit's wheels needs besides",
        json_schema_extra={"uniqueItems": True},
    )


class Wheels(_Row):
    """The wheels that make a toolkit: the compiler's side, and what the finished image needs."""

    build: tuple[Wheel, ...] = Field(min_length=1, description="wheels for the build stage alone")
    runtime: tuple[Wheel, ...] = Field(
        min_length=1, description="wheels that the finished image takes libraries from"
    )


class ToolkitImages(_Row):
    """The registry images that make a toolkit."""

    devel: ImageRef = Field(description="the image with compiler and headers")
    runtime: ImageRef = Field(description="the image with the runtime libraries")


class Toolkit(_Row):
    """A CUDA toolkit."""

    name: Name = Field(description="the toolkit's name", json_schema_extra=INJECTED)
    version: ToolkitVersion = Field(description="CUDA's MAJOR.MINOR")
    minimum_driver: DriverVersion = Field(
        description="the oldest Linux driver that runs what this toolkit builds"
    )
    wheels: Wheels | None = Field(default=None, description="NVIDIA's wheels, for bootstrap bases")
    images: ToolkitImages | None = Field(default=None, description="NVIDIA's images, for registry bases")

    @property
    def major_minor(self) -> tuple[int, int]:
        major, minor = self.version.split(".")
        return int(major), int(minor)


class Architecture(_Row):
    """One row of images: a GPU architecture, ``cpu`` or ``portable``."""

    name: ArchitectureName = Field(description="the architecture's name", json_schema_extra=INJECTED)
    family: Family | None = Field(default=None, description="NVIDIA's name of the GPU generation")
    toolkit: str | None = Field(default=None, description="the toolkit that compiles it; none for cpu")
    serves: Annotated[tuple[Plain, ...], AfterValidator(unique)] = Field(
        min_length=1, description="the GPUs or processors that this image is for"
    )
    platforms: Annotated[tuple[Platform, ...], AfterValidator(unique)] = Field(
        min_length=1, description="the platforms it is built for", json_schema_extra={"uniqueItems": True}
    )
    sass: Annotated[tuple[Sass, ...], AfterValidator(unique)] = Field(
        default=(), description="machine code in the image", json_schema_extra={"uniqueItems": True}
    )
    ptx: Annotated[tuple[Ptx, ...], AfterValidator(unique)] = Field(
        default=(), description="PTX in the image", json_schema_extra={"uniqueItems": True}
    )

    @property
    def label(self) -> str:
        """``sm120``, ``cpu`` or ``portable``: the first part of every tag."""
        return f"sm{self.name}" if self.name.isdigit() else self.name

    @property
    def cmake_architectures(self) -> str:
        """The value of ``CMAKE_CUDA_ARCHITECTURES``; empty for ``cpu``."""
        return ";".join([*(f"{one}-real" for one in self.sass), *(f"{one}-virtual" for one in self.ptx)])


class RelativeThresholds(_Row):
    """What the series must bring on any GPUs, measured in the same run against the stock flavor."""

    short_speedup: Ratio = Field(description="stock by patched, a short prompt's block")
    last_block_speedup: Ratio = Field(description="stock by patched, a long prompt's last block")
    last_over_first: Ratio = Field(description="patched: the long prompt's last block by its first, at most")


class HardwareThresholds(_Row):
    """What a step may take on GPUs of one kind, of which figures are known."""

    gpu: Plain = Field(description="the GPU's name as the driver gives it")
    count: GpuCount = Field(description="how many of them the model spans")
    memory_gib: Gibibytes = Field(description="memory of each, rounded: one name may stand for two sizes")
    short_ms: Milliseconds = Field(description="a short prompt, milliseconds a step")
    long_ms: Milliseconds = Field(description="a long prompt's last block, milliseconds a step")
    tolerance_percent: Percent = Field(description="how much more than that still passes")


class Thresholds(_Row):
    """What a step of the patched flavor may take. Times are medians of a block's steps."""

    relative: RelativeThresholds = Field(description="for any GPUs, against the stock flavor")
    hardware: tuple[HardwareThresholds, ...] = Field(description="for GPUs of which figures are known")


class Model(_Row):
    """A model file of the hub; without revision and hash it is unpinned."""

    name: Name = Field(description="the model's name", json_schema_extra=INJECTED)
    repository: HubRepository = Field(description="the repository on the hub, OWNER/NAME")
    file: HubFile = Field(description="the file's path in that repository")
    revision: Commit | None = Field(default=None, description="the repository's commit, 40 hex digits")
    sha256: Sha256 | None = Field(default=None, description="the file's SHA-256 at that commit")


class Defaults(_Row):
    """What a command takes where it is told nothing else."""

    source: str = Field(description="the source that is built by default")
    base: str = Field(description="the base that is built on by default")
    flavor: Flavor = Field(description="the flavor that is built by default")
    model: str | None = Field(default=None, description="the model that is fetched by default")


class Matrix(_Row):
    """Everything that can be built. Rows keep the order of the file."""

    version: Literal[1] = Field(description="the version of this file's form")
    defaults: Defaults = Field(description="what is built where nothing else is said")
    sources: Frozen[str, Source] = Field(min_length=1, description="pinned sources by name")
    flavors: Annotated[tuple[Flavor, ...], AfterValidator(unique)] = Field(
        min_length=1,
        description="patched: with the series; stock: without",
        json_schema_extra={"uniqueItems": True},
    )
    bases: Frozen[str, Base] = Field(min_length=1, description="what images are built on, by name")
    toolkits: Frozen[str, Toolkit] = Field(description="CUDA toolkits by name")
    cpu_variants: Frozen[
        Platform, Annotated[tuple[Variant, ...], Field(min_length=1), AfterValidator(unique)]
    ] = Field(min_length=1, description="CPU backends of an image, for each platform")
    architectures: Frozen[str, Architecture] = Field(min_length=1, description="rows of images by name")
    thresholds: Thresholds = Field(description="what a step may take, for the tests on GPUs")
    models: Frozen[str, Model] = Field(
        default_factory=lambda: FrozenMapping({}), description="models of the hub by name"
    )

    def bases_for(self, architecture: Architecture) -> tuple[str, ...]:
        """Names of the bases that can make this architecture, in the file's order.

        A bootstrap base makes ``cpu`` and what a toolkit with wheels compiles; a registry base needs the
        toolkit's images.
        """
        if architecture.toolkit is None:
            return tuple(base.name for base in self.bases.values() if base.kind == "bootstrap")
        toolkit = self.toolkits[architecture.toolkit]
        parts = {"bootstrap": toolkit.wheels, "registry": toolkit.images}
        return tuple(base.name for base in self.bases.values() if parts[base.kind] is not None)
