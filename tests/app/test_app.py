"""The whole proxy with real clients: the openai SDK, curl, http.client."""

import asyncio
import gzip
import http.client
import json
import shutil
import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
import pytest
from llm.parts import StreamEvent

from llmproxy.conversations.matching import Matcher
from llmproxy.core.limits import Limits
from llmproxy.recorder.writer import Writer
from tests.models import AsyncScript, EmbeddingScript, SyncScript, response_json, tool_call, usage
from tests.proxies import running

QUESTION = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


def client(proxy, **settings):
    return openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0, **settings)


def ask(proxy, model="m", **fields):
    return client(proxy).chat.completions.create(model=model, messages=QUESTION, **fields)


def request(proxy, method, path, body=None, headers=None):
    """Send a request by http.client; return status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    try:
        body = json.dumps(body).encode() if isinstance(body, dict | list) else body
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def error_of(body: bytes) -> dict:
    return json.loads(body)["error"]


# ---- responses


@pytest.mark.parametrize("kind", [SyncScript, AsyncScript])
def test_sdk_reads_the_same_from_whole_and_streamed_responses(kind):
    steps = ("Hel", "lo 渐🌊\u2028", usage(3, 2), response_json(finish_reason="stop"))
    with running(kind("m", *steps)) as proxy:
        whole = ask(proxy)
        chunks = list(ask(proxy, stream=True, stream_options={"include_usage": True}))
    assert whole.choices[0].message.content == "Hello 渐🌊\u2028"
    assert whole.usage.total_tokens == 5
    assert whole.model == "m"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello 渐🌊\u2028"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"


def test_async_sdk_streams():
    async def read(url):
        async with openai.AsyncOpenAI(base_url=url, api_key="any") as sdk:
            stream = await sdk.chat.completions.create(model="m", messages=QUESTION, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream])

    with running(AsyncScript("m", "a", "b")) as proxy:
        assert asyncio.run(read(f"{proxy.url}/v1")) == "ab"


def test_tool_loop_with_parallel_calls_over_the_sdks_stream_helper():
    """B1-B5"""
    steps = [
        StreamEvent("text", "Looking."),
        StreamEvent("tool_call_name", "weather", tool_call_id="x"),
        StreamEvent("tool_call_name", "weather", tool_call_id="y"),
        StreamEvent("tool_call_args", '{"at": ', tool_call_id="y"),
        StreamEvent("tool_call_args", '{"at": "A"}', tool_call_id="x"),
        StreamEvent("tool_call_args", '"B"}', tool_call_id="y"),
    ]
    first = AsyncScript("m", *steps)
    with running(first) as proxy:
        with client(proxy).chat.completions.stream(
            model="m", messages=QUESTION, tools=[WEATHER]
        ) as stream:
            answer = stream.get_final_completion().choices[0]
        calls = answer.message.tool_calls
        assert [(c.id, c.function.arguments) for c in calls] == [
            ("x", '{"at": "A"}'),
            ("y", '{"at": "B"}'),
        ]
        assert answer.finish_reason == "tool_calls"
        results = [
            {"role": "tool", "tool_call_id": c.id, "content": f"sun in {c.id}"} for c in calls
        ]
        messages = [*QUESTION, answer.message.model_dump(exclude_none=True), *results]
        client(proxy).chat.completions.create(model="m", messages=messages, tools=[WEATHER])
    heard = [part.output for part in first.prompts[1].messages[2].parts]
    assert heard == ["sun in x", "sun in y"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_with_functions_gets_a_function_call_and_sends_it_back(stream):
    """The form before tools, which has one call, no id and a role of its own for the result."""
    steps = [
        StreamEvent("tool_call_name", "weather", tool_call_id="x"),
        StreamEvent("tool_call_args", '{"at": ', tool_call_id="x"),
        StreamEvent("tool_call_args", '"A"}', tool_call_id="x"),
        StreamEvent("tool_call_name", "weather", tool_call_id="y"),
        StreamEvent("tool_call_args", "{}", tool_call_id="y"),
    ]
    model = AsyncScript("m", *steps)
    with running(model) as proxy:
        sdk = client(proxy).chat.completions
        asked = {"model": "m", "messages": QUESTION, "functions": [WEATHER["function"]]}
        if stream:
            chunks = [chunk.choices[0] for chunk in sdk.create(stream=True, **asked)]
            calls = [c.delta.function_call for c in chunks if c.delta.function_call]
            assert [call.name for call in calls] == ["weather", *[None] * (len(calls) - 1)]
            arguments = "".join(call.arguments or "" for call in calls)
            call = {"name": "weather", "arguments": arguments}
            assert all(choice.delta.tool_calls is None for choice in chunks)
            message = {"role": "assistant", "content": None, "function_call": call}
            finish_reason = chunks[-1].finish_reason
        else:
            [choice] = sdk.create(**asked).choices
            message, finish_reason = choice.message.model_dump(), choice.finish_reason
            assert message["tool_calls"] is None
        assert message["function_call"] == {"name": "weather", "arguments": '{"at": "A"}'}
        assert finish_reason == "function_call"
        result = {"role": "function", "name": "weather", "content": "sun"}
        sdk.create(**asked | {"messages": [*QUESTION, message, result]})
    assert [part.output for part in model.prompts[1].messages[2].parts] == ["sun"]
    assert model.prompts[1].messages[1].parts[0].arguments == {"at": "A"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tools", ["functions", "tools"])
def test_calls_that_a_client_with_functions_cannot_be_shown_are_listed(stream, tools):
    """In the header of a whole response; a stream's headers are sent before the calls come."""
    calls = [tool_call("weather", {"at": at}, at) for at in "ABC"]
    asked = {"functions": [WEATHER["function"]]} if tools == "functions" else {"tools": [WEATHER]}
    with running(AsyncScript("m", "so", *calls, usage(3, 2))) as proxy:
        sdk = client(proxy).chat.completions.with_raw_response
        raw = sdk.create(model="m", messages=QUESTION, stream=stream, **asked)
        if stream:
            assert list(raw.parse())
        exchange = proxy.wait_for_report()
    left_out = "function_call (2 more of the model's)" if tools == "functions" else None
    assert raw.headers.get("x-llmproxy-ignored") == (None if stream else left_out)
    assert exchange.ignored == ((left_out,) if left_out else ())


