"""What the tests of the queue start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.database import Transactions, assert_consistent
from tests.factories import Enlisted, add_runner, add_user


@pytest.fixture
def user(transact: Transactions) -> int:
    """A user with the default limits."""
    return transact(add_user)


@pytest.fixture
def runner(transact: Transactions) -> Enlisted:
    """A live runner."""
    return transact(add_runner)


@pytest.fixture(autouse=True)
def consistent(transact: Transactions) -> Iterator[None]:
    """Whatever a test does, each job stands in exactly one place after it."""
    yield
    assert_consistent(transact)
