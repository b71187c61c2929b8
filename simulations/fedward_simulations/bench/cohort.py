"""The cohort engine against the sequential path, and what it costs besides training: 50 clients in one process.

A round is the data work of all clients: ``LocalWork.done`` one after the other, or ``Cohort.compute`` for all. A plain
step is the same batched forward with autograd's own sums for each client, without norms, clipping and noise. On the
CPU it is CPU time of one thread; on an NVIDIA GPU, where there is one, seconds until it is done. In turn. The last rows
are a round's messages through Flower's Grid and ClientApp where nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fedward_client.app import client_app
from fedward_client.data import Records, SiteData
from fedward_client.training import LocalTrainer, LocalWork, SiteInputs
from fedward_common.codec import PlanParts, PlanWriter, key_fingerprint
from fedward_common.config import AdapterConfig, LocalOptimiser, Method, ModelConfig
from fedward_common.modeling.adapters import AdaptedModel, TrainedLayer, adapt, one_thread
from fedward_common.modeling.base import Base, load_base
from fedward_common.modeling.tasks.classification import losses
from fedward_common.privacy.mechanism import PrivateSum
from fedward_common.privacy.randomness import SeededRandom
from fedward_common.round import Training
from fedward_common.wire import pack
from fedward_server.state import State
from fedward_simulations.bench.overhead import bundle_for
from fedward_simulations.bench.ready import ReadySite
from fedward_simulations.bench.table import Table, middle
from fedward_simulations.bench.timing import in_turn, seconds
from fedward_simulations.cohort.doors import CohortDoors
from fedward_simulations.cohort.engine import Cohort
from fedward_simulations.cohort.gradients import written_out
from fedward_simulations.cohort.records import FlatRecords
from fedward_simulations.cohort.source import Source
from fedward_simulations.cohort.stacking import Stack
from fedward_simulations.device import chosen
from fedward_simulations.engines import Precision
from fedward_simulations.grid import InProcessGrid, node_ids

__all__ = ["CLIENTS", "Clients", "measure", "with_lora"]

CLIENTS, CLASSES = 50, 21
GROUPS = ("adapter", "head")
SHAPES = ((16, 8), (16, 2), (128, 2))  # tokens, records a client
WIDTHS = (32, 768)  # of eight adapted layers: 4,162 and 99,842 numbers


@dataclass(frozen=True, kw_only=True)
class Aims:
    """What is to be reached on one kind of device; ``over_sequential`` for each of the shapes."""

    over_sequential: tuple[float, ...]
    private: float
    own_ms: float


AIMS = {
    "cpu": Aims(over_sequential=(1.5, 3.0, 0.95), private=1.10, own_ms=2.0),
    "cuda": Aims(over_sequential=(10.0, 10.0, 10.0), private=1.15, own_ms=1.0),
}


def measure(*, repeats: int = 5, clients: int = CLIENTS, model: ModelConfig | None = None) -> Table:
    """Time every row in turn, after one time that is not counted.

    Args:
      repeats: how many.
      clients: in the cohort.
      model: the base; MiniLM without one.
    """
    device = chosen("auto")
    aims = AIMS.get(device.type, AIMS["cpu"])
    base = load_base(model or ModelConfig(max_tokens=128))
    adapted = with_lora(base, device)
    rows: list[tuple[str, ...]] = []
    with one_thread():
        for (tokens, records), aim in zip(SHAPES, aims.over_sequential, strict=True):
            many = Clients.of(base, adapted, clients=clients, records=records, tokens=tokens)
            rows += _speeds(many, f"{tokens} tokens, {records} records a client", aim, aims.private, repeats)
        for width in WIDTHS:
            rows.append(_own_cost(width, clients, repeats, aims.own_ms))
    return Table(
        title=f"The cohort engine, {clients} clients, on {device}",
        head=("what", "median (range)", "aim"),
        rows=tuple(rows),
        note=f"MiniLM, LoRA of rank 8 on query and value, and the head: {adapted.spec.size:,} numbers; on a CPU its "
        f"time in one thread; {repeats} rounds of each in turn.",
    )


def _speeds(many: Clients, shape: str, aim: float, private_aim: float, repeats: int) -> list[tuple[str, ...]]:
    took = in_turn([many.sequential, many.together, many.plain], repeats, many.device)
    count = len(many.works)
    return [
        (f"sequential, ms a client: {shape}", middle([1e3 * one / count for one, _, _ in took], digits=1), ""),
        (f"cohort, ms a client: {shape}", middle([1e3 * ours / count for _, ours, _ in took], digits=1), ""),
        (f"sequential over cohort: {shape}", middle([one / ours for one, ours, _ in took]), f"at least {aim:g}"),
        (f"private over plain: {shape}", middle([ours / bare for _, ours, bare in took]), f"at most {private_aim:.2f}"),
    ]


def with_lora(base: Base, device: torch.device) -> AdaptedModel:
    """The base with the adapters that are measured, on the device; ``base`` belongs to it then."""
    return adapt(base, AdapterConfig(method=Method.LORA, rank=8), classes=CLASSES, public_seed=0).to(device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Clients:
    """A resident model and clients with so many records of one length each, all of which enter the step."""

    works: Sequence[LocalWork]
    cohort: Cohort

    @classmethod
    def of(
        cls,
        base: Base,
        model: AdaptedModel,
        *,
        clients: int,
        records: int,
        tokens: int,
        precision: Precision = Precision.FLOAT32,
    ) -> Clients:
        """So many, on one model ``with_lora``."""
        held = _records(records, tokens)
        works = [_work(base, model, held, name=f"client-{number}") for number in range(clients)]
        return cls(works=works, cohort=Cohort(note=_stop, precision=precision))

    @property
    def device(self) -> torch.device:
        """Where they compute."""
        return self.works[0].trainer.model.device

    def sequential(self) -> None:
        """One after the other."""
        for work in self.works:
            work.done()

    def together(self) -> None:
        """By the cohort engine."""
        for outcome in self.cohort.compute(self.works):
            if isinstance(outcome, Exception):
                raise outcome

    def plain(self) -> None:
        """Without privacy, in the same physical batches."""
        first, trainers = self.works[0], [work.trainer for work in self.works]
        model, source = first.trainer.model, Source(trainers=trainers, features=None)
        model.load(first.adapter)
        stack = _PlainStack(model=model, groups=GROUPS, share=len(trainers[0].data.records))
        every = [[np.array([record]) for record in range(stack.share)] for _ in trainers]
        flat = FlatRecords.of(every, lengths=source.lengths)
        sums = torch.zeros(len(trainers), stack.spec.size, device=self.device)
        tokens = self.cohort.tokens // (stack.share * int(flat.widths[-1])) * stack.share * int(flat.widths[-1])
        with stack.in_place():
            for batch in flat.cuts(tokens=tokens, records=len(flat)):  # batches of whole clients
                stack.expect(flat.owners[batch])
                losses(source.logits(flat, batch), source.labels(flat, batch)).sum().backward()  # type: ignore[no-untyped-call]
                sums[np.unique(flat.owners[batch])] += torch.cat(
                    [written_out(part) for part in stack.gradients()], dim=1
                )
        start = torch.from_numpy(first.adapter.vector.copy())
        (start - 0.5 * sums.cpu() / stack.share - start).numpy()


@dataclass(kw_only=True, eq=False)
class _PlainStack(Stack):
    """Keeps the sum over each client's records, which lie side by side, in place of their gradients."""

    share: int

    def _keep(self, layer: TrainedLayer, x: torch.Tensor, gradient: torch.Tensor) -> None:
        tokens = self.share * x.shape[1]
        x, gradient = x.reshape(-1, tokens, x.shape[2]), gradient.reshape(-1, tokens, gradient.shape[2])
        self._add(layer.weight, torch.bmm(gradient.transpose(1, 2), x).flatten(1))
        if layer.bias is not None:
            self._add(layer.bias, gradient.sum(1))


