"""``fedward-client``: what a site's administrator types. Light until a command needs more.

Every error that fedward raises on purpose ends as one ``fedward: error:`` line and one ``hint:`` line on stderr; of any
other error only its type is shown, because its text may hold a record. Exit codes: 0 done, 2 wrong input or something
is not in order, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from fedward_client.commands.report import Report
from fedward_client.view import Output, complain, show
from fedward_common.errors import FedwardError

__all__ = ["main"]

PROGRAM = "fedward-client"
OUTPUT = "fedward.output"


def _version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    from importlib.metadata import PackageNotFoundError, version

    if wanted and not context.resilient_parsing:
        try:
            typer.echo(f"fedward {version('fedward')}")
        except PackageNotFoundError:
            typer.echo("fedward (not installed)")
        context.exit()


def _flag(names: list[str], text: str, **more: Any) -> TyperOption:
    return TyperOption(param_decls=names, is_flag=True, default=False, expose_value=False, help=text, **more)


def _remember(context: click.Context, option: click.Parameter, value: bool) -> None:
    context.meta.setdefault(OUTPUT, {})[str(option.name)] = value


class _Command(TyperCommand):
    """A command with the four options that every command has."""

    def __init__(self, *arguments: Any, params: list[click.Parameter] | None = None, **more: Any) -> None:
        common = [
            _flag(["--json"], "One JSON object on stdout.", callback=_remember),
            _flag(["-v", "--verbose"], "Say more.", callback=_remember),
            _flag(["-q", "--quiet"], "Say nothing unless something is wrong.", callback=_remember),
            _flag(["--version"], "Show the version.", callback=_version, is_eager=True),
        ]
        super().__init__(*arguments, params=[*(params or []), *common], **more)


def _group(name: str, text: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        suggest_commands=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _group(PROGRAM, "A site of a federation: what may leave, what it has cost, and what left.")
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]
HERE = Path(".")


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A site of a federation: what may leave, what it has cost, and what left."""


@app.command(cls=_Command)
def init(directory: Directory = HERE) -> None:
    """Make a site: a commented site.toml and keys. Run it again to open the ledger once site.toml is filled in."""
    from fedward_client.commands.init import init

    _show(init(directory))


@app.command(cls=_Command)
def check(directory: Directory = HERE) -> None:
    """Read the data and say what is wrong, what would be guaranteed, and what this machine does not protect."""
    from fedward_client.commands.check import check
    from fedward_client.installation.folder import Folder

    _show(check(Folder.open(directory)))


@app.command(cls=_Command)
def forecast(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="What the coordinator means to run.")],
    directory: Directory = HERE,
    tokens: Annotated[int | None, typer.Option(min=1, help="Mean tokens of a text, for the estimate of time.")] = None,
) -> None:
    """What a run would cost: epsilon, steps, bytes and time, before anything is spent or any record is read."""
    from fedward_client.commands.forecast import forecast
    from fedward_client.installation.folder import Folder

    _show(forecast(Folder.open(directory), run_file, tokens=tokens))


@app.command("fetch-model", cls=_Command)
def fetch_model(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="An alias, a folder, or org/name@COMMIT.")],
    directory: Directory = HERE,
) -> None:
    """Bring a base model in (safetensors only, no code) and print the fingerprint for policy.models."""
    from fedward_client.commands.models import fetch_model
    from fedward_client.installation.folder import Folder

    _show(fetch_model(Folder.open(directory), source))


@app.command(cls=_Command)
def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder.")],
    directory: Directory = HERE,
    with_keys: Annotated[bool, typer.Option("--with-keys", help="Copy the secrets too.")] = False,
) -> None:
    """Copy books and site file, checked and consistent; and say what restoring an old copy means."""
    from fedward_client.commands.upkeep import backup
    from fedward_client.installation.folder import Folder

    _show(backup(Folder.open(directory), target, with_keys=with_keys))


@app.command("rotate-keys", cls=_Command)
def rotate_keys(directory: Directory = HERE) -> None:
    """Replace the signing key by a new one that the old one signs. The unit-digest key can never be replaced."""
    from fedward_client.commands.upkeep import rotate_keys
    from fedward_client.installation.folder import Folder

    _show(rotate_keys(Folder.open(directory)))


@app.command(cls=_Command)
def clear(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run id, or enough of its beginning.")],
    directory: Directory = HERE,
) -> None:
    """Let a run go on that a failure holds at this site. What was begun stays spent."""
    from fedward_client.commands.ledger import clear
    from fedward_client.installation.folder import Folder

    _show(clear(Folder.open(directory), run))


audit = _group("audit", "What left this site, what was refused and why.")
ledger = _group("ledger", "What was spent, and what is left.")
app.add_typer(audit)
app.add_typer(ledger)


@audit.command("show", cls=_Command)
def audit_show(
    directory: Directory = HERE,
    run: Annotated[str, typer.Option(help="Only runs whose id begins like this.")] = "",
) -> None:
    """The last fifty lines of the audit log; all of them with -v."""
    from fedward_client.commands.audit import show
    from fedward_client.installation.folder import Folder

    _show(show(Folder.open(directory), run=run))


