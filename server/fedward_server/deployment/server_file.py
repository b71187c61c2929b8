r"""The server file: where the operator's gateway listens, under which names, and what it limits.

Strict TOML: every value is checked before a process starts, all that is missing is named at once, and each error names
the dotted path. All keys have defaults; ``template`` writes them out with a comment each.

Example:
    >>> server = ServerFile.from_toml('schema = 1\n[gateway]\nnames = ["fed.example.org"]\n')
    >>> server.gateway.port, server.address, server.isolation.namespace.value
    (8443, 'fed.example.org:8443', 'auto')
"""

from __future__ import annotations

import ipaddress
import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StrictFloat, StrictInt, model_validator

from fedward_common.strict import Section, parse, read_text

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "GatewayTable",
    "IsolationTable",
    "MetricsTable",
    "Namespace",
    "RunsTable",
    "ServerFile",
    "SuperlinkTable",
    "read_server_text",
    "template",
]

SCHEMA = 1
DOCS = "docs/server-file.md lists every key with its range"
DEFAULT_HOST, DEFAULT_PORT = "0.0.0.0", 8443  # noqa: S104
LOOPBACK = "127.0.0.1"
MIB = 2**20
LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DNS_NAME = re.compile(rf"{LABEL}(\.{LABEL})*")
LONGEST_NAME = 253
FEDERATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _address(text: str) -> str:
    if not _is_address(text):
        raise ValueError(f"should be an IP address of this machine, or {DEFAULT_HOST} for all")
    return text


def _dns_or_ip(text: str) -> str:
    numbers_alone = re.fullmatch(r"[0-9.]+", text) is not None  # 10.0.0.300 is a mistake, not a name
    if not _is_address(text) and (numbers_alone or len(text) > LONGEST_NAME or not DNS_NAME.fullmatch(text)):
        raise ValueError("should be a DNS name or an IP address, without scheme, port or path")
    return text


def _federation(text: str) -> str:
    if not FEDERATION.fullmatch(text):
        raise ValueError("should be 1 to 64 letters, digits, '.', '_' or '-'")
    return text


Port = Annotated[StrictInt, Field(ge=1, le=65535)]
HostName = Annotated[str, AfterValidator(_dns_or_ip)]


class Namespace(StrEnum):
    """Where SuperLink, desk and conductors run."""

    AUTO = "auto"  # in a network namespace of their own where this machine allows it; `start` says where it does not
    OFF = "off"  # in the machine's own network: every local account can then steer Flower


class GatewayTable(Section):
    """``[gateway]``: the only public port. ``names`` are what sites may call it; the certificate carries them.

    A node sends a handful of requests a second, and a message in few but large ones. ``burst`` holds what comes
    together after an outage, so the limits meet only a node gone wild.
    """

    host: Annotated[str, AfterValidator(_address)] = DEFAULT_HOST
    port: Port = DEFAULT_PORT
    names: Annotated[tuple[HostName, ...], Field(min_length=1, max_length=100)]
    max_body_bytes: Annotated[StrictInt, Field(ge=6 * MIB, le=2**31)] = 272 * MIB
    requests_per_s: Annotated[StrictFloat, Field(ge=1, le=100_000)] = 100.0
    burst: Annotated[StrictInt, Field(ge=10, le=1_000_000)] = 500


class SuperlinkTable(Section):
    """``[superlink]``: Flower's own server, on loopback alone."""

    port: Port = 8000


class MetricsTable(Section):
    """``[metrics]``: numbers for Prometheus, on 127.0.0.1 alone. Port 0: none."""

    port: Annotated[StrictInt, Field(ge=0, le=65535)] = 9400

    @property
    def host(self) -> str:
        """Loopback: fixed, because nothing asks who reads."""
        return LOOPBACK


class IsolationTable(Section):
    """``[isolation]``: whether SuperLink and runs leave the machine's network."""

    namespace: Namespace = Namespace.AUTO


