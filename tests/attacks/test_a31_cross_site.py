"""A31: another site makes a browser ask: forms, pictures, frames. There is nothing that a browser adds by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.attacks.tools import OPERATIONS, PROTECTED, Belongings, Wire, head
from tests.client import Api
from tests.stack import Stack

Unchanged = Callable[[], AbstractContextManager[None]]

FROM_ELSEWHERE = ["Origin: https://evil.example", "Referer: https://evil.example/", "Sec-Fetch-Site: cross-site"]
FORMS = {
    "application/x-www-form-urlencoded": b"code=true&name=x",
    "multipart/form-data; boundary=x": b'--x\r\nContent-Disposition: form-data; name="code"\r\n\r\ntrue\r\n--x--\r\n',
    "text/plain": b'{"code": "true", "x": "="}',
    "text/plain;application/json": b'{"code": "true"}',
    "": b'{"code": "true"}',
}


@pytest.mark.parametrize("kind", FORMS)
def test_what_a_form_can_send_is_not_taken(
    wire: Wire, admin: Api, belongings: Belongings, unchanged: Unchanged, kind: str
) -> None:
    """Without a token, which no form can send; and not even with one."""
    with unchanged():
        for operation in PROTECTED:
            if operation.method == "POST":
                address = operation.address(**next(belongings.of(operation)))
                headers = [f"Content-Type: {kind}", *FROM_ELSEWHERE]
                reply = wire.ask("POST", address, *headers, "Cookie: session=x", body=FORMS[kind], anew=True)
                assert reply.status in (401, 415), operation
                if not (operation.endpoint.form and kind.startswith("multipart/")):
                    reply = wire.ask("POST", address, *headers, token=admin.token, body=FORMS[kind])
                    assert reply.status == 415, operation


def test_looking_changes_nothing(wire: Wire, admin: Api, belongings: Belongings, unchanged: Unchanged) -> None:
    """GET and HEAD, of whoever may do the most, also where they say that they mean another method."""
    override = ["X-HTTP-Method-Override: DELETE", "X-HTTP-Method: POST", "X-Method-Override: PATCH"]
    with unchanged():
        for operation in OPERATIONS:
            for parts in belongings.of(operation):
                for method in ("GET", "HEAD"):
                    if method == "GET" and operation.route.path.endswith("/stream"):
                        continue  # goes on; and what it does is what HEAD does
                    for token in (admin.token, belongings.owner.token):
                        reply = wire.ask(method, operation.address(**parts), *override, token=token)
                        assert reply.status in (200, 403, 404, 405), operation


SHUT = "frame-ancestors 'none'"


@pytest.mark.parametrize(
    "request_bytes",
    [
        head("GET", "/api/sysinfo"), head("GET", "/api/none"), head("GET", "/api/jobs"), head("GET", "/metrics"),
        head("GET", "/status"), head("GET", "/"), head("GET", "/nothing"), head("GET", "/index.html"),
        head("GET", "/.env"), head("POST", "/status"), head("POST", "/"), head("TRACE", "/api/jobs"),
        head("POST", "/api/jobs", "Content-Length: 10000000000"), head("GET", "/" + "a" * 40_000),
        head("GET", "/", "X: " + "a" * 40_000), b"nonsense\r\n\r\n", head("POST", "/", "Transfer-Encoding: gzip"),
    ],
    ids=lambda value: value[:25].decode(),
)  # fmt: skip
def test_no_answer_can_be_framed(wire: Wire, stack: Stack, request_bytes: bytes) -> None:
    reply = wire.first(request_bytes)
    assert SHUT in reply.headers["content-security-policy"], reply
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"


def test_a_token_of_one_s_own_from_a_page_elsewhere_is_a_token(wire: Wire, admin: Api) -> None:
    """Who has it may use it: there is no session that a check of origins would have to protect."""
    reply = wire.ask("GET", "/api/user", *FROM_ELSEWHERE, token=admin.token)
    assert json.loads(reply.body)["data"]["username"] == "admin"
