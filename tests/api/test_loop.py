"""A worker's event loop: whatever one asks of it, the others are not held up."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.orm import Session
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket

from baselayer.database import Database
from baselayer.failpoint import FailPoints
from shell_service import tokens
from shell_service.app import App, make_app, routes, run_background
from shell_service.secrets import Keyring, new_key
from tests.factories import add_user
from tests.stack import write_config

LONGEST = 0.05  # seconds that the loop may be held up
TRIES = 5  # the machine may be busy with something else: what is our own doing is there each time


def batch(job: dict[str, Any]) -> bytes:
    """A thousand such jobs, in nearly as many bytes as a body may have."""
    body = json.dumps({"jobs": [{"delay": 3600, **job}] * 1000}).encode()
    assert 7 * 10**6 < len(body) < 8 * 2**20
    return body


BATCHES = {
    "one long argument": batch({"code": "true", "args": ["x" * 8200]}),
    "many arguments": batch({"code": "true", "args": ["\u20ac" * 6] * 190}),
    "many lines": batch({"code": ['echo "hello, $1"; # ' + "x" * 20] * 160}),
}


def exchange(socket_path: str, request: bytes) -> bytes:
    """Send a request, and return all of the answer. In a process of its own, not to hold up what is measured."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(socket_path)
        connection.sendall(request)
        answer = bytearray()
        while chunk := connection.recv(2**20):
            answer += chunk
    return bytes(answer)


class Worker:
    """A worker in this process, and the way to it."""

    def __init__(self, app: App, socket_path: Path, token: str, clients: ProcessPoolExecutor) -> None:
        self.app = app
        self._socket_path = socket_path
        self._token = token
        self._clients = clients

    async def __call__(self, method: str, path: str, body: bytes = b"", headers: str = "") -> None:
        """One request, the answer to which must be a success."""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: token {self._token}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._clients, exchange, str(self._socket_path), head.encode() + body)
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:1000]


@asynccontextmanager
async def worker(database_url: str, folder: Path) -> Any:
    settings = write_config(folder / "config.yaml", folder / "data", users={"jobs_per_minute": 100_000})
    engine = sqlalchemy.create_engine(database_url)
    with Session(engine) as session:
        token = tokens.insert(session, add_user(session), "test", ["*"], None)["token"]
        session.commit()
    engine.dispose()
    database = Database(database_url, size=2, statement_timeout=20.0)
    app = make_app(settings, database, {"sh": "/bin/sh"}, Keyring([new_key()]), FailPoints())
    server = HTTPServer(routes(app), max_body_size=settings.server.max_body, max_buffer_size=2**24)
    server.add_socket(bind_unix_socket(str(folder / "socket")))
    stop = asyncio.Event()
    background = asyncio.create_task(run_background(app, stop))
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as clients:
            yield Worker(app, folder / "socket", token, clients)
    finally:
        stop.set()
        server.stop()
        await background
        await server.close_all_connections()
        database.close()


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="shs-") as name:  # short, as a socket is in it
        yield Path(name).resolve()


async def held_up(act: Callable[[], Awaitable[object]]) -> float:
    """For how many seconds at a time the loop did nothing else, at the most, while `act` was under way."""
    longest, done = 0.0, False

    async def watch() -> None:
        nonlocal longest
        while not done:
            begun = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - begun - 0.001)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        await act()
    finally:
        done = True
        await watching
    return longest


@pytest.mark.parametrize("kind", BATCHES)
def test_large_requests_do_not_hold_up_the_loop(database_url: str, kind: str) -> None:
    """A batch of 8 MB, the same again with its Idempotency-Key, and a list of all its jobs."""
    body = BATCHES[kind]

    async def main() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"batch": [], "again": [], "list": []}
        with folder() as place:
            async with worker(database_url, place) as ask:
                for number in range(TRIES):
                    key = f"Idempotency-Key: {number}\r\n"
                    found["batch"].append(await held_up(lambda: ask("POST", "/api/jobs/batch", body, key)))  # noqa: B023
                    found["again"].append(await held_up(lambda: ask("POST", "/api/jobs/batch", body, key)))  # noqa: B023
                    found["list"].append(await held_up(lambda: ask("GET", "/api/jobs?limit=1000")))
                    if all(min(times) < LONGEST for times in found.values()):
                        break
        return found

    gc.collect()
    gc.freeze()  # as a worker does: what tests have in memory is not a worker's
    try:
        found = asyncio.run(main())
    finally:
        gc.unfreeze()

    assert all(min(times) < LONGEST for times in found.values()), found
