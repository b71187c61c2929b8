"""Structured logs: one JSON object a line, for a person, for jq, for a log collector.

    {"time": "2026-01-31T12:00:00.123+00:00", "level": "INFO", "process": "trainer", "logger": "fedward_client.round",
     "message": "round 3 done"}

A log outlives the process and is read by many. So an error that is not fedward's own appears as its type and place,
never with its text, which may quote a record; fedward's own texts name only what a person typed (``errors``).

Example:
    >>> import io
    >>> stream = io.StringIO()
    >>> with restored():
    ...     json_logging(stream, "trainer")
    ...     logging.getLogger("fedward_client").info("ready")
    >>> json.loads(stream.getvalue())["message"]
    'ready'
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import TextIO

from fedward_common.errors import FedwardError

__all__ = ["Detail", "json_logging", "restored"]

MOST_BYTES, OLD_FILES = 10_000_000, 5
MOST_CHARACTERS = 4000
PRIVATE = 0o600
OURS = "fedward"
WITH_HANDLERS = ("flwr", "uvicorn", "uvicorn.access", "uvicorn.error", "httpx", "httpcore")
UNCAUGHT = "fedward_common.machine.uncaught"


class Detail(StrEnum):
    """How much is logged."""

    NORMAL = "normal"
    """Ours from INFO on, others from WARNING on."""

    VERBOSE = "verbose"
    """Ours from DEBUG on, others from INFO on."""


LEVELS = {Detail.NORMAL: (logging.INFO, logging.WARNING), Detail.VERBOSE: (logging.DEBUG, logging.INFO)}


def json_logging(target: TextIO | Path, process: str, detail: Detail = Detail.NORMAL) -> None:
    """Send all logging of this process, and errors that nobody caught, to one place as JSON lines.

    Libraries that bring handlers of their own (Flower, uvicorn) lose those: import them first, or call this again.

    Args:
      target: a stream, or a file of this process alone, which is moved aside at 10 MB; five old ones stay.
      process: which process this is: "courier", "trainer".
      detail: how much is logged.

    Guarantees:
      - One record is one line and one JSON object.
      - The text of an error that is not fedward's own is never written, not as a record's error, not as an argument of
        its message, not when nobody caught it; nor are locals or source lines.
      - Logging never raises and never prints what it could not write.
    """
    logging.raiseExceptions = False  # its report on stderr would quote the arguments
    handler = _handler(target)
    handler.setFormatter(_Lines(process))
    handler.addFilter(_Levels(detail))
    root = logging.getLogger()
    _drop_handlers(root)
    root.addHandler(handler)
    root.setLevel(min(LEVELS[detail]))
    for name in WITH_HANDLERS:
        _drop_handlers(logging.getLogger(name))
        logging.getLogger(name).propagate = True
    _catch_uncaught()


@contextmanager
def restored() -> Iterator[None]:
    """Put logging back as it was when the block ends. For tests and examples."""
    root, raising = logging.getLogger(), logging.raiseExceptions
    handlers, level = list(root.handlers), root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    root.handlers.clear()  # or json_logging would close them
    try:
        yield
    finally:
        _drop_handlers(root)
        root.handlers.extend(handlers)
        root.setLevel(level)
        logging.raiseExceptions = raising
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


class _Lines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": _message(record)[:MOST_CHARACTERS],
        }
        if record.exc_info and record.exc_info[1] is not None:
            line |= {"error": _named(record.exc_info[1]), "where": _where(record.exc_info[2])}
        return json.dumps(line)


class _Levels(logging.Filter):
    """By handler and not by logger, since libraries set their loggers' levels when they are imported."""

    def __init__(self, detail: Detail) -> None:
        super().__init__()
        self._ours, self._others = LEVELS[detail]

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= (self._ours if record.name.startswith(OURS) else self._others)


class _Rotating(logging.handlers.RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(self.baseFilename, flags, PRIVATE), "a", encoding="utf-8")


def _handler(target: TextIO | Path) -> logging.Handler:
    if isinstance(target, Path):
        return _Rotating(target, maxBytes=MOST_BYTES, backupCount=OLD_FILES)
    return logging.StreamHandler(target)


def _drop_handlers(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def _message(record: logging.LogRecord) -> str:
    """The message, in which errors appear by their type."""
    form, arguments = record.msg, record.args
    if isinstance(form, BaseException):
        return _named(form)
    if isinstance(arguments, Mapping):
        arguments = {name: _safe(value) for name, value in arguments.items()}
    elif arguments:
        arguments = tuple(_safe(value) for value in arguments)
    try:
        return str(form) % arguments if arguments else str(form)
    except Exception:  # a form that does not fit; without the arguments, which would be quoted
        return f"unformatted: {form!s}"


def _safe(value: object) -> object:
    return _named(value) if isinstance(value, BaseException) else value


def _named(error: BaseException) -> str:
    kind = type(error).__name__
    return f"{kind}: {error}" if isinstance(error, FedwardError) else kind


def _where(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _catch_uncaught() -> None:
    log = logging.getLogger(UNCAUGHT)

    def at_the_top(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.critical("not caught", exc_info=(kind, error, trace))

    def in_a_thread(what: threading.ExceptHookArgs) -> None:
        if what.exc_value is not None:
            at_the_top(what.exc_type, what.exc_value, what.exc_traceback)

    def unraisable(what: sys.UnraisableHookArgs) -> None:
        if what.exc_value is not None:
            at_the_top(what.exc_type, what.exc_value, what.exc_traceback)

    sys.excepthook, threading.excepthook, sys.unraisablehook = at_the_top, in_a_thread, unraisable
