from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A running service that a module's tests share."""
    with Stack(server={"max_body": 100_000}, runner={"drain_seconds": 2}, jobs={"kill_grace": 1}) as running:
        yield running


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a path so short that sockets find room in it."""
    with tempfile.TemporaryDirectory(prefix="shs-") as name:
        yield Path(name).resolve()
