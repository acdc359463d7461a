"""Notifications over a connection that breaks."""

from __future__ import annotations

import asyncio
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy
import uvloop

from baselayer.listener import Listener


class Wire:
    """Forwards the connections to a TCP port of its own; the last of them can be reset."""

    def __init__(self, url: str) -> None:
        server = sqlalchemy.make_url(url)
        self._server = f"{server.query['host']}/.s.PGSQL.5432"
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = server.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def reset(self, last_words: bytes) -> None:
        """Send the client `last_words`, and reset its connection; returns when both have got there."""
        self._order.sendall(last_words)
        self._forwarder.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._order, order = socket.socketpair()
            self._forwarder = threading.Thread(target=self._forward, args=(client, order), daemon=True)
            self._forwarder.start()

    def _forward(self, client: socket.socket, order: socket.socket) -> None:
        with client, order, socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector:
            server.connect(self._server)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is held back would be lost at the reset
            for source, target in ((client, server), (server, client), (order, client)):
                selector.register(source, selectors.EVENT_READ, target)
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data:
                        return
                    key.data.sendall(data)
                    if key.fileobj is order:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return


@pytest.fixture
def wire(database_url: str) -> Iterator[Wire]:
    made = Wire(database_url)
    yield made
    made.close()


def notification(channel: str, payload: str) -> bytes:
    """A NotificationResponse of PostgreSQL's protocol."""
    content = struct.pack("!i", 1) + channel.encode() + b"\0" + payload.encode() + b"\0"
    return b"A" + struct.pack("!i", 4 + len(content)) + content


@contextmanager
def running(listener: Listener) -> Iterator[None]:
    task = asyncio.create_task(listener.run())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_breaks_after_a_notification_is_made_again(
    wire: Wire, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Both reach a loop that is busy with something else, so it hears of them at once."""

    async def main() -> list[str]:
        connected, heard = asyncio.Event(), list[str]()
        with running(Listener(wire.url, {"job": heard.append}, on_connect=connected.set)):
            await asyncio.wait_for(connected.wait(), 10)
            connected.clear()
            wire.reset(notification("job", "last"))
            await asyncio.wait_for(connected.wait(), 10)
        return heard

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(main()) == ["last"]
