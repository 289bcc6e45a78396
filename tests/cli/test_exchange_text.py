"""Exchanges as text: a line, a page, and nothing that drives the terminal."""

import re
import time
from dataclasses import replace
from datetime import UTC, datetime

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

from llmproxy.cli.columns import joined
from llmproxy.cli.exchange_text import exchange_page
from llmproxy.cli.summary_text import (
    ExchangeAligner,
    local_time,
    summary_line,
    summary_row,
    tokens_in_and_out,
)
from llmproxy.core import attachments
from llmproxy.core.text import printable
from llmproxy.core.usage import Usage
from llmproxy.recorder.exchange import Exchange, RawRequest, Turn

RECEIVED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

EXCHANGE = Exchange(
    id="01abc",
    received=RECEIVED,
    dialect="openai_chat",
    path="/v1/chat/completions",
    client="aider",
    stream=True,
    model_asked="m",
    model_used="m",
    thread_id="01thread",
    status="ok",
    http_status=200,
    finish_reason="stop",
    ttft_ms=120.0,
    first_text_ms=130.0,
    duration_ms=2120.0,
    event_count=2,
    usage=Usage(1000, 50, cached_tokens=900),
    tokens_per_second=25.0,
    ignored=("seed", "store"),
    first_words="Change the greeting",
    reply_words="Done.",
    request=RawRequest({}, "", {"model": "m", "messages": ["…"], "stream": True}),
    turn=Turn(
        id="01abc",
        thread_id="01thread",
        model="m",
        messages=[
            Message("system", [TextPart("Be brief.")]),
            Message("user", [TextPart("Change the greeting"), AttachmentPart(None)]),
        ],
        reply=[Message("assistant", [ReasoningPart("hm"), TextPart("Done.")])],
        started=RECEIVED,
        duration_ms=2120,
    ),
    events=[
        (120.0, StreamEvent("reasoning", "hm", part_index=0)),
        (2000.0, StreamEvent("text", "Done.", part_index=1)),
    ],
)


def words(**fields: object) -> list[str]:
    return summary_line(replace(EXCHANGE, **fields)).split("  ")


def test_line_has_all_columns():
    shown = words()
    assert shown[0] == "01abc"
    assert shown[2:] == [
        "aider",
        "openai_chat",
        "m",
        "ok",
        "total 2.12s",
        "first 0.12s",
        "1,000→50 tokens",
        "25/s",
        "Change the greeting",
        "ignored seed, store",
        "Done.",
    ]


def test_line_of_a_failure_has_the_error():
    none = {"usage": Usage(), "tokens_per_second": None}
    shown = words(status="error", http_status=429, error="slow down", **none)
    assert shown[5:] == [
        "error 429",
        "total 2.12s",
        "first 0.12s",
        "Change the greeting",
        "ignored seed, store",
        "slow down",
    ]


def test_an_error_after_the_stream_began_is_no_status_of_success():
    assert words(status="error", error="it broke")[5] == "error in stream"
    assert words(status="cancelled")[5] == "cancelled"


def test_an_unusual_finish_and_ignored_fields_are_marked():
    shown = words(finish_reason="length", ignored=("seed", "usage", "store", "user", "n"))
    assert shown[10:] == [
        "Change the greeting",
        "finish length; ignored seed, store and 2 more",
        "Done.",
    ]
    assert words(finish_reason="tool_calls", ignored=("usage",))[10:] == shown[10::2]


def test_rows_of_an_agents_session_differ():
    shown = words(last_message="read_file → contents of a.txt", reply_words='now(tz="UTC")')
    assert shown[10::2] == ["read_file → contents of a.txt", 'now(tz="UTC")']


def test_line_of_a_running_or_cut_exchange_omits_missing_numbers():
    none = {"http_status": None, "ttft_ms": None, "duration_ms": None, "usage": Usage()}
    none["tokens_per_second"] = None
    none["ignored"], none["reply_words"] = (), ""
    running = words(status="running", **none)
    assert re.fullmatch(r"running \d+s", running[5])
    assert running[6:] == ["Change the greeting"]
    assert words(status="cancelled", **none)[5] == "cancelled"


def test_line_shows_both_names_where_a_map_changed_the_model():
    assert words(model_asked="gpt-4", model_used="claude")[4] == "gpt-4→claude"
    assert words(model_asked=None, model_used=None)[4] == "-"


def test_a_replay_is_marked():
    replayed = replace(EXCHANGE, replay_of="01recorded", turn=None, thread_id=None)
    assert "  replayed  " in summary_line(replayed)
    assert "replay of    01recorded" in exchange_page(replayed)


def test_page_names_the_exchange_that_is_continued():
    page = exchange_page(replace(EXCHANGE, previous_id="01before", link="reply", recalled=2))
    assert "\ncontinues    01before\nrecalled     2 messages\n" in page
    page = exchange_page(replace(EXCHANGE, previous_id="01before", link="compacted"))
    assert "\ncontinues    01before (compacted)\n" in page


