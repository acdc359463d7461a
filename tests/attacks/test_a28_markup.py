"""A28, with the parts of A30 and A31 that are the same for all answers: markup in whatever a user can name or print.

No page is made of what users say: the API answers JSON or bytes that no browser takes for a page, the status page and
the documentation know no user's texts.
"""

from __future__ import annotations

import json

import pytest

from tests.attacks.tools import OPERATIONS, Wire, belongings_of
from tests.client import Api, Person, new_person
from tests.stack import Stack

MARKUP = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "javascript:alert(1)", "<!--", "]]>"]
ALL = "".join(MARKUP)
QUIET = (
    *("application/json", "application/octet-stream", "text/event-stream; charset=utf-8"),
    *("text/plain; version=", "text/plain; charset=utf-8", "application/gzip"),
)


@pytest.fixture(scope="module")
def author(admin: Api) -> Person:
    """A user who has put markup wherever it is taken."""
    person = new_person(admin)
    code = f"cat <<'E'\n{ALL}\nE\ncat /run/job/script >&2; exit 3"
    job = person.api.submit(code, args=[ALL], env={"V": ALL}, stdin=ALL, wait=30)
    assert job["stdout"].strip() == ALL
    person.api.post("/api/tokens", {"name": ALL[:100]}).data  # noqa: B018
    script = {"name": "page.html", "code": ALL, "description": ALL, "message": ALL[:1000], "defaults": {"args": [ALL]}}
    person.api.post("/api/scripts", script).data  # noqa: B018
    person.api.get("/api/jobs", headers={"User-Agent": ALL, "Referer": f"https://x/{ALL}"}).data  # noqa: B018
    return person


@pytest.mark.parametrize("accept", ["text/html,*/*;q=0.1", "*/*", "image/svg+xml"])
def test_no_answer_is_a_page(wire: Wire, author: Person, admin: Api, accept: str) -> None:
    things = belongings_of(author, admin)
    things.things["script"].append("page.html")
    things.things["job_id"].append(author.api.get("/api/jobs?status=FAILED").data[0]["id"])
    for operation in OPERATIONS:
        if operation.method == "GET":
            for parts in things.of(operation):
                for token in (author.token, admin.token):
                    if "stream" in operation.route.path and author.api.job(parts["job_id"])["status"] == "PENDING":
                        continue  # goes on until it has ended
                    reply = wire.ask("GET", operation.address(**parts), f"Accept: {accept}", token=token)
                    assert reply.headers["content-type"].startswith(QUIET), operation
                    assert reply.headers["x-content-type-options"] == "nosniff"
                    policy = reply.headers["content-security-policy"]
                    assert policy == "default-src 'none'; frame-ancestors 'none'; sandbox"


def test_an_error_repeats_markup_only_as_json(wire: Wire, author: Person) -> None:
    for target in (f"/api/{ALL}", f"/api/jobs?{ALL}=1", f"/{ALL}", f"/status/{ALL}"):
        reply = wire.ask("GET", target.replace(" ", "%20"), "Accept: text/html", token=author.token)
        assert reply.status in (400, 404)
        assert reply.headers["content-type"].startswith("application/json") or b"alert" not in reply.body
    reply = wire.ask(
        "POST", "/api/jobs", "Content-Type: application/json", token=author.token, body=json.dumps({ALL: 1}).encode()
    )
    assert (reply.status, reply.headers["content-type"]) == (400, "application/json")


def test_pages_know_no_user(wire: Wire, author: Person, stack: Stack) -> None:
    for target in ("/status", "/", f"/?{ALL}".replace(" ", "%20"), f"/status?{ALL}".replace(" ", "%20")):
        page = wire.ask("GET", target, "Accept: text/html", f"Referer: {ALL}", f"User-Agent: {ALL}")
        assert b"alert(1)" not in page.body and author.username.encode() not in page.body
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
