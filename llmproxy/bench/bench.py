"""The benchmark: sends recorded requests to other models, measures and logs the responses.

It works with any backend: llm's models or another server. The responses are logged as
exchanges of a benchmark run, siblings of the recorded ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from ..core import chat
from ..core.backend import Backend
from ..core.errors import ProxyError, UpstreamTimeout
from ..dialects import Dialect, by_name
from ..recorder.capture import Capture
from ..recorder.exchange import ULID_TIME_CHARS, Exchange, Status, begun, new_id
from ..recorder.store import StoreError

CLIENT = "llmproxy bench"
COMMIT_S = 5.0  # long: a measured response is worth waiting for, and no client is


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run. Its fields are named as the command's flags, and stored as JSON.

    models: as the user names them. ids: the recorded exchanges to send again.
    repeat: how often each request is sent to each model. concurrency: requests at once, in all.
    warmup: requests to each model beforehand, which are not measured.
    max_tokens: limit of a response, unless the recorded request has a lower one.
    timeout_s: for a whole response. base_url, dialect: a server to use instead of llm.
    """

    models: Sequence[str]
    ids: Sequence[str]
    repeat: int = 1
    concurrency: int = 1
    warmup: int = 1
    max_tokens: int | None = None
    timeout_s: float | None = None
    base_url: str | None = None
    dialect: str | None = None


def read_plan(settings: Mapping[str, Any]) -> Plan | None:
    """Return the plan in a run's settings, None if the run was imported and has none."""
    known = {f.name: settings[f.name] for f in fields(Plan) if f.name in settings}
    return Plan(**known) if known else None


@dataclass(frozen=True)
class Task:
    """A request to a model; `repeat` counts from 1, 0 is a warm-up."""

    model: str
    id: str
    repeat: int


def list_tasks(plan: Plan, done: Collection[Task] = ()) -> list[Task]:
    """List the tasks that are not `done`, without warm-ups.

    The models take turns, and a different one goes first each time. So a slow hour of a
    provider affects all of them alike, and so does a network or disk that warms up.
    """
    planned = []
    for repeat in range(1, plan.repeat + 1):
        for index, id in enumerate(plan.ids):
            first = (index + repeat - 1) % len(plan.models)
            models = [*plan.models[first:], *plan.models[:first]]
            planned += [Task(model, id, repeat) for model in models]
    finished = set(done)
    return [task for task in planned if task not in finished]


# ---- measuring


class Log(Protocol):
    """The log's writer, as in `recorder.writer.Writer`."""

    def write(self, exchange: Exchange) -> Future[None]: ...
    async def committed(self, written: Future[None], wait_s: float) -> None: ...