@pytest.mark.parametrize("counted", [{"input": 3}, {"output": 2}, {}])
def test_a_stream_lists_an_estimate_of_either_count(counted):
    """As far as the model's last run tells: the header is sent before the counts."""
    model = AsyncScript("m", "so", lambda response: response.set_usage(**counted))
    with running(model) as proxy:
        sdk = client(proxy).chat.completions.with_raw_response
        asked = {"model": "m", "messages": QUESTION, "stream_options": {"include_usage": True}}
        answers = [sdk.create(stream=True, **asked) for _ in range(2)]
        chunks = [list(answer.parse()) for answer in answers]
    assert answers[1].headers["x-llmproxy-ignored"] == "usage"
    assert all(isinstance(c[-1].usage.total_tokens, int) for c in chunks)


def test_a_function_call_without_arguments_has_an_empty_object():
    with running(SyncScript("m", tool_call("weather", {}))) as proxy:
        asked = {"functions": [WEATHER["function"]]}
        whole = ask(proxy, **asked).choices[0].message.function_call
        chunks = [
            chunk.choices[0].delta.function_call for chunk in ask(proxy, stream=True, **asked)
        ]
    streamed = "".join(call.arguments for call in chunks if call)
    assert (whole.name, whole.arguments, streamed) == ("weather", "{}", "{}")


def test_a_client_with_tools_and_functions_gets_tool_calls():
    with running(SyncScript("m", tool_call("weather", {}))) as proxy:
        choice = ask(proxy, tools=[WEATHER], functions=[{"name": "f"}]).choices[0]
    assert choice.message.tool_calls[0].function.name == "weather"
    assert (choice.message.function_call, choice.finish_reason) == (None, "tool_calls")


def test_call_without_arguments_reaches_the_client():
    with running(SyncScript("m", tool_call("weather", {}))) as proxy:
        call = ask(proxy, tools=[WEATHER]).choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("weather", "{}")


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_in_tags_is_reasoning_if_requested(stream, llm_user_path):
    steps = ["<thi", "nk>let me ", "see</think>\n\n4 <", " 5"]
    with running(AsyncScript("m", *steps), think_tags=True) as proxy:
        if stream:
            deltas = [c.choices[0].delta for c in ask(proxy, stream=True)]
            text = "".join(delta.content or "" for delta in deltas)
            thought = "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas)
        else:
            message = ask(proxy).choices[0].message
            text, thought = message.content, message.reasoning_content
    assert (thought, text) == ("let me see", "4 < 5")
    sql = "select type, text from parts join turns on message_hash = tip_message_hash"
    assert rows(llm_user_path, sql) == [("reasoning", "let me see"), ("text", "4 < 5")]


def test_thinking_in_tags_is_text_by_default():
    with running(AsyncScript("m", "<think>so</think>4")) as proxy:
        assert ask(proxy).choices[0].message.content == "<think>so</think>4"


def test_stop_sequence_in_thinking_is_ignored():
    model = AsyncScript("m", "<think>STOP it</think>go on STOP here")
    with running(model, think_tags=True) as proxy:
        assert ask(proxy, stop="STOP").choices[0].message.content == "go on "


def test_ignored_fields_are_listed_in_a_header():
    with running(AsyncScript("m", "a", usage(3, 1))) as proxy:
        raw = client(proxy).chat.completions.with_raw_response.create(
            model="m", messages=QUESTION, seed=7, store=True, extra_body={"naïve\n": 1}
        )
    assert raw.headers["x-llmproxy-ignored"] == "na\\u00efve\\n, store, seed"


