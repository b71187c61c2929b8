"""The flat twin: federated DP-LoRA in one readable file. No peft, no Opacus, no Flower, no plan, no codec.

It takes token ids and labels, and the same random streams as the library, and gives the same adapter for the same seed;
a test says so. Read it to learn what fedward does; read the library for how it does so safely. With
``noise_scale=None`` it neither clips nor adds noise: the baseline without privacy that ``--compare`` shows. The library
itself has no such switch.

    for each round:                                         server
        draw a cohort of sites
        for each of them:                                   site
            draw units, average each unit's gradient, clip, sum, add noise, divide by q x nominal units, step
        average deltas by nominal units, Adam               server
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedward_common.config import (
    LocalOptimiser,
    Method,
    Pooling,
    RunConfig,
    ServerOptimiser,
    StageConfig,
    Weights,
)
from fedward_common.privacy.randomness import Purpose, SeededRandom, Stream, public_gaussian

__all__ = ["Logits", "ReferenceSite", "reference_run"]

Tensors: TypeAlias = dict[str, torch.Tensor]
Arrays: TypeAlias = Sequence[NDArray[np.int64]]
Logits: TypeAlias = Callable[[Arrays, Arrays | None], torch.Tensor]  # of token ids and segment ids


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceSite:
    """One site's data, laid bare: token ids and label of each record, the records of each training unit.

    ``types``, of the shapes of ``tokens``, tells the two texts of a pair apart; None for single texts.
    """

    name: str
    tokens: Arrays
    labels: NDArray[np.int64]
    units: Arrays
    nominal_units: int
    types: Arrays | None = None


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
    after_round: Callable[[int, Logits], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Run the whole algorithm.

    Args:
      config: a checked run file; its ``[simulation]`` is not read: every site answers.
      encoder: the frozen base with dropout off; its linear layers are wrapped in place.
      sites: the data, in the order in which the coordinator knows them.
      noise_scale: s, with sigma = s x noise_ratio; None for no clipping and no noise at all.
      after_round: receives the round and a function from token ids and segment ids to logits.

    Returns:
      The trained tensors under the library's names.
    """
    trained = wrap(config, encoder)
    classes = len(config.task.labels)
    twin = Twin(config=config, encoder=encoder, trained=trained)
    trained["head.weight"] = torch.zeros(classes, twin.encoder.config.hidden_size)
    trained["head.bias"] = torch.zeros(classes)
    moments = {name: (torch.zeros(v.shape).double(), torch.zeros(v.shape).double(), 0) for name, v in trained.items()}
    number = 0
    for stage in config.stages:
        names = sorted(n for n in trained if ("head" if n.startswith("head.") else "adapter") in stage.train)
        rate = stage.server_learning_rate or config.server.learning_rate
        for name, value in trained.items():
            value.requires_grad_(name in names)
        # while only the head trains, what is below it stands still
        features = {s.name: pool(twin, s.tokens, s.types) if stage.train == ("head",) else None for s in sites}
        for _ in range(stage.rounds):
            number += 1
            sigma = None if noise_scale is None else noise_scale * stage.noise_ratio
            asked = cohort(config, sites, number)
            shares = [float(s.nominal_units) if config.server.weights is Weights.NOMINAL else 1.0 for s in asked]
            deltas = [local_delta(twin, names, site, features[site.name], number, stage, sigma) for site in asked]
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
                after_round(number, lambda tokens, types: logits_of(twin, tokens, types))
    return {name: value.detach().numpy().copy() for name, value in trained.items()}