def _work(base: Base, model: AdaptedModel, held: Records, *, name: str) -> LocalWork:
    count = len(held)
    data = SiteData(records=held, nominal_units=count, validation=np.zeros(count, np.bool_))
    return LocalWork(
        trainer=LocalTrainer(
            model=model, data=data, inputs=SiteInputs(base, held), randomness=SeededRandom(seed=0, site=name)
        ),
        round=1,
        adapter=model.read(GROUPS),
        training=Training(groups=GROUPS, local_steps=1, optimiser=LocalOptimiser.SGD, learning_rate=0.5),
        step=PrivateSum(
            sampling_rate=1.0, noise_multiplier=1.0, clip_norm=1.0, nominal_units=count, max_records_per_unit=1
        ),
        metric=None,
    )


def _records(count: int, tokens: int) -> Records:
    return Records(
        texts=tuple((("fever " * (tokens - 2)).strip(),) for _ in range(count)),  # with the two special tokens
        labels=np.arange(count, dtype=np.int64) % CLASSES,
        units=np.arange(count, dtype=np.int64),
        unit_ids=tuple(str(number) for number in range(count)),
        sites=None,
    )


def _own_cost(width: int, clients: int, repeats: int, aim_ms: float) -> tuple[str, ...]:
    bundle = bundle_for(repeats + 1, width)
    first = ReadySite.build(bundle)
    sites = [first, *(ReadySite.build(bundle) for _ in range(clients - 1))]
    state = State.initial(bundle.initial)
    took = []
    for number in range(repeats + 1):
        after = State(adapter=state.adapter, finished=number, moments=state.moments)
        plans = [_signed(site, after) for site in sites]
        took.append(seconds(partial(_deliver, sites, plans)) * 1e3 / clients)
    what = f"Grid, ClientApp, site and gate without training, ms a client: {bundle.spec.size:,} numbers"
    return what, middle(took[1:]), f"at most {aim_ms:g}"


def _signed(site: ReadySite, state: State) -> PlanParts:
    own = site.plan(state).addressed_to(key_fingerprint(site.key.public_key()))
    return PlanWriter(state.adapter, key=site.operator).parts(own)


def _deliver(sites: Sequence[ReadySite], plans: Sequence[PlanParts]) -> None:
    named = {f"client-{number}": site.site for number, site in enumerate(sites)}
    doors = CohortDoors(sites=named, engine=Cohort(note=_stop, sites=len(sites)))
    grid = InProcessGrid(client_app(doors.door_of), node_ids(named), ahead=doors)
    pairs = zip(plans, grid.get_node_ids(), strict=True)
    messages = [grid.create_message(pack(plan), "train", node, "1") for plan, node in pairs]
    for reply in grid.send_and_receive(messages):
        if not reply.has_content():
            raise RuntimeError("a site of the bench raised")


def _stop(line: str) -> None:
    raise RuntimeError(f"the cohort could not be computed as one: {line}")
