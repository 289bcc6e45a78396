"""Match requests against a real database: conversations are found, replies recalled."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import llm
import pytest
import sqlite_utils
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from llm.parts import Message, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart

from llmproxy.conversations import matching
from llmproxy.conversations.matching import Match, Matcher
from llmproxy.core import chat
from llmproxy.core.byte_cache import message_bytes
from llmproxy.core.fingerprints import replies
from llmproxy.core.message_facts import keep_facts
from llmproxy.dialects import anthropic_messages, openai_chat
from llmproxy.recorder import reply_index
from llmproxy.recorder.database import wal_of
from llmproxy.recorder.exchange import Exchange, Turn, begun
from llmproxy.recorder.listing import Filter
from llmproxy.recorder.prune import prune
from llmproxy.recorder.reply_index import OutOfTime, Replies
from llmproxy.recorder.store import Store
from tests import strategies
from tests.log_fixtures import RECEIVED, ended_as

SIGNED = {"anthropic": {"signature": "sig=="}}
LONG = "An answer that nobody gives twice by chance."


@dataclass
class Log:
    """A log with its matcher, written as the app does."""

    path: Path
    store: Store
    matcher: Matcher
    numbers: Any
    stuck: list[Exchange] = field(default_factory=list)  # exchanges that can't be written yet

    def match(self, messages, *, model="m", client="tests") -> Match:
        return self.matcher.match(messages, model, client)

    def ask(self, messages, reply, *, model="m", client="tests", status="ok", is_stuck=False):
        """Record a request as matched, with its reply; return its id."""
        found = self.match(messages, model=model, client=client)
        id = f"01jd{next(self.numbers):022d}"
        reply = [llm.assistant(reply)] if isinstance(reply, str) else reply
        begins = begun(
            id, RECEIVED + timedelta(seconds=1), dialect="openai_chat", path="/", query="",
            client=client, headers=[], body={}, model=model, messages=messages,
        )  # fmt: skip
        turn = Turn(
            id=id, thread_id=f"t{id}", model=model, messages=found.messages, reply=reply,
            started=RECEIVED, duration_ms=1,
        )  # fmt: skip
        over = ended_as(
            begins, status, http_status=200, duration_ms=1, turn=turn, finish=chat.Finish(),
            previous_id=found.previous_id, link=found.link, recalled=len(found.recalled),
            history=found.history,
        )  # fmt: skip
        self.matcher.learn(over, message_bytes(over.turn.messages) if over.turn else 0)
        self.stuck.append(over)
        if not is_stuck:
            while self.stuck:
                del self.stuck[: self.store.write(self.stuck)]
        return id

    def rows(self, sql):
        with sqlite3.connect(self.path) as connection:
            return connection.execute(sql).fetchall()

    def threads(self):
        """Return the ids of the exchanges, thread by thread."""
        ids: dict[str, list[str]] = {}
        for thread, id in self.rows("select thread_id, id from proxy_exchanges order by id"):
            ids.setdefault(thread, []).append(id)
        return list(ids.values())


@pytest.fixture
def log(store, path):
    log = Log(path, store, Matcher(path), itertools.count(1))
    yield log
    log.matcher.close()


def said(*parts):
    return [Message("assistant", list(parts))]


THOUGHT = said(ReasoningPart("hm", provider_metadata=SIGNED), TextPart(LONG))
START = [llm.system("s"), llm.user("q")]
ECHO = [*START, llm.assistant(LONG), llm.user("r")]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_recalled_for_a_known_beginning_is_what_a_new_matcher_finds(log, seed):
    """Messages of a known body are the same objects in each request."""
    draw = random.Random(seed)
    conversations: list[list[Message]] = [[*START] for _ in range(2)]
    for step in range(25):
        sent = draw.choice(conversations)
        text = draw.choice([LONG, f"{LONG} {step}", f"{LONG} {step % 5}"])
        thought = ReasoningPart(f"hm {step % 2}", provider_metadata=SIGNED)
        keep_facts(sent)
        new = Matcher(log.path)
        new._pending = log.matcher._pending
        for model in ("m", "other"):
            assert log.match(sent, model=model) == new.match([*map(replace, sent)], model, "tests")
        new.close()
        if draw.random() < 0.8:
            reply = said(thought, TextPart(text))
            model = draw.choice(["m", "m", "other"])
            log.ask([*sent], reply, model=model, is_stuck=draw.random() < 0.4)
        more = [llm.assistant(text), llm.user(f"and {step}")]
        if draw.random() < 0.2:  # goes on from an earlier place
            conversations.append(sent[: 2 * draw.randint(1, len(sent) // 2)] + more)
        else:
            sent += more


# ---- echo closure


def openai_echo(answer: dict[str, Any], rewritten: Callable[[Any], Any]) -> dict[str, Any]:
    """Return what an OpenAI client sends back of a response: no reasoning."""
    message = answer["choices"][0]["message"]
    calls = [
        call
        | {
            "function": call["function"]
            | {"arguments": rewritten_text(call["function"]["arguments"], rewritten)}
        }
        for call in message.get("tool_calls", [])
    ]
    echo = {"role": "assistant", "content": message["content"]}
    return echo | ({"tool_calls": calls} if calls else {})


def rewritten_text(arguments: str, rewritten: Callable[[Any], Any]) -> str:
    try:
        return json.dumps(rewritten(json.loads(arguments)))
    except ValueError:  # a model's broken arguments are sent back as they are
        return arguments


def anthropic_echo(answer: dict[str, Any], rewritten: Callable[[Any], Any]) -> dict[str, Any]:
    """Return what an Anthropic client without thinking sends back of a response."""
    blocks = [block for block in answer["content"] if "thinking" not in block["type"]]
    blocks = [
        block | ({"input": rewritten(block["input"])} if block["type"] == "tool_use" else {})
        for block in blocks
    ]
    return {"role": "assistant", "content": blocks}


def openai_next(answer: dict[str, Any], text: str) -> list[dict[str, Any]]:
    calls = answer["choices"][0]["message"].get("tool_calls", [])
    results = [{"role": "tool", "tool_call_id": c["id"], "content": text} for c in calls]
    return results or [{"role": "user", "content": text}]


def anthropic_next(answer: dict[str, Any], text: str) -> list[dict[str, Any]]:
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": text}
        for block in answer["content"]
        if block["type"] == "tool_use"
    ]
    return [{"role": "user", "content": results or text}]


def as_javascript(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [as_javascript(item) for item in value]
        case dict():
            return {name: as_javascript(item) for name, item in value.items()}
    return value


def in_one_part(message: dict[str, Any]) -> dict[str, Any]:
    return message


def in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Cut each text in two, as clients that keep lists of parts may."""
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    parts = []
    for part in content or []:
        text = part.get("text", "") if part["type"] == "text" else ""
        middle = len(text) // 2
        pieces = [text[:middle], text[middle:]] if len(text) > 3 else [text]
        parts += (
            [part | {"text": piece} for piece in pieces if piece.strip()]
            if part["type"] == "text" and all(piece.strip() for piece in pieces)
            else [part]
        )
    return message | {"content": parts or None}


