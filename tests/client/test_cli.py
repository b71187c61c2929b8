from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fedward_client.books.audit import Kind
from fedward_client.cli import app, main
from fedward_client.installation.folder import Folder
from fedward_client.installation.keys import Rotation, public_key_text
from fedward_client.installation.opening import check_books_agree
from fedward_client.installation.scratch import scratch
from fedward_common.config import Pooling
from fedward_common.errors import BudgetError
from fedward_common.modeling.base import fingerprint
from fedward_common.privacy.facts import Outcome
from support.sites import ONE_STAGE, UNITS, fake_base, filled, new_site, notes, open_site_folder, spend
from support.typed import Told, typed

CLIENT = [sys.executable, "-m", "fedward_client"]
RUN, OTHER = "ab" * 32, "cd" * 32
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries: a command must show none, see below


Command = Callable[..., Told]


@pytest.fixture
def command() -> Command:
    return partial(typed, main, "fedward-client")


@pytest.fixture(autouse=True)
def dumpable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own process stays as it was."""
    import fedward_client.commands.check as check

    monkeypatch.setattr(check, "without_core_dumps", lambda: None)


@pytest.fixture
def site(tmp_path: Path) -> Folder:
    return open_site_folder(tmp_path / "site")


@pytest.fixture
def ready(site: Folder, tmp_path: Path, command: Command) -> Folder:
    """A site with an allowed base model."""
    known = command("fetch-model", fake_base(tmp_path / "base"), site.root, "--json").json["fingerprint"]
    site.site_file.write_text(filled(models=f'["{known}"]'))
    return site


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        f'schema = 1\nname = "wards"\n[model]\nbase = "{tmp_path / "base"}"\n[task]\nlabels = ["lung", "skin"]\n'
        '[adapter]\nrank = 2\n[data]\ntrain = "x.csv"\n[privacy]\ndelta = 1e-4\n'
        '[[stages]]\nname = "head"\ntrain = ["head"]\nrounds = 3\nevaluate_every = 3\n'
        '[[stages]]\nname = "adapter"\ntrain = ["adapter"]\nrounds = 2\nlocal_steps = 2\n'
    )
    return path


def leaf_commands() -> list[list[str]]:
    import typer

    group = typer.main.get_group(app)
    found: list[list[str]] = []
    for name, entry in sorted(group.commands.items()):
        inner = getattr(entry, "commands", None)
        found += [[name, each] for each in sorted(inner)] if inner else [[name]]
    return found


# ---- every command -----------------------------------------------------------------
@pytest.mark.parametrize("words", leaf_commands(), ids=" ".join)
def test_every_command_has_the_common_options_and_says_what_it_does(command: Command, words: list[str]) -> None:
    told = command(*words, "--help")
    assert told.code == 0
    for option in ("--json", "--verbose", "-v", "--quiet", "--version"):
        assert option in told.out
    if words != ["certificate", "verify"]:
        assert "[DIR]" in told.out
    assert re.fullmatch(r"fedward \d+\.\d+\.\d+\n", command(*words, "--version").out)


@pytest.mark.parametrize("arguments", [["--help"], ["ledger", "show", "--help"], ["check", "nowhere"], ["--version"]])
def test_help_and_early_errors_answer_fast(arguments: list[str]) -> None:
    best = min(_seconds(arguments) for _ in range(3))
    assert best < 1.5


def _seconds(arguments: list[str]) -> float:
    start = os.times()
    subprocess.run([*CLIENT, *arguments], capture_output=True, check=False)
    end = os.times()  # CPU time of the child: the machine may be busy with other tests
    return end.children_user + end.children_system - start.children_user - start.children_system


@pytest.mark.parametrize("program", ["init", "check", "ledger show"])
def test_no_command_loads_torch(site: Folder, program: str) -> None:
    code = (
        "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))\n"
        "from fedward_client.cli import main\n"
        f"sys.argv = ['fedward-client', *{program.split()!r}, {str(site.root)!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr
    assert done.stdout.endswith("False\n")


def test_an_error_that_nobody_foresaw_shows_its_type_and_not_its_text(
    site: Folder, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedward_client.commands.check as check

    def broken(*arguments: object) -> None:
        raise KeyError("CANARY patient 7")

    monkeypatch.setattr(check, "survey", broken)
    told = command("check", site.root)
    assert told.code == 2
    assert re.fullmatch(r"fedward: error: internal error of type KeyError at \w+\.py:\d+\nhint: .*\n", told.err), (
        told.err
    )
    assert "CANARY" not in told.out + told.err


def test_ctrl_c_ends_with_130_and_leaves_no_half_model(site: Folder, tmp_path: Path) -> None:
    base = fake_base(tmp_path / "base")
    code = (
        "import os, signal, shutil, sys\nimport fedward_client.commands.models as models\n"
        "def slow(*arguments):\n    print('copying', flush=True)\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "models.shutil.copyfile = slow\nfrom fedward_client.cli import main\n"
        f"sys.argv = ['fedward-client', 'fetch-model', {str(base)!r}, {str(site.root)!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == ""
    assert os.listdir(site.models) == []


# ---- init --------------------------------------------------------------------------
def test_init_takes_two_steps(tmp_path: Path, command: Command) -> None:
    root = tmp_path / "st-elsewhere"
    first = command("init", root)
    assert first.code == 0
    assert "never be raised" in first.out
    assert 'name = "st-elsewhere"' in (root / "site.toml").read_text()
    unfilled = command("init", root)
    assert unfilled.code == 2
    assert "data.path" in unfilled.err
    assert not (root / "books").exists()
    (root / "site.toml").write_text(filled())
    second = command("init", root, "--json")
    assert second.json["ledger"] is True
    assert second.json["budget"]["epsilon"] == 16
    third = command("init", root)
    assert third.code == 0
    assert "nothing was changed" in third.out


def test_init_prints_the_key_for_the_operator_and_no_secret(tmp_path: Path, command: Command) -> None:
    told = command("init", tmp_path / "site", "-v")
    keys = Folder.open(tmp_path / "site").load_keys()
    assert public_key_text(keys.public_key) in told.out
    assert keys.fingerprint in told.out
    assert keys.units.hex() not in told.out


def test_init_in_the_current_folder(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a site!").mkdir()
    monkeypatch.chdir(tmp_path / "a site!")
    assert command("init").code == 0
    assert 'name = "a-site"' in Path("site.toml").read_text()
    assert command("check").code == 2


def test_init_quiet_says_nothing(tmp_path: Path, command: Command) -> None:
    told = command("init", tmp_path / "site", "--quiet")
    assert (told.out, told.err, told.code) == ("", "", 0)


# ---- check -------------------------------------------------------------------------
def test_a_site_that_is_ready(ready: Folder, command: Command) -> None:
    told = command("check", ready.root)
    assert told.code == 0, told.err
    assert f"{UNITS} records of {UNITS} units" in told.out
    assert "epsilon 16 at delta 0.001 for each record, for life" in told.out
    assert "not protected on this machine" in told.out
    assert "treat it as you treat the data" in told.out
    facts = command("check", ready.root, "--json").json
    assert facts["ready"] is True
    assert facts["problems"] == []
    assert {"root", "at_rest", "witness"} <= set(facts["not_protected"])


def test_a_check_that_is_killed_leaves_nothing_outside_the_site(ready: Folder, tmp_path: Path) -> None:
    """Killed in the middle of reading: what lies about lies in the site's folder, and the next opening sweeps it."""
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import os, signal, datasets\nfrom pathlib import Path\n"
        "from fedward_client.commands.check import check\nfrom fedward_client.installation.folder import Folder\n"
        "load = datasets.load_dataset\n"
        "def killed(*a, **k):\n    load(*a, **k)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"datasets.load_dataset = killed\ncheck(Folder(Path({str(ready.root)!r})))\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path / "elsewhere")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "elsewhere").rglob("fedward-*")) == []
    left = list((ready.root / "scratch").rglob("*.arrow"))
    assert left and (ready.root / "scratch").stat().st_mode & 0o077 == 0
    with scratch(ready.root):
        assert not any(path.exists() for path in left)


