from __future__ import annotations

from pathlib import Path

import pytest

from fedward_simulations.bench import bytes as bytes_bench
from fedward_simulations.bench import overhead, step
from fedward_simulations.bench.__main__ import main
from fedward_simulations.bench.table import Table, machine, middle
from support.federation import small_config
from support.tiny import tiny_base


def numbers(row: tuple[str, ...]) -> list[float]:
    return [float(cell.replace(",", "")) for cell in row[1:]]


def test_overhead_times_every_part_of_a_round() -> None:
    table = overhead.measure(rounds=3, width=32)
    assert len(table.rows) == 9
    assert all(len(row) == len(table.head) for row in table.rows)
    assert all(0 <= fastest <= median for row in table.rows for median, fastest in [numbers(row)[:2]])
    parts, (each, once) = table.rows[:7], table.rows[7:]
    fastest = sum(numbers(row)[1] for row in parts)
    assert numbers(each)[1] + numbers(once)[1] >= fastest - 0.05  # a sum's fastest is no faster than its parts'
    assert "4,162 trained numbers" in table.title


def test_bytes_are_those_of_every_stage_beside_fedavg(tmp_path: Path) -> None:
    config = small_config(tmp_path)  # delta is 1e-3
    table = bytes_bench.measure(config)
    head, adapter, fedavg = table.rows
    assert [row[0] for row in table.rows] == ["head, 2 rounds", "adapter, 2 rounds", "FedAvg of LoRA, fp32"]
    classes, hidden, layers, rank = 3, 32, 4, 4
    trained = {"head": classes * hidden + classes, "adapter": layers * rank**2}
    plain = 4 * (trained["head"] + layers * rank * 2 * hidden)
    assert numbers(fedavg) == [plain, plain, 1.0]
    assert numbers(head)[1] > 4 * trained["head"]
    assert numbers(adapter)[1] > 4 * trained["adapter"]
    assert numbers(head)[0] == pytest.approx(numbers(adapter)[0], abs=100)  # the whole adapter goes down
    assert numbers(head)[0] > 4 * sum(trained.values())


def test_a_step_is_timed_in_pairs(tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "base")
    table = step.measure(pairs=2, model=model)
    assert [row[0] for row in table.rows] == ["private, CPU ms", "plain, CPU ms", "private over plain"]


def test_a_table_is_markdown() -> None:
    table = Table(title="T", head=("a", "b"), rows=(("x|y", "1"),), note="n")
    assert table.markdown() == "## T\n\n| a | b |\n|---|---:|\n| x\\|y | 1 |\n\nn"
    assert middle([2.0, 9.0, 1.0], digits=0) == "2 (1 to 9)"
    assert "Python" in machine()


@pytest.mark.parametrize("arguments", [["data"], ["bytes", "file.csv"], ["nothing"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_read_is_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(tmp_path / "missing.csv")]) == 2
    complaint = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in complaint] == ["fedward", "hint"]
