"""``fedward-sim``: what a researcher types. Light until a command needs more: heavy imports wait for checked input.

Every error that fedward raises on purpose ends as one ``fedward: error:`` line and one ``hint:`` line on stderr.
Exit codes: 0 done, 1 a run found too few answers, 2 wrong input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedward_common.errors import DataError, FedwardError, InputError, OutputError, RoundAbandoned

if TYPE_CHECKING:
    from fedward_common.config import RunConfig
    from fedward_simulations.view import RunView

__all__ = ["main"]

app = typer.Typer(
    name="fedward-sim",
    help="Simulate federated, differentially private LoRA fine-tuning over virtual sites on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    suggest_commands=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, the summary last.")]
Lines = Annotated[bool, typer.Option("--lines", help="One plain line a round, also on a terminal.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a value of the run file; repeatable.")
]
RunDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A finished run's folder.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Result folder; an earlier result is moved aside.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of partition, sampling and noise.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two sites, 300 phrases, a few rounds: a smoke test.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Add head-only and the same run without privacy.")] = False,
    settings: Settings = None,
    json_lines: Json = False,
    lines: Lines = False,
) -> None:
    """Automatic diagnosis coding at ten virtual hospitals: real model, real text, no network."""
    from fedward_common.config import RunConfig
    from fedward_simulations.demo import demo_config, quick_config
    from fedward_simulations.folders import move_aside

    chosen = quick_config(seed=seed) if quick else demo_config(seed=seed)
    config = RunConfig.from_toml(chosen.to_toml(), overrides=settings or [], source="demo")
    with _view(json_lines, lines) as view:
        if moved := move_aside(out):
            view.note(f"an earlier result was moved to {moved}")
        _simulate(config, out, view, compare=compare)


@app.command()
def run(
    run_file: Annotated[Path | None, typer.Argument(metavar="RUN.toml", help="The run file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Result folder: missing or empty. Default: runs/NAME.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with the stopped run in DIR.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Add head-only and the same run without privacy.")] = False,
    settings: Settings = None,
    json_lines: Json = False,
    lines: Lines = False,
) -> None:
    """Simulate a run file on your own data, or go on with a stopped run."""
    from fedward_common.config import RunConfig

    if resume is not None:
        if run_file is not None or settings or out is not None or compare:
            raise InputError("--resume goes alone", hint="a stopped run goes on exactly as it was started")
        with _view(json_lines, lines) as view:
            return _resume(resume, view)
    if run_file is None:
        raise InputError("there is no run file", hint="`fedward-sim inspect FILE --write RUN.toml` writes one")
    config = RunConfig.load(run_file, overrides=settings or [])
    with _view(json_lines, lines) as view:
        return _simulate(config, out or Path(config.output or f"runs/{config.name}"), view, compare=compare)


@app.command()
def inspect(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="CSV, TSV, JSON lines or Parquet, also .gz; or a hub name.")
    ],
    write: Annotated[Path | None, typer.Option(metavar="RUN.toml", help="Write a ready run file.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Text column; twice for a pair.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column.")] = None,
    site: Annotated[str | None, typer.Option(help="Site column.")] = None,
    unit: Annotated[str | None, typer.Option(help="Column of the privacy unit, for example the patient.")] = None,
) -> None:
    """Show a file's columns and counts, and write a run file with good defaults."""
    from fedward_simulations.inspect import inspect_file, render_toml, suggest
    from fedward_simulations.view import print_columns

    if write is not None and write.exists():
        raise OutputError(f"{write} exists", hint="give another name; a run file is never overwritten")
    summary = inspect_file(file)
    print_columns(summary)
    config = suggest(summary, file, text=text or (), label=label, site=site, unit=unit)
    if write is not None:
        _write(write, render_toml(config, summary))
        typer.echo(f"wrote {write}; now: fedward-sim run {write}")
    typer.echo("This output is derived from the data: treat it as you treat the data.")


