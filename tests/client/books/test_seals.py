from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from fedward_client.books.seals import SLOT_BYTES, Head, Seal, first_slots, newest
from fedward_common.errors import BudgetError
from support.books import KEY, OTHER_KEY

SEAL = Seal.of("ledger", KEY)
DIGEST = hashlib.sha256(b"entry").hexdigest()


def head(sequence: int) -> Head:
    return Head(sequence=sequence, length=100 * sequence, content=DIGEST, digest=DIGEST)


def slots(*sequences: int, seal: Seal = SEAL) -> bytes:
    data = bytearray(first_slots(seal))
    for sequence in sequences:
        each = head(sequence)
        data[each.slot_offset : each.slot_offset + SLOT_BYTES] = each.to_slot(seal)
    return bytes(data)


def test_a_signature_holds_for_one_journal_one_purpose_and_one_site() -> None:
    signature = SEAL.sign_entry(DIGEST)
    assert SEAL.entry_holds(DIGEST, signature)
    assert Seal(name="ledger", public_keys=SEAL.public_keys).entry_holds(DIGEST, signature)
    assert not Seal.of("audit", KEY).entry_holds(DIGEST, signature)
    assert not Seal.of("ledger", OTHER_KEY).entry_holds(DIGEST, signature)
    assert not SEAL.entry_holds(hashlib.sha256(b"other").hexdigest(), signature)
    assert not SEAL._holds(b"head", bytes.fromhex(DIGEST), signature)
    for nonsense in (None, 7, "", "xyz", signature[:-2], signature.upper() + "00"):
        assert not SEAL.entry_holds(DIGEST, nonsense)


def test_what_an_earlier_key_signed_still_holds() -> None:
    rotated = Seal.of("ledger", OTHER_KEY, earlier=(KEY.public_key(),))
    assert rotated.entry_holds(DIGEST, SEAL.sign_entry(DIGEST))
    assert not SEAL.entry_holds(DIGEST, rotated.sign_entry(DIGEST))


def test_a_seal_for_reading_signs_nothing() -> None:
    with pytest.raises(BudgetError, match="opened for reading"):
        Seal(name="ledger", public_keys=()).sign_entry(DIGEST)


def test_a_head_fits_its_slot_and_comes_back() -> None:
    largest = Head(sequence=2**53, length=2**53, content=DIGEST, digest=DIGEST)
    for each in (head(0), head(1), largest):
        data = each.to_slot(SEAL)
        assert len(data) == SLOT_BYTES
        assert Head.from_slot(data, SEAL) == each
    assert (head(4).slot_offset, head(5).slot_offset) == (0, SLOT_BYTES)


def test_the_newest_of_two_counts_and_a_torn_one_is_noticed() -> None:
    assert newest(first_slots(SEAL), SEAL).head.sequence == 0
    assert newest(slots(1), SEAL).head == head(1)
    assert newest(slots(4, 5), SEAL).head == newest(slots(5, 4), SEAL).head == head(5)
    torn = bytearray(slots(4, 5))
    torn[SLOT_BYTES + 7] ^= 1
    found = newest(bytes(torn), SEAL)
    assert (found.head, found.torn) == (head(4), True)
    assert not newest(slots(4, 5), SEAL).torn


@pytest.mark.parametrize(
    "data",
    [
        b"",
        slots(4, 5)[:-1],
        slots(4, 5) + b" ",
        slots(4, 7),
        slots(4),  # an empty journal's head in the other slot
        slots(4, 5)[SLOT_BYTES:] + slots(4, 5)[:SLOT_BYTES],
        slots(4, 5, seal=Seal.of("ledger", OTHER_KEY)),
        slots(4, 5, seal=Seal.of("audit", KEY)),
        bytes(2 * SLOT_BYTES),
    ],
)
def test_other_pairs_are_refused(data: bytes) -> None:
    with pytest.raises(BudgetError) as caught:
        newest(data, SEAL)
    assert "backup" in caught.value.hint


def test_a_changed_number_is_no_head() -> None:
    data = head(4).to_slot(SEAL)
    assert Head.from_slot(data.replace(b'"sequence":4', b'"sequence":5'), SEAL) is None
    assert Head.from_slot(data.replace(b",", b" ,", 1)[:-2] + b"\n", SEAL) is None  # one spelling
    assert Head.from_slot(replace(head(4), digest="").to_slot(SEAL), SEAL) is not None
