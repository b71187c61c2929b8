"""Ray itself: started on this machine or joined where it runs, and left again without a trace.

A Ray of our own takes orders only from who knows its token, keeps its files in a private folder that goes with it, and
ends with this process, however that ends. This module knows nothing of sites, models or messages.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedward_common.checks import positive
from fedward_common.errors import InputError

__all__ = ["RayCluster", "on_ray", "undisturbed"]

AUTO = "auto"  # whatever Ray runs on this machine
REACH_S, ANSWER_S = 3.0, 12.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_AUTO_CONNECT": "0"}  # tells nobody; never starts by itself
INSTALL = "pip install 'fedward[ray]'"


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where clients run, and how much of a machine each takes.

    Args:
      address: HOST:PORT of a running Ray's head, or ``auto`` for the one that runs on this machine; None starts one.
      client_cpus: CPU cores of a worker; below 1, workers share a core.
      client_gpus: GPUs of a worker, also a part of one; None: one where there are any.
    """

    address: str | None = None
    client_cpus: float = 1.0
    client_gpus: float | None = None

    def __post_init__(self) -> None:
        """Check what a person typed."""
        positive("client_cpus", self.client_cpus)
        if self.client_gpus is not None and self.client_gpus < 0:
            raise InputError(
                f"client_gpus is {self.client_gpus:g}", hint="give 0, or GPUs of a client, for example 0.5"
            )
        if self.address not in (None, AUTO) and not re.fullmatch(r"[^\s/:]+:\d{1,5}", self.address or ""):
            raise InputError(
                f"{self.address!r} is not the address of a Ray cluster",
                hint="give HOST:PORT of its head, as `ray start --head` prints it, or auto",
            )


@contextmanager
def on_ray(cluster: RayCluster) -> Iterator[Mapping[str, float]]:
    """Ray runs within; what one worker takes of it is yielded, as Ray spells resources. From the main thread only.

    Guarantees:
      - Whatever ends this, every process that it started ends, and its files are removed.
      - A cluster that does not answer is an error within about 15 seconds.

    Ray reads its settings once, as it is imported: nothing may import it before.

    Raises:
      InputError: Ray is not installed, does not start or does not answer, or nowhere is room for one worker.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("Ray is not installed", hint=INSTALL)
    with _surroundings(QUIET):
        if cluster.address is None:
            with _private_folder() as folder, _surroundings(_token()):
                yield from _inside(cluster, {"address": "local", "_temp_dir": str(folder)})
        else:
            _check_answers(cluster.address)
            yield from _inside(cluster, {"address": cluster.address})


def _inside(cluster: RayCluster, arguments: dict[str, Any]) -> Iterator[Mapping[str, float]]:
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of files that it leaves open and of versions to come
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **arguments)
        except Exception as error:  # whatever Ray raises: it has no common root for these
            ray.shutdown()
            raise InputError(f"Ray did not start ({type(error).__name__})", hint="`ray status` says more") from None
        try:
            yield _room(cluster)
        finally:
            with undisturbed():
                ray.shutdown()


@contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not stop the clearing up after the first: workers would be waited for without end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _room(cluster: RayCluster) -> Mapping[str, float]:
    import ray

    gpus = cluster.client_gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(m.get("CPU", 0) >= cluster.client_cpus and m.get("GPU", 0) >= gpus for m in machines):
        raise InputError(
            f"no machine has {cluster.client_cpus:g} CPU cores and {gpus:g} GPUs for a client",
            hint="lower --client-cpus or --client-gpus",
        )
    return {"num_cpus": cluster.client_cpus, "num_gpus": gpus}


def _check_answers(address: str) -> None:
    # Ray itself waits for minutes, and takes the process with it where something else listens: so a child asks
    silent = InputError(
        f"no Ray cluster answers at {address}", hint="look with `ray status`, or leave --ray-address out to start one"
    )
    if address != AUTO:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=REACH_S).close()
        except (OSError, OverflowError):
            raise silent from None
    ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(ask, timeout=ANSWER_S, capture_output=True, stdin=subprocess.DEVNULL, check=False)  # noqa: S603 - our own
    except subprocess.TimeoutExpired:
        raise silent from None
    if done.returncode:
        raise silent


@cache  # Ray reads it once a process, whatever is set later
def _token() -> dict[str, str]:
    # Ray listens on every address of the machine: without a token anybody near could run code in its workers
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _private_folder() -> Iterator[Path]:
    short = "/tmp" if os.path.isdir("/tmp") else None  # noqa: S108 - sockets lie in it: their paths must be short
    folder = Path(tempfile.mkdtemp(prefix="fw-", dir=short))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _surroundings(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
