from __future__ import annotations

from fedward_common.config import RunConfig
from fedward_common.privacy.guarantee import Unit
from fedward_simulations.demo import demo_config, head_only, quick_config


def test_the_demo_is_an_ordinary_run_file() -> None:
    config = demo_config(seed=5)
    assert RunConfig.from_toml(config.to_toml()) == config
    assert (config.privacy.epsilon, config.privacy.delta, config.privacy.unit) == (8.0, 1e-5, Unit.RECORD)
    assert (config.partition.sites, config.partition.alpha) == (10, 0.5)
    assert len(config.task.labels) == 21
    assert config.evaluations > 0


def test_the_quick_demo_has_every_part_of_the_demo() -> None:
    full, quick = demo_config(), quick_config()
    assert [stage.train for stage in quick.stages] == [stage.train for stage in full.stages]
    assert quick.partition.sites == 2
    assert quick.evaluations > 0


def test_head_only_keeps_the_promise_and_drops_the_adapter() -> None:
    full = demo_config()
    alone = head_only(full)
    assert alone.privacy == full.privacy
    assert {stage.train for stage in alone.stages} == {("head",)}
    assert alone.total_rounds == sum(stage.rounds for stage in full.stages if stage.train == ("head",))
