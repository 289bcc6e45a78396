"""Every kind of damage and every reader: it goes on, shows what is there, and names the row."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass

import httpx
import llm
import openai
import pytest

import llmproxy
from llmproxy.app.dashboard import Dashboard
from llmproxy.backends.log_source import Log
from llmproxy.conversations.matching import Matcher
from llmproxy.core import chat
from llmproxy.core.errors import ProxyError
from llmproxy.recorder.listing import Filter
from llmproxy.recorder.prune import prune
from llmproxy.recorder.reader import LogReader
from llmproxy.recorder.store import Store
from llmproxy.recorder.verify import verify
from tests.commands import run_here
from tests.models import AsyncScript, usage
from tests.proxies import running

IMAGE = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n, small").decode()
LONG = "a long text that is stored apart from its request " * 10
ANSWER = "Rhubarb crumble with custard, served warm and at length."
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@dataclass(frozen=True)
class Recorded:
    """A log of five exchanges: `id` is the one that is damaged, `next` continues it."""

    path: object
    id: str
    next: str
    others: tuple[str, ...]

    def change(self, *statements: str) -> None:
        """Change the database by hand; `:id` is the exchange to be damaged."""
        for statement in statements:  # a changed schema is read by the next connection
            with closing(sqlite3.connect(self.path)) as connection, connection:
                connection.execute("pragma writable_schema = on")
                assert connection.execute(statement, {"id": self.id}).rowcount != 0, statement


def ask(proxy, *messages, model="m", **fields):
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)
    fields = {"extra_headers": {"x-title": "cook"}, **fields}
    answer = client.chat.completions.create(model=model, messages=messages, **fields)
    return answer.id.removeprefix("chatcmpl-")


@pytest.fixture(scope="module")
def recorded_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "logs.db"
    script = AsyncScript("m", ANSWER[:9], ANSWER[9:], usage(30, 9))
    failing = AsyncScript("broken", "so far", RuntimeError("gone"))
    with running(script, failing, database=path) as proxy:
        image = {"type": "image_url", "image_url": {"url": IMAGE}}
        first = {"role": "user", "content": [{"type": "text", "text": f"pudding? {LONG}"}, image]}
        reply = {"role": "assistant", "content": ANSWER}
        fields = {"tools": [TOOL], "temperature": 0.5}
        before = ask(proxy, {"role": "user", "content": "what is for lunch?"})
        id = ask(proxy, first, **fields)
        following = ask(proxy, first, reply, {"role": "user", "content": "and to drink?"}, **fields)
        other = ask(proxy, {"role": "user", "content": "capital of France?"})
        with pytest.raises(openai.OpenAIError):
            ask(proxy, {"role": "user", "content": "fail, please"}, model="broken")
        failed = proxy.wait_for_report(5).id
    return Recorded(path, id, following, (before, other, failed))


@pytest.fixture
def recorded(recorded_once, llm_user_path):
    path = llm_user_path / "logs.db"
    shutil.copy(recorded_once.path, path)
    return Recorded(path, recorded_once.id, recorded_once.next, recorded_once.others)


def nullable(table, column):
    """Let a column be NULL although its table does not allow that."""
    return (
        f"update sqlite_master set sql = replace(sql, '{column} text not null', '{column} text')"
        f" where name = '{table}'"
    )


OWN = "update proxy_exchanges set {} where id = :id"
TURN = "update turns set {} where id = :id"
ASKED = "(select message_hash from proxy_exchanges where id = :id)"
REPLIED = "(select tip_message_hash from turns where id = :id)"
NOT_UTF_8 = "cast(x'66ff6f' as text)"

# By name: the statements, the names in `damage`, and whether a list of exchanges shows it.
DAMAGE = {
    "received": ([OWN.format("received = 'yesterday'")], {"received"}, True),
    "received, without a zone": ([OWN.format("received = '2026-11-21 10:00:00'")], set(), True),
    "received, of no century": (
        [OWN.format("received = '0001-01-01T00:00:00+14:00'")],
        {"received"},
        True,
    ),
    "count that is text": ([OWN.format("output_tokens = 'many'")], {"output_tokens"}, True),
    "time that is text": ([OWN.format("ttft_ms = 'soon'")], {"ttft_ms"}, True),
    "time that is infinite": ([OWN.format("duration_ms = 9e999")], {"duration_ms"}, True),
    "status": ([OWN.format("status = 'fine'")], {"status"}, True),
    "finish reason": ([OWN.format("finish_reason = 'bored'")], {"finish_reason"}, True),
    "flag": ([OWN.format("stream = 'yes'")], {"stream"}, True),
    "ignored": ([OWN.format("ignored = '{'")], {"ignored"}, True),
    "ignored, no texts": ([OWN.format("ignored = '[1]'")], {"ignored"}, True),
    "client that is bytes": ([OWN.format("client = x'ff00'")], {"client"}, True),
    "text that is not UTF-8": (
        [OWN.format(f"first_words = {NOT_UTF_8}, error = {NOT_UTF_8}")],
        {"first_words", "error"},
        True,
    ),
    "everything is NULL": (
        [
            *(nullable("proxy_exchanges", name) for name in ("received", "client", "first_words")),
            *(nullable("proxy_exchanges", name) for name in ("status", "headers", "body")),
            OWN.format("received = null, client = null, first_words = null, status = null"),
            OWN.format("headers = null, body = null"),
        ],
        {"received", "client", "first_words", "status", "headers", "body"},
        True,
    ),
    "headers": ([OWN.format("headers = '{\"a\":'")], {"headers"}, False),
    "headers that are a list": ([OWN.format("headers = '[]'")], {"headers"}, False),
    "headers that are not UTF-8": ([OWN.format(f"headers = {NOT_UTF_8}")], {"headers"}, False),
    "query": ([OWN.format("query = x'00'")], {"query"}, False),
    "body": ([OWN.format("body = 'no JSON'")], {"body"}, False),
    "body that is not UTF-8": ([OWN.format(f"body = {NOT_UTF_8}")], {"body"}, False),
    "blob": (["update proxy_contents set text = '{'"], {"body"}, False),
    "blob is missing": (["delete from proxy_contents"], {"body"}, False),
    "timeline": ([OWN.format("timeline = '{'")], {"timeline"}, False),
    "timeline without its members": ([OWN.format("timeline = '{}'")], {"timeline"}, False),
    "timeline of another reply": (
        [
            OWN.format(
                "timeline = (select timeline from proxy_exchanges where first_words like 'fail%')"
            )
        ],
        {"timeline"},
        False,
    ),
    "timeline is missing": ([OWN.format("timeline = null")], {"timeline"}, False),
    "turn is deleted": (["delete from turns where id = :id"], {"turn"}, True),
    "turn and thread are deleted": (
        [
            "delete from threads where id = (select thread_id from turns where id = :id)",
            "delete from turns where id = :id",
        ],
        {"turn"},
        True,
    ),
    "turn's time": ([TURN.format("datetime_utc = 'soon'")], {"turns.datetime_utc"}, False),
    "turn's NULLs": (
        [TURN.format("model = null, datetime_utc = null, thread_id = null")],
        {"turns.model", "turns.datetime_utc", "turns.thread_id"},
        False,
    ),
    "turn's options": ([TURN.format("options_json = '['")], {"turns.options_json"}, False),
    "turn's counts": ([TURN.format("input_tokens = 'few'")], {"turns.input_tokens"}, False),
    "turn's response": ([TURN.format("response_json = '{'")], {"turns.response_json"}, False),
    "tool is missing": (["delete from tools"], {"tools"}, False),
    "request's message is missing": (
        [f"delete from messages where hash = {ASKED}"],
        {"messages"},
        False,
    ),
    "request's message is changed": (
        [f"update messages set provider_metadata = '{{' where hash = {ASKED}"],
        {"messages"},
        False,
    ),
    "hash of the request's message is bytes": (
        [OWN.format("message_hash = x'ff00'")],
        set(),
        False,
    ),
    "hash of the turn's request is bytes": (
        [TURN.format("parent_message_hash = x'ff00'")],
        {"messages", "reply"},
        False,
    ),
    "hash of the turn's request is no message's": (
        [TURN.format("parent_message_hash = 'abc'")],
        {"messages", "reply"},
        False,
    ),
    "hash of the turn's reply is bytes": (
        [TURN.format("tip_message_hash = x'ff00'")],
        {"reply"},
        False,
    ),
    "hash of the message before is bytes": (
        [f"update messages set parent_hash = x'ff00' where hash = {ASKED}"],
        {"messages"},
        False,
    ),
    "reply is missing": ([f"delete from messages where hash = {REPLIED}"], {"reply"}, False),
    "reply's parts are missing": (
        [f"delete from parts where message_hash = {REPLIED}"],
        {"reply"},
        False,
    ),
    "reply that is not UTF-8": (
        [f"update parts set text = {NOT_UTF_8} where message_hash = {REPLIED}"],
        {"reply"},
        False,
    ),
    "reply of an unknown type": (
        [f"update parts set type = 'smell' where message_hash = {REPLIED}"],
        {"reply"},
        False,
    ),
    "part's payload": (
        [f"update parts set payload = '[' where message_hash = {ASKED} and payload is not null"],
        {"messages"},
        False,
    ),
    "attachment is missing": (["delete from attachments"], {"messages"}, False),
    "row of the attachment is missing": (["delete from part_attachments"], set(), True),
    "it continues itself": (
        [OWN.format("previous_id = id, link = 'reply'")],
        set(),
        True,
    ),
    "turn without an exchange": (["delete from proxy_exchanges where id = :id"], None, True),
}
HAS_ID = {"turn without an exchange": False}
NOT_FOUND_BY_VERIFY = {"received, without a zone", "row of the attachment is missing"} | {
    "turn without an exchange",
    "turn's response",
}


# Each kind is tried with each reader in the slow tests, every third one in the quick ones.
KINDS = [
    pytest.param(name, marks=() if number % 3 == 0 else pytest.mark.slow)
    for number, name in enumerate(DAMAGE)
]


@pytest.fixture(params=KINDS)
def damaged(request, recorded):
    statements, names, is_listed = DAMAGE[request.param]
    recorded.change(*statements)
    return recorded, names, is_listed


def read(*words, code=0):
    found, out, err = run_here(*words)
    assert "Traceback" not in err
    assert found == code, err
    return out.decode(), err


def test_a_list_shows_all_rows_and_marks_the_damaged_one(damaged):
    log, names, is_listed = damaged
    out, _ = read("log")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert {log.next, *log.others} <= lines.keys()
    assert (log.id in lines) == (names is not None)
    marked = {id for id, line in lines.items() if "damaged: " in line}
    assert marked == ({log.id} if names and is_listed else set())
    values = [json.loads(line) for line in read("log", "--json")[0].splitlines()]
    found = {value["id"]: set(value.get("damage", ())) for value in values}
    assert found.keys() == lines.keys()
    if names and is_listed:
        assert found[log.id] <= names and found[log.id]


def test_one_exchange_is_shown_as_far_as_it_can_be_read(damaged):
    log, names, _ = damaged
    for id in (log.next, *log.others):
        assert read("log", id)[0].startswith(f"exchange     {id}\n")
    if names is None:
        read("log", log.id, code=1)
        return
    out, _ = read("log", log.id)
    assert ("damaged " in out) == bool(names)
    values = json.loads(read("log", log.id, "--json")[0])
    assert set(values.get("damage", ())) == names
    with llmproxy.open_log(log.path) as opened:
        exchange = opened.exchange(log.id)
        assert set(exchange.damage) == names
        # What is not damaged is there.
        if not {"messages", "body", "turn"} & names:
            assert exchange.request.body["messages"][0]["content"][0]["text"].endswith(LONG)
            assert exchange.turn.messages[0].parts[0].text.endswith(LONG)
        if not {"reply", "turn"} & names:
            assert exchange.turn.reply[0].parts[0].text == ANSWER


def test_conversations_are_shown(damaged):
    log, names, _ = damaged
    out, _ = read("log", "--threads")
    assert len(out.splitlines()) >= 4
    tree, _ = read("log", "--thread", log.next)
    assert log.next in tree
    read("log", "--thread", log.others[0])
    if names is not None:
        tree, _ = read("log", "--thread", log.id)
        assert log.id in tree
    read("log", "--threads", "--json")
    read("log", "--cache")
    with llmproxy.open_log(log.path) as opened:
        assert len(opened.conversations()) >= 4


def test_a_search_and_a_follower_go_on(damaged):
    log, _, _ = damaged
    assert log.others[1] in read("log", "--search", "France")[0]
    with LogReader(log.path) as reader:
        follower = reader.follow()
        follower._last = 0
        assert {log.next, *log.others} <= {entry.id for entry in follower.poll()}


def test_reports_and_pages_name_the_damaged_one(damaged):
    log, names, _ = damaged
    for words in (("--json",), ("--html", "-")):
        out, err = read("report", *words)
        assert out
        assert (f"{log.id} is damaged: " in err) == bool((names or set()) - {"body"})

    def page(path):
        status, html = asyncio.run(Dashboard(log.path).page(path, "", "http://127.0.0.1:1", "./"))
        return status, html.decode()

    assert "capital of France?" in page("/")[1] and page("/conversations")[0] == 200
    assert ("Damaged in the log:" in page("/figures")[1]) == bool((names or set()) - {"body"})
    status, html = page(f"/exchanges/{log.id}")
    assert status == (404 if names is None else 200)
    assert ("<dt>Damaged</dt>" in html) == bool(names)
    for id in (log.next, *log.others):
        assert page(f"/exchanges/{id}")[0] == page(f"/conversations/{id}")[0] == 200
    assert page(f"/conversations/{log.id}")[0] == 200  # a turn's id will do, as for --thread


def test_an_export_has_all_rows_and_can_be_imported(request, damaged, tmp_path):
    log, names, _ = damaged
    out, err = read("export", "-", code=1 if names else 0)
    ids = [json.loads(line)["id"] for line in out.splitlines()]
    assert {log.next, *log.others} <= set(ids)
    assert (log.id in ids) == (names is not None)
    assert (f"{log.id} is damaged: " in err) == bool(names)
    read("export", "-", "--anonymize", code=1 if names else 0)
    file = tmp_path / "all.jsonl"
    file.write_text(out)
    there = tmp_path / "there.db"
    left_out = request.node.callspec.params["damaged"] == "it continues itself"
    _, err = read("import", str(file), "--database", str(there), code=int(left_out))
    assert ("previous_id: an exchange can't come before itself" in err) == left_out
    assert (
        read("log", "--database", str(there), "--last", "9")[0].count("\n") == len(ids) - left_out
    )
    recordings = tmp_path / "recordings"
    read("export", str(recordings), "--format", "llama-stack", code=1 if names else 0)


def test_recordings_are_replayed_and_matched(damaged):
    log, names, _ = damaged
    messages = [llm.user("capital of France?")]
    with Log(log.path) as source:
        assert "m" in source.models()
        request = chat.ChatRequest("m", messages)
        (found,) = source.find(request)
        assert source.load(found).events
        if names is not None:
            try:
                assert source.load(log.id).events
            except ProxyError as exc:
                assert f"recording {log.id} is damaged" in str(exc)
        assert [id for id, _ in source.near(chat.ChatRequest("m", [llm.user("other")]))]
    matcher = Matcher(log.path)
    asked = [*messages, llm.assistant(ANSWER), llm.user("thanks")]
    assert matcher.match(asked, "m", "cook").previous_id is not None
    image = llm.Attachment("image/png", content=b"\x89PNG\r\n\x1a\n, small")
    history = [llm.user(f"pudding? {LONG}", image), llm.assistant(ANSWER), llm.user("and then?")]
    matched = matcher.match(history, "m", "cook")
    assert matched.messages == history
    matcher.match([llm.user(f"summarize: {ANSWER * 2}")], "m", "cook")
    matcher.close()


def test_a_benchmark_skips_what_can_not_be_sent(damaged):
    log, names, _ = damaged
    out, err = read("bench", "--models", "demo", "--dry-run", "--last", "9")
    assert log.others[1] in out
    if names and {"headers", "body", "messages"} & names and "status" not in names:
        assert f"skipped: {log.id}: recording {log.id} is damaged" in err
        assert log.id not in out


def test_writers_go_on(damaged, make_exchange):
    log, _, _ = damaged
    log.change("update proxy_exchanges set status = 'running', owner = 'gone' where number = 1")
    with Store(log.path) as store:
        (interrupted,) = store.interrupt_orphans()
        assert interrupted.id == log.others[0]
        exchange = make_exchange("a new question")
        assert store.write([exchange]) == 1
    with LogReader(log.path) as reader:
        assert reader.exchange(exchange.id).damage == ()


def test_it_can_be_pruned(damaged):
    log, names, _ = damaged
    assert prune(log.path, Filter(ids=(log.id,))).exchanges == (names is not None)
    with LogReader(log.path) as reader:
        assert reader.ids() == [log.others[0], log.next, *log.others[1:]]


def test_verify_finds_it(request, damaged):
    log, _, _ = damaged
    broken = verify(log.path).broken
    name = request.node.callspec.params["damaged"]
    assert bool(broken) == (name not in NOT_FOUND_BY_VERIFY), broken
    if broken:
        assert log.id in {one.turn_id for one in broken}
        out, _ = read("log", "--verify", code=1)
        assert log.id in out


@pytest.mark.parametrize("name", ["turn is deleted", "reply that is not UTF-8", "timeline"])
def test_a_proxy_goes_on(recorded, name):
    """It matches and records requests, and its page says what is damaged."""
    recorded.change(*DAMAGE[name][0])
    with running(AsyncScript("m", "Water."), database=recorded.path) as proxy:
        image = {"type": "image_url", "image_url": {"url": IMAGE}}
        asked = [
            {"role": "user", "content": [{"type": "text", "text": f"pudding? {LONG}"}, image]},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": "and then?"},
        ]
        new = ask(proxy, *asked)
        page = httpx.get(f"{proxy.url}/figures")
        assert (page.status_code, proxy.warnings) == (200, [])
        assert "Damaged in the log:" in page.text and recorded.id in page.text
    with LogReader(recorded.path) as reader:
        # Messages are stored once: a new request shares the damaged one.
        shared = ("messages",) if name.startswith("reply") else ()
        assert reader.exchange(new).damage == shared


def test_a_message_that_precedes_itself_ends_no_reader_in_a_circle(recorded):
    recorded.change(f"update messages set parent_hash = hash where hash = {REPLIED}")
    assert json.loads(read("log", recorded.id, "--json")[0])["damage"] == ["reply"]
    for words in (("--thread", recorded.id), ("--cache",), ("--search", "rhubarb")):
        read("log", *words)
    assert recorded.id in read("log", "--verify", code=1)[0]


def test_a_damaged_run_is_reported_without_its_settings(recorded):
    values = {"name": "friday", "began": "soon", "ended": "1", "settings": "{"}
    with Store(recorded.path) as store:
        store.write_run("01run", values)
    recorded.change("update proxy_exchanges set run_id = '01run', repeat = 1 where id = :id")
    assert read("report", "friday")[0].startswith("friday: 1 request")
    assert recorded.id in read("log", "--run", "friday")[0]
    out, _ = read("log", "--verify", code=1)
    assert out.splitlines()[0] == "run 01run: can't be read: began, ended, settings"


def test_a_sound_log_is_not_damaged(recorded):
    assert verify(recorded.path).broken == ()
    assert "damaged" not in "".join(read("log") + read("report") + read("export", "-"))
    with LogReader(recorded.path) as reader:
        assert not any(reader.exchange(id).damage for id in reader.ids(Filter()))
