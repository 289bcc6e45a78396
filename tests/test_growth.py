"""Four times the input of a client or a model costs about four times the work, not sixteen.

Each case is a loop over input whose size others choose. Its lines are counted at one, two and
four times a small size, which shows a loop in a loop exactly. The CPU time at larger sizes shows
what runs in C: texts that are copied or searched again and again.
"""

from __future__ import annotations

import ast
import math
import sys
import time
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple

import llm
import pytest
from llm.parts import Message, StreamEvent, TextPart

import llmproxy
from llmproxy.backends.engine.events import EventReader, StopCutter
from llmproxy.backends.engine.openai_streams import _Chunks
from llmproxy.backends.engine.prompt import build_prompt
from llmproxy.core import chat, payload, token_estimate
from llmproxy.core.errors import ProxyError
from llmproxy.core.fingerprints import replies, request_key
from llmproxy.core.message_diff import first_difference
from llmproxy.core.think_tags import ThinkTagSplitter, split_thinking
from llmproxy.dialects import DIALECTS, anthropic_messages, ollama, openai_chat, openai_responses
from llmproxy.recorder import timeline
from llmproxy.recorder.redact import Redactor
from llmproxy.recorder.request_store import deduplicate
from llmproxy.report.agreement import similarity
from llmproxy.report.html.word_diff import differences
from llmproxy.transport.framing import NDJSONDecoder, SSEDecoder, SSEFrame
from tests.imports import NAMES, tree
from tests.models import AsyncScript

PACKAGE = str(Path(llmproxy.__file__).parent)
STEPS = 20  # the smallest of three sizes at which instructions are counted
CPU = 1_000  # the smaller of two sizes at which time is taken
FACTOR = 4
MOST_QUADRATIC = 0.04  # of the work at the largest size
MOST_CPU = 8  # times the time at FACTOR times the size; a loop in a loop takes 16


class Case(NamedTuple):
    """prepare: makes input of a size, and returns what is measured. scale: of both sizes."""

    name: str
    prepare: Callable[[int], Callable[[], object]]
    scale: float = 1.0


