"""A courier taken over: code runs as the courier, with all that it has, against a real trainer on a real site.

Twice: courier and trainer under one account, with Landlock between them; and under two accounts, with nothing but
those. What each attempt is stands in tests/support/taken_over.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedward_client.courier.folder import CourierFile, CourierFolder
from fedward_client.door.credentials import Published
from fedward_client.door.place import Place
from fedward_client.door.stub import RemoteDoor
from fedward_common.codec import decode_plan, decode_reply, encode_reply, new_key
from fedward_common.machine.landlock import landlock_abi
from fedward_common.round import Code, Update
from fedward_server.admission import Admission, Drop
from support.fleet_api import Authority
from support.hospital import PLAIN, Hospital
from support.signed import REFUSAL, put_together, signed, taken_apart
from support.trainer import TrainerProcess, short_folder, with_slots

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).parents[1] / "support" / "taken_over.py"
TRAINER, COURIER = 61240, 61241
LANDLOCK = "this kernel has no Landlock: `fedward-client check` names it, two accounts are the other way"
TWO_ACCOUNTS = "needs root, setpriv and an existing group"
needs_landlock = pytest.mark.skipif(landlock_abi() < 6, reason=LANDLOCK)
needs_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason=TWO_ACCOUNTS)
STRANGER = new_key()
NO_PLAN = "4 the site's own kind of message"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What the attacker got, and what the site looked like before and after."""

    hospital: Hospital
    tried: dict[str, str]
    free: dict[str, str]
    """The same attempts under the trainer's own account, and not confined."""
    replies: dict[str, bytes]
    before: dict[str, bytes] = field(repr=False)
    after: dict[str, bytes] = field(repr=False)
    alive: bool

    @property
    def worked(self) -> set[str]:
        return {name for name, how in self.tried.items() if how == "worked"}


# ---- one account, and two -----------------------------------------------------------
def plans(hospital: Hospital) -> dict[str, bytes]:
    """What the attacker sends, in this order: the good plans are the operator's, whom it has heard."""
    kind, header, body = taken_apart(hospital.plan_bytes())
    whole = hospital.plan_bytes()
    return {
        "0 no signature": whole[:-64] + bytes(64),
        "1 another key": hospital.plan_bytes(key=STRANGER),
        "2 its own key, other terms": put_together(kind, header.replace(b"8.0", b"7.0", 1), body, key=STRANGER),
        "3 the operator's signature on other terms": whole.replace(b'"epsilon":8.0', b'"epsilon":7.9', 1),
        NO_PLAN: put_together(REFUSAL, header, body, key=STRANGER),
        "5 good, round 1": whole,
        "6 good, round 2": hospital.plan_bytes(round=2),
    }


FORGED = ("0", "1", "2", "3", "4")


def books(hospital: Hospital) -> dict[str, bytes]:
    """Every byte of the ledger and of keys and settings."""
    root = hospital.root
    kept = [root / "books" / "ledger.jsonl", root / "site.toml", root / "notes.csv", *(root / "keys").iterdir()]
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


def attack(courier: Path, trainer: TrainerProcess, door: Path, *, before: Sequence[str] = (), **told: Any) -> Any:
    """Run the program; what it printed."""
    descriptor = trainer.pair.courier.to_fd()
    facts = {
        "site": str(trainer.hospital.root),
        "courier": str(courier),
        "door": str(door),
        "pid": trainer.process.pid,
        "parent": os.getpid(),
        "credentials_fd": descriptor,
        **told,
    }
    try:
        done = subprocess.run(
            [*before, sys.executable, "-P", "-c", PROGRAM.read_text(), json.dumps(facts)],
            pass_fds=[descriptor],
            capture_output=True,
            text=True,
            timeout=150,
            cwd="/" if before else trainer.hospital.root,
            check=False,
        )
    finally:
        os.close(descriptor)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def courier_folder(path: Path, door: Path, hospital: Hospital) -> CourierFolder:
    keys = {"schema": 1, "name": "st-elsewhere", "server": "127.0.0.1:1", "door": str(door / "door.sock")}
    folder = CourierFolder.create(path, CourierFile.model_validate(keys), ca_pem=Authority.make().pem)
    (path / "plans").mkdir()
    for name, plan in plans(hospital).items():
        (path / "plans" / name).write_bytes(plan)
    return folder


