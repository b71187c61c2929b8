"""``fedward-server``: what an operator types. Light until a command needs more: no Flower and no torch on these paths.

Commands write the operator's folder; the running server (``start``) makes the world agree with it. So every command
works while the server is down. Errors and exit codes are those of every fedward program (``fedward_common.cli``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedward_common.cli import Command, group, output, run, show_version, tell
from fedward_common.errors import InputError
from fedward_common.report import complain, printable

__all__ = ["main"]

PROGRAM = "fedward-server"
ABOUT = "The operator of a federation: who takes part, what runs, and how it stands."

app = group(PROGRAM, ABOUT)
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The operator's folder.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name or id, or enough of its beginning.")]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="DNS|IP", help="A name by which sites reach the gateway; repeatable."),
]
HERE = Path(".")


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """The operator of a federation: who takes part, what runs, and how it stands."""


# ---- the folder and its processes --------------------------------------------------
@app.command(cls=Command)
def init(
    directory: Directory = HERE,
    host: Annotated[str, typer.Option(metavar="IP", help="The address to listen on.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(help="The gateway's port.")] = 8443,
    name: Names = None,
) -> None:
    """Make an operator's folder: server.toml, an authority, a server certificate, the key that signs plans."""
    from fedward_server.commands.init import init

    tell(init(directory, host=host, port=port, names=name or ()))


@app.command(cls=Command)
def start(directory: Directory = HERE) -> None:
    """Run SuperLink, desk and gateway until Ctrl-C or `shutdown`. Runs go on from their last finished round."""
    from fedward_server.commands.lifecycle import preflight
    from fedward_server.deployment.folder import OperatorFolder

    folder = OperatorFolder.open(directory)
    for note in preflight(folder):
        sys.stderr.write(f"fedward: note: {printable(note)}\n")
    from fedward_server.deployment.start import start

    raise typer.Exit(start(folder, verbose=output().verbose))


@app.command(cls=Command)
def shutdown(directory: Directory = HERE) -> None:
    """Stop the server that runs for this folder, and wait for its end."""
    from fedward_server.commands.lifecycle import shutdown
    from fedward_server.deployment.folder import OperatorFolder

    tell(shutdown(OperatorFolder.open(directory)))


@app.command(cls=Command)
def renew(directory: Directory = HERE, name: Names = None) -> None:
    """Replace the server certificate. Sites need nothing new: they pin the authority."""
    from fedward_server.commands.init import renew
    from fedward_server.deployment.folder import OperatorFolder

    tell(renew(OperatorFolder.open(directory), names=name or ()))


@app.command(cls=Command)
def status(
    directory: Directory = HERE,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="One run, with its rounds.")] = None,
) -> None:
    """Processes, certificate, sites and runs at a glance."""
    from fedward_server.commands.status import run_status, status
    from fedward_server.deployment.folder import OperatorFolder

    folder = OperatorFolder.open(directory)
    tell(status(folder) if run is None else run_status(folder, run))


# ---- sites -------------------------------------------------------------------------
@app.command(cls=Command)
def enrol(
    file: Annotated[Path, typer.Argument(metavar="SITE.pub", help="What the site sent.")],
    directory: Directory = HERE,
    name: Annotated[str | None, typer.Option(help="Your name for the site. Default: its own.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="The site has new keys: revoke the former ones.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Take a signing key back that was revoked.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="The fingerprints were compared.")] = False,
) -> None:
    """Let a site take part, once both fingerprints were compared with it on another channel."""
    from fedward_server.commands.sites import enrol, read_enrolment
    from fedward_server.deployment.folder import Consent, OperatorFolder

    folder = OperatorFolder.open(directory)
    consents = [consent for consent, given in ((Consent.REPLACE, replace), (Consent.AGAIN, again)) if given]
    confirm = _compared if yes else _ask
    tell(enrol(folder, read_enrolment(file), name=name, consents=consents, confirm=confirm))


@app.command(cls=Command)
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An enrolled site.")], directory: Directory = HERE
) -> None:
    """Let a site take part no longer."""
    from fedward_server.commands.sites import revoke
    from fedward_server.deployment.folder import OperatorFolder

    tell(revoke(OperatorFolder.open(directory), name))


