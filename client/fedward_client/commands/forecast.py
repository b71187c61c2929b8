"""``forecast RUN.toml``: what a run would cost this site, before anything is spent or any record is read.

Epsilon and noise come from the run's own terms, as the ledger would reserve them; bytes from messages of the right
shapes; time from the declared number of units and how fast this machine multiplies. The policy is asked as it would be
asked by a plan of each stage.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedward_client.commands.ledger import load_run
from fedward_client.commands.models import source_of
from fedward_client.commands.weights import Shapes, read_shapes, spec_for
from fedward_client.installation.folder import Folder
from fedward_client.installation.site_file import SiteFile
from fedward_client.policy import Denied
from fedward_common.adapter import Adapter, AdapterSpec
from fedward_common.codec import encode_plan, encode_reply, new_key
from fedward_common.config import ModelConfig, RunConfig, StageConfig
from fedward_common.errors import BudgetError, ModelError, PrivacyError
from fedward_common.privacy.grants import Quote
from fedward_common.privacy.guarantee import Guarantee, PrivacyTerms
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.report import Report, counted, rows
from fedward_common.round import NO_PLAN, Code, RoundPlan, Training, Update

__all__ = ["forecast"]

MEASURED_SIZE = 768
MEASURED_SECONDS = 0.2
FORWARD_AND_BACK = 2.5  # of the work of a forward pass: activations' gradients, and per-record ones of a small adapter


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """What one stage would do at this site."""

    config: StageConfig
    noise: float
    down: int
    up: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "bytes_down": self.down,
            "bytes_up": self.up,
            "name": self.config.name,
            "noise_multiplier": round(self.noise, 4),
            "rounds": self.config.rounds,
            "sampling_rate": self.config.sampling_rate,
            "seconds": round(self.seconds, 1),
            "steps": self.config.rounds * self.config.local_steps,
        }


def forecast(folder: Folder, run_file: Path, *, tokens: int | None = None) -> Report:
    """Say what a run would cost.

    Args:
      folder: of the site.
      run_file: what the coordinator means to run.
      tokens: mean tokens of a text; the most that the site reads, unless given.

    Raises:
      ConfigError: the run file or the site file is wrong.
      ModelError: the base model is not here, or does not have what the run trains.
      BudgetError: no noise meets the run's terms.
    """
    site, config = folder.load_site(), load_run(run_file)
    fingerprint, model = _model(folder, site, config.model)
    shapes = read_shapes(model)
    spec = spec_for(shapes, config.adapter, fingerprint=fingerprint, classes=len(config.task.labels))
    quote = Quote.of(config.terms)
    work = _work(site, config, shapes, tokens or min(site.model.max_tokens, config.model.max_tokens))
    stages = tuple(_stage(index, config, spec, quote, seconds) for index, seconds in enumerate(work))
    reasons = (*_mismatches(site, config), *_denials(site, config, spec, quote.terms), *_budget(folder, quote))
    return _report(folder, site, config, quote, stages, reasons)


def _model(folder: Folder, site: SiteFile, model: ModelConfig) -> tuple[str, Path]:
    """The fingerprint of a run's base model and its folder here. Nothing is fetched."""
    from fedward_common.modeling.base import ALIASES, fingerprint, locate

    if model.base in ALIASES or Path(os.path.expanduser(model.base)).is_dir():
        found = locate(model)
        return fingerprint(found, pooling=model.pooling), found
    name = f"{model.base}@{model.revision}" if model.revision else model.base
    for known in site.policy_table.models:
        if source_of(folder, known) == name and folder.model(known).is_dir():
            return known, folder.model(known)
    raise ModelError(
        f"the run's base model {model.base} is not here", hint=f"bring it in: fedward-client fetch-model {name}"
    )


# ---- would it be admitted? -----------------------------------------------------------
def _mismatches(site: SiteFile, config: RunConfig) -> Iterator[str]:
    if config.task.labels != site.task.labels:
        yield "the run's labels are not those of the site file"
    if config.model.pooling is not site.model.pooling:
        yield f"the run pools by {config.model.pooling}, the site file by {site.model.pooling}"


def _denials(site: SiteFile, config: RunConfig, spec: AdapterSpec, terms: PrivacyTerms) -> tuple[str, ...]:
    policy, now = site.policy(), time.time()
    found = []
    for index, stage in enumerate(config.stages):
        plan = _plan(index, config, spec, terms, evaluate=bool(stage.evaluate_every))
        verdict = policy.admit(plan, spec, now=now)
        # outside the hours a plan is unavailable only if nothing else is wrong with it
        found += [verdict.reason] if isinstance(verdict, Denied) and verdict.code is not Code.UNAVAILABLE else []
    return tuple(dict.fromkeys(found))


def _budget(folder: Folder, quote: Quote) -> tuple[str, ...]:
    """Why the ledger would not grant it now; tried on a copy that goes nowhere."""
    if not folder.has_books:
        return ()
    ledger = folder.read_books(folder.load_keys()).ledger
    try:
        ledger.reserve(quote, run_id="forecast")
    except BudgetError as error:
        return (f"the ledger would not grant it: {error}",)
    return ()


