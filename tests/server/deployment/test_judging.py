from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedward_server.deployment.judging import Judge, evaluator_of
from support.coordinating import config_of
from support.nouns import START
from support.operating import new_operator, new_run

ECHO = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    assert open(asked["adapter"], "rb").read()
    print(json.dumps({"metrics": {"accuracy": asked["round"] / 10, "loss": float("inf")}}), flush=True)
"""


def judge(script: str, tmp_path: Path, *, limit_s: float = 20.0, stopping: bool = False) -> Judge:
    argv = [sys.executable, "-c", script]
    return Judge(argv, scratch=tmp_path / "scratch", stopping=lambda: stopping, limit_s=limit_s)


def test_a_child_measures_round_after_round(tmp_path: Path) -> None:
    made = judge(ECHO, tmp_path)
    assert [made.evaluate(START, round=number) for number in (3, 5)] == [{"accuracy": 0.3}, {"accuracy": 0.5}]
    made.close()
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    "script",
    [
        "raise SystemExit(1)",
        "import sys; sys.stdin.readline(); print('no JSON', flush=True)",
        "import sys; sys.stdin.readline(); print('[1]', flush=True)",
        'import sys; sys.stdin.readline(); print(\'{"metrics": {"accuracy": "x"}}\', flush=True)',
        "import sys; sys.stdin.readline(); print('x' * 100000, flush=True)",
    ],
)
def test_a_failed_or_dead_child_never_ends_a_run(script: str, tmp_path: Path) -> None:
    made = judge(script, tmp_path)
    assert made.evaluate(START, round=1) is None
    made.close()


def test_a_slow_child_never_holds_a_run_up(tmp_path: Path) -> None:
    made = judge("import time; time.sleep(60)", tmp_path, limit_s=0.5)
    began = time.monotonic()
    assert made.evaluate(START, round=1) is None
    assert time.monotonic() - began < 10


def test_a_stop_ends_an_evaluation(tmp_path: Path) -> None:
    made = judge("import time; time.sleep(60)", tmp_path, stopping=True)
    assert made.evaluate(START, round=1) is None


def test_after_three_failures_no_child_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = judge("raise SystemExit(1)", tmp_path)
    for _ in range(3):
        assert made.evaluate(START, round=1) is None
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    assert made.evaluate(START, round=1) is None


def test_a_run_without_a_test_file_here_is_not_evaluated(tmp_path: Path) -> None:
    folder = new_operator(tmp_path / "op")
    run = new_run(folder, tmp_path / "bundle")
    for data in ({"train": "memory"}, {"train": "memory", "test": "nowhere.csv"}):
        made = evaluator_of(run, config_of(data=data), base=folder.root, stopping=lambda: False)
        assert made.evaluate(START, round=1) is None
        made.close()


def test_a_run_with_a_test_file_and_torch_gets_a_child(tmp_path: Path) -> None:
    folder = new_operator(tmp_path / "op")
    run = new_run(folder, tmp_path / "bundle")
    (folder.root / "test.csv").write_text("text,label\n")
    config = config_of(data={"train": "memory", "test": "test.csv"})
    made = evaluator_of(run, config, base=folder.root, stopping=lambda: False)
    assert isinstance(made, Judge)
