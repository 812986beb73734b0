"""The Hugging Face Hub, through its own client: addresses, tokens, proxies and errors are huggingface_hub's.

``HF_ENDPOINT`` names another hub, ``HF_TOKEN`` a token. The bytes come over plain HTTP into a file of ours,
since ``hf_hub_download`` throws away what it has when it is interrupted, and these files have 16 GB.
"""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from llama_images.adapters.network import causes
from llama_images.errors import OutsideError
from llama_images.matrix_fields import HEX64
from llama_images.ports import HubFile

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_TRIES: Final = 2
"""Calls of http_get without a new byte that end a download; by itself it tries six times."""

_PIECE: Final = 4 << 20
"""Bytes asked for at a time where a file is read without keeping it. A vocabulary of 262,144 words makes a
header of more than 5 MB."""

_TIMEOUT: Final = 30.0
"""Seconds without a byte after which the hub is taken for dead."""

_ACCESS_HINT: Final = "a token that may read it goes into HF_TOKEN (or: hf auth login); is the name right?"
_RESUME_HINT: Final = "what has arrived is kept: run the same command to go on"


class HuggingFaceHub:
    """Implements ``ports.ModelHub``. The library is imported at the first call: it takes a second."""

    def __init__(self) -> None:
        # Read when the library is imported. With it on, the hub is asked for more than the model, and told
        # which other programs there are on this machine.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

    def find(self, repository: str, file: str, revision: str) -> HubFile:
        """Ask about a file, see ``ports.ModelHub.find``."""
        import httpx2
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        url = hf_hub_url(repository, file, revision=revision)
        try:
            found = get_hf_file_metadata(url)
        except HfHubHTTPError as error:
            raise _refused(error, repository, file, revision) from error
        except OfflineModeIsEnabled as error:
            raise OutsideError(
                "the hub may not be asked: HF_HUB_OFFLINE is set",
                hint="unset it, or bring the file another way",
            ) from error
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise _unreachable(url, error) from error
        if found.commit_hash is None or found.size is None:
            raise OutsideError(
                f"what answers at {_host(url)} is no hub: it names no commit or no size for {file}",
                hint="check HF_ENDPOINT and the proxy",
            )
        is_hash = found.etag is not None and re.fullmatch(HEX64, found.etag)
        return HubFile(
            repository=repository,
            file=file,
            commit=found.commit_hash,
            size_bytes=found.size,
            sha256=found.etag if is_hash else None,
        )

    def open(self, file: HubFile) -> io.BufferedReader:
        """Read pieces of a file, see ``ports.ModelHub.open``."""
        return io.BufferedReader(_Ranges(file), buffer_size=_PIECE)

    def download(self, file: HubFile, part: Path, on_progress: Callable[[int], None]) -> None:
        """Append what ``part`` lacks, see ``ports.ModelHub.download``."""
        import httpx2
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import (  # type: ignore[attr-defined] # lacks an __all__
            build_hf_headers,
            disable_progress_bars,
        )

        disable_progress_bars()
        # It tells of each new try; the error at the end says it all.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        url = hf_hub_url(file.repository, file.file, revision=file.commit)
        failures = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                with _Counted(part, on_progress) as target:
                    fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # Every try starts at the hub's own address: the one that it redirects to expires.
                    http_get(
                        url,
                        target,
                        resume_size=before,
                        headers={**build_hf_headers(), "Accept-Encoding": "identity"},
                        expected_size=file.size_bytes,
                    )
            except HfHubHTTPError as error:
                raise _refused(error, file.repository, file.file, file.commit) from error
            except (httpx2.RequestError, OfflineModeIsEnabled) as error:
                failures = 0 if part.stat().st_size > before else failures + 1
                if failures < _TRIES:
                    continue
                raise _unreachable(url, error, hint=_RESUME_HINT) from error
            except BlockingIOError as error:
                raise OutsideError(
                    f"another run is writing {part}", hint="let it finish, or name another place: --out"
                ) from error
            except OSError as error:
                raise _not_written(error, part) from error
            return