def test_too_many_ignored_fields_are_counted():
    with running(AsyncScript("m", "a", usage(3, 1))) as proxy:
        body = {"model": "m", "messages": QUESTION} | {f"field_{i:04}": 1 for i in range(400)}
        _, headers, _ = request(proxy, "POST", "/v1/chat/completions", body)
    listed = headers["x-llmproxy-ignored"]
    assert len(listed) < 2100
    assert listed.endswith(f"and {400 - listed.count('field_')} more")


def test_megabyte_tokens_and_surrogates_are_streamed():
    """B18"""
    with running(AsyncScript("m", "x" * 2**20, "\ud83d", "\ude00", "\udc00", "\x00")) as proxy:
        text = "".join(c.choices[0].delta.content or "" for c in ask(proxy, stream=True))
    assert text == "x" * 2**20 + "😀\ufffd\x00"


def test_json_with_lone_surrogates_is_cleaned_and_logged(llm_user_path):
    """B18: legal JSON that neither UTF-8 nor SQLite accepts."""
    body = b'{"model": "m", "messages": [{"role": "user", "content": "a\\ud800b"}]}'
    with running(model := AsyncScript("m", "ok")) as proxy:
        status, _, _ = request(proxy, "POST", "/v1/chat/completions", body)
    assert status == 200
    assert model.prompts[0].prompt == "a\ufffdb"
    assert rows(llm_user_path, "select count(*) from turns") == [(1,)]


def test_gzip_body_is_read():
    body = gzip.compress(json.dumps({"model": "m", "messages": QUESTION}).encode())
    with running(AsyncScript("m", "a")) as proxy:
        path, gzipped = "/v1/chat/completions", {"content-encoding": "gzip"}
        assert request(proxy, "POST", path, body, gzipped)[0] == 200
        status, _, text = request(proxy, "POST", path, body, {"content-encoding": "br"})
    assert status == 415
    assert error_of(text)["type"] == "invalid_request_error"


# ---- errors


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "this field is required"),
        ({"n": 2}, 400, "n", "only 1 is supported"),
        (
            {"model": "nobody"},
            404,
            "model",
            "there is no model 'nobody' here; GET /v1/models lists them",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
            400,
            "messages[0].content[0].image_url.url",
            "expected an http(s) or data: URL",
        ),
    ],
)  # fmt: skip
def test_bad_requests_name_the_field(fields, status, param, message):
    with running(AsyncScript("m", "a")) as proxy:
        body = {"model": "m", "messages": QUESTION} | fields
        got, headers, text = request(proxy, "POST", "/v1/chat/completions", body)
    assert got == status
    error = error_of(text)
    prefix = "" if error["code"] else f"{param}: "
    assert (error["param"], error["message"]) == (param, f"{prefix}{message}")
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "bird", "content": [{"text": "Hi"}]}]}),
        ("/v1/responses", {"input": "Hi", "tools": "none"}),
        ("/v1/messages", {"messages": [{"content": "Hi"}]}),
        ("/api/generate", {"prompt": "Hi", "options": 1}),
    ],
)
def test_a_bad_request_is_logged_under_its_model_with_its_text(path, fields):
    with running(AsyncScript("m", "a")) as proxy:
        assert request(proxy, "POST", path, {"model": "m"} | fields)[0] == 400
        exchange = proxy.wait_for_report()
    assert (exchange.model_asked, exchange.last_message) == ("m", "Hi")
    assert exchange.status == "error" and exchange.model_used is None


@pytest.mark.parametrize(
    ("send", "message"),
    [
        (
            lambda client: client.chat.completions.create(model="m", messages=[{"role": "user"}]),
            "messages[0].content: this field is required",
        ),
        (
            lambda client: client.responses.create(model="m", input=[{"role": "user"}]),
            "input[0].content: this field is required",
        ),
        (
            lambda client: client.completions.create(model="m", prompt="x", best_of=2),
            "best_of: only 1 is supported",
        ),
        (
            lambda client: client.embeddings.create(model="m", input=[]),
            "input: there is nothing to embed",
        ),
    ],
)
def test_the_sdks_text_of_an_error_names_the_field_once(send, message):
    with running(AsyncScript("m", "a")) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)
        with pytest.raises(openai.BadRequestError) as caught, client:
            send(client)
    assert str(caught.value) == f"Error code: 400 - {message}"


def test_unknown_model_is_the_sdks_not_found_error():
    with running() as proxy, pytest.raises(openai.NotFoundError) as caught:
        ask(proxy, "nobody")
    assert caught.value.code == "model_not_found"


class RateLimit(Exception):
    """An error as an SDK raises it."""

    status_code = 429

    class response:  # noqa: N801
        status_code = 429
        headers = {"retry-after": "7"}  # noqa: RUF012


@pytest.mark.parametrize("stream", [False, True])
def test_upstream_refusal_before_the_first_event_is_a_real_status(stream):
    """B14, B39"""
    with running(AsyncScript("m", RateLimit("slow down"))) as proxy:
        with pytest.raises(openai.RateLimitError) as caught:
            ask(proxy, stream=stream)
    assert caught.value.response.headers["retry-after"] == "7"
    assert "slow down" in str(caught.value)


