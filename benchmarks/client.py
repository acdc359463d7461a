"""An HTTP client that costs little: HTTP/1.1 with kept connections over asyncio, no more than the benchmarks need.

A general client would use as much of the machine as what is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import orjson

_WAIT_SECONDS = 330.0  # the service answers any request sooner
_LIMIT = 1 << 20  # bytes of a stream that may wait to be read


class UnexpectedAnswer(Exception):
    """The service answered something that the benchmark cannot go on with."""


@dataclass(frozen=True)
class Answer:
    """Status and body of one answer."""

    status: int
    body: bytes

    def data(self) -> Any:
        """``data`` of a success. Raises `UnexpectedAnswer` for anything else."""
        if self.status != 200:
            raise UnexpectedAnswer(f"{self.status}: {self.body[:300].decode(errors='replace')}")
        return orjson.loads(self.body)["data"]


class Connection(asyncio.Protocol):
    """One kept connection: one request at a time, each answered with a Content-Length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._answer: asyncio.Future[Answer] | None = None
        self._need = 0  # bytes of head and body; 0 while the head is not complete
        self._head = 0

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect to the loopback address."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def request(self, method: str, path: str, token: str, body: Any = None) -> Answer:
        """Send a request, `body` as JSON; return its answer."""
        content = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {token}\r\n"
        if content:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        assert self._transport and not self._answer
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + b"\r\n" + content)
        try:
            return await asyncio.wait_for(self._answer, _WAIT_SECONDS)
        finally:
            self._answer = None

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._need:
            self._head = self._buffer.find(b"\r\n\r\n") + 4
            if self._head < 4:
                return
            headers = bytes(self._buffer[: self._head]).lower()
            _, found, rest = headers.partition(b"\r\ncontent-length:")
            if not found:
                self._fail(UnexpectedAnswer("an answer without Content-Length"))
                return
            self._need = self._head + int(rest[: rest.index(b"\r\n")])
        if len(self._buffer) >= self._need:
            answer = Answer(int(self._buffer[9:12]), bytes(self._buffer[self._head : self._need]))
            del self._buffer[: self._need]
            self._need = 0
            if self._answer and not self._answer.done():
                self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or ConnectionResetError("the service closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)


async def stream(port: int, path: str, token: str) -> AsyncIterator[bytes]:
    """What an endless answer brings, as it comes: chunks without their frames."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LIMIT)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {token}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head[:16]:
            raise UnexpectedAnswer(head.decode(errors="replace"))
        if b"transfer-encoding: chunked" not in head:
            while data := await reader.read(_LIMIT):
                yield data
            return
        while size := int(await reader.readline(), 16):
            left = size
            while left:
                data = await reader.read(min(left, _LIMIT))
                if not data:
                    raise ConnectionResetError("the stream was cut")
                left -= len(data)
                yield data
            await reader.readexactly(2)
    finally:
        writer.close()