WIRES = {
    "openai_chat": (openai_chat, openai_echo, openai_next),
    "anthropic_messages": (anthropic_messages, anthropic_echo, anthropic_next),
}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("cut", [in_one_part, in_parts])
# Shrinking a failure of thirty turns would take too long.
@settings(max_examples=4, phases=[Phase.generate])
@given(answers=st.lists(strategies.event_streams(), min_size=5, max_size=7))
def test_thirty_turns_are_matched_with_the_same_hashes(wire, cut, empty_log, answers):
    """Echo closure (d6.3): reply → the client's echo → the next request, over every dialect."""
    dialect, echo, go_on = WIRES[wire]
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "q"}]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logs.db"
        shutil.copy(empty_log, path)
        log = Log(path, Store(path), Matcher(path), itertools.count(1))
        stored: list[Message] = []
        shown: str | None = None  # the last turn with visible output
        for number in range(30):
            request = dialect.parse_request(body, {})
            found = log.match(request.messages)
            assert found.previous_id == shown
            if shown is not None:
                assert found.messages[: len(stored)] == stored
            response = chat.collect(numbered(answers[number % len(answers)], number))
            last = log.ask(request.messages, response.messages)
            envelope = chat.Envelope(last, 0, request.model or "")
            answer = json.loads(json.dumps(dialect.render_response(response, envelope)))
            if not replies(response.messages):  # it showed nothing: there is no echo
                body["messages"] += [{"role": "user", "content": f"still there, {number}?"}]
                continue
            stored, shown = [*found.messages, *response.messages], last
            body["messages"] += [
                cut(echo(answer, as_javascript)),
                *go_on(answer, f"and {number}?"),
            ]
        # Turns without visible output at the beginning leave nothing to match.
        assert all(len(ids) == 1 for ids in log.threads()[:-1])
        log.matcher.close()
        log.store.close()


def numbered(events, number):
    """Make the ids of a turn's calls unique, as providers do."""
    return [
        replace(event, tool_call_id=f"{event.tool_call_id}_{number}")
        if isinstance(event, StreamEvent) and event.tool_call_id
        else event
        for event in events
    ]


# ---- which turn a request goes on from


def test_the_newest_reply_decides_what_a_request_continues(log):
    first = log.ask(START, LONG)
    second = log.ask(ECHO, "Another answer, as long as the first.")
    go_on = [*ECHO, llm.assistant("Another answer, as long as the first."), llm.user("s")]
    assert log.match(go_on) == Match(go_on, frozenset(), second, "reply")
    assert log.match(ECHO).previous_id == first
    assert log.threads() == [[first, second]]


def test_edited_and_retried_turns_fork(log):
    first = log.ask(START, LONG)
    log.ask(ECHO, LONG + "!")
    edited = log.ask([*START, llm.assistant(LONG), llm.user("edited")], LONG + "?")
    retried = log.ask(ECHO, LONG + ".")
    threads = log.rows("select id, forked_from from threads order by id")
    assert threads == [
        (f"t{first}", None),
        (f"t{edited}", f"t{first}"),
        (f"t{retried}", f"t{first}"),
    ]


