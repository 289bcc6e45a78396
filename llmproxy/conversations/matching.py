"""Find the recorded conversation that a request continues, and restore what its API dropped.

The replies in a request's history are looked up among the recorded ones. The newest that is
known gives the turn that the request continues; whether the conversation goes on or forks
there is decided by the writer, in its transaction. Known replies can also be put back as they
were recorded, with reasoning, signatures and provider metadata, so that the model sees them
although the client's API can't carry them (recall).

If two candidates are equally likely, there is no match. docs/conversations.md has the order
of matching as a table.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import cast

from llm.parts import Message, Part, ReasoningPart, TextPart

from ..core.byte_cache import message_bytes
from ..core.fingerprints import (
    MATCH_LEVELS,
    Histories,
    History,
    HistoryHasher,
    MatchLevel,
    Reply,
    digest_of,
    have_same_content,
    replies,
    reply_of,
    shared_values,
    visible_text,
)
from ..core.message_facts import keep_beginning, known_beginning, stable_count
from ..core.threads import DaemonWorker
from ..recorder.database import SCHEMA_VERSION, StoreError, translated, wal_of
from ..recorder.exchange import Exchange, Fingerprinted, Match, Turn
from ..recorder.listing import open_for_reading
from ..recorder.reader import ReadOnlyLog
from ..recorder.reply_index import (
    MAX_EARLIER,
    Candidate,
    Excerpt,
    KnownKeys,
    Moment,
    Original,
    OutOfTime,
    Replies,
)
from ..recorder.store import identity
from ..recorder.summary import Relation

CALL_QUOTE_CHARS = 40  # of a tool call's argument: a sub-agent's task is at least this long
TEXT_QUOTE_CHARS = 80  # of a whole reply: shorter ones are repeated by chance
# Replies with candidates in several conversations that are looked at per request: the time
# that each takes grows with its candidates, and requests are matched one at a time.
MAX_UNSURE = 8
MAX_QUOTING_TEXTS = 64  # of a new conversation, the first ones, that are searched for quotes
MAX_QUOTING_CHARS = 2_000_000  # of these texts together
MAX_TASKS = 16  # arguments of one call that may be a sub-agent's task
MAX_PENDING = 64  # turns kept until the log has them
MAX_PENDING_BYTES = 16 * 2**20  # of their content: each may hold a whole conversation
MAX_HISTORY_BYTES = 4 * 2**20  # of fingerprints of four thousand replies
ASKED_FIRST = 8  # replies, the newest, whose fingerprints are looked up before all others
MAX_LOOKED_UP = 2_000  # replies of a history, the newest; agents' sessions have some hundred


class Matcher:
    """Matches requests against a log's recorded replies; can be called from any thread.

    path: the logs.db, which may not exist yet.
    recall: whether recorded replies are put back; conversations are matched in any case.
    """

    def __init__(self, path: Path, *, recall: bool = True) -> None:
        self._path = path
        self._recall = recall
        self._lock = threading.Lock()
        self._wal = wal_of(path)
        self._identity: tuple[int, int] | None = None
        self._wal_identity: tuple[int, int] | None = None
        self._replies: Replies | None = None
        self._pending: deque[_Pending] = deque()
        self._worker = DaemonWorker("llmproxy-matcher")
        self._histories = Histories(MAX_HISTORY_BYTES)

    def learn(self, exchange: Exchange, history_bytes: int) -> None:
        """Make an ended exchange's reply known before the log has it.

        history_bytes: of the messages before the reply, as `message_bytes` estimates them.
        """
        if exchange.turn is not None and exchange.thread_id is not None:
            is_finished = exchange.status == "ok"
            turn = exchange.turn
            known = exchange.fingerprinted
            hasher = known.hasher if known else None
            waiting = _Pending(turn, exchange.client, is_finished, history_bytes, hasher)
            self._pending.append(waiting)
            pending = list(self._pending)  # `match` may remove some at any time
            size = sum(turn.size_bytes for turn in pending)
            for count, waiting in enumerate(pending):
                if len(pending) - count <= MAX_PENDING and size <= MAX_PENDING_BYTES:
                    break
                size -= waiting.size_bytes
                with suppress(ValueError):
                    self._pending.remove(waiting)

    def may_continue(self, messages: Iterable[Message]) -> bool:
        """Check whether a request has replies, or a text that is long enough to be a quote.

        If not, there is nothing to look up.
        """
        return any(map(_has_reply_or_quote, messages))

    def match_in_thread(
        self, messages: Sequence[Message], model: str, client: str, *, wait_s: float
    ) -> asyncio.Future[Match]:
        """Call `match` in a thread of the matcher's own; a call waits for the one before it.

        Raises:
            RuntimeError: the system can't start a thread.
        """
        return self._worker.run(partial(self.match, messages, model, client, wait_s=wait_s))

    def match(
        self, messages: Sequence[Message], model: str, client: str, *, wait_s: float = math.inf
    ) -> Match:
        """Match a request's messages; blocks while the log is read.

        model: llm's id of the model that will answer; only its own replies are recalled.
        wait_s: the longest time that it may take. If the conversation was found by then, it
            is returned without what is recalled.

        If the log can't be read, only turns that wait to be written are considered.

        Raises:
            OutOfTime: the conversation was not found in time.
        """
        until = time.monotonic() + wait_s
        with self._lock:
            try:
                with translated(self._path):
                    return self._match(self._open(), messages, model, client, until)
            except StoreError:
                self._close()
                return self._match(None, messages, model, client, until)

    def _match(
        self,
        logged: Replies | None,
        messages: Sequence[Message],
        model: str,
        client: str,
        until: float,
    ) -> Match:
        pending = list(self._pending)  # the event loop may add one at any time
        if logged is not None:
            logged.stop_at(until)
        if logged is not None and pending:
            written = logged.existing_turns([turn.candidate.turn_id for turn in pending])
            for turn in [turn for turn in pending if turn.candidate.turn_id in written]:
                pending.remove(turn)
                with suppress(ValueError):  # newer ones have pushed it out
                    self._pending.remove(turn)
        history = self._histories.read(messages, MAX_LOOKED_UP)
        recorded = _Recorded(pending, logged, history.replies, until)
        previous_id, link = _find_previous(messages, history.replies, recorded, client)
        sent = list(messages)
        known = Fingerprinted(sent, history.digests, history.hasher)
        match = Match(sent, previous_id=previous_id, link=link, history=known)
        if self._recall:
            with suppress(OutOfTime):
                return _with_recalled(match, history, recorded, model)
        return match

    def _open(self) -> Replies | None:
        """Open the log if it isn't open, or has been replaced by another file."""
        now, wal_now = identity(self._path), identity(self._wal)
        if self._replies is None or (now, wal_now) != (self._identity, self._wal_identity):
            self._close()
            if now is None:
                return None
            if now != self._identity:
                was, self._wal = self._wal, wal_of(self._path)
                if self._wal == was and wal_now == self._wal_identity is not None:
                    return None  # it is the former file's; the writer is about to delete it
                wal_now = identity(self._wal)
            connection, _, version = open_for_reading(self._path)
            log = ReadOnlyLog(connection)
            if version != SCHEMA_VERSION:  # the writer is about to make the tables
                connection.close()
                return None
            self._replies = Replies(connection, log)
            self._identity, self._wal_identity = now, wal_now
        return self._replies

    def close(self) -> None:
        """Close the log, after the last call of `match`."""
        self._worker.close()
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._replies is not None:
            self._replies.close()
            self._replies = None