def test_failure_in_a_stream_is_an_error_frame_and_a_cut_body():
    """B11"""
    with running(AsyncScript("m", "so far", RuntimeError("gone"))) as proxy:
        said = []
        with pytest.raises(openai.APIError, match="the model 'm' failed: RuntimeError: gone"):
            for chunk in ask(proxy, stream=True):
                said.append(chunk.choices[0].delta.content)
        body = {"model": "m", "messages": QUESTION, "stream": True}
        with pytest.raises(http.client.IncompleteRead) as cut:
            request(proxy, "POST", "/v1/chat/completions", body)
    assert said == ["", "so far"]
    assert b"[DONE]" not in cut.value.partial
    assert b'"finish_reason":"' not in cut.value.partial


def test_internal_error_is_a_500_without_its_text(monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret")

    with running(AsyncScript("m", "a")) as proxy:
        monkeypatch.setattr("llmproxy.dialects.openai_chat.render_response", broken)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(proxy)
        assert "secret" not in str(caught.value)
        assert "internal error" in str(caught.value)
        monkeypatch.undo()
        assert ask(proxy).choices[0].message.content == "a"
    assert "RuntimeError: secret" in caplog.text


# ---- waiting, disconnects


def silent(began: threading.Event, go_on: threading.Event):
    async def wait(_response):
        began.set()
        while not go_on.is_set():
            await asyncio.sleep(0.01)

    return wait


def test_keepalive_is_sent_while_the_model_is_silent():
    """B13, B14"""
    go_on = threading.Event()
    limits = Limits(first_event_s=0.05, keepalive_s=0.05)
    model = AsyncScript("m", silent(threading.Event(), go_on), "a")
    with running(model, limits=limits) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        body = json.dumps({"model": "m", "messages": QUESTION, "stream": True})
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        lines = [response.readline() for _ in range(6)]
        go_on.set()
        rest = response.read()
        connection.close()
    assert lines[0].startswith(b'data: {"id":"chatcmpl-')
    assert lines.count(b": ping\n") == 2
    assert rest.endswith(b"data: [DONE]\n\n")


def test_keepalive_is_sent_while_events_send_nothing():
    """B13: a server tool's arguments, which this API does not have."""

    async def pause(_response):
        await asyncio.sleep(0.02)

    call = StreamEvent("tool_call_name", "search", tool_call_id="s", server_executed=True)
    more = StreamEvent("tool_call_args", " ", tool_call_id="s", server_executed=True)
    model = AsyncScript("m", call, *[more, pause] * 20, "a")
    with running(model, limits=Limits(keepalive_s=0.1, shutdown_s=5)) as proxy:
        body = {"model": "m", "messages": QUESTION, "stream": True}
        _, _, text = request(proxy, "POST", "/v1/chat/completions", body)
    assert text.count(b": ping\n\n") >= 2
    assert b"search" not in text


def test_text_is_not_held_back_for_the_commit(llm_user_path):
    """Only the end of the response waits for it."""
    with running(AsyncScript("m", "text"), limits=Limits(log_wait_s=3, shutdown_s=5)) as proxy:
        ask(proxy)
        lock = sqlite3.connect(llm_user_path / "logs.db", isolation_level=None)
        lock.execute("begin immediate")
        began = time.monotonic()
        came = {}
        for chunk in ask(proxy, stream=True):
            choice = chunk.choices[0]
            came.setdefault(choice.finish_reason or choice.delta.content, time.monotonic() - began)
        lock.execute("rollback")
        lock.close()
    assert came["text"] < 1.5
    assert came["stop"] >= 0.4, "until the row was safe elsewhere"


def test_on_exchange_is_called_once_however_often_it_ends(llm_user_path):
    with running(AsyncScript("m", "a", RuntimeError("gone")), AsyncScript("n", "b")) as proxy:
        with pytest.raises(openai.APIError):
            list(ask(proxy, stream=True))
        list(ask(proxy, "n", stream=True))
        proxy.wait_for_report(2)
    assert [report.status for report in proxy.reports] == ["error", "ok"]
    assert rows(llm_user_path, "select count(*) from proxy_exchanges") == [(2,)]


def test_a_broken_terminal_fails_no_response(caplog):
    def broken(_exchange):
        raise UnicodeEncodeError("ascii", "→", 0, 1, "no")

    with running(AsyncScript("m", "a")) as proxy:
        proxy.proxy.app._on_exchange = broken
        assert ask(proxy).choices[0].message.content == "a"
    assert "could not log or report the end" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", [(), ("so far",)], ids=["silent", "after text"])
def test_disconnect_stops_the_model_within_a_second(stream, before, llm_user_path):
    """B15, B16"""
    began = threading.Event()
    model = AsyncScript("m", *before, silent(began, threading.Event()))
    with running(model) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        body = json.dumps({"model": "m", "messages": QUESTION, "stream": stream})
        connection.request("POST", "/v1/chat/completions", body)
        assert began.wait(10)
        hung_up = time.monotonic()
        connection.close()
        report = proxy.wait_for_report()
        assert time.monotonic() - hung_up < 3
        assert report.status == "cancelled"
        while not model.closed and time.monotonic() - hung_up < 3:
            time.sleep(0.01)
        assert model.closed == 1
    expected = [("so far",)] if before else []
    sql = "select parts.text from turns join parts on message_hash = tip_message_hash"
    assert rows(llm_user_path, sql) == expected


def test_two_streams_share_nothing():
    """B17"""
    models = [AsyncScript(f"m{i}", *[f"{i}.{j} " for j in range(200)]) for i in range(4)]
    with running(*models) as proxy, ThreadPoolExecutor(4) as pool:

        def read(i):
            chunks = ask(proxy, f"m{i}", stream=True)
            return "".join(c.choices[0].delta.content or "" for c in chunks)

        texts = list(pool.map(read, range(4)))
    assert texts == ["".join(f"{i}.{j} " for j in range(200)) for i in range(4)]


# ---- the log


def rows(llm_user_path, sql):
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        return db.execute(sql).fetchall()


def test_fifty_parallel_requests_are_all_answered_and_logged(llm_user_path):
    model = AsyncScript("m", "a", lambda _: asyncio.sleep(0.02), "b", usage(1, 2))
    limits = Limits(log_wait_s=30, shutdown_s=5)
    with running(model, limits=limits) as proxy, ThreadPoolExecutor(50) as pool:

        def one(i):
            question = [{"role": "user", "content": f"question {i}"}]
            create = client(proxy).chat.completions.create
            if i % 2:
                return create(model="m", messages=question).choices[0].message.content
            chunks = create(model="m", messages=question, stream=True)
            return "".join(c.choices[0].delta.content or "" for c in chunks)

        assert list(pool.map(one, range(50))) == ["ab"] * 50
        # Complete responses are in the file before the server closes it.
        assert rows(llm_user_path, "select count(*) from turns") == [(50,)]
        assert proxy.warnings == []
    said = rows(llm_user_path, "select distinct text from parts where text like 'question %'")
    assert len(said) == 50


def test_turn_is_logged_as_llm_would(llm_user_path):
    counted = usage(7, 2, prompt_tokens_details={"cached_tokens": 5})
    steps = ("hello", counted, lambda r: r.set_resolved_model("m-2026"))
    with running(AsyncScript("m", *steps)) as proxy:
        whole = ask(proxy, temperature=0.5, max_completion_tokens=9)
    [turn] = rows(
        llm_user_path,
        "select id, model, resolved_model, options_json, input_tokens, output_tokens,"
        " token_details, duration_ms >= 0 from turns",
    )
    assert whole.id == f"chatcmpl-{turn[0]}"
    assert turn[1:3] == ("m", "m-2026")
    assert json.loads(turn[3]) == {"temperature": 0.5, "max_tokens": 9}
    assert turn[4:] == (7, 2, '{"prompt_tokens_details": {"cached_tokens": 5}}', 1)


def test_log_can_be_off(llm_user_path):
    with running(AsyncScript("m", "a"), log=False) as proxy:
        ask(proxy)
    assert not (llm_user_path / "logs.db").exists()


def test_llm_logs_off_takes_effect_at_once(llm_user_path):
    """d6.16"""
    with running(AsyncScript("m", "a")) as proxy:
        ask(proxy)
        (llm_user_path / "logs-off").touch()
        ask(proxy)
        (llm_user_path / "logs-off").unlink()
        ask(proxy)
    assert rows(llm_user_path, "select count(*) from turns") == [(2,)]


def test_locked_log_fails_no_response(llm_user_path):
    with running(AsyncScript("m", "a"), limits=Limits(log_wait_s=0.1, shutdown_s=5)) as proxy:
        ask(proxy)
        lock = sqlite3.connect(llm_user_path / "logs.db", isolation_level=None)
        lock.execute("begin immediate")
        began = time.monotonic()
        for _ in range(10):
            assert ask(proxy).choices[0].message.content == "a"
        assert time.monotonic() - began < 5
        lock.execute("rollback")
        lock.close()
    assert rows(llm_user_path, "select count(*) from turns") == [(11,)]


def test_a_lookup_that_takes_too_long_leaves_one_thread_and_costs_no_response(monkeypatch):
    """However many requests wait behind it, and the next one after it is matched again."""
    released = threading.Event()
    match = Matcher.match

    def slow(self, *arguments, **options):
        released.wait(10)
        return match(self, *arguments, **options)

    def ask_with_history(proxy):
        earlier = {"role": "assistant", "content": "never recorded"}
        return client(proxy).chat.completions.create(
            model="m", messages=[*QUESTION, earlier, *QUESTION]
        )

    monkeypatch.setattr(Matcher, "match", slow)
    with running(AsyncScript("m", "a"), limits=Limits(log_wait_s=0.05, shutdown_s=5)) as proxy:
        ask(proxy)
        ask_with_history(proxy)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: ask_with_history(proxy), range(16)))
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("llmproxy-matcher") == 1
        released.set()
        messages = [*QUESTION, {"role": "assistant", "content": "a"}, *QUESTION]
        for _ in range(50):  # until the thread has ended
            client(proxy).chat.completions.create(model="m", messages=messages)
            if proxy.wait_for_report(len(proxy.reports)).previous_id is not None:
                break
        else:
            pytest.fail("no request was matched again")


