"""Parse another server's response: its stream of events, or the whole object.

A whole response is parsed as the stream that it would have been, so that the two agree.

Spec: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm.parts import StreamEvent

from ...core import chat, finish_reasons, payload
from ...core.compaction import decode_compaction
from ...core.errors import UpstreamError
from ...core.finish_reasons import finish_reason
from ...core.openai_api import parse_error
from ...core.usage import Usage
from ...transport import framing
from .items import reasoning_metadata, server_call, tool_name


def parse_response(body: Any, headers: Mapping[str, str] | None = None) -> chat.ChatResponse:
    """Parse another server's response; its stream, collected, gives the same.

    Raises:
        ProxyError: the error that the body reports, or UpstreamError if it is no response.
    """
    match body:
        case {"error": error} if error:
            raise parse_error(200, body, headers)
        case {"output": list(output), **fields}:
            parser = StreamParser()
            events = parser.feed_value({"type": "response.created", "response": fields})
            for index, item in enumerate(output):
                done = {"type": "response.output_item.done", "output_index": index, "item": item}
                events += parser.feed_value(done)
            events += parser.feed_value({"type": "response.completed", "response": fields})
            return chat.collect(events + parser.end())
    raise UpstreamError("the upstream's answer is no response")


# Events that say nothing that others don't.
_WITHOUT_CONTENT = frozenset(
    f"response.{name}"
    for name in (
        "queued in_progress content_part.added content_part.done"
        " reasoning_summary_part.added reasoning_summary_part.done"
    ).split()
)
_CALLS_IN_PROGRESS = ("_call.in_progress", "_call.searching", "_call.interpreting")
_CALLS_DONE = ("_call.completed", "_call_code.delta", "_call_code.done")


class StreamParser:
    """Parses another server's stream into our events. Feed its frames in order.

    Accepted, since servers send them: items without their beginning, deltas or end, items only
    in the last event, events of unknown types (listed in the Finish's `ignored`). The Finish
    comes with response.completed or response.incomplete. `model` is the name of the model that
    responds, once the stream has named it.
    """

    def __init__(self) -> None:
        self.model: str | None = None
        self._items: dict[Any, _Item] = {}  # by output_index, else by the item's id
        self._next_part = 0
        self._has_calls = False
        self._ignored: dict[str, None] = {}
        self._is_finished = False

    def feed(self, frame: framing.SSEFrame) -> list[chat.Event]:
        """Return the events of one frame.

        Raises:
            ProxyError: the error that the frame reports; UpstreamError if it is no event.
        """
        if self._is_finished or frame.data.strip() in ("", "[DONE]"):
            return []
        return self.feed_value(payload.parse_upstream(frame.data, "an event"))

    def feed_value(self, value: Any) -> list[chat.Event]:
        """Return the events of the JSON value of one of the stream's events.

        Raises:
            ProxyError: as `feed`.
        """
        if self._is_finished:
            return []
        match value:
            case {"type": "error"}:
                raise parse_error(0, value if value.get("error") else {"error": value})
            case {"type": "response.failed", "response": dict(response)}:
                raise parse_error(0, {"error": response.get("error") or {}})
            case {"type": "response.created", "response": dict(response)}:
                self._read_model(response)
            case {"type": "response.output_item.added", "item": dict(item)}:
                return self._begin(value, item)
            case {"type": "response.output_item.done", "item": dict(item)}:
                return self._end_item(value, item)
            case {"type": "response.output_text.delta" | "response.refusal.delta"}:
                return self._item(value).say("text", value.get("delta"))
            case {
                "type": "response.reasoning_summary_text.delta" | "response.reasoning_text.delta"
            }:
                return self._item(value).say("reasoning", value.get("delta"))
            case {"type": "response.function_call_arguments.delta"}:
                return self._item(value).add_arguments(value.get("delta"))
            case {"type": "response.completed" | "response.incomplete", "response": dict(response)}:
                return self._finish(response)
            case {"type": str(type_)}:
                self._list_unknown(type_)
            case {"error": error} if error:
                raise parse_error(0, value)
            case _:
                raise UpstreamError("an event of the upstream has no type")
        return []

    def end(self) -> list[chat.Event]:
        """Return nothing more: the last frame has given the Finish.

        Raises:
            UpstreamError: the stream was cut.
        """
        if not self._is_finished:
            raise UpstreamError("the upstream's stream ended before its answer did")
        return []

    def _read_model(self, response: Mapping[str, Any]) -> None:
        if isinstance(response.get("model"), str):
            self.model = self.model or response["model"] or None

    def _list_unknown(self, type_: str) -> None:
        # What an item says while it is made is in its end too.
        is_known = type_ in _WITHOUT_CONTENT or type_.endswith(
            (".done", "custom_tool_call_input.delta", *_CALLS_IN_PROGRESS, *_CALLS_DONE)
        )
        if not is_known and "keepalive" not in type_:
            self._ignored[f"({type_[:60]})"] = None

    def _item(self, event: Mapping[str, Any], item: Mapping[str, Any] | None = None) -> _Item:
        """Return the item of an event, by its place in the output or its id."""
        key = event.get("output_index")
        if type(key) is not int:
            key = str(event.get("item_id") or (item or {}).get("id"))
        found = self._items.get(key)
        if found is None:
            found = self._items[key] = _Item(self)
        return found

    def new_part(self) -> int:
        """Return the number of the next part."""
        self._next_part += 1
        return self._next_part - 1

    def _begin(self, event: Mapping[str, Any], item: Mapping[str, Any]) -> list[chat.Event]:
        begun = self._item(event, item)
        if (call := _called(item)) is None:
            return []
        self._has_calls = True
        return begun.begin_call(*call)

    def _end_item(self, event: Mapping[str, Any], item: Mapping[str, Any]) -> list[chat.Event]:
        ended = self._item(event, item)
        if ended.is_ended:
            return []
        ended.is_ended = True
        match item:
            case {"type": "message", "content": list(content)}:
                return ended.rest("text", self._texts(content))
            case {"type": "reasoning"}:
                return self._end_reasoning(ended, item)
            case {"type": "compaction", "encrypted_content": str(text)} if (
                summary := decode_compaction(text)
            ) is not None:
                return ended.rest("text", summary)
        if (call := _called(item)) is not None:
            self._has_calls = True
            return ended.whole_call(*call, _arguments(item))
        if (run := server_call(item)) is not None:
            return ended.server_call(_str(item.get("id")), *run)
        self._ignored[f"output[*] ({str(item.get('type'))[:40]})"] = None
        return []

    def _texts(self, content: list[Any]) -> str:
        texts = []
        for part in content:
            match part:
                case {"type": "output_text" | "text", "text": str(text)}:
                    if part.get("annotations"):
                        self._ignored["output[*].content[*].annotations"] = None
                    texts.append(text)
                case {"type": "refusal", "refusal": str(text)}:
                    texts.append(text)
                case {"type": str(type_)}:
                    self._ignored[f"output[*].content[*] ({type_[:40]})"] = None
        return "".join(texts)

    def _end_reasoning(self, ended: _Item, item: Mapping[str, Any]) -> list[chat.Event]:
        summary = item.get("summary")
        summary = summary if isinstance(summary, list) else []
        content = item.get("content")
        parts = [*summary, *(content if isinstance(content, list) else [])]
        text = "".join(_str(part.get("text")) for part in parts if isinstance(part, dict))
        events = ended.rest("reasoning", text)
        encrypted = _str(item.get("encrypted_content")) or None
        metadata = reasoning_metadata(encrypted, _str(item.get("id")), summary)
        if metadata is not None:
            part = ended.part_of("reasoning")
            redacted = not text and not events
            events.append(
                StreamEvent("reasoning", "", part, redacted=redacted, provider_metadata=metadata)
            )
        return events

    def _finish(self, response: Mapping[str, Any]) -> list[chat.Event]:
        self._read_model(response)
        events: list[chat.Event] = []
        output = response.get("output")
        for index, item in enumerate(output if isinstance(output, list) else ()):
            if isinstance(item, dict):  # what the stream has not said
                events += self._end_item({"output_index": index}, item)
        details = response.get("incomplete_details")
        word = details.get("reason") if isinstance(details, dict) else None
        word = word if isinstance(word, str) and word else _str(response.get("status"))
        if word not in ("completed", "incomplete"):  # a server that says nothing finer
            finish_reasons.check(word)
        self._is_finished = True
        finish = chat.Finish(
            finish_reason("length" if word == "incomplete" else word, has_calls=self._has_calls),
            usage=_parse_usage(response.get("usage")),
            model=self.model,
            ignored=tuple(self._ignored),
        )
        return [*events, finish]


class _Item:
    """An item of the output, and the parts of the response that it becomes."""

    def __init__(self, parser: StreamParser) -> None:
        self.is_ended = False
        self._parser = parser
        self._parts: dict[str, int] = {}  # by family
        self._said: set[str] = set()  # families of which something has come
        self._call_id = ""

    def part_of(self, family: str) -> int:
        """Return the number of the item's part of a family, a new one at first."""
        if family not in self._parts:
            self._parts[family] = self._parser.new_part()
        return self._parts[family]

    def say(self, family: str, text: Any) -> list[chat.Event]:
        """Return a piece of text or reasoning."""
        if not isinstance(text, str) or not text:
            return []
        self._said.add(family)
        return [StreamEvent(family, text, self.part_of(family))]

    def rest(self, family: str, text: str) -> list[chat.Event]:
        """Return the whole text, unless its pieces have come."""
        return [] if family in self._said else self.say(family, text)

    def begin_call(self, call_id: str, name: str) -> list[chat.Event]:
        """Return the name of a call."""
        if "call" in self._parts:
            return []
        self._call_id = call_id
        return [StreamEvent("tool_call_name", name, self.part_of("call"), call_id)]

    def add_arguments(self, text: Any) -> list[chat.Event]:
        """Return a piece of a call's arguments; those of a call without a name are its end's."""
        if "call" not in self._parts or not isinstance(text, str) or not text:
            return []
        self._said.add("call")
        return [StreamEvent("tool_call_args", text, self._parts["call"], self._call_id)]

    def whole_call(self, call_id: str, name: str, arguments: str) -> list[chat.Event]:
        """Return what has not come yet of a call."""
        events = self.begin_call(call_id, name)
        return events if "call" in self._said else events + self.add_arguments(arguments)

    def server_call(self, id_: str, name: str, arguments: str, output: str) -> list[chat.Event]:
        """Return a call that the provider ran, with its result."""
        call, result = self.part_of("call"), self.part_of("result")
        return [
            StreamEvent("tool_call_name", name, call, id_, True),
            StreamEvent("tool_call_args", arguments, call, id_, True),
            StreamEvent("tool_result", output, result, id_, True, tool_name=name),
        ]


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _called(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the id and the tool's name of a call that the client is to run, if it is one."""
    match item:
        case {
            "type": "function_call" | "custom_tool_call",
            "call_id": str(call_id),
            "name": str(name),
        }:
            return call_id, tool_name(name, _str(item.get("namespace")))
        case {"type": "tool_search_call", "call_id": str(call_id)}:
            return call_id, "tool_search"
    return None


def _arguments(item: Mapping[str, Any]) -> str:
    """Return a call's arguments as text; some servers send them parsed."""
    if item["type"] == "custom_tool_call":
        return payload.encode({"input": _str(item.get("input"))}).decode()
    value = item.get("arguments")
    return value if isinstance(value, str) else payload.encode(value or {}).decode()


def _parse_usage(usage: Any) -> Usage:
    def count(value: Any, *path: str) -> int | None:
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value if type(value) is int else None

    return Usage(
        input_tokens=count(usage, "input_tokens"),
        output_tokens=count(usage, "output_tokens"),
        cached_tokens=count(usage, "input_tokens_details", "cached_tokens"),
        cache_write_tokens=count(usage, "input_tokens_details", "cache_write_tokens"),
        reasoning_tokens=count(usage, "output_tokens_details", "reasoning_tokens"),
    )
