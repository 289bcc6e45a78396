"""The routing backend: sends a request to the upstream or model that the settings name for it.

If one refuses a request before its first event, the next one is asked: `Attempts` has that rule.
Nothing is asked twice that may have been answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import llm

from ..core import backend, chat
from ..core.errors import InvalidRequest, ProxyError, retry_after_s
from ..core.limits import Limits
from ..dialects import by_name
from .upstream import Upstream, UpstreamChoice
from .upstreams import NamedUpstream, Target, Upstreams

BUSY = 429
MAX_NAME_CHARS = 100  # of a target in `refused_by`: a model's name can be the client's


def is_refusal(status: int) -> bool:
    """Return whether another target may be asked after this status: there was no answer at all.

    All of 5xx are: those of a provider, Anthropic's 529 among them, and ours for no connection.
    """
    return status == BUSY or status >= 500


class Attempts:
    """The targets of one request, asked in order until one does not refuse it.

    target: the one to ask now. refused_by: those that refused, each with its status.
    """

    def __init__(self, targets: Sequence[Target], wait_s: float = 0.0) -> None:
        """Begin with the first target.

        wait_s: the longest wait for one that is busy and says when it is not.
        """
        self._left = list(targets)
        self._wait_s = wait_s
        self.refused_by = ""
        self.target = self._left.pop(0)

    @property
    def has_next(self) -> bool:
        """Whether there is another target to ask if this one refuses."""
        return bool(self._left)

    @property
    def rest(self) -> list[Target]:
        """The target to ask now, and those after it."""
        return [self.target, *self._left]

    async def go_on(self, status: int, headers: Mapping[str, str]) -> bool:
        """Return whether `target` is to be asked, after the last one's response.

        It is the next one, or the same after the wait that its `retry-after` asks for.

        headers: of the response, with lower-case names.
        """
        if not is_refusal(status):
            return False
        wait_s = retry_after_s(headers) if status == BUSY else None
        if wait_s is not None and wait_s <= self._wait_s:
            self._wait_s -= wait_s
            await asyncio.sleep(wait_s)
            if wait_s == 0:  # at once, but not for ever
                self._wait_s = -1.0
            self._note(status)
            return True
        if not self._left:
            return False
        self._note(status)
        self.target = self._left.pop(0)
        return True

    def _note(self, status: int) -> None:
        name = str(self.target).removesuffix(":")[:MAX_NAME_CHARS]
        self.refused_by += f"{', ' if self.refused_by else ''}{name}: {status}"


class Routing:
    """A backend that chooses among upstreams and llm's models; see `Upstreams.route`.

    live: runs llm's models. limits: of upstreams' responses, and of a wait in a queue.
    """

    def __init__(self, upstreams: Upstreams, live: backend.Backend, limits: Limits) -> None:
        self._upstreams = upstreams
        self._live = live
        self._limits = limits

    async def choose(
        self, request: chat.ChatRequest, headers: Sequence[tuple[str, str]] = ()
    ) -> backend.Choice:
        """Choose the first target of a request's model.

        Raises:
            ProxyError: llm has no such model, or the upstream's key is not set.
        """
        return await self.choose_among(self._upstreams.route(request.model), request, headers)

    async def choose_among(
        self,
        targets: Sequence[Target],
        request: chat.ChatRequest,
        headers: Sequence[tuple[str, str]] = (),
        refused_by: str = "",
    ) -> backend.Choice:
        """Choose the first of some targets, the others if it refuses.

        refused_by: what refused the request before.
        """
        attempts = Attempts(targets, self._upstreams.wait_s)
        attempts.refused_by = refused_by
        first = await self._choose_one(attempts.target, request, headers)
        if len(targets) == 1 and not refused_by and not self._upstreams.wait_s:
            return first
        return _Chain(self, attempts, first, headers, self._limits.queue_s)

    async def _choose_one(
        self, target: Target, request: chat.ChatRequest, headers: Sequence[tuple[str, str]]
    ) -> backend.Choice:
        if target.upstream is None:
            if target.model is not None:
                request = replace(request, model=target.model)
            return await self._live.choose(request)
        return self._choose_upstream(target.upstream, target.model, request, headers)

    def _choose_upstream(
        self,
        named: NamedUpstream,
        model: str | None,
        request: chat.ChatRequest,
        headers: Sequence[tuple[str, str]],
    ) -> UpstreamChoice:
        model = model or request.model
        if model is None:
            raise InvalidRequest(f"name a model of the upstream {named.name}", param="model")
        fields = [
            *self._upstreams.converted_credentials(named, headers),
            *self._upstreams.loop_header(named, headers),
        ]
        upstream = Upstream(
            by_name(named.dialect),
            named.chat_url,
            limits=self._limits,
            fields=fields,
            client=self._upstreams.client,
            name=named.name,
        )
        return UpstreamChoice(upstream, named.model_id(model), model, takes_recall=True)


@dataclass(frozen=True)
class _Chain:
    """The choice of a first target, with others after it; see backend.Choice."""

    routing: Routing
    attempts: Attempts
    first: backend.Choice
    headers: Sequence[tuple[str, str]]
    queue_s: float

    @property
    def model_id(self) -> str:
        return self.first.model_id

    @property
    def takes_recall(self) -> bool:
        return self.first.takes_recall

    def prepare(self, request: chat.ChatRequest) -> ChainRun:
        return ChainRun(self, request, self.first.prepare(request))


class ChainRun:
    """The run of the target that does not refuse the request; see backend.Run."""

    # Those of the target's own run.
    model_id: str
    options: Mapping[str, Any]
    tools: tuple[llm.Tool, ...]
    ignored: tuple[str, ...]
    started: datetime
    started_at: float
    setup_ms: float | None
    replay_of: str | None
    runs_in_process: bool
    is_first: bool

    starts_at_once: bool

    def __init__(self, chain: _Chain, request: chat.ChatRequest, first: backend.Run) -> None:
        self._chain = chain
        self._request = request
        self._run = first
        self.starts_at_once = False
        self._refusal: ProxyError | None = None
        self._has_events = False
        self._changing: asyncio.Task[None] | None = None

    async def wait_turn(self, wait_s: float | None) -> bool:
        """Wait for the first target's turn; one that stays busy has refused the request."""
        try:
            return await self._run.wait_turn(wait_s)
        except ProxyError as error:
            self._refusal = error
            return True

    async def start(self) -> None:
        """Start the first target, or the next one if it refuses.

        Raises:
            ProxyError: of the last one.
        """
        try:
            if self._refusal is not None:
                raise self._refusal
            await self._run.start()
        except ProxyError as error:
            self._refusal = None
            await self._change(error)

    async def read(self, silence_s: float | None = None) -> list[backend.Stamped] | None:
        """Return the next events of the target that responds; see backend.Run."""
        if self._has_events:
            return await self._run.read(silence_s)
        while True:
            if self._changing is not None:
                await asyncio.wait({self._changing}, timeout=silence_s)
                if not self._changing.done():
                    return None
                changed, self._changing = self._changing, None
                changed.result()
            try:
                batch = await self._run.read(silence_s)
            except ProxyError as error:
                self._changing = asyncio.create_task(self._change(error))
                continue
            self._has_events = bool(batch)
            return batch

    async def stop(self) -> None:
        """Stop the target that runs."""
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait({self._changing})
            if not self._changing.cancelled():
                self._changing.exception()  # retrieved: nobody waits for it
        await self._run.stop()

    async def _change(self, error: ProxyError) -> None:
        """Start the target that comes after a refusal; raise the last one's."""
        chain = self._chain
        while await chain.attempts.go_on(error.status, error.headers):
            await self._run.stop()
            try:
                choice = await chain.routing._choose_one(
                    chain.attempts.target, self._request, chain.headers
                )
                # In a thread, since it looks at each message of what may be a long history.
                self._run = await asyncio.to_thread(choice.prepare, self._request)
                await self._run.wait_turn(chain.queue_s)
                return await self._run.start()
            except ProxyError as next_error:
                error = next_error
        raise error

    @property
    def upstream(self) -> backend.UpstreamUse:
        """The target that responds, and those that refused."""
        return replace(self._run.upstream, refused_by=self._chain.attempts.refused_by)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)
