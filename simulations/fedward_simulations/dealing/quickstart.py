"""The demo's data: phrases of ICD-10-CM to be sorted into its chapters, from a package, without a download.

ICD-10-CM is a public classification, so nothing here is private and labels may come from it. This module knows
nothing of sites or models.

Example:
    >>> labels = icd_labels()
    >>> len(labels), labels[1]
    (21, 'Chapter 2: Neoplasms')
    >>> texts, chapters = icd_phrases(limit=300)
    >>> len(texts), set(chapters) == set(labels)
    (300, True)
"""

from __future__ import annotations

import functools
import hashlib
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from fedward_common.errors import DataError

__all__ = ["icd_labels", "icd_phrases"]

CHAPTER_LIMIT = 1000
SPECIAL_PURPOSES = "22"  # codes held in reserve; too few phrases to be a class
ADMINISTRATIVE = "encounter"  # 'initial encounter' and the like multiply injury phrases without saying more


def icd_labels() -> tuple[str, ...]:
    """The 21 chapters in the order of the book, for example ``Chapter 2: Neoplasms``.

    Raises:
      DataError: the package with the codes is not installed.
    """
    return tuple(_chapters().values())


def icd_phrases(limit: int | None = None) -> tuple[list[str], list[str]]:
    """Phrases and the chapter of each.

    Every description and inclusion term below block level counts, except administrative ones and those that stand in
    two chapters; of each chapter at most 1,000, chosen by the SHA-256 of the phrase.

    Args:
      limit: keep so many; None for all 20,314.

    Returns:
      Phrases and labels, one of each chapter in turn, so that any prefix is spread over the chapters.

    Guarantees:
      - The same phrases in the same order everywhere; a smaller limit is a prefix of a larger one.

    Raises:
      DataError: the package with the codes is not installed.
    """
    rows = _rows()[:limit]
    return [phrase for phrase, _ in rows], [label for _, label in rows]


@functools.cache
def _rows() -> tuple[tuple[str, str], ...]:
    chapters = _chapters()
    found: dict[str, set[str]] = defaultdict(set)
    for phrase, chapter in _phrases(chapters):
        found[phrase].add(chapter)
    ranked = [
        (rank, number, phrase, label)
        for number, (chapter, label) in enumerate(chapters.items())
        for rank, phrase in enumerate(_choose(phrase for phrase, homes in found.items() if homes == {chapter}))
    ]
    return tuple((phrase, label) for _, _, phrase, label in sorted(ranked))


def _choose(phrases: Iterable[str]) -> list[str]:
    return sorted(phrases, key=lambda phrase: hashlib.sha256(phrase.encode()).hexdigest())[:CHAPTER_LIMIT]


def _phrases(chapters: Iterable[str]) -> Iterator[tuple[str, str]]:
    icd = _icd()
    for code in icd.get_all_codes():
        if icd.is_chapter(code) or icd.is_block(code) or (chapter := icd.get_ancestors(code)[-1]) not in chapters:
            continue
        for phrase in (icd.get_description(code), *icd.get_inclusion_term(code)):
            if ADMINISTRATIVE not in phrase:
                yield phrase, chapter


def _chapters() -> dict[str, str]:
    icd = _icd()
    numbers = [code for code in icd.get_all_codes() if icd.is_chapter(code) and code != SPECIAL_PURPOSES]
    return {number: f"Chapter {number}: {_short(icd.get_description(number))}" for number in numbers}


def _short(description: str) -> str:
    return re.sub(r"\s*\([A-Z0-9]+-[A-Z0-9]+\)$", "", description)


def _icd() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package reads its codes through a deprecated call
            import simple_icd_10_cm
    except ImportError:
        raise DataError("the demo's data is not installed", hint="pip install 'fedward[quickstart]'") from None
    return simple_icd_10_cm