def test_conversation_without_a_known_reply_is_new(log):
    log.ask(START, LONG)
    for messages in (START, [*START, llm.assistant("Something else altogether."), llm.user("r")]):
        assert log.match(messages) == Match(messages)


@pytest.mark.parametrize("status", ["cancelled", "error"])
def test_a_cut_reply_does_not_move_the_tip_but_can_be_continued(status, log):
    first = log.ask(START, LONG)
    log.ask(ECHO, "A partial answer that went", status=status)
    retried = log.ask(ECHO, "A whole answer this time, of any length.")
    assert log.threads() == [[first, first[:-1] + "2", retried]]


def test_a_cut_reply_can_be_continued(log):
    first = log.ask(START, "An answer that was cut in the", status="cancelled")
    second = log.ask([*START, llm.assistant("An answer that was cut in the"), llm.user("r")], LONG)
    assert log.threads() == [[first, second]]


def test_a_changed_system_prompt_stays_in_the_same_thread(log):
    first = log.ask(START, LONG)
    second = log.ask([llm.system("other"), *ECHO[1:]], LONG + "!")
    assert log.threads() == [[first, second]]


@pytest.mark.parametrize(
    "before, found",
    [([llm.user("q")], True), ([llm.user("another")], False), ([], False)],
)
def test_a_trivial_reply_matches_if_all_before_it_is_the_same(before, found, log):
    log.ask([llm.user("q")], "ok")
    messages = [*before, llm.assistant("ok"), llm.user("r")]
    assert (log.match(messages).previous_id is not None) is found


def test_a_reply_in_two_conversations_is_matched_by_its_question(log):
    one, other = log.ask([llm.user("one")], LONG), log.ask([llm.user("other")], LONG)
    files = [llm.user("files changed"), llm.assistant("Ok.")]
    for id, question in ((one, "one"), (other, "other")):
        moved = [*files, llm.user(question), llm.assistant(LONG), llm.user("r")]
        assert log.match(moved).previous_id == id
    neither = [llm.user("third"), llm.assistant(LONG), llm.user("r")]
    assert log.match(neither).previous_id is None


@pytest.mark.parametrize("is_stuck", [False, True], ids=["logged", "on its way"])
@pytest.mark.parametrize("edited", [0, 2], ids=["before", "the question"])
def test_a_reply_in_two_conversations_is_matched_by_the_older_replies(edited, is_stuck, log):
    """Agents end many turns with the same text; then a reminder is removed again."""
    last, histories = {}, {}
    for name in ("one", "other"):
        history = [llm.user(f"{name} <reminder>")]
        log.ask(history, f"{LONG} {name}", is_stuck=is_stuck)
        history += [llm.assistant(f"{LONG} {name}"), llm.user("Run the tests. <reminder>")]
        last[name] = log.ask(history, "All the tests pass now.", is_stuck=is_stuck)
        histories[name] = [*history, llm.assistant("All the tests pass now."), llm.user("r")]
    for name, history in histories.items():
        history[edited] = llm.user("edited")
        assert log.match(history).previous_id == last[name]
    neither = [llm.user("third"), llm.assistant(LONG), *histories["one"][2:]]
    assert log.match(neither).previous_id is None


def test_a_reply_in_many_conversations_takes_bounded_time(log, monkeypatch):
    """A bot that always says the same, and a history that is not in the log."""
    sorry = "I am sorry, but I can't help with that."
    for number in range(3):
        log.ask([llm.user(f"{number}")], sorry)
    known = log.ask([llm.user("known")], LONG)
    asked = []
    candidates = Replies.candidates
    monkeypatch.setattr(
        Replies,
        "candidates",
        lambda self, level, reply: asked.append(level) or candidates(self, level, reply),
    )
    unknown = [m for i in range(100) for m in (llm.user(f"another {i}"), llm.assistant(sorry))]
    assert log.match([*unknown, llm.user("r")]).previous_id is None
    assert asked.count("words") == 8
    before = [llm.user("known"), llm.assistant(LONG)]
    assert log.match([*before, *unknown, llm.user("r")]).previous_id == known


def test_a_history_of_unknown_replies_costs_the_same_queries_however_long(log):
    log.ask(START, LONG)
    counts = []
    for size in (10, 1_000, 3_000):
        messages = [
            message
            for i in range(size)
            for message in (llm.user("q"), llm.assistant(f"{LONG} {i}, which nobody said"))
        ]
        statements: list[str] = []
        log.match(START)  # opens the log
        log.matcher._replies._connection.set_trace_callback(statements.append)
        assert log.match([*messages, llm.user("r")]) == Match([*messages, llm.user("r")])
        log.matcher._replies._connection.set_trace_callback(None)
        counts.append(len(statements))
    # Three for the newest replies, three for all that are unknown, three for what is new, and one
    # of the first time.
    assert counts == [10, 9, 9]


