"""A32: a page of another origin asks by script: it is never told that it may read the answer."""

from __future__ import annotations

import pytest

from tests.attacks.tools import OPERATIONS, Belongings, Wire, head
from tests.client import Api
from tests.stack import Stack

SITE = ["/", "/status", "/nothing", "/.env", "/-/too_large"]


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://localhost.evil.example", "own", "*"])
def test_nobody_is_allowed(wire: Wire, admin: Api, belongings: Belongings, stack: Stack, origin: str) -> None:
    """Not even the service's own address, which needs no leave."""
    given = [f"Origin: {stack.settings.base_url if origin == 'own' else origin}"]
    asked = [*given, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization"]
    targets = [operation.address(**next(belongings.of(operation))) for operation in OPERATIONS]
    replies = [wire.ask("OPTIONS", target, *asked, token=admin.token) for target in targets + SITE]
    replies += [wire.ask("HEAD", target, *given, token=admin.token) for target in targets + SITE]
    replies += [wire.first(head("POST", "/api/jobs", *given, "Content-Length: 10000000000"))]
    for reply in replies:
        assert not [name for name in reply.headers if name.startswith("access-control-")]
        assert "timing-allow-origin" not in reply.headers
