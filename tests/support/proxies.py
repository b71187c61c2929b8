"""HTTP proxies: an honest one that tunnels CONNECT, and one that opens TLS with a certificate of its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(kw_only=True)
class Proxy:
    """A proxy on the loopback and the lines that it was asked."""

    address: str
    asked: list[str] = field(default_factory=list)
    status: bytes = b"200 OK"
    opens_tls: Path | None = None
    inside: list[bytes] = field(default_factory=list)


@contextmanager
def proxying(*, opens_tls: Path | None = None, status: bytes = b"200 OK") -> Iterator[Proxy]:
    """Run one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        proxy = Proxy(address=f"http://{host}:{port}", opens_tls=opens_tls, status=status)
        threading.Thread(target=_accept, args=(listener, proxy), daemon=True).start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, proxy: Proxy) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_serve, args=(client, proxy), daemon=True).start()


def _serve(client: socket.socket, proxy: Proxy) -> None:
    with client, contextlib.suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        proxy.asked.append(head.decode())
        client.sendall(b"HTTP/1.1 " + proxy.status + b"\r\n\r\n")
        if not proxy.status.startswith(b"200"):
            return
        if proxy.opens_tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(proxy.opens_tls)
            with context.wrap_socket(client, server_side=True) as opened:
                proxy.inside.append(opened.recv(4096))
            return
        host, port = head.split()[1].decode().rsplit(":", 1)
        with socket.create_connection((host, int(port))) as server:
            there = threading.Thread(target=_copy, args=(client, server), daemon=True)
            there.start()
            _copy(server, client)
            there.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
