"""Replace the text of an exchange with placeholder text of the same length.

Each letter becomes x and each digit 0; white space and punctuation stay. Times, counts,
statuses, ids, the names of models, tools and object members, roles, types, numbers and
booleans stay as well: enough to see what a program and a model did, but not what about.
An anonymized exchange can be stored, shown and replayed event by event like any other, but
a request no longer finds it.
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

from ..core import argument_text, attachments, chat, payload
from ..core.compaction import decode_compaction, encode_compaction
from ..core.error_meanings import is_known_code
from ..core.errors import InvalidRequest
from ..recorder.exchange import Exchange, RawRequest, Turn
from ..recorder.timeline import TimedEvent

ASTRAL_X = "\U0001d501"  # a letter x as long as any astral character, in UTF-16 and in UTF-8

# Members whose values describe how a request is built, not its content.
_STRUCTURE = frozenset(
    """
    role type object model id tool_call_id tool_use_id call_id item_id previous_response_id
    media_type mime_type format encoding detail status finish_reason stop_reason
    tool_choice reasoning_effort effort verbosity service_tier $ref $schema
    namespace phase execution mode truncation include syntax
    think keep_alive done_reason encoding_format
    """.split()
)
_NAMED = frozenset(
    "tools functions function tool_calls tool_choice function_call json_schema".split()
)  # a `name` in these is a tool's, not a person's
_NAMED_TYPES = frozenset(
    "tool_use server_tool_use function function_call custom_tool_call tool tool_result".split()
)
_SCHEMAS = frozenset({"input_schema", "parameters", "schema", "format"})
_FREE = frozenset({"metadata", "input", "arguments"})  # objects with members of the user's own

_PLAIN_HEADERS = frozenset(
    """
    user-agent content-type content-length content-encoding accept accept-encoding connection
    transfer-encoding anthropic-version anthropic-beta openai-beta
    """.split()
)
_PLAIN_HEADER_PREFIX = "x-stainless-"  # versions of the SDK and its platform


# ---- text


def placeholder(text: str) -> str:
    """Return placeholder text of the same length."""
    return text.translate(_TABLE)


class _Table:
    def __getitem__(self, code: int) -> str:
        return _replacement(code)


_TABLE = _Table()


@cache
def _replacement(code: int) -> str:
    character = chr(code)
    if code > 0xFFFF:
        return ASTRAL_X
    if code < 0x80:
        return "x" if character.isalpha() else "0" if character.isdigit() else character
    # Of the symbols only ASCII's stay: others (emoji) carry meaning.
    category = unicodedata.category(character)
    stays = category[0] in "PZ" or category in ("Cc", "Cf")
    return character if stays else "x"


_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=-]+)*,", re.ASCII)
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_BASE64_DIGIT = re.compile(r"[A-Za-z0-9+/_-]")


def _anonymize_url(url: str) -> str:
    """Keep only a URL's scheme, or a data URL's type; its data become zero bytes."""
    if head := _DATA_URL.match(url):
        return head[0] + _anonymize_base64(url[head.end() :])
    if scheme := _SCHEME.match(url):
        return scheme[0] + placeholder(url[scheme.end() :])
    return placeholder(url)


def _anonymize_base64(data: str) -> str:
    return _BASE64_DIGIT.sub("A", data)


def _anonymize_image(data: str) -> str:
    return data[:_MAGIC_CHARS] + _anonymize_base64(data[_MAGIC_CHARS:])


_MAGIC_CHARS = 12  # of base64, nine bytes

_ESCAPED_BYTE = re.compile(r"%[0-9A-Fa-f]{2}")


def _anonymize_query(query: str) -> str:
    """Replace the values of a query string; escaped bytes stay escaped bytes."""
    return "&".join(
        name + equals + "%78".join(map(placeholder, _ESCAPED_BYTE.split(value)))
        for name, equals, value in (field.partition("=") for field in query.split("&"))
    )


# In a JSON object's text, a string that a colon follows is a name.
_STRING = re.compile(r'"((?:[^"\\]++|\\.)*+)"?+(\s*+:)?', re.DOTALL)
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.", re.DOTALL
)


def _anonymize_arguments(text: str) -> str:
    """Replace the text in a tool call's raw arguments; JSON stays JSON.

    `chat.parse_arguments` then gives what `_free` makes of the parsed arguments.
    """
    if not text.strip() or _is_raw(text):
        return placeholder(text)
    try:
        payload.parse(text.encode(), argument_text.LIMITS)
    except InvalidRequest:  # JSON only as it is read
        return payload.encode(_free(chat.parse_arguments(text))).decode()
    return _STRING.sub(_anonymize_string, text)


def _is_raw(text: str) -> bool:
    """Check whether the text is not a JSON object (which may have a member `_raw` of its own)."""
    return chat.parse_arguments(text) == {"_raw": text}


def _anonymize_string(match: re.Match[str]) -> str:
    inside, colon = match.groups()
    if colon is not None:  # a name
        return match[0]
    pieces = []
    at = 0
    for escape in _ESCAPE.finditer(inside):
        pieces += [placeholder(inside[at : escape.start()]), _anonymize_escape(escape[0])]
        at = escape.end()
    return f'"{"".join(pieces)}{placeholder(inside[at:])}"'


def _anonymize_escape(escape: str) -> str:
    if not escape.startswith("\\u"):
        return escape  # white space, controls, and punctuation
    if len(escape) == 12:
        return r"\ud835\udd01"  # ASTRAL_X
    code = int(escape[2:], 16)
    if 0xD800 <= code <= 0xDFFF:
        code = 0xFFFD  # readers replace a lone surrogate by this
    replacement = _replacement(code)
    return escape if replacement == chr(code) else f"\\u{ord(replacement):04x}"


# ---- JSON values


def _free(value: Any) -> Any:
    """Replace every string of a value whose members are the user's own."""
    match value:
        case str():
            return placeholder(value)
        case dict():
            return {name: _free(member) for name, member in value.items()}
        case list() | tuple():
            return [_free(item) for item in value]
    return value


