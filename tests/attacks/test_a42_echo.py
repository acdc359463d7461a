"""A42: a script prints its own secret: whole, in pieces, across the borders of what is read at once. What it encodes
or takes apart first is its own doing, and the documentation says so.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from tests.client import Person, events, texts

VALUE = "s3cret-\u00e9\u20ac-0123456789"
CODE = r"""
import os, sys, time
secret = open("/run/job/secrets/ECHO", "rb").read()
out = lambda data, to=1: os.write(to, data)
for byte in secret: out(bytes([byte])); time.sleep(0.002)        # in pieces, some of them half a character
out(b"|"); out(secret * 3)
for pad in (65536, 262144):                                       # across the borders of what is read at once
    for back in (1, 7, len(secret) - 1): out(b"." * (pad - back)); out(secret)
out(secret[:-1] + b"|" + secret, 2)                               # nearly, and then whole
out(secret[:5])                                                   # the end comes in the middle of what might be one
"""


@pytest.fixture
def owner(person: Callable[..., Person]) -> Person:
    """Somebody with a secret."""
    found = person()
    found.api.put("/api/secrets/ECHO", {"value": VALUE}).data  # noqa: B018
    return found


def test_what_is_printed_whole_is_masked(owner: Person) -> None:
    """In what is kept, and in what is followed while it is printed."""
    job = owner.api.submit(CODE, shell="python", secrets=["ECHO"])
    found = list(events(owner.api, job["id"]))
    assert found[-1].data["status"] == "COMPLETED", found[-1]
    kept = {stream: owner.api.get(f"/api/jobs/{job['id']}/{stream}").body for stream in ("stdout", "stderr")}
    for stream, text in kept.items():
        assert VALUE.encode() not in text
        assert texts(found, stream) == text.decode(errors="replace")
    assert kept["stdout"].startswith(b"***|*********")
    assert kept["stdout"].replace(b".", b"") == b"***|" + b"***" * 9 + VALUE.encode()[:5]
    assert kept["stderr"] == VALUE.encode()[:-1] + b"|***"


def test_what_is_encoded_first_is_not(owner: Person) -> None:
    """Nobody could tell: this is here so that the documentation stays true."""
    job = owner.api.submit("base64 -w 0 /run/job/secrets/ECHO", secrets=["ECHO"], wait=30)
    assert job["stdout"] == base64.b64encode(VALUE.encode()).decode()
