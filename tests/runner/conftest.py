"""Sites for the tests of the runner."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.database import Server, assert_consistent
from tests.services import Service, Site

QUICK = {"heartbeat_seconds": 0.3, "lost_after": 30, "poll_seconds": 0.5, "drain_seconds": 5}


@pytest.fixture
def empty_site(server: Server) -> Iterator[Site]:
    """A site where nothing runs yet, for a test that starts and ends its own runner."""
    with server.database() as url, Site(url, runner={**QUICK, "slots": 4}, jobs={"kill_grace": 1}) as site:
        yield site


@pytest.fixture(scope="module")
def site(server: Server) -> Iterator[Site]:
    """A site with a runner."""
    with server.database() as url, Site(url, runner=QUICK, jobs={"kill_grace": 1}) as site:
        yield site


@pytest.fixture(scope="module")
def runner(site: Site) -> Service:
    return site.start_runner()


@pytest.fixture
def alive(site: Site, runner: Service) -> Iterator[None]:
    """Whatever a test does, the runner goes on, and each job stands in exactly one place."""
    yield
    assert runner.process.poll() is None, runner.log()
    assert "Traceback" not in runner.log()
    assert_consistent(site.transact)