def test_a_check_leaves_a_trainers_files_alone_and_its_own_nowhere(ready: Folder, command: Command) -> None:
    with scratch(ready.root):
        (ready.root / "scratch" / "trainers").write_text("table")
        assert command("check", ready.root).code == 0
        assert os.listdir(ready.root / "scratch") == ["trainers"]
    assert command("check", ready.root).code == 0
    assert not (ready.root / "scratch").exists()


def test_another_column_of_ids_is_a_problem(ready: Folder, command: Command) -> None:
    ready.site_file.write_text(ready.site_file.read_text().replace("# record_id = ", "record_id = "))
    assert "record_id = " in ready.site_file.read_text()
    text = re.sub(r"(?m)^record_id = .*$", 'record_id = "note_id"', ready.site_file.read_text())
    ready.site_file.write_text(text)
    spend(ready, RUN)
    assert command("check", ready.root).code == 0
    ready.site_file.write_text(text.replace('"note_id"', '"note"'))
    told = command("check", ready.root)
    assert told.code == 2 and "data.record_id is not the column whose ids were charged" in told.out


def test_wrong_rows_are_named_and_their_content_is_not(ready: Folder, command: Command) -> None:
    lines = notes().splitlines()
    lines[1:] = [line.replace("lung", "CANARY") for line in lines[1:]]
    (ready.root / "notes.csv").write_text("\n".join(lines) + "\n")
    short, whole = command("check", ready.root), command("check", ready.root, "-v")
    assert short.code == whole.code == 2
    assert "the site in" in short.err
    assert "20 problems" in short.err
    assert "CANARY" not in short.out + short.err + whole.out
    facts = command("check", ready.root, "--json").json
    assert facts["ready"] is False
    assert len(facts["rows"]) == 20
    assert set(facts["rows"][0]) == {"row", "column", "what"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"minimum_units": str(UNITS), "nominal_units": str(UNITS)}, ""),
        ({"nominal_units": "1000", "minimum_units": str(UNITS + 1)}, "fewer units than policy.minimum_units"),
        ({"run_delta": "0.024", "life_delta": "0.0249"}, ""),
        ({"run_delta": "0.025", "life_delta": "0.025"}, "policy.run_delta = 0.025 is not below 1 / units"),
        ({"life_delta": "0.025"}, "policy.life_delta = 0.025 is not below 1 / units"),
    ],
)
def test_limits_that_depend_on_the_data_are_checked_just_at_and_just_above(
    tmp_path: Path, command: Command, values: dict[str, str], expected: str
) -> None:
    folder = open_site_folder(tmp_path / "site", **values)
    told = command("check", folder.root, "--json").json["problems"]
    assert any(expected in problem for problem in told) if expected else len(told) == 1  # policy.models is empty


