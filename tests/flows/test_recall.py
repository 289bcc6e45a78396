"""Recall: the log restores what a client's API can't send back (B25).

That is thinking, signatures and metadata. The clients are real SDKs, which send back only
what their API has fields for.
"""

import asyncio
import itertools
import json
import sqlite3
import threading
from http.client import HTTPConnection

import anthropic
import openai
import pytest
from llm.logs import LogStore
from llm.parts import Message, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart
from llm_anthropic import AsyncClaudeMessages, ClaudeMessages
from sqlite_utils import Database

from llmproxy.core.limits import Limits
from tests import proxies
from tests.app.test_app import request, rows
from tests.backends.engine.test_plugins import anthropic_stream
from tests.models import AsyncScript
from tests.provider import playing, say_json

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
QUESTION = {"role": "user", "content": "Where does the sun shine?"}
AND_TOMORROW = {"role": "user", "content": "And tomorrow?"}


def running(*models, **settings):
    """Run a proxy whose responses wait for the log without a limit, so that it matches them."""
    return proxies.running(*models, limits=Limits(log_wait_s=30, shutdown_s=5), **settings)


class Speaker(AsyncScript):
    """A model that responds to a prompt with the steps of `respond(prompt)`."""

    def __init__(self, model_id, respond):
        super().__init__(model_id)
        self.respond = respond

    async def execute(self, prompt, stream, response, conversation):
        self._began(prompt, conversation)
        for step in self.respond(prompt):
            if callable(step):
                await step(response)
            else:
                yield step


def in_turn(*scripts):
    """Return a function that gives the first script for the first prompt, and so on."""
    left = iter(scripts)
    return lambda _prompt: next(left)


def thinks(thought):
    """Return thinking as Anthropic signs it."""
    signed = {"anthropic": {"signature": f"signed({thought})=="}}
    yield StreamEvent("reasoning", thought, part_index=0)
    yield StreamEvent("reasoning", "", part_index=0, provider_metadata=signed)


def says(text, part_index=1, **fields):
    yield StreamEvent("text", text, part_index=part_index, **fields)


def calls(id_, arguments, part_index=2, name="weather", **fields):
    place = {"part_index": part_index, "tool_call_id": id_}
    yield StreamEvent("tool_call_name", name, **place, **fields)
    yield StreamEvent("tool_call_args", arguments, **place)


TEXT = "I think that it is in Ulm."
CALLED = '{"at": "Ulm", "days": 2}'
CALL_STEPS = tuple(calls("c1", CALLED))
TEXT_STEPS = tuple(says(TEXT))


def ask(proxy, *messages, model="m"):
    """Send a request by OpenAI's API; return the message as a client keeps it: without thinking."""
    body = {"model": model, "messages": messages, "tools": [WEATHER]}
    status, _, answer = request(proxy, "POST", "/v1/chat/completions", body)
    assert status == 200, answer
    message = json.loads(answer)["choices"][0]["message"]
    kept = {name: message[name] for name in ("content", "tool_calls") if message.get(name)}
    return {"role": "assistant", **kept}


def results(message):
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": f"sun by {call['id']}"}
        for call in message.get("tool_calls", ())
    ]


def user(content):
    return {"role": "user", "content": content}


def thoughts(message):
    """Return the parts of a message that no client of OpenAI's API could have sent."""
    metadata = [part.provider_metadata for part in message.parts if part.provider_metadata]
    return [part.text for part in message.parts if isinstance(part, ReasoningPart)] or metadata


def replies_in(prompt):
    return [message for message in prompt.messages if message.role == "assistant"]


# ---- Claude's thinking, for a client of OpenAI's API


def thinking(text, signature):
    return {"type": "thinking", "thinking": text, "signature": signature}


def tool_use(id_, at):
    return {"type": "tool_use", "id": id_, "name": "weather", "input": {"at": at}}


