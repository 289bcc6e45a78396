"""Fingerprints of replies that survive the ways clients rewrite history.

Clients send the whole history with each request, changed a little: they drop reasoning,
join parts of text, rewrite numbers, move turns. So replies are recognised, not histories, by
what every API carries: the visible text without surrounding white space, and the tool calls
with their ids. System messages take no part.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Literal, get_args

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

from . import chat, json_pieces, payload
from .attachments import find_attachments
from .byte_cache import ByteCache, json_bytes
from .message_facts import facts_of, keep_beginning, known_beginning, stable_count

TRIVIAL_CHARS = 16  # letters and digits: "ok", "Done.", "Hello!" are in many conversations
TELLING_CHARS = 64  # of any kind: long enough without counting letters and digits
# call_0, functions.read:1 (Kimi): counters that start again in each conversation.
_COUNTED_ID = re.compile(r"(.*[\W_]|[a-z]*)\d{1,6}", re.DOTALL)
MAX_RUN = 32  # messages that one reply may be split into; each is hashed again with every later one


MatchLevel = Literal["history", "question", "words", "calls", "text"]
"""How far two replies match: with their whole history; with what they respond to; in content
(text and calls); in one call's id; in text, if that is not trivial."""

MATCH_LEVELS: tuple[MatchLevel, ...] = get_args(MatchLevel)


@dataclass(frozen=True)
class Reply:
    """The fingerprints of a reply at its place in a conversation.

    index: of its message.
    key: of its content. text_key: of its text alone, None if that is trivial.
        question_key: of what it responds to, back to the previous reply. history_key: of the
        whole conversation up to and including it. All in hexadecimal.
    tool_call_ids: of the calls for the client to run, without ids that are mere counters.
    is_trivial: no calls, and a text too short to distinguish conversations.
    """

    index: int
    key: str
    text_key: str | None
    question_key: str
    history_key: str
    tool_call_ids: tuple[str, ...]
    is_trivial: bool


def replies(messages: Sequence[Message], newest: int | None = None) -> list[Reply]:
    """Fingerprint the replies in a history, oldest first, except those with nothing visible.

    newest: at most this number of them, the last ones.
    """
    indexes = [index for index, message in enumerate(messages) if message.role == "assistant"]
    first = indexes[-newest] if newest is not None and newest < len(indexes) else 0
    hasher = HistoryHasher()
    found = []
    for index, message in enumerate(messages):
        if message.role == "assistant" and index >= first:
            found.append(hasher.reply(index, message))
        hasher.add(message)
    return [reply for reply in found if reply is not None]


def reply_of(
    messages: Sequence[Message], reply: Sequence[Message], history: HistoryHasher | None = None
) -> Reply | None:
    """Fingerprint a turn's reply as clients will send it; None if nothing is visible.

    messages: of the request. If they end in an assistant's message that the reply continues,
        the client will send both as one.
    history: of these messages, if it is known.
    """
    start = len(messages)
    while start and messages[start - 1].role == "assistant":
        start -= 1
    if history is None or start < len(messages):
        history = HistoryHasher()
        for message in messages[:start]:
            history.add(message)
    said = [part for message in (*messages[start:], *reply) for part in message.parts]
    return history.reply(start, Message("assistant", said))


@dataclass(frozen=True)
class History:
    """The fingerprints of a request's history.

    replies: oldest first, those with something visible. chains: by the index of each message,
    the hash of all up to it, hidden content included. digests: that of each message alone.
    hasher: in the state after all messages.
    """

    replies: list[Reply]
    chains: list[bytes]
    digests: list[bytes]
    hasher: HistoryHasher


