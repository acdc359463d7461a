"""A17: a small body that says it is a large one, compressed: it is not unpacked."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.attacks.tools import Belongings, Wire, memory_of, nobody_takes
from tests.client import Api
from tests.stack import Stack

LARGE = b'{"code": "' + b"x" * 50_000_000 + b'"}'
BODIES: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip.compress(LARGE),
    "x-gzip": lambda: gzip.compress(LARGE),
    "deflate": lambda: zlib.compress(LARGE),
    "br": lambda: b"\x0b\x02\x80{}\x03",
    "gzip, gzip": lambda: gzip.compress(gzip.compress(LARGE)),
    "identity": lambda: b'{"code": "true"}',
}


@pytest.mark.parametrize("coding", BODIES)
def test_nothing_is_unpacked(
    wire: Wire,
    admin: Api,
    belongings: Belongings,
    stack: Stack,
    unchanged: Callable[[], AbstractContextManager[None]],
    coding: str,
) -> None:
    body, before = BODIES[coding](), memory_of(stack, "app")
    with unchanged():
        headers = ["Content-Type: application/json", f"Content-Encoding: {coding}"]
        nobody_takes(wire, admin, belongings, headers, body)
    assert memory_of(stack, "app") - before < 16 * 2**20
