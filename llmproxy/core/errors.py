"""The tree of errors. They carry facts; each dialect renders them in its vendor's shape.

ProxyError              500 internal
├─ ProtocolError        400 invalid_request    bytes that are not HTTP/1.1 (or 505)
├─ InvalidRequest       400 invalid_request    a payload that is not a request
│  ├─ Unsupported       400 invalid_request    one that this model can't answer
│  ├─ ContextTooLong    400 context_length     one that is longer than the model's context
│  └─ ContentFiltered   400 content_filter     one that the provider's filter blocks
├─ Unauthorized         401 authentication
├─ PaymentRequired      402 billing            no credit left at the provider
├─ Forbidden            403 permission
├─ NotFound             404 not_found
│  └─ ModelNotFound     404 model_not_found
├─ MethodNotAllowed     405 invalid_request
├─ Timeout              408 timeout            the client was too slow
├─ TooLarge             413 too_large          (or 414, 431)
├─ UnsupportedMediaType 415 invalid_request
├─ NotRecorded          422 not_recorded       nothing to replay
├─ UpgradeRequired      426 invalid_request    a request for WebSocket
├─ RateLimited          429 rate_limit
├─ UpstreamError        502 upstream           (or the upstream's own 4xx/5xx)
│  └─ NoConnection      502 upstream           no server takes the connection
├─ Unavailable          503 unavailable
├─ UpstreamTimeout      504 timeout
└─ Overloaded           529 overloaded
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from types import MappingProxyType

LLM_LISTS_THEM = "llm models lists them"
"""A hint in `ModelNotFound`; who asks over HTTP is told a route instead."""

MAX_TEXT_CHARS = 500  # of a message or a param: errors quote clients, models and providers
_HEAD_CHARS = 350  # the beginning says what happened
_KEY_CHARS = string.ascii_letters + string.digits + "-_.+/=~*:%@!$&#?^"  # also of URLs


def shortened(text: str) -> str:
    """Return a text of at most `MAX_TEXT_CHARS`, with "…" for the middle of a longer one.

    The words at the cut go too: in a part of a key no key can be recognised.
    """
    if len(text) <= MAX_TEXT_CHARS:
        return text
    head, tail = text[:_HEAD_CHARS], text[len(text) - (MAX_TEXT_CHARS - _HEAD_CHARS - 1) :]
    return f"{head.rstrip(_KEY_CHARS)}…{tail.lstrip(_KEY_CHARS)}"


class ProxyError(Exception):
    """A failure, with the facts that a client may see.

    status: of the HTTP response. kind: dialects map it to a vendor's type. param: path of the
    field at fault. code: a vendor's code that clients look for. headers: for the response
    (`retry-after`). Message, param and code are `shortened`, whoever's words they quote.
    `str(error)` is its `full_message`.
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
        self.message = shortened(message)
        super().__init__(self.message)
        self.param = None if param is None else shortened(param)
        self.headers = headers
        if code is not None:
            self.code = shortened(code)
        if status is not None:
            self.status = status

    def __str__(self) -> str:
        return self.full_message

    @property
    def full_message(self) -> str:
        """The message, after the path of the field at fault unless the message names it."""
        if not self.param or _names(self.message, self.param):
            return self.message
        return f"{self.param}: {self.message}"


def _names(message: str, param: str) -> bool:
    """Return whether a message names a field: first, in quotes, or by a path of several parts."""
    is_path = "." in param or "[" in param
    before, after = (r"(?<![\w.])", r"(?![\w[]|\.\w)") if is_path else ("['`\"]", "['`\"]")
    named = f"{before}{re.escape(param)}{after}"
    return message.startswith(f"{param}:") or re.search(named, message) is not None


class ProtocolError(ProxyError):
    """Bytes that are not an HTTP/1.1 request; the connection can't be used further."""

    status = 400
    kind = "invalid_request"


class InvalidRequest(ProxyError):
    """A payload that the dialect's vendor would not accept; `param` is the field."""

    status = 400
    kind = "invalid_request"


class Unsupported(InvalidRequest):
    """A valid request that this model or server can't answer as requested."""


class ContextTooLong(InvalidRequest):
    """More tokens than the model's context holds; clients then compact the conversation."""

    kind = "context_length"


class ContentFiltered(InvalidRequest):
    """Content that the provider's filter blocks."""

    kind = "content_filter"


class Unauthorized(ProxyError):
    """A missing or wrong key: the client's, or the one sent to the model's provider."""

    status = 401
    kind = "authentication"