ANSWERS = (
    (thinking("Where could it be?\n\nIn Köln … ", "EqQB+/k1=="), tool_use("toolu_1", "Köln")),
    (
        thinking("Not there.", "EqQBk2=="),
        {"type": "redacted_thinking", "data": "EmwKAh/+gB=="},
        {"type": "text", "text": "Two more to look at."},
        tool_use("toolu_2", "Ulm"),
        tool_use("toolu_3", "Bonn"),
    ),
    (thinking("", "EqQBk3_nothing_shown=="), tool_use("toolu_4", "Kiel")),
    (thinking("Kiel it is.", "EqQBk4=="), {"type": "text", "text": "It shines in Kiel."}),
    (thinking("Who knows?", "EqQBk5=="), {"type": "text", "text": "Nobody knows that yet."}),
)
THINKING = ("thinking", "redacted_thinking")


def strict_anthropic(body, handler):
    """Respond like Anthropic with extended thinking: replies must be sent back unchanged."""
    said = 0
    for i, message in enumerate(body["messages"]):
        if message["role"] != "assistant":
            continue
        if complaint := complaint_about(message["content"], ANSWERS[said], f"messages.{i}.content"):
            error = {"type": "invalid_request_error", "message": complaint}
            say_json(handler, {"type": "error", "error": error, "request_id": "req_1"}, 400)
            return
        said += 1
    answer = ANSWERS[said]
    stop_reason = "tool_use" if answer[-1]["type"] == "tool_use" else "end_turn"
    anthropic_stream(*map(streamed, answer), stop_reason=stop_reason)(body, handler)


def complaint_about(content, issued, path):
    first = content[0]["type"]
    if any(block["type"] == "tool_use" for block in content) and first not in THINKING:
        return (
            f"{path}.0.type: Expected `thinking` or `redacted_thinking`, but found `{first}`. "
            "When `thinking` is enabled, a final `assistant` message must start with a thinking "
            "block (preceeding the lastmost set of `tool_use` and `tool_result` blocks). We "
            "recommend you include thinking blocks from previous turns."
        )
    came = [block for block in content if block["type"] in THINKING]
    if came and came != [block for block in issued if block["type"] in THINKING]:
        return (
            f"{path}.0: `thinking` or `redacted_thinking` blocks in the latest assistant message "
            "cannot be modified. These blocks must remain as they were in the original response."
        )
    return None


def streamed(block):
    """Return a block as streamed: its start and its deltas."""
    match block:
        case {"type": "thinking", "thinking": text, "signature": signature}:
            half = len(text) // 2
            deltas = [
                {"type": "thinking_delta", "thinking": piece}
                for piece in (text[:half], text[half:])
                if piece
            ]
            return thinking("", ""), [*deltas, {"type": "signature_delta", "signature": signature}]
        case {"type": "text", "text": text}:
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": text}]
        case {"type": "tool_use", "input": arguments}:
            delta = {"type": "input_json_delta", "partial_json": json.dumps(arguments)}
            return block | {"input": {}}, [delta]
        case _:
            return block, []


def thinking_claude(kind, provider, **attributes):
    model = kind(
        "claude-m",
        base_url=provider.url,
        supports_thinking=True,
        supports_thinking_effort=True,
        supports_adaptive_thinking=True,
        **attributes,
    )
    model.needs_key, model.get_key = "anthropic", lambda key=None: "test"
    return model


def tool_loop():
    """Yield histories to send, as an agent on OpenAI's SDK; receive the replies."""
    history = [{"role": "system", "content": "You look for the sun."}, QUESTION]
    for after in (AND_TOMORROW, None):
        while True:
            message = yield history
            calls = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": call.function.arguments,
                    },
                }
                for call in message.tool_calls or ()
            ]
            echo = {"role": "assistant", "content": message.content}
            if not calls:
                history = [*history, echo]
                break
            history = [*history, echo | {"tool_calls": calls}, *results({"tool_calls": calls})]
        if after is not None:
            history = [*history, after]
    return [m["content"] for m in history if m["role"] == "assistant"]


def run_sync(url, options, stream):
    loop = tool_loop()
    history = next(loop)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as sdk:
        while True:
            if stream:
                with sdk.chat.completions.stream(messages=history, **options) as answer:
                    completion = answer.get_final_completion()
            else:
                completion = sdk.chat.completions.create(messages=history, **options)
            try:
                history = loop.send(completion.choices[0].message)
            except StopIteration as end:
                return end.value