class Histories:
    """Remembers the fingerprints of histories; for use by one thread at a time.

    Clients send the whole history with each request. Of what was read before, only one hash per
    message is computed again: 1 µs for a kilobyte instead of 10.
    """

    def __init__(self, max_bytes: int) -> None:
        self._replies = ByteCache[bytes, tuple[Reply | None]](max_bytes)
        self._hashers = ByteCache[bytes, HistoryHasher](max_bytes)

    def read(self, messages: Sequence[Message], newest: int) -> History:
        """Fingerprint the replies in a history, at most the `newest` ones; as `replies`."""
        count, beginning = known_beginning(messages, "history")
        known: _Beginning = beginning or _Beginning([], [], {}, HistoryHasher())
        digests = [*known.digests, *map(digest_of, messages[count:])]
        before = known.chains[-1] if count else b""
        chains = known.chains + [*accumulate(digests[count:], _chained, initial=before)][1:]
        replied = [i for i in range(count, len(messages)) if messages[i].role == "assistant"]
        stable = stable_count(messages)
        # A client that goes back sends the beginning alone, of which others are the newest.
        early = [index for index in replied if index < stable]
        found = known.found | {
            index: self._replies.get(chains[index])
            for index in dict.fromkeys((*early[-newest:], *replied[-newest:]))
        }
        if count:
            start, hasher = count, known.hasher.copy()
        else:
            start, hasher = self._resume(chains, found, stable or len(messages))
        for index in range(start, len(messages) + 1):
            if index == stable > count:
                places = [place for place in found if place < stable][-newest:]
                first = {place: found[place] for place in places}
                kept = _Beginning(chains[:stable], digests[:stable], first, hasher.copy())
                keep_beginning(messages, stable, "history", kept, instead_of=count)
            if index == len(messages):
                break
            message = messages[index]
            if index in found:
                reply = found[index] = (hasher.reply(index, message),)
                self._replies.put(chains[index], reply, _reply_bytes(reply[0]))
            hasher.add(message)
        if hasher.is_between_replies and len(messages) > start:
            self._hashers.put(chains[-1], hasher.copy(), HASHER_BYTES)
        newest_found = [*found.values()][-newest:]
        said = [one[0] for one in newest_found if one and one[0] is not None]
        return History(said, chains, digests, hasher)

    def _resume(
        self, chains: Sequence[bytes], found: Mapping[int, tuple[Reply | None] | None], most: int
    ) -> tuple[int, HistoryHasher]:
        """Return the first message whose fingerprints are not known, and the state before it.

        most: where to begin at the latest.
        """
        first = next((index for index, reply in found.items() if reply is None), len(chains))
        for index in range(min(first, most) - 1, -1, -1):
            if (hasher := self._hashers.get(chains[index])) is not None:
                return index + 1, hasher.copy()
        return 0, HistoryHasher()


@dataclass(frozen=True)
class _Beginning:
    """The fingerprints of the beginning of a history: as in `History`, and replies by index."""

    chains: list[bytes]
    digests: list[bytes]
    found: dict[int, tuple[Reply | None] | None]
    hasher: HistoryHasher


HASHER_BYTES = 1_500  # with its place in the cache
REPLY_BYTES = 1_000


def _reply_bytes(reply: Reply | None) -> int:
    return REPLY_BYTES + (json_bytes(reply.tool_call_ids) if reply is not None else 0)


def _chained(before: bytes, digest: bytes) -> bytes:
    return hashlib.sha256(before + digest).digest()


def digest_of(message: Message) -> bytes:
    """Hash all that a message holds, hidden content included."""
    facts = facts_of(message)
    if facts is None:
        return hashlib.sha256(_encoded(message)).digest()
    digest: bytes | None = facts.get("digest")
    if digest is None:
        digest = facts["digest"] = hashlib.sha256(_encoded(message)).digest()
    return digest


def _encoded(message: Message) -> bytes:
    """Encode a message in a tenth of the time of JSON, and without base64 of attachments."""
    parts = message.parts
    if len(parts) == 1 and type(parts[0]) is TextPart:  # nearly always
        part = parts[0]
        if not part.provider_metadata and not message.provider_metadata:
            return b"t%b\0%b" % (
                message.role.encode("utf-8", "surrogatepass"),
                part.text.encode("utf-8", "surrogatepass"),
            )
    facts = [message.role, message.provider_metadata, *map(_facts, parts)]
    try:
        return b"m" + marshal.dumps(facts, 2)  # version 2 always encodes equal values alike
    except ValueError:  # an object of a plugin
        return b"r" + repr(facts).encode("utf-8", "surrogatepass")


def _facts(part: Part) -> tuple[Any, ...]:
    match part:
        case TextPart(text=text, provider_metadata=metadata):
            return "text", text, metadata
        case ReasoningPart(text=text, redacted=redacted, provider_metadata=metadata):
            return "reasoning", text, redacted, metadata
        case ToolCallPart():
            name, id = part.name, part.tool_call_id
            return "call", name, part.arguments, id, part.server_executed, part.provider_metadata
        case ToolResultPart():
            id, metadata = part.tool_call_id, part.provider_metadata
            files = [*map(_file, part.attachments)]
            server, exception = part.server_executed, part.exception
            return "result", part.name, part.output, id, server, exception, files, metadata
        case AttachmentPart(attachment=attachment, provider_metadata=metadata):
            return "attachment", attachment and _file(attachment), metadata
    return "other", part.to_dict()