@app.command("eval")
def evaluate(
    directory: RunDirectory,
    data: Annotated[str, typer.Option(metavar="FILE", help="A file with the run's text and label columns.")],
    json_lines: Json = False,
) -> None:
    """Accuracy, macro F1 and per-class figures of a finished adapter on a file."""
    from fedward_client.data import load_records
    from fedward_simulations.finished import FinishedRun
    from fedward_simulations.view import print_metrics

    finished = FinishedRun.open(directory)
    records = load_records(finished.data_columns(), finished.labels, source=data)
    metrics = finished.evaluate(records)
    if json_lines:
        typer.echo(json.dumps(metrics))
    else:
        print_metrics(metrics)


@app.command()
def predict(
    directory: RunDirectory,
    text: Annotated[list[str] | None, typer.Option(help="A text; repeatable.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file, one text a line.")] = None,
    json_lines: Json = False,
) -> None:
    """The label and its probability for each text."""
    from fedward_simulations.finished import FinishedRun

    if (text is None) == (file is None):
        raise InputError("predict takes --text or --file", hint="for example --text 'acute otitis media'")
    texts = text if text is not None else _read_lines(file or Path())
    if not all(t.strip() for t in texts):
        raise DataError("a text is empty", hint="give at least one word a text")
    for row in FinishedRun.open(directory).predict(texts):
        typer.echo(json.dumps(row) if json_lines else f"{row['probability']:.3f}  {row['label']}  {row['text']}")


@app.command()
def report(directory: RunDirectory) -> None:
    """Draw a run's plots again."""
    from fedward_simulations.report import draw_plots

    for path in draw_plots(directory):
        typer.echo(str(path))


def _view(json_lines: bool, lines: bool) -> RunView:
    from fedward_simulations.view import OutputMode, choose_view

    if json_lines and lines:
        raise InputError("--json and --lines exclude each other", hint="choose one")
    return choose_view(OutputMode.JSON if json_lines else OutputMode.LINES if lines else OutputMode.AUTO)


def _simulate(config: RunConfig, out: Path, view: RunView, *, compare: bool) -> None:
    from fedward_simulations.folders import claim_folder
    from fedward_simulations.sources import read_source

    claim_folder(out)
    view.preparing("reading data")
    source = read_source(config)
    view.preparing(f"loading base model {config.model.base}")
    from fedward_simulations.compare import with_comparison
    from fedward_simulations.run import Workbench
    from fedward_simulations.run import run as run_rounds

    bench = Workbench.open(config, source)
    summary = _interruptible(out, lambda: run_rounds(bench, out=out, view=view))
    view.finished(with_comparison(bench, summary, out=out, view=view) if compare else summary)


def _resume(out: Path, view: RunView) -> None:
    from fedward_simulations.folders import read_stopped
    from fedward_simulations.sources import read_source

    stopped = read_stopped(out)
    view.preparing("reading data")
    source = read_source(stopped.bundle.config)
    view.preparing(f"loading base model {stopped.bundle.config.model.base}")
    from fedward_simulations.run import Workbench
    from fedward_simulations.run import resume as resume_rounds

    bench = Workbench.open(stopped.bundle.config, source, run_id=stopped.bundle.run_id)
    view.finished(_interruptible(out, lambda: resume_rounds(bench, stopped, out=out, view=view)))


def _interruptible(out: Path, work: Any) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = work()
    except KeyboardInterrupt:
        _complain("stopped; finished rounds are kept", f"fedward-sim run --resume {out}", word="note")
        raise
    return summary


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"cannot read {path}", hint="give a UTF-8 text file, one text a line") from None
    if not lines:
        raise DataError(f"{path} is empty", hint="give a UTF-8 text file, one text a line")
    return lines


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="give a folder that exists") from None


def _complain(what: str, hint: str, *, word: str = "error") -> None:
    sys.stderr.write(f"fedward: {word}: {what}\nhint: {hint}\n")


def main() -> None:
    """Entry point: run a command and turn errors into two lines and an exit code."""
    try:
        code = app(standalone_mode=False, prog_name="fedward-sim")
    except RoundAbandoned as error:
        _complain(str(error), error.hint)
        sys.exit(1)
    except FedwardError as error:
        _complain(str(error), error.hint)
        sys.exit(2)
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        sys.exit(2)
    except click.UsageError as error:
        _complain(error.format_message(), f"{_command_of(error)} --help")
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _command_of(error: click.UsageError) -> str:
    return error.ctx.command_path if error.ctx else "fedward-sim"
