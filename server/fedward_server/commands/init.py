"""``init`` and ``renew``: the operator's folder and keys, and a fresh server certificate. No process is started."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path

from fedward_common.errors import ConfigError, PrivacyError
from fedward_common.report import Report, rows
from fedward_server.commands.words import certificate_line, quoted
from fedward_server.deployment.authority import Authority
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.server_file import DNS_NAME, ServerFile

__all__ = ["init", "renew"]

DEFAULT_NAME = "federation"
CHANGE = "write it into gateway.names of server.toml, then run `fedward-server renew`"


def init(root: Path, *, host: str, port: int, names: Sequence[str]) -> Report:
    """Make whatever an operator lacks. Nothing that exists is changed.

    Args:
      root: the folder.
      host: the address that the gateway listens on.
      port: of the gateway.
      names: DNS names and IP addresses of the gateway; none: those of this machine.

    Raises:
      OutputError: the folder holds something else, or cannot be written.
      ConfigError: a name, host or port is wrong; or server.toml is.
      PrivacyError: the folder is open to other accounts, or a key is gone.
    """
    new = not (root / "server.toml").exists() or not (root / "keys").exists()
    chosen = tuple(names) or _own_names()
    folder = OperatorFolder.create(root, name=_name_for(root), names=chosen, host=host, port=port)
    server, keys = folder.load_server(), folder.authority()
    facts = {
        "address": server.address,
        "ca": str(keys.ca_file),
        "command": "init",
        "fingerprint": keys.plan_fingerprint,
        "folder": str(root),
        "names": list(keys.certificate().names),
        "new": new,
        "public_key": keys.plan_public,
    }
    lines = (*_state_lines(folder, keys, new, names), "", "give every site:", *_for_sites(server, keys))
    return Report(facts=facts, lines=(*lines, "", *_next(folder)))


def _state_lines(folder: OperatorFolder, keys: Authority, new: bool, names: Sequence[str]) -> tuple[str, ...]:
    certificate = keys.certificate()
    known = rows([("operator", str(folder.root)), ("certificate", certificate_line(certificate))])
    if not new:
        given = set(names) - set(certificate.names)
        more = (f"to add {', '.join(sorted(given))}: {CHANGE}",) if given else ()
        return (*known, "all of it was there before; nothing was changed", *more)
    guessed = ("the names are those of this machine: sites must reach it by one of them (see --name)",)
    return (*known, *(() if names else guessed))


def _for_sites(server: ServerFile, keys: Authority) -> tuple[str, ...]:
    return rows(
        [
            ("  server", server.address),
            ("  ca", str(keys.ca_file)),
            ("  operator key", keys.plan_public),
            ("  fingerprint", f"{keys.plan_fingerprint}  (read it to them on another channel)"),
        ]
    )


def _next(folder: OperatorFolder) -> tuple[str, ...]:
    here = quoted(folder)
    return (
        f"next: 1. fedward-server start{here}",
        f"      2. fedward-server enrol SITE.pub{here}      for each file that a site sends",
        f"      3. fedward-server run BUNDLE{here}",
        f"keep a copy of {folder.keys} in a safe place: without plan.key and ca.key every site must be set up anew",
    )


def renew(folder: OperatorFolder, *, names: Sequence[str] = ()) -> Report:
    """A new server key and certificate from the same authority: no site has to do anything.

    Args:
      folder: of the operator.
      names: written to nothing but the certificate; none: the names of server.toml.

    Raises:
      ConfigError: a name is wrong, or server.toml is.
      PrivacyError: ca.key is gone, or damaged.
      OutputError: the folder cannot be written.
    """
    server, keys = folder.load_server(), Authority(folder.keys)  # unchecked: a lost server key is a reason to renew
    chosen = tuple(names) or server.gateway.names
    _check_names(server, chosen)
    before = _known(keys)
    after = keys.renew(chosen)
    facts = {
        "command": "renew",
        "days_left": after.days_left(),
        "fingerprint": after.fingerprint,
        "names": list(after.names),
        "not_after": after.not_after.isoformat(),
    }
    told = rows([("before", before), ("now", certificate_line(after))])
    missing = sorted(set(after.names) ^ set(server.gateway.names))
    differs = (f"server.toml does not agree in {', '.join(missing)}: {CHANGE}",) if missing else ()
    running = folder.holder() is not None
    restart = ("the gateway shows it within seconds; Flower's own server is restarted for it, which runs outlive",)
    return Report(facts=facts, lines=(*told, *differs, *(restart if running else ())))


def _known(keys: Authority) -> str:
    try:
        return certificate_line(keys.certificate())
    except PrivacyError:
        return "none that can be read"


def _check_names(server: ServerFile, names: Sequence[str]) -> None:
    table = server.model_dump(mode="json", by_alias=True)
    table["gateway"]["names"] = list(names)
    try:
        ServerFile.model_validate(table)
    except ValueError:
        raise ConfigError(
            f"{', '.join(names)}: not all of these are DNS names or IP addresses",
            hint="give --name fed.example.org or --name 192.0.2.7, without scheme, port or path",
        ) from None


def _own_names() -> tuple[str, ...]:
    own = socket.gethostname()
    return (*((own,) if DNS_NAME.fullmatch(own) and own != "localhost" else ()), "localhost", "127.0.0.1")


def _name_for(root: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name).strip("._-")[:64] or DEFAULT_NAME
