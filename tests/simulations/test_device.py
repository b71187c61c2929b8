from __future__ import annotations

import numpy as np
import pytest
import torch

from fedward_common.errors import InputError
from fedward_simulations.device import chosen, held_bytes, onto, peak_bytes
from fedward_simulations.engines import Computing, Engine, Precision

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "CPU", "cpu:0"])
def test_names_are_checked_before_anything_else(name: str) -> None:
    with pytest.raises(InputError, match="no device is called"):
        Computing(device=name)


@NO_GPU
def test_what_is_not_there_is_named_with_what_is() -> None:
    with pytest.raises(InputError, match="there is no device cuda:3 here") as error:
        Computing(device="cuda:3").place()
    assert error.value.hint == "there is cpu; or auto"
    assert chosen("auto") == chosen("cpu") == torch.device("cpu")


def test_processes_of_one_job_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(chosen("auto", turn=turn)) for turn in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert str(chosen("cuda")) == "cuda:0"
    with pytest.raises(InputError, match="there is no device cuda:2"):
        chosen("cuda:2")


def test_bfloat16_is_for_the_cohort_engine_on_cuda() -> None:
    with pytest.raises(InputError, match="cpu does not compute in bfloat16 here"):
        Computing(device="cpu", precision=Precision.BFLOAT16).place()
    with pytest.raises(InputError, match="bfloat16 goes with the cohort engine"):
        Computing(engine=Engine.SEQUENTIAL, precision=Precision.BFLOAT16)


def test_ray_chooses_devices_and_is_not_profiled_here() -> None:
    with pytest.raises(InputError, match="each worker has its own device"):
        Computing(engine=Engine.RAY, device="cpu")
    with pytest.raises(InputError, match="--profile measures one process"):
        Computing(engine=Engine.RAY, profiled=True)


def test_the_peak_is_what_was_held_at_the_worst() -> None:
    before = held_bytes()["host"]
    block = np.ones(8_000_000)
    high = held_bytes()["host"]
    assert high - before > 0.9 * block.nbytes
    del block
    assert peak_bytes()["host"] >= high - 1e6


def test_arrays_go_where_the_model_is() -> None:
    assert onto(np.arange(3), torch.device("cpu")).tolist() == [0, 1, 2]
