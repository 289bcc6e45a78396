"""The benchmark: sends recorded requests to other models, measures and logs the responses.

It works with any backend: llm's models or another server. The responses are logged as
exchanges of a benchmark run, siblings of the recorded ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from llm.parts import TextPart

from ..core import chat, payload
from ..core.backend import Backend, chat_path
from ..core.errors import (
    InvalidRequest,
    NoConnection,
    ProxyError,
    RateLimited,
    UpstreamTimeout,
    retry_after_s,
)
from ..dialects import by_name
from ..recorder.capture import Capture
from ..recorder.database import StoreError
from ..recorder.exchange import Exchange, begun, new_id
from ..recorder.summary import ULID_TIME_CHARS, Status

CLIENT = "llmproxy bench"
COMMIT_S = 5.0  # long: a measured response is worth waiting for, and no client is
MAX_WAIT_S = 300.0  # in all, for a request that a rate limit refuses: quotas of a minute, not a day
MAX_STEP_S = 60.0  # between two attempts, if the provider does not say how long to wait

Cache = Literal["as-is", "cold"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run. Its fields are named as the command's flags, and stored as JSON.

    models: as the user names them. ids: the recorded exchanges to send again.
    repeat: how often each request is sent to each model. concurrency: requests at once, in all.
    warmup: requests to each model beforehand, which are not measured.
    cache: "cold" puts a unique line first in each request, so that no cache has its prompt.
    max_tokens: limit of a response, unless the recorded request has a lower one.
    timeout_s: for a whole response. base_url, dialect: a server to use instead of llm.
    upstream: its name, if it is one.
    """

    models: list[str]
    ids: list[str]
    repeat: int = 1
    concurrency: int = 1
    warmup: int = 1
    cache: Cache = "as-is"
    max_tokens: int | None = None
    timeout_s: float | None = None
    base_url: str | None = None
    dialect: str | None = None
    upstream: str | None = None


