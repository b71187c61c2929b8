"""What ``start`` checks before a process exists, and ``shutdown``."""

from __future__ import annotations

from fedward_common.errors import InputError, OutputError
from fedward_common.report import Report
from fedward_server.commands.words import quoted
from fedward_server.deployment.folder import OperatorFolder

__all__ = ["preflight", "shutdown"]

GRACE_S = 60.0


def preflight(folder: OperatorFolder) -> tuple[str, ...]:
    """Check what can be checked before anything starts.

    Returns:
      What the operator should know although it starts.

    Raises:
      ConfigError: server.toml is wrong.
      PrivacyError: keys are missing, damaged, or open to other accounts.
      InputError: another ``start`` runs.
    """
    server, certificate = folder.load_server(), folder.authority().certificate()
    holder = folder.holder()
    if holder is not None:
        raise InputError(
            f"the server runs already, as process {holder}", hint=f"fedward-server shutdown{quoted(folder)}"
        )
    missing = sorted(set(server.gateway.names) - set(certificate.names))
    names = (f"the certificate does not carry {', '.join(missing)}: fedward-server renew{quoted(folder)}",)
    return names if missing else ()


def shutdown(folder: OperatorFolder) -> Report:
    """Ask the running ``start`` to end, and wait for it. Runs go on when it starts again.

    Raises:
      InputError: the process belongs to another account.
      OutputError: it did not end in a minute.
    """
    from fedward_common.machine.holding import Stop, stop

    holder = folder.holder()
    ended = stop(folder.lock_file, GRACE_S)
    facts = {"command": "shutdown", "process": holder, "result": ended.value}
    if ended is Stop.STILL_RUNNING:
        raise OutputError(f"process {holder} is still at work", hint=f"look at {folder.logs}, or ask again")
    line = "the server was not running" if ended is Stop.NOT_RUNNING else f"stopped the server (process {holder})"
    return Report(facts=facts, lines=(line,))
