from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_common.errors import OutputError
from fedward_server import checkpoint
from fedward_server.checkpoint import Checkpoints
from fedward_server.state import Moments, State
from support.nouns import SPEC, START

FILES = ("state.json", "adapter.safetensors", "moments.safetensors")
HEADS = {"site-1": "ab" * 32}
EXTRA: dict[str, Any] = {"ledger": [1, 2.5, None, {"é\u2028": "x"}], "0": True}


def state_after(finished: int) -> State:
    """A state that tells rounds apart, with awkward float64 moments."""
    generator = np.random.default_rng(finished)
    moments = Moments(
        first=generator.normal(size=SPEC.size),
        second=np.exp(generator.normal(size=SPEC.size) * 100),
        steps=dict.fromkeys(SPEC.slices, finished),
    )
    return State(finished=finished, adapter=START.scaled(1 + finished), moments=moments)


def save(folder: Path, *rounds: int) -> Checkpoints:
    """Checkpoints after these rounds."""
    checkpoints = Checkpoints(folder)
    for finished in rounds:
        checkpoints.save(state_after(finished), run_id="cd" * 32, heads=HEADS, extra=EXTRA)
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_round_trips_to_the_bit(tmp_path: Path) -> None:
    state = state_after(7)
    found = save(tmp_path / "deep" / "folder", 7).latest(SPEC)
    assert (found.run_id, found.heads, found.extra, found.state.finished) == ("cd" * 32, HEADS, EXTRA, 7)
    assert found.state.adapter.digest == state.adapter.digest
    assert found.state.moments.first.tobytes() == state.moments.first.tobytes()
    assert found.state.moments.second.tobytes() == state.moments.second.tobytes()
    assert found.state.moments.steps == state.moments.steps


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2, 3, 4)
    assert names(tmp_path) == ["round-0003", "round-0004"]
    assert checkpoints.latest(SPEC).state.finished == 4


def test_the_newest_is_newest_by_number(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 9_998, 9_999, 10_000)
    assert checkpoints.latest(SPEC).state.finished == 10_000
    assert names(tmp_path) == ["round-10000", "round-9999"]


def test_a_round_may_be_saved_again(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2)
    checkpoints.save(replace(state_after(2), adapter=START), run_id="ef" * 32, heads={}, extra={})
    assert checkpoints.latest(SPEC).run_id == "ef" * 32
    assert names(tmp_path) == ["round-0001", "round-0002"]


def test_without_a_checkpoint_there_is_an_error_with_a_hint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(OutputError, match="no checkpoint") as caught:
            Checkpoints(folder).latest(SPEC)
        assert caught.value.hint


def test_what_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1)
    (tmp_path / "round-notes").mkdir()
    (tmp_path / "round-0009.bak").mkdir()
    assert checkpoints.latest(SPEC).state.finished == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "flipped"])
def test_a_damaged_file_is_refused_and_the_hint_names_the_one_before(name: str, damage: str, tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2)
    path = tmp_path / "round-0002" / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"empty": b"", "cut off": bytes(data[:-3])}.get(damage, bytes(data)))
    with pytest.raises(OutputError, match="round-0002") as caught:
        checkpoints.latest(SPEC)
    assert "round-0001" in caught.value.hint


@pytest.mark.parametrize("text", ["[]", "5", "null", "{}", '{"content": {}, "sha256": ""}'])
def test_json_that_is_no_state_is_refused(text: str, tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1)
    (tmp_path / "round-0001" / "state.json").write_text(text, encoding="utf-8")
    with pytest.raises(OutputError) as caught:
        checkpoints.latest(SPEC)
    assert "anew" in caught.value.hint


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        save(tmp_path, 1).latest(replace(SPEC, base_fingerprint="ef" * 32))