def _known(value: Any, name: str = "") -> Any:
    """Replace the text of an API's request, response or metadata; keep its structural values.

    name: the member that holds the value.
    """
    match value:
        case dict():
            return {key: _member(value, name, key, member) for key, member in value.items()}
        case list() | tuple():
            return [_known(item, name) for item in value]
        case str() if name in _STRUCTURE:
            return value
        case str() if name == "url" or name.endswith("_url"):
            return _anonymize_url(value)
        case str():
            return _anonymize_url(value) if _DATA_URL.match(value) else placeholder(value)
    return value


def _member(holder: Mapping[str, Any], place: str, name: str, value: Any) -> Any:
    """Replace the text of an object's member; `place` is the member that holds the object."""
    match name, value:
        case "name", str() if place in _NAMED or holder.get("type") in _NAMED_TYPES:
            return value
        case "name" | "tool_name", str() if holder.get("role") in ("tool", "function"):
            return value
        case "summary", str() if place == "reasoning":  # how it is to be, "auto"
            return value
        case "images", list():  # Ollama's, whose type only their first bytes say
            return [_anonymize_image(one) if isinstance(one, str) else one for one in value]
        case "arguments", str():
            return _anonymize_arguments(value)
        case "encrypted_content", str() if (summary := decode_compaction(value)) is not None:
            return encode_compaction(placeholder(summary))
        case "data", str() if holder.get("type") == "base64" or place == "input_audio":
            return _anonymize_base64(value)
        case _, dict() if name in _SCHEMAS:
            return _schema(value)
        case _, dict() if name in _FREE:
            return _free(value)
    return _known(value, name)


def _schema(value: Any, name: str = "") -> Any:
    """Replace the text of a JSON Schema; property names stay, also in `required`."""
    match value:
        case dict():
            return {key: _schema(member, key) for key, member in value.items()}
        case list():
            return [_schema(item, name) for item in value]
        case str() if name in ("type", "format", "required", "$ref", "$schema"):
            return value
        case str():
            return placeholder(value)
    return value


# ---- an exchange


def anonymize(exchange: Exchange) -> Exchange:
    """Return an exchange with placeholder text for everything that was said in it."""
    # A client that names itself may write anything there; a user-agent's product is kept.
    has_title = "x-title" in exchange.request.headers
    return replace(
        exchange,
        client=placeholder(exchange.client) if has_title else exchange.client,
        first_words=placeholder(exchange.first_words),
        last_message=placeholder(exchange.last_message),
        reply_words=placeholder(exchange.reply_words),
        error=None if exchange.error is None else placeholder(exchange.error),
        error_code=_code(exchange.error_code),
        error_param=None if exchange.error_param is None else placeholder(exchange.error_param),
        stop_sequence=None
        if exchange.stop_sequence is None
        else placeholder(exchange.stop_sequence),
        request=_request(exchange.request),
        turn=None if exchange.turn is None else _turn(exchange.turn),
        events=_events(exchange.events),
        replay_key=None,  # it would let somebody check a guess
    )


def _code(code: str | None) -> str | None:
    return code if code is None or is_known_code(code) else placeholder(code)


def _request(request: RawRequest) -> RawRequest:
    headers = {
        name: value
        if name in _PLAIN_HEADERS or name.startswith(_PLAIN_HEADER_PREFIX)
        else placeholder(value)
        for name, value in request.headers.items()
    }
    return RawRequest(headers, _anonymize_query(request.query), _known(request.body))


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
    description = None if tool.description is None else placeholder(tool.description)
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
            return replace(part, text=placeholder(part.text), provider_metadata=metadata)
        case ToolCallPart():
            return replace(part, arguments=_free(part.arguments), provider_metadata=metadata)
        case ToolResultPart():
            return replace(
                part,
                output=placeholder(part.output),
                exception=None if part.exception is None else placeholder(part.exception),
                attachments=[_attachment(attachment) for attachment in part.attachments],
                provider_metadata=metadata,
            )
        case AttachmentPart(attachment=llm.Attachment() as attachment):
            return AttachmentPart(_attachment(attachment), metadata)
    return part


def _attachment(attachment: llm.Attachment) -> llm.Attachment:
    if attachment.url:
        return attachments.RemoteAttachment(
            type=attachment.type, url=_anonymize_url(attachment.url)
        )
    return llm.Attachment(type=attachment.type, content=bytes(len(attachment.content or b"")))


def _events(events: Iterable[TimedEvent]) -> list[TimedEvent]:
    """Replace each event's text; arguments are replaced as a whole, then split as before."""
    events = list(events)
    arguments: dict[tuple[int, int | None], str] = {}
    for _, event in events:
        if event.type == "tool_call_args":
            key = event.message_index, event.part_index
            arguments[key] = arguments.get(key, "") + event.chunk
    left = {key: _anonymize_arguments(text) for key, text in arguments.items()}
    result = []
    for at_ms, event in events:
        chunk = event.chunk
        if event.type == "tool_call_args":
            key = event.message_index, event.part_index
            chunk, left[key] = left[key][: len(chunk)], left[key][len(chunk) :]
        elif event.type != "tool_call_name":
            chunk = placeholder(chunk)
        metadata = _known(event.provider_metadata)
        result.append((at_ms, replace(event, chunk=chunk, provider_metadata=metadata)))
    return result
