from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedward_common.config import ModelConfig, Pooling
from fedward_common.errors import ModelError
from fedward_common.modeling import base as module
from fedward_common.modeling.base import ALIASES, Alias, fingerprint, load_base, locate, model_files

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(tiny: ModelConfig, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may spoil."""
    return Path(shutil.copytree(tiny.base, tmp_path / "copy"))


def load(folder: Path) -> None:
    load_base(ModelConfig(base=str(folder)))


def test_a_base_is_frozen_float32_in_training_mode_and_without_dropout(tiny: ModelConfig) -> None:
    base = load_base(tiny)
    assert (base.hidden_size, base.max_tokens, base.pooling) == (32, 32, Pooling.MEAN)
    assert not any(parameter.requires_grad for parameter in base.encoder.parameters())
    assert {parameter.dtype for parameter in base.encoder.parameters()} == {torch.float32}
    assert base.encoder.training
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.no_grad():
        first = base.encoder(input_ids=ids).last_hidden_state
        assert torch.equal(first, base.encoder(input_ids=ids).last_hidden_state)


def test_tokens_are_capped_by_what_the_model_has_positions_for(tiny: ModelConfig) -> None:
    assert load_base(tiny.model_copy(update={"max_tokens": 500})).max_tokens == 64


def test_loading_leaves_torchs_random_state_alone(tiny: ModelConfig) -> None:
    before = torch.get_rng_state()
    load_base(tiny)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["nothing", "no/such/folder", "./nothing", "~nobody-of-this-name/model", "/no/where"])
def test_a_base_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no base model") as caught:
        locate(ModelConfig(base=name))
    assert "minilm" in caught.value.hint


def test_a_hub_id_without_a_revision_is_refused() -> None:
    with pytest.raises(ModelError, match="no pinned revision") as caught:
        locate(ModelConfig(base="someone/model"))
    assert "model.revision" in caught.value.hint


def test_a_hub_id_with_a_revision_fetches_that_revision_and_nothing_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str, list[str]]] = []

    def fetch(hub_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert locate(ModelConfig(base="someone/model", revision=REVISION)) == tmp_path
    ((hub_id, revision, patterns),) = asked
    assert (hub_id, revision) == ("someone/model", REVISION)
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in patterns)


def test_a_hub_that_fails_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("secret proxy name")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match="could not be fetched") as caught:
        locate(ModelConfig(base="someone/model", revision=REVISION))
    assert "secret" not in str(caught.value)


@pytest.fixture
def packaged(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Offers the copy as the package ``made_up_model``, with the digest that a test claims."""
    package = copy.parent / "made_up_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a model package is never run')\n", encoding="utf-8")
    shutil.copytree(copy, package / "model")
    monkeypatch.syspath_prepend(str(copy.parent))

    def claim(digest: str) -> None:
        alias = Alias(package="made_up_model", folder="model", weights_sha256=digest, hub_id="a/b")
        monkeypatch.setitem(ALIASES, "madeup", alias)

    return claim


def test_packaged_weights_must_have_their_digest(packaged: Callable[[str], None], copy: Path) -> None:
    packaged(module._sha256(copy / "model.safetensors"))
    assert locate(ModelConfig(base="madeup")).name == "model"
    packaged("0" * 64)
    with pytest.raises(ModelError, match="known SHA-256"):
        locate(ModelConfig(base="madeup"))
    with pytest.raises(ModelError, match="known SHA-256"):
        load_base(ModelConfig(base="madeup"))


def test_a_package_without_its_weights_or_missing_altogether_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, text in (("json", "known SHA-256"), ("no_such_package_anywhere", "is missing")):
        alias = Alias(package=package, folder="model", weights_sha256="0" * 64, hub_id="a/b")
        monkeypatch.setitem(ALIASES, "madeup", alias)
        with pytest.raises(ModelError, match=text) as caught:
            locate(ModelConfig(base="madeup"))
        assert caught.value.hint


# ---- what is wrong with a folder


def test_a_folder_with_only_pickled_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can carry code") as caught:
        load(copy)
    assert "safetensors" in caught.value.hint


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load(copy)


