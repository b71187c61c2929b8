"""``fedward-client``: what a site's administrator types. Light until a command needs more.

Errors and exit codes are those of every fedward program (``fedward_common.cli``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import typer
from typer.core import TyperGroup

from fedward_common.cli import Command, group, run, show_version, tell
from fedward_common.errors import InputError

__all__ = ["main"]

PROGRAM = "fedward-client"


app = group(PROGRAM, "A site of a federation: what may leave, what it has cost, and what left.")
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]
Courier = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The courier's folder. Default: courier/ in the site's folder.")
]
HERE = Path(".")


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A site of a federation: what may leave, what it has cost, and what left."""


@app.command(cls=Command)
def init(
    directory: Directory = HERE,
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The operator's server, to join it.")] = None,
    ca: Annotated[Path | None, typer.Option(metavar="CA.pem", help="The operator's CA.")] = None,
    operator_key: Annotated[
        str | None, typer.Option(metavar="PUB", help="The operator's plan-signing key: a file, or its 64 digits.")
    ] = None,
    proxy: Annotated[str, typer.Option(metavar="URL", help="An HTTP proxy that knows CONNECT.")] = "",
    courier: Courier = None,
    door: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the socket between both processes, for two accounts.")
    ] = None,
) -> None:
    """Make a site: a commented site.toml and keys. Run it again to open the ledger once site.toml is filled in.

    With --server, --ca and --operator-key it also makes the node key, and a file to send to the operator.
    """
    from fedward_client.commands.init import init
    from fedward_client.commands.join import Invitation

    if server is None or ca is None or operator_key is None:
        if server or ca or operator_key or proxy or courier or door:
            raise InputError(
                "joining needs --server, --ca and --operator-key together", hint="the operator hands out all three"
            )
        return tell(init(directory))
    invitation = Invitation(server=server, ca=ca, operator_key=operator_key, proxy=proxy, courier=courier, door=door)
    return tell(init(directory, invitation))


@app.command(cls=Command)
def start(
    directory: Directory = HERE,
    courier: Courier = None,
    background: Annotated[bool, typer.Option("--background", help="Go on after the terminal is closed.")] = False,
) -> None:
    """Run the site: the trainer without network, the courier without data, restarted when they fall."""
    from fedward_client.commands.running import start, start_in_background

    tell(start_in_background(directory, courier) if background else start(directory, courier))


@app.command(cls=Command)
def status(directory: Directory = HERE, courier: Courier = None) -> None:
    """How both processes and the link to the operator are."""
    from fedward_client.commands.running import status

    tell(status(directory, courier))


@app.command(cls=Command)
def stop(directory: Directory = HERE) -> None:
    """Stop what `start` started. A round that is being trained may end first."""
    from fedward_client.commands.running import halt

    tell(halt(directory))


@app.command(cls=Command)
def service(
    directory: Directory = HERE,
    courier: Courier = None,
    trainer_user: Annotated[str, typer.Option(help="Account of the trainer.")] = "fedward-trainer",
    courier_user: Annotated[str, typer.Option(help="Account of the courier.")] = "fedward-courier",
    group: Annotated[str, typer.Option(help="Group that both accounts are in.")] = "fedward-door",
) -> None:
    """Print systemd units for two accounts: the supported way to run a site."""
    from fedward_client.commands.service import Accounts, service

    tell(service(directory, courier, Accounts(trainer=trainer_user, courier=courier_user, group=group)))


@app.command(cls=Command)
def check(directory: Directory = HERE) -> None:
    """Read the data and say what is wrong, what would be guaranteed, and what this machine does not protect."""
    from fedward_client.commands.check import check
    from fedward_client.installation.folder import Folder

    tell(check(Folder.open(directory)))


@app.command(cls=Command)
def forecast(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="What the coordinator means to run.")],
    directory: Directory = HERE,
    tokens: Annotated[int | None, typer.Option(min=1, help="Mean tokens of a text, for the estimate of time.")] = None,
) -> None:
    """What a run would cost: epsilon, steps, bytes and time, before anything is spent or any record is read."""
    from fedward_client.commands.forecast import forecast
    from fedward_client.installation.folder import Folder

    tell(forecast(Folder.open(directory), run_file, tokens=tokens))


@app.command("fetch-model", cls=Command)
def fetch_model(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="An alias, a folder, or org/name@COMMIT.")],
    directory: Directory = HERE,
) -> None:
    """Bring a base model in (safetensors only, no code) and print the fingerprint for policy.models."""
    from fedward_client.commands.models import fetch_model
    from fedward_client.installation.folder import Folder

    tell(fetch_model(Folder.open(directory), source))


@app.command(cls=Command)
def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder.")],
    directory: Directory = HERE,
    with_keys: Annotated[bool, typer.Option("--with-keys", help="Copy the secrets too.")] = False,
) -> None:
    """Copy books and site file, checked and consistent; and say what restoring an old copy means."""
    from fedward_client.commands.upkeep import backup
    from fedward_client.installation.folder import Folder

    tell(backup(Folder.open(directory), target, with_keys=with_keys))


