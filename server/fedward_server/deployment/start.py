"""``fedward-server start``: SuperLink, desk and gateway as one tree of processes, kept alive until Ctrl-C.

The public socket and the metrics socket listen first, in the machine's network. Then this process leaves for a
network namespace of its own, where that is allowed, and its children with it: SuperLink, desk and conductors can then
be reached through the gateway's socket alone, by no other account of the machine. It must not know what a run is, and
imports nothing of Flower.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial

from fedward_common.errors import InputError, PrivacyError
from fedward_common.files import make_private_folder
from fedward_common.machine.exec import command
from fedward_common.machine.life import Child
from fedward_common.machine.namespaces import Network, bring_up_loopback, leave_network
from fedward_common.machine.processes import Supervisor
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.probes import Changed, Knock, Missed, Renewed, Silent, first_of
from fedward_server.deployment.server_file import Namespace, ServerFile
from fedward_server.deployment.superlink import HOST, Upstream, flower_environment, healthy, superlink_arguments

__all__ = ["children", "listen", "start"]

READY_S = 90.0
SILENCE_S = 180.0  # of the desk: all its calls of a SuperLink that hangs take less
GRACE_S = 12.0  # of the desk: it ends its conductors first
PACKAGE = "fedward_server.deployment"
_GATEWAY = (sys.executable, "-P", "-m", "fedward_server.gateway")


def start(folder: OperatorFolder, *, verbose: bool) -> int:
    """Run the operator's processes until SIGTERM or Ctrl-C.

    Args:
      folder: of the operator.
      verbose: also print where the logs are.

    Returns:
      0 after a request to end, else the exit code of the process that could not be helped.

    Guarantees:
      - A port that is in use, an expired certificate and a second ``start`` are errors before any process starts.
      - Its processes go on with the server file as it is now, also where one is started again.
      - When this returns, none of its processes runs.

    Raises:
      InputError: a port is in use, or another ``start`` is running.
      PrivacyError: a key is missing, damaged, or the certificate has expired.
      ConfigError: the server file is wrong.
    """
    with folder.hold(), ExitStack() as stack:
        server = folder.keep_server()
        _check_certificate(folder)
        public = stack.enter_context(listen(server.gateway.host, server.gateway.port, key="gateway.port"))
        knock = stack.enter_context(Knock(server.gateway.host, server.gateway.port))
        metrics = None
        if server.metrics.port:
            metrics = stack.enter_context(listen(server.metrics.host, server.metrics.port, key="metrics.port"))
        _leave(server.isolation.namespace)
        _check_free(server.superlink.port)
        for path in (folder.state, folder.superlink, folder.logs):
            make_private_folder(path)
        if verbose:
            print(f"logs: {folder.logs}; processes: {folder.processes_file}", flush=True)
        made = children(folder, server, public=public, metrics=metrics, knock=knock)
        ended = Supervisor(made, status=folder.processes_file).run()
    if ended.child is not None:
        print(f"error: {ended.child} ended with code {ended.code}", file=sys.stderr)
        print(f"hint: read {folder.logs / f'{ended.child}.log'}", file=sys.stderr)
    return ended.code


def listen(host: str, port: int, *, key: str) -> socket.socket:
    """A TCP socket that listens: from here on nobody else can have the port. Callers wait until it is served.

    Args:
      host: an IP address of this machine.
      port: to bind.
      key: of the server file, for the error.

    Raises:
      InputError: the address is in use, not this machine's, or the port is not allowed to this account.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen()  # two sockets that only bind may share a port
    except OSError as error:
        bound.close()
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint=f"end the process that has it (`ss -ltnp 'sport = :{port}'`), or change {key} in server.toml",
        ) from None
    return bound


def children(
    folder: OperatorFolder,
    server: ServerFile,
    *,
    public: socket.socket,
    metrics: socket.socket | None,
    knock: Callable[[], bool],
) -> list[Child]:
    """SuperLink, desk and gateway, in the order of their start; ``knock`` is whether the gateway answers.

    Guarantees:
      - A child that lives and does nothing is started again.
      - None is started again because of another one's trouble, nor because the clock was set.
    """
    port = server.superlink.port
    environment = {**os.environ, **flower_environment(folder)}
    upstream = Upstream.of(folder, port=port)
    counted = () if metrics is None else (metrics.fileno(),)
    numbers = () if metrics is None else ("--metrics", str(metrics.fileno()))
    superlink = Child(
        name="superlink",
        argv=superlink_arguments(folder, port=port),
        env=environment,
        log=folder.logs / "superlink.log",
        ready=partial(healthy, upstream),
        ready_limit_s=READY_S,
        watch=first_of(Renewed(folder.authority()), Missed(partial(healthy, upstream))),
    )
    desk = Child(
        name="desk",
        argv=(*_module("desk"), str(folder.root), "--port", str(port), *numbers, *_settings(folder)),
        env=environment,
        pass_fds=counted,
        log=folder.logs / "desk.log",
        # the gateway follows once every enrolled site is registered: Flower refuses a node that it does not know yet
        ready=Changed(folder.sites_file),
        ready_limit_s=READY_S,
        # not the file of the sites: that is not written while the SuperLink is away, and conductors die with the desk
        watch=Silent(folder.desk_beat, limit_s=SILENCE_S),
        grace_s=GRACE_S,
    )
    gateway = Child(
        name="gateway",
        argv=(
            *(*_GATEWAY, str(folder.root), "--fd", str(public.fileno()), "--upstream", f"{HOST}:{port}"),
            *("--ready", str(folder.gateway_ready), *_settings(folder)),
        ),
        pass_fds=(public.fileno(),),
        log=folder.logs / "gateway.log",
        ready=_Announced(server, Changed(folder.gateway_ready)),
        watch=Missed(knock),
    )
    return [superlink, desk, gateway]


def _settings(folder: OperatorFolder) -> tuple[str, str]:
    return "--server", str(folder.server_copy)


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", f"{PACKAGE}.{name}")


class _Announced:
    """The gateway is ready once it says so; the first time, that is passed on."""

    def __init__(self, server: ServerFile, serves: Callable[[], bool]) -> None:
        self._server, self._serves, self._said = server, serves, False

    def __call__(self) -> bool:
        serves = self._serves()
        if serves and not self._said:
            self._said = True
            where = f"{self._server.gateway.host}:{self._server.gateway.port}"
            print(f"listening on {where}; sites connect to {self._server.address}. Ctrl-C ends it.", flush=True)
        return serves


def _check_certificate(folder: OperatorFolder) -> None:
    certificate = folder.authority().certificate()
    if certificate.not_after <= datetime.now(UTC):
        raise PrivacyError(
            f"the server certificate expired on {certificate.not_after:%Y-%m-%d}", hint="run `fedward-server renew`"
        )


def _leave(namespace: Namespace) -> None:
    weakness = "every local account can steer Flower (docs/operator.md: who is an operator)"
    if namespace is Namespace.OFF:
        print(f"isolation.namespace is off: {weakness}", file=sys.stderr)
        return
    # tried in a child first: a process that may go half of the way is left without rights
    tried = subprocess.run(  # noqa: S603 - argv is ours, and there is no shell
        command((sys.executable, "-c", ""), network=Network.LOOPBACK), stderr=subprocess.PIPE, check=False
    )
    if tried.returncode:
        print(f"no network namespace: {weakness}\n{tried.stderr.decode(errors='replace').strip()}", file=sys.stderr)
        return
    leave_network()
    bring_up_loopback()


def _check_free(port: int) -> None:
    listen(HOST, port, key="superlink.port").close()
