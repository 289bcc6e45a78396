"""The whole proxy with Anthropic's SDK and API."""

import asyncio
import http.client
import json

import anthropic
import openai
import pytest
from llm.parts import StreamEvent
from llm_anthropic import AsyncClaudeMessages

from llmproxy.core.limits import Limits
from tests.app.test_app import request, rows
from tests.backends.engine.test_plugins import anthropic_stream, claude
from tests.models import AsyncScript, EmbeddingScript, SyncScript, response_json, usage
from tests.provider import begin_sse, playing
from tests.proxies import running

QUESTION = [{"role": "user", "content": "hi"}]
WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}


def client(proxy):
    return anthropic.Anthropic(base_url=proxy.url, api_key="any", max_retries=0)


def ask(proxy, model="m", **fields):
    body = {"model": model, "max_tokens": 100, "messages": QUESTION} | fields
    return client(proxy).messages.create(**body)


@pytest.mark.parametrize("kind", [SyncScript, AsyncScript])
def test_sdk_reads_the_same_from_whole_and_streamed_responses(kind):
    counted = usage(10, 2, prompt_tokens_details={"cached_tokens": 4})
    with running(kind("m", "Hel", "lo 渐🌊", counted)) as proxy:
        whole = ask(proxy)
        with client(proxy).messages.stream(model="m", max_tokens=9, messages=QUESTION) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
    assert whole.content[0].text == final.content[0].text == text == "Hello 渐🌊"
    assert (whole.stop_reason, final.stop_reason) == ("end_turn", "end_turn")
    assert (whole.model, final.role) == ("m", "assistant")
    for message in (whole, final):
        counts = message.usage
        # Disjoint in this API: six uncached, four from the cache (B24).
        assert (counts.input_tokens, counts.cache_read_input_tokens) == (6, 4)
        assert counts.output_tokens == 2


def test_async_sdk_streams():
    async def read(url):
        async with anthropic.AsyncAnthropic(base_url=url, api_key="any") as sdk:
            async with sdk.messages.stream(model="m", max_tokens=9, messages=QUESTION) as stream:
                return await stream.get_final_text()

    with running(AsyncScript("m", "a", "b")) as proxy:
        assert asyncio.run(read(proxy.url)) == "ab"


def test_tool_loop_with_thinking_over_several_turns():
    """B20, B21, B25, B27, C7"""
    signed = {"anthropic": {"signature": "sig=="}}
    steps = [
        StreamEvent("reasoning", "hm", part_index=0),
        StreamEvent("reasoning", "", part_index=0, provider_metadata=signed),
        StreamEvent("tool_call_name", "weather", part_index=1, tool_call_id="toolu_x"),
        StreamEvent("tool_call_name", "weather", part_index=2, tool_call_id="toolu_y"),
        StreamEvent("tool_call_args", '{"at": "B"}', part_index=2, tool_call_id="toolu_y"),
        StreamEvent("tool_call_args", '{"at": "A"}', part_index=1, tool_call_id="toolu_x"),
    ]
    with running(model := AsyncScript("m", *steps)) as proxy:
        options = {"model": "m", "max_tokens": 3000, "tools": [WEATHER]}
        with client(proxy).messages.stream(**options, messages=QUESTION) as stream:
            answer = stream.get_final_message()
        assert [block.type for block in answer.content] == ["thinking", "tool_use", "tool_use"]
        assert answer.content[0].signature == "sig=="
        assert [block.input for block in answer.content[1:]] == [{"at": "A"}, {"at": "B"}]
        assert answer.stop_reason == "tool_use"
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": f"sun in {block.id}"}
            for block in answer.content[1:]
        ]
        turn = [
            {"role": "assistant", "content": [b.model_dump() for b in answer.content]},
            {"role": "user", "content": [*results, {"type": "text", "text": "and now?"}]},
        ]
        client(proxy).messages.create(**options, messages=[*QUESTION, *turn])
    _, reply, tool, after = model.prompts[1].messages
    assert reply.parts[0].provider_metadata == signed
    assert [part.output for part in tool.parts] == ["sun in toolu_x", "sun in toolu_y"]
    assert after.parts[0].text == "and now?"


def test_system_messages_anywhere_are_read_and_the_billing_line_removed():
    """B31, B32, C1"""
    messages = [*QUESTION, {"role": "system", "content": "mind this"}]
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=abc;"},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
    ]
    with running(model := AsyncScript("m", "ok")) as proxy:
        ask(proxy, system=system, messages=messages)
    heard = json.dumps([message.to_dict() for message in model.prompts[0].messages])
    assert "cch=" not in heard
    assert model.prompts[0].system == "Be brief."
    assert "mind this" in heard


class Status(Exception):
    def __init__(self, status):
        super().__init__("no")
        self.status_code = status


