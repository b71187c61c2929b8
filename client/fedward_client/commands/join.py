"""``init --server``: what a site needs to join a federation: the courier's folder, and an enrolment to send.

The node key is made here and never leaves. The operator's three things (address, CA, plan-signing key) are public; whom
they belong to is found out by comparing fingerprints on another channel, once.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, StrictStr, ValidationError

from fedward_client.courier.folder import CourierFile, CourierFolder
from fedward_client.door.place import Place
from fedward_client.installation.folder import Folder
from fedward_client.installation.keys import public_key_text, read_public_key
from fedward_client.installation.site_file import DOCS
from fedward_common.codec import key_fingerprint
from fedward_common.enrolment import Enrolment
from fedward_common.errors import ConfigError
from fedward_common.files import rewrite
from fedward_common.report import Report, rows
from fedward_common.strict import explain, read_text

__all__ = ["Invitation", "join"]

COURIER = "courier"


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """What the operator hands out, as it was typed.

    ``courier`` is the courier's folder, and ``door`` the folder of the socket, where they lie elsewhere: with two
    accounts both must.
    """

    server: str
    ca: Path
    operator_key: str
    proxy: str = ""
    courier: Path | None = None
    door: Path | None = None


def join(folder: Folder, invitation: Invitation) -> Report:
    """Make the courier's folder and the enrolment. Whatever is there is kept, and compared with what was typed.

    Raises:
      ConfigError: something typed is wrong, or differs from what this site has.
      OutputError: a file cannot be written.
    """
    name = _agree_on_operator(folder, invitation.operator_key)
    courier = _courier(folder, invitation, name)
    keys = folder.load_keys()
    enrolment = Enrolment.sign(name, node=courier.node_public_key, signing=keys.signing)
    target = folder.root / f"{name}.pub"
    rewrite(target, enrolment.to_text().encode())
    facts = {
        "command": "init",
        "courier": str(courier.path),
        "enrolment": str(target),
        "node_fingerprint": enrolment.node_fingerprint,
        "node_public_key": enrolment.node_public_key,
        "server": courier.file.server,
        "signing_fingerprint": enrolment.signing_fingerprint,
    }
    lines = rows(
        [
            (
                "server",
                courier.file.server + (f" through the proxy {courier.file.proxy}" if courier.file.proxy else ""),
            ),
            ("operator key", f"{read_operator_key(invitation.operator_key)}  (the operator reads it to you)"),
            ("send", f"{target}  (public; the operator enrols it)"),
            ("node key", enrolment.node_public_key),
            ("  fingerprint", enrolment.node_fingerprint),
            ("signing key", public_key_text(enrolment.signing_key)),
            ("  fingerprint", enrolment.signing_fingerprint),
        ]
    )
    compare = "compare all three fingerprints with the operator on another channel, for instance by telephone"
    return Report(facts=facts, lines=(*lines, compare))


def _agree_on_operator(folder: Folder, given: str) -> str:
    """The site's name, once the site file and what was typed name one operator."""
    wanted = read_operator_key(given)
    begun = _begun(folder.site_file)
    held = begun.coordinator.public_key
    if held is not None and key_fingerprint(read_public_key(held)) != wanted:
        raise ConfigError(
            "site.toml names another operator than --operator-key",
            hint="one site answers one operator: set coordinator.public_key, or make another site",
        )
    return begun.name


class _Coordinator(BaseModel):
    public_key: StrictStr | None = None


class _Begun(BaseModel):
    """What joining needs of a site file, whose other keys may still wait to be filled in."""

    name: StrictStr
    coordinator: _Coordinator = _Coordinator()


def _begun(site_file: Path) -> _Begun:
    text = read_text(site_file, what="the site file", hint=DOCS)
    try:
        return _Begun.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise explain(error, source="site.toml", model=_Begun, docs=DOCS) from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise ConfigError(f"site.toml is not TOML: {error}", hint=DOCS) from None


def read_operator_key(given: str) -> str:
    """The fingerprint of an operator's key: a file, 64 hex digits or base64."""
    return key_fingerprint(read_public_key(operator_key_text(given)))


def operator_key_text(given: str) -> str:
    """64 hex digits of the operator's key, whichever way it was given.

    Raises:
      ConfigError: it is neither a file with a key nor a key.
    """
    path = Path(given).expanduser()
    try:
        text = path.read_text(encoding="ascii") if path.is_file() else given
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"cannot read the operator's key {path}", hint="give plan.pub, or its 64 digits") from None
    return public_key_text(read_public_key(text))


def _courier(folder: Folder, invitation: Invitation, name: str) -> CourierFolder:
    path = (invitation.courier or folder.root / COURIER).absolute()
    try:
        ca_pem = invitation.ca.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {invitation.ca}: {error.strerror}", hint="ask the operator for ca.pem"
        ) from None
    door = str(Place.at_site(folder.root).socket)
    if invitation.door and Place(invitation.door.absolute()).socket != Path(door):
        raise ConfigError(
            f"site.toml has its door at {door}", hint="set network.door in site.toml; it is not overwritten"
        )
    file = _file(name, invitation, door)
    if not (path / "courier.toml").exists():
        return CourierFolder.create(path, file, ca_pem=ca_pem)
    CourierFolder.make_key(path)  # where it was lost, or moved aside to be replaced
    held = CourierFolder.open(path)
    for key in ("name", "server", "proxy", "door"):
        have, want = getattr(held.file, key), getattr(file, key)
        if have != want:
            raise ConfigError(
                f"{path}/courier.toml has {key} = {have!r}, and not {want!r}",
                hint="edit that file; it is never overwritten",
            )
    return held


def _file(name: str, invitation: Invitation, door: str) -> CourierFile:
    content = {"schema": 1, "name": name, "server": invitation.server, "proxy": invitation.proxy, "door": door}
    try:
        return CourierFile.model_validate(content)
    except ValidationError as error:
        raise explain(
            error, source="courier", model=CourierFile, docs="for example --server fed.example.org:8443"
        ) from None
