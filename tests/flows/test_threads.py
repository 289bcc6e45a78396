"""Matching of requests to conversations, with the habits of real clients, and its cost."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.client import HTTPConnection

import llm
import pytest
from llm.logs import LogStore
from llm.parts import ReasoningPart, TextPart
from sqlite_utils import Database

from llmproxy.conversations.matching import Matcher
from llmproxy.core import chat
from llmproxy.recorder.exchange import Turn, begun
from llmproxy.recorder.store import Store
from tests.app.test_app import request, rows
from tests.flows.test_recall import Speaker, calls, in_turn, running, says, thinks
from tests.log_fixtures import ended_as

TOOLS = [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def ask_chat(proxy, *messages, model="m"):
    """Send a request by OpenAI's API; return the reply as a client keeps it."""
    body = {"model": model, "messages": messages, "tools": TOOLS}
    status, _, answer = request(proxy, "POST", "/v1/chat/completions", body)
    assert status == 200, answer
    message = json.loads(answer)["choices"][0]["message"]
    kept = {name: message[name] for name in ("content", "tool_calls") if message.get(name)}
    return {"role": "assistant", **kept}


def messages(proxy, *messages, **fields):
    """Send a request by Anthropic's API; return the reply as a client keeps it."""
    tools = [{"name": "read", "input_schema": {"type": "object"}}]
    body = {"model": "m", "max_tokens": 100, "messages": messages, "tools": tools} | fields
    status, _, answer = request(proxy, "POST", "/v1/messages?beta=true", body)
    assert status == 200, answer
    return assistant(json.loads(answer)["content"])


def results(message):
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": f"read by {call['id']}"}
        for call in message.get("tool_calls", ())
    ]


def talker():
    """Return a model with a new reply each time, long enough to be matched."""

    def respond(_prompt):
        return says(f"Answer {len(model.prompts)}: that is all there is to it, I think.")

    model = Speaker("m", respond)
    return model


def describe_exchanges(llm_user_path):
    """Return the exchanges in order: each one's thread, its previous exchange and its link.

    Threads are letters, exchanges numbers: "B<A 0 reply" is in the thread B, which was forked
    from A, and continues the reply of the first exchange.
    """
    forked = dict(rows(llm_user_path, "select id, forked_from from threads"))
    letters: dict[str, str] = {}
    numbers: dict[str, int] = {}
    found = []
    for id_, thread, previous, link in rows(
        llm_user_path,
        "select id, thread_id, previous_id, link from proxy_exchanges order by number",
    ):
        numbers[id_] = len(numbers)
        is_new = thread not in letters
        letters.setdefault(thread, chr(ord("A") + len(letters)))
        origin = f"<{letters[forked[thread]]}" if is_new and forked[thread] else ""
        goes_on = f" {numbers[previous]} {link}" if previous else ""
        found.append(f"{letters[thread]}{origin}{goes_on}")
    return found


def run_llm(*arguments):
    """Run the `llm` command as a user would; with few plugins, since that is faster."""
    environment = os.environ | {"LLM_LOAD_PLUGINS": "llm-proxy-recorder"}
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- aider


class Aider:
    """A client like aider 0.86: its order of messages, and its history after edits (d6.32)."""

    SYSTEM = "Act as an expert software developer.\nTake requests for changes to the code."
    EXAMPLES = (
        user("Change get_factorial() to use math.factorial"),
        assistant("To make this change we need to modify `app.py`:\n\nimport math\n" * 8),
        user("I switched to a new code base. Please don't consider the above files."),
        assistant("Ok."),
    )
    READ_ONLY = (
        user("Here are some READ ONLY files, provided for your reference.\n\nSTYLE.md\nBe brief."),
        assistant("Ok, I will use these files as references."),
    )
    REMINDER = "# *SEARCH/REPLACE block* Rules:\n\nEvery block must use this format: ..."

    def __init__(self, proxy, reminder):
        self.proxy = proxy
        self.reminder = reminder
        self.done = []
        self.current = []
        self.version = 0

    def ask(self, text):
        self.current.append(user(text))
        self.current.append(ask_chat(self.proxy, *self._chunks(), model="demo"))

    def edit(self):
        """Apply and commit the edits of the last reply, then start a new chat after them."""
        self.version += 1
        said = "".join(f"\n{m['role'].upper()}: {m['content']}\n" for m in self.current)
        diffs = f"# Diffs:\n--- a/app.py\n+++ b/app.py\n+version = {self.version}\n"
        ask_chat(
            self.proxy,
            system("You are an expert software engineer that generates concise commit messages."),
            user(f"# Context:\n{said}\n{diffs}"),
            model="demo",
        )
        self.done += [*self.current, user("I updated the files."), assistant("Ok.")]
        self.current = []

    def _chunks(self):
        chat_files = (
            user(f"I have *added these files to the chat*.\n\napp.py\nversion = {self.version}"),
            assistant("Ok, any changes I propose will be to those files."),
        )
        repo_map = (
            user(f"Here are summaries of some files.\n\nutil.py: {self.version} functions"),
            assistant("Ok, I won't try and edit those files without asking first."),
        )
        current = list(self.current)
        if self.reminder == "user":
            current[-1] = user(f"{current[-1]['content']}\n\n{self.REMINDER}")
        return [
            system(self.SYSTEM),
            *self.EXAMPLES,
            *self.READ_ONLY,
            *repo_map,
            *self.done,
            *chat_files,
            *current,
            *([system(self.REMINDER)] if self.reminder == "sys" else []),
        ]