def steps_of(run: Callable[[], object]) -> int:
    """Count the lines that a call executes in this package, each round of a loop as a line."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "call" and not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def seconds_of(prepare: Callable[[], Callable[[], object]], enough: float = 0.0) -> float:
    """Return the CPU time of a call, the least of three.

    enough: where one takes no more than that, there is no need to try again.
    """
    least = math.inf
    for _ in range(3):
        run = prepare()
        began = time.thread_time()
        run()
        least = min(least, time.thread_time() - began)
        if least <= enough:
            break
    return least


# ---- a client's requests


def _openai(messages: Callable[[int], list[Any]], **fields: Any) -> Callable[[int], Any]:
    return lambda n: {"model": "m", "messages": messages(n), **fields}


def _user(text: Any = "Hello there") -> dict[str, Any]:
    return {"role": "user", "content": text}


def _calls(n: int, name: str = "f") -> list[Any]:
    return [
        {"id": f"c{i}x", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for i in range(n)
    ]


def _results_in_turn(n: int) -> list[Any]:
    results = [{"role": "tool", "tool_call_id": f"c{i}x", "content": "ok"} for i in range(n)]
    return [_user(), {"role": "assistant", "tool_calls": _calls(n)}, *results]


def _results_backwards(n: int) -> list[Any]:
    user, assistant, *results = _results_in_turn(n)
    return [user, assistant, *reversed(results)]


def _results_without_ids(n: int) -> list[Any]:
    user, assistant, *results = _results_in_turn(n)
    return [user, assistant, *[{"role": "tool", "content": "ok"} for _ in results]]


def _results_by_name(n: int) -> list[Any]:
    calls = [*_calls(n, "other"), *_calls(0)]
    calls += [
        {"id": f"d{i}x", "type": "function", "function": {"name": "g", "arguments": "{}"}}
        for i in range(n)
    ]
    others = [{"role": "tool", "tool_call_id": f"c{i}x", "content": "ok"} for i in range(n)]
    by_name = [{"role": "function", "name": "g", "content": "ok"} for _ in range(n)]
    return [_user(), {"role": "assistant", "tool_calls": calls}, *by_name, *others]


OPENAI_BODIES: dict[str, Callable[[int], Any]] = {
    "turns": _openai(
        lambda n: [m for i in range(n) for m in (_user(), {"role": "assistant", "content": f"{i}"})]
    ),
    "replies in a row": _openai(
        lambda n: [_user(), *[{"role": "assistant", "content": "So it is."} for _ in range(n)]]
    ),
    "users in a row": _openai(lambda n: [_user() for _ in range(n)]),
    "system messages in a row": _openai(
        lambda n: [_user(), *[{"role": "system", "content": "Be kind"} for _ in range(n)]]
    ),
    "system and user messages": _openai(
        lambda n: [m for _ in range(n) for m in (_user(), {"role": "system", "content": "Be"})]
    ),
    "parts in a message": _openai(
        lambda n: [_user([{"type": "text", "text": "Hello"} for _ in range(n)])]
    ),
    "images": _openai(
        lambda n: [
            _user(
                [
                    {"type": "image_url", "image_url": {"url": f"https://a.org/{i}.png"}}
                    for i in range(n)
                ]
            )
        ]
    ),
    "calls and results": _openai(_results_in_turn),
    "results backwards": _openai(_results_backwards),
    "results without ids": _openai(_results_without_ids),
    "results by name": _openai(_results_by_name),
    "unknown fields": lambda n: {
        "messages": [_user() | {f"field{i}": 1 for i in range(n)}],
        **{f"field{i}": 1 for i in range(n)},
    },
    "tools": lambda n: {
        "messages": [_user()],
        "tools": [
            {"type": "function", "function": {"name": f"a b{i}", "parameters": {"type": "object"}}}
            for i in range(n)
        ],
        "tool_choice": {"type": "function", "function": {"name": f"a b{n - 1}"}},
    },
    "biased tokens": lambda n: {
        "messages": [_user()],
        "logit_bias": {f"{i}": 1 for i in range(n)},
    },
    "a long text": _openai(lambda n: [_user("ä " * 20 * n)]),
    "cache marks": _openai(
        lambda n: [
            _user([{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}] * n)
        ]
    ),
}

ANTHROPIC_BODIES: dict[str, Callable[[int], Any]] = {
    "turns": lambda n: {
        "messages": [
            message
            for i in range(n)
            for message in (_user(), {"role": "assistant", "content": f"reply {i}"})
        ]
    },
    "calls and results": lambda n: {
        "messages": [
            _user(),
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": f"t{i}", "name": "f", "input": {}} for i in range(n)
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": f"t{n - 1 - i}", "content": "ok"}
                    for i in range(n)
                ],
            },
        ]
    },
    "unknown blocks": lambda n: {
        "messages": [
            _user([{"type": "text", "text": "Hi"}, *[{"type": f"b{i}"} for i in range(n)]])
        ]
    },
    "system texts": lambda n: {
        "system": [{"type": "text", "text": "Be kind"} for _ in range(n)],
        "messages": [_user()],
    },
    "server tools": lambda n: {
        "messages": [_user()],
        "tools": [{"type": f"web_search_{i}", "name": f"w{i}"} for i in range(n)],
    },
    "changes of the tools": lambda n: {
        "tools": [{"name": f"f{i}", "input_schema": {"type": "object"}} for i in range(n)],
        "messages": [
            _user(),
            {
                "role": "system",
                "content": [
                    {"type": kind, "tool": {"type": "tool_reference", "name": f"f{i}"}}
                    for i in range(n)
                    for kind in ("tool_removal", "tool_addition")
                ],
            },
        ],
    },
    "thinking": lambda n: {
        "messages": [
            _user(),
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": "x"} for _ in range(n)
                ]
                + [{"type": "text", "text": "So"}],
            },
            _user(),
        ]
    },
}


def _ollama_results(n: int, **named: str) -> list[Any]:
    calls = [{"function": {"name": f"f{i % 2}", "arguments": {}}} for i in range(n)]
    results = [{"role": "tool", "content": "ok", **named} for _ in calls]
    return [_user(), {"role": "assistant", "tool_calls": calls}, *results]


OLLAMA_BODIES: dict[str, Callable[[int], Any]] = {
    "turns": OPENAI_BODIES["turns"],
    "system messages in a row": OPENAI_BODIES["system messages in a row"],
    "results without names": _openai(_ollama_results),
    "results by a name that runs out": _openai(lambda n: _ollama_results(n, tool_name="f1")),
    "images": lambda n: {"prompt": "Look", "images": ["iVBORw0KGgo="] * n},
    "stop sequences": lambda n: {
        "prompt": "Hi",
        "options": {"stop": ["\n"] + ["x" * 2] * min(n, 100), "a": [1] * n},
    },
}


def _request_steps(dialect: Any, body: Any) -> Callable[[], object]:
    """Return all that is done with a request before its model runs, without the log."""
    text = payload.encode({"max_tokens": 10, **body} if dialect is anthropic_messages else body)
    model = AsyncScript("m")
    model.supports_tools = model.supports_schema = True
    model.attachment_types = {"image/png"}

    def run() -> None:
        parsed = payload.parse(text)
        normal = dialect.normalize_body(parsed)
        Redactor().body(normal)
        deduplicate(normal, {})
        request = dialect.parse_request(parsed)
        request_key(request)
        replies(request.messages)
        token_estimate.estimate(request)
        try:
            build_prompt(request, model, {})
        except ProxyError as error:
            assert "URL" in error.message
        for other in DIALECTS:
            other.render_request(request)

    return run


def _input(*items: Any) -> Any:
    return {"model": "m", "input": [{"role": "user", "content": "a"}, *items]}


def _call_item(i: int) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"}


def _output_item(i: int) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"c{i}", "output": "a"}


RESPONSES_BODIES: dict[str, Callable[[int], Any]] = {
    "messages": lambda n: _input(*[{"role": "developer", "content": "a"}] * n),
    "replies in a row": lambda n: _input(*[{"role": "assistant", "content": "a"}] * n),
    "calls at once": lambda n: _input(
        *map(_call_item, range(n)), *map(_output_item, reversed(range(n)))
    ),
    "calls that overlap": lambda n: _input(
        _call_item(0),
        *[item for i in range(n) for item in (_call_item(i + 1), _output_item(i))],
        _output_item(n),
    ),
    "results of one call": lambda n: _input(_call_item(0), *[_output_item(0)] * n),
    "messages within a call": lambda n: _input(
        _call_item(0), *[{"role": "user", "content": "a"}] * n, _output_item(0)
    ),
    "reasoning": lambda n: _input(
        *[{"type": "reasoning", "summary": [], "encrypted_content": "a"}] * n
    ),
    "searches": lambda n: _input(
        *[{"type": "web_search_call", "id": f"ws_{i}", "action": {"a": i}} for i in range(n)]
    ),
    "unknown items": lambda n: _input(*[{"type": "x", "text": "a"}] * n),
    "namespaces": lambda n: {
        **_input(),
        "tools": [
            {"type": "namespace", "name": f"n{i}", "tools": [{"type": "custom", "name": "f"}]}
            for i in range(n)
        ],
    },
}


REQUESTS = [
    Case(f"{dialect.NAME}: {name}", lambda n, d=dialect, b=body: _request_steps(d, b(n)), 0.5)
    for dialect, bodies in (
        (openai_chat, OPENAI_BODIES),
        (anthropic_messages, ANTHROPIC_BODIES),
        (openai_responses, RESPONSES_BODIES),
        (ollama, OLLAMA_BODIES),
    )
    for name, body in bodies.items()
]


# ---- a model's answers


def _text(chunk: str, part: int | None = 0) -> StreamEvent:
    return StreamEvent("text", chunk, part_index=part)


def _name(part: int, id_: str | None = None) -> StreamEvent:
    return StreamEvent("tool_call_name", "f", part_index=part, tool_call_id=id_)


def _args(part: int, chunk: str, id_: str | None = None) -> StreamEvent:
    return StreamEvent("tool_call_args", chunk, part_index=part, tool_call_id=id_)


ANSWERS: dict[str, Callable[[int], list[StreamEvent]]] = {
    "text": lambda n: [_text("word ") for _ in range(n)],
    "text parts": lambda n: [_text("word ", i) for i in range(n)],
    "blank text": lambda n: [_text(" ") for _ in range(n)],
    "thinking and text": lambda n: [
        event
        for i in range(n)
        for event in (StreamEvent("reasoning", "Hm", part_index=2 * i), _text("So", 2 * i + 1))
    ],
    "arguments": lambda n: [_name(0, "a"), *[_args(0, "[", "a") for _ in range(n)]],
    "braces": lambda n: [
        _name(0, "a"),
        _args(0, '{"a": "', "a"),
        *[_args(0, "}", "a") for _ in range(n)],
    ],
    "blank arguments": lambda n: [_name(0, "a"), *[_args(0, " ", "a") for _ in range(n)]],
    "a name in pieces": lambda n: [_name(0, "a") for _ in range(n)],
    "a late name": lambda n: [
        StreamEvent("tool_call_name", "", part_index=0, tool_call_id="a"),
        *[_args(0, " ", "a") for _ in range(n)],
        *[_name(0, "a") for _ in range(n)],
    ],
    "a list as arguments": lambda n: [
        _name(0, "a"),
        _args(0, "[", "a"),
        *[_args(0, "{},", "a") for _ in range(n)],
        _args(0, "{}]", "a"),
    ],
    "white space after a call": lambda n: [
        _name(0, "a"),
        _args(0, "{}", "a"),
        *[_text(" ", 1) for _ in range(n)],
        _text("So", 1),
    ],
    "calls in turn": lambda n: [
        event for i in range(n) for event in (_name(i, f"c{i}"), _args(i, "{}", f"c{i}"))
    ],
    "calls beside one without arguments": lambda n: [
        _name(0, "c"),
        *[e for i in range(1, n) for e in (_name(i, f"c{i}"), _args(i, '{"a": 1}', f"c{i}"))],
    ],
    "calls that never end": lambda n: [
        event for i in range(n) for event in (_name(i, f"c{i}"), _args(i, "{", f"c{i}"))
    ],
    "calls that never end, and text": lambda n: [
        event
        for i in range(n)
        for event in (
            _name(2 * i, f"c{i}"),
            _args(2 * i, "{", f"c{i}"),
            _text("So", 2 * i + 1),
        )
    ],
    "interleaved calls": lambda n: [
        *[_name(i, f"c{i}") for i in range(n)],
        *[_args(i, '{"a": 1', f"c{i}") for i in range(n)],
        *[_args(i, "}", f"c{i}") for i in reversed(range(n))],
    ],
    "text within arguments": lambda n: [
        _name(0, "a"),
        _args(0, "{", "a"),
        *[_text("So", i + 1) for i in range(n)],
        _args(0, "}", "a"),
    ],
    "metadata": lambda n: [
        StreamEvent("reasoning", "", part_index=0, provider_metadata={"x": {f"{i}": i}})
        for i in range(n)
    ],
}


def _answer_steps(
    dialect: Any, events: list[StreamEvent], **envelope_fields: Any
) -> Callable[[], object]:
    """Return all that is done with an answer from the model to the client's stream and the log."""
    envelope = chat.Envelope("id", 0, "m", True, 0, **envelope_fields)

    def run() -> None:
        reader = EventReader(iter(map("call_{}".format, range(10**9))).__next__)
        splitter = ThinkTagSplitter()
        read = [clean for event in events for clean in reader.feed(event)] + reader.end([])
        split = [shown for event in read for shown in splitter.feed(event)]
        renderer = dialect.StreamRenderer(envelope)
        frames = renderer.start()
        for event in [*split, chat.Finish()]:
            frames += renderer.feed(event)
        response = chat.collect([*split, chat.Finish()])
        dialect.render_response(response, envelope)
        timed = [(float(i), event) for i, event in enumerate(split)]
        timeline.decode(timeline.encode(timed), response.messages)
        decoder, parser = dialect.StreamDecoder(2**26), dialect.StreamParser()
        for frame in decoder.feed(b"".join(frames)):
            parser.feed(frame)

    return run


