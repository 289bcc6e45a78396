"""Requests for embeddings and their vectors, in the format common to all dialects."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from . import chat, token_estimate

FLOAT_BYTES = 32  # of memory that Python takes for a number in a list


@dataclass(frozen=True)
class EmbedRequest:
    """A client's request for the vectors of texts.

    model: None for llm's default. dimensions: of the vectors; None for the model's own.
    encoding: of the vectors in the response, where the API has more than one. form: of a request
    that has several in its API. ignored: paths of what is not carried.
    """

    model: str | None
    inputs: tuple[str, ...]
    dimensions: int | None = None
    encoding: Literal["float", "base64"] = "float"
    form: str = ""
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embeddings:
    """The vectors of a request's texts, in their order.

    model_id: llm's id of the model. model: its name as the client sees it. input_tokens: an
    estimate, since llm's embedding models report none.
    """

    model_id: str
    model: str
    vectors: Sequence[Sequence[float]]
    input_tokens: int
    durations: chat.Durations = chat.Durations()


class EmbedRun(Protocol):
    """A model that is to embed the texts of one request; model_id is llm's.

    `wait_turn` comes first, then `embed`, and `stop` in any case.
    """

    model_id: str

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Wait at most `wait_s` seconds for the model; return whether others were before.

        Raises:
            Unavailable: the model stays busy for longer.
        """

    async def embed(self) -> Embeddings:
        """Return the vectors.

        Raises:
            ProxyError: the model can't do what is asked, or fails.
        """

    def stop(self) -> None:
        """Give up a turn that was not used. A second call does nothing."""


class Embedder(Protocol):
    """A source of embeddings."""

    async def prepare(self, request: EmbedRequest) -> EmbedRun:
        """Choose the model of a request.

        Raises:
            ProxyError: there is no such model, or it can't do what is asked.
        """


def estimate_tokens(inputs: Sequence[str]) -> int:
    """Estimate the tokens of texts, without a tokenizer."""
    return sum(map(token_estimate.estimate_text, inputs))


def without_inputs(body: Any) -> Any:
    """Return a request's body as it is logged: sizes and hashes in place of the texts."""
    if not isinstance(body, dict):
        return body
    return body | {name: _told(body[name]) for name in ("input", "prompt") if name in body}


def _told(value: Any) -> Any:
    match value:
        case str():
            data = value.encode("utf-8", "replace")
            return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        case [int(), *_]:  # tokens, which say what the text said
            return {"tokens": len(value)}
        case list():
            return [_told(item) for item in value]
    return value
