from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fedward_client.commands.machine as module
from fedward_client.commands.machine import weaknesses
from fedward_client.courier.status import Wall
from support.kernels import walls_here

MODULE_NAMESPACES = Path("/proc/self/ns/net")
ALL = set(Wall)
_really_cut_off, _really_walls = module._cut_off, module._walls


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told, not tried: a process for each test would take long."""
    monkeypatch.setattr(module, "_cut_off", lambda: (True, True))
    monkeypatch.setattr(module, "_walls", lambda: ALL)


def names(folder: Path, data: Path) -> set[str]:
    return {weakness.name for weakness in weaknesses(folder, data)}


def test_what_no_program_can_mend_is_always_said(tmp_path: Path) -> None:
    assert {"root", "own_account", "at_rest"} <= names(tmp_path, tmp_path / "data.csv")


@pytest.mark.parametrize(
    ("namespace", "filter", "said"),
    [
        (True, True, None),
        (True, False, "by an empty network namespace alone: a seccomp filter against sockets is not there"),
        (False, True, "by a seccomp filter against sockets alone: an empty network namespace is not there"),
        (False, False, "the trainer does not start"),
    ],
)
def test_what_does_not_cut_the_trainer_off_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: bool, filter: bool, said: str | None
) -> None:
    monkeypatch.setattr(module, "_cut_off", lambda: (namespace, filter))
    found = {weakness.name: weakness.text for weakness in weaknesses(tmp_path, tmp_path / "data.csv")}
    assert ("network" in found) is (said is not None)
    assert (said or "") in found.get("network", "")


def test_whether_a_process_can_be_cut_off_is_tried_in_one_of_its_own() -> None:
    before = MODULE_NAMESPACES.readlink()
    assert _really_cut_off() == _in_a_child()
    assert MODULE_NAMESPACES.readlink() == before


def _in_a_child() -> tuple[bool, bool]:
    """The same, without ``check``'s code: unshare and the kernel's list of what seccomp can do."""
    from fedward_common.machine.exec import command
    from fedward_common.machine.namespaces import Network

    left = subprocess.run(command((sys.executable, "-c", ""), network=Network.NONE), capture_output=True, check=False)
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    return left.returncode == 0, actions.exists() and "errno" in actions.read_text()


@pytest.mark.parametrize("program", ["import sys; sys.exit(1)", "print()", "raise OSError", "print('True')"])
def test_a_probe_that_fails_counts_as_not_cut_off(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(module, "PROBE", program)
    assert not all(_really_cut_off())


@pytest.mark.parametrize(
    ("abi", "walls", "said"),
    [
        (0, {Wall.SECCOMP}, "no Landlock: a courier of the same account that was taken over can read data and keys"),
        (0, {Wall.VIEW}, "no Landlock: a courier of the same account that was taken over can connect to any server"),
        (3, ALL, "knows no ports"),
        (5, ALL, "knows no signals"),
        (6, ALL, None),
        (7, {Wall.LANDLOCK, Wall.SECCOMP}, None),
        (7, {Wall.LANDLOCK, Wall.VIEW}, "by MPTCP"),
    ],
)
def test_what_landlock_does_not_do_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abi: int, walls: set[Wall], said: str | None
) -> None:
    monkeypatch.setattr(module, "landlock_abi", lambda: abi)
    monkeypatch.setattr(module, "_walls", lambda: walls)
    found = {weakness.name: weakness.text for weakness in weaknesses(tmp_path, tmp_path / "data.csv")}
    assert ("courier" in found) is (said is not None)
    assert (said or "") in found.get("courier", "")


@pytest.mark.parametrize(
    ("walls", "said"),
    [
        (ALL, {}),
        ({Wall.VIEW}, {}),
        ({Wall.SECCOMP, Wall.LANDLOCK}, {"courier_sockets": "sockets of its other programs (tmux, systemd --user,"}),
        ({Wall.LANDLOCK}, {"courier_sockets": "have these read data and keys", "courier_modes": "(chmod)"}),
    ],
)
def test_what_another_program_or_chmod_would_do_for_a_courier_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walls: set[Wall], said: dict[str, str]
) -> None:
    monkeypatch.setattr(module, "_walls", lambda: walls)
    found = {weakness.name: weakness.text for weakness in weaknesses(tmp_path, tmp_path / "data.csv")}
    assert said.keys() == {"courier_sockets", "courier_modes"} & found.keys()
    assert all(text in found[name] for name, text in said.items())


def test_the_walls_are_tried_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = MODULE_NAMESPACES.readlink()
    assert _really_walls() == set(walls_here())
    assert MODULE_NAMESPACES.readlink() == before
    for program in ("import sys; sys.exit(1)", "print()", "raise OSError"):
        monkeypatch.setattr(module, "PROBE_WALLS", program)
        assert _really_walls() == set()


@pytest.mark.parametrize(
    ("file", "above", "found"),
    [
        (0o604, [0o701, 0o755], True),
        (0o640, [0o710, 0o755], True),
        (0o604, [0o700, 0o755], False),
        (0o644, [0o700, 0o755], False),
        (0o600, [0o755, 0o755], False),
    ],
)
def test_a_data_file_that_other_accounts_can_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int, above: list[int], found: bool
) -> None:
    data = tmp_path / "data.csv"
    data.touch()
    data.chmod(file)
    monkeypatch.setattr(module, "_above", lambda path: above)
    assert ("other_accounts" in names(tmp_path, data)) is found


@pytest.mark.parametrize(
    ("kind", "found"), [("tmpfs", True), ("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("overlay", False)]
)
def test_a_file_system_that_does_not_hold_what_it_is_told_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, found: bool
) -> None:
    monkeypatch.setattr(module, "_kind_of", lambda folder: kind)
    assert ("file_system" in names(tmp_path, tmp_path / "data.csv")) is found


def test_a_process_that_may_be_dumped_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_prctl", lambda option: 1)
    assert "core_dumps" in names(tmp_path, tmp_path / "data.csv")
    monkeypatch.setattr(module, "_prctl", lambda option: 0)
    assert "core_dumps" not in names(tmp_path, tmp_path / "data.csv")
