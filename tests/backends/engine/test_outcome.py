"""Tests of translating finish reasons, usage and exceptions."""

import json
import sys

import httpx
import llm
import openai
import pytest

from llmproxy.backends.engine import outcome
from llmproxy.core import errors
from llmproxy.core.known_keys import KnownKeys
from llmproxy.core.usage import Usage

REASONS = [
    ({"finish_reason": "stop"}, "stop"),  # OpenAI Chat, streamed
    ({"choices": [{"finish_reason": "length"}]}, "length"),  # OpenAI Chat, whole
    ({"finish_reason": "content_filter"}, "content_filter"),
    ({"stop_reason": "end_turn"}, "stop"),  # Anthropic
    ({"stop_reason": "max_tokens"}, "length"),
    ({"stop_reason": "model_context_window_exceeded"}, "length"),
    ({"stop_reason": "pause_turn"}, "stop"),
    ({"stop_reason": "refusal"}, "content_filter"),
    ({"stop_reason": "stop_sequence", "stop_sequence": "x"}, "stop"),
    ({"status": "completed"}, "stop"),  # OpenAI Responses
    ({"incomplete_details": {"reason": "max_output_tokens"}}, "length"),
    ({"candidates": [{"finishReason": "MAX_TOKENS"}]}, "length"),  # Gemini
    ({"candidates": [{"finishReason": "SAFETY"}]}, "content_filter"),
    ({"done_reason": "length"}, "length"),  # Ollama
    ({"promptFeedback": {"blockReason": "SAFETY"}}, "content_filter"),
    ({"chunks": [{"choices": []}, {"choices": [{"finish_reason": "length"}]}]}, "length"),
    ({"chunks": []}, "stop"),
    ({"finish_reason": "something new"}, "stop"),
    ({"finish_reason": 5}, "stop"),
    (None, "stop"),
    ([], "stop"),
]


@pytest.mark.parametrize(("payload", "reason"), REASONS)
def test_finish_reason_is_read_from_every_providers_payload(payload, reason):
    """d6.7"""
    assert outcome.finish_reason(payload, has_calls=False) == reason


@pytest.mark.parametrize(("payload", "reason"), REASONS)
def test_calls_take_precedence_over_stop_but_not_over_length(payload, reason):
    """B6"""
    expected = "tool_calls" if reason == "stop" else reason
    assert outcome.finish_reason(payload, has_calls=True) == expected


def test_only_anthropic_reports_the_stop_sequence():
    payload = {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    assert outcome.stop_sequence(payload) == "END"
    assert outcome.stop_sequence({"finish_reason": "stop"}) is None


@pytest.mark.parametrize(
    "payload, word",
    [
        ({"stop_reason": "new_reason"}, "new_reason"),
        ({"stop_reason": "pause_turn"}, "pause_turn"),
        ({"stop_reason": "end_turn"}, None),
        ({"stop_reason": "stop"}, None),  # of servers that look like Anthropic's
        ({"stop_reason": "max_new_tokens"}, None),
        ({"stop_reason": None}, None),
        ({"finish_reason": "new_reason"}, None),  # no word that Anthropic's clients could know
        ({}, None),
    ],
)
def test_a_reason_that_anthropic_may_add_is_kept(payload, word):
    assert outcome.provider_reason(payload) == word


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        (llm.Usage(), Usage()),
        (llm.Usage(10, 5), Usage(10, 5)),
        (
            llm.Usage(
                10,
                5,
                {
                    "prompt_tokens_details": {"cached_tokens": 4},
                    "completion_tokens_details": {"reasoning_tokens": 3},
                },
            ),
            Usage(10, 5, cached_tokens=4, reasoning_tokens=3),
        ),
        (
            llm.Usage(10, 5, {"input_tokens_details": {"cached_tokens": 4}}),
            Usage(10, 5, cached_tokens=4),
        ),
        # Anthropic counts cached tokens separately (B24).
        (
            llm.Usage(10, 5, {"cache_read_input_tokens": 90, "cache_creation_input_tokens": 7}),
            Usage(107, 5, cached_tokens=90, cache_write_tokens=7),
        ),
        (
            llm.Usage(
                10,
                5,
                {
                    "cache_creation_input_tokens": 7,
                    "cache_creation": {
                        "ephemeral_1h_input_tokens": 5,
                        "ephemeral_5m_input_tokens": 2,
                    },
                },
            ),
            Usage(17, 5, cache_write_tokens=7, cache_write_1h_tokens=5),
        ),
        (
            llm.Usage(10, 5, {"cachedContentTokenCount": 2, "thoughtsTokenCount": 1}),
            Usage(10, 5, cached_tokens=2, reasoning_tokens=1),
        ),
        (llm.Usage(None, None, {"odd": "thing"}), Usage()),
    ],
)
def test_usage_is_converted_to_comparable_counts(counted, expected):
    """d6.8"""
    assert outcome.usage(counted) == expected


