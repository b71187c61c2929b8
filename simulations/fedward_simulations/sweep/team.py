"""Several workers over one list of orders. This module knows processes and pipes, not what a job is.

A worker that dies costs the order that it had; another one takes its place. Ctrl-C reaches only this process, which
then ends the workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from fedward_simulations.sweep.worker import Advanced, Failed, News, Order, serve

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

__all__ = ["Team"]

TICK_S = 0.5
PATIENCE_S = 5.0

Entry = Callable[[Connection, int], None]


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    number: int
    order: Order | None = None
    kin: str = field(default="")

    def hand(self, order: Order) -> None:
        self.order, self.kin = order, order.kin
        with contextlib.suppress(BrokenPipeError):  # it has just died, which its sentinel tells
            self.pipe.send(replace(order, worker=self.number))

    def news(self) -> Iterator[News]:
        """What it told since the last time; at its death, what that means for its order."""
        dead = not self.process.is_alive()  # asked first: what it told before it died is read below
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                told: News = self.pipe.recv()
                if not isinstance(told, Advanced):
                    self.order = None
                yield told
        if dead and self.order is not None:
            order, self.order = self.order, None
            yield Failed(order.name, f"its process died ({_cause(self.process.exitcode)})", f"see {order.log}")


class Team:
    """Workers that share a list of orders.

    Guarantees:
      - Every order is told of as ended or failed once, in whatever order, unless the team is left early.
      - No worker is left once the team is.

    Args:
      size: how many processes at most.
      threads: of each; 0 leaves it to the libraries.
      entry: what a process runs.
    """

    def __init__(self, *, size: int, threads: int = 0, entry: Entry = serve) -> None:
        """No process is started yet."""
        self._size, self._threads, self._entry = size, threads, entry
        self._workers: list[_Worker] = []
        self._orders: list[Order] = []

    def __enter__(self) -> Team:
        """Workers start when orders come."""
        return self

    def __exit__(self, *error: Any) -> None:
        """End all workers: the idle by closing their pipes, the busy at once."""
        for worker in self._workers:
            if worker.order is None:
                worker.pipe.close()
            else:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(PATIENCE_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers = []

    def work(self, orders: Iterable[Order]) -> Iterator[News | None]:
        """Have all orders done; what happens, as it happens, and None from time to time when nothing does."""
        self._orders = list(orders)
        while True:
            self._hand_out()
            busy = [worker for worker in self._workers if worker.order is not None]
            if not busy:
                return
            for worker in busy:
                yield from worker.news()
            self._bury()
            if all(worker.order is not None for worker in busy):
                wait([end for worker in busy for end in (worker.pipe, worker.process.sentinel)], TICK_S)
                yield None

    def _hand_out(self) -> None:
        idle = [worker for worker in self._workers if worker.order is None]
        while self._orders and (idle or len(self._workers) < self._size):
            worker = idle.pop() if idle else self._hire()
            worker.hand(self._choose(worker.kin))

    def _choose(self, kin: str) -> Order:
        """One that shares the worker's data and model, else one that nobody has the data of, else the next."""
        held = {worker.kin for worker in self._workers if worker.order is not None}
        found = next((order for order in self._orders if order.kin == kin), None)
        found = found or next((order for order in self._orders if order.kin not in held), None)
        chosen = found or self._orders[0]
        self._orders.remove(chosen)
        return chosen

    def _hire(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a fork would share threads and streams of this process
        ours, theirs = context.Pipe()
        process = context.Process(target=self._entry, args=(theirs, self._threads), daemon=True)
        with _interrupts_held():  # a child inherits the mask: Ctrl-C on the terminal is ours alone
            process.start()
        theirs.close()
        taken = {worker.number for worker in self._workers}
        worker = _Worker(process=process, pipe=ours, number=next(free for free in count() if free not in taken))
        self._workers.append(worker)
        return worker

    def _bury(self) -> None:
        for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
            if worker.order is None:
                worker.pipe.close()
                worker.process.join()
                self._workers.remove(worker)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
    return f"signal {-code}"
