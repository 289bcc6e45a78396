from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import llm.cli
import pytest
from click.testing import CliRunner
from llm.parts import ReasoningPart, StreamEvent, TextPart, ToolCallPart

from llmproxy.core import chat
from llmproxy.core.usage import Usage
from llmproxy.recorder.exchange import Turn, begun, with_answer
from llmproxy.recorder.store import Store
from tests.empty_log import put_empty_log

RECEIVED = datetime(2026, 11, 21, 22, 47, 1, 500, tzinfo=UTC)


def ended_as(
    exchange, status, *, turn=None, events=(), finish=None, error=None, ignored=(), **facts
):
    """Give an exchange as it ended."""
    facts["ignored"] = tuple(ignored)
    facts["error"] = None if error is None else exchange.redactor.text(error)
    return with_answer(replace(exchange, status=status, **facts), turn, events, finish)


def make_version_4(connection):
    """Take from a log's tables what their later versions added."""
    details = "error_status", "error_kind", "error_code", "error_param", "retry_after_s"
    later = "overhead_ms", "last_message", "reply_words", "cache_write_1h_tokens", "host"
    upstreams = "upstream", "refused_by", "upstream_request_id"
    for name in ("tokens_per_second", *details, *later, *upstreams):
        connection.execute(f"alter table proxy_exchanges drop column {name}")
    connection.execute("update proxy_meta set value = 4 where name = 'schema'")


@pytest.fixture
def path(llm_user_path):
    """Where logs.db is to be; nothing is there yet."""
    return llm_user_path / "logs.db"


@pytest.fixture(scope="session")
def empty_log(tmp_path_factory):
    """A logs.db without exchanges, to copy: the migrations take a tenth of a second."""
    path = tmp_path_factory.mktemp("log") / "logs.db"
    put_empty_log(path)
    return path


@pytest.fixture
def store(path, empty_log, monkeypatch):
    """A store in a logs.db that was there before; it writes each group whole."""
    monkeypatch.setattr("llmproxy.recorder.store.LOCK_S", 60)
    shutil.copy(empty_log, path)
    store = Store(path)
    yield store
    store.close()


@pytest.fixture
def make_begun():
    """Make exchanges that begin, with ids of their own."""
    numbers = itertools.count(1)

    def make(prompt="hello", **fields):
        body = {"model": "demo", "messages": [{"role": "user", "content": prompt}]}
        facts = {
            "dialect": "openai_chat",
            "path": "/v1/chat/completions",
            "query": "",
            "client": "tests",
            "headers": [("user-agent", "tests/1")],
            "body": body,
            "stream": True,
            "model": "demo",
            "messages": [llm.user(prompt)],
        }
        return begun(f"01jd{next(numbers):022d}", RECEIVED, **facts | fields)

    return make


@pytest.fixture
def make_exchange(make_begun):
    """Make exchanges that have ended, of words that a test says."""

    def make(prompt="hello", answer="HELLO", status="ok", error=None, request=None, **turn_fields):
        begun = make_begun(prompt, **request or {})
        facts = {
            "id": begun.id,
            "thread_id": begun.id,
            "model": "demo",
            "messages": [llm.user(prompt)],
            "reply": [llm.assistant(answer)],
            "started": RECEIVED,
            "duration_ms": 12,
        }
        turn = Turn(**facts | turn_fields)
        events = [(float(i), event) for i, event in enumerate(events_of(turn.reply), 1)]
        return ended_as(
            begun,
            status,
            http_status=200 if status == "ok" else None,
            duration_ms=12.5,
            turn=turn,
            events=events,
            finish=chat.Finish() if status == "ok" else None,
            error=error,
        )

    return make


def events_of(reply):
    """Take an answer apart: one event for each part, two for a tool call."""
    for message_index, message in enumerate(reply):
        for index, part in enumerate(message.parts):
            place = {"part_index": index, "message_index": message_index}
            place["provider_metadata"] = part.provider_metadata
            match part:
                case TextPart():
                    yield StreamEvent("text", part.text, **place)
                case ReasoningPart():
                    yield StreamEvent("reasoning", part.text, redacted=part.redacted, **place)
                case ToolCallPart():
                    place["tool_call_id"] = part.tool_call_id
                    yield StreamEvent("tool_call_name", part.name, **place)
                    yield StreamEvent("tool_call_args", json.dumps(part.arguments), **place)


@pytest.fixture
def llm_process():
    """Run the `llm` command in a process, as a person would, and give what it prints."""

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *words], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def run_llm():
    """Run the `llm` command in this process, which saves half a second each time."""

    def run(*words: str) -> str:
        done = CliRunner().invoke(llm.cli.cli, words)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


@pytest.fixture
def talk(store, make_exchange):
    """Write an exchange that goes on from another, at a later time, and give it."""
    times = itertools.count()

    def talk(prompt, after=None, link="reply", *, answer=None, usage=None, received=None, **fields):
        before = [] if after is None else [*after.turn.messages, *after.turn.reply]
        fields.setdefault("messages", [*before, llm.user(prompt)])
        exchange = make_exchange(prompt, answer or f"{prompt}, answered at length", **fields)
        if fields.get("status", "ok") != "ok" and not exchange.turn.reply:
            exchange = replace(exchange, thread_id=None)
        exchange = replace(
            exchange,
            received=received or RECEIVED + timedelta(seconds=next(times)),
            usage=usage or Usage(),
            previous_id=after and after.id,
            link=after and link,
        )
        store.write([exchange])
        return exchange

    return talk
