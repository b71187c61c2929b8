from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fedward_client.certificates.certificate import verify
from fedward_client.certificates.commitment import check_commitment, open_commitment
from fedward_client.commands.certificates import certify
from fedward_client.installation.folder import Folder
from fedward_client.installation.noted import PolicyNote
from support.sites import UNITS, filled, open_site_folder, spend

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_run_that_no_unit_bears_has_a_certificate_that_does_not_show_it(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site", life_epsilon="10.0")
    runs = {"ab" * 32: UNITS, "cd" * 32: 0}
    spend(folder, "ab" * 32, plan_id="11" * 32)
    spend(folder, "cd" * 32, plan_id="22" * 32)
    books = folder.read_books(folder.load_keys())
    shapes = set()
    for run, bearers in runs.items():
        certify(folder, run, tmp_path / f"{run[:2]}.json")
        data = (tmp_path / f"{run[:2]}.json").read_bytes()
        commitment, units = verify(data).commitment, books.bearers(run)
        assert units is not None
        assert len(check_commitment(commitment, open_commitment(commitment, units, vault=folder.vault))) == bearers
        shapes.add((len(commitment), tuple(json.loads(data)["certificate"]["data"])))
    assert len(shapes) == 1


WAIVED = {"waivers": '["allow_network"]'}


def reopened(folder: Folder, **values: str) -> None:
    folder.site_file.write_text(filled(life_epsilon="30.0", **values))
    time.sleep(0.002)  # journals count milliseconds
    with folder.lock(), folder.open_books(folder.load_site(), folder.load_keys()):
        pass
    time.sleep(0.002)


def waivers_of(folder: Folder, run: str, file: Path) -> tuple[str, ...]:
    certify(folder, run, file)
    return verify(file.read_bytes()).waivers


def test_a_certificate_states_the_waivers_under_which_the_run_happened(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site", life_epsilon="30.0", **WAIVED)
    spend(folder, "ab" * 32, plan_id="11" * 32)
    reopened(folder)  # given up no longer
    spend(folder, "cd" * 32, plan_id="22" * 32)
    reopened(folder, **WAIVED)
    assert waivers_of(folder, "ab" * 32, tmp_path / "1.json") == ("allow_network",)
    assert waivers_of(folder, "cd" * 32, tmp_path / "2.json") == ()
    folder.site_file.write_text(filled(life_epsilon="30.0"))  # as it stands in a file that was never opened
    assert waivers_of(folder, "ab" * 32, tmp_path / "3.json") == ("allow_network",)


def test_a_certificate_from_books_that_do_not_tell_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PolicyNote, "reason", property(lambda note: f"site.toml has the digest {note.digest}"))
        folder = open_site_folder(tmp_path / "site", life_epsilon="30.0", **WAIVED)
        spend(folder, "ab" * 32, plan_id="11" * 32)
    assert waivers_of(folder, "ab" * 32, tmp_path / "1.json") == ("allow_network", "earlier ones are not recorded")
    reopened(folder)
    spend(folder, "cd" * 32, plan_id="22" * 32)
    assert waivers_of(folder, "ab" * 32, tmp_path / "2.json") == ("earlier ones are not recorded",)
    assert waivers_of(folder, "cd" * 32, tmp_path / "3.json") == ()