def test_pickled_weights_beside_safetensors_are_never_opened(copy: Path) -> None:
    before = fingerprint(copy, pooling=Pooling.MEAN)
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04 this is no pickle")
    load(copy)
    assert fingerprint(copy, pooling=Pooling.MEAN) == before


@pytest.mark.parametrize("text", [None, "", "{", "[]x", "5", "null", '["auto_map"]'])
def test_a_folder_without_a_readable_config_is_refused(text: str | None, copy: Path) -> None:
    if text is None:
        (copy / "config.json").unlink()
    else:
        (copy / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json"):
        load(copy)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_a_folder_that_asks_for_code_of_its_own_is_refused_and_the_code_does_not_run(copy: Path) -> None:
    edit_config(copy, auto_map={"AutoModel": "modeling_x.X"})
    (copy / "modeling_x.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ModelError, match="auto_map"):
        load(copy)
    assert not (copy / "ran").exists()


def test_a_peft_folder_is_no_base(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="PEFT"):
        load(copy)


def test_a_folder_without_a_tokenizer_is_refused(copy: Path) -> None:
    for path in copy.iterdir():
        if path.name.startswith("token") or path.name in ("vocab.txt", "special_tokens_map.json"):
            path.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load(copy)


def test_weights_that_are_cut_off_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match="does not load"):
        load(copy)


def test_a_missing_tensor_is_refused_rather_than_made_up(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        load(copy)


def test_an_unknown_architecture_is_refused(copy: Path) -> None:
    edit_config(copy, model_type="no-such-model")
    with pytest.raises(ModelError, match="does not load"):
        load(copy)


# ---- the fingerprint


def test_the_fingerprint_does_not_depend_on_where_the_folder_is(tiny: ModelConfig, copy: Path) -> None:
    assert fingerprint(copy, pooling=Pooling.MEAN) == fingerprint(Path(tiny.base), pooling=Pooling.MEAN)
    assert load_base(tiny).fingerprint == fingerprint(copy, pooling=Pooling.MEAN)


def test_the_fingerprint_depends_on_pooling(copy: Path) -> None:
    assert fingerprint(copy, pooling=Pooling.CLS) != fingerprint(copy, pooling=Pooling.MEAN)


def test_the_fingerprint_depends_on_every_file_of_the_model(copy: Path) -> None:
    names = sorted(path.name for path in copy.iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"} <= set(names)
    seen = {fingerprint(copy, pooling=Pooling.MEAN)}
    for name in names:
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole + b"\n")
        seen.add(fingerprint(copy, pooling=Pooling.MEAN))
        (copy / name).write_bytes(whole)
    assert len(seen) == len(names) + 1


@pytest.mark.parametrize("name", ["added_tokens.json", "merges.txt", "model-00002-of-00002.safetensors"])
def test_the_fingerprint_sees_files_that_are_added(name: str, copy: Path) -> None:
    before = fingerprint(copy, pooling=Pooling.MEAN)
    (copy / name).write_text("{}", encoding="utf-8")
    assert fingerprint(copy, pooling=Pooling.MEAN) != before


def test_a_model_that_normalises_over_the_batch_is_refused(tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    load = module._load

    def mixing(folder: Path, name: str) -> tuple[object, object]:
        encoder, tokenizer = load(folder, name)
        encoder.pooler.mixing = torch.nn.BatchNorm1d(32)
        return encoder, tokenizer

    monkeypatch.setattr(module, "_load", mixing)
    with pytest.raises(ModelError, match="mixes records"):
        load_base(tiny)


def test_the_files_of_a_model_are_those_that_its_fingerprint_covers(copy: Path) -> None:
    known = model_files(copy)
    assert {"config.json", "model.safetensors"} <= {file.name for file in known}
    assert [file.name for file in known] == sorted(file.name for file in known)
    before = fingerprint(copy, pooling=Pooling.MEAN)
    (copy / "README.md").write_text("not of the model")
    assert (model_files(copy), fingerprint(copy, pooling=Pooling.MEAN)) == (known, before)
    known[-1].write_bytes(known[-1].read_bytes() + b" ")
    assert fingerprint(copy, pooling=Pooling.MEAN) != before
