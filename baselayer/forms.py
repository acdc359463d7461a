"""Forms: bodies of multipart/form-data, read as they come in. Text is kept, files go on to a sink, bit by bit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, Protocol

import orjson
from marshmallow import Schema, fields
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser
from tornado import web

from baselayer.bodies import MOST_VALUES, has_too_many_values
from baselayer.errors import ApiError, InvalidRequest, TooLarge, UnsupportedMediaType
from baselayer.handler import Endpoint, Handler, checker, from_text

_AT_ONCE = 256 * 1024  # bytes that a thread is asked to take
_PART = 200  # bytes that a part counts for beside its content
_TURN = 0.01  # seconds of the loop's time that reading may take at once
_MOST_PARTS = 20_000
_PATIENCE = 6 * 3600.0  # seconds that a form may take to come; the router ends those that stand still
_HURRY = 60.0  # the same for one that is refused: what comes of it is only dropped
_MOST_HEADER = 4096  # bytes of a part's header; the longest that is needed holds a name of 255 bytes


class Sink(Protocol):
    """Takes the files of one form, in a thread. Each may raise an `ApiError`."""

    def begin(self, field: str, name: str) -> None:
        """Another file comes, in this field and under this name."""

    def write(self, data: bytes) -> None:
        """A part of its content."""

    def end(self) -> None:
        """That was all of it."""

    def close(self) -> None:
        """Called at last, whatever became of the form; maybe while another call goes on."""


class Form:
    """One form."""

    def __init__(self, boundary: str, sink: Sink, most: int, threads: Executor) -> None:
        """All text fields together may take `most` bytes. Raises `InvalidRequest` for what is no boundary.

        The sink is told in one of `threads`.
        """
        self.fields: dict[str, str] = {}
        self._sink, self._left, self._threads = sink, most, threads
        try:
            self._parser = PushMultipartParser(
                boundary, max_header_size=_MOST_HEADER, max_segment_count=_MOST_PARTS, strict=True
            )
        except MultipartError as error:
            raise _invalid(error) from None
        self._part: MultipartSegment | None = None
        self._text = bytearray()
        self._waiting: list[Callable[[], None]] = []  # what the sink is still to be told
        self._size = 0  # bytes of it

    async def feed(self, data: bytes) -> None:
        """Take the next part of the body; returns when the sink has taken nearly all of it. Raises `ApiError`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _TURN
        try:
            for event in self._parser.parse(data):
                if loop.time() > until:  # there are very many parts: others have their turn
                    await asyncio.sleep(0)
                    until = loop.time() + _TURN
                if isinstance(event, MultipartSegment):
                    self._begin(event)
                elif event is None:
                    self._end()
                else:
                    self._take(bytes(event))
        except ParserLimitReached as error:
            raise TooLarge(f"The form is too large: {error}.") from None
        except MultipartError as error:
            raise _invalid(error) from None
        if self._size >= _AT_ONCE:
            await self._tell()

    async def finish(self) -> dict[str, str]:
        """The text fields, when all of the body has come. Raises `ApiError`."""
        try:
            self._parser.close()
        except MultipartError as error:
            raise _invalid(error) from None
        await self._tell()
        return self.fields

    def _begin(self, part: MultipartSegment) -> None:
        self._part, self._text = part, bytearray()
        self._size += _PART
        if part.filename is not None:
            self._waiting.append(partial(self._sink.begin, part.name or "", part.filename))
        elif not part.name or part.name in self.fields:
            raise InvalidRequest(f"The form has a field {part.name or ''!r:.70} twice, or without a name.")

    def _take(self, data: bytes) -> None:
        assert self._part is not None
        self._size += len(data)
        if self._part.filename is not None:
            self._waiting.append(partial(self._sink.write, data))
            return
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge("The fields of the form that are no files are too large.")
        self._text += data

    def _end(self) -> None:
        assert self._part is not None
        if self._part.filename is not None:
            self._waiting.append(self._sink.end)
            return
        try:
            self.fields[self._part.name or ""] = self._text.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"The field {self._part.name!r:.70} of the form is not UTF-8.") from None

    async def _tell(self) -> None:
        waiting, self._waiting, self._size = self._waiting, [], 0
        if waiting:
            await asyncio.get_running_loop().run_in_executor(self._threads, _do, waiting)


