"""An image of this engine as it would be published, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama_images.errors import CheckFailed, UsageError
from llama_images.imageroot import Finding, LayerContents, judge_configuration, judge_layers
from llama_images.oci import Manifest
from llama_images.patch_series import PatchSeries
from llama_images.ports import Engine, ImageInfo, ImageStore, PackedImage
from llama_images.provenance import Package, parse_packages
from llama_images.publication import image_of
from llama_images.render import INPUTS_LABEL, series_of
from llama_images.sbom import (
    STATUS_FOLDER,
    Distribution,
    bill_of_materials,
    parse_distribution,
    parse_status,
)
from llama_images.selection import IMAGE, Target, local_reference
from llama_images.tags import Tags, published_tags
from llama_images.workflows.workshop import Workshop

PACKAGES_FILE = "/usr/share/llama-images/build-packages"
"""Where an image lists the packages of its build stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packages:
    """The distribution's packages around an image."""

    distribution: Distribution
    shipped: tuple[Package, ...]
    """Those in the image."""
    built_with: tuple[Package, ...]
    """Those of its build stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """One image, packed and read."""

    target: Target
    series: PatchSeries | None
    tags: Tags
    image: ImageInfo
    files: PackedImage
    contents: tuple[LayerContents, ...]
    manifest: Manifest

    @property
    def name(self) -> str:
        """What statements call the image."""
        return f"{IMAGE}:{self.tags.version}"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What a search for secrets found, in each layer and in the configuration."""
        return (*judge_layers(self.contents), judge_configuration(self.files.configuration))

    def packages(self) -> Packages:
        """The distribution's packages. Raises CheckFailed where the image lists none."""
        files = {
            entry.path: entry.content.decode("utf-8", "replace")
            for layer in self.contents
            for entry in layer.root
            if entry.content is not None
        }
        shipped = [
            package
            for path, text in sorted(files.items())
            if path.startswith(f"{STATUS_FOLDER}/") and (package := parse_status(text)) is not None
        ]
        if not shipped:
            raise CheckFailed(
                f"{local_reference(self.target)} lists no package of the distribution in {STATUS_FOLDER}",
                hint=f"invoke build --arch {self.target.architecture.name} --rebuild",
            )
        return Packages(
            distribution=parse_distribution(files.get("/etc/os-release", "")),
            shipped=tuple(shipped),
            built_with=parse_packages(files.get(PACKAGES_FILE, "")),
        )

    def bill(self, platform: str) -> dict[str, Any]:
        """The bill of materials."""
        packages = self.packages()
        return bill_of_materials(
            self.target,
            self.series,
            name=self.name,
            digest=self.manifest.digest,
            platform=platform,
            packages=packages.shipped,
            distribution=packages.distribution,
        )


def pack(shop: Workshop, engine: Engine, store: ImageStore, target: Target) -> Packed:
    """Bring the target's image into the cache as it would be published, and read every layer of it.

    Raises UsageError where the engine has no such image, OutsideError where it or the cache fails.
    """
    reference, series = local_reference(target), series_of(target, shop.series)
    image = engine.image(reference)
    if image is None:
        raise UsageError(
            f"there is no image {reference} on this engine",
            hint=f"invoke build --arch {target.architecture.name} builds it",
        )
    with shop.reporter.activity(f"pack {target.id}") as activity:
        files = store.pack(
            engine, reference, target.source.date, activity.update, without_labels=[INPUTS_LABEL]
        )
        manifest = image_of(files, target, series)
        store.list_image(target.id, manifest)
        activity.update("search for secrets")
        contents = store.contents(files)
    return Packed(
        target=target,
        series=series,
        tags=published_tags(shop.matrix, target, series),
        image=image,
        files=files,
        contents=contents,
        manifest=manifest,
    )
