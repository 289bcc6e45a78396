"""The list of models, and errors both ways."""

from __future__ import annotations

import httpx2
import openai
import pytest
from openai.types import Model

from llmproxy.core import backend
from llmproxy.core.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ProxyError,
    RateLimited,
    Unauthorized,
    Unavailable,
    UpstreamError,
)
from llmproxy.dialects import DIALECTS, openai_chat
from tests.dialects.openai_chat.samples import SERVER

ENTRY = backend.ModelEntry("openrouter/a/b", "openrouter", 1_700_000_000)


def test_models_are_listed_as_the_sdk_wants_them():
    listed = openai_chat.render_models([ENTRY])
    assert listed == {
        "object": "list",
        "data": [
            {
                "id": "openrouter/a/b",
                "object": "model",
                "created": 1_700_000_000,
                "owned_by": "openrouter",
            }
        ],
    }
    Model.model_validate(openai_chat.render_model(ENTRY))
    assert openai_chat.render_models([]) == {"object": "list", "data": []}


ERRORS = {
    "a bad field": (
        InvalidRequest("expected a string", param="messages[0].content"),
        {"type": "invalid_request_error", "param": "messages[0].content", "code": None},
        openai.BadRequestError,
    ),
    "no such model": (
        ModelNotFound("no model is called x", param="model"),
        {"type": "invalid_request_error", "param": "model", "code": "model_not_found"},
        openai.NotFoundError,
    ),
    "too many": (
        RateLimited("later", headers={"retry-after": "1"}),
        {"type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"},
        openai.RateLimitError,
    ),
    "a broken model": (
        UpstreamError("it broke"),
        {"type": "server_error", "param": None, "code": None},
        openai.InternalServerError,
    ),
    "an overloaded one": (
        Overloaded("busy"),
        {"type": "server_error", "param": None, "code": "server_is_overloaded"},
        openai.InternalServerError,
    ),
    "a bug of ours": (
        ProxyError("internal error"),
        {"type": "server_error", "param": None, "code": None},
        openai.InternalServerError,
    ),
}


@pytest.mark.parametrize("error, fields, sdk_class", ERRORS.values(), ids=ERRORS)
def test_errors_are_openais_object_and_the_sdks_classes(error, fields, sdk_class):
    rendered = openai_chat.render_error(error)
    message = error.message if error.code else str(error)
    assert rendered == {"error": {"message": message, **fields}}
    SERVER.answer = httpx2.Response(openai_chat.error_status(error), json=rendered)
    with pytest.raises(sdk_class) as caught:
        SERVER.client.models.list()
    assert caught.value.body == rendered["error"]
    assert message in str(caught.value)


def test_the_dialect_has_the_agreed_names_and_routes():
    assert openai_chat in DIALECTS
    assert (openai_chat.NAME, openai_chat.REQUEST_ID_HEADER) == ("openai_chat", "x-request-id")
    assert openai_chat.ROUTES == (
        backend.Route("POST", "/v1/chat/completions", "chat"),
        backend.Route("POST", "/v1/completions", "chat_batch"),
        backend.Route("POST", "/v1/embeddings", "embeddings"),
        backend.Route("GET", "/v1/models", "models"),
        backend.Route("GET", "/v1/models/", "model"),
    )


@pytest.mark.parametrize("error", [row[0] for row in ERRORS.values()], ids=ERRORS)
def test_a_rendered_error_parses_as_itself(error):
    rendered = openai_chat.render_error(error)
    read = openai_chat.parse_error(openai_chat.error_status(error), rendered, error.headers)
    assert (read.status, read.message, read.param, read.code, read.headers) == (
        error.status,
        error.message,
        error.param,
        rendered["error"]["code"],
        error.headers,
    )
    assert read.kind == ("upstream" if error.kind == "internal" else error.kind)


FOREIGN_ERRORS = {
    "ollama": (404, {"error": "no such model"}, ModelNotFound, 404, "no such model"),
    "fastapi": (401, {"detail": "who are you?"}, Unauthorized, 401, "who are you?"),
    "fastapi's check of fields": (
        422,
        {"detail": [{"loc": ["body", "n", 0], "msg": "not a number", "type": "x"}, "so", 3]},
        InvalidRequest,
        422,
        "body.n.0: not a number; so",
    ),
    "a list of messages": (400, {"message": [{"message": "no"}]}, InvalidRequest, 400, "no"),
    "gemini": (503, [{"error": {"message": "later", "code": 503}}], Unavailable, 503, "later"),
    "mistral": (422, {"object": "error", "message": "no"}, InvalidRequest, 422, "no"),
    "text": (500, "Internal Server Error", UpstreamError, 500, "Internal Server Error"),
    "nothing": (502, None, UpstreamError, 502, "the upstream failed without giving a reason"),
    "in a stream, by its type": (
        200,
        {"error": {"message": "x", "type": "rate_limit_error"}},
        RateLimited,
        429,
        "x",
    ),
    "in a stream, by nothing": (200, {"error": {"message": "x"}}, UpstreamError, 502, "x"),
}


@pytest.mark.parametrize(
    "status, body, kind, own, message", FOREIGN_ERRORS.values(), ids=FOREIGN_ERRORS
)
def test_errors_of_every_server_keep_their_class(status, body, kind, own, message):
    """B39"""
    error = openai_chat.parse_error(status, body, {"Retry-After": "3", "Set-Cookie": "x"})
    assert (type(error), error.status, error.message) == (kind, own, message)
    assert error.headers == {"retry-after": "3"}


def test_a_code_beside_the_message_is_kept():
    fields = {"message": "no", "type": "NotFoundError", "param": "model", "code": "model_not_found"}
    error = openai_chat.parse_error(200, {"object": "error", **fields})
    assert (type(error), error.status, error.message) == (ModelNotFound, 404, "no")
    assert (error.param, error.code) == ("model", "model_not_found")
