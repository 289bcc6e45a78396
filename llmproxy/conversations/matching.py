"""Which conversation a request goes on with, and what its client's wire threw away.

A request is looked through for replies that were recorded. The newest of them says which
turn it goes on from; whether that turn's thread goes on or forks is the writer's to
decide, in its transaction. All of them can be given back as they were recorded, with
reasoning, signatures and provider metadata, so that a model finds them there though the
client's wire can't carry them.

Where it is not sure, memory is silent: two candidates are none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from llm.parts import Message, TextPart

from ..core.fingerprints import (
    MatchLevel,
    Reply,
    have_same_content,
    is_same,
    replies,
    reply_of,
    visible_text,
)
from ..recorder.exchange import Exchange, Relation, Turn
from ..recorder.reader import open_for_reading
from ..recorder.reply_index import Candidate, Excerpt, Replies
from ..recorder.store import SCHEMA_VERSION, StoreError, identity, translated

__all__ = ["Matcher", "Match"]

CALL_QUOTE_CHARS = 40  # of a tool call's argument: a task for a sub-agent says this much
TEXT_QUOTE_CHARS = 80  # of a whole reply: shorter ones are said again by chance
# Replies of several threads that are looked at for one that is of one: each takes as long as
# it was said often, and one request is looked through at a time.
MAX_UNSURE = 8
MAX_WAITING = 64  # turns kept until the log has them; each may hold a whole conversation


@dataclass(frozen=True)
class Match:
    """What the log knows of a request.

    messages: the request's own, those that were recalled in place of what the client sent;
        recalled: their places.
    previous_id: the turn that it goes on from, None where it begins a conversation.
    link: how that is known: by its "reply" in the history; "compacted" where a summary
        stands in place of older ones; "call", "quote" where a new conversation begins with
        what a tool call of it asked for, or with its words.
    """

    messages: list[Message]
    recalled: frozenset[int] = frozenset()
    previous_id: str | None = None
    link: Relation | None = None


class Matcher:
    """A log's recorded replies, for any thread to ask, one at a time.

    path: of the logs.db, which need not be there yet.
    recall: whether replies are given back; threads are found in any case.
    """

    def __init__(self, path: Path, *, recall: bool = True) -> None:
        self._path = path
        self._recall = recall
        self._lock = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._replies: Replies | None = None
        self._waiting: deque[_Waiting] = deque(maxlen=MAX_WAITING)

    def learn(self, exchange: Exchange) -> None:
        """Know a turn from now on, also while the log can't take it yet."""
        if exchange.turn is not None and exchange.thread_id is not None:
            is_finished = exchange.status == "ok"
            self._waiting.append(_Waiting(exchange.turn, exchange.client, is_finished))

    def recollect(self, messages: Sequence[Message], model: str, client: str) -> Match:
        """Look through a request that `client` has for `model` (llm's id); it blocks.

        A log that can't be read now knows nothing but what it is waiting for.
        """
        with self._lock:
            try:
                with translated(self._path):
                    return self._recollect(self._open(), messages, model, client)
            except StoreError:
                self._close()
                return self._recollect(None, messages, model, client)

    def _recollect(
        self, logged: Replies | None, messages: Sequence[Message], model: str, client: str
    ) -> Match:
        waiting = list(self._waiting)  # the event loop may add one at any time
        if logged is not None and waiting:
            there = logged.which_of([turn.candidate.turn_id for turn in waiting])
            for turn in [turn for turn in waiting if turn.candidate.turn_id in there]:
                waiting.remove(turn)
                with suppress(ValueError):  # pushed out by newer ones
                    self._waiting.remove(turn)
        recorded = _Recorded(waiting, logged)
        said = replies(messages)
        previous_id, link = _previous(messages, said, recorded, client)
        recollection = Match(list(messages), previous_id=previous_id, link=link)
        return _recalled(recollection, said, recorded, model) if self._recall else recollection

    def _open(self) -> Replies | None:
        """Open the log where it is not; a file that was replaced is another one."""
        there = identity(self._path)
        if self._replies is None or there != self._identity:
            self._close()
            if there is None:
                return None
            connection, log, version = open_for_reading(self._path)
            if version != SCHEMA_VERSION:  # the writer is about to make the tables
                connection.close()
                return None
            self._replies = Replies(connection, log)
            self._identity = there
        return self._replies

    def close(self) -> None:
        """Close the file, once nobody asks any more."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._replies is not None:
            self._replies.close()
            self._replies = None


class _Waiting:
    """A turn on its way to the log."""

    def __init__(self, turn: Turn, client: str, is_finished: bool) -> None:
        self.turn = turn
        self.candidate = Candidate(
            turn.id, turn.thread_id, turn.model, client, is_finished, is_continued=False
        )

    @cached_property
    def keys(self) -> Reply | None:
        return reply_of(self.turn.messages, self.turn.reply)


class _Recorded:
    """Replies that were recorded: those on their way to the log, the newest first, then its own."""

    def __init__(self, waiting: Iterable[_Waiting], logged: Replies | None) -> None:
        self._waiting = {turn.candidate.turn_id: turn for turn in waiting}
        self._logged = logged

    def find(self, how: MatchLevel, reply: Reply) -> list[Candidate]:
        found = [
            turn.candidate
            for turn in reversed(self._waiting.values())
            if turn.keys is not None and is_same(how, turn.keys, reply)
        ]
        return found + (self._logged.find(how, reply) if self._logged is not None else [])

    def messages(self, known: Candidate) -> list[Message]:
        if known.turn_id in self._waiting:
            return self._waiting[known.turn_id].turn.messages
        assert self._logged is not None, "the candidate is its own"
        return self._logged.messages(known)

    def reply(self, known: Candidate) -> list[Message]:
        if known.turn_id in self._waiting:
            return self._waiting[known.turn_id].turn.reply
        assert self._logged is not None, "the candidate is its own"
        return self._logged.reply(known)

    def before(self, known: Candidate) -> set[tuple[str, str]]:
        """Keys and question keys of the replies that a turn's conversation has before it."""
        if known.turn_id in self._waiting:
            asked = self._waiting[known.turn_id].turn.messages
            return {(reply.key, reply.question_key) for reply in replies(asked)}
        assert self._logged is not None, "the candidate is its own"
        return self._logged.before(known.turn_id)

    def quotable(self) -> list[Excerpt]:
        return self._logged.quotable() if self._logged is not None else []


