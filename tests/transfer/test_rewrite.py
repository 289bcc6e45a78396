"""Recording anew into a file that is reviewed."""

from __future__ import annotations

import itertools
import json
import shutil
from datetime import timedelta
from io import BytesIO

import llm
import pytest
from llm.parts import Message, ReasoningPart, ToolCallPart

from llmproxy.recorder.exchange import changed
from llmproxy.recorder.reader import LogReader
from llmproxy.recorder.store import Store
from llmproxy.transfer.jsonl import decode, read_lines
from llmproxy.transfer.rewrite import rewrite_file
from tests.log_fixtures import RECEIVED


@pytest.fixture
def record(make_exchange, empty_log, tmp_path):
    """Record prompts and replies in a new log, at later times; return the file made of it."""
    numbers = itertools.count(1)

    def make(before, *said, **facts):
        number = next(numbers)
        database, file = tmp_path / f"{number}.db", tmp_path / "file.jsonl"
        shutil.copy(empty_log, database)
        with Store(database) as store:
            for prompt, reply in said:
                headers = [("host", f"127.0.0.1:{next(numbers)}"), ("user-agent", f"v{number}")]
                request = {"headers": headers, "replay_key": prompt}
                reply = [llm.assistant(reply)] if isinstance(reply, str) else [reply]
                exchange = make_exchange(prompt, reply=reply, request=request)
                received = RECEIVED + timedelta(seconds=next(numbers))
                store.write([changed(exchange, received=received, ttft_ms=float(number), **facts)])
        with LogReader(database) as reader:
            rewrite_file(reader, file, before)
        return file.read_bytes()

    return make


def replies(data):
    """Return prompts with the texts of their replies, in the order of a file."""
    found = [decode(line) for _, line in read_lines(BytesIO(data))]
    return [(one.first_words, one.turn.reply[0].parts[0].text) for one in found]


def call(id, thought="Hm."):
    parts = [ReasoningPart(text=thought, provider_metadata={"signature": id})]
    return Message("assistant", [*parts, ToolCallPart("read", {"path": "x"}, tool_call_id=id)])


def test_what_is_recorded_as_before_stays_as_it_was(record):
    first = record(b"", ("a", "A"), ("b", call("call_1")), ("c", "C"))
    assert b'"host": "127' not in first and b'"user-agent"' in first
    assert record(first, ("a", "A"), ("b", call("call_2")), ("c", "C")) == first
    # Requests at the same time may end in any order.
    assert record(first, ("c", "C"), ("a", "A"), ("b", call("call_3"))) == first


def test_what_has_changed_takes_the_place_of_what_was_there(record):
    first = record(b"", ("a", "A"), ("b", "B"), ("c", "C"))
    second = record(first, ("a", "A"), ("b", "other"), ("c", "C"))
    assert replies(second) == [("a", "A"), ("b", "other"), ("c", "C")]
    one, two = ([line for _, line in read_lines(BytesIO(data))] for data in (first, second))
    assert (two[0], two[2]) == (one[0], one[2])
    assert replies(record(first, ("b", "B"))) == [("b", "B")]


@pytest.mark.parametrize(
    "facts", [{"http_status": 500}, {"error": "no"}, {"finish_reason": "length"}]
)
def test_another_end_is_recorded_anew(record, facts):
    first = record(b"", ("a", "A"))
    assert record(first, ("a", "A"), **facts) != first


def test_other_reasoning_is_recorded_anew(record):
    first = record(b"", ("a", call("call_1")))
    assert record(first, ("a", call("call_1", "Another thought."))) != first


def test_recordings_of_one_request_keep_their_turns(record):
    """The old ones come first by their times, so none may follow a new one."""
    first = record(b"", ("a", "1"), ("a", "2"))
    assert record(first, ("a", "1"), ("a", "2")) == first
    second = record(first, ("a", "new"), ("a", "2"), ("a", "1"))
    found = [decode(line) for _, line in read_lines(BytesIO(second))]
    assert replies(second) == [("a", "new"), ("a", "2"), ("a", "1")]
    assert [one.received for one in found] == sorted(one.received for one in found)


def test_replays_and_damaged_recordings_are_left_out(record):
    first = record(b"", ("a", "A"), ("b", "B"))
    lines = first.splitlines(keepends=True)
    damaged = b"".join(lines[: lines.index(b"}\n") - 1]) + b"".join(
        lines[lines.index(b"}\n") + 1 :]
    )
    assert replies(record(damaged, ("a", "A"), ("b", "B"))) == [("a", "A"), ("b", "B")]
    replayed = {"replay_of": json.loads(b"".join(lines[: lines.index(b"}\n") + 1]))["id"]}
    assert record(b"", ("a", "A"), **replayed) == b""