# Forms of a request that have renderers of their own.
FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "completion": (openai_chat, {"form": "completion", "echo": {"prompt": "So"}}),
    "functions": (openai_chat, {"form": "functions"}),
    "generate": (ollama, {"form": "generate"}),
    "custom tool": (openai_responses, {"echo": {"calls": {"f": {"type": "custom", "name": "f"}}}}),
    "tool search": (openai_responses, {"echo": {"calls": {"f": {"type": "tool_search"}}}}),
    "compaction": (openai_responses, {"echo": {"is_compaction": True}}),
}
FORM_ANSWERS = ("text", "arguments", "interleaved calls", "text within arguments")
RESPONSES = [
    *(
        Case(f"{dialect.NAME}: {name}", lambda n, d=dialect, a=answer: _answer_steps(d, a(n)), 0.5)
        for dialect in DIALECTS
        for name, answer in ANSWERS.items()
    ),
    *(
        Case(
            f"{dialect.NAME} ({form}): {name}",
            lambda n, d=dialect, a=ANSWERS[name], e=envelope: _answer_steps(d, a(n), **e),
            0.5,
        )
        for form, (dialect, envelope) in FORMS.items()
        for name in FORM_ANSWERS
    ),
]


def _referring(n: int) -> Callable[[], object]:
    """Refer to each item of a response that has as many."""
    events = [e for i in range(n) for e in (_name(i, f"c{i}"), _args(i, "{}", f"c{i}"))]
    id_ = "0" * 26
    stored = chat.StoredResponse(
        body={"input": "Hi"},
        envelope=chat.Envelope(id_, 0, "m"),
        response=chat.collect([*events, chat.Finish()]),
        status="ok",
        error=None,
    )
    items = [{"type": "item_reference", "id": f"fc_{id_}_{i}"} for i in reversed(range(n))]

    def run() -> None:
        body = openai_responses.resolve_references({"input": items}, {id_: stored})
        assert body["input"][0]["type"] == "function_call"

    return run


