from __future__ import annotations

from fedward_simulations.dealing.inspect import summarise
from fedward_simulations.watching.tables import columns_lines, metrics_lines


def test_columns_show_kind_counts_and_common_values() -> None:
    table = {
        "note": [f"the patient of day {day} has a cough" for day in range(60)],
        "flu": [*["yes"] * 40, *["no"] * 18, "", ""],
    }
    assert columns_lines(summarise(table)) == [
        "60 rows",
        "",
        "kind      distinct  empty  median words  column",
        "text            60      0             8  note",
        "category         2      2             1  flu",
        "",
        "Most common values of flu (2 in all)",
        "  40  yes",
        "  18  no",
    ]


def test_one_row_is_one_row() -> None:
    assert columns_lines(summarise({"flu": ["yes"]}))[0] == "1 row"


def test_metrics_show_overall_figures_and_every_class() -> None:
    metrics = {
        "accuracy": 0.75,
        "macro_f1": 0.7,
        "majority_accuracy": 0.5,
        "records": 1200,
        "per_class": {"no": {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 1000}},
    }
    assert metrics_lines(metrics) == [
        "accuracy         0.7500",
        "macro F1         0.7000",
        "commonest label  0.5000",
        "records          1,200",
        "",
        "precision  recall      f1  support  label",
        "   1.0000  0.5000  0.6667    1,000  no",
    ]


def test_metrics_without_classes_are_the_overall_figures() -> None:
    assert metrics_lines({"accuracy": 1.0}) == ["accuracy         1.0000"]


def test_a_name_cannot_fake_a_line() -> None:
    summary = summarise({"flu\nx": ["a\x1b[2J", "b"] * 10})
    assert all(line.isprintable() for line in columns_lines(summary))
