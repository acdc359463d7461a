"""Web handlers: a method declares what it takes and gives with `endpoint`; everything else is done here once.

A declared method is a coroutine ``async def post(self, call, job_id)``. It gets a `Call` with the caller, the checked
body and query, and the parts of the path; it returns the ``data`` of the answer, or `STREAMED` when it has written
the answer itself. The declaration also makes the API document, so the two cannot drift apart.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol, TypeVar

import marshmallow
import orjson
from marshmallow import Schema, ValidationError
from marshmallow.experimental.context import Context as MarshmallowContext
from tornado import httputil, web

from baselayer import errors, log
from baselayer.access import Authenticator, Caller
from baselayer.bodies import LARGE_BODY, MOST_VALUES, has_too_many_values
from baselayer.database import on_behalf_of
from baselayer.errors import ApiError
from baselayer.fields import Flag, Number, Request, Whole
from baselayer.metrics import RequestMetrics

logger = logging.getLogger(__name__)
requests_logger = logging.getLogger("request")

R = TypeVar("R")

PUBLIC: Final = "public"  # a scope that stands for "no token needed"
ANY: Final = "any"  # a scope that stands for "any valid token"
_MOST_PARAMETERS: Final = 50  # of a query


class Streamed:
    """The type of `STREAMED`."""


STREAMED: Final = Streamed()


class RequestsAtHand:
    """Counts the requests that are being answered, so that a process can stop when there are none."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def begin(self) -> None:
        self._count += 1
        self._none.clear()

    def end(self) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def drained(self) -> None:
        """Wait until there are none."""
        await self._none.wait()


class Context(Protocol):
    """What handlers need of the application."""

    @property
    def authenticator(self) -> Authenticator: ...
    @property
    def metrics(self) -> RequestMetrics: ...
    @property
    def requests(self) -> RequestsAtHand: ...
    @property
    def version(self) -> str: ...
    @property
    def log_requests(self) -> bool: ...


@dataclass(frozen=True)
class Endpoint:
    """What one method of a route takes and gives."""

    scope: str
    body: type[Request] | None = None
    query: type[Schema] | None = None
    answer: Schema | None = None
    errors: tuple[type[ApiError], ...] = ()
    headers: tuple[str, ...] = ()
    media: str = "application/json"
    action: str | None = None
    etag: bool = False
    form: bool = False


@dataclass(frozen=True)
class Route:
    """A path with ``{name}`` parts, and the handler that answers there, and at a `short` form of it that lacks some.

    The part ``{name*}`` is all that follows, with the slashes in it.
    """

    path: str
    handler: type[Handler]
    short: str | None = None

    @property
    def template(self) -> str:
        """The path as the API document has it."""
        return self.path.replace("*}", "}")

    @property
    def patterns(self) -> list[str]:
        """The short form first, as it says more words itself."""
        return [_pattern(path) for path in (self.short, self.path) if path]

    def endpoints(self) -> dict[str, tuple[Endpoint, Callable[..., Any]]]:
        """Declared methods by HTTP name, such as ``{"GET": (endpoint, function)}``."""
        found = {}
        for name in ("get", "post", "put", "patch", "delete"):
            method = getattr(self.handler, name)
            if declared := getattr(method, "endpoint", None):
                found[name.upper()] = (declared, method)
        return found


def _pattern(path: str) -> str:
    return re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", re.sub(r"\{(\w+)\*\}", r"(?P<\1>.+)", path))


@dataclass
class Call:
    """One request, checked. `body` and `query` hold what the schemas loaded."""

    handler: Handler
    caller_or_none: Caller | None
    body: dict[str, Any] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)

    @property
    def caller(self) -> Caller:
        assert self.caller_or_none is not None, "a public endpoint has no caller"
        return self.caller_or_none

    @property
    def request(self) -> httputil.HTTPServerRequest:
        return self.handler.request

    def header(self, name: str) -> str | None:
        return self.handler.request.headers.get(name)

    async def unless_closed(self, work: Coroutine[Any, Any, R]) -> R:
        """Await `work`, or cancel it as soon as the client has gone (then `asyncio.CancelledError` is raised)."""
        return await self.handler.cancel_when_closed(work)


def endpoint(
    scope: str,
    *,
    body: type[Request] | None = None,
    query: type[Schema] | None = None,
    answer: Schema | None = None,
    errors: Sequence[type[ApiError]] = (),
    headers: Sequence[str] = (),
    media: str = "application/json",
    action: str | None = None,
    etag: bool = False,
    form: bool = False,
) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Coroutine[Any, Any, None]]]:
    """Declare a handler method.

    `scope` is what the token needs (or `PUBLIC`, or `ANY`); `body` and `query` check what comes in; `answer` describes
    ``data``; `errors` are those that this method raises itself; `headers` are the request headers that it reads;
    `media` is the type of a streamed answer; `action` is what is done, such as ``token.create``, where something is;
    `etag` tells that the answer has one; `form`, of a `forms.FormHandler`, that the body may be a form with files.
    """
    declared = Endpoint(scope, body, query, answer, tuple(errors), tuple(headers), media, action, etag, form)

    def decorate(method: Callable[..., Awaitable[Any]]) -> Callable[..., Coroutine[Any, Any, None]]:
        @functools.wraps(method)
        async def answer_request(self: Handler, **path: str) -> None:
            data = await method(self, await self.check(declared), **path)
            if data is not STREAMED:
                self.finish_json(200, {"status": "success", "data": data, "version": self.context.version})

        answer_request.endpoint = declared  # type: ignore[attr-defined]
        return answer_request

    return decorate