def _feed(make: Callable[[], Any], items: Iterable[Any]) -> Callable[[], object]:
    item_list = list(items)

    def run() -> None:
        fed = make()
        for item in item_list:
            fed.feed(item)

    return run


def _announced(events: list[StreamEvent], calls: list[llm.ToolCall]) -> Callable[[], object]:
    def run() -> None:
        reader = EventReader(iter(map("call_{}".format, range(10**9))).__next__)
        for event in events:
            reader.feed(event)
        assert reader.end(calls) == []

    return run


def _chunk(call: dict[str, Any]) -> SSEFrame:
    return SSEFrame(
        "message", payload.encode({"choices": [{"delta": {"tool_calls": [call]}}]}).decode()
    )


def _sdk_chunks(n: int, **call: Callable[[int], Any]) -> Callable[[], object]:
    """Feed chunks of the SDK, each with a piece of a call, as llm's plugins read them."""

    def piece(i: int) -> Any:
        made = {name: of(i) for name, of in call.items()}
        function = SimpleNamespace(
            name=made.pop("name", None), arguments=made.pop("arguments", None)
        )
        delta = SimpleNamespace(tool_calls=[SimpleNamespace(function=function, **made)])
        return SimpleNamespace(choices=[SimpleNamespace(delta=delta)])

    tools = [{"function": {"name": "f"}}]
    return _feed(lambda: _Chunks({"tools": tools}), map(piece, range(n)))


