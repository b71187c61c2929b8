"""Pictures of a sweep: accuracy over epsilon, over rounds and over bytes, and how far sites lie apart.

It reads result rows and finished run directories, and writes PNG files. What was not measured is left out, and a
sentence says so.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedward_simulations.results.folders import whole
from fedward_simulations.results.report import BLUE, DPI, GREY, INK, ORANGE, WIDTH, load_rounds
from fedward_simulations.sweep.folder import Status, SweepFolder
from fedward_simulations.sweep.plan import Plan, Point
from fedward_simulations.sweep.table import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_sweep"]

# Okabe and Ito's colours without the two that are hard to read on white
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", INK, GREY)
MARKS = "osD^vPX*"
EPSILON = "privacy.epsilon"
AXES = {"rounds": "round", "bytes": "MB sent since the start, up and down, all sites together"}
MOST_BANDS = 4  # that are told apart when they overlap
LONGEST = 48  # characters of a legend's line
MOST_NAMED = 24  # points with a name on an axis
LETTERS = 90  # that fit side by side below an axis
BESIDE = 1.025  # from one line to the next, over a logarithmic axis

Curve = dict[float, float]


@dataclass(frozen=True, kw_only=True)
class _Curves:
    """One point's runs: accuracy by round, and bytes since the start by round."""

    point: Point
    accuracy: Sequence[Curve]
    traffic: Sequence[Curve]


def draw_sweep(results: Results, folder: SweepFolder) -> tuple[list[Path], list[str]]:
    """Draw what the sweep holds figures for.

    Args:
      results: the rows.
      folder: of the sweep; pictures go into ``plots/``.

    Returns:
      The pictures written, and a sentence for each that was left out.

    Guarantees:
      - A picture without figures is not drawn, and is named.

    Raises:
      OutputError: the folder cannot be written, or a run's rounds are broken.
    """
    curves = list(_curves(results, folder))
    drawings: dict[str, Callable[[], Figure | str]] = {
        "accuracy_over_epsilon": lambda: _over_epsilon(results),
        "accuracy_over_rounds": lambda: _over(curves, results.plan, _by_round, "rounds"),
        "accuracy_over_bytes": lambda: _over(curves, results.plan, _by_bytes, "bytes"),
        "sites": lambda: _sites(results, folder),
    }
    drawn, missing = [], []
    for name, draw in drawings.items():
        figure = draw()
        path = folder.root / "plots" / f"{name}.png"
        if isinstance(figure, str):
            missing.append(f"No picture {path.name}: {figure}.")
        else:
            _save(figure, path)
            drawn.append(path)
    return drawn, missing


# ---- accuracy over epsilon -----------------------------------------------------
def _over_epsilon(results: Results) -> Figure | str:
    rows = [row for row in results.points if row["done"]]
    if len({row.get(f"config.{EPSILON}") for row in rows} - {None}) < 2:
        return f"fewer than two values of {EPSILON} have a finished run"
    tables = [{path: row[f"config.{path}"] for path in results.plan.paths if path != EPSILON} for row in rows]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, row in zip(_names(tables), rows, strict=True):
        groups.setdefault(name, []).append(row)
    figure, axes = _figure("Accuracy over epsilon", results.plan)
    for place, ((name, group), style) in enumerate(zip(groups.items(), _styles(len(groups)), strict=True)):
        beside = BESIDE ** (place - (len(groups) - 1) / 2)  # intervals of one epsilon stand side by side
        ordered = sorted(group, key=_target)
        _with_intervals(axes, [beside * _target(row) for row in ordered], ordered, label=name, style=style)
    axes.set_xscale("log")
    axes.set_xlabel("epsilon that a run promises each unit (log)")
    _epsilon_ticks(axes, [_target(row) for row in rows])
    _accuracy_axis(axes)
    _foot(figure, axes, _seeds_said(rows), many=len(groups))
    return figure


def _target(row: Mapping[str, Any]) -> float:
    return float(row[f"config.{EPSILON}"])


