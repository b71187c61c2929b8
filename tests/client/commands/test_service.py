"""``service``: units that systemd reads as they are meant, and two accounts that cannot meet but at the Door."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fedward_client.commands import service as module
from fedward_client.commands.service import Accounts, service
from fedward_client.courier.folder import CourierFile, CourierFolder
from fedward_common.errors import ConfigError
from support.hospital import Hospital
from support.operating import new_operator


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "PEOPLES", (Path("/nobody"),))  # this Python itself may lie in a person's folder
    root = Hospital.make(tmp_path).root
    door = f'[network]\ndoor = "{tmp_path / "door"}"\n[coordinator]'
    path = root / "site.toml"
    path.write_text(path.read_text().replace("[coordinator]", door))
    ca_pem = (new_operator(tmp_path / "op").keys / "ca.pem").read_bytes()
    file = CourierFile.model_validate(
        {"schema": 1, "name": "st-elsewhere", "server": "localhost:1", "door": str(tmp_path / "door" / "door.sock")}
    )
    CourierFolder.create(tmp_path / "carrier", file, ca_pem=ca_pem)
    return root


def test_the_trainers_unit_has_no_network_and_the_couriers_sees_no_data(site: Path) -> None:
    units = service(site, site.parent.parent / site.parent.name / "carrier", Accounts()).facts["units"]
    trainer, courier = (units[f"fedward-{name}-st-elsewhere.service"] for name in ("trainer", "courier"))
    for line in ("PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", f"ReadOnlyPaths={site / 'notes.csv'}"):
        assert line in trainer.splitlines()
    assert str(site) not in courier
    assert "User=fedward-courier" in courier and "User=fedward-trainer" in trainer


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_reads_both_units(site: Path, tmp_path: Path) -> None:
    units = service(site, tmp_path / "carrier", Accounts(trainer="root", courier="root", group="root")).facts["units"]
    for name, text in units.items():
        (tmp_path / name).write_text(text)
        argv = [str(shutil.which("systemd-analyze")), "verify", str(tmp_path / name)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert "Unknown" not in done.stderr, done.stderr


def test_a_courier_inside_the_sites_folder_is_refused(site: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "carrier", site / "courier")
    with pytest.raises(ConfigError, match="account cannot enter"):
        service(site, None, Accounts())


@pytest.mark.parametrize("folder", ["with space", "per%cent"])
def test_a_path_that_systemd_would_misread_is_refused(site: Path, tmp_path: Path, folder: str) -> None:
    shutil.copytree(tmp_path / "carrier", tmp_path / folder)
    with pytest.raises(ConfigError, match="misread"):
        service(site, tmp_path / folder, Accounts())


def test_a_persons_folder_is_refused(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PEOPLES", (tmp_path,))
    with pytest.raises(ConfigError, match="services do not see"):
        service(site, tmp_path / "carrier", Accounts())
