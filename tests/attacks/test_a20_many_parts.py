"""A20: forms of very many parts or parameters, and cookies that once took the square of their length to read."""

from __future__ import annotations

from functools import partial

import pytest

from tests.attacks.tools import Belongings, Wire, nobody_takes, quickly
from tests.client import Api, Person

PART = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
FORM = "Content-Type: multipart/form-data; boundary=x"
BODIES = {
    "parts": (FORM, PART * 100_000 + b"--x--\r\n"),
    "parameters": (FORM, b"--x\r\nContent-Disposition: form-data" + b'; a="b"' * 100_000 + b"\r\n\r\n1\r\n--x--\r\n"),
    "backslashes": (FORM, b'--x\r\nContent-Disposition: form-data; name="' + rb"\"" * 400_000 + b'"\r\n\r\n1\r\n--x--'),
    "no boundary": ("Content-Type: multipart/form-data", PART),
    "fields": (
        "Content-Type: application/x-www-form-urlencoded",
        b"&".join(b"a%d=1" % number for number in range(100_000)),
    ),
}


@pytest.mark.parametrize("kind", BODIES)
def test_forms_are_not_read_or_refused_at_once(wire: Wire, admin: Api, belongings: Belongings, kind: str) -> None:
    header, body = BODIES[kind]
    nobody_takes(wire, admin, belongings, [header], body)


@pytest.mark.parametrize("length", [7_000, 32_000])
def test_cookies_are_not_read(wire: Wire, alice: Person, length: int) -> None:
    ask = partial(wire.ask, "GET", "/api/user", 'Cookie: a="' + '"\\' * length, token=alice.token)
    assert quickly(ask, 0.3).status == (200 if length < 8_000 else 431)
