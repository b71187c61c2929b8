from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_common.errors import InputError
from fedward_server.bundle import Bundle
from fedward_simulations.cli import main
from fedward_simulations.demo import quick_config
from fedward_simulations.engines import Computing, Engine
from fedward_simulations.run import run
from support.federation import small_bench
from support.tiny import tiny_base
from support.watch import Recorder

ROOT = Path(__file__).parents[2]
FEDWARD_SIM = [sys.executable, "-m", "fedward_simulations"]
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries: a command must show none, see below

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["fedward-sim", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert stopped.value.code == 0, printed.err
        return printed.out

    return call


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick demo run as a person starts it: another process, no terminal."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    done = subprocess.run([*FEDWARD_SIM, "demo", "--quick", "--out", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert len(re.findall(r"^round ", done.stdout, flags=re.M)) == quick_config().total_rounds
    assert "commonest label" in done.stdout
    return out


def test_the_quick_demo_leaves_a_whole_run(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    assert summary["sites"] == 2
    assert 7.9 < summary["epsilon"] <= 8
    assert summary["delta"] == 1e-5


def test_an_earlier_demo_is_moved_aside_and_json_is_one_object_a_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("precious")
    rows = [json.loads(line) for line in command("demo", "--quick", "--json", "--out", tmp_path / "demo").splitlines()]
    assert (tmp_path / "demo.1" / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "demo" / "summary.json").exists()
    assert [row["event"] for row in rows if row["event"] == "round"] == ["round"] * quick_config().total_rounds
    assert rows[-1]["event"] == "summary"


def test_predict_names_a_chapter_and_its_probability(command: Command, demo: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("acute bronchitis\nfracture of femur\n")
    lines = command("predict", demo, "--file", tmp_path / "texts.txt").splitlines()
    assert len(lines) == 2
    row = json.loads(command("predict", demo, "--text", "acute bronchitis", "--json"))
    assert row["label"].startswith("Chapter")
    assert 0 < row["probability"] <= 1
    assert lines[0].startswith(f"{row['probability']:.3f}  {row['label']}")


def test_eval_on_a_file(command: Command, demo: Path, tmp_path: Path) -> None:
    labels = json.loads((demo / "adapter" / "labels.json").read_text())
    rows = [{"text": f"disease number {n}", "label": labels[n % 3]} for n in range(12)]
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    metrics = json.loads(command("eval", demo, "--data", file, "--json"))
    assert {"accuracy", "macro_f1", "majority_accuracy", "per_class", "records"} == set(metrics)
    assert metrics["majority_accuracy"] == pytest.approx(4 / 12)
    assert set(metrics["per_class"]) == set(labels[:3])
    assert "macro" in command("eval", demo, "--data", file).lower()


def test_prepare_makes_a_bundle_for_a_server_without_torch(command: Command, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base").base
    (tmp_path / "run.toml").write_text(
        f'schema = 1\nname = "wards"\n[model]\nbase = "{base}"\n[task]\nlabels = ["lung", "skin"]\n'
        '[data]\ntrain = "there-is-no-such.csv"\n[privacy]\ndelta = 1e-4\n'
    )
    out = tmp_path / "bundles" / "wards"
    told = command("prepare", tmp_path / "run.toml", "--out", out, "--set", "adapter.rank=2")
    assert f"fedward-server run {out}" in told
    bundle = Bundle.load(out)
    assert bundle.run_id in told
    assert (bundle.config.adapter.rank, bundle.spec.rank) == (2, 2)
    facts = json.loads(command("prepare", tmp_path / "run.toml", "--out", tmp_path / "again", "--json"))
    assert facts["name"] == "wards"
    assert facts["run_id"] != bundle.run_id


def test_report_draws_the_plots_again(command: Command, demo: Path) -> None:
    for plot in (demo / "plots").iterdir():
        plot.unlink()
    printed = command("report", demo).split()
    assert {Path(p).name for p in printed} == {"accuracy.png", "epsilon.png", "bytes.png"}
    assert all(Path(p).stat().st_size > 5000 for p in printed)


def test_inspect_writes_a_run_file_that_runs(command: Command, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base").base
    rows = [
        f"{'cough and fever' if n % 2 else 'burn of the skin'} {n},{'lung' if n % 2 else 'skin'}" for n in range(400)
    ]
    (tmp_path / "wards.csv").write_text("\n".join(["note,organ", *rows]))
    shown = command("inspect", tmp_path / "wards.csv", "--label", "organ", "--write", tmp_path / "run.toml")
    assert "note" in shown
    assert "derived from the data" in shown
    out = tmp_path / "out"
    command("run", tmp_path / "run.toml", "--out", out, "--lines", "--set", f"model.base={base}", "--set",
            "adapter.rank=4", "--set", "stages.head.rounds=20", "--set", "stages.adapter.rounds=1")  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"] > summary["majority_accuracy"]
    assert "model.base" not in (out / "run.toml").read_text()
    assert base in (out / "run.toml").read_text()


def test_inspect_draws_the_partition_of_a_run_file_of_a_scenario_or_of_a_bare_file(
    command: Command, tmp_path: Path
) -> None:
    rows = [f"cough and fever on day {n},{'lung' if n % 2 else 'skin'}" for n in range(400)]
    (tmp_path / "wards.csv").write_text("\n".join(["note,organ", *rows]))
    command("inspect", tmp_path / "wards.csv", "--write", tmp_path / "run.toml")
    shown = {
        command("inspect", what, "--plot", tmp_path / f"{number}.png", "--set", "partition.sites=4")
        for number, what in enumerate([tmp_path / "run.toml", "@ten-hospitals", tmp_path / "wards.csv"], start=1)
    }
    for text in shown:
        assert "dirichlet, alpha 0.5: 4 sites" in text and "units at several sites: 0" in text
        assert "derived from the data" in text
    assert all((tmp_path / f"{n}.png").read_bytes().startswith(b"\x89PNG") for n in (1, 2, 3))
    assert "4 sites" in command("inspect", "@ten-hospitals", "--set", "partition.sites=4")


def test_scenarios_are_listed_with_a_line_each(command: Command) -> None:
    lines = command("scenarios").splitlines()
    assert len(lines) == 7 and all(re.match(r"@[a-z-]+ +[A-Z]\S* \S+", line) for line in lines)


def test_compare_adds_head_only_and_no_privacy(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "d"
    printed = command("demo", "--quick", "--lines", "--compare", "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["comparison"]) == {"head only", "no privacy"}
    alone = json.loads((out / "compare" / "head-only" / "summary.json").read_text())
    assert alone["epsilon"] == pytest.approx(summary["epsilon"], rel=5e-3)
    assert "no privacy" in printed


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_resume_gives_the_same_adapter(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        [*FEDWARD_SIM, "demo", "--quick", "--lines", "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("round"):
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"fedward-sim run --resume {out}" in errors
    done = subprocess.run([*FEDWARD_SIM, "run", "--resume", out, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    expected = json.loads((demo / "summary.json").read_text())
    assert summary["adapter_digest"] == expected["adapter_digest"]
    assert summary["epsilon"] == expected["epsilon"]


@pytest.mark.parametrize(
    ("named", "expected"),
    [([], Computing(engine=Engine.SEQUENTIAL, device="cpu")), (["--engine", "cohort"], Computing())],
)
def test_a_stopped_run_goes_on_as_it_was_computed_unless_something_else_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: list[str], expected: Computing
) -> None:
    out, seen = tmp_path / "stopped", []
    computing = Computing(engine=Engine.SEQUENTIAL, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        run(small_bench(tmp_path), out=out, view=Recorder(stop_after=1), computing=computing)

    def check(self: Computing, config: object) -> None:
        seen.append(self)
        raise InputError("far enough", hint="go home")

    monkeypatch.setattr(Computing, "check", check)
    monkeypatch.setattr(sys, "argv", ["fedward-sim", "run", "--resume", str(out), *named])
    with pytest.raises(SystemExit):
        main()
    assert seen == [expected]


def test_an_error_that_nobody_foresaw_shows_no_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("patient 17 has measles")

    monkeypatch.setattr("fedward_common.config.RunConfig.load", fail)
    monkeypatch.setattr(sys, "argv", ["fedward-sim", "run", "wards.toml"])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert "internal error of type RuntimeError at cli.py:" in printed.err
    assert "measles" not in printed.out + printed.err


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "nowhere.toml"]])
def test_help_and_early_errors_answer_fast(arguments: list[str]) -> None:
    best = min(_seconds(arguments) for _ in range(3))
    assert best < 1.5


def _seconds(arguments: list[str]) -> float:
    start = os.times()
    subprocess.run([*FEDWARD_SIM, *arguments], capture_output=True, check=False)
    end = os.times()  # CPU time of the child: the machine may be busy with other tests
    return end.children_user + end.children_system - start.children_user - start.children_system


def snippet() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- snippet: load-adapter -->\s*```python\n(.*?)```\s*<!-- /snippet -->", text, flags=re.S)
    assert found
    return found.group(1)


def test_the_readmes_snippet_gives_the_same_logits_without_fedward(demo: Path) -> None:
    code = snippet()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    assert "fedward" not in code
    from fedward_common.config import ModelConfig
    from fedward_common.modeling.base import locate
    from fedward_simulations.results.finished import FinishedRun

    base = locate(ModelConfig(base="minilm"))
    code = re.sub(r"(?m)^folder = .*$", f"folder = {str(demo / 'adapter')!r}", code)
    code = re.sub(r"(?m)^base = .*$", f"base = {str(base)!r}", code)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    finished = FinishedRun.open(demo)
    ours = finished.logits([(text,) for text in names["texts"]])
    np.testing.assert_allclose(names["logits"].detach().numpy(), ours, atol=1e-4)
