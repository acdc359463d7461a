"""What attacks have in common: every method of every route, ways to address them, and bytes as they are."""

from __future__ import annotations

import itertools
import json
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

from marshmallow import Schema

from baselayer.handler import ANY, PUBLIC, Endpoint, Route
from shell_service import document
from shell_service.handlers import ROUTES
from shell_service.scopes import MEANINGS, SCOPES
from tests.client import Answer, Api, Person, exchange, new_address
from tests.database import Transactions
from tests.stack import Stack

_PART = re.compile(r"\{(\w+)\*?\}")


# -- routes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """One method of one route."""

    method: str
    route: Route
    endpoint: Endpoint = field(compare=False)

    def __str__(self) -> str:
        return f"{self.method} {self.route.path}"

    @property
    def scope(self) -> str:
        """What a token needs, `PUBLIC` or `ANY`."""
        return self.endpoint.scope

    @property
    def parts(self) -> list[str]:
        """The names of what its address leaves open, such as ``job_id``."""
        return _PART.findall(self.route.path)

    @property
    def body(self) -> dict[str, Any] | None:
        """A body that it takes."""
        return None if self.endpoint.body is None else example(self.endpoint.body)

    def address(self, **parts: str) -> str:
        """Its address with these parts."""
        return _PART.sub(lambda match: parts[match[1]], self.route.path)

    def ask(self, api: Api, *, body: Any = None, query: str = "", **parts: str) -> Answer:
        """Ask this of the API; `query` is put behind the address as it is."""
        content = self.body if body is None else body
        return api(self.method, self.address(**parts) + query, **({} if content is None else {"json": content}))


#: Everything that the API can be asked, from the router's own list.
OPERATIONS = [
    Operation(method, route, endpoint) for route in ROUTES for method, (endpoint, _) in route.endpoints().items()
]
PROTECTED = [operation for operation in OPERATIONS if operation.scope != PUBLIC]
SCOPED = [operation for operation in PROTECTED if operation.scope != ANY]
ADMIN_SCOPES = SCOPES.of_role("admin") - SCOPES.of_role("user")
READ_ONLY = [scope for scope in MEANINGS if scope.endswith(":read")]


def example(schema: type[Schema]) -> dict[str, Any]:
    """A valid request: the one that the API document shows."""
    shown: dict[str, Any] = document.EXAMPLES[schema]
    return json.loads(json.dumps(shown))  # type: ignore[no-any-return]


# -- what somebody owns ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Belongings:
    """Things of one user, by the name that they have in addresses, and texts that only their owner may read."""

    owner: Person
    things: Mapping[str, list[str]]
    private: list[str]

    def of(self, operation: Operation) -> Iterator[dict[str, str]]:
        """Every way to fill the operation's address with what the owner has."""
        chosen = [[(name, thing) for thing in self.things[name]] for name in operation.parts]
        return (dict(pairs) for pairs in itertools.product(*chosen))


def belongings_of(person: Person, admin: Api) -> Belongings:
    """Give a user one of each kind of thing. A part of an address that is not among them fails the attacks.

    The administrator makes a group for him.
    """
    secret = uuid.uuid4().hex
    leave = f"mkdir artifacts; echo {secret} > artifacts/left"
    ended = person.api.submit(f"echo {secret}; {leave}", name="private", env={"HIDDEN": secret[::-1]}, wait=30)
    assert ended["status"] == "COMPLETED", ended
    waiting = person.api.submit("true", delay=3600)
    token = person.api.post("/api/tokens", {"name": f"token of {person.username}"}).data
    name = f"SECRET_{secret[:12]}"
    person.api.put(f"/api/secrets/{name}", {"value": secret}).data  # noqa: B018
    script, group = f"script{secret[:12]}", f"group{secret[:12]}"
    files = {"files": {"main.sh": f"echo {secret} again"}, "entrypoint": "main.sh"}
    for request in ({"name": script, "code": f"echo {secret}"}, files):
        path = "/api/scripts" if "name" in request else f"/api/scripts/{script}"
        person.api("POST" if "name" in request else "PUT", path, json=request).data  # noqa: B018
    admin.post("/api/groups", {"name": group, "description": secret}).data  # noqa: B018
    admin.put(f"/api/groups/{group}/members/{person.username}", {"owner": True}).data  # noqa: B018
    share = person.api.post(f"/api/scripts/{script}/shares", {"group": group, "level": "edit"}).data
    schedule = person.api.post("/api/schedules", {"script": script, "every": 3600}).data
    things = {
        "schedule_id": [str(schedule["id"])],
        "owner": [person.username],
        "script": [script],
        "version": ["1"],
        "path": ["left"],
        "share_id": [str(share["id"])],
        "group": [group],
        "job_id": [ended["id"], waiting["id"]],
        "token_id": [str(token["id"])],
        "name": [name],
        "username": [person.username],
    }
    marks = [
        secret,
        secret[::-1],
        name,
        script,
        group,
        person.username,
        ended["id"][-32:],
        waiting["id"][-32:],
        token["prefix"],
    ]
    return Belongings(person, things, marks)


