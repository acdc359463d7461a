from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack import Stack


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A running service that a module's tests share."""
    with Stack(server={"max_body": 100_000}, runner={"drain_seconds": 2}, jobs={"kill_grace": 1}) as running:
        yield running