def _has_reply_or_quote(message: Message) -> bool:
    if message.role == "assistant":
        return True
    return message.role == "user" and any(map(_may_quote, message.parts))


def _may_quote(part: Part) -> bool:
    return isinstance(part, TextPart) and len(part.text) >= CALL_QUOTE_CHARS


class _Pending:
    """What is looked for of a turn that is not in the log yet: not its tools, nor raw response."""

    def __init__(
        self,
        turn: Turn,
        client: str,
        is_finished: bool,
        history_bytes: int,
        hasher: HistoryHasher | None,
    ) -> None:
        self.messages = turn.messages
        self.reply = turn.reply
        self._hasher = hasher
        self.size_bytes = history_bytes + message_bytes(turn.reply)
        self.candidate = Candidate(
            turn.id, turn.thread_id, turn.model, client, is_finished, is_continued=False
        )

    @cached_property
    def fingerprints(self) -> Reply | None:
        return reply_of(self.messages, self.reply, self._hasher)


class _Recorded:
    """Recorded replies: first those that are not in the log yet, newest first, then the log's.

    history: the replies that are looked up. Those that nothing has are known after one lookup
        for all. until: when all lookups end, by time.monotonic().
    """

    def __init__(
        self,
        pending: Iterable[_Pending],
        logged: Replies | None,
        history: Sequence[Reply],
        until: float,
    ) -> None:
        self._pending = {turn.candidate.turn_id: turn for turn in pending}
        self._logged = logged
        self._until = until
        self._history = history
        self._known = KnownKeys(set(), set(), set())
        self._asked: set[int] = set()  # indexes of the replies whose keys are known
        if logged is not None and history:
            logged.look_for_new_replies()
        # By each of the values that may be the same at a level.
        self._waiting: dict[tuple[MatchLevel, object], list[Candidate]] = {}
        for turn in reversed(self._pending.values()) if history else ():
            for value in _values(turn.fingerprints) if turn.fingerprints is not None else ():
                self._waiting.setdefault(value, []).append(turn.candidate)

    def candidates(self, level: MatchLevel, reply: Reply) -> list[Candidate]:
        self.check_time()
        waiting = {
            candidate.turn_id: candidate
            for value in _values(reply, level)
            for candidate in self._waiting.get(value, ())
        }
        newest_first = [
            waiting[turn_id] for turn_id in reversed(self._pending) if turn_id in waiting
        ]
        if self._logged is None or not self._may_have(level, reply):
            return newest_first
        return newest_first + self._logged.candidates(level, reply)

    def check_time(self) -> None:
        """Raise OutOfTime if it is over."""
        if time.monotonic() > self._until:
            raise OutOfTime

    def ask(self, replies: Sequence[Reply]) -> None:
        """Look up which fingerprints the log has, of all these replies at once."""
        asked = [reply for reply in replies if reply.index not in self._asked]
        if self._logged is None or not asked:
            return
        for ours, found in zip(self._known, self._logged.known(asked), strict=True):
            ours |= found
        self._asked.update(reply.index for reply in asked)

    def _may_have(self, level: MatchLevel, reply: Reply) -> bool:
        if reply.index not in self._asked:
            # Nearly always the newest one is known, and no other is asked for.
            newest = self._history[-ASKED_FIRST:]
            self.ask(newest if reply.index >= newest[0].index else self._history)
        match level:
            case "calls":
                return not self._known.tool_call_ids.isdisjoint(reply.tool_call_ids)
            case "text":
                return reply.text_key in self._known.text_keys
        return reply.key in self._known.reply_keys

    def original(self, reply: Reply, chain: bytes, message: Message, model: str) -> Original:
        """Return the reply as this model gave it; nothing if that is unclear, or nothing was lost.

        chain: the hash of the conversation up to this message, as the client sent it.
        """
        is_waiting = self._waiting and any(value in self._waiting for value in _values(reply))
        if self._logged is None or is_waiting:
            messages = _original(reply, message, self, model)
            return Original(messages, [*map(digest_of, messages)])
        found = self._logged.original(reply, chain, model)
        if found is None:
            found = self._logged.remember(chain, model, _original(reply, message, self, model))
        return found

    @property
    def moment(self) -> Moment | None:
        """When the log was asked; None if it can't be."""
        return self._logged.moment if self._logged is not None else None

    def changed_since(self, moment: Moment) -> set[object] | None:
        """Return keys of replies that may be found now, and could not be; None if all may be."""
        appeared = self._logged.appeared_since(moment) if self._logged is not None else None
        if appeared is None:
            return None
        return {*appeared, *self.waiting_keys()}

    def waiting_keys(self) -> set[object]:
        """Return the keys of replies of turns that are not in the log yet."""
        return {value[0] if isinstance(value, tuple) else value for _, value in self._waiting}

    def messages(self, candidate: Candidate) -> list[Message]:
        if candidate.turn_id in self._pending:
            return self._pending[candidate.turn_id].messages
        assert self._logged is not None, "the candidate is from the log"
        return self._logged.messages(candidate)

    def reply(self, candidate: Candidate) -> list[Message]:
        if candidate.turn_id in self._pending:
            return self._pending[candidate.turn_id].reply
        assert self._logged is not None, "the candidate is from the log"
        return self._logged.reply(candidate)

    def earlier_replies(self, candidate: Candidate) -> set[tuple[str, str]]:
        """Return key and question key of the replies before a turn in its conversation."""
        if candidate.turn_id in self._pending:
            self.check_time()
            messages = self._pending[candidate.turn_id].messages
            earlier = replies(messages, MAX_EARLIER)
            return {(reply.key, reply.question_key) for reply in earlier}
        assert self._logged is not None, "the candidate is from the log"
        return self._logged.earlier_replies(candidate.turn_id)

    def recent_excerpts(self) -> list[Excerpt]:
        return self._logged.recent_excerpts() if self._logged is not None else []


