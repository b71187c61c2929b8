from __future__ import annotations

import ast
import importlib
import pkgutil
from types import ModuleType

import pytest

import fedward_client
import fedward_common
import fedward_server
import fedward_simulations

PACKAGES = (fedward_common, fedward_client, fedward_server, fedward_simulations)
MODULES = [
    found.name
    for package in PACKAGES
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not found.ispkg and "_pb2" not in found.name and not found.name.endswith(".__main__")
]


def test_there_are_modules_in_every_package() -> None:
    for package in PACKAGES:
        assert any(name.startswith(package.__name__) for name in MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_and_its_names_exist(name: str) -> None:
    module = _imported(name)
    listed = module.__all__
    assert list(listed) == sorted(set(listed), key=_order)
    for public in listed:
        assert hasattr(module, public)


def _imported(name: str) -> ModuleType:
    if name == "fedward_simulations.ray.engine":
        pytest.importorskip("ray", reason="Ray is not installed: fedward[ray]")
    return importlib.import_module(name)


def _order(name: str) -> tuple[int, str]:
    """Ruff's order (RUF022): constants, classes, the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("name", MODULES)
def test_all_names_only_what_the_module_itself_defines(name: str) -> None:
    module = _imported(name)
    source = module.__spec__.loader.get_source(name)  # type: ignore[union-attr]
    defined: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined.update(
                part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)
            )
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
    assert set(module.__all__) <= defined