def test_a_short_request_without_history_is_not_looked_up(monkeypatch):
    asked = []
    match = Matcher.match

    def seen(self, messages, *arguments, **options):
        asked.append(len(messages))
        return match(self, messages, *arguments, **options)

    monkeypatch.setattr(Matcher, "match", seen)
    with running(AsyncScript("m", "a")) as proxy:
        ask(proxy)
        quote = "as long as the task of a sub-agent, which may be the argument of a call"
        client(proxy).chat.completions.create(
            model="m", messages=[*QUESTION, {"role": "user", "content": quote}]
        )
    assert asked == [2]


# ---- when it is logged


@pytest.mark.parametrize(
    ("model", "written"),
    [
        (AsyncScript("m", "a", "b"), ["ok"]),  # at once
        (AsyncScript("m", "a", lambda response: asyncio.sleep(0.05)), ["running", "ok"]),
        (AsyncScript("m", ValueError("no")), ["error"]),
        (SyncScript("m", "a", "b"), ["running", "ok"]),  # it may crash the process
    ],
    ids=["at once", "waits", "fails", "in this process"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_beginning_is_logged_unless_it_is_over_by_then(model, written, stream, monkeypatch):
    states = []
    write = Writer.write
    monkeypatch.setattr(Writer, "write", lambda w, e: states.append(e.status) or write(w, e))
    with running(model) as proxy:
        body = {"model": "m", "stream": stream, "messages": QUESTION}
        request(proxy, "POST", "/v1/chat/completions", body)
    assert states == written


# ---- the proxy's own time

THINKING_S = 0.1


async def think(response):
    await asyncio.sleep(THINKING_S)


def overhead_of(headers):
    """Read the proxy's own time, in ms, from a server-timing header that has nothing else."""
    name, _, ms = headers["server-timing"].partition(";dur=")
    assert name == "overhead"
    return float(ms)


def test_own_time_is_logged_and_in_a_header_without_the_models(llm_user_path):
    model = AsyncScript("m", think, "a", think, "b")
    with running(model) as proxy:
        told = []
        for stream in (False, True):
            body = {"model": "m", "stream": stream, "messages": QUESTION}
            _, headers, _ = request(proxy, "POST", "/v1/chat/completions", body)
            told.append(overhead_of(headers))
    found = rows(
        llm_user_path, "select overhead_ms, duration_ms from proxy_exchanges order by number"
    )
    for own_ms, all_ms in found:
        assert 0 < own_ms <= all_ms - 2 * THINKING_S * 1000
    # A whole response waits for its commit before it is told, a stream is told at its beginning.
    assert told[0] >= found[0][0] - 0.01 and 0 < told[1] <= found[1][0] + 0.01


def test_own_time_of_a_refused_request_is_all_of_it(llm_user_path):
    with running(AsyncScript("m", "a")) as proxy:
        body = {"model": "none", "messages": QUESTION}
        status, headers, _ = request(proxy, "POST", "/v1/chat/completions", body)
    assert status == 404 and overhead_of(headers) > 0
    ((own_ms, all_ms),) = rows(
        llm_user_path, "select overhead_ms, duration_ms from proxy_exchanges"
    )
    assert 0 < own_ms <= all_ms


def test_own_time_is_without_the_wait_for_a_turn(llm_user_path):
    model = SyncScript("m", lambda response: time.sleep(THINKING_S), "a")
    with running(model) as proxy, ThreadPoolExecutor(2) as pool:
        body = {"model": "m", "messages": QUESTION}
        send = lambda _: request(proxy, "POST", "/v1/chat/completions", body)  # noqa: E731
        headers = [headers["server-timing"] for _, headers, _ in pool.map(send, range(2))]
    (waited_ms,) = [float(h.rpartition("queue;dur=")[2]) for h in headers if "queue" in h]
    sql = "select overhead_ms, queue_ms, duration_ms from proxy_exchanges where queue_ms > 0"
    ((own_ms, queue_ms, all_ms),) = rows(llm_user_path, sql)
    assert waited_ms == pytest.approx(queue_ms, abs=0.01)
    assert 0 < own_ms <= all_ms - queue_ms - THINKING_S * 1000


# ---- routes and access


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/chat/completions",
        "/v1/chat/completions/",
        "/v1/v1/chat/completions",
        "/v1/chat/completions?beta=true",
        "/v1//chat/completions",
        "//v1//chat//completions//",
        "/v1/chat%2Fcompletions",
        "/v1%20/chat/completions",
        "/api/v1/chat/completions",
        "/api/chat/completions",
        "/v1beta/openai/chat/completions",
    ],
)
def test_route_is_found_with_any_prefix_and_slash(path):
    """d7: a POST is never redirected."""
    with running(AsyncScript("m", "a")) as proxy:
        assert request(proxy, "POST", path, {"model": "m", "messages": QUESTION})[0] == 200


