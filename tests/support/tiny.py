"""A tiny BERT, built from a fixed seed: two layers of width 32, one hundred word pieces. Loads in well under a second.

Example:
    base = load_base(tiny_base(tmp_path / "base"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedward_common.config import ModelConfig

WORDS = [
    "chest",
    "pain",
    "fever",
    "cough",
    "fracture",
    "of",
    "the",
    "left",
    "right",
    "arm",
    "leg",
    "heart",
    "lung",
    "skin",
    "acute",
    "chronic",
    "with",
    "without",
    "and",
    "in",
    "infection",
    "injury",
    "burn",
    "wound",
    "normal",
    "pregnancy",
    "asthma",
    "diabetes",
    "type",
    "one",
    "two",
    "viral",
    "bacterial",
    "disease",
    "disorder",
]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = (*SPECIAL, *WORDS, *ALPHABET)  # padded to 100 below


def tiny_base(folder: Path, *, seed: int = 0) -> ModelConfig:
    """Save a tiny random BERT encoder with its WordPiece tokenizer and return the ``[model]`` table that loads it.

    Args:
      folder: is made; a folder that already holds the model is used as it is.
      seed: of the random weights; torch's global generator is left as it was.

    Returns:
      ``ModelConfig(base=<folder>, max_tokens=32)``: hidden size 32, 2 layers with ``query`` and ``value`` layers of
      32 x 32, at most 64 positions, :data:`WORDS` in the vocabulary.
    """
    if not (folder / "model.safetensors").exists():
        _save(folder, seed)
    return ModelConfig(base=str(folder), max_tokens=32)


def worded_base(folder: Path, words: Sequence[str], *, seed: int = 0) -> ModelConfig:
    """``tiny_base`` with a vocabulary of its own, for texts of another subject."""
    if not (folder / "model.safetensors").exists():
        _save(folder, seed, vocabulary=(*SPECIAL, *words, *ALPHABET))
    return ModelConfig(base=str(folder), max_tokens=32)


def _save(folder: Path, seed: int, vocabulary: Sequence[str] = VOCABULARY) -> None:
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    filler = [f"[unused{number}]" for number in range(100 - len(vocabulary))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.BertModel(
            transformers.BertConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                vocab_size=max(100, len(vocabulary)),
                max_position_embeddings=64,
                initializer_range=0.2,  # with the usual 0.02 all texts look alike and tests see nothing
            )
        )
    model.save_pretrained(str(folder))
    (folder / "vocab.txt").write_text("\n".join([*vocabulary, *filler]) + "\n", encoding="utf-8")
    _tokenizer(folder / "vocab.txt").save_pretrained(str(folder))


def _tokenizer(vocabulary: Path) -> Any:
    import transformers

    return transformers.BertTokenizerFast(vocab=str(vocabulary))
