from __future__ import annotations

import os
import re
import signal
import socket
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fedward_server.deployment.desk as desk_module
import fedward_server.deployment.start as module
import fedward_server.gateway.process as gateway_module
from fedward_common.errors import ConfigError, InputError, PrivacyError
from fedward_common.files import rewrite_json
from fedward_common.machine.life import Child
from fedward_common.machine.logs import restored
from fedward_common.machine.processes import Ended
from fedward_server.deployment.authority import Authority
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.server_file import Namespace
from fedward_server.deployment.start import children, listen, start
from support.operating import new_operator


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path) -> OperatorFolder:
    made = new_operator(tmp_path / "op")
    text = made.server_file.read_text()
    for port in (8443, 8000, 9400):
        text = text.replace(f"port = {port}", f"port = {free_port()}")
    made.server_file.write_text(text.replace('"0.0.0.0"', '"127.0.0.1"').replace('"auto"', '"off"'))
    return made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The children of each supervisor, which runs none."""
    seen: list[Any] = []

    def supervisor(made: list[Any], *, status: Path) -> SimpleNamespace:
        seen.append(made)
        return SimpleNamespace(run=lambda: Ended(None, 0))

    monkeypatch.setattr(module, "Supervisor", supervisor)
    return seen


def test_three_children_in_the_order_of_their_start(folder: OperatorFolder, ran: list[Any]) -> None:
    assert start(folder, verbose=False) == 0
    assert [child.name for child in ran[0]] == ["superlink", "desk", "gateway"]
    assert folder.holder() is None


def test_no_secret_is_on_a_command_line(folder: OperatorFolder, ran: list[Any]) -> None:
    start(folder, verbose=True)
    secret = folder.authority().executor_secret()
    assert not any(secret in part.encode() or secret.hex() in part for child in ran[0] for part in child.argv)


@pytest.mark.parametrize("key", ["gateway", "metrics", "superlink"])
def test_a_port_that_is_in_use_is_an_error_before_any_process_starts(
    folder: OperatorFolder, ran: list[Any], key: str
) -> None:
    port = getattr(folder.load_server(), key).port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(InputError, match=rf":{port}") as caught:
        start(folder, verbose=False)
    assert f"{key}.port" in caught.value.hint
    assert not ran


def test_an_expired_certificate_is_an_error_before_any_process_starts(
    folder: OperatorFolder, ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = SimpleNamespace(not_after=datetime.now(UTC) - timedelta(days=1))
    monkeypatch.setattr(Authority, "certificate", lambda _: expired)
    with pytest.raises(PrivacyError, match="expired on") as caught:
        start(folder, verbose=False)
    assert "renew" in caught.value.hint
    assert not ran


def test_a_second_start_is_an_error_before_any_process_starts(folder: OperatorFolder, ran: list[Any]) -> None:
    with folder.hold(), pytest.raises(InputError, match="running already"):
        start(folder, verbose=False)
    assert not ran


def test_the_weakness_is_named_where_there_is_no_namespace(
    folder: OperatorFolder, ran: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(folder, verbose=False)
    assert "every local account" in capsys.readouterr().err
    monkeypatch.setattr(module, "command", lambda *_, **__: ["false"])
    monkeypatch.setattr(module, "leave_network", lambda: pytest.fail("left"))
    module._leave(Namespace.AUTO)
    assert "every local account" in capsys.readouterr().err


def test_it_leaves_the_network_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(module, "command", lambda *_, **__: ["true"])
    monkeypatch.setattr(module, "leave_network", lambda: done.append("left"))
    monkeypatch.setattr(module, "bring_up_loopback", lambda: done.append("loopback"))
    module._leave(Namespace.AUTO)
    assert done == ["left", "loopback"]


def test_the_gateway_is_ready_once_it_says_so_and_that_is_said_once(
    folder: OperatorFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    server = folder.load_server()
    with listen("127.0.0.1", server.gateway.port, key="gateway.port") as public:
        ready = children(folder, server, public=public, metrics=None, knock=lambda: True)[2].ready
        assert ready is not None
        assert not ready()
        folder.gateway_ready.touch()
        assert ready() and ready()
    said = capsys.readouterr().out
    assert len(re.findall("listening on", said)) == 1
    assert server.address in said


def test_the_gateway_waits_until_sites_are_registered(folder: OperatorFolder) -> None:
    rewrite_json(folder.sites_file, {"of": "a former start, by a clock that was ahead"})
    ahead = datetime.now(UTC).timestamp() + 3600
    os.utime(folder.sites_file, (ahead, ahead))
    ready = made(folder)[1].ready
    assert ready is not None
    assert not ready()
    rewrite_json(folder.sites_file, {})
    assert ready()


def made(folder: OperatorFolder, *, answers: bool = True) -> list[Child]:
    server = folder.load_server()
    with listen("127.0.0.1", server.gateway.port, key="gateway.port") as public:
        return children(folder, server, public=public, metrics=None, knock=lambda: answers)


def looked(child: Child, times: int = 3) -> str | None:
    """What its watch says in the end."""
    assert child.watch is not None
    return [child.watch() for _ in range(times)][-1]


def test_a_child_that_lives_and_does_nothing_is_started_again(
    folder: OperatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.01)
    superlink, desk, gateway = made(folder, answers=False)  # nobody listens where the SuperLink should
    assert looked(superlink, 2) is None
    assert "did not answer" in str(looked(superlink, 1))
    assert "did not answer" in str(looked(gateway))
    time.sleep(0.02)
    assert "no sign of life" in str(looked(desk, 1))


def test_none_is_started_again_because_of_another_ones_trouble_nor_because_the_clock_was_set(
    folder: OperatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "healthy", lambda _: True)
    folder.sites_file.unlink(missing_ok=True)  # as while the SuperLink is away
    folder.desk_beat.touch()
    os.utime(folder.desk_beat, (0, 0))
    assert [looked(child, 6) for child in made(folder)] == [None, None, None]


def test_the_superlink_takes_a_renewed_certificate(folder: OperatorFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "healthy", lambda _: True)
    superlink = made(folder)[0]
    assert looked(superlink) is None
    folder.authority().renew(("fed.example.org",))
    assert looked(superlink, 1) == "the certificate was renewed"
    assert looked(superlink) is None


def test_a_process_that_is_started_again_goes_on_with_the_server_file_as_it_was_at_start(
    folder: OperatorFolder, ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.server_file.write_text(folder.server_file.read_text().replace("restarts = 5", "restarts = 7"))
    start(folder, verbose=False)
    folder.server_file.write_text("a slip of the pen")
    _, desk, gateway = ran[0]
    seen: list[int] = []

    def looked_at(*_: object, restarts: int, **__: object) -> None:
        seen.append(restarts)
        raise InputError("enough", hint="none")

    monkeypatch.setattr(desk_module, "Desk", looked_at)
    monkeypatch.setattr(gateway_module, "asyncio", SimpleNamespace(run=lambda told: told.close()))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with restored():
        desk_module.main(desk.argv[4:])
        assert gateway_module.main(gateway.argv[4:]) == 0
    assert seen == [7]


def test_what_start_keeps_of_the_server_file_is_private_and_checked_first(
    folder: OperatorFolder, ran: list[Any]
) -> None:
    start(folder, verbose=False)
    before = folder.server_copy.read_bytes()
    assert before == folder.server_file.read_bytes()
    assert stat.S_IMODE(folder.server_copy.stat().st_mode) == 0o600
    folder.server_file.write_text("a slip of the pen")
    with pytest.raises(ConfigError):
        start(folder, verbose=False)
    assert (folder.server_copy.read_bytes(), len(ran)) == (before, 1)


def test_two_operators_on_one_port_are_an_error_before_any_process_starts(
    folder: OperatorFolder, ran: list[Any]
) -> None:
    server = folder.load_server()
    for table in (server.gateway, server.metrics):
        # as another `start` holds it, whose gateway is not up yet
        with listen(table.host, table.port, key="theirs"), pytest.raises(InputError, match=f":{table.port}"):
            start(folder, verbose=False)
    assert not ran


def test_an_unknown_address_is_named() -> None:
    with pytest.raises(InputError, match=r"192\.0\.2\.9"):
        listen("192.0.2.9", free_port(), key="gateway.port")
