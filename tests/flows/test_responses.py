"""The Responses API, whole, by OpenAI's own SDK: streams, tools, schemas, and what the log has."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import sqlite3
import zlib

import openai
import pytest
from llm.default_plugins.openai_models import AsyncResponses, Responses
from llm.parts import StreamEvent
from pydantic import BaseModel

from llmproxy.core import chat
from llmproxy.core.errors import RateLimited
from llmproxy.core.fingerprints import visible_text
from llmproxy.core.limits import Limits
from llmproxy.core.usage import Usage
from llmproxy.dialects import openai_responses
from tests.app.test_app import request
from tests.models import AsyncScript, usage
from tests.provider import begin_sse, playing
from tests.proxies import Running, running


class Boat(BaseModel):
    name: str


TOOLS = [
    {
        "type": "function",
        "name": "tide",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
        "strict": False,
    }
]


def thinking() -> AsyncScript:
    return AsyncScript("m", StreamEvent("reasoning", "Hm"), "Hel", "lo", usage(7, 3))


def calling() -> AsyncScript:
    return AsyncScript(
        "m",
        "Let me see.",
        StreamEvent("tool_call_name", "tide", tool_call_id="call_1"),
        StreamEvent("tool_call_args", '{"at": ', tool_call_id="call_1"),
        StreamEvent("tool_call_args", '"noon"}', tool_call_id="call_1"),
        usage(7, 3),
    )


def client(proxy: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)


def texts(model: AsyncScript) -> list[tuple[str, str]]:
    """What the model was asked last, in words."""
    return [(message.role, visible_text(message)) for message in model.prompts[-1].messages]


# ---- whole and streamed


def test_a_response_has_its_items_and_is_logged(llm_user_path):
    with running(thinking()) as proxy:
        response = client(proxy).responses.create(
            model="m", input="hi", instructions="Be brief.", metadata={"trip": "7"}
        )
        exchange = proxy.wait_for_report()
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].summary[0].text == "Hm"
    assert (response.output_text, response.status) == ("Hello", "completed")
    assert (response.instructions, response.metadata) == ("Be brief.", {"trip": "7"})
    assert (response.usage.input_tokens, response.usage.total_tokens) == (7, 10)
    assert response.id == f"resp_{exchange.id}"
    assert (exchange.dialect, exchange.status) == ("openai_responses", "ok")
    assert [message.role for message in exchange.turn.messages] == ["system", "user"]


def test_b36_a_stream_has_every_event_in_order_and_numbers_without_gaps(llm_user_path):
    with running(thinking()) as proxy:
        events = list(client(proxy).responses.create(model="m", input="hi", stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    ids = {event.item.id for event in events if hasattr(event, "item")}
    assert ids == {item.id for item in events[-1].response.output}


def test_the_stream_helper_gives_what_a_whole_response_has(llm_user_path):
    model = calling()
    with running(model) as proxy:
        with client(proxy).responses.stream(model="m", input="hi", tools=TOOLS) as stream:
            for event in stream:
                if event.type == "response.function_call_arguments.delta":
                    arguments = event.snapshot
            streamed = stream.get_final_response()
        whole = client(proxy).responses.create(model="m", input="hi", tools=TOOLS)
    assert arguments == '{"at": "noon"}'
    shown = [
        [item.model_dump(exclude={"id", "parsed_arguments"}) for item in response.output]
        for response in (streamed, whole)
    ]
    for items in shown:
        for content in items[0]["content"]:
            content.pop("parsed", None)
    assert shown[0] == shown[1]
    message, call = streamed.output
    assert (message.phase, call.name, call.call_id) == ("commentary", "tide", "call_1")
    assert [tool.name for tool in model.prompts[0].tools] == ["tide"]


def test_a_schema_is_parsed_whole_and_streamed(llm_user_path):
    model = AsyncScript("m", '{"name": ', '"Otter"}')
    with running(model) as proxy:
        responses = client(proxy).responses
        parsed = responses.parse(model="m", input="A boat?", text_format=Boat)
        with responses.stream(model="m", input="A boat?", text_format=Boat) as stream:
            streamed = stream.get_final_response()
    assert parsed.output_parsed == streamed.output_parsed == Boat(name="Otter")
    assert model.prompts[0].schema == parsed.text.format.schema_


def test_a_cut_response_is_incomplete(llm_user_path):
    def cut(response):
        response.response_json = {"object": "chat.completion", "choices": [CUT]}

    CUT = {"finish_reason": "length"}
    with running(AsyncScript("m", "Hel", cut)) as proxy:
        whole = client(proxy).responses.create(model="m", input="hi", max_output_tokens=16)
        *_, last = client(proxy).responses.create(model="m", input="hi", stream=True)
    assert last.type == "response.incomplete"
    for response in (whole, last.response):
        assert response.status == "incomplete"
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output[0].status == "incomplete"


def test_a_failure_inside_a_stream_ends_in_response_failed(llm_user_path):
    async def later(response):
        await asyncio.sleep(0)
        raise RateLimited("slow down", headers={"retry-after": "1"})

    with running(AsyncScript("m", "Hel", later)) as proxy:
        events = list(client(proxy).responses.create(model="m", input="hi", stream=True))
    assert events[-1].type == "response.failed"
    response = events[-1].response
    assert (response.status, response.error.code) == ("failed", "rate_limit_exceeded")
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_async_clients_get_the_same(llm_user_path):
    async def ask(url: str) -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as asking:
            whole = await asking.responses.create(model="m", input="hi")
            async with asking.responses.stream(model="m", input="hi") as stream:
                final = await stream.get_final_response()
            stored = await asking.responses.retrieve(final.id)
        assert stored.output == whole.output or stored.output_text == final.output_text
        return whole.output_text, final.output_text

    with running(thinking()) as proxy:
        assert asyncio.run(ask(proxy.url)) == ("Hello", "Hello")


# ---- what the log has


def test_b37_a_response_is_continued_by_its_id(llm_user_path):
    model = thinking()
    with running(model) as proxy:
        responses = client(proxy).responses
        first = responses.create(model="m", input="one", instructions="Be brief.")
        second = responses.create(model="m", input="two", previous_response_id=first.id)
        third = responses.create(
            model="m", input=[{"role": "user", "content": "three"}], previous_response_id=second.id
        )
        exchange = proxy.wait_for_report(3)
    assert texts(model) == [
        ("user", "one"),  # instructions are not carried over
        ("assistant", "Hello"),
        ("user", "two"),
        ("assistant", "Hello"),
        ("user", "three"),
    ]
    assert third.previous_response_id == second.id == f"resp_{exchange.previous_id}"
    assert exchange.link == "reply"
    assert "previous_response_id" not in exchange.request.body
    # What is stored says everything by itself.
    assert [item["role"] for item in exchange.request.body["input"] if "role" in item] == [
        *("user", "assistant", "user", "assistant", "user")
    ]


def test_a_response_of_an_earlier_run_is_continued_and_shown(llm_user_path):
    with running(thinking()) as proxy:
        first = client(proxy).responses.create(model="m", input="one")
    model = thinking()
    with running(model) as proxy:
        responses = client(proxy).responses
        assert responses.retrieve(first.id) == first
        responses.create(model="m", input="two", previous_response_id=first.id)
    assert [role for role, _ in texts(model)] == ["user", "assistant", "user"]


def test_c10_items_are_referred_to_by_their_ids(llm_user_path):
    model = calling()
    with running(model) as proxy:
        responses = client(proxy).responses
        first = responses.create(model="m", input="one", tools=TOOLS)
        responses.create(
            model="m",
            tools=TOOLS,
            input=[
                {"role": "user", "content": "one"},
                *({"type": "item_reference", "id": item.id} for item in first.output),
                {"type": "function_call_output", "call_id": "call_1", "output": "12:40"},
            ],
        )
    user, assistant, tool = model.prompts[-1].messages
    assert [type(part).__name__ for part in assistant.parts] == ["TextPart", "ToolCallPart"]
    assert tool.parts[0].output == "12:40"


@pytest.mark.parametrize(
    "body, status, code",
    [
        ({"previous_response_id": "resp_123", "input": "a"}, 400, "previous_response_not_found"),
        (
            {"previous_response_id": "resp_01k0aaaaaaaaaaaaaaaaaaaaaa", "input": "a"},
            400,
            "previous_response_not_found",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, 404, None),
        ({"input": "a", "background": True}, 400, None),
        ({"input": "a", "conversation": "conv_1"}, 400, None),
    ],
)
def test_what_is_not_in_the_log_is_refused_as_openai_does(llm_user_path, body, status, code):
    with running(thinking()) as proxy, pytest.raises(openai.APIStatusError) as caught:
        client(proxy).responses.create(model="m", **body)
    error = caught.value.body
    assert (caught.value.status_code, error["type"]) == (status, "invalid_request_error")
    assert error["code"] == code
    if code:
        id_ = body["previous_response_id"]
        assert error["message"] == f"Previous response with id '{id_}' not found."


def test_a_conversation_that_became_too_large_is_refused(llm_user_path):
    with running(thinking(), limits=Limits(body=20_000, shutdown_s=5)) as proxy:
        responses = client(proxy).responses
        first = responses.create(model="m", input="a" * 18_000)
        second = responses.create(model="m", input="a" * 15_000, previous_response_id=first.id)
        with pytest.raises(openai.APIStatusError, match="limit body") as caught:
            responses.create(model="m", input="a" * 15_000, previous_response_id=second.id)
    assert caught.value.status_code == 413


def test_without_a_log_nothing_can_be_referred_to(llm_user_path):
    with running(thinking(), log=False) as proxy:
        responses = client(proxy).responses
        first = responses.create(model="m", input="one")
        with pytest.raises(openai.BadRequestError, match="Previous response with id .* not found"):
            responses.create(model="m", input="two", previous_response_id=first.id)
        with pytest.raises(openai.NotFoundError):
            responses.retrieve(first.id)


def test_a_response_of_another_api_is_none_of_these(llm_user_path):
    with running(thinking()) as proxy:
        chat_ = client(proxy).chat.completions.create(
            model="m", messages=[{"role": "user", "content": "one"}]
        )
        with pytest.raises(openai.NotFoundError):
            client(proxy).responses.retrieve(chat_.id.replace("chatcmpl-", "resp_"))


def test_the_items_of_a_request_are_shown(llm_user_path):
    with running(thinking()) as proxy:
        responses = client(proxy).responses
        first = responses.create(model="m", input="one")
        second = responses.create(model="m", input="two", previous_response_id=first.id)
        newest_first = responses.input_items.list(second.id)
        oldest_first = responses.input_items.list(second.id, order="asc")
        with pytest.raises(openai.NotFoundError, match="Response with id 'resp_1' not found"):
            responses.input_items.list("resp_1")
    items = list(oldest_first)
    assert [item.type for item in items] == ["message", "reasoning", "message", "message"]
    assert [items[0].content, items[3].content] == ["one", "two"]
    assert (items[2].id, items[2].role) == (first.output[1].id, "assistant")
    assert list(newest_first) == items[::-1]
    assert len({item.id for item in items}) == 4


def test_tokens_are_counted_with_what_a_request_refers_to(llm_user_path):
    with running(m := thinking()) as proxy:
        count = client(proxy).responses.input_tokens.count
        asked = {"model": "m", "input": "How are you today?", "instructions": "Be brief."}
        short = count(**asked)
        with_tools = count(**asked, tools=TOOLS)
        first = client(proxy).responses.create(**asked)
        longer = count(model="m", input="And now?", previous_response_id=first.id)
        with pytest.raises(openai.BadRequestError, match="Previous response .* not found"):
            count(model="m", input="And now?", previous_response_id="resp_1")
        with pytest.raises(openai.BadRequestError, match="this field is required"):
            count(model="m")
        proxy.wait_for_report()
    assert (short.object, short.input_tokens) == ("response.input_tokens", 16)
    assert short.input_tokens < with_tools.input_tokens < 80
    assert short.input_tokens < longer.input_tokens
    assert (len(m.prompts), len(proxy.reports)) == (1, 1)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda c, id_: c.responses.cancel(id_), "no response is made in the background"),
        (lambda c, id_: c.responses.delete(id_), "responses are kept in the log"),
    ],
    ids=["cancel", "delete"],
)
def test_what_is_not_done_to_a_response_is_refused_in_words(llm_user_path, call, words):
    with running(thinking()) as proxy:
        sent = client(proxy).responses.create(model="m", input="one")
        with pytest.raises(openai.BadRequestError, match=words):
            call(client(proxy), sent.id)
        assert client(proxy).responses.retrieve(sent.id) == sent


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.chat.completions.list(),
        lambda c: c.chat.completions.retrieve("chatcmpl-1"),
        lambda c: c.chat.completions.delete("chatcmpl-1"),
        lambda c: c.chat.completions.update("chatcmpl-1", metadata={}),
        lambda c: c.chat.completions.messages.list("chatcmpl-1"),
        lambda c: c.conversations.create(),
        lambda c: c.batches.list(),
        lambda c: c.files.list(),
        lambda c: c.moderations.create(input="a"),
        lambda c: c.models.delete("m"),
        lambda c: c.images.generate(prompt="a"),
        lambda c: c.audio.speech.create(input="a", model="m", voice="alloy"),
    ],
)
def test_other_routes_of_openais_are_refused_in_words(llm_user_path, call):
    with running(thinking()) as proxy, pytest.raises(openai.APIStatusError) as caught:
        call(client(proxy))
    assert caught.value.status_code in (404, 405)
    assert "/v1/" in caught.value.body["message"]


def test_the_name_of_a_model_may_have_slashes(llm_user_path):
    with running(AsyncScript("org/m", "a")) as proxy:
        assert client(proxy).models.retrieve("org/m").id == "org/m"
        assert json.loads(request(proxy, "GET", "/v1/models/org/m")[2])["id"] == "org/m"


def test_a_response_is_shown_as_it_was_sent(llm_user_path):
    with running(calling()) as proxy:
        responses = client(proxy).responses
        sent = responses.create(model="m", input="hi", tools=TOOLS, temperature=0.5, user="ada")
        assert responses.retrieve(sent.id) == sent
        with pytest.raises(openai.NotFoundError, match="Response with id 'resp_1' not found"):
            responses.retrieve("resp_1")
        with pytest.raises(openai.NotFoundError, match="/nothing is not supported"):
            responses.retrieve(f"{sent.id}/nothing")
        with pytest.raises(openai.BadRequestError, match="not streamed"):
            responses.retrieve(sent.id, stream=True)


def test_a_conversation_by_ids_is_replayed(llm_user_path):
    """The ids of replays are new, and their replies are those of the recordings."""

    def talk(proxy: Running) -> list[str]:
        responses = client(proxy).responses
        first = responses.create(model="m", input="Hello", instructions="Be brief")
        shown = responses.retrieve(first.id)
        assert (shown.id, shown.output) == (first.id, first.output)
        second = responses.create(model="m", input="More", previous_response_id=first.id)
        return [first.output_text, second.output_text]

    with running(thinking()) as proxy:
        said = talk(proxy)
        proxy.wait_for_report(2)
    with running(replay="replay") as proxy:
        assert talk(proxy) == said == ["Hello", "Hello"]


def test_a_failed_response_is_shown_as_failed(llm_user_path):
    with running(AsyncScript("m", RateLimited("slow down"))) as proxy:
        with pytest.raises(openai.RateLimitError):
            client(proxy).responses.create(model="m", input="hi")
        exchange = proxy.wait_for_report()
        shown = client(proxy).responses.retrieve(f"resp_{exchange.id}")
        with pytest.raises(openai.BadRequestError, match="not found"):
            client(proxy).responses.create(
                model="m", input="a", previous_response_id=f"resp_{exchange.id}"
            )
    assert (shown.status, shown.error.code) == ("failed", "rate_limit_exceeded")


def test_a_damaged_response_is_neither_shown_nor_continued(llm_user_path):
    with running(model := thinking()) as proxy:
        responses = client(proxy).responses
        first = responses.create(model="m", input="one")
        proxy.wait_for_report()
        with sqlite3.connect(llm_user_path / "logs.db") as log:
            log.execute("update parts set text = 'Something else' where text = 'Hello'")
        for ask in (
            lambda: responses.retrieve(first.id),
            lambda: responses.create(model="m", input="two", previous_response_id=first.id),
        ):
            with pytest.raises(openai.InternalServerError, match="is damaged; see `llmproxy log"):
                ask()
    assert len(model.prompts) == 1


# ---- compaction


def test_a_conversation_is_compacted_and_goes_on(llm_user_path):
    model = AsyncScript("m", "Seven boats.", usage(9, 2))
    with running(model) as proxy:
        responses = client(proxy).responses
        history = [
            {"role": "user", "content": "There are 7 boats."},
            {"role": "assistant", "content": "I see."},
        ]
        compacted = responses.compact(model="m", input=history, instructions="Count.")
        assert model.prompts[0].messages[-1].parts[0].text.startswith("Write a summary")
        # The SDK's types have no user's messages in an output, and it would warn.
        text = compacted.model_dump_json(exclude_none=True, warnings=False)
        kept, compaction = json.loads(text)["output"]
        assert compacted.object == "response.compaction"
        assert compacted.usage.total_tokens == 11
        assert (kept["role"], compaction["type"]) == ("user", "compaction")
        responses.create(
            model="m", input=[kept, compaction, {"role": "user", "content": "How many?"}]
        )
    assert texts(model)[0] == ("user", "There are 7 boats.")
    assert texts(model)[1][1].endswith("Seven boats.")
    assert texts(model)[2] == ("user", "How many?")


@pytest.mark.parametrize("by_trigger", [False, True], ids=["compact", "trigger"])
def test_a_compacted_conversation_is_continued_by_its_id(llm_user_path, by_trigger):
    model = AsyncScript("m", "Seven boats.", usage(9, 2))
    history = [{"role": "user", "content": "There are 7 boats."}]
    with running(model) as proxy:
        responses = client(proxy).responses
        if by_trigger:
            asked = [*history, {"type": "compaction_trigger"}]
            compacted = responses.create(model="m", input=asked)
        else:
            compacted = responses.compact(model="m", input=history)
        after = responses.create(model="m", input="How many?", previous_response_id=compacted.id)
    *before, summary, question = texts(model)
    assert after.output_text == "Seven boats."
    assert before == ([] if by_trigger else [("user", "There are 7 boats.")])
    assert summary[1].endswith("Seven boats.")
    assert question == ("user", "How many?")


@pytest.mark.parametrize(
    "path, asked",
    [
        ("/v1/responses/compact", {}),
        ("/v1/responses/compact", {"input": ""}),
        ("/v1/responses/compact", {"input": [], "instructions": "Be brief."}),
        ("/v1/responses", {"input": [{"type": "compaction_trigger"}]}),
    ],
)
def test_nothing_can_not_be_compacted(llm_user_path, path, asked):
    with running(model := thinking()) as proxy:
        status, _, raw = request(proxy, "POST", path, {"model": "m", **asked})
    assert (status, json.loads(raw)["error"]["param"]) == (400, "input")
    assert model.prompts == []


# ---- errors


@pytest.mark.parametrize(
    "method, path, headers, body, status",
    [
        ("POST", "/v1/responses", {}, b"{", 400),
        ("POST", "/v1/responses/nothing/here", {}, b"{}", 405),
        ("GET", "/v1/responses", {}, b"", 405),
        ("GET", "/v1/responses/resp_1/input_items", {}, b"", 404),
        ("PUT", "/v1/responses/resp_1", {}, b"", 405),
        ("DELETE", "/v1/responses/resp_1", {}, b"", 400),
        ("POST", "/v1/responses", {"content-length": "99999999999"}, None, 413),
        ("POST", "/v1/responses", {"authorization": "Bearer wrong"}, b"{}", 401),
        ("GET", "/v1/responses/resp_1", {"authorization": "Bearer wrong"}, b"", 401),
    ],
)
def test_errors_have_openais_shape_from_the_first_byte_on(
    llm_user_path, method, path, headers, body, status
):
    with running(thinking(), keys=["good"]) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.putrequest(method, path)
        for name, value in ({"authorization": "Bearer good"} | headers).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        error = json.loads(response.read())["error"]
        connection.close()
    assert response.status == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/realtime?model=m"])
def test_a_websocket_is_refused_by_the_status_at_which_codex_goes_on_at_once(llm_user_path, path):
    """At 405 Codex 0.171 tries for seven seconds."""
    with running(thinking()) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.request(
            "GET",
            path,
            headers={
                "connection": "Upgrade",
                "upgrade": "websocket",
                "sec-websocket-version": "13",
                "sec-websocket-key": "9Dkz1v+c31wSD6x5l8tPuQ==",
                "openai-beta": "responses_websockets=2026-02-06",
            },
        )
        response = connection.getresponse()
        error = json.loads(response.read())["error"]
        connection.close()
    assert response.status == 426
    assert response.headers["upgrade"] == "HTTP/1.1"
    assert error["message"] == "this server speaks no WebSocket: send the request by HTTP POST"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_is_read(llm_user_path, coding):
    body = json.dumps({"model": "m", "input": "hi"}).encode()
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    with running(thinking()) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        headers = {"content-encoding": coding}
        connection.request("POST", "/v1/responses", packed, headers)
        assert connection.getresponse().status == 200
        connection.close()


# ---- OpenAI's own models, which llm asks by the same API


@pytest.mark.parametrize("kind", [Responses, AsyncResponses])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_encrypted_reasoning_goes_through_llms_plugin_and_back(llm_user_path, kind, stream):
    """B37: as OpenAI sent it, under OpenAI's id, next to its call, without a log too."""
    events: list[chat.Event] = [
        StreamEvent("reasoning", "Ask.", 0),
        StreamEvent(
            "reasoning",
            "",
            0,
            provider_metadata={"openai": {"encrypted_content": "gAAAA"}},
        ),
        StreamEvent("tool_call_name", "tide", 1, "call_1"),
        StreamEvent("tool_call_args", '{"at": "noon"}', 1, "call_1"),
        chat.Finish("tool_calls", usage=Usage(9, 4, reasoning_tokens=2)),
    ]

    def openai_answers(body, handler):
        renderer = openai_responses.StreamRenderer(chat.Envelope("68ab", 1, "real"))
        begin_sse(handler)
        handler.wfile.write(b"".join(renderer.start()))
        for event in events:
            handler.wfile.write(b"".join(renderer.feed(event)))

    with playing(openai_answers) as provider:
        model = kind("m", api_base=provider.url, supports_tools=True, reasoning=True)
        model.key = "sk-any"
        with running(model, log=False) as proxy:
            body = {
                "model": "m",
                "input": [{"role": "user", "content": "High tide?"}],
                "tools": TOOLS,
                "store": False,
                "include": ["reasoning.encrypted_content"],
            }
            responses = client(proxy).responses
            if stream:
                with responses.stream(**body) as streamed:
                    first = streamed.get_final_response()
            else:
                first = responses.create(**body)
            assert [item.type for item in first.output] == ["reasoning", "function_call"]
            assert first.output[0].encrypted_content == "gAAAA"
            assert first.usage.output_tokens_details.reasoning_tokens == 2
            body["input"] += [
                *(item.model_dump(exclude_none=True) for item in first.output),
                {"type": "function_call_output", "call_id": "call_1", "output": "12:40"},
            ]
            responses.create(**body)
        sent = provider.bodies[1]["input"]
    assert [item.get("type", item.get("role")) for item in sent] == [
        *("user", "reasoning", "function_call", "function_call_output")
    ]
    assert sent[1]["encrypted_content"] == "gAAAA"
    assert "id" not in sent[1]
