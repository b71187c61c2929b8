"""What the gateway and nginx in its place are tested with: each file says its ``folder``, and what is ``shared``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedward_server.deployment.folder import OperatorFolder
from support.fronting import Front, Site, StandIn, stand_in


@pytest.fixture(scope="module")
def site(folder: OperatorFolder) -> Site:
    return Site.enrolled(folder, "st-elsewhere")


@pytest.fixture(scope="module")
def upstream(folder: OperatorFolder) -> Iterator[StandIn]:
    with stand_in(folder) as told:
        yield told


@pytest.fixture
def front(shared: Front, upstream: StandIn) -> Front:
    upstream.reset()
    return shared