def _values(reply: Reply, level: MatchLevel | None = None) -> Iterator[tuple[MatchLevel, object]]:
    """Yield what another reply must share to match at a level, or at any."""
    for one in (level,) if level is not None else MATCH_LEVELS:
        for value in shared_values(one, reply):
            yield one, value


def _find_previous(
    messages: Sequence[Message], history: Sequence[Reply], recorded: _Recorded, client: str
) -> tuple[str | None, Relation | None]:
    """Find the turn that a request continues, by the newest reply that is known."""
    unsure = 0
    for count, reply in reversed([*enumerate(history)]):
        if match := _pick(recorded.candidates("history", reply), client):
            return match.turn_id, "reply"
        if reply.is_trivial or unsure == MAX_UNSURE:
            continue
        older = history[:count]
        match = _pick(_most_alike(recorded.candidates("question", reply), older, recorded), client)
        if match is None:
            candidates = (
                recorded.candidates("words", reply)
                or recorded.candidates("calls", reply)
                or recorded.candidates("text", reply)
            )
            match = _if_one_conversation(_most_alike(candidates, older, recorded))
            unsure += bool(candidates)
        if match is not None:
            is_compacted = _is_compacted(messages[: reply.index], history, recorded, match)
            return match.turn_id, "compacted" if is_compacted else "reply"
    if any(message.role == "assistant" for message in messages):
        return None, None
    quotes = _find_quotes(messages, recorded.recent_excerpts(), recorded.check_time)
    return next(quotes, (None, None))