PARTS = [
    Case("references to items", _referring, 0.5),
    *(
        Case(f"a provider's {name}", lambda n, c=call: _sdk_chunks(n, **c), 0.5)
        for name, call in {
            "calls": {"index": int, "id": str, "name": lambda i: "f", "arguments": lambda i: "{}"},
            "calls without index": {"id": str, "name": lambda i: "f", "arguments": lambda i: "{}"},
            "calls without arguments": {"index": int, "id": str, "name": lambda i: "g"},
            "name in pieces": {"index": lambda i: 0, "name": lambda i: "f" * 20},
            "arguments before a name": {"index": lambda i: 0, "arguments": lambda i: "{" * 20},
        }.items()
    ),
    Case("think tags in one chunk", lambda n: lambda: split_thinking("<think></think>" * n), 6),
    Case("opening tags", lambda n: lambda: split_thinking("<think>" * n)),
    Case(
        "system messages that join a user's",
        lambda n: (
            lambda: build_prompt(
                chat.ChatRequest("m", [llm.user("Hi"), *[llm.system("Be kind")] * n]),
                AsyncScript("m"),
                {},
            )
        ),
        4,
    ),
    *(
        Case(
            f"{dialect.NAME}: {name}",
            lambda n, d=dialect, e=events: _feed(
                lambda: d.StreamRenderer(chat.Envelope("id", 0, "m", True, 0)), e(n)
            ),
            4,
        )
        for dialect in DIALECTS
        for name, events in (
            ("long blank arguments", lambda n: [_name(0, "a"), *[_args(0, " " * 20, "a")] * n]),
            ("long blank text", lambda n: [_text(" " * 20)] * n),
            ("long arguments", lambda n: [_name(0, "a"), *[_args(0, "}" * 20, "a")] * n]),
            (
                "long strings in arguments",
                lambda n: [_name(0, "a"), _args(0, '{"', "a"), *[_args(0, "}" * 20, "a")] * n],
            ),
            *(
                (
                    f"many {name} in arguments",
                    lambda n, before=before, piece=piece: [
                        _name(0, "a"),
                        _args(0, before, "a"),
                        *[_args(0, piece, "a")] * n,
                    ],
                )
                for name, before, piece in (
                    ("digits", '{"a": ', "9" * 20),
                    ("brackets", '{"a": ', "[" * 20),
                    ("halves of characters", '{"a": "', r"\ud800"),
                    ("backslashes", '{"a": "', "\\"),
                )
            ),
        )
    ),
    Case("beginnings of tags", lambda n: lambda: split_thinking("<" * n)),
    Case(
        "beginnings of tags in chunks",
        lambda n: _feed(ThinkTagSplitter, [_text("<thin") for _ in range(n)]),
    ),
    Case(
        "stop sequences in one chunk",
        lambda n: _feed(lambda: StopCutter(["ab" * 99 + "c", "abd"]), [_text("ab" * n)]),
    ),
    Case(
        "stop sequences in chunks",
        lambda n: _feed(lambda: StopCutter(["ab" * 9 + "c"]), [_text("ab") for _ in range(n)]),
    ),
    Case(
        "announced calls without ids",
        lambda n: _announced(
            [e for i in range(n) for e in (_name(i), _args(i, f'{{"a": {i}}}'))],
            [llm.ToolCall("f", {"a": i}, f"made_up_{i}") for i in reversed(range(n))],
        ),
        0.5,
    ),
    Case(
        "calls under one number",
        lambda n: _feed(
            lambda: EventReader(iter(map("call_{}".format, range(10**9))).__next__),
            [e for i in range(n) for e in (_name(0, "a"), _args(0, "{}", "a"))],
        ),
    ),
    Case(
        "parts of two families",
        lambda n: _feed(
            lambda: EventReader(str),
            [e for i in range(n) for e in (_text("a", i), StreamEvent("reasoning", "b", i))],
        ),
    ),
    Case("SSE lines", lambda n: _feed(SSEDecoder, [b"data: a\n" * n + b"\n"]), 10),
    Case("SSE bytes", lambda n: _feed(SSEDecoder, [b"x"] * n + [b"\n\n"]), 10),
    Case("SSE comments", lambda n: _feed(SSEDecoder, [b": a\r\n\r\n" * n]), 10),
    Case("NDJSON bytes", lambda n: _feed(NDJSONDecoder, [b"x"] * n + [b"\n"]), 10),
    Case(
        "an upstream's calls",
        lambda n: _feed(
            openai_chat.StreamParser,
            [
                _chunk({"index": i, "id": f"c{i}", "function": {"name": "f", "arguments": "{}"}})
                for i in range(n)
            ],
        ),
        0.5,
    ),
    Case(
        "an upstream's calls without index",
        lambda n: _feed(
            openai_chat.StreamParser,
            [
                _chunk({"id": f"c{i}", "function": {"name": "f", "arguments": "{}"}})
                for i in range(n)
            ],
        ),
        0.5,
    ),
    Case(
        "an upstream's name in pieces",
        lambda n: _feed(
            openai_chat.StreamParser, [_chunk({"index": 0, "function": {"name": "f" * 20}})] * n
        ),
        0.5,
    ),
    Case(
        "the difference of two texts",
        lambda n: (
            lambda: first_difference(
                [Message("user", [TextPart("a" * 100 * n + "b")])],
                [Message("user", [TextPart("a" * 100 * n + "c")])],
            )
        ),
    ),
    Case("words in common", lambda n: lambda: similarity("a b " * n, "b c " * n), 10),
    Case("changed words", lambda n: lambda: differences("a " * 1000, "b" * 100 * n)),
    Case(
        "changes of long words",
        lambda n: (
            lambda: differences(
                " ".join("a" * n for _ in range(99)), " ".join("b" * n for _ in range(99))
            )
        ),
    ),
    Case(
        "many changes",
        lambda n: (
            lambda: differences(
                " ".join(f"a{i}" for i in range(n)), " ".join(f"b{i}" for i in range(n))
            )
        ),
        0.5,
    ),
]


