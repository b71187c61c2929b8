"""Several hosts on one machine: a network namespace each, joined by veth pairs through a bridge in one more.

        operator 10.77.0.1 ──┐
        gard     10.77.0.2 ──┤ bridge
        ghr      10.77.0.3 ──┘

A namespace lives as long as the process that holds it: when that is killed, namespace, veth and address are gone. No
name is left in /run/netns, and the machine's own network is not touched.

Example:
    with Network.of("operator", "gard") as network:
        network.run("gard", "ip", "route", "get", network.address("operator"))
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.deployed import QUIET, Command, wait_until

TOOLS = ("ip", "nsenter", "unshare")
UNSHARE = shutil.which("unshare") or "unshare"
BRIDGE = "bridge"
NEEDS = "needs root, ip, nsenter, unshare, and a kernel that lets namespaces be joined by veth pairs and a bridge"


def possible() -> bool:
    """Whether this machine lets the test build such a network: tried, in a namespace that is gone at once."""
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        return False
    script = "ip link add br0 type bridge && ip link add port0 type veth peer name eth0 && ip link set port0 master br0"
    return subprocess.run([UNSHARE, "--net", "sh", "-ec", script], capture_output=True, check=False).returncode == 0


@dataclass(kw_only=True)
class Network:
    """The hosts, by name, and who holds their namespaces."""

    holders: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def of(cls, *hosts: str) -> Iterator[Network]:
        """Build it; everything is gone at the end of the block."""
        network = cls()
        try:
            for name in (BRIDGE, *hosts):
                network._hold(name)
            network.run(BRIDGE, "ip", "link", "add", "br0", "type", "bridge")
            network.run(BRIDGE, "ip", "link", "set", "br0", "up")
            for name in hosts:
                network._plug_in(name)
            yield network
        finally:
            for holder in network.holders.values():
                holder.kill()
                holder.wait()

    def address(self, host: str) -> str:
        """Of a host, on the bridge."""
        return f"10.77.0.{list(self.holders).index(host)}"

    def inside(self, host: str) -> tuple[str, ...]:
        """What to put before a command that runs on a host."""
        return ("nsenter", f"--target={self.holders[host].pid}", "--net", "--")

    def run(self, host: str, *argv: str) -> str:
        """A command on a host, run to its end."""
        done = subprocess.run([*self.inside(host), *argv], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{host}: {argv}: {done.stderr}"
        return done.stdout

    def sent(self, host: str) -> int:
        """How many bytes a host has sent over its cable."""
        lines = self.run(host, "cat", "/proc/self/net/dev").splitlines()
        return int(next(line for line in lines if line.strip().startswith("eth0:")).split(":")[1].split()[8])

    def _hold(self, name: str) -> None:
        holder = subprocess.Popen([UNSHARE, "--net", "sleep", "600"], stdin=subprocess.DEVNULL)
        self.holders[name] = holder
        ours = os.readlink("/proc/self/ns/net")
        wait_until(f"{name} has a namespace", lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != ours, seconds=10)
        self.run(name, "ip", "link", "set", "lo", "up")

    def _plug_in(self, name: str) -> None:
        number, bridge = self.holders[name].pid, self.holders[BRIDGE].pid
        port = f"port{list(self.holders).index(name)}"
        # made inside the bridge's namespace: the machine's own never sees either end
        self.run(BRIDGE, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(number))
        self.run(BRIDGE, "ip", "link", "set", port, "master", "br0", "up")
        self.run(name, "ip", "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        self.run(name, "ip", "link", "set", "eth0", "up")
        assert bridge != number


@dataclass(kw_only=True, eq=False)
class HostCommand(Command):
    """A long-running fedward command on one of the hosts."""

    network: Network
    host: str

    def __post_init__(self) -> None:
        """Start it there. nsenter becomes the command, so that its number is the command's."""
        with Path(self.log).open("ab") as output:
            self.process = subprocess.Popen(
                [*self.network.inside(self.host), sys.executable, "-m", *self.argv],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=os.environ | QUIET,
                start_new_session=True,
            )
