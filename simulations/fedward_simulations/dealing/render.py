"""A derived run file as text: TOML with short comments, and first lines that say where it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fedward_common.config import PartitionMethod, RunConfig
from fedward_simulations.dealing.inspect import Summary

__all__ = ["render_toml"]

HEADER = """\
# Derived from the data by `fedward-sim inspect`: the labels and the choice of columns reveal something about it.
# For a real federation labels and columns are agreed beforehand, without a look at any site's records.
# Keys that are not here have the defaults of docs/run-file.md.
"""
# these are written even where they have their default, because a first user will want to turn them
COMMENTS = {
    "schema": "",
    "name": "names the output folder",
    "seed": "the same seed repeats the simulation bit by bit",
    "data.train": "",
    "data.test_fraction": "share of the units set aside for testing before sites are made",
    "data.text": "one column, or two that are read as a pair",
    "data.label": "",
    "data.site": "the partition below follows this column",
    "data.unit": "all records with one value here are protected together",
    "task.labels": "",
    "partition.method": "dirichlet (label skew), iid, pathological, quantity, or natural (data.site)",
    "partition.alpha": "smaller: labels more unequal between sites",
    "partition.sites": "virtual sites",
    "partition.minimum_units": "fewer at a site is an error",
    "privacy.unit": "what is protected: record or patient",
    "privacy.epsilon": "for the whole run at each site, metrics included",
    "privacy.delta": "well below 1 / units",
    "privacy.max_records_per_unit": "records of one unit that enter a step",
}
DIRICHLET_ONLY = ("partition.alpha", "partition.sites")
LINE = 100


def render_toml(config: RunConfig, summary: Summary) -> str:
    """Write a run file with short comments.

    Args:
      config: what to write; values at their default are left out, unless a first user will want to turn them.
      summary: of the file that ``config`` was derived from.

    Returns:
      TOML.

    Guarantees:
      - ``RunConfig.from_toml`` reads it back to an equal config.
      - Its first lines say that it is derived from the data.
    """
    everything = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    changed = config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    described = COMMENTS | {f"data.{key}": note for key, note in _notes(config, summary).items()}
    table = _kept(everything, changed, "", lambda path: path in described and not _idle(path, config))
    return HEADER + "\n".join(_lines(table, "", described)) + "\n"


def _notes(config: RunConfig, summary: Summary) -> dict[str, str]:
    known = {column.name for column in summary.columns}
    words = [f"{summary.column(name).median_words:.0f}" for name in config.data.text if name in known]
    notes = {"train": f"{summary.rows} rows"} if known else {}
    if words:
        notes["text"] = f"{COMMENTS['data.text']}; median length {' and '.join(words)} words"
    return notes


def _idle(path: str, config: RunConfig) -> bool:
    return path in DIRICHLET_ONLY and config.partition.method is PartitionMethod.NATURAL


def _kept(
    everything: dict[str, Any], changed: dict[str, Any], above: str, wanted: Callable[[str], bool]
) -> dict[str, Any]:
    """The changed and the wanted keys, in the order of the schema."""
    result: dict[str, Any] = {}
    for key, value in everything.items():
        path = f"{above}{key}"
        if isinstance(value, dict):
            inner = _kept(value, changed.get(key, {}), f"{path}.", wanted)
            result |= {key: inner} if inner else {}
        elif key in changed or wanted(path):
            result[key] = value
    return result


def _lines(table: dict[str, Any], above: str, comments: Mapping[str, str]) -> list[str]:
    """Plain keys first, then tables, then lists of tables, as TOML demands."""
    lines: list[str] = []
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) and not _holds_tables(value)}
    for key, value in plain.items():
        comment = comments.get(f"{above}{key}", "")
        lines.append(f"{key} = {_value(value)}" + (f"  # {comment}" if comment else ""))
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *_lines(value, f"{key}.", comments)]
    for key, value in table.items():
        for row in value if _holds_tables(value) else ():
            lines += ["", f"[[{key}]]", *_lines(row, f"{key}.", comments)]
    return lines


def _holds_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _value(value: Any) -> str:
    if isinstance(value, list):
        flat = f"[{', '.join(_value(item) for item in value)}]"
        rows = "".join(f"    {_value(item)},\n" for item in value)
        return flat if len(flat) <= LINE else f"[\n{rows}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
