"""The site file: what a site's administrator writes once. Data, task, model and the policy that outranks every plan.

Strict, as the run file is: unknown keys fail, wrong types fail, values are checked at once, and each error names the
dotted path. This module reads no data and opens no ledger.

Example:
    >>> text = '''
    ... schema = 1
    ... name = "st-elsewhere"
    ... [data]
    ... id = "notes-2026"
    ... path = "notes.csv"
    ... text = "note"
    ... label = "organ"
    ... nominal_units = 1000
    ... [task]
    ... labels = ["lung", "skin"]
    ... [policy]
    ... unit = "record"
    ... models = []
    ... run_epsilon = 8.0
    ... run_delta = 1e-5
    ... life_epsilon = 16.0
    ... life_delta = 1e-4
    ... [coordinator]
    ... public_key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    ... '''
    >>> site = SiteFile.from_toml(text)
    >>> site.policy().max_epsilon, site.policy().hours
    (8.0, ())
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import (
    AfterValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    field_validator,
    model_validator,
)

from fedward_client.installation.keys import read_public_key
from fedward_client.policy import Hours, SitePolicy
from fedward_common.canonical import canonical
from fedward_common.config import DataConfig, Method, Pooling, TaskConfig
from fedward_common.errors import ConfigError, FedwardError
from fedward_common.privacy.grants import Budget, Filter
from fedward_common.privacy.guarantee import Unit
from fedward_common.strict import Name, Positive, Rate, Section, parse, read_text

__all__ = [
    "CoordinatorTable",
    "DataTable",
    "ModelTable",
    "NetworkTable",
    "PolicyTable",
    "ReleaseAt",
    "SiteFile",
    "template",
]

SCHEMA = 1
DOCS = "docs/site-file.md lists every key with its range"
KNOWN_WAIVERS = ("allow_network",)


def _matches(pattern: str, what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"should be {what}")
        return text

    return AfterValidator(check)


Identifier = Annotated[str, _matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, '.', '_' or '-'")]
Fingerprint = Annotated[str, _matches(r"[0-9a-f]{64}", "64 lower-case hex digits")]
Delta = Annotated[StrictFloat, Field(gt=0, lt=1)]
Count = Annotated[StrictInt, Field(ge=1)]


class DataTable(Section):
    """``[data]``: one table and its columns. ``id`` names the source of the data for good, wherever the file lies."""

    id: Identifier
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    text: Annotated[tuple[Name, ...], Field(min_length=1, max_length=2)]
    label: Name
    unit: Name | None = None
    record_id: Name | None = None
    nominal_units: Count

    @field_validator("text", mode="before")
    @classmethod
    def _one_column_may_stand_alone(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class ModelTable(Section):
    """``[model]``: how this site reads texts. Which models are allowed stands in ``policy.models``."""

    pooling: Pooling = Pooling.MEAN
    max_tokens: Annotated[StrictInt, Field(ge=8, le=8192)] = 128


class PolicyTable(Section):
    """``[policy]``: what the site allows, whatever a plan asks."""

    unit: Unit
    models: tuple[Fingerprint, ...]
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = tuple(Method)
    target_modules: tuple[Name, ...] = ("query", "key", "value")
    max_rank: Annotated[StrictInt, Field(ge=1, le=1024)] = 64
    run_epsilon: Positive
    run_delta: Delta
    life_epsilon: Positive
    life_delta: Delta
    filter: Filter = Filter.SUM
    rdp_order: Annotated[StrictInt, Field(ge=2, le=512)] | None = None
    max_steps: Annotated[StrictInt, Field(ge=1, le=100_000)] = 10_000
    max_sampling_rate: Rate = 1.0
    max_clip_norm: Positive = 100.0
    max_records_per_unit: Annotated[StrictInt, Field(ge=1, le=10_000)] = 64
    max_update_bytes: Annotated[StrictInt, Field(ge=1, le=2**31)] = 256 * 2**20
    minimum_units: Count = 20
    validation_fraction: Annotated[StrictFloat, Field(ge=0, le=0.5)] = 0.05
    hours: tuple[str, ...] = ()
    metrics_may_leave: StrictBool = True
    coordinator_states_min_sites: Count = 1
    waivers: tuple[Name, ...] = ()

    @field_validator("hours")
    @classmethod
    def _parts_of_a_day(cls, hours: tuple[str, ...]) -> tuple[str, ...]:
        for text in hours:
            with _as_value_error():
                Hours.parse(text)
        return hours

    @field_validator("waivers")
    @classmethod
    def _known(cls, waivers: tuple[str, ...]) -> tuple[str, ...]:
        for name in waivers:
            if name not in KNOWN_WAIVERS:
                raise ValueError(f"names no waiver of a site: {name!r}; known: {', '.join(KNOWN_WAIVERS)}")
        return waivers

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        if self.run_epsilon > self.life_epsilon or self.run_delta > self.life_delta:
            raise ValueError("allows one run more than the data's whole life; lower run_* or raise life_*")
        if (self.filter is Filter.RENYI) != (self.rdp_order is not None):
            raise ValueError('rdp_order goes with filter = "rdp", and only with it')
        with _as_value_error():
            self.budget()
        return self

    def budget(self) -> Budget:
        """What all runs together may cost a unit: fixed for good when the ledger is opened."""
        return Budget(
            epsilon=self.life_epsilon,
            delta=self.life_delta,
            unit=self.unit,
            run_epsilon=self.run_epsilon,
            run_delta=self.run_delta,
            renyi_order=self.rdp_order,
        )


class CoordinatorTable(Section):
    """``[coordinator]``: whose signed plans are read at all."""

    public_key: Name

    @field_validator("public_key")
    @classmethod
    def _readable(cls, text: str) -> str:
        try:
            read_public_key(text)
        except ConfigError as error:
            raise ValueError(f"is no Ed25519 public key: {error.hint}") from None
        return text


class ReleaseAt(StrEnum):
    """When a finished reply is handed to the courier."""

    SLOT = "slot"
    """One slot after its plan came, or two, four, eight: the time of a reply says no more than that."""

    READY = "ready"
    """At once: the time of a reply tracks the batch."""


class NetworkTable(Section):
    """``[network]``: how the process that sees data hands its replies to the courier."""

    release_at: ReleaseAt = ReleaseAt.SLOT
    slot_s: Annotated[StrictInt, Field(ge=1, le=3600)] = 30
    door: Annotated[str, Field(max_length=107)] = ""


class SiteFile(Section):
    """A whole site file."""

    schema_version: Annotated[StrictInt, Field(alias="schema")]
    name: Identifier
    data: DataTable
    task: TaskConfig
    model: ModelTable = ModelTable()
    policy_table: PolicyTable = Field(alias="policy")
    network: NetworkTable = NetworkTable()
    coordinator: CoordinatorTable

    @model_validator(mode="after")
    def _tables_agree(self) -> Self:
        unit, data = self.policy_table.unit, self.data
        if self.schema_version != SCHEMA:
            raise ValueError(f"schema {self.schema_version} is not known; this version reads schema {SCHEMA}")
        if unit is not Unit.RECORD and data.unit is None:
            raise ValueError(f"policy.unit is '{unit}' but data.unit names no column")
        if unit is Unit.RECORD and data.unit is not None:
            raise ValueError("policy.unit is 'record' but data.unit names a column; leave one of them out")
        if data.unit is not None and data.record_id is not None:
            raise ValueError("data.record_id is for the unit 'record'; data.unit already names what is protected")
        if self.policy_table.minimum_units > data.nominal_units:
            raise ValueError("policy.minimum_units exceeds data.nominal_units: this site could never take part")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a site file from disk.

        Raises:
          ConfigError: it cannot be read, or a key or value is wrong; with the dotted path.
        """
        text = read_text(path, what="site file", hint="`fedward-client init DIR` writes one to fill in")
        return cls.from_toml(text, source=path.name)

    @classmethod
    def from_toml(cls, text: str, *, source: str = "site.toml") -> Self:
        """Parse and check a site file.

        Args:
          text: TOML.
          source: the name shown in errors.

        Raises:
          ConfigError: with the dotted path of the first wrong key or value, or of all that are missing.
        """
        return parse(cls, text, source=source, docs=DOCS, example="docs/site-file.md has an example")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all values, defaults included: what the audit log calls a policy."""
        return hashlib.sha256(canonical(self.model_dump(mode="json", by_alias=True))).hexdigest()

    def policy(self) -> SitePolicy:
        """The limits that every plan is compared with."""
        table = self.policy_table
        return SitePolicy(
            unit=table.unit,
            base_fingerprints=frozenset(table.models),
            methods=frozenset(table.methods),
            target_modules=frozenset(table.target_modules),
            max_rank=table.max_rank,
            max_epsilon=table.run_epsilon,
            max_delta=table.run_delta,
            max_steps=table.max_steps,
            max_sampling_rate=table.max_sampling_rate,
            max_clip_norm=table.max_clip_norm,
            max_records_per_unit=table.max_records_per_unit,
            max_update_bytes=table.max_update_bytes,
            minimum_units=table.minimum_units,
            validation_fraction=table.validation_fraction,
            hours=tuple(Hours.parse(text) for text in table.hours),
            metrics_may_leave=table.metrics_may_leave,
            coordinator_states_min_sites=table.coordinator_states_min_sites,
            waivers=frozenset(table.waivers),
        )

    def budget(self) -> Budget:
        """What all runs together may cost a unit: fixed for good when the ledger is opened."""
        return self.policy_table.budget()

    def operator(self) -> Ed25519PublicKey:
        """The key that plans must be signed with."""
        return read_public_key(self.coordinator.public_key)

    def source(self, folder: Path) -> Path:
        """The data file. A relative path counts from the site's folder, never from the current one."""
        return folder / Path(self.data.path).expanduser()

    def columns(self, folder: Path) -> DataConfig:
        """What ``load_records`` reads: the file, and the column that names the unit, where there is one."""
        return DataConfig(
            train=str(self.source(folder)),
            text=self.data.text,
            label=self.data.label,
            unit=self.data.unit or self.data.record_id,
        )


