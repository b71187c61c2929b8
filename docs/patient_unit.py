"""Measures docs/patient-unit.md: what a promise to records is worth to a patient with many of them.

    python docs/patient_unit.py TRAIN.jsonl.gz TEST.jsonl.gz [--features CACHE.npz]

One site, head rounds of the default recipe (every unit in every round, q = 1), features of the frozen base, Adam at the
server. Draws, clipping, noise and divisor are those of ``PrivateSum``; the only thing written here is the gradient of a
linear head. Prints the tables as Markdown and draws docs/images/patient-unit.png.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats  # type: ignore[import-untyped, unused-ignore]

from fedward_client.data import nominal
from fedward_common.config import AdapterConfig, ModelConfig
from fedward_common.privacy.accounting import epsilon
from fedward_common.privacy.calibration import calibrate
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.privacy.mechanism import PrivateSum
from fedward_common.privacy.randomness import Purpose, SeededRandom

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LABELS = ("low", "mid", "high")
EPSILON, DELTA, STEPS, CLIP, RATE = 8.0, 1e-5, 60, 1.0, 0.05
CAP = 64  # records of a patient in a step
TOKENS = 64
TRIALS, SEEDS = 5, 5
SIZES = (1, 2, 5, 10, 20, 50, 100, 140, 168)
PICTURE = Path(__file__).parent / "images" / "patient-unit.png"


# ---- what is promised ------------------------------------------------------------
def noise_multiplier(steps: int = STEPS, target: float = EPSILON) -> float:
    """Sigma of each step, as the ledger would calibrate it; the unit has no part in it."""
    stage = StageTerms(name="head", sampling_rate=1.0, rounds=steps, local_steps=1, noise_ratio=1.0)
    terms = PrivacyTerms(
        epsilon=target,
        delta=DELTA,
        unit=Unit.RECORD,
        clip_norm=CLIP,
        max_records_per_unit=1,
        stages=(stage,),
        metrics=MetricTerms(evaluations=0, share=1.0, validation_fraction=0.0),
    )
    return calibrate(terms).stage_event(terms, 0, steps).noise_multiplier


def promised(records: int, sigma: float) -> float:
    """Epsilon of all steps for a patient with so many records, each clipped by itself: sensitivity ``records`` x C.

    Exact, and reached when the clipped gradients of the patient point the same way. Balle and Wang 2018,
    arXiv:1805.06530, theorem 8; several steps are one Gaussian mechanism with noise sigma / sqrt(steps).
    """
    mu = records * math.sqrt(STEPS) / sigma

    def excess(value: float) -> float:
        first, second = stats.norm.logcdf(mu / 2 - value / mu), value + stats.norm.logcdf(-mu / 2 - value / mu)
        return float(first + np.log1p(-np.exp(min(second - first, -1e-16)))) - math.log(DELTA)

    return float(optimize.brentq(excess, 0.0, mu * mu / 2 + 10 * mu))


def group_delta(records: int) -> float:
    """Delta at ``records`` x epsilon by the general bound for groups, which knows nothing of the mechanism; at most 1.

    Dwork and Roth 2014, theorem 2.2, for (epsilon, delta).
    """
    return min(1.0, sum(DELTA * math.exp(step * EPSILON) for step in range(min(records, 20))))


# ---- the run ---------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Table:
    """Features with a column of ones ``(n, 385)``, label numbers, patients (rising) and folds, ``(n,)`` each."""

    features: Floats
    labels: Ints
    patients: Ints
    folds: Ints

    @cached_property
    def norms(self) -> Floats:
        """Length of each row of features."""
        squares: Floats = (self.features**2).sum(axis=1)
        return np.sqrt(squares)

    @cached_property
    def rows_of(self) -> dict[int, slice]:
        """The rows of each patient, which stand together."""
        names, starts, sizes = np.unique(self.patients, return_index=True, return_counts=True)
        return {int(name): slice(start, start + size) for name, start, size in zip(names, starts, sizes, strict=True)}

    def where(self, keep: NDArray[np.bool_]) -> Table:
        """Some of the rows."""
        return Table(**{name: getattr(self, name)[keep] for name in ("features", "labels", "patients", "folds")})

    def residuals(self, head: Floats) -> Floats:
        """Predicted probabilities minus one-hot labels, ``(n, 3)``; a record's gradient is its outer product."""
        logits = self.features @ head.T
        odds: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        odds[np.arange(len(odds)), self.labels] -= 1.0
        return odds

    def accuracy(self, head: Floats) -> float:
        """Share of right answers."""
        return float(((self.features @ head.T).argmax(axis=1) == self.labels).mean())

    def loss(self, head: Floats) -> float:
        """Mean cross-entropy."""
        chances = self.residuals(head)[np.arange(len(self.labels)), self.labels] + 1.0
        return float(-np.log(np.maximum(chances, 1e-300)).mean())