class Handler(web.RequestHandler):
    """Base of all handlers."""

    context: Context
    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = (  # type: ignore[misc]
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
    )

    def initialize(self, context: Context) -> None:
        self.context = context
        self.caller: Caller | None = None
        self.declared: Endpoint | None = None
        self._running: asyncio.Task[Any] | None = None
        self._at_hand = True
        context.requests.begin()

    def _leave(self) -> None:
        if self._at_hand:
            self._at_hand = False
            self.context.requests.end()

    def set_default_headers(self) -> None:
        self.request_id = self.request.headers.get("X-Request-Id", "-")[:64]
        log.request_id.set(self.request_id)
        self.set_header("X-Request-Id", self.request_id)
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")

    async def head(self, **path: str) -> None:
        answer: Coroutine[Any, Any, None] = self.get(**path)  # type: ignore[assignment]
        await answer  # Tornado sends no body in answer to HEAD

    def compute_etag(self) -> None:
        """No ETag unless a handler sets one: hashing each answer costs more than it saves."""

    async def check(self, declared: Endpoint) -> Call:
        """Authenticate and authorise the caller, then check query and body."""
        await self.admit(declared)
        on_behalf_of.set(self.caller.user_id if self.caller else self.request.remote_ip)
        query = self._check_query(declared.query)
        return Call(self, self.caller, await self.read_body(declared.body), query)

    async def read_body(self, schema_type: type[Schema] | None) -> dict[str, Any]:
        """What the body says, checked. Raises `ApiError`."""
        if len(self.request.body) < LARGE_BODY:
            return self._check_body(schema_type)
        # Such as a batch of a thousand jobs: others have their turn meanwhile.
        return await asyncio.to_thread(self._check_body, schema_type)

    async def admit(self, declared: Endpoint) -> None:
        """Authenticate the caller, and see to it that his token is good for this."""
        self.declared = declared
        if declared.scope != PUBLIC:
            self.caller = await self.context.authenticator.authenticate(
                self.request.headers.get("Authorization"), self.request.remote_ip or ""
            )
            if declared.scope != ANY:
                self.caller.require(declared.scope)

    def schema_context(self) -> Any:
        """What schemas find with ``Context.get()`` while they check a request."""
        return None

    def load(self, schema: Schema, data: dict[str, Any], noun: str) -> dict[str, Any]:
        """What a schema makes of this. Raises `InvalidRequest`."""
        try:
            with MarshmallowContext(self.schema_context()):
                loaded: dict[str, Any] = schema.load(data)
            return loaded
        except ValidationError as error:
            messages = error.normalized_messages()
            raise errors.InvalidRequest.of(messages, noun) from None

    def _check_query(self, schema_type: type[Schema] | None) -> dict[str, Any]:
        if not self.request.query_arguments and not _required(schema_type):
            return {**_unasked(schema_type)}
        schema = checker(schema_type)
        if len(self.request.query_arguments) > _MOST_PARAMETERS:
            raise errors.InvalidRequest("There are too many query parameters.")
        values: dict[str, Any] = {}
        for name, given in self.request.query_arguments.items():
            try:
                texts = [text.decode() for text in given]
            except UnicodeDecodeError:
                raise errors.InvalidRequest(f"The query parameter {name[:64]} is not UTF-8.") from None
            if len(texts) > 1:
                raise errors.InvalidRequest(
                    f"The query parameter {name[:64]} is given more than once.", {name[:64]: ["Given more than once."]}
                )
            values[name] = from_text(schema.fields.get(name), texts[0])
        return self.load(schema, values, "query parameter")

    def _check_body(self, schema_type: type[Schema] | None) -> dict[str, Any]:
        body = self.request.body
        if not body and schema_type is None:
            return {}
        if not body and not _required(schema_type):
            return self.load(checker(schema_type), {}, "field")
        kind, _, parameters = self.request.headers.get("Content-Type", "").partition(";")
        if kind.strip().lower() != "application/json" or "Content-Encoding" in self.request.headers:
            raise errors.UnsupportedMediaType
        if "charset" in parameters.lower() and "utf-8" not in parameters.lower():
            raise errors.UnsupportedMediaType
        if len(body) >= LARGE_BODY and has_too_many_values(body):
            raise errors.InvalidRequest(f"The body holds more than {MOST_VALUES:,} values.")
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise errors.InvalidRequest(f"The body is not valid JSON: {error}.") from None
        if not isinstance(data, dict):
            raise errors.InvalidRequest("The body must be a JSON object.")
        return self.load(checker(schema_type), data, "field")

    async def cancel_when_closed(self, work: Coroutine[Any, Any, R]) -> R:
        self._running = asyncio.ensure_future(work)
        try:
            return await self._running
        finally:
            self._running = None

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._leave()
        if self._running:
            self._running.cancel()

    def finish_json(self, status: int, content: dict[str, Any], media: str = "application/json") -> None:
        self.set_status(status)
        self.set_header("Content-Type", media)
        self.finish(orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS))  # a list's errors go by index

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if not isinstance(error, ApiError):
            error = _api_error(status_code, error)
        self.finish_error(error)
        self.refused(error)

    def refused(self, error: ApiError) -> None:
        """Told of each error that was answered: for applications that keep a record of them."""

    def finish_error(self, error: ApiError) -> None:
        for name, value in error.headers.items():
            self.set_header(name, value)
        if error.retry_after is not None:
            self.set_header("Retry-After", str(error.retry_after))
        if error.status == 401:
            self.set_header("WWW-Authenticate", 'token realm="api"')
        if error.status == 405:
            self.set_header("Allow", ", ".join(Route("", type(self)).endpoints()))
        if "application/problem+json" in self.request.headers.get("Accept", ""):
            problem = {
                "type": "about:blank",
                "title": type(error).__name__,
                "status": error.status,
                "detail": error.message,
                "code": error.code,
                "errors": error.errors,
            }
            self.finish_json(error.status, problem, "application/problem+json")
        else:
            content = {
                "status": "error",
                "message": error.message,
                "data": {"code": error.code, "errors": error.errors},
                "version": self.context.version,
            }
            self.finish_json(error.status, content)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        expected = isinstance(value, ApiError | web.HTTPError | asyncio.CancelledError)
        if not expected or (isinstance(value, ApiError) and value.status == 500):
            logger.error("%s %s failed", self.request.method, self.request.path, exc_info=(typ, value, tb))  # type: ignore[arg-type]

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        value = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(value, asyncio.CancelledError):  # the client has gone: nobody reads an answer
            self._finished = True
            return
        if self._headers_written:  # too late for an answer: cut it off, so that nobody takes a part for the whole
            self._finished = True
            self.request.connection.close()  # type: ignore[union-attr]
            self.on_finish()
            return
        super().send_error(value.status if isinstance(value, ApiError) else status_code, **kwargs)

    def on_finish(self) -> None:
        self._leave()
        seconds = self.request.request_time()
        # Anyone can make up methods, and each label is kept for ever.
        method = self.request.method if self.request.method in self.SUPPORTED_METHODS else "other"
        self.context.metrics.observe(type(self).__name__, method or "other", self.get_status(), seconds)
        if self.context.log_requests:
            requests_logger.info(
                "%s %s %d %.1f ms %s %s",
                (self.request.method or "")[:20],
                self.request.path[:200],
                self.get_status(),
                seconds * 1000,
                self.request.remote_ip,
                self.caller.username if self.caller else "-",
            )


