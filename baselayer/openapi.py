"""The OpenAPI 3.1 document, made from what the routes declare: it cannot say other than what the handlers do."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, fields

from baselayer import code_samples, errors
from baselayer.errors import ApiError
from baselayer.fields import Instant, Number, Text
from baselayer.handler import ANY, PUBLIC, Endpoint, Route

Json = dict[str, Any]

WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
HEADERS: dict[str, Json] = {
    "Idempotency-Key": {
        "description": "A value of your choice that names this request. The same key and request give the same answer"
        " again, and nothing is done twice; the same key with another request is refused with 422.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
        "example": "nightly-2030-01-31",
    },
    "Prefer": {
        "description": "`wait=SECONDS` asks to wait as the query parameter `wait` does (RFC 7240); what else it says is"
        " ignored.",
        "schema": {"type": "string"},
        "example": "wait=10",
    },
    "Range": {
        "description": "One range of bytes (RFC 9110): `bytes=0-1023`, `bytes=1024-`, or `bytes=-1024` for the last.",
        "schema": {"type": "string", "pattern": "^bytes=([0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})$"},
        "example": "bytes=-1024",
    },
    "If-None-Match": {
        "description": "An `ETag` of an earlier answer: 304 when nothing has been added since.",
        "schema": {"type": "string"},
    },
    "If-Match": {
        "description": "The `ETag` of what was read: 412, and nothing is changed, when it has been changed since.",
        "schema": {"type": "string", "pattern": '^([*]|"[^"]*"( *, *"[^"]*")*)$'},
        "example": '"1"',
    },
    "Last-Event-ID": {
        "description": "The id of the last event that was received: go on behind it, without a lost or doubled byte.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,15}-[0-9]{1,15}$"},
        "example": "1-0-0",
    },
}
_ANSWER_HEADERS: dict[str, Json] = {
    "RequestId": {"description": "The request's number, as it is in the logs.", "schema": {"type": "string"}},
    "RetryAfter": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}},
    "Link": {
        "description": 'The next page: `<…>; rel="next"` (RFC 8288). Missing on the last page.',
        "schema": {"type": "string"},
    },
    "ETag": {
        "description": "Says which state this is; for `If-None-Match` and `If-Match`.",
        "schema": {"type": "string"},
    },
    "ContentRange": {"description": "Which bytes these are, and of how many.", "schema": {"type": "string"}},
}
_MEDIA: dict[str, Json] = {
    "application/json": {"type": "object"},
    "text/plain": {"type": "string"},
    "text/event-stream": {"type": "string"},
    "application/gzip": {"type": "string", "format": "binary"},
    "application/octet-stream": {},
}

_FORM_FILES: Json = {
    "files[]": {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "Files; the name of each is its path, with slashes between folders.",
    },
    "archive": {"type": "string", "format": "binary", "description": "A .tar.gz or a .zip of files instead."},
}


@dataclass(frozen=True)
class About:
    """What the routes do not say themselves."""

    title: str
    version: str
    description: str
    server: str  # the address that paths are added to, without a slash at the end
    scopes: Mapping[str, str]  # the meaning of each
    parameters: Mapping[str, Json] = field(default_factory=dict)  # description, example and schema of parts of paths
    examples: Mapping[type[Schema], Any] = field(default_factory=dict)  # of requests, and of data in answers


def document(routes: Sequence[Route], about: About) -> Json:
    """The document as JSON data. Takes some tens of milliseconds: make it once."""
    plugin = MarshmallowPlugin()
    spec = APISpec(
        about.title,
        about.version,
        "3.1.0",
        plugins=[plugin],
        info={"description": about.description},
        servers=[{"url": about.server}],
        tags=[{"name": name, "description": text} for name, text in _tags(routes).items()],
    )
    converter: Any = plugin.converter  # which the line above has made
    converter.add_attribute_function(_attributes)
    _Writer(spec, plugin, about).write(routes)
    found: Json = spec.to_dict()
    return found


def possible_errors(declared: Endpoint, method: str) -> list[type[ApiError]]:
    """The errors that an endpoint can answer with, by status: its own, and those of the checks before it."""
    kinds = {errors.InvalidRequest, errors.Unavailable, *declared.errors}
    if declared.scope != PUBLIC:
        kinds |= {errors.NotAuthenticated, errors.LimitReached}
    if declared.scope not in (PUBLIC, ANY):
        kinds.add(errors.NotAllowed)
    if method in WITH_BODY:
        kinds |= {errors.TooLarge, errors.UnsupportedMediaType}
    return sorted(kinds, key=lambda kind: (kind.status, kind.code))


def request_schemas(routes: Sequence[Route]) -> set[type[Schema]]:
    """The schemas of request bodies, and those nested in them."""
    found: set[type[Schema]] = set()
    todo: list[type[Schema]] = [
        declared.body for route in routes for declared, _ in route.endpoints().values() if declared.body
    ]
    while todo:
        schema = todo.pop()
        if schema not in found:
            found.add(schema)
            todo += [type(inner) for item in schema().fields.values() for inner in _nested(item)]
    return found


def _nested(item: fields.Field[Any]) -> Iterator[Schema]:
    if isinstance(item, fields.Nested):
        yield item.schema
    elif isinstance(item, fields.List):
        yield from _nested(item.inner)


def _tags(routes: Sequence[Route]) -> dict[str, str]:
    """Resources by the name of their handlers' module, with the first line of its docstring."""
    return {_tag(route): (sys.modules[route.handler.__module__].__doc__ or "").split("\n")[0] for route in routes}


