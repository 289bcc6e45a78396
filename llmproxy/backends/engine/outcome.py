"""Finish reasons, usage and errors of providers, translated to their common form.

llm has no fields for these: they are in `response_json`, under each provider's own keys,
and in the exceptions of their SDKs. None of their packages is imported: keys, attributes
and class names have to suffice.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from json import JSONDecodeError
from typing import Any

import llm

from ...core import error_meanings, errors, finish_reasons
from ...core.errors import ProxyError, UpstreamError
from ...core.known_keys import KnownKeys
from ...core.text import printable
from ...core.usage import FinishReason, Usage
from .sent_bodies import EMPTY, MAX_QUOTED_CHARS

logger = logging.getLogger("llmproxy")

HALF_TRACEBACK_CHARS = 20_000  # of one with a whole request in its message
MAX_COUNT = 2**53  # JSON parsers may not hold a larger number exactly


def finish_reason(response_json: Any, *, has_calls: bool) -> FinishReason:
    """Return why the model stopped, by the raw response that llm keeps of the provider."""
    return finish_reasons.finish_reason(_raw_reason(response_json), has_calls=has_calls)


def _raw_reason(response_json: Any) -> str:
    match response_json:
        case {"finish_reason": str(word)} | {"stop_reason": str(word)} | {"done_reason": str(word)}:
            return word
        case {"choices": [{"finish_reason": str(word)}, *_]}:
            return word
        case {"chunks": [*_, dict(last)]}:  # Mistral, streamed
            return _raw_reason(last)
        case {"candidates": [{"finishReason": str(word)}, *_]}:  # Gemini
            return word
        case {"promptFeedback": {"blockReason": str()}}:
            return "safety"
        case {"incomplete_details": {"reason": str(word)}}:  # OpenAI Responses
            return word
        case {
            "object": "response",
            "status": str(word),
        }:  # `failed`, `incomplete` without details …
            return word
    return ""


def provider_reason(response_json: Any) -> str | None:
    """Return the provider's own word for why the model stopped, if it says more than ours."""
    is_anthropics = isinstance(response_json, dict) and "stop_reason" in response_json
    return finish_reasons.finer_reason(_raw_reason(response_json), is_anthropics=is_anthropics)


def check_whole(response: llm.Response | llm.AsyncResponse) -> None:
    """Check that a response, whose plugin raised nothing, did not fail or end half way.

    Raises:
        UpstreamError: the provider's word for the end is a failure; it sent none, though its
            API has one; or a model behind a key answered nothing at all.
    """
    response_json = response.response_json
    finish_reasons.check(_raw_reason(response_json))
    match response_json:
        # Of other shapes it isn't known whether the provider says why it stopped.
        case {"object": "chat.completion" | "chat.completion.chunk"} | {"type": "message"}:
            if not _raw_reason(response_json):
                raise UpstreamError("the provider's stream ended before its answer did")
    is_uncounted = response.input_tokens is None and response.output_tokens is None
    has_nothing = response_json is None and is_uncounted and not response._stream_events
    if has_nothing and response.model.needs_key:
        raise UpstreamError(EMPTY)


def stop_sequence(response_json: Any) -> str | None:
    """Return the stop sequence that ended the response; only Anthropic reports it."""
    match response_json:
        case {"stop_reason": "stop_sequence", "stop_sequence": str(sequence)}:
            return sequence
    return None


def is_refusal(exc: BaseException) -> bool:
    """Return whether an exception is a refusal; llm-anthropic raises it after the stream."""
    return type(exc).__name__ == "ClaudeRefusal"


def usage(counted: llm.Usage) -> Usage:
    """Convert a plugin's token counts to comparable ones: input includes cached tokens.

    Anthropic's plugin counts cached input separately, and reports it only if its `cache`
    option was on; OpenAI's and the others include it.

    Raises:
        ValueError: a value isn't a token count.
    """
    details = counted.details or {}
    read = _count(details.get("cache_read_input_tokens"))
    written = _count(details.get("cache_creation_input_tokens"))
    input_tokens = _count(counted.input)
    if input_tokens is not None:
        input_tokens += (read or 0) + (written or 0)
    cached = read if read is not None else _detail(details, _CACHED)
    return Usage(
        input_tokens=input_tokens,
        output_tokens=_count(counted.output),
        cached_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=_detail(details, _REASONING),
        cache_write_1h_tokens=_detail(details, _WRITTEN_FOR_AN_HOUR),
    )


_WRITTEN_FOR_AN_HOUR = (("cache_creation", "ephemeral_1h_input_tokens"),)  # Anthropic


def _count(value: Any) -> int | None:
    """Return a count as an int, limited to what JSON and SQLite can hold."""
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value < MAX_COUNT or value != int(value):
        raise ValueError("not a token count")
    return int(value)


_CACHED = (
    ("prompt_tokens_details", "cached_tokens"),
    ("input_tokens_details", "cached_tokens"),
    ("cachedContentTokenCount",),
    ("cached_tokens",),
)
_REASONING = (
    ("completion_tokens_details", "reasoning_tokens"),
    ("output_tokens_details", "reasoning_tokens"),
    ("output_tokens_details", "thinking_tokens"),
    ("thoughtsTokenCount",),
    ("reasoning_tokens",),
)


