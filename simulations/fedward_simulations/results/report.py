"""Pictures: of a run directory, from rounds.jsonl and summary.json; and of a partition, before any run.

It reads files and writes files, and knows nothing of models, records or the loop; what a run never wrote is left out
of the pictures.

Example:
    >>> load_rounds(Path("no-such-run"))
    Traceback (most recent call last):
        ...
    fedward_common.errors.OutputError: no rounds.jsonl in no-such-run
"""

from __future__ import annotations

import itertools
import json
import math
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedward_common.errors import InputError, OutputError
from fedward_common.report import rounded_up

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedward_simulations.dealing.deal import Deal

__all__ = ["check_picture", "draw_deal", "draw_plots", "load_rounds"]

MOST_BARS = 40  # sites; beyond, a histogram
LONGEST = 32  # characters of a name
LETTERS = 90  # that fit above a panel
WIDTH, DPI = 8.0, 150
# Okabe and Ito's colours, told apart with every common colour blindness
BLUE, ORANGE, GREY, INK, SHADE = "#0072B2", "#D55E00", "#6B6B6B", "#222222", "#F3F4F6"
DASHED = (0, (5, 3))
LINE: dict[str, Any] = {"linewidth": 2.0, "marker": "o", "markersize": 3.0}
MARKERS: dict[str, Any] = {"linestyle": "none", "marker": "D", "markersize": 6.5, "markeredgecolor": "white"}
MARKERS |= {"clip_on": False, "zorder": 3}  # whole also on an axis, where noise often puts them
TRAFFIC: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linewidth": 2.2, "label": "up"},
    {"color": ORANGE, "linewidth": 1.4, "label": "down"},
    {"color": GREY, "linewidth": 1.4, "linestyle": DASHED, "label": "up with FedAvg LoRA fp32"},
)


def load_rounds(directory: Path) -> list[dict[str, Any]]:
    """Every attempt at a round that the run wrote, in order, with whatever keys its lines have.

    Guarantees:
      - A last line that a stop cut short is left out; a broken line anywhere else is an error.

    Raises:
      OutputError: there is no rounds.jsonl, or a line is broken.
    """
    try:
        lines = (directory / "rounds.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        raise OutputError(
            f"no rounds.jsonl in {directory}", hint="give the folder that `fedward-sim run` wrote"
        ) from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(line))
        except ValueError:
            if number < len(lines):
                raise OutputError(
                    f"line {number} of {directory / 'rounds.jsonl'} is broken", hint="restore the file, or run again"
                ) from None
    return records


def _record(line: str) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict) or "round" not in record:
        raise ValueError("not a round")
    return record


def draw_plots(directory: Path) -> list[Path]:
    """Draw what the run directory holds data for.

    Args:
      directory: of a run; ``summary.json`` and ``run.toml`` are used where they exist.

    Returns:
      The pictures written, of ``plots/accuracy.png``, ``plots/epsilon.png`` and ``plots/bytes.png``.

    Raises:
      OutputError: no rounds, a broken file, or a folder that cannot be written.
    """
    run = _Run.load(directory)
    figures = {"accuracy": _accuracy(run), "epsilon": _epsilon(run), "bytes": _bytes(run)}
    drawn = {directory / "plots" / f"{name}.png": figure for name, figure in figures.items() if figure is not None}
    try:
        (directory / "plots").mkdir(exist_ok=True)
        for path, figure in drawn.items():
            _save(figure, path)
    except OSError as error:
        raise OutputError(f"cannot write plots: {error.strerror}", hint="check the disk and the folder") from None
    return list(drawn)


