"""Clients of the API for tests: what must hold for every answer is checked at each.

`Api` speaks through the router, or to one worker; `exchange` sends bytes as they are; `events` reads a stream of
Server-Sent Events.
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

_addresses = (f"127.{a}.{b}.{c}" for a in range(3, 250) for b in range(256) for c in range(1, 255))
_numbers = itertools.count(1)


class Answer(NamedTuple):
    """An answer of the API. `body` is its JSON, or its bytes where it is none."""

    status: int
    headers: httpx.Headers
    body: Any

    @property
    def data(self) -> Any:
        """What a success is about."""
        assert self.status == 200, self.body
        return self.body["data"]

    @property
    def code(self) -> str:
        """The code of an error."""
        assert self.status >= 400, self.body
        code: str = self.body["data"]["code"]
        return code

    @property
    def errors(self) -> dict[str, Any]:
        """What is wrong, by field."""
        errors: dict[str, Any] = self.body["data"]["errors"]
        return errors


class Api:
    """Calls the API as the owner of `token`, or as nobody."""

    def __init__(
        self, base_url: str, token: str = "", *, socket_path: Path | None = None, address: str | None = None
    ) -> None:
        """With `socket_path`, asks one worker itself; with `address`, comes from this address of the loopback net."""
        self.base_url = base_url
        self.token = token
        self._transport = {"uds": str(socket_path) if socket_path else None, "local_address": address}
        self.client = httpx.Client(
            base_url=base_url,
            timeout=30,
            trust_env=False,
            transport=httpx.HTTPTransport(**self._transport, limits=httpx.Limits(max_connections=None)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.client.close()

    def using(self, token: str) -> Api:
        """The same way to the service, with another token."""
        other = Api.__new__(Api)
        other.__dict__ = {**self.__dict__, "token": token}
        return other

    def headers(self, token: str | None = None) -> dict[str, str]:
        chosen = self.token if token is None else token
        return {"Authorization": f"token {chosen}"} if chosen else {}

    def __call__(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        unavailable: bool = False,
        **options: Any,
    ) -> Answer:
        """One request, and its answer, checked to have the service's form.

        `options` are those of `httpx.Client.request`. An answer of 5xx fails, but 503 where it is said to be
        `unavailable`.
        """
        sent = {**self.headers(token), **(headers or {})}
        answer = self.client.request(method, path, headers=sent, **options)
        return check(answer, unavailable)

    def get(self, path: str, **options: Any) -> Answer:
        return self("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> Answer:
        return self("POST", path, **({} if json is None else {"json": json}), **options)

    def put(self, path: str, json: Any, **options: Any) -> Answer:
        return self("PUT", path, json=json, **options)

    def patch(self, path: str, json: Any, **options: Any) -> Answer:
        return self("PATCH", path, json=json, **options)

    def delete(self, path: str, **options: Any) -> Answer:
        return self("DELETE", path, **options)

    def submit(self, code: str | list[str] = "true", wait: float | None = None, **fields: Any) -> dict[str, Any]:
        """A new job's record; with `wait`, in seconds, when it has ended."""
        path = "/api/jobs" if wait is None else f"/api/jobs?wait={wait}"
        record: dict[str, Any] = self.post(path, {"code": code, **fields}).data
        return record

    def job(self, job_id: str) -> dict[str, Any]:
        """A job's record of now."""
        record: dict[str, Any] = self.get(f"/api/jobs/{job_id}").data
        return record


def check(answer: httpx.Response, unavailable: bool = False) -> Answer:
    """The answer, after asserting what holds for all of them."""
    where = f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.content[:500]!r}"
    assert answer.status_code < 500 or (unavailable and answer.status_code == 503), where
    assert answer.headers.get("X-Request-Id"), where
    assert "Access-Control-Allow-Origin" not in answer.headers, where
    if answer.status_code == 401:
        assert answer.headers["WWW-Authenticate"], where
    if answer.status_code in (429, 503):
        assert int(answer.headers["Retry-After"]) > 0, where
    if not answer.headers.get("Content-Type", "").startswith("application/json") or not answer.content:
        assert answer.status_code < 400 or answer.request.method == "HEAD", where
        return Answer(answer.status_code, answer.headers, answer.content)
    body = answer.json()
    if answer.status_code == 200 and answer.request.url.path == "/api/openapi.json":  # the document itself
        return Answer(answer.status_code, answer.headers, body)
    assert body["version"], where
    if answer.status_code < 400:
        assert body.keys() == {"status", "data", "version"} and body["status"] == "success", where
    else:
        assert body.keys() == {"status", "message", "data", "version"} and body["status"] == "error", where
        assert body["data"].keys() == {"code", "errors"}, where
        message = body["message"]
        assert len(message) > 10 and message.endswith((".", ")")) and "Traceback" not in message, where
    return Answer(answer.status_code, answer.headers, body)


@dataclass(frozen=True)
class Person:
    """A user made for one test."""

    username: str
    api: Api

    @property
    def token(self) -> str:
        return self.api.token


def new_address() -> str:
    """An address of the loopback net that nobody else has used: failures are counted by address."""
    return next(_addresses)


def new_person(admin: Api, role: str = "user", scopes: list[str] | None = None, **limits: Any) -> Person:
    """A new user with a token."""
    username = f"person{next(_numbers)}"
    admin.post("/api/users", {"username": username, "role": role, "limits": limits}).data  # noqa: B018
    made = admin.post("/api/tokens", {"name": "test", "username": username, **({"scopes": scopes} if scopes else {})})
    return Person(username, admin.using(made.data["token"]))


# -- bytes as they are -----------------------------------------------------------------------------------------------


def exchange(
    port: int, request: bytes, seconds: float = 20.0, address: str = "127.0.0.1"
) -> tuple[int, dict[str, str], bytes]:
    """Send `request`; status, headers (names in lower case) and body of the answer. The connection ends after it.

    It comes from `address`, one of the loopback net.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=seconds, source_address=(address, 0)) as connection:
        try:
            connection.sendall(request)
        except ConnectionError:
            pass  # refused before all was sent: the answer may be there
        return read_answer(connection)


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read until the other side closes."""
    answer = b""
    try:
        while chunk := connection.recv(65536):
            answer += chunk
    except ConnectionResetError:
        pass
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, body


# -- Server-Sent Events ----------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """One event; `data` is its JSON. A comment has the kind ``:``."""

    kind: str
    id: str
    data: Any


def parse_events(chunks: Iterator[bytes]) -> Iterator[Event]:
    """The events in the bytes of a stream, each as soon as it is complete."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        while b"\n\n" in rest:
            block, rest = rest.split(b"\n\n", 1)
            if block.startswith(b":"):
                yield Event(":", "", None)
                continue
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
            assert fields.keys() == {b"id", b"event", b"data"}, block
            yield Event(fields[b"event"].decode(), fields[b"id"].decode(), json.loads(fields[b"data"]))
    assert not rest, rest


def events(api: Api, job_id: str, last_event_id: str | None = None) -> Iterator[Event]:
    """Follow a job."""
    headers = {**api.headers(), **({} if last_event_id is None else {"Last-Event-ID": last_event_id})}
    with api.client.stream("GET", f"/api/jobs/{job_id}/stream", headers=headers) as answer:
        if answer.status_code != 200:
            answer.read()
            raise AssertionError(check(answer))
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
        yield from parse_events(answer.iter_raw())


def texts(found: list[Event], kind: str) -> str:
    """All text of one stream."""
    return "".join(event.data for event in found if event.kind == kind)
