"""Sites to break."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import yaml

from shell_service import provision
from tests.database import Server, assert_truthful
from tests.services import Enter, Service, Site
from tests.waiting import eventually

QUICK = {"heartbeat_seconds": 0.2, "lost_after": 1.5, "poll_seconds": 0.3, "slots": 4}


class Worker:
    """A web worker, asked on its own socket as the first administrator, who is then the site's only user."""

    def __init__(self, site: Site, fail: str = "", enter: Enter | None = None) -> None:
        if not site.settings.tokens_file.exists():
            site.transact.sql('DELETE FROM "user"')  # so that the first administrator can be made
            provision.first_admin(site.transact.engine, site.settings.tokens_file)
        token = yaml.safe_load(site.settings.tokens_file.read_text())["INITIAL_ADMIN"]
        self.site = site
        self.site.user = site.transact.scalar('SELECT min(id) FROM "user"')
        self.service: Service = site.start("app", fail, enter=enter)
        transport = httpx.HTTPTransport(uds=str(site.settings.socket_dir / "app_0.sock"))
        self.client = httpx.Client(
            transport=transport, base_url="http://worker", headers={"Authorization": f"token {token}"}, timeout=30
        )
        eventually(self._answers)

    def _answers(self) -> bool:
        try:
            return self.client.get("/api/user").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, key: str = "", path: str = "/api/jobs", body: object = None) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return self.client.post(path, json=body or {"code": "echo hello"}, headers=headers)


@pytest.fixture
def site(server: Server) -> Iterator[Site]:
    """A site where nothing runs yet. When the test is over, all promises must hold."""
    with (
        server.database() as url,
        Site(url, runner=QUICK, jobs={"kill_grace": 0.5}, scheduler={"tick_seconds": 0.1}) as site,
    ):
        yield site
        assert_truthful(site.transact)


@pytest.fixture
def worker(site: Site) -> Worker:
    """A web worker of the site."""
    return Worker(site)
