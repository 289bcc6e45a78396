"""Parse another server's response of /api/chat or /api/generate, whole or streamed.

Spec: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm.parts import StreamEvent

from ...core import chat, finish_reasons, payload
from ...core.errors import UpstreamError
from ...core.usage import Usage
from .models_and_errors import parse_error
from .schema import ChatResponse, ResponseMessage, ToolCall


def parse_response(body: Any, headers: Mapping[str, str] | None = None) -> chat.ChatResponse:
    """Parse another server's whole response; its stream, collected, gives the same.

    Raises:
        ProxyError: the error that the body reports, or UpstreamError if it is no response.
    """
    parser = StreamParser()
    events = parser.feed_value(body)
    if not parser.has_content:
        raise UpstreamError("the upstream's answer has neither a message nor a response")
    return chat.collect(events + parser.finish(default="stop"))


class StreamParser:
    """Parses another server's lines into events. Feed them in order.

    The Finish comes with the line that is `done`. `model` is the name of the model that
    responds, once a line has named it.
    """

    def __init__(self) -> None:
        self.model: str | None = None
        self.has_content = False
        self._next_index = 0
        self._prose: tuple[str, int] | None = None  # family and part_index of the open part
        self._call_count = 0
        self._last: ChatResponse | None = None
        self._ignored: dict[str, None] = {}
        self._is_finished = False

    def feed(self, frame: bytes) -> list[chat.Event]:
        """Return the events of one line.

        Raises:
            ProxyError: the error that the line reports; UpstreamError if it is no response.
        """
        if self._is_finished:
            return []
        return self.feed_value(payload.parse_upstream(frame.decode("utf-8", "replace"), "a line"))

    def feed_value(self, value: Any) -> list[chat.Event]:
        """Return the events of a line's JSON value.

        Raises:
            ProxyError: as `feed`.
        """
        if self._is_finished:
            return []
        if isinstance(value, dict) and value.get("error"):
            raise parse_error(200, value)
        unknown: list[str] = []
        line = payload.load_upstream(ChatResponse, value, unknown)
        self._ignored |= dict.fromkeys(unknown)
        self.model = self.model or line.model or None
        if line.logprobs:
            self._ignored["logprobs"] = None
        self.has_content |= line.message is not None or line.response is not None
        message = line.message or ResponseMessage()
        if message.images:
            self._ignored["message.images"] = None
        events = [
            *self._prose_events("reasoning", message.thinking or line.thinking or ""),
            *self._prose_events("text", message.content or line.response or ""),
            *self._call_events([*(message.tool_calls or ()), *(line.tool_calls or ())]),
        ]
        if line.done:
            self._last = line
            events += self.finish()
        return events

    def end(self) -> list[chat.Event]:
        """Return nothing: the Finish has come with a line.

        Raises:
            UpstreamError: the stream was cut.
        """
        return [] if self._is_finished else self.finish()

    def finish(self, default: str | None = None) -> list[chat.Event]:
        """Return the Finish; `default` is the reason if no line was the last."""
        if self._is_finished:
            return []
        if self._last is None and default is None:
            raise UpstreamError("the upstream's stream ended before its answer did")
        last = self._last or ChatResponse()
        reason = last.done_reason or "stop"  # older servers send none
        finish_reasons.check(reason)
        self._is_finished = True
        durations = chat.Durations(
            last.total_duration,
            last.load_duration,
            last.prompt_eval_duration,
            last.eval_duration,
        )
        return [
            chat.Finish(
                finish_reasons.finish_reason(reason, has_calls=bool(self._call_count)),
                usage=Usage(last.prompt_eval_count, last.eval_count),
                model=self.model,
                durations=None if durations == chat.Durations() else durations,
                ignored=tuple(self._ignored),
            )
        ]

    def _prose_events(self, family: str, text: str) -> Iterator[chat.Event]:
        if not text:
            return
        if self._prose is None or self._prose[0] != family:
            self._prose = family, self._new_index()
        yield StreamEvent(family, text, part_index=self._prose[1])

    def _new_index(self) -> int:
        self._next_index += 1
        return self._next_index - 1

    def _call_events(self, calls: Sequence[ToolCall]) -> Iterator[chat.Event]:
        for call in calls:
            self._prose = None
            index = self._new_index()
            id_ = call.id or chat.counted_call_id(self._call_count)
            self._call_count += 1
            yield StreamEvent("tool_call_name", call.function.name, index, id_)
            arguments = call.function.arguments
            if isinstance(arguments, dict):
                arguments = payload.encode(arguments).decode()
            if arguments:
                yield StreamEvent("tool_call_args", arguments, index, id_)