def test_what_is_worth_a_look(tmp_path: Path, command: Command) -> None:
    folder = open_site_folder(tmp_path / "site", nominal_units="1000", minimum_units="30")
    noted = command("check", folder.root, "--json").json["notes"]
    assert [any(word in note for note in noted) for word in ("nominal_units", "minimum_units", "record_id")] == [
        True
    ] * 3


def test_a_model_that_is_missing_or_changed_is_a_problem(ready: Folder, command: Command) -> None:
    known = ready.load_site().policy_table.models[0]
    (ready.model(known) / "vocab.txt").write_text("other")
    assert "does not hold that model" in command("check", ready.root).out
    shutil.rmtree(ready.model(known))
    assert "is not in models/" in command("check", ready.root).out


def test_books_that_are_not_open_or_damaged_or_held_are_a_problem(
    tmp_path: Path, ready: Folder, command: Command
) -> None:
    spend(ready, RUN, outcome=None)
    assert f"run {RUN} is held" in command("check", ready.root).out
    path = ready.books / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert "the ledger was cut off" in command("check", ready.root).out
    assert "the ledger is not open yet" in command("check", new_site(tmp_path / "new").root).out


# ---- forecast ----------------------------------------------------------------------
def test_a_forecast_spends_nothing_and_reads_no_data(ready: Folder, command: Command, run_file: Path) -> None:
    (ready.root / "notes.csv").unlink()
    head = ready.read_books(ready.load_keys()).ledger.head
    facts = command("forecast", run_file, ready.root, "--json").json
    assert ready.read_books(ready.load_keys()).ledger.head == head
    assert facts["admitted"] is True
    assert 7.9 < facts["epsilon"] <= 8
    assert facts["steps"] == 7
    assert facts["evaluations"] == 1
    assert facts["seconds"] >= 0
    assert [stage["steps"] for stage in facts["stages"]] == [3, 4]
    shown = command("forecast", run_file, ready.root, "-v").out
    assert "stage adapter: 2 rounds of 2 steps" in shown
    assert "this site would take part" in shown


