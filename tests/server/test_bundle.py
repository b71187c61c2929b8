from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedward_common.adapter import Adapter
from fedward_common.errors import OutputError
from fedward_server.bundle import Bundle, run_id_of
from support.coordinating import bundle_of, config_of
from support.nouns import HEAD, SPEC, START

FILES = ("bundle.json", "initial.safetensors", "frozen.safetensors")


def test_a_bundle_round_trips(tmp_path: Path) -> None:
    bundle = bundle_of()
    bundle.save(tmp_path)
    again = Bundle.load(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    assert (again.run_id, again.config, again.spec.digest) == (bundle.run_id, bundle.config, SPEC.digest)
    assert again.initial.digest == START.digest
    assert again.frozen.keys() == bundle.frozen.keys()
    np.testing.assert_array_equal(again.frozen["layer.lora_A"], bundle.frozen["layer.lora_A"])


def test_a_bundle_without_frozen_tensors_round_trips(tmp_path: Path) -> None:
    Bundle(run_id="ab" * 32, config=config_of(), initial=START, frozen={}, base_name="x/y").save(tmp_path)
    assert dict(Bundle.load(tmp_path).frozen) == {}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "flipped in the middle", "flipped at the end"])
def test_a_damaged_file_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    bundle_of().save(tmp_path)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        at = len(data) // 2 if damage == "flipped in the middle" else len(data) - 1
        data[at] ^= 1
        path.write_bytes({"empty": b"", "cut off": bytes(data[:-5])}.get(damage, bytes(data)))
    with pytest.raises(OutputError) as caught:
        Bundle.load(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["[]", "5", "null", "{}", '{"content": [], "sha256": ""}'])
def test_json_that_is_no_bundle_is_refused(text: str, tmp_path: Path) -> None:
    bundle_of().save(tmp_path)
    (tmp_path / "bundle.json").write_text(text, encoding="utf-8")
    with pytest.raises(OutputError):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("key", ["run_id", "config", "spec", "version"])
def test_an_edited_value_is_refused(key: str, tmp_path: Path) -> None:
    bundle_of().save(tmp_path)
    path = tmp_path / "bundle.json"
    envelope = json.loads(path.read_text(encoding="utf-8"))
    envelope["content"][key] = {"config": {}, "spec": {}}.get(key, "ef" * 32)
    path.write_text(json.dumps(envelope), encoding="utf-8")
    with pytest.raises(OutputError):
        Bundle.load(tmp_path)


def test_tensors_of_another_run_are_refused(tmp_path: Path) -> None:
    bundle_of().save(tmp_path)
    Adapter.zeros(HEAD).save(tmp_path / "initial.safetensors")
    with pytest.raises(OutputError):
        Bundle.load(tmp_path)
    START.scaled(2).save(tmp_path / "initial.safetensors")
    with pytest.raises(OutputError):
        Bundle.load(tmp_path)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        Bundle.load(tmp_path / "nowhere")


def test_terms_are_those_of_the_run_file() -> None:
    config = config_of(privacy={"epsilon": 3.0, "delta": 1e-6, "clip_norm": 0.5, "metrics_share": 0.25})
    terms = config.terms
    assert (terms.epsilon, terms.delta, terms.clip_norm, terms.max_records_per_unit) == (3.0, 1e-6, 0.5, 1)
    assert [(s.name, s.rounds, s.local_steps, s.sampling_rate, s.noise_ratio) for s in terms.stages] == [
        ("head", 2, 1, 1.0, 1.0),
        ("adapter", 2, 3, 1.0, 1.0),
    ]
    assert (terms.metrics.evaluations, terms.metrics.share, terms.metrics.validation_fraction) == (1, 0.25, 0.05)


def test_a_run_id_depends_on_config_and_nonce() -> None:
    one = run_id_of(config_of(), nonce=b"a")
    assert one == run_id_of(config_of(), nonce=b"a")
    assert len({one, run_id_of(config_of(), nonce=b"b"), run_id_of(config_of(seed=4), nonce=b"a")}) == 3
