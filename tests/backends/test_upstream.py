"""Other servers as a backend: a fake provider, and our own proxy in both dialects."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager

import llm
import pytest
from llm.parts import Message, ReasoningPart, StreamEvent, TextPart, ToolCallPart

from llmproxy.backends.upstream import Upstream, chat_url
from llmproxy.core import chat
from llmproxy.core.errors import RateLimited, Unauthorized, UpstreamError, UpstreamTimeout
from llmproxy.core.usage import Usage
from llmproxy.dialects import DIALECTS, anthropic_messages, ollama, openai_chat
from llmproxy.transport.connections import Deadlines
from tests.models import SyncScript, tool_call, usage
from tests.provider import begin_sse, chat_chunk, chat_stream, playing, say_event, say_json
from tests.proxies import running

QUESTION = chat.ChatRequest("m", [Message("user", [TextPart("Hi?")])], options={"max_tokens": 50})


async def ask(dialect, url, request=QUESTION, **options):
    async with started(dialect, url, request, **options) as run:
        return [stamped async for stamped in events_from(run)]


@asynccontextmanager
async def started(dialect, url, request, **options):
    """Start a run, and stop it at the end."""
    run = (await Upstream(dialect, url, **options).choose(request)).prepare(request)
    try:
        assert await run.wait_turn(None) is False
        await run.start()
        yield run
    finally:
        await run.stop()


async def events_from(run):
    while batch := await run.read():
        for stamped in batch:
            yield stamped


def events_of(stamped):
    assert [each.at for each in stamped] == sorted(each.at for each in stamped)
    return [each.event for each in stamped]


async def test_a_providers_stream_is_read_as_events():
    began = time.monotonic()
    deltas = [{"reasoning_content": "Hm."}, {"content": "Hel"}, {"content": "lo"}]
    with playing(chat_stream(*deltas)) as played:
        stamped = await ask(openai_chat, played.url, key="k")
    assert events_of(stamped) == [
        StreamEvent("reasoning", "Hm.", 0),
        StreamEvent("text", "Hel", 1),
        StreamEvent("text", "lo", 1),
        chat.Finish("stop", usage=Usage(11, 7), model="real-model"),
    ]
    assert began < stamped[0].at <= stamped[-1].at < time.monotonic()
    assert played.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi?"}],
            "max_tokens": 50,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert played.headers[0]["authorization"] == "Bearer k"
    assert "anthropic-version" not in played.headers[0]


async def test_a_stream_without_done_ends_when_the_connection_closes():
    def respond(body, handler):
        begin_sse(handler)
        say_event(handler, chat_chunk({"content": "Hi"}, "stop"))

    with playing(respond) as played:
        events = events_of(await ask(openai_chat, played.url))
    assert events == [StreamEvent("text", "Hi", 0), chat.Finish("stop", model="real-model")]


async def test_a_cut_stream_fails_after_its_events():
    def respond(body, handler):
        begin_sse(handler)
        say_event(handler, chat_chunk({"content": "Hi"}))

    events = []
    with playing(respond) as played:
        with pytest.raises(UpstreamError, match="^the upstream's stream ended before its answer"):
            async with started(openai_chat, played.url, QUESTION) as run:
                async for stamped in events_from(run):
                    events.append(stamped.event)
    assert events == [StreamEvent("text", "Hi", 0)]


async def test_an_error_in_a_stream_comes_after_the_events_before_it():
    def respond(body, handler):
        begin_sse(handler)
        error = {"error": {"message": "slow down", "type": "rate_limit_error"}}
        text = json.dumps(chat_chunk({"content": "Hi"}))
        handler.wfile.write(f"data: {text}\n\ndata: {json.dumps(error)}\n\n".encode())

    events = []
    with playing(respond) as played:
        with pytest.raises(RateLimited, match="^slow down$"):
            async with started(openai_chat, played.url, QUESTION) as run:
                async for stamped in events_from(run):
                    events.append(stamped.event)
    assert events == [StreamEvent("text", "Hi", 0)]


SCRIPT = (
    StreamEvent("reasoning", "Think ", 0),
    StreamEvent("reasoning", "first.", 0),
    "One ",
    "answer, ünïcode 🎉 & all.",
    tool_call("look", {"at": "you", "n": [1, 2.5]}, "call_1"),
    tool_call("look", {}, "call_2"),
    usage(12, 34),
)
TOOL = llm.Tool(name="look", input_schema={"type": "object", "properties": {}})


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.NAME)
@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
async def test_our_own_proxy_is_an_upstream_in_both_dialects(dialect, tail):
    with running(SyncScript("m", *SCRIPT)) as proxy:
        request = chat.ChatRequest("m", QUESTION.messages, (TOOL,))
        async with started(dialect, proxy.url + tail, request) as run:
            stamped = [each async for each in events_from(run)]
        times = run.times
    assert times.began < times.connected < times.sent < times.first_byte <= stamped[0].at
    response = chat.collect(events_of(stamped))
    (message,) = response.messages
    assert [part.text for part in message.parts if isinstance(part, ReasoningPart)] == [
        "Think first."
    ]
    assert "".join(part.text for part in message.parts if isinstance(part, TextPart)) == (
        "One answer, ünïcode 🎉 & all."
    )
    # Many of Ollama's clients drop ids, so calls get some by their places.
    ids = ("call_0", "call_1") if dialect.NAME == "ollama" else ("call_1", "call_2")
    assert [part for part in message.parts if isinstance(part, ToolCallPart)] == [
        ToolCallPart("look", {"at": "you", "n": [1, 2.5]}, ids[0]),
        ToolCallPart("look", {}, ids[1]),
    ]
    finish = response.finish
    assert (finish.reason, finish.model) == ("tool_calls", "m")
    assert (finish.usage.input_tokens, finish.usage.output_tokens) == (12, 34)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.NAME)
async def test_a_key_is_sent_in_the_dialects_own_header(dialect):
    with running(SyncScript("m", "Hi"), keys=("sesame",)) as proxy:
        finish = events_of(await ask(dialect, proxy.url, key="sesame"))[-1]
        assert finish.reason == "stop"
        with pytest.raises(Unauthorized):
            await ask(dialect, proxy.url, key="wrong")


async def test_anthropics_headers_and_ignored_options():
    def respond(body, handler):
        say_json(handler, {"type": "error", "error": {"type": "x", "message": "no"}}, 500)

    request = chat.ChatRequest("m", QUESTION.messages, options={"seed": 3, "max_tokens": 9})
    with playing(respond) as played:
        with pytest.raises(UpstreamError, match="^no$") as failure:
            await ask(anthropic_messages, played.url, request, key="k")
    sent = played.headers[0]
    assert failure.value.status == 500
    assert (sent["x-api-key"], sent["anthropic-version"]) == ("k", "2023-06-01")
    assert "authorization" not in sent
    with running(SyncScript("m", "Hi")) as proxy:
        async with started(anthropic_messages, proxy.url, request) as run:
            assert run.ignored == ("seed",)


async def test_an_error_keeps_its_status_message_and_retry_after():
    def respond(body, handler):
        error = {"error": {"message": "slow down", "type": "rate_limit_exceeded", "code": "r"}}
        say_json(handler, error, 429, retry_after="7")

    with playing(respond) as played:
        with pytest.raises(RateLimited, match="^slow down$") as failure:
            await ask(openai_chat, played.url)
    assert (failure.value.code, failure.value.headers) == ("r", {"retry-after": "7"})


async def test_an_error_with_a_cut_body_keeps_its_status():
    def respond(body, handler):
        handler.send_response(401)
        handler.send_header("content-length", "5000")
        handler.end_headers()
        handler.wfile.write(b"no " * 1000)

    with playing(respond) as played:
        with pytest.raises(Unauthorized, match="^(no )+…( no)+"):
            await ask(openai_chat, played.url)


async def test_a_redirect_is_not_followed_with_the_key():
    def respond(body, handler):
        say_json(handler, {}, 308, location="http://127.0.0.1:1/v1/chat/completions")

    with playing(respond) as played:
        with pytest.raises(UpstreamError, match="^the upstream redirects .status 308.: use the"):
            await ask(openai_chat, played.url, key="k")
    assert len(played.bodies) == 1


@pytest.mark.parametrize(
    "body, message",
    [
        ({"error": {"message": "no key", "code": 401}}, "^no key$"),
        ({"choices": []}, "^the upstream sent application/json instead of a stream$"),
    ],
)
async def test_json_instead_of_a_stream_is_an_error(body, message):
    with playing(lambda request, handler: say_json(handler, body)) as played:
        with pytest.raises((Unauthorized, UpstreamError), match=message):
            await ask(openai_chat, played.url)


async def test_a_stalled_stream_is_closed_after_a_deadline():
    def respond(body, handler):
        begin_sse(handler)
        say_event(handler, chat_chunk({"content": "Hi"}))
        while True:
            handler.connection.settimeout(5)
            if not handler.connection.recv(1):
                raise ConnectionResetError

    with playing(respond) as played:
        with pytest.raises(UpstreamTimeout, match="^the upstream's response stalled within 0.1 s$"):
            await ask(openai_chat, played.url, deadlines=Deadlines(idle_s=0.1))
        assert await asyncio.to_thread(played.hung_up.wait, 5)


async def test_cancelling_stops_the_model_of_our_own_proxy():
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(response):
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.05)

    model = SyncScript("m", "Hi", wait, *["more"] * 3, *[wait, "and more"] * 400)
    with running(model) as proxy:
        task = asyncio.create_task(ask(openai_chat, proxy.url))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        report = await asyncio.to_thread(proxy.wait_for_report)
    assert report.status == "cancelled"


@pytest.mark.parametrize(
    "base, url",
    [
        ("http://a", "http://a/v1/chat/completions"),
        ("http://a/", "http://a/v1/chat/completions"),
        ("http://a/v1", "http://a/v1/chat/completions"),
        ("http://a:1/x/v1/", "http://a:1/x/v1/chat/completions"),
        ("https://api.z.ai/api/paas/v4", "https://api.z.ai/api/paas/v4/chat/completions"),
        ("http://a/openai/chat/completions", "http://a/openai/chat/completions"),
        ("http://a/v1?key=x", "http://a/v1/chat/completions?key=x"),
        ("http://a/revv1", "http://a/revv1/v1/chat/completions"),
    ],
)
def test_a_base_url_with_or_without_its_version_gives_the_chat_route(base, url):
    assert chat_url(openai_chat, base) == url
    assert chat_url(anthropic_messages, base.replace("chat/completions", "messages")) == (
        url.replace("chat/completions", "messages")
    )


@pytest.mark.parametrize("base", ["http://a:1", "http://a:1/", "http://a:1/api/", "http://a:1/v1"])
def test_ollamas_paths_have_no_version(base):
    assert chat_url(ollama, base) == "http://a:1/api/chat"
    assert chat_url(ollama, "http://a/x/api/chat") == "http://a/x/api/chat"