def _file(attachment: llm.Attachment) -> tuple[str | None, str | None, str | None, bytes]:
    content = hashlib.sha256(attachment.content or b"").digest()
    return attachment.type, attachment.url, attachment.path, content


def shared_values(level: MatchLevel, reply: Reply) -> Sequence[object]:
    """Return the values of which another reply must have one to match at a level."""
    match level:
        case "calls":
            return reply.tool_call_ids
        case "text":
            return () if reply.text_key is None else (reply.text_key,)
        case "words":
            return (reply.key,)
        case "question":
            return ((reply.key, reply.question_key),)
        case "history":
            return ((reply.key, reply.history_key),)


@dataclass(frozen=True)
class HashedMessages:
    """The state of a request's key after some of its messages.

    asked: what was hashed before them. last: the last of them, by which they are recognised:
        requests share a message only if they share all before it.
    """

    asked: bytes
    count: int
    last: Message
    role: str
    key: Any


MAX_HASHED = 8  # states for one request: clients often change the last messages


def request_key(request: chat.ChatRequest, known: list[HashedMessages] | None = None) -> str:
    """Fingerprint everything that a response depends on, except the model's name.

    known: states of earlier requests that may have shared their messages with this one, oldest
        first; replaced by those of this one. Then only new messages are hashed.

    Options, tools, tool choice, schema, and the visible content of the messages; the same for
    every dialect, streamed or not. Options at their defaults don't count (`relevant_options`).
    """
    return _request_key(
        request,
        relevant_options(request),
        [(tool.description or None) for tool in request.tools],
        relevant_tool_choice(request),
        known,
    )


def request_keys(request: chat.ChatRequest) -> tuple[str, str]:
    """Return the key of a request, and the one that llmproxy gave it before options had defaults.

    Logs keep the keys that were computed when they were written.
    """
    options = {name: value for name, value in request.options.items() if name not in _UNSTABLE}
    descriptions = [tool.description for tool in request.tools]
    older = _request_key(request, options, descriptions, request.tool_choice)
    return request_key(request), older


def _request_key(
    request: chat.ChatRequest,
    options: Mapping[str, Any],
    descriptions: Sequence[str | None],
    tool_choice: chat.ToolChoice,
    known: list[HashedMessages] | None = None,
) -> str:
    tools = zip(request.tools, descriptions, strict=True)
    asked: list[Any] = [
        options,
        [[tool.name, description, tool.input_schema] for tool, description in tools],
        [[tool.name, dict(tool.config)] for tool in request.server_tools],
        tool_choice if isinstance(tool_choice, str) else tool_choice.name,
        request.schema,
    ]
    asked = payload.with_double_numbers(asked)
    encoder = json.JSONEncoder(sort_keys=True)
    is_large = json_pieces.is_large(asked)
    text = (json_pieces.encode(encoder, asked) if is_large else encoder.encode(asked)).encode()
    key, role, messages = _hash(text), "", request.messages
    start = 0
    if known is not None:
        for state in reversed(known):
            at = state.count - 1
            if at < len(messages) and messages[at] is state.last and state.asked == text:
                key, role, start = state.key.copy(), state.role, state.count
                break
        known[:] = [state for state in known if state.count <= start and state.asked == text]
    noted_from = len(messages) - MAX_HASHED
    for count, message in enumerate(messages[start:], start + 1):
        if content := _content(message.parts):
            # How a client splits the content of one role into messages makes no difference.
            if message.role != role:
                role = message.role
                key.update(f"\0{role}\0".encode())
            key.update(content)
        if not _is_text(message.parts):
            for content in attachment_contents(message):  # above, only their lengths
                key.update(_hash(content).digest())
        if known is not None and count > noted_from:
            known.append(HashedMessages(text, count, message, role, key.copy()))
    if known is not None:
        del known[:-MAX_HASHED]
    return str(key.hexdigest())


# Agents send a new session name each time; the log keeps no cache markers.
_UNSTABLE = frozenset({"user", "cache"})
# The values that the APIs' references give as defaults: sending one means the same as leaving it
# out. OpenAI: developers.openai.com/api/reference, Anthropic: platform.claude.com/docs/api.
# The default effort is not among them, since it differs between APIs and models.
_DEFAULTS: Mapping[str, object] = {
    "temperature": 1.0,  # both
    "top_p": 1.0,  # OpenAI; for Anthropic too it is no truncation
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "parallel_tool_calls": True,  # both
    "verbosity": "medium",
    "thinking": False,  # Anthropic's {"type": "disabled"}
}


