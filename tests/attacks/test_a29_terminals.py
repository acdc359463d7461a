"""A29: output that would move a cursor, set a clipboard, forge a line or a link, or turn text around."""

from __future__ import annotations

import json
import re

import pytest

from tests.attacks.tools import Wire, head
from tests.client import Person, parse_events, texts
from tests.stack import Stack
from tests.waiting import eventually

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


def test_logs_hold_none_of_it(wire: Wire, alice: Person, stack: Stack) -> None:
    """What a request says is what operators see in `make log`: a line stays one line and moves no cursor."""
    marker = "a29-marker"
    for text in ("%1b%5b2J", "%0aforged", "%0d%0aforged", "%9b2J", "%7f", "\u202e", f"%0aforged{'x' * 300}"):
        for target in (f"/api/{marker}/{text}", f"/{marker}/{text}", f"/status/{marker}/{text}", f"/{text}/{marker}/"):
            wire.ask("GET", target, f"User-Agent: {text}", token=alice.token)
    for name in ("Referer", "User-Agent", "Host", "Origin", "X-Forwarded-For", "Content-Type", "Accept"):
        for target in ("/api/jobs", f"/{marker}", "/"):
            # Too large a body is something that the router says in its own words.
            wire.first(head("POST", target, f"{name}: \x1b[2J\x7f", "Content-Length: 100000000"))
    wire.ask("GET", f"/{marker}/last")
    eventually(lambda: f"{marker}/last" in stack.log("nginx"))
    for path in stack.settings.log_dir.iterdir():
        text = path.read_text(errors="replace")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), path
        assert not re.search("^forged", text, re.MULTILINE), path
        assert alice.token not in text
