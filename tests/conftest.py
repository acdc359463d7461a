"""Fixtures of all tests: one PostgreSQL server a session, and in it a database for each test that asks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import sqlalchemy

from tests.database import EmbeddedServer, Server, Transactions


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A real PostgreSQL with a migrated template: an embedded one, or yours at TEST_DATABASE_URL."""
    url = os.environ.get("TEST_DATABASE_URL")
    with Server(url) if url else EmbeddedServer() as server:
        yield server


@pytest.fixture
def database_url(server: Server) -> Iterator[str]:
    """The address of a migrated, empty database of the test's own."""
    with server.database() as url:
        yield url


@pytest.fixture
def transact(database_url: str) -> Iterator[Transactions]:
    """Runs functions over sessions of the test's database."""
    engine = sqlalchemy.create_engine(database_url, pool_size=5, max_overflow=60)
    yield Transactions(engine)
    engine.dispose()
