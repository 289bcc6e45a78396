"""Tool calls of a history and the results that answer them."""

from __future__ import annotations

from collections import OrderedDict

from llm.parts import Message, ToolResultPart

from .errors import InvalidRequest


class PendingToolCalls:
    """The tool calls of a history that still wait for their results.

    Providers refuse a history in which a call has no result, or a result no call. Here it is
    refused too, with the field at fault and the reason.
    """

    def __init__(self) -> None:
        # tool_call_id → name, in the order of the calls; a dict finds its first entry slowly
        # once many before it were removed.
        self._names: OrderedDict[str, str] = OrderedDict()
        self._ids: dict[str, OrderedDict[str, None]] = {}  # name → its calls' ids

    def __bool__(self) -> bool:
        return bool(self._names)

    def has(self, id_: str) -> bool:
        """Return whether a call waits for its result."""
        return id_ in self._names

    def add(self, id_: str, name: str) -> None:
        """Remember a call until its result arrives."""
        if id_ in self._names:  # two calls under one id: the last one counts
            self._remove(id_)
        self._names[id_] = name
        self._ids.setdefault(name, OrderedDict())[id_] = None

    def oldest(self, name: str | None = None) -> str | None:
        """Return the id of the first call that waits, of the tool of this name if given."""
        return next(iter(self._names if name is None else self._ids.get(name, ())), None)

    def take(self, id_: str, param: str) -> str:
        """Forget the call that a result answers and return the tool's name.

        Raises:
            InvalidRequest: no such call waits; `param` is the path of the result's id.
        """
        if id_ not in self._names:
            raise InvalidRequest(f"no tool call {id_!r} waits for a result here", param=param)
        return self._remove(id_)

    def _remove(self, id_: str) -> str:
        name = self._names.pop(id_)
        del self._ids[name][id_]
        return name

    def check_empty(self, param: str) -> None:
        """Check that every call so far has its result.

        Raises:
            InvalidRequest: calls still wait; `param` is the path of what came instead.
        """
        if self._names:
            ids = ", ".join(self._names)
            raise InvalidRequest(f"expected the results of the tool calls {ids} here", param=param)


def append_result(messages: list[Message], result: ToolResultPart) -> None:
    """Append a tool result to a history. Results in a row share one message, as in llm."""
    if messages[-1].role == "tool":
        messages[-1].parts.append(result)
    else:
        messages.append(Message("tool", [result]))
