"""A13: ways out of an address, coded once, twice or strangely, in every place that an address leaves open."""

from __future__ import annotations

import json

import pytest

from tests.attacks.tools import OPERATIONS, Belongings, Wire
from tests.client import Api
from tests.stack import Stack

WAYS = [
    *("..%2f..%2f..%2fetc%2fpasswd", "%2e%2e%2f%2e%2e%2ftokens.yaml", "%2e%2e/%2e%2e/tokens.yaml", "..%5c..%5cx"),
    *("..%252f..%252ftokens.yaml", "%252e%252e%252f", "%25252e%25252e", "....//....//tokens.yaml", "..;/tokens.yaml"),
    *("%2fetc%2fpasswd", "%2f%2fetc%2fpasswd", "file:%2f%2f%2fetc%2fpasswd", "%5c%5chost%5cshare", "c:%5cwindows"),
    *("%00", "a%00.stdout", "%0a", "a%0d%0ab", "%20", "%7f", "~", "*", "%2a", ".", "..", "-"),
    # Full stops and slashes of other scripts, which some normal forms turn into plain ones; overlong UTF-8.
    *("%ef%bc%8e%ef%bc%8e%ef%bc%8ftokens.yaml", "%e2%80%a4%e2%80%a4%e2%88%95x", "%c0%ae%c0%ae%c0%afx", "e%cc%81"),
    *("%ff%fe", "%ed%a0%80", "%u002e%u002e", "%zz", "a" * 5000),
]
NAMING = [operation for operation in OPERATIONS if operation.parts]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[:30])
def test_no_address_leads_out(wire: Wire, admin: Api, belongings: Belongings, way: str) -> None:
    """In place of one part after the other, asked with the token that may see the most."""
    for operation, part in ((each, part) for each in NAMING for part in each.parts):
        body = json.dumps(operation.body or {}).encode()
        headers = ("Content-Type: application/json",)
        target = operation.address(**{**next(belongings.of(operation)), part: way})
        reply = wire.ask(operation.method, target, *headers, token=admin.token, body=body)
        # Dots between slashes are the router's to resolve: that may be another address, or nothing of the site.
        assert reply.status in (400, 404, 405), (operation, reply)
        assert b"root:" not in reply.body and b"INITIAL_ADMIN" not in reply.body


def test_nothing_follows_an_id(wire: Wire, admin: Api, belongings: Belongings, stack: Stack) -> None:
    """What stands behind a good id, coded or not, makes it none."""
    job_id = belongings.things["job_id"][0]
    name, digits = job_id.rsplit("_", 1)
    assert wire.ask("GET", f"/api/jobs/{job_id}/stdout", token=admin.token).status == 200
    for text in (
        *(f"{job_id}%2fstdout", f"{job_id}%2f..%2f..", f"{job_id}%00", f"{job_id}%0a", f"{job_id}%20", f"{job_id};x"),
        *(f"{job_id}.stdout", f"{job_id}.1.stdout", f"%2e/{job_id}x", f"{name}%00_{digits}", f"{name}%5f{digits}x"),
        *(digits, f"other_{digits}", f"{name}_{digits.upper()}", f"{name}_{digits}0", f"{name}_{digits[:-1]}"),
        *(f"{name}_{digits[:8]}-{digits[8:]}", f"{name}_%ef%bc%90{digits[1:]}", f"{name}_{{{digits}}}"),
        f"{stack.settings.output_dir}/{digits}.1.stdout".replace("/", "%2f"),
    ):
        for rest in ("", "/stdout", "/stderr", "/stream"):
            reply = wire.ask("GET", f"/api/jobs/{text}{rest}", token=admin.token)
            assert reply.status in (400, 404), text
        assert wire.ask("POST", f"/api/jobs/{text}/cancel", token=admin.token).status in (400, 404), text
