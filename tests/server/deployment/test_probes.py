from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import fedward_server.deployment.probes as module
from fedward_common.machine.namespaces import Network
from fedward_server.deployment.authority import NEXT_KEY, Authority, create_authority
from fedward_server.deployment.probes import Changed, Knock, Missed, Renewed, Silent, first_of

NAMES = ("localhost",)


def test_the_first_trouble_is_told() -> None:
    assert first_of(lambda: None, lambda: "a", lambda: "b")() == "a"
    assert first_of(lambda: None)() is None


def test_three_misses_in_a_row_are_trouble_and_no_others() -> None:
    answers = iter([False, False, True, False, False, False, False])
    looks = Missed(lambda: next(answers))
    assert [looks() is None for _ in range(7)] == [True, True, True, True, True, False, True]


def test_a_file_changed_when_it_was_written_since_whatever_the_clock_says(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = Changed(path)
    assert not before()
    path.touch()
    assert before()
    after = Changed(path)
    assert not after()
    os.utime(path, (0, 0))
    assert after()


def test_a_file_that_is_left_alone_is_silence(tmp_path: Path) -> None:
    now, path = 0.0, tmp_path / "beat"
    silent = Silent(path, limit_s=10, clock=lambda: now)
    seen = []
    for now in (9.0, 10.0, 11.0, 19.0):
        if now == 9.0:
            path.touch()
        seen.append(silent())
    assert seen == [None, None, None, "no sign of life for 10 s"]
    assert silent() is None, "said once a life"


def test_a_renewal_is_told_once_and_not_before_its_key_is_there(tmp_path: Path) -> None:
    keys = create_authority(tmp_path / "keys", name="lung", names=NAMES)
    watch = Renewed(keys)
    assert watch() is None
    Authority.open(keys.folder).renew(NAMES)
    (keys.folder / NEXT_KEY).touch()
    assert watch() is None
    (keys.folder / NEXT_KEY).unlink()
    assert [watch(), watch()] == ["the certificate was renewed", None]
    keys.certificate_file.unlink()
    assert watch() is None


class Server:
    """A TLS server that treats each connection as it is told."""

    def __init__(self, keys: Authority, treat: Callable[[socket.socket], None]) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(keys.certificate_file, keys.server_key)
        self.treat, self.met = treat, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.met += 1
                with suppress(OSError), connection:
                    self.treat(connection)

    def answer(self, status: str) -> Callable[[socket.socket], None]:
        def treat(connection: socket.socket) -> None:
            with self.context.wrap_socket(connection, server_side=True) as line:
                assert line.recv(1000).startswith(b"GET /health ")
                line.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())

        return treat

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def keys(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "keys", name="lung", names=NAMES)


@pytest.mark.parametrize("status", ["200 OK", "503 Service Unavailable", "closed"])
def test_any_answer_is_one_again_and_again_through_one_socket(keys: Authority, status: str) -> None:
    server = Server(keys, socket.socket.close)
    if status != "closed":
        server.treat = server.answer(status)
    with Knock("0.0.0.0", server.port) as knock:  # noqa: S104
        assert [knock() for _ in range(3)] == [True] * 3
        assert (server.met, knock._usable) == (3, True)
    server.close()


def test_silence_and_nobody_are_none(keys: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KNOCK_S", 0.2)
    server = Server(keys, lambda connection: time.sleep(0.5))
    with Knock("127.0.0.1", server.port) as knock:
        assert [knock(), knock()] == [False, False]
        time.sleep(1.0)
        server.treat = server.answer("200 OK")
        assert knock()
        server.close()
        assert not knock()


def test_where_this_system_takes_no_socket_twice_it_finds_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def connect(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(module, "_LIBC", Refusing())
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
    with Knock("127.0.0.1", port) as knock:
        assert [knock(), knock(), knock()] == [False, True, True]


IN_ANOTHER_NETWORK = """
import socket, sys
from fedward_common.machine.namespaces import leave_network
from fedward_server.deployment.probes import Knock
port = int(sys.argv[1])
knock = Knock("127.0.0.1", port)
leave_network()
try:
    socket.create_connection(("127.0.0.1", port), timeout=1)
except OSError:
    print(knock(), knock())
"""


def test_it_asks_in_the_network_that_it_was_made_in(keys: Authority) -> None:
    assert Network.LOOPBACK
    server = Server(keys, socket.socket.close)
    server.treat = server.answer("200 OK")
    argv = [sys.executable, "-c", IN_ANOTHER_NETWORK, str(server.port)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    server.close()
    if "PrivacyError" in done.stderr or "PermissionError" in done.stderr:
        pytest.skip("this system allows no network namespace")
    assert (done.stdout.strip(), server.met) == ("True True", 2), done.stderr
