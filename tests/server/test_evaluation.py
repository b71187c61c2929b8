from __future__ import annotations

from fedward_server.evaluation import Evaluator, NoEvaluation
from support.nouns import START


def test_a_coordinator_without_data_measures_nothing() -> None:
    evaluator: Evaluator = NoEvaluation()
    assert evaluator.evaluate(START, round=1) is None
