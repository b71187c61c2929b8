"""From a sweep file to its jobs: every point's run file made and checked before anything runs.

A job's name is a digest of its whole run file, so that a finished job is found again whatever the sweep around it
became, and a job under another run file has another name. This module reads no data and loads no model.

Example:
    >>> run = {"data": {"train": "notes.csv"}, "task": {"labels": ["yes", "no"]}}
    >>> file = SweepFile.model_validate({"run": run, "seeds": [0, 1], "grid": {"privacy.epsilon": [1.0, 8.0]}})
    >>> plan = Plan.of(file, folder=Path("."), source="sweep.toml")
    >>> [(job.point.label, job.seed) for job in plan.jobs]
    [('privacy.epsilon=1.0', 0), ('privacy.epsilon=1.0', 1), ('privacy.epsilon=8.0', 0), ('privacy.epsilon=8.0', 1)]
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import ValidationError

from fedward_common.config import RunConfig
from fedward_common.errors import ConfigError
from fedward_common.strict import Section, explain
from fedward_simulations.sweep.file import SweepFile

__all__ = ["Job", "Plan", "Point"]

MOST_JOBS = 10_000
DIGITS = 16  # of a digest in a name
HINT = "docs/run-file.md lists every key with its range"
OWN = {
    "seed": "give `seeds = [0, 1, 2]` at the head of the sweep file",
    "schema": "leave it to the run file",
    "name": "leave it to the run file",
    "output": "a job's folder is the sweep's to choose",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of the swept values. ``number`` counts from 1; ``label`` names what the sweep file set."""

    number: int
    label: str
    values: Mapping[str, Any]  # of every swept path, also where this point keeps the run file's own


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a point under a seed."""

    point: Point
    seed: int
    config: RunConfig

    @cached_property
    def name(self) -> str:
        """The head of the run file's digest."""
        return self.config.digest[:DIGITS]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a sweep will do.

    Guarantees:
      - A job's name is the same in every plan that holds its run file, and of no other run file.
      - No two jobs are the same run.
    """

    name: str
    paths: tuple[str, ...]
    points: tuple[Point, ...]
    jobs: tuple[Job, ...]
    per_site: bool

    @classmethod
    def load(cls, path: Path) -> tuple[Self, SweepFile]:
        """The plan of a sweep file on disk, and the file.

        Raises:
          ConfigError: a key, path or value of the sweep file or of its run file is wrong.
        """
        file = SweepFile.load(path)
        return cls.of(file, folder=path.parent, source=str(path)), file

    @classmethod
    def of(cls, file: SweepFile, *, folder: Path, source: str) -> Self:
        """The plan of a checked sweep file.

        Args:
          file: the sweep file.
          folder: from which ``run`` counts.
          source: the file's name in errors.

        Raises:
          ConfigError: a path that the run file lacks, a value that it refuses, two equal points, too many jobs.
        """
        base = _base(file.run, folder=folder, source=source)
        seeds = file.seeds or (base.seed,)
        settings = list(_settings(file))
        if len(settings) * len(seeds) > MOST_JOBS:
            raise ConfigError(
                f"{source}: {len(settings) * len(seeds)} runs are too many for a sweep",
                hint=f"at most {MOST_JOBS}: shorten the grid or the seeds",
            )
        paths = tuple(dict.fromkeys(path for setting in settings for path in setting))
        jobs = [
            Job(point=point, seed=seed, config=config.model_copy(update={"seed": seed}))
            for point, config in _points(base, settings, paths, source)
            for seed in seeds
        ]
        _check_distinct(jobs, source)
        points = tuple(dict.fromkeys(job.point.number for job in jobs))
        by_number = {job.point.number: job.point for job in jobs}
        return cls(
            name=file.name,
            paths=paths,
            points=tuple(by_number[number] for number in points),
            jobs=tuple(jobs),
            per_site=file.per_site,
        )


def _base(run: str | dict[str, Any], *, folder: Path, source: str) -> RunConfig:
    if isinstance(run, str) and run.startswith("@"):
        from fedward_simulations.scenarios import load

        return load(run[1:])
    if isinstance(run, str):
        return RunConfig.load(folder / run)
    try:
        return RunConfig.model_validate(run)
    except ValidationError as error:
        raise explain(error, source=f"{source}: run", model=RunConfig, docs=HINT) from None


def _settings(file: SweepFile) -> Iterator[dict[str, Any]]:
    """What each point sets: the grid's product, then the list; one empty setting where there is neither."""
    if file.grid or not file.points:
        for values in itertools.product(*file.grid.values()):
            yield dict(zip(file.grid, values, strict=True))
    yield from file.points