def test_only_the_newest_replies_are_looked_up(log, monkeypatch):
    monkeypatch.setattr(matching, "MAX_LOOKED_UP", 3)
    known = log.ask(START, LONG)
    newer = [
        message
        for i in range(3)
        for message in (llm.assistant(f"{LONG} {i}, which nobody said"), llm.user("q"))
    ]
    assert log.match([*ECHO, *newer[:-2]]).previous_id == known
    assert log.match([*ECHO, *newer]).previous_id is None


def test_a_lookup_ends_at_its_deadline(log):
    for _ in range(2):
        log.ask(START, LONG)
    with pytest.raises(OutOfTime):
        log.matcher.match(ECHO, "m", "tests", wait_s=-1)
    # A query that takes long is interrupted too.
    log.match(ECHO)
    connection = log.matcher._replies._connection
    log.matcher._replies.stop_at(time.monotonic() + 0.05)
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        connection.execute(
            "with recursive n (i) as (select 1 union all select i + 1 from n) select max(i) from n"
        ).fetchone()
    assert log.match(ECHO).previous_id is not None


def test_a_conversation_found_in_time_is_kept_without_its_recall(log, monkeypatch):
    first = log.ask(START, THOUGHT)

    def late(self, turn):
        raise OutOfTime

    monkeypatch.setattr(Replies, "reply", late)
    assert log.match(ECHO) == Match(ECHO, frozenset(), first, "reply")


def test_identical_replies_are_matched_by_the_first_question(log):
    """A local server that calls every call call_0, and a client that clears old results."""
    call = said(ToolCallPart("read", {}, tool_call_id="call_0"))
    histories = {name: [llm.user(name)] for name in ("one", "other")}
    for number in range(4):
        for name, history in histories.items():
            cleared = [
                Message("tool", [ToolResultPart("read", "gone", tool_call_id="call_0")])
                if message.role == "tool"
                else message
                for message in history[:-1]
            ]
            log.ask([*cleared, history[-1]], call)
            result = ToolResultPart("read", f"{name} {number}", tool_call_id="call_0")
            history += [*call, Message("tool", [result])]
    assert [len(ids) for ids in log.threads()] == [4, 4]


def test_identical_conversations_are_each_continued_once(log):
    """They can't be told apart, but none is continued twice."""
    ids = [log.ask(START, LONG) for _ in range(40)]
    assert log.match(ECHO).previous_id == ids[-1]
    for number in range(40):
        log.ask([*ECHO[:-1], llm.user(f"go on {number}")], f"{LONG} {number}")
    assert [len(ids) for ids in log.threads()] == [2] * 40
    assert log.rows("select count(*) from threads where forked_from is not null") == [(0,)]


def test_among_identical_conversations_the_clients_own_is_continued(log):
    mine = log.ask(START, LONG, client="aider")
    log.ask(START, LONG, client="other")
    assert log.match(ECHO, client="aider").previous_id == mine


@pytest.mark.parametrize("go_on", [False, True], ids=["cut short", "went on from, in vain"])
def test_among_identical_conversations_a_finished_one_not_continued_yet_is_continued(go_on, log):
    first = log.ask(START, LONG)
    second = log.ask(START, LONG, status="ok" if go_on else "cancelled")
    if go_on:
        log.ask(ECHO, "As far as it", status="cancelled")
    assert log.match(ECHO).previous_id == (second if go_on else first)


def test_a_changed_reply_is_matched_by_its_call_id(log):
    call = ToolCallPart("weather", {"at": "B"}, tool_call_id="call_x")
    first = log.ask(START, said(TextPart("Let me see."), call))
    edited = ToolCallPart("weather", {"at": "C"}, tool_call_id="call_x")
    result = Message("tool", [ToolResultPart("weather", "sun", tool_call_id="call_x")])
    found = log.match([*START, *said(edited), result])
    assert (found.previous_id, found.recalled) == (first, frozenset())


@pytest.mark.parametrize(
    "echo",
    [
        [TextPart(LONG)],
        [TextPart(LONG), ToolCallPart("weather", {}, tool_call_id="another")],
        [TextPart(LONG), ToolCallPart("weather", {"at": "edited"}, tool_call_id="call_x")],
    ],
    ids=["calls dropped", "ids rewritten", "arguments edited"],
)
def test_a_reply_is_matched_by_its_text_if_its_calls_differ(echo, log):
    call = ToolCallPart("weather", {}, tool_call_id="call_x", provider_metadata=SIGNED)
    first = log.ask(START, said(TextPart(LONG), call))
    messages = [*START, *said(*echo), llm.user("r")]
    assert log.match(messages) == Match(messages, frozenset(), first, "reply")


