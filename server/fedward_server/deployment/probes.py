"""How the supervisor sees that one of its processes lives and does nothing: a probe each, all short.

None of them compares clocks of two kinds: a clock that is set ends no process. This module must not know what the
processes are for, and imports nothing of Flower.

Example:
    >>> looks = Missed(lambda: False)
    >>> [looks() is None for _ in range(3)]
    [True, True, False]
"""

from __future__ import annotations

import ctypes
import http.client
import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from fedward_server.deployment.authority import NEXT_KEY, Authority

__all__ = ["Changed", "Knock", "Missed", "Renewed", "Silent", "first_of"]

MISSES = 3
KNOCK_S = 4.0  # the gateway itself waits three seconds for a SuperLink that does not answer
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_LIBC = ctypes.CDLL(None, use_errno=True)
_NOWHERE = bytes(ctypes.sizeof(ctypes.c_uint64) * 2)  # a sockaddr of family AF_UNSPEC

Watch = Callable[[], str | None]


def first_of(*watches: Watch) -> Watch:
    """The first trouble that any of them tells."""
    return lambda: next((trouble for trouble in (watch() for watch in watches) if trouble is not None), None)


class Missed:
    """Trouble once ``answers`` was false three times in a row."""

    def __init__(self, answers: Callable[[], bool]) -> None:
        """Nothing is asked yet."""
        self._answers, self._missed = answers, 0

    def __call__(self) -> str | None:
        """Ask."""
        self._missed = 0 if self._answers() else self._missed + 1
        if self._missed < MISSES:
            return None
        self._missed = 0
        return f"it did not answer {MISSES} times in a row"


class Changed:
    """Whether a file was written since this was made."""

    def __init__(self, path: Path) -> None:
        """Remember how the file is now."""
        self._path, self._known = path, _stamp(path)

    def __call__(self) -> bool:
        """Look."""
        return _stamp(self._path) not in (None, self._known)


class Silent:
    """Trouble once a file was left alone for ``limit_s`` seconds."""

    def __init__(self, path: Path, *, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """It counts from now."""
        self._path, self._limit, self._clock = path, limit_s, clock
        self._known, self._since = _stamp(path), clock()

    def __call__(self) -> str | None:
        """Look."""
        now, stamp = self._clock(), _stamp(self._path)
        if stamp != self._known:
            self._known, self._since = stamp, now
        if now - self._since < self._limit:
            return None
        self._since = now
        return f"no sign of life for {self._limit:g} s"


class Renewed:
    """A certificate is read when a process starts: trouble once there is another one, and its key lies beside it."""

    def __init__(self, keys: Authority) -> None:
        """Remember the certificate."""
        self._keys, self._known = keys, _stamp(keys.certificate_file)

    def __call__(self) -> str | None:
        """Look."""
        now = _stamp(self._keys.certificate_file)
        if now in (None, self._known) or (self._keys.folder / NEXT_KEY).exists():
            return None
        self._known = now
        return "the certificate was renewed"


class Knock:
    """Whether whoever listens on a port says anything at all.

    The socket is made with this object, and used again and again: a socket stays in the network that it was made in,
    so it reaches the port also when the process has left that network. Any answer counts, a refusal or a closed
    connection too: it is not asked whether the other is content.

    Guarantees:
      - It asks in the network that it was made in.
      - Where this system takes no socket twice it asks no more, and finds no trouble.
    """

    def __init__(self, host: str, port: int) -> None:
        """Nothing is asked yet."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._address = ANYWHERE.get(host, host), port
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._usable = True

    def __call__(self) -> bool:
        """Ask."""
        if not self._usable:
            return True
        try:
            return self._asked()
        finally:
            self._usable = _LIBC.connect(self._socket.fileno(), _NOWHERE, len(_NOWHERE)) == 0

    def _asked(self) -> bool:
        line = socket.socket(fileno=os.dup(self._socket.fileno()))
        try:
            line.settimeout(KNOCK_S)
            line.connect(self._address)
            line = _unverified().wrap_socket(line)
            connection = http.client.HTTPConnection(*self._address)
            connection.sock = line
            connection.request("GET", "/health")
            connection.getresponse()
        except (TimeoutError, ConnectionRefusedError):
            return False
        except (OSError, http.client.HTTPException):  # it closed the line: it is awake
            return True
        finally:
            with suppress(OSError):
                line.close()
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        """For ``with``."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _unverified() -> ssl.SSLContext:
    # nothing is said that anybody could use, and who answers is not believed in anything else
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _stamp(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_ino
    return None