def test_a_forecast_knows_the_bytes_of_a_real_message(ready: Folder, command: Command, run_file: Path) -> None:
    stages = command("forecast", run_file, ready.root, "--json").json["stages"]
    head, adapter = 4 * (2 * 8 + 2), 4 * 2 * 2 * 2
    assert 3 * head < stages[0]["bytes_up"] < 3 * (head + 1500)
    assert 2 * adapter < stages[1]["bytes_up"] < 2 * (adapter + 1500)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("delta = 1e-4", "delta = 1e-4\nepsilon = 9", "epsilon 9 exceeds 8"),
        ("rank = 2", 'rank = 2\nmethod = "lora"\ntarget_modules = ["query"]', "would take part"),
        ('labels = ["lung", "skin"]', 'labels = ["skin", "lung"]', "labels are not those"),
        ("rounds = 3", "rounds = 9999", "steps exceed"),
    ],
)
def test_a_forecast_asks_the_policy(
    ready: Folder, command: Command, run_file: Path, old: str, new: str, reason: str
) -> None:
    run_file.write_text(run_file.read_text().replace(old, new, 1))
    told = command("forecast", run_file, ready.root)
    assert reason in told.out
    assert told.code == (0 if reason == "would take part" else 2)


def test_a_forecast_asks_the_ledger(ready: Folder, command: Command, run_file: Path) -> None:
    for number in range(2):
        spend(ready, f"{number}" * 64, plan_id=f"{number}" * 64)
    told = command("forecast", run_file, ready.root)
    assert told.code == 2
    assert "the ledger would not grant it" in told.out


def test_a_forecast_of_an_unknown_model_says_how_to_get_it(ready: Folder, command: Command, run_file: Path) -> None:
    text = run_file.read_text()
    run_file.write_text(re.sub('base = ".*"', f'base = "org/name"\nrevision = "{"a" * 40}"', text))
    told = command("forecast", run_file, ready.root)
    assert told.err.endswith(f"fedward-client fetch-model org/name@{'a' * 40}\n")
    (ready.models / f"{ready.load_site().policy_table.models[0]}.json").write_text(
        json.dumps({"source": f"org/name@{'a' * 40}"})
    )
    assert command("forecast", run_file, ready.root).code == 0


# ---- fetch-model -------------------------------------------------------------------
def test_a_model_comes_in_under_its_fingerprint_and_nothing_else_with_it(
    site: Folder, tmp_path: Path, command: Command
) -> None:
    base = fake_base(tmp_path / "base")
    (base / "evil.py").write_text("raise SystemExit")
    (base / "pytorch_model.bin").write_bytes(b"\x80")
    known = fingerprint(base, pooling=Pooling.MEAN)
    told = command("fetch-model", base, site.root)
    assert f'add "{known}" to policy.models' in told.out
    assert sorted(os.listdir(site.model(known))) == ["config.json", "model.safetensors", "vocab.txt"]
    assert fingerprint(site.model(known), pooling=Pooling.MEAN) == known
    assert sorted(os.listdir(site.models)) == [known, f"{known}.json"]
    again = command("fetch-model", base, site.root, "--json").json
    assert (again["new"], again["listed"]) == (False, False)


def test_pooling_is_part_of_the_fingerprint(site: Folder, tmp_path: Path, command: Command) -> None:
    site.site_file.write_text(filled(pooling='"cls"'))
    base = fake_base(tmp_path / "base")
    told = command("fetch-model", base, site.root, "--json").json
    assert told["fingerprint"] == fingerprint(base, pooling=Pooling.CLS)


