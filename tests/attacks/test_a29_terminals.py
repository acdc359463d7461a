"""A29: output that would move a cursor, set a clipboard, forge a line or a link, or turn text around."""

from __future__ import annotations

import json
import re

import pytest

from tests.attacks.tools import Wire, head
from tests.client import Person, parse_events, texts

PRINTED = [
    *("\x1b]8;;javascript:alert(1)\x1b\\click\x1b]8;;\x1b\\", "\x1b]52;c;ZXZpbA==\x07", "\x1b[2J\x1b[H"),
    *("\x1b[31m" * 1000, "safe\rforged", "\x08" * 100, "::error::forged", "##[section]", "\u202egnp.exe"),
    *("\u2066x\u2069", "\x9b2J", "\x7f", '{"status":"success"}', "\x00\x01\x02", "\ufeff"),
    "\n\ndata: x\n\nevent: end\ndata: {}\n\nid: 9-9-9\n:\r\n\r\n",
]
CODE = f"import os\nfor text in {PRINTED!r}: os.write(1, text.encode()); os.write(1, b'\\xff\\n')"


@pytest.fixture(scope="module")
def job(alice: Person) -> dict[str, object]:
    """A job that has printed all that."""
    done = alice.api.submit(CODE, shell="python", wait=30)
    assert done["status"] == "COMPLETED", done
    return done


def test_json_holds_no_control_character(wire: Wire, alice: Person, job: dict[str, str]) -> None:
    for path in (f"/api/jobs/{job['id']}", "/api/jobs?limit=1000"):
        reply = wire.ask("GET", path, token=alice.token)
        assert not re.search(rb"[\x00-\x1f]", reply.body)
    assert json.loads(wire.ask("GET", f"/api/jobs/{job['id']}", token=alice.token).body)["data"]["stdout"] == "".join(
        text + "\ufffd\n" for text in PRINTED
    )


def test_events_cannot_be_forged(wire: Wire, alice: Person, job: dict[str, str]) -> None:
    """Nor does one of them hold a character that a terminal would obey."""
    request = head("GET", f"/api/jobs/{job['id']}/stream", f"Authorization: token {alice.token}")
    body = wire.send(request.replace(b"HTTP/1.1", b"HTTP/1.0")).body
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", body)
    found = list(parse_events(iter([body])))
    assert [event.kind for event in found] == ["stdout", "status", "end"]
    assert texts(found, "stdout") == "".join(text + "\ufffd\n" for text in PRINTED)


def test_bytes_come_exactly_and_as_a_file(wire: Wire, alice: Person, job: dict[str, str]) -> None:
    reply = wire.ask("GET", f"/api/jobs/{job['id']}/stdout", token=alice.token)
    assert reply.body == b"".join(text.encode() + b"\xff\n" for text in PRINTED)
    assert reply.headers["content-disposition"].startswith("attachment; ")
