"""``start``, ``status`` and ``stop``, as far as they go without real processes; tests/deployment starts those."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from fedward_client.commands import running
from fedward_client.commands.running import halt, start, start_in_background, status
from fedward_client.courier.faults import State
from fedward_client.courier.folder import CourierFile, CourierFolder
from fedward_client.courier.status import Status
from fedward_client.door.credentials import Pair
from fedward_client.door.place import Place
from fedward_client.installation.folder import Folder
from fedward_client.trainer.service import TrainerServer
from fedward_common.errors import FedwardError, InputError, OutputError
from fedward_common.machine.holding import hold
from support.accounts import NOBODY, another_account, needs_root
from support.hospital import Hospital
from support.operating import new_operator
from support.trainer import short_folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("running")
    made = Hospital.make(root).root
    ca_pem = (new_operator(root / "op").keys / "ca.pem").read_bytes()
    file = CourierFile.model_validate(
        {"schema": 1, "name": "st-elsewhere", "server": "localhost:1", "door": str(made / "door" / "door.sock")}
    )
    CourierFolder.create(made / "courier", file, ca_pem=ca_pem)
    return made


def test_a_site_that_does_not_run_says_how_to_start_it(site: Path) -> None:
    report = status(site, None)
    assert isinstance(report.problem, InputError)
    assert "fedward-client start" in report.problem.hint
    assert report.facts["pid"] is None and report.facts["held_runs"] == []


def test_what_a_crash_left_behind_is_not_believed(site: Path) -> None:
    stale = {"pid": 4_000_000, "children": [{"name": "trainer", "state": "running", "pid": 7}]}
    (site / "processes.json").write_text(json.dumps(stale))
    with hold(site / "start.lock"):
        assert status(site, None).facts["processes"] == []


@pytest.mark.parametrize("kind", ["pipe", "endless", "link", "nonsense", "nested"])
def test_a_courier_that_was_taken_over_cannot_hang_or_break_who_reads_its_status(site: Path, kind: str) -> None:
    target = site / "courier" / "state" / "status.json"
    target.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "endless":
        target.symlink_to("/dev/zero")
    elif kind == "link":
        target.symlink_to(site / "keys" / "signing.key")
    elif kind == "nested":
        target.write_text("[" * 60_000)
    else:
        target.write_text('{"schema": 1, "state": "connected", "since": 1e300, "reason": "\\u001b[2J"}')
    try:
        assert CourierFolder.status(site / "courier") is None
        assert CourierFolder.deafness(site / "courier") is None
        assert status(site, None).facts["courier"] is None
    finally:
        target.unlink()


def test_a_log_that_was_made_to_break_its_reader_says_nothing(site: Path) -> None:
    (site / "logs").mkdir(exist_ok=True)
    log = site / "logs" / "courier.log"
    log.write_text("[" * 60_000 + "\n")
    try:
        assert status(site, None).facts["courier"] is None
    finally:
        log.unlink()


def told(site: Path, *, hint: str) -> None:
    """Write what a courier in this process says of itself."""
    now = time.time()
    status = Status(
        state=State.CONNECTED, since=now, server="localhost:1", version="1", pid=os.getpid(), alive_at=1.0,
        contact_at=1.0, hint=hint,
    )  # fmt: skip
    (site / "courier" / "state" / "status.json").write_text(status.to_json())


def test_a_hint_of_a_connected_courier_is_shown(site: Path) -> None:
    told(site, hint="the trainer does not answer; it may be starting, see its log")
    with hold(site / "courier" / "state" / "lock"):
        (line,) = (line for line in status(site, None).lines if line.startswith("link"))
    assert line.endswith(": the trainer does not answer; it may be starting, see its log")


# ---- two accounts ------------------------------------------------------------------------
def test_a_courier_in_a_folder_that_was_not_named_is_not_seen_and_not_called_dead(site: Path) -> None:
    (site / "courier").rename(site / "elsewhere")
    try:
        with hold(site / "serving"):
            report = status(site, None)
            assert "cannot be seen" in str(report.problem) and "--courier" in report.problem.hint  # type: ignore[union-attr]
            told_lines = dict(line.split("  ", 1) for line in report.lines)
            assert told_lines["plans"].strip() == "are taken"
            assert "cannot be seen" in told_lines["link"]
    finally:
        (site / "elsewhere").rename(site / "courier")


@needs_root
def test_a_courier_s_folder_of_another_account_is_not_seen_and_not_called_dead(site: Path) -> None:
    with short_folder() as folder:
        folder.chmod(0o755)
        root, courier = folder / "site", folder / "courier"
        shutil.copytree(site, root)
        (root / "courier").rename(courier)
        for path in (root, *root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        with another_account(), hold(root / "serving"):
            report = status(root, courier)
    assert "cannot be seen" in str(report.problem) and "as root" in report.problem.hint  # type: ignore[union-attr]


@needs_root
def test_a_site_of_another_account_is_an_error_with_a_hint(site: Path) -> None:
    with another_account(), pytest.raises(OutputError, match="may not look into") as caught:
        status(site, None)
    assert "as root" in caught.value.hint


# ---- plans are taken -----------------------------------------------------------------------
def test_a_socket_alone_is_no_site_that_takes_plans(site: Path) -> None:
    folder, place = Folder.open(site), Place.at_site(site)
    place.prepare()
    server = TrainerServer(place, Pair.make().trainer, max_update_bytes=1)  # as while the site is opened
    try:
        with running._children(folder, site / "courier") as (trainer, _):
            assert trainer.ready is not None and not trainer.ready()
            assert status(site, None).facts["takes_plans"] is False
            with hold(site / "serving"):
                assert trainer.ready()
                assert status(site, None).facts["takes_plans"] is True
    finally:
        server.close()


@pytest.mark.slow
def test_a_site_that_ends_once_its_books_are_read_is_never_called_started(site: Path) -> None:
    ledger = site / "books" / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:-10])
    try:
        with pytest.raises(InputError, match="the ledger"):
            start_in_background(site, None)
    finally:
        halt(site)
        ledger.write_bytes(whole)


def test_a_status_with_times_that_cannot_be_is_none() -> None:
    good = Status(server="localhost:1", version="1", pid=7, since=0.0, alive_at=1.0, contact_at=1.0)
    assert Status.from_json(good.to_json()) == good
    for key, value in (("since", 1e300), ("alive_at", -1.0), ("reason", "x" * 5000), ("server", 3)):
        assert Status.from_json(json.dumps({**json.loads(good.to_json()), key: value})) is None


def test_starting_needs_a_courier_folder_and_an_open_ledger(site: Path, tmp_path: Path) -> None:
    with pytest.raises(FedwardError, match="cannot read"):
        start(site, tmp_path / "nowhere")
    fresh = Folder.create(tmp_path / "fresh", name="fresh")
    fresh.site_file.write_bytes((site / "site.toml").read_bytes())
    with pytest.raises(InputError, match="ledger is not open"):
        start(fresh.root, site / "courier")


def test_a_second_start_names_the_first(site: Path) -> None:
    with hold(site / "start.lock"), pytest.raises(InputError, match=f"process {os.getpid()} is running already"):
        start(site, None)


def test_stopping_what_does_not_run_is_no_error(site: Path) -> None:
    assert halt(site).facts["outcome"] == "not running"


def test_neither_process_gets_more_of_the_environment_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("HF_TOKEN", "secret")
    given = running._environment(*running.KEPT, *running.FOR_TRAINING)
    assert not {"SSH_AUTH_SOCK", "HF_TOKEN"} & set(given)
    assert given["HF_HUB_OFFLINE"] == "1"
