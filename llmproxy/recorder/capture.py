"""The live record of one exchange, from its request to its end.

The app and the benchmark write the same record: what they capture here is the exchange
that the log gets, with the turn that llm's own tables hold of it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property

import llm
from llm.parts import Message

from ..core import chat
from ..core.backend import Run, Stamped
from ..core.errors import ProxyError, retry_after_s, shortened
from .exchange import Exchange, Match, Status, Turn, with_answer


class Capture:
    """An exchange that is being recorded.

    begun: the exchange as it began, without secrets (`exchange.begun`).
    thread_id: a new one, for the case that it continues no recorded conversation.
    began_at: by time.monotonic(); all times of the exchange count from here. A benchmark
        moves it to the moment at which the request was sent.
    messages: the conversation as it is logged; set it when it differs from the request's.
    run: set it once the request was prepared. model_id: of the model that answered, if no run
        did. queue_ms: how long it waited for its turn.
    http_status: set it once the client was sent one.
    """

    def __init__(self, begun: Exchange, *, thread_id: str, began_at: float) -> None:
        self.begun = begun
        self.thread_id = thread_id
        self.began_at = began_at
        self.messages: list[Message] = []
        self.schema: dict[str, object] | None = None
        self.match = Match([])
        self.run: Run | None = None
        self.model_id: str | None = None
        self.queue_ms: float | None = None
        self.http_status: int | None = None
        self.events: list[Stamped] = []
        self.estimated: tuple[str, ...] = ()

    def matched(self, match: Match) -> None:
        """Log the conversation that the request continues, as it was recalled."""
        self.match = match
        self.messages = match.messages

    @cached_property
    def response(self) -> chat.ChatResponse:
        """The response as far as it came; ask for it when no more events come."""
        return chat.collect(stamped.event for stamped in self.events)

    @property
    def ignored(self) -> tuple[str, ...]:
        """Paths of what was not carried, and of what is our estimate."""
        return (self.run.ignored if self.run else ()) + self.estimated

    def ended(
        self, status: Status, error: BaseException | None = None, *, ended_at: float | None = None
    ) -> Exchange:
        """Return the exchange as it ended.

        ended_at: by time.monotonic(), now if not given.
        """
        run, last = self.run, self.events[-1] if self.events else None
        finish = last.event if last is not None and isinstance(last.event, chat.Finish) else None
        if status == "error" and self.http_status is None:
            self.http_status = getattr(error, "status", 500)
        words = _in_words(error)
        redact = self.begun.redactor.text
        if isinstance(error, ProxyError):
            ended = replace(
                self.begun,
                error_status=error.status,
                error_code=None if error.code is None else redact(error.code),
                error_param=None if error.param is None else redact(error.param),
                retry_after_s=retry_after_s(error.headers, datetime.now(UTC)),
            )
        else:
            ended = self.begun
        ended = replace(
            ended,
            status=status,
            http_status=self.http_status,
            duration_ms=self._since(time.monotonic() if ended_at is None else ended_at),
            error=None if words is None else redact(words),
            ignored=self.ignored,
            previous_id=self.match.previous_id,
            link=self.match.link,
            recalled=len(self.match.recalled),
            model_used=run.model_id if run else self.model_id,
            replay_of=run.replay_of if run else None,
            setup_ms=run.setup_ms if run else None,
            queue_ms=self.queue_ms,
            is_first_run=run is not None and run.is_first,
        )
        events = [
            (self._since(stamped.at), stamped.event)
            for stamped in self.events
            if not isinstance(stamped.event, chat.Finish)
        ]
        return with_answer(ended, self._turn(), events, finish)

    def _turn(self) -> Turn | None:
        run = self.run
        if run is None or run.replay_of is not None:
            return None
        finish = self.response.finish
        counted = finish.llm_usage
        if counted == llm.Usage():  # not counted by a plugin
            counted = llm.Usage(finish.usage.input_tokens, finish.usage.output_tokens)
        last_at = self.events[-1].at if self.events else time.monotonic()
        return Turn(
            id=self.begun.id,
            thread_id=self.thread_id,
            model=run.model_id,
            resolved_model=finish.model,
            messages=self.messages,
            reply=self.response.messages,
            options=dict(run.options),
            tools=run.tools,
            schema=self.schema,
            usage=counted,
            response_json=finish.response_json,
            started=run.started,
            duration_ms=max(int((last_at - run.started_at) * 1000), 0),
        )

    def _since(self, at: float) -> float:
        return (at - self.began_at) * 1000


def _in_words(error: BaseException | None) -> str | None:
    match error:
        case None | asyncio.CancelledError():
            return None
        case ProxyError():
            return error.full_message
    return shortened(f"{type(error).__name__}: {error}")
