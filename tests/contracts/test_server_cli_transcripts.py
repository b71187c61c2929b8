"""Every error text that an operator can meet, word for word. The transcript is ``server_cli_errors.txt``.

A block is a command line, what it prints on stderr, and its exit code; blocks are separated by blank lines. The folders
that the commands name are made by ``lay_out`` below. Running this file as a script prints the transcript anew.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_server.cli import main
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.runs import RunState, RunStatus
from support.operating import bundle_folder, new_operator, new_run, statement
from support.typed import again, check_shape, check_transcript, transcript

TRANSCRIPT = Path(__file__).with_name("server_cli_errors.txt")


def blocks() -> list[tuple[str, str]]:
    return transcript(TRANSCRIPT, "fedward-server")


def lay_out(folder: Path) -> None:
    """The folders and files that the transcript's commands name."""
    op = new_operator(folder / "op")
    op.enrol(statement("ucl"))
    op.enrol(statement("gone", node=8, signing=8))
    op.revoke("gone")
    for name, node, signing in (("ucl", 1, 1), ("other", 2, 1), ("new", 3, 3), ("gone", 8, 9), ("back", 9, 8)):
        (folder / f"{name}.pub").write_text(statement(name, node=node, signing=signing))
    (folder / "ucl_again.pub").write_text(statement("ucl", node=4, signing=4))
    (folder / "edited.pub").write_text(statement("new", node=3, signing=3).replace('"new"', '"old"'))
    (folder / "binary.pub").write_bytes(b"\xff\xfe")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("precious")
    new_run(op, folder / "bundle", run_id="ab" * 32, name="wards")
    run = new_run(op, folder / "bundle2", run_id="ac" * 32, name="wards-old")
    run.write_status(RunStatus(state=RunState.FINISHED, round=4, rounds=4))
    bundle_folder(folder / "fresh", run_id="ad" * 32)
    torn = bundle_folder(folder / "torn", run_id="ae" * 32) / "initial.safetensors"
    torn.write_bytes(torn.read_bytes()[:-3])
    (folder / "typo.toml").write_text("schema = 1\nnmae = 2\n")
    _broken(folder)


def _broken(folder: Path) -> None:
    def like(name: str) -> OperatorFolder:
        shutil.copytree(folder / "op", folder / name)
        return OperatorFolder(folder / name)

    like("typo").server_file.write_text((folder / "op" / "server.toml").read_text().replace("burst", "brust"))
    like("ports").server_file.write_text((folder / "op" / "server.toml").read_text().replace("9400", "8443"))
    like("no_toml").server_file.write_text("schema = = 1")
    like("open").root.chmod(0o755)
    (like("open_key").keys / "plan.key").chmod(0o640)
    (like("lost_key").keys / "plan.key").unlink()
    (like("no_ca").keys / "ca.key").unlink()
    (like("torn_cert").keys / "server.pem").write_text("torn")


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
    monkeypatch.chdir(workplace)
    before = state(workplace)
    yield workplace
    assert state(workplace) == before, "an error left something behind, or changed something"


@pytest.mark.parametrize(("command", "expected"), blocks(), ids=lambda value: str(value)[:60])
def test_transcript(command: str, expected: str, here: Path) -> None:
    check_transcript(main, "fedward-server", command, expected)


def test_every_error_is_two_lines_and_exit_code_2() -> None:
    check_shape(blocks())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        lay_out(Path(place))
        os.chdir(place)
        found = "\n\n".join(again(main, "fedward-server", [command for command, _ in blocks()]))
        print(re.sub(re.escape(place) + "/?", "", found))
