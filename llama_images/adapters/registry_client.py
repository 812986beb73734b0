"""Reads and fills any registry that speaks the OCI distribution protocol.

What is sent is compared with what the registry says it has stored, and what comes is compared with its
digest: nothing here is taken on trust. A layer that breaks off in the middle is continued where the registry
has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

import requests

from llama_images import oci
from llama_images.adapters.credentials import Login, docker_login
from llama_images.adapters.network import is_loopback
from llama_images.adapters.registry_http import Again, Body, RegistryHttp
from llama_images.errors import BadAnswer, Missing, OutsideError, Refused
from llama_images.oci import Descriptor, Manifest
from llama_images.ports import SMALL_BLOB, HeldImage

ACCEPTED: Final = (oci.INDEX, oci.MANIFEST, oci.DOCKER_LIST, oci.DOCKER_MANIFEST)

MANIFEST_LIMIT: Final = 4 << 20
"""Bytes; what registries take by the distribution specification, "Pushing manifests"."""

_CHUNK: Final = 1 << 20
_PAGES: Final = 1000
_HUB: Final = "docker.io"
_HUB_REGISTRY: Final = "registry-1.docker.io"


class RegistryClient:
    """One registry. ``base_url`` is its address with the scheme: ``http://127.0.0.1:5000``.

    ``writes`` is for who is going to fill it: where tokens are wanted, each is one for both. The other
    arguments are those of ``RegistryHttp``. Every method raises OutsideError, in one line, where
    the registry can't be reached, refuses, lacks what was asked for, or alters it. ``repository`` is a name
    without host and tag.
    """

    def __init__(self, base_url: str, *, writes: bool = False, **options: Any) -> None:
        self._http = RegistryHttp(base_url, **options)
        self._name = self._http.name
        # Some registries let nobody read what does not exist yet, unless he may make it.
        self._reads = "pull,push" if writes else "pull"

    # --- reading ---

    def manifest(self, repository: str, reference: str) -> Manifest:
        """A manifest or an index by tag or by digest."""
        what = _named(repository, reference)
        answer, raw = self._whole(
            f"/v2/{repository}/manifests/{reference}",
            what,
            scope=f"{repository}:{self._reads}",
            headers={"Accept": ", ".join(ACCEPTED)},
            limit=MANIFEST_LIMIT,
        )
        found = oci.digest_of(raw)
        stated = answer.headers.get("Docker-Content-Digest", found)
        wanted = reference if oci.is_digest(reference) else stated
        if {stated, wanted} != {found}:
            raise BadAnswer(
                f"{self._name} sent {found} for {what} and said {stated}",
                hint="something on the way alters it: try without a proxy",
            )
        try:
            return Manifest.read(raw, answer.headers.get("Content-Type", "").partition(";")[0].strip())
        except oci.NotOci as error:
            raise BadAnswer(
                f"{self._name} sent no manifest for {what}: {error}", hint="check the name; is it a registry?"
            ) from None

    def find(self, repository: str, reference: str) -> Manifest | None:
        """The same, or None where the registry does not have it."""
        try:
            return self.manifest(repository, reference)
        except Missing:
            return None

    def blob(self, repository: str, digest: str) -> bytes:
        """A whole blob, checked against its digest; for small ones, of at most ``ports.SMALL_BLOB`` bytes."""
        what = _named(repository, digest)
        _, data = self._whole(
            f"/v2/{repository}/blobs/{digest}",
            what,
            scope=f"{repository}:{self._reads}",
            headers=_ANYTHING,
            limit=SMALL_BLOB,
        )
        found = oci.digest_of(data)
        if found != digest:
            raise BadAnswer(f"{self._name} sent {found} for {what}", hint="fetch it again")
        return data

    def _whole(
        self, path: str, what: str, *, scope: str, headers: Mapping[str, str], limit: int
    ) -> tuple[requests.Response, bytes]:
        """An answer and its body, of which no more than ``limit`` bytes are ever held."""

        def once() -> tuple[requests.Response, bytes]:
            answer = self._http.ask("GET", path, what, scope=scope, headers=headers, stream=True, again=False)
            data = bytearray()
            with answer, self._http.reading():
                for chunk in answer.iter_content(_CHUNK):
                    data += chunk
                    if len(data) > limit:
                        raise BadAnswer(
                            f"{self._name} sent more than {limit} bytes for {what}", hint="what is it?"
                        )
            return answer, bytes(data)

        try:
            found: tuple[requests.Response, bytes] = self._http.retrying()(once)
        except Again as error:
            raise self._http.given_up(error) from None
        return found

    def read_image(self, repository: str, reference: str) -> HeldImage:
        """Read an image through, see ``ports.RegistryReader``; no layer is held as a whole."""
        top = self.manifest(repository, reference)
        manifests = [top]
        blobs = compressed = 0
        try:
            for entry in top.content.get("manifests", ()):
                manifests.append(self.manifest(repository, str(entry["digest"])))
                self._compare_size(f"{repository}@{entry['digest']}", len(manifests[-1].raw), entry["size"])
            for manifest in manifests:
                if manifest is top and top.is_index:
                    continue  # an index has no blobs of its own
                config, layers = manifest.content["config"], manifest.content["layers"]
                for part in (config, *layers):
                    self.read_blob(repository, str(part["digest"]), part["size"])
                blobs += 1 + len(layers)
                compressed += sum(layer["size"] for layer in layers)
        except (KeyError, TypeError):
            raise OutsideError(
                f"what {self._name} holds as {repository} {reference} is no image",
                hint="check the name and the tag",
            ) from None
        return HeldImage(digest=top.digest, blobs=blobs, compressed_bytes=compressed)

    def read_blob(
        self, repository: str, digest: str, size: int, on_bytes: Callable[[int], None] = lambda _count: None
    ) -> None:
        """Read a blob to its end and compare size and digest; it is not kept."""
        what = _named(repository, digest)

        def once() -> None:
            answer = self._http.ask(
                "GET",
                f"/v2/{repository}/blobs/{digest}",
                what,
                scope=f"{repository}:{self._reads}",
                headers=_ANYTHING,
                stream=True,
                again=False,
            )
            found, count = hashlib.sha256(), 0
            with answer, self._http.reading():
                for chunk in answer.iter_content(_CHUNK):
                    found.update(chunk)
                    count += len(chunk)
                    on_bytes(count)
            self._compare_size(what, count, size)
            if digest != f"sha256:{found.hexdigest()}":
                raise OutsideError(
                    f"{self._name} sent sha256:{found.hexdigest()} for {what}", hint="fetch it again"
                )

        try:
            self._http.retrying()(once)
        except Again as error:
            raise self._http.given_up(error) from None

    def has_blob(self, repository: str, blob: Descriptor) -> bool:
        """Whether the registry has a blob of that digest. Raises OutsideError where it has another size."""
        what = _named(repository, blob.digest)
        try:
            answer = self._http.ask(
                "HEAD",
                f"/v2/{repository}/blobs/{blob.digest}",
                what,
                scope=f"{repository}:{self._reads}",
                headers=_ANYTHING,
            )
        except Missing:
            return False
        length = answer.headers.get("Content-Length", "")
        if length.isdecimal():
            self._compare_size(what, int(length), blob.size)
        return True

    def tags(self, repository: str) -> tuple[str, ...]:
        """Every tag of a repository, sorted; none where the repository is unknown."""
        tags: list[str] = []
        try:
            for page in self._pages(f"/v2/{repository}/tags/list", repository, repository):
                tags += [str(name) for name in page.get("tags") or []]
        except Missing:
            return ()
        return tuple(sorted(tags))

    def referrers(self, repository: str, digest: str) -> tuple[Descriptor, ...]:
        """What is attached to a manifest: by the referrers API, or by the tag that stands in for it."""
        what = f"referrers of {_named(repository, digest)}"
        found: list[Descriptor] = []
        try:
            for page in self._pages(f"/v2/{repository}/referrers/{digest}", what, repository):
                found += self._descriptors(page, what)
        except Missing:
            return self._referrers_by_tag(repository, digest)
        except Refused as error:
            if error.status not in (400, 405):  # older registries take the address for a wrong one
                raise
            return self._referrers_by_tag(repository, digest)
        return tuple(found)

    def _referrers_by_tag(self, repository: str, digest: str) -> tuple[Descriptor, ...]:
        held = self.find(repository, oci.referrers_tag(digest))
        return (
            ()
            if held is None
            else self._descriptors(held.content, f"referrers of {_named(repository, digest)}")
        )

    def _descriptors(self, content: Mapping[str, Any], what: str) -> tuple[Descriptor, ...]:
        try:
            return Manifest.made({**content, "mediaType": oci.INDEX}).entries
        except oci.NotOci as error:
            raise OutsideError(
                f"{self._name} sent no index for {what}: {error}", hint="is it a registry?"
            ) from None

    def _pages(self, path: str, what: str, repository: str) -> Iterator[Mapping[str, Any]]:
        for _ in range(_PAGES):
            answer = self._http.ask(
                "GET", path, what, scope=f"{repository}:{self._reads}", headers={"Accept": "*/*"}
            )
            yield self._json(answer, what)
            following = answer.links.get("next", {}).get("url")
            if not following:
                return
            there = urlsplit(urljoin(f"{self._http.base}{path}", following))
            path = f"{there.path}?{there.query}"

    # --- filling ---

    def push_blob(
        self,
        repository: str,
        blob: Descriptor,
        path: Path,
        *,
        mount_from: Sequence[str] = (),
        on_bytes: Callable[[int], None] = lambda _count: None,
    ) -> bool:
        """Send a file as a blob; False where the registry has it already, also after a mount.

        ``mount_from`` are other repositories of this registry that may have it. ``on_bytes`` gets the number
        of bytes that are there.
        """
        if self.has_blob(repository, blob):
            return False
        for other in mount_from:
            if other != repository and self._mount(repository, blob, other):
                return False
        try:
            self._upload(_Upload(self._http, repository, blob, lambda: path.open("rb"), on_bytes))
        except OSError as error:
            raise OutsideError(f"{path} can't be read: {error.strerror or error}") from None
        return True

    def push_bytes(self, repository: str, data: bytes, media_type: str) -> Descriptor:
        """Send some bytes as a blob, where the registry does not have them."""
        blob = Descriptor.of(data, media_type)
        if not self.has_blob(repository, blob):
            self._upload(_Upload(self._http, repository, blob, lambda: io.BytesIO(data), lambda _count: None))
        return blob

    def _upload(self, upload: _Upload) -> None:
        try:
            self._http.retrying()(upload.go_on)
        except Again as error:
            raise self._http.given_up(error) from None
        if not self.has_blob(upload.repository, upload.blob):
            raise OutsideError(
                f"{self._name} took {_named(upload.repository, upload.blob.digest)} and does not have it",
                hint="look at the registry's log",
            )

    def _mount(self, repository: str, blob: Descriptor, other: str) -> bool:
        query = urlencode({"mount": blob.digest, "from": other})
        try:
            answer = self._http.ask(
                "POST",
                f"/v2/{repository}/blobs/uploads/?{query}",
                _named(repository, blob.digest),
                scope=f"{repository}:pull,push {other}:pull",
                headers={"Content-Length": "0"},
                accepted=(201, 202),
            )
        except Refused:
            return False  # it may not be read from there: it is sent
        if answer.status_code == 202:
            self._cancel(repository, answer.headers.get("Location", ""))
            return False
        return self.has_blob(repository, blob)

    def _cancel(self, repository: str, location: str) -> None:
        """Give an upload up that the registry has begun; fine where it does not take that."""
        if location:
            try:
                self._http.ask(
                    "DELETE",
                    location,
                    "an upload",
                    scope=f"{repository}:pull,push",
                    accepted=(200, 202, 204),
                    again=False,
                )
            except OutsideError:
                return

    def push_manifest(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        """Send a manifest or an index under its digest, or under a tag, and read it back.

        Raises OutsideError where what can be read afterwards is not what was sent.
        """
        reference = tag or manifest.digest
        self._put(repository, manifest, reference)
        held = self.manifest(repository, reference)
        if held.raw != manifest.raw:
            raise OutsideError(
                f"{self._name} holds {held.digest} as {_named(repository, reference)}, "
                f"sent was {manifest.digest}",
                hint="does somebody else publish there at the same time?",
            )

    def push_referrer(self, repository: str, manifest: Manifest) -> None:
        """Send a manifest with a subject, so that it is found from its subject.

        A registry with the referrers API says so in its answer; for others the list of referrers is kept
        under a tag, as the OCI distribution specification describes it.
        """
        subject = Descriptor.parse(manifest.content["subject"]).digest
        answer = self._put(repository, manifest, manifest.digest)
        if self.manifest(repository, manifest.digest).raw != manifest.raw:
            raise OutsideError(f"{self._name} alters {_named(repository, manifest.digest)}")
        if "OCI-Subject" not in answer.headers:
            held = self._referrers_by_tag(repository, subject)
            if manifest.digest not in {entry.digest for entry in held}:
                listed = oci.index((*held, manifest.descriptor))
                self.push_manifest(repository, listed, oci.referrers_tag(subject))
        if manifest.digest not in {entry.digest for entry in self.referrers(repository, subject)}:
            raise OutsideError(
                f"{self._name} does not list {_named(repository, manifest.digest)} with what it belongs to",
                hint="does somebody else publish there at the same time?",
            )

    def _put(self, repository: str, manifest: Manifest, reference: str) -> requests.Response:
        what = _named(repository, reference)
        answer = self._http.ask(
            "PUT",
            f"/v2/{repository}/manifests/{reference}",
            what,
            scope=f"{repository}:pull,push",
            headers={"Content-Type": manifest.media_type},
            body=lambda: contextlib.nullcontext(manifest.raw),
            accepted=(200, 201),
        )
        stored = answer.headers.get("Docker-Content-Digest", manifest.digest)
        if stored != manifest.digest:
            raise OutsideError(
                f"{self._name} stored {stored} for {what}, sent was {manifest.digest}",
                hint="something on the way alters it: try without a proxy",
            )
        return answer

    def delete(self, repository: str, digest: str) -> None:
        """Remove a manifest, and every tag that means it; fine where it is not there."""
        try:
            self._http.ask(
                "DELETE",
                f"/v2/{repository}/manifests/{digest}",
                _named(repository, digest),
                scope=f"{repository}:delete",
                accepted=(200, 202, 204),
            )
        except Missing:
            return
        except Refused as error:
            if error.status == 405 or error.code == "UNSUPPORTED":
                raise OutsideError(
                    f"{self._name} does not let anything be deleted this way",
                    hint="use its own interface, or allow deletion in its configuration",
                ) from None
            raise

    # --- small things ---

    def _compare_size(self, what: str, found: int, stated: int) -> None:
        if found != stated:
            raise OutsideError(
                f"{self._name} sent {found} bytes for {what}, of which {stated} were stated",
                hint="fetch it again",
            )

    def _json(self, answer: requests.Response, what: str) -> Mapping[str, Any]:
        try:
            content = answer.json()
        except (requests.JSONDecodeError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise BadAnswer(f"{self._name} sent no JSON object for {what}", hint="is it a registry?")
        return content


_ANYTHING: Final = {"Accept": "*/*", "Accept-Encoding": "identity"}  # a blob is what it is, not unpacked


def _named(repository: str, reference: str) -> str:
    return f"{repository}{'@' if oci.is_digest(reference) else ':'}{reference}"


class _Upload:
    """One blob on its way, over as many connections as it takes."""

    def __init__(
        self,
        http: RegistryHttp,
        repository: str,
        blob: Descriptor,
        opened: Callable[[], IO[bytes]],
        on_bytes: Callable[[int], None],
    ) -> None:
        self.repository = repository
        self.blob = blob
        self._http = http
        self._opened = opened
        self._on_bytes = on_bytes
        self._location = ""
        self._what = _named(repository, blob.digest)

    def go_on(self) -> None:
        """Send what the registry lacks. Raises Again where the connection breaks: call it once more."""
        offset = self._offset() if self._location else 0
        if not self._location:
            answer = self._ask(
                "POST", f"/v2/{self.repository}/blobs/uploads/", (202,), {"Content-Length": "0"}
            )
            self._moved(answer)
        if offset < self.blob.size:
            headers = {"Content-Type": "application/octet-stream"}
            if offset:
                headers["Content-Range"] = f"{offset}-{self.blob.size - 1}"
            self._moved(self._ask("PATCH", self._location, (202, 204), headers, lambda: self._rest(offset)))
        separator = "&" if "?" in self._location else "?"
        done = f"{self._location}{separator}{urlencode({'digest': self.blob.digest})}"
        try:
            answer = self._ask("PUT", done, (201, 204), {"Content-Length": "0"})
        except Refused as error:
            if error.code != "DIGEST_INVALID":
                raise
            self._location = ""  # what arrived is not what was sent: from the beginning
            raise Again(error.message, hint="something on the way alters what is sent") from None
        except Missing:
            self._location = ""
            raise Again(f"{self._http.name} has lost the upload of {self._what}") from None
        stored = answer.headers.get("Docker-Content-Digest", self.blob.digest)
        if stored != self.blob.digest:
            raise OutsideError(
                f"{self._http.name} stored {stored} for {self._what}", hint="something on the way alters it"
            )

    def _offset(self) -> int:
        """How many bytes the registry has of the upload that broke off; begins anew where it has lost it."""
        try:
            answer = self._ask("GET", self._location, (200, 202, 204), {})
        except (Missing, Refused):
            self._location = ""
            return 0
        self._moved(answer)
        first, _, last = answer.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if first != "0" or not last.isdecimal() or int(last) >= self.blob.size:
            self._location = ""
            return 0
        # "0-0" stands for nothing as well as for one byte (distribution specification, "Pushing a blob in
        # chunks"): one byte is sent again only by starting over.
        return int(last) + 1 if int(last) else self._anew()

    def _anew(self) -> int:
        self._location = ""
        return 0

    def _ask(
        self,
        method: str,
        address: str,
        accepted: Collection[int],
        headers: Mapping[str, str],
        body: Body | None = None,
    ) -> requests.Response:
        return self._http.ask(
            method,
            address,
            self._what,
            scope=f"{self.repository}:pull,push",
            headers=headers,
            body=body,
            accepted=accepted,
            again=False,
        )

    @contextlib.contextmanager
    def _rest(self, offset: int) -> Iterator[_Rest]:
        with self._opened() as file:
            yield _Rest(file, offset, self.blob.size, self._on_bytes)

    def _moved(self, answer: requests.Response) -> None:
        location = answer.headers.get("Location")
        if location:
            self._location = urljoin(f"{self._http.base}/", location)
        elif not self._location:
            raise OutsideError(
                f"{self._http.name} began no upload for {self._what}", hint="is it a registry?"
            )


class _Rest:
    """A file from some place on, as requests sends it."""

    def __init__(self, file: IO[bytes], offset: int, size: int, on_bytes: Callable[[int], None]) -> None:
        file.seek(offset)
        self._file = file
        self._at = offset
        self._size = size
        self._on_bytes = on_bytes

    def __len__(self) -> int:
        return self._size - self._at

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._at += len(data)
        self._on_bytes(self._at)
        return data


def connect(
    host: str,
    *,
    login: Login = docker_login,
    authorities: Path | None = None,
    writes: bool = False,
    on_wait: Callable[[str], None] = lambda _text: None,
) -> RegistryClient:
    """The registry that an image's name begins with, by Docker's rules.

    Only a registry on this machine's loopback may do without TLS. Raises OutsideError where it does not
    answer.
    """
    options: dict[str, Any] = {"login": login, "login_name": host, "on_wait": on_wait}
    options |= {"authorities": authorities, "writes": writes}
    if not is_loopback(urlsplit(f"//{host}").hostname):
        return RegistryClient(f"https://{_HUB_REGISTRY if host == _HUB else host}", **options)
    return RegistryClient(f"{'https' if _speaks_tls(host) else 'http'}://{host}", **options)


def _speaks_tls(host: str) -> bool:
    with requests.Session() as session:
        session.trust_env = False
        try:
            session.get(f"https://{host}/v2/", timeout=10, stream=True).close()
        except requests.exceptions.SSLError as error:
            # A certificate that is not trusted is one all the same.
            return "CERTIFICATE" in str(error).upper()
        except requests.RequestException:
            return False  # the first real request says what is wrong
    return True


def authorities_for(host: str, environment: Mapping[str, str], home: Path) -> Path | None:
    """A file with certificate authorities for that registry, where Docker or this environment names one."""
    for folder in (Path("/etc/docker/certs.d"), home / ".config" / "docker" / "certs.d"):
        path = folder / host / "ca.crt"
        if path.is_file():
            return path
    value = environment.get("SSL_CERT_FILE")
    return Path(value) if value and Path(value).is_file() else None


def json_blob(client: RegistryClient, repository: str, digest: str) -> Mapping[str, Any]:
    """A blob that is a JSON object, such as a configuration. Raises OutsideError where it is none."""
    try:
        value = json.loads(client.blob(repository, digest))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise OutsideError(f"{_named(repository, digest)} is no JSON object")
    return value