def boundary_of(content_type: str) -> str | None:
    """The boundary that a Content-Type names, if it is that of a form; empty where it names none."""
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        return None
    match = re.search(r'(?:^|;)\s*boundary\s*=\s*(?:"([^"\r\n]{1,70})"|([^\s";]{1,70})\s*(?:;|$))', parameters, re.I)
    return (match[1] or match[2]) if match else ""


def _do(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _invalid(error: MultipartError) -> InvalidRequest:
    return InvalidRequest(f"The body is no valid form: {error}.")


@web.stream_request_body
class FormHandler(Handler):
    """A handler of which methods may take a form, with files in it that are larger than any other body.

    What is wrong with a body is answered when all of it has come: whoever sends it reads no answer before.
    """

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self.sink: Sink | None = None
        self._form: Form | None = None
        self._body = bytearray()
        self._problem: ApiError | None = None
        self._closing: asyncio.Future[None] | None = None

    @property
    def body_sizes(self) -> tuple[int, int]:
        """The most bytes of the text in a form, and of all of it with its files. What is no form the server bounds."""
        raise NotImplementedError

    @property
    def threads(self) -> Executor:
        """For what waits for a disk. Not those that all else of the process needs."""
        raise NotImplementedError

    async def open_sink(self, size: int | None) -> Sink:
        """What takes the files of a form of so many bytes, if that is known. Raises `ApiError`."""
        raise NotImplementedError

    async def prepare(self) -> None:
        boundary = boundary_of(self.request.headers.get("Content-Type", ""))
        declared: Endpoint | None = getattr(getattr(self, (self.request.method or "").lower(), None), "endpoint", None)
        if boundary is None or declared is None or not declared.form:
            return
        connection = self.request.connection
        connection.set_max_body_size(self.body_sizes[1])  # type: ignore[union-attr]
        connection.set_body_timeout(_PATIENCE)  # type: ignore[union-attr]
        try:
            if "Content-Encoding" in self.request.headers:
                raise UnsupportedMediaType
            await self.admit(declared)
            length = self.request.headers.get("Content-Length", "")
            self.sink = await self.open_sink(int(length) if length.isdigit() else None)
            self._form = Form(boundary, self.sink, self.body_sizes[0], self.threads)
        except ApiError as error:
            self._problem = error
            connection.set_body_timeout(_HURRY)  # type: ignore[union-attr]

    async def data_received(self, chunk: bytes) -> None:
        if self._problem:
            return
        try:
            if self._form:
                await self._form.feed(chunk)
            else:  # which the server bounds
                self._body += chunk
        except ApiError as error:
            self._problem = error

    async def admit(self, declared: Endpoint) -> None:
        if self._problem:
            raise self._problem
        await super().admit(declared)

    async def read_body(self, schema_type: type[Schema] | None) -> dict[str, Any]:
        self.request.body = bytes(self._body)
        if self._form is None:
            return await super().read_body(schema_type)
        return await asyncio.to_thread(self._read_fields, checker(schema_type), await self._form.finish())

    def _read_fields(self, schema: Schema, given: Mapping[str, str]) -> dict[str, Any]:
        values, errors = {}, {}
        for name, text in given.items():
            try:
                values[name] = _from_form(schema.fields.get(name), text)
            except ValueError as error:
                errors[name[:64]] = [str(error)]
        self.request.body = orjson.dumps(values)  # what it asks for, but its files
        try:
            found = self.load(schema, values, "field")
        except InvalidRequest as error:
            errors = {**error.errors, **errors}
        if errors:
            raise InvalidRequest.of(errors)
        return found

    def on_finish(self) -> None:
        super().on_finish()
        self._close()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._close()

    def _close(self) -> None:
        if self.sink and not self._closing:  # in a thread, as it waits for what is being written
            self._closing = asyncio.get_running_loop().run_in_executor(self.threads, self.sink.close)


def _from_form(expected: fields.Field[Any] | None, text: str) -> Any:
    """What the text of a field stands for: JSON, where the schema expects a list or an object. Raises ValueError."""
    if isinstance(expected, fields.List | fields.Dict | fields.Nested):
        if has_too_many_values(text.encode()):
            raise ValueError(f"Must hold at most {MOST_VALUES:,} values.")
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            raise ValueError("Must be JSON.") from None
    return from_text(expected, text)
