"""Anthropic's token counts and list of models, and its errors, rendered and parsed.

Spec: https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ...core import backend, error_meanings
from ...core.backend import GATEWAY_PREFIX
from ...core.errors import ProxyError

REQUEST_ID_HEADER = "request-id"


def render_count(count: int) -> dict[str, Any]:
    """Render the response of count_tokens: the input tokens, here an estimate.

    Spec: https://docs.anthropic.com/en/api/messages-count-tokens
    """
    return {"input_tokens": count}


def render_models(models: Iterable[backend.ModelEntry]) -> dict[str, Any]:
    """Render the list of models that chat, all on one page.

    Those that Claude Code would not show by their names come again under one that it does.

    Specs: https://docs.anthropic.com/en/api/models-list
           https://code.claude.com/docs/en/llm-gateway-protocol
    """
    chats = [model for model in models if model.chats]
    data = [render_model(model) for model in chats]
    data += [
        shown | {"id": GATEWAY_PREFIX + shown["id"]}
        for shown in data
        if not _SHOWN_BY_CLAUDE_CODE.match(shown["id"])
    ]
    return {
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


_SHOWN_BY_CLAUDE_CODE = re.compile("claude|anthropic", re.IGNORECASE)


def render_model(model: backend.ModelEntry) -> dict[str, Any]:
    """Render one model."""
    created_at = datetime.fromtimestamp(model.created, UTC)
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id,
        "created_at": created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
    }


def error_status(error: ProxyError) -> int:
    """Return the HTTP status of an error in this API."""
    return error_meanings.render(error, "anthropic").status


def render_error(error: ProxyError) -> dict[str, Any]:
    """Render an error's body; its status and headers are sent beside it.

    Spec: https://docs.anthropic.com/en/api/errors
    """
    rendered = error_meanings.render(error, "anthropic")
    shown: dict[str, Any] = {"type": rendered.type, "message": rendered.message}
    if error.code is not None:
        shown["details"] = {"error_code": error.code}
    body: dict[str, Any] = {"type": "error", "error": shown}
    if REQUEST_ID_HEADER in error.headers:
        body["request_id"] = error.headers[REQUEST_ID_HEADER]
    return body


def parse_error(status: int, body: Any, headers: Mapping[str, str] | None = None) -> ProxyError:
    """Parse another server's error.

    status: of the response; below 400 for an error inside a stream, where the error's type
        decides. body: a JSON value, or text that is not JSON.
    """
    match body:
        case {"error": dict(error)} | dict(error):
            message, type_, details = error.get("message"), error.get("type"), error.get("details")
        case _:
            message, type_, details = body, None, None
    code = details.get("error_code") if isinstance(details, dict) else None
    return error_meanings.read_error(status, [code, type_], message, code=code, headers=headers)
