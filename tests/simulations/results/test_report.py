from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_common.errors import InputError, OutputError
from fedward_simulations.dealing.deal import Deal
from fedward_simulations.results.report import check_picture, draw_deal, draw_plots, load_rounds
from support.told import SUMMARY, config, record

PNG = b"\x89PNG"


def a_run(folder: Path, *, rounds: int = 6, tail: str = "", summary: dict[str, Any] | None = None) -> Path:
    lines = []
    for number in range(1, rounds + 1):
        sites = {"accuracy": 0.3, "loss": 0.5} if number % 2 == 0 else None
        if number == 3:
            lines.append(json.dumps(asdict(record(number, abandoned=True, evaluation=None))))
        lines.append(json.dumps(asdict(record(number, sites=sites))))
    (folder / "rounds.jsonl").write_text("\n".join(lines) + "\n" + tail, encoding="utf-8")
    (folder / "run.toml").write_text(config().to_toml(), encoding="utf-8")
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def test_every_attempt_is_loaded_in_order(tmp_path: Path) -> None:
    rows = load_rounds(a_run(tmp_path))
    assert [row["round"] for row in rows] == [1, 2, 3, 3, 4, 5, 6]


def test_a_last_line_that_a_stop_cut_short_is_left_out(tmp_path: Path) -> None:
    for tail in ('{"rou', '{"round": 7, "stage": "ad', "\x00", '"round"'):
        assert len(load_rounds(a_run(tmp_path, tail=tail))) == 7


def test_a_broken_line_anywhere_else_is_an_error(tmp_path: Path) -> None:
    a_run(tmp_path, tail='{"rou\n{"round": 7}\n')
    with pytest.raises(OutputError, match=r"line 8 of .* is broken") as caught:
        load_rounds(tmp_path)
    assert caught.value.hint


def test_a_missing_file_says_which_folder_to_give(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no rounds\.jsonl") as caught:
        draw_plots(tmp_path)
    assert "fedward-sim run" in caught.value.hint


def test_a_run_without_a_round_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no round has ended") as caught:
        draw_plots(a_run(tmp_path, rounds=0))
    assert "--resume" in caught.value.hint


def test_each_picture_is_drawn(tmp_path: Path) -> None:
    drawn = draw_plots(a_run(tmp_path, tail='{"rou', summary=SUMMARY))
    assert [path.name for path in drawn] == ["accuracy.png", "epsilon.png", "bytes.png"]
    assert all(path.read_bytes()[:4] == PNG and path.stat().st_size > 10_000 for path in drawn)


def test_what_was_never_written_is_left_out(tmp_path: Path) -> None:
    row = {"round": 1, "bytes_up": 0, "bytes_down": 10}
    (tmp_path / "rounds.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert [path.name for path in draw_plots(tmp_path)] == ["bytes.png"]


def test_strange_names_and_many_sites_are_drawn_without_a_warning(tmp_path: Path) -> None:
    strange = {"a $1 b $2 clinic": 7.9, "東京の病院": 7.5, "x" * 200: 0.1, "x" * 201: 0.0}
    draw_plots(a_run(tmp_path, summary={**SUMMARY, "epsilon_by_site": strange}))
    many = {f"site-{number}": 7.0 + number / 100 for number in range(60)}
    assert len(draw_plots(a_run(tmp_path, summary={**SUMMARY, "epsilon_by_site": many}))) == 3


def test_a_broken_summary_is_named(tmp_path: Path) -> None:
    a_run(tmp_path)
    (tmp_path / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(OutputError, match=r"summary\.json cannot be read"):
        draw_plots(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    a_run(tmp_path)
    (tmp_path / "plots").write_text("in the way", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot write plots"):
        draw_plots(tmp_path)


class TestDeal:
    @pytest.mark.parametrize(("sites", "labels", "shared"), [(1, 2, 0), (10, 21, 3), (1000, 60, 0)])
    def test_a_partition_is_drawn_without_a_warning(self, sites: int, labels: int, shared: int, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        units = generator.integers(1, 90, sites)
        deal = Deal(
            title="dirichlet, alpha 0.5",
            sites=tuple(f"St. $x^{number}$ \u533b\u9662" for number in range(sites)),
            labels=tuple(f"a long name of the label number {number}" for number in range(labels)),
            counts=np.stack([generator.multinomial(count, np.full(labels, 1 / labels)) for count in units]),
            units=units,
            shared=np.minimum(units, shared),
            at_several=shared,
        )
        draw_deal(deal, tmp_path / "sites.picture")
        data = (tmp_path / "sites.picture").read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 20_000

    @pytest.mark.parametrize("name", ["sites.svg", "sites", ".", "png", "sites.png.pdf", ".png"])
    def test_only_a_png_is_drawn(self, name: str) -> None:
        with pytest.raises(InputError, match="no name of a PNG file") as caught:
            check_picture(Path(name))
        assert caught.value.hint == "end it in .png"
        check_picture(Path("a.b/sites.PNG"))

    def test_a_picture_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        one = np.ones(1, np.int64)
        deal = Deal(
            title="iid", sites=("a",), labels=("x",), counts=one[:, None], units=one, shared=0 * one, at_several=0
        )
        with pytest.raises(OutputError, match="cannot write") as caught:
            draw_deal(deal, tmp_path / "nowhere" / "a.png")
        assert "a folder that exists" in caught.value.hint
        (tmp_path / "folder.png").mkdir()
        with pytest.raises(OutputError, match="Is a directory") as caught:
            draw_deal(deal, tmp_path / "folder.png")
        assert "name of a file" in caught.value.hint
