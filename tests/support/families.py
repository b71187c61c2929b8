"""Small encoders of many families, from their configurations: those that keep records apart, and those that do not.

Example:
    base = base_of(config)  # random weights of a fixed seed, no tokenizer but a padding id
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers

from fedward_common.config import Pooling
from fedward_common.modeling.base import Base, _without_dropout

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
WIDE = {**SMALL, "intermediate_size": 64}
DEBERTA = {**WIDE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm"}
APART = [
    (transformers.BertConfig(**WIDE), ("query", "value")),
    (transformers.RobertaConfig(**WIDE), ("query", "key")),
    (transformers.XLMRobertaConfig(**WIDE), ("query", "value")),
    (transformers.ElectraConfig(**WIDE, embedding_size=16), ("query", "value")),
    (transformers.AlbertConfig(**WIDE, embedding_size=16), ("query", "ffn")),  # one layer, called twice
    (transformers.MPNetConfig(**WIDE), ("q", "v")),
    (transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=50), ("q_lin", "v_lin")),
    (transformers.ModernBertConfig(**WIDE, pad_token_id=0), ("Wqkv", "Wo")),
    (transformers.DebertaV2Config(**DEBERTA, share_att_key=True), ("value_proj",)),
    (transformers.DebertaV2Config(**DEBERTA, share_att_key=False), ("query_proj", "value_proj")),
]
MIXED = [
    (transformers.DebertaV2Config(**DEBERTA, share_att_key=True), ("query_proj",)),  # reads positions of all texts too
    (transformers.LongformerConfig(**WIDE, attention_window=4, pad_token_id=0), ("query", "value")),  # tokens first
]


def base_of(config: Any) -> Base:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = transformers.AutoModel.from_config(config).requires_grad_(False)
    _without_dropout(encoder)
    return Base(
        encoder=encoder,
        tokenizer=SimpleNamespace(pad_token_id=0),
        pooling=Pooling.MEAN,
        max_tokens=16,
        hidden_size=32,
        fingerprint="0" * 64,
    )


def named(case: tuple[Any, tuple[str, ...]]) -> str:
    return f"{case[0].model_type}-{'-'.join(case[1])}"
