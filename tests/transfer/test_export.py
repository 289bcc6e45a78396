from __future__ import annotations

import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import llm
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from llm.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from llmproxy.backends.engine.demo import Demo
from llmproxy.core import attachments
from llmproxy.core.errors import InvalidRequest, NotFound
from llmproxy.recorder.database import Locked, StoreError, Unusable
from llmproxy.recorder.exchange import encode, to_json
from llmproxy.recorder.listing import Filter
from llmproxy.recorder.reader import LogReader
from llmproxy.recorder.store import Store
from llmproxy.recorder.verify import verify
from llmproxy.transfer.anonymize import anonymize
from llmproxy.transfer.export import (
    Exported,
    Unreadable,
    export_file,
    export_jsonl,
)
from llmproxy.transfer.import_ import Imported, _Order
from llmproxy.transfer.import_ import import_files as import_files_with
from llmproxy.transfer.jsonl import decode
from llmproxy.transfer.llama_stack import folder as folder_module
from llmproxy.transfer.llama_stack.as_exchange import read_recording, to_exchange
from llmproxy.transfer.llama_stack.folder import export_recordings
from llmproxy.transfer.llama_stack.read import parse_recording
from tests.examples import many_examples
from tests.models import registered
from tests.transfer.llama_stack.test_read import mutated

import_files = partial(import_files_with, read_recording=read_recording)  # as the command does

ALL = Filter()
RECORDINGS = Path(__file__).parents[1] / "recordings"


def rows(path, sql, *values):
    with sqlite3.connect(path) as connection:
        return connection.execute(sql, values).fetchall()


# Columns that number rows in the order of writing.
NUMBERS = {
    "parts": "id",
    "turn_search": "id",
    "proxy_exchanges": "number",
}


def everything(path):
    """Return all rows, without the numbers that only depend on the order of writing."""
    result = {}
    for (table,) in rows(path, "select name from sqlite_master where type = 'table'"):
        if table in ("_llm_migrations", "sqlite_sequence", "part_attachments", "turn_tools"):
            continue
        if table.startswith("turn_search_fts"):
            continue
        columns = [
            row[1]
            for row in rows(path, f"pragma table_info({table})")
            if row[1] != NUMBERS.get(table)
        ]
        quoted = ", ".join(f"[{column}]" for column in columns)
        found = rows(path, f"select {quoted} from {table}")
        result[table] = sorted(found, key=repr)
    result["attached"] = rows(
        path,
        'select message_hash, position, attachment_id, "order" from part_attachments'
        " join parts on parts.id = part_id order by 1, 2, 3, 4",
    )
    result["tools used"] = rows(path, "select turn_id, tool_id from turn_tools order by 1, 2")
    return result


@pytest.fixture
def recorded(store, path, talk):
    """A log with threads of every kind, as a proxy writes it, and its exchanges' lines."""
    picture = llm.Attachment(type="image/png", content=b"\x89PNG\r\n\x1a\n" + bytes(9))
    far = attachments.attachment_from_url("https://example.invalid/cat.png")
    tool = llm.Tool("look", "looks at it", {"type": "object", "properties": {}})
    call = Message(
        "assistant",
        [
            ReasoningPart("hmm", provider_metadata={"anthropic": {"signature": "s" * 80}}),
            TextPart("Looking at the picture now."),
            ToolCallPart("look", {"z": 1, "a": [1.0, True, None]}, "call_1"),
        ],
    )
    first = talk(
        "what is in it",
        messages=[llm.user("what is in it", picture, far)],
        reply=[call],
        tools=(tool,),
        options={"temperature": 0.5},
        response_json={"id": "r1"},
    )
    result = Message("tool", [ToolResultPart("look", "red", "call_1", attachments=[picture])])
    asked = [*first.turn.messages, call, result]
    second = talk("and then", first, messages=asked, tools=(tool,), schema={"type": "object"})
    third = talk("go on", second)
    talk("go on, but cut", third, status="cancelled")
    talk("no, otherwise", second)  # a fork
    talk("once more", second)
    talk("nobody answers", third, reply=[], status="error", error="down: 503")
    side = talk("sum it up", third, link="quote")
    talk("shorter", side)
    talk("something else")
    return path


@pytest.fixture
def lines(recorded):
    history = LogReader(recorded)
    file = io.BytesIO()
    exported = export_jsonl(history, file, ALL)
    history.close()
    assert exported == Exported(10)
    return file.getvalue().splitlines(keepends=True)


