"""The models of upstreams, as their servers list them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from ..core import payload
from ..core.backend import ModelEntry
from ..core.dialect_names import DialectName
from ..core.errors import InvalidRequest, ProxyError, UpstreamError
from ..core.limits import Limits
from ..dialects import by_name
from .upstreams import NamedUpstream, Upstreams

logger = logging.getLogger(__name__)

ASK_S = 3.0  # for a whole list: a client waits for all of them
KEPT_S = 30.0  # a list, or that there was none; clients ask at each start
MAX_KEPT = 16  # lists: one for each key with which an upstream is asked
MAX_LIST_BYTES = 2 * 2**20  # OpenRouter's has half a megabyte
_CONTEXT_NAMES = ("context_length", "context_window", "max_input_tokens", "max_model_len")

Fields = list[tuple[str, str]]


class UpstreamModels:
    """Asks upstreams for their models, and keeps the lists for a short time."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        self._kept: dict[bytes, tuple[float, list[ModelEntry]]] = {}

    async def entries(
        self, dialect: DialectName, headers: Sequence[tuple[str, str]]
    ) -> list[ModelEntry]:
        """List the models of all upstreams that can be asked.

        dialect, headers: of the client's request. Its credentials are shown to one upstream at
            most: the only one that speaks its dialect and takes clients' keys.
        """
        asked = [
            (one, fields)
            for one in self._upstreams.servers.values()
            if (fields := self._fields(one, dialect, headers)) is not None
        ]
        return [
            replace(entry, id=self._upstreams.name_in_list(one, entry.id))
            for (one, _), entries in zip(
                asked, await asyncio.gather(*(self._list(*pair) for pair in asked)), strict=True
            )
            for entry in entries
        ]

    async def entry(
        self, name: str, dialect: DialectName, headers: Sequence[tuple[str, str]]
    ) -> ModelEntry | None:
        """Return the entry of a model that goes to an upstream; None if it goes to llm.

        One that the upstream doesn't list may be there all the same, under another name.
        """
        target = self._upstreams.route(name)[0]
        if target.upstream is None:
            return None
        model = target.model or name
        fields = self._fields(target.upstream, dialect, headers)
        listed = [] if fields is None else await self._list(target.upstream, fields)
        found = next((one for one in listed if one.id == model), _entry(target.upstream, model))
        return replace(found, id=name)

    def _fields(
        self, upstream: NamedUpstream, dialect: DialectName, headers: Sequence[tuple[str, str]]
    ) -> Fields | None:
        """Return the header fields with which to ask for a list; None if it can't be asked for."""
        if upstream.key.source == "client":
            others = [
                one
                for one in self._upstreams.servers.values()
                if one.key.source == "client" and dialect in one.dialects
            ]
            if others != [upstream]:
                return None if upstream.is_builtin else self._own_fields(upstream)
        try:
            fields = dict(by_name(upstream.dialect).auth_headers(None))
            credentials = self._upstreams.credentials(upstream, headers)
        except ProxyError as error:  # its key is not set
            logger.warning("no list of the models of %s: %s", upstream.name, error.full_message)
            return None
        if upstream.is_builtin and not credentials:
            return None
        return [*fields.items(), *credentials, *self._upstreams.loop_header(upstream, headers)]

    def _own_fields(self, upstream: NamedUpstream) -> Fields:
        """Return the fields for a server that may need no key, such as a local one."""
        fields = by_name(upstream.dialect).auth_headers(None)
        return [*fields.items(), *self._upstreams.loop_header(upstream)]

    async def _list(self, upstream: NamedUpstream, fields: Fields) -> list[ModelEntry]:
        key = hashlib.sha256(repr((upstream.name, fields)).encode()).digest()
        until, entries = self._kept.get(key, (0.0, []))
        if time.monotonic() < until:
            return entries
        try:
            async with asyncio.timeout(ASK_S):
                entries = [_entry(upstream, *one) for one in await self._ask(upstream, fields)]
        except (ProxyError, TimeoutError) as exc:
            why = exc.message if isinstance(exc, ProxyError) else f"no list within {ASK_S:g} s"
            logger.warning("no list of the models of %s: %s", upstream.name, why)
            entries = []
        self._kept.pop(key, None)
        while len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = time.monotonic() + KEPT_S, entries
        return entries

    async def _ask(
        self, upstream: NamedUpstream, fields: Fields
    ) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the names of the models that an upstream lists, and what it says of each."""
        is_anthropics = upstream.dialect == "anthropic_messages"
        path = "/api/tags" if upstream.dialect == "ollama" else "/v1/models"
        url = upstream.url_for(path, "limit=1000" if is_anthropics else "")
        limits = Limits(body=MAX_LIST_BYTES)
        async with self._upstreams.client.send("GET", url, fields, limits=limits) as response:
            if response.status != 200:  # what it says may quote a key
                raise UpstreamError(f"status {response.status}")
            data = b"".join([piece async for _, piece in response])
        try:
            body = payload.parse(data, limits)
        except InvalidRequest as exc:
            raise UpstreamError("the list is not JSON") from exc
        match body:
            case {"data": [*items]} | {"models": [*items]}:
                return [(name, item) for item in items if (name := _name(item))]
        raise UpstreamError("there are no models in the response")


def _name(item: Any) -> str:
    match item:
        case {"id": str(name)} | {"slug": str(name)} | {"model": str(name)} | {"name": str(name)}:
            return name
    return ""


def _entry(
    upstream: NamedUpstream, model: str, item: Mapping[str, Any] | None = None
) -> ModelEntry:
    said = item or {}
    lengths = (said.get(name) for name in _CONTEXT_NAMES)
    return ModelEntry(
        model,
        upstream.name,
        _created(said),
        is_async=True,
        tools=True,
        schema=True,
        context_length=next((one for one in lengths if type(one) is int and one > 0), None),
    )


def _created(item: Mapping[str, Any]) -> int:
    match item:
        case {"created": int(seconds)}:
            return seconds
        case {"created_at": str(date)} | {"modified_at": str(date)}:
            try:
                return int(datetime.fromisoformat(date).timestamp())
            except (ValueError, OverflowError):
                pass
    return 0