def _plan(index: int, config: RunConfig, spec: AdapterSpec, terms: PrivacyTerms, *, evaluate: bool) -> RoundPlan:
    stage = config.stages[index]
    return RoundPlan(
        run_id=NO_PLAN,
        round=1,
        stage=index,
        spec_digest=spec.digest,
        adapter_digest=Adapter.zeros(spec).digest,
        terms=terms,
        training=Training(
            groups=stage.train,
            local_steps=stage.local_steps,
            optimiser=stage.optimiser,
            learning_rate=stage.learning_rate,
        ),
        evaluate=evaluate,
        public_seed=config.seed,
        weights=config.server.weights,
        expires_at=time.time() + 3600,
        states_min_sites=config.rounds.minimum,
        site=NO_PLAN,
        ledger_head=NO_PLAN,
    )


# ---- bytes and time ------------------------------------------------------------------
def _stage(index: int, config: RunConfig, spec: AdapterSpec, quote: Quote, seconds: float) -> _Stage:
    stage, key = config.stages[index], new_key()
    plan = _plan(index, config, spec, quote.terms, evaluate=bool(stage.evaluate_every))
    part = spec.subset(stage.train)
    guarantee = Guarantee(unit=quote.terms.unit, delta=quote.terms.delta, events=quote.events, waivers=())
    update = Update(
        plan_id=plan.plan_id,
        delta=Adapter.zeros(part),
        guarantee=guarantee,
        nominal_units=1_000_000,
        metrics=MetricSums(correct=1234.5, units=1234.5, loss=1234.5),
        ledger_head=NO_PLAN,
    )
    return _Stage(
        config=stage,
        noise=quote.calibration.noise_scale * stage.noise_ratio,
        down=stage.rounds * len(encode_plan(plan, Adapter.zeros(spec), key=key)),
        up=stage.rounds * len(encode_reply(update, key=key)),
        seconds=seconds,
    )


def _work(site: SiteFile, config: RunConfig, shapes: Shapes, tokens: int) -> tuple[float, ...]:
    """Seconds of each stage on this machine, from the declared number of units."""
    records = float(site.data.nominal_units * config.privacy.max_records_per_unit)
    forward = tokens * shapes.work_per_token / _speed()
    cached = False
    seconds = []
    for stage in config.stages:
        if "adapter" in stage.train:
            drawn = records * stage.sampling_rate * stage.local_steps
            looks = records * config.privacy.validation_fraction * (stage.rounds // (stage.evaluate_every or 10**9))
            seconds.append(forward * (drawn * stage.rounds * FORWARD_AND_BACK + looks))
            cached = False
        else:
            seconds.append(0.0 if cached else forward * records)  # features once; a step of the head is nothing beside
            cached = True
    return tuple(seconds)


def _speed() -> float:
    """Multiplications and additions a second of this machine, from a short run of matrix products."""
    matrix = np.ones((MEASURED_SIZE, MEASURED_SIZE), np.float32)
    matrix @ matrix
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < MEASURED_SECONDS:
        matrix @ matrix
        done += 1
    return 2.0 * MEASURED_SIZE**3 * done / (time.perf_counter() - start)


# ---- saying it -----------------------------------------------------------------------
def _report(
    folder: Folder, site: SiteFile, config: RunConfig, quote: Quote, stages: tuple[_Stage, ...], denied: tuple[str, ...]
) -> Report:
    epsilon, steps = quote.epsilon, sum(stage.steps for stage in quote.terms.stages)
    down, up, seconds = (sum(getattr(stage, name) for stage in stages) for name in ("down", "up", "seconds"))
    facts = {
        "command": "forecast",
        "admitted": not denied,
        "bytes_down": down,
        "bytes_up": up,
        "delta": quote.terms.delta,
        "epsilon": epsilon,
        "evaluations": quote.terms.metrics.evaluations,
        "reasons": list(denied),
        "seconds": round(seconds, 1),
        "stages": [stage.to_json() for stage in stages],
        "steps": steps,
        "unit": quote.terms.unit.value,
    }
    lines = rows(
        [
            (
                "run",
                f"{config.name}: {counted(config.total_rounds, 'round', 'rounds')}, {counted(steps, 'step', 'steps')}",
            ),
            (
                "cost",
                f"epsilon {epsilon:.4g} at delta {quote.terms.delta:g} for each {quote.terms.unit}, reserved whole",
            ),
            ("messages", f"{_size(down)} in, {_size(up)} out"),
            ("time", f"about {_duration(seconds)} of work here, for {site.data.nominal_units} units; see --tokens"),
            ("answer", "; ".join(denied) if denied else "this site would take part"),
        ]
    )
    problem = PrivacyError("this site would not take part in the run", hint="ask the operator to change the run")
    return Report(
        facts=facts, lines=lines, details=tuple(map(_stage_line, stages)), problem=problem if denied else None
    )


def _stage_line(stage: _Stage) -> str:
    config = stage.config
    return (
        f"stage {config.name}: {counted(config.rounds, 'round', 'rounds')} of "
        f"{counted(config.local_steps, 'step', 'steps')}, q {config.sampling_rate:g}, "
        f"sigma {stage.noise:.3f}, {_size(stage.up)} out, about {_duration(stage.seconds)}"
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return ""


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return counted(max(1, round(seconds)), "second", "seconds")