def _with_intervals(
    axes: Axes, x: Sequence[float], rows: Sequence[Mapping[str, Any]], *, label: str, style: Mapping[str, Any]
) -> None:
    y = [row["accuracy_mean"] for row in rows]
    axes.plot(x, y, label=label, linewidth=1.8, markersize=6, markeredgecolor="white", **style)
    for place, row in zip(x, rows, strict=True):
        if row["accuracy_low"] is not None:
            reach = [[row["accuracy_mean"] - row["accuracy_low"]], [row["accuracy_high"] - row["accuracy_mean"]]]
            axes.errorbar(
                [place], [row["accuracy_mean"]], reach, fmt="none", ecolor=style["color"], elinewidth=1.2, capsize=3
            )


def _epsilon_ticks(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    apart: list[float] = []
    for value in sorted(set(values)):
        if not apart or value > 1.15 * apart[-1]:  # else their labels would touch
            apart.append(value)
    axes.xaxis.set_major_locator(FixedLocator(apart))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _seeds_said(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({row["accuracy_n"] for row in rows})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if counts[-1] == 1:
        return "one seed a point: no interval"
    return f"mean and 95 % interval over seeds (Student t, {n}{'; none where n = 1' if counts[0] == 1 else ''})"


# ---- accuracy over rounds and bytes --------------------------------------------
def _curves(results: Results, folder: SweepFolder) -> Iterator[_Curves]:
    for point in results.plan.points:
        own = [row for row in results.runs if row["point"] == point.number and row["status"] == Status.DONE.value]
        diaries = [load_rounds(folder.run(row["run"])) for row in own]
        if diaries:
            yield _Curves(
                point=point,
                accuracy=[_accuracy(rounds) for rounds in diaries],
                traffic=[_traffic(rounds) for rounds in diaries],
            )


def _accuracy(rounds: Sequence[Mapping[str, Any]]) -> Curve:
    found = {row["round"]: (row.get("evaluation") or {}).get("accuracy") for row in rounds if not row.get("abandoned")}
    return {number: value for number, value in found.items() if value is not None}


def _traffic(rounds: Sequence[Mapping[str, Any]]) -> Curve:
    sums = itertools.accumulate(row.get("bytes_up", 0) + row.get("bytes_down", 0) for row in rounds)
    return dict(zip((row["round"] for row in rounds), sums, strict=True))  # a round's last attempt counts


def _by_round(curves: _Curves, number: float) -> float:
    return number


def _by_bytes(curves: _Curves, number: float) -> float:
    return float(np.mean([traffic[number] for traffic in curves.traffic])) / 1e6


def _over(curves: Sequence[_Curves], plan: Plan, place: Callable[[_Curves, float], float], what: str) -> Figure | str:
    shown = [one for one in curves if any(one.accuracy)]
    if not shown:
        return "no finished run has an evaluation"
    figure, axes = _figure(f"Accuracy over {what}", plan)
    names = _names([one.point.values for one in shown])
    for one, name, style in zip(shown, names, _styles(len(shown)), strict=True):
        common = sorted(set.intersection(*(set(curve) for curve in one.accuracy)))
        values = np.array([[curve[number] for number in common] for curve in one.accuracy])
        x = [place(one, number) for number in common]
        line = style | {"marker": None} if len(common) > 12 else style | {"markersize": 4}
        axes.plot(x, values.mean(0), label=name, linewidth=1.8, **line)
        if len(values) > 1:
            axes.fill_between(
                x,
                values.min(0),
                values.max(0),
                color=style["color"],
                alpha=0.15 if len(shown) <= MOST_BANDS else 0.06,
                linewidth=0,
            )
    axes.set_xlabel(AXES[what])
    axes.locator_params(axis="x", integer=what == "rounds")
    _accuracy_axis(axes)
    most = max(len(one.accuracy) for one in shown)
    said = "mean over seeds; band from the lowest to the highest seed" if most > 1 else "one seed a point: no band"
    _foot(figure, axes, said, many=len(shown))
    return figure


# ---- sites ---------------------------------------------------------------------
def _sites(results: Results, folder: SweepFolder) -> Figure | str:
    measured = [(point, _of_sites(results, folder, point, "sites.json", "accuracy")) for point in results.plan.points]
    spent = [(point, _of_sites(results, folder, point, "summary.json", "epsilon")) for point in results.plan.points]
    if any(values for _, values in measured):
        figure, axes = _strips(measured, results.plan, "Accuracy by site, on its validation units (exact)")
        _accuracy_axis(axes)
        return figure
    if any(max(values) - min(values) > 1e-6 for _, values in spent if values):
        figure, axes = _strips(spent, results.plan, "Epsilon by site")
        axes.set_ylabel("epsilon")
        axes.set_ylim(bottom=0)
        return figure
    return (
        "sites send only sums, which rounds.jsonl keeps as one aggregate, and epsilon is the same at every site; "
        "per_site = true measures each"
    )


def _of_sites(results: Results, folder: SweepFolder, point: Point, file: str, key: str) -> list[float]:
    found: list[float] = []
    for row in results.runs:
        path = folder.run(row["run"]) / file
        if row["point"] != point.number or row["status"] != Status.DONE.value or not path.exists():
            continue
        table = json.loads(path.read_text(encoding="utf-8"))
        by_site = [site[key] for site in table] if file == "sites.json" else table["epsilon_by_site"].values()
        found += [float(value) for value in by_site if value is not None]
    return found


def _strips(rows: Sequence[tuple[Point, list[float]]], plan: Plan, title: str) -> tuple[Figure, Axes]:
    shown = [(point, values) for point, values in rows if values]
    figure, axes = _figure(title, plan)
    for place, (_, values) in enumerate(shown):
        beside = np.random.default_rng(place).uniform(-0.22, 0.22, len(values))
        axes.plot(place + beside, values, "o", color=BLUE, alpha=0.45, markersize=4, markeredgewidth=0)
        axes.hlines(np.median(values), place - 0.32, place + 0.32, color=ORANGE, linewidth=2.4, zorder=3)
    if len(shown) <= MOST_NAMED:
        names = [name.replace(", ", "\n") for name in _names([point.values for point, _ in shown])]
        longest = max(len(line) for name in names for line in name.split("\n"))
        turned = 90 if longest * len(shown) > LETTERS else 0
        axes.set_xticks(range(len(shown)), names, rotation=turned)
    else:
        axes.set_xlabel("point, by its number in points.csv")
    _foot(figure, axes, "a dot: one site in one run; a bar: their median", many=0)
    return figure, axes


# ---- what all share ------------------------------------------------------------
def _figure(title: str, plan: Plan) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(WIDTH, 5.2), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12), facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=14)
    axes.set_title(_text(plan.name), loc="right", fontsize=10, color=GREY, pad=14)
    return figure, axes