def test_summary_in_place_of_older_turns_forks(log):
    log.ask(START, LONG)
    second = log.ask(ECHO, LONG + "!")
    kept = [*ECHO[-1:], llm.assistant(LONG + "!"), llm.user("go on")]
    compacted = [llm.user("What was said so far: a lot."), *kept]
    found = log.match(compacted)
    assert (found.previous_id, found.link) == (second, "compacted")
    third = log.ask(compacted, LONG + "?")
    fourth = log.ask([*compacted, llm.assistant(LONG + "?"), llm.user("x")], LONG + ".")
    assert log.threads()[1:] == [[third, fourth]]


def test_summary_that_changes_again_forks_once(log):
    replies = [f"{LONG} {number}" for number in range(5)]
    history = [llm.user("begin")]
    for reply in replies[:3]:
        log.ask(history, reply)
        history += [llm.assistant(reply), llm.user(f"after {reply}")]
    history = [llm.user("A summary, written at nine."), *history[-2:]]
    ids = [log.ask(history, replies[3])]
    for reply in replies[3:]:
        history += [llm.assistant(reply), llm.user(f"after {reply}")]
        changed = [llm.user(f"A summary, written after {reply}."), *history[1:]]
        found = log.match(changed)
        assert (found.previous_id, found.link) == (ids[-1], "reply")
        ids.append(log.ask(history, replies[4]))
    assert [len(thread) for thread in log.threads()] == [3, 3]


def test_sliding_window_stays_in_its_thread(log):
    log.ask(START, LONG)
    log.ask(ECHO, LONG + "!")
    window = [START[0], *ECHO[-1:], llm.assistant(LONG + "!"), llm.user("go on")]
    log.ask(window, LONG + "?")
    log.ask([window[0], *window[3:], llm.assistant(LONG + "?"), llm.user("x")], LONG + ".")
    assert len(log.threads()) == 1


TASK = "Find every place where the parser gives up, and say why it does."


@pytest.mark.parametrize(
    "text, link",
    [
        (TASK, "call"),
        (f"Your task:\n{TASK}\n", "call"),
        (f"{TASK} {'And a lot besides, of which nobody spoke. ' * 3}", None),
        (TASK[:-5], None),
    ],
)
def test_a_sub_agent_is_matched_by_its_task(text, link, log):
    first = log.ask(START, said(ToolCallPart("task", {"prompt": TASK}, tool_call_id="call_1")))
    found = log.match([llm.system("You are a sub-agent."), llm.user(text)])
    assert (found.previous_id, found.link) == (first if link else None, link)
    log.ask([llm.user(text)], LONG)
    assert len(log.threads()) == 2


@pytest.mark.parametrize(
    "reply, quoted, link",
    [
        ("So many words. " * 20, "So many words. " * 20, "quote"),
        ("<analysis>hm</analysis><summary>" + "All of it. " * 30 + "</summary>",
         "All of it. " * 30, "quote"),
        (LONG, LONG, None),
    ],
)  # fmt: skip
def test_a_side_request_is_matched_by_its_quote(reply, quoted, link, log):
    first = log.ask(START, reply)
    found = log.match([llm.user(f"Make a title of this chat:\n{quoted}\nNo more words.")])
    assert (found.previous_id, found.link) == (first if link else None, link)


# ---- what is given back


def test_only_so_much_is_searched_for_quotes(log, monkeypatch):
    """The texts of a new conversation, times the replies that it may quote, are bounded."""
    quoted = log.ask(START, f"{LONG} {LONG} {LONG}")
    quote = llm.user(f"Make a title: {LONG} {LONG} {LONG}")
    other = llm.user("Something that is long enough, but quotes nothing of it at all.")
    assert log.match([*[other] * 63, quote]).previous_id == quoted
    assert log.match([*[other] * 64, quote]).previous_id is None
    monkeypatch.setattr(matching, "MAX_QUOTING_CHARS", 100)
    assert log.match([quote]).previous_id is None
    call = ToolCallPart("agent", {f"{i}": f"{LONG} {i}, which is a task" for i in range(20)}, "c1x")
    asked = log.ask([llm.user("another")], said(call))
    monkeypatch.undo()
    assert log.match([llm.user(f"{LONG} 3, which is a task")]).previous_id == asked
    assert log.match([llm.user(f"{LONG} 19, which is a task")]).previous_id is None


def test_cut_replies_and_continued_conversations_are_not_matched_by_quotes(log):
    long = f"{LONG} " * 8
    quotes = [llm.user(f"Give a title: {long}")]
    log.ask(START, long, status="cancelled")
    assert log.match(quotes).link is None
    log.ask(START, long + "!")
    quotes = [llm.user(f"Give a title: {long}!")]
    assert log.match(quotes).link == "quote"
    assert log.match([*quotes, llm.assistant("Unknown."), llm.user("r")]).link is None


def test_what_the_api_dropped_is_recalled(log):
    log.ask(START, THOUGHT)
    found = log.match(ECHO)
    assert found.messages == [*START, *THOUGHT, ECHO[-1]]
    assert found.recalled == {2}


def test_without_recall_conversations_are_still_matched(log):
    first = log.ask(START, THOUGHT)
    memory = Matcher(log.path, recall=False)
    assert memory.match(ECHO, "m", "tests") == Match(ECHO, frozenset(), first, "reply")
    memory.close()


