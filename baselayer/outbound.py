"""Requests to addresses that users name: only where whoever runs the service lets them go.

Names are looked up here, and the connection is made to just the address that was looked at: so it does not help to let
a name point elsewhere meanwhile, or to send the request on to another one.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.netutil import DefaultExecutorResolver, Resolver
from tornado.simple_httpclient import HTTPTimeoutError, SimpleAsyncHTTPClient

from baselayer.guard import Guard, Refused

_MAX_ANSWER = 1 << 20  # bytes; nobody looks at them
_HOPS = 3  # times that a target may send the request on


class GuardedResolver(Resolver):
    """Looks names up, and leaves of what is found only addresses that may be reached."""

    def initialize(self, guard: Guard) -> None:
        self._guard = guard
        self._resolver = DefaultExecutorResolver()

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        """Raises `Refused` where nothing is left, and OSError where nothing is found."""
        found = await self._resolver.resolve(host, port, family)
        permitted = [(kind, address) for kind, address in found if self._guard.permits(address[0])]
        if not permitted:
            raise Refused(f"{host} is no address of the public internet, and not allowed")
        return permitted

    def close(self) -> None:
        self._resolver.close()


class Poster:
    """Sends POST requests, over connections of its own."""

    def __init__(self, guard: Guard, timeout: float, connections: int) -> None:
        """`timeout` in seconds, for a request with all that it is sent on to."""
        self._timeout = timeout
        self._client = SimpleAsyncHTTPClient(
            force_instance=True,
            max_clients=connections,
            resolver=GuardedResolver(guard=guard),
            max_body_size=_MAX_ANSWER,
            max_buffer_size=2 * _MAX_ANSWER,
        )

    async def post(self, url: str, headers: Callable[[], Mapping[str, str]], content: bytes) -> int:
        """The status of the answer, at the end of the way; `headers` are made for each request.

        Raises TimeoutError, `Refused`, and OSError for whatever else keeps it from coming there.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        for _ in range(_HOPS + 1):
            answer = await self._ask(url, headers(), content, end - loop.time())
            if answer.code not in (307, 308):  # others would make it a GET
                return answer.code
            url = urljoin(url, answer.headers.get("Location", ""))
            if urlsplit(url).scheme not in ("http", "https"):
                raise OSError("it was sent on to another protocol")
        raise OSError(f"it was sent on more than {_HOPS} times")

    async def _ask(self, url: str, headers: Mapping[str, str], content: bytes, seconds: float) -> HTTPResponse:
        if seconds <= 0:
            raise TimeoutError
        request = HTTPRequest(
            url,
            "POST",
            headers=dict(headers),
            body=content,
            follow_redirects=False,
            decompress_response=False,
            connect_timeout=seconds,
            request_timeout=seconds,
        )
        try:
            return await self._client.fetch(request, raise_error=False)
        except HTTPTimeoutError as error:
            raise TimeoutError from error
        except (HTTPClientError, ValueError) as error:
            raise OSError(str(error)) from error