@pytest.mark.slow
@pytest.mark.parametrize("reminder", ["sys", "user"])
def test_twenty_requests_of_aider_are_one_thread_that_llm_can_continue(reminder, llm_user_path):
    """d6.32; d6.24: the use of `--cid`."""
    expected = []
    with running() as proxy:
        aider = Aider(proxy, reminder)
        before = ""
        for i in range(20):
            aider.ask(f"Please do the thing that has the number {i}.")
            expected.append(f"A{before}")
            before = f" {len(expected) - 1} reply"
            if i % 2 == 0:
                aider.edit()
                thread = chr(ord("B") + i // 2)
                expected.append(f"{thread}<A {len(expected) - 1} quote")
        assert describe_exchanges(llm_user_path) == expected
        [(thread,)] = rows(llm_user_path, "select thread_id from proxy_exchanges where number = 1")
        everything = json.loads(run_llm("logs", "list", "-n", "0", "--json"))
        assert len(everything) == 30
        shown = [row for row in everything if row["conversation_id"] == thread]
        assert len(shown) == 20
        # llm shows no prompt if the last message is a system message.
        if reminder == "user":
            said = sorted(row["prompt"].partition("number ")[2].split(".")[0] for row in shown)
            assert said == sorted(map(str, range(20)))

        tip_sql = f"select tip_message_hash from threads where id = '{thread}'"
        [(tip,)] = rows(llm_user_path, tip_sql)
        said = run_llm("--cid", thread, "what did we do?", "-m", "demo")
        assert said.startswith("You said: what did we do?\n")
        turns = rows(
            llm_user_path,
            "select parent_message_hash, tip_message_hash from turns"
            f" where thread_id = '{thread}' order by id",
        )
        assert len(turns) == 21
        with sqlite3.connect(llm_user_path / "logs.db") as connection:
            log = LogStore(Database(connection))
            assert log.load_chain(turns[-1][0])[:-1] == log.load_chain(tip)
        assert rows(llm_user_path, tip_sql) == [(turns[-1][1],)]

        # aider doesn't know that turn, so its conversation forks here.
        aider.ask("And what comes next?")
        assert describe_exchanges(llm_user_path)[-1] == f"L<A{before}"


# ---- the size of a long session

TURNS = 30
SYSTEM = "You are an agent that works on a code base. " * 455  # 20 kB
TASK = "Find out why the test of the parser fails, and mend it."
STABLE_ROWS = 2 + TURNS + (TURNS - 1)  # system, task, replies, and results of all but the last


def working_agent():
    """Return a model that thinks and calls a tool in each turn but the last."""

    def respond(prompt):
        turn = sum(message.role == "assistant" for message in prompt.messages)
        thought = list(thinks(f"In turn {turn} I look at the next file."))
        if turn == TURNS - 1:
            return [*thought, *says("The test of the parser is mended now.")]
        path = f"src/module_{turn}.py"
        arguments = json.dumps({"path": path, "limit": 40.0})
        return [
            *thought,
            *says(f"Reading {path}."),
            *calls(f"call_{turn}f", arguments, name="read"),
        ]

    return Speaker("m", respond)


def file_of(turn):
    return f"# what stands in the file number {turn}\n" + f"def function_{turn}(): ...\n" * 70


def openai_session(proxy, system_of, dressed):
    """Run an agent on OpenAI's API, which drops thinking; yield each turn's number."""
    history = [user(TASK)]
    for turn in range(TURNS):
        reply = ask_chat(proxy, system(system_of(turn)), *dressed(history))
        yield turn
        history.append(reply)
        for call in reply.get("tool_calls", ()):
            result = {"role": "tool", "tool_call_id": call["id"], "content": file_of(turn)}
            history.append(result)


def anthropic_session(proxy, system_of, dressed):
    """Run an agent on Anthropic's API, which sends back everything it got."""
    history = [user(TASK)]
    for turn in range(TURNS):
        text = system_of(turn)
        blocks = [{"type": "text", "text": text}] if isinstance(text, str) else text
        reply = messages(proxy, *dressed(history), system=blocks)
        yield turn
        history.append(reply)
        found = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": file_of(turn)}
            for block in reply["content"]
            if block["type"] == "tool_use"
        ]
        if found:
            history.append(user(found))


