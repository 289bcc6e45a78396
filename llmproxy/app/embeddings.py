"""Requests for embeddings: one request in, vectors out; the log gets sizes and hashes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol, cast

from ..core import payload
from ..core.embeddings import FLOAT_BYTES, Embedder, EmbedRequest, EmbedRun, without_inputs
from ..core.errors import NotRecorded, UpstreamTimeout
from ..core.limits import Limits
from ..core.usage import ESTIMATED
from ..dialects import Dialect, EmbeddingDialect
from ..report.numbers import count_of
from ..transport.http11 import Request, Response
from .running_exchange import Ending, RunningExchange


class Begin(Protocol):
    """Makes the exchange of a request and logs its beginning."""

    def __call__(
        self,
        dialect: Dialect,
        http_request: Request,
        body: Any,
        received: tuple[datetime, float],
        model: str | None,
    ) -> RunningExchange: ...


class EmbeddingRequests:
    """Answers requests for embeddings.

    embedder: runs embedding models; None if only recordings answer.
    begin, work, wait_turn, end, fail: the app's steps, the same for every exchange.
    """

    def __init__(
        self,
        embedder: Embedder | None,
        limits: Limits,
        *,
        begin: Begin,
        work: Callable[[int, Callable[[], Any]], Awaitable[Any]],
        wait_turn: Callable[[RunningExchange, EmbedRun], Awaitable[None]],
        end: Callable[[RunningExchange, Ending], Awaitable[None]],
        fail: Callable[[RunningExchange, Dialect, BaseException], Awaitable[Response]],
    ) -> None:
        self._embedder = embedder
        self._limits = limits
        self._begin = begin
        self._work = work
        self._wait_turn = wait_turn
        self._end = end
        self._fail = fail

    async def __call__(self, dialect: Dialect, http_request: Request, argument: str) -> Response:
        """Respond with vectors. They are not logged, nor are the texts: only sizes and hashes."""
        embedding = cast(EmbeddingDialect, dialect)  # only those have the route
        received = datetime.now(UTC), time.monotonic()
        request: EmbedRequest | None = None
        failure: BaseException | None = None
        body: Any = None

        def receive() -> None:
            nonlocal request, body
            parsed = payload.parse(http_request.body, self._limits)
            body = without_inputs(parsed)
            request = embedding.parse_embeddings(parsed)

        try:
            await self._work(len(http_request.body), receive)
        except BaseException as exc:
            failure = exc
        model = request.model if request else None
        exchange = self._begin(dialect, http_request, body, received, model)
        if request is not None:
            asked = f"embed {count_of(len(request.inputs), 'text')}"
            exchange.capture.begun = replace(exchange.capture.begun, last_message=asked)
        try:
            if request is None:
                assert failure is not None
                raise failure
            return await self._vectors(embedding, exchange, request)
        except BaseException as exc:
            return await self._fail(exchange, dialect, exc)

    async def _vectors(
        self, dialect: EmbeddingDialect, exchange: RunningExchange, request: EmbedRequest
    ) -> Response:
        if self._embedder is None:
            raise NotRecorded("vectors are not recorded, so there are none to replay")
        run = await self._embedder.prepare(request)
        exchange.capture.model_id = run.model_id
        deadline = None if self._limits.answer_s == math.inf else self._limits.answer_s
        try:
            await self._wait_turn(exchange, run)
            async with asyncio.timeout(deadline):
                exchange.started_at = time.monotonic()
                found = await run.embed()
        except TimeoutError:
            raise UpstreamTimeout("the response did not end in time (limit answer_s)") from None
        finally:
            run.stop()
        exchange.finished_at = time.monotonic()
        exchange.capture.ignored_late = (*request.ignored, ESTIMATED)
        count = sum(map(len, found.vectors))
        size = len(found.vectors[0]) if found.vectors else 0
        vectors = count_of(len(found.vectors), "vector")
        exchange.capture.reply_words = f"{vectors} of {count_of(size, 'number')}"
        rendered = await self._work(
            count * FLOAT_BYTES,
            lambda: payload.encode(dialect.render_embeddings(found, request)),
        )
        exchange.capture.http_status = 200
        await self._end(exchange, "ok")
        headers = [("content-type", "application/json"), *exchange.headers()]
        return Response(200, headers, rendered)
