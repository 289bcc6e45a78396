"""Requests for an upstream that speaks another API: converted, with fallbacks."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import ssl
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
import trustme
from llm.parts import Message, StreamEvent, TextPart

import llmproxy
from llmproxy import Settings, serving
from llmproxy.cli.exchange_text import exchange_page
from llmproxy.core import backend, chat
from llmproxy.core.errors import RateLimited, SettingsError
from llmproxy.core.limits import Limits
from llmproxy.core.usage import Usage
from llmproxy.dialects import DIALECTS, anthropic_messages, ollama, openai_chat, openai_responses
from tests.commands import run_here
from tests.flows.test_secrets import kept
from tests.models import AsyncScript, SyncScript
from tests.provider import begin_sse, playing, say_event, say_json
from tests.proxies import running

EVENTS = [
    StreamEvent("text", "Hel", 0),
    StreamEvent("text", "lo", 0),
    StreamEvent("tool_call_name", "look", 1, "call_1"),
    StreamEvent("tool_call_args", '{"at": 1}', 1, "call_1"),
    chat.Finish("tool_calls", usage=Usage(11, 7)),
]
QUESTION = chat.ChatRequest(
    "far", [Message("user", [TextPart("Hi?")])], options={"max_tokens": 50}, stream=True
)
PAIRS = [(a, b) for a, b in itertools.product(DIALECTS, DIALECTS) if a is not b]
KEY = "sk-canary-of-the-client"


def streaming(dialect, events=EVENTS):
    """Answer as a provider of this dialect, in a stream."""

    def answer(body, handler):
        handler.send_response(200)
        handler.send_header("content-type", dialect.STREAM_TYPE)
        handler.send_header("request-id", "req_1")
        handler.end_headers()
        renderer = dialect.StreamRenderer(chat.Envelope("1", 1, body["model"]))
        for frames in (renderer.start(), *map(renderer.feed, events)):
            handler.wfile.write(b"".join(frames))

    return answer


def refusing(status, value=None, **headers):
    return lambda body, handler: say_json(
        handler, value or {"error": {"message": "go away"}}, status, **headers
    )


def send(proxy, dialect, request=QUESTION, headers=None):
    """Send a request as a client of a dialect; return status, headers, bytes."""
    body, _ = dialect.render_request(request)
    body |= {"stream": request.stream}
    return post(
        proxy, backend.chat_path(dialect.ROUTES), body, headers or dialect.auth_headers(KEY)
    )


def post(proxy, path, body, headers=None):
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=20)
    try:
        fields = {"content-type": "application/json"} | (headers or {})
        connection.request("POST" if body is not None else "GET", path, json.dumps(body), fields)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def collected(dialect, request, data):
    """Read a response as a client of the dialect."""
    if not request.stream:
        return dialect.parse_response(json.loads(data))
    parser, decoder = dialect.StreamParser(), dialect.StreamDecoder(10**6)
    frames = [*decoder.feed(data), *decoder.end()]
    return chat.collect([event for frame in frames for event in parser.feed(frame)])


def upstream(dialect, played, name="far"):
    return f"{name}={dialect.NAME}+{played.url}"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("near", "far"), PAIRS, ids=lambda dialect: dialect.NAME)
def test_a_request_is_converted_for_an_upstream_and_its_response_back(near, far, stream):
    request = QUESTION if stream else replace(QUESTION, stream=False)
    with playing(streaming(far)) as played:
        with running(upstreams=[upstream(far, played)], maps=[("far", "far:m")]) as proxy:
            status, headers, data = send(proxy, near, request)
            exchange = proxy.wait_for_report()
    assert status == 200, data
    response = collected(near, request, data)
    (reply,) = response.messages
    assert [type(part).__name__ for part in reply.parts] == ["TextPart", "ToolCallPart"]
    text, call = reply.parts
    assert (text.text, call.name, call.arguments) == ("Hello", "look", {"at": 1})
    assert (response.finish.reason, response.finish.usage.output_tokens) == ("tool_calls", 7)
    assert headers["x-llmproxy-upstream"] == "far"
    assert headers["x-llmproxy-upstream-request-id"] == "req_1"
    (body,) = played.bodies
    assert (body["model"], body["stream"]) == ("m", True)
    assert KEY in str(played.headers)
    assert (exchange.upstream, exchange.model_used) == ("far", "far/m")
    assert exchange.upstream_request_id == "req_1"
    assert exchange.turn.model == "far/m"


def test_what_another_api_cannot_carry_is_listed():
    with playing(streaming(openai_responses)) as played:
        with running(upstreams=[upstream(openai_responses, played)], passthrough="far") as proxy:
            body, _ = anthropic_messages.render_request(QUESTION)
            _, headers, _ = post(proxy, "/v1/messages", body | {"top_k": 5})
            exchange = proxy.wait_for_report()
    assert "top_k" in headers["x-llmproxy-ignored"]
    assert "top_k" in exchange.ignored
    assert exchange.model_used == "far/far"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("near", "far"), PAIRS[::4], ids=lambda dialect: dialect.NAME)
def test_an_upstreams_error_keeps_its_status_and_retry_after(near, far, stream):
    error = far.render_error(RateLimited("no room now"))
    answer = refusing(429, error, retry_after="7", request_id="req_2")
    with playing(answer) as played:
        with running(upstreams=[upstream(far, played)], maps=[("far", "far:m")]) as proxy:
            request = replace(QUESTION, stream=stream)
            status, headers, data = send(proxy, near, request)
            exchange = proxy.wait_for_report()
    assert (status, headers["retry-after"]) == (429, "7")
    assert headers["x-llmproxy-upstream-request-id"] == "req_2"
    assert "no room now" in near.parse_error(status, json.loads(data), headers).message
    assert (exchange.error_status, exchange.retry_after_s) == (429, 7.0)
    assert (exchange.upstream, exchange.upstream_request_id) == ("far", "req_2")
    assert len(played.bodies) == 1


# ---- fallbacks


def broken(body, handler):
    handler.connection.close()


def refusing_in_stream(body, handler):
    begin_sse(handler)
    error = {"type": "overloaded_error", "message": "no room"}
    say_event(handler, {"type": "error", "error": error}, "error")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusing(429), "first:m: 429"),
        (refusing(500), "first:m: 500"),
        (refusing(529), "first:m: 529"),
        (broken, "first:m: 502"),
        (refusing_in_stream, "first:m: 529"),
    ],
)
def test_the_next_target_is_asked_if_the_first_refuses(answer, said):
    with playing(answer) as first, playing(streaming(openai_chat)) as second:
        with running(
            AsyncScript("here", "Hi"),
            upstreams=[
                upstream(anthropic_messages, first, "first"),
                upstream(openai_chat, second, "second"),
            ],
            maps=[("a", "first:m,second:n,llm:here"), ("b", "first:m,llm:here")],
        ) as proxy:
            for model, use in (("a", ("second", "second/n")), ("b", (None, "here"))):
                request = replace(QUESTION, model=model)
                status, headers, data = send(proxy, ollama, request)
                assert (status, headers["x-llmproxy-refused-by"]) == (200, said), data
                assert headers.get("x-llmproxy-upstream") == use[0]
            exchanges = (proxy.wait_for_report(2), proxy.reports)[1]
    assert [(one.upstream, one.model_used) for one in exchanges] == [
        ("second", "second/n"),
        (None, "here"),
    ]
    assert {one.refused_by for one in exchanges} == {said}
    assert {one.status for one in exchanges} == {"ok"}
    assert len(first.bodies) == 2


def test_the_last_targets_error_is_the_clients():
    with playing(refusing(529)) as first, playing(refusing(503)) as second:
        with running(
            upstreams=[upstream(openai_chat, first, "a"), upstream(openai_chat, second, "b")],
            maps=[("far", "a:,b:")],
        ) as proxy:
            status, headers, _ = send(proxy, anthropic_messages)
            exchange = proxy.wait_for_report()
    assert (status, headers["x-llmproxy-refused-by"]) == (503, "a: 529")
    assert (exchange.upstream, exchange.refused_by) == ("b", "a: 529")


@pytest.mark.parametrize("status", [400, 401, 404])
def test_no_other_target_is_asked_after_another_error(status):
    with playing(refusing(status)) as first:
        with running(
            AsyncScript("here", "Hi"),
            upstreams=[upstream(openai_chat, first)],
            maps=[("far", "far:,llm:here")],
        ) as proxy:
            assert send(proxy, anthropic_messages)[0] == status


def test_no_other_target_is_asked_after_the_first_event():
    def cut(body, handler):
        begin_sse(handler)
        handler.wfile.write(b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n')

    with playing(cut) as first:
        with running(
            AsyncScript("here", "other"),
            upstreams=[upstream(openai_chat, first)],
            maps=[("far", "far:,llm:here")],
        ) as proxy:
            _, _, data = send(proxy, anthropic_messages)
            exchange = proxy.wait_for_report()
    assert b"other" not in data and b"Hi" in data
    assert (exchange.status, exchange.upstream, exchange.refused_by) == ("error", "far", None)


def test_a_busy_upstream_is_waited_for_only_if_that_is_wanted():
    answers = iter([refusing(429, retry_after_ms="20"), streaming(openai_chat)] * 2)
    with playing(lambda body, handler: next(answers)(body, handler)) as played:
        settings = {"upstreams": [upstream(openai_chat, played)], "passthrough": "far"}
        with running(**settings) as proxy:
            assert send(proxy, anthropic_messages)[0] == 429
        next(answers)
        with running(**settings, upstream_wait_s=1.0) as proxy:
            status, headers, _ = send(proxy, anthropic_messages)
    assert (status, headers["x-llmproxy-refused-by"]) == (200, "far: 429")


def test_a_name_that_a_client_made_up_is_escaped_in_a_header():
    answers = iter([refusing(429, retry_after_ms="5"), streaming(openai_chat)])
    with playing(lambda body, handler: next(answers)(body, handler)) as played:
        with running(upstreams=[upstream(openai_chat, played)], upstream_wait_s=1.0) as proxy:
            request = replace(QUESTION, model="far:m\r\nx: ü" + "y" * 500)
            status, headers, _ = send(proxy, anthropic_messages, request)
    assert status == 200 and "x" not in headers
    assert headers["x-llmproxy-refused-by"] == r"far:m\r\nx: \u00fc" + "y" * 89 + ": 429"


def test_the_next_target_is_asked_if_a_model_of_llm_stays_busy():
    release, began = threading.Event(), threading.Event()

    def block(response):
        began.set()
        release.wait(10)

    with playing(streaming(openai_chat)) as played:
        with running(
            SyncScript("here", block, "Hi"),
            upstreams=[upstream(openai_chat, played)],
            maps=[("far", "llm:here,far:")],
            limits=Limits(queue_s=0.05, shutdown_s=5),
        ) as proxy:
            first = threading.Thread(target=send, args=(proxy, anthropic_messages))
            first.start()
            assert began.wait(10)
            status, headers, _ = send(proxy, anthropic_messages)
            release.set()
            first.join()
    assert (status, headers["x-llmproxy-upstream"]) == (200, "far")
    assert headers["x-llmproxy-refused-by"] == "llm:here: 503"


def test_a_longer_wait_than_is_wanted_is_none():
    with playing(refusing(429, retry_after="30")) as played:
        settings = {"upstreams": [upstream(openai_chat, played)], "passthrough": "far"}
        with running(**settings, upstream_wait_s=1.0) as proxy:
            status, headers, _ = send(proxy, anthropic_messages)
    assert (status, headers["retry-after"], len(played.bodies)) == (429, "30", 1)


@pytest.mark.own_server
def test_an_unknown_model_among_the_targets_is_an_error_at_the_start():
    with pytest.raises(SettingsError, match="llm has no model 'nope'"):
        with running(upstreams=["anthropic"], maps=[("a", "anthropic:,llm:nope")]):
            pass


# ---- loops


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.mark.parametrize("count", [1, 2], ids=["itself", "two in a ring"])
@pytest.mark.parametrize("near", [openai_chat, anthropic_messages], ids=lambda near: near.NAME)
def test_an_upstream_that_leads_back_is_refused(count, near, llm_user_path):
    ports = free_ports(count)
    reports = []
    with ExitStack() as stack:
        for port, next_port in zip(ports, [*ports[1:], ports[0]], strict=True):
            settings = Settings(
                port=port,
                upstreams=[f"far=openai_chat+http://127.0.0.1:{next_port}"],
                passthrough="far",
                log=False,
                on_exchange=reports.append,
            )
            proxy = stack.enter_context(serving.running(settings))
        status, _, data = send(proxy, near)
    assert status == 400
    assert b"leads back to this server" in data
    assert len(reports) == count  # none is asked twice


# ---- keys

OURS = "own.clients.key.93aa"
CANARIES = {
    "client": "client.words.51d0c7",
    "llm:far": "stored.with-llm.7c1f",
    "env:FAR_VARIABLE": "environs.4be2a9",
}


def quoting(body, handler):
    """Refuse a request, quoting all that it was sent."""
    said = f"wrong: {handler.headers}"
    say_json(handler, {"error": {"message": said, "code": said}}, 401)


@pytest.mark.parametrize("source", CANARIES)
@pytest.mark.parametrize("near", [openai_chat, ollama], ids=lambda near: near.NAME)
def test_no_credential_is_kept_or_shown(source, near, llm_user_path, monkeypatch, caplog):
    (llm_user_path / "keys.json").write_text(json.dumps({"far": CANARIES["llm:far"]}))
    monkeypatch.setenv("FAR_VARIABLE", CANARIES["env:FAR_VARIABLE"])
    lines = []
    for answer in (quoting, streaming(anthropic_messages)):
        with playing(answer) as played:
            with running(
                upstreams=[upstream(anthropic_messages, played)],
                upstream_keys=[("far", source)],
                passthrough="far",
                keys=[OURS],
                access_log=lines.append,
            ) as proxy:
                status, headers, data = send(
                    proxy,
                    near,
                    headers={
                        "x-api-key": OURS,
                        "authorization": f"Bearer {CANARIES['client']}",
                        "cookie": "session=cookie.words.77",
                    },
                )
                exchange = proxy.wait_for_report()
                held = kept(llm_user_path)
        assert status == (401 if answer is quoting else 200)
        (sent,) = played.headers
        assert sent["x-api-key"] == CANARIES[source]
        assert "authorization" not in sent and "cookie" not in sent
        assert OURS not in str(sent)
        shown = f"{headers}{lines}{caplog.text}{proxy.warnings}{exchange}{exchange_page(exchange)}"
        for canary in (*CANARIES.values(), OURS, "cookie.words.77"):
            assert canary.encode() not in held + data + shown.encode()


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize("near", [anthropic_messages, openai_chat], ids=lambda near: near.NAME)
@pytest.mark.parametrize(("field", "size"), [("request-id", 9), ("cf-ray", 9), ("cf-ray", 195)])
def test_a_key_in_an_upstreams_request_id_is_not_shown(monkeypatch, field, size, near, status):
    """Nor a part of one, where an id is too long."""
    key = CANARIES["env:FAR_VARIABLE"]
    monkeypatch.setenv("FAR_VARIABLE", key)

    def answer(body, handler):
        sent = handler.headers["authorization"].removeprefix("Bearer ")
        say_json(handler, {"error": {"message": "no"}}, status, **{field: f"{'r' * size}-{sent}"})

    with playing(answer) as played:
        with running(
            upstreams=[upstream(openai_chat, played)],
            upstream_keys=[("far", "env:FAR_VARIABLE")],
            passthrough="far",
        ) as proxy:
            _, headers, data = send(proxy, near)
            exchange = proxy.wait_for_report()
    cleaned = f"{'r' * size}-[removed]" if size < 190 else None
    assert exchange.upstream_request_id == cleaned
    if near is anthropic_messages:  # converted
        assert headers.get("x-llmproxy-upstream-request-id") == cleaned
    assert key[:6] not in f"{headers}{data}{exchange!r}"


def test_a_request_with_a_signature_is_refused_in_words():
    with running(upstreams=["anthropic"], passthrough="anthropic") as proxy:
        signed = {"authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/x"}
        status, _, data = send(proxy, openai_chat, headers=signed)
    assert status == 400
    assert b"SigV4" in data and b"AKIA" not in data


def test_a_key_that_is_not_set_is_an_error_that_names_it():
    settings = {"upstreams": ["anthropic"], "upstream_keys": [("anthropic", "env:NOT_SET")]}
    with running(**settings, passthrough="anthropic") as proxy:
        status, _, data = send(proxy, openai_chat)
    assert status == 401
    assert b"env:NOT_SET" in data


def test_no_request_can_name_a_host():
    with playing(streaming(openai_chat)) as played:
        with running(upstreams=[upstream(openai_chat, played)]) as proxy:
            for model in (f"openai_chat+{played.url}:m", f"{played.url}/v1:m", "//far:m"):
                status, _, _ = send(proxy, anthropic_messages, replace(QUESTION, model=model))
                assert status == 404
    assert played.bodies == []


# ---- the log

SIGNED = {"signature": "sig-of-the-provider"}
THOUGHT = [
    StreamEvent("reasoning", "Hm.", 0, provider_metadata={"anthropic": SIGNED}),
    StreamEvent("text", "Four.", 1),
    chat.Finish("stop", usage=Usage(50, 7, cached_tokens=30, cache_write_tokens=15)),
]


def test_reasoning_that_a_client_lost_is_given_back_to_an_upstream():
    with playing(streaming(anthropic_messages, THOUGHT)) as played:
        with running(upstreams=[upstream(anthropic_messages, played)], passthrough="far") as proxy:
            _, _, data = send(proxy, openai_chat)
            reply = collected(openai_chat, QUESTION, data).messages
            more = [*QUESTION.messages, *reply, Message("user", [TextPart("And?")])]
            send(proxy, openai_chat, replace(QUESTION, messages=more))
            first, second = (proxy.wait_for_report(2), proxy.reports)[1]
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "sig-of-the-provider"}
    assert thinking in played.bodies[1]["messages"][1]["content"]
    assert (second.previous_id, second.recalled) == (first.id, 1)
    assert second.usage == Usage(50, 7, cached_tokens=30, cache_write_tokens=15)


def test_what_an_upstream_answered_is_replayed_and_exported(llm_user_path, tmp_path):
    file = tmp_path / "out.jsonl"
    with playing(refusing(529)) as busy, playing(streaming(anthropic_messages)) as played:
        with running(
            upstreams=[upstream(openai_chat, busy, "busy"), upstream(anthropic_messages, played)],
            maps=[("far", "busy:,far:m")],
        ) as proxy:
            _, _, live = send(proxy, openai_chat)
            proxy.wait_for_report()
    with running(replay="replay") as proxy:
        _, headers, replayed = send(proxy, openai_chat)
    assert "x-llmproxy-upstream" not in headers
    assert collected(openai_chat, QUESTION, replayed) == collected(openai_chat, QUESTION, live)
    assert run_here("export", str(file))[0] == 0
    other = str(tmp_path / "other.db")
    assert run_here("import", str(file), "--database", other)[0] == 0
    _, out, _ = run_here("log", "--json", "--database", other)
    found = [json.loads(line) for line in out.splitlines()][0]
    use = [found[name] for name in ("upstream", "refused_by", "upstream_request_id")]
    assert use == ["far", "busy: 529", "req_1"]
    _, out, _ = run_here("log", found["id"], "--database", other)
    assert b"upstream     far, request req_1, after busy: 529\n" in out


def test_a_client_that_hangs_up_stops_the_upstream():
    stopped = threading.Event()

    def endless(body, handler):
        begin_sse(handler)
        try:
            while True:
                handler.wfile.write(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
                handler.wfile.flush()
                time.sleep(0.01)
        except OSError:
            stopped.set()

    with playing(endless) as played:
        with running(upstreams=[upstream(openai_chat, played)], passthrough="far") as proxy:
            body, _ = anthropic_messages.render_request(QUESTION)
            connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=20)
            connection.request("POST", "/v1/messages", json.dumps(body | {"stream": True}))
            assert connection.getresponse().read(1)
            connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()
            assert stopped.wait(5)
            exchange = proxy.wait_for_report()
    assert (exchange.status, exchange.upstream) == ("cancelled", "far")


def test_a_program_names_upstreams_as_the_command_does():
    with playing(streaming(openai_chat)) as played:
        options = {"upstreams": [upstream(openai_chat, played)], "maps": [("far", "far:m")]}
        with llmproxy.running(port=0, log=False, **options) as server:
            assert send(server, anthropic_messages)[0] == 200
        (status,) = server.upstreams.describe()
    assert (status.name, status.dialects, status.key) == ("far", ("openai_chat",), "client")


def test_a_certificate_is_trusted_by_the_system_or_by_a_file_that_is_given(tmp_path):
    ca = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    with playing(streaming(openai_chat), tls) as played:
        settings = {"upstreams": [upstream(openai_chat, played)], "passthrough": "far"}
        with running(**settings) as proxy:
            status, _, data = send(proxy, anthropic_messages)
        assert status == 502
        assert b"no secure connection" in data and b"certificate" in data
        with running(**settings, upstream_ca=tmp_path / "ca.pem") as proxy:
            assert send(proxy, anthropic_messages)[0] == 200
