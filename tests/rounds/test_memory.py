"""The coordinator's memory while it aggregates, on the real loop: numbers, not a promise in a docstring.

The Grid makes each answer when it is pulled and forgets each plan when it is pushed, as one over a network does.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Message

from fedward_common.adapter import Adapter, AdapterSpec
from fedward_common.codec import encode_reply
from fedward_common.wire import pack
from fedward_server.bundle import Bundle
from fedward_server.loop import plan_for
from fedward_server.state import State
from support.coordinating import FakeGrid, Notes, bundle_of, coordinator_of, silent
from support.memory import traced
from support.nouns import KEY, SPEC, update_for

LAYERS, WIDTH = 16, 62_500
NUMBERS = LAYERS * WIDTH
ADAPTER = 4 * NUMBERS
SLACK = 0.4 * ADAPTER  # blocks of 65,536 numbers in float64, and the messages' small parts; it does not grow


def bundle() -> Bundle:
    """One round over a million numbers."""
    names = tuple(f"layer.{layer:02d}.lora_B" for layer in range(LAYERS))
    spec = AdapterSpec(
        base_fingerprint=SPEC.base_fingerprint,
        method="lora",
        rank=1,
        alpha=2.0,
        target_modules=("query",),
        groups={"adapter": names},
        tensors=dict.fromkeys(names, (WIDTH, 1)),
    )
    small = bundle_of(stages=[{"name": "adapter", "train": ["adapter"], "rounds": 1}])
    return Bundle(run_id=small.run_id, config=small.config, initial=Adapter.zeros(spec), frozen={}, base_name="x/y")


class LazyGrid(FakeGrid):
    """Every site answers with the same update, in bytes of its own."""

    def __init__(self, sites: int, answer: bytes) -> None:
        super().__init__(dict.fromkeys(range(1000, 1000 + sites), silent))
        self.answer = answer
        self.pushed: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers = []
        for message in messages:
            identifiers.append(f"message-{len(self.pushed)}")
            message.metadata.__dict__["_message_id"] = identifiers[-1]
            message.__dict__["_content"] = None
            self.pushed[identifiers[-1]] = message
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        copies = ((name, bytes(memoryview(self.answer))) for name in message_ids)
        return [Message(pack(data), reply_to=self.pushed[name]) for name, data in copies]


@dataclass
class Gauge(Notes):
    """Reads the peak while answers are coming in."""

    peak: int = 0

    def answered(self, site: str, outcome: str) -> None:
        super().answered(site, outcome)
        self.peak = tracemalloc.get_traced_memory()[1]


def aggregating(folder: Path, sites: int) -> tuple[int, int]:
    """Bytes at most while a round's updates are folded, and in the whole round."""
    folder.mkdir()
    prepared = bundle()
    state = State.initial(prepared.initial)
    delta = Adapter(spec=prepared.spec, vector=np.random.default_rng(0).normal(0, 0.1, NUMBERS).astype(np.float32))
    plan = plan_for(prepared, state, expires_at=0.0)
    grid = LazyGrid(sites, encode_reply(update_for(plan, delta=delta), key=KEY))
    gauge = Gauge()
    coordinator = coordinator_of(folder, prepared, nodes=grid.sites, observer=gauge)
    with traced() as peak:
        end = coordinator.run(grid, state)
        whole = peak()
    assert gauge.records[0].replied == sites
    np.testing.assert_allclose(end.adapter.vector, delta.vector, rtol=1e-6)
    return gauge.peak, whole


def test_a_hundred_updates_take_at_most_three_adapters(tmp_path: Path) -> None:
    peak, _ = aggregating(tmp_path / "run", 100)
    assert peak <= 3 * ADAPTER + SLACK


def test_memory_does_not_grow_with_the_number_of_sites(tmp_path: Path) -> None:
    few, many = aggregating(tmp_path / "few", 5), aggregating(tmp_path / "many", 100)
    for small, large in zip(few, many, strict=True):
        assert large - small < 0.2 * ADAPTER
