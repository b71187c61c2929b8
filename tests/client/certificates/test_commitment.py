from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from fedward_client.certificates.commitment import check_commitment, commit, keep_nonce, new_nonce, open_commitment
from fedward_common.errors import MalformedMessage, OutputError, PrivacyError

UNITS = [bytes([number]) * 32 for number in (3, 1, 2)]
NONCE = bytes(range(32))


def test_order_and_repetitions_change_nothing_and_any_other_digest_does() -> None:
    commitment = commit(UNITS, nonce=NONCE)
    assert commitment == commit([*reversed(UNITS), UNITS[0]], nonce=NONCE)
    others = (UNITS[:2], [*UNITS, bytes(32)], [*UNITS[:2], bytes(32)], [b"".join(UNITS)])
    assert len({commitment, *(commit(units, nonce=NONCE) for units in others)}) == 5


def test_another_nonce_gives_another_commitment_to_the_same_units() -> None:
    assert len({commit(UNITS, nonce=new_nonce()) for _ in range(8)}) == 8


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33)])
def test_a_short_or_long_nonce_is_refused(nonce: bytes) -> None:
    with pytest.raises(PrivacyError, match="a nonce of"):
        commit(UNITS, nonce=nonce)


def test_digests_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(PrivacyError, match="unlike lengths"):
        commit([bytes(32), bytes(31)], nonce=NONCE)


def test_a_commitment_to_no_units_is_one_like_any_other(tmp_path: Path) -> None:
    commitment = commit([], nonce=NONCE)
    assert len(commitment) == 64 and commitment != commit([], nonce=new_nonce())
    keep_nonce(tmp_path, commitment, NONCE)
    assert check_commitment(commitment, open_commitment(commitment, [], vault=tmp_path)) == ()
    with pytest.raises(PrivacyError, match="other units"):
        open_commitment(commitment, UNITS, vault=tmp_path)


def test_an_opening_shows_the_units_to_whoever_has_it(tmp_path: Path) -> None:
    commitment = commit(UNITS, nonce=NONCE)
    keep_nonce(tmp_path / "vault", commitment, NONCE)
    opening = open_commitment(commitment, UNITS, vault=tmp_path / "vault")
    assert check_commitment(commitment, opening) == tuple(sorted(UNITS))


def test_an_opening_with_one_unit_more_or_less_or_another_nonce_is_refused(tmp_path: Path) -> None:
    commitment = commit(UNITS, nonce=NONCE)
    keep_nonce(tmp_path, commitment, NONCE)
    row = json.loads(open_commitment(commitment, UNITS, vault=tmp_path))
    for changed in (
        {**row, "units": row["units"][:2]},
        {**row, "units": [*row["units"], "00" * 32]},
        {**row, "nonce": "00" * 32},
    ):
        with pytest.raises(PrivacyError, match="other units"):
            check_commitment(commitment, json.dumps(changed).encode())


def test_other_units_do_not_open_it(tmp_path: Path) -> None:
    commitment = commit(UNITS, nonce=NONCE)
    keep_nonce(tmp_path, commitment, NONCE)
    with pytest.raises(PrivacyError, match="other units"):
        open_commitment(commitment, UNITS[:2], vault=tmp_path)


@pytest.mark.parametrize(
    "opening", [b"", b"[]", b"{}", b"null", b'{"kind":1,"nonce":2,"schema":3,"units":4}', b"[" * 100_000]
)
def test_what_is_no_opening_is_refused(opening: bytes) -> None:
    with pytest.raises(MalformedMessage):
        check_commitment("ab" * 32, opening)


def test_the_nonce_is_private_and_never_overwritten(tmp_path: Path) -> None:
    keep_nonce(tmp_path / "vault", "ab" * 32, NONCE)
    (file,) = (tmp_path / "vault").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    with pytest.raises(OutputError, match="never overwritten"):
        keep_nonce(tmp_path / "vault", "ab" * 32, new_nonce())
    assert bytes.fromhex(file.read_text().strip()) == NONCE


def test_a_lost_nonce_and_no_commitment_are_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no nonce"):
        open_commitment("ab" * 32, UNITS, vault=tmp_path)
    with pytest.raises(PrivacyError, match="commits to no units"):
        open_commitment("", UNITS, vault=tmp_path)