@app.command(cls=Command)
def sites(directory: Directory = HERE) -> None:
    """Every enrolled site: connected, last seen, version; fingerprints with -v."""
    from fedward_server.commands.sites import sites
    from fedward_server.deployment.folder import OperatorFolder

    tell(sites(OperatorFolder.open(directory)))


# ---- runs --------------------------------------------------------------------------
@app.command("run", cls=Command)
def run_(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE|RUN.toml", help="A prepared bundle, or a run file.")],
    directory: Directory = HERE,
    name: Annotated[str | None, typer.Option(help="Of the run. Default: the run file's name.")] = None,
    follow: Annotated[
        bool | None, typer.Option("--follow/--detach", help="Watch it. Default: yes, where the server runs.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a value of RUN.toml; repeatable.")
    ] = None,
) -> None:
    """Start a run. It goes on whether or not somebody watches."""
    from fedward_server.commands.runs import begin, outcome
    from fedward_server.deployment.folder import OperatorFolder
    from fedward_server.view import choose_view

    folder = OperatorFolder.open(directory)
    made, report = begin(folder, source, name=name, settings=settings or ())
    shown = output()
    watched = folder.holder() is not None and not shown.json and not shown.quiet if follow is None else follow
    if not watched or not shown.json:
        tell(report)
    if not watched:
        return
    from fedward_server.commands.follow import follow as look

    try:
        with choose_view(shown, name=made.name) as view:
            for seen in look(made):
                view.seen(seen)
    except KeyboardInterrupt:
        complain(f"run {made.name} goes on", f"fedward-server stop {made.name} ends it", word="note")
        raise
    tell(outcome(folder, made))


@app.command(cls=Command)
def runs(directory: Directory = HERE) -> None:
    """Every run and how it stands."""
    from fedward_server.commands.runs import runs
    from fedward_server.deployment.folder import OperatorFolder

    tell(runs(OperatorFolder.open(directory)))


@app.command(cls=Command)
def logs(
    run: RunName,
    directory: Directory = HERE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
) -> None:
    """The last fifty lines of a run's log; all of them with -v."""
    from fedward_server.commands.logs import log_line, logs, new_rows
    from fedward_server.deployment.folder import OperatorFolder

    folder = OperatorFolder.open(directory)
    if not follow:
        return tell(logs(folder, run))
    import json

    for row in new_rows(folder.find_run(run)):
        typer.echo(json.dumps(row) if output().json else printable(log_line(row)))
    return None


@app.command(cls=Command)
def stop(run: RunName, directory: Directory = HERE) -> None:
    """Stop a run; what is finished is kept."""
    from fedward_server.commands.runs import stop
    from fedward_server.deployment.folder import OperatorFolder

    tell(stop(OperatorFolder.open(directory), run))


@app.command(cls=Command)
def resume(run: RunName, directory: Directory = HERE) -> None:
    """Let a stopped, failed or abandoned run go on from its last finished round."""
    from fedward_server.commands.runs import resume
    from fedward_server.deployment.folder import OperatorFolder

    tell(resume(OperatorFolder.open(directory), run))


@app.command(cls=Command)
def export(
    run: RunName,
    directory: Directory = HERE,
    out: Annotated[Path | None, typer.Option(help="A new folder. Default: adapter/ in the run's folder.")] = None,
) -> None:
    """Write the adapter of the last finished round for PEFT: safetensors and JSON alone."""
    from fedward_server.commands.export import export
    from fedward_server.deployment.folder import OperatorFolder

    tell(export(OperatorFolder.open(directory), run, out))


def _compared(lines: Sequence[str]) -> bool:
    """With ``--yes``: shown for the record, and taken as compared."""
    _say(lines)
    return True


def _ask(lines: Sequence[str]) -> bool:
    """Ask the person. Where nobody can answer, nobody is enrolled."""
    _say(lines)
    if not sys.stdin.isatty():
        raise InputError(
            "nobody was enrolled: there is no terminal to ask on",
            hint="compare both fingerprints with the site on another channel, then give --yes",
        )
    return typer.confirm("Does the site read out the same two fingerprints on another channel?", err=True)


def _say(lines: Sequence[str]) -> None:
    if not output().json and not output().quiet:
        sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
        sys.stdout.flush()


def main() -> None:
    """Entry point: run a command and turn errors into two lines and an exit code."""
    run(app, PROGRAM)
