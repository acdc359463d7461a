"""Sites to break."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.database import Server, assert_truthful
from tests.services import Site

QUICK = {"heartbeat_seconds": 0.2, "lost_after": 1.5, "poll_seconds": 0.3, "slots": 4}


@pytest.fixture
def site(server: Server) -> Iterator[Site]:
    """A site where nothing runs yet. When the test is over, all promises must hold."""
    with (
        server.database() as url,
        Site(url, runner=QUICK, jobs={"kill_grace": 0.5}, scheduler={"tick_seconds": 0.1}) as site,
    ):
        yield site
        assert_truthful(site.transact)