@app.command("rotate-keys", cls=Command)
def rotate_keys(directory: Directory = HERE) -> None:
    """Replace the signing key by a new one that the old one signs. The unit-digest key can never be replaced."""
    from fedward_client.commands.upkeep import rotate_keys
    from fedward_client.installation.folder import Folder

    tell(rotate_keys(Folder.open(directory)))


@app.command(cls=Command)
def clear(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run id, or enough of its beginning.")],
    directory: Directory = HERE,
) -> None:
    """Let a run go on that a failure holds at this site. What was begun stays spent."""
    from fedward_client.commands.ledger import clear
    from fedward_client.installation.folder import Folder

    tell(clear(Folder.open(directory), run))


audit = group("audit", "What left this site, what was refused and why.")
ledger = group("ledger", "What was spent, and what is left.")
app.add_typer(audit)
app.add_typer(ledger)


@audit.command("show", cls=Command)
def audittell(
    directory: Directory = HERE,
    run: Annotated[str, typer.Option(help="Only runs whose id begins like this.")] = "",
) -> None:
    """The last fifty lines of the audit log; all of them with -v."""
    from fedward_client.commands.audit import show
    from fedward_client.installation.folder import Folder

    tell(show(Folder.open(directory), run=run))


@audit.command("verify", cls=Command)
def audit_verify(directory: Directory = HERE) -> None:
    """Check every signature and link of the audit log."""
    from fedward_client.commands.audit import verify
    from fedward_client.installation.folder import Folder

    tell(verify(Folder.open(directory)))


@audit.command("export", cls=Command)
def audit_export(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new file.")],
    directory: Directory = HERE,
) -> None:
    """Write the signed lines and the public keys that check them, for an auditor."""
    from fedward_client.commands.audit import export
    from fedward_client.installation.folder import Folder

    tell(export(Folder.open(directory), target))


@ledger.command("show", cls=Command)
def ledgertell(directory: Directory = HERE) -> None:
    """Every run with its cost, computed from its events; every entry with -v."""
    from fedward_client.commands.ledger import show
    from fedward_client.installation.folder import Folder

    tell(show(Folder.open(directory)))


@ledger.command("verify", cls=Command)
def ledger_verify(directory: Directory = HERE) -> None:
    """Check every signature, link and number of ledger and audit log, and that both tell the same story."""
    from fedward_client.commands.ledger import verify
    from fedward_client.installation.folder import Folder

    tell(verify(Folder.open(directory)))


@ledger.command("head", cls=Command)
def ledger_head(directory: Directory = HERE) -> None:
    """The digest of the last entry: note it elsewhere, and a ledger that was set back will show."""
    from fedward_client.commands.ledger import head
    from fedward_client.installation.folder import Folder

    tell(head(Folder.open(directory)))


@ledger.command("forecast", cls=Command)
def ledger_forecast(
    directory: Directory = HERE,
    run_file: Annotated[
        Path | None, typer.Option("--run", metavar="RUN.toml", help="Count runs like this one.")
    ] = None,
) -> None:
    """How many more runs the budget bears."""
    from fedward_client.commands.ledger import forecast_life
    from fedward_client.installation.folder import Folder

    tell(forecast_life(Folder.open(directory), run_file))


@ledger.command("reconcile", cls=Command)
def ledger_reconcile(
    witness: Annotated[Path, typer.Argument(metavar="WITNESS.json", help="From the operator of a run.")],
    directory: Directory = HERE,
) -> None:
    """After an old copy was restored: count as spent what a coordinator knows and this ledger does not."""
    from fedward_client.commands.ledger import reconcile
    from fedward_client.installation.folder import Folder

    tell(reconcile(Folder.open(directory), witness))


class _CertificateGroup(TyperGroup):
    """``certificate RUN`` makes one; ``certificate verify FILE`` checks one."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if arguments and arguments[0] in self.commands:
            return super().resolve_command(context, arguments)
        return MAKE, self.commands[MAKE], arguments


MAKE = "make"
certificate = group("certificate", "`certificate RUN` writes a run's signed certificate; `certificate verify` checks.")
app.add_typer(certificate, cls=_CertificateGroup)


@certificate.command(MAKE, cls=Command)
def certificate_make(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run id, or enough of its beginning.")],
    directory: Directory = HERE,
    out: Annotated[Path | None, typer.Option(help="A new file. Default: certificate-RUN.json")] = None,
    adapter: Annotated[str, typer.Option(metavar="DIGEST", help="Of the run's last adapter, to be named in it.")] = "",
) -> None:
    """Write a signed file that says what a run cost each unit, for others to check. The word `make` may be left out."""
    from fedward_client.commands.certificates import certify
    from fedward_client.installation.folder import Folder

    tell(certify(Folder.open(directory), run, out, adapter=adapter))


@certificate.command("verify", cls=Command)
def certificate_verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate.")],
    key: Annotated[str, typer.Option(metavar="HEX", help="The site's public key, from a source that you trust.")] = "",
) -> None:
    """Check signature, chain and arithmetic of a certificate. Needs no site."""
    from fedward_client.commands.certificates import verify_file

    tell(verify_file(file, key=key))


def main() -> None:
    """Entry point: run a command and turn errors into two lines and an exit code."""
    run(app, PROGRAM)
