"""Fixtures of all whose `stack` is a running service: a conftest imports them, as each has a service of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client import Api
from tests.stack import Stack


@pytest.fixture(scope="session")
def admin(stack: Stack) -> Iterator[Api]:
    """The API as the first administrator."""
    with Api(stack.base_url, stack.admin_token) as api:
        yield api


@pytest.fixture(scope="session")
def workers(stack: Stack) -> Iterator[list[Api]]:
    """Each worker itself, past the router; to be used with somebody's token."""
    sockets = [stack.settings.socket_dir / f"app_{number}.sock" for number in range(stack.settings.server.processes)]
    apis = [Api("http://worker", stack.admin_token, socket_path=path) for path in sockets]
    yield apis
    for api in apis:
        api.close()