def relevant_options(request: chat.ChatRequest) -> dict[str, Any]:
    """Return the options that a response depends on, without those at their APIs' defaults.

    Not `user`, where agents send a new session name each time, nor `cache`, since the log
    keeps no cache markers, nor `service_tier`, which is about speed and price. How calls run in
    parallel counts only if there are tools, a thinking budget only if there is thinking; the
    order of stop sequences does not count.
    """
    options = dict(request.options)
    unused = {*_UNSTABLE, "service_tier"}
    if not (request.tools or request.server_tools):
        unused.add("parallel_tool_calls")
    if options.get("thinking") is False:
        unused.add("thinking_budget")
    if isinstance(bias := options.get("logit_bias"), dict):
        options["logit_bias"] = {token: value for token, value in bias.items() if value}
    if stops := options.get("stop_sequences"):
        options["stop_sequences"] = sorted(set(stops))
    return {
        name: value
        for name, value in options.items()
        if name not in unused and not (name in _DEFAULTS and value == _DEFAULTS[name])
    }


def relevant_tool_choice(request: chat.ChatRequest) -> chat.ToolChoice:
    """Return the tool choice; without tools, "none" means the same as nothing."""
    has_tools = request.tools or request.server_tools
    return request.tool_choice if has_tools or request.tool_choice != "none" else "auto"


def attachment_contents(message: Message) -> list[bytes]:
    """Return the contents of a message's attachments, those of tool results included."""
    return [one.content for one in find_attachments(message) if one.content]


def visible_text(message: Message) -> str:
    """Return the text of a message as every API carries it, without surrounding white space."""
    return "".join(part.text for part in message.parts if isinstance(part, TextPart)).strip()


def have_same_content(one: Iterable[Message], other: Iterable[Message]) -> bool:
    """Check whether everything visible in two replies is the same."""
    first, second = (
        [part for message in reply for part in message.parts] for reply in (one, other)
    )
    return _content(first) == _content(second)


class HistoryHasher:
    """Hashes a conversation message by message.

    Consecutive replies count as one, since clients may join them.
    """

    def __init__(self) -> None:
        self._history = _hash()  # without the current run of replies
        self._question = _hash()
        self._said: list[Sequence[Part]] = []

    def copy(self) -> HistoryHasher:
        """Return a hasher in the same state."""
        other = HistoryHasher()
        other._history, other._question = self._history.copy(), self._question.copy()
        other._said = list(self._said)
        return other

    @property
    def is_between_replies(self) -> bool:
        """Whether the last message that says something was not a reply."""
        return not self._said

    def add(self, message: Message) -> None:
        """Add the next message."""
        content = b"" if message.role == "system" else _content(message.parts)
        if not content:
            return
        if message.role == "assistant":
            if len(self._said) == MAX_RUN:
                self._end_run()
            self._said.append(message.parts)
            self._question = _hash()
        else:
            self._end_run()
            self._history.update(content)
            self._question.update(content)

    def reply(self, index: int, message: Message) -> Reply | None:
        """Fingerprint a reply after the messages added so far; None if nothing is visible."""
        content = _content(message.parts)
        if not content:
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
            key=_hash(content).hexdigest(),
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
        content = _content([*chain.from_iterable(self._said), *more])
        return b"\0\0" + content + b"\0\0" if content else b""


def _hash(content: bytes = b"") -> Any:
    return hashlib.blake2b(content, digest_size=16)


def _is_text(parts: Sequence[Part]) -> bool:
    return len(parts) == 1 and isinstance(parts[0], TextPart)  # nearly always


def _content(parts: Sequence[Part]) -> bytes:
    """Everything visible, in a fixed order: text, calls, then results and attachments."""
    if _is_text(parts):
        text: str = parts[0].text  # type: ignore[attr-defined]
        return text.strip().encode("utf-8", "replace")
    text = "".join(part.text for part in parts if isinstance(part, TextPart)).strip()
    pieces = [text, *map(_call, parts), *map(_input_for_model, parts)]
    return "\0".join(filter(None, pieces)).encode("utf-8", "replace")


def _call(part: Part) -> str:
    """A call for the client to run; not every API shows what the provider ran itself."""
    if not isinstance(part, ToolCallPart) or part.server_executed:
        return ""
    made = [part.tool_call_id, part.name, payload.with_double_numbers(part.arguments)]
    return json.dumps(made, sort_keys=True)


def _input_for_model(part: Part) -> str:
    match part:
        case ToolResultPart(server_executed=False, output=output, tool_call_id=id_):
            return f"{id_} {output.strip()}"
        case AttachmentPart(attachment=attachment) if attachment is not None:
            return f"{attachment.type} {attachment.url or len(attachment.content or b'')}"
    return ""
