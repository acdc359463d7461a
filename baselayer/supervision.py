"""Speaking with supervisord over its unix socket, with a limit on every wait."""

from __future__ import annotations

import http.client
import socket
import xml.parsers.expat
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselayer.keyhole import Keyhole

# Those of supervisor's process states that somebody asks for.
RUNNING, BACKOFF, EXITED, FATAL = 20, 30, 100, 200
_NONSENSE = (xml.parsers.expat.ExpatError, xmlrpc.client.Error, ValueError, LookupError)


class SupervisorError(Exception):
    """supervisord does not answer, or refuses."""


@dataclass(frozen=True)
class Program:
    """A supervised process: `name` such as ``app_00``, state, pid (0: none), seconds up, last exit status."""

    name: str
    group: str
    state: int
    state_name: str
    pid: int
    uptime: int
    exit_status: int


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Supervisor:
    """A client of the supervisord that listens at `path`; each call takes at most about `timeout` seconds."""

    def __init__(self, path: Path, timeout: float = 3.0) -> None:
        self.path = path
        self.timeout = timeout

    def call(self, method: str, *arguments: Any) -> Any:
        """Call an XML-RPC method by its full name. Raises `SupervisorError`."""
        connection = _Connection(self.path, self.timeout)
        try:
            body = xmlrpc.client.dumps(arguments, method)
            connection.request("POST", "/RPC2", body, {"Content-Type": "text/xml"})
            answer = connection.getresponse().read()
            return xmlrpc.client.loads(answer)[0][0]
        except (OSError, http.client.HTTPException, *_NONSENSE) as error:
            raise SupervisorError(f"supervisord did not answer: {error}") from error
        finally:
            connection.close()

    def programs(self) -> list[Program]:
        """Every program and how it is. Raises `SupervisorError`."""
        return _programs(self.call("supervisor.getAllProcessInfo"))


def programs_through(keyhole: Keyhole) -> list[Program]:
    """As `Supervisor.programs`, for whoever has not its socket. Raises `SupervisorError`."""
    try:
        answer = keyhole.look()
    except OSError as error:
        raise SupervisorError(f"supervisord cannot be asked: {error}") from error
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head[:20]:
        raise SupervisorError(f"supervisord did not answer: {head[:100]!r}")
    try:
        return _programs(xmlrpc.client.loads(body)[0][0])
    except _NONSENSE as error:
        raise SupervisorError(f"supervisord's answer makes no sense: {error}") from error


def _programs(entries: Any) -> list[Program]:
    return [
        Program(
            name=entry["name"],
            group=entry["group"],
            state=entry["state"],
            state_name=entry["statename"],
            pid=entry["pid"],
            uptime=max(0, entry["now"] - entry["start"]) if entry["pid"] else 0,
            exit_status=entry["exitstatus"],
        )
        for entry in entries
    ]
