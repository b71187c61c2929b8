from __future__ import annotations

from pathlib import Path

from fedward_simulations.prepare import prepare, public_base_name
from support.federation import small_config


def test_the_same_run_file_gives_the_same_tensors_under_a_fresh_run_id(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    first, second = prepare(config).bundle, prepare(config).bundle
    assert first.initial.digest == second.initial.digest
    assert first.run_id != second.run_id
    assert prepare(config, run_id=first.run_id).bundle.run_id == first.run_id


def test_an_alias_is_exported_under_its_hub_id(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    assert public_base_name(config) == config.model.base
    aliased = config.model_copy(update={"model": config.model.model_copy(update={"base": "minilm"})})
    assert public_base_name(aliased) == "sentence-transformers/all-MiniLM-L6-v2"