def test_a_model_that_changes_while_it_is_copied_is_refused(
    site: Folder, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, real = fake_base(tmp_path / "base"), shutil.copyfile

    def changing(source: Path, target: Path) -> None:
        real(source, target)
        target.write_bytes(target.read_bytes() + b"x")

    monkeypatch.setattr(shutil, "copyfile", changing)
    told = command("fetch-model", base, site.root)
    assert "changed while it was copied" in told.err
    assert os.listdir(site.models) == []


# ---- ledger, clear -----------------------------------------------------------------
def test_the_ledger_shows_what_each_run_cost(site: Folder, command: Command) -> None:
    spend(site, RUN)
    facts = command("ledger", "show", site.root, "--json").json
    (run,) = facts["runs"]
    assert run["run_id"] == RUN
    assert 7.9 < run["epsilon"] <= 8
    assert facts["spent_epsilon"] == pytest.approx(run["epsilon"])
    shown = command("ledger", "show", site.root, "-v").out
    assert f"{RUN[:12]}  epsilon 7.99" in shown
    assert re.search(r"(?m)^ +4 .* settle ", shown)


def test_the_head_is_the_ledgers(site: Folder, command: Command) -> None:
    head = site.read_books(site.load_keys()).ledger.head
    assert command("ledger", "head", site.root).out == f"{head} after 1 entry\n"


def test_verify_compares_ledger_and_audit_log(site: Folder, tmp_path: Path, command: Command) -> None:
    early = tmp_path / "early"
    shutil.copytree(site.books, early)
    spend(site, RUN)
    assert command("ledger", "verify", site.root).code == 0
    for name in ("ledger.jsonl", "ledger.head"):
        shutil.copy(early / name, site.books / name)
    told = command("ledger", "verify", site.root)
    assert told.code == 2
    assert "audit log and ledger do not agree" in told.err
    assert "audit line 3 names a ledger head that the ledger never had" in told.out


def test_how_many_runs_are_left(site: Folder, command: Command, run_file: Path, tmp_path: Path) -> None:
    assert command("ledger", "forecast", site.root, "--json").json["runs"] == 2
    spend(site, RUN)
    assert command("ledger", "forecast", site.root, "--json").json["runs"] == 1
    assert command("ledger", "forecast", site.root, "--run", run_file, "--json").json["runs"] == 1
    run_file.write_text(run_file.read_text() + "[privacy2]\n")
    assert command("ledger", "forecast", site.root, "--run", run_file).code == 2
    renyi = open_site_folder(tmp_path / "renyi", filter='"rdp"', rdp_order="8")
    assert "--run" in command("ledger", "forecast", renyi.root).err


def test_a_held_run_is_cleared_by_the_beginning_of_its_name(site: Folder, command: Command) -> None:
    spend(site, RUN, outcome=Outcome.FAILED)
    assert "held: see `fedward-client clear`" in command("ledger", "show", site.root).out
    assert command("clear", "abab", site.root).code == 0
    assert site.read_books(site.load_keys()).ledger.held() == ()
    assert site.read_books(site.load_keys()).audit[-1].line.kind is Kind.CLEAR
    again = command("clear", RUN, site.root)
    assert again.code == 2
    assert "is not held" in again.err


def test_a_run_that_nobody_knows_is_not_cleared(site: Folder, command: Command) -> None:
    spend(site, RUN)
    spend(site, "ac" * 32, plan_id="ef" * 32)
    assert "knows no run 'ff'" in command("clear", "ff", site.root).err
    assert "several runs begin with 'a'" in command("clear", "a", site.root).err
    assert "knows no run ''" in command("clear", "", site.root).err


# ---- backup, reconcile, rotate -------------------------------------------------------
def test_a_backup_is_whole_private_and_without_keys(site: Folder, tmp_path: Path, command: Command) -> None:
    spend(site, RUN)
    assert command("backup", tmp_path / "copy", site.root).code == 0
    copy = tmp_path / "copy"
    assert sorted(os.listdir(copy)) == ["backup.json", "books", "site.toml"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (copy, *copy.rglob("*")))
    secrets = {site.load_keys().units.hex().encode(), (site.keys / "signing.key").read_bytes()}
    assert not any(secret in path.read_bytes() for path in copy.rglob("*") if path.is_file() for secret in secrets)
    manifest = json.loads((copy / "backup.json").read_text())
    assert manifest["ledger"]["sequence"] == 4
    assert "books/ledger.jsonl" in manifest["files"]
    assert command("backup", tmp_path / "copy", site.root).code == 2


def test_a_backup_with_keys_is_a_whole_site(site: Folder, tmp_path: Path, command: Command) -> None:
    spend(site, RUN)
    told = command("backup", tmp_path / "copy", site.root, "--with-keys")
    assert "holds both secrets" in told.out
    assert command("ledger", "verify", tmp_path / "copy").code == 0


def test_a_backup_of_damaged_books_is_refused(site: Folder, tmp_path: Path, command: Command) -> None:
    spend(site, RUN)
    path = site.books / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"released", b"relaxed!"))
    assert command("backup", tmp_path / "copy", site.root).code == 2
    assert sorted(os.listdir(tmp_path)) == ["site"]


