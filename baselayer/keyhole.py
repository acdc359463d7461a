"""A look at supervisord's process list, for a process that must not hold supervisord's socket.

Whoever holds that socket can do anything that supervisord can. So, as OpenSSH separates its privileges, a fork of the
process stays behind when the process gives up its own rights: it knows one question, puts it to supervisord, and hands
on the answer unread. It has no rights left but to be the owner of that socket, and ends with the process.

It keeps what the process had imported by then, so `separate` comes before all else.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from baselayer import privilege

_BODY = b"<methodCall><methodName>supervisor.getAllProcessInfo</methodName><params/></methodCall>"
_QUESTION = b"POST /RPC2 HTTP/1.0\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY
_LONGEST = 4 * 2**20  # bytes of an answer: some kilobytes for each process


class Keyhole:
    """The asking side."""

    def __init__(self, channel: socket.socket, timeout: float) -> None:
        self._channel = channel
        self._timeout = timeout

    def point_at(self, path: Path) -> None:
        """Say, once and for all, where supervisord's socket is; before rights are given up."""
        self._channel.send(os.fsencode(path))

    def fileno(self) -> int:
        """A descriptor that becomes readable when nobody is behind it any more."""
        return self._channel.fileno()

    def look(self) -> bytes:
        """supervisord's answer as it came, for `baselayer.supervision`.

        It may be cut off, or empty, where supervisord did not answer. Raises `OSError` when nobody is there to ask it.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:  # each question has a way back of its own, so no late answer is taken for another one's
                socket.send_fds(self._channel, [b"?"], [theirs.fileno()])
            return b"".join(_received(ours, self._timeout + 1))


def separate(timeout: float) -> Keyhole:
    """Leave a fork behind that will ask supervisord; it waits `timeout` seconds for an answer at most.

    For a process of one thread that root has started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        return Keyhole(ours, timeout)
    try:
        ours.close()
        folder, name = os.path.split(theirs.recv(4096))
        os.chdir(folder)
        privilege.limit([])
        _serve(theirs, name, timeout)
    finally:
        os._exit(0)


def _serve(channel: socket.socket, name: bytes, timeout: float) -> None:
    while True:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if not descriptors:
            return
        try:
            with socket.socket(fileno=descriptors[0]) as asker:
                asker.settimeout(timeout)
                _hand_on(name, asker, timeout)
        except OSError:
            pass  # an answer that is cut off says so itself


def _hand_on(name: bytes, asker: socket.socket, timeout: float) -> None:
    with socket.socket(socket.AF_UNIX) as supervisord:
        supervisord.settimeout(timeout)
        supervisord.connect(name)
        supervisord.sendall(_QUESTION)
        for part in _received(supervisord, timeout):
            asker.sendall(part)


def _received(connection: socket.socket, timeout: float) -> Iterator[bytes]:
    """What comes until the other side hangs up, within `timeout` seconds. Raises `TimeoutError`."""
    deadline, length = time.monotonic() + timeout, 0
    while length < _LONGEST:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(65536)
        if not part:
            return
        length += len(part)
        yield part