def test_colours_are_off_by_default():
    assert "\x1b[32mok\x1b[0m" in joined(summary_row(EXCHANGE), colours=True)
    assert "\x1b" not in summary_line(EXCHANGE) + exchange_page(EXCHANGE)


def test_a_clients_words_cannot_drive_the_terminal():
    line = summary_line(replace(EXCHANGE, client="\x1b[2Jevil\r\n", first_words="\x07"))
    assert "\\x1b[2Jevil\\r\\n" in line
    assert line.isprintable()
    assert printable("a\nb\x1b", lines=True) == "a\nb\\x1b"


LONG_NAMES = {
    "model_asked": "日本語の大きなモデル:latest",
    "model_used": "日本語の大きなモデル:latest",
}
FAILED = {"status": "error", "http_status": 200, "error": "overloaded", **LONG_NAMES}


@pytest.mark.parametrize(
    "fields, width, line",
    [
        ({}, 40, "03:04:05  2.12s  ok  m  Change the gree…"),
        ({}, 60, "01abc  03:04:05  2.12s  ok  m  Change the g…  ignore…  Done."),
        ({}, 57, "01abc  03:04:05  2.12s  ok  m  Change the …  igno…  Done."),
        ({}, 45, "03:04:05  2.12s  ok  m  Change t…  ign…  Don…"),
        ({"duration_ms": 623_000.0}, 40, "03:04:05  623.00s  ok  m  Change the gr…"),
        (FAILED, 40, "03:04:05  2.12s  error in s…  日本語の…"),
        (FAILED, 50, "03:04:05  2.12s  error in s…  日本語の大…  ignore…"),
        (
            {"status": "interrupted", "duration_ms": None},
            40,
            "03:04:05  interrupted  m  Change the gr…",
        ),
    ],
)
def test_a_narrow_terminal_shows_time_status_model_and_duration(fields, width, line, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        row = summary_row(replace(EXCHANGE, **fields))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert ExchangeAligner(lambda: width).lines([row]) == [line]


ROOMY = {
    "id": "01m8dwz5z70c9tn0ctrber5ejn",
    "client": "Anthropic/Python",
    "dialect": "anthropic_messages",
    "ignored": ("max_tokens",),
    "last_message": "Why is the sky blue, and why is it red in the evening?",
    "reply_words": "Blue light is scattered more than red light is.",
}


@pytest.mark.parametrize(
    "models",
    [("m", "gpt-5-mini"), ("claude-haiku-4-5", "anthropic/claude-haiku-4-5-20251001")],
)
@pytest.mark.parametrize("fields", [{}, {"status": "error", "error": "overloaded, try again"}])
def test_a_wider_terminal_never_shows_less(models, fields):
    rows = [
        summary_row(replace(EXCHANGE, **ROOMY, model_asked=model, model_used=model, **fields))
        for model in models
    ]
    of_day = re.search(r"\d\d:\d\d:\d\d", rows[0][1][0][0])[0]
    reply = rows[0][11][0][0]
    beginnings = (
        *(
            ROOMY["id"][:13],
            of_day,
            "Anthropic/P",
            "anthropic_m",
            models[-1][:8],
            f"  {fields.get('status', 'ok')}",
        ),
        *("2.12s", "first 0.12s", "1,000→50", "25/s", ROOMY["last_message"][:6], reply[:6]),
    )
    before = set()
    for width in range(40, 251):
        lines = ExchangeAligner(lambda: width).lines(rows)  # noqa: B023
        assert all(len(line) <= width and not re.search(r"  …( |$)", line) for line in lines)
        shown = {text for text in beginnings if text in lines[-1]}
        assert before <= shown, width
        before = shown
        if width >= 60:
            assert models[-1][:8] in shown
        if width >= 72:
            assert {ROOMY["last_message"][:6], reply[:6]} <= shown
        if width >= 80:
            assert ROOMY["id"][:13] in shown
        assert "ignored" not in lines[-1]


def test_page_shows_all_of_an_exchange():
    page = exchange_page(EXCHANGE)
    for fact in (
        "exchange     01abc",
        "received     2026-01-02T03:04:05+00:00",
        "API          openai_chat /v1/chat/completions, streamed",
        "finish       stop",
        "time         first event 0.12s, first text 0.13s, total 2.12s",
        "tokens       1,000→50 tokens, 900 cached, 25/s",
        "conversation 01thread",
        "ignored      seed, store",
        '── request ──\n{"model":"m","stream":true}',
        "── system ──\nBe brief.",
        "── user ──\nChange the greeting",
        "── reply ──\nhm\nDone.",
        "── timeline, 2 events in 2.12s ──",
        "0.12s to 0.12s: reasoning, 1 event, 2 characters",
        "2.00s to 2.00s: text, 1 event, 5 characters",
    ):
        assert fact in page


def test_bar_is_highest_where_most_text_came():
    bar = exchange_page(EXCHANGE).partition("in 2.12s ──\n|")[2].partition("|")[0]
    assert len(bar) == 60
    assert (bar[3], bar[56], bar.count(" ")) == ("▄", "█", 58)


def test_page_shows_calls_results_and_attachments():
    image = attachments.attachment_from_base64("iVBORw0KGgo=")
    messages = [
        Message("user", [AttachmentPart(image)]),
        Message("assistant", [ToolCallPart("look", {"at": 1}, "c1")]),
        Message("tool", [ToolResultPart("look", "sun", "c1")]),
    ]
    page = exchange_page(replace(EXCHANGE, turn=replace(EXCHANGE.turn, messages=messages)))
    assert "[image/png, 8 bytes]" in page
    assert '→ look({"at":1})  c1' in page
    assert "← look returned: sun" in page


def test_page_of_a_refused_request_shows_it_as_received():
    refused = replace(
        EXCHANGE,
        status="error",
        http_status=400,
        error="the body is not JSON",
        turn=None,
        events=(),
        request=RawRequest({}, "", "not json \x1b"),
    )
    page = exchange_page(refused)
    assert "error        the body is not JSON" in page
    assert page.endswith("── request ──\nnot json \\x1b")


def test_a_wait_is_shown_as_part_of_the_time_to_the_first_event():
    waited = replace(EXCHANGE, queue_ms=100.0)
    assert "  first 0.12s (waited 0.10s)  " in summary_line(waited)
    assert "waited (in all of these) 0.10s, first event 0.12s, " in exchange_page(waited)


def test_the_proxys_own_time_is_shown():
    served = replace(EXCHANGE, overhead_ms=1.25)
    assert "total 2.12s, in the proxy 0.0013s" in exchange_page(served)


def test_a_first_run_is_marked():
    first = replace(EXCHANGE, is_first_run=True)
    assert "  first 0.12s (first run)  " in summary_line(first)
    waited = replace(first, queue_ms=100.0)
    assert "  first 0.12s (waited 0.10s) (first run)  " in summary_line(waited)
    assert "first event (first run) 0.12s" in exchange_page(first)


@pytest.mark.parametrize(
    ("ttft_ms", "queue_ms", "shown"),
    [
        (710, 550, "first 0.71s (waited 0.55s)  "),
        (10_710, 10_550, "first 10.71s (waited 10.55s)  "),
        (1_010_710, 1_010_550, "first 1010.71s  "),
        (None, 550, "total 2.12s (waited 0.55s)  "),
    ],
)
@pytest.mark.parametrize("is_first_run", [False, True])
def test_a_bracket_is_whole_or_left_out_on_a_terminal(ttft_ms, queue_ms, shown, is_first_run):
    waited = replace(EXCHANGE, ttft_ms=ttft_ms, queue_ms=queue_ms, is_first_run=is_first_run)
    for width in range(20, 300):
        (line,) = ExchangeAligner(lambda width=width: width).lines([summary_row(waited)])
        assert line.count("(") == line.count(")")
    assert shown in line


def test_a_rate_by_our_estimate_is_marked():
    uncounted = {"usage": Usage(), "output_tokens_estimate": 76, "tokens_per_second": 38.0}
    uncounted = replace(EXCHANGE, **uncounted)
    assert "  ~38/s  " in summary_line(uncounted)
    assert "tokens" not in summary_line(uncounted)
    assert "~38/s" in exchange_page(uncounted)


def test_times_have_one_unit_and_are_never_negative():
    soon = replace(EXCHANGE, queue_ms=0.0, ttft_ms=-0.04, first_text_ms=0.5, duration_ms=1200.0)
    assert "  total 1.20s  first 0.0000s (waited 0.0000s)  " in summary_line(soon)
    assert "first event 0.0000s, first text 0.0005s, total 1.20s" in exchange_page(soon)


def test_a_time_of_another_year_has_its_year():
    now = datetime.now().astimezone()
    assert local_time(now).startswith(f"{now:%m-%d %H:%M:%S}")
    before = now.replace(year=now.year - 1, day=1)
    assert local_time(before).startswith(f"{before:%Y-%m-%d %H:%M:%S}")


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="Windows has no TZ")
@pytest.mark.parametrize(
    ("zone", "text"), [("UTC", "02 03:04:05+00"), ("IST-5:30", "02 08:34:05+0530")]
)
def test_a_time_tells_its_zone(zone, text, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert local_time(RECEIVED).endswith(f"01-{text}")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_one_of_a_thing_is_not_called_many():
    page = exchange_page(replace(EXCHANGE, recalled=1, events=EXCHANGE.events[1:]))
    assert "recalled     1 message\n" in page
    assert "── timeline, 1 event in 2.12s ──" in page


def test_page_of_a_failure_says_how_long_it_asked_to_wait():
    slow = replace(EXCHANGE, status="error", error="slow down", retry_after_s=6.5)
    assert "\nerror        slow down\nretry        after 6.5s\n" in exchange_page(slow)


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        (Usage(None, 51), "?→51 tokens"),
        (Usage(3, None), "3→? tokens"),
        (Usage(0, 0), "0→0 tokens"),
        (Usage(), ""),
    ],
)
def test_a_count_that_is_missing_is_no_zero(usage, text):
    assert tokens_in_and_out(usage) == text
