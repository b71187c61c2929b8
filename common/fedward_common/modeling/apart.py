"""Whether an adapted model keeps the records of a batch apart, tried on three made-up texts.

Clipping bounds what one record moves only where its gradient is its own: where row i of whatever enters and leaves a
trained layer belongs to record i and to no other. Some models lay tokens out before records (Longformer), or lead
something of the whole batch through a trained layer (DeBERTa's positions under ``share_att_key``). There the rows that
per-record gradients are made of would be no records'. This module knows nothing of data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from fedward_common.errors import ModelError

__all__ = ["check_records_apart"]

TEXTS, TOKENS = 3, 9  # of unlike lengths


@torch.enable_grad()
def check_records_apart(encoder: Any, trained: Sequence[nn.Module], *, pad_id: int, most_tokens: int) -> None:
    """Refuse an encoder in which a record reaches another one's row.

    Args:
      encoder: from token ids and mask to ``last_hidden_state``, adapted, in float32.
      trained: its trained layers, each with parameters that require gradients.
      pad_id: of its tokenizer.
      most_tokens: that it reads.

    Guarantees:
      - Of a model that passes, what a text makes of its row depends on that text alone, and its gradient reaches that
        row alone: in the embeddings, and wherever a trained layer is called.
      - The model is left as it was.

    Raises:
      ModelError: otherwise, or it does not run.
    """
    ids, mask = _texts(int(encoder.config.vocab_size), pad_id, min(TOKENS, most_tokens))
    rows: list[torch.Tensor] = []
    try:
        with _keeping(rows, encoder.get_input_embeddings(), trained):
            hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    except Exception as error:  # whatever a model raises that wants something else than texts
        raise ModelError(
            f"the base model does not run on a text ({type(error).__name__})", hint="fedward adapts encoders of text"
        ) from error
    if len(hidden) != TEXTS or any(len(row) != TEXTS for row in rows):
        raise _mixed()
    weights = torch.linspace(-1.0, 1.0, hidden[0].numel()).view_as(hidden[0])
    for text in range(TEXTS):
        others = [other for other in range(TEXTS) if other != text]
        found = torch.autograd.grad(hidden[text], rows, weights, retain_graph=True, allow_unused=True)
        if any(gradient is not None and bool(gradient[others].any()) for gradient in found):
            raise _mixed()


def _mixed() -> ModelError:
    return ModelError(
        "the base model mixes the records of a batch in a layer that is trained",
        hint="choose other adapter.target_modules or another base: clipping must bound each record alone",
    )


def _texts(words: int, pad_id: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(TEXTS, tokens, dtype=torch.int64)
    for text in range(TEXTS):
        mask[text, max(tokens - 2 * text, 1) :] = 0
    ids = torch.arange(TEXTS * tokens).view(TEXTS, tokens) % max(words - 1, 1) + min(1, words - 1)
    return torch.where(mask == 1, ids, pad_id), mask


@contextmanager
def _keeping(rows: list[torch.Tensor], embeddings: nn.Module, trained: Sequence[nn.Module]) -> Iterator[None]:
    """Keep whatever leaves these layers, as something that a gradient can be asked for."""

    def keep(module: nn.Module, given: object, out: torch.Tensor) -> torch.Tensor:
        rows.append(out if out.requires_grad else out.requires_grad_())
        return out.clone()  # which a model may go on to change in place

    with ExitStack() as stack:
        for layer in (embeddings, *trained):
            stack.callback(layer.register_forward_hook(keep).remove)
        yield
