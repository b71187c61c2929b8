from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedward_client.round import Site
from fedward_client.training import LocalTrainer
from fedward_common.errors import OutputError, RoundAbandoned
from fedward_common.privacy.accounting import epsilon
from fedward_common.round import Code
from fedward_server.checkpoint import Checkpoints
from fedward_simulations.engines import Computing, Engine
from fedward_simulations.results.folders import read_stopped
from fedward_simulations.run import resume, run
from fedward_simulations.sites.ledgers import LedgerFile
from support.federation import small_bench
from support.watch import Recorder

ONE_BY_ONE = Computing(engine=Engine.SEQUENTIAL)  # every message passes Site.answer, where tests can listen


def test_a_run_directory_holds_what_people_use(tmp_path: Path) -> None:
    view = Recorder()
    summary = run(small_bench(tmp_path), out=tmp_path / "run", view=view)
    out = tmp_path / "run"
    for name in ("run.toml", "rounds.jsonl", "summary.json", "bundle/bundle.json", "adapter/adapter_config.json",
                 "adapter/adapter_model.safetensors", "adapter/head.safetensors", "adapter/README.md",
                 "plots/accuracy.png", "plots/epsilon.png", "plots/bytes.png"):  # fmt: skip
        assert (out / name).stat().st_size > 0, name
    assert summary == json.loads((out / "summary.json").read_text())
    assert {
        "accuracy", "macro_f1", "majority_accuracy", "epsilon", "delta", "unit", "rounds", "sites", "bytes_up",
        "bytes_down", "seconds", "adapter_digest", "base_fingerprint", "seed",
    } <= set(summary)  # fmt: skip
    rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert rows[1]["sites"] is not None
    assert rows[0]["sites"] is None
    assert rows[0]["evaluation"]["accuracy"] >= 0
    assert summary["bytes_up"] == sum(row["bytes_up"] for row in rows) > 0
    assert "seeded_randomness" in (out / "adapter" / "README.md").read_text()


