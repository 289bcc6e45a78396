"""What of a conversation every client can send again, as keys to know it by.

Clients send the whole history with each request, changed a little: they drop reasoning,
join parts of text, rewrite numbers, move turns about. So it is replies that are known
again, by what any wire carries of them: the visible text without the white space around
it, and the tool calls with their ids. System messages take no part.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from llm.parts import AttachmentPart, Message, Part, TextPart, ToolCallPart, ToolResultPart

from . import chat, payload
from .attachments import find_attachments

TRIVIAL_CHARS = 16  # letters and digits: "ok", "Done.", "Hello!" are said in many conversations
TELLING_CHARS = 64  # of any kind: enough without counting the letters
# call_0, functions.read:1 (Kimi): counted anew in each conversation, and so in all of them.
_COUNTED_ID = re.compile(r"(.*[\W_]|[a-z]*)\d{1,6}", re.DOTALL)
MAX_RUN = 32  # messages that one reply may have become; each is read again with every later one


MatchLevel = Literal["history", "question", "words", "calls", "text"]
"""How far two replies are the same: all that was said until and with them; their words and
what they answer; their words, calls included; one call's id; their text, if it says much."""


@dataclass(frozen=True)
class Reply:
    """A reply where it stands in a conversation.

    index: its message's place.
    key: what it says. text_key: its text alone, None where that is trivial.
        question_key: what it was said to, back to the reply before. history_key: all that
        was said until then, itself included. All in hexadecimal.
    tool_call_ids: those of the calls that the client is to make; without ids that only count.
    is_trivial: it calls nothing, and its text is too short to tell conversations apart.
    """

    index: int
    key: str
    text_key: str | None
    question_key: str
    history_key: str
    tool_call_ids: tuple[str, ...]
    is_trivial: bool


def replies(messages: Iterable[Message]) -> list[Reply]:
    """Find the replies in a history, the oldest first; those that show nothing are left out."""
    walk = HistoryHasher()
    found = []
    for index, message in enumerate(messages):
        if message.role == "assistant":
            found.append(walk.reply(index, message))
        walk.add(message)
    return [reply for reply in found if reply is not None]


def reply_of(messages: Sequence[Message], reply: Sequence[Message]) -> Reply | None:
    """Say by which keys a turn's reply will be known; None where it shows nothing.

    messages: what was asked. Where that ends in words of the assistant's own, which the
        reply goes on from, the client will send both as one.
    """
    walk = HistoryHasher()
    start = len(messages)
    while start and messages[start - 1].role == "assistant":
        start -= 1
    for message in messages[:start]:
        walk.add(message)
    said = [part for message in (*messages[start:], *reply) for part in message.parts]
    return walk.reply(start, Message("assistant", said))


def is_same(how: MatchLevel, one: Reply, other: Reply) -> bool:
    """Say whether two replies are the same in a way."""
    match how:
        case "calls":
            return not set(one.tool_call_ids).isdisjoint(other.tool_call_ids)
        case "text":
            return one.text_key is not None and one.text_key == other.text_key
        case "words":
            return one.key == other.key
        case "question":
            return one.key == other.key and one.question_key == other.question_key
        case "history":
            return one.key == other.key and one.history_key == other.history_key


def request_key(request: chat.ChatRequest) -> str:
    """Know a request again by all that an answer hangs on, but for the model's name.

    Options, tools, their choice, schema, and of the messages what is visible; whichever
    dialect it came by, streamed or not.
    """
    asked: list[Any] = [
        relevant_options(request),
        [[tool.name, tool.description, tool.input_schema] for tool in request.tools],
        [[tool.name, dict(tool.config)] for tool in request.server_tools],
        request.tool_choice if isinstance(request.tool_choice, str) else request.tool_choice.name,
        request.schema,
    ]
    key = _hash(json.dumps(payload.with_double_numbers(asked), sort_keys=True).encode())
    role = ""
    for message in request.messages:
        if words := _words(message.parts):
            # Where a client cuts what one says into messages is not told apart.
            key.update(words if message.role == role else f"\0{message.role}\0".encode() + words)
            role = message.role
        for content in attachment_contents(message):  # of which the words have the length alone
            key.update(_hash(content).digest())
    return str(key.hexdigest())