def cohort(config: RunConfig, sites: Sequence[ReferenceSite], number: int) -> Sequence[ReferenceSite]:
    """Whom the coordinator asks and waits for in a round: the first ``goal`` of a seeded draw."""
    size = config.rounds.cohort
    if 0 < size < len(sites):
        drawn = np.random.default_rng([config.seed, number, 1]).choice(len(sites), size=size, replace=False)
        sites = [sites[index] for index in sorted(drawn)]
    return sites[: config.rounds.goal or None]


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
    trained, cap = twin.trained, twin.config.privacy.max_records_per_unit
    start = {name: trained[name].detach().clone() for name in names}
    streams = SeededRandom(seed=twin.config.seed, site=site.name)
    first = second = torch.zeros(sum(trained[n].numel() for n in names)).double()
    for step in range(stage.local_steps):
        draw = streams.stream(round=number, step=step, purpose=Purpose.SAMPLING)
        drawn = np.flatnonzero(draw.bernoulli(len(site.units), probability=stage.sampling_rate))
        pick = streams.stream(round=number, step=step, purpose=Purpose.RECORDS)
        chosen = [site.units[int(u)] for u in drawn]
        chosen = [own if len(own) <= cap else own[pick.choose(len(own), size=cap)] for own in chosen]
        if sigma is None:
            flat = plain_gradient(twin, names, site, features, chosen)
        else:
            noise = streams.stream(round=number, step=step, purpose=Purpose.NOISE)
            flat = private_gradient(twin, names, site, features, chosen, sigma, noise)
        flat = flat / (stage.sampling_rate * site.nominal_units)
        if stage.optimiser is LocalOptimiser.ADAM:
            first, second = 0.9 * first + 0.1 * flat, 0.999 * second + 0.001 * flat**2
            flat = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        with torch.no_grad():
            for name, part in zip(names, torch.split(flat, [trained[n].numel() for n in names]), strict=True):
                trained[name] -= stage.learning_rate * part.view(trained[name].shape).float()
    delta = {name: trained[name].detach() - start[name] for name in names}
    with torch.no_grad():
        for name in names:
            trained[name].copy_(start[name])
    return delta


def private_gradient(
    twin: Twin,
    names: Sequence[str],
    site: ReferenceSite,
    features: torch.Tensor | None,
    chosen: Arrays,
    sigma: float,
    noise: Stream,
) -> torch.Tensor:
    """The sum over units of each unit's clipped mean gradient, with noise of standard deviation sigma x C."""
    tensors, clip_norm = [twin.trained[n] for n in names], twin.config.privacy.clip_norm
    flat = torch.zeros(sum(t.numel() for t in tensors)).double()
    for own in chosen:  # one unit at a time: the gradient of its mean loss, clipped
        loss = losses_of(twin, site, features, own).mean()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, tensors)])
        norm = float(gradient.norm())
        if math.isfinite(norm):
            flat += gradient.double() * min(1.0, clip_norm / max(norm * (1 + 1e-5), 1e-30))
    # sum and noise on one power-of-two grid, added as whole numbers
    grid = 2.0 ** (math.floor(math.log2(sigma * clip_norm)) - 20)
    stddev = sigma * (clip_norm + grid * math.sqrt(len(flat)))
    drawn = noise.gaussian(len(flat)) * stddev
    return torch.from_numpy((np.rint(flat.numpy() / grid) + np.floor(drawn / grid + 0.5)) * grid)


def plain_gradient(
    twin: Twin,
    names: Sequence[str],
    site: ReferenceSite,
    features: torch.Tensor | None,
    chosen: Arrays,
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
        found = pooled(twin, *rows(site.tokens, site.types, records))
    else:
        found = features[torch.tensor(records)]
    logits = found @ twin.trained["head.weight"].T + twin.trained["head.bias"]
    return functional.cross_entropy(logits, torch.from_numpy(site.labels[records]), reduction="none")


def logits_of(twin: Twin, tokens: Arrays, types: Arrays | None) -> torch.Tensor:
    """Logits of texts, without gradients."""
    with torch.no_grad():
        return pool(twin, tokens, types) @ twin.trained["head.weight"].T + twin.trained["head.bias"]


def pool(twin: Twin, tokens: Arrays, types: Arrays | None) -> torch.Tensor:
    """Features of many texts, shortest first, without gradients."""
    order = np.argsort([len(t) for t in tokens], kind="stable")
    found = torch.zeros(len(tokens), twin.encoder.config.hidden_size)
    with torch.no_grad():
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            found[torch.from_numpy(part)] = pooled(twin, *rows(tokens, types, part))
    return found


def rows(tokens: Arrays, types: Arrays | None, records: NDArray[np.int64]) -> tuple[Arrays, Arrays | None]:
    """Token ids and segment ids of some records."""
    return [tokens[int(i)] for i in records], None if types is None else [types[int(i)] for i in records]


def pooled(twin: Twin, tokens: Arrays, types: Arrays | None) -> torch.Tensor:
    """Features of one padded batch."""
    ids, mask = padded(tokens), padded([np.ones_like(t) for t in tokens])
    segments = {} if types is None else {"token_type_ids": padded(types)}
    hidden: torch.Tensor = twin.encoder(input_ids=ids, attention_mask=mask, **segments).last_hidden_state
    if twin.config.model.pooling is Pooling.CLS:
        return hidden[:, 0]
    return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def padded(texts: Arrays) -> torch.Tensor:
    """One row a text, zeros at the ends of the shorter ones."""
    width = max(len(t) for t in texts)
    return torch.stack([functional.pad(torch.from_numpy(t), (0, width - len(t))) for t in texts])


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
