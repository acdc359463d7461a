"""The status server: says how the rest is, and answers in its place when no web worker can."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import click
import jinja2
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine

from baselayer import log, supervision
from baselayer.keyhole import Keyhole
from baselayer.supervision import Supervisor
from services import account, sockets
from services.options import config_option
from services.status import report, terminal
from shell_service import __version__
from shell_service.settings import Settings

logger = logging.getLogger("status")

RETRY_AFTER = 2
_FRESH_SECONDS = 1.0
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_UNAVAILABLE = (
    "The service is starting, stopping or overloaded, and did not take this request. "
    "Try again in a moment; repeat a submission with the same Idempotency-Key."
)


class StatusServer:
    """Answers every request: ``/status`` with the report, anything else with 503."""

    def __init__(self, collect: Callable[[], dict[str, Any]]) -> None:
        """`collect` makes a report; it is called in a thread."""
        self._collect = collect
        templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
        )
        templates.filters |= {
            "duration": terminal.duration,
            "queue_line": terminal.queue_line,
            "limits_line": report.limits_line,
        }
        self._page = templates.get_template("status.html.j2")
        self._answering: set[asyncio.Future[None]] = set()
        self._gathering: asyncio.Task[dict[str, Any]] | None = None
        self._gathered_at = 0.0

    def accept(self, request: HTTPServerRequest) -> None:
        """Take a request, as `HTTPServer` hands it over."""
        task = asyncio.ensure_future(self._answer(request))
        self._answering.add(task)  # the loop alone would not keep it
        task.add_done_callback(self._answering.discard)

    async def report(self) -> dict[str, Any]:
        """The report, not older than a second; however many ask, it is gathered once."""
        if self._gathering is None or (
            self._gathering.done() and time.monotonic() - self._gathered_at > _FRESH_SECONDS
        ):
            self._gathered_at = time.monotonic()
            self._gathering = asyncio.create_task(asyncio.to_thread(self._collect))
        return await asyncio.shield(self._gathering)

    async def _answer(self, request: HTTPServerRequest) -> None:
        try:
            await self._respond(request)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            _refuse(request, 500, "internal_error", "Something went wrong on our side; it has been logged.", {})

    async def _respond(self, request: HTTPServerRequest) -> None:
        if request.path != "/status":
            _refuse(request, 503, "unavailable", _UNAVAILABLE, {"Retry-After": str(RETRY_AFTER)})
        elif request.method not in ("GET", "HEAD"):
            message = "This address does not know that method."
            _refuse(request, 405, "method_not_allowed", message, {"Allow": "GET, HEAD"})
        else:
            report = await self.report()
            if prefers_json(request.headers.get("Accept", "")):
                _send(request, 200, json.dumps({"status": "success", "data": report, "version": __version__}))
            else:
                page = self._page.render(report)
                _send(request, 200, page, {"Content-Security-Policy": _POLICY}, "text/html; charset=utf-8")


def prefers_json(accept: str) -> bool:
    """Whether an Accept header ranks JSON above HTML; without a preference it is the page."""
    quality = {"application/json": 0.0, "text/html": 0.0}
    exact = set()
    for part in accept.split(","):
        kind, *parameters = (word.strip() for word in part.lower().split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            value = float(weight)
        except ValueError:
            value = 0.0
        for known in quality:
            if kind == known:
                quality[known] = value
                exact.add(known)
            elif known not in exact and kind in ("*/*", known.split("/")[0] + "/*"):
                quality[known] = max(quality[known], value)
    return quality["application/json"] > quality["text/html"]


def _refuse(request: HTTPServerRequest, status: int, code: str, message: str, headers: dict[str, str]) -> None:
    """Answer with an error, in the API's form or that of RFC 9457."""
    if "application/problem+json" in request.headers.get("Accept", "").lower():
        about = {"type": "about:blank", "title": code.title().replace("_", ""), "status": status, "detail": message}
        _send(request, status, json.dumps({**about, "code": code, "errors": {}}), headers, "application/problem+json")
    else:
        data = {"code": code, "errors": {}}
        content = {"status": "error", "message": message, "data": data, "version": __version__}
        _send(request, status, json.dumps(content), headers)


def _send(
    request: HTTPServerRequest,
    status: int,
    text: str,
    headers: dict[str, str] | None = None,
    kind: str = "application/json; charset=utf-8",
) -> None:
    body = text.encode()
    all_headers = HTTPHeaders(
        {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
            "Vary": "Accept",
            **(headers or {}),
        }
    )
    if request_id := request.headers.get("X-Request-Id"):
        all_headers["X-Request-Id"] = request_id
    assert request.connection is not None
    line = ResponseStartLine("HTTP/1.1", status, HTTPStatus(status).phrase)
    request.connection.write_headers(line, all_headers, b"" if request.method == "HEAD" else body)
    request.connection.finish()


async def serve(entrance: socket.socket, status: StatusServer, max_body: int, needed: list[int]) -> None:
    """Serve until SIGTERM or SIGINT, or until one of the descriptors `needed` has been hung up."""
    server = HTTPServer(status.accept, max_body_size=max_body)
    entrance.listen(4096)
    server.add_socket(entrance)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    for descriptor in needed:
        loop.add_reader(descriptor, stopped.set)
    await stopped.wait()
    server.stop()
    await asyncio.wait_for(server.close_all_connections(), 3)


@click.command()
@config_option
@click.pass_obj
def main(hole: Keyhole | None, settings: Settings) -> None:
    """Run the status server."""
    log.set_up(settings.log.level)
    supervisor = settings.socket_dir / "supervisor.sock"
    if hole:
        hole.point_at(supervisor)
    programs = partial(supervision.programs_through, hole) if hole else Supervisor(supervisor, report.SECONDS).programs
    database_url = report.database_url(settings)
    entrance = sockets.bind(settings.socket_dir / "status.sock")
    account.enter(settings, database_url)
    status = StatusServer(partial(report.collect, programs, database_url, settings.runner.lost_after))
    asyncio.run(serve(entrance, status, settings.server.max_body, [hole.fileno()] if hole else []))
