from __future__ import annotations

import pytest

from fedward_common.config import ModelConfig
from support.tiny import tiny_base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """The tiny BERT, saved once; read it, never write into its folder."""
    return tiny_base(tmp_path_factory.mktemp("models") / "tiny")
