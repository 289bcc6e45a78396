"""One conversation by every API: the same for the model and the log, continued in any other."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import llm
import pytest
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.core import chat
from llmproxy.core.backend import chat_path
from llmproxy.core.limits import Limits
from llmproxy.dialects import DIALECTS, Dialect
from llmproxy.transport.framing import MAX_FRAME_BYTES
from tests.app.test_app import request
from tests.models import AsyncScript, tool_call, usage
from tests.proxies import Running, running
from tests.wire_cases import hub_json

every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=attrgetter("NAME"))
every_pair = pytest.mark.parametrize(
    "first, second",
    [pytest.param(a, b, id=f"{a.NAME}-{b.NAME}") for a in DIALECTS for b in DIALECTS],
)
both_ways = pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])

PNG = llm.Attachment(type="image/png", content=b"\x89PNG\r\n\x1a\n1")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = (llm.Tool("get_weather", "Tell the weather of a city.", SCHEMA),)
QUESTION = [
    Message("system", [TextPart("Be brief.")]),
    Message("user", [TextPart("Is it warm in this city?"), AttachmentPart(PNG)]),
]
SIGNED = {"anthropic": {"signature": "c2lnbmVk"}}
LOOKS = (
    StreamEvent("reasoning", "It is Oslo.", part_index=0),
    StreamEvent("reasoning", "", part_index=0, provider_metadata=SIGNED),
    StreamEvent("text", "Let me look at it.", part_index=1),
    tool_call("get_weather", {"city": "Oslo", "days": 1}, "toolu_1"),
    usage(9, 5),
)
ANSWERS = ("No, it is cold in Oslo today.", usage(19, 8))


def ask(proxy: Running, dialect: Dialect, asked: chat.ChatRequest) -> list[Message]:
    """Send a request by an API; return the reply as a client of that API sends it back."""
    body = dialect.render_request(asked)[0]
    path = chat_path(dialect.ROUTES)
    status, _, answer = request(proxy, "POST", path, json.loads(json.dumps(body)))
    assert status == 200, answer
    if not asked.stream:
        response = dialect.parse_response(json.loads(answer))
    else:
        decoder, parser = dialect.StreamDecoder(MAX_FRAME_BYTES), dialect.StreamParser()
        frames = decoder.feed(answer) + decoder.end()
        events = [event for frame in frames for event in parser.feed(frame)]
        response = chat.collect(events + parser.end())
    return [Message("assistant", [without_metadata(part) for part in response.parts])]


def without_metadata(part: Any) -> Any:
    return replace(part, provider_metadata=None)


def results(reply: list[Message]) -> list[Message]:
    calls = [part for part in reply[0].parts if hasattr(part, "arguments")]
    output = [
        ToolResultPart(name=call.name, output="4 degrees", tool_call_id=call.tool_call_id)
        for call in calls
    ]
    return [Message("tool", list(output))]


def begin(streams: bool) -> chat.ChatRequest:
    options = {"max_tokens": 50, "temperature": 0.5}
    return chat.ChatRequest("m", QUESTION, TOOLS, options=options, stream=streams)


def converse(proxy: Running, m: AsyncScript, dialects: list[Dialect], streams: bool) -> None:
    """Ask, send the tool's result, and thank: each by the next of the dialects."""
    asked = begin(streams)
    for dialect, steps, after in zip(
        dialects,
        (LOOKS, ANSWERS, ("You are welcome, as always.", usage(30, 7))),
        (results, lambda _: [llm.user("Thank you very much!")], lambda _: []),
        strict=True,
    ):
        m.steps = steps
        reply = ask(proxy, dialect, asked)
        asked = replace(asked, messages=[*asked.messages, *reply, *after(reply)])


def patient(m: AsyncScript, **settings: Any) -> Any:
    return running(m, limits=Limits(log_wait_s=30, shutdown_s=5), **settings)


def hashes(database: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(database) as log:
        return log.execute(
            "select parent_message_hash, tip_message_hash, reply_key, question_key, history_key"
            " from turns join proxy_replies on turn_id = turns.id order by turns.id"
        ).fetchall()


@both_ways
def test_the_model_and_the_log_get_the_same_from_every_api(tmp_path, llm_user_path, streams):
    asked: dict[str, Any] = {}
    logged: dict[str, Any] = {}
    for dialect in DIALECTS:
        m = AsyncScript("m")
        database = tmp_path / f"{dialect.NAME}.db"
        with patient(m, database=database) as proxy:
            # The calls are the client's, with their ids: where clients drop ids, ours are others.
            m.steps = LOOKS[:3] + ANSWERS[1:]
            ask_twice(proxy, m, dialect, streams)
            proxy.wait_for_report(2)
            ids = [(one.previous_id is not None, one.link) for one in proxy.reports]
        assert ids == [(False, None), (True, "reply")]
        asked[dialect.NAME] = [hub_json(prompt.messages) for prompt in m.prompts]
        logged[dialect.NAME] = hashes(database)
    [first, *others] = asked.values()
    assert [message["role"] for message in first[1]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
    ]
    assert all(other == first for other in others)
    [first_hashes, *other_hashes] = logged.values()
    assert len(first_hashes) == 2 and all(other == first_hashes for other in other_hashes)


def ask_twice(proxy: Running, m: AsyncScript, dialect: Dialect, streams: bool) -> None:
    asked = begin(streams)
    reply = ask(proxy, dialect, asked)
    call = ToolCallPart("get_weather", {"city": "Oslo", "days": [1.5, 2]}, tool_call_id="toolu_9x")
    messages = [*QUESTION, *reply, llm.user("And tomorrow?"), Message("assistant", [call])]
    m.steps = ANSWERS
    ask(proxy, dialect, replace(asked, messages=[*messages, *results([messages[-1]])]))


@both_ways
@every_pair
def test_a_conversation_goes_on_in_another_api(llm_user_path, first, second, streams):
    """B25: with the reasoning and the signature that the model gave, and one thread."""
    m = AsyncScript("m")
    with patient(m) as proxy:
        converse(proxy, m, [first, second, first], streams)
        proxy.wait_for_report(3)
    one, two, three = proxy.reports
    assert [report.status for report in proxy.reports] == ["ok"] * 3
    assert (two.previous_id, two.link) == (one.id, "reply")
    assert (three.previous_id, three.link) == (two.id, "reply")
    assert [report.dialect for report in proxy.reports] == [first.NAME, second.NAME, first.NAME]
    for prompt in m.prompts[1:]:
        reply = next(message for message in prompt.messages if message.role == "assistant")
        assert ReasoningPart("It is Oslo.", provider_metadata=SIGNED) in reply.parts


@both_ways
@every_pair
def test_a_recording_is_replayed_by_another_api(llm_user_path, first, second, streams):
    m = AsyncScript("m")
    with patient(m) as proxy:
        m.steps = LOOKS
        ask(proxy, first, begin(streams))
        proxy.wait_for_report()
    with patient(AsyncScript("m"), replay="replay") as proxy:
        reply = ask(proxy, second, begin(not streams))
        proxy.wait_for_report()
    assert proxy.reports[0].replay_of is not None
    texts = [part.text for part in reply[0].parts if isinstance(part, TextPart)]
    calls = [part.arguments for part in reply[0].parts if hasattr(part, "arguments")]
    assert (texts, calls) == (["Let me look at it."], [{"city": "Oslo", "days": 1}])
