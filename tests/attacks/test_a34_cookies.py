"""A34: cookies: none is ever set, and none that is sent means anything. There is no key that could sign one."""

from __future__ import annotations

import json

from tests.attacks.tools import OPERATIONS, Belongings, Wire
from tests.client import Api, Person
from tests.stack import Stack

COOKIES = [
    *("Cookie: _xsrf=2|1|1|1; _xsrf=x", "Cookie: user=2|1:0|10:1|4:user|8:YWRtaW4=|0"),
    *("Cookie: session=admin; __Host-session=admin", 'Cookie: a="\\', "Cookie: token=\udcff"),
    "Cookie: " + "a=b;" * 1000,
]


def test_none_is_set(wire: Wire, admin: Api, belongings: Belongings, stack: Stack) -> None:
    targets = [
        (operation.method if operation.method == "GET" else "HEAD", operation.address(**next(belongings.of(operation))))
        for operation in OPERATIONS
    ]
    for method, target in [*targets, ("GET", "/"), ("GET", "/status"), ("GET", "/nothing"), ("TRACE", "/")]:
        for cookie in ("X: y", *COOKIES):
            reply = wire.ask(method, target, cookie, token=admin.token)
            assert "set-cookie" not in reply.headers, target
            assert "Cookie" not in reply.headers.get("vary", "")


def test_none_means_anything(wire: Wire, alice: Person) -> None:
    good = [f"Cookie: {name}={alice.token}" for name in ("token", "session", "Authorization", "__Host-token")]
    for cookie in COOKIES + good:
        assert wire.ask("GET", "/api/user", cookie, anew=True).status == 401
        reply = wire.ask("GET", "/api/user", cookie, token=alice.token)
        assert json.loads(reply.body)["data"]["username"] == alice.username
