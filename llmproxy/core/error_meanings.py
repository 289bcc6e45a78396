"""Errors in the words of each API: one table of meanings, read and rendered by it.

Clients act on an error's status, type, code and, often, on a phrase of its message: Claude
Code compacts when "prompt is too long", others when the code is `context_length_exceeded`.
So a meaning that comes in one API's words goes out in the other's.

Specs: https://docs.anthropic.com/en/api/errors
       https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from .errors import (
    ContentFiltered,
    ContextTooLong,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    NotRecorded,
    Overloaded,
    PaymentRequired,
    ProxyError,
    RateLimited,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
    class_of_status,
    retry_after_s,
)

Api = Literal["openai", "anthropic"]


@dataclass(frozen=True)
class Words:
    """An API's words for a meaning.

    status: None for the error's own. codes: only OpenAI has some; the first is the one that is
    sent, unless the provider's own is another of them. phrase: put before a message
    that has none of `known` (its pattern), since clients look for it. counted: the phrase where
    the message tells how many tokens were used, and how many there may be.
    """

    status: int | None
    type: str
    codes: tuple[str, ...] = ()
    phrase: str = ""
    counted: str = ""
    known: str = "(?!)"


@dataclass(frozen=True)
class Meaning:
    """A meaning in the words of both APIs, and how other servers say it.

    names: types and codes, in lower case, by which it is recognised whatever the status is.
    message: a pattern of messages, by which it is recognised under one of `statuses`; 0
        stands for an error without a status.
    """

    error: type[ProxyError]
    openai: Words
    anthropic: Words
    names: tuple[str, ...] = ()
    message: str = "(?!)"
    statuses: tuple[int, ...] = ()


_CONTEXT = "context[ _-]?(?:length|window|size|limit)"

# The specific ones first: a row's names and messages count before a status.
MEANINGS = (
    Meaning(
        ContextTooLong,
        Words(
            400,
            "invalid_request_error",
            ("context_length_exceeded",),
            phrase="the model's maximum context length is exceeded",
            counted="This model's maximum context length is {limit} tokens. However, your"
            " messages resulted in {used} tokens",
            known="maximum context length|exceeds the context window",
        ),
        Words(
            400,
            "invalid_request_error",
            phrase="prompt is too long",
            counted="prompt is too long: {used} tokens > {limit} maximum",
            # Claude Code lowers max_tokens by the second.
            known="prompt is too long|exceed context limit",
        ),
        # llama.cpp, GitHub Models
        names=("context_length_exceeded", "exceed_context_size_error", "tokens_limit_reached"),
        message=f"prompt (?:is )?too long|input is too long|input token count.{{0,40}}exceeds"
        f"|(?:maximum|exceed|greater|larger|longer)[^.\n]{{0,60}}{_CONTEXT}"
        f"|{_CONTEXT}[^.\n]{{0,40}}(?:exceed|full|overflow)|contextwindowexceeded"
        "|maximum prompt length|exceeded model token limit|range of input length"
        "|reduce the length of the (?:messages|input|prompt)"
        "|too many (?:input )?tokens(?! per|, please wait)",
        statuses=(0, 400, 413, 422, 500),
    ),
    Meaning(
        PaymentRequired,
        Words(429, "insufficient_quota", ("insufficient_quota", "billing_hard_limit_reached")),
        Words(
            402,
            "billing_error",
            phrase="your credit balance is too low",
            known="credit balance is too low",
        ),
        # OpenAI, Moonshot, OpenRouter
        names=(
            "insufficient_quota",
            "billing_error",
            "billing_hard_limit_reached",
            "exceeded_current_quota_error",
            "insufficient_credits",
        ),
        # Gemini says "exceeded your current quota" of limits by the minute too, and then when
        # to retry.
        message="credit balance is too low|insufficient (?:balance|credit|fund)"
        "|requires more credits|exceeded your current quota(?!.*retry in)",
        statuses=(0, 400, 403, 429),
    ),
    Meaning(
        ContentFiltered,
        Words(
            400,
            "invalid_request_error",
            ("content_filter", "content_policy_violation", "invalid_prompt"),
        ),
        Words(
            400,
            "invalid_request_error",
            phrase="Output blocked by content filtering policy",
            known="content filtering policy",
        ),
        # Azure, OpenAI, DashScope
        names=(
            "content_filter",
            "content_policy_violation",
            "invalid_prompt",
            "moderation_blocked",
            "data_inspection_failed",
        ),
        message="content (?:filter|management policy|policy violation)"
        "|violat.{0,40}(?:usage|content) polic|result of our safety system",
        statuses=(0, 400, 403, 422, 500),
    ),
    Meaning(
        ModelNotFound,
        Words(404, "invalid_request_error", ("model_not_found",)),
        Words(404, "not_found_error", phrase="model", known="^model: "),
        names=("model_not_found",),
        # DeepSeek, OpenRouter and Mistral answer 400.
        message="^model: "
        "|models?[: /][`'\"]?[\\w./:@-]{1,200}+[`'\"]? (?:is |was |does )?not (?:found|exist)"
        "|model not (?:found|exist)|not a valid model|^(?:no such|unknown|invalid) model",
        statuses=(0, 400, 404, 422),
    ),
    Meaning(
        NotRecorded,  # llmproxy's own, so that a proxy in front of another one passes it on
        Words(422, "invalid_request_error", ("not_recorded",)),
        Words(422, "invalid_request_error"),
        names=("not_recorded",),
        statuses=(422,),
    ),
    Meaning(
        TooLarge,
        Words(None, "invalid_request_error"),
        Words(None, "request_too_large"),
        names=("request_too_large",),
    ),
    Meaning(
        RateLimited,
        Words(429, "rate_limit_error", ("rate_limit_exceeded",)),
        Words(429, "rate_limit_error"),
        names=("rate_limit_error", "rate_limit_exceeded"),
    ),
    Meaning(
        Overloaded,
        Words(503, "server_error", ("server_is_overloaded", "slow_down")),
        Words(529, "overloaded_error"),
        # Codex knows the second and third.
        names=("overloaded_error", "server_is_overloaded", "slow_down"),
        message=r"\boverloaded\b|at capacity",
        statuses=(0, 500, 503),
    ),
    Meaning(
        Unauthorized,
        Words(401, "invalid_request_error", ("invalid_api_key",)),
        Words(401, "authentication_error"),
        names=("authentication_error", "invalid_api_key"),
    ),
    Meaning(
        Forbidden,
        Words(403, "permission_error"),
        Words(403, "permission_error"),
        names=("permission_error",),
    ),
    Meaning(
        NotFound,
        Words(404, "invalid_request_error"),
        Words(404, "not_found_error"),
        names=("not_found_error",),
    ),
    Meaning(Timeout, Words(408, "timeout_error"), Words(408, "timeout_error")),
    Meaning(
        UpstreamTimeout,
        Words(504, "timeout_error"),
        Words(504, "timeout_error"),
        names=("timeout_error",),
    ),
    Meaning(Unavailable, Words(503, "server_error"), Words(503, "overloaded_error")),
    Meaning(
        InvalidRequest,
        Words(None, "invalid_request_error"),
        Words(None, "invalid_request_error"),
        names=("invalid_request_error",),
    ),
    Meaning(ProxyError, Words(None, "server_error"), Words(None, "api_error")),
)

_BY_CLASS: Mapping[type[ProxyError], Meaning] = {row.error: row for row in MEANINGS}
_PATTERNS = [
    (row, re.compile(row.message, re.IGNORECASE | re.DOTALL)) for row in MEANINGS if row.statuses
]


# ---- out


@dataclass(frozen=True)
class Rendered:
    """An error in an API's words."""

    status: int
    type: str
    code: str | None
    message: str


