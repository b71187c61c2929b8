"""Promise 1, through a real site: canary strings in the data turn up nowhere but in the data."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fedward_client.installation.opening import open_site
from fedward_client.training import LocalTrainer
from fedward_common.codec import new_key
from fedward_common.round import Code
from support.hospital import Hospital

WORDS = ("zebrafish", "quetzal", "okapi")
LABEL_CANARY = "narwhal"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """Every text and every patient id holds a canary."""
    made = Hospital.make(tmp_path_factory.mktemp("canaries"))
    notes = made.root / "notes.csv"
    header, *rows = notes.read_text().splitlines()
    planted = [
        ",".join((f"{WORDS[0]} {WORDS[1]} {row.split(',')[0]}", row.split(",")[1], f"{WORDS[2]}-{n // 2}", str(n)))
        for n, row in enumerate(rows)
    ]
    notes.write_text("\n".join([header, *planted]) + "\n")
    return made


def everything(hospital: Hospital, *, but: str = "notes.csv") -> bytes:
    """All bytes of the site's folder, names included, without the data itself and the public model."""
    parts = []
    for path in sorted(hospital.root.rglob("*")):
        if "models" not in path.parts and path.is_file() and path.name != but:
            parts += [str(path).encode(), path.read_bytes()]
    return b"\n".join(parts)


def test_canaries_are_in_no_reply_book_log_error_or_temporary_file(
    hospital: Hospital,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    heard: list[bytes] = []
    train = LocalTrainer.train

    def fail(self: LocalTrainer, *arguments: object) -> None:
        train(self, *arguments)  # type: ignore[arg-type]  # data was opened and used
        raise ValueError(f"cannot tokenise {self.data.records.texts[0]} of {self.data.records.unit_ids[0]}")

    with open_site(hospital.root) as site:
        for data in (
            hospital.plan_bytes(),
            hospital.plan_bytes(round=3),
            hospital.plan_bytes(key=new_key()),
            hospital.plan_bytes(run_id="ab" * 32, ledger_head="cd" * 32),
            b"",
        ):
            heard.append(site.answer(data))
        with monkeypatch.context() as patch:
            patch.setattr(LocalTrainer, "train", fail)
            heard.append(site.answer(hospital.plan_bytes(round=2)))
        assert hospital.code(heard[-1]) is Code.UNAVAILABLE
        heard += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    printed = capfd.readouterr()
    heard += [everything(hospital), caplog.text.encode(), printed.out.encode(), printed.err.encode()]
    assert b"ValueError" in everything(hospital)  # the audit log has the type, and no more
    for word in WORDS:
        assert word.encode() not in b"\n".join(heard), word


def test_a_label_that_is_not_declared_is_named_by_its_row_alone(
    hospital: Hospital, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(hospital.root, tmp_path / "site")
    other = Hospital(root=tmp_path / "site", operator=hospital.operator, keys=hospital.keys, bundle=hospital.bundle)
    with (other.root / "notes.csv").open("a") as file:
        file.write(f"{WORDS[0]},{LABEL_CANARY},{WORDS[2]}-x,x\n")
    with open_site(other.root) as site:
        reply = site.answer(other.plan_bytes(run_id="ef" * 32))
    assert other.code(reply) is Code.UNAVAILABLE
    printed = capfd.readouterr()
    told = everything(other) + reply + printed.out.encode() + printed.err.encode()
    assert b"in row 81 that task.labels does not declare" in told
    for word in (*WORDS, LABEL_CANARY):
        assert word.encode() not in told


ABORT = """
import os, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)[1:] * 2)  # as much as is allowed
from fedward_client.installation.opening import open_site
with open_site(Path(sys.argv[1])) as site:
    site.answer(Path(sys.argv[2]).read_bytes())
    print(resource.getrlimit(resource.RLIMIT_CORE), Path("/proc/self/coredump_filter").exists(), flush=True)
    os.abort()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="core files are looked for as Linux makes them")
def test_a_crash_leaves_no_core_dump(hospital: Hospital, tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.write_bytes(hospital.plan_bytes(run_id="12" * 32))
    before = set(tmp_path.iterdir())
    crashed = subprocess.run(
        [sys.executable, "-c", ABORT, str(hospital.root), str(plan)],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=300,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert crashed.returncode == -signal.SIGABRT
    assert crashed.stdout.startswith(b"(0, 0)")
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path not in before]
    assert not [path for path in left if "core" in path.name]
    for word in WORDS:
        assert word.encode() not in b"".join(path.read_bytes() for path in left) + crashed.stderr
