from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedward_simulations.judge import judge, opened
from support.hospital import Hospital, write_notes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder and, beside it, a test file."""
    root = tmp_path_factory.mktemp("judge")
    bundle = Hospital.make(root / "hospital").bundle
    data = bundle.config.data.model_copy(update={"text": ("note",), "label": "organ"})
    config = bundle.config.model_copy(update={"data": data})
    (root / "run" / "bundle").mkdir(parents=True)
    type(bundle)(run_id=bundle.run_id, config=config, initial=bundle.initial, frozen=bundle.frozen, base_name="").save(
        root / "run" / "bundle"
    )
    bundle.initial.save(root / "run" / "adapter.safetensors")
    write_notes(root / "test.csv", ["p1", "p2", "p3"])
    return root / "run"


def test_each_line_is_answered(tmp_path: Path) -> None:
    lines = io.StringIO('{"adapter": "a", "round": 1}\n{"adapter": "b", "round": 2}\n')
    answers = io.StringIO()
    judge(lines, answers, lambda path, round: {"accuracy": 0.5} if path.name == "a" else None)
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert said == [{"metrics": {"accuracy": 0.5}}, {"metrics": None}]


def test_an_adapter_is_measured_on_the_operators_file(run: Path) -> None:
    metrics = opened(run, run.parent / "test.csv")(run / "adapter.safetensors", 1)
    assert metrics is not None
    assert set(metrics) == {"accuracy", "loss"}


@pytest.mark.slow
def test_the_process_says_only_the_kind_of_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fedward_simulations.judge", str(tmp_path / "John Doe"), "none.csv"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "John Doe" not in done.stdout + done.stderr
    assert "OutputError" in done.stderr
