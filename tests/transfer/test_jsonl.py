from __future__ import annotations

import base64
import codecs
import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import Message, TextPart, ToolCallPart, ToolResultPart

from llmproxy.core import attachments, chat
from llmproxy.core.errors import InvalidRequest
from llmproxy.recorder.exchange import Turn, begun, encode, to_json
from llmproxy.recorder.store import Store
from llmproxy.transfer.jsonl import begins_an_export, decode, indent, read_lines
from tests.examples import many_examples
from tests.log_fixtures import ended_as
from tests.strategies import conversations, event_streams, json_values, texts, tools, words

RECEIVED = datetime(2026, 11, 21, 22, 47, 1, 500, tzinfo=UTC)
ID = "01jd0000000000000000000001"


@st.composite
def exchanges(draw):
    """Exchanges that have ended, in any way."""
    events = draw(event_streams())
    finish = events.pop()
    turn = Turn(
        id=ID,
        thread_id=ID,
        model=draw(words),
        messages=draw(conversations()),
        reply=chat.collect(events).messages,
        started=RECEIVED,
        duration_ms=12,
        resolved_model=draw(st.none() | words),
        options=draw(st.none() | st.just({"temperature": 0.5, "stop_sequences": ["END"]})),
        tools=tuple(draw(st.lists(tools(), max_size=2))),
        schema=draw(st.none() | st.just({"type": "object"})),
        usage=draw(st.just(llm.Usage()) | st.just(llm.Usage(3, 4, {"cached": 1}))),
        response_json=draw(st.none() | st.dictionaries(texts(), json_values(4), max_size=2)),
    )
    status = draw(st.sampled_from(["ok", "error", "cancelled"]))
    exchange = ended_as(
        begun(
            ID,
            RECEIVED,
            dialect="openai_chat",
            path="/v1/chat/completions",
            query=draw(st.sampled_from(["", "beta=true"])),
            client=draw(words),
            headers=draw(st.lists(st.tuples(words, words), max_size=2)),
            body=draw(json_values()),
            stream=draw(st.booleans()),
            model=draw(st.none() | words),
            messages=turn.messages,
            replay_key=draw(st.none() | words),
        ),
        status,
        http_status=draw(st.none() | st.just(200)),
        duration_ms=1.5,
        turn=turn if events else draw(st.just(turn) | st.none()),
        events=[(i * 0.3, event) for i, event in enumerate(events)],
        finish=finish if status == "ok" else None,
        error=draw(st.none() | texts()),
        ignored=draw(st.lists(words, max_size=2)),
    )
    if draw(st.booleans()):
        exchange = replace(exchange, previous_id=ID[:-1] + "0", link="reply", recalled=1)
    return exchange


@many_examples(15)
@given(exchanges())
def test_a_line_reads_back_equal(exchange):
    line = encode(exchange)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    read = decode(line)
    assert to_json(read) == to_json(exchange)
    assert replace(read, events=()) == replace(exchange, events=())


@many_examples(40)
@given(st.lists(st.tuples(exchanges(), st.booleans()), max_size=3), st.booleans())
def test_indented_exchanges_and_lines_are_read_back_equal(listed, has_mark):
    """In one file, in any order."""
    written = [(encode(exchange), indented) for exchange, indented in listed]
    data = b"".join(indent(line) if indented else line for line, indented in written)
    assert not data or begins_an_export(data)
    file = BytesIO(codecs.BOM_UTF8 * has_mark + data)
    found = [decode(line) for _, line in read_lines(file)]
    assert [encode(exchange) for exchange in found] == [line for line, _ in written]


def test_an_indented_exchange_that_was_cut_is_given_with_its_line(make_exchange):
    whole = indent(encode(make_exchange()))
    cut = whole[: whole.rindex(b"\n}")]
    data = b"\n" + cut + b"\n" + whole + encode(make_exchange()) + cut
    places = [(place, line.startswith(b"{"), line.rstrip().endswith(b"}"))
              for place, line in read_lines(BytesIO(data))]  # fmt: skip
    lines = whole.count(b"\n")
    assert places == [
        (2, True, True),  # the end of a member
        (1 + lines, True, True),
        (1 + 2 * lines, True, True),
        (2 + 2 * lines, True, True),
    ]
    with pytest.raises(InvalidRequest, match="not JSON"):
        decode(next(read_lines(BytesIO(data)))[1])