def _save(figure: Figure, path: Path, *, kind: str | None = None) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a site's name that the font lacks costs letters, no more
        figure.savefig(path, dpi=DPI, format=kind)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the pictures show."""

    attempts: list[dict[str, Any]]
    summary: Mapping[str, Any]
    config: Mapping[str, Any]

    @classmethod
    def load(cls, directory: Path) -> _Run:
        """Read a run directory; a run without a finished attempt is an ``OutputError``."""
        attempts = load_rounds(directory)
        if not attempts:
            raise OutputError(f"no round has ended in {directory}", hint="go on with `fedward-sim run --resume`")
        return cls(attempts=attempts, summary=_summary(directory), config=_config(directory))

    @property
    def name(self) -> str:
        """As in the run file."""
        return str(self.summary.get("name") or self.config.get("name") or "run")

    def points(self, source: str, key: str) -> dict[int, float]:
        """A metric by round, where it was measured."""
        found = {row["round"]: (row.get(source) or {}).get(key) for row in self.attempts if not row.get("abandoned")}
        return {number: value for number, value in found.items() if value is not None and math.isfinite(value)}

    def sums(self, key: str) -> dict[int, float]:
        """A figure by round, all attempts together."""
        total: dict[int, float] = {}
        for row in self.attempts:
            total[row["round"]] = total.get(row["round"], 0.0) + row.get(key, 0)
        return total

    def stages(self) -> list[tuple[str, int, int]]:
        """Name, first and last round of each stage."""
        grouped = itertools.groupby(self.attempts, key=lambda row: str(row.get("stage", "")))
        spans = [(name, [row["round"] for row in rows]) for name, rows in grouped]
        return [(name, min(numbers), max(numbers)) for name, numbers in spans]


def _summary(directory: Path) -> Mapping[str, Any]:
    path = directory / "summary.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise OutputError(f"{path} cannot be read", hint="remove it to draw without it") from None


def _config(directory: Path) -> Mapping[str, Any]:
    # only names and numbers for labels are taken from it, so an unreadable file costs no more than those
    try:
        return tomllib.loads((directory / "run.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _accuracy(run: _Run) -> Figure | None:
    if not run.points("evaluation", "accuracy") and not run.points("sites", "accuracy"):
        return None
    figure, (top, bottom) = _panels(run, "Accuracy and loss by round", ratios=(3, 2))
    majority = run.summary.get("majority_accuracy")
    if majority is not None:
        top.axhline(majority, color=GREY, linestyle=DASHED, linewidth=1.2, label="always the commonest label")
    _evaluations(top, run, key="accuracy")
    _evaluations(bottom, run, key="loss")
    top.yaxis.set_major_formatter(_percent)
    top.set_ylim(bottom=0.0)
    bottom.set_ylim(bottom=0.0)
    top.set_ylabel("accuracy")
    bottom.set_ylabel("loss (nats)")
    _legend(figure, top)
    return figure


def _evaluations(axes: Axes, run: _Run, *, key: str) -> None:
    own, noisy = run.points("evaluation", key), run.points("sites", key)
    if own:
        axes.plot(list(own), list(own.values()), color=BLUE, label="coordinator's own data", **LINE)
    if noisy:
        axes.plot(list(noisy), list(noisy.values()), color=ORANGE, label="sites (noisy)", **MARKERS)


def _epsilon(run: _Run) -> Figure | None:
    spent = {str(site): float(value) for site, value in run.summary.get("epsilon_by_site", {}).items()}
    spent = {site: value for site, value in spent.items() if math.isfinite(value)}
    if not spent:
        return None
    many = len(spent) > MOST_BARS
    figure = _figure(height=4.5 if many else 1.6 + 0.26 * len(spent))
    axes = figure.add_subplot()
    _title(axes, run, "Epsilon by site")
    (_histogram if many else _bars)(axes, spent)
    target = run.config.get("privacy", {}).get("epsilon")
    if target is not None:
        axes.axvline(target, color=INK, linestyle=DASHED, linewidth=1.3)
        axes.annotate(
            f"target {target:g} ", (target, 1), xycoords=("data", "axes fraction"), ha="right", va="bottom", fontsize=9
        )
    axes.set_xlabel(_guarantee(run.summary))
    axes.set_xlim(0.0, 1.12 * max([*spent.values(), target or 0.0]) or 1.0)
    return figure


def _bars(axes: Axes, spent: Mapping[str, float]) -> None:
    places = range(len(spent))  # by number: two long names may look alike
    axes.barh(places, list(spent.values()), height=0.62, color=BLUE)
    axes.set_yticks(places, [_text(site) for site in spent])
    for place, value in enumerate(spent.values()):
        inside = value > 0.1 * max(spent.values())
        axes.annotate(
            rounded_up(value, digits=2),
            (value, place),
            xytext=(-5 if inside else 5, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=8,
            color="white" if inside else INK,
        )
    axes.set_ylim(len(spent) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)


def _histogram(axes: Axes, spent: Mapping[str, float]) -> None:
    axes.hist(list(spent.values()), bins=30, range=(0.0, max(spent.values()) or 1.0), color=BLUE, rwidth=0.92)
    axes.set_ylabel(f"sites (of {len(spent)})")
    axes.locator_params(axis="y", integer=True)


def _guarantee(summary: Mapping[str, Any]) -> str:
    delta, unit = summary.get("delta"), summary.get("unit")
    return "epsilon" + (f" at delta {delta:g}" if delta is not None else "") + (f", per {unit}" if unit else "")


def _bytes(run: _Run) -> Figure | None:
    up, down, reference = run.sums("bytes_up"), run.sums("bytes_down"), _reference(run)
    if not any([*up.values(), *down.values()]):
        return None
    figure, (top, bottom) = _panels(run, "Bytes sent, all sites together", ratios=(1, 1))
    for axes, shape in ((top, dict), (bottom, _cumulative)):
        lines = [shape(line) for line in (up, down, reference)]
        power, unit = _scale(max(itertools.chain.from_iterable(line.values() for line in lines)))
        for line, style in zip(lines, TRAFFIC, strict=True):
            if line:
                axes.plot(list(line), [value / power for value in line.values()], **style)
        axes.set_ylim(bottom=0.0)
        axes.set_ylabel(unit)
    top.set_ylabel(f"{top.get_ylabel()} in the round")
    bottom.set_ylabel(f"{bottom.get_ylabel()} since the start")
    _legend(figure, bottom)
    return figure


def _reference(run: _Run) -> dict[int, float]:
    """What plain FedAvg of the same LoRA would send up if every site asked replied, once a round."""
    each = run.summary.get("fedavg_bytes_per_site_round")
    return {row["round"]: each * row.get("cohort", 0) for row in run.attempts} if each else {}


def _cumulative(values: Mapping[int, float]) -> dict[int, float]:
    return dict(zip(values, itertools.accumulate(values.values()), strict=True))


def _scale(most: float) -> tuple[float, str]:
    return next(((power, unit) for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if most >= power), (1.0, "B"))


def check_picture(path: Path) -> None:
    """Check the name of a picture before any work goes into it.

    Raises:
      InputError: it does not end as a PNG file does.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} is no name of a PNG file", hint="end it in .png")


