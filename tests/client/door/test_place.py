from __future__ import annotations

import grp
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_client.door.place import Place, listening
from fedward_client.installation.site_file import SiteFile
from fedward_common.errors import InputError, OutputError, PrivacyError
from support.sites import filled
from support.trainer import short_folder

ROOT = os.geteuid() == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


def other_group() -> str:
    return next(group.gr_name for group in grp.getgrall() if group.gr_gid != os.getegid())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def site_with(folder: Path, table: str) -> Path:
    (folder / "site.toml").write_text(re.sub(r"(?m)^door = .*$", table, filled()))
    SiteFile.load(folder / "site.toml")
    return folder


# ---- where -------------------------------------------------------------------------
def test_the_door_lies_in_the_sites_folder_unless_the_site_file_moves_it(folder: Path) -> None:
    (folder / "site.toml").write_text(filled())
    assert Place.at_site(folder).socket == folder / "door" / "door.sock"
    assert Place.at_site(site_with(folder, 'door = ""')).folder == folder / "door"
    assert Place.at_site(site_with(folder, 'door = "/run/fedward"')).folder == Path("/run/fedward")
    assert Place.at_site(site_with(folder, 'door = "elsewhere"')).folder == folder / "elsewhere"


@pytest.mark.parametrize("text", ["", "no toml", "network = 3", "[network]\ndoor = 3", "[network]", "\x00"])
def test_a_site_file_that_is_wrong_is_refused_later_and_not_here(folder: Path, text: str) -> None:
    (folder / "site.toml").write_text(text)
    assert Place.at_site(folder).folder == folder / "door"
    assert Place.at_site(folder / "nothing").folder == folder / "nothing" / "door"


def test_the_path_is_absolute(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    assert Place.at_site(Path(".")).socket.is_absolute()


def test_a_path_that_is_too_long_is_refused_with_the_key_that_mends_it(folder: Path) -> None:
    longest = "d" * (107 - len(os.fsencode(folder / "x" / "door.sock")) + 1)
    place = Place(folder / longest)
    assert len(os.fsencode(place.socket)) == 107
    place.prepare()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place.socket))
    too_long = Place(folder / f"{longest}d")
    with pytest.raises(InputError, match="108 bytes; the system takes 107") as error:
        too_long.prepare()
    assert "[network].door" in error.value.hint and not too_long.folder.exists()


# ---- who ---------------------------------------------------------------------------
def test_without_a_group_no_other_account_can_reach_the_socket(folder: Path) -> None:
    place = Place(folder / "door")
    place.prepare()
    place.prepare()
    assert mode(place.folder) == 0o700
    with place.binding(), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place.socket))
        assert not mode(place.socket) & 0o077
    place.folder.chmod(0o750)
    with pytest.raises(PrivacyError) as error:
        place.prepare()
    assert f"chmod 700 {place.folder}" in error.value.hint


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_with_a_group_only_its_members_can_reach_the_socket(folder: Path) -> None:
    place, group = Place(folder / "door"), other_group()
    place.prepare(group)
    place.prepare(group)
    assert mode(place.folder) == 0o2750 and place.folder.group() == group
    with place.binding(), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place.socket))
        assert mode(place.socket) & 0o777 == 0o770 and place.socket.group() == group
    for wrong in (0o2755, 0o2770, 0o750, 0o700):
        place.folder.chmod(wrong)
        with pytest.raises(PrivacyError) as error:
            place.prepare(group)
        assert "install -d -m 2750" in error.value.hint
    place.folder.chmod(0o2750)
    os.chown(place.folder, 12345, -1)
    with pytest.raises(PrivacyError):
        place.prepare(group)


def test_a_link_in_place_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "real").mkdir(mode=0o700)
    (folder / "door").symlink_to(folder / "real")
    with pytest.raises(PrivacyError):
        Place(folder / "door").prepare()


def test_a_group_that_does_not_exist_and_a_folder_that_cannot_be_made(folder: Path) -> None:
    with pytest.raises(InputError, match="no group 'nobody-has-this'"):
        Place(folder / "door").prepare("nobody-has-this")
    with pytest.raises(OutputError, match="cannot make"):
        Place(folder / "no" / "door").prepare()


# ---- what a killed trainer left -----------------------------------------------------
def test_a_socket_is_removed_only_if_nobody_answers(folder: Path) -> None:
    place = Place(folder)
    place.clear()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place.socket))
        bound.listen(0)
        assert listening(place.socket)
        with pytest.raises(OutputError, match="another trainer answers"):
            place.clear()
        assert place.socket.exists()
    assert place.socket.exists() and not listening(place.socket)
    place.clear()
    assert not place.socket.exists()


def test_what_is_no_socket_is_never_removed(folder: Path) -> None:
    place = Place(folder)
    place.socket.write_text("precious")
    with pytest.raises(OutputError, match="is no socket"):
        place.clear()
    assert place.socket.read_text() == "precious"