def test_writing_commands_wait_for_nobody(site: Folder, tmp_path: Path, command: Command) -> None:
    spend(site, RUN, outcome=Outcome.FAILED)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom fedward_client.installation.folder import Folder\n"
        f"with Folder(Path({str(site.root)!r})).lock():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        for words in (["clear", RUN], ["backup", tmp_path / "copy"], ["rotate-keys"], ["init"]):
            told = command(*words, site.root)
            assert f"in use by process {process.pid}" in told.err, words
        assert command("ledger", "show", site.root).code == 0
        assert command("audit", "verify", site.root).code == 0
    finally:
        process.communicate("")


def witness(path: Path, site: str, head: str, run_id: str) -> Path:
    content = {"heads": {site: head}, "run_id": run_id, "schema": 1, "terms": ONE_STAGE.to_json()}
    path.write_text(json.dumps(content))
    return path


def test_an_old_copy_is_reconciled_with_a_witness(site: Folder, tmp_path: Path, command: Command) -> None:
    shutil.copytree(site.books, tmp_path / "old")
    spend(site, RUN)
    head, keys = site.read_books(site.load_keys()).ledger.head, site.load_keys()
    shutil.rmtree(site.books)
    shutil.copytree(tmp_path / "old", site.books)
    path = witness(tmp_path / "witness.json", keys.fingerprint, head, RUN)
    assert command("ledger", "forecast", site.root, "--json").json["runs"] == 2
    told = command("ledger", "reconcile", path, site.root, "--json").json
    assert told["added"] == [RUN]
    assert site.read_books(keys).ledger.knows(head)
    assert command("ledger", "forecast", site.root, "--json").json["runs"] == 1
    assert "counted for a witness" in command("ledger", "show", site.root).out
    assert command("ledger", "reconcile", path, site.root, "--json").json["changed"] is False


def set_back(site: Folder, old: Path) -> None:
    """The ledger and its register as they were; the audit log as it is."""
    for name in ("ledger.jsonl", "ledger.head"):
        shutil.copy(old / name, site.books / name)
    shutil.rmtree(site.books / "units")
    shutil.copytree(old / "units", site.books / "units")


def test_a_lost_run_stays_lost_until_its_own_witness_is_heard(site: Folder, tmp_path: Path, command: Command) -> None:
    shutil.copytree(site.books, tmp_path / "old")
    spend(site, RUN)
    heads = [site.read_books(site.load_keys()).ledger.head]
    spend(site, OTHER, plan_id="ef" * 32)
    heads.append(site.read_books(site.load_keys()).ledger.head)
    set_back(site, tmp_path / "old")
    name = site.load_keys().fingerprint
    # this coordinator even holds a head from after the other run
    told = command("ledger", "reconcile", witness(tmp_path / "w1.json", name, heads[1], RUN), site.root)
    assert told.code == 2 and f"1 run that this ledger does not count: {OTHER[:12]}" in told.err
    assert "witness.json" in told.err and f"counted run {RUN}" in told.out
    assert command("ledger", "verify", site.root).code == 2
    again = command("ledger", "reconcile", tmp_path / "w1.json", site.root, "--json")
    assert again.code == 2 and again.json["missing"] == [OTHER]
    with site.lock(), site.open_books(site.load_site(), site.load_keys()) as books:
        with pytest.raises(BudgetError, match="audit log knows"):
            check_books_agree(books)
        assert not any(books.ledger.knows(line.line.ledger_head) for line in books.audit.lines()[-4:-2])
    told = command("ledger", "reconcile", witness(tmp_path / "w2.json", name, heads[1], OTHER), site.root, "--json")
    assert told.code == 0 and told.json["added"] == [OTHER]
    with site.lock(), site.open_books(site.load_site(), site.load_keys()) as books:
        check_books_agree(books)
        assert books.ledger.granted(RUN) and books.ledger.granted(OTHER)
    assert command("ledger", "forecast", site.root, "--json").json["runs"] == 0


def test_a_ledger_whose_lost_run_was_waved_through_before_is_refused(site: Folder, tmp_path: Path) -> None:
    """What an earlier version did: it took the heads of every lost run as known."""
    shutil.copytree(site.books, tmp_path / "old")
    spend(site, RUN)
    head = site.read_books(site.load_keys()).audit[-1].line.ledger_head
    set_back(site, tmp_path / "old")
    with site.lock(), site.open_books(site.load_site(), site.load_keys()) as books:
        books.ledger.reconcile([], [head])
        with pytest.raises(BudgetError, match="audit log knows"):
            check_books_agree(books)


