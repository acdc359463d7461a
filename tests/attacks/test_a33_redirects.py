"""A33: nothing sends a browser elsewhere. There is no login, so no `?next=`; only a folder gets its slash."""

from __future__ import annotations

import pytest

from tests.attacks.tools import OPERATIONS, Belongings, Wire
from tests.client import Api
from tests.stack import Stack

AWAY = ["//evil.example", "/\\evil.example", "https:evil.example", "https://evil.example", "javascript:alert(1)"]


@pytest.mark.parametrize("away", AWAY)
def test_no_operation_redirects(wire: Wire, admin: Api, belongings: Belongings, away: str) -> None:
    for operation in OPERATIONS:
        address = operation.address(**next(belongings.of(operation)))
        for name in ("next", "url", "redirect", "return_to", "continue"):
            reply = wire.ask(operation.method, f"{address}?{name}={away}", token=admin.token)
            assert reply.status == 400, operation
            assert "location" not in reply.headers


@pytest.mark.parametrize(
    "target",
    [
        *("/folder", "//folder", "//evil.example/folder", "/%2fevil.example/folder", "/\\evil.example", "/%5cevil.x"),
        *("//evil.example/..%2ffolder", "//evil.example/%2e%2e/folder", "/evil.example//..//folder", "/@evil.example"),
        *("///evil.example/%2e%2e", "/folder%0d%0aLocation:%20https://evil.example", "http://evil.example/folder"),
        "/folder?x=//evil",
    ],
)
def test_the_site_redirects_to_itself_only(wire: Wire, stack: Stack, target: str) -> None:
    (stack.settings.site_dir / "folder").mkdir(exist_ok=True)
    reply = wire.ask("GET", target)
    assert reply.status in (200, 301, 400, 404), reply
    assert b"evil" not in reply.body
    assert reply.status == 301 or "location" not in reply.headers
    if reply.status == 301:
        assert reply.headers["location"] in ("/folder/", "/folder/?x=//evil")