async def run_async(url, options, stream):
    loop = tool_loop()
    history = next(loop)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as sdk:
        while True:
            if stream:
                async with sdk.chat.completions.stream(messages=history, **options) as answer:
                    completion = await answer.get_final_completion()
            else:
                completion = await sdk.chat.completions.create(messages=history, **options)
            try:
                history = loop.send(completion.choices[0].message)
            except StopIteration as end:
                return end.value


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", [ClaudeMessages, AsyncClaudeMessages])
def test_openai_client_continues_a_conversation_with_a_thinking_claude(kind, stream, llm_user_path):
    """B25"""
    options = {"tools": [WEATHER], "reasoning_effort": "high"}
    with playing(strict_anthropic) as provider:
        model = thinking_claude(kind, provider)
        options["model"] = model.model_id
        with running(model) as proxy:
            if kind is ClaudeMessages:
                said = run_sync(proxy.url, options, stream)
            else:
                said = asyncio.run(run_async(proxy.url, options, stream))
    # Streams begin with an empty text, which the client sends back.
    silent = "" if stream else None
    shines, unknown = "It shines in Kiel.", "Nobody knows that yet."
    assert said == [silent, "Two more to look at.", silent, shines, unknown]
    assert [body["thinking"]["type"] for body in provider.bodies] == ["adaptive"] * 5
    sent_back = [m["content"] for m in provider.bodies[-1]["messages"] if m["role"] == "assistant"]
    assert sent_back == [list(answer) for answer in ANSWERS[:4]]
    assert rows(llm_user_path, "select recalled, link from proxy_exchanges order by number") == [
        (0, None),
        (1, "reply"),
        (2, "reply"),
        (3, "reply"),
        (4, "reply"),
    ]
    assert rows(llm_user_path, "select count(*) from threads") == [(1,)]


def test_model_that_thinks_unrequested_gets_its_thinking_back():
    """B25: current Claude models think without being asked to."""
    with playing(strict_anthropic) as provider:
        model = thinking_claude(AsyncClaudeMessages, provider, thinks_by_default=True)
        with running(model) as proxy:
            options = {"model": model.model_id, "tools": [WEATHER]}
            assert run_sync(proxy.url, options, stream=True)[3] == "It shines in Kiel."
    assert provider.bodies[0]["thinking"]["type"] == "adaptive"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_without_recall_claude_refuses_its_own_tool_turn(stream, llm_user_path):
    """B25: the error that other projects report (opencode #3077, crewAI #2323)."""
    with playing(strict_anthropic) as provider:
        model = thinking_claude(AsyncClaudeMessages, provider)
        options = {"model": model.model_id, "tools": [WEATHER], "reasoning_effort": "high"}
        with running(model, recall=False) as proxy:
            with pytest.raises(openai.BadRequestError) as refused:
                run_sync(proxy.url, options, stream)
    assert "Expected `thinking` or `redacted_thinking`, but found `tool_use`" in str(refused.value)
    assert len(provider.bodies) == 2
    assert rows(llm_user_path, "select recalled from proxy_exchanges") == [(0,), (0,)]


def test_recall_works_while_the_log_is_locked(llm_user_path):
    """Replies that are not written yet are matched too, and become one thread."""
    with playing(strict_anthropic) as provider:
        model = thinking_claude(AsyncClaudeMessages, provider)
        options = {"model": model.model_id, "tools": [WEATHER], "reasoning_effort": "high"}
        with proxies.running(model, limits=Limits(log_wait_s=0.2, shutdown_s=10)) as proxy:
            request(proxy, "POST", "/v1/chat/completions", {"messages": []})  # makes the log
            with sqlite3.connect(llm_user_path / "logs.db", isolation_level=None) as other:
                other.execute("BEGIN IMMEDIATE")
                assert run_sync(proxy.url, options, stream=True)[3] == "It shines in Kiel."
                other.execute("ROLLBACK")
    assert rows(llm_user_path, "select count(*) from threads") == [(1,)]