@pytest.mark.parametrize("indented", [True, False])
@pytest.mark.parametrize(
    "wrong, message",
    [
        (b"\x01", "it is not JSON: Invalid control character at line {} column {}"),
        (b"\xff", "it is not UTF-8 (line {}, byte {})"),
    ],
)
def test_an_error_names_the_line_of_the_file(make_exchange, indented, wrong, message):
    written = indent(encode(make_exchange())) if indented else encode(make_exchange())
    place = written.index(b"/v1/")
    data = written + b"\n" + written[:place] + wrong + written[place:]
    at = data.index(wrong)
    line, start = data.count(b"\n", 0, at) + 1, data.rindex(b"\n", 0, at) + 1
    number, damaged = [*read_lines(BytesIO(data))][1]
    assert number == written.count(b"\n") + 2
    assert (line > number) is indented
    with pytest.raises(InvalidRequest) as caught:
        decode(damaged, number)
    first = 1 if wrong == b"\x01" else 0
    assert caught.value.message == message.format(line, at - start + first)


def test_what_is_too_deep_to_be_indented_stays_a_line():
    line = b"[" * 5000 + b"]" * 5000
    assert indent(line) is line


def test_values_without_a_json_form_are_replaced(make_exchange):
    odd = {"logprob": float("-inf"), "half": "\ud800"}
    read = decode(encode(make_exchange(response_json=odd)))
    assert read.turn.response_json == {"logprob": None, "half": "\ufffd"}


def test_an_older_versions_line_is_read(make_exchange):
    form = to_json(make_exchange())
    names = "replay_key origin previous_id link recalled replay_of run_id recorded_id repeat"
    for name in (*names.split(), "setup_ms"):
        del form[name]
    assert decode(json.dumps(form).encode()).previous_id is None


def test_a_time_of_another_zone_is_the_same_time(make_exchange):
    form = to_json(make_exchange())
    form["received"] = "2026-11-22T00:47:01.000500+02:00"
    assert decode(json.dumps(form).encode()).received.isoformat() == RECEIVED.isoformat()


def whole(make_exchange):
    """JSON values with one of everything."""
    picture = llm.Attachment(type="image/png", content=b"\x89PNG")
    far = attachments.attachment_from_url("https://example.invalid/cat.png")
    exchange = make_exchange(
        messages=[
            llm.system("be brief"),
            llm.user("look", picture, far),
            llm.assistant(ToolCallPart("look", {"a": 1}, "c1")),
            Message("tool", [ToolResultPart("look", "red", "c1", attachments=[picture])]),
        ],
        reply=[Message("assistant", [TextPart("it is"), ToolCallPart("look", {"b": "c"}, "c2")])],
        tools=(llm.Tool("look", "look at it", {"type": "object"}),),
        options={"temperature": 0.5},
        schema={"type": "object"},
        response_json={"id": "r1"},
    )
    return to_json(exchange)


def cut_ticks(form):
    form["timeline"]["ticks"] = form["timeline"]["ticks"][:-4]


def put(*path, value):
    def change(form):
        *places, last = path
        for place in places:
            form = form[place]
        form[last] = value

    return change


USER = ("turn", "messages", 1, "parts")
HOSTILE = {
    "an id that is none": (put("id", value="../x"), "id"),
    "a running one": (put("status", value="running"), "status"),
    "another id": (put("turn", "id", value="0" * 26), "turn.id"),
    "no field": (lambda form: form.pop("path"), "path"),
    "a field of a newer version": (put("colour", value=1), "colour"),
    "a time without a zone": (put("received", value="2026-11-21"), "received"),
    "no time": (put("turn", "started", value="soon"), "turn.started"),
    "a time before all": (put("received", value="0001-01-01T00:00:00+14:00"), "received"),
    "a number beyond SQLite": (put("usage", "input_tokens", value=2**63), "usage.input_tokens"),
    "a thread of nothing": (put("turn", value=None), "thread_id"),
    "a path": (put(*USER, 1, "attachment", value={"type": "a/b", "path": "/etc/passwd"}),
               "turn.messages[*].parts[*].attachment.path"),
    "no type": (put(*USER, 2, "attachment", value={"url": "http://127.0.0.1:9/"}),
                "turn.messages[1].parts[2].attachment.type"),
    "an empty type": (put(*USER, 2, "attachment", "type", value=""),
                      "turn.messages[1].parts[2].attachment.type"),
    "a file's URL": (put(*USER, 2, "attachment", "url", value="file:///etc/passwd"),
                     "turn.messages[1].parts[2].attachment.url"),
    "a data URL": (put(*USER, 2, "attachment", "url", value="data:a/b,x"),
                   "turn.messages[1].parts[2].attachment.url"),
    "both": (put(*USER, 2, "attachment", "content", value="AAAA"),
             "turn.messages[1].parts[2].attachment"),
    "no base64": (put(*USER, 1, "attachment", "content", value="?"),
                  "turn.messages[1].parts[1].attachment.content"),
    "a path in a result": (
        put("turn", "messages", 3, "parts", 0, "attachments", 0, "path", value="/etc/passwd"),
        "turn.messages[*].parts[*].attachments[*].path"),
    "an exchange before itself": (
        lambda form: form.update(previous_id=form["id"]), "previous_id"),
    "a run of itself": (lambda form: form.update(recorded_id=form["id"]), "recorded_id"),
    "an unknown part": (put(*USER, 0, "type", value="file"), "turn.messages[1].parts[0].type"),
    "an unknown role": (put("turn", "messages", 0, "role", value="root"), "turn.messages[0].role"),
    "another answer": (put("turn", "reply", 0, "parts", 0, "text", value="x"), "timeline"),
    "a cut timeline": (cut_ticks, "timeline"),
    "a timeline of garbage": (put("timeline", "ticks", value="?"), "timeline"),
    "a number without end": (
        put("timeline", "ticks", value=base64.b64encode(b"\xff" * 10**6).decode()), "timeline"),
    "parts that are one": (
        lambda form: form["timeline"]["parts"].append({"empty": True}), "timeline"),
}  # fmt: skip


