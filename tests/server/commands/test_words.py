from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from fedward_server.commands.words import ago, certificate_line, moment, when
from fedward_server.deployment.authority import ServerCertificate
from fedward_server.deployment.folder import OperatorFolder
from support.operating import new_operator

STRANGE: tuple[object, ...] = (None, "soon", True, [], {})


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172799, "47 h"), (172800, "2 d")],
)
def test_how_long_ago_is_one_number(seconds: float, expected: str) -> None:
    assert ago(1000.0, now=1000.0 + seconds) == expected


def test_a_clock_that_was_set_back_is_no_error() -> None:
    assert ago(1000.0, now=990.0) == "0 s"


def test_a_moment_is_a_number_or_an_iso_text() -> None:
    assert moment(5) == 5.0
    assert moment("1970-01-01T00:00:05+00:00") == 5.0
    assert [moment(strange) for strange in STRANGE] == [0.0] * 5


@pytest.mark.parametrize(
    ("days", "expected"), [(100, "until"), (29, "run `fedward-server renew` soon"), (-1, "EXPIRED on")]
)
def test_a_certificate_warns_before_it_ends(days: int, expected: str) -> None:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days, hours=1)
    line = certificate_line(ServerCertificate(names=("a.org",), not_after=end, fingerprint=""))
    assert expected in line
    assert ("renew" in line) == (days < 30)


def test_a_wish_says_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_operator(tmp_path / "op")
    assert when(folder, "it starts") == (
        f"the server is down: it starts once `fedward-server start {folder.root}` runs"
    )
    with folder.hold():
        assert when(folder, "it starts") == "it starts within seconds: the server is running"
    monkeypatch.chdir(folder.root)
    assert when(OperatorFolder(Path(".")), "it starts").endswith("`fedward-server start` runs")
