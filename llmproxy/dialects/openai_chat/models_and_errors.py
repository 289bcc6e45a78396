"""OpenAI's list of models, and its errors, rendered and parsed.

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
    """Render an error's body; its status and headers are sent beside it.

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


# OpenAI's codes, which are more specific than its types.
_BY_CODE: Mapping[str, type[ProxyError]] = {
    "invalid_api_key": Unauthorized,
    "model_not_found": NotFound,
    "insufficient_quota": RateLimited,
}


def parse_error(status: int, body: Any, headers: Mapping[str, str] | None = None) -> ProxyError:
    """Parse another server's error.

    status: of the response, kept as it is; below 400 for an error inside a stream, where the
        error's code and type decide. body: a JSON value, or text that is not JSON.
    """
    fields = body
    if isinstance(fields, list) and fields:  # Gemini's
        fields = fields[0]
    if isinstance(fields, dict):
        error = next((fields[k] for k in ("error", "detail", "message") if fields.get(k)), fields)
        # Mistral and vLLM put the code beside the message, as do SDKs that dump an error.
        fields = error if isinstance(error, dict) else {**fields, "message": error}
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