def test_epsilon_comes_from_events_and_meets_the_target_from_below(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    summary = run(bench, out=tmp_path / "run", view=Recorder())
    state = json.loads((tmp_path / "run" / "checkpoints" / "round-0004" / "state.json").read_text())
    ledgers = LedgerFile(tmp_path / "run" / "ledgers.jsonl", end=state["content"]["extra"]["ledgers_end"]).entries
    assert 7.98 < summary["epsilon"] <= 8.0
    assert set(ledgers) == {"site-1", "site-2"}
    assert [entry["sequence"] for entry in ledgers["site-1"]] == list(range(1, len(ledgers["site-1"]) + 1))


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(tmp_path: Path) -> None:
    digests = [
        run(small_bench(tmp_path, seed=seed), out=tmp_path / f"run{number}", view=Recorder())["adapter_digest"]
        for number, seed in enumerate((3, 3, 4))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_both_engines_give_the_same_adapter_at_the_same_cost(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, sites=3, units=20)
    both = []
    for engine in (Engine.COHORT, Engine.SEQUENTIAL):
        out = tmp_path / engine.value
        summary = run(bench, out=out, view=Recorder(), computing=Computing(engine=engine, clients=2))
        both.append((summary, Checkpoints(out / "checkpoints").latest(bench.prepared.bundle.spec).state.adapter))
    (ours, adapter), (theirs, other) = both
    assert (adapter - other).l2_norm() <= 1e-5 * (other - bench.prepared.bundle.initial).l2_norm()
    assert ours["epsilon_by_site"] == theirs["epsilon_by_site"]
    assert ours["bytes_up"] == theirs["bytes_up"]


def test_no_plan_expires_because_a_machine_is_slow(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, rounds={"deadline_s": 1e-6})
    assert run(bench, out=tmp_path / "run", view=Recorder())["rounds"] == 4


def test_a_goal_spends_at_no_site_that_is_not_needed(tmp_path: Path) -> None:
    spent = []
    for engine in (Engine.COHORT, Engine.SEQUENTIAL):
        bench = small_bench(tmp_path, sites=4, units=20, rounds={"goal": 2})
        summary = run(bench, out=tmp_path / engine.value, view=Recorder(), computing=Computing(engine=engine))
        spent.append(summary["epsilon_by_site"])
    assert spent[0] == spent[1]
    assert min(spent[0].values()) == 0


def told(folder: Path) -> list[dict[str, Any]]:
    """What a run wrote of its rounds, but for the time it took."""
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{**row, "seconds": None} for row in rows]


@pytest.mark.parametrize("stop", [{"stop_after": 1}, {"stop_after": 3}, {"stop_at_answer": 1}, {"stop_at_answer": 6}])
def test_a_stopped_run_goes_on_bit_identically_at_the_same_cost(tmp_path: Path, stop: dict[str, Any]) -> None:
    whole = run(small_bench(tmp_path), out=tmp_path / "whole", view=Recorder())
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(small_bench(tmp_path), out=out, view=Recorder(**stop))
    stopped = read_stopped(out)
    assert stopped.checkpoint.state.finished < 4
    bench = small_bench(tmp_path)
    bench = type(bench).open(stopped.bundle.config, bench.source, run_id=stopped.bundle.run_id)
    summary = resume(bench, stopped, out=out, view=Recorder())
    assert summary["adapter_digest"] == whole["adapter_digest"]
    assert summary["epsilon"] == whole["epsilon"]
    assert summary["epsilon_by_site"] == whole["epsilon_by_site"]
    rows, expected = (told(folder) for folder in (out, tmp_path / "whole"))
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert rows == expected


def test_resume_refuses_other_data(tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(small_bench(tmp_path), out=out, view=Recorder(stop_after=1))
    stopped = read_stopped(out)
    bench = small_bench(tmp_path)
    changed = type(bench).open(
        stopped.bundle.config, type(bench.source)(sites=bench.source.sites, test=bench.source.test, digest="1" * 64)
    )
    with pytest.raises(OutputError, match="changed since it stopped"):
        resume(changed, stopped, out=out, view=Recorder())


@pytest.mark.parametrize("engine", [Engine.COHORT, Engine.SEQUENTIAL])
def test_one_sites_fault_holds_the_run_there_and_ends_it_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    honest = LocalTrainer.draw

    def faulty(self: LocalTrainer, round: int, *args: Any) -> Any:
        if round == 2 and self.data.records.unit_ids[0].startswith("unit-2"):
            raise RuntimeError("Jane Roe, born 1950")
        return honest(self, round, *args)

    monkeypatch.setattr(LocalTrainer, "draw", faulty)
    view = Recorder()
    run(small_bench(tmp_path), out=tmp_path / "run", view=view, computing=Computing(engine=engine))
    assert view.records[1].refused == {Code.UNAVAILABLE.value: 1}
    assert [record.replied for record in view.records] == [2, 1, 1, 1]
    everything = (tmp_path / "run" / "rounds.jsonl").read_text() + json.dumps(view.notes)
    assert "Jane" not in everything


def test_a_site_that_raises_through_its_door_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Site.answer
    calls: list[bytes] = []

    def crash_once(self: Site, data: bytes) -> bytes:
        calls.append(data)
        if len(calls) == 1:
            raise RuntimeError("Jane Roe")
        return honest(self, data)

    monkeypatch.setattr(Site, "answer", crash_once)
    view = Recorder()
    run(small_bench(tmp_path), out=tmp_path / "run", view=view, computing=ONE_BY_ONE)
    assert view.records[0].dropped == {"no_answer": 1}


def test_too_few_answers_abandon_and_retry_the_round_and_the_adapter_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Site.answer
    calls: list[bytes] = []

    def garbled_twice(self: Site, data: bytes) -> bytes:
        calls.append(data)
        return b"noise on the line" if len(calls) <= 2 else honest(self, data)

    monkeypatch.setattr(Site, "answer", garbled_twice)
    view = Recorder()
    bench = small_bench(tmp_path, rounds={"minimum": 2, "retries": 2})
    run(bench, out=tmp_path / "run", view=view, computing=ONE_BY_ONE)
    first, second = view.records[:2]
    assert (first.abandoned, first.attempt, second.abandoned, second.attempt) == (True, 1, False, 2)
    assert first.adapter_digest == bench.prepared.bundle.initial.digest
    assert first.dropped == {"malformed": 2}


def test_a_run_without_answers_ends_with_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Site, "answer", lambda self, data: b"")
    view = Recorder()
    with pytest.raises(RoundAbandoned, match=re.escape("round 1 found fewer than 1 answers in 3 attempts")):
        run(small_bench(tmp_path, rounds={"retries": 2}), out=tmp_path / "run", view=view, computing=ONE_BY_ONE)
    assert len(view.records) == 3
    assert read_stopped(tmp_path / "run").checkpoint.state.finished == 0


def test_a_retry_costs_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Site.answer
    lost: list[bytes] = []

    def lose_the_first(self: Site, data: bytes) -> bytes:
        reply = honest(self, data)
        lost.append(reply)
        return b"" if len(lost) == 1 else reply

    monkeypatch.setattr(Site, "answer", lose_the_first)
    view = Recorder()
    summary = run(small_bench(tmp_path, rounds={"minimum": 2}), out=tmp_path / "run", view=view, computing=ONE_BY_ONE)
    assert view.records[0].abandoned
    assert lost[0] == lost[2]  # sent again byte for byte
    untouched = run(small_bench(tmp_path), out=tmp_path / "other", view=Recorder(), computing=ONE_BY_ONE)
    assert summary["adapter_digest"] == untouched["adapter_digest"]
    assert summary["epsilon"] == untouched["epsilon"]


def test_epsilon_of_the_events_in_an_update_is_below_the_runs(tmp_path: Path) -> None:
    from fedward_common.codec import decode_reply, new_key
    from fedward_common.round import Update
    from support.federation import plan_bytes, population_of

    operator = new_key()
    bench = small_bench(tmp_path)
    population = population_of(bench, operator)
    reply = decode_reply(
        population.sites["site-1"].answer(plan_bytes(bench, operator)),
        public_key=population.keys["site-1"],
        spec=bench.prepared.bundle.spec.subset(("head",)),
    )
    assert isinstance(reply, Update)
    assert 0 < epsilon(reply.guarantee.events, delta=1e-3) < 8
