"""Flower's SuperLink as a process of ours: its own entry, with our logs in place of its coloured text and uvicorn's.

    python -P -m fedward_server.deployment.flower_process ARGUMENTS OF flower-superlink

It must not know what a site or a run is.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

from flwr.superlink.cli import flower_superlink

from fedward_common.machine.logs import json_logging

__all__ = ["main"]

PLACE = re.compile(r"(?:\[[\w/:.-]*\])*")  # how Flower begins such a message: [/v1/control/list-nodes][ApiError:7]


class _WithoutTexts(logging.Filter):
    """Flower writes an error's text into the message while it handles the error, SQL and its values included."""

    def filter(self, record: logging.LogRecord) -> bool:
        if sys.exception() is not None:
            found = PLACE.match(record.getMessage())
            record.msg, record.args, record.exc_info = (found and found[0]) or "an error", (), sys.exc_info()
        return True


def main() -> None:
    """Run the SuperLink.

    Guarantees:
      - What it logs, warns of or fails with is one JSON object a line on stderr, without the text of an error.
    """
    module: Any = sys.modules[flower_superlink.__module__]
    module.get_uvicorn_log_config = lambda level: None  # or uvicorn would write its own lines
    logging.captureWarnings(True)
    json_logging(sys.stderr, "superlink")  # after the import, which brought Flower's handler
    logging.getLogger("flwr").addFilter(_WithoutTexts())
    flower_superlink()


if __name__ == "__main__":
    main()
