from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from fedward_common.enrolment import Enrolment
from fedward_common.errors import BadSignature, FedwardError, InputError, OutputError, PrivacyError
from fedward_server.deployment.folder import Consent, OperatorFolder
from support.operating import NAMES, new_operator, statement


@pytest.fixture
def folder(tmp_path: Path) -> OperatorFolder:
    return new_operator(tmp_path / "op")


# ---- the folder --------------------------------------------------------------------
def test_what_is_made_is_private_and_opens(folder: OperatorFolder) -> None:
    for path in (folder.root, *folder.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    opened = OperatorFolder.open(folder.root)
    assert opened.load_server().gateway.names == NAMES
    assert opened.authority().certificate().names == NAMES


def test_what_exists_is_left_as_it_is(folder: OperatorFolder) -> None:
    files = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    OperatorFolder.create(folder.root, name="other", names=("other.org",), port=1)
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == files


def test_what_is_missing_is_made(folder: OperatorFolder) -> None:
    folder.runs.rmdir()
    OperatorFolder.create(folder.root, name="lung", names=NAMES)
    assert folder.runs.is_dir()


def test_keys_made_later_carry_the_names_of_the_server_file(tmp_path: Path) -> None:
    folder = new_operator(tmp_path / "op")
    folder.keys.rename(tmp_path / "gone")
    OperatorFolder.create(folder.root, name="lung", names=("other.org",))
    assert folder.authority().certificate().names == NAMES


@pytest.mark.parametrize("child", ["", "keys", "runs", "state"])
def test_a_folder_that_is_open_to_others_is_refused(folder: OperatorFolder, child: str) -> None:
    (folder.root / child).chmod(0o755)
    for act in (OperatorFolder.open, lambda root: OperatorFolder.create(root, name="a", names=NAMES)):
        with pytest.raises(PrivacyError, match="is open to other accounts"):
            act(folder.root)


def test_what_holds_something_else_is_no_folder_for_an_operator(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds something"):
        new_operator(tmp_path)
    with pytest.raises(OutputError, match="there is no operator's folder"):
        OperatorFolder.open(tmp_path)
    with pytest.raises(OutputError, match="cannot make"):
        new_operator(tmp_path / "thesis.txt")
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_an_init_that_was_killed_is_done_again_and_its_drafts_are_gone(tmp_path: Path) -> None:
    root = tmp_path / "op"
    root.mkdir(mode=0o700)
    (root / f".server.toml.{'0a' * 8}").write_text("half of it")
    folder = new_operator(root)
    (root / f".keys-{'0b' * 8}").mkdir()
    (root / f".keys-{'0b' * 8}" / "plan.key").write_text("half of it")
    assert new_operator(root) == folder
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_a_folder_with_a_draft_and_something_else_is_refused_and_nothing_of_it_is_removed(tmp_path: Path) -> None:
    for name in (f".server.toml.{'0a' * 8}", "thesis.txt"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(OutputError, match="holds something"):
        new_operator(tmp_path)
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("name", [".server.toml.swp", ".server.toml.0a", f".server.toml.{'0A' * 8}", ".keys-old"])
def test_what_only_looks_like_a_draft_is_somebodys(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(OutputError, match="holds something"):
        new_operator(tmp_path)
    assert os.listdir(tmp_path) == [name]


def test_wrong_values_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FedwardError):
        OperatorFolder.create(tmp_path / "op", name="a", names=("https://a.org",))
    assert not (tmp_path / "op").exists()


def test_the_lock_names_its_holder(folder: OperatorFolder) -> None:
    assert folder.holder() is None
    with folder.hold():
        assert folder.holder() == os.getpid()
        with pytest.raises(InputError, match=str(os.getpid())), folder.hold():
            pass
    assert folder.holder() is None


# ---- enrolling ---------------------------------------------------------------------
def test_an_enrolled_site_is_known_by_the_operators_name(folder: OperatorFolder) -> None:
    folder.enrol(statement("st-elsewhere"))
    folder.enrol(statement("st-elsewhere", node=2, signing=2), name="other.pub")
    assert set(folder.sites()) == {"st-elsewhere", "other.pub"}
    assert folder.sites()["other.pub"].name == "st-elsewhere"
    assert stat.S_IMODE((folder.sites_folder / "st-elsewhere.pub").stat().st_mode) == 0o600


def test_the_same_again_changes_nothing(folder: OperatorFolder) -> None:
    folder.enrol(statement("a"))
    before = (folder.sites_folder / "a.pub").stat().st_mtime_ns
    folder.enrol(statement("a"))
    assert (folder.sites_folder / "a.pub").stat().st_mtime_ns == before


@pytest.mark.parametrize(("node", "signing", "which"), [(1, 2, "node"), (2, 1, "signing"), (1, 1, "node")])
@pytest.mark.parametrize("consents", [(), tuple(Consent)])
def test_no_two_enrolled_sites_share_a_node_key_or_a_signing_key(
    folder: OperatorFolder, node: int, signing: int, which: str, consents: tuple[Consent, ...]
) -> None:
    folder.enrol(statement("a"))
    folder.enrol(statement("b", node=3, signing=3))
    for name in ("c", "b"):
        with pytest.raises(InputError, match=f"the {which} key .* of site a: two sites with one key"):
            folder.enrol(statement("c", node=node, signing=signing), name=name, consents=consents)
    assert set(folder.sites()) == {"a", "b"}


def test_a_taken_name_needs_consent(folder: OperatorFolder) -> None:
    folder.enrol(statement("a"))
    with pytest.raises(InputError, match="enrolled already") as caught:
        folder.enrol(statement("a", node=2, signing=2))
    assert "--replace" in caught.value.hint
    assert list(folder.revoked.iterdir()) == []


def test_a_replaced_enrolment_is_kept_among_the_revoked_ones(folder: OperatorFolder) -> None:
    folder.enrol(statement("a"))
    folder.enrol(statement("a", node=2), consents=[Consent.REPLACE])  # the signing key stays
    folder.enrol(statement("a", node=3), consents=[Consent.REPLACE])
    kept = [Enrolment.from_text(path.read_text()) for path in sorted(folder.revoked.glob("a-*.pub"))]
    assert [one.node_fingerprint for one in kept] == [
        Enrolment.from_text(statement("a", node=number)).node_fingerprint for number in (1, 2)
    ]
    assert folder.sites()["a"].node_fingerprint not in {one.node_fingerprint for one in kept}


def test_at_no_instant_is_the_name_without_an_enrolment(
    folder: OperatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedward_server.deployment.folder as module

    folder.enrol(statement("a"))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "rewrite", crash)
        with pytest.raises(KeyboardInterrupt):
            folder.enrol(statement("a", node=2, signing=2), consents=[Consent.REPLACE])
    assert set(folder.sites()) == {"a"}
    folder.enrol(statement("a", node=2, signing=2), consents=[Consent.REPLACE])


@pytest.mark.parametrize("consents", [(), tuple(Consent)])
def test_a_node_key_that_was_revoked_never_comes_back(folder: OperatorFolder, consents: tuple[Consent, ...]) -> None:
    folder.enrol(statement("a"))
    folder.revoke("a")
    for name in ("a", "b"):
        with pytest.raises(InputError, match=r"node key .* was revoked before"):
            folder.enrol(statement("a", signing=2), name=name, consents=consents)


def test_a_signing_key_that_was_revoked_comes_back_only_with_consent(folder: OperatorFolder) -> None:
    folder.enrol(statement("a"))
    folder.revoke("a")
    with pytest.raises(InputError, match=r"signing key .* was revoked before") as caught:
        folder.enrol(statement("a", node=2), consents=[Consent.REPLACE])
    assert "--again" in caught.value.hint
    folder.enrol(statement("a", node=2), consents=[Consent.AGAIN])
    assert set(folder.sites()) == {"a"}


def test_revoking_takes_the_name_away_and_keeps_the_file(folder: OperatorFolder) -> None:
    folder.enrol(statement("a"))
    folder.revoke("a")
    assert folder.sites() == {}
    assert [Enrolment.from_text(path.read_text()).name for path in folder.revoked.iterdir()] == ["a"]
    with pytest.raises(InputError, match="no site a is enrolled"):
        folder.revoke("a")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "-x", "a b", "x" * 65, "a\n", "ä"])
def test_a_name_is_a_name_and_no_path(folder: OperatorFolder, name: str) -> None:
    if name:  # none is given: the site's own
        with pytest.raises(InputError, match="no name for a site"):
            folder.enrol(statement("a"), name=name)
    with pytest.raises(InputError, match="no name for a site"):
        folder.revoke(name)
    assert folder.sites() == {}


def test_a_file_that_cannot_be_read_enrols_nobody_and_is_named(folder: OperatorFolder) -> None:
    folder.enrol(statement("a"))
    (folder.sites_folder / "b.pub").write_text("{}")
    (folder.sites_folder / "c.pub").write_bytes(b"\xff")
    (folder.sites_folder / "d.pub").write_text(statement("d").replace('"d"', '"e"'))
    (folder.sites_folder / ".a.pub.0123").write_text("draft")
    assert set(folder.sites()) == {"a"}
    assert folder.damaged_sites() == ("b", "c", "d")


def test_what_is_no_enrolment_is_refused(folder: OperatorFolder) -> None:
    with pytest.raises(InputError, match="no enrolment"):
        folder.enrol("ssh-ed25519 AAAA")
    with pytest.raises(BadSignature):
        folder.enrol(statement("a").replace('"a"', '"b"'))


def test_commands_at_the_same_time_do_not_enrol_one_key_twice(folder: OperatorFolder) -> None:
    refused: list[str] = []

    def enrol(name: str) -> None:
        try:
            folder.enrol(statement("a"), name=name)
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=enrol, args=(f"site-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folder.sites()) == 1
    assert len(refused) == 5


def test_what_the_desk_wrote_is_read_and_garbage_is_nothing(folder: OperatorFolder) -> None:
    assert folder.site_states() == {}
    folder.sites_file.write_text('{"schema": 1, "at": 5, "sites": {"a": {"connected": true}, "b": 3}}')
    assert folder.site_states() == {"a": {"connected": True, "version": None}}
    (folder.state / "versions.json").write_text('{"a": "0.1.0"}')
    assert folder.site_states() == {"a": {"connected": True, "version": "0.1.0"}}
    for garbage in ("", "[]", '{"sites": 3}', "null"):
        folder.sites_file.write_text(garbage)
        assert folder.site_states() == {}