def render(error: ProxyError, api: Api) -> Rendered:
    """Say an error in an API's words.

    The phrase that the API's clients look for comes first, the error's own message stays. It
    begins with the field at fault: Anthropic's and Ollama's bodies have no other place for it,
    and OpenAI's SDKs print only the message. Where OpenAI has a code, the message is in its own
    words, which name the field in their way.
    """
    row = _row_of(error)
    words = row.openai if api == "openai" else row.anthropic
    is_refused = error.kind == "invalid_request" or 400 <= error.status < 500  # 405, 409, 418 …
    type_ = "invalid_request_error" if row.error is ProxyError and is_refused else words.type
    # Of a meaning that has a code, other servers' codes say nothing to the API's clients.
    is_foreign = bool(row.statuses) and error.code not in words.codes
    code = error.code if error.code and not (words.codes and is_foreign) else None
    shown = error.full_message
    if api == "openai" and error.code:
        shown = error.message.removeprefix(f"{error.param}: ")
    return Rendered(
        words.status or error.status,
        type_,
        code or next(iter(words.codes), None),
        _message(words, shown),
    )


def _row_of(error: ProxyError) -> Meaning:
    return next(_BY_CLASS[cls] for cls in type(error).__mro__ if cls in _BY_CLASS)


def _message(words: Words, message: str) -> str:
    if not words.phrase or re.search(words.known, message, re.IGNORECASE):
        return message
    counts = _token_counts(message)
    if words.counted and counts:
        return f"{words.counted.format(limit=counts[0], used=counts[1])} ({message})"
    return f"{words.phrase}: {message}"


_NUMBER = re.compile(r"(?<![\w.,-])\d[\d,]{2,}+(?![\w.]*\w)")  # not that of a model's name


# Anthropic's: input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000
_SUM = re.compile(r"\b(\d+) \+ (\d+) > (\d+)\b")


def _token_counts(message: str) -> tuple[int, int] | None:
    """Find the limit and the count above it in a message: a sum, or its first two numbers."""
    if found := _SUM.search(message):
        prompt, most_output, limit = map(int, found.groups())
        return limit, prompt + most_output
    numbers = [int(found.replace(",", "")) for found in _NUMBER.findall(message)][:2]
    return (min(numbers), max(numbers)) if len(set(numbers)) == 2 else None


# ---- in