def relevant_options(request: chat.ChatRequest) -> dict[str, Any]:
    """The options that an answer hangs on.

    Not who asks, where agents send another session's name each time, nor whether the
    provider is to keep a cache, of which the log keeps no marks.
    """
    others = ("user", "cache")
    return {name: value for name, value in request.options.items() if name not in others}


def attachment_contents(message: Message) -> list[bytes]:
    """Return the contents of a message's attachments, those of tool results included."""
    return [one.content for one in find_attachments(message) if one.content]


def visible_text(message: Message) -> str:
    """The text of a message as any wire shows it, without the white space around it."""
    return "".join(part.text for part in message.parts if isinstance(part, TextPart)).strip()


def have_same_content(one: Iterable[Message], other: Iterable[Message]) -> bool:
    """Say whether all that is visible of two replies is the same."""
    first, second = (
        [part for message in reply for part in message.parts] for reply in (one, other)
    )
    return _words(first) == _words(second)


class HistoryHasher:
    """What was said so far, as one walks through a conversation.

    Replies that follow one another count as one there, since clients may join them.
    """

    def __init__(self) -> None:
        self._history = _hash()  # until the replies that are being walked through
        self._question = _hash()
        self._said: list[Sequence[Part]] = []

    def copy(self) -> HistoryHasher:
        """Give another walk that has come as far."""
        other = HistoryHasher()
        other._history, other._question = self._history.copy(), self._question.copy()
        other._said = list(self._said)
        return other

    def add(self, message: Message) -> None:
        """Go on to what follows a message."""
        words = b"" if message.role == "system" else _words(message.parts)
        if not words:
            return
        if message.role == "assistant":
            if len(self._said) == MAX_RUN:
                self._end_run()
            self._said.append(message.parts)
            self._question = _hash()
        else:
            self._end_run()
            self._history.update(words)
            self._question.update(words)

    def reply(self, index: int, message: Message) -> Reply | None:
        """Say by which keys the reply that comes next will be known."""
        words = _words(message.parts)
        if not words:
            return None
        history = self._history.copy()
        history.update(self._run(message.parts))
        made = [
            part.tool_call_id or ""
            for part in message.parts
            if isinstance(part, ToolCallPart) and not part.server_executed
        ]
        ids = tuple(id for id in made if id and not _COUNTED_ID.fullmatch(id))
        text = visible_text(message)
        says_little = len(text) < TELLING_CHARS and sum(map(str.isalnum, text)) < TRIVIAL_CHARS
        return Reply(
            index,
            key=_hash(words).hexdigest(),
            text_key=None if says_little else _hash(text.encode("utf-8", "replace")).hexdigest(),
            question_key=self._question.hexdigest(),
            history_key=history.hexdigest(),
            tool_call_ids=ids,
            is_trivial=says_little and not made,
        )

    def _end_run(self) -> None:
        self._history.update(self._run())
        self._said.clear()

    def _run(self, more: Iterable[Part] = ()) -> bytes:
        words = _words([*chain.from_iterable(self._said), *more])
        return b"\0\0" + words + b"\0\0" if words else b""


def _hash(words: bytes = b"") -> Any:
    return hashlib.blake2b(words, digest_size=16)


def _words(parts: Sequence[Part]) -> bytes:
    """All that is visible, in one form: the text, the calls, then results and attachments."""
    if len(parts) == 1 and isinstance(parts[0], TextPart):  # nearly always
        return parts[0].text.strip().encode("utf-8", "replace")
    text = "".join(part.text for part in parts if isinstance(part, TextPart)).strip()
    pieces = [text, *map(_call, parts), *map(_shown_to_the_model, parts)]
    return "\0".join(filter(None, pieces)).encode("utf-8", "replace")


def _call(part: Part) -> str:
    """A call that the client makes; what the provider ran itself no wire must show."""
    if not isinstance(part, ToolCallPart) or part.server_executed:
        return ""
    made = [part.tool_call_id, part.name, payload.with_double_numbers(part.arguments)]
    return json.dumps(made, sort_keys=True)


def _shown_to_the_model(part: Part) -> str:
    match part:
        case ToolResultPart(server_executed=False, output=output, tool_call_id=id_):
            return f"{id_} {output.strip()}"
        case AttachmentPart(attachment=attachment) if attachment is not None:
            return f"{attachment.type} {attachment.url or len(attachment.content or b'')}"
    return ""
