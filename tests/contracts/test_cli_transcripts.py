"""Every error text that a person can meet, word for word. The transcript is ``cli_errors.txt`` beside this file.

A block is a command line, what it prints on stderr, and its exit code; blocks are separated by blank lines. The files
that the commands name are made by ``lay_out`` below, and no GPU is seen. Running this file as a script prints the
transcript anew.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_simulations.cli import main
from support.tiny import tiny_base
from support.typed import again, check_shape, check_transcript, transcript

TRANSCRIPT = Path(__file__).with_name("cli_errors.txt")
GOOD = """schema = 1
name = "wards"
[model]
base = "base"
[task]
labels = ["lung", "skin"]
[adapter]
rank = 2
[data]
train = "good.csv"
[partition]
sites = 2
minimum_units = 5
[privacy]
delta = 0.001
[[stages]]
name = "head"
train = ["head"]
rounds = 2
"""


def blocks() -> list[tuple[str, str]]:
    return transcript(TRANSCRIPT, "fedward-sim")


def lay_out(folder: Path) -> None:
    """The files that the transcript's commands name."""
    tiny_base(folder / "base")
    rows = [f"{'cough' if n % 2 else 'burn'} number {n},{'lung' if n % 2 else 'skin'}" for n in range(60)]
    table = "\n".join(["text,label", *rows])
    (folder / "good.csv").write_text(table + "\n")
    (folder / "empty_text.csv").write_text(table.replace("cough number 7", "  ") + "\n")
    (folder / "other_label.csv").write_text(table.replace("number 9,lung", "number 9,brain") + "\n")
    (folder / "ragged.csv").write_text(table + "\na,b,c\n")
    (folder / "nothing.csv").write_text("")
    (folder / "data.xlsx").write_bytes(b"PK")
    (folder / "torn.jsonl").write_text('{"text": "a", "label": "lung"}\n{"text": "b", "la')
    (folder / "cut.csv.gz").write_bytes(gzip.compress(table.encode())[:-20])
    (folder / "good.toml").write_text(GOOD)
    (folder / "sweep.toml").write_text('run = "good.toml"\n[grid]\nprivacy.epsilon = [1.0, 8.0]\n')
    (folder / "sweep_typo.toml").write_text('run = "good.toml"\nseed = [1]\n')
    (folder / "sweep_path.toml").write_text('run = "good.toml"\n[grid]\nprivacy.epsilom = [1.0]\n')
    (folder / "sweep_range.toml").write_text('run = "good.toml"\n[grid]\nprivacy.epsilon = [-1.0]\n')
    twice = 'run = "good.toml"\n[grid]\nprivacy.epsilon = [1.0]\n"privacy.epsilon" = [8.0]\n'
    (folder / "sweep_twice.toml").write_text(twice)
    (folder / "sweep_both.toml").write_text(
        'run = "good.toml"\n[grid]\nstages.head.rounds = [1]\nstages.0.rounds = [2]\n'
    )
    (folder / "sweep_nobody.toml").write_text('run = "nobody.toml"\n[grid]\nseed = [1]\n')
    (folder / "broken.toml").write_text("schema = = 1")
    (folder / "typo.toml").write_text(GOOD.replace("delta =", "dleta ="))
    (folder / "no_labels.toml").write_text(GOOD.replace('labels = ["lung", "skin"]', ""))
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("precious")
    (folder / "pickled").mkdir()
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80")
    (folder / "pickled" / "config.json").write_text("{}")
    (folder / "remote").mkdir()
    (folder / "remote" / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.py"}}))
    (folder / "remote" / "model.safetensors").write_bytes(b"")
    (folder / "blank.txt").write_text("")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    lay_out(folder)
    return folder


def without_gpus(patch: pytest.MonkeyPatch) -> None:
    """What is there differs between machines, and the transcript names it."""
    patch.setattr("torch.cuda.device_count", lambda: 0)
    patch.setattr("torch.backends.mps.is_available", lambda: False)


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(workplace)
    without_gpus(monkeypatch)
    before = set(workplace.rglob("*"))
    yield workplace
    assert set(workplace.rglob("*")) == before, "an error left something behind"


@pytest.mark.parametrize(("command", "expected"), blocks(), ids=lambda value: str(value)[:60])
@pytest.mark.filterwarnings("ignore")
def test_transcript(command: str, expected: str, here: Path) -> None:
    check_transcript(main, "fedward-sim", command, expected)


def test_every_error_is_two_lines_and_exit_code_2() -> None:
    check_shape(blocks())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        lay_out(Path(place))
        os.chdir(place)
        without_gpus(patch)
        print("\n\n".join(again(main, "fedward-sim", [command for command, _ in blocks()])))
