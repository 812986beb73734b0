"""A running container's standard streams."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Any


class Attached:
    """A container's streams, read by a thread of their own."""

    def __init__(self, stream: Any) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._stream = stream
        self._socket: Any = getattr(stream, "_sock", stream)
        # The time-out of docker-py's connection would end a container that is silent for a minute.
        if hasattr(self._socket, "settimeout"):
            self._socket.settimeout(None)
        self._reader = threading.Thread(target=self._read, daemon=True)

    def begin(self, stdin: bytes | None) -> None:
        self._reader.start()
        if stdin is not None:
            threading.Thread(target=self._write, args=(stdin,), daemon=True).start()

    def ended_within(self, seconds: float) -> bool:
        self._reader.join(seconds)
        return not self._reader.is_alive()

    def close(self) -> None:
        # shutdown wakes the reader; closing alone would leave it waiting.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._reader.ident is not None:
            self._reader.join(5)
        # docker-py hangs the HTTP response on the stream; closed first, it closes what lies below in order.
        for end in (getattr(self._stream, "_response", None), self._stream, self._socket):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            # Frames as the Engine API defines them for a container without a terminal.
            while header := self._exactly(8):
                number, length = struct.unpack(">BxxxL", header)
                (self.stderr if number == 2 else self.stdout).extend(self._exactly(length))

    def _exactly(self, length: int) -> bytes:
        """The next ``length`` bytes; fewer where the stream ends before."""
        data = bytearray()
        while len(data) < length and (part := self._socket.recv(min(length - len(data), 1 << 16))):
            data += part
        return bytes(data)

    def _write(self, data: bytes) -> None:
        # The container may end before it has read everything; its exit code tells.
        with contextlib.suppress(OSError):
            self._socket.sendall(data)
            self._socket.shutdown(socket.SHUT_WR)