def test_a_lost_run_that_never_answered_is_counted_by_a_witness_without_a_head(
    site: Folder, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(site.books, tmp_path / "old")
    spend(site, RUN, outcome=Outcome.FAILED)
    set_back(site, tmp_path / "old")
    told = command("ledger", "reconcile", witness(tmp_path / "w.json", "cd" * 32, "ef" * 32, RUN), site.root, "--json")
    assert told.code == 0 and told.json["added"] == [RUN]
    with site.lock(), site.open_books(site.load_site(), site.load_keys()) as books:
        check_books_agree(books)


def test_a_run_that_was_only_refused_needs_no_witness(site: Folder, tmp_path: Path, command: Command) -> None:
    shutil.copytree(site.books, tmp_path / "old")
    spend(site, RUN)
    with site.lock(), site.open_books(site.load_site(), site.load_keys()) as books:
        books.note(Kind.REFUSAL, run_id=OTHER, reason="terms")
    head = site.read_books(site.load_keys()).ledger.head
    set_back(site, tmp_path / "old")
    path = witness(tmp_path / "w.json", site.load_keys().fingerprint, head, RUN)
    assert command("ledger", "reconcile", path, site.root).code == 0
    assert command("ledger", "verify", site.root).code == 0


def test_a_witness_may_bring_the_ledger_beyond_its_budget(site: Folder, tmp_path: Path, command: Command) -> None:
    for number in range(12):
        path = witness(tmp_path / "w.json", site.load_keys().fingerprint, f"{number:064x}", f"{number:064x}")
        assert command("ledger", "reconcile", path, site.root).code == 0
    assert "beyond the budget" in command("ledger", "show", site.root).out
    assert command("ledger", "forecast", site.root, "--json").json["runs"] == 0
    assert command("ledger", "verify", site.root).code == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff", b'{"heads": {}, "run_id": "x", "schema": 1, "terms": {}}', b"9" * 5000, b"[" * 60_000],
)
def test_what_is_no_witness_changes_nothing(site: Folder, tmp_path: Path, command: Command, content: bytes) -> None:
    (tmp_path / "w.json").write_bytes(content)
    before = (site.books / "audit.jsonl").read_bytes()
    told = command("ledger", "reconcile", tmp_path / "w.json", site.root)
    assert told.code == 2
    assert "is no witness" in told.err
    assert (site.books / "audit.jsonl").read_bytes() == before


def test_a_witness_of_another_site_is_refused(site: Folder, tmp_path: Path, command: Command) -> None:
    told = command("ledger", "reconcile", witness(tmp_path / "w.json", "cd" * 32, "ef" * 32, RUN), site.root)
    assert "knows nothing of this site" in told.err


def test_a_witness_of_an_earlier_key_is_heard(site: Folder, tmp_path: Path, command: Command) -> None:
    old = site.load_keys().fingerprint
    assert command("rotate-keys", site.root).code == 0
    told = command("ledger", "reconcile", witness(tmp_path / "w.json", old, "ef" * 32, RUN), site.root)
    assert told.code == 0, told.err


def test_keys_are_rotated_and_the_statement_is_for_the_operator(site: Folder, command: Command) -> None:
    old = site.load_keys()
    told = command("rotate-keys", site.root, "--json").json
    statement = Rotation.from_json(told["statement"])
    assert public_key_text(statement.old) == public_key_text(old.public_key)
    assert told["fingerprint"] == site.load_keys().fingerprint != old.fingerprint
    assert site.load_keys().units == old.units
    assert "everything that units have spent would be forgotten" in command("rotate-keys", site.root).out
    assert command("ledger", "verify", site.root).code == 0


def test_keys_are_not_rotated_where_the_books_could_not_be_opened_afterwards(site: Folder, command: Command) -> None:
    old = site.load_keys()
    site.site_file.write_text(filled(life_epsilon="32.0"))
    assert command("rotate-keys", site.root).code == 2
    assert site.load_keys().fingerprint == old.fingerprint


# ---- audit -------------------------------------------------------------------------
def test_the_audit_log_shows_what_left(site: Folder, command: Command) -> None:
    spend(site, RUN)
    shown = command("audit", "show", site.root).out.splitlines()
    assert len(shown) == 3
    assert re.fullmatch(rf" +3  \d{{4}}-\d\d-\d\d \S+Z  release  {RUN[:12]}  round 1  100 bytes", shown[2])
    lines = command("audit", "show", site.root, "--run", "ab", "--json").json["lines"]
    assert [line["kind"] for line in lines] == ["release"]
    facts = command("audit", "verify", site.root, "--json").json
    assert (facts["lines"], facts["messages_out"], facts["bytes_out"]) == (3, 1, 100)


def test_a_long_audit_log_is_cut_and_shown_whole_on_demand(site: Folder, command: Command) -> None:
    with site.lock(), site.open_books(site.load_site(), site.load_keys()) as books:
        for _ in range(60):
            books.note(Kind.CLEAR)
    assert len(command("audit", "show", site.root).out.splitlines()) == 51
    assert len(command("audit", "show", site.root, "-v").out.splitlines()) == 63


def test_an_edited_audit_log_is_refused(site: Folder, command: Command) -> None:
    spend(site, RUN)
    path = site.books / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"size":100', b'"size":999'))
    told = command("audit", "verify", site.root)
    assert told.code == 2
    assert "the audit was edited" in told.err


def test_an_export_can_be_checked_with_the_keys_in_it(site: Folder, tmp_path: Path, command: Command) -> None:
    from fedward_client.books.seals import Seal
    from fedward_client.installation.keys import read_public_key

    spend(site, RUN)
    assert command("audit", "export", tmp_path / "audit.jsonl", site.root).code == 0
    head, *rows = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    seal = Seal(name="audit", public_keys=tuple(map(read_public_key, head["public_keys"])))
    assert all(seal.entry_holds(row["digest"], row["signature"]) for row in rows)
    assert len(rows) == 3
    assert command("audit", "export", tmp_path / "audit.jsonl", site.root).code == 2


# ---- certificate -------------------------------------------------------------------
def test_a_certificate_is_made_and_verified(site: Folder, tmp_path: Path, command: Command) -> None:
    spend(site, RUN)
    file = tmp_path / "certificate.json"
    made = command("certificate", "abab", site.root, "--out", file, "--adapter", "cd" * 32, "--json").json
    key = public_key_text(site.load_keys().public_key)
    said = command("certificate", "verify", file, "--key", key, "--json").json
    assert said["trust"] == "given"
    assert (said["run_id"], said["epsilon"], said["adapter_digest"]) == (RUN, made["epsilon"], "cd" * 32)
    assert said["commitment"]
    assert os.listdir(site.vault) == [f"{said['commitment']}.nonce"]
    assert "not verifiable" in command("certificate", "verify", file, "-v").out
    assert "compare its fingerprint" in command("certificate", "verify", file).out


def test_a_certificate_is_never_overwritten(
    site: Folder, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend(site, RUN)
    monkeypatch.chdir(tmp_path)
    assert command("certificate", RUN, site.root).code == 0
    assert Path("certificate-abababababab.json").exists()
    assert "never overwritten" in command("certificate", "make", RUN, site.root).err


def test_a_changed_certificate_is_refused(site: Folder, tmp_path: Path, command: Command) -> None:
    spend(site, RUN)
    file = tmp_path / "certificate.json"
    command("certificate", RUN, site.root, "--out", file)
    file.write_bytes(file.read_bytes().replace(b'"waivers": []', b'"waivers": [ ]'))
    assert command("certificate", "verify", file).code == 2


@pytest.mark.parametrize("digest", ["x", "AB" * 32])
def test_an_adapter_is_named_by_its_digest(site: Folder, command: Command, digest: str) -> None:
    assert "--adapter" in command("certificate", RUN, site.root, "--adapter", digest).err


# ---- as a person starts it ------------------------------------------------------------
def test_a_command_in_a_process_of_its_own_shows_nothing_but_its_report(ready: Folder) -> None:
    started = time.monotonic()
    done = subprocess.run([*CLIENT, "check", ready.root], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "core dump" not in done.stdout
    assert time.monotonic() - started < 120


@pytest.mark.slow
def test_kill_during_init_leaves_nothing_half_made(tmp_path: Path) -> None:
    for delay in (0.3, 0.4, 0.5):
        root = tmp_path / f"site-{delay}"
        process = subprocess.Popen([*CLIENT, "init", root], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = subprocess.run([*CLIENT, "init", root, "--quiet"], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "are missing" in done.stderr, done.stderr
        assert Folder.open(root).load_keys().units
