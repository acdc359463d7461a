"""Uploads when the worker is killed, the disk is full or the database away: whole or not at all, and told."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

import httpx
import pytest

from tests.database import EmbeddedServer, Server
from tests.faults.conftest import QUICK, Worker
from tests.faults.small_disk import SmallDisk
from tests.services import Site
from tests.waiting import eventually

MIB = 1 << 20


def send(worker: Worker, content: bytes) -> httpx.Response:
    files = [("files[]", ("x.sh", content))]
    return worker.client.post("/api/jobs", files=files, data={"entrypoint": "x.sh", "name": "sent"})


class Begun:
    """An upload of which the first half has come."""

    def __init__(self, worker: Worker, content: bytes, folder: Path | None = None) -> None:
        """`folder` is where the worker sees the uploads."""
        head = '--x\r\nContent-Disposition: form-data; name="entrypoint"\r\n\r\nx.sh\r\n'
        head += '--x\r\nContent-Disposition: form-data; name="files[]"; filename="x.sh"\r\n\r\n'
        body = head.encode() + content + b"\r\n--x--\r\n"
        settings = worker.site.settings
        before = set(incoming(folder or settings.upload_dir))
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(settings.socket_dir / "app_0.sock"))
        self.socket.settimeout(30)
        self.socket.sendall(
            b"POST /api/jobs HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n"
            + f"Authorization: {worker.client.headers['Authorization']}\r\n".encode()
            + b"Content-Type: multipart/form-data; boundary=x\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body[: len(body) // 2]
        )
        self.rest = body[len(body) // 2 :]
        eventually(lambda: any(path.stat().st_size for path in {*incoming(folder or settings.upload_dir)} - before))

    def finish(self) -> bytes:
        """Send the rest; returns the answer."""
        self.socket.sendall(self.rest)
        return b"".join(iter(lambda: self.socket.recv(65536), b""))


def incoming(folder: Path) -> list[Path]:
    return [*(folder / "incoming").iterdir()] if (folder / "incoming").is_dir() else []


def nothing_is_stored(site: Site) -> bool:
    return not site.transact.sql("SELECT FROM upload") and not site.transact.sql("SELECT FROM job")


def test_a_worker_killed_in_the_middle(site: Site, worker: Worker) -> None:
    content = b"echo whole #" + os.urandom(3 * MIB).hex().encode()
    cut = Begun(worker, content)
    worker.service.kill()
    (left,) = incoming(site.settings.upload_dir)
    cut.socket.close()
    assert nothing_is_stored(site)
    again = Worker(site)
    under_way = Begun(again, content + b"!")
    site.start("scheduler")
    site.start_runner()
    eventually(lambda: not left.exists())
    assert b'"success"' in under_way.finish()  # nobody has taken that for a leftover
    assert send(again, content).status_code == 200
    site.all_final()
    assert {site.output(row) for row in map(site.job, _jobs(site))} == {b"whole\n"}
    eventually(lambda: not incoming(site.settings.upload_dir))


def test_a_worker_killed_before_the_job_is_stored(site: Site) -> None:
    worker = Worker(site, fail="app.before_commit=kill")
    with pytest.raises(httpx.TransportError):
        send(worker, b"echo once")
    assert worker.service.wait() and not site.transact.sql("SELECT FROM job")
    again = Worker(site)
    answer = send(again, b"echo once")
    assert answer.status_code == 200
    site.start_runner()
    site.all_final()
    assert [site.output(site.job(job_id)) for job_id in _jobs(site)] == [b"once\n"]
    assert site.transact.scalar("SELECT count(*) FROM upload") == 1


def test_a_disk_that_is_full(server: Server) -> None:
    with (
        server.database() as url,
        Site(url, runner={**QUICK, "min_free": 0}) as site,
        SmallDisk(site.settings.upload_dir, 8 * MIB) as disk,
    ):
        worker = Worker(site, enter=disk.enter)
        begun = Begun(worker, b"x" * (6 * MIB), disk.folder)
        disk.fill()
        answer = begun.finish()
        assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After" in answer, answer[:500]
        assert nothing_is_stored(site)
        eventually(lambda: not incoming(disk.folder))  # removed as soon as the answer is sent
        assert worker.client.get("/api/user").status_code == 200
        disk.free()
        assert send(worker, b"x" * (6 * MIB)).status_code == 200
        assert worker.service.process.poll() is None


def test_a_database_that_is_away() -> None:
    with EmbeddedServer() as server, server.database() as url, Site(url, runner=QUICK) as site:
        worker = Worker(site)
        begun = Begun(worker, b"echo kept #" + b"x" * MIB)
        server.stop()
        answer = begun.finish()
        assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After" in answer, answer[:500]
        server.start()
        assert nothing_is_stored(site)
        eventually(lambda: not incoming(site.settings.upload_dir))
        eventually(lambda: send(worker, b"echo kept").status_code == 200)
        site.start_runner()
        site.all_final()
        assert {site.output(site.job(job_id)) for job_id in _jobs(site)} == {b"kept\n"}


def _jobs(site: Site) -> list[uuid.UUID]:
    return [row.id for row in site.transact.sql("SELECT id FROM job")]
