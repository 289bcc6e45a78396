"""OpenAI's Responses, the API of Codex and of newer SDKs.

    schema              the vendor's types; what of a request is not carried
    items               ids of items, and how the parts of a reply look as items
    references          responses and items in the log, by their ids
    parse_request       a request → ChatRequest; its normal form
    render_request      ChatRequest → a request, for another server
    parse_response      another server's response, whole or streamed → events
    render_response     events → a response, whole or streamed

The list of models and the errors are those of all of OpenAI's APIs (`core.openai_api`).

Spec: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from typing import Final

from ...core.backend import Route
from ...core.chat import nothing_left_out as left_out
from ...core.openai_api import (
    auth_headers,
    error_status,
    parse_error,
    render_error,
    render_model,
    render_models,
)
from ...transport.framing import SSEDecoder
from .items import ID_PREFIX
from .parse_request import normalize_body, parse_request
from .parse_response import StreamParser, parse_response
from .references import (
    compaction_body,
    find_references,
    may_refer,
    render_count,
    render_stored_input,
    resolve_references,
    stored_id,
)
from .render_request import render_request
from .render_response import StreamRenderer, render_response, render_stored
from .schema import NOT_CARRIED, TOOL_NOT_CARRIED, ResponseCreateParams

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
    "TOOL_NOT_CARRIED",
    "VERSION_HEADER",
    "ResponseCreateParams",
    "StreamDecoder",
    "StreamParser",
    "StreamRenderer",
    "auth_headers",
    "compaction_body",
    "error_status",
    "find_references",
    "left_out",
    "may_refer",
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
    "render_stored",
    "render_stored_input",
    "resolve_references",
    "stored_id",
]

NAME: Final = "openai_responses"

_NOT_CANCELLED = "no response is made in the background: to cancel one, close its connection"
_NOT_DELETED = "responses are kept in the log, from which clients of this API delete nothing"

ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/responses", "stateful_chat"),
    Route("POST", "/v1/responses/compact", "compaction"),
    Route("POST", "/v1/responses/input_tokens", "stateful_count"),
    Route("POST", "/v1/responses/{id}/cancel", "refused", _NOT_CANCELLED),
    Route("GET", "/v1/responses/{id}/input_items", "stored_input"),
    Route("DELETE", "/v1/responses/", "refused", _NOT_DELETED),
    Route("GET", "/v1/responses/", "stored_response"),
)

STREAM_TYPE = "text/event-stream; charset=utf-8"
REQUEST_ID_HEADER = "x-request-id"
VERSION_HEADER = ""  # its clients send none
CUT_AFTER_ERROR = False  # response.failed is a proper end
STARTS_WITH_USAGE = False
CONVERSATION = "input"

StreamDecoder = SSEDecoder