def marked(history):
    """Add a cache marker to the last message, and no other, as clients do (d6.2)."""
    mark = {"cache_control": {"type": "ephemeral"}}
    *before, last = history
    content = last["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return [*before, last | {"content": [*content[:-1], content[-1] | mark]}]


def unmarked(history):
    return history


def billed(turn):
    line = f"x-anthropic-billing-header: cc_version=2.1.9{turn}; cc_entrypoint=cli; cch={turn:05x};"
    mark = {"cache_control": {"type": "ephemeral"}}
    return [{"type": "text", "text": line}, {"type": "text", "text": SYSTEM} | mark]


def billed_in_one(turn):
    return f"{billed(turn)[0]['text']}\n{SYSTEM}"


def stable(_turn):
    return SYSTEM


def changing(turn):
    return f"{SYSTEM}\nIt is the minute {turn} of the hour."


def size(llm_user_path):
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        [(pages,)] = db.execute("pragma page_count")
        [(page_bytes,)] = db.execute("pragma page_size")
    return pages * page_bytes


SESSIONS = {
    "openai": (openai_session, stable, unmarked),
    "openai, marks of the cache": (openai_session, stable, marked),
    "anthropic": (anthropic_session, stable, unmarked),
    "anthropic, marks of the cache": (anthropic_session, stable, marked),
    "anthropic, billing block": (anthropic_session, billed, unmarked),
    "anthropic, billing line": (anthropic_session, billed_in_one, unmarked),
}


@pytest.mark.parametrize(("session", "system_of", "dressed"), SESSIONS.values(), ids=SESSIONS)
def test_long_session_stores_each_message_once(session, system_of, dressed, llm_user_path):
    """B32, d6.2, d6.3: dropped thinking, cache markers and billing lines make no copies."""
    sizes = []
    with running(working_agent()) as proxy:
        for _ in session(proxy, system_of, dressed):
            sizes.append(size(llm_user_path))
    assert rows(llm_user_path, "select count(*) from messages") == [(STABLE_ROWS,)]
    assert rows(llm_user_path, "select count(*) from threads") == [(1,)]
    assert rows(llm_user_path, "select count(*), count(distinct thread_id) from turns") == [
        (TURNS, 1)
    ]
    # Anthropic's API carries all of it; there is nothing to recall.
    given = [(turn if session is openai_session else 0,) for turn in range(TURNS)]
    assert rows(llm_user_path, "select recalled from proxy_exchanges order by number") == given
    middle = TURNS // 2
    assert sizes[-1] - sizes[middle] <= 1.5 * (sizes[middle] - sizes[0])
    for file in llm_user_path.glob("logs.db*"):
        assert b"x-anthropic-billing-header" not in file.read_bytes()


@pytest.mark.parametrize("session", [openai_session, anthropic_session])
def test_changing_system_prompt_stays_in_one_thread(session, llm_user_path):
    with running(working_agent()) as proxy:
        for _ in session(proxy, changing, unmarked):
            pass
    # Each request's messages are stored again then, since the system prompt comes first.
    chains = sum(2 + 2 * turn + 1 for turn in range(TURNS))
    assert rows(llm_user_path, "select count(*) from messages") == [(chains,)]
    assert rows(llm_user_path, "select count(*) from threads") == [(1,)]
    links = rows(llm_user_path, "select link from proxy_exchanges order by number")
    assert links == [(None,), *[("reply",)] * (TURNS - 1)]


# ---- forks


def conversation(proxy, count, ask=ask_chat):
    """Have a conversation of `count` questions; return its messages."""
    history = []
    for i in range(count):
        history.append(user(f"This is the question number {i}."))
        history.append(ask(proxy, *history))
    return history


def test_edited_turn_forks_and_both_branches_can_be_continued(llm_user_path):
    with running(talker()) as proxy:
        history = conversation(proxy, 2)
        edited = [*history[:2], user("Rather another question.")]
        edited.append(ask_chat(proxy, *edited))
        ask_chat(proxy, *edited, user("And so on."))
        ask_chat(proxy, *history, user("And so on."))
    assert describe_exchanges(llm_user_path) == [
        "A",
        "A 0 reply",
        "B<A 0 reply",
        "B 2 reply",
        "A 1 reply",
    ]


def test_retried_turn_forks(llm_user_path):
    with running(talker()) as proxy:
        history = conversation(proxy, 3)
        again = ask_chat(proxy, *history[:-1])
        ask_chat(proxy, *history[:-1], again, user("Better."))
    assert describe_exchanges(llm_user_path) == [
        "A",
        "A 0 reply",
        "A 1 reply",
        "B<A 1 reply",
        "B 3 reply",
    ]


def test_retried_or_edited_first_message_is_a_new_conversation(llm_user_path):
    """Nothing shows that they belong together."""
    with running(talker()) as proxy:
        conversation(proxy, 2)
        conversation(proxy, 1)
        ask_chat(proxy, user("Rather another question."))
    assert describe_exchanges(llm_user_path) == ["A", "A 0 reply", "B", "C"]


def test_unknown_replies_begin_a_thread(llm_user_path):
    with running(talker()) as proxy:
        conversation(proxy, 1)
        ask_chat(
            proxy, user("hi"), assistant("This is what no model has said here."), user("Really?")
        )
    assert describe_exchanges(llm_user_path) == ["A", "B"]


def test_system_messages_are_ignored(llm_user_path):
    with running(talker()) as proxy:
        history = [user("A question.")]
        history.append(ask_chat(proxy, system("Be brief."), *history))
        history.append(user("Another one."))
        history.append(ask_chat(proxy, system("Be long."), *history, system("Mind the gap.")))
        ask_chat(proxy, *history[:2], system("By the way"), *history[2:], user("A third one."))
    assert describe_exchanges(llm_user_path) == ["A", "A 0 reply", "A 1 reply"]


def test_another_model_continues_the_same_thread(llm_user_path):
    with running(talker(), Speaker("n", lambda _: says("This is what n has to say."))) as proxy:
        history = [*conversation(proxy, 1), user("And you, n?")]
        history += [ask_chat(proxy, *history, model="n"), user("And you, m?")]
        ask_chat(proxy, *history)
    assert describe_exchanges(llm_user_path) == ["A", "A 0 reply", "A 1 reply"]


def test_common_replies_are_distinguished_by_the_question(llm_user_path):
    refusal = "I'm sorry, but I can't help with that."
    with running(Speaker("m", lambda _: says(refusal))) as proxy:
        for thing in ("a lock", "a safe"):
            ask_chat(proxy, user(f"How do I pick {thing}?"))
        for thing in ("a lock", "a safe", "a door"):
            ask_chat(proxy, user(f"How do I pick {thing}?"), assistant(refusal), user("Please!"))
    assert describe_exchanges(llm_user_path) == ["A", "B", "A 0 reply", "B 1 reply", "C"]


def test_thread_continues_after_a_restart(llm_user_path):
    with running(talker()) as proxy:
        history = conversation(proxy, 2)
    with running(talker()) as proxy:
        ask_chat(proxy, *history, user("And so on."))
    assert describe_exchanges(llm_user_path) == ["A", "A 0 reply", "A 1 reply"]


def test_calls_are_matched_by_their_ids_in_any_form(llm_user_path):
    """Edited arguments, and parallel calls that a framework sends one after the other."""
    respond = in_turn(
        [
            *calls("a1b", '{"path": "a"}', name="read"),
            *calls("a2b", '{"path": "b"}', 3, name="read"),
        ],
        says("There is nothing in either of them."),
        calls("a3b", '{"path": "c"}', name="read"),
        says("There is nothing in that either."),
    )
    with running(Speaker("m", respond)) as proxy:
        history = [user("Look into the files.")]
        both = ask_chat(proxy, *history)
        for call, result in zip(both["tool_calls"], results(both), strict=True):
            history += [{"role": "assistant", "tool_calls": [call]}, result]
        history += [ask_chat(proxy, *history), user("And c?")]
        third = ask_chat(proxy, *history)
        third["tool_calls"][0]["function"]["arguments"] = '{"path": "d"}'
        ask_chat(proxy, *history, third, *results(third))
    assert describe_exchanges(llm_user_path) == ["A", "A 0 reply", "A 1 reply", "A 2 reply"]


def test_call_ids_that_restart_in_each_conversation_are_distinguished(llm_user_path):
    """Local servers name every first call call_0."""

    def respond(prompt):
        part = prompt.messages[-1].parts[-1]
        if isinstance(part, TextPart):
            return [*thinks(part.text), *calls("call_0", '{"path": "a"}', name="read")]
        return says(f"Answer {len(model.prompts)}: there is nothing in it.")

    with running(model := Speaker("m", respond)) as proxy:
        histories = [[user(f"What does {name} read?")] for name in ("Ann", "Bob")]
        for history in histories:
            history.append(ask_chat(proxy, *history))
        for history in histories:
            ask_chat(proxy, *history, *results(history[-1]))
    assert describe_exchanges(llm_user_path) == ["A", "B", "A 0 reply", "B 1 reply"]
    for prompt in model.prompts[2:]:
        question, reply, _ = prompt.messages
        assert [part.text for part in reply.parts if isinstance(part, ReasoningPart)] == [
            question.parts[0].text
        ]


def test_tool_results_that_a_client_clears_change_no_thread(llm_user_path):
    """Claude Code and others do so when the context grows long."""
    with running(working_agent()) as proxy:
        history = [user(TASK)]
        for turn in range(6):
            history.append(reply := ask_chat(proxy, *history))
            history += [result | {"content": file_of(turn)} for result in results(reply)]
            if turn >= 2:
                history[2 * turn - 2] |= {"content": "[Old tool result content cleared]"}
    assert describe_exchanges(llm_user_path) == ["A", *(f"A {turn} reply" for turn in range(5))]
    given = rows(llm_user_path, "select recalled from proxy_exchanges order by number")
    assert given == [(turn,) for turn in range(6)]


PROMPT = "Search the tests for everything that has to do with the parser; report the file names."


def calling_tasks(*prompts):
    for i, prompt in enumerate(prompts):
        arguments = json.dumps({"description": "Find tests", "prompt": prompt})
        yield from calls(f"toolu_{i}", arguments, part_index=i, name="Task")


def task_results(*said):
    return user(
        [
            {"type": "tool_result", "tool_use_id": f"toolu_{i}", "content": text}
            for i, text in enumerate(said)
        ]
    )


def subagent_asks(prompt):
    reminder = "<system-reminder>\nAs you answer, mind CLAUDE.md.\n</system-reminder>"
    return user([{"type": "text", "text": reminder}, {"type": "text", "text": prompt}])


def test_subagents_are_threads_forked_from_their_caller(llm_user_path):
    """Claude Code's Task: a separate conversation that begins with the call's prompt."""
    other = PROMPT.replace("parser", "lexer")
    respond = in_turn(
        calling_tasks(PROMPT, other),
        calls("toolu_r", '{"path": "tests"}', name="read"),
        says("The lexer has no tests that I could find."),
        says("The parser has tests in tests/test_parser.py."),
        says("So there are tests of the parser alone."),
    )
    with running(Speaker("m", respond)) as proxy:
        history = [user("Which tests are there?")]
        history.append(messages(proxy, *history, system="You are Claude Code."))
        parser = [subagent_asks(PROMPT)]
        parser.append(messages(proxy, *parser, system="You are an agent for Claude Code."))
        lexer = messages(proxy, subagent_asks(other), system="You are an agent for Claude Code.")
        found = {"type": "tool_result", "tool_use_id": "toolu_r", "content": "test_parser.py"}
        report = messages(proxy, *parser, user([found]))
        said = [message["content"][0]["text"] for message in (report, lexer)]
        messages(proxy, *history, task_results(*said), system="You are Claude Code.")
    assert describe_exchanges(llm_user_path) == [
        "A",
        "B<A 0 call",
        "C<A 0 call",
        "B 1 reply",
        "A 0 reply",
    ]


def test_subagent_of_a_subagent_is_forked_from_the_latter(llm_user_path):
    deeper = PROMPT.replace("parser", "lexer")
    respond = in_turn(
        calling_tasks(PROMPT), calling_tasks(deeper), says("There are no tests of the lexer.")
    )
    with running(Speaker("m", respond)) as proxy:
        messages(proxy, user("Which tests are there?"))
        messages(proxy, subagent_asks(PROMPT))
        messages(proxy, subagent_asks(deeper))
    assert describe_exchanges(llm_user_path) == ["A", "B<A 0 call", "C<B 1 call"]


@pytest.mark.parametrize(
    ("called", "prompt"),
    [
        ("Look at the tests.", "Look at the tests."),
        (PROMPT, PROMPT.replace("report", "print")),
        (PROMPT, PROMPT[:-1]),
    ],
    ids=["too short", "other text", "not all of it"],
)
def test_a_request_that_does_not_quote_a_call_starts_a_thread(called, prompt, llm_user_path):
    respond = in_turn(calling_tasks(called), says("There is nothing."))
    with running(Speaker("m", respond)) as proxy:
        messages(proxy, user("Which tests are there?"))
        messages(proxy, subagent_asks(prompt))
    assert describe_exchanges(llm_user_path) == ["A", "B"]


LONG_REPLY = "I have changed the parser so that it reads numbers with underscores. " * 4


@pytest.mark.parametrize(
    ("reply", "quoted", "expected"),
    [
        (LONG_REPLY, LONG_REPLY, "B<A 0 quote"),
        (LONG_REPLY, LONG_REPLY.strip(), "B<A 0 quote"),
        (LONG_REPLY, LONG_REPLY[:-30], "B"),
        (LONG_REPLY[:70].strip(), LONG_REPLY[:70].strip(), "B"),
    ],
    ids=["whole", "without white space", "not all of it", "too short"],
)
@pytest.mark.parametrize("ask", [ask_chat, messages])
def test_title_that_quotes_a_whole_reply_is_forked_from_it(
    ask, reply, quoted, expected, llm_user_path
):
    title = "Write a short title for this conversation:\n\nuser: hi\nassistant: {}\n\nTitle:"
    with running(Speaker("m", in_turn(says(reply), says("Numbers with underscores")))) as proxy:
        ask(proxy, user("Let it read numbers with underscores."))
        ask(proxy, user(title.format(quoted)))
    assert describe_exchanges(llm_user_path) == ["A", expected]


def test_compacting_like_claude_code_forks_from_the_summary(llm_user_path):
    summary = "1. Primary Request: read numbers with underscores.\n2. Files: parser.py\n" * 4
    respond = in_turn(
        says("What you want is in parser.py."),
        says(f"<analysis>\nLet me think.\n</analysis>\n\n<summary>\n{summary}</summary>"),
        says("I go on with parser.py then."),
        says("There is nothing left to do."),
    )
    head = "This session is being continued from a previous conversation that ran out of context."
    with running(Speaker("m", respond)) as proxy:
        history = [user("Let it read numbers with underscores.")]
        history.append(messages(proxy, *history))
        messages(proxy, *history, user("Your task is to create a detailed summary."))
        compacted = [user(f"{head} The summary:\n{summary.strip()}\n\nPlease go on.")]
        compacted.append(messages(proxy, *compacted))
        messages(proxy, *compacted, user("Go on."))
    assert describe_exchanges(llm_user_path) == ["A", "A 0 reply", "B<A 1 quote", "B 2 reply"]


COMPACTED = {
    "as a user's message": lambda tail: [user("We spoke of many things before: ..."), *tail],
    "like aider": lambda tail: [
        user("I spoke to you previously about a number of things.\nWe spoke of many things."),
        assistant("Ok."),
        *tail,
    ],
    "as a reply": lambda tail: [
        user("What did we do so far?"),
        assistant("We spoke of many things, which I have put together here: ..."),
        *tail,
    ],
}


@pytest.mark.parametrize("compacted", COMPACTED.values(), ids=COMPACTED)
def test_summary_instead_of_older_replies_forks_once(compacted, llm_user_path):
    with running(talker()) as proxy:
        history = conversation(proxy, 4)
        history = [*compacted(history[4:]), user("What now?")]
        history.append(ask_chat(proxy, *history))
        ask_chat(proxy, *history, user("And then?"))
    assert describe_exchanges(llm_user_path)[4:] == ["B<A 3 compacted", "B 4 reply"]


@pytest.mark.parametrize("said_by", [user, assistant])
def test_summary_after_the_first_question_forks_too(said_by, llm_user_path):
    """OpenHands keeps the beginning, with its summary after it."""
    with running(talker()) as proxy:
        history = conversation(proxy, 4)
        summary = said_by("<CONTEXT SUMMARY> We spoke of many things before: ...")
        history = [history[0], summary, *history[4:], user("What now?")]
        history.append(ask_chat(proxy, *history))
        ask_chat(proxy, *history, user("And then?"))
    assert describe_exchanges(llm_user_path)[4:] == ["B<A 3 compacted", "B 4 reply"]


@pytest.mark.parametrize("left_out", [1, 2, 4, 5, 6])
def test_sliding_window_stays_in_its_thread(left_out, llm_user_path):
    with running(talker()) as proxy:
        history = conversation(proxy, 4)
        history.append(user("What now?"))
        history.append(ask_chat(proxy, *history[left_out:]))
        ask_chat(proxy, *history[left_out + 2 :], user("And then?"))
    assert describe_exchanges(llm_user_path)[4:] == ["A 3 reply", "A 4 reply"]


def test_window_that_keeps_the_first_question_stays_in_its_thread(llm_user_path):
    """Cline and others cut out the middle."""
    with running(talker()) as proxy:
        history = conversation(proxy, 5)
        ask_chat(proxy, *history[:2], *history[6:], user("What now?"))
        ask_chat(proxy, history[0], *history[7:], user("What then?"))
    assert describe_exchanges(llm_user_path)[5:] == ["A 4 reply", "B<A 4 reply"]


def test_conversation_continues_in_another_dialect(llm_user_path):
    """Fingerprints use only the parts of replies that every API carries."""
    respond = in_turn(
        [*thinks("hm"), *says("I read it.\n"), *calls("call_1", '{"n": 1.0}', name="read")],
        [*thinks("so"), *says("It says nothing of numbers.")],
        [*thinks("ah"), *calls("toolu_2", '{"n": 2}', name="read")],
        says("Nor does that file."),
        says("You are welcome."),
    )
    call = {"type": "tool_use", "id": "call_1", "name": "read", "input": {"n": 1}}
    with running(Speaker("m", respond)) as proxy:
        history = [user("What does the file say?")]
        history.append(ask_chat(proxy, *history))
        history += results(history[-1])
        second = ask_chat(proxy, *history)["content"]
        blocks = [
            user("What does the file say?"),
            assistant([{"type": "text", "text": "I read it."}, call]),
            user([{"type": "tool_result", "tool_use_id": "call_1", "content": "read by call_1"}]),
            assistant(second),
            user("And the other one?"),
        ]
        third = messages(proxy, *blocks)
        blocks += [
            third,
            user([{"type": "tool_result", "tool_use_id": "toolu_2", "content": "nothing"}]),
        ]
        fourth = messages(proxy, *blocks)
        made = {"name": "read", "arguments": '{"n": 2.0}'}
        history += [
            assistant(second),
            user("And the other one?"),
            {
                "role": "assistant",
                "tool_calls": [{"id": "toolu_2", "type": "function", "function": made}],
            },
            {"role": "tool", "tool_call_id": "toolu_2", "content": "nothing"},
            assistant(fourth["content"][0]["text"]),
            user("Thanks."),
        ]
        ask_chat(proxy, *history)
    assert describe_exchanges(llm_user_path) == [
        "A",
        "A 0 reply",
        "A 1 reply",
        "A 2 reply",
        "A 3 reply",
    ]


# ---- conversations with the same beginning


@pytest.mark.parametrize(
    ("greeting", "count"), [("Hello! How can I help you today?", 50), ("ok", 15)]
)
def test_conversations_with_the_same_beginning_stay_apart(greeting, count, llm_user_path):
    def respond(prompt):
        if len(prompt.messages) == 2:
            return says(greeting)
        return says(f"Answer {len(model.prompts)}: there is nothing more to say about it.")

    begins = [system("Be kind."), user("hi")]
    with running(model := Speaker("m", respond)) as proxy:
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: ask_chat(proxy, *begins), range(count)))
        assert threads_by_turns(llm_user_path) == {1: count}
        histories = [[*begins, reply, user(f"Question {i}")] for i, reply in enumerate(replies)]
        for history in histories:
            history.append(ask_chat(proxy, *history))
        assert threads_by_turns(llm_user_path) == {2: count}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda history: ask_chat(proxy, *history, user("Thanks.")), histories))
    assert threads_by_turns(llm_user_path) == {3: count}
    assert rows(llm_user_path, "select distinct forked_from from threads") == [(None,)]
    questions = (
        "select count(*) from proxy_exchanges e join proxy_exchanges before"
        " on before.id = e.previous_id where e.thread_id != before.thread_id"
    )
    assert rows(llm_user_path, questions) == [(0,)]