def _tag(route: Route) -> str:
    return route.handler.__module__.rpartition(".")[2]


def _attributes(converter: Any, item: fields.Field[Any], *, ret: Json, **kwargs: Any) -> Json:
    """What apispec does not know of a field: our own kinds, and what JSON Schema says in its own words."""
    if "example" in ret:
        ret["examples"] = [ret.pop("example")]
    if ret.get("default", ...) is None:
        del ret["default"]
    if isinstance(item, Text):
        ret["pattern"] = f"^(?:{item.pattern})$" if item.pattern else "^[^\\u0000]*$"
    if isinstance(item, Number) and not item.closed and "minimum" in ret:
        ret["exclusiveMinimum"] = ret.pop("minimum")
    if isinstance(item, Instant):
        ret.update(type=["string", "null"] if item.allow_none else "string", format="date-time")
    if isinstance(item, fields.Dict):
        for ours, theirs in (("minProperties", "minLength"), ("maxProperties", "maxLength")):
            if theirs in ret:
                ret[ours] = ret.pop(theirs)
        if isinstance(item.key_field, Text):
            ret["propertyNames"] = converter.field2property(item.key_field)
    own: Json = getattr(item, "json_schema", {})
    return own


class _Writer:
    """Writes routes into an `APISpec`."""

    def __init__(self, spec: APISpec, plugin: MarshmallowPlugin, about: About) -> None:
        self._spec = spec
        self._converter: Any = plugin.converter
        self._about = about

    def write(self, routes: Sequence[Route]) -> None:
        self._shared()
        for route in routes:
            operations = {
                method.lower(): self._operation(route, method, declared, function)
                for method, (declared, function) in route.endpoints().items()
            }
            self._spec.path(path=route.template, operations=operations)
        requests = {self._converter.schema_name_resolver(schema) for schema in request_schemas(routes)}
        for name, schema in self._spec.components.schemas.items():
            if name in requests:
                schema["additionalProperties"] = False
            elif name not in ("Error", "Problem"):
                schema.pop("additionalProperties", None)  # later versions may say more
                schema["required"] = sorted(schema.get("properties", {}))

    def _shared(self) -> None:
        components = self._spec.components
        for name, header in _ANSWER_HEADERS.items():
            components.header(name, header)
        components.schema("Error", _error_schema())
        components.schema("Problem", _problem_schema())
        components.security_scheme(
            "token",
            {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": "`Authorization: token <token>`. The scopes of tokens:\n\n"
                + "\n".join(f"- `{name}`: {meaning}" for name, meaning in self._about.scopes.items()),
            },
        )
        components.security_scheme(
            "bearer", {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer <token>`."}
        )

    def _operation(self, route: Route, method: str, declared: Endpoint, function: Any) -> Json:
        summary, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n")
        operation: Json = {
            "tags": [_tag(route)],
            "operationId": f"{method.lower()}_{_snake(route.handler.__name__)}",
            "summary": summary.rstrip("."),
            "description": "\n\n".join(filter(None, (rest.strip(), self._needs(declared), _short(route)))),
            "parameters": [*self._path(route), *self._query(declared), *self._headers(declared)],
            "responses": self._answers(declared, method),
            "security": _security(declared),
        }
        if declared.scope != PUBLIC:
            operation["x-required-scope"] = None if declared.scope == ANY else declared.scope
        example = None
        if declared.body:
            schema = self._converter.resolve_nested_schema(declared.body)
            example = self._about.examples.get(declared.body, {})
            required = declared.body.NEEDED or any(item.required for item in declared.body().fields.values())
            content: Json = {"schema": schema, "example": example}
            forms = {"multipart/form-data": self._form(declared.body)} if declared.form else {}
            operation["requestBody"] = {"required": required, "content": {"application/json": content, **forms}}
        operation["x-codeSamples"] = code_samples.samples(
            method,
            self._about.server + self._example_path(route),
            authorized=declared.scope != PUBLIC,
            body=example,
            media=declared.media,
            enveloped=declared.answer is not None,
        )
        return operation

    def _form(self, body: type[Schema]) -> Json:
        """The fields of a body as those of a form, with files in place of the field of that name."""
        items = {name: item for name, item in body().fields.items() if name != "files"}
        # Copies, as some fields give the same one each time.
        properties = {name: copy.deepcopy(self._converter.field2property(item)) for name, item in items.items()}
        as_json = [name for name, item in items.items() if isinstance(item, fields.List | fields.Dict | fields.Nested)]
        required = sorted(name for name, item in items.items() if item.required)
        return {
            "schema": {
                "type": "object",
                "properties": properties | _FORM_FILES,
                **({"required": required} if required else {}),
            },
            "encoding": {name: {"contentType": "application/json"} for name in as_json},
        }

    def _needs(self, declared: Endpoint) -> str:
        if declared.scope == PUBLIC:
            return "Needs no token." if "Authorization" not in declared.headers else ""
        if declared.scope == ANY:
            return "Needs a token; any will do."
        return f"Needs a token with the scope `{declared.scope}`: {self._about.scopes[declared.scope]}"

    def _path(self, route: Route) -> list[Json]:
        names = re.findall(r"{(\w+)}", route.template)
        known = self._about.parameters
        return [
            {"name": n, "in": "path", "required": True, **known.get(n, {"schema": {"type": "string"}})} for n in names
        ]

    def _example_path(self, route: Route) -> str:
        known = self._about.parameters
        return re.sub(r"{(\w+)}", lambda match: str(known.get(match[1], {}).get("example", match[0])), route.template)

    def _query(self, declared: Endpoint) -> list[Json]:
        found = []
        for name, item in declared.query().fields.items() if declared.query else ():
            schema: Json = self._converter.field2property(item)
            if isinstance(schema.get("type"), list):  # a query has no null
                schema["type"] = next(kind for kind in schema["type"] if kind != "null")
            if None in schema.get("enum", ()):
                schema["enum"] = [value for value in schema["enum"] if value is not None]
            found.append({"name": name, "in": "query", "description": schema.pop("description", ""), "schema": schema})
        return found

    def _headers(self, declared: Endpoint) -> list[Json]:
        # OpenAPI leaves Authorization to the security schemes.
        return [{"name": n, "in": "header", **HEADERS[n]} for n in declared.headers if n != "Authorization"]

    def _answers(self, declared: Endpoint, method: str) -> Json:
        found: Json = {"200": self._success(declared)}
        if "Range" in declared.headers:
            found["206"] = {
                "description": "The bytes of the range.",
                "headers": _refer(ETag="ETag", **{"Content-Range": "ContentRange", "X-Request-Id": "RequestId"}),
                "content": {declared.media: {"schema": _MEDIA[declared.media]}},
            }
        if "If-None-Match" in declared.headers:
            found["304"] = {
                "description": "Nothing has been added since.",
                "headers": _refer(ETag="ETag", **{"X-Request-Id": "RequestId"}),
            }
        for kind in possible_errors(declared, method):
            if kind.__name__ not in self._spec.components.responses:
                self._spec.components.response(kind.__name__, _error_answer(kind, self._about.version))
            found[str(kind.status)] = {"$ref": f"#/components/responses/{kind.__name__}"}
        return found

    def _success(self, declared: Endpoint) -> Json:
        headers = {"X-Request-Id": "RequestId"}
        if declared.query and "cursor" in declared.query().fields:
            headers["Link"] = "Link"
        if declared.etag or "If-None-Match" in declared.headers:
            headers["ETag"] = "ETag"
        if declared.answer is None:
            content: Json = {"schema": _MEDIA[declared.media]}
            return {"description": "Success.", "headers": _refer(**headers), "content": {declared.media: content}}
        data = self._converter.resolve_nested_schema(declared.answer)
        content = {
            "schema": {
                "type": "object",
                "properties": {"status": {"const": "success"}, "data": data, "version": {"type": "string"}},
                "required": ["status", "data", "version"],
            }
        }
        if (example := self._about.examples.get(type(declared.answer))) is not None:
            data_example = [example] if declared.answer.many else example
            content["example"] = {"status": "success", "data": data_example, "version": self._about.version}
        return {"description": "Success.", "headers": _refer(**headers), "content": {declared.media: content}}


def _short(route: Route) -> str:
    return f"Shorter for what is yours: `{route.short}`." if route.short else ""


def _refer(**headers: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{component}"} for name, component in headers.items()}


def _security(declared: Endpoint) -> list[Json]:
    if declared.scope == PUBLIC:
        return [{}, {"token": []}, {"bearer": []}] if "Authorization" in declared.headers else []
    scopes = [] if declared.scope == ANY else [declared.scope]
    return [{"token": scopes}, {"bearer": scopes}]


def _error_answer(kind: type[ApiError], version: str) -> Json:
    headers = {"X-Request-Id": "RequestId"}
    if kind.status in (429, 503):
        headers["Retry-After"] = "RetryAfter"
    text = (kind.__doc__ or "").strip()
    kinds = [f"`{other.code}`: {(other.__doc__ or '').strip()}" for other in kind.__subclasses__()]
    data = {"code": kind.code, "errors": {}}
    problem = {"type": "about:blank", "title": kind.__name__, "status": kind.status, "detail": text, **data}
    return {
        "description": " ".join([text, *kinds]),
        "headers": _refer(**headers),
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Error"},
                "example": {"status": "error", "message": text, "data": data, "version": version},
            },
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}, "example": problem},
        },
    }


_FIELD_ERRORS: Json = {
    "type": "object",
    "description": "What is wrong, by field (or by index, in lists).",
    "additionalProperties": True,
}


def _error_schema() -> Json:
    data = {
        "type": "object",
        "properties": {"code": {"type": "string", "examples": ["invalid_request"]}, "errors": _FIELD_ERRORS},
        "required": ["code", "errors"],
    }
    return {
        "type": "object",
        "properties": {
            "status": {"const": "error"},
            "message": {"type": "string", "description": "A sentence that a person can act on."},
            "data": data,
            "version": {"type": "string"},
        },
        "required": ["status", "message", "data", "version"],
    }


def _problem_schema() -> Json:
    """RFC 9457."""
    names = {"type": "string", "title": "string", "status": "integer", "detail": "string", "code": "string"}
    return {
        "type": "object",
        "description": "An error as RFC 9457 has it, for those who accept `application/problem+json`.",
        "properties": {**{name: {"type": kind} for name, kind in names.items()}, "errors": _FIELD_ERRORS},
        "required": [*names, "errors"],
    }


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