@pytest.mark.parametrize("count", ["3", -1, 1.5, float("nan"), float("inf"), 10**400, 2**53, [1]])
def test_an_invalid_token_count_is_refused(count):
    for counted in (llm.Usage(count, 1, {}), llm.Usage(1, count, {})):
        with pytest.raises(ValueError, match="not a token count"):
            outcome.usage(counted)
    assert outcome.usage(llm.Usage(3.0, 1, {"cached_tokens": count})) == Usage(3, 1)


class Unprintable(Exception):
    def __str__(self):
        raise SystemExit("no text")


@pytest.mark.parametrize(
    ("exc", "message"),
    [
        (Unprintable(), "the model 'm' failed: Unprintable"),
        (RuntimeError("a \ud800"), "the model 'm' failed: RuntimeError: a ?"),
        (llm.ModelError("no " * 9_999 + "yes"), "no " * 116 + "…" + " no" * 48 + " yes"),
    ],
    ids=["unprintable", "half a character", "too long"],
)
def test_messages_that_can_not_be_shown_are_replaced_or_cut(exc, message):
    assert outcome.translate(exc, KnownKeys(), "m").message == message


def openai_error(status: int, message: str = "no", **headers: str) -> openai.APIStatusError:
    module = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__.split(".")[0]]
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = module.Response(
        status, headers=names, request=module.Request("POST", "http://127.0.0.1/")
    )
    return openai.APIStatusError(message, response=response, body={"message": message})


@pytest.mark.parametrize(
    ("status", "kind", "shown"),
    [
        (400, errors.InvalidRequest, 400),
        (401, errors.Unauthorized, 401),
        (403, errors.Forbidden, 403),
        (404, errors.NotFound, 404),
        (408, errors.Timeout, 408),
        (409, errors.UpstreamError, 409),
        (413, errors.TooLarge, 413),
        (422, errors.InvalidRequest, 422),
        (429, errors.RateLimited, 429),
        (500, errors.UpstreamError, 502),
        (503, errors.Unavailable, 503),
        (504, errors.UpstreamTimeout, 504),
        (529, errors.Overloaded, 529),
    ],
)
def test_statuses_of_an_sdk_keep_their_class(status, kind, shown):
    """B39"""
    error = outcome.translate(openai_error(status), KnownKeys(), "m")
    assert (type(error), error.status, error.message) == (kind, shown, "no")


def test_headers_about_retries_are_kept():
    """B39"""
    exc = openai_error(429, retry_after="7", x_should_retry="true", server="nginx")
    error = outcome.translate(exc, KnownKeys(), "m")
    assert error.headers == {"retry-after": "7", "x-should-retry": "true"}


def test_code_and_param_of_a_provider_are_kept():
    exc = openai_error(400)
    exc.body = {"message": "too long", "code": "context_length_exceeded", "param": "messages"}
    error = outcome.translate(exc, KnownKeys(), "m")
    assert (error.code, error.param) == ("context_length_exceeded", "messages")


LONG = "the prompt is greater than the context length"


@pytest.mark.parametrize(
    "body",
    [LONG, {"error": LONG}, [{"error": {"message": LONG}}], {"detail": LONG}, {"message": LONG}],
)
def test_an_error_is_known_however_a_server_wraps_its_message(body):
    """LM Studio sends a string, Gemini a list; OpenAI's SDK passes them on as they are."""
    exc = openai_error(400, "Error code: 400")
    exc.body = body
    error = outcome.translate(exc, KnownKeys(), "m")
    assert (type(error), error.message) == (errors.ContextTooLong, LONG)


@pytest.mark.parametrize("body", ["", "\n<html>busy</html>", None, [], {}, {"message": None}])
def test_a_page_is_no_message(body):
    exc = openai_error(404, "Error code: 404")
    exc.body = body
    assert outcome.translate(exc, KnownKeys(), "m").message == "Error code: 404"


def test_status_of_httpx_is_in_its_response():
    """d6.29"""
    request = httpx.Request("POST", "http://127.0.0.1/")
    response = httpx.Response(429, request=request, headers={"retry-after": "3"})
    error = outcome.translate(
        httpx.HTTPStatusError("slow", request=request, response=response), KnownKeys(), "m"
    )
    assert (type(error), error.headers) == (errors.RateLimited, {"retry-after": "3"})


