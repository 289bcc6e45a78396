"""Token counts, the list of models, and errors both ways."""

from __future__ import annotations

import anthropic
import pytest
from anthropic.types import MessageTokensCount, ModelInfo

from llmproxy.core import backend
from llmproxy.core.errors import (
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ProxyError,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from llmproxy.dialects import anthropic_messages
from tests.dialects.anthropic_messages.samples import SERVER


def test_counts_and_models_are_what_the_sdk_wants():
    """B34: the count's shape; that no model is asked is the app's."""
    assert MessageTokensCount.model_validate(anthropic_messages.render_count(5)).input_tokens == 5
    entry = backend.ModelEntry("openrouter/a/b", "openrouter", 1_700_000_000)
    shown = {
        "type": "model",
        "id": "openrouter/a/b",
        "display_name": "openrouter/a/b",
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
    }
    assert anthropic_messages.render_model(entry) == shown
    ModelInfo.model_validate(shown)
    assert anthropic_messages.render_models([]) == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }
    SERVER.json(anthropic_messages.render_models([entry]))
    # Again under a name that Claude Code shows.
    listed = [(model.id, model.display_name) for model in SERVER.client.models.list()]
    assert listed == [
        ("openrouter/a/b", "openrouter/a/b"),
        ("anthropic/openrouter/a/b", "openrouter/a/b"),
    ]


ERRORS = [
    (InvalidRequest("bad", param="messages[0]"), "invalid_request_error", "BadRequestError"),
    (Unauthorized("no key"), "authentication_error", "AuthenticationError"),
    (Forbidden("no"), "permission_error", "PermissionDeniedError"),
    (ModelNotFound("no model x"), "not_found_error", "NotFoundError"),
    (TooLarge("too large"), "request_too_large", "RequestTooLargeError"),
    (RateLimited("slow", headers={"retry-after": "3"}), "rate_limit_error", "RateLimitError"),
    (ProxyError("internal error"), "api_error", "InternalServerError"),
    (UpstreamError("broke"), "api_error", "InternalServerError"),
    (Unavailable("not now"), "overloaded_error", "InternalServerError"),
    (UpstreamTimeout("late"), "timeout_error", "InternalServerError"),
    (Overloaded("too many"), "overloaded_error", "OverloadedError"),
]


@pytest.mark.parametrize("error, type_, sdk_class", ERRORS)
def test_errors_are_anthropics_object_and_the_sdks_classes(error, type_, sdk_class):
    """B39, C9"""
    rendered = anthropic_messages.render_error(error)
    SERVER.json(
        rendered, anthropic_messages.error_status(error), **{"request-id": "req"}, **error.headers
    )
    with pytest.raises(anthropic.APIStatusError) as raised:
        SERVER.client.messages.create(model="m", max_tokens=9, messages=[])
    assert type(raised.value).__name__ == sdk_class
    assert (raised.value.body["error"]["type"], raised.value.request_id) == (type_, "req")


@pytest.mark.parametrize("error", [error for error, *_ in ERRORS if type(error) is not ProxyError])
def test_a_rendered_error_parses_as_itself(error):
    """B39"""
    rendered = anthropic_messages.render_error(error)
    status = anthropic_messages.error_status(error)
    read = anthropic_messages.parse_error(status, rendered, error.headers)
    kind = Overloaded if isinstance(error, Unavailable) else type(error)  # one type there
    assert (type(read), read.status, read.code) == (kind, kind.status, error.code)
    assert read.message == rendered["error"]["message"]
    assert read.headers == error.headers


@pytest.mark.parametrize("body", ["<html>", None, [], {"error": 1}, {"error": {"message": None}}])
def test_an_error_of_any_type_is_parsed(body):
    read = anthropic_messages.parse_error(418, body)
    assert (type(read), read.status) == (UpstreamError, 418)


def test_an_error_with_a_request_id_shows_it():
    error = ProxyError("x", headers={"request-id": "req_1"})
    assert anthropic_messages.render_error(error)["request_id"] == "req_1"