def test_log_has_what_the_model_was_given(llm_user_path):
    """A turn's messages begin with those of the previous turn, including thinking (d6.3)."""
    respond = in_turn(
        [*thinks("hm"), *calls("c1", '{"at": "Ulm"}')], [*thinks("so"), *says("Ulm.")]
    )
    with running(model := Speaker("m", respond)) as proxy:
        first = ask(proxy, QUESTION)
        ask(proxy, QUESTION, first, *results(first))
    [before, after] = rows(
        llm_user_path, "select parent_message_hash, tip_message_hash from turns order by id"
    )
    log = LogStore(Database(sqlite3.connect(llm_user_path / "logs.db")))
    assert log.load_chain(after[0]) == model.prompts[1].messages
    assert log.load_chain(after[0])[:2] == log.load_chain(before[1])
    assert log.verify() == []
    log.db.close()


def test_recall_works_after_a_restart():
    with running(Speaker("m", in_turn([*thinks("before"), *CALL_STEPS]))) as proxy:
        reply = ask(proxy, QUESTION)
    with running(model := Speaker("m", in_turn(says("It is in Ulm.")))) as proxy:
        ask(proxy, QUESTION, reply, *results(reply))
    assert [thoughts(m) for m in replies_in(model.prompts[0])] == [["before"]]


def test_without_a_log_nothing_is_recalled():
    respond = in_turn([*thinks("hm"), *CALL_STEPS], says("It is in Ulm."))
    with running(model := Speaker("m", respond), log=False) as proxy:
        reply = ask(proxy, QUESTION)
        ask(proxy, QUESTION, reply, *results(reply))
    assert [thoughts(m) for m in replies_in(model.prompts[1])] == [[]]


# ---- metadata of other providers

CALL_SIGNED = {"gemini": {"thoughtSignature": "CiQBcsjafJ2g+/call=="}}
TEXT_SIGNED = {"gemini": {"thoughtSignature": "CiQBcsjafJ2g+/text=="}}


def gemini():
    """Return a model that signs calls and, in a separate part, the end of a text."""
    return Speaker(
        "m",
        in_turn(
            [
                *says("I look it up.", part_index=0),
                *calls("c1", '{"at": "Ulm"}', part_index=1, provider_metadata=CALL_SIGNED),
                *calls("c2", '{"at": "Bonn"}', part_index=2),
            ],
            [
                *says("The sun shines ", part_index=0),
                *says("in both of them.", part_index=1, provider_metadata=TEXT_SIGNED),
            ],
            says("Who knows?"),
        ),
    )


def gemini_conversation(proxy):
    first = ask(proxy, QUESTION)
    history = [QUESTION, first, *results(first)]
    second = ask(proxy, *history)
    ask(proxy, *history, second, AND_TOMORROW)


def test_signatures_on_calls_and_text_are_recalled():
    """B25: Gemini's thoughtSignature, which is in separate parts."""
    with running(model := gemini()) as proxy:
        gemini_conversation(proxy)
    tool = Message(
        "tool",
        [
            ToolResultPart("weather", "sun by c1", "c1"),
            ToolResultPart("weather", "sun by c2", "c2"),
        ],
    )
    history = [
        Message("user", [TextPart("Where does the sun shine?")]),
        Message(
            "assistant",
            [
                TextPart("I look it up."),
                ToolCallPart("weather", {"at": "Ulm"}, "c1", provider_metadata=CALL_SIGNED),
                ToolCallPart("weather", {"at": "Bonn"}, "c2"),
            ],
        ),
        tool,
    ]
    assert model.prompts[1].messages == history
    assert model.prompts[2].messages == [
        *history,
        Message(
            "assistant",
            [TextPart("The sun shines "), TextPart("in both of them.", TEXT_SIGNED)],
        ),
        Message("user", [TextPart("And tomorrow?")]),
    ]


def test_without_recall_the_model_gets_what_the_client_sent():
    with running(model := gemini(), recall=False) as proxy:
        gemini_conversation(proxy)
    assert [thoughts(reply) for prompt in model.prompts for reply in replies_in(prompt)] == [[]] * 3
    assert replies_in(model.prompts[2])[1].parts == [TextPart("The sun shines in both of them.")]