@pytest.mark.parametrize("change, param", HOSTILE.values(), ids=HOSTILE)
def test_a_bad_field_is_refused_by_its_path(make_exchange, change, param):
    form = whole(make_exchange)
    change(form)
    with pytest.raises(InvalidRequest) as refused:
        decode(json.dumps(form).encode())
    assert refused.value.param == param


@pytest.mark.parametrize("line", [b"", b"\xff", b"[]", b"{", b"null", b"[" * 10**6, b'{"id":NaN}'])
def test_other_text_than_a_json_object_is_refused(line):
    with pytest.raises(InvalidRequest):
        decode(line)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, member in items:
        if isinstance(member, dict | list):
            yield from places(member, (*path, key))
        else:
            yield (*path, key)


ODD = [
    None, True, 0, -1, 1.5, 10**30, "", "x", "/etc/passwd", [], [1], {}, {"a": 1}, {"$": ["x"]},
    {"$": "r:0"}, [[]], {"type": "text", "text": "x"}, "2026-01-01T00:00:00+00:00", "file:///x",
]  # fmt: skip


@many_examples(150, deadline=None)
@given(st.data())
def test_a_changed_line_is_refused_or_can_be_stored(stored, data):
    """Any change leads to one clear error, or to rows that can be read."""
    form, store = stored
    form = copy.deepcopy(form)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in places(form) if path]))
        holder = form
        for key in path[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()):
            odd = st.sampled_from(ODD).map(copy.deepcopy)
            holder[path[-1]] = data.draw(odd | json_values(4))
        else:
            del holder[path[-1]]
    try:
        exchange = decode(json.dumps(form).encode())
    except InvalidRequest:
        return
    assert store.write([exchange], are_imported=True) == 1
    store._conn.execute("delete from proxy_exchanges")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    picture = llm.Attachment(type="image/png", content=b"\x89PNG")
    events = [
        chat.StreamEvent("text", "it is", 0),
        chat.StreamEvent("tool_call_name", "look", 1, "c2"),
        chat.StreamEvent("tool_call_args", '{"b": 1}', 1, "c2"),
    ]
    turn = Turn(
        ID, ID, "m",
        [
            llm.user("look", picture, attachments.attachment_from_url("https://example.invalid/cat.png")),
            llm.assistant(ToolCallPart("look", {"a": 1}, "c1")),
            Message("tool", [ToolResultPart("look", "red", "c1", attachments=[picture])]),
        ],
        chat.collect(events).messages, RECEIVED, 1,
        tools=(llm.Tool("look", "look at it", {"type": "object"}),),
        options={"temperature": 0.5}, schema={"type": "object"}, response_json={"id": "r1"},
    )  # fmt: skip
    exchange = ended_as(begun(
        ID, RECEIVED, dialect="d", path="/", query="", client="c", headers=[("a", "b")],
        body={"messages": [{"content": "look"}]},
    ), "ok", http_status=200, duration_ms=1.0, turn=turn, finish=chat.Finish(),
        events=[(1.0, event) for event in events],
    )  # fmt: skip
    store = Store(tmp_path_factory.mktemp("lines") / "logs.db")
    yield to_json(exchange), store
    store.close()
