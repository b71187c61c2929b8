from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import fedward_common
from fedward_common.machine import paths
from fedward_common.machine.paths import covers, python_paths


def test_all_exist_once_and_hold_python_and_this_package() -> None:
    found = python_paths()
    assert all(path.exists() for path in found)
    assert len(set(found)) == len(found)
    for needed in (sys.executable, sys.prefix, sys.base_prefix, fedward_common.__file__, "/usr/bin", "/proc/self"):
        assert covers(found, [Path(needed)]) == (Path(needed),)


def test_no_home_no_temporary_folder_and_not_everything(tmp_path: Path) -> None:
    hidden = [tmp_path, *map(Path, ("/tmp", "/root", "/home", "/run", "/", "/sys", "/dev"))]  # noqa: S108
    assert covers(python_paths(), hidden) == ()


def test_the_current_folder_is_not_among_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert covers(python_paths(), [tmp_path]) == ()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert covers(python_paths(), [tmp_path / "data.csv"]) == (tmp_path / "data.csv",)


def test_editable_installs_that_are_on_no_path_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    finder = SimpleNamespace(MAPPING={"package": str(tmp_path / "package")})
    monkeypatch.setitem(sys.modules, "__editable___package_0_finder", finder)
    assert tmp_path / "package" in python_paths()


@pytest.mark.parametrize(("target", "added"), [("/run/a/b/resolv.conf", True), ("/run/resolv.conf", False)])
def test_the_resolvers_folder_is_among_them_but_never_all_of_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, added: bool
) -> None:
    link = tmp_path / "resolv.conf"
    link.symlink_to(target)
    monkeypatch.setattr(paths, "RESOLVER", link)
    assert bool(list(paths._resolver())) is added


def test_a_protected_path_inside_an_allowed_one_is_named_by_whatever_name(tmp_path: Path) -> None:
    site, other = tmp_path / "site", tmp_path / "other"
    (site / "data").mkdir(parents=True)
    other.mkdir()
    (tmp_path / "link").symlink_to(site)
    inside, beside = site / "data", tmp_path / "site-2"
    assert covers([site], [inside, beside, other]) == (inside,)
    assert covers([tmp_path / "link"], [inside]) == (inside,)
    assert covers([site], [tmp_path / "link" / "data"]) == (tmp_path / "link" / "data",)
    assert covers([site / ".." / "site"], [inside]) == (inside,)
    assert covers([inside], [inside]) == (inside,)
    assert covers([inside], [site]) == ()
    assert covers([], [inside]) == ()


def test_paths_that_do_not_exist_yet_are_judged_too(tmp_path: Path) -> None:
    assert covers([tmp_path], [tmp_path / "later" / "data"]) == (tmp_path / "later" / "data",)
