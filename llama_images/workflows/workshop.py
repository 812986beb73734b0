"""What every workflow works with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama_images.errors import UsageError
from llama_images.matrix import Matrix
from llama_images.patch_series import PatchSeries
from llama_images.ports import Engine, ImageInfo, Programs, Reporter, SourceTree
from llama_images.render import Inputs, is_rendered_path, render_all
from llama_images.selection import Target, build_command, local_reference

MIRROR_VARIABLE = "LLAMA_IMAGES_APT_MIRROR"
"""Names a mirror of the distribution: a URL, a line of sources.list, or a file in either of apt's formats."""

_CA_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """The repository, the cache, the parsed matrix, and the ports that all commands share."""

    root: Path
    """The repository: matrix.yaml, templates/, images/, patches/."""
    cache: Path
    """The user's cache: sources, contexts, logs, models. Safe to delete."""
    environment: Mapping[str, str]
    matrix: Matrix
    series: Mapping[str, PatchSeries]
    programs: Programs
    reporter: Reporter
    source_tree: SourceTree

    def render_inputs(self) -> Inputs:
        """Everything that rendering reads, from the repository."""
        folder = self.root / "templates"
        return Inputs(
            matrix=self.matrix,
            series=self.series,
            templates={path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.j2"))},
            readme=(self.root / "README.md").read_text("utf-8"),
        )

    def rendered(self) -> dict[str, str]:
        """Every rendered file as it should be, by path."""
        return render_all(self.render_inputs())

    def present(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """The rendered files as they are, those included that should not be there."""
        folder = self.root / "images"
        paths = {str(path.relative_to(self.root)) for path in folder.glob("*/*") if path.is_file()}
        paths = {path for path in paths if is_rendered_path(path)} | set(wanted)
        return {path: (self.root / path).read_text("utf-8") for path in paths if (self.root / path).is_file()}

    def common_files(self, rendered: Mapping[str, str]) -> dict[str, tuple[bytes, int]]:
        """Content and mode of all that lies in images/common, by name: scripts as they are, the rest anew."""
        result = {}
        for path in sorted((self.root / "images" / "common").iterdir()):
            if path.is_file():
                result[path.name] = (path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)
        for name, text in rendered.items():
            if name.startswith("images/common/"):
                result[name.removeprefix("images/common/")] = (text.encode(), 0o644)
        return result

    def log_path(self, name: str) -> Path:
        """Where the log of a long step goes; the folder is made."""
        folder = self.cache / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def secrets(self) -> dict[str, Path]:
        """Files that single build steps may read and that end in no layer: a custom CA bundle."""
        for variable in _CA_VARIABLES:
            value = self.environment.get(variable)
            if value and Path(value).is_file():
                return {"ca": Path(value)}
        return {}

    def mirrors(self) -> tuple[str, ...]:
        """Where mmdebstrap takes packages from, instead of the mirror that it has built in."""
        value = self.environment.get(MIRROR_VARIABLE)
        return (value,) if value else ()

    def proxies(self) -> dict[str, str]:
        """This environment's proxies as build arguments; the engine keeps these names out of the history."""
        result = {}
        for name in _PROXY_VARIABLES:
            for variable in (name, name.upper()):
                if value := self.environment.get(variable):
                    result[variable] = value
        return result


def common_hashes(files: Mapping[str, tuple[bytes, int]]) -> dict[str, str]:
    """SHA-256 of each of ``Workshop.common_files``, as a build's record keeps them."""
    return {name: hashlib.sha256(data).hexdigest() for name, (data, _mode) in files.items()}


def built_image(shop: Workshop, engine: Engine, target: Target) -> ImageInfo:
    """The target's image. Raises UsageError where the engine has none: it was not built yet."""
    reference = local_reference(target)
    image = engine.image(reference)
    if image is None:
        raise UsageError(
            f"there is no image {reference} on this engine",
            hint=f"{build_command(target, shop.matrix)} makes it",
        )
    return image


def write_or_remove(path: Path, text: str | None) -> None:
    """Write the file aside and rename it; without a text, remove it, and its folder once empty."""
    if text is None:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    part.replace(path)