BASES = ("", "/", "/v1", "/v1/", "//v1", "/v1//", "/v1/v1", "/api/v1", "/openai", "/openai/v1")


def test_the_sdks_find_their_routes_below_any_base_url_that_people_write():
    hi = {"model": "m", "messages": QUESTION}
    with running(AsyncScript("m", "a")) as proxy:
        theirs = openai.OpenAI(api_key="any")
        for base in (*BASES, "/v1/chat/completions", "/chat/completions/", "/v1beta/openai/"):
            sdk = theirs.with_options(base_url=proxy.url + base)
            assert sdk.chat.completions.create(**hi).choices[0].message.content == "a", base
            assert sdk.models.retrieve("m").object == "model", base
        others = anthropic.Anthropic(api_key="any")
        for base in (*BASES, "/anthropic", "/api/anthropic/v1", "/v1/messages", "/messages/"):
            sdk = others.with_options(base_url=proxy.url + base)
            assert sdk.messages.create(max_tokens=9, **hi).content[0].text == "a", base
            assert sdk.messages.count_tokens(**hi).input_tokens > 0, base
            assert sdk.models.retrieve("m").type == "model", base
        theirs.close()
        others.close()


def test_azures_sdk_names_the_model_in_the_path():
    wanted = {"azure_endpoint": "", "api_version": "2024-10-21", "api_key": "any"}
    with running(AsyncScript("m", "a"), AsyncScript("other", "b")) as proxy:
        wanted["azure_endpoint"] = proxy.url
        with openai.AzureOpenAI(**wanted) as sdk:
            answer = sdk.chat.completions.create(model="m", messages=QUESTION)
        path = "/openai/deployments/m/chat/completions?api-version=2024-10-21"
        _, _, plain = request(proxy, "POST", path, {"messages": QUESTION})
        _, _, named = request(proxy, "POST", path, {"model": "other", "messages": QUESTION})
    assert (answer.model, answer.choices[0].message.content) == ("m", "a")
    assert json.loads(plain)["model"] == "m"
    assert json.loads(named)["model"] == "other"


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("POST", "/v1/threads/t/messages", 404),  # of OpenAI's Assistants
        ("POST", "/v1/messages/batches", 404),
        ("POST", "/v2/chat/completions", 404),
        ("POST", "/api/embed/chat", 404),
        ("POST", "/v1/../v1/chat/completions", 404),
        ("POST", "/v1/models", 405),
        ("POST", "/openai/v1/models/m", 405),
        ("POST", "/v1" * 50 + "/chat/completions", 404),
        ("GET", "/v1", 200),
        ("GET", "/anthropic/v1/models", 200),
        ("GET", "/v1/models/", 200),
    ],
)
def test_paths_of_other_apis_are_not_taken_for_ours(method, path, status):
    with running(AsyncScript("m", "a")) as proxy:
        body = None if method == "GET" else {"model": "m", "messages": QUESTION}
        answer = request(proxy, method, path, body)
    assert answer[0] == status
    if path == "/anthropic/v1/models":
        assert json.loads(answer[2])["has_more"] is False, "in Anthropic's form"


