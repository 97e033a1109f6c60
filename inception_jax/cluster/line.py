"""A connection between supervisors, or with a worker: JSON objects, a line each."""

import contextlib
import json
import socket
import time
from typing import Any

LONGEST = 2**24  # bytes of a message; who sends more is none of us
PATIENCE = 5.0  # seconds for who does not read
FAREWELL = 0.5  # seconds for who does not say goodbye


class Lost(Exception):
    """A connection has ended, or carries what is no message."""


class Line:
    """A connection that carries messages."""

    def __init__(self, connection: socket.socket, host: str = ""):
        self._socket = connection
        self._socket.settimeout(PATIENCE)
        self._rest = b""
        self.host = host  # of the process at the other end
        self.heard = time.monotonic()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, **message) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise Lost from None

    def receive(self) -> list[dict[str, Any]]:
        """Returns what has come, or waits for something."""
        try:
            found = self._socket.recv(2**16)
            *lines, self._rest = (self._rest + found).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            raise Lost from None
        if not found or len(self._rest) > LONGEST:
            raise Lost
        if not all(isinstance(message, dict) for message in messages):
            raise Lost
        self.heard = time.monotonic()
        return messages

    def close(self) -> None:
        """Ends it; what was sent last arrives, if the other end still reads."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(FAREWELL)
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(2**16):  # unread, it would make the system drop the rest
                pass
        self.drop()

    def drop(self) -> None:
        """Ends it at once."""
        self._socket.close()
