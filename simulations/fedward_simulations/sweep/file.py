"""The sweep file: which run, which values, which seeds. A strict table that knows nothing of the run file's keys.

Example:
    >>> grid = {"privacy": {"epsilon": [1.0, 8.0]}, "server.weights": ["equal"]}
    >>> SweepFile.model_validate({"run": "run.toml", "grid": grid}).grid
    {'privacy.epsilon': [1.0, 8.0], 'server.weights': ['equal']}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, StrictBool, StrictInt, field_validator, model_validator

from fedward_common.strict import Section, parse, read_text

__all__ = ["SweepFile"]

SCHEMA = 1
DOCS = "docs/sweep.md lists every key"
Seed = Annotated[StrictInt, Field(ge=0, lt=2**63)]


class SweepFile(Section):
    """A whole sweep file.

    ``run`` is the path of a run file, counted from the sweep file's folder, a scenario (``@NAME``), or a run file as a
    table. ``grid`` holds lists whose product is swept; each ``[[list]]`` is one point more. No ``seeds``: the run
    file's own.
    ``per_site`` measures each virtual site's validation units exactly, outside every guarantee.
    """

    model_config = ConfigDict(populate_by_name=False)  # `points` is no second name of `list`

    schema_version: Annotated[StrictInt, Field(alias="schema")] = SCHEMA
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "sweep"
    run: Any
    seeds: tuple[Seed, ...] = ()
    processes: Annotated[StrictInt, Field(ge=1, le=256)] = 1
    per_site: StrictBool = False
    grid: dict[str, Any] = Field(default_factory=dict)
    points: Annotated[tuple[dict[str, Any], ...], Field(alias="list")] = ()

    @field_validator("run")
    @classmethod
    def _path_or_table(cls, value: object) -> object:
        if not isinstance(value, str | dict) or not value:
            raise ValueError("should be the path of a run file, or a run file as a table")
        return value

    @field_validator("seeds")
    @classmethod
    def _some(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("should hold at least one integer; without the key the run file's own seed is used")
        return seeds

    @field_validator("grid")
    @classmethod
    def _lists(cls, grid: dict[str, Any]) -> dict[str, Any]:
        flat = _distinct(grid)
        for path, values in flat.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{path} should be a list of at least one value")
        return flat

    @field_validator("points")
    @classmethod
    def _values(cls, points: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        flat = tuple(_distinct(point) for point in points)
        if not all(flat):
            raise ValueError(f"point {flat.index({}) + 1} is empty: give it at least one value")
        return flat

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.schema_version != SCHEMA:
            raise ValueError(f"schema {self.schema_version} is not known; this version reads schema {SCHEMA}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must be distinct")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a sweep file from disk.

        Raises:
          ConfigError: it cannot be read, is not TOML, or the dotted path of its first wrong key or value.
        """
        text = read_text(path, what="sweep file", hint=DOCS)
        return parse(cls, text, source=str(path), docs=DOCS, example=DOCS)


def _distinct(table: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for path, value in _flat(table):
        if path in flat:
            raise ValueError(f"{path} is there twice, in two spellings")
        flat[path] = value
    return flat


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    # `privacy.epsilon = [1.0]` and `"privacy.epsilon" = [1.0]` are the same to a person, and here
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