class PaymentRequired(ProxyError):
    """No credit or quota is left at the provider: waiting doesn't help."""

    status = 402
    kind = "billing"


class Forbidden(ProxyError):
    """A foreign Host or Origin, or a refusal by the provider."""

    status = 403
    kind = "permission"


class NotFound(ProxyError):
    """No such route or object."""

    status = 404
    kind = "not_found"


class ModelNotFound(NotFound):
    """llm has no model of this name."""

    kind = "model_not_found"
    code = "model_not_found"


class MethodNotAllowed(ProxyError):
    """The route exists under other methods: the `allow` header names them."""

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
    """A body in a content coding or type that we can't read."""

    status = 415
    kind = "invalid_request"


class NotRecorded(ProxyError):
    """A request that a replay has no recording of.

    The SDKs of OpenAI and Anthropic repeat 408, 409, 429 and 5xx; agents take a 404 for an
    unknown model and ask another one. At a 422 both stop.
    """

    status = 422
    kind = "not_recorded"
    code = "not_recorded"


class UpgradeRequired(ProxyError):
    """A request for another protocol, to be repeated over HTTP."""

    status = 426
    kind = "invalid_request"


class RateLimited(ProxyError):
    """Too many requests, by the provider's count; `retry-after` is in the headers if known."""

    status = 429
    kind = "rate_limit"


class UpstreamError(ProxyError):
    """The model failed, or its provider did."""

    status = 502
    kind = "upstream"


class NoConnection(UpstreamError):
    """No server takes the connection: a wrong name or port, or a server that is down."""


class Unavailable(ProxyError):
    """The server is stopping or full, or the provider says 503."""

    status = 503
    kind = "unavailable"


class UpstreamTimeout(ProxyError):
    """The provider did not respond in time."""

    status = 504
    kind = "timeout"


class Overloaded(ProxyError):
    """The provider has no capacity at the moment (Anthropic's 529)."""

    status = 529
    kind = "overloaded"


_BY_STATUS: Mapping[int, type[ProxyError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    402: PaymentRequired,
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
    """Return the class of a response's status, UpstreamError if it has none of its own."""
    return _BY_STATUS.get(status, UpstreamError)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a response's headers ask to wait; None if they don't.

    headers: with lower-case names. `retry-after-ms` counts first if both are there, as in the
        SDKs of OpenAI and Anthropic: RFC 9110 (10.2.3) doesn't know it, but it is more exact.
        `retry-after` has seconds, or a date, which is counted from the response's `date`;
        `with_date` adds one that a server left out.
    """
    for name, factor in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * factor
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        until, sent = (_utc(headers.get(name, "")) for name in ("retry-after", "date"))
    except (ValueError, OverflowError):
        return None
    return max((until - sent).total_seconds(), 0.0)


def _utc(date: str) -> datetime:
    at = parsedate_to_datetime(date)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def with_date(headers: Mapping[str, str], received: datetime) -> dict[str, str]:
    """Return a response's headers with the date that RFC 9110 (6.6.1) has a recipient add.

    received: when the response came, in UTC; used if it has no `date` that can be read.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    try:
        _utc(fields.get("date", ""))
    except (ValueError, OverflowError):
        fields["date"] = format_datetime(received, usegmt=True)
    return fields


def retry_headers(seconds: float | None) -> dict[str, str]:
    """Return the headers that ask to wait: whole seconds, and milliseconds if that is not exact."""
    if seconds is None:
        return {}
    headers = {"retry-after": f"{math.ceil(seconds)}"}
    if seconds != int(seconds):
        headers["retry-after-ms"] = f"{seconds * 1000:.0f}"
    return headers


class SettingsError(ValueError):
    """Settings that can't work, explained in one line for whoever chose them.

    The message has names of settings in braces: `{port}`, `{auth=False}`. `str()` shows them as
    they are in Python; `with_flags` as the command has them.
    """

    def __init__(self, message: str) -> None:
        self._template = message
        super().__init__(_SETTING.sub(r"\1\2", message))

    def with_flags(self, flags: Mapping[str, str]) -> str:
        """Return the message with the command's flags.

        flags: by settings (`port`), for switches with their value (`auth=False`).
        """

        def flag(match: re.Match[str]) -> str:
            name, value = match[1], match[2] or ""
            found = flags.get(name + value) or flags.get(name, name) + value.replace('"', "")
            return found

        return _SETTING.sub(flag, self._template)


_SETTING = re.compile(r"\{([a-z_]+)(=[\w\"-]+)?\}")
