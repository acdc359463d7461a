"""Errors that an answer can carry. A class holds its HTTP status and code; its docstring is the default message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

FieldErrors = dict[str, Any]


class ApiError(Exception):
    """Something went wrong on our side; it has been logged."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str | None = None,
        errors: FieldErrors | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`errors` maps a field to what is wrong with it; `retry_after` is in seconds; `headers` go with the answer."""
        self.message = message or (type(self).__doc__ or "").strip()
        self.errors = errors or {}
        self.retry_after = retry_after
        self.headers = headers or {}
        super().__init__(self.message)


class InvalidRequest(ApiError):
    """The request is not valid."""

    status = 400
    code = "invalid_request"

    @classmethod
    def of(cls, errors: FieldErrors, noun: str = "field") -> Self:
        """The error about these fields; its message is made from the first of them."""
        return cls(sentence(errors, noun), errors)


class NotAuthenticated(ApiError):
    """A valid token is needed: send the header 'Authorization: token <token>'."""

    status = 401
    code = "not_authenticated"


class NotAllowed(ApiError):
    """This token may not do that."""

    status = 403
    code = "not_allowed"


class NotFound(ApiError):
    """There is nothing here, or it is not yours."""

    status = 404
    code = "not_found"


class MethodNotAllowed(ApiError):
    """This address does not know that method."""

    status = 405
    code = "method_not_allowed"


class Conflict(ApiError):
    """The request conflicts with what is there already."""

    status = 409
    code = "conflict"


class PreconditionFailed(ApiError):
    """What is there has been changed since it was read."""

    status = 412
    code = "precondition_failed"


class TooLarge(ApiError):
    """The request is too large."""

    status = 413
    code = "too_large"


class UnsupportedMediaType(ApiError):
    """Send the body as application/json, in UTF-8, not compressed."""

    status = 415
    code = "unsupported_media_type"


class RangeNotSatisfiable(ApiError):
    """The range lies outside of what there is."""

    status = 416
    code = "range_not_satisfiable"


class IdempotencyMismatch(ApiError):
    """This Idempotency-Key was used before with another request."""

    status = 422
    code = "idempotency_mismatch"


class LimitReached(ApiError):
    """A limit of yours is reached; try again later."""

    status = 429
    code = "limit_reached"

    def __init__(self, message: str | None = None, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class Unavailable(ApiError):
    """The service cannot answer now; try again in a moment."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str | None = None, retry_after: int = 2) -> None:
        super().__init__(message, retry_after=retry_after)


def sentence(messages: FieldErrors, noun: str) -> str:
    """The first of the field errors as a sentence, and how many more there are."""
    path, problem = _first(messages)
    if path[-1:] == ["_schema"] and len(path) > 1:  # about a nested object as a whole
        path.pop()
    name = ".".join(path)[:100]
    if problem == "Unknown field.":
        text = f"Unknown {noun} {name}."
    elif path and path[0] != "_schema":
        text = f"The {noun} {name} is not valid: {problem}"
    else:
        text = problem
    more = _count(messages) - 1
    return text if not more else f"{text} ({more} more in data.errors.)"


def _count(messages: Any) -> int:
    """Of how many fields there are messages."""
    return sum(map(_count, messages.values())) if isinstance(messages, dict) else 1


def _first(messages: Any) -> tuple[list[str], str]:
    path: list[str] = []
    while True:
        if isinstance(messages, dict):
            key = next(iter(messages))
            path.append(str(key))
            messages = messages[key]
        elif isinstance(messages, list):
            messages = messages[0]
        else:
            return path, str(messages)
