"""An engine's image as files in OCI's image layout, for builders that see none of the engine's images."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Final

from llama_images.errors import OutsideError

TAG: Final = "latest"
"""What the image is called within its layout."""

_CHUNK: Final = 1 << 20
_GZIP_MAGIC: Final = b"\x1f\x8b"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"


def write_layout(chunks: Iterable[bytes], folder: Path) -> str:
    """Write the archive of one image, as ``docker save`` makes it, into ``folder`` and return its digest.

    Equal archives make equal digests, so that a builder finds its cache again. Needs room for two copies of
    the image. Raises OutsideError where the archive has another form or can't be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as whole:
            for chunk in chunks:
                whole.write(chunk)
            whole.seek(0)
            with tarfile.open(fileobj=whole) as archive:
                return _write(archive, folder)
    except (tarfile.TarError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise OutsideError(f"the engine's image archive has an unknown form: {error!r}") from error
    except OSError as error:
        raise OutsideError(
            f"{folder} can't be written: {error.strerror or error}", hint="is there room?"
        ) from error


def _write(archive: tarfile.TarFile, folder: Path) -> str:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with _open(archive, "manifest.json") as file:
        saved: Any = json.load(file)[0]
    with _open(archive, saved["Config"]) as file:
        config = _add(blobs, file)
    layers = []
    for name in saved["Layers"]:
        with _open(archive, name) as file:
            packed = file.read(2) == _GZIP_MAGIC  # as the containerd image store keeps them
            file.seek(0)
            layers.append({"mediaType": f"{_LAYER}+gzip" if packed else _LAYER, **_add(blobs, file)})
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, **config},
        "layers": layers,
    }
    data = json.dumps(manifest, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    entry = {
        "mediaType": _MANIFEST,
        "digest": f"sha256:{digest}",
        "size": len(data),
        "annotations": {"org.opencontainers.image.ref.name": TAG},
    }
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', "utf-8")
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}), "utf-8")
    return f"sha256:{digest}"


def _open(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    # Also through a link: Docker's old layout keeps a layer that comes twice once.
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file


def _add(blobs: Path, file: IO[bytes]) -> dict[str, object]:
    """Copy a file into the blobs, and describe it by digest and size."""
    digest, size = hashlib.sha256(), 0
    part = blobs / "part"
    with part.open("wb") as copy:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
            size += len(chunk)
    part.replace(blobs / digest.hexdigest())
    return {"digest": f"sha256:{digest.hexdigest()}", "size": size}