def unit_sums(table: Table, head: Floats, mechanism: PrivateSum, unit: Unit, random: Any) -> dict[int, Floats]:
    """The sum of the clipped contributions of each patient's units, flat: many records, or one patient."""
    residuals = table.residuals(head)
    found: dict[int, Floats] = {}
    if unit is Unit.RECORD:
        residuals *= mechanism.clip_factors(np.linalg.norm(residuals, axis=1) * table.norms)[:, None]
    for patient, own in table.rows_of.items():
        if unit is Unit.RECORD:
            found[patient] = (residuals[own].T @ table.features[own]).reshape(-1)
            continue
        chosen = mechanism.choose_records(np.arange(own.start, own.stop), random)
        mean = (residuals[chosen].T @ table.features[chosen]).reshape(1, -1) / len(chosen)
        found[patient] = mechanism.clipped_sum(mean)
    return found


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The final head, and the log-likelihood ratio for one patient's presence given every released sum."""

    head: Floats
    ratio: float


def run(table: Table, unit: Unit, sigma: float, *, seed: int, target: int = -1, present: bool = True) -> Outcome:
    """Train a head; somebody who knows all data but whether ``target`` took part watches every release."""
    units = len(table.labels) if unit is Unit.RECORD else len(np.unique(table.patients))
    mechanism = PrivateSum(
        sampling_rate=1.0,
        noise_multiplier=sigma,
        clip_norm=CLIP,
        nominal_units=nominal(units),
        max_records_per_unit=CAP,
    )
    source = SeededRandom(seed=seed, site=f"{unit}-{target}-{present}")
    size = (len(LABELS), table.features.shape[1])
    head, first, second, ratio = np.zeros(size), np.zeros(size), np.zeros(size), 0.0
    for step in range(STEPS):
        choice, noise = (source.stream(round=1, step=step, purpose=p) for p in (Purpose.RECORDS, Purpose.NOISE))
        sums = unit_sums(table, head, mechanism, unit, choice)
        own = sums.pop(target, np.zeros(head.size))
        others = np.sum(list(sums.values()), axis=0)
        released = mechanism.release(others + own if present else others, noise)
        seen = released * mechanism.divisor - others
        ratio += float(seen @ own - own @ own / 2) / (sigma * CLIP) ** 2
        first, second = 0.9 * first + 0.1 * released.reshape(size), 0.999 * second + 0.001 * released.reshape(size) ** 2
        scale = math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        head = head - RATE * scale * first / (np.sqrt(second) + 1e-8)
    return Outcome(head=head, ratio=ratio)


# ---- what is measured ------------------------------------------------------------
def membership(table: Table, unit: Unit, sigma: float) -> Iterator[tuple[float, float, bool]]:
    """For each patient and trial, with and without: the ratio, the final loss on the patient, and the truth."""
    for target in np.unique(table.patients):
        for seed in range(TRIALS):
            for present in (True, False):
                done = run(table, unit, sigma, seed=seed, target=int(target), present=present)
                yield done.ratio, table.where(table.patients == target).loss(done.head), present


