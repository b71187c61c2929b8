from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedward_common.errors import ConfigError
from fedward_common.machine import logs
from fedward_common.machine.logs import Detail, json_logging, restored

HIDDEN = "patient 4711"
OURS = logging.getLogger("fedward_client.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    text = io.StringIO()
    with restored():
        json_logging(text, "trainer")
        yield text


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def failing() -> None:
    secret_local = HIDDEN  # noqa: F841
    raise ValueError(HIDDEN)


def test_a_record_is_one_line_and_one_object(stream: io.StringIO) -> None:
    OURS.info("two\nlines\u2028and %d %s", 1, "ü")
    OURS.warning("%(a)s", {"a": "b"})
    assert stream.getvalue().count("\n") == 2
    first, second = records(stream)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "INFO",
        "process": "trainer",
        "logger": "fedward_client.test",
        "message": "two\nlines\u2028and 1 ü",
    }
    assert second["message"] == "b"


def test_an_unknown_errors_text_is_never_written(stream: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        failing()
    except ValueError as error:
        OURS.exception("failed")
        OURS.error("failed: %s", error)
        OURS.error("failed: %(why)r", {"why": error})
        OURS.error(error)
        OURS.error("failed", exc_info=error, stack_info=True)
        OURS.error("form %d %d", HIDDEN)
    lines = records(stream)
    assert HIDDEN not in stream.getvalue()
    assert "secret_local" not in stream.getvalue()
    assert lines[0]["error"] == "ValueError"
    assert lines[0]["where"].startswith("test_logs.py:")
    assert [line["message"] for line in lines[1:4]] == ["failed: ValueError", "failed: 'ValueError'", "ValueError"]
    assert lines[5]["message"] == "unformatted: form %d %d"
    assert HIDDEN not in "".join(capsys.readouterr())


def test_an_error_that_nobody_caught_is_named_without_its_text(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    thread = threading.Thread(target=failing)
    thread.start()
    thread.join()
    try:
        failing()
    except ValueError:
        sys.excepthook(*sys.exc_info())

    class Dying:
        def __del__(self) -> None:
            failing()

    dying = Dying()
    del dying
    assert [line["error"] for line in records(stream)] == ["ValueError"] * 3
    assert HIDDEN not in stream.getvalue() + "".join(capsys.readouterr())


def test_ctrl_c_is_no_error(stream: io.StringIO) -> None:
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not stream.getvalue()


def test_fedwards_own_errors_keep_their_text(stream: io.StringIO) -> None:
    OURS.error("stopped: %s", ConfigError("privacy.epsilon is 0", hint="8"))
    assert records(stream)[0]["message"] == "stopped: ConfigError: privacy.epsilon is 0"


def test_logging_never_raises(capsys: pytest.CaptureFixture[str]) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with restored():
        json_logging(Full(), "trainer")
        OURS.error("lost %s", HIDDEN)
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize(
    ("detail", "seen"),
    [
        (Detail.NORMAL, ["ours info", "other warning"]),
        (Detail.VERBOSE, ["ours debug", "ours info", "other info", "other warning"]),
    ],
)
def test_others_speak_from_warning_on_unless_verbose(detail: Detail, seen: list[str]) -> None:
    stream, other = io.StringIO(), logging.getLogger("flwr.test")
    with restored():
        json_logging(stream, "courier", detail)
        logging.getLogger("flwr").setLevel(logging.DEBUG)  # as Flower does when it is imported
        for logger, name in ((OURS, "ours"), (other, "other")):
            for level in ("debug", "info", "warning"):
                if (name, level) != ("ours", "warning"):
                    getattr(logger, level)(f"{name} {level}")
    assert [line["message"] for line in records(stream)] == seen


def test_libraries_lose_handlers_of_their_own() -> None:
    own, stream = io.StringIO(), io.StringIO()
    with restored():
        for name in ("flwr", "uvicorn", "httpx"):
            logging.getLogger(name).addHandler(logging.StreamHandler(own))
            logging.getLogger(name).propagate = False
        json_logging(stream, "courier")
        for name in ("flwr", "uvicorn", "httpx"):
            logging.getLogger(name).warning("heard")
    assert own.getvalue() == ""
    assert [line["logger"] for line in records(stream)] == ["flwr", "uvicorn", "httpx"]


def test_a_file_is_private_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 2000)
    with restored():
        json_logging(tmp_path / "log", "trainer")
        for number in range(200):
            OURS.info("line %d", number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log", *(f"log.{n}" for n in range(1, 6))]
    for file in files:
        assert file.stat().st_size <= 2000
        assert file.stat().st_mode & 0o777 == 0o600
        for line in file.read_text().splitlines():
            json.loads(line)
    assert json.loads(files[0].read_text().splitlines()[-1])["message"] == "line 199"


def test_the_bounds_are_ten_megabytes_and_five_files(tmp_path: Path) -> None:
    with restored():
        json_logging(tmp_path / "log", "trainer")
        (handler,) = logging.getLogger().handlers
        assert isinstance(handler, logging.handlers.RotatingFileHandler)
        assert (handler.maxBytes, handler.backupCount) == (10_000_000, 5)


def test_a_long_message_is_cut(stream: io.StringIO) -> None:
    OURS.info("x" * 100_000)
    assert len(stream.getvalue()) < 5000


def test_logging_twice_writes_once(stream: io.StringIO) -> None:
    again = io.StringIO()
    json_logging(again, "trainer")
    OURS.info("once")
    assert stream.getvalue() == ""
    assert len(records(again)) == 1
