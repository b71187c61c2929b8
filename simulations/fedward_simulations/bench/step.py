"""CPU time of a private training step over that of the same step without privacy.

A private round is the whole of ``LocalTrainer.train``: loading the adapter, Opacus's hooks, and a few steps, each with
its clipping and noise. The plain one is autograd and SGD on the same records. One thread, one process, in turn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fedward_client.data import Records, SiteData
from fedward_client.training import LocalTrainer, SiteInputs
from fedward_common.config import AdapterConfig, LocalOptimiser, Method, ModelConfig
from fedward_common.modeling.adapters import AdaptedModel, adapt, one_thread
from fedward_common.modeling.base import load_base
from fedward_common.modeling.tasks.classification import losses
from fedward_common.privacy.mechanism import PrivateSum
from fedward_common.privacy.randomness import SeededRandom
from fedward_common.round import Training
from fedward_simulations.bench.table import Table, middle
from fedward_simulations.bench.timing import in_turn

__all__ = ["measure"]

RECORDS, TOKENS, CLASSES, RATE = 32, 32, 21, 0.1
STEPS = 4  # of a round: as many batches as a site of the demo has
GROUPS = ("head", "adapter")
AIM = 1.10


def measure(*, pairs: int = 11, model: ModelConfig | None = None) -> Table:
    """Time ``pairs`` private and plain rounds in turn, after one pair that is not counted.

    Args:
      pairs: how many.
      model: the base; MiniLM without one.
    """
    private, plain = _rounds(model or ModelConfig(max_tokens=TOKENS))
    with one_thread():
        took = in_turn([private, plain], pairs)
    return Table(
        title=f"A training step, {RECORDS} records of {TOKENS} tokens",
        head=("step", "median (range)"),
        rows=(
            ("private, CPU ms", middle([1e3 * ours / STEPS for ours, _ in took], digits=0)),
            ("plain, CPU ms", middle([1e3 * theirs / STEPS for _, theirs in took], digits=0)),
            ("private over plain", middle([ours / theirs for ours, theirs in took])),
        ),
        note=f"LoRA of rank 8 on query and value, and the head; {pairs} pairs of rounds of "
        f"{STEPS} steps in turn, one thread; aim: at most {AIM}.",
    )


def _rounds(config: ModelConfig) -> tuple[Callable[[], object], Callable[[], object]]:
    base = load_base(config)
    model = adapt(base, AdapterConfig(method=Method.LORA, rank=8), classes=CLASSES, public_seed=0)
    records = _records()
    inputs = SiteInputs(base, records)
    data = SiteData(records=records, nominal_units=RECORDS, validation=np.zeros(RECORDS, np.bool_))
    trainer = LocalTrainer(model=model, data=data, inputs=inputs, randomness=SeededRandom(seed=0, site="bench"))
    mechanism = PrivateSum(
        sampling_rate=1.0, noise_multiplier=1.0, clip_norm=1.0, nominal_units=RECORDS, max_records_per_unit=1
    )
    training = Training(groups=GROUPS, local_steps=STEPS, optimiser=LocalOptimiser.SGD, learning_rate=RATE)
    start = model.read(GROUPS)
    batch = inputs.texts.batch(np.arange(RECORDS), device=model.device)
    labels = torch.tensor(records.labels)
    return (
        lambda: trainer.train(1, start, training, mechanism),
        lambda: _plain(model, batch.ids, batch.mask, labels),
    )


def _plain(model: AdaptedModel, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> None:
    optimiser = torch.optim.SGD(model.select(GROUPS), lr=RATE)
    for _ in range(STEPS):
        optimiser.zero_grad(set_to_none=True)
        losses(model(ids, mask), labels).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _records() -> Records:
    return Records(
        texts=tuple((("fever " * TOKENS).strip(),) for _ in range(RECORDS)),  # cut at max_tokens
        labels=np.arange(RECORDS, dtype=np.int64) % CLASSES,
        units=np.arange(RECORDS, dtype=np.int64),
        unit_ids=tuple(str(number) for number in range(RECORDS)),
        sites=None,
    )