def test_status_may_be_in_the_cause():
    """llm-perplexity raises a ModelError from the SDK's error."""
    wrapped = llm.ModelError("Perplexity API error: slow down")
    wrapped.__cause__ = openai_error(429, retry_after="3")
    error = outcome.translate(wrapped, KnownKeys(), "m")
    assert (type(error), error.message) == (errors.RateLimited, "Perplexity API error: slow down")
    assert error.headers == {"retry-after": "3"}


class Throttled(Exception):
    """An error as botocore raises it."""

    response = {"ResponseMetadata": {"HTTPStatusCode": 429}}  # noqa: RUF012


class ResourceExhausted(Exception):
    """An error as Google's SDKs raise it."""

    code = 429


@pytest.mark.parametrize("exc", [Throttled("slow"), ResourceExhausted("slow")])
def test_status_is_found_where_other_sdks_keep_it(exc):
    assert type(outcome.translate(exc, KnownKeys(), "m")) is errors.RateLimited


def test_error_inside_a_stream_is_known_by_its_type():
    """Anthropic's SDK raises it with the stream's status, 200."""
    exc = openai_error(200)
    exc.body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    error = outcome.translate(exc, KnownKeys(), "m")
    assert (type(error), error.status, error.message) == (errors.Overloaded, 529, "Overloaded")


@pytest.mark.parametrize(
    ("exc", "kind", "message"),
    [
        (llm.NeedsKeyException("No key found"), errors.Unauthorized, "No key found"),
        (llm.ModelError("it said no"), errors.UpstreamError, "it said no"),
        (TimeoutError(), errors.UpstreamTimeout, "the model 'm' failed: TimeoutError"),
        (
            httpx.ReadTimeout("slow"),
            errors.UpstreamTimeout,
            "the model 'm' failed: ReadTimeout: slow",
        ),
        (
            httpx.ConnectError("refused"),
            errors.UpstreamError,
            "the model 'm' failed: ConnectError: refused",
        ),
        (NotImplementedError("no system"), errors.Unsupported, None),
        (ValueError("no schema with tools"), errors.Unsupported, None),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), errors.UpstreamError, None),
        (SystemExit(3), errors.UpstreamError, "the model 'm' failed: SystemExit: 3"),
        (KeyError("x"), errors.UpstreamError, "the model 'm' failed: KeyError: 'x'"),
    ],
)
def test_exceptions_without_a_status(exc, kind, message):
    error = outcome.translate(exc, KnownKeys(), "m")
    assert type(error) is kind
    assert message is None or error.message == message


def test_our_own_errors_pass_unchanged():
    error = errors.Unsupported("no")
    assert outcome.translate(error, KnownKeys(), "m") is error


def test_a_key_that_a_provider_quotes_is_redacted_everywhere_in_the_error():
    exc = openai_error(429, x_should_retry="local-key-9")
    exc.body = {"error": {"message": "no credit for local-key-9", "code": "local-key-9"}}
    error = outcome.translate(exc, KnownKeys(["local-key-9"]), "m")
    assert error.message == "no credit for [removed]"
    assert (error.code, error.headers) == ("[removed]", {"x-should-retry": "[removed]"})


def failing(call):
    """The exception of a call, with its traceback."""
    try:
        call()
    except BaseException as exc:
        return exc
    raise AssertionError("it did not fail")


def fail_bare():
    raise AssertionError


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: {}["choices"],
            "KeyError: 'choices' (in tests.backends.engine.test_outcome.<lambda>)",
        ),
        (
            lambda: [][0],
            "IndexError: list index out of range (in tests.backends.engine.test_outcome.<lambda>)",
        ),
        (
            lambda: None.usage,
            "has no attribute 'usage' (in tests.backends.engine.test_outcome.<lambda>)",
        ),
        (fail_bare, "AssertionError (in tests.backends.engine.test_outcome.fail_bare)"),
        (
            lambda: json.loads("<html>  busy\n</html>" + "x" * 999),
            "JSONDecodeError: Expecting value: line 1 column 1 (char 0), in '<html> busy </html>xx",
        ),
    ],
)
def test_an_exception_that_no_plugin_meant_says_where_and_what(call, said):
    """Its class alone helps nobody to find out what the provider sent."""
    message = outcome.translate(failing(call), KnownKeys(), "gpt-9").message
    assert message.startswith("the model 'gpt-9' failed: ") and said in message
