"""Conversations as text: a list, a tree, broken caches, failed verification."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from llmproxy.cli.columns import joined
from llmproxy.cli.thread_text import prefix_lines, thread_row, tree_rows, verified_lines
from llmproxy.conversations.prompt_cache import CacheCounts, CacheMiss, ThreadCache, ToolsChange
from llmproxy.conversations.threads import Thread
from llmproxy.conversations.tree import TreeRow
from llmproxy.core.message_diff import Difference
from llmproxy.core.usage import Usage
from llmproxy.recorder.summary import ExchangeSummary
from llmproxy.recorder.verify import Broken, Verified

RECEIVED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EVIL = "\x1b[2Jevil\r\n"


def thread_line(thread):
    return joined(thread_row(thread))


def tree_lines(places, thread_id, **how):
    return [joined(row, **how) for row in tree_rows(places, thread_id)]


THREAD = Thread(
    id="01thread",
    name="Change the\ngreeting",
    began=RECEIVED,
    moved=RECEIVED + timedelta(days=1),
    clients=("aider", "llm"),
    models=("m", "other"),
    exchanges=12,
    turns=13,
    usage=Usage(12_000, 340, cached_tokens=9_000),
)


def test_line_of_a_conversation_has_all_columns():
    shown = thread_line(THREAD).split("  ")
    assert shown[0] == "01thread"
    assert shown[2:] == [
        "aider, llm",
        "m, other",
        "12 exchanges, 13 turns",
        "12,000→340 tokens, 9,000 cached",
        "Change the greeting",
    ]


def test_line_of_a_conversation_names_its_origin():
    forked = replace(THREAD, forked_from="01origin", origin="call", exchanges=1, turns=1)
    assert "  1 exchange  " in thread_line(forked)
    assert "  sub-agent of 01origin  " in thread_line(forked)
    assert "  quotes 01origin  " in thread_line(replace(forked, origin="quote"))


def test_line_of_a_conversation_omits_missing_numbers():
    bare = replace(THREAD, usage=Usage(), models=(), exchanges=13)
    assert thread_line(bare).split("  ")[3:] == ["-", "13 exchanges", "Change the greeting"]


def place(words, depth=0, label=None, begins=False, thread="01other", **fields):
    facts = {"received": RECEIVED, "dialect": "d", "path": "/", "client": "c", "status": "ok"}
    entry = ExchangeSummary(**facts | fields, id=words, thread_id=thread, first_words=words)
    return TreeRow(entry, label, depth, begins)


def test_tree_is_drawn_with_its_branches():
    places = [
        place("one", begins=True, thread="01thread"),
        place("two", thread="01thread"),
        place("edited", 1, "fork", True),
        place("agent", 2, "call", True),
        place("agent on", 2),
        place("edited on", 1),
        place("title", 2, "quote", True),
        place("again", 1, "retry", True),
        place("three", label="compacted"),
        place("title", 1, "quote", True),
        place("on", 1),
    ]
    drawn = [re.split("  (?:2026-)?01-0", line)[0] for line in tree_lines(places, "01thread")]
    assert drawn == [
        "* one",
        "* two",
        "  ├─ fork  edited",
        "  │  ├─ sub-agent  agent",
        "  │  │  agent on",
        "  │  edited on",
        "  │  └─ quote  title",
        "  ├─ retry  again",
        "  compacted  three",
        "  └─ quote  title",
        "     on",
    ]
    assert tree_lines(places[:1], "x")[0].endswith("  c  d  -  ok  one")


def test_tree_of_several_roots_has_no_bars_between_them():
    places = [
        place("one", begins=True),
        place("fork", 1, "fork", True),
        place("other", begins=True),
    ]
    drawn = [re.split("  (?:2026-)?01-0", line)[0] for line in tree_lines(places, "x")]
    assert drawn == ["  one", "  └─ fork  fork", "  other"]


BREAK = CacheMiss(
    id="01after",
    previous_id="01before",
    received=RECEIVED,
    link="reply",
    models=None,
    tools=None,
    difference=Difference(0, "system", 1_204, "It is 10:41.\n", "It is 10:42.\n"),
    messages_again=12,
    tokens_again=8_400,
    input_tokens=9_700,
    cached_tokens=1_024,
)


def lines_of(*breaks):
    prefix = ThreadCache("01thread", "aider", "m", 14, breaks)
    lines = prefix_lines(
        [ThreadCache("a", "c", "m", 1, ()), prefix, ThreadCache("b", "c", "m", 1, ())]
    )
    assert lines[-1] == "2 conversations kept their prefix"
    return [line.partition("03:04:05  ")[2] or line for line in lines[:-1]]


def test_a_broken_cache_is_shown_with_its_cost():
    lines = lines_of(BREAK, BREAK)
    assert lines[0] == "01thread  aider  m  2 of 14 requests broke the prefix"
    assert lines[2:6] == [
        "    message 0 (system) differs from character 1,204 on",
        "      was  It is 10:41.\\n",
        "      now  It is 10:42.\\n",
        "    read again: 12 messages, about 8,400 tokens; the provider had 1,024 of 9,700 cached",
    ]
    assert len(lines) == 11


def test_the_providers_own_counts_are_shown():
    counts = CacheCounts(2, 27_000, 14_336, 512)
    lines = prefix_lines(
        [
            ThreadCache("01thread", "aider", "m", 2, (BREAK,), counts),
            ThreadCache("a", "c", "m", 1, (), counts),
            ThreadCache("b", "c", "m", 1, (), CacheCounts(1, 1_000, 1, 0)),
        ]
    )
    assert lines[1] == (
        "  the provider read 14,336 tokens from its cache, and wrote 512;"
        " expected were about 27,000 (2 requests)"
    )
    assert lines[-1] == (
        "  the provider read 14,337 tokens from its cache, and wrote 512;"
        " expected were about 28,000 (3 requests)"
    )


def test_changed_model_and_tools_come_before_messages():
    lines = lines_of(
        replace(
            BREAK,
            link="compacted",
            models=("m", "other"),
            tools=ToolsChange(("search",), (), ("read", "write")),
            cached_tokens=None,
            messages_again=1,
        )
    )
    assert lines[2:4] == [
        "    different model: m, now other",
        "    different tools: added search; redefined read, write",
    ]
    assert lines[-1] == "    read again: 1 message, about 8,400 tokens"
    reordered = lines_of(replace(BREAK, tools=ToolsChange(is_reordered=True)))
    assert "    different tools: reordered" in reordered


def test_missing_and_replaced_messages_are_shown():
    def said(*difference):
        return lines_of(replace(BREAK, difference=Difference(*difference)))[2:-1]

    assert said(3, "nothing", None, "as it was", "") == [
        "    message 3 is missing",
        "      was  as it was",
    ]
    assert said(3, "user", None, "a", "b")[0] == "    message 3 (user) was replaced"
    assert said(3, "user", None, "a", "a") == [
        "    message 3 (user) has the same text but different cache marks or metadata"
    ]


def test_conversations_that_kept_their_prefix_are_counted():
    assert prefix_lines([]) == ["none of these requests continues another one"]
    assert prefix_lines([ThreadCache("a", "c", "m", 1, ())]) == ["1 conversation kept its prefix"]


def test_a_verified_log_is_one_line():
    assert verified_lines(Verified(1, 2_000, 1, ())) == [
        "ok: 1 message and 2,000 parts of requests match their hashes; 1 exchange can be read"
    ]


def test_each_broken_thing_is_a_line():
    verified = Verified(
        3,
        1,
        2,
        (
            Broken("message", "b2:1", "user", "it was changed", "01x", "01thread"),
            Broken("content", "12ab", None, "it was changed", "01x"),
            Broken("message", "b2:2", "tool", EVIL),
            Broken("message", "b2:3", None, "it is missing", "01x"),
            Broken("exchange", None, None, "its turn is missing", "01x", "01thread"),
            Broken("turn", None, None, "can't be read: turns.model", "01y"),
        ),
    )
    assert verified_lines(verified) == [
        "message b2:1 (user) in 01x of conversation 01thread: it was changed",
        "request part 12ab in 01x: it was changed",
        "message b2:2 (tool) (unused): \\x1b[2Jevil\\r\\n",
        "message b2:3 in 01x: it is missing",
        "exchange 01x of conversation 01thread: its turn is missing",
        "turn 01y: can't be read: turns.model",
        "6 things damaged or missing in 3 messages, 1 part of requests, 2 exchanges",
    ]


def test_colours_are_off_by_default():
    prefix = ThreadCache("01thread", "aider", "m", 14, (BREAK,))
    branch = [place("one", begins=True), place("fork", 1, "fork", True)]
    assert "\x1b[33mfork" in tree_lines(branch, "x", colours=True)[1]
    assert "\x1b[1m01thread" in prefix_lines([prefix], colours=True)[0]
    assert "\x1b" not in "".join(tree_lines(branch, "x") + prefix_lines([prefix]))


def test_a_clients_words_cannot_drive_the_terminal():
    difference = Difference(0, "system", 0, EVIL, EVIL)
    tools = ToolsChange(added=(EVIL,))
    broken = replace(BREAK, difference=difference, tools=tools, models=(EVIL, "m"))
    lines = [
        thread_line(replace(THREAD, name=EVIL, clients=(EVIL,), models=(EVIL,))),
        *tree_lines([place(EVIL, client=EVIL)], "x"),
        *prefix_lines([ThreadCache(EVIL, EVIL, EVIL, 1, (broken,))]),
    ]
    for line in lines:
        assert line.isprintable()
