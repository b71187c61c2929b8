"""Every error that fedward raises on purpose, sorted by who can mend it.

    FedwardError                 says what went wrong and gives a hint
    ├── InputError               the person at the keyboard mends it
    │   ├── ConfigError          a key or value of a run or site file
    │   ├── DataError            a data file, column, label or record
    │   ├── ModelError           a base model or adapter folder
    │   └── OutputError          an output folder, disk space, a checkpoint
    ├── PrivacyError             a guarantee would break; nothing was released
    │   └── BudgetError          the ledger or an accountant says no
    ├── MessageError             bytes from the other side are refused
    │   ├── MalformedMessage     not canonical bytes of a known version
    │   ├── BadSignature         not signed by the expected key
    │   ├── SpecMismatch         tensors of another adapter
    │   └── NonFiniteUpdate      NaN, infinity, or beyond the agreed magnitude
    ├── RoundAbandoned           too few sites answered, also after retries
    ├── RunStopped               whoever runs it asked it to stop; the last checkpoint stands
    └── DoorError                the site's other process gives no answer
        ├── DoorClosed           it is away, restarting or busy: try again
        └── DoorRefused          it will not take this: trying again changes nothing

An error text names keys, columns and files that the person typed. It never carries a record, a label found in data
or a count of records, because texts end in logs. This module imports nothing of fedward.

Example:
    >>> try:
    ...     raise ConfigError("privacy.epsilon is 0", hint="give a positive number, for example 8")
    ... except FedwardError as error:
    ...     print(error, "|", error.hint)
    privacy.epsilon is 0 | give a positive number, for example 8
"""

from __future__ import annotations

__all__ = [
    "BadSignature",
    "BudgetError",
    "ConfigError",
    "DataError",
    "DoorClosed",
    "DoorError",
    "DoorRefused",
    "FedwardError",
    "InputError",
    "MalformedMessage",
    "MessageError",
    "ModelError",
    "NonFiniteUpdate",
    "OutputError",
    "PrivacyError",
    "RoundAbandoned",
    "RunStopped",
    "SpecMismatch",
]


class FedwardError(Exception):
    """The root: what went wrong, and what to do about it."""

    def __init__(self, what: str, *, hint: str) -> None:
        """Keep both texts; ``str(error)`` is ``what`` alone."""
        super().__init__(what)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the hint, so that an error survives a process boundary."""
        return (_rebuild, (type(self), str(self), self.hint))


def _rebuild(kind: type[FedwardError], what: str, hint: str) -> FedwardError:
    return kind(what, hint=hint)


class InputError(FedwardError):
    """The person at the keyboard can mend this."""


class ConfigError(InputError):
    """A key or value in a run file, a site file or ``--set``."""


class DataError(InputError):
    """A data file, a column, a label or a record."""


class ModelError(InputError):
    """A base model or an adapter that cannot be used."""


class OutputError(InputError):
    """An output folder, the disk, or a checkpoint."""


class PrivacyError(FedwardError):
    """A guarantee would break, so nothing was released."""


class BudgetError(PrivacyError):
    """The ledger, or an accountant that failed, says no."""


class MessageError(FedwardError):
    """Bytes from the other side are refused."""


class MalformedMessage(MessageError):
    """Not the canonical bytes of a version that this side knows."""


class BadSignature(MessageError):
    """Not signed by the key that was expected."""


class SpecMismatch(MessageError):
    """Tensors that belong to another adapter."""


class NonFiniteUpdate(MessageError):
    """An entry is NaN, infinite, or beyond the agreed magnitude."""


class RoundAbandoned(FedwardError):
    """Fewer sites answered than the plan's minimum, also after every retry."""


class RunStopped(FedwardError):
    """Whoever runs it asked the run to stop. Nothing is lost but the round that was under way."""


class DoorError(FedwardError):
    """The trainer's process gives this courier no answer."""


class DoorClosed(DoorError):
    """The trainer is away, restarting, busy or silent. The same bytes may be sent again later."""


class DoorRefused(DoorError):
    """The trainer does not take this message, or does not know this courier. Trying again changes nothing."""
