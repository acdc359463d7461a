"""Procrastinate's application; its address comes in the environment."""

from __future__ import annotations

import asyncio
import os

from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["BENCH_POSTGRES"]))


@app.task(name="run")
async def run() -> None:
    """Run the command and check what it printed, as Procrastinate keeps no results."""
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", "echo hello", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out == b"hello\n"
