"""Requests that hold several chats: each runs, and is logged, as a request of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

from ..core import payload
from ..core.errors import ProxyError
from ..core.limits import Limits
from ..dialects import BatchDialect, Dialect
from ..transport.http11 import Request, Response


async def answer_batch(
    chat: Callable[[Dialect, Request, str], Awaitable[Response]],
    work: Callable[[int, Callable[[], Any]], Awaitable[Any]],
    limits: Limits,
    dialect: Dialect,
    request: Request,
    argument: str,
) -> Response:
    """Run each chat of a batch as a request of its own, all at once, and join the responses.

    Each is an exchange in the log. The first one that fails is the response.

    chat: answers one. work: runs what takes long for a request of so many bytes.
    """
    batch = cast(BatchDialect, dialect)  # only those have the route
    try:
        bodies = await work(
            len(request.body), lambda: batch.split_batch(payload.parse(request.body, limits))
        )
    except ProxyError:
        bodies = []  # to be logged like every request that can't be read
    if len(bodies) < 2:
        return await chat(dialect, request, argument)
    parts = [replace(request, body=payload.encode(body)) for body in bodies]

    async def run(part: Request) -> Response:
        return await chat(dialect, part, argument)

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(run(part)) for part in parts]
    responses = [task.result() for task in running]
    failed = next((response for response in responses if response.status >= 400), None)
    if failed is not None:
        return failed
    joined = batch.join_batch(
        [payload.parse(one.body) for one in responses if isinstance(one.body, bytes)]
    )
    return replace(responses[0], body=payload.encode(joined))
