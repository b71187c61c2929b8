"""The run file: one strict, frozen description of a federation's run, the same in simulation and in production.

Unknown keys fail, values are checked at once, and ``--set a.b=value`` takes the same dotted paths as the file. This
module knows nothing of models, data or messages; what a site allows is in its own policy, never here.

Example:
    >>> config = RunConfig.from_toml('''
    ... schema = 1
    ... name = "wards"
    ... [data]
    ... train = "notes.csv"
    ... [task]
    ... labels = ["yes", "no"]
    ... ''')
    >>> config.privacy.epsilon, config.stages[0].train
    (8.0, ('head',))
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from fedward_common.errors import ConfigError
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.simulated import SimulationConfig
from fedward_common.strict import Name, Positive, Rate, Section, explain, read_text

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "LocalOptimiser",
    "Method",
    "ModelConfig",
    "PartitionConfig",
    "PartitionMethod",
    "Placement",
    "Pooling",
    "PrivacyConfig",
    "RoundsConfig",
    "RunConfig",
    "ServerConfig",
    "ServerOptimiser",
    "StageConfig",
    "TaskConfig",
    "Weights",
]

SCHEMA = 1

DOCS = "docs/run-file.md lists every key with its range"


class Method(StrEnum):
    """Which numbers of a low-rank adapter are trained."""

    CORE = "core"  # only the r x r core between A and B taken from the frozen weight (LoRA-XS, Fed-SB)
    LORA = "lora"  # A and B, or B alone with ``freeze_a``


class Pooling(StrEnum):
    """How token vectors become one vector a text."""

    MEAN = "mean"  # mean over the real tokens
    CLS = "cls"  # the first token's vector


class PartitionMethod(StrEnum):
    """How a simulator spreads one file over virtual sites."""

    DIRICHLET = "dirichlet"  # label skew, one Dirichlet draw a label
    IID = "iid"  # uniformly at random
    NATURAL = "natural"  # one site for each value of ``data.site``
    PATHOLOGICAL = "pathological"  # ``labels_per_site`` labels at each site
    QUANTITY = "quantity"  # labels at random, sizes log-normal


class Placement(StrEnum):
    """What moves when records come to sites."""

    WHOLE = "whole"  # units: no unit lies at two sites
    SPLIT = "split"  # single records: a unit may lie at several sites, which a run says


class LocalOptimiser(StrEnum):
    """What a site does with a privatised gradient."""

    SGD = "sgd"  # the right choice for one local step: the update stays an unbiased sum
    ADAM = "adam"  # for several local steps


class ServerOptimiser(StrEnum):
    """What the coordinator does with the mean update."""

    SGD = "sgd"  # FedAvg
    ADAM = "adam"  # FedAdam (Reddi et al. 2021)


class Weights(StrEnum):
    """How much a site counts in the mean. True counts are never used: they would be released."""

    EQUAL = "equal"  # every site the same
    NOMINAL = "nominal"  # in proportion to the public, declared number of units


class ModelConfig(Section):
    """``[model]``: the frozen base. ``base`` is an alias, a local folder, or a hub id with a pinned revision."""

    base: Name = "minilm"
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    pooling: Pooling = Pooling.MEAN
    max_tokens: Annotated[StrictInt, Field(ge=8, le=8192)] = 128


class TaskConfig(Section):
    """``[task]``: what is learned. Labels are part of the public task, never derived from a real site's data."""

    kind: Literal["classification"] = "classification"
    labels: Annotated[tuple[Name, ...], Field(min_length=2, max_length=10_000)]

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("labels must be distinct")
        return labels


class AdapterConfig(Section):
    """``[adapter]``: which low-rank adapter is trained and where."""

    method: Method = Method.CORE
    rank: Annotated[StrictInt, Field(ge=1, le=1024)] = 16
    alpha: Positive = 256.0
    target_modules: Annotated[tuple[Name, ...], Field(min_length=1)] = ("query", "value")
    freeze_a: StrictBool = False

    @model_validator(mode="after")
    def _freezing_is_for_lora(self) -> Self:
        if self.freeze_a and self.method is Method.CORE:
            raise ValueError("freeze_a belongs to method 'lora'; 'core' always freezes A and B")
        return self


