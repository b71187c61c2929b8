"""Promises 2 and 3 against an oracle: an adapter made so that one record's gradient overflows tells nothing.

The coordinator looks for a direction in which one patient's features stand out, and sends a head so large along it that
this patient's logits alone leave the range of float32. If the site then failed, or answered otherwise, or later, or
gave the round back, the coordinator would know that the patient is there.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedward_client.installation.opening import open_site
from fedward_common.adapter import Adapter
from fedward_common.codec import decode_reply
from fedward_common.modeling.base import load_base
from fedward_common.modeling.tasks.classification import losses
from fedward_common.privacy.facts import Outcome
from fedward_common.round import Update
from support.hospital import Hospital, write_notes

PATIENTS = [f"p{number}" for number in range(40)]
TARGET = "target"
RARE = "pregnancy burn burn pregnancy wound burn"
LARGEST = float(np.finfo(np.float32).max)
ROUNDS = 5


def crafted(hospital: Hospital) -> Adapter:
    """A head under which the target's record overflows, and no other record does."""
    import torch

    from fedward_client.data import load_records
    from fedward_client.installation.folder import Folder
    from fedward_client.trainers import config_of
    from fedward_common.config import ModelConfig
    from fedward_common.modeling.adapters import adapt
    from fedward_common.modeling.tasks.classification import features, tokenise

    site = Folder.open(hospital.root).load_site()
    records = load_records(site.columns(hospital.root), site.task.labels)
    spec = hospital.bundle.spec
    folder = hospital.root / "models" / spec.base_fingerprint
    base = load_base(ModelConfig(base=str(folder), max_tokens=32))
    found = features(
        adapt(base, config_of(spec), classes=3, public_seed=0), tokenise(base, records.texts), progress=None
    )
    rows = found.numpy().astype(np.float64)
    owner = records.unit_ids.index(TARGET)
    mine, others = rows[records.units == owner], rows[records.units != owner]
    target = np.where(records.units == owner, 1.0, 0.0)
    weight = np.zeros((3, rows.shape[1]))
    for rcond in (0.3, 0.1, 0.03, 0.01):  # least squares, of rising freedom, until only the target stands out
        direction = np.linalg.pinv(rows, rcond=rcond) @ target
        highest, second = (mine @ direction).max(), np.abs(others @ direction).max()
        weight[0] = direction * (LARGEST / np.sqrt(highest * second))
        if highest > 1.05 * second and np.abs(weight).max() < LARGEST:
            break
    assert np.abs(weight).max() < LARGEST
    adapter = hospital.bundle.initial
    tensors = {**adapter.tensors, "head.weight": weight.astype(np.float32)}
    with torch.no_grad():
        head = torch.from_numpy(tensors["head.weight"])
        broken = ~torch.isfinite(losses(found @ head.T, torch.zeros(len(rows), dtype=torch.long)))
    assert set(records.units[broken.numpy()]) == {owner}  # it really overflows, and for nobody else
    return Adapter.from_tensors(spec, tensors)


def answers(hospital: Hospital, adapter: Adapter) -> tuple[list[bytes], list[float], list[Outcome], list[str]]:
    """Replies to the same plan of several runs, their seconds, and what ledger and audit log say."""
    replies, seconds = [], []
    with open_site(hospital.root) as site:
        site._policy = replace(site._policy, max_magnitude=LARGEST)  # with the default cap it would be refused unread
        plans = [
            hospital.plan_bytes(adapter=adapter, run_id=f"{n:064x}", terms=replace(hospital.plan().terms, epsilon=2.0))
            for n in range(ROUNDS)
        ]
        for data in plans:
            began = time.perf_counter()
            replies.append(site.answer(data))
            seconds.append(time.perf_counter() - began)
        outcomes = list(site._ledger._standing.outcomes.values())
        kinds = [line.line.kind.value for line in site._audit.lines()]  # type: ignore[attr-defined]
    return replies, seconds, outcomes, kinds


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hospital, Hospital, Adapter]:
    """Two sites that differ in one patient, and the adapter that is made for this patient."""
    sites = []
    for name, patients in (("with", [*PATIENTS, TARGET]), ("without", PATIENTS)):
        hospital = Hospital.make(tmp_path_factory.mktemp(name))
        write_notes(hospital.root / "notes.csv", patients, per_patient=1)
        notes = hospital.root / "notes.csv"
        lines = notes.read_text().splitlines()
        rare = [line if f",{TARGET}," not in line else f"{RARE},lung,{TARGET},{TARGET}-0" for line in lines]
        notes.write_text("\n".join(rare) + "\n")
        sites.append(hospital)
    return sites[0], sites[1], crafted(sites[0])


def test_an_overflowing_record_changes_neither_code_nor_schema_nor_timing_and_costs_no_refund(
    both: tuple[Hospital, Hospital, Adapter],
) -> None:
    present, absent, adapter = both
    here, there = answers(present, adapter), answers(absent, adapter)
    for hospital, (replies, _, outcomes, kinds) in ((present, here), (absent, there)):
        spec = hospital.bundle.spec.subset(("head",))
        for reply in replies:
            update = decode_reply(reply, public_key=hospital.keys.public_key, spec=spec)
            assert isinstance(update, Update)
            assert np.isfinite(update.delta.vector).all()
            assert np.abs(update.delta.vector).max() < 10  # noise and clipped gradients, nothing of the overflow
        assert outcomes == [Outcome.RELEASED] * ROUNDS
        assert kinds.count("release") == ROUNDS
    assert {len(reply) for reply in here[0]} == {len(reply) for reply in there[0]}
    assert here[3] == there[3]
    # the first of each opens data and finds the noise; the others do the same work on both sides
    ratio = statistics.median(here[1][1:]) / statistics.median(there[1][1:])
    assert 1 / 3 < ratio < 3


def test_with_the_default_cap_such_an_adapter_is_not_even_tried(
    both: tuple[Hospital, Hospital, Adapter], tmp_path: Path
) -> None:
    present, _, adapter = both
    with open_site(present.root) as site:
        before = site._ledger.head
        assert present.code(site.answer(present.plan_bytes(adapter=adapter, run_id="ef" * 32))) == "spec_mismatch"
        assert site._ledger.head == before