@audit.command("verify", cls=_Command)
def audit_verify(directory: Directory = HERE) -> None:
    """Check every signature and link of the audit log."""
    from fedward_client.commands.audit import verify
    from fedward_client.installation.folder import Folder

    _show(verify(Folder.open(directory)))


@audit.command("export", cls=_Command)
def audit_export(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new file.")],
    directory: Directory = HERE,
) -> None:
    """Write the signed lines and the public keys that check them, for an auditor."""
    from fedward_client.commands.audit import export
    from fedward_client.installation.folder import Folder

    _show(export(Folder.open(directory), target))


@ledger.command("show", cls=_Command)
def ledger_show(directory: Directory = HERE) -> None:
    """Every run with its cost, computed from its events; every entry with -v."""
    from fedward_client.commands.ledger import show
    from fedward_client.installation.folder import Folder

    _show(show(Folder.open(directory)))


@ledger.command("verify", cls=_Command)
def ledger_verify(directory: Directory = HERE) -> None:
    """Check every signature, link and number of ledger and audit log, and that both tell the same story."""
    from fedward_client.commands.ledger import verify
    from fedward_client.installation.folder import Folder

    _show(verify(Folder.open(directory)))


@ledger.command("head", cls=_Command)
def ledger_head(directory: Directory = HERE) -> None:
    """The digest of the last entry: note it elsewhere, and a ledger that was set back will show."""
    from fedward_client.commands.ledger import head
    from fedward_client.installation.folder import Folder

    _show(head(Folder.open(directory)))


@ledger.command("forecast", cls=_Command)
def ledger_forecast(
    directory: Directory = HERE,
    run_file: Annotated[
        Path | None, typer.Option("--run", metavar="RUN.toml", help="Count runs like this one.")
    ] = None,
) -> None:
    """How many more runs the budget bears."""
    from fedward_client.commands.ledger import forecast_life
    from fedward_client.installation.folder import Folder

    _show(forecast_life(Folder.open(directory), run_file))


@ledger.command("reconcile", cls=_Command)
def ledger_reconcile(
    witness: Annotated[Path, typer.Argument(metavar="WITNESS.json", help="From the operator of a run.")],
    directory: Directory = HERE,
) -> None:
    """After an old copy was restored: count as spent what a coordinator knows and this ledger does not."""
    from fedward_client.commands.ledger import reconcile
    from fedward_client.installation.folder import Folder

    _show(reconcile(Folder.open(directory), witness))


class _CertificateGroup(TyperGroup):
    """``certificate RUN`` makes one; ``certificate verify FILE`` checks one."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if arguments and arguments[0] in self.commands:
            return super().resolve_command(context, arguments)
        return MAKE, self.commands[MAKE], arguments


MAKE = "make"
certificate = _group("certificate", "`certificate RUN` writes a run's signed certificate; `certificate verify` checks.")
app.add_typer(certificate, cls=_CertificateGroup)


@certificate.command(MAKE, cls=_Command)
def certificate_make(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run id, or enough of its beginning.")],
    directory: Directory = HERE,
    out: Annotated[Path | None, typer.Option(help="A new file. Default: certificate-RUN.json")] = None,
    adapter: Annotated[str, typer.Option(metavar="DIGEST", help="Of the run's last adapter, to be named in it.")] = "",
) -> None:
    """Write a signed file that says what a run cost each unit, for others to check. The word `make` may be left out."""
    from fedward_client.commands.certificates import certify
    from fedward_client.installation.folder import Folder

    _show(certify(Folder.open(directory), run, out, adapter=adapter))


@certificate.command("verify", cls=_Command)
def certificate_verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate.")],
    key: Annotated[str, typer.Option(metavar="HEX", help="The site's public key, from a source that you trust.")] = "",
) -> None:
    """Check signature, chain and arithmetic of a certificate. Needs no site."""
    from fedward_client.commands.certificates import verify_file

    _show(verify_file(file, key=key))


def _show(report: Report) -> None:
    show(report, _output())
    if report.problem is not None:
        raise report.problem


def _output() -> Output:
    chosen = click.get_current_context().meta.get(OUTPUT, {})
    return Output(
        json=chosen.get("json", False), verbose=chosen.get("verbose", False), quiet=chosen.get("quiet", False)
    )


def main() -> None:
    """Entry point: run a command and turn errors into two lines and an exit code."""
    try:
        code = app(standalone_mode=False, prog_name=PROGRAM)
    except FedwardError as error:
        complain(str(error), error.hint)
        sys.exit(2)
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        sys.exit(2)
    except click.UsageError as error:
        complain(error.format_message(), f"{_command_of(error)} --help")
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except Exception as error:
        complain(*_without_text(error))
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _without_text(error: Exception) -> tuple[str, str]:
    """An error that nobody foresaw: its type and place. Its text could quote a record, so it is not shown."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "fedward" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "an unknown place"
    return f"internal error of type {type(error).__name__} at {place}", "this is a fault of fedward: please report it"


def _command_of(error: click.UsageError) -> str:
    return error.ctx.command_path if error.ctx else PROGRAM