def _pick(candidates: Sequence[Candidate], client: str) -> Candidate | None:
    """Among identical conversations, prefer one not continued yet, then one of the same client.

    They can't be told apart, but this way each is continued once, and none twice.
    """
    waiting = [candidate for candidate in candidates if not candidate.is_continued]
    own = [candidate for candidate in waiting or candidates if candidate.client == client]
    finished = [candidate for candidate in own or waiting if candidate.is_finished]
    return next(iter(finished or own or waiting or candidates), None)


def _most_alike(
    candidates: Sequence[Candidate], older: Sequence[Reply], recorded: _Recorded
) -> Sequence[Candidate]:
    """Keep the candidates of the conversations that share most of the older replies.

    Returns none if they share no reply at all, which shows that this is another conversation.
    """
    threads = {candidate.thread_id: candidate for candidate in reversed(candidates)}
    if len(threads) < 2:
        return candidates
    own = {(reply.key, reply.question_key) for reply in older}
    shared = {
        thread_id: _count_shared(own, recorded.earlier_replies(candidate))
        for thread_id, candidate in threads.items()
    }
    most = max(shared.values())
    if not any(most) and not all(reply.is_trivial for reply in older):
        return []
    return [candidate for candidate in candidates if shared[candidate.thread_id] == most]


