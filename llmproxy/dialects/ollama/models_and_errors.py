"""Ollama's lists and descriptions of models, and its errors, rendered and parsed.

Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ...core import backend, error_meanings, payload
from ...core.errors import InvalidRequest, ProxyError

# Of the API that is spoken here. Clients ask for it and refuse an older one: Codex takes 0.13.4.
VERSION = "0.13.5"

# Of a model that says none. Clients need one: VS Code's chat assumes this one itself, and shortens
# what it sends by it. A model that holds less refuses, in words that clients know.
ASSUMED_CONTEXT_LENGTH = 32_768


def render_version() -> dict[str, Any]:
    """Render the response of /api/version: bare numbers, which clients compare."""
    return {"version": VERSION}


def render_models(models: Iterable[backend.ModelEntry]) -> dict[str, Any]:
    """Render /api/tags."""
    return {"models": [_listed(model) | _size(model) for model in models]}


def render_running(models: Iterable[backend.ModelEntry]) -> dict[str, Any]:
    """Render /api/ps: the models that are loaded."""
    return {
        "models": [
            _listed(model) | {"size": 0, "size_vram": 0, "expires_at": _FOREVER} for model in models
        ]
    }


_FOREVER = "2318-01-01T00:00:00Z"  # as Ollama says of a model that stays loaded


def _listed(model: backend.ModelEntry) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": model.id,
        "model": model.id,
        "digest": _digest(model),
        "details": _details(model),
        "context_length": model.context_length or ASSUMED_CONTEXT_LENGTH,
    }
    # Ollama's entries lack the next one, as its copies of a model have no other name.
    return entry | ({"aliases": list(model.aliases)} if model.aliases else {})


def _size(model: backend.ModelEntry) -> dict[str, Any]:
    return {
        "modified_at": _time(model.created),
        "size": 0,  # llm doesn't know it
        "capabilities": _capabilities(model),
    }


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _digest(model: backend.ModelEntry) -> str:
    """Return one that no other entry has, and that changes with what the model can do.

    Clients merge entries with the same digest, and keep /api/show by it.
    """
    told = [model.id, *_capabilities(model), f"{model.context_length}"]
    return hashlib.sha256("\0".join(told).encode("utf-8", "replace")).hexdigest()


def _details(model: backend.ModelEntry) -> dict[str, Any]:
    return {
        "parent_model": model.alias_of,
        "format": "llm",
        "family": model.owned_by,
        "families": [model.owned_by],
        "parameter_size": "",
        "quantization_level": "",
    }


def _capabilities(model: backend.ModelEntry) -> list[str]:
    """Return what the model can do, in Ollama's words."""
    has = {
        "completion": model.chats,
        "tools": model.tools,
        "vision": any(type_.startswith("image/") for type_ in model.attachment_types),
        "audio": any(type_.startswith("audio/") for type_ in model.attachment_types),
        "thinking": model.thinks,
        "embedding": model.embeds,
    }
    return [name for name, is_so in has.items() if is_so]


def render_model(model: backend.ModelEntry) -> dict[str, Any]:
    """Render /api/show. `model_info` always has a context length, and says if it is assumed."""
    family = model.owned_by
    info: dict[str, Any] = {"general.architecture": family, "general.basename": model.id}
    info[f"{family}.context_length"] = model.context_length or ASSUMED_CONTEXT_LENGTH
    if model.context_length is None:
        info["llmproxy.is_assumed"] = "context"  # LiteLLM looks for a name with context_length
    return {
        "modelfile": f"# a model of llm's\nFROM {model.id}\n",
        "parameters": "",
        # LiteLLM offers tools to a model whose template has any.
        "template": "{{ .Tools }}{{ .Prompt }}" if model.tools else "{{ .Prompt }}",
        "details": _details(model),
        "model_info": info,
        "capabilities": _capabilities(model),
        "modified_at": _time(model.created),
    }


@dataclass(frozen=True)
class ShowRequest:
    """The body of /api/show; older clients call the model `name`."""

    model: str | None = None
    name: str | None = None


def parse_model_name(body: Any) -> str:
    """Return the name of the model that /api/show asks for.

    Raises:
        InvalidRequest: there is none.
    """
    request = payload.load(ShowRequest, body, [])
    name = request.model or request.name
    if not name:
        raise InvalidRequest("this field is required", param="model")
    return name


def error_status(error: ProxyError) -> int:
    """Return the HTTP status of an error in this API."""
    return error_meanings.render(error, "openai").status


def render_error(error: ProxyError) -> dict[str, Any]:
    """Render an error's body: a message, which begins with the field at fault.

    Ollama sends nothing else. Type and code, which its clients skip, keep the meaning of an error
    that has no status, because it comes in a stream.
    """
    shown = error_meanings.render(error, "openai")
    body = {"error": shown.message, "type": shown.type}
    return body if shown.code is None else body | {"code": shown.code}


def parse_error(status: int, body: Any, headers: Mapping[str, str] | None = None) -> ProxyError:
    """Parse another server's error.

    status: of the response; below 400 for an error inside a stream. body: a JSON value, or
        text that is not JSON.
    """
    fields = error_meanings.error_fields(body)
    return error_meanings.read_error(
        status,
        [fields.get("code"), fields.get("type")],
        fields.get("message"),
        param=fields.get("param"),
        code=fields.get("code"),
        headers=headers,
    )