def area(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """Chance that a patient who took part scores higher than one who did not (AUC)."""
    return float(stats.mannwhitneyu(scores[truth], scores[~truth]).statistic / (truth.sum() * (~truth).sum()))


def accuracies(train: Table, test: Table, unit: Unit, sigma: float) -> tuple[list[float], list[float]]:
    """On a fifth of the records of patients who took part, and on other patients; one of each for a seed."""
    heads = [run(train.where(train.folds != 0), unit, sigma, seed=seed).head for seed in range(SEEDS)]
    same = train.where(train.folds == 0)
    return [same.accuracy(head) for head in heads], [test.accuracy(head) for head in heads]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a data file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def tables(train: Path, test: Path, cache: Path | None) -> list[Table]:
    """Both files as tables; features come from the cache, if it is there."""
    rows = [read(train), read(test)]
    if cache is not None and cache.exists():
        with np.load(cache) as found:
            features = [found["train"], found["test"]]
    else:
        features = compute([[row["text"] for row in part] for part in rows])
        if cache is not None:
            np.savez(cache, train=features[0], test=features[1])
    return [_table(part, columns) for part, columns in zip(rows, features, strict=True)]


def _table(rows: list[dict[str, Any]], features: NDArray[np.float32]) -> Table:
    patients = np.array([int(row["patient"].removeprefix("pd")) for row in rows], np.int64)
    order = np.argsort(patients, kind="stable")
    return Table(
        features=np.concatenate([features, np.ones((len(rows), 1))], axis=1).astype(np.float64)[order],
        labels=np.array([LABELS.index(row["label"]) for row in rows], np.int64)[order],
        patients=patients[order],
        folds=np.array([row.get("record_fold") or 0 for row in rows], np.int64)[order],
    )


def compute(texts: list[list[str]]) -> list[NDArray[np.float32]]:
    """Mean-pooled features of the frozen base: the slow part."""
    from fedward_common.modeling.adapters import adapt
    from fedward_common.modeling.base import load_base
    from fedward_common.modeling.tasks.classification import features, tokenise

    base = load_base(ModelConfig(max_tokens=TOKENS))
    model = adapt(base, AdapterConfig(), classes=len(LABELS), public_seed=0)
    return [features(model, tokenise(base, [(text,) for text in part])).numpy() for part in texts]


# ---- what is shown ---------------------------------------------------------------
def draw(sigma: float, watched: dict[Unit, tuple[Floats, NDArray[np.bool_]]], most: int) -> None:
    """Promise by number of records; and how well a watcher tells who took part."""
    from matplotlib.figure import Figure

    blue, orange, grey = "#0072B2", "#D55E00", "#6B6B6B"
    colours, names = {Unit.RECORD: orange, Unit.PATIENT: blue}, {Unit.RECORD: "record", Unit.PATIENT: "patient"}
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = np.unique(np.round(np.geomspace(1, most, 40)).astype(int))
    left.plot(counts, [promised(int(k), sigma) for k in counts], color=orange, linewidth=2, label="unit: record")
    left.plot(counts, [EPSILON] * len(counts), color=blue, linewidth=2, label="unit: patient")
    left.set(xscale="log", yscale="log", xlabel="records of the patient", ylabel="epsilon promised to the patient")
    worst = promised(140, sigma)
    left.annotate(f"140 records: {worst:,.0f}", (140, worst), (2.5, 14000), arrowprops={"arrowstyle": "-"})
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    left.set_title("What is promised", fontsize=10)
    left.legend(frameon=False)
    for unit, (scores, truth) in watched.items():
        levels = np.sort(np.concatenate([scores, [np.inf, -np.inf]]))[::-1]
        wrong, hits = ([float((scores[side] >= level).mean()) for level in levels] for side in (~truth, truth))
        label = f"unit: {names[unit]} (AUC {area(scores, truth):.3f})"
        right.plot(wrong, hits, color=colours[unit], linewidth=2.4, label=label, clip_on=False, zorder=3)
    right.plot([0, 1], [0, 1], color=grey, linestyle=(0, (5, 3)), linewidth=1.2, label="guessing")
    right.set(xlabel="absent patients called present", ylabel="present patients found", xlim=(0, 1), ylim=(0, 1))
    right.set_title("What a watcher who knows the others finds", fontsize=10)
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--features", type=Path, metavar="FILE", help="keep the features here, for another run")
    chosen = parser.parse_args()
    train, test = tables(chosen.train, chosen.test, chosen.features)
    sigma = noise_multiplier()
    event = GaussianSum(side=Side.TRAINING, sampling_rate=1.0, noise_multiplier=sigma, count=STEPS)
    sizes = np.bincount(train.patients)[np.unique(train.patients)]
    print(f"{len(sizes)} patients, {sizes.min()} to {sizes.max()} records, {sizes.sum()} in all; sigma {sigma:.3f}")
    print(f"epsilon by the accountant {epsilon([event], delta=DELTA):.4f}, in closed form {promised(1, sigma):.4f}\n")
    for count in SIZES:
        print(f"| {count} | {promised(count, sigma):,.1f} | {count * EPSILON:,.0f} | {group_delta(count):.2g} |")
    small = optimize.brentq(lambda e: promised(140, noise_multiplier(target=e)) - EPSILON, 0.005, 1.0, xtol=1e-4)
    print(f"\nrecord-level epsilon that gives a patient of 140 records {EPSILON:g}: {small:.3f}\n")
    watched = {}
    for unit in (Unit.RECORD, Unit.PATIENT):
        ratios, lost, flags = zip(*membership(train, unit, sigma), strict=True)
        scores, truth = np.array(ratios), np.array(flags)
        watched[unit] = (scores, truth)
        by_patient = zip(np.reshape(lost, (len(sizes), -1)), truth.reshape(len(sizes), -1), strict=True)
        by_loss = np.mean([area(-losses, present) for losses, present in by_patient])
        found = float((scores[truth] > np.quantile(scores[~truth], 0.99)).mean())
        print(f"{unit}: AUC {area(scores, truth):.3f}, {found:.3f} found at 1 % false alarms; by loss {by_loss:.3f}")
    mu = math.sqrt(STEPS) / sigma
    most = stats.norm.cdf([mu / math.sqrt(2), stats.norm.ppf(0.01) + mu])
    print(f"the most that the events allow for one unit: AUC {most[0]:.3f}, {most[1]:.3f} found at 1 % false alarms\n")
    draw(sigma, watched, int(SIZES[-1]))
    for name, unit, noise in (
        ("no noise, records clipped", Unit.RECORD, 1e-6),
        ("unit: record", Unit.RECORD, sigma),
        ("no noise, patients clipped", Unit.PATIENT, 1e-6),
        ("unit: patient", Unit.PATIENT, sigma),
    ):
        same, other = accuracies(train, test, unit, noise)
        shown = [f"{np.mean(part):.3f} ({min(part):.3f} to {max(part):.3f})" for part in (same, other)]
        print(f"| {name} | {shown[0]} | {shown[1]} |")
    major = np.bincount(train.labels).argmax()
    print(f"| commonest label | {(train.labels == major).mean():.3f} | {(test.labels == major).mean():.3f} |")


if __name__ == "__main__":
    main()