def imported_log(folder, *files):
    """Import files with these lines one after another into a new log."""
    for number, lines in enumerate(files):
        file = folder / f"{number}.jsonl"
        file.write_bytes(b"".join(lines))
        import_files([file], folder / "there.db")
    return folder / "there.db"


def test_an_exported_log_is_the_same_after_import(recorded, lines, tmp_path, store):
    there = imported_log(tmp_path, lines)
    moved, was = everything(there), everything(recorded)
    for log in (moved, was):  # when a thread was made: here with its first turn
        log["threads"] = rows(
            there if log is moved else recorded,
            "select id, name, tip_message_hash, forked_from from threads order by id",
        )
    assert moved == was
    assert verify(there).broken == ()
    history = LogReader(there)
    assert b"".join(lines) == b"".join(encode(history.exchange(id)) for id in history.ids())
    history.close()


def test_lines_are_in_the_order_of_receipt(lines):
    words = [json.loads(line)["first_words"] for line in lines]
    assert words[0] == "what is in it" and words[-1] == "something else"
    assert [json.loads(line)["received"] for line in lines] == sorted(
        json.loads(line)["received"] for line in lines
    )


def test_importing_twice_changes_nothing(lines, tmp_path):
    file = tmp_path / "all.jsonl"
    file.write_bytes(b"".join(lines))
    there = tmp_path / "there.db"
    assert import_files([file], there, dry_run=True) == Imported(10, 0, 0)
    assert not there.exists()
    assert import_files([file], there) == Imported(10, 0, 0)
    before = everything(there)
    assert import_files([file, file], there, dry_run=True) == Imported(0, 20, 0)
    assert import_files([file, file], there) == Imported(0, 20, 0)
    assert everything(there) == before


@many_examples(12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_order_any_split_and_any_kill_lead_to_the_same_rows(
    lines, tmp_path_factory, empty_log, data
):
    """A kill leaves complete groups, and then everything is imported again."""
    order = data.draw(st.permutations(lines))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=3)))
    files = [order[a:b] for a, b in itertools.pairwise([0, *cuts, len(order)])]
    killed_after = data.draw(st.integers(0, len(order)))
    folder = tmp_path_factory.mktemp("any")
    shutil.copy(empty_log, folder / "there.db")
    store = Store(folder / "there.db")
    for line in order[::-1][:killed_after]:
        store.write([decode(line)], are_imported=True)
    store.close()
    there = imported_log(folder, *files)
    other = tmp_path_factory.mktemp("straight")
    shutil.copy(empty_log, other / "there.db")
    assert everything(there) == everything(imported_log(other, lines))


def _cut(whole):
    return replace(
        whole, status="interrupted", turn=None, events=(), thread_id=None, event_count=0,
        finish_reason=None, http_status=None,
    )  # fmt: skip


def test_an_interrupted_exchange_is_completed_whichever_comes_first(make_exchange, tmp_path):
    whole = make_exchange("hello")
    cut = _cut(whole)
    logs = []
    for number, order in enumerate([(cut, whole), (whole, cut), (cut, cut, whole)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "one.jsonl").write_bytes(b"".join(map(encode, order)))
        assert import_files([folder / "one.jsonl"], folder / "a.db") == Imported(
            1, len(order) - 1, 0
        )
        for part in order:
            (folder / "part.jsonl").write_bytes(encode(part))
            import_files([folder / "part.jsonl"], folder / "b.db")
        assert import_files([folder / "one.jsonl"], folder / "b.db").new == 0
        logs += [everything(folder / "a.db"), everything(folder / "b.db")]
    assert all(log == logs[0] for log in logs)


def test_a_cut_turn_never_is_a_tip(make_exchange, tmp_path):
    """Even if it is imported last and is the newest."""
    first = make_exchange("one", "ONE")
    cut = make_exchange("two", "TW", status="cancelled", thread_id=first.thread_id)
    there = imported_log(tmp_path, [encode(first), encode(cut)])
    tip, of_first = rows(
        there,
        "select threads.tip_message_hash, turns.tip_message_hash from threads"
        " join turns on turns.id = ?",
        first.id,
    )[0]
    assert tip == of_first


def test_an_imported_thread_can_be_continued(lines, tmp_path, path, run_llm, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "there"))
    there = tmp_path / "there" / "logs.db"
    there.parent.mkdir()
    (tmp_path / "all.jsonl").write_bytes(b"".join(lines))
    import_files([tmp_path / "all.jsonl"], there)
    thread = json.loads(lines[0])["thread_id"]
    shown = json.loads(run_llm("logs", "list", "--cid", thread, "-n", "0", "--json"))
    assert [row["prompt"] for row in shown][:1] == ["what is in it"]
    assert "sum it up" in run_llm("logs", "-q", "sum")
    newest = json.loads(lines[-1])["thread_id"]
    for words, meant in ((["-c"], newest), (["--cid", thread], thread)):
        tip = rows(there, "select tip_message_hash from threads where id = ?", meant)
        with registered(Demo()):  # which llm looks up, as the newest turn is the demo's
            run_llm(*words, "-m", "echo", "and on?")
        went_on = (
            "select thread_id, before.parent_hash from turns"
            " join messages as before on before.hash = parent_message_hash"
            " order by turns.id desc limit 1"
        )
        assert rows(there, went_on) == [(meant, *tip[0])]


