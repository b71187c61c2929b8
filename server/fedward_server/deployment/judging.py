"""The coordinator's evaluation as a child process, where torch is installed; the server itself has none.

    python -P -m fedward_simulations.judge RUN-FOLDER TEST-FILE

One JSON object a line, both ways: ``{"adapter": path, "round": 3}`` in, ``{"metrics": {...}}`` or ``{"metrics": null}``
out. The test file is the operator's own, on the operator's machine, outside every guarantee.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from fedward_common.adapter import Adapter
from fedward_common.config import RunConfig
from fedward_common.errors import FedwardError
from fedward_common.machine.exec import command
from fedward_common.machine.namespaces import Network
from fedward_server.deployment.runs import RunFolder
from fedward_server.evaluation import NoEvaluation

__all__ = ["Judge", "evaluator_of"]

LOG = logging.getLogger("fedward.judging")
LIMIT_S = 900.0
LOOK_S = 0.5
TRIES = 3  # failures in a row; then the run goes on without evaluation
LONGEST_LINE = 1 << 16
ADAPTER = "evaluated.safetensors"


class _Closing(Protocol):
    def evaluate(self, adapter: Adapter, *, round: int) -> Mapping[str, float] | None: ...

    def close(self) -> None: ...


class _Nothing(NoEvaluation):
    def close(self) -> None:
        """Nothing to close."""


def evaluator_of(run: RunFolder, config: RunConfig, *, base: Path, stopping: Callable[[], bool]) -> _Closing:
    """The evaluator of a run: a child where the run file names a test file that is here, and torch is; else nothing.

    Args:
      run: of the run.
      config: its run file; a relative ``data.test`` counts from ``base``.
      base: the operator's folder.
      stopping: ends an evaluation that is under way.
    """
    test = base / config.data.test if config.data.test else None
    if test is None or not test.is_file() or importlib.util.find_spec("torch") is None:
        LOG.info("no evaluation here: it needs data.test of the run file on this machine, and server-evaluation")
        return _Nothing()
    argv = [sys.executable, "-P", "-m", "fedward_simulations.judge", str(run.root), str(test)]
    return Judge(command(argv, network=Network.SHARED), scratch=run.root / ADAPTER, stopping=stopping)


class Judge:
    """Evaluates in a child that keeps its model between rounds.

    Guarantees:
      - A failed, slow or dead child never ends a run: its round is not measured.
    """

    def __init__(
        self, argv: Sequence[str], *, scratch: Path, stopping: Callable[[], bool], limit_s: float = LIMIT_S
    ) -> None:
        """The child starts with the first evaluation."""
        self._argv, self._scratch, self._stopping, self._limit_s = list(argv), scratch, stopping, limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._failures = 0

    def evaluate(self, adapter: Adapter, *, round: int) -> Mapping[str, float] | None:
        """Metrics after a round, or None where they could not be had."""
        if self._failures >= TRIES:
            return None
        try:
            metrics = self._asked(adapter, round)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, FedwardError) as error:
            self._failures += 1
            LOG.warning("round %d is not evaluated (%s)", round, type(error).__name__)
            self.close()
            return None
        self._failures = 0
        return metrics

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        self._scratch.unlink(missing_ok=True)

    def _asked(self, adapter: Adapter, round: int) -> Mapping[str, float] | None:
        adapter.save(self._scratch)
        child = self._child or subprocess.Popen(  # noqa: S603 - argv is ours, and there is no shell
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        self._child = child
        if child.stdin is None or child.stdout is None:
            raise ValueError("pipes")
        child.stdin.write(json.dumps({"adapter": str(self._scratch), "round": round}).encode() + b"\n")
        child.stdin.flush()
        return _metrics(self._line(child.stdout))

    def _line(self, pipe: IO[bytes]) -> bytes:
        end, line = time.monotonic() + self._limit_s, b""
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if time.monotonic() >= end or self._stopping() or len(line) > LONGEST_LINE:
                    raise TimeoutError
                if ready.select(LOOK_S):
                    part = os.read(pipe.fileno(), LONGEST_LINE)
                    if not part:
                        raise EOFError("the child ended")
                    line += part
        return line


def _metrics(line: bytes) -> Mapping[str, float] | None:
    row = json.loads(line)["metrics"]
    if row is None:
        return None
    metrics = {str(name): float(value) for name, value in row.items()}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
