"""What training clips, for many families of encoders: each row is the gradient of one record, whoever is beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from opacus import GradSampleModule

from fedward_common.config import AdapterConfig, Method
from fedward_common.modeling.adapters import adapt
from support.families import APART, base_of, named

IDS, LABELS = torch.arange(1, 33).view(4, 8), torch.tensor([0, 1, 2, 0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", APART, ids=named)
def test_the_gradient_of_a_record_does_not_depend_on_the_others_in_its_batch(case: tuple[Any, tuple[str, ...]]) -> None:
    config, modules = case
    wanted = AdapterConfig(method=Method.CORE, rank=4, target_modules=modules)
    model = adapt(base_of(config), wanted, classes=3, public_seed=0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    parameters = model.select(("adapter",))
    hooked = GradSampleModule(model, loss_reduction="sum", strict=False)

    def rows(chosen: slice) -> torch.Tensor:
        logits = hooked(IDS[chosen], torch.ones_like(IDS[chosen]))
        torch.nn.functional.cross_entropy(logits, LABELS[chosen], reduction="sum").backward()  # type: ignore[no-untyped-call]
        samples: list[Any] = list(parameters)
        found = torch.cat([value.grad_sample.flatten(1) for value in samples], dim=1)
        hooked.zero_grad(set_to_none=True)
        return found

    together = rows(slice(0, 4))
    alone = torch.cat([rows(slice(number, number + 1)) for number in range(4)])
    assert together.shape == alone.shape
    assert (alone.norm(dim=1) > 0).all()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