def _previous(
    messages: Sequence[Message], said: Sequence[Reply], recorded: _Recorded, client: str
) -> tuple[str | None, Relation | None]:
    """Find the turn that a request goes on from, by the newest reply that is known."""
    unsure = 0
    for count, reply in reversed([*enumerate(said)]):
        if known := _first(recorded.find("history", reply), client):
            return known.turn_id, "reply"
        if reply.is_trivial or unsure == MAX_UNSURE:
            continue
        older = said[:count]
        known = _first(_nearest(recorded.find("question", reply), older, recorded), client)
        if known is None:
            alike = (
                recorded.find("words", reply)
                or recorded.find("calls", reply)
                or recorded.find("text", reply)
            )
            known = _of_one_thread(_nearest(alike, older, recorded))
            unsure += bool(alike)
        if known is not None:
            is_compacted = _is_compacted(messages[: reply.index], said, recorded, known)
            return known.turn_id, "compacted" if is_compacted else "reply"
    if any(message.role == "assistant" for message in messages):
        return None, None
    return next(_quotes(messages, recorded.quotable()), (None, None))


def _first(candidates: Sequence[Candidate], client: str) -> Candidate | None:
    """Of conversations that are alike so far, take one that waits, of this client's if it can.

    Nobody can tell them apart; but each then goes on once, and none gets two.
    """
    waiting = [candidate for candidate in candidates if not candidate.is_continued]
    own = [candidate for candidate in waiting or candidates if candidate.client == client]
    finished = [candidate for candidate in own or waiting if candidate.is_finished]
    return next(iter(finished or own or waiting or candidates), None)


def _nearest(
    candidates: Sequence[Candidate], older: Sequence[Reply], recorded: _Recorded
) -> Sequence[Candidate]:
    """Of several threads take those in which most of the older replies were said too.

    None where that tells of all of them that this is another conversation.
    """
    threads = {candidate.thread_id: candidate for candidate in reversed(candidates)}
    if len(threads) < 2:
        return candidates
    here = {(reply.key, reply.question_key) for reply in older}
    shared = {
        thread_id: _shared(here, recorded.before(candidate))
        for thread_id, candidate in threads.items()
    }
    most = max(shared.values())
    if not any(most) and not all(reply.is_trivial for reply in older):
        return []
    return [candidate for candidate in candidates if shared[candidate.thread_id] == most]


