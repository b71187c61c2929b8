"""What Flower's own FedAvg does in a fault, and this coordinator does not: each trap of it is a test.

Seen with flwr 1.41: it waits for ever for nodes, keeps the arrays and goes on after 0 results, averages NaN, takes
negative weights as they come, and passes the text of a site's exception to the server's log.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error

from fedward_common.errors import RoundAbandoned
from fedward_common.wire import pack
from fedward_server.state import State
from support.coordinating import (
    Answer,
    Asked,
    Clock,
    FakeGrid,
    Notes,
    bundle_of,
    coordinator_of,
    honest,
    reply_bytes,
    silent,
)
from support.nouns import START
from support.signed import put_together, taken_apart

NODES = (1000, 1001, 1002)
CANARY = "Jane Roe 1950-03-01"


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


def test_it_waits_for_nobody_for_ever(tmp_path: Path) -> None:
    clock = Clock()
    bundle = bundle_of(rounds={"minimum": 2, "deadline_s": 30.0, "retries": 2})
    for sites in ({}, dict.fromkeys(NODES[:1], honest()), dict.fromkeys(NODES, silent)):
        began = clock.now
        with pytest.raises(RoundAbandoned):
            coordinator_of(tmp_path, bundle, nodes=NODES, clock=clock).run(FakeGrid(sites), State.initial(START))
        assert clock.now - began <= 3 * 2 * 30.0


def test_no_result_is_no_round(tmp_path: Path) -> None:
    notes = Notes()
    coordinator = coordinator_of(tmp_path, bundle_of(), nodes=NODES, observer=notes)
    with pytest.raises(RoundAbandoned):
        coordinator.run(FakeGrid(dict.fromkeys(NODES, silent)), State.initial(START))
    assert {(record.round, record.abandoned, record.adapter_digest) for record in notes.records} == {
        (1, True, START.digest)
    }
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_none_does_not_reach_the_model(value: float, tmp_path: Path) -> None:
    grid = FakeGrid({1000: honest(value=value), 1001: honest(value=1.0)})
    end = coordinator_of(tmp_path, bundle_of(), nodes=NODES).run(grid, State.initial(START))
    np.testing.assert_allclose(end.adapter.vector[:6] - START.vector[:6], 2.0, rtol=1e-6)
    assert [row["dropped"] for row in rows(tmp_path)][:3] == [{"not_finite": 1}] * 3


@pytest.mark.parametrize("declared", [b"-1", b"0", b"-9223372036854775808", b"1e309", b"NaN", b"10000000000"])
def test_a_weight_that_is_negative_nothing_or_absurd_does_not_count(declared: bytes, tmp_path: Path) -> None:
    def lies(asked: Asked) -> list[Answer]:
        kind, header, body = taken_apart(reply_bytes(asked, value=50.0))
        return [pack(put_together(kind, header.replace(b'"nominal_units":10', b'"nominal_units":' + declared), body))]

    bundle = bundle_of(server={"optimiser": "sgd", "learning_rate": 1.0, "weights": "nominal"})
    end = coordinator_of(tmp_path, bundle, nodes=NODES).run(
        FakeGrid({1000: lies, 1001: honest(value=1.0)}), State.initial(START)
    )
    np.testing.assert_allclose(end.adapter.vector[:6] - START.vector[:6], 2.0, rtol=1e-6)
    assert all(row["replied"] == 1 and sum(row["dropped"].values()) == 1 for row in rows(tmp_path)[:3])


def test_the_text_of_a_sites_exception_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes()
    grid = FakeGrid({1000: lambda _: [Error(code=2, reason=f"ValueError({CANARY})")], 1001: honest()})
    coordinator_of(tmp_path, bundle_of(), nodes=NODES, observer=notes).run(grid, State.initial(START))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert CANARY.encode() not in written
    assert CANARY not in repr(notes) + caplog.text
    assert ("site-1000", "no_answer") in notes.outcomes
