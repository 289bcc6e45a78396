"""The live record of one exchange, from its request to its end.

The app and the benchmark write the same record: what they capture here is the exchange
that the log gets, with the turn that llm's own tables hold of it.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import time
from array import array
from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import llm
from llm.parts import Message, StreamEvent

from ..core import chat
from ..core.backend import NO_UPSTREAM, Run, Stamped
from ..core.errors import ProxyError, shortened
from .exchange import Exchange, Match, Turn, changed, with_answer, with_error
from .redact import Redactor
from .summary import Status
from .timeline import TimedEvents

RAW = "raw_response"  # in a turn's response_json: the response itself, which could not be read


class Capture:
    """An exchange that is being recorded.

    begun: the exchange as it began, without secrets (`exchange.begun`).
    thread_id: a new one, for the case that it continues no recorded conversation.
    began_at: by time.monotonic(); all times of the exchange count from here. A benchmark
        moves it to the moment at which the request was sent.
    messages: the conversation as it is logged; set it when it differs from the request's.
    run: set it once the request was prepared. model_id: of the model that answered, if no run
        did. queue_ms: how long it waited for its turn.
    raw_response: of a response whose copy could not be read, see `raw_response_json`; kept in
        place of what was read.
    upstream: set it if an upstream responds without a run.
    overhead_ms: the time that the proxy itself has taken, if it served the request.
    http_status: set it once the client was sent one.
    finish: the end of the response, once it has been added.
    last_at: when the last event came, by time.monotonic(); None before any has.
    reply_words: what lists show as the reply, if that is no message.
    ignored_late: paths that are known only at the response's end, of what it lacks and of what
        in it is our estimate.
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
        self.overhead_ms: float | None = None
        self.upstream = NO_UPSTREAM
        self.http_status: int | None = None
        self.finish: chat.Finish | None = None
        self.last_at: float | None = None
        self._events: list[StreamEvent] = []
        self._times = array("d")
        self.reply_words = ""
        self.raw_response: dict[str, object] | None = None
        self.ignored_late: tuple[str, ...] = ()

    def matched(self, match: Match) -> None:
        """Log the conversation that the request continues, as it was recalled."""
        self.match = match
        self.messages = match.messages

    def add(self, batch: Sequence[Stamped]) -> None:
        """Add the events that came next."""
        for at, event in batch:
            if isinstance(event, chat.Finish):
                self.finish = event
            else:
                self._events.append(event)
                self._times.append(at)
        if batch:
            self.last_at = batch[-1].at

    @property
    def first_at(self) -> float | None:
        """When the first event came, by time.monotonic(); None before any has."""
        return self._times[0] if self._times else self.last_at

    @cached_property
    def response(self) -> chat.ChatResponse:
        """The response as far as it came; ask for it when no more events come."""
        return chat.collect(chain(self._events, [self.finish] if self.finish else ()))

    @property
    def ignored(self) -> tuple[str, ...]:
        """Paths of what was not carried, or is our estimate."""
        return (self.run.ignored if self.run else ()) + self.ignored_late

    def ended(
        self, status: Status, error: BaseException | None = None, *, ended_at: float | None = None
    ) -> Exchange:
        """Return the exchange as it ended.

        ended_at: by time.monotonic(), now if not given.
        """
        run = self.run
        if status == "error" and self.http_status is None:
            self.http_status = getattr(error, "status", 500)
        ended = self.begun
        match error:
            case ProxyError():
                ended = with_error(ended, error)
            case None | asyncio.CancelledError():
                pass
            case _:
                said = shortened(f"{type(error).__name__}: {error}")
                ended = changed(ended, error=ended.redactor.text(said))
        used = run.upstream if run else self.upstream
        ended = changed(
            ended,
            status=status,
            http_status=self.http_status,
            duration_ms=self._since(time.monotonic() if ended_at is None else ended_at),
            ignored=self.ignored,
            previous_id=self.match.previous_id,
            link=self.match.link,
            recalled=len(self.match.recalled),
            history=self.match.history,
            model_used=run.model_id if run else self.model_id,
            replay_of=run.replay_of if run else None,
            setup_ms=run.setup_ms if run else None,
            queue_ms=self.queue_ms,
            overhead_ms=self.overhead_ms,
            is_first_run=run is not None and run.is_first,
            upstream=used.name,
            refused_by=used.refused_by or None,
            upstream_request_id=used.request_id and ended.redactor.text(used.request_id),
        )
        events = TimedEvents(self._events, self._times, self.began_at)
        reply = self.response.messages if self._events else []
        answered = with_answer(ended, self._turn(), events, self.finish, reply)
        return changed(answered, reply_words=self.reply_words) if self.reply_words else answered

    def _turn(self) -> Turn | None:
        run = self.run
        if run is None or run.replay_of is not None:
            return None
        finish = self.response.finish
        counted = finish.llm_usage
        if counted == llm.Usage():  # not counted by a plugin
            counted = llm.Usage(finish.usage.input_tokens, finish.usage.output_tokens)
        last_at = time.monotonic() if self.last_at is None else self.last_at
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
            response_json=self.raw_response or finish.response_json,
            started=run.started,
            duration_ms=max(int((last_at - run.started_at) * 1000), 0),
        )

    def _since(self, at: float) -> float:
        return (at - self.began_at) * 1000


def raw_response_json(raw: bytes, redactor: Redactor) -> dict[str, object]:
    """Return what a turn's response_json has of a response that could not be read.

    Keys are removed, since it may be an error that quotes one. A megabyte takes up to 0.2 s.
    """
    try:
        text, _ = codecs.utf_8_decode(raw)  # it may be cut within a character
        return {RAW: redactor.text(text)}
    except UnicodeDecodeError:
        cleaned = redactor.text(raw.decode("latin-1")).encode("latin-1")
        return {f"{RAW}_base64": base64.b64encode(cleaned).decode()}