def test_an_export_can_be_filtered_and_limited(recorded):
    history = LogReader(recorded)
    file = io.BytesIO()
    assert export_jsonl(history, file, Filter(status="ok"), last=2) == Exported(2)
    words = [json.loads(line)["first_words"] for line in file.getvalue().splitlines()]
    assert words == ["shorter", "something else"]
    history.close()


def test_running_exchanges_are_not_exported(store, path, make_begun, make_exchange):
    store.write([make_begun(), make_exchange()])
    history = LogReader(path)
    file = io.BytesIO()
    assert export_jsonl(history, file, ALL) == Exported(1, running=1)
    assert file.getvalue().count(b"\n") == 1
    history.close()


def test_a_file_is_private_and_appears_when_complete(recorded, tmp_path, monkeypatch):
    history = LogReader(recorded)
    file = tmp_path / "out.jsonl"
    file.write_text("before")
    link = tmp_path / "link.jsonl"
    link.symlink_to(file)

    def broken(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr("llmproxy.transfer.export.encode", broken)
        export_file(history, file, ALL)
    assert file.read_text() == "before"
    assert sorted(tmp_path.glob("out*")) == [file]
    assert export_file(history, link, ALL) == Exported(10)
    assert link.is_symlink() and file.read_bytes().count(b"\n") == 10
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    history.close()


def test_an_export_never_replaces_the_log(recorded):
    history = LogReader(recorded)
    with pytest.raises(Unreadable, match="is the log itself"):
        export_file(history, recorded, ALL)
    history.close()


def test_damaged_exchanges_are_exported_as_far_as_possible_and_named(recorded):
    with sqlite3.connect(recorded) as connection:
        connection.execute("delete from messages")
    file = io.BytesIO()
    with LogReader(recorded) as history:
        exported = export_jsonl(history, file, ALL)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert exported.exchanges == len(lines) == 10
    damaged = {line["id"]: tuple(line["damage"]) for line in lines if "damage" in line}
    assert exported.damaged == damaged
    assert {names for names in damaged.values()} == {("messages", "reply"), ("messages",)}


def test_anonymized_exchanges_can_be_imported_with_the_same_events(recorded, lines, tmp_path):
    history = LogReader(recorded)
    file = tmp_path / "anonymized.jsonl"
    export_file(history, file, ALL, anonymized=True)
    history.close()
    text = file.read_text()
    for word in ("picture", "otherwise", "example", "hmm", "ssss", "503", "looks", "sum it"):
        assert word not in text
    there = imported_log(tmp_path, text.encode().splitlines(keepends=True))
    history = LogReader(there)
    for line in lines:
        was = decode(line)
        moved = history.exchange(was.id)
        assert to_json(moved) == to_json(anonymize(was))
        assert [at for at, _ in moved.events] == [at for at, _ in was.events]
    history.close()


# ---- Llama Stack


def test_a_recording_is_imported_as_an_exchange_without_times(tmp_path, run_llm, path):
    file = RECORDINGS / "4be1f0a7c3d9.json"
    exchange = to_exchange(parse_recording(file.read_bytes(), file.stem))
    assert import_files([file], path) == Imported(1, 0, 0)
    assert import_files([file], path) == Imported(0, 1, 0)
    history = LogReader(path)
    read = history.exchange(exchange.id)
    assert to_json(read) == to_json(exchange)
    assert (read.origin, read.client, read.dialect) == ("llama-stack", "llama-stack", "openai_chat")
    assert (read.ttft_ms, read.first_text_ms, read.duration_ms) == (None, None, None)
    assert read.received.isoformat() == "1970-01-01T00:00:00+00:00"
    assert {at for at, _ in read.events} == {0.0}
    assert read.replay_key is not None
    assert read.id.startswith("0000000000") and len(read.id) == 26
    history.close()
    (row,) = json.loads(run_llm("logs", "--json"))
    assert (row["model"], row["id"]) == (exchange.model_asked, exchange.id)


def test_all_recordings_are_imported_or_counted_and_exported_again(tmp_path):
    files = sorted(RECORDINGS.glob("*.json"))
    readable, chats = [], 0
    for file in files:
        try:
            chats += parse_recording(file.read_bytes(), file.stem).kind == "chat"
        except Exception:
            continue
        readable.append(file)
    assert chats > 5
    there = tmp_path / "there.db"
    assert import_files(readable, there) == Imported(chats, 0, len(readable) - chats)
    history = LogReader(there)
    exported = export_recordings(history, tmp_path / "out", ALL)
    assert exported.exchanges + exported.skipped + exported.replaced == chats
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == exported.exchanges
    again = import_files(written, tmp_path / "again.db")
    assert again == Imported(len(written), 0, 0)
    file = io.BytesIO()
    export_jsonl(history, file, ALL)
    history.close()
    lines = file.getvalue().splitlines(keepends=True)
    assert everything(imported_log(tmp_path, lines)) == everything(there)


# ---- bad input


SPOILED = {
    "cut": (lambda lines: [*lines[:3], lines[3][:-90]], ", line 4: it is not JSON: "),
    "changed": (
        lambda lines: [lines[0], lines[1].replace(b'"path":"', b'"path":7,"x":"', 1)],
        ", line 2, path: expected a string, got a number",
    ),
    "foreign line": (
        lambda lines: [*lines, b'{"a": 1}\n'],
        ", line 11, id: this field is required",
    ),
    "a database": (
        lambda lines: [b"SQLite format 3\0" + bytes(99)],
        ": a database; use `export` to read",
    ),
    "a picture": (lambda lines: [b"\x89PNG\r\n\x1a\n" + bytes(99)], ", line 1: it is not UTF-8"),
    "half a recording": (
        lambda lines: [b'{"request": {"method": "GET"}}'],
        ", response: this field is required",
    ),
}


@pytest.mark.parametrize("spoil, message", SPOILED.values(), ids=SPOILED)
def test_what_can_not_be_read_is_named_and_all_else_comes_in(lines, tmp_path, spoil, message):
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.jsonl"
    bad.write_bytes(b"".join(spoil(lines)))
    good.write_bytes(b"".join(lines))
    there = tmp_path / "there.db"
    tried = import_files([bad, good], there, dry_run=True)
    assert not there.exists()
    imported = import_files([bad, good], there)
    assert imported == tried
    assert (imported.new, imported.unreadable) == (10, len(imported.failures))
    assert imported.failures[0].startswith(f"{bad}{message}")
    assert everything(there) == everything(imported_log(tmp_path, lines))


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("spoil, message", SPOILED.values(), ids=SPOILED)
def test_a_strict_import_is_all_or_nothing(lines, tmp_path, spoil, message, dry_run):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_bytes(b"".join(lines))
    bad.write_bytes(b"".join(spoil(lines)))
    there = tmp_path / "there.db"
    with pytest.raises(Unreadable) as refused:
        import_files([good, bad], there, strict=True, dry_run=dry_run)
    assert str(refused.value).startswith(f"{bad}{message}")
    assert str(refused.value).endswith("; nothing was imported")
    assert not there.exists()
    if not dry_run:
        assert import_files([good], there, strict=True) == Imported(10, 0, 0)


def test_lines_around_a_bad_one_come_in(lines, tmp_path):
    file, there = tmp_path / "some.jsonl", tmp_path / "there.db"
    file.write_bytes(b"".join([*lines[:4], b"no JSON\n", *lines[4:8], b"\n", b"[]\n", *lines[8:]]))
    imported = import_files([file], there)
    assert (imported.new, imported.unreadable) == (10, 2)
    assert [failure.split(": ")[0] for failure in imported.failures] == [
        f"{file}, line 5",
        f"{file}, line 11",
    ]
    with pytest.raises(Unreadable, match=r"line 5: .* \(and 1 more\); nothing was imported$"):
        import_files([file], there, strict=True)


def test_of_another_programs_file_the_first_lines_are_named(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("a note\n" * 1020)
    imported = import_files([file, file], tmp_path / "there.db")
    assert imported.unreadable == 2040 and len(imported.failures) == 42
    assert imported.failures[20] == f"{file}: 1,000 more lines"
    assert not (tmp_path / "there.db").exists()


def test_a_byte_order_mark_and_windows_lines_are_read(lines, tmp_path):
    mark = b"\xef\xbb\xbf"
    file, recording = tmp_path / "all.jsonl", tmp_path / "abc.txt"
    file.write_bytes(mark + b"".join(lines).replace(b"\n", b"\r\n"))
    recording.write_bytes(mark + (RECORDINGS / "4be1f0a7c3d9.json").read_bytes())
    assert import_files([file, recording], tmp_path / "there.db") == Imported(11, 0, 0)


def _circle(make_exchange):
    """Return three exchanges; each continues the next one, and the last one the first."""
    ids = [make_exchange(f"{n}") for n in range(3)]
    return [
        replace(one, previous_id=other.id, link="reply")
        for one, other in zip(ids, [*ids[1:], ids[0]], strict=True)
    ]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_exchange_that_would_close_a_circle_is_named_and_left_out(
    make_exchange, tmp_path, order
):
    circle = _circle(make_exchange)
    lines = [circle[n] for n in order]
    fork = replace(make_exchange("fork"), previous_id=lines[2].id, link="reply")
    file, there = tmp_path / "circle.jsonl", tmp_path / "there.db"
    file.write_bytes(b"".join(map(encode, [*lines, fork])))
    why = (
        f"{file}, line 3, previous_id: {lines[2].previous_id} can't come before {lines[2].id},"
        " because it continues it, directly or through others"
    )
    for dry_run in (True, False):
        with pytest.raises(Unreadable) as refused:
            import_files([file], there, strict=True, dry_run=dry_run)
        assert str(refused.value) == f"{why}; nothing was imported"
        assert not there.exists()
    for dry_run in (True, False):
        assert import_files([file], there, dry_run=dry_run) == Imported(3, 0, 0, 1, (why,))
    assert verify(there).broken == ()
    assert import_files([file], there) == Imported(0, 3, 0, 1, (why,))


def test_a_circle_through_what_the_log_has_is_refused(make_exchange, tmp_path):
    one, *others = _circle(make_exchange)
    there = imported_log(tmp_path, map(encode, others))
    before = everything(there)
    (tmp_path / "rest.jsonl").write_bytes(encode(one))
    for dry_run in (True, False):
        imported = import_files([tmp_path / "rest.jsonl"], there, dry_run=dry_run)
        assert (imported.new, imported.unreadable) == (0, 1)
        assert f"{others[0].id} can't come before {one.id}" in imported.failures[0]
    assert everything(there) == before


def test_an_interrupted_exchange_is_completed_with_what_it_continues(make_exchange, tmp_path):
    one, two, three = (make_exchange(f"{n}") for n in range(3))
    begun = replace(_cut(one), previous_id=two.id, link="reply")
    there = imported_log(tmp_path, map(encode, [begun, replace(two, previous_id=three.id)]))
    file = tmp_path / "rest.jsonl"
    for previous, why in (
        (three.id, f"it is another one than in the interrupted exchange: {two.id}"),
        (two.id, None),
    ):
        file.write_bytes(encode(replace(one, previous_id=previous, link="reply")))
        failures = () if why is None else (f"{file}, line 1, previous_id: {why}",)
        new = 1 - len(failures)
        assert import_files([file], there) == Imported(new, 0, 0, len(failures), failures)


def test_the_way_to_the_beginning_is_gone_once(make_exchange):
    """Conversations of which every turn is added after the one that continues it, and forks."""
    template = make_exchange("a")
    order = _Order(None)
    for n in range(20_000):
        order.add(replace(template, id=f"a{n}", previous_id=f"a{n - 1}"))
    for n in range(20_000):
        order.add(replace(template, id=f"c{n}", previous_id=f"b{n}"))
        order.add(replace(template, id=f"b{n}", previous_id="a19999"))
        with pytest.raises(InvalidRequest):
            order.add(replace(template, id="a-1", previous_id=f"c{n}"))


def test_without_a_reader_of_recordings_only_our_own_lines_are_read(tmp_path):
    file = tmp_path / "abc.jsonl"
    file.write_bytes(b'{"request": {"method": "GET"}}')
    imported = import_files_with([file], tmp_path / "there.db")
    assert imported == Imported(0, 0, 0, 1, (f"{file}, line 1, id: this field is required",))


def test_a_damaged_recording_is_reported_with_the_place(tmp_path):
    file = tmp_path / "abc.json"
    form = json.loads((RECORDINGS / "4be1f0a7c3d9.json").read_text())
    form["response"]["body"] = 7
    file.write_text(json.dumps(form, indent=2))
    good = RECORDINGS / "d07a61be92f5.json"
    failure = f"{file}, response.body: the upstream's answer: expected an object, got a number"
    imported = import_files([file, good], tmp_path / "there.db")
    assert imported == Imported(1, 0, 0, 1, (failure,))


def asked(**changes):
    """The body of a recorded request, with these changes."""
    return {"model": "llama3.2:3b", "messages": [], "stream": True} | changes


REFUSED_BY_PROVIDERS = {
    "a picture that is none": asked(
        messages=[
            {
                "role": "user",
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {"url": "data:image/png;base64,not_valid_base64!"},
                    },
                    {
                        "type": "image",  # to the other API the one above is of an unknown kind
                        "source": {
                            "type": "base64",
                            "media_type": "image/png",
                            "data": "not_valid_base64!",
                        },
                    },
                ],
            }
        ]
    ),
    "a result without its call": asked(
        messages=[{"role": "tool", "tool_call_id": "call_0", "content": "5"}]
    ),
    "no messages": asked(),
    "messages that are none": asked(messages=7),
    "an unknown role": asked(messages=[{"role": "bird", "content": "tweet"}]),
    "no model": {"messages": [], "stream": False},
    "no object": "just text",
    "nothing": None,
}