def crash(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("instant", ["before anything", "while writing", "before the rename"])
def test_a_crash_before_the_rename_leaves_the_one_before(
    instant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = save(tmp_path, 1)
    at = {
        "before anything": (Path, "mkdir"),
        "while writing": (checkpoint, "sync_file"),
        "before the rename": (Path, "rename"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*at[instant], crash)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert checkpoints.latest(SPEC).state.finished == 1
    save(tmp_path, 2)
    assert checkpoints.latest(SPEC).state.finished == 2
    assert names(tmp_path) == ["round-0001", "round-0002"]


STEPS = [
    (Path, "mkdir"),
    (Path, "write_bytes"),
    (Path, "write_text"),
    (checkpoint, "sync_file"),
    (checkpoint, "sync_folder"),
    (Path, "rename"),
    (shutil, "rmtree"),
]


@pytest.mark.parametrize("instant", range(25))
def test_a_crash_at_any_step_of_saving_a_round_again_leaves_the_old_one_or_the_new_one(
    instant: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that touches the disk is a step; the crash comes before or, on the next run, after it."""
    checkpoints = save(tmp_path, 1, 2)
    happened = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **more: Any) -> Any:
            nonlocal happened
            happened += 1
            if happened > instant:
                raise KeyboardInterrupt
            return call(*args, **more)

        return stepped

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        for owner, name in STEPS:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        checkpoints.save(state_after(2), run_id="ef" * 32, heads={}, extra={})
    found = Checkpoints(tmp_path).latest(SPEC)
    assert (found.state.finished, found.run_id in ("cd" * 32, "ef" * 32)) == (2, True)
    if happened <= instant:
        assert (found.run_id, names(tmp_path)) == ("ef" * 32, ["round-0001", "round-0002"])
    checkpoints.save(state_after(2), run_id="12" * 32, heads={}, extra={})
    assert checkpoints.latest(SPEC).run_id == "12" * 32
    assert names(tmp_path) == ["round-0001", "round-0002"]


def test_those_instants_are_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, calls = save(tmp_path, 1, 2), 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            return call(*args, **more)

        return stepped

    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    checkpoints.save(state_after(2), run_id="ef" * 32, heads={}, extra={})
    assert 10 < calls < 25


def test_nothing_that_a_crash_left_behind_stays_on_disk(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2, 3)
    for name in (".round-0001.part", ".round-0002.old", ".round-0009.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}", encoding="utf-8")
    assert checkpoints.latest(SPEC).state.finished == 3
    save(tmp_path, 4)
    assert names(tmp_path) == ["round-0003", "round-0004"]


def test_what_sites_have_missed_comes_back_and_was_not_in_the_first_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_after(1), run_id="cd" * 32, heads={}, extra={}, missed={"site-1": 4})
    assert checkpoints.latest(SPEC).missed == {"site-1": 4}
    path = tmp_path / "round-0001" / "state.json"
    content = json.loads(path.read_text(encoding="utf-8"))["content"]
    del content["missed"]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, "content": content}), encoding="utf-8")
    assert checkpoints.latest(SPEC).missed == {}


def test_what_sites_declared_comes_back_and_was_not_in_the_first_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_after(1), run_id="cd" * 32, heads=HEADS, units={"a": 500}, extra=EXTRA)
    assert checkpoints.latest(SPEC).units == {"a": 500}
    file = tmp_path / "round-0001" / "state.json"
    content = json.loads(file.read_text())["content"]
    del content["units"]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    file.write_text(json.dumps({"sha256": digest, "content": content}))
    assert checkpoints.latest(SPEC).units == {}


def test_files_are_on_disk_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    rename = Path.rename
    for name in ("sync_file", "sync_folder"):
        monkeypatch.setattr(checkpoint, name, lambda path: happened.append(path.name))

    def noted(self: Path, to: Path) -> Path:
        happened.append("rename")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", noted)
    save(tmp_path / "run" / "kept", 1)
    assert happened[:2] == [tmp_path.name, "run"], "the folders that were made for it"
    assert set(happened[2:5]) == set(FILES)
    assert happened[5:] == [".round-0001.part", "rename", "kept"]
    happened.clear()
    save(tmp_path / "run" / "kept", 2)
    assert len(happened) == 6


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "call"),
    [(Path, "mkdir"), (Path, "write_bytes"), (Path, "write_text"), (checkpoint, "sync_file"), (Path, "rename")],
)
def test_a_full_disk_is_an_error_with_a_hint_and_leaves_earlier_ones(
    owner: Any, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = save(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, full)
        with pytest.raises(OutputError, match="No space left") as caught:
            save(tmp_path, 3)
    assert "resume" in caught.value.hint
    assert names(tmp_path) == ["round-0001", "round-0002"]
    assert checkpoints.latest(SPEC).state.finished == 2


def test_a_device_that_is_really_full_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    write: Callable[[Path, bytes], int] = Path.write_bytes

    def redirected(self: Path, data: bytes) -> int:
        return write(Path("/dev/full"), data)

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", redirected)
        with pytest.raises(OutputError, match="No space left"):
            save(tmp_path, 2)
    assert names(tmp_path) == ["round-0001"]
