"""Recorded responses, for clients that refer to them by their ids."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from ..backends.log_source import (
    REQUEST,
    RESPONSE,
    check_damage,
    exchange_failure,
    exchange_request,
)
from ..core import chat
from ..core.errors import NotFound, ProxyError, UpstreamError
from ..core.threads import in_daemon_thread
from ..dialects import Dialect
from ..recorder.database import StoreError
from ..recorder.exchange import Exchange
from ..recorder.reader import LogReader

MAX_READ = 256  # by one request: each may hold a whole conversation


class StoredResponses:
    """The responses in a log, which need not exist yet. None is found without a log."""

    def __init__(self, database: Path | None) -> None:
        self._database = database

    async def load(self, dialect: Dialect, ids: Iterable[str]) -> dict[str, chat.StoredResponse]:
        """Return those of the exchanges that the log has and that came by this dialect.

        They are read in a thread, at most `MAX_READ`; nothing is found if the log can't be
        read.

        Raises:
            UpstreamError: what the log has of one is damaged.
        """
        first = list(islice(ids, MAX_READ))
        found = await in_daemon_thread(partial(self._outcome, dialect, first), "llmproxy-stored")
        if isinstance(found, UpstreamError):
            raise found
        return found

    def _outcome(
        self, dialect: Dialect, ids: list[str]
    ) -> dict[str, chat.StoredResponse] | UpstreamError:
        """Return the error for damage, if any: a thread's exceptions come out as RuntimeError."""
        try:
            return self._load(dialect, ids)
        except UpstreamError as exc:
            return exc

    def _load(self, dialect: Dialect, ids: list[str]) -> dict[str, chat.StoredResponse]:
        found: dict[str, chat.StoredResponse] = {}
        if self._database is None or not ids or not self._database.exists():
            return found
        with suppress(StoreError), LogReader(self._database, asks_models=False) as log:
            for id_ in ids:
                with suppress(NotFound):
                    exchange = log.exchange(id_)
                    if exchange.id == id_ and exchange.dialect == dialect.NAME:
                        recording = _recording(log, exchange)
                        check_damage(exchange, REQUEST)
                        check_damage(recording, RESPONSE)
                        found[id_] = _stored(exchange, recording)
        return found


def _recording(log: LogReader, exchange: Exchange) -> Exchange:
    """Return the exchange that has the reply: of a replay, which has none, the one replayed.

    Raises:
        NotFound: it is not in this log.
    """
    id_ = exchange.replay_of
    if id_ is None:
        return exchange
    recording = log.exchange(id_)
    if recording.id != id_:
        raise NotFound(f"the recording {id_} is not in the log")
    return recording


def _stored(exchange: Exchange, recording: Exchange) -> chat.StoredResponse:
    model, echo = exchange.model_asked or exchange.model_used or "", {}
    try:
        echo = dict(exchange_request(exchange).echo)
    except ProxyError:  # refused then, too
        pass
    response = chat.collect(event for _, event in recording.events)
    if exchange.finish is not None:
        response = replace(response, finish=exchange.finish)
    return chat.StoredResponse(
        body=exchange.request.body,
        envelope=chat.Envelope(exchange.id, int(exchange.received.timestamp()), model, echo=echo),
        response=response,
        status=exchange.status,
        error=None if exchange.finish else exchange_failure(exchange),
    )
