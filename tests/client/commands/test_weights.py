from __future__ import annotations

from pathlib import Path

import pytest

from fedward_client.commands.weights import read_shapes, spec_for
from fedward_common.config import AdapterConfig, Method, Pooling
from fedward_common.errors import ModelError
from fedward_common.modeling.base import fingerprint
from support.sites import fake_base

pytestmark = pytest.mark.filterwarnings("ignore")
FINGERPRINT = "ab" * 32


def test_shapes_come_from_the_headers(tmp_path: Path) -> None:
    shapes = read_shapes(fake_base(tmp_path / "base"))
    assert shapes.hidden_size == 8
    assert shapes.layers("query") == {"encoder.layer.0.query": (8, 8)}
    assert shapes.work_per_token == 2 * 2 * 8 * 8  # query and value; embeddings are looked up


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (AdapterConfig(method=Method.CORE, rank=2), 2 * 4),
        (AdapterConfig(method=Method.LORA, rank=2), 2 * (16 + 16)),
        (AdapterConfig(method=Method.LORA, rank=2, freeze_a=True), 2 * 16),
    ],
)
def test_a_spec_has_the_sizes_of_the_real_one(tmp_path: Path, config: AdapterConfig, size: int) -> None:
    spec = spec_for(read_shapes(fake_base(tmp_path / "base")), config, fingerprint=FINGERPRINT, classes=3)
    assert spec.size == 3 * 8 + 3 + size
    assert spec.subset(("head",)).size == 27


def test_the_spec_of_a_real_model_is_the_one_that_training_would_use(tmp_path: Path) -> None:
    from fedward_common.modeling.adapters import adapt
    from fedward_common.modeling.base import load_base
    from support.tiny import tiny_base

    model = tiny_base(tmp_path / "base")
    identity = fingerprint(Path(model.base), pooling=Pooling.MEAN)
    for config in (AdapterConfig(rank=4), AdapterConfig(method=Method.LORA, rank=4)):
        real = adapt(load_base(model), config, classes=3, public_seed=0).spec
        assert spec_for(read_shapes(Path(model.base)), config, fingerprint=identity, classes=3).digest == real.digest


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    shapes = read_shapes(fake_base(tmp_path / "base"))
    with pytest.raises(ModelError, match="no layer named 'q_proj'"):
        spec_for(shapes, AdapterConfig(rank=2, target_modules=("q_proj",)), fingerprint=FINGERPRINT, classes=2)
    with pytest.raises(ModelError, match="rank 9 exceeds"):
        spec_for(shapes, AdapterConfig(rank=9), fingerprint=FINGERPRINT, classes=2)
    with pytest.raises(ModelError, match="no readable base model"):
        read_shapes(tmp_path)