def _points(
    base: RunConfig, settings: list[dict[str, Any]], paths: tuple[str, ...], source: str
) -> Iterator[tuple[Point, RunConfig]]:
    for number, setting in enumerate(settings, start=1):
        label = ", ".join(f"{path}={_text(value)}" for path, value in setting.items())
        config = _changed(base, setting, source=source, label=label)
        table = config.model_dump(mode="json", by_alias=True)
        yield Point(number=number, label=label, values={path: _at(table, path) for path in paths}), config


def _changed(base: RunConfig, setting: Mapping[str, Any], *, source: str, label: str) -> RunConfig:
    table = base.model_dump(mode="json", by_alias=True) | {"output": None}
    set_by: dict[tuple[str | int, ...], str] = {}
    for path, value in setting.items():
        head, *rest = path.split(".")
        if (hint := OWN.get(head)) is not None:
            raise ConfigError(f"{source}: {path} cannot be swept", hint=hint)
        if rest and head in table and table[head] is None:
            table[head] = _defaults(head)
        place = _put(table, [head, *rest], value, path=path, source=source)
        if lost := [other for known, other in set_by.items() if known[: len(place)] == place]:
            raise ConfigError(f"{source}: {path} undoes {lost[0]} of the same point", hint="leave one of them out")
        set_by[place] = path
    try:
        return RunConfig.model_validate(table)
    except ValidationError as error:
        where = f"{source}: point {label}" if label else source
        raise explain(error, source=where, model=RunConfig, docs=HINT) from None


def _defaults(key: str) -> dict[str, Any] | None:
    """An optional table of the run file as it is where nothing in it is set; None for other keys."""
    kinds = get_args(RunConfig.model_fields[key].annotation)
    table = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
    return table().model_dump(mode="json", by_alias=True) if table else None


def _put(node: Any, keys: list[str], value: Any, *, path: str, source: str) -> tuple[str | int, ...]:
    """Set a value; where it is, however its path was spelled."""
    key = _key(node, keys[0], path=path, source=source)
    if len(keys) == 1:
        node[key] = value
        return (key,)
    return (key, *_put(node[key], keys[1:], value, path=path, source=source))


def _key(node: Any, key: str, *, path: str, source: str) -> str | int:
    if isinstance(node, dict) and key in node:
        return key
    known: list[str] = sorted(node) if isinstance(node, dict) else []
    if isinstance(node, list):
        known = [str(item.get("name", number)) for number, item in enumerate(node) if isinstance(item, dict)]
        if key in known or (key.isdecimal() and int(key) < len(known)):
            return known.index(key) if key in known else int(key)
    listed = f"known keys here: {', '.join(known)}" if known else HINT
    raise ConfigError(f"{source}: the run file has no {path}", hint=listed)


def _at(table: Any, path: str) -> Any:
    """The value at a path of a run file, None where nothing is."""
    node = table
    for key in path.split("."):
        if isinstance(node, list):
            names = [item.get("name") if isinstance(item, dict) else None for item in node]
            place = names.index(key) if key in names else int(key) if key.isdecimal() else len(node)
            node = node[place] if place < len(node) else None
        else:
            node = node.get(key) if isinstance(node, dict) else None
    return node


def _check_distinct(jobs: list[Job], source: str) -> None:
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.config.digest, job)
        if other is not job:
            raise ConfigError(
                f"{source}: points {other.point.number} and {job.point.number} are the same run ({job.point.label})",
                hint="leave one of them out; more seeds repeat a point",
            )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
