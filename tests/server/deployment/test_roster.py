from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedward_server.deployment.flower import FlowerAway, FlowerRefused, Node, node_key_pem
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.roster import Roster
from support.operating import new_operator, statement


class FakeNodes:
    """As Flower: a key that was unregistered never comes back."""

    def __init__(self) -> None:
        self.known: dict[int, Node] = {}
        self.spent: set[bytes] = set()
        self.away = False

    def nodes(self) -> list[Node]:
        if self.away:
            raise FlowerAway("away", hint="wait")
        return list(self.known.values())

    def register_node(self, key: ec.EllipticCurvePublicKey, *, name: str) -> int:
        pem = node_key_pem(key)
        if pem in self.spent:
            raise FlowerRefused("no", hint="no")
        self.spent.add(pem)
        number = 1000 + len(self.spent)
        self.known[number] = Node(node_id=number, key=pem, online=True, last_seen=5.0)
        return number

    def unregister_node(self, node_id: int) -> None:
        del self.known[node_id]


@pytest.fixture
def folder(tmp_path: Path) -> OperatorFolder:
    return new_operator(tmp_path / "op")


def test_an_enrolled_sites_node_is_registered_and_a_revoked_ones_is_not(folder: OperatorFolder) -> None:
    flower = FakeNodes()
    roster = Roster(folder, flower)
    folder.enrol(statement("a", node=1, signing=1))
    folder.enrol(statement("b", node=2, signing=2))
    roster.reconcile()
    assert len(flower.known) == 2
    folder.revoke("a")
    roster.reconcile()
    roster.reconcile()
    assert len(flower.known) == 1
    assert (roster.enrolled, roster.connected) == (1, 1)


def test_people_see_who_is_there(folder: OperatorFolder) -> None:
    folder.enrol(statement("a"))
    roster = Roster(folder, FakeNodes())
    roster.reconcile()
    assert folder.site_states()["a"]["registered"] is False
    roster.reconcile()
    row = folder.site_states()["a"]
    assert (row["node_id"], row["connected"], row["last_seen"], row["registered"]) == ("1001", True, 5.0, True)


def test_a_damaged_or_missing_enrolment_unregisters_nobody(folder: OperatorFolder) -> None:
    flower = FakeNodes()
    folder.enrol(statement("a"))
    roster = Roster(folder, flower)
    roster.reconcile()
    (folder.sites_folder / "a.pub").write_text("{")
    roster.reconcile()
    (folder.sites_folder / "a.pub").unlink()
    roster.reconcile()
    assert len(flower.known) == 1


def test_a_key_that_flower_does_not_take_back_is_said_and_not_tried_again(folder: OperatorFolder) -> None:
    flower = FakeNodes()
    folder.enrol(statement("a"))
    roster = Roster(folder, flower)
    roster.reconcile()
    folder.revoke("a")
    roster.reconcile()
    (folder.sites_folder / "a.pub").write_text(statement("a"))  # `enrol` refuses it
    roster.reconcile()
    assert "new one" in folder.site_states()["a"]["problem"]


def test_nothing_is_written_while_the_superlink_is_away(folder: OperatorFolder) -> None:
    flower = FakeNodes()
    flower.away = True
    with pytest.raises(FlowerAway):
        Roster(folder, flower).reconcile()
    assert not folder.sites_file.exists()