class Bench:
    """A benchmark in progress.

    recorded: by the plan's ids, each exchange and its request as
        `log_source.exchange_request` returns it.
    on_exchange: called with each exchange when it has ended.
    """

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        recorded: Mapping[str, tuple[Exchange, chat.ChatRequest]],
        backend: Backend,
        log: Log,
        *,
        on_exchange: Callable[[Exchange], None],
    ) -> None:
        self._run_id = run_id
        self._plan = plan
        self._recorded = recorded
        self._backend = backend
        self._log = log
        self._on_exchange = on_exchange
        self._dialect = by_name(plan.dialect) if plan.base_url and plan.dialect else None
        self._has_log_failed = False

    async def measure(self, todo: Iterable[Task]) -> None:
        """Warm up the models, then run all tasks, `concurrency` at a time.

        If cancelled, stop running requests and log them as cancelled. If a response can't be
        logged, send no more: requests cost money.
        """
        todo = list(todo)
        rest = iter(todo)

        async def work() -> None:
            for task in rest:
                if self._has_log_failed:
                    return
                await self._measure(task)

        for task in self._warmups({task.model for task in todo}):
            if self._has_log_failed:
                return
            await self._measure(task)
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._plan.concurrency):
                workers.create_task(work())

    def _warmups(self, models: Collection[str]) -> Iterator[Task]:
        ids = [id for id in self._plan.ids if id in self._recorded]
        for number in range(self._plan.warmup):
            for model in filter(models.__contains__, self._plan.models):
                yield Task(model, ids[number % len(ids)], 0)

    async def _measure(self, task: Task) -> None:
        recorded, original = self._recorded[task.id]
        request = _request(original, task.model, self._plan.max_tokens)
        capture = self._capture(task, recorded, request)
        self._log.write(capture.begun)
        status: Status = "error"
        error: ProxyError | None = None
        try:
            async with asyncio.timeout(None) as limit:
                await self._run(request, recorded, capture, limit)
            status, capture.http_status = "ok", 200
        except ProxyError as exc:
            error = exc
        except TimeoutError:
            error = UpstreamTimeout(f"the response did not end within {self._plan.timeout_s:g} s")
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            ended = capture.ended(status, error, ended_at=_finished_at(capture))
            written = self._log.write(ended)
            self._on_exchange(ended)
        await self._log.committed(written, COMMIT_S)
        # Any other failure concerns this response alone.
        self._has_log_failed |= written.done() and isinstance(written.exception(), StoreError)

    async def _run(
        self,
        request: chat.ChatRequest,
        recorded: Exchange,
        capture: Capture,
        limit: asyncio.Timeout,
    ) -> None:
        """Run a request to its end; the timeout starts when its turn has come.

        Time to connect, if known, is kept in setup_ms and left out of all other times.
        """
        choice = await self._backend.choose(request)
        run = capture.run = choice.prepare(_recall(recorded, request, choice.model_id))
        try:
            queued_at = time.monotonic()
            has_waited = await run.wait_turn(None)
            if self._plan.timeout_s is not None:
                limit.reschedule(asyncio.get_running_loop().time() + self._plan.timeout_s)
            await run.start()
            waited_s = run.started_at - queued_at if has_waited else 0.0
            capture.queue_ms = waited_s * 1000 if has_waited else None
            capture.began_at = run.started_at - waited_s
            while batch := await run.read():
                capture.events += batch
        finally:
            await run.stop()

    def _capture(self, task: Task, recorded: Exchange, request: chat.ChatRequest) -> Capture:
        exchange = begun(
            new_id(),
            datetime.now(UTC),
            dialect=recorded.dialect if self._dialect is None else self._dialect.NAME,
            path=recorded.path if self._dialect is None else _chat_path(self._dialect),
            query="",
            client=CLIENT,
            headers=(),
            body=self._body(recorded, request),
            stream=True,
            model=task.model,
            messages=request.messages,
        )
        capture = Capture(
            replace(exchange, run_id=self._run_id, recorded_id=task.id, repeat=task.repeat),
            # Sorts before all others: `llm -c` continues the thread with the last id.
            thread_id="0" * ULID_TIME_CHARS + exchange.id[ULID_TIME_CHARS:],
            began_at=time.monotonic(),
        )
        # As recorded, including reasoning that only its own model gets back: so the response
        # becomes a sibling of the recorded one.
        turn = recorded.turn
        capture.messages = request.messages if turn is None else turn.messages
        capture.schema = request.schema
        return capture

    def _body(self, recorded: Exchange, request: chat.ChatRequest) -> Any:
        """Return the body sent to a server; for llm's models the recorded one with changes."""
        if self._dialect is not None:
            return self._dialect.render_request(request)[0]
        changed = {"model": request.model, "stream": True}
        if self._plan.max_tokens is not None:
            name = request.option_paths.get("max_tokens", "max_tokens")
            changed[name] = request.options["max_tokens"]
        return recorded.request.body | changed


def _chat_path(dialect: Dialect) -> str:
    return next(route.path for route in dialect.ROUTES if route.kind == "chat")


def _request(original: chat.ChatRequest, model: str, max_tokens: int | None) -> chat.ChatRequest:
    options = dict(original.options)
    if max_tokens is not None:
        options["max_tokens"] = min(options.get("max_tokens") or max_tokens, max_tokens)
    return replace(original, model=model, options=options, stream=True, include_usage=True)


def _recall(recorded: Exchange, request: chat.ChatRequest, model_id: str) -> chat.ChatRequest:
    """Return the request as the model got it when recorded, if it is the same model."""
    turn = recorded.turn
    if turn is None or turn.model != model_id:
        return request
    recalled = (
        index
        for index, message in enumerate(turn.messages)
        if message.role == "assistant" and message not in request.messages
    )
    return replace(request, messages=turn.messages, recalled=frozenset(recalled))


def _finished_at(capture: Capture) -> float | None:
    """Return when the response was complete, None if it never was."""
    last = capture.events[-1] if capture.events else None
    return last.at if last is not None and isinstance(last.event, chat.Finish) else None
