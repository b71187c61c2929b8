from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_client.books.files import Files
from fedward_client.books.units import UnitRegister, unit_digests
from fedward_common.errors import BudgetError, OutputError, PrivacyError
from fedward_common.privacy.spending import Bears, History, MemoryRegister, Register
from support.books import UNIT_KEY


def anyone(history: History) -> bool:
    return True


def charge(register: Register, run_id: str, units: list[str], bears: Bears = anyone) -> None:
    register.adopt(register.charge(units, run_id=run_id, bears=bears).digest)


def test_a_unit_register_is_a_register(tmp_path: Path) -> None:
    register: Register = UnitRegister(tmp_path, key=UNIT_KEY)
    register.adopt("")
    assert (register.digest, register.histories()) == ("", ())


def test_a_digest_is_keyed_blake2b_of_the_id_alone() -> None:
    digests = unit_digests(["p1", "é", "\ud800"], key=UNIT_KEY)
    for unit, digest in zip((b"p1", "é".encode(), b"\xed\xa0\x80"), digests, strict=True):
        expected = hashlib.blake2b(unit, digest_size=16, key=UNIT_KEY, person=b"fedward unit").digest()
        assert bytes(digest).ljust(16, b"\0") == expected


def test_what_was_charged_is_found_again(tmp_path: Path) -> None:
    register = UnitRegister(tmp_path, key=UNIT_KEY)
    charge(register, "one", ["b", "a", "b"])
    charge(register, "two", ["c", "b"])
    again = UnitRegister(tmp_path, key=UNIT_KEY)
    again.adopt(register.digest)
    for each in (register, again):
        assert each.taking_part("one", ["a", "b", "c", "d", "a"]).tolist() == [True, True, False, False, True]
        assert each.taking_part("two", ["a", "b", "c"]).tolist() == [False, True, True]
        assert each.taking_part("two", []).tolist() == []
        assert each.histories() == (("one",), ("one", "two"), ("two",))
        assert each.bearers("one") == tuple(sorted(unit_digests(["a", "b"], key=UNIT_KEY).tolist()))
        assert each.bearers("none") == ()
    assert again.key_check == register.key_check


STEPS = st.lists(
    st.tuples(st.lists(st.integers(0, 40).map(str), max_size=25), st.integers(0, 4)), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_it_does_what_the_register_in_memory_does(steps: list[tuple[list[str], int]]) -> None:
    files = InMemory()
    durable, model = UnitRegister(Path("x"), key=UNIT_KEY, files=files), MemoryRegister()
    everyone = [str(number) for number in range(42)]
    for number, (units, most) in enumerate(steps):

        def bears(history: History, most: int = most) -> bool:
            return len(history) < most

        outcomes = []
        for register in (durable, model):
            try:
                charge(register, f"r{number}", units, bears)
            except BudgetError:
                outcomes.append(False)
            else:
                outcomes.append(True)
        assert outcomes[0] == outcomes[1]
        assert durable.histories() == model.histories()
        for run in range(number + 1):
            mine, theirs = (each.taking_part(f"r{run}", everyone) for each in (durable, model))
            assert (mine == theirs).all()
    assert len(files.content) == (1 if durable.digest else 0)


class InMemory(Files):
    """Whole files in memory: a register uses nothing else."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def read(self, path: Path) -> bytes:
        return self.content[path.name]

    def create(self, path: Path, data: bytes) -> None:
        self.content[path.name] = data

    def remove(self, path: Path) -> None:
        self.content.pop(path.name, None)

    def names(self, folder: Path) -> list[str]:
        return sorted(self.content)


def test_ids_stand_in_no_file(tmp_path: Path) -> None:
    charge(UnitRegister(tmp_path, key=UNIT_KEY), "one", ["patient-4711"])
    assert all(b"4711" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_version_that_was_never_adopted_is_removed(tmp_path: Path) -> None:
    register = UnitRegister(tmp_path, key=UNIT_KEY)
    charge(register, "one", ["a"])
    register.charge(["a"], run_id="two", bears=anyone)
    (tmp_path / ".units-x.bin.draft").touch()
    (tmp_path / "ledger.jsonl").touch()
    assert len(list(tmp_path.iterdir())) == 4
    again = UnitRegister(tmp_path, key=UNIT_KEY)
    again.adopt(register.digest)
    assert {path.name for path in tmp_path.iterdir()} == {"ledger.jsonl", f"units-{register.digest}.bin"}
    assert again.taking_part("two", ["a"]).tolist() == [False]


@pytest.mark.parametrize("index", [0, 9, 20, 60, -30, -1])
def test_a_changed_version_is_refused_and_nothing_is_removed(tmp_path: Path, index: int) -> None:
    register = UnitRegister(tmp_path, key=UNIT_KEY)
    charge(register, "one", ["a", "b", "c"])
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)
    with pytest.raises(BudgetError, match="damaged"):
        UnitRegister(tmp_path, key=UNIT_KEY).adopt(register.digest)
    assert path.exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d[:4],
        lambda d: b"",
        lambda d: d[:-4],
        lambda d: d + b"\0" * 20,
        lambda d: d.replace(b"units", b"unitz"),
    ],
)
def test_a_file_that_is_no_register_is_refused_under_any_name(tmp_path: Path, edit) -> None:  # type: ignore[no-untyped-def]
    register = UnitRegister(tmp_path, key=UNIT_KEY)
    charge(register, "one", ["a", "b", "c"])
    (path,) = tmp_path.iterdir()
    data = edit(path.read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / f"units-{digest}.bin").write_bytes(data)
    with pytest.raises(BudgetError, match="damaged"):
        UnitRegister(tmp_path, key=UNIT_KEY).adopt(digest)


def test_a_missing_version_and_another_key_are_refused(tmp_path: Path) -> None:
    register = UnitRegister(tmp_path, key=UNIT_KEY)
    charge(register, "one", ["a"])
    other = UnitRegister(tmp_path, key=bytes(32))
    assert other.key_check != register.key_check
    with pytest.raises(BudgetError, match="another digest key"):
        other.adopt(register.digest)
    with pytest.raises(BudgetError, match="missing"):
        register.adopt("0" * 64)
    with pytest.raises(PrivacyError, match="32 bytes"):
        UnitRegister(tmp_path, key=b"")


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    class Full(Files):
        def write_at(self, descriptor: int, data: bytes, offset: int) -> None:
            raise OSError(28, "No space left on device")

    register = UnitRegister(tmp_path, key=UNIT_KEY, files=Full())
    with pytest.raises(OutputError, match="register of units"):
        register.charge(["a"], run_id="one", bears=anyone)
    assert register.digest == ""
    assert not list(tmp_path.glob("units-*"))


def test_digests_that_end_in_zeros_are_told_apart() -> None:
    """numpy drops trailing zero bytes of a string where it shows it, not where it compares it."""
    rows = np.frombuffer(b"a" + bytes(15) + b"a" + bytes(14) + b"b", dtype="S16")
    assert np.searchsorted(rows, rows).tolist() == [0, 1]
    assert (rows[0] == rows).tolist() == [True, False]
