"""Uploads: a form with 1 GiB of a file, and what the workers' memory does meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time

from benchmarks.bench import Bench, memory_of
from benchmarks.client import UnexpectedAnswer
from benchmarks.results import Row

SIZE = 2**30
_CHUNK = os.urandom(2**20)
_LOOK_SECONDS = 0.01
_BOUNDARY = "benchmark"


async def run(bench: Bench) -> list[Row]:
    size = bench.scaled(SIZE) // len(_CHUNK) * len(_CHUNK)
    workers = [pid for name, pid in bench.stack.pids().items() if name.startswith("app_")]
    ours, theirs, growths = [], [], []
    for number in range(bench.rounds):
        theirs.append(await asyncio.to_thread(_plainly, bench, size))
        before, peak = sum(map(memory_of, workers)), 0
        began = time.perf_counter()
        sending = asyncio.create_task(_send(bench, size, number))
        while not sending.done():
            peak = max(peak, sum(map(memory_of, workers)))
            await asyncio.wait({sending}, timeout=_LOOK_SECONDS)
        sending.result()
        ours.append(size / 1e6 / (time.perf_counter() - began))
        growths.append((peak - before) / 2**20)
    what = f"a file of {size / 2**20:,.0f} MiB sent as a form, until the job is stored"
    plain = "one process that hashes, writes and syncs as much"
    return [
        Row("uploads", what, "MB/s", ours, plain, theirs, "ratio"),
        Row("uploads", "growth of all workers' memory meanwhile", "MiB", growths, bound=32, at_most=True),
    ]


async def _send(bench: Bench, size: int, number: int) -> None:
    """Submit a job with one file, which is another one each time."""
    fields = {"delay": b"86400", "entrypoint": b"a.sh"}
    start = b"".join(_part(f'name="{name}"') + value + b"\r\n" for name, value in fields.items())
    start += _part('name="files[]"; filename="a.sh"') + b"%08d" % number
    end = f"\r\n--{_BOUNDARY}--\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    writer.write(
        f"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {bench.tokens[0]}\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\nConnection: close\r\n"
        f"Content-Length: {len(start) + size - 8 + len(end)}\r\n\r\n".encode()
    )
    writer.write(start)
    writer.write(_CHUNK[8:])
    for _ in range(size // len(_CHUNK) - 1):
        writer.write(_CHUNK)
        await writer.drain()
    writer.write(end)
    answer = await asyncio.wait_for(reader.read(), 300)
    writer.close()
    if not answer.startswith(b"HTTP/1.1 200"):
        raise UnexpectedAnswer(answer[-500:].decode(errors="replace"))


def _part(name: str) -> bytes:
    return f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode()


def _plainly(bench: Bench, size: int) -> float:
    """MB/s of one process without a network."""
    began, digest = time.perf_counter(), hashlib.sha256()
    with tempfile.TemporaryFile(dir=bench.stack.folder) as file:
        for _ in range(size // len(_CHUNK)):
            digest.update(_CHUNK)
            file.write(_CHUNK)
        file.flush()
        os.fsync(file.fileno())
    return size / 1e6 / (time.perf_counter() - began)
