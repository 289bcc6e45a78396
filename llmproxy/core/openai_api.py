"""What OpenAI's APIs share: the list of models, errors both ways, and how a key is sent.

Spec: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import backend, error_meanings
from .errors import ProxyError

SCHEMA_NAME = "answer"  # OpenAI requires one; our schemas have none
MAX_USER_CHARS = 64  # OpenAI refuses a longer `user`
AUDIO_FORMATS: Mapping[str, str] = {"audio/wav": "wav", "audio/mpeg": "mp3"}


def render_models(models: Iterable[backend.ModelEntry]) -> dict[str, Any]:
    """Render the list of models.

    Spec: https://platform.openai.com/docs/api-reference/models/list
    """
    return {"object": "list", "data": [render_model(model) for model in models]}


def render_model(model: backend.ModelEntry) -> dict[str, Any]:
    """Render one model; OpenAI's fields, and in `llm` what llm knows of it."""
    shown: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }
    if model.is_sync or model.is_async:  # else it is the name in a recording
        shown["llm"] = {
            "aliases": list(model.aliases),
            "alias_of": model.alias_of or None,
            "chat": model.chats,
            "embeddings": model.embeds,
            "sync": model.is_sync,
            "async": model.is_async,
            "tools": model.tools,
            "schema": model.schema,
            "reasoning": model.thinks,
            "attachments": list(model.attachment_types),
        }
    if model.context_length is not None:
        shown["context_length"] = model.context_length  # as OpenRouter says it
    return shown


def error_status(error: ProxyError) -> int:
    """Return the HTTP status of an error in this API."""
    return error_meanings.render(error, "openai").status


def render_error(error: ProxyError) -> dict[str, Any]:
    """Render an error's body; its status and headers are sent beside it.

    Spec: https://platform.openai.com/docs/guides/error-codes
    """
    shown = error_meanings.render(error, "openai")
    return {
        "error": {
            "message": shown.message,
            "type": shown.type,
            "param": error.param,
            "code": shown.code,
        }
    }


def parse_error(status: int, body: Any, headers: Mapping[str, str] | None = None) -> ProxyError:
    """Parse another server's error.

    status: of the response; below 400 for an error inside a stream, where the error's code
        and type decide. body: a JSON value, or text that is not JSON.
    """
    fields = error_meanings.error_fields(body)
    names = [fields.get("code"), fields.get("type")]
    if status < 400:
        # OpenRouter and vLLM write the status as the code.
        status = next((w for w in names if type(w) is int and 400 <= w < 600), 0)
    return error_meanings.read_error(
        status,
        names,
        fields.get("message"),
        param=fields.get("param"),
        code=fields.get("code"),
        headers=headers,
    )


def auth_headers(key: str | None) -> dict[str, str]:
    """Return the header fields that authenticate a request to a server of these APIs."""
    return {} if key is None else {"authorization": f"Bearer {key}"}
