from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_client.courier.folder import CourierFolder
from support.fleet_api import Authority, FleetApi, courier_folder, serving


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority.make()


@pytest.fixture
def api(authority: Authority, tmp_path: Path) -> Iterator[FleetApi]:
    with serving(authority.serve(tmp_path)) as api:
        yield api


@pytest.fixture
def folder(api: FleetApi, authority: Authority, tmp_path: Path) -> CourierFolder:
    return courier_folder(tmp_path, api.address, authority.pem)
