"""Ollama's own API, which many local tools speak and nothing else.

    schema              the vendor's types; what of a request is not carried
    parse_request       a request of /api/chat or /api/generate → ChatRequest
    render_request      ChatRequest → a request, for another server
    parse_response      another server's response, whole or streamed → events
    render_response     events → a response, whole or streamed
    embeddings          requests for embeddings, and their vectors
    models_and_errors   lists and descriptions of models, the version; errors both ways

A response has the form of its request, /api/generate's or /api/chat's. Streams are lines of
JSON, and the default. Models are llm's: what would pull, copy or delete one is refused.

Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from typing import Final

from ...core.backend import Route
from ...core.chat import nothing_left_out as left_out
from ...transport.framing import NDJSONDecoder
from .embeddings import parse_embeddings, render_embeddings
from .models_and_errors import (
    VERSION,
    error_status,
    parse_error,
    parse_model_name,
    render_error,
    render_model,
    render_models,
    render_running,
    render_version,
)
from .parse_request import as_chat, normalize_body, parse_request
from .parse_response import StreamParser, parse_response
from .render_request import auth_headers, render_request
from .render_response import ID_PREFIX, StreamRenderer, render_response
from .schema import NOT_CARRIED

__all__ = [
    "CONVERSATION",
    "CUT_AFTER_ERROR",
    "ID_PREFIX",
    "NAME",
    "NOT_CARRIED",
    "REQUEST_ID_HEADER",
    "ROUTES",
    "STARTS_WITH_USAGE",
    "STREAM_TYPE",
    "VERSION",
    "VERSION_HEADER",
    "StreamDecoder",
    "StreamParser",
    "StreamRenderer",
    "as_chat",
    "auth_headers",
    "error_status",
    "left_out",
    "normalize_body",
    "parse_embeddings",
    "parse_error",
    "parse_model_name",
    "parse_request",
    "parse_response",
    "render_embeddings",
    "render_error",
    "render_model",
    "render_models",
    "render_request",
    "render_response",
    "render_running",
    "render_version",
]

NAME: Final = "ollama"

_BY_LLM = (
    "models are managed by llm, not by this server: llm install adds a plugin with"
    " models, llm models lists them, llm aliases names them"
)

ROUTES: tuple[Route, ...] = (
    Route("POST", "/api/chat", "chat_or_load"),
    Route("POST", "/api/generate", "chat"),
    Route("POST", "/api/embed", "embeddings"),
    Route("POST", "/api/embeddings", "embeddings"),
    Route("GET", "/api/tags", "models"),
    Route("POST", "/api/show", "named_model"),
    Route("GET", "/api/ps", "running_models"),
    Route("GET", "/api/version", "version"),
    *(
        Route("POST", f"/api/{verb}", "refused", _BY_LLM)
        for verb in ("pull", "push", "create", "copy")
    ),
    Route("DELETE", "/api/delete", "refused", _BY_LLM),
)

STREAM_TYPE = "application/x-ndjson"
REQUEST_ID_HEADER = "x-request-id"
VERSION_HEADER = ""  # its clients send none
CUT_AFTER_ERROR = False  # a line with an error is a proper end here
STARTS_WITH_USAGE = False
CONVERSATION = "messages"

StreamDecoder = NDJSONDecoder