def test_a_reply_of_two_messages_is_recalled_as_two(log):
    two = [*said(TextPart("First. ")), *said(ReasoningPart("hm"), TextPart("Then a second one."))]
    log.ask(START, two)
    echo = [*START, llm.assistant("First. Then a second one."), llm.user("r")]
    found = log.match(echo)
    assert found.messages == [*START, *two, echo[-1]]
    assert found.recalled == {2, 3}


CALL = ToolCallPart("weather", {"at": 1.0}, tool_call_id="call_x", provider_metadata=SIGNED)
RESULT = Message("tool", [ToolResultPart("weather", "sun", tool_call_id="call_x")])


def edited(**changes):
    return [*START, *said(replace(CALL, provider_metadata=None, **changes)), RESULT]


@pytest.mark.parametrize(
    "messages, given",
    [
        (edited(arguments={"at": 1}), True),
        (edited(arguments={"at": 2}), False),
        (edited(name="other"), False),
        (edited(tool_call_id="call_y"), False),
        (edited()[1:], True),
        ([llm.user("another"), *edited()[2:]], True),
    ],
    ids=["same", "arguments", "name", "id", "no system", "another question"],
)
def test_a_call_is_recalled_if_it_is_the_same_call(messages, given, log):
    log.ask(START, said(CALL))
    assert (log.match(messages).recalled != frozenset()) is given


@pytest.mark.parametrize(
    "counted, given", [("call_0", False), ("functions.read:0", False), ("call_0f", True)]
)
def test_counting_call_ids_are_not_matched(counted, given, log):
    """An unrecorded conversation gives its first call the same id."""
    first = log.ask(START, said(replace(CALL, tool_call_id=counted)))
    echo = said(replace(CALL, tool_call_id=counted, provider_metadata=None))
    result = Message("tool", [ToolResultPart("weather", "rain", tool_call_id=counted)])
    assert log.match([*START, *echo, result]).recalled == {2}
    assert bool(log.match([llm.user("another"), *echo, result]).recalled) is given
    other_call = said(ToolCallPart("read", {}, tool_call_id=counted))
    found = log.match([llm.user("another"), *other_call, result])
    assert found.previous_id == (first if given else None)


@pytest.mark.parametrize(
    "messages",
    [
        [*START, llm.assistant(LONG + " edited"), llm.user("r")],
        [llm.user("another question"), llm.assistant(LONG), llm.user("r")],
        [llm.assistant(LONG), llm.user("r")],
        [*START, *said(ReasoningPart("own", provider_metadata={"x": {}}), TextPart(LONG))],
    ],
    ids=["edited", "another question", "shortened", "own metadata"],
)
def test_a_reply_is_not_recalled_if_anything_else_was_said(messages, log):
    log.ask(START, THOUGHT)
    assert log.match(messages).messages == messages


@pytest.mark.parametrize("fields", [{"model": "other"}, {"status": "cancelled"}])
def test_replies_of_other_models_and_unfinished_ones_are_not_recalled(fields, log):
    log.ask(START, THOUGHT, **fields)
    assert log.match(ECHO).recalled == frozenset()


@pytest.mark.parametrize("fields", [{"model": "other"}, {"status": "cancelled"}])
def test_another_models_reply_is_not_recalled_from_another_conversation(fields, log):
    """In many conversations, agents are told to continue, and reply that all is well."""
    log.ask([llm.user("Go on.")], THOUGHT)
    before = [llm.user("q"), llm.assistant("The reply that stands before.")]
    log.ask(before[:1], before[1].parts[0].text, **fields)
    messages = [*before, llm.user("Go on.")]
    log.ask(messages, LONG, **fields)
    messages += [llm.assistant(LONG), llm.user("r")]
    assert log.match(messages).messages == messages


def test_a_trivial_reply_is_not_recalled_in_another_conversation(log):
    log.ask([llm.user("q")], said(ReasoningPart("hm"), TextPart("ok")))
    before = [llm.user("another"), llm.assistant("sure")]
    messages = [*before, llm.user("q"), llm.assistant("ok"), llm.user("r")]
    assert log.match(messages).recalled == frozenset()


def test_two_different_originals_are_not_recalled(log):
    log.ask(START, THOUGHT)
    log.ask(START, said(ReasoningPart("else", provider_metadata=SIGNED), TextPart(LONG)))
    assert log.match(ECHO).recalled == frozenset()
    log.ask(ECHO, LONG)


def test_two_equal_replies_are_one_original(log):
    log.ask(START, THOUGHT)
    log.ask([llm.system("other"), *START[1:]], THOUGHT)
    assert log.match(ECHO).recalled == {2}


def test_two_joined_conversations_each_recall_their_own_replies(log):
    one, other = (
        said(ReasoningPart(name, provider_metadata=SIGNED), TextPart(f"{LONG} {name}"))
        for name in ("one", "other")
    )
    log.ask([llm.user("one")], one)
    log.ask([llm.user("other")], other)
    mixed = [
        llm.user("other"), llm.assistant(f"{LONG} other"),
        llm.user("one"), llm.assistant(f"{LONG} one"), llm.user("r"),
    ]  # fmt: skip
    found = log.match(mixed)
    assert [found.messages[1], found.messages[3]] == [*other, *one]


