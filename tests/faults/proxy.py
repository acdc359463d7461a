"""Between a service and its database: a wire that is cut when the server has done something, before it says so."""

from __future__ import annotations

import selectors
import socket
import threading
from pathlib import Path

from sqlalchemy import make_url

_PORT = 5432


class Cut:
    """Forwards connections; of those on which `marks` were seen one after the other, the first is cut.

    It is cut when the server has answered what the last mark came with: it is done, and nobody is told.
    """

    def __init__(self, url: str, folder: Path, *marks: bytes) -> None:
        """`folder` is where the services look for the server's socket."""
        folder.mkdir(mode=0o711)
        self.url = make_url(url).set(drivername="postgresql").update_query_dict({"host": str(folder)}).render_as_string(
            hide_password=False
        )  # fmt: skip
        self.done = threading.Event()
        self._server = f"{make_url(url).query['host']}/.s.PGSQL.{_PORT}"
        self._marks = marks
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / f".s.PGSQL.{_PORT}"))
        (folder / f".s.PGSQL.{_PORT}").chmod(0o777)  # as a system's server has it
        self._listener.listen(50)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        left = list(self._marks)
        with client, socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector:
            server.connect(self._server)
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    source, target = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    try:
                        data = source.recv(1 << 16)
                        if source is server and not left and not self.done.is_set():
                            self.done.set()
                            return
                        if not data:
                            return
                        target.sendall(data)
                    except OSError:
                        return
                    if source is client:
                        while left and left[0] in data:
                            left.pop(0)
