from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.adapter import Adapter
from fedward_common.config import AdapterConfig, ModelConfig
from fedward_common.errors import InputError
from fedward_common.modeling.adapters import AdaptedModel, adapt
from fedward_common.modeling.base import Base, load_base
from fedward_common.modeling.tasks.classification import (
    TokenisedTexts,
    features,
    losses,
    predict,
    scores,
    tokenise,
)
from support.tiny import WORDS

CPU = torch.device("cpu")
TEXTS = [(" ".join(WORDS[n % 30] for n in range(start, start + 1 + start % 11)),) for start in range(14)] + [("",)]


@pytest.fixture(scope="module")
def base(tiny: ModelConfig) -> Base:
    return load_base(tiny)


@pytest.fixture(scope="module")
def model(tiny: ModelConfig) -> AdaptedModel:
    """A model in which head and adapter matter."""
    model = adapt(load_base(tiny), AdapterConfig(rank=4, alpha=16.0), classes=3, public_seed=3)
    values = np.random.default_rng(0).normal(scale=0.3, size=model.spec.size)
    model.load(Adapter(spec=model.spec, vector=values.astype(np.float32)))
    return model


def some(*lengths: int) -> TokenisedTexts:
    """Records whose tokens are their own number, plus one."""
    return TokenisedTexts(tokens=tuple(np.full(n, i + 1, np.int64) for i, n in enumerate(lengths)), pad_id=0)


def test_tokenise_adds_special_tokens_and_cuts(base: Base) -> None:
    tokens = tokenise(base, [("chest pain",), (" ".join(["fever"] * 90),), ("",)])
    assert [len(t) for t in tokens.tokens] == [4, base.max_tokens, 2]
    assert tokens.lengths.tolist() == [4, 32, 2]
    ids = base.tokenizer.convert_tokens_to_ids(["[CLS]", "chest", "pain", "[SEP]"])
    assert tokens.tokens[0].tolist() == ids
    assert (len(tokens), tokens.pad_id) == (3, base.tokenizer.pad_token_id)


def test_tokenise_takes_pairs(base: Base) -> None:
    separator = base.tokenizer.convert_tokens_to_ids("[SEP]")
    (pair,) = tokenise(base, [("chest pain", "fever")]).tokens
    assert (pair == separator).sum() == 2


def test_no_texts_are_no_tokens(base: Base) -> None:
    assert len(tokenise(base, [])) == 0


def test_a_batch_pads_to_its_longest() -> None:
    batch = some(2, 4, 1).batch(np.array([2, 0]), device=CPU)
    assert batch.ids.tolist() == [[3, 0], [1, 1]]
    assert batch.mask.tolist() == [[1, 0], [1, 1]]
    assert batch.index.tolist() == [2, 0]


@pytest.mark.parametrize("lengths", [(0,), (0, 0)])
def test_a_batch_is_at_least_one_token_wide(lengths: tuple[int, ...]) -> None:
    batch = some(*lengths).batch(np.arange(len(lengths)), device=CPU)
    assert batch.ids.shape == (len(lengths), 1)
    assert not batch.mask.any()


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), size=st.integers(1, 7), data=st.data())
def test_batches_hold_each_chosen_record_once_shortest_first(
    lengths: list[int], size: int, data: st.DataObject
) -> None:
    texts = some(*lengths)
    index = np.array(data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True)), np.int64)
    batches = list(texts.batches(index, size=size, device=CPU))
    order = [int(i) for batch in batches for i in batch.index]
    assert sorted(order) == sorted(index.tolist())
    widths = [lengths[i] for i in order]
    assert widths == sorted(widths)
    assert [len(batch.index) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    for batch in batches:
        assert batch.ids[:, 0].tolist() == [i + 1 for i in batch.index]
        assert batch.mask.sum(1).tolist() == [lengths[i] for i in batch.index]
        assert batch.ids.shape[1] == max(lengths[i] for i in batch.index)


def test_records_of_one_length_keep_their_order() -> None:
    (batch,) = some(3, 3, 3, 3).batches(np.array([2, 0, 3, 1]), size=9, device=CPU)
    assert batch.index.tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize("run", [predict, features])
def test_results_do_not_depend_on_the_batch_size_and_come_in_the_records_order(
    run: Callable[..., torch.Tensor], model: AdaptedModel, base: Base
) -> None:
    texts = tokenise(base, TEXTS)
    whole = run(model, texts, batch_size=len(TEXTS))
    assert whole.shape[0] == len(TEXTS)
    for size in (1, 4, 64):
        torch.testing.assert_close(run(model, texts, batch_size=size), whole, rtol=0, atol=1e-5)
    for number in (0, 8, len(TEXTS) - 1):
        alone = run(model, tokenise(base, [TEXTS[number]]))
        torch.testing.assert_close(alone[0], whole[number], rtol=0, atol=1e-5)
    assert whole.std(0).min() > 1e-3  # the texts do differ


def test_predict_is_the_head_on_the_features(model: AdaptedModel, base: Base) -> None:
    texts = tokenise(base, TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(predict(model, texts), model.head(features(model, texts)))


def test_predict_reports_progress_and_keeps_no_graph(model: AdaptedModel, base: Base) -> None:
    steps: list[tuple[int, int]] = []
    model.select(["head"])
    logits = predict(model, tokenise(base, TEXTS[:10]), batch_size=4, progress=lambda *step: steps.append(step))
    assert steps == [(4, 10), (8, 10), (10, 10)]
    assert not logits.requires_grad


def test_nothing_to_run_on_is_an_error(model: AdaptedModel, base: Base) -> None:
    with pytest.raises(InputError, match="no text"):
        predict(model, tokenise(base, []))


def test_losses_are_cross_entropies_of_each_record() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    expected = torch.tensor([np.log(2.0), 2 + np.log1p(np.exp(-2.0))], dtype=torch.float32)
    torch.testing.assert_close(losses(logits, torch.tensor([0, 1])), expected)
    assert losses(logits.to(torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


def test_scores_are_hits_and_losses() -> None:
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    labels = torch.tensor([1, 1])
    result = scores(logits, labels)
    assert result.dtype == np.float64
    assert result[:, 0].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(result[:, 1], losses(logits, labels).numpy(), rtol=1e-6)
