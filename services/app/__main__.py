"""A web worker: answers the API on a Unix socket behind nginx."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from typing import Any

import click
import uvloop
from tornado import httputil
from tornado.httpserver import HTTPServer

from baselayer import log
from baselayer.database import Database
from baselayer.failpoint import FailPoints
from services import account, keys, sockets
from services.options import config_option
from services.ready import schema_is_current
from shell_service import shells
from shell_service.secrets import Keyring
from shell_service.settings import Settings


@click.command()
@config_option
@click.option("--process", default=0, help="Number of this worker.")
def main(settings: Settings, process: int) -> None:
    """Answer the API."""
    log.set_up(settings.log.level)
    folder = settings.run_dir / "metrics"
    folder.mkdir(mode=0o700, exist_ok=True)
    if settings.account:
        os.chown(folder, settings.account.uid, settings.account.gid)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # read when prometheus_client is imported, next
    import shell_service.app  # noqa: F401 - while nothing of it can be out of reach

    database_url, keyring = settings.database_url, keys.keyring(settings)
    entrance = sockets.bind(settings.socket_dir / f"app_{process}.sock")
    account.enter(settings, database_url, [folder, settings.output_dir, settings.upload_dir])
    uvloop.run(serve(settings, database_url, entrance, keyring))


async def serve(settings: Settings, database_url: str, entrance: socket.socket, keyring: Keyring) -> None:
    """Serve until SIGTERM; then finish the requests at hand, for `server.drain_seconds` at most."""
    from shell_service.app import make_app, routes, run_background

    database = Database(
        database_url,
        size=settings.database.pool_size,
        statement_timeout=settings.database.statement_timeout,
        wait=settings.database.pool_timeout,
    )
    app = make_app(settings, database, shells.available(settings.shells), keyring, FailPoints())
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Forms are never read; how many query parameters are too many is for the handlers to say, in the API's own form.
    forms = httputil.ParseUrlEncodedConfig(max_arguments=20_000)
    httputil.set_parse_body_config(httputil.ParseBodyConfig(httputil.ParseMultipartConfig(enabled=False), forms))
    options: dict[str, Any] = {
        "xheaders": True,  # only nginx can reach the socket, and it says who the client is
        "max_body_size": settings.server.max_body,
        "max_buffer_size": settings.server.max_body + 2**20,
        "idle_connection_timeout": 3600,
        "body_timeout": 60,
    }
    if not await schema_is_current(database, stop):
        return
    # What is here for good is not looked through again and again: nothing else runs while that is done.
    gc.collect()
    gc.freeze()
    server = HTTPServer(routes(app), **options)
    entrance.listen(1024)
    server.add_socket(entrance)
    stopped = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_background(app, stopped))
        await stop.wait()
        server.stop()  # nginx connects to the others; on connections that it holds already, requests are still answered
        app.hub.close()
        try:
            async with asyncio.timeout(settings.server.drain_seconds):
                await app.requests.drained()
        except TimeoutError:
            pass
        stopped.set()
    await server.close_all_connections()


if __name__ == "__main__":
    main()