def recording_of(body, name="exception-provider-sdk"):
    form = json.loads((RECORDINGS / f"{name}.json").read_text())
    part = "body" if "body" in form["request"] else "payload"
    form["request"][part] = body
    return form


@pytest.mark.parametrize("body", REFUSED_BY_PROVIDERS.values(), ids=REFUSED_BY_PROVIDERS)
@pytest.mark.parametrize(
    "name, status, error",
    [
        ("exception-provider-sdk", 404, "model: Error code: 404 - no such model"),
        ("messages-refused", 529, "too many birds"),
    ],
)
def test_a_request_that_its_provider_refused_is_an_exchange_with_its_error(
    tmp_path, body, name, status, error
):
    file, there = tmp_path / "abc.json", tmp_path / "there.db"
    file.write_text(json.dumps(recording_of(body, name), indent=2))
    assert import_files([file, RECORDINGS / "d07a61be92f5.json"], there) == Imported(2, 0, 0)
    with LogReader(there) as history:
        (read,) = (x for x in map(history.exchange, history.ids()) if x.status == "error")
        lines = encode(read)
    assert read.request.body == body
    assert (read.http_status, read.error, read.turn, read.replay_key) == (status, error, None, None)
    is_object = isinstance(body, dict)
    assert read.model_asked == (body.get("model") if is_object else None)
    assert read.stream is (is_object and body["stream"])
    assert verify(there).broken == ()
    assert rows(there, "select count(*) from turns") == [(1,)]
    assert encode(decode(lines)) == lines
    (tmp_path / "line.jsonl").write_bytes(lines)
    assert import_files([tmp_path / "line.jsonl"], tmp_path / "again.db").new == 1


