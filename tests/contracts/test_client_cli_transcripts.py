"""Every error text that a site's administrator can meet, word for word. The transcript is ``client_cli_errors.txt``.

A block is a command line, what it prints on stderr, and its exit code; blocks are separated by blank lines. The folders
that the commands name are made by ``lay_out`` below. Running this file as a script prints the transcript anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_client.cli import main
from fedward_client.installation.keys import public_key_text
from fedward_common.privacy.facts import Outcome
from support.nouns import OTHER_KEY
from support.sites import ONE_STAGE, fake_base, filled, new_site, notes, open_site_folder, spend
from support.typed import again, check_shape, check_transcript, transcript

TRANSCRIPT = Path(__file__).with_name("client_cli_errors.txt")
RUN, OTHER_RUN = "ab" * 32, "ac" * 32
RUN_FILE = """schema = 1
name = "wards"
[model]
base = "base"
[task]
labels = ["lung", "skin"]
[adapter]
rank = 2
[data]
train = "x.csv"
[privacy]
delta = 1e-4
[[stages]]
name = "head"
train = ["head"]
rounds = 2
"""


def blocks() -> list[tuple[str, str]]:
    return transcript(TRANSCRIPT, "fedward-client")


def lay_out(folder: Path) -> None:
    """The folders and files that the transcript's commands name."""
    fake_base(folder / "base")
    (folder / "run.toml").write_text(RUN_FILE)
    (folder / "greedy.toml").write_text(RUN_FILE.replace("delta = 1e-4", "delta = 1e-4\nepsilon = 9"))
    (folder / "other_model.toml").write_text(
        RUN_FILE.replace('base = "base"', f'base = "org/name"\nrevision = "{"a" * 40}"')
    )
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("precious")
    new_site(folder / "unfilled").site_file.write_text('schema = 1\nname = "a"\n')
    new_site(folder / "typo").site_file.write_text(filled().replace("max_rank", "max_rnk"))
    new_site(folder / "broken").site_file.write_text("schema = = 1")
    for name, values in {
        "range": {"run_epsilon": "0"},
        "hours": {"hours": '["9 to 5"]'},
        "budget": {"run_epsilon": "20"},
        "key": {"public_key": '"operator"'},
        "waiver": {"waivers": '["seeded_randomness"]'},
        "no_data": {"path": '"missing.csv"'},
        "column": {"label": '"diagnosis"'},
    }.items():
        new_site(folder / name, **values)
    (new_site(folder / "rows").root / "notes.csv").write_text(notes().replace("cough 3", "  "))
    new_site(folder / "unopened")
    spend(open_site_folder(folder / "good"), RUN)
    spend(open_site_folder(folder / "two"), RUN)
    spend(open_site_folder(folder / "two_again"), RUN, outcome=Outcome.FAILED)
    site = open_site_folder(folder / "raised")
    site.site_file.write_text(filled(life_epsilon="32.0"))
    site = open_site_folder(folder / "looser")
    site.site_file.write_text(filled(run_epsilon="9.0"))
    open_site_folder(folder / "open").root.chmod(0o755)
    (open_site_folder(folder / "open_key").keys / "units.key").chmod(0o644)
    (open_site_folder(folder / "lost_key").keys / "units.key").unlink()
    (open_site_folder(folder / "other_key").keys / "units.key").write_text("ab" * 32)
    shutil.rmtree(open_site_folder(folder / "gone").books)
    path = open_site_folder(folder / "cut").books / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    path = open_site_folder(folder / "edited").books / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"opened", b"closed", 1))
    shutil.rmtree(open_site_folder(folder / "foreign").books)
    shutil.copytree(folder / "good" / "books", folder / "foreign" / "books")
    (folder / "pickled").mkdir()
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80")
    (folder / "pickled" / "config.json").write_text("{}")
    fake_base(folder / "remote")
    (folder / "remote" / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.py"}}))
    (fake_base(folder / "torn") / "model.safetensors").write_bytes(b"\x07")
    witness = {"heads": {"cd" * 32: "ef" * 32}, "run_id": RUN, "schema": 1, "terms": ONE_STAGE.to_json()}
    (folder / "witness.json").write_text(json.dumps(witness))
    (folder / "other_key.pub").write_text(public_key_text(OTHER_KEY.public_key()))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    lay_out(folder)
    return folder


def state(folder: Path) -> dict[Path, bytes]:
    paths = (path for path in folder.rglob("*") if path.name != "lock")
    return {path: path.read_bytes() if path.is_file() else b"" for path in paths}


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import fedward_client.commands.check as check

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(check, "without_core_dumps", lambda: None)  # the test's own process stays as it was
    before = state(workplace)
    yield workplace
    assert state(workplace) == before, "an error left something behind, or changed something"


@pytest.mark.parametrize(("command", "expected"), blocks(), ids=lambda value: str(value)[:60])
@pytest.mark.filterwarnings("ignore")
def test_transcript(command: str, expected: str, here: Path) -> None:
    check_transcript(main, "fedward-client", command, expected)


def test_every_error_is_two_lines_and_exit_code_2() -> None:
    check_shape(blocks())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        lay_out(Path(place))
        os.chdir(place)
        print(
            re.sub(
                re.escape(place) + "/?",
                "",
                "\n\n".join(again(main, "fedward-client", [command for command, _ in blocks()])),
            )
        )