class _Ranges(io.RawIOBase):
    """A file of the hub from which every read fetches the bytes that it wants."""

    def __init__(self, file: HubFile) -> None:
        super().__init__()
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        """As its parent's."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """As its parent's."""
        wanted = min(len(buffer), self._file.size_bytes - self._at)
        if wanted <= 0:
            return 0
        data = self._fetch(self._at, wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _fetch(self, start: int, count: int) -> bytes:
        import httpx2
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import (  # type: ignore[attr-defined] # lacks an __all__
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        file = self._file
        url = hf_hub_url(file.repository, file.file, revision=file.commit)
        headers = {
            **build_hf_headers(),
            "Accept-Encoding": "identity",
            "Range": f"bytes={start}-{start + count - 1}",
        }
        try:
            # Not read to its end before its status is known: a hub without ranges would send 16 GB.
            with get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT
            ) as response:
                hf_raise_for_status(response)
                if response.status_code != 206:
                    raise OutsideError(
                        f"{_host(str(response.url))} sends only the whole of {file.file}, no part of it",
                        hint="fetch it (invoke model.fetch), and give its path",
                    )
                data = b"".join(response.iter_bytes())
        except HfHubHTTPError as error:
            raise _refused(error, file.repository, file.file, file.commit) from error
        except (httpx2.RequestError, OfflineModeIsEnabled) as error:
            raise _unreachable(url, error) from error
        if len(data) != count:
            raise OutsideError(
                f"{_host(url)} sent {len(data):,} of {count:,} bytes of {file.file}", hint="try again"
            )
        return data


class _Counted(io.BufferedRandom):
    """A file that is written at its end and tells how long it is."""

    def __init__(self, path: Path, on_length: Callable[[int], None]) -> None:
        path.touch()
        super().__init__(io.FileIO(path, "r+"))
        self._on_length = on_length
        self.seek(0, io.SEEK_END)

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """As its parent's."""
        count = super().write(data)
        self._on_length(self.tell())
        return count


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _unreachable(url: str, error: Exception, *, hint: str | None = None) -> OutsideError:
    return OutsideError(
        f"the hub {_host(url)} can't be reached: {_reason(error)}",
        hint=hint or "check the network and the proxy; HF_ENDPOINT names another hub",
    )


def _reason(error: Exception) -> str:
    """Why, in a few words: the system's where it has some, else the library's, else the kind of error."""
    import httpx2

    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    return str(error).partition("\n")[0] or type(error).__name__


def _refused(error: HfHubHTTPError, repository: str, file: str, revision: str) -> OutsideError:
    """The hub's answer in one line. It answers 401 also for a repository that does not exist."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return OutsideError(
            f"{repository} is behind terms that this account has not accepted ({status})",
            hint=f"accept them on the repository's page, then: {_ACCESS_HINT}",
        )
    if isinstance(error, DisabledRepoError):
        return OutsideError(
            f"{repository} has been disabled by the hub ({status})", hint="use another: --repo"
        )
    if isinstance(error, RevisionNotFoundError):
        return OutsideError(
            f"{repository} has no revision {revision} ({status})", hint="--revision names another"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return OutsideError(
            f"{repository} has no file {file} at revision {revision} ({status})", hint="--file names another"
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return OutsideError(
            f"the hub shows no repository {repository} to this account ({status})", hint=_ACCESS_HINT
        )
    if status == 403:
        return OutsideError(f"the hub refuses {file} of {repository} ({status})", hint=_ACCESS_HINT)
    if status == 429:
        return OutsideError("the hub answers no more questions for now (429)", hint="try again later")
    return OutsideError(
        f"the hub answered {status} for {file} of {repository}", hint="try again later; " + _RESUME_HINT
    )


def _not_written(error: OSError, part: Path) -> OutsideError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutsideError(
            f"the disk is full: {part} could not be written on",
            hint=f"make room, or name another place (--out); {_RESUME_HINT}",
        )
    if error.errno is None:
        # http_get's own complaint: the answer ended before the file did.
        return OutsideError(f"the hub sent less of {part.name} than it has", hint=_RESUME_HINT)
    return OutsideError(f"{part} can't be written: {error.strerror or error}", hint=_RESUME_HINT)
