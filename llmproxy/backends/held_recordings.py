"""Recordings that are held in memory as a source for replay: those of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import nlargest

from ..core import chat
from ..core.fingerprints import request_key
from ..recorder.exchange import first_words
from .replay import Recorded, RecordingSummary, RequestIndex

MAX_NEAR = 200  # recordings that a request without a match is compared to


@dataclass(frozen=True)
class _Held:
    summary: RecordingSummary
    request: Callable[[], chat.ChatRequest]
    response: Callable[[], Recorded]


class HeldRecordings:
    """A source of recordings that were added one by one."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._index = RequestIndex()
        self._models: dict[str, None] = {}

    def add(
        self,
        summary: RecordingSummary,
        key: str,
        request: Callable[[], chat.ChatRequest],
        response: Callable[[], Recorded],
    ) -> None:
        """Add a recording, unless there is one with its id.

        key: of its request (`request_key`). request, response: read it, each time.
        """
        if summary.id in self._held:
            return
        self._held[summary.id] = _Held(summary, request, response)
        self._index.add(key, summary)
        self.add_models(filter(None, (summary.model_asked, summary.model_used)))

    def add_models(self, names: Iterable[str]) -> None:
        """Add names to the list of models."""
        self._models.update(dict.fromkeys(names))

    def models(self) -> list[str]:
        """Return the names of models, in the order in which they were added."""
        return list(self._models)

    def find(self, request: chat.ChatRequest) -> list[str]:
        """Return the ids of the recordings of a request, in the order in which they were added."""
        return self._index.find(request_key(request), request.model)

    def load(self, id: str) -> Recorded:
        """Return a recorded response."""
        return self._held[id].response()

    def near(self, request: chat.ChatRequest) -> Iterator[tuple[str, chat.ChatRequest]]:
        """Yield recordings, of many only those that begin alike or ask the same model."""
        words = first_words(request.messages)

        def likeness(held: _Held) -> tuple[bool, bool]:
            one = held.summary
            return one.first_words == words, request.model in (one.model_asked, one.model_used)

        for held in nlargest(MAX_NEAR, self._held.values(), key=likeness):
            yield held.summary.id, held.request()

    def count(self) -> int:
        """Return the number of recordings that can be served."""
        return len(self.listed())

    def listed(self) -> list[RecordingSummary]:
        """List these: all but failures of requests with a success."""
        return self._index.listed()

    def requests(self) -> Iterator[tuple[RecordingSummary, chat.ChatRequest]]:
        """Yield all recordings with their requests."""
        for held in self._held.values():
            yield held.summary, held.request()

    def close(self) -> None:
        """Do nothing: no file is open."""
