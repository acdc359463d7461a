"""Sites for the tests of the runner."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.database import Server
from tests.services import Site

QUICK = {"heartbeat_seconds": 0.3, "lost_after": 30, "poll_seconds": 0.5, "drain_seconds": 5}


@pytest.fixture
def empty_site(server: Server) -> Iterator[Site]:
    """A site where nothing runs yet, for a test that starts and ends its own runner."""
    with server.database() as url, Site(url, runner={**QUICK, "slots": 4}, jobs={"kill_grace": 1}) as site:
        yield site
