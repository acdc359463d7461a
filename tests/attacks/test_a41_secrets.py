"""A41: a secret's value in an answer, an error, a stream, a list or the audit log. For files, processes and the
database's own see `tests/api/test_secrets.py::test_a_secret_is_seen_nowhere`.
"""

from __future__ import annotations

import base64
import json
import uuid

import pytest

from tests.attacks.tools import OPERATIONS, Belongings, Wire, belongings_of
from tests.client import Api, Person, new_person
from tests.waiting import eventually

VALUE = f"hidden-{uuid.uuid4().hex}"
TRACES = [text.encode() for text in (VALUE, VALUE[7:20], VALUE[::-1], base64.b64encode(VALUE.encode()).decode()[:20])]


@pytest.fixture(scope="module")
def holder(admin: Api) -> Belongings:
    """What a user has who has used a secret in every way, and made mistakes with it."""
    person = new_person(admin)
    found = belongings_of(person, admin)
    name = found.things["name"][0]
    api = person.api
    assert VALUE not in repr(api.put(f"/api/secrets/{name}", {"value": VALUE}).data)
    code = f'cat /run/job/secrets/{name}; echo "${name}" >&2; exit 3'
    job = api.submit(code, secrets=[name], secrets_in_env=True, wait=30)
    assert (job["stdout"], job["stderr"]) == ("***", "***\n")
    again = api.post(f"/api/jobs/{job['id']}/rerun").data
    eventually(lambda: api.job(again["id"])["finished_at"])
    found.things["job_id"].extend([job["id"], again["id"]])
    return found


def test_no_answer_shows_it(wire: Wire, holder: Belongings, admin: Api) -> None:
    """Of all that its owner, or an administrator, can look at."""
    for operation in OPERATIONS:
        if operation.method == "GET":
            for parts in holder.of(operation):
                for token in (holder.owner.token, admin.token):
                    if operation.route.path.endswith("/stream") and parts["job_id"] == holder.things["job_id"][1]:
                        continue  # has not ended
                    reply = wire.ask("GET", operation.address(**parts), token=token)
                    assert not [trace for trace in TRACES if trace in reply.body], operation


@pytest.mark.parametrize(
    "kind", ["too much", "not JSON", "unknown field", "no name", "form", "not allowed", "in a query"]
)
def test_no_error_repeats_it(wire: Wire, holder: Belongings, bob: Person, kind: str) -> None:
    name, json_type = holder.things["name"][0], "Content-Type: application/json"
    token, address, headers = holder.owner.token, f"/api/secrets/{name}", [json_type]
    body: bytes = json.dumps({"value": VALUE}).encode()
    if kind == "too much":
        body = json.dumps({"value": VALUE * 10_000}).encode()
    elif kind == "not JSON":
        body = body[:-1]
    elif kind == "unknown field":
        body = json.dumps({"val": VALUE, "value": 1}).encode()
    elif kind == "no name":
        address = "/api/secrets/not-a-name"
    elif kind == "form":
        headers, body = ["Content-Type: application/x-www-form-urlencoded"], f"value={VALUE}".encode()
    elif kind == "not allowed":
        token = bob.api.post("/api/tokens", {"name": "narrow", "scopes": ["jobs:read"]}).data["token"]
    else:
        address += f"?value={VALUE}"
    reply = wire.ask("PUT", address, *headers, token=token, body=body)
    assert 400 <= reply.status < 500
    assert not [trace for trace in TRACES if trace in reply.body], reply
