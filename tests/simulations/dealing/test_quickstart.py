"""The demo's data: the same 20,314 phrases everywhere."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter

import pytest

from fedward_common.errors import DataError
from fedward_simulations.dealing.quickstart import icd_labels, icd_phrases


def test_labels_are_the_chapters_in_order() -> None:
    labels = icd_labels()
    assert len(labels) == len(set(labels)) == 21
    assert labels[4] == "Chapter 5: Mental, Behavioral and Neurodevelopmental disorders"
    assert labels[16].startswith("Chapter 17: Congenital") and "(" not in "".join(labels)


def test_phrases_are_what_the_measurements_used() -> None:
    texts, labels = icd_phrases()
    assert len(texts) == len(set(texts)) == len(labels) == 20_314
    counts = Counter(labels)
    assert set(counts) == set(icd_labels()) and max(counts.values()) == 1000
    assert not any("encounter" in text for text in texts)


def test_the_same_phrases_in_the_same_order_everywhere() -> None:
    texts, labels = icd_phrases()
    digest = hashlib.sha256("\n".join(f"{text}\t{label}" for text, label in zip(texts, labels, strict=True)).encode())
    assert digest.hexdigest() == DIGEST


def test_a_smaller_limit_is_a_prefix_of_a_larger_one() -> None:
    texts, labels = icd_phrases(limit=300)
    assert (texts, labels) == tuple(part[:300] for part in icd_phrases(limit=1000))
    assert set(Counter(labels).values()) == {14, 15}


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", None)
    with pytest.raises(DataError, match="not installed") as caught:
        icd_labels()
    assert caught.value.hint == "pip install 'fedward[quickstart]'"


DIGEST = "c0ca626318cdbd80b3a4e151a99462c7ffbba654f988b470fccce53c155b412c"
