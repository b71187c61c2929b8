from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedward_common.errors import ConfigError
from fedward_simulations.sweep.file import SweepFile


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('run = "r.toml"\nsedes = [1]', "unknown key sedes"),
        ("name = 'a'", "run is missing"),
        ('run = "r.toml"\n[grid]\nprivacy.epsilon = 3', "grid: privacy.epsilon should be a list of at least one value"),
        (
            'run = "r.toml"\n[grid]\n"privacy.epsilon" = []',
            "grid: privacy.epsilon should be a list of at least one value",
        ),
        ('run = "r.toml"\n[[list]]\nadapter.rank = 1\n[[list]]\n', "list: point 2 is empty"),
        ('run = "r.toml"\nseeds = []', "seeds should hold at least one integer"),
        ("run = 3", "should be the path of a run file"),
        ('run = "r.toml"\nseeds = [1, 1]', "seeds must be distinct"),
        ('run = "r.toml"\nseeds = [-1]', "seeds.0 should be greater"),
        ('run = "r.toml"\nseeds = [true]', "seeds.0 should be a valid integer"),
        ('run = "r.toml"\nschema = 2', "schema 2 is not known"),
        ('run = "r.toml"\nprocesses = 0', "processes should be greater"),
        ("run = = 1", "is not TOML"),
        (
            'run = "r.toml"\n[grid]\nprivacy.epsilon = [1.0]\n"privacy.epsilon" = [8.0]',
            "grid: privacy.epsilon is there twice",
        ),
        ('run = "r.toml"\n[[list]]\nadapter.rank = 1\n"adapter.rank" = 2', "list: adapter.rank is there twice"),
    ],
)
def test_a_wrong_file_is_one_line_and_a_hint(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"sweep\.toml") as error:
        SweepFile.load(tmp_path / "sweep.toml")
    assert what in str(error.value)
    assert "\n" not in str(error.value) + error.value.hint
    assert error.value.hint


def test_an_unknown_key_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text('run = "r.toml"\npoints = []')
    with pytest.raises(ConfigError) as error:
        SweepFile.load(tmp_path / "sweep.toml")
    assert error.value.hint == "known keys here: grid, list, name, per_site, processes, run, schema, seeds"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read sweep file"):
        SweepFile.load(tmp_path / "nowhere.toml")


def test_dotted_keys_may_be_quoted_or_not(tmp_path: Path) -> None:
    quoted, plain = tmp_path / "a.toml", tmp_path / "b.toml"
    quoted.write_text('run = "r.toml"\n[grid]\n"stages.head.rounds" = [1]\n[[list]]\n"privacy.epsilon" = 3.0')
    plain.write_text('run = "r.toml"\n[grid]\nstages.head.rounds = [1]\n[[list]]\nprivacy.epsilon = 3.0')
    assert SweepFile.load(quoted) == SweepFile.load(plain)


def test_the_example_of_the_documentation_is_a_sweep_file() -> None:
    text = (Path(__file__).parents[3] / "docs" / "sweep.md").read_text(encoding="utf-8")
    file = SweepFile.model_validate(tomllib.loads(text.split("```toml\n")[1].split("```")[0]))
    assert (len(file.grid), len(file.points), len(file.seeds)) == (2, 1, 3)
    for key, field in SweepFile.model_fields.items():
        assert f"| `{field.alias or key}` |" in text