CASES = [*REQUESTS, *RESPONSES, *PARTS]

# Classes that are fed piece by piece, each in a case above unless it is said where else.
FED = {
    "backends.engine.events": {"EventReader", "StopCutter"},
    "backends.engine.openai_streams": {
        "_Chunks",
        "_ResponseEvents",  # keeps nothing
    },
    "backends.passthrough": {"ResponseCopy"},  # a dialect's StreamDecoder and StreamParser
    "convert": {
        "StreamConverter",  # a dialect's StreamParser and another's StreamRenderer
        "Collector",  # the same with render_response
    },
    "core.argument_text": {"ArgumentText"},  # within renderers
    "core.think_tags": {
        "ThinkTagSplitter",
        "_Scanner",  # within it
    },
    "dialects.anthropic_messages.parse_response": {"StreamParser"},
    "dialects.anthropic_messages.render_response": {"StreamRenderer"},
    "dialects.ollama.parse_response": {"StreamParser"},
    "dialects.ollama.render_response": {"StreamRenderer"},
    "dialects.openai_chat.completions": {"CompletionStreamRenderer"},
    "dialects.openai_chat.parse_response": {"StreamParser"},
    "dialects.openai_chat.render_response": {"ChatStreamRenderer"},
    "dialects.openai_responses.parse_response": {"StreamParser"},
    "dialects.openai_responses.render_response": {"StreamRenderer"},
    "transport.framing": {"SSEDecoder", "NDJSONDecoder"},
    # tests/transport: test_single_bytes_take_linear_time, and what is decoded of a body
    "transport.http11": {"RequestParser"},
    "transport.content_coding": {"BodyDecoder"},
    "transport.response_parser": {"ResponseParser"},
}