def _shared(one: set[tuple[str, str]], other: set[tuple[str, str]]) -> tuple[int, int]:
    """Count the replies that two have in common, and those that answer the same there too."""
    keys, other_keys = ({key for key, _ in said} for said in (one, other))
    return len(keys & other_keys), len(one & other)


def _of_one_thread(candidates: Sequence[Candidate]) -> Candidate | None:
    if len({candidate.thread_id for candidate in candidates}) != 1:
        return None
    return candidates[0]


def _is_compacted(
    before: Sequence[Message], said: Sequence[Reply], recorded: _Recorded, known: Candidate
) -> bool:
    """Say whether older replies have made room for something that was not asked then.

    Some clients only leave the oldest out, and go on with the same conversation.
    """
    if {key for key, _ in recorded.before(known)} <= {reply.key for reply in said}:
        return False
    there = {"", *map(visible_text, recorded.messages(known))}
    return any(
        message.role != "system" and visible_text(message) not in there for message in before
    )


def _quotes(
    messages: Iterable[Message], quotable: Iterable[Excerpt]
) -> Iterator[tuple[str, Relation]]:
    """Find what of the last replies a new conversation begins with."""
    texts = [
        part.text.strip()
        for message in messages
        if message.role == "user"
        for part in message.parts
        if isinstance(part, TextPart) and len(part.text) >= CALL_QUOTE_CHARS
    ]
    if not texts:
        return
    for quote in quotable:
        for task in _tasks(quote):
            # A sub-agent is given its task, and little besides.
            if any(task in text and 2 * len(task) >= len(text) for text in texts):
                yield quote.turn_id, "call"
        words = _summary(quote.text or "")
        if len(words) >= TEXT_QUOTE_CHARS and any(words in text for text in texts):
            yield quote.turn_id, "quote"


def _tasks(quote: Excerpt) -> list[str]:
    arguments = quote.payload.get("arguments", {}).values()
    texts = [value.strip() for value in arguments if isinstance(value, str)]
    return [text for text in texts if len(text) >= CALL_QUOTE_CHARS]


def _summary(text: str) -> str:
    """Claude Code asks for a summary in tags, and goes on with what they hold."""
    _, tag, inner = text.partition("<summary>")
    return (inner.partition("</summary>")[0] if tag else text).strip()


# ---- recall


def _recalled(recollection: Match, said: Iterable[Reply], recorded: _Recorded, model: str) -> Match:
    known = {
        reply.index: original
        for reply in said
        if (original := _original(reply, recollection.messages[reply.index], recorded, model))
    }
    if not known:
        return recollection
    messages: list[Message] = []
    places: list[int] = []
    for index, message in enumerate(recollection.messages):
        given = known.get(index)
        if given is not None:
            places += range(len(messages), len(messages) + len(given))
        messages += given or [message]
    return replace(recollection, messages=messages, recalled=frozenset(places))


def _original(
    reply: Reply, message: Message, recorded: _Recorded, model: str
) -> list[Message] | None:
    """The reply as this model gave it; None where there is not the one, or nothing was lost."""
    originals = []
    for original in map(recorded.reply, _tellers(reply, recorded, model)):
        if original not in originals:
            originals.append(original)
    if len(originals) != 1 or originals[0] == [message]:
        return None
    (original,) = originals
    # A reply to words that were put in its mouth is not all that the client sends of it.
    if not have_same_content([message], original) or _has_other_metadata(message, original):
        return None
    return original


def _tellers(reply: Reply, recorded: _Recorded, model: str) -> list[Candidate]:
    """The turns that may have said it here: what stood before must agree, or the calls' ids."""
    ways: list[MatchLevel] = ["history"]
    if not reply.is_trivial:
        ways.append("question")
    if reply.tool_call_ids:
        ways.append("words")
    for how in ways:
        if found := recorded.find(how, reply):
            # Another model's reply here is not this one's from elsewhere.
            return [turn for turn in found if turn.is_finished and turn.model == model]
    return []


def _has_other_metadata(message: Message, original: Iterable[Message]) -> bool:
    """Whether the client sends hidden content of its own, which is not ours to replace."""
    ours = [_metadata(part) for recorded in original for part in recorded.parts]
    return any(_metadata(part) not in ours for part in message.parts if _metadata(part))


def _metadata(part: object) -> object:
    return getattr(part, "provider_metadata", None)
