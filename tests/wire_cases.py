"""Captures of real traffic in `tests/wire/<dialect>/<case>/`, and our values as JSON.

request.json   the body that the client sent
hub.json       the chat.ChatRequest that it parses as, without fields at their defaults
events.json    the events of the response, if there is one
response.json  that response whole, in the dialect
stream.txt     that response streamed, byte for byte
note.txt       the client, its version if known, and what is odd
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import llm
from llm.parts import Message, StreamEvent

from llmproxy.core import chat
from llmproxy.core.usage import Usage

WIRE = Path(__file__).parent / "wire"

ANSWER_ID = "01k0answer"
ANSWER_CREATED = 1_767_225_600


@dataclass(frozen=True)
class WireCase:
    """One capture; the fields of a response are None if it has none."""

    name: str
    request: Any
    hub: dict[str, Any]
    note: str
    events: list[chat.Event] | None
    response: dict[str, Any] | None
    stream: bytes | None


def wire_cases(dialect: str, *, answered: bool = False) -> list[WireCase]:
    """Read all captures of a dialect, or those with a response."""
    cases = [_case(folder) for folder in sorted((WIRE / dialect).iterdir())]
    assert cases
    return [case for case in cases if case.events is not None or not answered]


def envelope(
    model: str | None = "m",
    *,
    include_usage: bool = True,
    input_tokens: int = 0,
    form: str = "",
    echo: Mapping[str, Any] | None = None,
) -> chat.Envelope:
    """Make the envelope of the captures' responses."""
    return chat.Envelope(
        ANSWER_ID, ANSWER_CREATED, model or "", include_usage, input_tokens, form, echo or {}
    )


def _case(folder: Path) -> WireCase:
    events = _json(folder / "events.json")
    stream = folder / "stream.txt"
    return WireCase(
        name=folder.name,
        request=_json(folder / "request.json"),
        hub=_json(folder / "hub.json"),
        note=(folder / "note.txt").read_text("utf-8"),
        events=None if events is None else [event_of(value) for value in events],
        response=_json(folder / "response.json"),
        stream=stream.read_bytes() if stream.exists() else None,
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def event_of(value: dict[str, Any]) -> chat.Event:
    """Make an event of its JSON: a StreamEvent's fields, or `{"finish": {…}}`."""
    if "finish" not in value:
        return StreamEvent(**value)
    finish = dict(value["finish"])
    if "durations" in finish:
        finish["durations"] = chat.Durations(**finish["durations"])
    return chat.Finish(**finish | {"usage": Usage(**finish.get("usage", {}))})


def hub_json(value: Any) -> Any:
    """Return a value as JSON: messages in llm's own format, without fields at their defaults."""
    match value:
        case Message():
            return value.to_dict()
        case llm.Tool():
            tool = {"name": value.name, "description": value.description}
            return tool | {"input_schema": value.input_schema}
        case Mapping():
            return {name: hub_json(item) for name, item in value.items()}
        case list() | tuple():
            return [hub_json(item) for item in value]
    if not is_dataclass(value):
        return value
    shown = {}
    for field in fields(value):
        if not field.compare:  # what only a renderer reads
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if getattr(value, field.name) != default:
            shown[field.name] = hub_json(getattr(value, field.name))
    return shown