def test_models_are_listed_and_found_by_ids_with_slashes():
    with running(AsyncScript("org/deep/m", "a")) as proxy:
        listed = {model.id: model for model in client(proxy).models.list()}
        one = client(proxy).models.retrieve("org/deep/m")
        status, _, plain = request(proxy, "GET", "/models/org/deep/m?x=1")
    assert "org/deep/m" in listed
    assert "demo" in listed
    assert (one.id, one.object) == ("org/deep/m", "model")
    assert status == 200
    assert json.loads(plain)["id"] == "org/deep/m"


def test_status_pages_and_methods():
    with running() as proxy:
        root = request(proxy, "GET", "/")
        head = request(proxy, "HEAD", "/healthz")
        wrong = request(proxy, "GET", "/v1/chat/completions")
        posted = request(proxy, "POST", "/", b"{}")
        slashed = request(proxy, "GET", "/v1/healthz/")
        nowhere = request(proxy, "GET", "/v2/nothing")
    assert (root[0], root[2].startswith(b"llmproxy ")) == (200, True)
    assert (head[0], head[2]) == (200, b"")
    assert (wrong[0], wrong[1]["allow"]) == (405, "POST")
    assert (posted[0], posted[1]["allow"]) == (405, "GET, HEAD")
    assert slashed[0] == 200
    assert nowhere[0] == 404
    assert error_of(nowhere[2])["message"] == (
        "/v2/nothing is not supported; set the client to /v1/chat/completions, /v1/completions,"
        " /v1/embeddings or /v1/responses"
    )