def taken(trainer: TrainerProcess, said: Any, free: Any, before: dict[str, bytes]) -> Taken:
    return Taken(
        hospital=trainer.hospital,
        tried=said["tried"],
        free=free["tried"],
        replies={name: bytes.fromhex(reply) for name, reply in said["asked"].items()},
        before=before,
        after=books(trainer.hospital),
        alive=trainer.process.poll() is None,
    )


@contextmanager
def of_one_account() -> Iterator[Taken]:
    with short_folder() as folder:
        hospital = with_slots(Hospital.make(folder, stages=PLAIN), more='release_at = "ready"')
        courier, door = folder / "courier", hospital.root / "door"
        courier_folder(courier, door, hospital)
        before = books(hospital)
        with TrainerProcess(hospital) as trainer:
            trainer.ready()
            free = attack(courier, trainer, door, confine=False, ask=False)
            said = attack(courier, trainer, door, confine=True, ask=True)
            yield taken(trainer, said, free, before)


@contextmanager
def of_two_accounts() -> Iterator[Taken]:
    group = next(line.split(":") for line in Path("/etc/group").read_text().splitlines() if line.startswith("games:"))
    with short_folder() as folder:
        folder.chmod(0o755)
        hospital = with_slots(Hospital.make(folder, stages=PLAIN), more=f'door = "{folder}/run"\nrelease_at = "ready"')
        courier, door = folder / "courier", folder / "run"
        courier_folder(courier, door, hospital)
        run("install", "-d", "-m", "2750", "-o", str(TRAINER), "-g", group[0], str(door))
        run("chown", "-R", f"{TRAINER}:{TRAINER}", str(hospital.root))
        run("chown", "-R", f"{COURIER}:{COURIER}", str(courier))
        before = books(hospital)
        arguments = ("--publish-credentials", "--group", group[0])
        with TrainerProcess(hospital, arguments=arguments, before=account(TRAINER)) as trainer:
            published = RemoteDoor(Place(door).socket, Published(Place(door)))
            end = time.monotonic() + 90
            while not published.ready():
                assert trainer.process.poll() is None and time.monotonic() < end
                time.sleep(0.1)
            mine: dict[str, Any] = {"before": account(TRAINER), "confine": False, "ask": False}
            free = attack(courier, trainer, door, **mine)
            theirs: dict[str, Any] = {
                "before": account(COURIER, group[2]),
                "confine": False,
                "ask": True,
                "credentials_fd": None,
            }
            said = attack(courier, trainer, door, **theirs)
            yield taken(trainer, said, free, before)


def account(number: int, *groups: str) -> list[str]:
    more = [f"--groups={','.join(groups)}"] if groups else ["--clear-groups"]
    return ["setpriv", f"--reuid={number}", f"--regid={number}", *more]


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


HOW = {"one account": of_one_account, "two accounts": of_two_accounts}


@pytest.fixture(
    scope="module",
    params=[pytest.param("one account", marks=needs_landlock), pytest.param("two accounts", marks=needs_root)],
)
def seized(request: pytest.FixtureRequest) -> Iterator[Taken]:
    with HOW[request.param]() as found:
        yield found


# ---- what it cannot reach -----------------------------------------------------------
def test_nothing_that_it_tries_works(seized: Taken) -> None:
    assert seized.worked == set()
    assert len(seized.tried) > 25


def test_the_attempts_are_real(seized: Taken) -> None:
    """Under the trainer's own account and without Landlock files can be read and written, and the process be ended."""
    worked = {name for name, how in seized.free.items() if how == "worked"}
    files = {"read data", "read site.toml", "read ledger", "read signing key", "read unit key", "list the site"}
    assert files | {"write the ledger", "make a file in the books", "make a socket in the door", "end it"} <= worked
    if seized.free["open its memory"] == "worked":  # root: to others the trainer is not dumpable
        assert {"copy its memory", "change its memory", "trace it", "take an open file"} <= worked