@pytest.mark.parametrize(
    ("status", "kind", "type_"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.APIStatusError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.APIStatusError, "overloaded_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_keep_their_type_and_status(status, kind, type_, stream):
    """B39, C9"""
    with running(AsyncScript("m", Status(status))) as proxy:
        with pytest.raises(kind) as caught:
            ask(proxy, stream=stream)
    assert caught.value.body["error"]["type"] == type_
    assert caught.value.response.headers["request-id"]


def test_error_event_ends_a_stream_without_a_cut():
    with running(AsyncScript("m", "so far", Status(529))) as proxy:
        said = []
        with pytest.raises(anthropic.APIStatusError) as caught:
            with client(proxy).messages.stream(
                model="m", max_tokens=9, messages=QUESTION
            ) as stream:
                said += stream.text_stream
        body = {"model": "m", "max_tokens": 9, "messages": QUESTION, "stream": True}
        status, _, text = request(proxy, "POST", "/v1/messages", body)
    assert caught.value.body["error"]["type"] == "overloaded_error"
    assert status == 200, "and not cut: the event is the end"
    assert text.endswith(b"\n\n")
    assert b"message_stop" not in text


def test_unknown_model_and_bad_field_have_anthropics_error_format():
    with running(AsyncScript("m", "a")) as proxy:
        with pytest.raises(anthropic.NotFoundError) as unknown:
            ask(proxy, "nobody-at-all")
        with pytest.raises(anthropic.BadRequestError) as bad:
            ask(proxy, messages=[{"role": "robot", "content": "x"}])
    assert unknown.value.body["error"]["type"] == "not_found_error"
    assert "messages[0].role" in bad.value.body["error"]["message"]


def test_stop_sequence_is_in_the_response():
    """B30"""
    with running(AsyncScript("m", "one two three")) as proxy:
        message = ask(proxy, stop_sequences=["two", "nine"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "two")
    assert message.content[0].text == "one "


def test_finish_reason_length_is_max_tokens():
    with running(AsyncScript("m", "a", response_json(stop_reason="max_tokens"))) as proxy:
        assert ask(proxy).stop_reason == "max_tokens"


def test_a_stream_begins_with_the_same_estimate_as_count_tokens():
    """B23"""
    with running(AsyncScript("m", "a")) as proxy:
        counted = client(proxy).messages.count_tokens(model="m", messages=QUESTION).input_tokens
        with client(proxy).messages.create(
            model="m", max_tokens=9, messages=QUESTION, stream=True
        ) as stream:
            start = next(iter(stream))
    assert start.message.usage.input_tokens == counted > 1


def test_tokens_are_counted_without_the_model():
    """B34"""
    with running(model := AsyncScript("m", "a")) as proxy:
        count = client(proxy).messages.count_tokens
        bare = count(model="m", messages=QUESTION).input_tokens
        options = {"model": "m", "messages": QUESTION, "system": "Be brief. " * 10}
        more = count(**options, tools=[WEATHER]).input_tokens
        status, _, _ = request(
            proxy,
            "POST",
            "/v1/messages/count_tokens?beta=true",
            {"model": "nobody", "messages": QUESTION},
        )
    assert 0 < bare < 20 < more
    assert (status, model.prompts) == (200, [])


def test_models_are_listed_in_the_clients_own_format():
    with running(AsyncScript("org/m", "a")) as proxy:
        anthropics = {model.id: model for model in client(proxy).models.list()}
        one = client(proxy).models.retrieve("org/m")
        openais = {
            model.id
            for model in openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x").models.list()
        }
    assert (anthropics["org/m"].type, one.display_name) == ("model", "org/m")
    assert "org/m" in openais


def test_claude_code_finds_every_model_that_chats():
    """Its discovery reads this list, and drops names that begin with neither word (d9)."""
    models = (AsyncScript("org/m", "a"), AsyncScript("claude-x", "b"), EmbeddingScript("e"))
    with running(*models) as proxy:
        headers = {"anthropic-version": "2023-06-01", "x-api-key": "any"}
        found = request(proxy, "GET", "/v1/models?limit=1000", headers=headers)
        entries = {entry["id"]: entry for entry in json.loads(found[2])["data"]}
        shown = [id for id in entries if id.startswith(("claude", "anthropic"))]
        answers = [
            client(proxy).messages.create(model=name, max_tokens=5, messages=QUESTION)
            for name in ("anthropic/org/m", "claude-x")
        ]
    assert {"anthropic/org/m", "claude-x", "anthropic/demo"} <= set(shown)
    assert "anthropic/claude-x" not in entries and not {"e", "anthropic/e"} & set(entries)
    assert entries["anthropic/org/m"]["display_name"] == "org/m"
    assert [answer.content[0].text for answer in answers] == ["a", "b"]
    assert answers[0].model == "anthropic/org/m"


@pytest.mark.parametrize("path", ["/", "/api/hello", "/health"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_are_answered_and_not_logged(method, path, llm_user_path):
    """B35"""
    with running() as proxy:
        assert request(proxy, method, path)[0] == 200
    assert rows(llm_user_path, "select count(*) from proxy_exchanges") == [(0,)]


def test_unknown_betas_and_fields_are_accepted():
    """B33, C2, C3"""
    body = {
        "model": "m",
        "max_tokens": 9,
        "messages": QUESTION,
        "context_management": {"edits": []},
        "something_new": 1,
        "tools": [WEATHER | {"defer_loading": True, "eager_input_streaming": True}],
    }
    headers = {"anthropic-beta": "new-beta-2027-01-01", "anthropic-version": "2023-06-01"}
    with running(AsyncScript("m", "a")) as proxy:
        status, got, _ = request(proxy, "POST", "/v1/messages?beta=true", body, headers)
    assert status == 200
    assert "something_new" in got["x-llmproxy-ignored"]


def test_map_replaces_the_models_that_claude_code_requests():
    with running(AsyncScript("m", "a"), maps=[("claude-*haiku*", "m")]) as proxy:
        message = ask(proxy, "claude-haiku-4-5")
        report = proxy.wait_for_report()
    assert message.model == "claude-haiku-4-5"
    assert (report.model_asked, report.model_used) == ("claude-haiku-4-5", "m")


def test_keepalive_is_a_ping():
    async def pause(_response):
        await asyncio.sleep(0.3)

    limits = Limits(first_event_s=0.05, keepalive_s=0.05, shutdown_s=5)
    with running(AsyncScript("m", pause, "a"), limits=limits) as proxy:
        body = {"model": "m", "max_tokens": 9, "messages": QUESTION, "stream": True}
        _, _, text = request(proxy, "POST", "/v1/messages", body)
        with client(proxy).messages.stream(model="m", max_tokens=9, messages=QUESTION) as stream:
            assert stream.get_final_text() == "a"
    assert text.count(b'event: ping\ndata: {"type":"ping"}\n\n') >= 2


def test_keys_are_accepted_in_either_header():
    with running(AsyncScript("m", "a"), keys=["any"]) as proxy:
        assert ask(proxy).content[0].text == "a"
        with pytest.raises(anthropic.AuthenticationError):
            anthropic.Anthropic(base_url=proxy.url, api_key="wrong", max_retries=0).messages.create(
                model="m", max_tokens=9, messages=QUESTION
            )


def padded_stream(_body, handler):
    """Send Anthropic's bytes as in reality, with pings and padding before closing braces."""
    begin_sse(handler)
    lines = [
        'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1",'
        '"type":"message","role":"assistant","model":"claude-real","content":[],'
        '"stop_reason":null,"stop_sequence":null,'
        '"usage":{"input_tokens":12,"output_tokens":1}}        }\n\n',
        'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        '"content_block":{"type":"text","text":""}             }\n\n',
        'event: ping\ndata: {"type": "ping"}\n\n',
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"Good"}     }\n\n',
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":" day"}  }\n\n',
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":0     }\n\n',
        'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn",'
        '"stop_sequence":null},"usage":{"output_tokens":5}            }\n\n',
        'event: message_stop\ndata: {"type":"message_stop"   }\n\n',
    ]
    for line in lines:
        handler.wfile.write(line.encode())


def test_openai_client_streams_from_claude_byte_for_byte():
    with playing(padded_stream) as provider:
        model = claude(AsyncClaudeMessages, provider)
        with running(model) as proxy:
            sdk = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x")
            history = [
                {"role": "system", "content": "You help a novelist."},
                {"role": "user", "content": "hello"},
            ]
            chunks = list(
                sdk.chat.completions.create(
                    model=model.model_id,
                    messages=history,
                    stream=True,
                    frequency_penalty=0,
                    presence_penalty=0,
                    stream_options={"include_usage": True},
                )
            )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Good day"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (12, 5)
    [body] = provider.bodies
    assert body["system"] == "You help a novelist."
    assert "frequency_penalty" not in body


def test_openai_client_uses_tools_with_a_thinking_claude():
    answer = anthropic_stream(
        (
            {"type": "thinking", "thinking": "", "signature": ""},
            [
                {"type": "thinking_delta", "thinking": "hm"},
                {"type": "signature_delta", "signature": "sig"},
            ],
        ),
        (
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
            [{"type": "input_json_delta", "partial_json": '{"at": 1}'}],
        ),
        stop_reason="tool_use",
    )
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    with playing(answer) as provider:
        model = claude(AsyncClaudeMessages, provider)
        with running(model) as proxy:
            sdk = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x")
            choice = sdk.chat.completions.create(
                model=model.model_id, messages=QUESTION, tools=[tool]
            ).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning_content == "hm"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert (call.id, call.function.arguments) == ("toolu_1", '{"at": 1}')


def test_events_are_in_the_documented_order():
    with running(AsyncScript("m", "a")) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        body = {"model": "m", "max_tokens": 9, "messages": QUESTION, "stream": True}
        connection.request("POST", "/v1/messages", json.dumps(body))
        lines = connection.getresponse().read().decode().split("\n\n")
        connection.close()
    events = [line.partition("\n")[0].removeprefix("event: ") for line in lines if line]
    assert events == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
