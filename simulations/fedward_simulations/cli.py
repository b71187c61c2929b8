"""``fedward-sim``: what a researcher types. Light until a command needs more: heavy imports wait for checked input.

Every error that fedward raises on purpose ends as one ``fedward: error:`` line and one ``hint:`` line on stderr.
Exit codes: 0 done, 1 a run found too few answers or one of a sweep failed, 2 wrong input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedward_common.cli import group
from fedward_common.cli import run as start
from fedward_common.errors import DataError, InputError, OutputError, RoundAbandoned
from fedward_common.report import complain
from fedward_simulations.engines import BY_DEFAULT, Computing, Engine, Precision

if TYPE_CHECKING:
    from fedward_common.config import RunConfig
    from fedward_simulations.watching.events import RunView

__all__ = ["main"]

app = group(
    "fedward-sim", "Simulate federated, differentially private LoRA fine-tuning over virtual sites on this machine."
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, the summary last.")]
Lines = Annotated[bool, typer.Option("--lines", help="One plain line a round, also on a terminal.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a value of the run file; repeatable.")
]
EngineOption = Annotated[
    Engine | None, typer.Option("--engine", help="Many clients at once, or one after the other. Default: cohort.")
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="HOST:PORT|auto", help="With --engine ray: a running Ray cluster, else its own.")
]
ClientCpus = Annotated[
    float | None, typer.Option(metavar="N", help="With --engine ray: CPU cores of a worker. Default: 1.")
]
ClientGpus = Annotated[
    float | None, typer.Option(metavar="N", help="With --engine ray: GPUs of a worker. Default: 1 where there are any.")
]
Clients = Annotated[
    int | None,
    typer.Option(
        "--clients-per-batch",
        min=0,
        help="Clients computed at once, at most. Default: 0, as many as fit.",
    ),
]
Profile = Annotated[
    bool, typer.Option("--profile", help="Measure a round of each stage: a trace and a table in OUT/profile.")
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps. Default: auto.")]
PrecisionOption = Annotated[
    Precision | None, typer.Option("--precision", help="Of the frozen base; bfloat16 on CUDA. Default: float32.")
]
DERIVED = "This output is derived from the data: treat it as you treat the data."
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
    from fedward_simulations.results.folders import move_aside

    chosen = quick_config(seed=seed) if quick else demo_config(seed=seed)
    config = RunConfig.from_toml(chosen.to_toml(), overrides=settings or [], source="demo")
    with _view(json_lines, lines) as view:
        if moved := move_aside(out):
            view.note(f"an earlier result was moved to {moved}")
        _simulate(config, out, view, compare=compare)


@app.command()
def run(
    run_file: Annotated[Path | None, typer.Argument(metavar="RUN.toml|@SCENARIO", help="The run file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Result folder: missing or empty. Default: runs/NAME.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with the stopped run in DIR.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Add head-only and the same run without privacy.")] = False,
    settings: Settings = None,
    engine: EngineOption = None,
    clients: Clients = None,
    ray_address: RayAddress = None,
    client_cpus: ClientCpus = None,
    client_gpus: ClientGpus = None,
    device: Device = None,
    precision: PrecisionOption = None,
    profile: Profile = False,
    json_lines: Json = False,
    lines: Lines = False,
) -> None:
    """Simulate a run file on your own data, or go on with a stopped run."""
    cluster = {"address": ray_address, "client_cpus": client_cpus, "client_gpus": client_gpus}
    named = {**cluster, "engine": engine, "clients": clients, "device": device, "precision": precision}
    named["profiled"] = profile
    if resume is not None:
        if run_file is not None or settings or out is not None or compare:
            raise InputError("--resume goes alone", hint="a stopped run goes on with its own run file")
        with _view(json_lines, lines) as view:
            return _resume(resume, view, named=named)
    if run_file is None:
        raise InputError("there is no run file", hint="`fedward-sim inspect FILE --write RUN.toml` writes one")
    computing = Computing.of(named)
    config = _load(str(run_file), settings)
    with _view(json_lines, lines) as view:
        target = out or Path(config.output or f"runs/{config.name}")
        return _simulate(config, target, view, compare=compare, computing=computing)


@app.command()
def prepare(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")],
    out: Annotated[
        Path | None, typer.Option(help="The bundle's folder: missing or empty. Default: bundles/NAME.")
    ] = None,
    settings: Settings = None,
    json_lines: Json = False,
) -> None:
    """Make the bundle that a server without torch runs: `fedward-server run BUNDLE`. No data is read."""
    from fedward_common.config import RunConfig
    from fedward_simulations.results.folders import claim_folder, write_bundle

    config = RunConfig.load(run_file, overrides=settings or [])
    target = out or Path(f"bundles/{config.name}")
    claim_folder(target)
    if not json_lines:
        typer.echo(f"loading base model {config.model.base}")
    from fedward_simulations.prepare import prepare as make

    bundle = make(config).bundle
    write_bundle(target, bundle)
    facts = {"bundle": str(target), "name": config.name, "run_id": bundle.run_id}
    prepared = f"prepared {target} (run id {bundle.run_id}); now: fedward-server run {target}"
    typer.echo(json.dumps(facts) if json_lines else prepared)


@app.command()
def scenarios() -> None:
    """List the scenarios that `fedward-sim run @NAME` runs."""
    from fedward_simulations.scenarios import describe, names

    width = max(map(len, names())) + 3
    for name in names():
        typer.echo(f"{'@' + name:{width}}{describe(name)}")


@app.command()
def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="CSV, TSV, JSON lines or Parquet, also .gz; a hub name; icd10cm; a RUN.toml or @SCENARIO.",
        ),
    ],
    write: Annotated[Path | None, typer.Option(metavar="RUN.toml", help="Write a ready run file.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw the partition.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Text column; twice for a pair.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column.")] = None,
    site: Annotated[str | None, typer.Option(help="Site column.")] = None,
    unit: Annotated[str | None, typer.Option(help="Column of the privacy unit, for example the patient.")] = None,
    settings: Settings = None,
) -> None:
    """Show a file's columns and counts, and write a run file with good defaults; or show a run file's partition."""
    from fedward_simulations.dealing.inspect import inspect_file
    from fedward_simulations.dealing.render import render_toml
    from fedward_simulations.dealing.suggest import suggest
    from fedward_simulations.results.report import check_picture
    from fedward_simulations.watching.tables import print_columns

    if plot is not None:
        check_picture(plot)
    if file.startswith("@") or file.endswith(".toml"):
        if any((write, text, label, site, unit)):
            raise InputError("a run file says by itself what its columns are", hint="give --plot and --set alone")
        return _show_partition(_load(file, settings), plot)
    if settings and plot is None:
        raise InputError("--set changes a run file, and there is none", hint="give a RUN.toml, or --plot OUT.png")
    if write is not None and write.exists():
        raise OutputError(f"{write} exists", hint="give another name; a run file is never overwritten")
    summary = inspect_file(file)
    print_columns(summary)
    config = suggest(summary, file, text=text or (), label=label, site=site, unit=unit)
    if write is not None:
        _write(write, render_toml(config, summary))
        typer.echo(f"wrote {write}; now: fedward-sim run {write}")
    if plot is not None:
        return _show_partition(type(config).from_toml(config.to_toml(), overrides=settings or [], source=file), plot)
    typer.echo(DERIVED)


def _show_partition(config: RunConfig, plot: Path | None) -> None:
    from fedward_simulations.dealing.deal import Deal, method_line
    from fedward_simulations.dealing.sources import read_source
    from fedward_simulations.results.report import draw_deal

    source = read_source(config)
    deal = Deal.of(source.sites, labels=config.task.labels, title=method_line(config.partition))
    for line in (*deal.lines(), *source.notes):
        typer.echo(line)
    if plot is not None:
        draw_deal(deal, plot)
        typer.echo(f"wrote {plot}")
    typer.echo(DERIVED)


@app.command()
def sweep(
    sweep_file: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="Run file, values, seeds: docs/sweep.md.")],
    out: Annotated[Path, typer.Option(help="Folder of the sweep: missing or empty, or an earlier one with --resume.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on in that folder; finished runs stay.")] = False,
    processes: Annotated[int | None, typer.Option(min=1, max=256, help="At a time; else the sweep file's.")] = None,
    engine: EngineOption = None,
    clients: Clients = None,
    device: Device = None,
    precision: PrecisionOption = None,
    json_lines: Json = False,
) -> None:
    """Run a run file under many values and seeds, and make a table with intervals."""
    from fedward_simulations.sweep.folder import SweepFolder
    from fedward_simulations.sweep.plan import Plan
    from fedward_simulations.sweep.sweeping import sweep as run_sweep
    from fedward_simulations.sweep.view import choose_sweep_view

    if engine is Engine.RAY:
        raise InputError("a sweep does not run on Ray", hint="leave --engine out, or `fedward-sim run --engine ray`")
    plan, file = Plan.load(sweep_file)
    folder = SweepFolder(root=out)
    computing = Computing.of({"engine": engine, "clients": clients, "device": device, "precision": precision})
    if device or precision:
        computing.place()  # what is not there is not there for any run of the sweep
    taken = folder.go_on(plan) if resume else folder.begin(plan)
    with taken as new, choose_sweep_view(json_lines=json_lines) as view:
        if new:
            view.note(f"{new} runs are new since the sweep was last at work")
        try:
            summary = run_sweep(plan, folder, processes=processes or file.processes, view=view, computing=computing)
        except KeyboardInterrupt:
            resuming = f"fedward-sim sweep {sweep_file} --out {out} --resume"
            complain("stopped; finished runs are kept, also rounds of the others", resuming, word="note")
            raise
    if summary["failed"]:
        raise typer.Exit(1)


@app.command("eval")
def evaluate(
    directory: RunDirectory,
    data: Annotated[str, typer.Option(metavar="FILE", help="A file with the run's text and label columns.")],
    json_lines: Json = False,
) -> None:
    """Accuracy, macro F1 and per-class figures of a finished adapter on a file."""
    from fedward_client.data import load_records
    from fedward_simulations.results.finished import FinishedRun
    from fedward_simulations.watching.tables import print_metrics

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
    from fedward_simulations.results.finished import FinishedRun

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
    from fedward_simulations.results.report import draw_plots

    for path in draw_plots(directory):
        typer.echo(str(path))


def _load(run_file: str, settings: list[str] | None) -> RunConfig:
    from fedward_common.config import RunConfig

    if run_file.startswith("@"):
        from fedward_simulations.scenarios import load

        return load(run_file[1:], overrides=settings or [])
    return RunConfig.load(Path(run_file), overrides=settings or [])


def _view(json_lines: bool, lines: bool) -> RunView:
    from fedward_simulations.watching.view import OutputMode, choose_view

    if json_lines and lines:
        raise InputError("--json and --lines exclude each other", hint="choose one")
    return choose_view(OutputMode.JSON if json_lines else OutputMode.LINES if lines else OutputMode.AUTO)


def _simulate(config: RunConfig, out: Path, view: RunView, *, compare: bool, computing: Computing = BY_DEFAULT) -> None:
    from fedward_simulations.dealing.sources import read_source
    from fedward_simulations.results.folders import claim_folder

    computing.check(config)
    claim_folder(out)
    with _started(computing, view) as ready:
        device = computing.place()
        view.preparing("reading data")
        source = read_source(config)
        for note in source.notes:
            view.note(note)
        view.preparing(f"loading base model {config.model.base}")
        from fedward_simulations.compare import with_comparison
        from fedward_simulations.run import Workbench
        from fedward_simulations.run import run as run_rounds

        bench = Workbench.open(config, source, device=device)
        with _watched(computing, out, view) as watched:
            summary = _interruptible(out, lambda: run_rounds(bench, out=out, view=watched, computing=ready))
        view.finished(with_comparison(bench, summary, out=out, view=view, computing=ready) if compare else summary)


def _resume(out: Path, view: RunView, *, named: Mapping[str, Any]) -> None:
    from fedward_simulations.dealing.sources import read_source
    from fedward_simulations.results.folders import read_stopped

    stopped = read_stopped(out)
    computing = Computing.of(named, before=stopped.checkpoint.extra.get("computing", {}))
    computing.check(stopped.bundle.config)
    with _started(computing, view) as ready:
        device = computing.place()
        view.preparing("reading data")
        source = read_source(stopped.bundle.config)
        view.preparing(f"loading base model {stopped.bundle.config.model.base}")
        from fedward_simulations.run import Workbench
        from fedward_simulations.run import resume as resume_rounds

        bench = Workbench.open(stopped.bundle.config, source, run_id=stopped.bundle.run_id, device=device)
        with _watched(computing, out, view) as watched:
            summary = _interruptible(out, lambda: resume_rounds(bench, stopped, out=out, view=watched, computing=ready))
        view.finished(summary)


@contextmanager
def _started(computing: Computing, view: RunView) -> Iterator[Computing]:
    if computing.engine is Engine.RAY:
        view.preparing("starting Ray")
    with computing.started() as ready:
        yield ready


@contextmanager
def _watched(computing: Computing, out: Path, view: RunView) -> Iterator[RunView]:
    if not computing.profiled:
        yield view
        return
    from fedward_simulations.profiling import Profiles

    with Profiles(out / "profile", view) as watched:
        yield watched


def _interruptible(out: Path, work: Any) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = work()
    except KeyboardInterrupt:
        complain("stopped; what was finished is kept", f"fedward-sim run --resume {out}", word="note")
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


def main() -> None:
    """Entry point: run a command and turn errors into two lines and an exit code."""
    start(app, "fedward-sim", codes={RoundAbandoned: 1})
