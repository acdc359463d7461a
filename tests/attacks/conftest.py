"""One running service for all attacks, two users who are strangers to each other, and an administrator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import sqlalchemy

from tests.apis import admin as admin
from tests.apis import workers as workers
from tests.attacks.tools import Belongings, Wire, belongings_of, contents
from tests.client import Api, Person, new_address, new_person
from tests.database import Transactions
from tests.stack import Stack

MAX_STREAMS = 20
CLIENT_TIMEOUT = 3.0  # seconds
# What attacks provoke on purpose: see test_a43_errors.py.
PROVOKED = ("token.prefix does not exist",)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Router, two workers, runner, scheduler and database. A worker that has logged an error fails the session."""
    with Stack(
        server={"client_timeout": CLIENT_TIMEOUT},
        database={"statement_timeout": 2},
        runner={"slots": 16, "drain_seconds": 2},
        jobs={"kill_grace": 1},
        users={"max_streams": MAX_STREAMS},
    ) as running:
        yield running
        for name in ("app_00", "app_01"):
            errors = re.findall(r"^.* ERROR .*(?:\n    .*)*", running.log(name), re.MULTILINE)
            unexpected = [error for error in errors if not any(text in error for text in PROVOKED)]
            assert not unexpected, f"{name} logged errors:\n" + "\n".join(unexpected[:3])


@pytest.fixture(scope="session")
def alice(admin: Api) -> Person:
    """User A, who is attacked. Nothing of hers is taken away: a test that needs that makes a `person`."""
    return new_person(admin)


@pytest.fixture(scope="session")
def bob(admin: Api) -> Person:
    """User B, who attacks."""
    return new_person(admin)


@pytest.fixture
def person(admin: Api) -> Callable[..., Person]:
    """Makes a user for one test: ``person(scopes=[...], max_queued=...)``."""
    return lambda **options: new_person(admin, **options)


@pytest.fixture
def stranger(stack: Stack) -> Iterator[Api]:
    """The API without a token, from an address that nobody has used before."""
    with Api(stack.base_url, address=new_address()) as api:
        yield api


@pytest.fixture(scope="session")
def belongings(alice: Person, admin: Api) -> Belongings:
    """What A owns, of each kind that an address can name."""
    return belongings_of(alice, admin)


@pytest.fixture(scope="session")
def wire(stack: Stack) -> Wire:
    """The router, spoken to in bytes."""
    return Wire(stack.settings.server.port)


@pytest.fixture(scope="session")
def database(stack: Stack) -> Iterator[Transactions]:
    """The service's database, for those who look behind its answers."""
    url = sqlalchemy.make_url(stack.settings.owner_url).set(drivername="postgresql+psycopg2")
    engine = sqlalchemy.create_engine(url)
    yield Transactions(engine)
    engine.dispose()


@pytest.fixture
def unchanged(database: Transactions) -> Callable[[], AbstractContextManager[None]]:
    """``with unchanged():`` holds what is stored before and after the block against each other."""

    @contextmanager
    def compare() -> Iterator[None]:
        before = contents(database)
        yield
        assert contents(database) == before

    return compare