def threads_by_turns(llm_user_path):
    """Count the threads by their number of turns."""
    return dict(
        rows(
            llm_user_path,
            "select turns, count(*) from"
            " (select count(*) as turns from turns group by thread_id) group by turns",
        )
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_conversations_with_the_same_beginning_stay_apart(llm_user_path):
    """Without HTTP, which would take ten times as long."""
    count, continued = 10_000, 2_000
    path = llm_user_path / "logs.db"
    begins = [llm.system("Be kind."), llm.user("hi")]
    greeting = llm.assistant("Hello! How can I help you today?")
    store, matcher = Store(path), Matcher(path)
    for start in range(0, count, 50):
        began = [exchange(start + i, begins, greeting) for i in range(50)]
        while began:
            del began[: store.write(began)]
    for i in range(continued):
        history = [*begins, greeting, llm.user(f"Question {i}")]
        known = matcher.match(history, "m", "tests")
        assert known.link == "reply"
        reply = llm.assistant(f"Answer {i}: there is nothing more to say about it.")
        goes_on = {"previous_id": known.previous_id, "link": known.link}
        store.write([exchange(count + i, known.messages, reply, **goes_on)])
    matcher.close()
    store.close()
    assert threads_by_turns(llm_user_path) == {1: count - continued, 2: continued}


def exchange(number, messages, reply, **fields):
    """Return an ended exchange, as the app would write it."""
    received = datetime(2026, 11, 21, tzinfo=UTC)
    facts = {
        "dialect": "openai_chat",
        "path": "/v1/chat/completions",
        "query": "",
        "client": "tests",
        "headers": [],
        "body": {"model": "m"},
    }
    id_ = f"01jd{number:022d}"
    turn = Turn(id_, f"01jt{number:022d}", "m", messages, [reply], received, duration_ms=12)
    return ended_as(
        begun(id_, received, **facts),
        "ok",
        http_status=200,
        duration_ms=12.5,
        turn=turn,
        finish=chat.Finish(),
        **fields,
    )


def test_trivial_reply_matches_only_with_the_same_history(llm_user_path):
    with running(Speaker("m", lambda _: says("ok"))) as proxy:
        ask_chat(proxy, user("Remember the number seven."))
        ask_chat(proxy, user("Remember the number eight."))
        ask_chat(proxy, user("Remember the number nine."), assistant("ok"), user("And?"))
        ask_chat(proxy, user("Remember the number seven."), assistant("ok"), user("And?"))
    assert describe_exchanges(llm_user_path) == ["A", "B", "C", "A 0 reply"]


# ---- parallel and cancelled requests


def test_of_two_parallel_continuations_one_forks(llm_user_path):
    waiting = []

    async def both(_response):
        arrived = asyncio.Event()
        waiting.append(arrived)
        if len(waiting) == 2:
            for event in waiting:
                event.set()
        await arrived.wait()

    def respond(prompt):
        if len(prompt.messages) == 1:
            return says("This is where they part.")
        return [both, *says(f"Answer {len(model.prompts)}, which is an answer of its own.")]

    with running(model := Speaker("m", respond)) as proxy:
        history = conversation(proxy, 1)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda i: ask_chat(proxy, *history, user(f"Branch {i}")), range(2)))
    first, *branches = describe_exchanges(llm_user_path)
    assert (first, sorted(branches)) == ("A", ["A 0 reply", "B<A 0 reply"])


