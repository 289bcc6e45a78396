"""A log as a source of recordings for replay."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from ..core import chat, error_meanings
from ..core.errors import InvalidRequest, NotFound, ProxyError, UpstreamError, retry_headers
from ..core.fingerprints import replies, request_keys
from ..dialects import by_name
from ..recorder.exchange import Exchange, first_words
from ..recorder.reader import LogReader
from .replay import Recorded, RecordingSummary

# Recordings, per query, that a request without a match is compared to; and replies of it, the
# newest ones, that are looked up.
MAX_NEAR = 60


REQUEST = frozenset(("headers", "body", "messages"))
RESPONSE = frozenset(("turn", "reply", "timeline", "status", "finish_reason", "stop_sequence"))


def check_damage(exchange: Exchange, needed: frozenset[str]) -> None:
    """Raise UpstreamError if one of these things, `REQUEST` or `RESPONSE`, is damaged."""
    if needed.intersection(exchange.damage):
        raise UpstreamError(f"recording {exchange.id} is damaged; see `llmproxy log --verify`")


def exchange_request(exchange: Exchange) -> chat.ChatRequest:
    """Parse the logged request of an exchange with its dialect.

    Raises:
        ProxyError: the request is invalid, as it was then, or no chat (for embeddings), or its
            dialect is unknown, or what was logged of it is damaged.
    """
    check_damage(exchange, REQUEST)
    try:
        dialect = by_name(exchange.dialect)
    except ValueError as exc:  # imported from another version
        raise NotFound(str(exc)) from exc
    request = dialect.parse_request(exchange.request.body, exchange.request.headers)
    if not request.messages:
        raise InvalidRequest("there is no message to answer")
    return request


def recorded_response(exchange: Exchange) -> Recorded:
    """Return the response of an exchange.

    Raises:
        UpstreamError: it is damaged.
    """
    check_damage(exchange, RESPONSE)
    last_ms = exchange.events[-1][0] if exchange.events else 0.0
    waited_ms = exchange.queue_ms or 0.0  # time in the queue, which is not replayed
    return Recorded(
        exchange.id,
        exchange.model_used or exchange.model_asked or "",
        [(max(at - waited_ms, 0.0), event) for at, event in exchange.events],
        exchange.finish,
        None if exchange.finish else exchange_failure(exchange),
        max((exchange.duration_ms or last_ms) - waited_ms, 0.0),
    )


class Log:
    """The recordings in a logs.db: successful exchanges, and failures of requests without one.

    Replays and benchmark runs are left out.

    writes_nothing: as `LogReader` takes it.

    Raises:
        Unusable: the file does not exist or can't be read.
    """

    def __init__(self, path: Path, *, writes_nothing: bool = False) -> None:
        # A plugin may ask its server.
        self._reader = LogReader(path, asks_models=False, writes_nothing=writes_nothing)
        self._lock = threading.Lock()
        newest = self._rows("select max(number) from proxy_exchanges", {})
        self._newest = newest[0][0] if newest else None  # live responses come after it

    def models(self) -> list[str]:
        """Return the requested model names and llm's ids of the models used."""
        rows = self._rows(_MODELS, {})
        return [name for (name,) in rows]

    def find(self, request: chat.ChatRequest) -> list[str]:
        """Return the ids of the exchanges with this request, the oldest first."""
        key, older = request_keys(request)
        rows = self._rows(_FIND, {"key": key, "older": older, "model": request.model})
        return [id for id, status in rows if status == "ok"] or [id for id, _ in rows]

    def load(self, id: str) -> Recorded:
        """Return the response of an exchange.

        Raises:
            NotFound: it is gone. UpstreamError: it is damaged.
        """
        return recorded_response(self._exchange(id))

    def count(self) -> int:
        """Return the number of recordings that were there when it was opened."""
        rows = self._rows(f"select count(*) {_PLAYED}", {"newest": self._newest})
        return sum(count for (count,) in rows)

    def listed(self) -> list[RecordingSummary]:
        """List these, the oldest first."""
        sql = f"select {_LISTED} {_PLAYED} order by received, number"
        rows = self._rows(sql, {"newest": self._newest})
        return [RecordingSummary(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]

    def requests(self) -> Iterator[tuple[RecordingSummary, chat.ChatRequest]]:
        """Read the requests of all recordings, the oldest first."""
        for summary in self.listed():
            with suppress(ProxyError):
                yield summary, exchange_request(self._exchange(summary.id))

    def near(self, request: chat.ChatRequest) -> Iterator[tuple[str, chat.ChatRequest]]:
        """Yield exchanges that continue the same reply, start with the same text, or are new."""
        values = {
            "model": request.model,
            "first_words": first_words(request.messages),
            "limit": MAX_NEAR,
        }
        ids: dict[str, None] = {}
        for reply in reversed(replies(request.messages, MAX_NEAR)):
            keys = {"key": reply.key, "history": reply.history_key}
            rows = self._rows(_AFTER, values | keys)
            ids.update((id, None) for (id,) in rows)
            if ids:
                break
        for sql in (_SAME_WORDS, _NEWEST):
            ids.update((id, None) for (id,) in self._rows(sql, values))
        for id in ids:
            with suppress(ProxyError):
                exchange = self._exchange(id)
                if not exchange.damage:
                    yield id, exchange_request(exchange)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._reader.close()

    def _exchange(self, id: str) -> Exchange:
        with self._lock:
            return self._reader.exchange(id)

    def _rows(self, sql: str, values: Mapping[str, Any]) -> list[Any]:
        with self._lock:
            return self._reader.rows(sql, values)


# Embeddings have no reason to finish, and nothing to replay.
_FINISHED = "status = 'ok' and finish_reason is not null and replay_of is null and run_id is null"
_MODELS = f"""
    select model_asked from proxy_exchanges where {_FINISHED} and model_asked is not null
    union select model_used from proxy_exchanges where {_FINISHED} and model_used is not null
"""
_FIND = """
    select id, status from proxy_exchanges
    where replay_key in (:key, :older) and replay_of is null
        and (:model in (model_asked, model_used) or :model is null and model_asked is null)
        and (status = 'ok' or status = 'error' and model_used is not null)
    order by received, number
"""
_LISTED = "id, model_asked, model_used, first_words, status = 'error'"
_PLAYED = """
    from proxy_exchanges as listed
    where number <= :newest and replay_key is not null and replay_of is null and run_id is null
    and (
        status = 'ok' or status = 'error' and model_used is not null and not exists (
            select 1 from proxy_exchanges as other
            where other.replay_key = listed.replay_key
                and other.replay_of is null and other.status = 'ok'
        )
    )
"""
_AFTER = f"""
    select id from proxy_exchanges where {_FINISHED} and previous_id in (
        select turn_id from proxy_replies where reply_key = :key and history_key = :history
    ) order by number desc limit :limit
"""
_SAME_WORDS = f"""
    select id from proxy_exchanges where {_FINISHED} and first_words = :first_words
    order by number desc limit :limit
"""
_NEWEST = f"""
    select id from proxy_exchanges where {_FINISHED}
    order by :model in (model_asked, model_used) desc, number desc limit :limit
"""


def exchange_failure(exchange: Exchange) -> ProxyError:
    """Return the error of an exchange, as it was raised.

    Logs of older versions lack the kind of an error, and before that the class of one inside a
    stream, which had status 200, and all details: its words must do.
    """
    message, param, code = exchange.error, exchange.error_param, exchange.error_code
    if message is None:
        message = "the recorded response failed"
    elif param is not None:
        message = message.removeprefix(f"{param}: ")
    status, headers = exchange.error_status, retry_headers(exchange.retry_after_s)
    if exchange.error_kind is None or status is None:
        status = status or exchange.http_status or 0
        return error_meanings.read_error(
            status, [code], message, param=param, code=code, headers=headers
        )
    return error_meanings.recorded_error(
        exchange.error_kind, status, message, param=param, code=code, headers=headers
    )