def _accuracy_axis(axes: Axes) -> None:
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    low, high = axes.get_ylim()
    low, high = max(low, -0.02), min(high, 1.02)  # an interval may reach beyond what an accuracy can be
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in axes.get_yticks() if max(low, 0.0) <= tick <= min(high, 1.0)])


def _foot(figure: Figure, axes: Axes, said: str, *, many: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if 0 < many <= len(COLOURS) and any(labels):
        beside = min(3, len(labels), max(1, LETTERS // (max(map(len, labels)) + 6)))
        figure.legend(handles, labels, loc="outside lower center", ncols=beside, frameon=False, fontsize=9)
    elif many > len(COLOURS):
        said = f"{many} lines, from the first (dark) to the last (light), in the order of points.csv; {said}"
    axes.set_xlabel("\n".join(part for part in (axes.get_xlabel(), said) if part), fontsize=9, color=INK)


def _styles(count: int) -> list[dict[str, Any]]:
    if count <= len(COLOURS):
        return [{"color": colour, "marker": mark} for colour, mark in zip(COLOURS, MARKS, strict=True)][:count]
    from matplotlib import colormaps

    return [{"color": colormaps["viridis"](0.92 * place / (count - 1)), "marker": "o"} for place in range(count)]


def _names(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """For example ``epsilon 8, rank 4``: what differs, by the last key of its path unless that would be ambiguous."""
    paths = [path for path in tables[0] if len({json.dumps(table[path]) for table in tables}) > 1]
    last = [path.rsplit(".", 1)[-1] for path in paths]
    short = {path: key if last.count(key) == 1 else path for path, key in zip(paths, last, strict=True)}
    return [
        _text(", ".join(f"{short[path]} {_value(table[path])}" for path in paths) or "all runs") for table in tables
    ]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _text(name: str) -> str:
    """A name as the pictures show it: not too long, and no formula whatever it holds."""
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    return short.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    with whole(path) as draft:
        figure.savefig(draft, dpi=DPI, format="png")
