from __future__ import annotations

import json

import pytest

from fedward_common.errors import InputError
from fedward_simulations.engines import Computing, Engine, Precision
from fedward_simulations.ray.cluster import RayCluster

RAY = Computing(engine=Engine.RAY, ray=RayCluster(address="head:6379", client_cpus=0.5))


@pytest.mark.parametrize(
    "computing",
    [Computing(), Computing(engine=Engine.SEQUENTIAL, device="cpu"), Computing(precision=Precision.BFLOAT16), RAY],
)
def test_what_a_run_remembers_is_how_it_was_computed(computing: Computing) -> None:
    assert Computing.of({}, before=json.loads(json.dumps(computing.remembered))) == computing


def test_what_is_named_goes_before_what_is_remembered() -> None:
    before = Computing(engine=Engine.SEQUENTIAL, device="cuda:1").remembered
    found = Computing.of({"device": "cpu", "clients": None, "profiled": True}, before=before)
    assert found == Computing(engine=Engine.SEQUENTIAL, device="cpu", profiled=True)


def test_another_engine_remembers_nothing() -> None:
    assert Computing.of({"engine": Engine.COHORT}, before=RAY.remembered) == Computing()
    assert Computing.of({"engine": Engine.RAY}, before=Computing(device="cpu").remembered).device == "auto"


def test_rays_options_are_for_ray_alone() -> None:
    with pytest.raises(InputError, match="Ray's options go with Ray's engine"):
        Computing.of({"address": "auto"})
