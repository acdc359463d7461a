"""What a job leaves: its output, exact and followed live, and its artifacts."""

from __future__ import annotations

import codecs
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

import orjson
from tornado.iostream import StreamClosedError

from baselayer.errors import InvalidRequest, LimitReached, NotFound, RangeNotSatisfiable, Unavailable
from baselayer.fields import rfc3339
from baselayer.handler import STREAMED, Call, Route, endpoint
from shell_service import artifacts, schemas
from shell_service.artifacts import Artifact
from shell_service.handlers.base import AppHandler
from shell_service.jobs import Found
from shell_service.output import STREAMS, Kept, Stream
from shell_service.streams import Event, Follower, Position, now_and_then


class OutputHandler(AppHandler):
    """What sending output has in common."""

    async def may_go_on(self, call: Call, job_id: str) -> None:
        """Raise when the caller may not read this job any more."""
        caller = await self.app.authenticator.authenticate(call.header("Authorization"), "")
        caller.require("jobs:read")
        if caller != call.caller:  # such as an administrator who is none any more
            call.caller_or_none = caller
            await self.find(call, job_id)

    def follower(self, call: Call, job_id: str, streams: tuple[Stream, ...], text: bool) -> Follower:
        look, may_go_on = partial(self.find, call, job_id), partial(self.may_go_on, call, job_id)
        return Follower(self.app.hub, self.app.ticker, self.app.reader, look, may_go_on, streams, text)

    @contextmanager
    def counted(self, call: Call) -> Iterator[None]:
        """Hold one of the streams that a user may have open at once. Raises `LimitReached`."""
        user, open_streams = call.caller.user_id, self.app.streams
        most = self.app.settings.users.max_streams
        if open_streams.get(user, 0) >= most:
            raise LimitReached(f"You may have {most} streams open at once.", retry_after=5)
        open_streams[user] = open_streams.get(user, 0) + 1
        try:
            yield
        finally:
            open_streams[user] -= 1
            if not open_streams[user]:
                del open_streams[user]

    def start_stream(self, media: str, name: str | None = None) -> None:
        """Set the headers; with a `name` it is a download."""
        self.set_header("Content-Type", media)
        self.set_header("X-Accel-Buffering", "no")
        self.set_header("X-Content-Type-Options", "nosniff")
        if name is not None:
            self.set_header("Content-Disposition", attachment(name))

    async def send_part(self, call: Call, found: Found, stream: Kept, begin: int, size: int, tag: str) -> None:
        """Send `size` bytes of what is kept of a job's attempt, from `begin`, or the Range of them that is asked for.

        `tag` stands for these bytes, as an ETag.
        """
        self.set_header("ETag", tag)
        self.set_header("Accept-Ranges", "bytes")
        if tag in re.findall(r'"[^"]*"', self.request.headers.get("If-None-Match", "")):
            self.set_status(304)
            self.finish()
            return
        start, end = 0, size
        wanted = self.request.headers.get("Range")
        if wanted is not None and self.request.headers.get("If-Range", tag) == tag:
            start, end = parse_range(wanted, size)
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.set_header("Content-Length", str(end - start))
        chunks = self.app.reader.chunks(found.job_id, found.attempt, stream, begin + start, begin + end)
        await self.send(call, found, chunks)

    async def send(self, call: Call, found: Found, chunks: AsyncIterator[bytes]) -> None:
        """Send what is kept of a job, as long as the caller may read it, and takes it."""
        if self.request.method != "HEAD":
            may_go_on = now_and_then(partial(self.may_go_on, call, found.public_id))
            async for chunk in chunks:
                await may_go_on()
                self.write(chunk)
                try:
                    await self.flush()
                except StreamClosedError:
                    return
        self.finish()


