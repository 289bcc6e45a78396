"""Render a response as an object, or as a stream of events.

Spec: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from llm.parts import StreamEvent, TextPart

from ...core import chat, payload
from ...core.compaction import encode_compaction
from ...core.errors import ProxyError
from ...core.openai_api import render_error
from ...core.usage import Usage
from ...transport import framing
from .items import (
    CALL_PREFIXES,
    ID_PREFIX,
    call_item,
    call_kind,
    encrypted_content,
    finish_output,
    is_shown_server_tool,
    item_id,
    message_item,
    openai_metadata,
    reasoning_item,
    render_output,
    server_item,
    text_part,
)

INCOMPLETE_REASONS: Mapping[str, str] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}

# What a request that we do not know would have been answered with.
_DEFAULT_FIELDS: Mapping[str, Any] = {
    "background": False,
    "frequency_penalty": 0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def _render_object(
    envelope: chat.Envelope,
    status: str,
    output: list[dict[str, Any]],
    *,
    usage: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
    incomplete: str | None = None,
) -> dict[str, Any]:
    """Render a response with all keys that schema checkers need."""
    return {
        "id": ID_PREFIX + envelope.id,
        "object": "response",
        "created_at": envelope.created,
        "status": status,
        "completed_at": None,  # renderers have no clock
        "error": error,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "model": envelope.model,
        "output": output,
        **envelope.echo.get("fields", _DEFAULT_FIELDS),
        "usage": usage,
    }


def _render_finished(
    envelope: chat.Envelope, output: list[dict[str, Any]], finish: chat.Finish
) -> dict[str, Any]:
    incomplete = INCOMPLETE_REASONS.get(finish.reason)
    status = "incomplete" if incomplete else "completed"
    usage = _render_usage(finish.usage)
    return _render_object(envelope, status, output, usage=usage, incomplete=incomplete)


def _render_usage(usage: Usage) -> dict[str, Any] | None:
    """Render the usage, counted as ours is. None if the provider gave no counts."""
    if usage.input_tokens is None and usage.output_tokens is None:
        return None
    input_tokens, output_tokens = usage.input_tokens or 0, usage.output_tokens or 0
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": input_tokens + output_tokens,
    }


def render_response(response: chat.ChatResponse, envelope: chat.Envelope) -> dict[str, Any]:
    """Render a response as an object, with the same content as its stream.

    That of a request to compact a conversation is the compacted one.

    Spec: https://platform.openai.com/docs/api-reference/responses/object
    """
    output = _output(response, envelope)
    kept = envelope.echo.get("kept")
    if kept is None:
        return _render_finished(envelope, output, response.finish)
    return {
        "id": ID_PREFIX + envelope.id,
        "object": "response.compaction",
        "created_at": envelope.created,
        "output": [*kept, *output],
        "usage": _render_usage(response.finish.usage),
    }


def _output(response: chat.ChatResponse, envelope: chat.Envelope) -> list[dict[str, Any]]:
    if not envelope.echo.get("is_compaction"):
        return render_output(response.parts, envelope, response)
    texts = [part.text for part in response.parts if isinstance(part, TextPart)]
    return [_compaction_item(envelope, "".join(texts))]


def _compaction_item(envelope: chat.Envelope, summary: str) -> dict[str, Any]:
    return {
        "id": item_id("cmp", envelope, 0),
        "type": "compaction",
        "encrypted_content": encode_compaction(summary),
    }


# By the status of an exchange that did not end well.
_STATUSES: Mapping[str, str] = {"running": "in_progress", "cancelled": "cancelled"}


def render_stored(stored: chat.StoredResponse) -> dict[str, Any]:
    """Render a recorded response as it was sent.

    Spec: https://platform.openai.com/docs/api-reference/responses/get
    """
    if stored.status == "ok":
        return render_response(stored.response, stored.envelope)
    status = _STATUSES.get(stored.status, "failed")
    error = None if stored.error is None else _failure(stored.error)
    output = _output(stored.response, stored.envelope)
    return _render_object(stored.envelope, status, output, error=error)


def _failure(error: ProxyError) -> dict[str, Any]:
    """Render an error inside a response."""
    shown = render_error(error)["error"]
    return {"code": shown["code"] or shown["type"], "message": shown["message"]}


# ---- the stream


class StreamRenderer:
    """Renders events as those of this API. Feed in order; Finish is last.

    Every event has the next `sequence_number`. A part is an item of the output: text and
    reasoning end when another item begins; calls, which may come at once, when text or
    reasoning follows, or at the end. Text that comes between the pieces of a call's arguments
    waits for them. Of tools that the provider ran only OpenAI's own are shown.

    Spec: https://platform.openai.com/docs/api-reference/responses-streaming
    """

    def __init__(self, envelope: chat.Envelope) -> None:
        self._envelope = envelope
        self._number = 0  # of the next event
        self._output: list[dict[str, Any]] = []  # whole items, and open ones at their beginning
        self._prose: _Prose | None = None  # the open text or reasoning
        self._reasoning: dict[int | None, _Prose] = {}  # also ended ones, by part_index
        self._calls: dict[int | None, _Call] = {}  # open ones
        self._ended: set[int | None] = set()  # parts of calls
        self._unbegun: deque[_Call] = deque()  # calls that wait for their arguments, in order
        self._server_arguments: dict[int | None, list[str]] = {}  # by part_index
        self._server_calls: dict[str | None, list[str]] = {}  # by tool_call_id
        self._result: tuple[StreamEvent, list[str]] | None = None  # of a server tool, its text
        self._held: list[StreamEvent] = []
        self._is_compaction = bool(envelope.echo.get("is_compaction"))
        self._summary: list[str] = []
        # A delta's frame before and after its text, the same within an item.
        self._before = self._after = b""
        self._delta_of: _Prose | _Call | None = None
        self._renewed: dict[int | None, _Prose] = {}  # ended reasoning, whose metadata came again

    def start(self) -> list[bytes]:
        """Return response.created and response.in_progress."""
        # Encoded once: with an agent's tools it has tens of kilobytes.
        response = payload.encode(_render_object(self._envelope, "in_progress", []))
        frames = []
        for type_ in (b"response.created", b"response.in_progress"):
            data = b'{"type":"%b","response":%b,"sequence_number":%d}'
            frames.append(framing.encode_sse(data % (type_, response, self._number), type_))
            self._number += 1
        return frames

    def feed(self, event: chat.Event) -> list[bytes]:
        """Return the frames of one event: none if it must wait, or if the API has no item."""
        if isinstance(event, chat.Finish):
            return self._end(event)
        if self._is_compaction:
            if event.type == "text":
                self._summary.append(event.chunk)
            return []
        if self._calls or self._held:
            if self._must_wait(event):
                self._held.append(event)
                return []
        return self._show(event)

    def idle(self) -> list[bytes]:
        """Return a keep-alive: a comment, which every client skips."""
        return [framing.SSE_PING]

    def fail(self, error: ProxyError) -> list[bytes]:
        """Return response.failed, a proper end here; before the start, an error event."""
        if self._number == 0:
            shown = render_error(error)["error"]
            fields = {name: shown[name] for name in ("code", "message", "param")}
            return [self._event("error", {**fields, "error": shown})]
        output = [item for item in self._output if item.get("status") != "in_progress"]
        response = _render_object(self._envelope, "failed", output, error=_failure(error))
        return [self._event("response.failed", {"response": response})]

    # -- frames

    def _event(self, type_: str, fields: Mapping[str, Any]) -> bytes:
        data = {"type": type_, **fields, "sequence_number": self._number}
        self._number += 1
        return framing.encode_sse(payload.encode(data), type_)

    def _delta(self, text: str) -> bytes:
        """Return the frame of a piece of the open text, reasoning or arguments."""
        text_json = framing.escape_line_ends(payload.encode_string(text).encode())
        number = self._number
        self._number = number + 1
        return b"%b%b%b%d}\n\n" % (self._before, text_json, self._after, number)

    def _set_delta(self, type_: str, place: dict[str, Any], after: str = "") -> None:
        head = payload.encode({"type": type_, **place})
        self._before = b'event: %b\ndata: %b,"delta":' % (type_.encode(), head[:-1])
        self._after = b'%b,"sequence_number":' % after.encode()
        self._delta_of = None

    def _begin_item(self, item: dict[str, Any]) -> bytes:
        self._output.append(item)
        fields = {"output_index": len(self._output) - 1, "item": item}
        return self._event("response.output_item.added", fields)

    def _end_item(self, index: int, item: dict[str, Any]) -> bytes:
        self._output[index] = item
        return self._event("response.output_item.done", {"output_index": index, "item": item})

    # -- events

    def _must_wait(self, event: StreamEvent) -> bool:
        """Whether an event comes between the pieces of a call's arguments."""
        if event.part_index in self._calls:
            return False
        if self._held:
            return True
        is_call = event.type.startswith("tool_call") and not event.server_executed
        return (
            not is_call
            and self._begins_item(event)
            and not all(call.is_whole for call in self._calls.values())
        )

    def _begins_item(self, event: StreamEvent) -> bool:
        match event.type:
            case "text":
                return bool(event.chunk)
            case "reasoning":
                is_new = event.part_index not in self._reasoning
                encrypted = encrypted_content(event.provider_metadata)
                return bool(event.chunk or (is_new and encrypted))
            case "tool_result":
                return is_shown_server_tool(event.tool_name, event.tool_call_id)
        return False

    def _show(self, event: StreamEvent) -> list[bytes]:
        match event:
            case StreamEvent(type="text", chunk=text):
                if not text:
                    return []
                prose = self._prose
                if prose is not None and prose.part == event.part_index and prose.is_text:
                    prose.texts.append(text)
                    return [self._delta(text)]
                return [*self._begin_prose(event.part_index, is_text=True), *self._say(text)]
            case StreamEvent(type="reasoning"):
                return self._show_reasoning(event)
            case StreamEvent(type="tool_result"):
                return self._show_result(event)
            case StreamEvent(server_executed=True):
                return self._server_call(event)
        return self._show_call(event)

    def _say(self, text: str) -> list[bytes]:
        assert self._prose is not None
        self._prose.texts.append(text)
        return [self._delta(text)]

    def _show_reasoning(self, event: StreamEvent) -> list[bytes]:
        known = self._reasoning.get(event.part_index)
        metadata = openai_metadata(event.provider_metadata)
        frames: list[bytes] = []
        if known is None:
            if not self._begins_item(event):
                return []
            frames = self._begin_prose(event.part_index, is_text=False)
            known = self._prose
            assert known is not None
        known.metadata |= metadata
        if event.chunk and known is self._prose:
            frames += self._begin_summary(known) if not known.texts else []
            frames += self._say(event.chunk)
        if known is not self._prose and metadata:
            # llm repeats the encrypted text at the end, as the whole response has it.
            self._renewed[event.part_index] = known
        return frames

    # -- text and reasoning

    def _begin_prose(self, part: int | None, *, is_text: bool) -> list[bytes]:
        frames = self._close()
        prose = self._prose = _Prose(part, len(self._output), is_text)
        if not is_text:
            self._reasoning[part] = prose
            return [*frames, self._begin_item(prose.item(self._envelope))]
        id_ = prose.id(self._envelope)
        frames.append(self._begin_item(message_item(id_, "in_progress", [])))
        place = {"item_id": id_, "output_index": prose.index, "content_index": 0}
        fields = {**place, "part": text_part("")}
        frames.append(self._event("response.content_part.added", fields))
        self._set_delta("response.output_text.delta", place, ',"logprobs":[]')
        return frames

    def _begin_summary(self, prose: _Prose) -> list[bytes]:
        place = prose.summary_place(self._envelope)
        self._set_delta("response.reasoning_summary_text.delta", place)
        part = {"type": "summary_text", "text": ""}
        return [self._event("response.reasoning_summary_part.added", {**place, "part": part})]

    def _end_prose(self, finish: chat.Finish | None, *, before_call: bool) -> list[bytes]:
        prose, self._prose = self._prose, None
        if prose is None:
            return []
        text = "".join(prose.texts)
        item = prose.item(self._envelope)
        frames: list[bytes] = []
        if prose.is_text:
            following = [{"type": "function_call"}] if before_call else []
            if finish is not None or before_call:
                finish_output([item, *following], finish or chat.Finish())
            place = {"item_id": item["id"], "output_index": prose.index, "content_index": 0}
            done = {**place, "text": text, "logprobs": []}
            frames.append(self._event("response.output_text.done", done))
            part = {**place, "part": text_part(text)}
            frames.append(self._event("response.content_part.done", part))
        elif text:
            place = prose.summary_place(self._envelope)
            frames.append(
                self._event("response.reasoning_summary_text.done", {**place, "text": text})
            )
            part = {**place, "part": {"type": "summary_text", "text": text}}
            frames.append(self._event("response.reasoning_summary_part.done", part))
        return [*frames, self._end_item(prose.index, item)]

    def _close(self, finish: chat.Finish | None = None) -> list[bytes]:
        """End whatever is open: text or reasoning, a server tool's result, or all calls."""
        frames = self._end_prose(finish, before_call=False)
        frames += self._end_result()
        frames += self._begin_calls(all_of_them=True)
        last = len(self._output) - 1
        for part, call in list(self._calls.items()):
            is_cut = (
                finish is not None and finish.reason in INCOMPLETE_REASONS and call.index == last
            )
            frames += self._end_call(part, call, "incomplete" if is_cut else "completed")
        return frames

    # -- calls

    def _show_call(self, event: StreamEvent) -> list[bytes]:
        part = event.part_index
        if part in self._ended:
            return []
        call = self._calls.get(part)
        frames: list[bytes] = []
        if call is None:
            frames = [*self._end_prose(None, before_call=True), *self._end_result()]
            call = self._calls[part] = _Call(event.tool_call_id)
            self._unbegun.append(call)
        if event.type == "tool_call_name":
            call.names.append(event.chunk)
            return frames
        call.arguments.append(event.chunk)
        if call.index >= 0:
            return [*frames, *self._send_arguments(call, event.chunk)]
        return [*frames, *self._begin_calls()]

    def _begin_calls(self, *, all_of_them: bool = False) -> list[bytes]:
        """Begin calls in order, each with its arguments: until then its name may still grow."""
        frames = []
        while self._unbegun and (all_of_them or self._unbegun[0].arguments):
            call = self._unbegun.popleft()
            call.index = len(self._output)
            call.kind = call_kind(self._envelope, "".join(call.names))
            frames.append(self._begin_item(call.item(self._envelope, "in_progress", "")))
            frames += self._send_arguments(call, "".join(call.arguments))
        return frames

    def _send_arguments(self, call: _Call, text: str) -> list[bytes]:
        if call.kind["type"] != "function":
            return []  # sent whole at the end: it is a text inside JSON
        if not call.has_text:
            # White space alone is no arguments: it is held until more comes.
            call.blank.append(text)
            if not text or text.isspace():
                return []
            call.has_text = True
            text = "".join(call.blank)
        if not text:
            return []
        if self._delta_of is not call:
            place = call.place(self._envelope)
            self._set_delta("response.function_call_arguments.delta", place)
            self._delta_of = call
        return [self._delta(text)]

    def _end_call(self, part: int | None, call: _Call, status: str) -> list[bytes]:
        del self._calls[part]
        self._ended.add(part)
        arguments = "".join(call.arguments)
        arguments = arguments if arguments.strip() else "{}"
        item = call.item(self._envelope, status, arguments)
        place = call.place(self._envelope)
        frames: list[bytes] = []
        match call.kind["type"]:
            case "function":
                if not call.has_text:
                    call.blank.clear()
                    frames += self._send_arguments(call, arguments)
                done = {**place, "name": item["name"], "arguments": arguments}
                frames.append(self._event("response.function_call_arguments.done", done))
            case "custom":
                text = item["input"]
                if text:
                    delta = {**place, "delta": text}
                    frames.append(self._event("response.custom_tool_call_input.delta", delta))
                done = {**place, "input": text}
                frames.append(self._event("response.custom_tool_call_input.done", done))
        return [*frames, self._end_item(call.index, item)]

    # -- tools that the provider ran

    def _server_call(self, event: StreamEvent) -> list[bytes]:
        arguments = self._server_calls.setdefault(event.tool_call_id, [])
        if event.type == "tool_call_args":
            arguments.append(event.chunk)
        return []

    def _show_result(self, event: StreamEvent) -> list[bytes]:
        if not is_shown_server_tool(event.tool_name, event.tool_call_id):
            return []
        if self._result is not None and self._result[0].part_index == event.part_index:
            self._result[1].append(event.chunk)
            return []
        frames = self._close()
        self._result = event, [event.chunk]
        return frames

    def _end_result(self) -> list[bytes]:
        if self._result is None:
            return []
        (first, texts), self._result = self._result, None
        arguments = "".join(self._server_calls.get(first.tool_call_id, ()))
        name = first.tool_name or ""
        item = server_item(name, first.tool_call_id, arguments, "".join(texts))
        begun = self._begin_item(item | {"status": "in_progress"})
        index = len(self._output) - 1
        return [begun, self._end_item(index, item)]

    # -- the end

    def _end(self, finish: chat.Finish) -> list[bytes]:
        frames: list[bytes] = []
        if self._held:  # one part after the other, in the order in which they began
            held: dict[int | None, list[StreamEvent]] = {}
            for event in self._held:
                held.setdefault(event.part_index, []).append(event)
            frames = self._close()
            frames += [frame for of in held.values() for event in of for frame in self._show(event)]
        if self._is_compaction:
            item = _compaction_item(self._envelope, "".join(self._summary))
            frames += [self._begin_item(item), self._end_item(0, item)]
        frames += self._close(finish)
        for prose in self._renewed.values():
            self._output[prose.index] = prose.item(self._envelope)
        finish_output(self._output, finish)
        response = _render_finished(self._envelope, self._output, finish)
        frames.append(self._event(f"response.{response['status']}", {"response": response}))
        return frames


