"""Correct what Anthropic's SDK makes of a response that is no stream of a message.

It fails at a bare assertion then, after it has skipped what the provider sent. No SDK is
imported: its objects are known by their methods.
"""

from __future__ import annotations

from typing import Any

from ...core.errors import UpstreamError
from .sent_bodies import SentBody

_BAD_ARGUMENTS = "parse tool parameter JSON"  # in the SDK's message


def correct_messages(resource: Any) -> None:
    """Have a `messages` resource's `stream` raise what the provider sent instead of a message."""
    stream = resource.stream

    def corrected(*arguments: Any, **named: Any) -> _Manager:
        return _Manager(stream(*arguments, **named))

    resource.stream = corrected


class _Manager:
    """The context manager that `messages.stream` returns, of either kind."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._body: SentBody | None = None

    def __enter__(self) -> Any:
        stream = self._manager.__enter__()
        self._body = body = SentBody(stream.response)
        if body.is_no_stream:
            with stream:
                raise body.read()
        return stream

    def __exit__(self, cls: Any, exc: Any, tb: Any) -> None:
        self._manager.__exit__(cls, exc, tb)
        self._raise_better(exc)

    async def __aenter__(self) -> Any:
        stream = await self._manager.__aenter__()
        self._body = body = SentBody(stream.response)
        if body.is_no_stream:
            async with stream:
                raise await body.aread()
        return stream

    async def __aexit__(self, cls: Any, exc: Any, tb: Any) -> None:
        await self._manager.__aexit__(cls, exc, tb)
        self._raise_better(exc)

    def _raise_better(self, exc: BaseException | None) -> None:
        """Raise the error that the SDK had no words, or the wrong type, for."""
        assert self._body is not None
        if isinstance(exc, AssertionError):  # no `message_start` has come
            raise self._body.error() from exc
        if type(exc) is ValueError and _BAD_ARGUMENTS in str(exc):
            # At the piece that makes it no JSON: that one, the rest and the usage are lost.
            raise UpstreamError(f"the model called a tool with invalid JSON: {exc}") from exc
