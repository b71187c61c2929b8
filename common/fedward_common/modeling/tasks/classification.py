"""Text classification: texts and label numbers to padded tensors, logits to losses and scores.

Labels are public and fixed by the task. This module knows nothing of units, clipping or noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedward_common.errors import InputError
from fedward_common.modeling.adapters import AdaptedModel
from fedward_common.modeling.base import Base

__all__ = ["Batch", "Progress", "TokenisedTexts", "features", "losses", "predict", "scores", "tokenise"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A padded physical batch: ``ids``, ``mask`` and ``types`` of shape ``(n, tokens)``, ``index`` of its n records.

    ``types`` tells the two texts of a pair apart, where the base model does; None elsewhere.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor | None
    index: NDArray[np.int64]

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What the model is called with."""
        return (self.ids, self.mask) if self.types is None else (self.ids, self.mask, self.types)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenisedTexts:
    """Token ids of every record, unpadded; ``types`` of the same shapes for pairs."""

    tokens: tuple[NDArray[np.int64], ...]
    pad_id: int
    types: tuple[NDArray[np.int64], ...] | None = None

    def __len__(self) -> int:
        """Number of records."""
        return len(self.tokens)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each record."""
        return np.array([len(t) for t in self.tokens], np.int64)

    def batch(self, index: NDArray[np.int64], *, device: torch.device) -> Batch:
        """Pad the chosen records to their longest, at least one token."""
        chosen = [self.tokens[i] for i in index]
        width = max((len(t) for t in chosen if len(t)), default=1)
        return Batch(
            ids=_pad(chosen, width, self.pad_id).to(device),
            mask=_pad([np.ones_like(t) for t in chosen], width, 0).to(device),
            types=None if self.types is None else _pad([self.types[i] for i in index], width, 0).to(device),
            index=index,
        )

    def batches(self, index: NDArray[np.int64], *, size: int, device: torch.device) -> Iterator[Batch]:
        """Physical batches of like lengths, longest last: little padding."""
        ordered = index[np.argsort(self.lengths[index], kind="stable")]
        for start in range(0, len(ordered), size):
            yield self.batch(ordered[start : start + size], device=device)


def tokenise(base: Base, texts: Sequence[tuple[str, ...]]) -> TokenisedTexts:
    """Token ids with the model's special tokens, cut at ``base.max_tokens``. One text or a pair a record."""
    pad = base.tokenizer.pad_token_id or 0
    if not texts:
        return TokenisedTexts(tokens=(), pad_id=pad)
    columns: list[Any] = [list(column) for column in zip(*texts, strict=True)]
    found = base.tokenizer(*columns, truncation=True, max_length=base.max_tokens)
    pairs = len(columns) > 1 and "token_type_ids" in found
    return TokenisedTexts(
        tokens=tuple(np.asarray(row, np.int64) for row in found["input_ids"]),
        pad_id=pad,
        types=tuple(np.asarray(row, np.int64) for row in found["token_type_ids"]) if pairs else None,
    )


def _pad(rows: Sequence[NDArray[np.int64]], width: int, filler: int) -> torch.Tensor:
    padded = np.full((len(rows), width), filler, np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)


def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each record: ``(n, classes)`` and ``(n,)`` to ``(n,)``."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def scores(logits: torch.Tensor, labels: torch.Tensor) -> NDArray[np.float64]:
    """Whether each record is right, and its loss in nats: ``(n, 2)``. Unbounded; the metric mechanism bounds them."""
    correct = (logits.argmax(1) == labels).cpu().double()  # Apple's GPUs have no float64
    return torch.stack([correct, losses(logits, labels).cpu().double()], dim=1).numpy()


def predict(
    model: AdaptedModel, texts: TokenisedTexts, *, batch_size: int = 64, progress: Progress | None = None
) -> torch.Tensor:
    """Logits of every record in its order: ``(n, classes)``."""
    return _over(model, model.forward, texts, batch_size, progress)


def features(
    model: AdaptedModel, texts: TokenisedTexts, *, batch_size: int = 64, progress: Progress | None = None
) -> torch.Tensor:
    """Pooled features of every record in its order: ``(n, hidden)``."""
    return _over(model, model.features, texts, batch_size, progress)


def _over(
    model: AdaptedModel,
    function: Callable[..., torch.Tensor],
    texts: TokenisedTexts,
    batch_size: int,
    progress: Progress | None,
) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    order: list[NDArray[np.int64]] = []
    done = 0
    with torch.no_grad():
        for batch in texts.batches(np.arange(len(texts)), size=batch_size, device=model.device):
            rows.append(function(*batch.inputs).float())
            order.append(batch.index)
            done += len(batch.index)
            if progress:
                progress(done, len(texts))
    if not rows:
        raise InputError("there is no text to run the model on", hint="give at least one record")
    out = torch.empty_like(torch.cat(rows))
    out[torch.from_numpy(np.concatenate(order)).to(out.device)] = torch.cat(rows)
    return out
