"""Promise 1: everything a site writes to the outside is made by one module."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fedward_client
from fedward_client.data import Records
from fedward_common.codec import decode_reply, new_key
from fedward_common.round import Refusal, Update
from support.federation import plan_bytes, population_of, small_bench

CLIENT = Path(fedward_client.__file__).parent
CANARY = "Jane Roe 1950-03-01"


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(CLIENT.rglob("*.py")):
        yield path.stem, ast.parse(path.read_text(encoding="utf-8"))


def test_no_other_module_of_a_site_can_encode_or_sign_a_reply() -> None:
    speakers, signers = set(), set()
    for name, tree in modules():
        words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        words |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if (words | attributes) & {"encode_reply", "encode_plan"}:
            speakers.add(name)
        if "sign" in attributes:
            signers.add(name)
    # a forecast encodes zeros under a key of its own, to count the bytes
    assert speakers == {"release", "forecast"}
    # books, changes of keys and certificates stay at the site; what signs them puts another purpose in front
    # the door's credentials stay between the two processes; an enrolment is public keys, under a purpose of its own
    assert signers <= {"keys", "seals", "certificate", "credentials", "join"}


def test_every_return_of_a_site_is_the_gates() -> None:
    """``Site.answer`` and what it calls return nothing but stored or fresh results of the gate."""
    tree = dict(modules())["round"]
    allowed = ("self._gate.", "self._refuse(", "self._resend(", "self._hand_over(", "reply")
    site = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Site")
    for method in (node for node in site.body if isinstance(node, ast.FunctionDef)):
        # an Answering is a generator that returns bytes
        if ast.unparse(method.returns or ast.Constant(None)) in ("bytes", "Answering"):
            returns = [ast.unparse(n.value) for n in ast.walk(method) if isinstance(n, ast.Return) and n.value]
            assert returns
            assert all(value.startswith(allowed) for value in returns), (method.name, returns)


NETWORK = {"socket", "http", "urllib", "requests", "httpx", "smtplib", "grpc", "grpc_health"}
CONNECTIONS = {
    "courier/fleet.py": {"httpx"},
    "courier/link.py": {"httpx"},
    "courier/walls.py": {"socket"},  # names of the families that stay allowed
    "door/door_pb2_grpc.py": {"grpc"},
    "door/place.py": {"socket"},
    "door/stub.py": {"grpc", "grpc_health"},
    "trainer/service.py": {"grpc", "grpc_health"},
}


def test_no_module_of_a_site_prints_or_opens_a_connection() -> None:
    for path in sorted(CLIENT.rglob("*.py")):
        name, tree = path.relative_to(CLIENT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert imported & NETWORK <= CONNECTIONS.get(name, set()), name
        calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert "print" not in calls, name


def test_a_canary_in_the_data_is_in_no_reply_note_or_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    from fedward_simulations.sites.population import Watcher

    bench = small_bench(tmp_path, sites=1)
    records = bench.data["site-1"].records
    planted = Records(
        texts=tuple((f"{CANARY} {text[0]}",) for text in records.texts),
        labels=records.labels,
        units=records.units,
        unit_ids=tuple(f"{CANARY} {name}" for name in records.unit_ids),
        sites=None,
    )
    from fedward_simulations.dealing.sources import Source
    from fedward_simulations.run import Workbench

    source = Source(sites={"site-1": planted}, test=bench.source.test, digest="0" * 64)
    poisoned = Workbench.open(bench.prepared.bundle.config, source)
    notes: list[str] = []
    operator = new_key()
    watcher = Watcher(caching=lambda site, done, total: None, note=notes.append)
    population = population_of(poisoned, operator, watcher=watcher)
    replies = [
        population.sites["site-1"].answer(data)
        for data in (
            plan_bytes(poisoned, operator),
            plan_bytes(poisoned, operator, round=2),
            plan_bytes(poisoned, new_key()),
            plan_bytes(poisoned, operator, run_id="c" * 64),
            b"",
        )
    ]
    captured = capfd.readouterr()
    heard = b"".join(replies) + "".join([*notes, caplog.text, captured.out, captured.err]).encode()
    assert len(notes) == 3
    for word in CANARY.split():
        assert word.encode() not in heard


def test_a_reply_has_the_same_size_whatever_the_data(tmp_path: Path) -> None:
    """Length is information too: only the digits of noise may differ in a reply with metrics."""
    operator = new_key()
    sizes = set()
    for units in (20, 55):
        bench = small_bench(tmp_path, sites=1, units=units)
        sizes.add(len(population_of(bench, operator).sites["site-1"].answer(plan_bytes(bench, operator))))
    assert len(sizes) == 1


def test_an_update_carries_no_number_from_data_but_noised_ones(tmp_path: Path) -> None:
    operator = new_key()
    bench = small_bench(tmp_path, sites=1, units=37)
    population = population_of(bench, operator)
    spec = bench.prepared.bundle.spec.subset(("head",))
    key = population.keys["site-1"]
    reply = decode_reply(
        population.sites["site-1"].answer(plan_bytes(bench, operator, round=2)), public_key=key, spec=spec
    )
    assert isinstance(reply, Update)
    assert reply.nominal_units == 30  # declared: not 37, nor the number of training units
    assert reply.metrics is not None
    sums = np.array([reply.metrics.correct, reply.metrics.units, reply.metrics.loss / math.log(3)])
    assert np.all(np.abs(sums - np.rint(sums)) > 1e-9)  # a true count would be whole
    refused = decode_reply(population.sites["site-1"].answer(b""), public_key=key)
    assert isinstance(refused, Refusal)
