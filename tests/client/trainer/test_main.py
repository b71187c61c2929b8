"""A real trainer's process on a real site: who gets in, what it cannot reach, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedward_client.books import journal
from fedward_client.door.credentials import Pair, Published
from fedward_client.door.parts import HEADER_ROOM
from fedward_client.door.place import SERVING, Place, listening
from fedward_client.door.stub import RemoteDoor
from fedward_client.installation.folder import Folder
from fedward_client.installation.opening import open_site
from fedward_client.trainer import main as trainer_main
from fedward_client.trainer.isolation import Isolation
from fedward_client.trainer.main import AGAIN, CUT_OFF, WRONG
from fedward_common.errors import DoorClosed, DoorRefused, OutputError
from fedward_common.machine.holding import holder
from fedward_common.machine.logs import restored
from fedward_common.round import Code
from support.crashes import FailingFiles
from support.hospital import PLAIN, Hospital
from support.trainer import TrainerProcess, short_folder, with_slots

pytestmark = pytest.mark.slow
CLIENT = [sys.executable, "-m", "fedward_client"]
IMPORTS = """
import json, sys
import fedward_client.trainer.main, fedward_client.trainer.service, fedward_client.installation.opening
import fedward_client.training, fedward_client.trainer.turns
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Hospital]:
    with short_folder() as folder:
        yield with_slots(Hospital.make(folder, stages=PLAIN))


@contextlib.contextmanager
def copied(made: Hospital) -> Iterator[Hospital]:
    """A fresh copy of one site's folder, with the same keys."""
    with short_folder() as folder:
        shutil.copytree(made.root, folder / "site")
        yield Hospital(root=folder / "site", operator=made.operator, keys=made.keys, bundle=made.bundle)


@pytest.fixture
def hospital(made: Hospital) -> Iterator[Hospital]:
    with copied(made) as one:
        yield one


@pytest.fixture(scope="module")
def running(made: Hospital) -> Iterator[TrainerProcess]:
    with copied(made) as one, TrainerProcess(one) as trainer:
        trainer.ready()
        yield trainer


# ---- a plan through the Door -----------------------------------------------------------
def test_a_plan_is_answered_from_outside_of_the_trainers_namespace(running: TrainerProcess) -> None:
    hospital, door = running.hospital, running.door
    assert os.readlink("/proc/self/ns/net") != os.readlink(f"/proc/{running.process.pid}/ns/net")
    reply = door.answer(hospital.plan_bytes())
    assert hospital.code(reply) is None
    began = time.monotonic()
    assert door.answer(hospital.plan_bytes()) == reply  # from the outbox, and yet after a whole slot
    assert 1 <= time.monotonic() - began < 2
    began = time.monotonic()
    assert door.answer(b"no plan") != reply
    assert 1 <= time.monotonic() - began < 2


def test_the_trainer_has_no_interface_but_loopback(running: TrainerProcess) -> None:
    lines = Path(f"/proc/{running.process.pid}/net/dev").read_text().splitlines()[2:]
    assert {line.partition(":")[0].strip() for line in lines} <= {"lo"}
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    assert re.search(r"(?m)^Seccomp:\t2$", status) and re.search(r"(?m)^NoNewPrivs:\t1$", status)


def test_two_couriers_are_answered(running: TrainerProcess) -> None:
    hospital = running.hospital
    plans = [hospital.plan_bytes(round=1), hospital.plan_bytes(round=2)]
    with ThreadPoolExecutor(2) as both:
        doors = [running.door, running.door]
        replies = list(both.map(lambda door, plan: door.answer(plan), doors, plans))
    assert [hospital.code(reply) for reply in replies] == [None, None]


def test_a_message_that_is_too_large_is_refused_at_once(running: TrainerProcess) -> None:
    limit = 256 * 2**20 + HEADER_ROOM
    with pytest.raises(DoorRefused, match="too large"):
        running.door.answer(bytes(limit + 1))