def draw_deal(deal: Deal, path: Path) -> None:
    """Draw who has what: the share of each label at each site, and how many units are there.

    Up to 40 sites have their names. More are sorted by their commonest label, then by size, and drawn as one field.

    Args:
      deal: the partition.
      path: a PNG file; one that is there is replaced.

    Raises:
      OutputError: the file cannot be written.
    """
    many = len(deal.sites) > MOST_BARS
    rows = _by_label(deal) if many else np.arange(len(deal.sites))
    figure = _figure(height=7.5 if many else 3.4 + 0.24 * len(deal.sites))
    field, sizes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _field(field, deal, rows, figure)
    _sizes(sizes, deal, rows, many=many)
    if many:
        field.set_ylabel(f"{len(deal.sites):,} sites, by their commonest label")
    else:
        field.set_yticks(rows, [_text(deal.sites[row]) for row in rows])
    figure.suptitle(f"Partition: {deal.title}", x=0.02, ha="left", fontsize=13, fontweight="bold", color=INK)
    try:
        _save(figure, path, kind="png")
    except OSError as error:
        hint = "give the name of a file in it" if path.is_dir() else "give a folder that exists and may be written"
        raise OutputError(f"cannot write {path}: {error.strerror}", hint=hint) from None


def _by_label(deal: Deal) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.lexsort((-deal.units, deal.counts.argmax(1)))
    return order


def _field(axes: Axes, deal: Deal, rows: NDArray[np.int64], figure: Figure) -> None:
    shares = deal.counts[rows] / deal.counts[rows].sum(1, keepdims=True)
    image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0.0, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, location="top", shrink=0.6, aspect=40, format=_percent)
    bar.set_label("share of the site's records", fontsize=9, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    if len(deal.labels) <= MOST_BARS:
        axes.set_xticks(range(len(deal.labels)), [_text(label) for label in deal.labels], rotation=90)
    axes.set_xlabel(f"{len(deal.labels)} labels", fontsize=9, labelpad=12)


def _sizes(axes: Axes, deal: Deal, rows: NDArray[np.int64], *, many: bool) -> None:
    places, units, shared = np.arange(len(rows)), deal.units[rows], deal.shared[rows]
    _plain_axes(axes)
    axes.grid(visible=False)
    axes.barh(places, units, height=1.0 if many else 0.62, color=BLUE, label="units")
    if deal.at_several:
        axes.barh(places, shared, height=1.0 if many else 0.62, color=ORANGE, label="of them at other sites too")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize=9)
    if not many:
        for place, value in zip(places, units, strict=True):
            axes.annotate(
                f"{value:,}", (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.margins(x=0.15)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("\n".join([deal.lines()[1], deal.lines()[3]]), fontsize=9)


def _figure(*, height: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12), facecolor="white")


def _legend(figure: Figure, axes: Axes) -> None:
    # below the panels, where it cannot hide a line
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _panels(run: _Run, what: str, *, ratios: tuple[int, int]) -> tuple[Figure, tuple[Axes, Axes]]:
    """Two panels over the same rounds, with the stages shaded and named."""
    figure = _figure(height=6.0)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
    _title(top, run, what)
    for axes in (top, bottom):
        _plain_axes(axes)
        _shade(axes, run)
    _name_stages(top, run)
    numbers = [row["round"] for row in run.attempts]
    bottom.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    bottom.locator_params(axis="x", integer=True)
    bottom.set_xlabel("round")
    return figure, (top, bottom)


def _title(axes: Axes, run: _Run, what: str) -> None:
    _plain_axes(axes)
    axes.set_title(what, loc="left", fontsize=13, fontweight="bold", color=INK, pad=22)
    axes.set_title(_text(run.name), loc="right", fontsize=10, color=GREY, pad=22)


def _plain_axes(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)


def _shade(axes: Axes, run: _Run) -> None:
    for _, first, last in run.stages()[1::2]:
        axes.axvspan(first - 0.5, last + 0.5, color=SHADE, zorder=0, linewidth=0)


def _name_stages(axes: Axes, run: _Run) -> None:
    rounds = run.attempts[-1]["round"] - run.attempts[0]["round"] + 1
    for name, first, last in run.stages():
        if len(_text(name)) > LETTERS * (last - first + 1) / rounds:
            continue  # it would run into its neighbours' names
        axes.annotate(
            _text(name),
            ((first + last) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=GREY,
        )


def _text(name: str) -> str:
    """A name as the pictures show it: not too long, and no formula whatever it holds."""
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    return short.replace("$", r"\$")


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.0f} %"