def _detail(details: Mapping[str, Any], places: tuple[tuple[str, ...], ...]) -> int | None:
    for place in places:
        value: Any = details
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int) and 0 <= value < MAX_COUNT:
            return value
    return None


# ---- exceptions


def translate(
    exc: BaseException, keys: KnownKeys, model_id: str, *, debug: bool = False
) -> ProxyError:
    """Translate an exception of a model to the error for the client, with keys redacted.

    debug: log the exception's traceback.

    A status of 4xx is passed on from the provider, with its `retry-after`, code and param.
    An exception without a status is a failure of the provider (502), except llm's missing
    key (401), timeouts (504), and a plain ValueError or NotImplementedError, which is how
    plugins refuse a request (400).
    """
    if isinstance(exc, ProxyError):
        return exc
    if debug:
        logger.error("%s failed:\n%s", model_id, _traceback(exc, keys))
    return keys.redact_error(_translated(exc, model_id))


def _traceback(exc: BaseException, keys: KnownKeys) -> str:
    """Return a traceback to be read on a terminal, without keys and control characters."""
    text = "".join(traceback.format_exception(exc)).rstrip()
    if len(text) > 2 * HALF_TRACEBACK_CHARS:
        text = f"{text[:HALF_TRACEBACK_CHARS]}\n…\n{text[-HALF_TRACEBACK_CHARS:]}"
    return printable(keys.redact_foreign(text), lines=True)


def _translated(exc: BaseException, model_id: str) -> ProxyError:
    message = _message(exc, model_id)
    if isinstance(exc, llm.NeedsKeyException):
        return errors.Unauthorized(message)
    status, headers = _status_and_headers(exc)
    body = error_meanings.error_fields(getattr(exc, "body", None))
    error = error_meanings.read_error(
        status,
        (body.get("code"), body.get("type")),
        message,
        code=body.get("code"),
        param=body.get("param"),
        headers=headers,
    )
    if status or type(error) is not UpstreamError:
        if error.status >= 500:  # a provider's 500 is our 502
            error.status = type(error).status
        return error
    if _is_timeout(exc):
        return errors.UpstreamTimeout(message)
    if type(exc) in (ValueError, NotImplementedError) or isinstance(
        exc, llm.ConversationNotSupported
    ):
        return errors.Unsupported(message)
    return error


def _message(exc: BaseException, model_id: str) -> str:
    """Return the provider's message if it is found, else the exception's, as valid UTF-8."""
    return _full_message(exc, model_id).encode(errors="replace").decode()


def _full_message(exc: BaseException, model_id: str) -> str:
    text = error_meanings.error_fields(getattr(exc, "body", None)).get("message")
    if isinstance(text, str) and text and not text.lstrip().startswith("<"):  # a page
        return text
    try:
        text = str(exc)
    except BaseException:  # a plugin's own class may do anything here
        text = ""
    if text and (isinstance(exc, llm.ModelError) or hasattr(exc, "status_code")):
        return text  # meant for users
    return f"the model {model_id[:MAX_NAME_CHARS]!r} failed: {describe(exc, text)}"


def describe(exc: BaseException, text: str) -> str:
    """Return an exception's class and text, with what helps to find its cause.

    Exceptions of Python's own, which a plugin didn't mean to raise, say little: so where they
    were raised, and the text that was no JSON.
    """
    said = f"{type(exc).__name__}: {text}".removesuffix(": ")
    if isinstance(exc, JSONDecodeError) and isinstance(exc.doc, str):
        quoted = " ".join(exc.doc[: 2 * MAX_QUOTED_CHARS].split())[:MAX_QUOTED_CHARS]
        return f"{said}, in {quoted!r}"
    at = exc.__traceback__
    if at is None or text and not isinstance(exc, _UNMEANT):
        return said
    while at.tb_next is not None:
        at = at.tb_next
    frame = at.tb_frame
    return f"{said} (in {frame.f_globals.get('__name__', '?')}.{frame.f_code.co_name})"


MAX_NAME_CHARS = 100  # of a model's name in an error's message
_UNMEANT = (AssertionError, AttributeError, IndexError, KeyError, NameError, TypeError)


def _status_and_headers(exc: BaseException) -> tuple[int, Mapping[str, str]]:
    """Return the provider's status, 0 if there is none, and its headers.

    Plugins often raise their own error from the SDK's.
    """
    for cause in (exc, exc.__cause__):
        response = getattr(cause, "response", None)
        headers: Any = getattr(response, "headers", None)
        for status in _statuses(cause, response):
            if isinstance(status, int) and 200 <= status < 600:
                fields = headers if hasattr(headers, "items") else {}
                return status, errors.with_date(fields, datetime.now(UTC))
    return 0, {}


def _statuses(exc: BaseException | None, response: Any) -> Iterator[Any]:
    yield getattr(exc, "status_code", None)
    yield getattr(response, "status_code", None)
    match response:
        case {"ResponseMetadata": {"HTTPStatusCode": status}}:  # botocore
            yield status
    if not isinstance(exc, SystemExit):
        yield getattr(exc, "code", None)  # google's SDKs


def _is_timeout(exc: BaseException) -> bool:
    return isinstance(exc, TimeoutError) or any(
        "Timeout" in cls.__name__ for cls in type(exc).__mro__
    )
