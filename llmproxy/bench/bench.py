"""Recorded requests, asked of other models again: each answer is measured and kept.

Who is asked is given as a function: llm's models, or a server by our own client. What
comes of it are exchanges of a run, siblings of those that were recorded.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

import llm

from ..backends.upstream import asking
from ..core import backend, chat
from ..core.errors import ProxyError, UpstreamTimeout
from ..dialects import Dialect, by_name
from ..recorder.exchange import Exchange, Status, Turn, begun
from ..recorder.store import StoreError

__all__ = [
    "Ask",
    "Attempt",
    "Bench",
    "Plan",
    "Task",
    "ask_models",
    "ask_server",
    "plan_of",
    "tasks",
]

CLIENT = "llmproxy bench"
COMMIT_S = 5.0  # a measured answer is worth waiting for; nobody else waits
ULID_TIME_CHARS = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run asks, by the names of the command's flags; its JSON form is a run's settings.

    models: as the user names them; nothing else is asked. ids: of recorded exchanges.
    repeat: how often each model is asked each; concurrency: requests at one time, in all.
    warmup: requests to each model before, which count in nothing.
    max_tokens: of an answer, where the recorded request does not ask for fewer.
    timeout_s: of an answer, whole. base_url, dialect: a server to ask in place of llm.
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


def plan_of(settings: Mapping[str, Any]) -> Plan | None:
    """Read a run's settings; None where there are none, since it was imported."""
    known = {f.name: settings[f.name] for f in fields(Plan) if f.name in settings}
    return Plan(**known) if known else None


@dataclass(frozen=True)
class Task:
    """One request to one model; `repeat` counts from 1, and is 0 for a warm-up."""

    model: str
    id: str
    repeat: int


def tasks(plan: Plan, done: Collection[Task] = ()) -> list[Task]:
    """List what is to be measured and is not `done`, warm-ups apart.

    The models take turns, and another one begins each time: a provider's slow hour is
    then all of theirs, and what one of them warms up (a network, a disk) is as well.
    """
    planned = []
    for repeat in range(1, plan.repeat + 1):
        for place, id in enumerate(plan.ids):
            first = (place + repeat - 1) % len(plan.models)
            models = [*plan.models[first:], *plan.models[:first]]
            planned += [Task(model, id, repeat) for model in models]
    there = set(done)
    return [task for task in planned if task not in there]


# ---- asking


@dataclass
class Attempt:
    """An answer as far as it has come in.

    began_at: by time.monotonic(), when sending it began, or the model was asked;
    setup_ms: what connecting took before that, None where it can't be told.
    queue_ms: how long it waited after that for the model's turn, None where it did not.
    is_first_run: as backend.Run has it.
    begins: called when it is its turn, from when on its time is limited.
    model_id, options, tools, ignored: as backend.Run has them.
    """

    begins: Callable[[], None]
    began_at: float = field(default_factory=time.monotonic)
    setup_ms: float | None = None
    queue_ms: float | None = None
    is_first_run: bool = False
    model_id: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[llm.Tool, ...] = ()
    ignored: tuple[str, ...] = ()
    stamped: list[backend.Stamped] = field(default_factory=list)


Ask = Callable[[chat.ChatRequest, backend.Recollect, Attempt], Awaitable[None]]
"""Asks, and fills the attempt; raises ProxyError where the answer fails."""


def ask_models(answering: backend.Backend) -> Ask:
    """Ask llm's models. Their plugins connect by themselves, within the time to first event."""

    async def ask(
        request: chat.ChatRequest, recollect: backend.Recollect, attempt: Attempt
    ) -> None:
        answer = await answering.answer(request, recollect)
        attempt.model_id = answer.model_id
        attempt.options = answer.options
        attempt.tools = answer.tools
        attempt.ignored = answer.ignored
        try:
            attempt.began_at = time.monotonic()
            has_waited = await answer.wait_turn(None)
            await answer.begin()
            if has_waited:
                attempt.queue_ms = (answer.started_at - attempt.began_at) * 1000
            else:
                attempt.began_at = answer.started_at
            attempt.is_first_run = answer.is_first
            attempt.begins()
            while batch := await answer.read():
                attempt.stamped += batch
        finally:
            await answer.stop()

    return ask


