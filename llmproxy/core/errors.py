"""What can go wrong, as facts; each dialect renders them in its vendor's shape.

ProxyError              500 internal
├─ ProtocolError        400 invalid_request    bytes that are not HTTP/1.1 (or 505)
├─ InvalidRequest       400 invalid_request    a payload that says no request
│  └─ Unsupported       400 invalid_request    one that this model can't answer
├─ Unauthorized         401 authentication
├─ Forbidden            403 permission
├─ NotFound             404 not_found
│  └─ ModelNotFound     404 not_found
├─ MethodNotAllowed     405 invalid_request
├─ Timeout              408 timeout            the client was too slow
├─ TooLarge             413 too_large          (or 414, 431)
├─ UnsupportedMediaType 415 invalid_request
├─ RateLimited          429 rate_limit
├─ UpstreamError        502 upstream           (or the upstream's own 4xx/5xx)
├─ Unavailable          503 unavailable
├─ UpstreamTimeout      504 timeout
└─ Overloaded           529 overloaded
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = [
    "Forbidden",
    "InvalidRequest",
    "MethodNotAllowed",
    "ModelNotFound",
    "NotFound",
    "Overloaded",
    "ProtocolError",
    "ProxyError",
    "RateLimited",
    "Timeout",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMediaType",
    "Unsupported",
    "UpstreamError",
    "UpstreamTimeout",
    "class_of_status",
    "class_of_type",
    "forwarded",
    "upstream_error",
]


class ProxyError(Exception):
    """A failure with what a client may know of it.

    `status` is the HTTP status, `kind` the hub's word that dialects map to a
    vendor's type, `param` the path of the field at fault, `code` a vendor code
    that clients look for, `headers` goes onto the response (`retry-after`).
    """

    status = 500
    kind = "internal"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status

    @property
    def words(self) -> str:
        """The message, after the path of the field at fault."""
        return self.message if self.param is None else f"{self.param}: {self.message}"


class ProtocolError(ProxyError):
    """Bytes that are no HTTP/1.1 request; the connection can't be used further."""

    status = 400
    kind = "invalid_request"


class InvalidRequest(ProxyError):
    """A payload that is not what the dialect's vendor takes; `param` says where."""

    status = 400
    kind = "invalid_request"


class Unsupported(InvalidRequest):
    """A request that is well said, but that this model or server can't answer as asked."""


class Unauthorized(ProxyError):
    """No key, or a wrong one: the client's, or the one that the model's provider was given."""

    status = 401
    kind = "authentication"


class Forbidden(ProxyError):
    """Understood and refused: a foreign Host or Origin, or the provider's own refusal."""

    status = 403
    kind = "permission"


class NotFound(ProxyError):
    """No such route or thing."""

    status = 404
    kind = "not_found"


class ModelNotFound(NotFound):
    """No model of llm has this name."""

    code = "model_not_found"


class MethodNotAllowed(ProxyError):
    """The route is there, under other methods: the `allow` header names them."""

    status = 405
    kind = "invalid_request"


class Timeout(ProxyError):
    """The client took too long to send its request."""

    status = 408
    kind = "timeout"


class TooLarge(ProxyError):
    """More than a limit allows: 413 a body, 414 a target, 431 headers."""

    status = 413
    kind = "too_large"


class UnsupportedMediaType(ProxyError):
    """A content coding or type of the body that we can't read."""

    status = 415
    kind = "invalid_request"


class RateLimited(ProxyError):
    """Too many requests, by the provider's count; `retry-after` is in the headers where known."""

    status = 429
    kind = "rate_limit"


class UpstreamError(ProxyError):
    """The model failed, or its provider did."""

    status = 502
    kind = "upstream"


class Unavailable(ProxyError):
    """Not now: the server stops or has no room, or the provider says 503."""

    status = 503
    kind = "unavailable"


class UpstreamTimeout(ProxyError):
    """The provider did not answer in time."""

    status = 504
    kind = "timeout"


class Overloaded(ProxyError):
    """The provider has no capacity at the moment (Anthropic's 529)."""

    status = 529
    kind = "overloaded"


_BY_STATUS: Mapping[int, type[ProxyError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    408: Timeout,
    413: TooLarge,
    415: UnsupportedMediaType,
    422: InvalidRequest,
    429: RateLimited,
    503: Unavailable,
    504: UpstreamTimeout,
    529: Overloaded,
}


def class_of_status(status: int) -> type[ProxyError]:
    """Give the class of an answer's status; what has none of its own is UpstreamError."""
    return _BY_STATUS.get(status, UpstreamError)


# Anthropic's words, which other servers use too, and OpenAI's own for the limit.
_BY_TYPE: Mapping[str, type[ProxyError]] = {
    "invalid_request_error": InvalidRequest,
    "authentication_error": Unauthorized,
    "permission_error": Forbidden,
    "not_found_error": NotFound,
    "request_too_large": TooLarge,
    "rate_limit_error": RateLimited,
    "rate_limit_exceeded": RateLimited,
    "timeout_error": UpstreamTimeout,
    "overloaded_error": Overloaded,
}


def class_of_type(word: str) -> type[ProxyError]:
    """Give the class of an error that only its `type` tells: inside a stream, under status 200.

    A word that we do not know is UpstreamError.

    Spec: https://docs.anthropic.com/en/api/errors
    """
    return _BY_TYPE.get(word, UpstreamError)


def upstream_error(
    status: int,
    named: type[ProxyError],
    message: Any,
    *,
    param: Any = None,
    code: Any = None,
    headers: Mapping[str, str] | None = None,
) -> ProxyError:
    """Build the error that another server reported, from fields of any JSON type.

    status: of the response; below 400 for an error inside a stream or a successful response,
        where `named` decides: the class that the error's own type or code names.
    """
    has_status = status >= 400
    return (class_of_status(status) if has_status else named)(
        message
        if isinstance(message, str) and message
        else "the upstream failed without giving a reason",
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
        status=status if has_status else None,
        headers=forwarded(headers or {}),
    )


# Clients wait by these; the SDKs read both spellings (B39).
_FORWARDED = frozenset({"retry-after", "retry-after-ms", "x-should-retry"})


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """Choose of an upstream's headers those that our answer repeats, in lower case.

    All others are about the upstream's connection or account.
    """
    return {
        lower: value for name, value in headers.items() if (lower := name.lower()) in _FORWARDED
    }
