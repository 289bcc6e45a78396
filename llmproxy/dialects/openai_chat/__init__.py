"""OpenAI's Chat Completions: the wire that most programs speak.

Read beside the vendor's page: the request's shapes and how they become the hub's and
are written from it, the stream of chunks and the whole completion, both ways, models,
errors. What the vendor has and llm has not is listed (`NOT_CARRIED`) or refused,
never dropped in silence.

    shapes              the vendor's dataclasses; what of a request is carried
    read_request        a request → hub.ChatRequest
    noise               a request → what of it is worth keeping
    write_request       hub.ChatRequest → a request, for another server
    answers             hub.ChatResponse → the whole completion
    stream              hub events → chunks
    read_answer         another server's chunks or completion → hub events
    models_and_errors   the list of models; errors, both ways

Spec: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Final

from ...core.backend import Route
from .models_and_errors import parse_error, render_error, render_model, render_models
from .parse_request import normalize_body, parse_request
from .parse_response import StreamParser, parse_response
from .render_request import auth_headers, render_request
from .render_response import ID_PREFIX, StreamRenderer, render_response
from .schema import NOT_CARRIED, ChatCompletionChunk, CreateChatCompletionRequest

__all__ = [
    "CUT_AFTER_ERROR",
    "ID_PREFIX",
    "NAME",
    "NOT_CARRIED",
    "REQUEST_ID_HEADER",
    "ROUTES",
    "STARTS_WITH_USAGE",
    "STREAM_TYPE",
    "VERSION_HEADER",
    "ChatCompletionChunk",
    "CreateChatCompletionRequest",
    "StreamParser",
    "StreamRenderer",
    "auth_headers",
    "normalize_body",
    "parse_error",
    "parse_request",
    "parse_response",
    "render_error",
    "render_model",
    "render_models",
    "render_request",
    "render_response",
]

NAME: Final = "openai_chat"

ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/chat/completions", "chat"),
    Route("GET", "/v1/models", "models"),
    Route("GET", "/v1/models/", "model"),
)

STREAM_TYPE = "text/event-stream; charset=utf-8"
REQUEST_ID_HEADER = "x-request-id"
VERSION_HEADER = ""  # its clients send none
CUT_AFTER_ERROR = True  # clients read a body that ends properly as a success (B11)
STARTS_WITH_USAGE = False
