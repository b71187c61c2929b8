"""The coordinator's evaluation as a process of its own, for a server that has no torch.

    python -P -m fedward_simulations.judge RUN-FOLDER TEST-FILE

Reads one JSON object a line, ``{"adapter": path, "round": 3}``, and answers ``{"metrics": {"accuracy": ..., "loss":
...}}``, or ``{"metrics": null}`` where this round is not measured. The test file is the coordinator's own data, outside
every guarantee. An error's text is never written: it might quote a record.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from fedward_client.data import load_records
from fedward_client.training import SiteInputs
from fedward_common.adapter import Adapter
from fedward_common.modeling.adapters import adapt
from fedward_common.modeling.base import load_base
from fedward_server.bundle import Bundle
from fedward_simulations.evaluation import TestEvaluator

__all__ = ["judge", "main", "opened"]

BUNDLE = "bundle"
Evaluate = Callable[[Path, int], Mapping[str, float] | None]


def opened(run: Path, test: Path) -> Evaluate:
    """Load the base model and the test file of a run.

    Raises:
      FedwardError: the bundle, the base model or the file cannot be used.
    """
    bundle = Bundle.load(run / BUNDLE)
    config = bundle.config
    base = load_base(config.model)
    model = adapt(base, config.adapter, classes=len(config.task.labels), public_seed=config.seed)
    data = config.data.model_copy(update={"site": None, "unit": None})
    records = load_records(data, config.task.labels, source=str(test))
    evaluator = TestEvaluator(config=config, model=model, records=records, inputs=SiteInputs(base, records))
    return lambda path, round: evaluator.evaluate(Adapter.load(bundle.spec, path), round=round)


def judge(lines: IO[str], answers: IO[str], evaluate: Evaluate) -> None:
    """Answer line by line until there are no more."""
    for line in lines:
        asked = json.loads(line)
        metrics = evaluate(Path(asked["adapter"]), int(asked["round"]))
        answers.write(json.dumps({"metrics": None if metrics is None else dict(metrics)}) + "\n")
        answers.flush()


def main() -> int:
    """Serve on stdin and stdout."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print; the answers are for the conductor alone
            judge(sys.stdin, answers, opened(Path(sys.argv[1]), Path(sys.argv[2])))
    except Exception as error:
        sys.stderr.write(f"the evaluation failed: {type(error).__name__}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
