"""docs/threat-model.md names tests as evidence: each of them exists, and every attacker has one or is plainly open."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "threat-model.md"
USED = re.compile(r"\btest_\w+(?!\w*\.py)")
DEFINED = re.compile(r"^\[(\w+)\]: \.\./(tests/[\w/]+\.py)$", flags=re.MULTILINE)
ATTACKERS = (
    "Curious coordinator",
    "Hostile coordinator",
    "Two coordinators at once",
    "Courier",
    "Network",
    "Other site",
    "Holder of the final model",
    "Other local accounts",
    "Stolen backup",
    "Restored old folder",
    "Crash at any instant",
    "Disk full",
    "Clock moved back",
    "Lost keys",
    "Insider administrator",
)


@cache
def functions_in(path: Path) -> frozenset[str]:
    """The names of the test functions of a file, by parsing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def problems(page: str) -> list[str]:
    """Names without a file, files that lack the test, and definitions that nothing uses."""
    files = dict(DEFINED.findall(page))
    used = set(USED.findall(DEFINED.sub("", page)))
    absent = [n for n, path in files.items() if not (ROOT / path).is_file() or n not in functions_in(ROOT / path)]
    return sorted({*absent, *(used ^ files.keys())})


def rows(page: str) -> list[list[str]]:
    """The cells of every row of the table of attackers."""
    table = page.partition("## Attackers")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_named_test_exists() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(DEFINED.findall(page)) > 40
    assert problems(page) == []


@pytest.mark.parametrize(
    "page",
    [
        "as [test_that_nobody_wrote] shows\n\n[test_that_nobody_wrote]: ../tests/contracts/test_threat_model.py\n",
        "as [test_every_named_test_exists] shows\n\n[test_every_named_test_exists]: ../tests/contracts/test_none.py\n",
        "[rows]: ../tests/contracts/test_threat_model.py\n",
        "as [test_every_named_test_exists] shows\n",
        "as test_every_named_test_exists shows\n",
        "[test_every_named_test_exists]: ../tests/contracts/test_threat_model.py\n",
    ],
)
def test_an_unknown_name_is_seen(page: str) -> None:
    assert problems(page)


def test_a_known_name_is_none_of_them() -> None:
    name = "test_a_known_name_is_none_of_them"
    assert not problems(f"| [{name}] |\n\n[{name}]: ../tests/contracts/test_threat_model.py\n")


def test_every_attacker_has_a_defence_and_a_test_or_is_plainly_open() -> None:
    table = rows(PAGE.read_text(encoding="utf-8"))
    for row in table:
        assert len(row) == 4, row
        assert all(row[1:]), row
        assert USED.search(row[3]) or row[3].startswith("none: "), row
    assert {name for name in ATTACKERS if not any(row[0].startswith(f"**{name}**") for row in table)} == set()


@pytest.mark.parametrize("name", ["privacy.md", "threat-model.md"])
def test_every_file_that_a_page_names_exists(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    for path in re.findall(r"`(tests/[\w/]+(?:\.py|/))`", page):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!https?:)([\w./-]+)", page):
        assert (ROOT / "docs" / target).exists(), target
