from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedward_client.certificates.certificate import verify
from fedward_client.certificates.commitment import check_commitment, open_commitment
from fedward_client.commands.certificates import certify
from support.sites import UNITS, open_site_folder, spend

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
