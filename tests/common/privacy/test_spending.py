from __future__ import annotations

import pytest

from fedward_common.errors import BudgetError
from fedward_common.privacy.spending import History, MemoryRegister, Register


def anyone(history: History) -> bool:
    return True


def charged(*runs: tuple[str, list[str]]) -> MemoryRegister:
    register = MemoryRegister()
    for run_id, units in runs:
        register.adopt(register.charge(units, run_id=run_id, bears=anyone).digest)
    return register


def test_a_memory_register_is_a_register() -> None:
    register: Register = MemoryRegister()
    assert (register.key_check, register.digest, register.histories()) == ("", "", ())


def test_nothing_holds_before_it_is_adopted() -> None:
    register = charged(("one", ["a"]))
    before = register.digest
    charge = register.charge(["a", "b"], run_id="two", bears=anyone)
    assert (register.digest, register.histories()) == (before, (("one",),))
    register.adopt(charge.digest)
    assert register.histories() == (("one", "two"), ("two",))


def test_a_charge_that_is_never_adopted_is_gone() -> None:
    register = charged(("one", ["a"]))
    lost = register.charge(["a"], run_id="two", bears=anyone)
    register.adopt(register.digest)
    with pytest.raises(BudgetError, match="not the ledger's"):
        register.adopt(lost.digest)


def test_units_that_left_the_data_keep_their_spending() -> None:
    register = charged(("one", ["a", "b"]), ("two", ["b"]))
    assert register.taking_part("one", ["b", "a", "c"]).tolist() == [True, True, False]
    assert register.taking_part("two", ["b", "a", "c"]).tolist() == [True, False, False]


def test_units_that_cannot_bear_it_are_left_out() -> None:
    register = charged(("one", ["a"]))
    charge = register.charge(["a", "b"], run_id="two", bears=lambda history: "one" not in history)
    register.adopt(charge.digest)
    assert register.taking_part("two", ["a", "b"]).tolist() == [False, True]


@pytest.mark.parametrize("units", [[], ["a"]])
def test_where_nobody_can_bear_it_nobody_takes_part_and_nothing_says_so(units: list[str]) -> None:
    register = charged(("one", ["a"]))
    charge = register.charge(units, run_id="two", bears=lambda history: False)
    assert charge.digest == register.digest
    register.adopt(charge.digest)
    assert not register.taking_part("two", ["a", "b"]).any()
    assert register.taking_part("one", ["a", "b"]).tolist() == [True, False]


def test_equal_contents_have_equal_digests() -> None:
    assert charged(("one", ["a", "b"])).digest == charged(("one", ["b", "a", "a"])).digest
    assert charged(("one", ["a"])).digest != charged(("two", ["a"])).digest
