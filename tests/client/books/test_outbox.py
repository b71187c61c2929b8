from __future__ import annotations

from pathlib import Path

import pytest

from fedward_client.books.files import Files
from fedward_client.books.outbox import Outbox
from fedward_common.errors import BudgetError, InputError, OutputError
from support.books import plan


def test_a_reply_comes_back_byte_for_byte_for_its_plan_alone(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.store("run", plan(1), b"line\nline\0\n")
    for each in (outbox, Outbox(tmp_path)):
        assert each.find(plan(1)) == b"line\nline\0\n"
        assert each.find(plan(2)) is None
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]


def test_a_plan_has_one_reply(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.store("run", plan(1), b"one")
    outbox.store("run", plan(1), b"one")
    with pytest.raises(BudgetError, match="one reply"):
        outbox.store("run", plan(1), b"two")
    assert outbox.find(plan(1)) == b"one"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_newest_four_of_each_run_are_kept(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for number in range(6):
        outbox.store("run", plan(number), b"%d" % number)
        outbox.store("other", plan(100 + number // 3), b"x")
    outbox = Outbox(tmp_path)
    outbox.store("run", plan(6), b"6")
    found = [outbox.find(plan(number)) for number in range(7)]
    assert found == [None, None, None, b"3", b"4", b"5", b"6"]
    assert outbox.find(plan(100)) == b"x"
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("index", range(0, 280, 10))
def test_a_flip_of_any_byte_is_refused(tmp_path: Path, index: int) -> None:
    outbox = Outbox(tmp_path)
    outbox.store("run", plan(1), b"reply" * 20)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    assert len(data) > 280
    data[index] ^= 1
    path.write_bytes(data)
    for each in (outbox, Outbox(tmp_path)):
        with pytest.raises(OutputError, match="damaged"):
            each.find(plan(1))


def test_a_reply_under_another_plans_name_is_refused(tmp_path: Path) -> None:
    Outbox(tmp_path).store("run", plan(1), b"reply")
    (path,) = tmp_path.iterdir()
    path.rename(path.with_name(path.name.replace(plan(1), plan(2))))
    outbox = Outbox(tmp_path)
    with pytest.raises(OutputError, match="damaged"):
        outbox.find(plan(2))
    assert outbox.find(plan(1)) is None


def test_damaged_replies_stay_refused(tmp_path: Path) -> None:
    """They are not forgotten with time: the plan would then look as if it had no reply."""
    outbox = Outbox(tmp_path)
    for number in range(6):
        outbox.store(f"run-{number}", plan(number), b"reply")
    for path in tmp_path.iterdir():
        path.write_bytes(b"torn")
    for _ in range(2):
        outbox = Outbox(tmp_path)
        for number in range(6):
            with pytest.raises(OutputError):
                outbox.find(plan(number))


def test_a_reply_that_cannot_be_read_is_refused_alone(tmp_path: Path) -> None:
    Outbox(tmp_path).store("run", plan(1), b"reply")
    (tmp_path / f"0000000002-{plan(2)}.reply").mkdir()
    outbox = Outbox(tmp_path)
    assert outbox.find(plan(1)) == b"reply"
    with pytest.raises(OutputError):
        outbox.find(plan(2))


def test_half_a_reply_is_never_found(tmp_path: Path) -> None:
    class Cut(Files):
        def rename(self, source: Path, target: Path) -> None:
            raise OSError(28, "No space left on device")

    outbox = Outbox(tmp_path, files=Cut())
    with pytest.raises(OutputError, match="the outbox"):
        outbox.store("run", plan(1), b"reply")
    assert outbox.find(plan(1)) is None
    assert Outbox(tmp_path).find(plan(1)) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("plan_id", ["", "../../etc/passwd", "AB" * 32, "ab" * 31])
def test_a_plan_id_is_a_digest(tmp_path: Path, plan_id: str) -> None:
    with pytest.raises(InputError, match="digest"):
        Outbox(tmp_path).store("run", plan_id, b"reply")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the outbox"):
        Outbox(tmp_path / "none")
