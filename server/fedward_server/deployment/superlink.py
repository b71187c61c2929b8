"""How our SuperLink is started, reached and probed. Nothing here imports Flower, so that the supervisor stays small.

The SuperLink listens on loopback alone, in process mode (it runs no code of any bundle), with node authentication,
TLS by our CA, an executor secret and a database on disk. It must not know who the sites are or what a run is.

Example:
    >>> from pathlib import Path
    >>> "process" in superlink_arguments(OperatorFolder(Path("/srv/fedward")), port=8000)
    True
"""

from __future__ import annotations

import http.client
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from fedward_server.deployment.authority import Authority
from fedward_server.deployment.folder import OperatorFolder

__all__ = ["ENVIRONMENT", "HOST", "Upstream", "flower_environment", "healthy", "superlink_arguments"]

HOST = "127.0.0.1"

# no telemetry, no daily version check, no packages fetched at run time, and warnings alone in the logs
ENVIRONMENT: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_LOG_LEVEL": "WARNING",
}
_MODULE = "fedward_server.deployment.flower_process"
_PROBE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The SuperLink as our own processes reach it: a port on loopback, the CA that vouches for it, the secret."""

    port: int
    ca: bytes
    secret: bytes

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{HOST}:{self.port}"

    @classmethod
    def of(cls, folder: OperatorFolder, *, port: int) -> Self:
        """Read CA and secret.

        Raises:
          PrivacyError: a key is missing, damaged, or open to other accounts.
        """
        keys = folder.authority()
        return cls(port=port, ca=keys.ca_file.read_bytes(), secret=keys.executor_secret())

    def context(self) -> ssl.SSLContext:
        """TLS that trusts our CA and nobody else's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # the certificate names the gateway as sites know it, not 127.0.0.1; our CA signs nothing but that one
        context.check_hostname = False
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self.ca.decode("ascii"))
        return context


def superlink_arguments(folder: OperatorFolder, *, port: int) -> tuple[str, ...]:
    """The command line of the SuperLink; it holds paths, never a secret.

    Guarantees:
      - It listens on loopback alone and runs no bundle's code.
    """
    keys = Authority(folder.keys)
    return (
        *(sys.executable, "-P", "-m", _MODULE),
        *("--host", HOST, "--port", str(port)),
        *("--ssl-ca-certfile", str(keys.ca_file), "--ssl-certfile", str(keys.certificate_file)),
        *("--ssl-keyfile", str(keys.server_key)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(keys.secret_file)),
        *("--database", str(folder.superlink / "state.db")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    )


def flower_environment(folder: OperatorFolder) -> dict[str, str]:
    """What the SuperLink, and every process that imports Flower, needs to find in its environment."""
    return {**ENVIRONMENT, "FLWR_HOME": str(folder.superlink)}


def healthy(upstream: Upstream) -> bool:
    """Whether the SuperLink answers its health page over TLS by our CA. Never raises, never waits long."""
    connection = http.client.HTTPSConnection(HOST, upstream.port, timeout=_PROBE_S, context=upstream.context())
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