def disconnect_in(proxy, began, *messages):
    """Request a stream and disconnect while the model waits; return when that is logged."""
    count = len(proxy.reports)
    connection = HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    body = {"model": "m", "messages": messages, "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    assert began.wait(10)
    connection.close()
    proxy.wait_for_report(count + 1)


@pytest.mark.parametrize("keeps_the_rest", [False, True], ids=["retried", "continued"])
def test_cancelled_response_does_not_move_the_tip(keeps_the_rest, llm_user_path):
    began = threading.Event()

    async def wait(_response):
        began.set()
        await asyncio.Event().wait()

    partial = "As far as I came, there is"
    respond = in_turn(
        says("The first answer to it all."),
        [*says(partial), wait],
        says("The second answer to it all."),
        says("The third answer to it all."),
    )
    tip = "select tip_message_hash from threads"
    with running(Speaker("m", respond)) as proxy:
        history = conversation(proxy, 1)
        before = rows(llm_user_path, tip)
        history.append(user("What else is there?"))
        disconnect_in(proxy, began, *history)
        if keeps_the_rest:
            history += [assistant(partial), user("Go on.")]
        reply = ask_chat(proxy, *history)
        assert rows(llm_user_path, tip) != before
        ask_chat(proxy, *history, reply, user("And that was all?"))
    statuses = rows(llm_user_path, "select status from proxy_exchanges order by number")
    assert statuses == [("ok",), ("cancelled",), ("ok",), ("ok",)]
    assert rows(llm_user_path, "select count(*) from threads") == [(1,)]
    assert rows(llm_user_path, "select count(*), count(distinct thread_id) from turns") == [(4, 1)]
    if not keeps_the_rest:
        assert describe_exchanges(llm_user_path) == ["A", "A 0 reply", "A 0 reply", "A 2 reply"]


def test_failed_response_does_not_move_the_tip(llm_user_path):
    def fail(_response):
        raise RuntimeError("the GPU is gone")

    respond = in_turn(
        says("The first answer to it all."),
        [*says("As far as I came, there is"), fail],
        says("The second answer to it all."),
    )
    with running(Speaker("m", respond)) as proxy:
        history = [*conversation(proxy, 1), user("What else is there?")]
        body = {"model": "m", "messages": history}
        assert request(proxy, "POST", "/v1/chat/completions", body)[0] == 502
        ask_chat(proxy, *history)
    assert rows(llm_user_path, "select count(*), count(distinct thread_id) from turns") == [(3, 1)]
    assert describe_exchanges(llm_user_path)[-1] == "A 0 reply"