class RunsTable(Section):
    """``[runs]``: ``restarts`` is how many quick failures in a row a run may have before it counts as failed."""

    restarts: Annotated[StrictInt, Field(ge=0, le=1000)] = 5


class ServerFile(Section):
    """A whole server file."""

    schema_version: Annotated[StrictInt, Field(alias="schema")]
    name: Annotated[str, AfterValidator(_federation)] = "federation"
    gateway: GatewayTable
    superlink: SuperlinkTable = SuperlinkTable()
    metrics: MetricsTable = MetricsTable()
    isolation: IsolationTable = IsolationTable()
    runs: RunsTable = RunsTable()

    @model_validator(mode="after")
    def _tables_agree(self) -> Self:
        if self.schema_version != SCHEMA:
            raise ValueError(f"schema {self.schema_version} is not known; this version reads schema {SCHEMA}")
        ports = [self.gateway.port, self.superlink.port, *filter(None, [self.metrics.port])]
        if len(set(ports)) != len(ports):
            raise ValueError("gateway.port, superlink.port and metrics.port must differ from each other")
        return self

    @property
    def address(self) -> str:
        """``HOST:PORT`` as sites type it: the first name of the gateway."""
        name = self.gateway.names[0]
        return f"[{name}]:{self.gateway.port}" if ":" in name else f"{name}:{self.gateway.port}"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a server file from disk.

        Raises:
          ConfigError: it cannot be read, or a key or value is wrong; with the dotted path.
        """
        return cls.from_toml(read_server_text(path), source=path.name)

    @classmethod
    def from_toml(cls, text: str, *, source: str = "server.toml") -> Self:
        """Parse and check a server file.

        Args:
          text: TOML.
          source: the name shown in errors.

        Raises:
          ConfigError: with the dotted path of the first wrong key or value, or of all that are missing.
        """
        return parse(cls, text, source=source, docs=DOCS, example="docs/server-file.md has an example")


def read_server_text(path: Path) -> str:
    """The text of a server file, unchecked.

    Raises:
      ConfigError: it cannot be read.
    """
    return read_text(path, what="server file", hint="`fedward-server init DIR` writes one")


def template(name: str, *, names: tuple[str, ...], host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> str:
    """A commented server file.

    Guarantees:
      - It is a valid server file, and every key of one stands in it.
      - Only ``name``, ``names``, ``host`` and ``port`` differ from the defaults.

    Raises:
      ConfigError: a name, the host or the port cannot stand in a server file.
    """
    values = {"NAME": name, "NAMES": list(names), "HOST": host}
    text = _TEMPLATE.replace("@PORT@", str(port))
    for key, value in values.items():
        text = text.replace(f"@{key}@", json.dumps(value))
    ServerFile.from_toml(text)
    return text


_TEMPLATE = """\
# The operator's side of a federation. All values but the names are the defaults.
# docs/server-file.md explains every key. A change takes effect at the next `fedward-server start`.
schema = 1
name = @NAME@

[gateway]                    # the only public port: TLS 1.3, enrolled sites alone
# the address to listen on; "0.0.0.0" and "::" mean every network of this machine
host = @HOST@
port = @PORT@
# the DNS names and IP addresses by which sites reach the gateway; after a change: fedward-server renew
names = @NAMES@
max_body_bytes = 285_212_672 # of one request, which holds a whole update: 256 MiB and room around it
requests_per_s = 100.0       # of one site, for long; above it the site waits
burst = 500                  # of one site, at once: after an outage everything comes together

[superlink]                  # Flower's own server: on 127.0.0.1 alone
port = 8000

[metrics]                    # for Prometheus, on 127.0.0.1 alone
port = 9400                  # 0: none

[isolation]
namespace = "auto"           # "auto": a network namespace of its own where allowed; "off": never

[runs]
restarts = 5                 # quick failures in a row before a run counts as failed
"""