ENCRYPTED = {"openai": {"id": "rs_1", "encrypted_content": "gAAAAABo+/=="}}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("shown", ["", "They may both have it."], ids=["opaque", "summary"])
def test_anthropic_client_before_a_model_of_another_vendor(shown, stream):
    """B25: Anthropic's API has no field for other vendors' metadata."""
    reasoning = StreamEvent("reasoning", shown, part_index=0, provider_metadata=ENCRYPTED)
    called = calls("call_1", '{"at": "Ulm"}', part_index=1, provider_metadata=CALL_SIGNED)
    model = Speaker("m", in_turn([reasoning, *called], says("It shines in Ulm.")))
    question = [QUESTION]
    tools = [{"name": "weather", "input_schema": {"type": "object", "properties": {}}}]
    options = {"model": "m", "max_tokens": 100, "tools": tools}

    def answer(sdk, messages):
        if not stream:
            return sdk.messages.create(messages=messages, **options)
        with sdk.messages.stream(messages=messages, **options) as answering:
            return answering.get_final_message()

    with running(model) as proxy:
        with anthropic.Anthropic(base_url=proxy.url, api_key="x", max_retries=0) as sdk:
            first = answer(sdk, question)
            assert "gAAAA" not in first.to_json()
            echo = {"role": "assistant", "content": [b.model_dump() for b in first.content]}
            result = {"type": "tool_result", "tool_use_id": "call_1", "content": "sun"}
            last = answer(sdk, [*question, echo, {"role": "user", "content": [result]}])
    assert last.content[0].text == "It shines in Ulm."
    [reply] = replies_in(model.prompts[1])
    assert reply.parts == [
        ReasoningPart(shown, provider_metadata=ENCRYPTED),
        ToolCallPart("weather", {"at": "Ulm"}, "call_1", provider_metadata=CALL_SIGNED),
    ]


# ---- never recalled


def changed_call(**function):
    """Return a change of the first call's function."""

    def change(message):
        [call] = message["tool_calls"]
        return message | {"tool_calls": [call | {"function": call["function"] | function}]}

    return change


