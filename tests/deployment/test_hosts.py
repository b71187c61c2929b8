"""Several hosts: operator and two sites, each in a network of its own, with a virtual network between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import support.deployed as deployed
from fedward_client.installation.folder import Folder
from fedward_common.modeling.base import fingerprint
from support.deployed import Deployed, call, wait_until
from support.hosts import NEEDS, HostCommand, Network, possible
from support.tiny import worded_base

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not possible(), reason=NEEDS)]
SITES = ("gard", "ghr")
PORT = 9443
GREETING = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[3])
plain = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)
print(context.wrap_socket(plain, server_hostname=sys.argv[1]).version())
"""
STAGES = [{"name": "head", "train": ["head"], "rounds": 2, "sampling_rate": 1.0, "evaluate_every": 2}]


@dataclass(kw_only=True, eq=False)
class World:
    """The network, and the federation on it after its run."""

    network: Network
    federation: Deployed
    pids: dict[str, dict[str, int]]
    before: dict[str, int]
    """Bytes that each host had sent when the run began."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("hosts")
        network = stack.enter_context(Network.of("operator", *SITES))
        federation = founded(folder, network.address("operator"))
        server = ("fedward_server", "start", str(federation.operator))
        started(stack, network, "operator", server, folder)
        for name in SITES:
            joined(federation, folder / name, network.address("operator"))
            started(stack, network, name, ("fedward_client", "start", str(folder / name)), folder)
        federation.prepare()
        wait_until("both sites are connected", lambda: federation.connected() == len(SITES), seconds=120, every=1)
        pids = {name: found(folder / name) for name in SITES}
        before = {name: network.sent(name) for name in SITES}
        federation.run()
        wait_until("the run is over", lambda: federation.status().get("state") == "finished", seconds=120)
        yield World(network=network, federation=federation, pids=pids, before=before)


def founded(folder: Path, address: str) -> Deployed:
    """An operator that listens on its own address, with a certificate for that address."""
    base = worded_base(folder / "base", deployed._words())
    operator = str(folder / "op")
    call("fedward_server", "init", operator, "--host", address, "--port", str(PORT), "--name", address)
    return Deployed(
        folder=folder, config=deployed._config(base, STAGES), base=base, gateway=PORT, sites={}, run_name="hosts"
    )


def joined(federation: Deployed, root: Path, address: str) -> None:
    """A site that is ready, and enrolled."""
    keys = federation.operator / "keys"
    argv = ("--server", f"{address}:{PORT}", "--ca", str(keys / "ca.pem"), "--operator-key", str(keys / "plan.pub"))
    call("fedward_client", "init", str(root), *argv)
    deployed._write_records(root / "records.csv", root.name)
    site = Folder.open(root)
    site.site_file.write_text(federation._site_toml(site.site_file.read_text(), 1), encoding="utf-8")
    identity = fingerprint(Path(federation.base.base), pooling=federation.base.pooling)
    shutil.copytree(federation.base.base, site.model(identity))
    with site.lock():
        site.create_books(site.load_site(), site.load_keys())
    call("fedward_server", "enrol", str(root / f"{root.name}.pub"), str(federation.operator), "--yes")


def started(stack: ExitStack, network: Network, host: str, argv: tuple[str, ...], folder: Path) -> None:
    command = HostCommand(argv=argv, log=folder / f"{host}.log", network=network, host=host)
    stack.callback(command.end)


def found(root: Path) -> dict[str, int]:
    return {name: deployed.pid_of(root / "processes.json", name) for name in ("trainer", "courier")}


def test_a_run_of_two_rounds_between_hosts(world: World) -> None:
    rounds = [row for row in world.federation.rounds() if not row["abandoned"]]
    assert [(row["round"], row["replied"]) for row in rounds] == [(1, 2), (2, 2)]


def test_every_site_s_updates_crossed_the_virtual_network(world: World) -> None:
    update = 4 * world.federation.bundle().spec.subset(("head",)).size
    for name in SITES:
        sent = world.network.sent(name) - world.before[name]
        assert sent > 2 * update, name
        assert sent < 2 * (1.1 * update + 256 * 1024), name


def test_each_process_is_on_its_own_host_and_the_trainer_on_none(world: World) -> None:
    networks = {name: namespace(holder.pid) for name, holder in world.network.holders.items()}
    assert len(set(networks.values())) == len(networks)
    for name in SITES:
        assert namespace(world.pids[name]["courier"]) == networks[name]
        assert namespace(world.pids[name]["trainer"]) not in networks.values()


def test_this_machine_s_own_network_is_no_way_to_the_operator(world: World) -> None:
    """The control: what the sites reach is not reached by a short cut."""
    ca, address = str(world.federation.operator / "keys" / "ca.pem"), world.network.address("operator")
    greeting = [sys.executable, "-c", GREETING, address, str(PORT), ca]
    assert world.network.run("gard", *greeting) == "TLSv1.3\n"
    here = subprocess.run(greeting, capture_output=True, timeout=30, check=False)
    assert here.returncode != 0
    assert namespace(os.getpid()) not in {namespace(holder.pid) for holder in world.network.holders.values()}


def test_the_superlink_is_reached_from_no_host(world: World) -> None:
    """It listens on loopback of a namespace of its own, also for the operator's host."""
    superlink = world.federation.pid("superlink")
    assert namespace(superlink) not in {namespace(holder.pid) for holder in world.network.holders.values()}
    ports = world.network.run("operator", "cat", "/proc/self/net/tcp").splitlines()[1:]
    listening = {int(line.split()[1].rpartition(":")[2], 16) for line in ports if line.split()[3] == "0A"}
    assert PORT in listening
    assert 8000 not in listening


def namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")