def test_wrong_credentials_are_refused(running: TrainerProcess) -> None:
    with pytest.raises(DoorRefused, match="does not know this courier"):
        RemoteDoor(running.place.socket, Pair.make().courier).answer(b"plan")
    assert running.door.ready()


def test_a_second_trainer_on_the_same_site_ends_with_a_hint(running: TrainerProcess) -> None:
    with TrainerProcess(running.hospital) as second:
        assert second.process.wait(60) == AGAIN
        assert "another trainer answers" in second.log()
    assert running.door.ready()


def test_whoever_asks_is_told_that_plans_are_taken_once_the_site_is_open_and_no_longer_than_the_process_lives(
    hospital: Hospital,
) -> None:
    with TrainerProcess(hospital) as trainer:
        while not listening(trainer.place.socket):
            assert trainer.process.poll() is None, trainer.log()
        opened = trainer.door.ready()
        assert opened or holder(hospital.root / SERVING) is None
        trainer.ready()
        assert holder(hospital.root / SERVING) == trainer.process.pid
        trainer.kill()
        assert holder(hospital.root / SERVING) is None


# ---- crashes ---------------------------------------------------------------------------
def begun(hospital: Hospital) -> None:
    """Wait until a round is marked started in the ledger: data is being opened."""
    ledger, end = hospital.root / "books" / "ledger.jsonl", time.monotonic() + 60
    while b'"start"' not in ledger.read_bytes():
        assert time.monotonic() < end, "no round has started"
        time.sleep(0.002)


def test_a_round_killed_on_its_way_is_held_until_the_sites_operator_clears_it(hospital: Hospital) -> None:
    with TrainerProcess(hospital, training_s=5.0) as first, ThreadPoolExecutor(1) as calls:
        call = calls.submit(first.ready().answer, hospital.plan_bytes())
        begun(hospital)
        first.kill()
        with pytest.raises(DoorClosed):
            call.result(30)
        assert first.place.socket.exists()  # it could not tidy up
    with TrainerProcess(hospital) as second:
        door = second.ready()
        assert hospital.code(door.answer(hospital.plan_bytes())) is Code.UNAVAILABLE
        assert hospital.code(door.answer(hospital.plan_bytes(round=2))) is Code.UNAVAILABLE
        busy = subprocess.run(
            [*CLIENT, "clear", hospital.bundle.run_id, str(hospital.root)], capture_output=True, timeout=60
        )
        assert busy.returncode == 2 and b"in use" in busy.stderr
        assert second.end() == 0
    subprocess.run([*CLIENT, "clear", hospital.bundle.run_id, str(hospital.root)], check=True, timeout=60)
    with open_site(hospital.root) as third:
        assert hospital.code(third.answer(hospital.plan_bytes())) is Code.UNAVAILABLE  # spent, never trained again
        assert hospital.code(third.answer(hospital.plan_bytes(round=2))) is None


def test_sigterm_removes_the_socket_lets_a_round_end_and_its_reply_is_handed_over_after_the_next_start(
    hospital: Hospital,
) -> None:
    with TrainerProcess(hospital, training_s=5.0) as first, ThreadPoolExecutor(1) as calls:
        call = calls.submit(first.ready().answer, hospital.plan_bytes())
        begun(hospital)
        first.process.send_signal(signal.SIGTERM)
        with pytest.raises(DoorClosed):
            call.result(30)
        assert first.process.wait(60) == 0
        assert not first.place.socket.exists()
        lines = [json.loads(line) for line in first.log().splitlines()]
    messages = [line["message"] for line in lines]
    assert messages[0] == "empty namespace: True, sockets forbidden: True"
    assert messages[-1] == "ended"
    assert {line["process"] for line in lines} == {"trainer"}
    with open_site(hospital.root) as second:
        assert hospital.code(second.answer(hospital.plan_bytes())) is None
    audit = (hospital.root / "books" / "audit.jsonl").read_text()
    assert '"resend"' in audit


