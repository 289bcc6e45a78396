"""OpenAI's Chat Completions, the API that most programs speak.

    schema              the vendor's types; what of a request is not carried
    parse_request       a request → ChatRequest; its normal form
    render_request      ChatRequest → a request, for another server
    parse_response      another server's response, whole or streamed → events
    render_response     events → a response, whole or streamed
    completions         older completions, answered by chat models
    embeddings          requests for embeddings, and their vectors

The list of models and the errors are those of all of OpenAI's APIs (`core.openai_api`).

Fields that llm can't carry are listed (`NOT_CARRIED`) or refused, never dropped silently.

Spec: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Any, Final

from ...core import chat
from ...core.backend import Route
from ...core.openai_api import (
    auth_headers,
    error_status,
    parse_error,
    render_error,
    render_model,
    render_models,
)
from ...transport.framing import SSEDecoder
from .completions import (
    COMPLETION,
    CompletionStreamRenderer,
    join_batch,
    render_completion,
    split_batch,
)
from .embeddings import EMBEDDINGS_NOT_CARRIED, parse_embeddings, render_embeddings
from .parse_request import normalize_body, parse_request
from .parse_response import StreamParser, parse_response
from .render_request import render_request
from .render_response import ID_PREFIX, ChatStreamRenderer, left_out, render_chat
from .schema import NOT_CARRIED, ChatCompletionChunk, CreateChatCompletionRequest

__all__ = [
    "CONVERSATION",
    "CUT_AFTER_ERROR",
    "EMBEDDINGS_NOT_CARRIED",
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
    "StreamDecoder",
    "StreamParser",
    "StreamRenderer",
    "auth_headers",
    "error_status",
    "join_batch",
    "left_out",
    "normalize_body",
    "parse_embeddings",
    "parse_error",
    "parse_request",
    "parse_response",
    "render_embeddings",
    "render_error",
    "render_model",
    "render_models",
    "render_request",
    "render_response",
    "split_batch",
]

NAME: Final = "openai_chat"

ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/chat/completions", "chat"),
    Route("POST", "/v1/completions", "chat_batch"),
    Route("POST", "/v1/embeddings", "embeddings"),
    Route("GET", "/v1/models", "models"),
    Route("GET", "/v1/models/", "model"),
)

STREAM_TYPE = "text/event-stream; charset=utf-8"
REQUEST_ID_HEADER = "x-request-id"
VERSION_HEADER = ""  # its clients send none
CUT_AFTER_ERROR = True  # clients read a body that ends properly as a success
STARTS_WITH_USAGE = False
CONVERSATION = "messages"

StreamDecoder = SSEDecoder


def render_response(response: chat.ChatResponse, envelope: chat.Envelope) -> dict[str, Any]:
    """Render a response in the form of its request: a chat.completion, or a text_completion."""
    render = render_completion if envelope.form == COMPLETION else render_chat
    return render(response, envelope)


def StreamRenderer(envelope: chat.Envelope) -> ChatStreamRenderer | CompletionStreamRenderer:  # noqa: N802  # the agreed name
    """Return the renderer of a stream in the form of its request."""
    if envelope.form == COMPLETION:
        return CompletionStreamRenderer(envelope)
    return ChatStreamRenderer(envelope)
