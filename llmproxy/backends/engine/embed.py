"""Run llm's embedding models: in a thread, by the model's batches."""

from __future__ import annotations

import asyncio
import copy
import math
import threading
import time
from typing import Any

from llm.models import EmbeddingModel

from ...core import embeddings
from ...core.backend import too_large
from ...core.chat import Durations
from ...core.embeddings import FLOAT_BYTES, Embeddings, EmbedRequest
from ...core.errors import Unsupported, UpstreamError
from ...core.known_keys import KnownKeys
from ...core.limits import Limits
from ...core.threads import MAX_THREADS, Threads
from ..llm_keys import keys_of_model
from . import outcome
from .catalog import Catalog, EmbedderEntry, model_turn


class ModelEmbedder:
    """Embeds texts with llm's models; see `embeddings.Embedder`.

    keys: redacted from errors. threads: as in `Engine`. answer_bytes: of memory that the vectors
        of a request may take.
    """

    def __init__(
        self,
        catalog: Catalog,
        keys: KnownKeys,
        *,
        threads: int = MAX_THREADS,
        answer_bytes: int = Limits().answer,
    ) -> None:
        self._catalog = catalog
        self._keys = keys
        self._threads = Threads(threads)
        self._answer_bytes = answer_bytes

    async def embed(self, request: EmbedRequest, wait_s: float) -> Embeddings:
        """Return the vectors of a request.

        A thread can't be interrupted: if the client hangs up, the model stops after the batch
        that it is at, and only then takes the next request.

        Raises:
            ModelNotFound: llm has no such embedding model.
            Unsupported: the model embeds no text, or has no vectors of these dimensions.
            Unavailable: the model stays busy with other requests.
            ProxyError: the model failed.
        """
        began = time.monotonic()
        entry = await self._catalog.choose_embedder(request.model)
        model = _sized(entry.model, request.dimensions)
        if not model.supports_text:
            raise Unsupported(f"the model {entry.model_id} embeds no text", param="model")
        self._keys.look()  # before the model reads its key
        self._keys.learn(keys_of_model(model))
        queue_ms = None
        if entry.limiter is not None:
            asked = time.monotonic()
            if await model_turn(entry.limiter, entry.model_id, wait_s):
                queue_ms = (time.monotonic() - asked) * 1000
        self._catalog.ran[entry.key] = entry.model  # loaded, and then listed as such
        started = time.monotonic()
        vectors = await self._run(entry, model, request)
        if isinstance(vectors, BaseException):
            raise outcome.translate(vectors, self._keys, entry.model_id) from vectors
        ended = time.monotonic()
        return Embeddings(
            entry.model_id,
            request.model or entry.model_id,
            vectors,
            embeddings.estimate_tokens(request.inputs),
            Durations(int((ended - began) * 1e9), int((started - began) * 1e9)),
            queue_ms,
        )

    async def _run(
        self, entry: EmbedderEntry, model: EmbeddingModel, request: EmbedRequest
    ) -> list[list[float]] | BaseException:
        """Run a model whose turn it is; the turn ends with the thread, however long that takes."""
        found: list[list[list[float]] | BaseException] = []
        is_stopped = threading.Event()
        done = asyncio.get_running_loop().create_future()

        def run() -> None:
            found.append(_outcome(model, request, self._answer_bytes, is_stopped))

        def leave() -> None:
            if entry.limiter is not None:
                entry.limiter.leave()
            if not done.done():
                done.set_result(None)

        try:
            await self._threads.wait_for_slot()
            self._threads.start(run, f"llmproxy-{entry.model_id}", leave)
        except BaseException:
            leave()
            raise
        try:
            await done
        finally:
            is_stopped.set()
        return found[0]


def _sized(model: EmbeddingModel, dimensions: int | None) -> EmbeddingModel:
    """Return the model with vectors of a size, if its plugin has a field for it."""
    if dimensions is None or not hasattr(model, "dimensions"):
        return model
    sized = copy.copy(model)
    vars(sized)["dimensions"] = dimensions
    return sized


def _outcome(
    model: EmbeddingModel, request: EmbedRequest, answer_bytes: int, is_stopped: threading.Event
) -> list[list[float]] | BaseException:
    """Run the model; return what it raised, since a plugin may raise anything."""
    vectors: list[list[float]] = []
    try:
        for vector in model.embed_multi(request.inputs) if request.inputs else ():
            if is_stopped.is_set():
                break
            vectors.append(_checked(vector, request, model))
            answer_bytes -= FLOAT_BYTES * len(vectors[-1])
            if answer_bytes < 0:
                raise too_large()
    except BaseException as exc:
        return exc
    if len(vectors) != len(request.inputs):
        return UpstreamError(
            f"the model {model.model_id} gave {len(vectors)} vectors for"
            f" {len(request.inputs)} texts"
        )
    return vectors


def _checked(vector: Any, request: EmbedRequest, model: EmbeddingModel) -> list[float]:
    """Return a vector as numbers of Python's own: some plugins yield NumPy's."""
    try:
        numbers = [float(number) for number in vector]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise UpstreamError(f"the model {model.model_id} gave a vector of no numbers")
    if request.dimensions is not None and len(numbers) != request.dimensions:
        raise Unsupported(
            f"the model {model.model_id} has vectors of {len(numbers)} dimensions only",
            param="dimensions",
        )
    return numbers