def _count_shared(one: set[tuple[str, str]], other: set[tuple[str, str]]) -> tuple[int, int]:
    """Count the replies that two conversations share, and those with the same question too."""
    keys, other_keys = ({key for key, _ in pairs} for pairs in (one, other))
    return len(keys & other_keys), len(one & other)


def _if_one_conversation(candidates: Sequence[Candidate]) -> Candidate | None:
    if len({candidate.thread_id for candidate in candidates}) != 1:
        return None
    return candidates[0]


def _is_compacted(
    before: Sequence[Message], history: Sequence[Reply], recorded: _Recorded, match: Candidate
) -> bool:
    """Check whether older replies were replaced by something that was not sent before.

    Some clients just leave out the oldest turns, and continue the same conversation.
    """
    if {key for key, _ in recorded.earlier_replies(match)} <= {reply.key for reply in history}:
        return False
    texts = {"", *map(visible_text, recorded.messages(match))}
    return any(
        message.role != "system" and visible_text(message) not in texts for message in before
    )


def _find_quotes(
    messages: Iterable[Message], excerpts: Iterable[Excerpt], check_time: Callable[[], None]
) -> Iterator[tuple[str, Relation]]:
    """Find recent turns whose tool call or reply a new conversation begins with."""
    parts = (part for message in messages if message.role == "user" for part in message.parts)
    long = cast("Iterator[TextPart]", filter(_may_quote, parts))
    texts = [part.text.strip() for part in islice(long, MAX_QUOTING_TEXTS)]
    while sum(map(len, texts)) > MAX_QUOTING_CHARS:
        texts.pop()
    if not texts:
        return
    for excerpt in excerpts:
        check_time()
        for task in _tasks(excerpt):
            # A sub-agent is given its task and little else.
            if any(task in text and 2 * len(task) >= len(text) for text in texts):
                yield excerpt.turn_id, "call"
        quote = _summary(excerpt.text or "")
        if len(quote) >= TEXT_QUOTE_CHARS and any(quote in text for text in texts):
            yield excerpt.turn_id, "quote"


def _tasks(excerpt: Excerpt) -> list[str]:
    texts = [value.strip() for value in excerpt.arguments.values() if isinstance(value, str)]
    return [text for text in texts if len(text) >= CALL_QUOTE_CHARS][:MAX_TASKS]


def _summary(text: str) -> str:
    """Return the text in summary tags, if any: Claude Code continues with only that."""
    _, tag, inner = text.partition("<summary>")
    return (inner.partition("</summary>")[0] if tag else text).strip()


# ---- recall


def _with_recalled(match: Match, history: History, recorded: _Recorded, model: str) -> Match:
    sent = match.messages
    originals = _originals(sent, history, recorded, model)
    if not originals:
        return match
    messages: list[Message] = []
    digests: list[bytes] = []
    recalled: list[int] = []
    for index, message in enumerate(sent):
        if index in originals:
            original = originals[index]
            recalled += range(len(messages), len(messages) + len(original.messages))
            messages += original.messages
            digests += original.digests
        else:
            messages.append(message)
            digests.append(history.digests[index])
    known = Fingerprinted(messages, digests, history.hasher)
    return replace(match, messages=messages, recalled=frozenset(recalled), history=known)


@dataclass(frozen=True)
class _Recalled:
    """What was recalled for the beginning of a conversation.

    originals: by index, those with messages. places: indexes of replies, by each of their keys.
    unsure: indexes of replies that were not in the log yet. size_bytes: of the originals.
    """

    model: str
    moment: Moment
    originals: dict[int, Original]
    places: dict[object, list[int]]
    unsure: frozenset[int]
    size_bytes: int


