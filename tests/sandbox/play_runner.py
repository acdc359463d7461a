"""Plays the runner, to be killed by a test: holds a job, hands its output to the test, lets it go when told.

python -m tests.sandbox.play_runner SOCKET MODE SCRIPT
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

from tests.sandbox.support import command, sandbox


async def main(test: socket.socket, mode: str, script: str) -> None:
    async with sandbox(mode=mode) as made:
        process = await (await made.prepare(1)).start(command("/bin/sh", script.encode()))
        socket.send_fds(test, [struct.pack("<iQ", process.pid, process.start_time)], [process.stdout])
        if await asyncio.to_thread(test.recv, 1):
            process.go()
            await process.wait()
            test.send(b"ended")
            await asyncio.to_thread(test.recv, 1)


if __name__ == "__main__":
    asyncio.run(main(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:]))
