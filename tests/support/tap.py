"""A man in the middle with the operator's own key: every byte that reaches the gateway, in clear; a cable to pull.

Sites connect to the tap instead of the gateway. It ends their TLS, writes down what they say and what they are told,
and speaks TLS to the gateway. ``cut`` swallows everything both ways, as a dead network does: no reset, no close.

Example:
    with Tap(port, upstream=gateway_port, keys=folder / "keys") as tap:
        ...
    assert b"canary" not in tap.heard()
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

CHUNK = 1 << 16


@dataclass
class Tap:
    """Listens on a loopback port; ``close`` ends its thread and every connection."""

    port: int
    upstream: int
    keys: Path
    up: list[bytes] = field(default_factory=list)
    down: list[bytes] = field(default_factory=list)
    _open: threading.Event = field(default_factory=threading.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _listening: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        """Listen."""
        self._open.set()
        self._thread = threading.Thread(target=self._run, name=f"tap-{self.port}", daemon=True)
        self._thread.start()
        assert self._listening.wait(10), "the tap does not listen"
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        assert self._loop and self._thread
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        """Pull the cable."""
        self._open.clear()

    def mend(self) -> None:
        """Put it back."""
        self._open.set()

    def heard(self) -> bytes:
        """Everything that sites said so far."""
        return b"".join(self.up)

    def _run(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: None)
        self._loop.run_until_complete(self._listen())
        self._loop.run_forever()
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _listen(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.keys / "server.pem", self.keys / "server.key")
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)
        self._listening.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            context = ssl.create_default_context(cafile=str(self.keys / "ca.pem"))
            there = await asyncio.open_connection("127.0.0.1", self.upstream, ssl=context, server_hostname="localhost")
            await asyncio.gather(
                self._pump(reader, there[1], self.up), self._pump(there[0], writer, self.down), return_exceptions=True
            )
            there[1].close()
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: list[bytes]) -> None:
        while data := await reader.read(CHUNK):
            while not self._open.is_set():
                await asyncio.sleep(0.1)
            record.append(data)
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
