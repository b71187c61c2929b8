"""The trainer's process: ``python -m fedward_client.trainer.main DIR --credentials-fd N`` or ``--publish-credentials``.

    door's folder -> network left, core dumps off, sockets forbidden -> proven from inside, or refused
          -> socket bound, NOT_SERVING -> site opened: books, models -> SERVING -> SIGTERM -> books closed

While it serves it holds ``DIR/serving``: whoever wants to know whether plans are taken asks for that lock's holder.

Nothing of the site but its door's folder is looked at before the process is cut off. Where neither mechanism holds, it
ends with code 2, unless the site file waives ``allow_network`` by name; every certificate and update then says so.

SIGTERM and SIGINT end it within a bound. The socket is closed at once, so the moment says nothing of the work. A round
that is being trained may go on for 60 s and is stored; its reply is handed over after the next start. A longer one is
cut off: the process ends with code 3, and the round counts as failed, which holds its run until the site's operator
clears it. ``kill -9`` does the same at once.

Where the disk refuses a write of the books, they take no more. Then the process ends with code 1, at the time at which
the reply was due, and without it: the next start opens the books anew, and the courier brings the same plan again.

It logs JSON lines to stderr: fedward's own, without the texts of unknown errors. Of libraries nothing is written, since
their warnings may tell of a record. Exit codes: 0 ended on request, 1 what a restart may mend (a folder in use, a full
disk), 2 what it cannot, 3 a round was cut off.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedward_client.door.place import SERVING, Place
from fedward_client.trainer.isolation import Isolation, isolate
from fedward_common.errors import BudgetError, FedwardError, InputError, OutputError, PrivacyError
from fedward_common.machine.holding import hold
from fedward_common.machine.logs import json_logging

if TYPE_CHECKING:
    from fedward_client.door.credentials import Half
    from fedward_client.installation.site_file import SiteFile
    from fedward_client.round import Site

__all__ = ["AGAIN", "ALLOW_NETWORK", "CUT_OFF", "GRACE_S", "WRONG", "main"]

ALLOW_NETWORK = "allow_network"
GRACE_S = 60.0
AGAIN, WRONG, CUT_OFF = 1, 2, 3
LOG = logging.getLogger("fedward_client.trainer")


@dataclass(frozen=True, kw_only=True)
class _Options:
    root: Path
    credentials_fd: int | None
    group: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    os.environ["GRPC_VERBOSITY"] = "NONE"  # what gRPC itself would write is no JSON, and may quote what came in
    os.umask(0o077)
    _log_our_own()
    try:
        return _run(_options(argv))
    except FedwardError as error:
        LOG.error("%s (%s)", error, error.hint)
        return AGAIN if isinstance(error, OutputError) else WRONG


def _log_our_own() -> None:
    json_logging(sys.stderr, "trainer")
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.name.startswith("fedward"))
    warnings.simplefilter("ignore")


def _run(options: _Options) -> int:
    if not (options.root / "site.toml").is_file():
        raise InputError(
            f"there is no site in {options.root}", hint="give its folder: fedward-client init DIR makes one"
        )
    place = Place.at_site(options.root)
    place.prepare(options.group)
    isolation = isolate()
    # only from here on anything is imported that starts threads, and anything of the site is read
    from fedward_client.installation.folder import Folder

    file = Folder.open(options.root).load_site()
    _insist(isolation, file)
    return _serve(options.root, file, place, _own_half(options, place))


def _insist(isolation: Isolation, file: SiteFile) -> None:
    """Refuse to go on with a network, unless the site's own file waives it by name.

    Raises:
      PrivacyError: neither mechanism holds, or a socket was handed to this process.
    """
    LOG.info("empty namespace: %s, sockets forbidden: %s", isolation.namespace, isolation.filter)
    if isolation.holds:
        return
    if ALLOW_NETWORK not in file.policy_table.waivers:
        raise PrivacyError(
            "the process that sees the data could not be cut off from the network",
            hint="start it without one: PrivateNetwork=yes in systemd, --network none for a container; or allow user "
            "namespaces or seccomp. policy.waivers = ['allow_network'] gives this promise up, in every certificate",
        )
    LOG.error("this process can reach the network: policy.waivers names %s", ALLOW_NETWORK)


def _own_half(options: _Options, place: Place) -> Half:
    from fedward_client.door.credentials import Half, Pair, publish

    if options.credentials_fd is not None:
        return Half.from_fd(options.credentials_fd)
    pair = Pair.make()
    publish(pair.courier, place)
    return pair.trainer


def _serve(root: Path, file: SiteFile, place: Place, half: Half) -> int:
    from fedward_client.trainer.service import TrainerServer
    from fedward_client.trainer.slots import Slots
    from fedward_client.trainer.turns import Turns

    with _asked_to_end() as asked:
        server = TrainerServer(place, half, max_update_bytes=file.policy_table.max_update_bytes)
        try:
            from fedward_client.installation.opening import open_site  # imports torch: health answers meanwhile

            with open_site(root) as site:
                turns = Turns(_while_usable(site), Slots.of(file.network), after=lambda: _look(site, asked))
                if not asked.is_set():
                    with hold(root / SERVING):
                        server.open(turns)
                        LOG.info("serving at %s", place.socket)
                        asked.wait()
                server.close()
                if not turns.close(grace_s=GRACE_S):
                    _cut_off()
                _check_books(site)
        finally:
            server.close()
    LOG.info("ended")
    return 0


def _while_usable(site: Site) -> Callable[[bytes], bytes]:
    def answer(data: bytes) -> bytes:
        reply = site.answer(data)
        _check_books(site)  # a process that has opened them anew is to answer this plan
        return reply

    return answer


def _look(site: Site, asked: threading.Event) -> None:
    try:
        _check_books(site)
    except OutputError:
        asked.set()


def _check_books(site: Site) -> None:
    try:
        site.check_usable()
    except BudgetError:
        raise OutputError(
            "the disk refused a write of the books: this process ends, so that they are opened anew",
            hint="free disk space, or mend the disk; the site goes on by itself",
        ) from None


def _cut_off() -> None:
    """End without closing the books: the training thread still has them. The next start finds the round unsettled."""
    LOG.error("a round was cut off after %d s; its run is held here until it is cleared", GRACE_S)
    logging.shutdown()
    os._exit(CUT_OFF)


@contextmanager
def _asked_to_end() -> Iterator[threading.Event]:
    """Set by SIGTERM or SIGINT."""
    asked = threading.Event()
    former = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _options(argv: Sequence[str] | None) -> _Options:
    parser = argparse.ArgumentParser(prog="fedward_client.trainer.main", description="The process that sees the data.")
    parser.add_argument("root", type=Path, metavar="DIR", help="the site's folder")
    keys = parser.add_mutually_exclusive_group(required=True)
    keys.add_argument("--credentials-fd", type=int, metavar="N", help="descriptor of the trainer's half of the keys")
    keys.add_argument("--publish-credentials", action="store_true", help="make keys; leave the courier's in the door")
    parser.add_argument("--group", help="of the courier's account, where it has one of its own")
    given = parser.parse_args(argv)
    return _Options(root=given.root, credentials_fd=given.credentials_fd, group=given.group)


if __name__ == "__main__":
    sys.exit(main())