CHANGES = {
    "edited text": lambda m: m | {"content": "I think that it is in Bonn."},
    "longer text": lambda m: m | {"content": f"{m['content']} Or is it?"},
    "cut text": lambda m: m | {"content": m["content"][:-1]},
    "no text": lambda m: m | {"content": None},
    "edited arguments": changed_call(arguments='{"at": "Bonn", "days": 2}'),
    "fewer arguments": changed_call(arguments='{"at": "Ulm"}'),
    "more arguments": changed_call(arguments='{"at": "Ulm", "days": 2, "nights": 2}'),
    "a number as text": changed_call(arguments='{"at": "Ulm", "days": "2"}'),
    "another tool": changed_call(name="weather_tomorrow"),
    "another id": lambda m: m | {"tool_calls": [m["tool_calls"][0] | {"id": "c9"}]},
    "a call more": lambda m: (
        m | {"tool_calls": [*m["tool_calls"], m["tool_calls"][0] | {"id": "c2"}]}
    ),
    "no call": lambda m: {"role": "assistant", "content": m["content"]},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_edited_reply_is_passed_on_as_sent(change):
    respond = in_turn([*thinks("hidden"), *says(TEXT), *calls("c1", CALLED)], says("So be it."))
    with running(model := Speaker("m", respond)) as proxy:
        edited = change(ask(proxy, QUESTION))
        ask(proxy, QUESTION, edited, *results(edited), AND_TOMORROW)
    [reply] = replies_in(model.prompts[1])
    text = [TextPart(edited["content"])] if edited["content"] else []
    assert reply.parts == [
        *text,
        *(
            ToolCallPart(call["function"]["name"], json.loads(call["function"]["arguments"]), id_)
            for call in edited.get("tool_calls", ())
            for id_ in [call["id"]]
        ),
    ]


def test_unchanged_reply_is_recalled():
    """The tests of edited replies rely on this."""
    respond = in_turn([*thinks("hidden"), *says(TEXT), *calls("c1", CALLED)], says("So be it."))
    with running(model := Speaker("m", respond)) as proxy:
        reply = ask(proxy, QUESTION)
        ask(proxy, QUESTION, reply, *results(reply), AND_TOMORROW)
    assert thoughts(replies_in(model.prompts[1])[0]) == ["hidden"]


@pytest.mark.parametrize("reply", [CALL_STEPS, TEXT_STEPS], ids=["call", "text"])
def test_another_model_does_not_get_the_thinking(reply):
    one = Speaker("m", in_turn([*thinks("of m"), *reply], says("m again")))
    other = Speaker("n", in_turn(says("I am n.")))
    with running(one, other) as proxy:
        said = ask(proxy, QUESTION)
        history = [QUESTION, said, *results(said), AND_TOMORROW]
        ask(proxy, *history, model="n")
        ask(proxy, *history, model="m")
    assert [thoughts(m) for m in replies_in(other.prompts[0])] == [[]]
    assert [thoughts(m) for m in replies_in(one.prompts[1])] == [["of m"]]


def test_cancelled_reply_is_not_recalled(llm_user_path):
    """Its signature is incomplete."""
    began = threading.Event()

    async def wait(_response):
        began.set()
        await asyncio.Event().wait()

    respond = in_turn([*thinks("unfinished"), *says(TEXT), wait], says("Well then."))
    with running(model := Speaker("m", respond)) as proxy:
        connection = HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        body = {"model": "m", "messages": [QUESTION], "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        assert began.wait(10)
        connection.close()
        proxy.wait_for_report()
        ask(proxy, QUESTION, {"role": "assistant", "content": TEXT}, AND_TOMORROW)
    assert rows(llm_user_path, "select status, recalled from proxy_exchanges order by number") == [
        ("cancelled", 0),
        ("ok", 0),
    ]
    assert [thoughts(m) for m in replies_in(model.prompts[1])] == [[]]


@pytest.mark.parametrize("reply", [CALL_STEPS, TEXT_STEPS], ids=["call", "text"])
@pytest.mark.parametrize(
    ("first", "second", "given"),
    [
        ("one", "two", []),
        ("one", None, []),
        (None, "two", []),
        ("one", "one", ["one"]),
    ],
    ids=["both thought", "the first thought", "the second thought", "thought the same"],
)
def test_of_two_replies_that_differ_only_in_thinking_neither_is_recalled(
    first, second, given, reply
):
    scripts = [[*(thinks(thought) if thought else ()), *reply] for thought in (first, second)]
    with running(model := Speaker("m", in_turn(*scripts, says("Well then.")))) as proxy:
        said = ask(proxy, QUESTION)
        assert ask(proxy, QUESTION) == said
        ask(proxy, QUESTION, said, *results(said), AND_TOMORROW)
    assert [thoughts(m) for m in replies_in(model.prompts[2])] == [given]


@pytest.mark.parametrize(
    ("question", "given"), [("Is it in Ulm?", ["of Ulm"]), ("Is it in Bonn?", [])]
)
def test_trivial_reply_is_recalled_only_with_the_same_history(question, given):
    respond = in_turn([*thinks("of Ulm"), *says("ok")], says("Well then."))
    with running(model := Speaker("m", respond)) as proxy:
        reply = ask(proxy, user("Is it in Ulm?"))
        ask(proxy, user(question), reply, AND_TOMORROW)
    assert [thoughts(m) for m in replies_in(model.prompts[1])] == [given]


def test_white_space_around_a_reply_is_ignored():
    """d6.25, and clients that strip."""
    respond = in_turn([*thinks("hm"), *says(f"\n{TEXT}\n\n")], says("Well then."))
    with running(model := Speaker("m", respond)) as proxy:
        ask(proxy, QUESTION)
        ask(proxy, QUESTION, {"role": "assistant", "content": TEXT}, AND_TOMORROW)
    assert [thoughts(m) for m in replies_in(model.prompts[1])] == [["hm"]]


def test_equal_replies_to_two_questions_keep_their_own_thinking():
    respond = in_turn(
        [*thinks("of Ulm"), *says(TEXT)], [*thinks("of Bonn"), *says(TEXT)], says("Well then.")
    )
    with running(model := Speaker("m", respond)) as proxy:
        history = [user("Is it in Ulm?")]
        history += [ask(proxy, *history), user("Is it not in Bonn?")]
        history += [ask(proxy, *history), AND_TOMORROW]
        ask(proxy, *history)
    assert [thoughts(m) for m in replies_in(model.prompts[2])] == [["of Ulm"], ["of Bonn"]]


def test_rearranged_history_gets_no_foreign_thinking():
    """Shortened, reordered or mixed: each message gets its own thinking or none."""

    def respond(prompt):
        part = prompt.messages[-1].parts[-1]
        if isinstance(part, ToolResultPart):
            return says(f"That was {part.output}, and no more.")
        if part.text.startswith("Call"):
            name = part.text.split()[1]
            return [*thinks(f"about {name}"), *calls(f"call_{name}", f'{{"at": "{name}"}}')]
        name = part.text.split()[-1]
        return [*thinks(f"about {name}"), *says(f"This much I know of {name}.")]

    with running(model := Speaker("m", respond)) as proxy:
        pieces = {}
        for conversation in (["Tell me of Ulm", "Call Bonn"], ["Tell me of Kiel", "Call Trier"]):
            history = []
            for text in conversation:
                reply = ask(proxy, *history, user(text))
                pieces[text.split()[-1]] = turn = [user(text), reply, *results(reply)]
                if len(turn) > 2:
                    turn.append(ask(proxy, *history, *turn))
                history += turn
        ask(proxy, *history)
        for count in (1, 2, 3, 4):
            for names in itertools.permutations(pieces, count):
                ask(proxy, *itertools.chain(*(pieces[name] for name in names)), user("So? Berlin"))
                given = [thoughts(m) for m in replies_in(model.prompts[-1])]
                assert [each for each in given if each] == [[f"about {name}"] for name in names]
        # The reply follows a different question; a call is matched by its id alone.
        swapped = {name: [user(f"What of {name}?"), *turn[1:]] for name, turn in pieces.items()}
        ask(proxy, *itertools.chain(*swapped.values()), user("So? Berlin"))
        given = [thoughts(m) for m in replies_in(model.prompts[-1])]
    assert given == [[], ["about Bonn"], [], [], ["about Trier"], []]


def test_messages_that_the_client_left_out_are_not_restored():
    """The client's messages are sent as they are, whatever else is in the log."""
    respond = in_turn(
        [*thinks("one"), *says("The first reply of all.")],
        [*thinks("two"), *says("The second reply of all.")],
        says("Well then."),
    )
    with running(model := Speaker("m", respond)) as proxy:
        first = ask(proxy, {"role": "system", "content": "Be brief."}, QUESTION)
        second = ask(proxy, QUESTION, first, AND_TOMORROW)
        ask(proxy, AND_TOMORROW, second, user("Thanks."))
    said = [
        (message.role, "".join(p.text for p in message.parts if isinstance(p, TextPart)))
        for message in model.prompts[2].messages
    ]
    assert said == [
        ("user", "And tomorrow?"),
        ("assistant", "The second reply of all."),
        ("user", "Thanks."),
    ]


# ---- arguments as other languages encode them

AS_WRITTEN = (
    '{"days": 2.0, "at": "Köln", "from": -0.0, "far": 1e21, "half": 0.5, "many": [1.0, {}]}'
)
WRITTEN_ANEW = {
    "as JavaScript does": ('{"days":2,"at":"Köln","from":0,"far":1e+21,"half":0.5,"many":[1,{}]}'),
    "sorted": json.dumps(json.loads(AS_WRITTEN), sort_keys=True),
    "escaped and indented": json.dumps(json.loads(AS_WRITTEN), ensure_ascii=True, indent=2),
    "as it was": AS_WRITTEN,
}


@pytest.mark.parametrize("arguments", WRITTEN_ANEW.values(), ids=WRITTEN_ANEW)
def test_reencoded_arguments_match(arguments):
    """B40: the model gets them in its own order and numbers, d6.3 notwithstanding."""
    respond = in_turn([*thinks("hidden"), *calls("c1", AS_WRITTEN)], says("Well then."))
    with running(model := Speaker("m", respond)) as proxy:
        reply = ask(proxy, QUESTION)
        written_anew = changed_call(arguments=arguments)(reply)
        ask(proxy, QUESTION, written_anew, *results(reply))
    [given] = replies_in(model.prompts[1])
    assert thoughts(given) == ["hidden"]
    assert json.dumps(given.parts[-1].arguments) == json.dumps(json.loads(AS_WRITTEN))
