"""What can be wrong between the courier and the operator: each with a hint, a state, and how soon to try again.

    FedwardError
    ├── Fault              try again, from ``soonest_s`` to ``latest_s`` apart
    │   ├── Away           no answer, or one that says: later
    │   ├── NotActivated   the key is known, but Flower counts it as online already
    │   ├── NotEnrolled    the key is not known
    │   ├── WrongCertificate   whoever answers cannot prove to be the operator
    │   ├── WrongClock     the signed times are refused
    │   └── OtherVersion   the operator runs another Flower
    └── Dropped            this one message is given up, the next is pulled
        ├── RunOver        its run has ended
        ├── TooLarge       it, or its reply, is over the limit
        └── Unusable       the operator refuses the reply, or the message cannot be read

Texts name the server and the files that a person chose, never what a server said: that could be anything.

Example:
    >>> pauses = Pauses()
    >>> fault = Away("no answer", hint="wait")
    >>> [pauses.after(fault) for _ in range(7)]
    [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from fedward_common.errors import FedwardError

__all__ = [
    "Away",
    "Dropped",
    "Fault",
    "NotActivated",
    "NotEnrolled",
    "OtherVersion",
    "Pauses",
    "RunOver",
    "State",
    "TooLarge",
    "Unusable",
    "WrongCertificate",
    "WrongClock",
]


class State(StrEnum):
    """Where the courier stands with the operator."""

    CONNECTING = "connecting"
    """It has started and knows nothing yet."""

    CONNECTED = "connected"
    """The last exchange went well."""

    AWAY = "away"
    """No answer, or one that says: later. It goes on trying."""

    REFUSED = "refused"
    """The operator answers and says no to this key. It goes on trying, slowly."""

    WRONG_CERTIFICATE = "wrong_certificate"
    """Whoever answers cannot prove to be the operator. It goes on trying, slowly; nothing was sent."""

    CLOCK = "clock"
    """The operator refuses the times that this machine signs. It goes on trying, slowly."""

    STOPPED = "stopped"
    """It has ended in an orderly way."""


class Fault(FedwardError):
    """The link does not work now. Trying again is always right; how soon depends on who has to mend it."""

    state: ClassVar[State] = State.AWAY
    soonest_s: ClassVar[float] = 5.0
    latest_s: ClassVar[float] = 60.0


class Away(Fault):
    """No answer, a cut connection, or an answer that says: later."""

    soonest_s, latest_s = 0.5, 10.0


class NotActivated(Fault):
    """Flower does not let this key come online now."""

    state, latest_s = State.REFUSED, 5.0


class NotEnrolled(Fault):
    """The operator does not know this key, or no longer."""

    state = State.REFUSED


class WrongCertificate(Fault):
    """Whoever answers has no certificate of our CA for this name."""

    state = State.WRONG_CERTIFICATE


class WrongClock(Fault):
    """This machine's clock and the operator's differ by more than Flower takes."""

    state = State.CLOCK


class OtherVersion(Fault):
    """The operator's Flower refuses ours."""

    state = State.REFUSED


class Dropped(FedwardError):
    """One message is given up. The trainer's outbox keeps a reply; the next plan of the round fetches it."""


class RunOver(Dropped):
    """The message's run is no longer running."""


class TooLarge(Dropped):
    """A message or a reply is over the limit."""


class Unusable(Dropped):
    """A message that cannot be read, or a reply that the operator refuses."""


class Pauses:
    """How long to wait after each fault: twice as long each time, until something goes well."""

    def __init__(self) -> None:
        """Begin with the soonest."""
        self._kind: type[Fault] | None = None
        self._last = 0.0

    def after(self, fault: Fault) -> float:
        """Seconds to wait now. Another kind of fault begins anew."""
        again = self._kind is type(fault)
        self._last = min(self._last * 2, fault.latest_s) if again else fault.soonest_s
        self._kind = type(fault)
        return self._last

    def clear(self) -> None:
        """Something went well."""
        self._kind, self._last = None, 0.0
