"""Ready run files for the situations that a federation meets; docs/scenarios.md says what each is for.

A scenario is an ordinary run file whose first line is its description. ``fedward-sim run @NAME`` runs one.

Example:
    >>> "ten-hospitals" in names(), describe("ten-hospitals")
    (True, 'Ten hospitals code diagnoses: the demo, label skew of a Dirichlet draw')
    >>> load("ten-hospitals").partition.sites
    10
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import PurePath

from fedward_common.config import RunConfig
from fedward_common.errors import ConfigError

__all__ = ["describe", "load", "names"]

SUFFIX = ".toml"


def names() -> list[str]:
    """All scenarios, sorted."""
    found = [entry.name for entry in resources.files(__package__ or "").iterdir()]
    return sorted(name.removesuffix(SUFFIX) for name in found if PurePath(name).suffix == SUFFIX)


def describe(name: str) -> str:
    """A scenario in one line: the first of its file."""
    return _text(name).split("\n", 1)[0].removeprefix("# ")


def load(name: str, *, overrides: Sequence[str] = ()) -> RunConfig:
    """A scenario's run file.

    Args:
      name: without the leading @.
      overrides: ``a.b=value`` as given to ``--set``.

    Raises:
      ConfigError: no such scenario, or a wrong override.
    """
    return RunConfig.from_toml(_text(name), overrides=overrides, source=f"@{name}")


def _text(name: str) -> str:
    if name not in names():
        raise ConfigError(f"there is no scenario @{name}", hint=f"there are @{', @'.join(names())}")
    return resources.files(__package__ or "").joinpath(f"{name}{SUFFIX}").read_text(encoding="utf-8")
