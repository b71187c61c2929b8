"""The shell around every fedward program: the same four options on each command, the same two lines for each error.

Every error that fedward raises on purpose ends as one ``fedward: error:`` line and one ``hint:`` line on stderr; of any
other error only its type and place are shown, because its text may hold a record. Exit codes: 0 done, 2 wrong input or
something is not in order, 130 stopped by Ctrl-C. Programs that need torch or Flower import them inside a command.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import typer
from typer.core import TyperCommand, TyperOption

from fedward_common.errors import FedwardError
from fedward_common.report import Output, Report, complain, show

__all__ = ["Command", "group", "output", "run", "show_version", "tell"]

OUTPUT = "fedward.output"


def show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Callback of ``--version``."""
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


class Command(TyperCommand):
    """A command with the four options that every command has."""

    def __init__(self, *arguments: Any, params: list[click.Parameter] | None = None, **more: Any) -> None:
        """As typer calls it."""
        common = [
            _flag(["--json"], "One JSON object on stdout.", callback=_remember),
            _flag(["-v", "--verbose"], "Say more.", callback=_remember),
            _flag(["-q", "--quiet"], "Say nothing unless something is wrong.", callback=_remember),
            _flag(["--version"], "Show the version.", callback=show_version, is_eager=True),
        ]
        super().__init__(*arguments, params=[*(params or []), *common], **more)


def group(name: str, text: str) -> typer.Typer:
    """A program, or a group of its commands."""
    return typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        suggest_commands=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def output() -> Output:
    """What the person asked for on the command line."""
    chosen = click.get_current_context().meta.get(OUTPUT, {})
    return Output(
        json=chosen.get("json", False), verbose=chosen.get("verbose", False), quiet=chosen.get("quiet", False)
    )


def tell(report: Report) -> None:
    """Show a report, and raise its problem.

    Raises:
      FedwardError: the report has one.
    """
    show(report, output())
    if report.problem is not None:
        raise report.problem


def run(app: typer.Typer, program: str, *, codes: Mapping[type[FedwardError], int] = MappingProxyType({})) -> None:
    """Run a command and turn errors into two lines and an exit code; ``codes`` names those that are not 2."""
    try:
        code = app(standalone_mode=False, prog_name=program)
    except FedwardError as error:
        complain(str(error), error.hint)
        sys.exit(codes.get(type(error), 2))
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        sys.exit(2)
    except click.UsageError as error:
        complain(error.format_message(), f"{error.ctx.command_path if error.ctx else program} --help")
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