def test_a_reply_to_a_prefill_is_not_recalled(log):
    prefilled = [llm.user("q"), llm.assistant("The answer, which is a long one, is")]
    first = log.ask(prefilled, said(ReasoningPart("hm"), TextPart(" forty-two.")))
    whole = llm.assistant("The answer, which is a long one, is forty-two.")
    messages = [llm.user("q"), whole, llm.user("r")]
    assert log.match(messages) == Match(messages, frozenset(), first, "reply")


# ---- the database


@pytest.mark.parametrize("circle", [{0: 0}, {0: 1}, {0: 2}], ids=["itself", "two", "three"])
def test_turns_that_continue_one_another_in_a_circle_are_matched(circle, log):
    history, ids = list(START), []
    for number in range(3):
        ids.append(log.ask(history, f"{LONG} {number}"))
        history += [llm.assistant(f"{LONG} {number}"), llm.user(f"and {number}")]
    other = log.ask([llm.user("other")], f"{LONG} 2")
    with sqlite3.connect(log.path) as connection:
        for turn, before in circle.items():
            connection.execute(
                "update proxy_exchanges set previous_id = ?, link = 'reply' where id = ?",
                (ids[before], ids[turn]),
            )
    without_question = [*history[:-3], llm.user("changed"), *history[-2:]]
    found = log.matcher.match(without_question, "m", "tests", wait_s=5)
    assert found.previous_id == ids[2] != other


def test_messages_in_a_circle_cost_a_recall_at_most(log):
    log.ask(START, THOUGHT)
    with sqlite3.connect(log.path) as connection:
        hashes = [hash for (hash,) in connection.execute("select hash from messages")]
        for hash in hashes:
            connection.execute("update messages set parent_hash = ? where hash = ?", (hash, hash))
    log.matcher.match(ECHO, "m", "tests", wait_s=5)


def test_turns_that_wait_to_be_written_are_matched(log):
    """A slow log costs neither reasoning nor threads."""
    first = log.ask(START, THOUGHT, is_stuck=True)
    second = log.ask(ECHO, said(ReasoningPart("so"), TextPart(LONG + "!")), is_stuck=True)
    go_on = [*ECHO, llm.assistant(LONG + "!"), llm.user("s")]
    found = log.match(go_on)
    assert (found.previous_id, found.recalled) == (second, {2, 4})
    third = log.ask(go_on, LONG + "?")
    assert log.threads() == [[first, second, third]]
    assert log.match(go_on) == found
    assert not [*log.matcher._pending]


def test_turns_that_wait_are_kept_up_to_a_number_of_bytes(log, monkeypatch):
    monkeypatch.setattr(matching, "MAX_PENDING_BYTES", 100_000)
    for number in range(4):
        log.ask([llm.user(f"{number}")], LONG + "!" * 40_000, is_stuck=True)
    assert len(log.matcher._pending) == 2
    log.ask([llm.user("5")], LONG + "!" * 100_000, is_stuck=True)
    assert len(log.matcher._pending) == 0


def test_recalled_replies_are_kept_up_to_a_number_of_bytes(log, monkeypatch):
    monkeypatch.setattr(reply_index, "MAX_CACHED_BYTES", 1_000_000)
    log.matcher.close()
    history = [llm.user("q")]
    for number in range(12):
        text = LONG + f" {number}" * 50_000
        log.ask(history, said(ReasoningPart("hm", provider_metadata=SIGNED), TextPart(text)))
        history += [llm.assistant(text), llm.user("go on")]
    assert len(log.match(history).recalled) == 12
    assert 500_000 < log.matcher._replies._cached.size_bytes <= 1_000_000


def test_a_broken_log_only_costs_its_matches(log):
    log.ask(START, THOUGHT)
    with sqlite3.connect(log.path, isolation_level=None) as connection:
        connection.execute("drop table proxy_replies")
        assert log.match(ECHO) == Match(ECHO)
        log.ask(START, THOUGHT, is_stuck=True)
        assert log.match(ECHO).recalled == {2}


def test_without_a_log_nothing_matches(path):
    memory = Matcher(path)
    assert memory.match(ECHO, "m", "tests") == Match(ECHO)
    memory.close()


def test_a_replaced_database_is_opened_again(log, empty_log):
    log.ask(START, THOUGHT)
    assert log.match(ECHO).previous_id is not None
    log.store.close()
    for name in ("logs.db-wal", "logs.db-shm"):
        log.path.with_name(name).unlink(missing_ok=True)
    log.path.unlink()
    shutil.copy(empty_log, log.path)
    assert log.match(ECHO) == Match(ECHO)