def read_plan(settings: Mapping[str, Any]) -> Plan | None:
    """Return the plan in a run's settings; None if they have none, or a damaged one.

    A run that was imported has none.
    """
    try:
        plan = payload.load(Plan, settings, [])
    except InvalidRequest:
        return None
    return replace(plan, models=[*plan.models], ids=[*plan.ids]) if plan.models else None


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
    on_exchange: called with each exchange when it has ended, and with the seconds after which
        its request is sent again, None if it is not.
    """

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        recorded: Mapping[str, tuple[Exchange, chat.ChatRequest]],
        backend: Backend,
        log: Log,
        *,
        on_exchange: Callable[[Exchange, float | None], None],
    ) -> None:
        self._run_id = run_id
        self._plan = plan
        self._recorded = recorded
        self._backend = backend
        self._log = log
        self._on_exchange = on_exchange
        self._dialect = by_name(plan.dialect) if plan.base_url and plan.dialect else None
        self._has_log_failed = False
        self._refused_until: dict[str, float] = {}  # of models, by time.monotonic()
        self._gave_up: set[str] = set()  # models that refused a request for MAX_WAIT_S

    async def measure(self, todo: Iterable[Task]) -> None:
        """Warm up the models, then run all tasks, `concurrency` at a time.

        A request that a rate limit refuses (429) is sent again when the provider allows it, each
        attempt being an exchange of its own; until then, that model is sent nothing else.
        Warm-ups begin with a unique line, so that they don't put the prompts to be measured into
        the provider's cache.

        If cancelled, stop running requests and log them as cancelled. If a response can't be
        logged, send no more: requests cost money.

        Raises:
            NoConnection: a warm-up found no server; nothing else was sent.
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
        """Send a request until it is not refused.

        After a request that would have waited longer than MAX_WAIT_S, others to its model don't
        wait either, until one succeeds.
        """
        refusals, waited_s = 0, 0.0
        while not self._has_log_failed:
            await asyncio.sleep(self._refused_until.get(task.model, 0.0) - time.monotonic())
            most_s = 0.0 if task.model in self._gave_up else MAX_WAIT_S - waited_s
            wait_s = await self._send(task, refusals, most_s)
            if wait_s is None:
                return
            until = time.monotonic() + wait_s
            self._refused_until[task.model] = max(until, self._refused_until.get(task.model, 0.0))
            refusals, waited_s = refusals + 1, waited_s + wait_s

    async def _send(self, task: Task, refusals: int, most_s: float) -> float | None:
        """Send a request once; return the seconds after which to send it again, or None."""
        recorded, original = self._recorded[task.id]
        request = _request(original, task.model, self._plan.max_tokens)
        id = new_id()
        line = f"[{id}]\n" if self._plan.cache == "cold" or task.repeat == 0 else ""
        capture = self._capture(task, id, recorded, request, line)
        self._log.write(capture.begun)
        status: Status = "error"
        error: ProxyError | None = None
        wait_s: float | None = None
        try:
            async with asyncio.timeout(None) as limit:
                await self._run(request, recorded, line, capture, limit)
            status, capture.http_status = "ok", 200
            self._gave_up.discard(task.model)
        except ProxyError as exc:
            error = exc
            if isinstance(exc, NoConnection) and task.repeat == 0:
                raise
            wait_s = _wait_s(exc, refusals)
            if wait_s is not None and wait_s > most_s:
                wait_s = None
                self._gave_up.add(task.model)
        except TimeoutError:
            error = UpstreamTimeout(f"the response did not end within {self._plan.timeout_s:g} s")
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            ended = capture.ended(status, error, ended_at=_finished_at(capture))
            written = self._log.write(ended)
            self._on_exchange(ended, wait_s)
        await self._log.committed(written, COMMIT_S)
        # Any other failure concerns this response alone.
        self._has_log_failed |= written.done() and isinstance(written.exception(), StoreError)
        return wait_s

    async def _run(
        self,
        request: chat.ChatRequest,
        recorded: Exchange,
        line: str,
        capture: Capture,
        limit: asyncio.Timeout,
    ) -> None:
        """Run a request to its end; the timeout starts when its turn has come.

        Time to connect, if known, is kept in setup_ms and left out of all other times.
        """
        choice = await self._backend.choose(request)
        recalled = _recall(recorded, request, choice.model_id)
        run = capture.run = choice.prepare(_with_first_line(recalled, line))
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
                capture.add(batch)
        finally:
            await run.stop()

    def _capture(
        self, task: Task, id: str, recorded: Exchange, request: chat.ChatRequest, line: str
    ) -> Capture:
        exchange = begun(
            id,
            datetime.now(UTC),
            dialect=recorded.dialect if self._dialect is None else self._dialect.NAME,
            path=recorded.path if self._dialect is None else chat_path(self._dialect.ROUTES),
            query="",
            client=CLIENT,
            headers=(),
            body=self._body(recorded, request, line),
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
        # As recorded, including reasoning that only its own model gets back, and without the
        # line of a cold request, which is in the body: so the response becomes a sibling of the
        # recorded one.
        turn = recorded.turn
        capture.messages = request.messages if turn is None else turn.messages
        capture.schema = request.schema
        return capture

    def _body(self, recorded: Exchange, request: chat.ChatRequest, line: str) -> Any:
        """Return the body sent to a server; for llm's models the recorded one with changes."""
        if self._dialect is not None:
            return self._dialect.render_request(_with_first_line(request, line))[0]
        changed = {"model": request.model, "stream": True}
        if self._plan.max_tokens is not None:
            name = request.option_paths.get("max_tokens", "max_tokens")
            changed[name] = request.options["max_tokens"]
        body = recorded.request.body | changed
        if not line:
            return body
        if "messages" in body:
            return _body_with_first_line(body, line)
        return by_name(recorded.dialect).render_request(_with_first_line(request, line))[0]


def _request(original: chat.ChatRequest, model: str, max_tokens: int | None) -> chat.ChatRequest:
    options = dict(original.options)
    if max_tokens is not None:
        options["max_tokens"] = min(options.get("max_tokens") or max_tokens, max_tokens)
    return replace(original, model=model, options=options, stream=True, include_usage=True)


def _with_first_line(request: chat.ChatRequest, line: str) -> chat.ChatRequest:
    """Put a line first in the first message, the system prompt if there is one.

    Providers cache prompts by their beginnings, so none of them has this one. The places of the
    messages stay as they are.
    """
    if not line:
        return request
    first, *others = request.messages
    match first.parts:
        case [TextPart() as text, *rest]:
            parts = [replace(text, text=line + text.text), *rest]
        case rest:
            parts = [TextPart(line), *rest]
    return replace(request, messages=[replace(first, parts=parts), *others])


def _body_with_first_line(body: Mapping[str, Any], line: str) -> dict[str, Any]:
    """Do as `_with_first_line` in a body with messages."""
    if body.get("system"):  # Anthropic's place for it
        return {**body, "system": _content_with_first_line(body["system"], line)}
    first, *others = body["messages"]
    content = _content_with_first_line(first.get("content"), line)
    return {**body, "messages": [{**first, "content": content}, *others]}


def _content_with_first_line(content: Any, line: str) -> Any:
    if isinstance(content, list):
        return [{"type": "text", "text": line}, *content]
    return line + (content or "")


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
    return None if capture.finish is None else capture.last_at


# ---- rate limits


def _wait_s(error: ProxyError, refusals: int) -> float | None:
    """Return how long to wait before a refused request is sent again; None for other failures.

    Only a 429 is waited for, which is about the account's quota. An overload (503, 529) is a
    failure of the provider, as a user would meet it.
    """
    if not isinstance(error, RateLimited):
        return None
    if error.headers.get("x-should-retry") == "false":
        return None
    told_s = retry_after_s(error.headers)
    return min(2.0**refusals, MAX_STEP_S) if told_s is None else told_s
