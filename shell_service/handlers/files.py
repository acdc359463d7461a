"""What handlers have in common that take files: as parts of a form, or in JSON."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

import orjson

from baselayer.forms import FormHandler
from baselayer.handler import Call
from shell_service import uploads
from shell_service.handlers.base import AppHandler
from shell_service.uploads import AUTO, Incoming


class FilesHandler(FormHandler, AppHandler):
    """A handler of which methods take files."""

    sink: Incoming | None

    @property
    def body_sizes(self) -> tuple[int, int]:
        most = self.app.settings.server.max_body
        return most, most + self.app.settings.uploads.max_size

    async def open_sink(self) -> Incoming:
        return await asyncio.to_thread(self.app.uploads.receive)

    def schema_context(self) -> Any:
        sent = self.sink is not None and not self.sink.empty
        return dataclasses.replace(self.app.rules, files_sent=sent)

    async def keep_files(self, call: Call) -> dict[str, Any]:
        """What the request asks for, with `upload` in place of files, which are stored then. Raises `ApiError`."""
        body = dict(call.body)
        files: Mapping[str, str] | None = body.pop("files", None)
        sent = self.sink is not None
        if files is not None:
            self.sink = await self.open_sink()
            await asyncio.to_thread(_write, self.sink, files)
        incoming = self.sink
        if incoming is None or incoming.empty:
            return body
        upload = await asyncio.to_thread(incoming.finish)
        uploads.check(upload, body["entrypoint"], body.get("shell") or AUTO)
        most = self.app.settings.uploads.user_size
        await self.app.database.run(uploads.keep, self.app.uploads, incoming, upload, call.caller.user_id, most)
        if sent:  # what this request asks for, to be known when it comes again
            self.request.body = orjson.dumps([self.request.body.decode(), upload.digest])
        return {**body, "upload": upload.digest}


def _write(sink: Incoming, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        sink.begin("files", name)
        sink.write(text.encode())
        sink.end()