def test_foreign_host_and_origin_are_refused_first():
    """DESIGN 6"""
    with running(model := AsyncScript("m", "a"), origins=["https://good.example"]) as proxy:
        body = {"model": "m", "messages": QUESTION}
        path = "/v1/chat/completions"
        rebound = request(proxy, "POST", path, body, {"host": "evil.example"})
        crossed = request(proxy, "POST", path, body, {"origin": "https://evil.example"})
        assert (rebound[0], crossed[0], model.prompts) == (403, 403, [])
        assert "access-control-allow-origin" not in crossed[1]
        allowed = request(proxy, "POST", path, body, {"origin": "https://good.example"})
        headers = {
            "origin": "https://good.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, x-stainless-os",
        }
        preflight = request(proxy, "OPTIONS", path, None, headers)
        refused = request(
            proxy, "POST", path, body | {"model": "no"}, {"origin": "https://good.example"}
        )
    assert allowed[1]["access-control-allow-origin"] == "https://good.example"
    assert refused[1]["access-control-allow-origin"] == "https://good.example"
    assert preflight[0] == 204
    assert preflight[1]["access-control-allow-headers"] == "authorization, x-stainless-os"


def test_a_page_of_an_allowed_origin_can_read_a_401():
    with running(keys=["any"], origins=["https://good.example"]) as proxy:
        good = request(proxy, "GET", "/v1/models", None, {"origin": "https://good.example"})
        evil = request(proxy, "GET", "/v1/models", None, {"origin": "https://evil.example"})
    assert (good[0], good[1]["access-control-allow-origin"]) == (401, "https://good.example")
    assert evil[0] == 403 and "access-control-allow-origin" not in evil[1]


def test_key_is_required_if_the_server_has_one():
    with running(AsyncScript("m", "a"), keys=["any", "other"]) as proxy:
        assert ask(proxy).choices[0].message.content == "a"
        status, headers, _ = request(proxy, "GET", "/v1/models")
        healthy = request(proxy, "GET", "/healthz")
        by_header = request(proxy, "GET", "/v1/models", None, {"x-api-key": "other"})
    assert (status, headers["www-authenticate"][:5], by_header[0]) == (401, "Basic", 200)
    assert healthy[0] == 200, "for monitors, which have no key"


def test_report_has_requested_and_used_model():
    with running(AsyncScript("m", "a", usage(3, 1))) as proxy:
        ask(proxy)
        report = proxy.wait_for_report()
    assert (report.model_used, report.status, report.http_status) == ("m", "ok", 200)
    assert report.client == "OpenAI/Python"
    assert 0 <= report.ttft_ms <= report.duration_ms
    assert (report.usage.input_tokens, report.error) == (3, None)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_streams():
    with running(AsyncScript("m", "a", "b")) as proxy:
        body = json.dumps({"model": "m", "messages": QUESTION, "stream": True})
        command = ["curl", "-sN", f"{proxy.url}/v1/chat/completions", "-d", body]
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    assert out.stdout.endswith("data: [DONE]\n\n")
    assert out.stdout.count("data: ") == 5


def test_llm_itself_can_be_the_client(llm_user_path):
    """llm's OpenAI plugin, pointed at the proxy, uses llm's other models through it."""
    from llm.default_plugins.openai_models import Chat

    steps = ("hel", "lo", usage(2, 1))
    with running(AsyncScript("m", *steps)) as proxy:
        model = Chat("through-us", model_name="m", api_base=f"{proxy.url}/v1")
        model.needs_key = None
        response = model.prompt("hi", system="be brief")
        assert response.text() == "hello"
        assert (response.usage().input, response.usage().output) == (2, 1)


def test_models_say_what_llm_knows_of_them(llm_user_path):
    (llm_user_path / "aliases.json").write_text('{"emm": "m", "vectors": "e"}')
    models = (
        AsyncScript("m", "a", context_length=9_000, attachment_types={"image/png"}),
        SyncScript("plain", "a", supports_tools=False, supports_schema=False, attachment_types=()),
        EmbeddingScript("e"),
    )
    with running(*models) as proxy:
        listed = {model.id: model for model in client(proxy).models.list()}
        vectors = client(proxy).models.retrieve("vectors")
    assert listed["m"].llm == {
        "aliases": ["emm"],
        "alias_of": None,
        "chat": True,
        "embeddings": False,
        "sync": False,
        "async": True,
        "tools": True,
        "schema": True,
        "reasoning": False,
        "attachments": ["image/png"],
    }
    assert listed["m"].context_length == 9_000
    assert {name: value for name, value in listed["plain"].llm.items() if value} == {
        "chat": True,
        "sync": True,
    }
    expected = {"aliases": ["e-alias", "vectors"], "embeddings": True, "sync": True}
    assert {name: value for name, value in listed["e"].llm.items() if value} == expected
    assert (vectors.id, vectors.llm["embeddings"]) == ("vectors", True)
