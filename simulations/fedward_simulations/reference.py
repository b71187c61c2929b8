"""The flat twin: federated DP-LoRA in one readable file. No peft, no Opacus, no Flower, no plan, no codec.

It takes token ids and labels, and the same random streams as the library, and gives the same adapter for the same seed;
a test says so. Read it to learn what fedward does; read the library for how it does so safely. With
``noise_scale=None`` it neither clips nor adds noise: the baseline without privacy that ``--compare`` shows. The library
itself has no such switch.

    for each round:                                         server
        for each site:                                      site
            draw units, average each unit's gradient, clip, sum, add noise, divide by q x nominal units, step
        average deltas by nominal units, Adam               server
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedward_common.config import Method, Pooling, RunConfig, ServerOptimiser, StageConfig, Weights
from fedward_common.privacy.randomness import Purpose, SeededRandom, public_gaussian

__all__ = ["ReferenceSite", "reference_run"]

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceSite:
    """One site's data, laid bare: token ids and label of each record, the records of each training unit."""

    name: str
    tokens: Sequence[NDArray[np.int64]]
    labels: NDArray[np.int64]
    units: Sequence[NDArray[np.int64]]
    nominal_units: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Twin:
    """The run file, the frozen encoder with low-rank layers in it, and the trained tensors by the library's names."""

    config: RunConfig
    encoder: Any
    trained: Tensors


class LowRank(nn.Module):
    """A frozen linear layer plus (alpha / r) B R A x, with R the identity for plain LoRA."""

    def __init__(self, base: nn.Linear, a: torch.Tensor, b: torch.Tensor, r: torch.Tensor, scale: float) -> None:
        """Wrap ``base``."""
        super().__init__()
        self.base, self.a, self.b, self.r, self.scale = base, a, b, r, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output with the low-rank update."""
        return self.base(x) + self.scale * (x @ self.a.T @ self.r.T @ self.b.T)  # type: ignore[no-any-return]


def reference_run(
    config: RunConfig,
    encoder: nn.Module,
    sites: Sequence[ReferenceSite],
    *,
    noise_scale: float | None,
    after_round: Callable[[int, Callable[[Sequence[NDArray[np.int64]]], torch.Tensor]], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Run the whole algorithm.

    Args:
      config: a checked run file; every site is asked in every round, and local optimisers are SGD.
      encoder: the frozen base with dropout off; its linear layers are wrapped in place.
      sites: the data.
      noise_scale: s, with sigma = s x noise_ratio; None for no clipping and no noise at all.
      after_round: receives the round and a function from token ids to logits.

    Returns:
      The trained tensors under the library's names.
    """
    trained = wrap(config, encoder)
    classes = len(config.task.labels)
    twin = Twin(config=config, encoder=encoder, trained=trained)
    trained["head.weight"] = torch.zeros(classes, twin.encoder.config.hidden_size)
    trained["head.bias"] = torch.zeros(classes)
    moments = {name: (torch.zeros(v.shape).double(), torch.zeros(v.shape).double(), 0) for name, v in trained.items()}
    shares = [float(s.nominal_units) if config.server.weights is Weights.NOMINAL else 1.0 for s in sites]
    number = 0
    for stage in config.stages:
        names = sorted(n for n in trained if ("head" if n.startswith("head.") else "adapter") in stage.train)
        rate = stage.server_learning_rate or config.server.learning_rate
        for name, value in trained.items():
            value.requires_grad_(name in names)
        # while only the head trains, what is below it stands still
        features = {s.name: pool(twin, s.tokens) if stage.train == ("head",) else None for s in sites}
        for _ in range(stage.rounds):
            number += 1
            sigma = None if noise_scale is None else noise_scale * stage.noise_ratio
            deltas = [local_delta(twin, names, site, features[site.name], number, stage, sigma) for site in sites]
            for name in names:
                total = torch.zeros(trained[name].shape).double()
                for share, delta in zip(shares, deltas, strict=True):
                    total += share * delta[name].double()
                step = (total / sum(shares)).float().double()
                if config.server.optimiser is ServerOptimiser.ADAM:
                    first, second, moved = moments[name]
                    first, second, moved = 0.9 * first + 0.1 * step, 0.999 * second + 0.001 * step**2, moved + 1
                    step = first / (1 - 0.9**moved) / ((second / (1 - 0.999**moved)).sqrt() + 1e-12)
                    moments[name] = (first, second, moved)
                with torch.no_grad():
                    trained[name].copy_((trained[name].double() + rate * step).float())
            if after_round:
                after_round(number, lambda tokens: logits_of(twin, tokens))
    return {name: value.detach().numpy().copy() for name, value in trained.items()}