def error_fields(body: Any) -> Mapping[str, Any]:
    """Return the fields of an error's body, `message` among them, however a server wraps them.

    body: a JSON value, or text, which is the message.
    """
    fields = body
    if isinstance(fields, list) and fields:  # Gemini's
        fields = fields[0]
    if isinstance(fields, dict):
        error = next((fields[k] for k in ("error", "detail", "message") if fields.get(k)), fields)
        if isinstance(error, list):
            error = "; ".join(filter(None, map(_wrong_field, error)))
        # Mistral and vLLM put the code beside the message, as do SDKs that dump an error.
        fields = error if isinstance(error, dict) else {**fields, "message": error}
    return fields if isinstance(fields, dict) else {"message": fields}


def _wrong_field(item: Any) -> str:
    """Return what FastAPI's servers say of one field, else ""."""
    match item:
        case {"loc": list(place), "msg": str(message)}:
            return f"{'.'.join(map(str, place))}: {message}"
        case {"msg": str(text)} | {"message": str(text)} | str(text):
            return text
    return ""


def read_error(
    status: int,
    names: Iterable[Any],
    message: Any,
    *,
    param: Any = None,
    code: Any = None,
    headers: Mapping[str, str] | None = None,
) -> ProxyError:
    """Build the error that another server reported, from fields of any JSON type.

    status: of the response, kept unless the meaning has another; below 400 for an error
        inside a stream or a successful response.
    names: the error's own codes and types. headers: of the response; a date in `retry-after`
        is counted from the one in `date`.
    """
    text = message if isinstance(message, str) and message else _NO_REASON
    if isinstance(param, str):  # another server of ours: both stay as they were
        text = text.removeprefix(f"{param}: ") or text
    begins = text[:MAX_READ_CHARS]
    by_status = class_of_status(status) if status >= 400 else UpstreamError
    row = _recognise(status, by_status, names, begins)
    cls = row.error if row is not None else by_status
    keeps = by_status is cls or by_status is UpstreamError and status // 100 == cls.status // 100
    return cls(
        text,
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
        status=status if status >= 400 and keeps else None,
        headers=forwarded(headers or {}, begins if cls in (RateLimited, Overloaded) else ""),
    )


MAX_READ_CHARS = 10_000  # of a message: a whole page may come as one, or what was asked
_NO_REASON = "the upstream failed without giving a reason"


def recorded_error(
    kind: str,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> ProxyError:
    """Build an error again from what is recorded of it; nothing is guessed from its words.

    kind: of the error's class; one that is unknown here is left to the status.
    """
    same = [row.error for row in MEANINGS if row.error.kind == kind]
    by_status = [cls for cls in same if cls.status == status]  # two are called "timeout"
    cls = next(iter([*by_status, *same]), class_of_status(status))
    return cls(message, param=param, code=code, status=status, headers=headers)


def is_known_code(code: str) -> bool:
    """Return whether a code is of an API's vocabulary, and so no words of anybody's."""
    return any(code in (*row.openai.codes, *row.names) for row in MEANINGS)


def _recognise(
    status: int, by_status: type[ProxyError], names: Iterable[Any], message: str
) -> Meaning | None:
    """Find the row of an error; None if its status says all there is to know."""
    words = [name.lower() for name in names if isinstance(name, str)]
    named = [row for row in MEANINGS if any(name in row.names for name in words)]
    if named and named[0].statuses:
        return named[0]
    at = status if status >= 400 else named[0].error.status if named else 0
    for row, pattern in _PATTERNS:
        if at in row.statuses and pattern.search(message):
            return row
    return named[0] if named and by_status is UpstreamError else None


# ---- headers

# Clients wait by these; the SDKs read both spellings.
_FORWARDED = frozenset({"retry-after", "retry-after-ms", "x-should-retry"})
# OpenAI, Groq ("7m12.24s") and Gemini tell it in the message as well, or there only.
# Of few digits: Python makes no integer of thousands, and no float of hundreds.
_RETRY_IN = re.compile(
    r"(?:try again|retry) in (?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?"
    r"(?:(\d{1,9}(?:\.\d{1,99})?)\s?(ms|s))?",
    re.IGNORECASE,
)


def forwarded(headers: Mapping[str, str], message: str = "") -> dict[str, str]:
    """Select the headers of an upstream that our response repeats, in lower case.

    All others are about the upstream's connection or account. `retry-after` is in whole
    seconds, as RFC 9110 has it and clients read it (Claude Code, by parseInt): rounded up
    from what `retry_after_s` reads, else from what the message says.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    kept = {name: value for name, value in fields.items() if name in _FORWARDED}
    kept.pop("retry-after", None)  # what can't be read tells a client nothing
    seconds = retry_after_s(fields)
    if seconds is None:
        seconds = _retry_in_s(message)
    if seconds is not None:
        kept["retry-after"] = str(math.ceil(seconds))
    return kept


def _retry_in_s(message: str) -> float | None:
    found = _RETRY_IN.search(message)
    if found is None or not any(found.groups()):
        return None
    hours, minutes, seconds, unit = found.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds) / (1000 if unit == "ms" else 1)