def test_a_file_that_replaces_the_database_waits_for_the_writer(log, empty_log):
    """Read beside the former file's write-ahead log, it would seem to have its content."""
    log.ask(START, THOUGHT)
    assert log.match(ECHO).previous_id is not None
    os.replace(shutil.copy(empty_log, log.path.with_name("copy.db")), log.path)
    assert log.match(ECHO) == Match(ECHO)
    log.store.close()
    assert not wal_of(log.path).exists()
    with Store(log.path):
        assert log.match(ECHO) == Match(ECHO)


NEW_COLUMNS = (
    "previous_id link recalled replay_key replay_of origin run_id recorded_id repeat setup_ms"
    " queue_ms is_first_run output_tokens_estimate tokens_per_second"
    " error_status error_kind error_code error_param retry_after_s overhead_ms"
    " last_message reply_words cache_write_1h_tokens host"
    " upstream refused_by upstream_request_id"
).split()


def test_an_older_database_gets_fingerprints_when_opened(log):
    first = log.ask(START, THOUGHT)
    log.ask(ECHO, LONG + "!")
    keys = log.rows("select * from proxy_replies"), log.rows("select * from proxy_calls")
    with sqlite3.connect(log.path) as connection:
        for statement in (
            "drop table proxy_replies",
            "drop table proxy_calls",
            "drop index proxy_exchanges_previous",
            "drop index proxy_exchanges_replay",
            "drop index proxy_exchanges_run",
            "drop index proxy_exchanges_running",
            "drop index proxy_exchanges_recorded",
            "drop table proxy_runs",
            "update proxy_meta set value = 1 where name = 'schema'",
        ):
            connection.execute(statement)
        sqlite_utils.Database(connection)["proxy_exchanges"].transform(drop=NEW_COLUMNS)
    log.matcher.close()
    assert log.match(ECHO) == Match(ECHO)  # the writer has not opened it yet
    Store(log.path).close()
    assert log.match(ECHO).previous_id == first
    again = [(*row[:-1], 0) for row in keys[0]], keys[1]
    found = log.rows("select * from proxy_replies"), log.rows("select * from proxy_calls")
    assert [(*row[:-1], 0) for row in found[0]] == again[0] and found[1] == again[1]


@pytest.fixture
def other(log):
    """Another proxy with the same log: the first one's matcher does not learn its turns."""
    other = Log(log.path, log.store, Matcher(log.path), log.numbers)
    yield other
    other.matcher.close()


def test_a_reply_that_was_unknown_is_found_once_another_process_wrote_it(log, other):
    log.ask([llm.user("another question")], f"{LONG} another")
    assert log.match(ECHO).previous_id is None
    asked = other.ask(START, THOUGHT)
    found = log.match(ECHO)
    assert (found.previous_id, found.messages[2:3]) == (asked, THOUGHT)


def test_what_was_recalled_is_not_recalled_once_it_is_unclear(log, other):
    log.ask(START, THOUGHT)
    assert log.match(ECHO).messages[2:3] == log.match(ECHO).messages[2:3] == THOUGHT
    other.ask(START, said(ReasoningPart("another thought"), TextPart(LONG)))
    assert log.match(ECHO).messages == ECHO


def test_a_turn_that_ran_at_the_first_question_is_found_when_it_has_ended(log, store, make_begun):
    store.write([make_begun()])
    running = log.rows("select id from proxy_exchanges")
    assert log.match(ECHO).previous_id is None
    asked = running[0][0]
    begins = replace(make_begun(), id=asked)
    turn = Turn(
        id=asked, thread_id="t1", model="m", messages=START, reply=THOUGHT, started=RECEIVED,
        duration_ms=1,
    )  # fmt: skip
    store.write([ended_as(begins, "ok", turn=turn, finish=chat.Finish())])
    assert log.match(ECHO).previous_id == asked


def test_pruned_turns_are_no_longer_matched(log):
    first = log.ask(START, THOUGHT)
    log.ask(ECHO, LONG + "!")
    prune(log.path, Filter(ids=(first,)))
    assert log.match(ECHO) == Match(ECHO)
    assert log.rows("select previous_id, link from proxy_exchanges") == [(None, None)]


def test_a_turn_can_be_continued_again_after_its_continuation_is_pruned(log):
    first = log.ask(START, LONG)
    second = log.ask(ECHO, LONG + "!")
    waits = "select is_continued from proxy_replies where turn_id = "
    assert log.rows(f"{waits} '{first}'") == [(1,)]
    prune(log.path, Filter(ids=(second,)))
    assert log.rows(f"{waits} '{first}'") == [(0,)]


def test_a_clock_set_back_does_not_join_two_branches(log):
    """ULIDs have the time of receipt, but the order of writing counts."""
    log.ask(START, LONG)
    log.numbers = itertools.count(-5)  # smaller ids than those before
    log.ask(ECHO, LONG + "!")
    fork = log.ask([*ECHO[:-1], llm.user("else")], LONG + "?")
    assert len(log.threads()) == 2
    assert log.rows("select count(*) from threads where forked_from is not null") == [(1,)]
    assert log.rows(f"select previous_id is not null from proxy_exchanges where id = '{fork}'")