def _originals(
    sent: Sequence[Message], history: History, recorded: _Recorded, model: str
) -> dict[int, Original]:
    """Return what is recalled, by the index of the reply that the client sent.

    For the beginning of a conversation it is kept, and holds until a reply with a key of one
    of its replies appears. Only what takes no more memory than the conversation is kept:
    `KnownBodies` counts as much for it.
    """
    count, kept = known_beginning(sent, _RECALLED)
    changed = recorded.changed_since(kept.moment) if kept and kept.model == model else None
    if changed is None:
        kept = _Recalled(model, Moment(None, 0), {}, {}, frozenset(), 0)
    start = count if changed is not None else 0
    again = kept.unsure | _places(kept, changed or (), start)
    first = history.replies[0].index if history.replies else 0
    asked = _since(history.replies, start)
    asked += [reply for reply in history.replies if reply.index in again] if again else []
    recorded.ask(asked)
    found = {index: one for index, one in kept.originals.items() if index >= first}
    for reply in asked:
        index = reply.index
        found[index] = recorded.original(reply, history.chains[index], sent[index], model)
    originals = {index: original for index, original in found.items() if original.messages}
    stable = stable_count(sent)
    if stable > start and recorded.moment is not None:
        beginning = {index: one for index, one in originals.items() if index < stable}
        size = kept.size_bytes + sum(
            message_bytes(one.messages)
            for index, one in beginning.items()
            if index not in kept.originals
        )
        if size and size > message_bytes(sent[:stable]):
            return originals
        for reply in asked:
            for key in (reply.key, reply.text_key, *reply.tool_call_ids):
                if start <= reply.index < stable:
                    kept.places.setdefault(key, []).append(reply.index)
        unsure = _places(kept, recorded.waiting_keys(), stable)
        now = _Recalled(model, recorded.moment, beginning, kept.places, unsure, size)
        keep_beginning(sent, stable, _RECALLED, now, instead_of=count)
    return originals


_RECALLED = "recalled"


def _places(recalled: _Recalled, keys: Iterable[object], end: int) -> frozenset[int]:
    """Return the indexes before the end of replies that have one of the keys."""
    return frozenset(place for key in keys for place in recalled.places.get(key, ()) if place < end)


def _since(replies: Sequence[Reply], start: int) -> list[Reply]:
    """Return the replies from this message on."""
    count = len(replies)
    while count and replies[count - 1].index >= start:
        count -= 1
    return [*replies[count:]]


def _original(reply: Reply, message: Message, recorded: _Recorded, model: str) -> list[Message]:
    """Return the reply as this model gave it; nothing if that is unclear, or nothing was lost.

    Plain reasoning that a client sent back counts as the model's own only if the log has it.
    """
    originals = []
    for original in map(recorded.reply, _recall_candidates(reply, recorded, model)):
        if original not in originals:
            originals.append(original)
    if len(originals) != 1:
        return []
    if originals[0] == [message] and not _has_plain_reasoning(message):
        return []
    (original,) = originals
    # If the client prefilled the reply, it sends back more than the model gave.
    if not have_same_content([message], original) or _has_other_metadata(message, original):
        return []
    return original


def _has_plain_reasoning(message: Message) -> bool:
    """Check whether there is reasoning that no signature shows to be the model's own."""
    return any(
        isinstance(part, ReasoningPart) and not part.provider_metadata for part in message.parts
    )


def _recall_candidates(reply: Reply, recorded: _Recorded, model: str) -> list[Candidate]:
    """Return turns that may have given this reply: what precedes it or its call ids match."""
    levels: list[MatchLevel] = ["history"]
    if not reply.is_trivial:
        levels.append("question")
    if reply.tool_call_ids:
        levels.append("words")
    for level in levels:
        if candidates := recorded.candidates(level, reply):
            # If another model gave this reply here, this model's from elsewhere isn't it.
            return [turn for turn in candidates if turn.is_finished and turn.model == model]
    return []


def _has_other_metadata(message: Message, original: Iterable[Message]) -> bool:
    """Check whether the client sends hidden content of its own, which must not be replaced."""
    ours = [_metadata(part) for recorded in original for part in recorded.parts]
    sent = [metadata for part in message.parts if (metadata := _metadata(part))]
    return not all(any(_is_part_of(one, other) for other in ours) for one in sent)


def _is_part_of(one: object, other: object) -> bool:
    """Check whether a value says nothing that the other does not: APIs don't show all of it."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(name in other and _is_part_of(one[name], other[name]) for name in one)
    return one == other


def _metadata(part: object) -> object:
    return getattr(part, "provider_metadata", None)
