"""How much of a device's matrix rate training reaches: operations of a round over those of one large product.

Operations are counted by torch as they run: each product of matrices in the forward and the backward pass, adapters and
gradients of records included. The large product runs in what the round computes in: bfloat16 on an NVIDIA GPU, float32
elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedward_common.config import ModelConfig
from fedward_common.modeling.adapters import one_thread
from fedward_common.modeling.base import Base, load_base
from fedward_simulations.bench.cohort import CLIENTS, Clients, with_lora
from fedward_simulations.bench.table import Table, middle
from fedward_simulations.bench.timing import Work, in_turn
from fedward_simulations.device import chosen
from fedward_simulations.engines import Precision

__all__ = ["bert_large", "measure"]

TOKENS = 128
RECORDS = {"cuda": 8, "cpu": 2}  # of a client
SIDE = {"cuda": 8192, "cpu": 1024}  # of the large product's matrices
SEQUENTIAL_AIM = 3.0
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def measure(*, repeats: int = 5, clients: int = CLIENTS, model: ModelConfig | None = None) -> Table:
    """Time rounds and large products in turn.

    Args:
      repeats: how many.
      clients: in the cohort.
      model: the base; MiniLM without one, and a BERT of BERT-large's size too where there is an NVIDIA GPU.
    """
    device = chosen("auto")
    base = load_base(model or ModelConfig(max_tokens=TOKENS))
    bases = [("MiniLM", base)]
    if device.type == "cuda" and model is None:
        bases.append(("BERT-large's size", bert_large(base)))
    records = RECORDS.get(device.type, RECORDS["cpu"])
    with one_thread():
        rows = [row for name, one in bases for row in _rows(name, one, clients, records, repeats, device)]
    return Table(
        title=f"The matrix rate of {device}",
        head=("what", "median (range)", "aim"),
        rows=tuple(rows),
        note=f"{clients} clients, {records} records of {TOKENS} tokens each, LoRA of rank 8 on query and value, and "
        f"the head; {repeats} of each in turn; on a CPU one thread.",
    )


def bert_large(base: Base) -> Base:
    """An encoder of BERT-large's size with numbers that mean nothing, behind the tokenizer of ``base``."""
    from transformers import BertConfig, BertModel

    config = BertConfig(**LARGE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    encoder = BertModel(config).requires_grad_(False)
    return replace(base, encoder=encoder, hidden_size=config.hidden_size, fingerprint="0" * 64)


def _rows(
    name: str, base: Base, clients: int, records: int, repeats: int, device: torch.device
) -> Sequence[tuple[str, ...]]:
    precision = Precision.BFLOAT16 if device.type == "cuda" else Precision.FLOAT32
    adapted = with_lora(base, device)
    many = Clients.of(base, adapted, clients=clients, records=records, tokens=TOKENS, precision=precision)
    product, operations = _large_product(device)
    took = in_turn([many.together, many.sequential, product], repeats, device)
    counted = _operations(many.together)
    rates = [operations / large for *_, large in took]
    shares = [counted / ours / rate for (ours, *_), rate in zip(took, rates, strict=True)]
    aim = f"at least {SEQUENTIAL_AIM:g} on a GPU" if name == "MiniLM" else ""
    return (
        (f"{name}: large product, 10^12 operations a second", middle([rate / 1e12 for rate in rates], digits=3), ""),
        (f"{name}: of it in the cohort's training", middle(shares, digits=3), "stated"),
        (f"{name}: sequential over cohort", middle([alone / ours for ours, alone, _ in took]), aim),
    )


def _operations(work: Work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _large_product(device: torch.device) -> tuple[Work, int]:
    side = SIDE.get(device.type, SIDE["cpu"])
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.ones(side, side, device=device, dtype=kind) for _ in range(2))
    return lambda: left @ right, 2 * side**3