# ---- errors ------------------------------------------------------------------------
@contextmanager
def _as_value_error() -> Iterator[None]:
    """Inside a validator an error of ours becomes what pydantic collects, with its hint."""
    try:
        yield
    except FedwardError as error:
        raise ValueError(f"{error}; {error.hint}") from None


# ---- the file that `init` writes ---------------------------------------------------
def template(name: str, *, operator: str | None = None, door: Path | None = None) -> str:
    """A commented site file. Lines that begin with ``#> `` are keys without a default: they must be filled in.

    Args:
      name: of the site.
      operator: the public key of the operator, where it is known already.
      door: the folder of the trainer's socket, where it lies outside of the site's.

    Guarantees:
      - It is TOML, and refused until every such key is given.
      - With these lines uncommented it is a valid site file.
    """
    text = _TEMPLATE.replace("NAME", name)
    if door is not None:
        text = text.replace('door = ""', f"door = {json.dumps(str(door))}")
    return text if operator is None else text.replace(f'#> public_key = "{_SOMEONE}"', f'public_key = "{operator}"')


_SOMEONE = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
_TEMPLATE = """\
# What this site allows. It outranks every plan: a plan may be stricter, never looser.
# Lines that begin with "#> " have no default: remove "#> " and fill them in. All other values are the defaults.
# docs/site-file.md explains every key. Labels and columns are public: agree on them, never read them off the data.
schema = 1
name = "NAME"

[data]
#> id = "notes-2026"             # names this data for people; spending follows the units, not the name
#> path = "/data/notes.csv"      # CSV, TSV, JSON (lines) or Parquet, also .gz; relative paths count from this folder
#> text = "note"                 # one column, or a list of two that are read as a pair
#> label = "diagnosis"
#> nominal_units = 1000          # a round public number of patients (or records), near the true one
# unit = "patient_id"            # the column whose value is protected as a whole; needs policy.unit = "patient"
# record_id = "note_id"          # with policy.unit = "record": a lasting id of each row, so that spending follows rows

[task]
kind = "classification"
#> labels = ["lung", "skin"]     # the public labels of the task, in its order

[model]
pooling = "mean"                 # or "cls"; part of a model's fingerprint
max_tokens = 128                 # longer texts are cut

[policy]
#> unit = "record"               # what privacy protects: "record", or "patient" with data.unit
#> models = []                   # fingerprints of allowed base models; `fedward-client fetch-model` prints them
methods = ["core", "lora"]
target_modules = ["query", "key", "value"]
max_rank = 64

# What one run may cost, and what all runs together may cost for the life of the data. The life budget, the filter and
# the unit are fixed when the ledger is opened: nobody can raise them afterwards.
#> run_epsilon = 8.0
#> run_delta = 1e-5              # below 1 / units
#> life_epsilon = 16.0
#> life_delta = 1e-4             # below 1 / units
filter = "sum"                   # or "rdp", with rdp_order
# rdp_order = 16

max_steps = 10_000
max_sampling_rate = 1.0
max_clip_norm = 100.0
max_records_per_unit = 64
max_update_bytes = 268_435_456
validation_fraction = 0.05       # of the units, for metrics alone; a plan must agree. Changing it moves units over
minimum_units = 20               # with fewer units this site does not train; checked here, never answered
hours = []                       # for example ["19:00-06:30"], local time; empty: always
metrics_may_leave = true         # noisy evaluations, paid from the same budget
coordinator_states_min_sites = 1 # what the coordinator must state; kept as evidence, no privacy rests on it
waivers = []                     # names of promises that this site gives up; written into every certificate

[network]
release_at = "slot"              # or "ready": at once, and then the time of a reply tells the coordinator of the batch
slot_s = 30                      # seconds; longer than a round takes, so that every reply leaves after one slot
door = ""                        # folder of the socket between trainer and courier; empty: door/ in this folder

[coordinator]
# from the operator, 64 hex digits or base64; compare the fingerprint that `check` prints on another channel
#> public_key = "SOMEONE"
""".replace("SOMEONE", _SOMEONE)
