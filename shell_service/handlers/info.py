"""About the service: interpreters, figures, readiness, metrics, the API document."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

from sqlalchemy import text

from baselayer.errors import LimitReached, NotAllowed, NotAuthenticated, Unavailable
from baselayer.handler import ANY, PUBLIC, STREAMED, Call, Route, endpoint
from shell_service import schemas, stats
from shell_service.handlers.base import AppHandler


class Shells(AppHandler):
    @endpoint(ANY, answer=schemas.ShellRecord(many=True))
    async def get(self, call: Call) -> Any:
        """List the interpreters that jobs can name as `shell`."""
        return [{"name": name, "path": path} for name, path in self.app.rules.shells.items()]


class Stats(AppHandler):
    @endpoint("jobs:read", answer=schemas.Stats())
    async def get(self, call: Call) -> Any:
        """Figures about one's jobs, and the runners.

        Administrators see all users' jobs.
        """
        return await self.app.database.run(stats.stats, None if call.caller.is_admin else call.caller.user_id)


class SysInfo(AppHandler):
    @endpoint(
        PUBLIC,
        answer=schemas.SysInfo(),
        errors=[NotAuthenticated, LimitReached, Unavailable],
        headers=["Authorization"],
    )
    async def get(self, call: Call) -> Any:
        """The service's version, and that it is ready.

        Answers 503 while it is not. Administrators are also told what holds for jobs on each runner: which limits are
        hard, whether users have uids of their own, and whether jobs can have the network.
        """
        runners = None
        if header := call.header("Authorization"):
            caller = await self.app.authenticator.authenticate(header, self.request.remote_ip or "")
            if "users:admin" in caller.scopes:
                runners = await self.app.database.ask(stats.runners)
        if runners is None:
            await self.app.database.ask(lambda session: session.execute(text("SELECT 1")))
        return {"version": self.app.version, "ready": True, "runners": runners}


class Metrics(AppHandler):
    @endpoint(
        PUBLIC,
        media="text/plain",
        errors=[NotAuthenticated, NotAllowed, LimitReached, Unavailable],
        headers=["Authorization"],
    )
    async def get(self, call: Call) -> Any:
        """Metrics in Prometheus' text format.

        For administrators, and without a token from this machine itself.
        """
        if not ipaddress.ip_address(self.request.remote_ip or "::").is_loopback:
            self.caller = await self.app.authenticator.authenticate(
                call.header("Authorization"), self.request.remote_ip or ""
            )
            self.caller.require("users:admin")
        figures = await self.app.database.run(stats.stats, None)
        lines = [f'jobs{{status="{name}"}} {count}' for name, count in figures["jobs"].items()]
        lines += [f'runner_slots{{runner="{runner["name"]}"}} {runner["slots"]}' for runner in figures["runners"]]
        lines += [f'runner_jobs{{runner="{runner["name"]}"}} {runner["running"]}' for runner in figures["runners"]]
        lines.append(f"queue_oldest_seconds {figures['oldest_ready_seconds'] or 0:.3f}")
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        counted = await asyncio.to_thread(self.app.metrics.render)  # reads a file of each process that there was
        self.finish(counted + "\n".join(lines).encode() + b"\n")
        return STREAMED


ROUTES = [
    Route("/api/shells", Shells),
    Route("/api/stats", Stats),
    Route("/api/sysinfo", SysInfo),
    Route("/metrics", Metrics),
]
