"""Follow: 200 followers of a job that prints steadily, and one of a job that floods."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import subprocess
import time
from collections.abc import AsyncIterator

import orjson

from benchmarks.bench import Bench
from benchmarks.client import Connection, UnexpectedAnswer, stream
from benchmarks.results import Row

FOLLOWERS = 200
LINE = 1000  # bytes; each begins with the time at which it was printed
BURST = 100 * 2**20
BURST_LINE = "0123456789" * 8
FLOOD = f"yes {BURST_LINE} | head -c {BURST}"


async def run(bench: Bench) -> list[Row]:
    return [await steady(bench), *await burst(bench)]


async def steady(bench: Bench) -> Row:
    """20 kB/s in 20 lines a second, to each follower; delays are those from a line's printing to its arrival."""
    seconds = 4 if bench.quick else 15
    code = f'for i in $(seq {seconds * 20}); do printf "%s %0{LINE - 2 - 17}d\\n" "$EPOCHREALTIME" 0; sleep 0.05; done'
    connection = await Connection.open(bench.port)
    token = bench.tokens[0]
    job = (await connection.request("POST", "/api/jobs", token, {"code": code, "shell": "bash", "delay": 3})).data()
    path = f"/api/jobs/{job['id']}"
    delays: list[float] = []
    texts = await asyncio.gather(*(_follow(bench.port, path, token, delays) for _ in range(FOLLOWERS)))
    whole = (await connection.request("GET", f"{path}/stdout", token)).body
    connection.close()
    if len(whole) != seconds * 20 * LINE:
        raise UnexpectedAnswer(f"the job printed {len(whole)} bytes")
    if any(text != whole for text in texts):
        raise UnexpectedAnswer("a follower got other bytes than the job printed")
    cuts = statistics.quantiles(delays, n=100)
    return Row(
        "follow",
        f"{FOLLOWERS} followers of 20 kB/s, bytes exact, delay p99",
        "ms",
        [cuts[98] * 1e3],
        bound=250,
        at_most=True,
        note=f"p50 {cuts[49] * 1e3:.0f} ms, most {max(delays) * 1e3:.0f} ms",
    )


async def _follow(port: int, path: str, token: str, delays: list[float]) -> bytes:
    printed, part = bytearray(), b""
    async for text in outputs(port, path, token):
        now = time.time()
        printed += text
        *lines, part = (part + text).split(b"\n")
        delays.extend(now - float(line[:17]) for line in lines)
    return bytes(printed)


async def outputs(port: int, path: str, token: str) -> AsyncIterator[bytes]:
    """The text of each ``stdout`` event; raises `UnexpectedAnswer` unless the stream ends with ``end``."""
    parts: list[bytes] = []
    kind = b""
    async for chunk in stream(port, f"{path}/stream", token):
        parts.append(chunk)
        if b"\n\n" not in chunk and not chunk.startswith(b"\n"):
            continue  # a part of a large event: joined only once
        *events, rest = b"".join(parts).split(b"\n\n")
        parts = [rest]
        for event in events:
            fields = dict(line.partition(b": ")[::2] for line in event.split(b"\n"))
            kind = fields.get(b"event", b"")
            if kind == b"stdout":
                yield orjson.loads(fields[b"data"]).encode()
    if kind != b"end":
        raise UnexpectedAnswer("the stream ended without its end event")


async def burst(bench: Bench) -> list[Row]:
    """100 MiB as fast as they come: as events, and as bytes; beside `cat` through a pipe."""
    wanted = hashlib.sha256((f"{BURST_LINE}\n".encode() * (BURST // len(BURST_LINE) + 1))[:BURST]).hexdigest()
    token = bench.tokens[1]
    rates: dict[str, list[float]] = {"pipe": [], "events": [], "bytes": []}
    for _ in range(bench.rounds):
        began = time.perf_counter()
        await asyncio.to_thread(
            subprocess.run,
            ["/bin/sh", "-c", f"{FLOOD} | cat >/dev/null"],
            check=True,
        )
        rates["pipe"].append(BURST / 1e6 / (time.perf_counter() - began))
        for way in ("events", "bytes"):
            connection = await Connection.open(bench.port)
            began = time.perf_counter()
            job = (await connection.request("POST", "/api/jobs", token, {"code": FLOOD})).data()
            connection.close()
            path, digest = f"/api/jobs/{job['id']}", hashlib.sha256()
            source = (
                outputs(bench.port, path, token)
                if way == "events"
                else stream(bench.port, f"{path}/stdout?follow=true", token)
            )
            async for data in source:
                digest.update(data)
            rates[way].append(BURST / 1e6 / (time.perf_counter() - began))
            if digest.hexdigest() != wanted:
                raise UnexpectedAnswer("the follower got other bytes than the job printed")
    return [
        Row(
            "follow",
            "one follower of 100 MiB, events, from the POST on, bytes exact",
            "MB/s",
            rates["events"],
            "cat through a pipe",
            rates["pipe"],
            bound=30,
            note=f"as plain bytes (stdout?follow=true): {statistics.median(rates['bytes']):.0f} MB/s",
            details={"bytes": rates["bytes"]},
        )
    ]
