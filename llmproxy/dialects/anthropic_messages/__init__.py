"""Anthropic's Messages, the API of its SDKs and of Claude Code.

    schema              the vendor's types; what of a request is not carried
    parse_request       a request → ChatRequest; its normal form
    render_request      ChatRequest → a request, for another server
    parse_response      another server's response, whole or streamed → events
    render_response     events → a response, whole or streamed
    models_and_errors   token counts and the list of models; errors both ways

Spec: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from typing import Final

from ...core.backend import Route
from ...core.chat import nothing_left_out as left_out
from ...transport.framing import SSEDecoder
from .models_and_errors import (
    REQUEST_ID_HEADER,
    error_status,
    parse_error,
    render_count,
    render_error,
    render_model,
    render_models,
)
from .parse_request import normalize_body, parse_request
from .parse_response import StreamParser, parse_response
from .render_request import PLACEHOLDER, VERSION_HEADER, auth_headers, render_request, tool_names
from .render_response import ID_PREFIX, StreamRenderer, render_response
from .schema import NOT_CARRIED, TOOL_NOT_CARRIED, CreateMessageRequest

__all__ = [
    "CONVERSATION",
    "CUT_AFTER_ERROR",
    "PLACEHOLDER",
    "ID_PREFIX",
    "NAME",
    "NOT_CARRIED",
    "REQUEST_ID_HEADER",
    "ROUTES",
    "STARTS_WITH_USAGE",
    "STREAM_TYPE",
    "TOOL_NOT_CARRIED",
    "VERSION_HEADER",
    "CreateMessageRequest",
    "StreamDecoder",
    "StreamParser",
    "StreamRenderer",
    "auth_headers",
    "error_status",
    "left_out",
    "normalize_body",
    "parse_error",
    "parse_request",
    "parse_response",
    "render_count",
    "render_error",
    "render_model",
    "render_models",
    "render_request",
    "render_response",
    "tool_names",
]

NAME: Final = "anthropic_messages"

ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/messages", "chat"),
    Route("POST", "/v1/messages/count_tokens", "count_tokens"),
    Route("GET", "/v1/models", "models"),
    Route("GET", "/v1/models/", "model"),
)

STREAM_TYPE = "text/event-stream; charset=utf-8"
CUT_AFTER_ERROR = False  # an error event is a proper end here
STARTS_WITH_USAGE = True  # in message_start
CONVERSATION = "messages"

StreamDecoder = SSEDecoder
