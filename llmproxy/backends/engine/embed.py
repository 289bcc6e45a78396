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

    keys: redacted from errors. threads, debug: as in `Engine`. answer_bytes: of memory that the
        vectors of a request may take.
    """

    def __init__(
        self,
        catalog: Catalog,
        keys: KnownKeys,
        *,
        threads: int = MAX_THREADS,
        answer_bytes: int = Limits().answer,
        debug: bool = False,
    ) -> None:
        self._catalog = catalog
        self._keys = keys
        self._threads = Threads(threads)
        self._answer_bytes = answer_bytes
        self._debug = debug

    async def prepare(self, request: EmbedRequest) -> ModelEmbedRun:
        """Choose the model of a request.

        Raises:
            ModelNotFound: llm has no such embedding model.
            Unsupported: the model embeds no text.
        """
        entry = await self._catalog.choose_embedder(request.model)
        model = _sized(entry.model, request.dimensions)
        if not model.supports_text:
            raise Unsupported(f"the model {entry.model_id} embeds no text", param="model")
        self._keys.look()  # before the model reads its key
        self._keys.learn(keys_of_model(model))
        return ModelEmbedRun(
            entry,
            model,
            request,
            self._keys,
            self._threads,
            self._catalog.ran,
            self._answer_bytes,
            debug=self._debug,
        )


class ModelEmbedRun:
    """One of llm's models that is to embed the texts of a request; see `embeddings.EmbedRun`."""

    def __init__(
        self,
        entry: EmbedderEntry,
        model: EmbeddingModel,
        request: EmbedRequest,
        keys: KnownKeys,
        threads: Threads,
        ran: dict[str, object],
        answer_bytes: int,
        *,
        debug: bool,
    ) -> None:
        self.model_id = entry.model_id
        self._entry = entry
        self._model = model
        self._request = request
        self._keys = keys
        self._threads = threads
        self._ran = ran
        self._answer_bytes = answer_bytes
        self._debug = debug
        self._has_turn = False
        self._began = time.monotonic()

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Wait for the model; return whether other requests were before this one.

        Raises:
            Unavailable: the model stays busy with other requests.
        """
        if self._entry.limiter is None:
            return False
        has_waited = await model_turn(self._entry.limiter, self.model_id, wait_s)
        self._has_turn = True
        return has_waited

    def stop(self) -> None:
        """Give up a turn that was not used."""
        if self._has_turn and self._entry.limiter is not None:
            self._entry.limiter.leave()
        self._has_turn = False

    async def embed(self) -> Embeddings:
        """Return the vectors.

        A thread can't be interrupted: if the client hangs up, the model stops after the batch
        that it is at, and only then takes the next request.

        Raises:
            Unsupported: the model has no vectors of these dimensions.
            ProxyError: the model failed.
        """
        request, model_id = self._request, self.model_id
        self._ran[self._entry.key] = self._entry.model  # loaded, and then listed as such
        started = time.monotonic()
        vectors = await self._run()
        if isinstance(vectors, BaseException):
            raise outcome.translate(vectors, self._keys, model_id, debug=self._debug) from vectors
        ended = time.monotonic()
        return Embeddings(
            model_id,
            request.model or model_id,
            vectors,
            embeddings.estimate_tokens(request.inputs),
            Durations(int((ended - self._began) * 1e9), int((started - self._began) * 1e9)),
        )

    async def _run(self) -> list[list[float]] | BaseException:
        """Run the model, whose turn ends with the thread, however long that takes."""
        found: list[list[list[float]] | BaseException] = []
        is_stopped = threading.Event()
        done = asyncio.get_running_loop().create_future()

        def run() -> None:
            found.append(_outcome(self._model, self._request, self._answer_bytes, is_stopped))

        def leave() -> None:
            self._has_turn = had_turn
            self.stop()
            if not done.done():
                done.set_result(None)

        had_turn, self._has_turn = self._has_turn, False  # now it is the thread's
        try:
            await self._threads.wait_for_slot()
            self._threads.start(run, f"llmproxy-{self.model_id}", leave)
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
