"""OpenAI's embeddings: a request parsed, its vectors rendered.

Spec: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...core import payload
from ...core.embeddings import Embeddings, EmbedRequest
from ...core.errors import InvalidRequest, Unsupported


@dataclass(frozen=True)
class CreateEmbeddingRequest:
    """The body of a request."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


EMBEDDINGS_NOT_CARRIED: Mapping[str, str] = {"user": "llm's embedding models take no user"}


def parse_embeddings(body: Any) -> EmbedRequest:
    """Parse the body of a request, a JSON value.

    Raises:
        InvalidRequest: the body is not such a request; `param` names the field.
        Unsupported: texts as lists of tokens, which only OpenAI's models can read.

    Spec: https://platform.openai.com/docs/api-reference/embeddings/create
    """
    ignored: list[str] = []
    request = payload.load(CreateEmbeddingRequest, body, ignored)
    inputs = [request.input] if isinstance(request.input, str) else request.input
    for i, text in enumerate(inputs):
        if isinstance(text, int | list):
            # LangChain does so unless it is told not to.
            raise Unsupported(
                "tokens can't be read here: send texts (in LangChain, by"
                " check_embedding_ctx_length=False)",
                param="input",
            )
        if not isinstance(text, str):
            raise InvalidRequest("expected a string", param=f"input[{i}]")
        if not text:
            raise InvalidRequest("a text can't be empty", param="input")
    if not inputs:
        raise InvalidRequest("there is nothing to embed", param="input")
    if request.dimensions is not None and request.dimensions < 1:
        raise InvalidRequest("expected a number above 0", param="dimensions")
    ignored += [name for name in EMBEDDINGS_NOT_CARRIED if getattr(request, name)]
    return EmbedRequest(
        request.model or None,
        tuple(inputs),
        request.dimensions,
        request.encoding_format or "float",
        ignored=tuple(ignored),
    )


def render_embeddings(embeddings: Embeddings, request: EmbedRequest) -> dict[str, Any]:
    """Render vectors, as numbers or as base64 of little-endian floats of four bytes.

    Spec: https://platform.openai.com/docs/api-reference/embeddings/object
    """
    render = _base64 if request.encoding == "base64" else list
    tokens = embeddings.input_tokens
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": render(vector)}
            for i, vector in enumerate(embeddings.vectors)
        ],
        "model": embeddings.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _base64(vector: Sequence[float]) -> str:
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()