def test_a_round_that_outlasts_the_grace_is_cut_off_and_held(hospital: Hospital) -> None:
    short = (
        "import sys, time; from fedward_client.trainer import main; from fedward_client.training import LocalTrainer\n"
        "LocalTrainer.train = lambda *arguments: time.sleep(60)\n"
        "main.GRACE_S = 0.01; sys.exit(main.main(sys.argv[1:]))"
    )
    descriptor = (pair := Pair.make()).trainer.to_fd()
    arguments = [str(hospital.root), "--credentials-fd", str(descriptor)]
    process = subprocess.Popen([sys.executable, "-c", short, *arguments], pass_fds=[descriptor])
    os.close(descriptor)
    door = RemoteDoor(Place.at_site(hospital.root).socket, pair.courier)
    try:
        while not door.ready():
            time.sleep(0.1)
        with ThreadPoolExecutor(1) as calls:
            call = calls.submit(door.answer, hospital.plan_bytes())
            begun(hospital)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(DoorClosed):
                call.result(30)
        assert process.wait(30) == CUT_OFF
    finally:
        process.kill()
        process.wait()
    with open_site(hospital.root) as second:
        assert hospital.code(second.answer(hospital.plan_bytes())) is Code.UNAVAILABLE


# ---- a disk that refuses -------------------------------------------------------------------
def test_a_disk_that_refuses_ends_the_process_and_the_next_one_answers_the_same_plan(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, half = FailingFiles(steps=10**9, code=errno.ENOSPC), Pair.make()
    monkeypatch.setattr(journal, "Files", lambda: disk)
    place = Place.at_site(hospital.root)
    place.prepare()

    def ask() -> bytes:
        with RemoteDoor(place.socket, half.courier) as door:
            while not door.ready():
                time.sleep(0.05)
            disk.steps = 0
            return door.answer(hospital.plan_bytes())

    with ThreadPoolExecutor(1) as calls:
        call = calls.submit(ask)
        late = threading.Timer(
            60, os.kill, (os.getpid(), signal.SIGTERM)
        )  # or a trainer that goes on would do so for good
        late.start()
        with pytest.raises(OutputError, match="opened anew"):
            trainer_main._serve(hospital.root, Folder.open(hospital.root).load_site(), place, half.trainer)
        assert late.is_alive(), "it did not end by itself"
        late.cancel()
        with pytest.raises(DoorClosed):  # so the courier asks again
            call.result(30)
    assert "No space left on device" in caplog.text
    disk.steps = 10**9
    with open_site(hospital.root) as after:
        assert hospital.code(after.answer(hospital.plan_bytes())) is None


# ---- refused: no isolation, wrong arguments ------------------------------------------------
def failing(hospital: Hospital, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the process's main in this one, where nothing is isolated, up to the site; what it logged."""
    monkeypatch.setattr(trainer_main, "isolate", lambda: Isolation(namespace=False, filter=False, inherited=False))
    monkeypatch.setattr(trainer_main, "_serve", lambda *_: 0)
    with restored():
        code = trainer_main.main([str(hospital.root), "--publish-credentials"])
        said = capsys.readouterr().err
    return f"{code} {said}"


def test_without_isolation_nothing_is_opened(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    umask = os.umask(0o077)
    try:
        said = failing(hospital, monkeypatch, capsys)
        assert said.startswith(f"{WRONG} ") and "could not be cut off from the network" in said
        assert not Place.at_site(hospital.root).half.exists()
        path = hospital.root / "site.toml"
        path.write_text(path.read_text().replace("minimum_units", 'waivers = ["allow_network"]\nminimum_units'))
        said = failing(hospital, monkeypatch, capsys)
        assert said.startswith("0 ") and "this process can reach the network" in said
    finally:
        os.umask(umask)


def test_a_socket_that_was_handed_over_keeps_the_site_closed(hospital: Hospital) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as open_one:
        done = subprocess.run(
            [sys.executable, "-m", "fedward_client.trainer.main", str(hospital.root), "--publish-credentials"],
            pass_fds=[open_one.fileno()],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == WRONG and "could not be cut off" in done.stderr


def test_a_waiver_stands_in_every_update(hospital: Hospital) -> None:
    path = hospital.root / "site.toml"
    path.write_text(path.read_text().replace("minimum_units", 'waivers = ["allow_network"]\nminimum_units'))
    with open_site(hospital.root) as site:
        update = hospital.read(site.answer(hospital.plan_bytes()))
        assert update.guarantee.waivers == ("allow_network",)  # type: ignore[union-attr]


def test_a_folder_without_a_site_is_left_as_it_is(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedward_client.trainer.main", str(tmp_path), "--publish-credentials"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == WRONG and "there is no site in" in done.stderr
    assert not list(tmp_path.iterdir())


def test_of_libraries_nothing_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with restored(), warnings.catch_warnings():
        trainer_main._log_our_own()
        logging.getLogger("transformers").warning("Jane Roe is longer than 512")
        logging.getLogger("fedward_client.round").info("ours")
        warnings.warn("Jane Roe", stacklevel=1)
        said = capsys.readouterr().err
    assert "Jane" not in said and json.loads(said)["message"] == "ours"


# ---- two accounts -----------------------------------------------------------------------
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
def test_with_two_accounts_only_the_couriers_group_gets_in(hospital: Hospital) -> None:
    trainer_id, courier_id, stranger_id = 61234, 61235, 61236
    folder = hospital.root.parent
    folder.chmod(0o755)
    door = folder / "run"
    group = next(line.split(":") for line in Path("/etc/group").read_text().splitlines() if line.startswith("games:"))
    subprocess.run(["install", "-d", "-m", "2750", "-o", str(trainer_id), "-g", group[0], str(door)], check=True)  # noqa: S607
    path = hospital.root / "site.toml"
    path.write_text(path.read_text().replace("[network]", f'[network]\ndoor = "{door}"'))
    subprocess.run(["chown", "-R", f"{trainer_id}:{trainer_id}", str(hospital.root)], check=True)  # noqa: S607
    as_trainer = ["setpriv", f"--reuid={trainer_id}", f"--regid={trainer_id}", "--clear-groups"]
    with TrainerProcess(
        hospital, arguments=("--publish-credentials", "--group", group[0]), before=as_trainer
    ) as trainer:
        published = RemoteDoor(Place(door).socket, Published(Place(door)))
        while not published.ready():
            assert trainer.process.poll() is None, trainer.log()
            time.sleep(0.1)
        said = {who: asked(who, int(group[2]) if who == courier_id else who, door) for who in (courier_id, stranger_id)}
        assert trainer.end() == 0
    assert said == {courier_id: "answered", stranger_id: "DoorRefused"}


def asked(user: int, group: int, door: Path) -> str:
    program = (
        "import sys; from pathlib import Path; from fedward_client.door.credentials import Published\n"
        "from fedward_client.door.place import Place; from fedward_client.door.stub import RemoteDoor\n"
        "place = Place(Path(sys.argv[1]))\n"
        "try:\n    RemoteDoor(place.socket, Published(place)).answer(b'no plan'); print('answered')\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
    )
    account = ["setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={group}"]
    done = subprocess.run(
        [*account, sys.executable, "-c", program, str(door)], capture_output=True, text=True, cwd="/", timeout=60
    )
    return done.stdout.strip()


# ---- what it loads ------------------------------------------------------------------------
def test_the_trainer_reaches_flwr_not_even_indirectly() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, timeout=120)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"torch", "grpc", "fedward_client"} <= loaded
    assert not loaded & {"flwr", "httpx", "requests", "typer", "rich"}