class _Prose:
    """A text or reasoning of the output, so far."""

    def __init__(self, part: int | None, index: int, is_text: bool) -> None:
        self.part = part
        self.index = index
        self.is_text = is_text
        self.texts: list[str] = []
        self.metadata: dict[str, Any] = {}  # OpenAI's, of reasoning

    def id(self, envelope: chat.Envelope) -> str:
        return item_id("msg" if self.is_text else "rs", envelope, self.index)

    def item(self, envelope: chat.Envelope) -> dict[str, Any]:
        text = "".join(self.texts)
        if self.is_text:
            return message_item(self.id(envelope), "completed", [text_part(text)])
        return reasoning_item(self.id(envelope), text, self.metadata)

    def summary_place(self, envelope: chat.Envelope) -> dict[str, Any]:
        return {"item_id": self.id(envelope), "output_index": self.index, "summary_index": 0}


class _Call:
    """A call for the client to run, so far."""

    def __init__(self, call_id: str | None) -> None:
        self.call_id = call_id
        self.index = -1
        self.kind: Mapping[str, Any] = {}
        self.names: list[str] = []
        self.arguments: list[str] = []
        self.blank: list[str] = []
        self.has_text = False

    @property
    def is_whole(self) -> bool:
        """Whether the arguments so far are a whole JSON object."""
        text = "".join(self.arguments)
        return bool(text.strip()) and "_raw" not in chat.parse_arguments(text)

    def id(self, envelope: chat.Envelope) -> str:
        return item_id(CALL_PREFIXES[self.kind["type"]], envelope, self.index)

    def place(self, envelope: chat.Envelope) -> dict[str, Any]:
        return {"item_id": self.id(envelope), "output_index": self.index}

    def item(self, envelope: chat.Envelope, status: str, arguments: str) -> dict[str, Any]:
        return call_item(self.id(envelope), status, self.kind, self.call_id, arguments)