@pytest.mark.parametrize("name", ["4be1f0a7c3d9", "messages-whole"])
def test_a_request_that_only_we_refuse_keeps_its_reply(tmp_path, run_llm, path, name):
    file = tmp_path / "abc.json"
    good = parse_recording((RECORDINGS / f"{name}.json").read_bytes(), name)
    body = {**good.body, "messages": [{"role": "bird", "content": "tweet"}]}
    file.write_text(json.dumps(recording_of(body, name)))
    assert import_files([file], path) == Imported(1, 0, 0)
    with LogReader(path) as history:
        (read,) = map(history.exchange, history.ids())
    assert (read.status, read.http_status, read.error) == ("ok", 200, None)
    assert read.request.body == body
    assert read.turn.messages == [] and read.ignored == ("messages",)
    was = to_exchange(good)
    assert [message.to_dict() for message in read.turn.reply] == [
        message.to_dict() for message in was.turn.reply
    ]
    (row,) = json.loads(run_llm("logs", "--json"))
    assert (row["id"], row["prompt"]) == (read.id, "")
    assert verify(path).broken == ()


@many_examples(40)
@given(st.lists(mutated(), min_size=1, max_size=3))
def test_whatever_recordings_hold_an_import_goes_on(tmp_path_factory, empty_log, forms):
    folder = tmp_path_factory.mktemp("any")
    files = [folder / f"{number}.json" for number in range(len(forms))]
    for file, form in zip(files, forms, strict=True):
        file.write_text(json.dumps(form))
    good = RECORDINGS / "d07a61be92f5.json"
    there = folder / "there.db"
    shutil.copy(empty_log, there)
    imported = import_files([*files, good], there)
    assert imported.new + imported.skipped + imported.unreadable == len(forms) + 1
    with LogReader(there) as history:
        read = [history.exchange(id) for id in history.ids()]
    assert len(read) == imported.new
    assert to_json(read_recording(good.read_bytes(), good.stem)) in map(to_json, read)
    assert [encode(decode(encode(exchange))) for exchange in read] == list(map(encode, read))


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_missing_file_or_a_folder_is_named(lines, tmp_path, name):
    (tmp_path / "all.jsonl").write_bytes(b"".join(lines))
    imported = import_files([tmp_path / name, tmp_path / "all.jsonl"], tmp_path / "there.db")
    assert (imported.new, imported.unreadable) == (10, 1)
    reason = "No such file or directory" if name == "nowhere" else "Is a directory"
    assert imported.failures == (f"{tmp_path / name}: {reason}",)


