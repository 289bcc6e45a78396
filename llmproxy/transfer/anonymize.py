"""An exchange with filler for its words: what was said is gone, its shape stays.

Each letter becomes x and each digit 0, so that every text is as long as it was; white
space and punctuation stay. So do times, counts, statuses, ids, the names of models,
tools and members, roles, types, and all numbers and booleans: enough to see how a program
and a model went on, not what about. A filled exchange can be stored, shown and played
event by event like any other, but is no longer known by its request.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import llm
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from ..core import attachments, chat
from ..recorder.exchange import Exchange, RawRequest, Turn
from ..recorder.timeline import TimedEvent

__all__ = ["fill", "filled"]

ASTRAL_X = "\U0001d501"  # a letter x that is as long as what it stands for, in UTF-16 and UTF-8

# Their values say how a request is built, not what about.
_STRUCTURE = frozenset(
    """
    role type object model id tool_call_id tool_use_id call_id item_id previous_response_id
    media_type mime_type format encoding detail status finish_reason stop_reason
    tool_choice reasoning_effort effort verbosity service_tier $ref $schema
    """.split()
)
_NAMED = frozenset(
    "tools functions function tool_calls tool_choice function_call json_schema".split()
)  # a `name` in these is a tool's, not a person's
_NAMED_TYPES = frozenset("tool_use server_tool_use function function_call tool tool_result".split())
_SCHEMAS = frozenset({"input_schema", "parameters", "schema"})
_FREE = frozenset({"metadata", "input", "arguments"})  # where they are objects: anybody's members

_PLAIN_HEADERS = frozenset(
    """
    user-agent content-type content-length content-encoding accept accept-encoding connection
    transfer-encoding anthropic-version anthropic-beta openai-beta
    """.split()
)
_PLAIN_HEADER_PREFIX = "x-stainless-"  # the SDKs' own versions, and what they run on


# ---- text


def fill(text: str) -> str:
    """Give filler of the same length."""
    return text.translate(_TABLE)


class _Table:
    def __getitem__(self, code: int) -> str:
        return _filler(code)


_TABLE = _Table()


@cache
def _filler(code: int) -> str:
    character = chr(code)
    if code > 0xFFFF:
        return ASTRAL_X
    if code < 0x80:
        return "x" if character.isalpha() else "0" if character.isdigit() else character
    # Symbols stay in ASCII alone: elsewhere they say something.
    category = unicodedata.category(character)
    stays = category[0] in "PZ" or category in ("Cc", "Cf")
    return character if stays else "x"


_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=-]+)*,", re.ASCII)
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_BASE64_DIGIT = re.compile(r"[A-Za-z0-9+/_-]")


def _fill_url(url: str) -> str:
    """Leave of a URL its scheme, of a data URL its type; the data become zero bytes."""
    if head := _DATA_URL.match(url):
        return head[0] + _fill_base64(url[head.end() :])
    if scheme := _SCHEME.match(url):
        return scheme[0] + fill(url[scheme.end() :])
    return fill(url)


def _fill_base64(data: str) -> str:
    return _BASE64_DIGIT.sub("A", data)


_ESCAPED_BYTE = re.compile(r"%[0-9A-Fa-f]{2}")


def _fill_query(query: str) -> str:
    """Fill the values of a query string, escaped bytes as escaped ones."""
    return "&".join(
        name + equals + "%78".join(map(fill, _ESCAPED_BYTE.split(value)))
        for name, equals, value in (field.partition("=") for field in query.split("&"))
    )


# In the text of an object a string that no colon follows is a value.
_STRING_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"(?!\s*:)|"(?:[^"\\]|\\.)*"', re.DOTALL)
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.", re.DOTALL
)


def _fill_arguments(text: str) -> str:
    """Fill the raw arguments of a tool call: the JSON that they are stays JSON.

    What `chat.parse_arguments` reads of them is then what `_free` makes of it.
    """
    if not text.strip() or _is_raw(text):
        return fill(text)
    return _STRING_VALUE.sub(_fill_string, text)


def _is_raw(text: str) -> bool:
    """Say whether it is no object; one may also have a member of this name."""
    return chat.parse_arguments(text) == {"_raw": text}


def _fill_string(match: re.Match[str]) -> str:
    inside = match[1]
    if inside is None:  # a name
        return match[0]
    pieces = []
    at = 0
    for escape in _ESCAPE.finditer(inside):
        pieces += [fill(inside[at : escape.start()]), _fill_escape(escape[0])]
        at = escape.end()
    return f'"{"".join(pieces)}{fill(inside[at:])}"'


def _fill_escape(escape: str) -> str:
    if not escape.startswith("\\u"):
        return escape  # white space, controls, and punctuation
    if len(escape) == 12:
        return r"\ud835\udd01"  # ASTRAL_X
    code = int(escape[2:], 16)
    if 0xD800 <= code <= 0xDFFF:
        code = 0xFFFD  # as who reads it replaces a lone surrogate
    filler = _filler(code)
    return escape if filler == chr(code) else f"\\u{ord(filler):04x}"


# ---- JSON values


def _free(value: Any) -> Any:
    """Fill every string of a value that is anybody's own."""
    match value:
        case str():
            return fill(value)
        case dict():
            return {name: _free(member) for name, member in value.items()}
        case list() | tuple():
            return [_free(item) for item in value]
    return value


