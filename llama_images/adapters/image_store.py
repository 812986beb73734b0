"""Images of an engine as files that a registry takes: an OCI image layout in the cache.

Layers are compressed here and not by the engine, so that their digests are the same whichever engine has
built them: gzip without a time and without a name, by the zlib of this Python. What has been compressed once
is found again by the digest of what it was made from.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from llama_images import oci
from llama_images.errors import OutsideError
from llama_images.imageroot import LayerContents, LeakSearch, read_root
from llama_images.oci import Descriptor
from llama_images.ports import Engine, PackedImage

LEVEL: Final = 6
"""gzip's level, the engines' own."""

_CHUNK: Final = 1 << 20
_GZIP: Final = 16 + zlib.MAX_WBITS
_GZIP_MAGIC: Final = b"\x1f\x8b"


class CachedImages:
    """Implements ``ports.ImageStore`` with a folder, which is safe to delete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pack(
        self,
        engine: Engine,
        reference: str,
        created: datetime,
        on_progress: Callable[[str], None],
        *,
        without_labels: Collection[str] = (),
    ) -> PackedImage:
        """Bring an image into the cache, see ``ports.ImageStore.pack``."""
        image = engine.image(reference)
        if image is None:
            raise OutsideError(f"the engine has no image {reference}", hint="Build it, or pull it, first.")
        try:
            (self._folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
            _write(self._folder / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            # An image's identifier is the digest of its configuration, so the note about it can't grow old.
            note = self._folder / "engine" / f"{image.id.removeprefix('sha256:')}.json"
            config = _read_json(note)
            layers = None if config is None else self._known(config)
            if config is None or layers is None:
                config, layers = self._unpack(engine, reference, on_progress)
                _write(note, json.dumps(config).encode())
            published = oci.published_config(config, created, without_labels)
            packed = PackedImage(
                folder=self._folder, configuration=published, layers=layers, diff_ids=tuple(_diff_ids(config))
            )
            _write(packed.blob(Descriptor.of(published, oci.CONFIG)), published)
        except oci.NotOci as error:
            raise OutsideError(f"the engine's image {reference} has an unknown form: {error}") from error
        except OSError as error:
            raise self._unwritable(error) from error
        return packed

    def _unwritable(self, error: OSError) -> OutsideError:
        return OutsideError(
            f"{self._folder} can't be written: {error.strerror or error}", hint="is there room?"
        )

    def _unpack(
        self, engine: Engine, reference: str, on_progress: Callable[[str], None]
    ) -> tuple[Mapping[str, Any], tuple[Descriptor, ...]]:
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="save-") as folder:
            archive = Path(folder) / "image.tar"
            engine.save(
                reference, archive, lambda count: on_progress(f"{count / 1e6:.0f} MB from the engine")
            )
            try:
                with tarfile.open(archive) as tar:
                    saved: Any = json.load(_file(tar, "manifest.json"))[0]
                    config: Any = json.load(_file(tar, saved["Config"]))
                    names: Sequence[str] = saved["Layers"] or []
                    layers = []
                    for number, (name, diff_id) in enumerate(zip(names, _diff_ids(config), strict=True), 1):
                        on_progress(f"layer {number} of {len(names)}")
                        layers.append(self._layer(tar, name, diff_id))
            except (
                tarfile.TarError,
                KeyError,
                IndexError,
                TypeError,
                ValueError,
                AttributeError,
                zlib.error,
            ) as error:
                raise OutsideError(f"the engine's image archive has an unknown form: {error!r}") from error
        return config, tuple(layers)

    def _known(self, config: Mapping[str, Any]) -> tuple[Descriptor, ...] | None:
        """The layers of a configuration, where all of them are here."""
        found = [self._compressed(diff_id) for diff_id in _diff_ids(config)]
        return None if None in found else tuple(one for one in found if one is not None)

    def _compressed(self, diff_id: str) -> Descriptor | None:
        value = _read_json(self._note(diff_id))
        if value is None:
            return None
        try:
            layer = Descriptor.parse(value)
            size = (self._folder / "blobs" / "sha256" / layer.digest.removeprefix("sha256:")).stat().st_size
        except (oci.NotOci, OSError):
            return None
        return layer if size == layer.size else None

    def _note(self, diff_id: str) -> Path:
        # Another zlib may compress otherwise: its layers are others.
        version = f"zlib-{zlib.ZLIB_RUNTIME_VERSION}-{LEVEL}"
        return self._folder / "layers" / version / f"{diff_id.removeprefix('sha256:')}.json"

    def _layer(self, tar: tarfile.TarFile, name: str, diff_id: str) -> Descriptor:
        """Compress a layer of the archive, unless it is here."""
        known = self._compressed(diff_id)
        if known is not None:
            return known
        plain, packed, size = hashlib.sha256(), hashlib.sha256(), 0
        handle, part_name = tempfile.mkstemp(dir=self._folder / "blobs" / "sha256", prefix="part-")
        part = Path(part_name)
        try:
            compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)
            with os.fdopen(handle, "wb") as copy, _file(tar, name) as source:
                head = source.read(len(_GZIP_MAGIC))
                source.seek(0)
                # As the containerd image store keeps them; its compression is not ours.
                unpacker = zlib.decompressobj(_GZIP) if head == _GZIP_MAGIC else None
                while chunk := source.read(_CHUNK):
                    data = chunk if unpacker is None else unpacker.decompress(chunk)
                    plain.update(data)
                    out = compressor.compress(data)
                    packed.update(out)
                    size += copy.write(out)
                out = compressor.flush()
                packed.update(out)
                size += copy.write(out)
            if diff_id != f"sha256:{plain.hexdigest()}":
                raise OutsideError(
                    f"the engine's archive has another layer than its configuration names: {diff_id}",
                    hint="build the image again",
                )
            layer = Descriptor(media_type=oci.LAYER_GZIP, digest=f"sha256:{packed.hexdigest()}", size=size)
            part.chmod(0o644)
            part.replace(part.with_name(packed.hexdigest()))
        finally:
            part.unlink(missing_ok=True)
        _write(self._note(diff_id), oci.encode(layer.as_json()))
        return layer

    def contents(self, packed: PackedImage) -> tuple[LayerContents, ...]:
        """The files of each layer by itself, see ``ports.ImageStore.contents``."""
        found = []
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="root-") as folder:
            plain = Path(folder) / "layer.tar"
            for layer in packed.layers:
                search = LeakSearch()
                try:
                    with gzip.open(packed.blob(layer)) as source, plain.open("wb") as copy:
                        while chunk := source.read(_CHUNK):
                            search.feed(chunk)
                            copy.write(chunk)
                except (OSError, EOFError, zlib.error) as error:
                    if isinstance(error, OSError) and error.errno in _FULL:
                        raise self._unwritable(error) from error
                    raise OutsideError(
                        f"{packed.blob(layer)} can't be read: {error}", hint="remove it, and try again"
                    ) from None
                found.append(LayerContents(digest=layer.digest, root=read_root(plain), leaks=search.found))
        return tuple(found)

    def list_image(self, name: str, manifest: oci.Manifest) -> None:
        """Enter a packed image into the layout under a name, so that other tools can read it from there."""
        _write(self._folder / "blobs" / "sha256" / manifest.digest.removeprefix("sha256:"), manifest.raw)
        path = self._folder / "index.json"
        present = _read_json(path) or {}
        entries = [
            entry for entry in present.get("manifests", []) if entry.get("annotations", {}).get(_NAME) != name
        ]
        entry = manifest.descriptor.as_json() | {"annotations": {_NAME: name}}
        _write(path, json.dumps({"schemaVersion": 2, "manifests": [*entries, entry]}).encode())


_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_NAME: Final = "org.opencontainers.image.ref.name"


def _diff_ids(config: Mapping[str, Any]) -> Sequence[str]:
    try:
        values = [str(value) for value in config["rootfs"]["diff_ids"] or []]
    except (KeyError, TypeError):
        raise oci.NotOci("the image's configuration names no layers") from None
    if not all(oci.is_digest(value) for value in values):
        raise oci.NotOci("a layer of the image has no SHA-256")
    return values


def _file(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    # Also through a link: Docker's old layout keeps a layer that comes twice once.
    file = tar.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file


def _read_json(path: Path) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write(path: Path, data: bytes) -> None:
    """Write a file aside and rename it; several processes may write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix="part-")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