class NothingHere(Handler):
    """Answers where no route is."""

    async def prepare(self) -> None:
        raise errors.NotFound("There is no such address in this API; see /api/openapi.json for those that there are.")


def _api_error(status: int, cause: BaseException | None) -> ApiError:
    if isinstance(cause and cause.__cause__, httputil.HTTPInputError):  # a form, which Tornado wanted to read itself
        return errors.UnsupportedMediaType()
    kinds: dict[int, type[ApiError]] = {
        kind.status: kind for kind in (errors.InvalidRequest, errors.NotFound, errors.MethodNotAllowed, errors.TooLarge)
    }
    return kinds.get(status, errors.InvalidRequest if 400 <= status < 500 else ApiError)()


def from_text(expected: marshmallow.fields.Field[Any] | None, text: str) -> Any:
    """The value that `text` of a query stands for, where the schema expects a number or a flag."""
    if isinstance(expected, Whole) and re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        return int(text)
    if isinstance(expected, Number) and re.fullmatch(r"-?\d{1,18}(\.\d{1,30})?([eE][+-]?\d{1,3})?", text, re.ASCII):
        return float(text)
    if isinstance(expected, Flag) and text in ("true", "false"):
        return text == "true"
    return text


@functools.cache
def checker(schema_type: type[Schema] | None) -> Schema:
    """An instance that refuses what it does not know; made once, as making it costs more than a check."""
    return (schema_type or Schema)(unknown=marshmallow.RAISE)


@functools.cache
def _required(schema_type: type[Schema] | None) -> bool:
    return any(item.required for item in checker(schema_type).fields.values())


@functools.cache
def _unasked(schema_type: type[Schema] | None) -> Mapping[str, Any]:
    """What a query without parameters stands for. Most are such, and loading it takes longer than a copy."""
    return checker(schema_type).load({})
