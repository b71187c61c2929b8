"""The embedded default: automatic diagnosis coding at ten virtual hospitals, on a real model and real text, no network.

Base all-MiniLM-L6-v2, data ICD-10-CM, both from installed packages; what is run is an ordinary run file.
"""

from __future__ import annotations

from fedward_common.config import DataConfig, PartitionConfig, RunConfig, StageConfig, TaskConfig
from fedward_simulations.dealing.quickstart import icd_labels
from fedward_simulations.dealing.sources import BUILT_IN

__all__ = ["demo_config", "head_only", "quick_config"]

QUICK_PHRASES = 300


def demo_config(*, seed: int = 0) -> RunConfig:
    """The demo's run file: defaults of every run, on the built-in data."""
    return RunConfig(
        name="demo",
        seed=seed,
        task=TaskConfig(labels=icd_labels()),
        data=DataConfig(train=BUILT_IN),
    )


def quick_config(*, seed: int = 0) -> RunConfig:
    """A two-site miniature for tests: every part of the path, no useful accuracy."""
    config = demo_config(seed=seed)
    return config.model_copy(
        update={
            "name": "demo-quick",
            "data": DataConfig(train=f"{BUILT_IN}:{QUICK_PHRASES}"),
            "partition": PartitionConfig(sites=2),
            "stages": tuple(_shortened(stage) for stage in config.stages),
        }
    )


def head_only(config: RunConfig) -> RunConfig:
    """The same run with its head stages alone, at the same total epsilon: what the adapter must beat."""
    stages = tuple(stage for stage in config.stages if stage.train == ("head",))
    return config.model_copy(update={"name": f"{config.name}-head-only", "stages": stages})


def _shortened(stage: StageConfig) -> StageConfig:
    rounds = 4 if stage.train == ("head",) else 2
    return stage.model_copy(update={"rounds": rounds, "evaluate_every": min(stage.evaluate_every, 2)})
