"""Every scenario runs, small: the same file with fewer sites, records and rounds, and a tiny base."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from fedward_common.errors import ConfigError
from fedward_simulations import scenarios
from fedward_simulations.cli import main
from fedward_simulations.sites.faults import Temper, tempers
from support.shared import shared_rows
from support.tiny import tiny_base

DOCS = Path(__file__).parents[2] / "docs" / "scenarios.md"
BOTH_STAGES = ("stages.head.rounds=3", "stages.head.evaluate_every=3", "stages.adapter.rounds=1",
               "stages.adapter.evaluate_every=1")  # fmt: skip
HEAD_ALONE = ("stages.head.rounds=4",)
SHARED = ("partition.minimum_units=5", "privacy.delta=1e-4")
SMALL: dict[str, tuple[str, ...]] = {
    "icu-regions": (*BOTH_STAGES, *SHARED),
    "nine-nih-sites": (*BOTH_STAGES, *SHARED),
    "poisoned-site": ("data.train=icd10cm:420", "partition.sites=3", *BOTH_STAGES),
    "ten-hospitals": ("data.train=icd10cm:420", "partition.sites=3", *BOTH_STAGES),
    "thousand-sites": ("data.train=icd10cm:900", "partition.sites=60", "rounds.cohort=6", "rounds.minimum=3",
                       *HEAD_ALONE),
    "two-hundred-clinics": ("data.train=icd10cm:500", "partition.sites=20", "stages.head.evaluate_every=2",
                            *HEAD_ALONE),
    "unreliable-sites": ("data.train=icd10cm:800", "partition.minimum_units=5", "partition.alpha=5.0", *BOTH_STAGES),
}  # fmt: skip


def test_every_scenario_has_a_name_a_line_and_a_chapter() -> None:
    assert scenarios.names() == sorted(SMALL)
    chapters = re.findall(r"^## `@([a-z-]+)`", DOCS.read_text(encoding="utf-8"), flags=re.M)
    assert sorted(chapters) == scenarios.names()
    for name in scenarios.names():
        assert scenarios.load(name).name == name
        assert 20 < len(scenarios.describe(name)) <= 110 and not scenarios.describe(name).startswith("#")


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no scenario @nowhere") as caught:
        scenarios.load("nowhere")
    assert "@ten-hospitals" in caught.value.hint
    with pytest.raises(ConfigError, match=r"@ten-hospitals: privacy\.epsilon"):
        scenarios.load("ten-hospitals", overrides=["privacy.epsilon=-1"])


def test_the_unreliable_and_the_poisoned_are_who_the_documentation_says() -> None:
    names = [f"site-{number:02}" for number in range(1, 21)]
    config = scenarios.load("unreliable-sites")
    kinds = tempers(config.simulation, seed=config.seed, sites=names)
    assert [list(kinds.values()).count(kind) for kind in Temper] == [15, 2, 2, 1, 0]
    config = scenarios.load("poisoned-site")
    kinds = tempers(config.simulation, seed=config.seed, sites=names[:10])
    assert kinds["site-04"] is Temper.POISONED and "`site-04`" in DOCS.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("model") / "base").base


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(SMALL))
def test_it_runs(
    name: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"model.base={base}", "model.max_tokens=16", "adapter.rank=2", *SMALL[name]]
    shared = re.match(r"../shared/data/(\w+)\.train", scenarios.load(name).data.train)
    if shared:
        for part in ("train", "test"):
            settings.append(f"data.{part}={shared_rows(f'{shared[1]}.{part}.jsonl.gz', tmp_path)}")
    options = [option for setting in settings for option in ("--set", setting)]
    monkeypatch.setattr(
        sys, "argv", ["fedward-sim", "run", f"@{name}", "--json", "--out", str(tmp_path / "o"), *options]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 0, printed.err
    summary = json.loads(printed.out.splitlines()[-1])
    assert summary["name"] == name and 0 < summary["epsilon"] <= 8.0
    assert summary["rounds"] == scenarios.load(name, overrides=settings).total_rounds
