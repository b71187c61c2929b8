from __future__ import annotations

from typing import Any

import pytest
import transformers

from fedward_common.config import AdapterConfig, Method
from fedward_common.errors import ModelError
from fedward_common.modeling.adapters import adapt
from support.families import APART, MIXED, WIDE, base_of, named


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("case", APART, ids=named)
def test_encoders_of_many_families_keep_records_apart(case: tuple[Any, tuple[str, ...]], method: Method) -> None:
    config, modules = case
    base = base_of(config)
    model = adapt(base, AdapterConfig(method=method, rank=4, target_modules=modules), classes=3, public_seed=0)
    assert all(not module._forward_hooks for module in model.modules())
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("case", MIXED, ids=named)
def test_what_leads_another_records_row_through_a_trained_layer_is_refused(
    case: tuple[Any, tuple[str, ...]], method: Method
) -> None:
    config, modules = case
    with pytest.raises(ModelError, match="mixes the records of a batch"):
        adapt(base_of(config), AdapterConfig(method=method, rank=4, target_modules=modules), classes=3, public_seed=0)


def test_an_encoder_that_looks_at_other_texts_of_its_batch_is_refused() -> None:
    base = base_of(transformers.BertConfig(**WIDE))
    embeddings: Any = base.encoder.embeddings
    honest = embeddings.forward
    embeddings.forward = lambda *args, **more: (found := honest(*args, **more)) + 1e-3 * found.roll(1, 0)
    with pytest.raises(ModelError, match="mixes the records of a batch"):
        adapt(base, AdapterConfig(rank=4, target_modules=("query",)), classes=3, public_seed=0)


def test_what_is_no_encoder_of_text_is_refused() -> None:
    base = base_of(transformers.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=50))
    with pytest.raises(ModelError, match=r"does not run on a text \(ValueError\)"):
        adapt(base, AdapterConfig(rank=4, target_modules=("q",)), classes=3, public_seed=0)


def test_the_shortest_texts_are_enough_to_see_it() -> None:
    longformer, modules = MIXED[1]
    for tokens in (1, 3):  # three rows of tokens look like three texts
        base = base_of(longformer)
        object.__setattr__(base, "max_tokens", tokens)
        with pytest.raises(ModelError, match="mixes the records"):
            adapt(base, AdapterConfig(rank=4, target_modules=modules), classes=3, public_seed=0)