def ask_server(
    dialect: Dialect, base_url: str, *, key: str | None, tls: ssl.SSLContext | None
) -> Ask:
    """Ask a server by our own client, whose connecting is no part of an answer's time."""

    async def ask(
        request: chat.ChatRequest, recollect: backend.Recollect, attempt: Attempt
    ) -> None:
        attempt.begins()
        async with asking(dialect, base_url, request, key=key, tls=tls) as answer:
            attempt.began_at = answer.times.connected
            attempt.setup_ms = (answer.times.connected - answer.times.began) * 1000
            attempt.model_id = request.model
            attempt.options = request.options
            attempt.tools = request.tools
            attempt.ignored = answer.ignored
            async for stamped in answer:
                attempt.stamped.append(stamped)

    return ask


# ---- measuring


class Log(Protocol):
    """What keeps the answers: `recorder.writer.Writer`."""

    def write(self, exchange: Exchange) -> Future[None]: ...
    async def committed(self, written: Future[None], wait_s: float) -> None: ...


class Bench:
    """A run under way.

    recorded: the exchanges that the plan's ids mean, each with its request as
        `sources.exchange_request` reads it.
    new_id: gives lower-case ULIDs. tell: is told of each answer when it is over.
    """

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        recorded: Mapping[str, tuple[Exchange, chat.ChatRequest]],
        ask: Ask,
        log: Log,
        *,
        new_id: Callable[[], str],
        tell: Callable[[Exchange], None],
    ) -> None:
        self._run_id = run_id
        self._plan = plan
        self._recorded = recorded
        self._ask = ask
        self._log = log
        self._new_id = new_id
        self._tell = tell
        self._dialect = by_name(plan.dialect) if plan.base_url and plan.dialect else None
        self._has_lost = False

    async def measure(self, todo: Iterable[Task]) -> None:
        """Warm those up that are to be asked, then ask all that is to do, so many at a time.

        Cancelled, it ends what is under way, and keeps that as cancelled. Where an answer
        can be kept nowhere no more is asked: somebody pays for each.
        """
        todo = list(todo)
        rest = iter(todo)

        async def work() -> None:
            for task in rest:
                if self._has_lost:
                    return
                await self._measure(task)

        for task in self._warmups({task.model for task in todo}):
            if self._has_lost:
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
        recorded, asked = self._recorded[task.id]
        request = _request(asked, task.model, self._plan.max_tokens)
        exchange = self._begun(task, recorded, request)
        self._log.write(exchange)
        limit = asyncio.timeout(None)
        attempt = Attempt(partial(self._limit, limit))
        started, started_at = datetime.now(UTC), attempt.began_at
        status: Status = "error"
        error = None
        try:
            async with limit:
                await self._ask(request, _recollect(recorded, request), attempt)
            status = "ok"
        except ProxyError as exc:
            error = exc
        except TimeoutError:
            error = UpstreamTimeout(f"no end within {self._plan.timeout_s:g} s")
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            started += timedelta(seconds=attempt.began_at - started_at)
            ended = _ended(exchange, attempt, recorded, request, started, status, error)
            written = self._log.write(ended)
            self._tell(ended)
        await self._log.committed(written, COMMIT_S)
        # Any other failure is one strange answer's own.
        self._has_lost |= written.done() and isinstance(written.exception(), StoreError)

    def _limit(self, limit: asyncio.Timeout) -> None:
        if self._plan.timeout_s is not None:
            limit.reschedule(asyncio.get_running_loop().time() + self._plan.timeout_s)

    def _begun(self, task: Task, recorded: Exchange, request: chat.ChatRequest) -> Exchange:
        exchange = begun(
            self._new_id(),
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
        return replace(exchange, run_id=self._run_id, recorded_id=task.id, repeat=task.repeat)

    def _body(self, recorded: Exchange, request: chat.ChatRequest) -> Any:
        """What is sent to a server; of llm's models the recorded body, with what is changed."""
        if self._dialect is not None:
            return self._dialect.render_request(request)[0]
        changed = {"model": request.model, "stream": True}
        if self._plan.max_tokens is not None:
            name = request.option_paths.get("max_tokens", "max_tokens")
            changed[name] = request.options["max_tokens"]
        return recorded.request.body | changed


def _chat_path(dialect: Dialect) -> str:
    return next(route.path for route in dialect.ROUTES if route.kind == "chat")


def _request(asked: chat.ChatRequest, model: str, max_tokens: int | None) -> chat.ChatRequest:
    options = dict(asked.options)
    if max_tokens is not None:
        options["max_tokens"] = min(options.get("max_tokens") or max_tokens, max_tokens)
    return replace(asked, model=model, options=options, stream=True, include_usage=True)


def _recollect(recorded: Exchange, request: chat.ChatRequest) -> backend.Recollect:
    """Give the model that was recorded what it was given then: its own reasoning among it."""

    async def recollect(model_id: str) -> chat.ChatRequest:
        turn = recorded.turn
        if turn is None or turn.model != model_id:
            return request
        recalled = (
            place
            for place, message in enumerate(turn.messages)
            if message.role == "assistant" and message not in request.messages
        )
        return replace(request, messages=turn.messages, recalled=frozenset(recalled))

    return recollect


def _ended(
    exchange: Exchange,
    attempt: Attempt,
    recorded: Exchange,
    request: chat.ChatRequest,
    started: datetime,
    status: Status,
    error: ProxyError | None,
) -> Exchange:
    stamped = attempt.stamped
    finish = stamped[-1].event if stamped else None
    ended_at = stamped[-1].at if isinstance(finish, chat.Finish) else time.monotonic()
    ended = exchange.ended(
        status,
        http_status=200 if status == "ok" else None if error is None else error.status,
        duration_ms=_since(attempt, ended_at),
        turn=_turn(exchange, attempt, recorded, request, started, ended_at),
        events=[
            (_since(attempt, one.at), one.event)
            for one in stamped
            if not isinstance(one.event, chat.Finish)
        ],
        finish=finish if isinstance(finish, chat.Finish) else None,
        error=None if error is None else error.words,
        ignored=attempt.ignored,
        queue_ms=attempt.queue_ms,
        is_first_run=attempt.is_first_run,
    )
    return replace(ended, setup_ms=attempt.setup_ms)


def _turn(
    exchange: Exchange,
    attempt: Attempt,
    recorded: Exchange,
    request: chat.ChatRequest,
    started: datetime,
    ended_at: float,
) -> Turn | None:
    if attempt.model_id is None:
        return None
    response = chat.collect(one.event for one in attempt.stamped)
    finish = response.finish
    counted = finish.llm_usage
    if counted == llm.Usage():  # no plugin has counted
        counted = llm.Usage(finish.usage.input_tokens, finish.usage.output_tokens)
    return Turn(
        id=exchange.id,
        # Before all others: `llm -c` goes on with the thread whose id is the last.
        thread_id="0" * ULID_TIME_CHARS + exchange.id[ULID_TIME_CHARS:],
        model=attempt.model_id,
        resolved_model=finish.model,
        # As they were recorded, reasoning included that only its own model is given again:
        # so the answer hangs beside the recorded one.
        messages=request.messages if recorded.turn is None else recorded.turn.messages,
        reply=response.messages,
        options=dict(attempt.options),
        tools=attempt.tools,
        schema=request.schema,
        usage=counted,
        response_json=finish.response_json,
        started=started + timedelta(milliseconds=attempt.queue_ms or 0),
        duration_ms=int(_since(attempt, ended_at) - (attempt.queue_ms or 0)),
    )


def _since(attempt: Attempt, at: float) -> float:
    return (at - attempt.began_at) * 1000
