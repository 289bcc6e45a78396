"""What a request refers to: recorded responses, whose ids are those of their exchanges.

A body that refers to them is made complete before it is parsed, so that it says everything by
itself: it can be stored, replayed and continued without the log that it came from.

Spec: https://platform.openai.com/docs/guides/conversation-state
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs

from ...core import chat
from .items import ID_PREFIX, exchange_id
from .render_response import render_stored


def may_refer(body: bytes) -> bool:
    """Return whether a request's bytes may refer to recorded responses: few do."""
    return any(mark in body for mark in _MARKS)


# The last two begin an item reference without its type, which may be left out.
_MARKS = (b"previous_response_id", b"item_reference", b'{"id":"', b'{"id": "')


def find_references(body: Any) -> tuple[str, ...]:
    """Return the ids of the exchanges that a body refers to, each once."""
    found = [exchange_id(id_) for id_ in _references(body)]
    return tuple(dict.fromkeys(id_ for id_ in found if id_ is not None))


def _references(body: Any) -> Iterator[str]:
    if not isinstance(body, dict):
        return
    previous, items = body.get("previous_response_id"), body.get("input")
    if isinstance(previous, str):
        yield previous
    for item in items if isinstance(items, list) else ():
        if (id_ := _referred(item)) is not None:
            yield id_


def _referred(item: Any) -> str | None:
    match item:
        case {"type": "item_reference", "id": str(id_)}:
            return id_
        case {"id": str(id_)} if not item.get("type") and "role" not in item:
            return id_
    return None


def resolve_references(body: Any, stored: Mapping[str, chat.StoredResponse]) -> Any:
    """Return a body that refers to nothing: with the conversation before it, and whole items.

    stored: the responses that were found, by the ids of their exchanges. What refers to others
        is left as it is, and refused by `parse_request`.
    """
    if not isinstance(body, dict):
        return body
    resolved = dict(body)
    if isinstance(body.get("input"), list):
        outputs: dict[str, dict[str, Any]] = {}  # by exchange, and then by item
        resolved["input"] = [_item(item, stored, outputs) for item in body["input"]]
    id_ = body.get("previous_response_id")
    previous = stored.get(exchange_id(id_) or "") if isinstance(id_, str) else None
    if previous is None or previous.status != "ok" or not isinstance(previous.body, dict):
        return resolved
    # What was compacted is replaced by the output, and its trigger would ask for it again.
    is_compaction = previous.envelope.echo.get("is_compaction")
    resolved["input"] = [
        *([] if is_compaction else _items(previous.body.get("input"))),
        *_output(previous),
        *_items(resolved.get("input")),
    ]
    del resolved["previous_response_id"]
    resolved["llmproxy"] = {"previous_response_id": id_}
    return resolved


def _items(input_: Any) -> list[Any]:
    if isinstance(input_, str):
        return [{"type": "message", "role": "user", "content": input_}] if input_ else []
    return input_ if isinstance(input_, list) else []


def _item(
    item: Any, stored: Mapping[str, chat.StoredResponse], outputs: dict[str, dict[str, Any]]
) -> Any:
    id_ = _referred(item)
    exchange = exchange_id(id_) or "" if id_ is not None else ""
    response = stored.get(exchange)
    if id_ is None or response is None or response.status != "ok":
        return item
    if exchange not in outputs:  # a request may have ten thousand references to it
        outputs[exchange] = {one["id"]: one for one in _output(response)}
    return outputs[exchange].get(id_, item)


def _output(stored: chat.StoredResponse) -> list[dict[str, Any]]:
    return list(render_stored(stored)["output"])


def stored_id(argument: str) -> str | None:
    """Return the id of the exchange whose response has this id; None if it can't be ours."""
    return exchange_id(argument) if argument.startswith(ID_PREFIX) else None


def render_stored_input(stored: chat.StoredResponse, query: str) -> dict[str, Any]:
    """Render the items of a recorded request, with those of the conversation before it.

    query: of the URL; `order=asc` puts the oldest item first. All items are on one page.

    Spec: https://platform.openai.com/docs/api-reference/responses/input-items
    """
    body = stored.body if isinstance(stored.body, dict) else {}
    data = [
        {"id": f"in_{stored.envelope.id}_{i}", **item}
        for i, item in enumerate(_items(body.get("input")))
        if isinstance(item, dict)
    ]
    if "asc" not in parse_qs(query).get("order", ()):
        data.reverse()
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    return {"object": "list", "data": data, "has_more": False, **ends}


def render_count(count: int) -> dict[str, Any]:
    """Render a count of a request's tokens, here an estimate.

    Spec: https://platform.openai.com/docs/api-reference/responses/input-tokens
    """
    return {"object": "response.input_tokens", "input_tokens": count}


def compaction_body(body: Any) -> Any:
    """Return the body that asks for a conversation to be compacted, as a request with a trigger.

    The response will have the users' messages as they are, and a summary of everything.

    Spec: https://platform.openai.com/docs/api-reference/responses/compact
    """
    if not isinstance(body, dict):
        return body
    items = _items(body.get("input"))
    kept = [_kept(item, i) for i, item in enumerate(items) if _is_users(item)]
    said = body.get("llmproxy") or {}
    return body | {
        "input": [*items, {"type": "compaction_trigger"}],
        "stream": False,
        "llmproxy": said | {"kept": kept} if isinstance(said, dict) else said,
    }


def _is_users(item: Any) -> bool:
    match item:
        case {"role": "user", "content": str() | list()}:
            return item.get("type") in (None, "", "message")
    return False


def _kept(item: dict[str, Any], index: int) -> dict[str, Any]:
    content = item["content"]
    if isinstance(content, str):
        content = [{"type": "input_text", "text": content}]
    return {
        "id": item.get("id") or f"msg_{index}",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": content,
    }