def test_an_empty_export_holds_nothing(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    assert import_files([tmp_path / "empty.jsonl"], tmp_path / "there.db") == Imported(0, 0, 0)


@pytest.mark.parametrize(
    "statement, message",
    [
        (
            "insert into _llm_migrations (name) values ('m099_of_tomorrow')",
            "was written by a newer llm (this one does not know m099_of_tomorrow): upgrade llm",
        ),
        (
            "update proxy_meta set value = 99 where name = 'schema'",
            "was written by a newer llmproxy",
        ),
    ],
    ids=["llm", "llmproxy"],
)
def test_a_newer_versions_database_is_not_changed(lines, tmp_path, empty_log, statement, message):
    there = tmp_path / "there.db"
    shutil.copy(empty_log, there)
    with sqlite3.connect(there) as connection:
        connection.execute(statement)
    connection.close()
    before = there.read_bytes()
    (tmp_path / "all.jsonl").write_bytes(b"".join(lines))
    for dry_run in (True, False):
        with pytest.raises(Unusable) as refused:
            import_files([tmp_path / "all.jsonl"], there, dry_run=dry_run)
        assert message in str(refused.value)
    assert there.read_bytes() == before


def test_another_file_than_a_database_is_not_changed(lines, tmp_path):
    there = tmp_path / "there.db"
    there.write_bytes(b"my notes, longer than a header of SQLite's would be " * 20)
    before = there.read_bytes()
    (tmp_path / "all.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(StoreError):
        import_files([tmp_path / "all.jsonl"], there)
    assert there.read_bytes() == before


# ---- with others at the same log


def test_an_import_waits_for_another_writer(lines, tmp_path, empty_log):
    there = tmp_path / "there.db"
    shutil.copy(empty_log, there)
    (tmp_path / "all.jsonl").write_bytes(b"".join(lines))
    other = sqlite3.connect(there, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, other.execute, ["ROLLBACK"])
    timer.start()
    assert import_files([tmp_path / "all.jsonl"], there) == Imported(10, 0, 0)
    timer.join()
    other.close()


def test_an_import_gives_up_after_a_timeout(lines, tmp_path, empty_log, monkeypatch):
    monkeypatch.setattr("llmproxy.transfer.import_.TIMEOUT_S", 0.1)
    there = tmp_path / "there.db"
    shutil.copy(empty_log, there)
    (tmp_path / "all.jsonl").write_bytes(b"".join(lines))
    other = sqlite3.connect(there, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Locked):
        import_files([tmp_path / "all.jsonl"], there)
    other.close()


IMPORT = """
import pathlib, sys
from llmproxy.transfer.import_ import import_files
import_files([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_import_can_be_repeated_with_the_same_result(tmp_path, make_exchange, empty_log):
    exchanges = [make_exchange(f"question {n}", f"answer {n}") for n in range(1500)]
    for number in range(1, len(exchanges)):
        if number % 5:
            before = exchanges[number - 1]
            exchanges[number] = replace(
                exchanges[number], previous_id=before.id, link="reply",
                thread_id=before.thread_id,
                turn=replace(exchanges[number].turn, thread_id=before.thread_id),
            )  # fmt: skip
    random.Random(1).shuffle(exchanges)
    file = tmp_path / "all.jsonl"
    file.write_bytes(b"".join(map(encode, exchanges)))
    killed, straight = tmp_path / "killed.db", tmp_path / "straight.db"
    for path in (killed, straight):
        shutil.copy(empty_log, path)
    import_files([file], straight)
    count, kills = 0, 0
    while count < 1500:
        process = subprocess.Popen([sys.executable, "-c", IMPORT, str(file), str(killed)])
        until = min(count + 400, 1500)
        while process.poll() is None and count < until:
            time.sleep(0.02)
            ((count,),) = rows(killed, "select count(*) from proxy_exchanges")
        if process.poll() is None and count < 1500:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        ((count,),) = rows(killed, "select count(*) from proxy_exchanges")
    assert kills >= 2
    assert import_files([file], killed) == Imported(0, 1500, 0)
    assert everything(killed) == everything(straight)


def test_a_pipe_is_read_like_a_file(lines, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[b"".join(lines)])
    writer.start()
    assert import_files([pipe], tmp_path / "there.db") == Imported(10, 0, 0)
    writer.join()


# ---- the file that is written


def test_a_file_with_content_is_never_replaced_by_an_empty_one(recorded, tmp_path):
    file = tmp_path / "out.jsonl"
    nothing = Filter(client="nobody")
    with LogReader(recorded) as history:
        export_file(history, file, ALL)
        good = file.read_bytes()
        with pytest.raises(NotFound) as refused:
            export_file(history, file, nothing)
        assert refused.value.message == (
            f"no exchange that has ended matches; {file} was left as it is"
        )
        assert [*tmp_path.iterdir(), file.read_bytes()] == [file, good]
        for empty in (tmp_path / "new.jsonl", tmp_path / "empty.jsonl"):
            empty.touch() if empty.name == "empty.jsonl" else None
            assert export_file(history, empty, nothing) == Exported(0)
            assert empty.read_bytes() == b""


@pytest.mark.parametrize("name", ["logs.db-wal", "logs.db-shm", "other.db", "link.jsonl"])
def test_an_export_replaces_no_database(recorded, tmp_path, name):
    with LogReader(recorded) as history:
        path = recorded.parent / name
        if name == "other.db":
            shutil.copy(recorded, path)
        elif name == "link.jsonl":
            path.symlink_to(recorded)
        elif not path.exists():
            path.write_bytes(b"the end of the log")
        before = path.read_bytes()
        with pytest.raises(Unreadable, match=f"{name}: is (the log itself|a database)$"):
            export_file(history, path, ALL)
        assert path.read_bytes() == before
        if not before.startswith(b"SQLite"):
            path.unlink()


@pytest.mark.parametrize(
    "name, reason",
    [
        ("nowhere/out.jsonl", "No such file or directory"),
        ("out.jsonl/out.jsonl", "Not a directory"),
        (".", "Is a directory"),
        ("/dev/full", "No space left on device"),
        ("x" * 250, None),
        ("ü" * 125, None),
    ],
    ids=lambda value: value and value[:20],
)
def test_an_error_names_the_file_as_it_was_given(recorded, tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    Path("out.jsonl").touch()
    with LogReader(recorded) as history:
        if reason is None:
            assert export_file(history, Path(name), ALL) == Exported(10)
            return
        with pytest.raises(OSError) as failed:
            export_file(history, Path(name), ALL)
    assert (failed.value.filename, failed.value.strerror) == (name, reason)
    assert list(tmp_path.iterdir()) == [tmp_path / "out.jsonl"]


def test_a_full_disk_leaves_the_file_as_it_was(recorded, tmp_path):
    file = tmp_path / "out.jsonl"
    file.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LogReader(recorded) as history:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            with pytest.raises(OSError, match="File too large") as failed:
                export_file(history, file, ALL)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed.value.filename == str(file)
    assert [*tmp_path.glob("out*"), file.read_text()] == [file, "before"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_failed_export_of_recordings_leaves_the_folder_as_it_was(
    recorded, tmp_path, monkeypatch, is_there
):
    folder = tmp_path / "out"
    if is_there:
        folder.mkdir()
        (folder / "good.json").write_text("before")
    render = folder_module.render_recording
    rendered = []

    def fails_at_last(exchange):
        if len(rendered) == 5:
            raise OSError(28, "No space left on device")
        rendered.append(exchange)
        return render(exchange)

    monkeypatch.setattr(folder_module, "render_recording", fails_at_last)
    with LogReader(recorded) as history, pytest.raises(OSError) as failed:
        export_recordings(history, folder, Filter(status="ok"))
    assert failed.value.filename == str(folder)
    left = [path.name for path in folder.rglob("*")] if folder.exists() else None
    assert left == (["good.json"] if is_there else None)
