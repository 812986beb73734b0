"""Small images of the real matrix, without an engine: what publishing reads of one, and nothing else."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llama_images import oci
from llama_images.adapters.image_store import CachedImages
from llama_images.adapters.signing import KeySigner
from llama_images.clearance import GivenEvidence, parse_evidence
from llama_images.evidence import to_json
from llama_images.plan import choose, make_plan
from llama_images.ports import ImageInfo, Registry
from llama_images.references import Repository
from llama_images.render import INPUTS_LABEL, labels, series_of
from llama_images.selection import Target, local_reference
from llama_images.workflows.build import build_all
from llama_images.workflows.publish import Cell, Published, prepare, publish
from tests.unit.evidences import case, evidence_of
from tests.unit.fakes import PLATFORM, House, archive

STATUS = "Package: libc6\nVersion: 2.36-9+deb12u10\nArchitecture: amd64\n"
SYSTEM = {
    "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
    "var/lib/dpkg/status.d/libc6": STATUS,
}


def layer(files: Mapping[str, str]) -> bytes:
    """An uncompressed layer of text files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return raw.getvalue()


@dataclass
class Press:
    """A house with images of its own, a key, and a place to publish them to."""

    house: House
    registry: Registry
    repository: Repository
    signer: KeySigner = field(default_factory=lambda: KeySigner(Ed25519PrivateKey.generate()))
    program: str = "the program, first build"
    """What is in the last layer: another text is another image."""

    def build(
        self, *words: str, flavors: Sequence[str] = (), files: Mapping[str, str] | None = None
    ) -> list[Target]:
        """Images of these targets in the engine, each with its record in the cache."""
        shop = self.house.shop()
        selection = choose(shop.matrix, words, flavors=flavors, platform=PLATFORM, native=tuple)
        plan = make_plan(selection, series=shop.series, platform=PLATFORM)
        for built in build_all(shop, self.house.engine, plan, repo=None, rebuild=True):
            self._fill(built.target, built.image.labels[INPUTS_LABEL], files or {})
        return list(plan.targets)

    def _fill(self, target: Target, inputs: str, files: Mapping[str, str]) -> None:
        shop, engine, reference = self.house.shop(), self.house.engine, local_reference(target)
        packages = {"usr/share/llama-images/build-packages": "g++\t4:12.2.0-3\tamd64\n"}
        program = {"app/llama-diffusion-cli": f"{target.id}: {self.program}", **packages, **files}
        layers = [layer(SYSTEM), layer(program)]
        own = labels(target, series_of(target, shop.series)) | {INPUTS_LABEL: inputs}
        config: dict[str, Any] = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": own, "User": "10001:10001"},
            "rootfs": {"type": "layers", "diff_ids": [oci.digest_of(one) for one in layers]},
            "created": "2026-11-24T15:04:00Z",
        }
        raw = json.dumps(config).encode()
        saved = [{"Config": "config.json", "Layers": ["0.tar", "1.tar"]}]
        content = {"config.json": raw, "0.tar": layers[0], "1.tar": layers[1]}
        engine.archives[reference] = b"".join(
            archive({**content, "manifest.json": json.dumps(saved).encode()})
        )
        engine.images[reference] = ImageInfo(
            id=oci.digest_of(raw),
            labels=own,
            environment=(),
            entrypoint=(),
            user="10001:10001",
            layers=tuple(config["rootfs"]["diff_ids"]),
            size_bytes=1,
            created="",
        )

    def prepare(
        self,
        *words: str,
        flavors: Sequence[str] = (),
        evidence: Sequence[GivenEvidence] = (),
        allow_untested: bool = True,
    ) -> list[Cell]:
        shop = self.house.shop()
        selection = choose(shop.matrix, words, flavors=flavors, platform=PLATFORM, native=tuple)
        plan = make_plan(selection, series=shop.series, platform=PLATFORM)
        store = CachedImages(self.house.cache / "oci")
        return prepare(shop, self.house.engine, plan, store, evidence=evidence, allow_untested=allow_untested)

    def publish(self, cells: Sequence[Cell], **options: Any) -> list[Published]:
        return publish(self.house.shop(), cells, self.repository, self.registry, self.signer, **options)

    def tag(self, name: str) -> str | None:
        """The digest that a tag means."""
        held = self.registry.find(self.repository.name, name)
        return None if held is None else held.digest

    def edit(self, old: str, new: str) -> None:
        """Change the matrix."""
        path = self.house.root / "matrix.yaml"
        text = path.read_text("utf-8")
        assert text.count(old) == 1, old
        path.write_text(text.replace(old, new), "utf-8")


def evidence_document(cell: Cell, **other: Any) -> str:
    """What `invoke test` writes when an image has passed, by its identifier in the engine that built it."""
    on_gpus = cell.target.toolkit is not None
    fields: dict[str, Any] = {
        "image_id": cell.packed.image.id,
        "cases": [case("one", gpus=int(on_gpus)), case("soak", "skipped")],
        "gpus": ["A GPU"] * 2 if on_gpus else [],
        "name": cell.target.id,
    }
    return to_json(evidence_of(**{**fields, **other}))


def evidence(cell: Cell, **other: Any) -> GivenEvidence:
    """The same as it is read."""
    found = parse_evidence(evidence_document(cell, **other).encode(), "evidence.json")
    assert found is not None
    return found


def key_files(signer: KeySigner, folder: Path) -> tuple[Path, Path]:
    """The signer's private and public key as files."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = signer._key
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public