def test_all_that_is_fed_and_every_dialect_have_cases():
    found: dict[str, set[str]] = {}
    for module in NAMES:
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.ClassDef) or "Protocol" in map(ast.unparse, node.bases):
                continue
            if any(isinstance(one, ast.FunctionDef) and one.name == "feed" for one in node.body):
                found.setdefault(module, set()).add(node.name)
    assert found == FED
    for dialect in DIALECTS:
        assert sum(case.name.startswith(f"{dialect.NAME}: ") for case in REQUESTS) > 5
        assert sum(case.name.startswith(f"{dialect.NAME}: ") for case in RESPONSES) > 5


@pytest.mark.parametrize("case", CASES, ids=attrgetter("name"))
def test_work_grows_with_the_input_and_no_faster(case, monkeypatch):
    # Texts with fewer brackets are not searched for depth, which would look like growth.
    monkeypatch.setattr(payload, "MAX_DEPTH", STEPS)
    case.prepare(STEPS)()  # what is made at first use counts for no size
    one, two, four = (steps_of(case.prepare(n * STEPS)) for n in (1, 2, 4))
    quadratic = (four - 3 * two + 2 * one) / 6  # c of a + b n + c n², at n = 1
    assert 16 * quadratic <= MOST_QUADRATIC * four, f"{one:,}, {two:,}, {four:,} lines"


@pytest.mark.parametrize(
    "case",
    [*(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in PARTS), *PARTS],
    ids=attrgetter("name"),
)
def test_time_grows_with_the_input_and_no_faster(case):
    size = int(CPU * case.scale)
    short = seconds_of(lambda: case.prepare(size))
    most = MOST_CPU * short + 0.02
    long = seconds_of(lambda: case.prepare(FACTOR * size), most)
    assert long <= most, f"{short:.4f} and {long:.4f} s"
