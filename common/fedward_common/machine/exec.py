"""Become another program: without network, and dead when its starter is dead.

The supervisor starts every child through this. A ``preexec_fn`` would run Python between fork and exec, which may hang
where the parent has threads; this is a process of its own with one thread.

    python -P -m fedward_common.machine.exec --parent 123 --network none -- program argument

Exit codes of its own, before the program runs: 2 the network cannot be left, 126 and 127 as a shell says them.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from fedward_common.errors import FedwardError
from fedward_common.machine.kernel import prctl
from fedward_common.machine.namespaces import Network, bring_up_loopback, leave_network

__all__ = ["command", "die_with", "main"]

PR_SET_PDEATHSIG = 1
WRONG, CANNOT_RUN, NOT_FOUND = 2, 126, 127


def command(argv: Sequence[str], *, network: Network) -> list[str]:
    """The command line that starts ``argv`` as a child of this process, and ends it with this process."""
    # -P: the current folder, which may hold anything, is no place to import from
    start = [sys.executable, "-P", "-m", "fedward_common.machine.exec"]
    return [*start, "--parent", str(os.getpid()), "--network", network.value, "--", *argv]


def die_with(parent: int) -> None:
    """Die at once, by SIGKILL, when the thread of ``parent`` that started this process ends, however it ends.

    Guarantees:
      - Holds through exec, for this process; not for its own children.
      - Where the parent is gone already, this process ends here.

    Args:
      parent: process id of the starter.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above, so no signal will come
        os._exit(WRONG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it; returns only when the program cannot be started."""
    asked = _parser().parse_args(arguments)
    try:
        _enter(Network(asked.network))
        if asked.parent is not None:
            die_with(asked.parent)
        _restore_signals()
        os.execvp(asked.argv[0], asked.argv)  # noqa: S606 - no shell is the point
    except FedwardError as error:
        return _complain(f"{error}\nhint: {error.hint}", WRONG)
    except OSError as error:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN
        return _complain(f"cannot start {asked.argv[0]}: {error.strerror}", code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedward_common.machine.exec", description="Become another program.")
    parser.add_argument("--parent", type=int, help="die when this process dies")
    parser.add_argument("--network", choices=[one.value for one in Network], default=Network.SHARED.value)
    parser.add_argument("argv", nargs="+", help="the program and its arguments, after --")
    return parser


def _enter(network: Network) -> None:
    if network is not Network.SHARED:
        leave_network()
    if network is Network.LOOPBACK:
        bring_up_loopback()


def _restore_signals() -> None:
    # Python ignores these, and what is ignored stays so through exec
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def _complain(text: str, code: int) -> int:
    print(f"fedward: error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