def nothing() -> dict[str, str]:
    """Parts of addresses that name nothing: as likely as any, but never given out."""
    number = uuid.uuid4().hex
    return {
        "job_id": f"job_{number}", "token_id": "999999999", "username": f"nobody{number}", "name": f"NO_{number}",
        "owner": f"nobody{number}", "script": f"none{number}", "version": "999999999", "share_id": "999999999",
        "group": f"none{number}", "schedule_id": "999999999", "path": f"none{number}",
    }  # fmt: skip


# -- bytes as they are -----------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """An answer as it came: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """Sends requests that no client library would send, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(self, request: bytes, address: str = "127.0.0.1") -> Reply:
        """Send these bytes from this address; returns what comes before the other side closes."""
        return Reply(*exchange(self.port, request, address=address))

    def first(self, request: bytes) -> Reply:
        """The answer to these bytes, without waiting for the connection's end: the router may read on for a while."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            return first_answer(connection)

    def ask(
        self, method: str, target: str, *headers: str, token: str = "", body: bytes = b"", anew: bool = False
    ) -> Reply:
        """Send a request of this head; `anew` from an address that has not been used before."""
        given = [f"Authorization: token {token}"] if token else []
        request = head(method, target, *given, *headers, *([f"Content-Length: {len(body)}"] if body else []))
        return self.send(request + body, new_address() if anew else "127.0.0.1")


def first_answer(connection: socket.socket) -> Reply:
    """Read one answer."""
    answer = HTTPResponse(connection)
    answer.begin()
    return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def head(method: str, target: str, *headers: str) -> bytes:
    """The head of a request that ends its connection, with these header lines."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"


# -- what is stored --------------------------------------------------------------------------------------------------

# What changes by itself: heartbeats, counts of minutes, and what is written down about each request.
_RESTLESS = ("alembic_version", "audit", "audit_seal", "runner", "submission_count")


def tables(database: Transactions) -> list[str]:
    """The names of the service's tables."""
    return [row[0] for row in database.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]


def contents(database: Transactions) -> dict[str, str]:
    """A digest of each table: two are equal when the same is stored."""
    digest = "SELECT md5(string_agg((to_jsonb(t) - 'last_used_at')::text, ',' ORDER BY to_jsonb(t)::text)) FROM {} t"
    kept = [name for name in tables(database) if name not in _RESTLESS]
    return {name: database.scalar(digest.format(f'"{name}"')) for name in kept}


# -- what it costs ---------------------------------------------------------------------------------------------------


def memory_of(stack: Stack, *groups: str) -> int:
    """Resident memory of the programs whose names begin so, in bytes."""
    found = 0
    for name, pid in stack.pids().items():
        if name.startswith(groups):
            status = Path(f"/proc/{pid}/status").read_text()
            found += int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    return found


def quickly(ask: Callable[[], Reply], seconds: float) -> Reply:
    """An answer that takes no longer than this in itself: on a busy machine it may take some tries to see that."""
    for _ in range(5):
        begun = time.monotonic()
        reply = ask()
        took = time.monotonic() - begun
        if took < seconds:
            return reply
    raise AssertionError(f"{reply.status} after {took:.2f} s, not within {seconds} s")


def nobody_takes(wire: Wire, api: Api, belongings: Belongings, headers: list[str], body: bytes) -> None:
    """Assert that every operation that is no GET answers 415 to this body, at once; a large one is for one of them.

    Those that take forms say what is wrong with one that makes no sense.
    """
    is_form = any("multipart/form-data" in header for header in headers)
    for operation in OPERATIONS:
        if operation.method != "GET" and (len(body) < 2**20 or operation.route.path == "/api/jobs"):
            address = operation.address(**next(belongings.of(operation)))
            ask = partial(wire.ask, operation.method, address, *headers, token=api.token, body=body)
            expected = (400, 413) if is_form and operation.endpoint.form else (415,)
            assert quickly(ask, 0.5).status in expected, operation
