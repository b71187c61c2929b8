"""Words that several commands share: how long ago, when something will be done, what a certificate has left.

Example:
    >>> ago(100.0, now=103.4), ago(100.0, now=100.0 + 7200), ago(0.0, now=100.0)
    ('3 s', '2 h', 'never')
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fedward_server.deployment.authority import WARN_BELOW_DAYS, ServerCertificate

if TYPE_CHECKING:
    from fedward_server.deployment.folder import OperatorFolder

__all__ = ["ago", "certificate_line", "date", "moment", "quoted", "stamp", "when"]

STEPS = ((1, "s"), (60, "min"), (3600, "h"), (86400, "d"))
ENOUGH = 2  # of a larger unit, before it is used


def ago(then: float, *, now: float | None = None) -> str:
    """How long ago, in one number and its unit; 'never' where it never was."""
    if then <= 0:
        return "never"
    seconds = max(0.0, (time.time() if now is None else now) - then)
    size, unit = next((step for step in reversed(STEPS) if seconds >= ENOUGH * step[0]), STEPS[0])
    return f"{int(seconds // size)} {unit}"


def moment(value: Any) -> float:
    """A Unix time, of a number or of an ISO text; 0 where it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError):
        return 0.0


def stamp(at: float) -> str:
    """A moment in local time, to the second."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def date(at: datetime) -> str:
    """A day, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%d")


def quoted(folder: OperatorFolder) -> str:
    """The folder as the last word of a command: nothing where it is the current one."""
    text = str(folder.root)
    return "" if text == "." else f" {text}"


def when(folder: OperatorFolder, what: str) -> str:
    """Who does it, and when: a command only writes the wish down."""
    if folder.holder() is not None:
        return f"{what} within seconds: the server is running"
    return f"the server is down: {what} once `fedward-server start{quoted(folder)}` runs"


def certificate_line(certificate: ServerCertificate) -> str:
    """Until when the server certificate holds, with a warning where that is soon."""
    left, until = certificate.days_left(), date(certificate.not_after)
    names = ", ".join(certificate.names)
    if left < 0:
        return f"EXPIRED on {until}: no site can connect; run `fedward-server renew`  ({names})"
    warning = "; run `fedward-server renew` soon" if left < WARN_BELOW_DAYS else ""
    return f"until {until}, {left} days left{warning}  ({names})"