def _known(value: Any, name: str = "") -> Any:
    """Fill a request, an answer or metadata of an API, its own words excepted.

    name: of the member that it stands in.
    """
    match value:
        case dict():
            return {key: _member(value, name, key, member) for key, member in value.items()}
        case list() | tuple():
            return [_known(item, name) for item in value]
        case str() if name in _STRUCTURE:
            return value
        case str() if name == "url" or name.endswith("_url"):
            return _fill_url(value)
        case str():
            return _fill_url(value) if _DATA_URL.match(value) else fill(value)
    return value


def _member(holder: Mapping[str, Any], place: str, name: str, value: Any) -> Any:
    """Fill a member of an object, which stands in the member `place` of another."""
    match name, value:
        case "name", str() if place in _NAMED or holder.get("type") in _NAMED_TYPES:
            return value
        case "name", str() if holder.get("role") in ("tool", "function"):
            return value
        case "arguments", str():
            return _fill_arguments(value)
        case "data", str() if holder.get("type") == "base64" or place == "input_audio":
            return _fill_base64(value)
        case _, dict() if name in _SCHEMAS:
            return _schema(value)
        case _, dict() if name in _FREE:
            return _free(value)
    return _known(value, name)


def _schema(value: Any, name: str = "") -> Any:
    """Fill a JSON Schema's words; the names of properties stay, also where they are required."""
    match value:
        case dict():
            return {key: _schema(member, key) for key, member in value.items()}
        case list():
            return [_schema(item, name) for item in value]
        case str() if name in ("type", "format", "required", "$ref", "$schema"):
            return value
        case str():
            return fill(value)
    return value


# ---- an exchange


def filled(exchange: Exchange) -> Exchange:
    """Give an exchange with filler for all that anybody said in it, whoever it was."""
    return replace(
        exchange,
        first_words=fill(exchange.first_words),
        error=None if exchange.error is None else fill(exchange.error),
        stop_sequence=None if exchange.stop_sequence is None else fill(exchange.stop_sequence),
        request=_request(exchange.request),
        turn=None if exchange.turn is None else _turn(exchange.turn),
        events=_events(exchange.events),
        replay_key=None,  # it would tell whether a guess is right
    )


def _request(request: RawRequest) -> RawRequest:
    headers = {
        name: value
        if name in _PLAIN_HEADERS or name.startswith(_PLAIN_HEADER_PREFIX)
        else fill(value)
        for name, value in request.headers.items()
    }
    return RawRequest(headers, _fill_query(request.query), _known(request.body))


def _turn(turn: Turn) -> Turn:
    return replace(
        turn,
        messages=_messages(turn.messages),
        reply=_messages(turn.reply),
        options=_known(turn.options),
        tools=tuple(_tool(tool) for tool in turn.tools),
        schema=_schema(turn.schema),
        usage=replace(turn.usage, details=_known(turn.usage.details)),
        response_json=_known(turn.response_json),
    )


def _tool(tool: llm.Tool) -> llm.Tool:
    description = None if tool.description is None else fill(tool.description)
    return replace(tool, description=description, input_schema=_schema(tool.input_schema))


def _messages(messages: Iterable[Message]) -> list[Message]:
    return [
        Message(
            message.role,
            [_part(part) for part in message.parts],
            _known(message.provider_metadata),
        )
        for message in messages
    ]


def _part(part: Part) -> Part:
    metadata = _known(getattr(part, "provider_metadata", None))
    match part:
        case TextPart() | ReasoningPart():
            return replace(part, text=fill(part.text), provider_metadata=metadata)
        case ToolCallPart():
            return replace(part, arguments=_free(part.arguments), provider_metadata=metadata)
        case ToolResultPart():
            return replace(
                part,
                output=fill(part.output),
                exception=None if part.exception is None else fill(part.exception),
                attachments=[_attachment(attachment) for attachment in part.attachments],
                provider_metadata=metadata,
            )
        case AttachmentPart(attachment=llm.Attachment() as attachment):
            return AttachmentPart(_attachment(attachment), metadata)
    return part


def _attachment(attachment: llm.Attachment) -> llm.Attachment:
    if attachment.url:
        return attachments.RemoteAttachment(type=attachment.type, url=_fill_url(attachment.url))
    return llm.Attachment(type=attachment.type, content=bytes(len(attachment.content or b"")))


def _events(events: Iterable[TimedEvent]) -> list[TimedEvent]:
    """Fill what each event brought; arguments are JSON as a whole alone, and then cut as before."""
    events = list(events)
    arguments: dict[tuple[int, int | None], str] = {}
    for _, event in events:
        if event.type == "tool_call_args":
            key = event.message_index, event.part_index
            arguments[key] = arguments.get(key, "") + event.chunk
    left = {key: _fill_arguments(text) for key, text in arguments.items()}
    result = []
    for at_ms, event in events:
        chunk = event.chunk
        if event.type == "tool_call_args":
            key = event.message_index, event.part_index
            chunk, left[key] = left[key][: len(chunk)], left[key][len(chunk) :]
        elif event.type != "tool_call_name":
            chunk = fill(chunk)
        metadata = _known(event.provider_metadata)
        result.append((at_ms, replace(event, chunk=chunk, provider_metadata=metadata)))
    return result