def test_the_trainer_lives_and_its_keys_and_settings_are_as_before(seized: Taken) -> None:
    assert seized.alive
    assert {name for name in seized.before if seized.before[name] != seized.after[name]} == {"books/ledger.jsonl"}


# ---- what it sends through the Door ---------------------------------------------------
def test_a_plan_that_the_operator_did_not_sign_gets_a_signed_refusal(seized: Taken) -> None:
    forged = {name: reply for name, reply in seized.replies.items() if name[0] in FORGED}
    assert len(forged) == len(FORGED)
    for name, reply in forged.items():
        code = (
            Code.SPEC_MISMATCH if name == NO_PLAN else Code.BAD_SIGNATURE
        )  # what is no plan has no signature to check
        assert seized.hospital.code(reply) is code, name


def test_only_the_operators_own_plans_were_trained(seized: Taken) -> None:
    entries = [json.loads(line)["body"] for line in seized.after["books/ledger.jsonl"].splitlines()]
    started = [entry["plan_id"] for entry in entries if entry.get("entry") == "start"]
    good = [seized.hospital.plan(round=number).plan_id for number in (1, 2)]
    assert len(started) == 2
    assert started == [update_of(seized, number).plan_id for number in (1, 2)]
    assert len(set(good)) == 2


# ---- what it sends to the operator ------------------------------------------------------
def update_of(seized: Taken, number: int) -> Update:
    name = next(name for name in seized.replies if name.endswith(f"round {number}"))
    update = seized.hospital.read(seized.replies[name])
    assert isinstance(update, Update)
    return update


def admission(seized: Taken, number: int) -> Admission:
    """The coordinator's doorkeeper of the round whose plan was sent."""
    name = next(name for name in plans(seized.hospital) if name.endswith(f"round {number}"))
    data = plans_sent(seized)[name]
    plan, adapter = decode_plan(data, public_key=seized.hospital.operator.public_key())
    return Admission(plan=plan, spec=adapter.spec.subset(plan.training.groups), max_norm=1e9)


def plans_sent(seized: Taken) -> dict[str, bytes]:
    folder = seized.hospital.root.parent / "courier" / "plans"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def judged(seized: Taken, data: bytes, number: int = 1) -> object:
    return admission(seized, number).admit("st-elsewhere", data, key=seized.hospital.keys.public_key)


def test_an_update_that_it_signs_itself_does_not_count(seized: Taken) -> None:
    update = update_of(seized, 1)
    assert judged(seized, encode_reply(update, key=STRANGER)) is Drop.BAD_SIGNATURE


def test_an_update_that_it_changes_does_not_count(seized: Taken) -> None:
    reply = seized.replies["5 good, round 1"]
    kind, header, body = taken_apart(reply)
    changed = bytes(byte ^ 1 for byte in body[:4]) + body[4:]
    assert judged(seized, reply.replace(body, changed)) is Drop.BAD_SIGNATURE
    assert judged(seized, put_together(kind, header, changed, key=STRANGER)) is Drop.BAD_SIGNATURE
    assert judged(seized, signed(kind, reply[: -64 - len(body)], body, key=STRANGER)) is Drop.BAD_SIGNATURE


def test_an_older_update_does_not_count_for_another_round(seized: Taken) -> None:
    assert judged(seized, seized.replies["5 good, round 1"], number=2) is Drop.WRONG_PLAN


def test_what_the_site_made_counts_and_counts_once(seized: Taken) -> None:
    """The control: the doorkeeper is not simply closed."""
    doorkeeper, key = admission(seized, 1), seized.hospital.keys.public_key
    reply = seized.replies["5 good, round 1"]
    assert isinstance(doorkeeper.admit("st-elsewhere", reply, key=key), Update)
    assert doorkeeper.admit("st-elsewhere", reply, key=key) is Drop.DUPLICATE
    decode_reply(reply, public_key=key, spec=doorkeeper.spec)
