"""``service``: two systemd units, two accounts: the supported way to run a site.

The trainer's unit has no network at all and reads its data only; the courier's has a network and sees its own folder
and the Door. What each line is for stands in the unit, for whoever has to approve it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from fedward_client.commands.join import COURIER
from fedward_client.commands.running import check_door
from fedward_client.courier.folder import CourierFolder
from fedward_client.door.place import Place
from fedward_client.installation.folder import Folder
from fedward_common.errors import ConfigError
from fedward_common.report import Report

__all__ = ["Accounts", "service"]

PEOPLES = (Path("/home"), Path("/root"), Path("/run/user"), Path("/tmp"), Path("/var/tmp"))  # noqa: S108
PLAIN = re.compile(r"/[A-Za-z0-9._/+@-]*")


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """The two accounts, and the group that both are in: it opens the Door."""

    trainer: str = "fedward-trainer"
    courier: str = "fedward-courier"
    group: str = "fedward-door"


def service(root: Path, courier: Path | None, accounts: Accounts) -> Report:
    """Both units, and the commands that prepare accounts and folders.

    Raises:
      ConfigError: the courier's folder lies where its account cannot come.
    """
    folder, carrier = Folder.open(root), (courier or root / COURIER).absolute()
    file = folder.load_site()
    place = Place.at_site(folder.root)
    check_door(CourierFolder.open(carrier), place)
    _check_apart(folder, carrier, place)
    data = file.source(folder.root).resolve()
    for path in (Path(sys.prefix), Path(sys.base_prefix), folder.root.absolute(), carrier, place.folder, data):
        _check_plain(path)
    units = {
        f"fedward-trainer-{file.name}.service": _TRAINER.format(
            name=file.name,
            python=sys.executable,
            root=folder.root.absolute(),
            door=place.folder,
            data=data,
            **_of(accounts),
        ),
        f"fedward-courier-{file.name}.service": _COURIER.format(
            name=file.name, python=sys.executable, carrier=carrier, door=place.folder, **_of(accounts)
        ),
    }
    steps = _STEPS.format(
        root=folder.root.absolute(), carrier=carrier, door=place.folder, data=data, name=file.name, **_of(accounts)
    )
    lines = [
        line for name, text in units.items() for line in (f"# ---- /etc/systemd/system/{name}", *text.splitlines(), "")
    ]
    facts = {"command": "service", "steps": steps.strip().splitlines(), "units": units}
    return Report(facts=facts, lines=(*lines, "# ---- as root, once:", *steps.strip().splitlines()))


def _of(accounts: Accounts) -> dict[str, str]:
    return {"trainer": accounts.trainer, "courier": accounts.courier, "group": accounts.group}


def _check_apart(folder: Folder, carrier: Path, place: Place) -> None:
    inside = [path for path in (carrier, place.folder) if path.resolve().is_relative_to(folder.root.resolve())]
    if inside:
        raise ConfigError(
            f"{inside[0]} lies in the site's own folder, which the courier's account cannot enter",
            hint="make the site with both elsewhere: fedward-client init --server ... "
            "--courier /var/lib/fedward-courier --door /var/lib/fedward-door",
        )


def _check_plain(path: Path) -> None:
    """Both units hide people's folders, and systemd reads spaces and percent signs its own way."""
    if any(path.is_relative_to(folder) for folder in PEOPLES):
        raise ConfigError(
            f"{path} lies in a person's or a temporary folder, which services do not see",
            hint="install fedward under /opt, the site under /var/lib, the data under /srv, for instance",
        )
    if not PLAIN.fullmatch(str(path)):
        raise ConfigError(f"{path} has characters that a systemd unit would misread", hint="choose a plain path")


_TRAINER = """\
[Unit]
Description=fedward trainer of {name}: sees the data, has no network
After=local-fs.target

[Service]
User={trainer}
SupplementaryGroups={group}
UMask=0077
ExecStart={python} -m fedward_client.trainer.main {root} --publish-credentials --group {group}
Restart=always
RestartSec=2
RestartPreventExitStatus=2
TimeoutStopSec=75
# no network: the trainer verifies both from inside, and refuses to start without
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
# the disk: its own folder and the door, the data read-only, nothing else of people
ProtectSystem=strict
ProtectHome=yes
ReadWritePaths={root} {door}
ReadOnlyPaths={data}
PrivateTmp=yes
PrivateDevices=yes
# no way up
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
LockPersonality=yes
LimitCORE=0

[Install]
WantedBy=multi-user.target
"""

_COURIER = """\
[Unit]
Description=fedward courier of {name}: has the network, sees no data
After=network-online.target fedward-trainer-{name}.service
Wants=network-online.target

[Service]
User={courier}
SupplementaryGroups={group}
UMask=0077
ExecStart={python} -m fedward_client.courier.main {carrier}
Restart=always
RestartSec=2
RestartPreventExitStatus=2
TimeoutStopSec=15
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
ProtectSystem=strict
ProtectHome=yes
ReadWritePaths={carrier}
ReadOnlyPaths={door}
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
LockPersonality=yes
LimitCORE=0

[Install]
WantedBy=multi-user.target
"""

_STEPS = """
groupadd --system {group}
useradd --system --no-create-home --groups {group} {trainer}
useradd --system --no-create-home --groups {group} {courier}
chown -R {trainer}: {root}
chown -R {courier}: {carrier}
install -d -m 2750 -o {trainer} -g {group} {door}
chown {trainer}: {data} && chmod 400 {data}
systemctl daemon-reload
systemctl enable --now fedward-trainer-{name} fedward-courier-{name}
"""
