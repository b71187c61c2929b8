from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest

from fedward_client.trainer import isolation
from fedward_client.trainer.isolation import Isolation, verify
from fedward_common.errors import PrivacyError

PROGRAM = """
import json, socket, sys
from fedward_client.trainer.isolation import isolate, verify
found = isolate()
import resource
from fedward_common.machine.kernel import prctl
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    made = True
except OSError:
    made = False
early = sorted({"numpy", "torch", "grpc", "pydantic"} & set(sys.modules))
print(json.dumps([found.namespace, found.filter, found.inherited, verify() == found, made,
                  resource.getrlimit(resource.RLIMIT_CORE)[1], prctl(3, 0, 0, 0, 0), early]))
"""


def isolated(*before: str, pass_fds: Sequence[int] = ()) -> list[object]:
    done = subprocess.run(
        [*before, sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        pass_fds=tuple(pass_fds),
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_a_process_is_cut_off_by_both_mechanisms_and_found_so_from_inside() -> None:
    assert isolated() == [True, True, False, True, False, 0, 0, []]


def test_a_namespace_that_was_empty_already_is_as_good() -> None:
    try:
        subprocess.run(["unshare", "--net", "true"], check=True, capture_output=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs unshare, and the right to use it")
    assert isolated("unshare", "--net")[:3] == [True, True, False]


def test_a_socket_that_was_handed_over_is_found() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as open_one:
        assert isolated(pass_fds=[open_one.fileno()])[:3] == [True, True, True]


def test_this_process_which_is_not_isolated_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "has_network", lambda: True)
    assert not verify().holds


def test_either_mechanism_is_enough_and_a_socket_from_before_undoes_both() -> None:
    for namespace, filtered in ((True, True), (True, False), (False, True)):
        assert Isolation(namespace=namespace, filter=filtered, inherited=False).holds
        assert not Isolation(namespace=namespace, filter=filtered, inherited=True).holds
    assert not Isolation(namespace=False, filter=False, inherited=False).holds


def test_what_cannot_be_told_does_not_count_as_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> bool:
        raise PrivacyError("cannot tell", hint="mount /proc")

    monkeypatch.setattr(isolation, "has_network", unknown)
    monkeypatch.setattr(isolation, "internet_sockets", unknown)
    monkeypatch.setattr(isolation, "may_open_internet_socket", lambda: False)
    assert verify() == Isolation(namespace=False, filter=True, inherited=True)
