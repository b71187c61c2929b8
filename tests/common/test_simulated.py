from __future__ import annotations

import pytest
from pydantic import ValidationError

from fedward_common.config import RunConfig
from fedward_common.errors import ConfigError
from fedward_common.simulated import Poison, SimulationConfig

RUN = '[data]\ntrain = "a.csv"\n[task]\nlabels = ["yes", "no"]\n'


def test_by_default_nothing_goes_wrong() -> None:
    settings = SimulationConfig()
    numbers = {name: value for name, value in settings.model_dump().items() if not name.startswith("poison_")}
    assert set(numbers.values()) == {0, Poison.SCALE}
    assert RunConfig.from_toml(RUN).simulation is None
    assert RunConfig.from_toml(RUN + "[simulation]\n").simulation == settings


def test_it_comes_back_from_toml() -> None:
    text = RUN + '[simulation]\ndropout = 0.1\npoisoned = 2\npoison = "flip"\npoison_factor = -3\n'
    config = RunConfig.from_toml(text)
    assert config.simulation is not None and config.simulation.poison is Poison.FLIP
    assert RunConfig.from_toml(config.to_toml()) == config


def test_an_unknown_key_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown key simulation\.dropuot") as caught:
        RunConfig.from_toml(RUN, overrides=["simulation.dropuot=1"])
    assert "dropout" in caught.value.hint


@pytest.mark.parametrize("spread", ["straggle_sigma", "jitter_sigma"])
def test_a_spread_needs_something_to_spread(spread: str) -> None:
    assert SimulationConfig.model_validate({spread: 1.0, "compute_s": 2.0})
    with pytest.raises(ValidationError, match="compute_s"):
        SimulationConfig.model_validate({spread: 1.0})
