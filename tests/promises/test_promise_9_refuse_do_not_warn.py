"""Promise 9: where a guarantee would break, stop and say why; a waiver has a name and is in every guarantee."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import fedward_client
import fedward_common
from fedward_common.codec import decode_reply, new_key
from fedward_common.config import RunConfig
from fedward_common.errors import BudgetError, ConfigError, FedwardError, PrivacyError
from fedward_common.round import Update
from fedward_simulations.run import Workbench
from support.federation import plan_bytes, population_of, small_bench


@pytest.mark.parametrize("epsilon", ["0", "-1", "inf", "nan"])
def test_no_run_file_asks_for_no_privacy(epsilon: str) -> None:
    text = f'schema = 1\n[task]\nlabels = ["a", "b"]\n[data]\ntrain = "x"\n[privacy]\nepsilon = {epsilon}\n'
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_toml(text)
    assert "privacy.epsilon" in str(caught.value)
    assert caught.value.hint


def test_a_delta_that_permits_publishing_units_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="not below 1 / units"):
        small_bench(tmp_path, privacy={"delta": 0.04, "validation_fraction": 0.2})


def test_a_target_that_no_noise_meets_is_refused(tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [{"name": "head", "train": ["head"], "rounds": 9000}]
    with pytest.raises(BudgetError) as caught:
        small_bench(tmp_path, stages=stages, privacy={"epsilon": 1e-6, "delta": 1e-12, "validation_fraction": 0.2})
    assert caught.value.hint


def test_the_waiver_is_written_into_every_guarantee(tmp_path: Path) -> None:
    operator = new_key()
    bench: Workbench = small_bench(tmp_path, sites=1)
    population = population_of(bench, operator)
    for round in (1, 2):
        reply = decode_reply(
            population.sites["site-1"].answer(plan_bytes(bench, operator, round=round)),
            public_key=population.keys["site-1"],
            spec=bench.prepared.bundle.spec.subset(("head",)),
        )
        assert isinstance(reply, Update)
        assert reply.guarantee.waivers == ("seeded_randomness",)
        assert "seeded_randomness" in reply.guarantee.describe()


def test_no_module_on_the_privacy_path_warns() -> None:
    """``warnings.warn`` and ``logging.warning`` are no answers here."""
    for package in (fedward_common, fedward_client):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    assert node.func.attr not in {"warn", "warning"}, path


def test_every_error_has_a_hint() -> None:
    """No error of ours can be raised without saying what to do."""
    with pytest.raises(TypeError):
        FedwardError("what")  # type: ignore[call-arg]
