"""Ollama's embeddings, of /api/embed and of the older /api/embeddings.

Spec: https://github.com/ollama/ollama/blob/main/docs/api.md#generate-embeddings
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...core import payload
from ...core.embeddings import Embeddings, EmbedRequest
from ...core.errors import InvalidRequest

OLD_EMBEDDINGS = "embeddings"
"""The form of a request with a `prompt`, whose response has one vector."""


@dataclass(frozen=True)
class EmbedBody:
    """The body of a request; one without texts only asks for the model to be loaded."""

    model: str | None = None
    input: str | list[str] | None = None
    prompt: str | None = None
    dimensions: int | None = None
    truncate: Any = None
    keep_alive: Any = None
    options: Any = None


_NOT_CARRIED = ("truncate", "keep_alive", "options")


def parse_embeddings(body: Any) -> EmbedRequest:
    """Parse the body of /api/embed, or of /api/embeddings if it has a `prompt`.

    Raises:
        InvalidRequest: the body is not such a request; `param` names the field.
    """
    ignored: list[str] = []
    request = payload.load(EmbedBody, body, ignored)
    ignored += [name for name in _NOT_CARRIED if getattr(request, name) not in (None, {})]
    is_old = request.input is None and request.prompt is not None
    said = request.prompt if is_old else request.input
    texts = [said] if isinstance(said, str) else said or ()
    if request.dimensions is not None and request.dimensions < 1:
        raise InvalidRequest("expected a number above 0", param="dimensions")
    return EmbedRequest(
        request.model or None,
        tuple(text for text in texts if text) if len(texts) == 1 else tuple(texts),
        request.dimensions,
        form=OLD_EMBEDDINGS if is_old else "",
        ignored=tuple(ignored),
    )


def render_embeddings(embeddings: Embeddings, request: EmbedRequest) -> dict[str, Any]:
    """Render vectors in the form of their request."""
    vectors = [list(vector) for vector in embeddings.vectors]
    if request.form == OLD_EMBEDDINGS:
        return {"embedding": vectors[0] if vectors else []}
    return {
        "model": embeddings.model,
        "embeddings": vectors,
        "total_duration": embeddings.durations.total_ns,
        "load_duration": embeddings.durations.load_ns,
        "prompt_eval_count": embeddings.input_tokens,
    }
