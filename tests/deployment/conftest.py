"""One federation for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.deployed import Deployed
from support.story import SLOT_S, STAGES, Story, tell


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Told once; its processes end with the session."""
    with Deployed.make(tmp_path_factory.mktemp("fed"), stages=STAGES, slot_s=SLOT_S) as federation:
        yield tell(federation)