def attachment(name: str) -> str:
    """The header Content-Disposition of a download (RFC 6266), for any name."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return f'attachment; filename="{plain}"' + ("" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}")


class Output(OutputHandler):
    """One stream of a job."""

    stream: Stream

    @endpoint(
        "jobs:read",
        query=schemas.FollowQuery,
        errors=[NotFound, RangeNotSatisfiable, LimitReached],
        headers=["Range", "If-None-Match"],
        media="application/octet-stream",
    )
    async def get(self, call: Call, job_id: str) -> Any:
        """Get what a job printed to this stream, as exact bytes.

        Takes a `Range`. With `follow=true` the answer goes on until the job has ended.
        """
        found = await self.find(call, job_id)
        if call.query["follow"]:
            if "Range" in self.request.headers:
                raise InvalidRequest("Give either follow or a Range.")
            await call.unless_closed(self._follow(call, found))
        else:
            await self._send_range(call, found)
        return STREAMED

    def _start(self, found: Found) -> None:
        self.start_stream("application/octet-stream", f"{found.public_id}.{self.stream}")

    async def _follow(self, call: Call, found: Found) -> None:
        job_id = found.public_id
        with self.counted(call):
            self._start(found)
            await self.flush()
            if self.request.method == "HEAD":
                return
            kind = ""
            try:
                async for event in self.follower(call, job_id, (self.stream,), text=False).events(Position()):
                    kind = event.kind
                    if event.data:
                        self.write(event.data)
                        await self.flush()
            except StreamClosedError:
                return
            if kind != "end":  # this worker is to stop: the answer must not look like a whole one
                raise Unavailable
        self.finish()

    async def _send_range(self, call: Call, found: Found) -> None:
        reader, attempt = self.app.reader, found.attempt
        size = await reader.size(found.job_id, attempt, self.stream) if attempt else 0
        # A file only grows, and never after the job's end: job, attempt and size say all that a validator has to.
        tag = f'"{found.job_id.hex}-{attempt}-{self.stream}-{size}"'
        self._start(found)
        await self.send_part(call, found, self.stream, 0, size, tag)


def parse_range(text: str, size: int) -> tuple[int, int]:
    """Start and end (exclusive) of a single byte range (RFC 9110, section 14).

    Raises `InvalidRequest` for what is not one, `RangeNotSatisfiable` for one that lies outside.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", text.strip(), re.ASCII)
    if match is None or not (match[1] or match[2]):
        raise InvalidRequest("Range must be one range of bytes, such as bytes=0-1023 or bytes=-1024.")
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < start:
            raise InvalidRequest("Range ends before it starts.")
    if start >= end:
        raise RangeNotSatisfiable(f"There are {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return start, end


class Stdout(Output):
    stream = "stdout"


class Stderr(Output):
    stream = "stderr"


class Setup(OutputHandler):
    @endpoint(
        "jobs:read",
        errors=[NotFound, RangeNotSatisfiable],
        headers=["Range", "If-None-Match"],
        media="application/octet-stream",
    )
    async def get(self, call: Call, job_id: str) -> Any:
        """Get what was said when a job's packages were installed, as exact bytes.

        Of a job that needs none, or whose packages were there already, nothing was. Takes a `Range`.
        """
        found = await self.find(call, job_id)
        attempt = found.attempt
        size = await self.app.reader.size(found.job_id, attempt, "setup") if attempt else 0
        self.start_stream("application/octet-stream", f"{found.public_id}.setup")
        await self.send_part(call, found, "setup", 0, size, f'"{found.job_id.hex}-{attempt}-setup-{size}"')
        return STREAMED


class EventStream(OutputHandler):
    @endpoint(
        "jobs:read",
        errors=[NotFound, LimitReached],
        headers=["Last-Event-ID"],
        media="text/event-stream",
    )
    async def get(self, call: Call, job_id: str) -> Any:
        """Follow a job as Server-Sent Events.

        Events `stdout` and `stderr` carry text as a JSON string (bytes that are not UTF-8 are replaced); `status`
        carries `{"status", "attempt", "reason"}` whenever it changes; `end` is the last, with the same. An event's id
        says how far it got: send it as `Last-Event-ID` to go on from there. A comment comes every 15 seconds.
        """
        start = Position.parse(call.header("Last-Event-ID"))
        await self.find(call, job_id)
        if self.request.method == "HEAD":
            self.start_stream("text/event-stream; charset=utf-8")
            await self.flush()
            return STREAMED
        await call.unless_closed(self._follow(call, job_id, start))
        return STREAMED

    async def _follow(self, call: Call, job_id: str, start: Position) -> None:
        with self.counted(call):
            try:
                async for event in self.follower(call, job_id, STREAMS, text=True).events(start):
                    if not self._headers_written:
                        self.start_stream("text/event-stream; charset=utf-8")
                    self.write(_encode(event))
                    await self.flush()
            except StreamClosedError:
                return
        self.finish()


def _encode(event: Event) -> bytes:
    if event.kind == "heartbeat":
        return b":\n\n"
    if event.kind in STREAMS:
        data: Any = codecs.decode(event.data, "utf-8", "replace")
    else:
        row = event.job.row
        data = {"status": event.job.status, "attempt": event.job.attempt, "reason": row.reason}
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (
        str(event.position).encode(),
        event.kind.encode(),
        orjson.dumps(data),
    )


class ArtifactHandler(OutputHandler):
    """What handlers of artifacts have in common."""

    async def artifacts(self, found: Found) -> list[Artifact]:
        if not found.attempt:
            return []
        return await self.app.reader.artifacts(found.job_id, found.attempt)


class Artifacts(ArtifactHandler):
    @endpoint("jobs:read", answer=schemas.ArtifactRecord(many=True), errors=[NotFound])
    async def get(self, call: Call, job_id: str) -> Any:
        """List a job's artifacts.

        What it left in `/job/artifacts`: files that are kept after its end, up to 1,000 of them. The job's record tells
        whether there were more.
        """
        return [
            {
                "path": item.path,
                "size": item.size,
                "modified": rfc3339(item.modified),
                "executable": item.executable,
            }
            for item in await self.artifacts(await self.find(call, job_id))
        ]


class OneArtifact(ArtifactHandler):
    @endpoint(
        "jobs:read",
        errors=[NotFound, RangeNotSatisfiable],
        headers=["Range", "If-None-Match"],
        media="application/octet-stream",
    )
    async def get(self, call: Call, job_id: str, path: str) -> Any:
        """Get an artifact, as exact bytes.

        Takes a `Range`. Folders in its path are separated by slashes.
        """
        found = await self.find(call, job_id)
        item = next((item for item in await self.artifacts(found) if item.path == path), None)
        if item is None:
            raise NotFound
        self.start_stream("application/octet-stream", path.rpartition("/")[2])
        tag = f'"{found.job_id.hex}-{found.attempt}-{item.start}-{item.size}"'
        await self.send_part(call, found, "artifacts", item.start, item.size, tag)
        return STREAMED


class Archive(ArtifactHandler):
    @endpoint("jobs:read", errors=[NotFound, LimitReached], media="application/gzip")
    async def get(self, call: Call, job_id: str) -> Any:
        """Get all artifacts of a job, as a tar.gz.

        Also one whose own path is `archive`, which has no address of its own.
        """
        found = await self.find(call, job_id)
        items = await self.artifacts(found)
        end = items[-1].end if items else 0
        with self.counted(call):
            self.start_stream("application/gzip", f"{found.public_id}.tar.gz")
            chunks = self.app.reader.chunks(found.job_id, found.attempt, "artifacts", 0, end)
            await self.send(call, found, artifacts.archive(chunks))
        return STREAMED


ROUTES = [
    Route("/api/jobs/{job_id}/stdout", Stdout),
    Route("/api/jobs/{job_id}/stderr", Stderr),
    Route("/api/jobs/{job_id}/setup", Setup),
    Route("/api/jobs/{job_id}/stream", EventStream),
    Route("/api/jobs/{job_id}/artifacts", Artifacts),
    Route("/api/jobs/{job_id}/artifacts/archive", Archive),
    Route("/api/jobs/{job_id}/artifacts/{path*}", OneArtifact),
]