def local_delta(
    twin: Twin,
    names: Sequence[str],
    site: ReferenceSite,
    features: torch.Tensor | None,
    number: int,
    stage: StageConfig,
    sigma: float | None,
) -> Tensors:
    """One site's round: local minus global over the trained tensors, which are put back before it returns."""
    trained, privacy = twin.trained, twin.config.privacy
    start = {name: trained[name].detach().clone() for name in names}
    streams = SeededRandom(seed=twin.config.seed, site=site.name)
    for step in range(stage.local_steps):
        draw = streams.stream(round=number, step=step, purpose=Purpose.SAMPLING)
        drawn = np.flatnonzero(draw.bernoulli(len(site.units), probability=stage.sampling_rate))
        pick = streams.stream(round=number, step=step, purpose=Purpose.RECORDS)
        cap = privacy.max_records_per_unit
        chosen = [site.units[int(u)] for u in drawn]
        chosen = [own if len(own) <= cap else own[pick.choose(len(own), size=cap)] for own in chosen]
        if sigma is None:
            flat = plain_gradient(twin, names, site, features, chosen)
        else:
            flat = torch.zeros(sum(trained[n].numel() for n in names)).double()
            for own in chosen:  # one unit at a time: the gradient of its mean loss, clipped
                loss = losses_of(twin, site, features, own).mean()
                gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [trained[n] for n in names])])
                norm = float(gradient.norm())
                if math.isfinite(norm):
                    flat += gradient.double() * min(1.0, privacy.clip_norm / max(norm * (1 + 1e-5), 1e-30))
            # sum and noise on one power-of-two grid, added as whole numbers
            grid = 2.0 ** (math.floor(math.log2(sigma * privacy.clip_norm)) - 20)
            stddev = sigma * (privacy.clip_norm + grid * math.sqrt(len(flat)))
            noise = streams.stream(round=number, step=step, purpose=Purpose.NOISE).gaussian(len(flat)) * stddev
            flat = torch.from_numpy((np.rint(flat.numpy() / grid) + np.floor(noise / grid + 0.5)) * grid)
        flat = flat / (stage.sampling_rate * site.nominal_units)
        with torch.no_grad():
            for name, part in zip(names, torch.split(flat, [trained[n].numel() for n in names]), strict=True):
                trained[name] -= stage.learning_rate * part.view(trained[name].shape).float()
    delta = {name: trained[name].detach() - start[name] for name in names}
    with torch.no_grad():
        for name in names:
            trained[name].copy_(start[name])
    return delta


def plain_gradient(
    twin: Twin,
    names: Sequence[str],
    site: ReferenceSite,
    features: torch.Tensor | None,
    chosen: Sequence[NDArray[np.int64]],
) -> torch.Tensor:
    """Without privacy: the gradient of the sum over units of each unit's mean loss, in batches."""
    tensors = [twin.trained[n] for n in names]
    flat = torch.zeros(sum(t.numel() for t in tensors)).double()
    ordered = sorted(chosen, key=lambda own: max(len(site.tokens[i]) for i in own))
    size = 64 if features is None else 4096
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        shares = torch.from_numpy(np.concatenate([np.full(len(own), 1 / len(own), np.float32) for own in part]))
        loss = (losses_of(twin, site, features, np.concatenate(part)) * shares).sum()
        flat += torch.cat([g.flatten() for g in torch.autograd.grad(loss, tensors)]).double()
    return flat


def losses_of(
    twin: Twin, site: ReferenceSite, features: torch.Tensor | None, records: NDArray[np.int64]
) -> torch.Tensor:
    """Cross-entropy of each record."""
    if features is None:
        found = pooled(twin, [site.tokens[int(i)] for i in records])
    else:
        found = features[torch.tensor(records)]
    logits = found @ twin.trained["head.weight"].T + twin.trained["head.bias"]
    return functional.cross_entropy(logits, torch.from_numpy(site.labels[records]), reduction="none")


def logits_of(twin: Twin, tokens: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """Logits of texts, without gradients."""
    with torch.no_grad():
        return pool(twin, tokens) @ twin.trained["head.weight"].T + twin.trained["head.bias"]


def pool(twin: Twin, tokens: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """Features of many texts, shortest first, without gradients."""
    order = np.argsort([len(t) for t in tokens], kind="stable")
    found = torch.zeros(len(tokens), twin.encoder.config.hidden_size)
    with torch.no_grad():
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            found[torch.from_numpy(part)] = pooled(twin, [tokens[int(i)] for i in part])
    return found


def pooled(twin: Twin, tokens: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """Features of one padded batch."""
    width = max(len(t) for t in tokens)
    ids = torch.stack([functional.pad(torch.from_numpy(t), (0, width - len(t))) for t in tokens])
    mask = torch.stack([(torch.arange(width) < len(t)).long() for t in tokens])
    hidden: torch.Tensor = twin.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    if twin.config.model.pooling is Pooling.CLS:
        return hidden[:, 0]
    return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def wrap(config: RunConfig, encoder: nn.Module) -> Tensors:
    """Replace the target layers; return what is trained in them, by the library's names."""
    trained: Tensors = {}
    layers: Mapping[str, Any] = dict(encoder.named_modules())
    adapter = config.adapter
    for name, layer in layers.items():
        if name.rsplit(".", 1)[-1] not in adapter.target_modules or not isinstance(layer, nn.Linear):
            continue
        rank, scale = adapter.rank, adapter.alpha / adapter.rank
        if adapter.method is Method.CORE:  # A and B from the leading singular vectors, R from zero
            u, s, vt = np.linalg.svd(layer.weight.numpy().astype(np.float64), full_matrices=False)
            signs = np.sign(vt[np.arange(rank), np.abs(vt[:rank]).argmax(1)])
            root = signs * np.sqrt(s[:rank])
            a = torch.from_numpy((vt[:rank] * root[:, None]).astype(np.float32))
            b = torch.from_numpy((u[:, :rank] * root).astype(np.float32))
            r = trained[f"{name}.core"] = torch.zeros(rank, rank)
        else:
            a = torch.from_numpy(public_gaussian(config.seed, f"{name}.lora_A", (rank, layer.in_features)))
            a = a / np.sqrt(np.float32(layer.in_features))
            b = trained[f"{name}.lora_B"] = torch.zeros(layer.out_features, rank)
            r = torch.eye(rank)
            if not adapter.freeze_a:
                trained[f"{name}.lora_A"] = a
        setattr(layers[name.rsplit(".", 1)[0]], name.rsplit(".", 1)[-1], LowRank(layer, a, b, r, scale))
    return trained