class DataConfig(Section):
    """``[data]``: files and columns. ``train`` and ``test`` are paths or names of Hugging Face data sets."""

    train: Name
    test: Name | None = None
    test_fraction: Annotated[StrictFloat, Field(ge=0, le=0.5)] = 0.1
    text: Annotated[tuple[Name, ...], Field(min_length=1, max_length=2)] = ("text",)
    label: Name = "label"
    site: Name | None = None
    unit: Name | None = None

    @field_validator("text", mode="before")
    @classmethod
    def _one_column_may_stand_alone(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class PartitionConfig(Section):
    """``[partition]``: virtual sites. ``sites`` is ignored by the natural partition.

    ``alpha`` is of ``dirichlet``, ``labels_per_site`` of ``pathological``, ``sigma`` of ``quantity``.
    """

    method: PartitionMethod = PartitionMethod.DIRICHLET
    alpha: Positive = 0.5
    labels_per_site: Annotated[StrictInt, Field(ge=1, le=10_000)] = 2
    sigma: Annotated[StrictFloat, Field(gt=0, le=5)] = 1.0
    units: Placement = Placement.WHOLE
    sites: Annotated[StrictInt, Field(ge=1, le=10_000)] = 10
    minimum_units: Annotated[StrictInt, Field(ge=1)] = 20


class PrivacyConfig(Section):
    """``[privacy]``: the promise at each site for the whole run, metrics included."""

    unit: Unit = Unit.RECORD
    epsilon: Positive = 8.0
    delta: Annotated[StrictFloat, Field(gt=0, lt=1)] = 1e-5
    clip_norm: Positive = 1.0
    max_records_per_unit: Annotated[StrictInt, Field(ge=1, le=10_000)] = 1
    validation_fraction: Annotated[StrictFloat, Field(ge=0, le=0.5)] = 0.05
    metrics_share: Rate = 1.0

    @field_validator("unit", mode="before")
    @classmethod
    def _unit_by_name(cls, value: object) -> object:
        return Unit(value) if isinstance(value, str) and value in tuple(Unit) else value


class StageConfig(Section):
    """``[[stages]]``: consecutive rounds that train the same parameter groups at the same rates.

    ``evaluate_every``: a noisy evaluation at the sites in every such round of the stage (0: never).
    ``server_learning_rate``: replaces ``server.learning_rate`` in this stage.
    """

    name: Name
    train: Annotated[tuple[Literal["head", "adapter"], ...], Field(min_length=1)]
    rounds: Annotated[StrictInt, Field(ge=1, le=10_000)]
    local_steps: Annotated[StrictInt, Field(ge=1, le=1000)] = 1
    sampling_rate: Rate = 1.0
    noise_ratio: Positive = 1.0
    optimiser: LocalOptimiser = LocalOptimiser.SGD
    learning_rate: Positive = 1.0
    server_learning_rate: Positive | None = None
    evaluate_every: Annotated[StrictInt, Field(ge=0)] = 0

    @field_validator("train")
    @classmethod
    def _distinct(cls, train: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(train)) != len(train):
            raise ValueError("groups must be distinct")
        return train


class RoundsConfig(Section):
    """``[rounds]``: who is asked, how many must answer, how long to wait. ``cohort = 0`` asks every site.

    ``goal``: the round closes as soon as so many updates are there (0: once everyone who was asked has answered).
    ``set_aside_after``: a site without an update in so many attempts in a row is asked but rarely (0: never).
    """

    cohort: Annotated[StrictInt, Field(ge=0)] = 0
    goal: Annotated[StrictInt, Field(ge=0)] = 0
    minimum: Annotated[StrictInt, Field(ge=1)] = 1
    deadline_s: Positive = 3600.0
    retries: Annotated[StrictInt, Field(ge=0, le=100)] = 3
    set_aside_after: Annotated[StrictInt, Field(ge=0, le=1000)] = 3


class ServerConfig(Section):
    """``[server]``: what the coordinator does with the mean update."""

    optimiser: ServerOptimiser = ServerOptimiser.ADAM
    learning_rate: Positive = 0.05
    weights: Weights = Weights.NOMINAL
    max_update_norm: Positive = 1000.0


DEFAULT_STAGES = (
    StageConfig(name="head", train=("head",), rounds=60, evaluate_every=30),
    StageConfig(
        name="adapter",
        train=("adapter",),
        rounds=6,
        sampling_rate=0.1,
        noise_ratio=0.3,
        server_learning_rate=0.0002,
        evaluate_every=6,
    ),
)


class RunConfig(Section):
    """A whole run. The same file means the same in simulation and in production."""

    schema_version: Annotated[StrictInt, Field(alias="schema")] = SCHEMA
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "run"
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    output: str | None = None
    model: ModelConfig = ModelConfig()
    task: TaskConfig
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig
    partition: PartitionConfig = PartitionConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1, max_length=32)] = DEFAULT_STAGES
    rounds: RoundsConfig = RoundsConfig()
    server: ServerConfig = ServerConfig()
    simulation: SimulationConfig | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.schema_version != SCHEMA:
            raise ValueError(f"schema {self.schema_version} is not known; this version reads schema {SCHEMA}")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError("two stages share a name")
        if self.privacy.unit is not Unit.RECORD and self.data.unit is None:
            raise ValueError(f"privacy.unit is '{self.privacy.unit}' but data.unit names no column")
        if self.privacy.unit is Unit.RECORD and self.data.unit is not None:
            raise ValueError("privacy.unit is 'record' but data.unit names a column; leave one of them out")
        if self.partition.method is PartitionMethod.NATURAL and self.data.site is None:
            raise ValueError("partition.method is 'natural' but data.site names no column")
        if 0 < self.rounds.cohort < self.rounds.minimum:
            raise ValueError("rounds.minimum exceeds rounds.cohort, so that no round could ever finish")
        if 0 < self.rounds.goal < self.rounds.minimum:
            raise ValueError("rounds.minimum exceeds rounds.goal, so that no round could ever finish")
        if 0 < self.rounds.cohort < self.rounds.goal:
            raise ValueError("rounds.goal exceeds rounds.cohort, so that no round could ever reach it")
        if self.evaluations and self.privacy.validation_fraction == 0:
            raise ValueError("a stage evaluates at the sites but privacy.validation_fraction is 0")
        return self

    @property
    def total_rounds(self) -> int:
        """Rounds of all stages together."""
        return sum(stage.rounds for stage in self.stages)

    @property
    def evaluations(self) -> int:
        """Noisy evaluations at each site in the whole run."""
        return sum(stage.rounds // stage.evaluate_every for stage in self.stages if stage.evaluate_every)

    @property
    def terms(self) -> PrivacyTerms:
        """The privacy terms that every plan of the run announces."""
        privacy = self.privacy
        stages = tuple(
            StageTerms(
                name=stage.name,
                sampling_rate=stage.sampling_rate,
                rounds=stage.rounds,
                local_steps=stage.local_steps,
                noise_ratio=stage.noise_ratio,
            )
            for stage in self.stages
        )
        return PrivacyTerms(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            unit=privacy.unit,
            clip_norm=privacy.clip_norm,
            max_records_per_unit=privacy.max_records_per_unit,
            stages=stages,
            metrics=MetricTerms(
                evaluations=self.evaluations,
                share=privacy.metrics_share,
                validation_fraction=privacy.validation_fraction,
            ),
        )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all values, defaults included."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_toml(cls, text: str, *, overrides: Sequence[str] = (), source: str = "run file") -> Self:
        """Parse and check a run file.

        Args:
          text: TOML.
          overrides: ``a.b=value`` as given to ``--set``; the value is TOML, or a bare string.
          source: the name shown in errors.

        Raises:
          ConfigError: with the dotted path of the first wrong key or value.
        """
        try:
            table = tomllib.loads(text)
        except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
            raise ConfigError(f"{source} is not TOML: {error}", hint="see docs/run-file.md for an example") from None
        for override in overrides:
            _apply(table, override)
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise explain(error, source=source, model=cls, docs=DOCS) from None

    @classmethod
    def load(cls, path: Path, *, overrides: Sequence[str] = ()) -> Self:
        """Read a run file from disk; relative paths in it count from the current folder, as on a command line."""
        text = read_text(path, what="run file", hint="`fedward-sim inspect FILE --write RUN.toml` writes one")
        return cls.from_toml(text, overrides=overrides, source=str(path))

    def to_toml(self) -> str:
        """All values, defaults included, as TOML that ``from_toml`` reads back to an equal config."""
        return _to_toml(self.model_dump(mode="json", by_alias=True, exclude_none=True))


def _apply(table: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override!r} is not of the form a.b=value", hint="for example --set privacy.epsilon=4"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        value = text
    if keys[0] == "stages" and len(keys) > 1 and "stages" not in table:
        table["stages"] = [stage.model_dump(mode="json", exclude_none=True) for stage in DEFAULT_STAGES]
    node: Any = table
    for key in keys[:-1]:
        node = _child(node, key, path)
    if isinstance(node, list):
        node[_index(node, keys[-1], path)] = value
    elif isinstance(node, dict):
        node[keys[-1]] = value
    else:
        raise ConfigError(f"--set {path}: {keys[-2]} is no table", hint="compare the path with docs/run-file.md")


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, path)]
    if isinstance(node, dict):
        return node.setdefault(key, {})
    raise ConfigError(f"--set {path}: nothing lies below {key!r}", hint="compare the path with docs/run-file.md")


def _index(node: Sequence[Any], key: str, path: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(node):
        return int(key)
    raise ConfigError(
        f"--set {path}: {key!r} is neither a name nor a number of the list",
        hint="lists of the run file take an element's name or its number, counted from 0",
    )


def _to_toml(table: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_value(value)}" for key, value in table.items() if not _is_table(value)]
    for key, value in table.items():
        for header, rows in _tables(key, value):
            lines += ["", header, *(f"{name} = {_value(item)}" for name, item in rows.items())]
    return "\n".join(lines) + "\n"


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _tables(key: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        return [(f"[{key}]", value)]
    return [(f"[[{key}]]", item) for item in value] if _is_table(value) else []


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
