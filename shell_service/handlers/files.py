"""What handlers have in common that take files: as parts of a form, or in JSON."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import orjson

from baselayer.errors import InvalidRequest, LimitReached
from baselayer.forms import FormHandler
from baselayer.handler import Call
from shell_service import uploads
from shell_service.handlers.base import AppHandler
from shell_service.shells import AUTO
from shell_service.uploads import Incoming

P = ParamSpec("P")
R = TypeVar("R")


class FilesHandler(FormHandler, AppHandler):
    """A handler of which methods take files."""

    sink: Incoming | None
    _counted: int | None = None  # whose upload this is, as long as it is one of those that he sends at once

    @property
    def body_sizes(self) -> tuple[int, int]:
        most = self.app.settings.server.max_body
        return most, most + self.app.settings.uploads.max_size

    @property
    def threads(self) -> Executor:
        return self.app.upload_threads

    async def open_sink(self, size: int | None) -> Incoming:
        assert self.caller is not None
        user, most = self.caller.user_id, self.app.settings.uploads.at_once
        if self.app.uploading[user] >= most:
            raise LimitReached(f"You may send {most} uploads at once.", retry_after=5)
        self.app.uploading[user] += 1
        self._counted = user
        return await self._in_thread(self.app.uploads.receive, size)

    async def _in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.threads, call)

    def _leave(self) -> None:
        super()._leave()
        if self._counted is not None:
            self.app.uploading[self._counted] -= 1
            self._counted = None

    def schema_context(self) -> Any:
        sent = self.sink is not None and not self.sink.empty
        return dataclasses.replace(self.app.rules, files_sent=sent)

    async def keep_files(self, call: Call, whole: bool = True) -> dict[str, Any]:
        """What the request asks for, with `upload` in place of files, which are stored then. Raises `ApiError`.

        Unless it is the `whole` of what is to be run, it is left to the caller whether that can be run.
        """
        body = dict(call.body)
        files: Mapping[str, str] | None = body.pop("files", None)
        sent = self.sink is not None
        if files is not None:
            if sent:
                raise InvalidRequest.of({"files": ["In a form, files come as parts of it."]})
            self.sink = await self.open_sink(len(self.request.body))
            await self._in_thread(_write, self.sink, files)
        incoming = self.sink
        if incoming is None or incoming.empty:
            return body
        upload = await self._in_thread(incoming.finish)
        uploads.check_packages(upload, self.app.settings.packages.index)
        if whole:
            uploads.check(upload, body["entrypoint"], body.get("shell") or AUTO, self.app.rules.shells)
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
