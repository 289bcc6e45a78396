"""OpenAI's models and errors: what every route of this wire may answer beside a chat.

Which models there are is left to the engine, and what an error is to the house's
`errors`: here they only change their form, errors both ways.

Spec: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...core import backend
from ...core.errors import (
    NotFound,
    ProxyError,
    RateLimited,
    Unauthorized,
    UpstreamError,
    class_of_type,
    upstream_error,
)


def render_models(models: Iterable[backend.ModelEntry]) -> dict[str, Any]:
    """Render the list of models.

    Spec: https://platform.openai.com/docs/api-reference/models/list
    """
    return {"object": "list", "data": [render_model(model) for model in models]}


def render_model(model: backend.ModelEntry) -> dict[str, Any]:
    """Render one model."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }


ERROR_TYPES: Mapping[str, str] = {
    "invalid_request": "invalid_request_error",
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "invalid_request_error",
    "too_large": "invalid_request_error",
    "rate_limit": "rate_limit_error",
    "timeout": "timeout_error",
}


def render_error(error: ProxyError) -> dict[str, Any]:
    """Render an error as OpenAI's object; its status and headers go beside it.

    Spec: https://platform.openai.com/docs/guides/error-codes
    """
    return {
        "error": {
            "message": error.message,
            "type": ERROR_TYPES.get(error.kind, "server_error"),
            "param": error.param,
            "code": error.code,
        }
    }


# OpenAI's codes, which say more than its types.
_BY_CODE: Mapping[str, type[ProxyError]] = {
    "invalid_api_key": Unauthorized,
    "model_not_found": NotFound,
    "insufficient_quota": RateLimited,
}


def parse_error(status: int, body: Any, headers: Mapping[str, str] | None = None) -> ProxyError:
    """Read another server's error; `status` below 400 where it came inside a stream.

    body: the JSON value, or the text of what was none. A status stays as it was; where
    there is none it is told by the error's code and type.
    """
    fields = body
    if isinstance(fields, list) and fields:  # Gemini's
        fields = fields[0]
    if isinstance(fields, dict):
        told = next((fields[k] for k in ("error", "detail", "message") if fields.get(k)), fields)
        # Mistral and vLLM have the code beside the message, as has what SDKs make of an error.
        fields = told if isinstance(told, dict) else {**fields, "message": told}
    if not isinstance(fields, dict):
        fields = {"message": fields}
    words = [fields.get("code"), fields.get("type")]
    if status < 400:
        # OpenRouter and vLLM write the status as the code.
        status = next((w for w in words if type(w) is int and 400 <= w < 600), 0)
    kinds = [_BY_CODE.get(w) or class_of_type(w) for w in words if isinstance(w, str)]
    by_word = next((kind for kind in kinds if kind is not UpstreamError), UpstreamError)
    return upstream_error(
        status,
        by_word,
        fields.get("message"),
        param=fields.get("param"),
        code=fields.get("code"),
        headers=headers,
    )
