"""No key for an upstream, nor ours, is kept or shown: also where the provider quotes it."""

from __future__ import annotations

import gzip
import json
import time

import pytest

from llmproxy.app import span_export
from llmproxy.backends.passthrough import RAW_BYTES
from llmproxy.cli.exchange_text import exchange_page
from llmproxy.cli.summary_text import summary_line
from tests.app.test_passthrough import ANTHROPIC, BODY, MESSAGES, settings
from tests.app.test_upstreams import CANARIES, OURS
from tests.app.test_upstreams import post as ask
from tests.flows.test_secrets import kept
from tests.provider import playing, say_json
from tests.proxies import running
from tests.raw_provider import CLOSE, begin_chunked, chunk, end_chunks, playing_raw, response

COOKIE = "cookie.words.77c1"
SOURCES = {
    "authorization": ("client", {"x-api-key": OURS, "authorization": "Bearer {client}"}),
    "x-api-key": ("client", {"x-api-key": "{client}", "authorization": f"Bearer {OURS}"}),
    "llm": ("llm:far", {"x-api-key": OURS, "authorization": "Bearer {client}"}),
    "env": ("env:FAR_VARIABLE", {"x-api-key": "{client}", "authorization": f"Bearer {OURS}"}),
}


def sent_with(request):
    """Return what a provider quotes: the request's fields, with the key among them."""
    return ", ".join(f"{name}: {value}" for name, value in request.headers)


def refused(status):
    def answer(request):
        said = f"Incorrect API key provided: {sent_with(request)}"
        error = {"type": "authentication_error", "message": said, "code": said, "param": said}
        value = {"type": "error", "error": error}
        fields = [("Content-Type", "application/json"), ("Request-Id", "req_1")]
        return response(json.dumps(value).encode(), status, fields, reason="As it is")

    return answer


def in_stream(event):
    """Answer with the beginning of a stream, then with an event that quotes the request."""

    def answer(request):
        said = f"Incorrect API key provided: {sent_with(request)}"
        yield begin_chunked()
        yield chunk(MESSAGES.stream.partition(b"event: content_block_stop")[0])
        yield chunk(event % json.dumps(said).encode())
        yield end_chunks()

    return answer


def in_text(status, media_type, is_coded=False):
    def answer(request):
        said = f"<p>Incorrect API key provided: {sent_with(request)}".encode()
        fields = [("Content-Type", media_type)]
        if is_coded:
            return response(gzip.compress(said), status, [*fields, ("Content-Encoding", "gzip")])
        return response(said, status, fields)

    return answer


def malformed(request):
    return [f"HTTP/1.1 {sent_with(request)}\r\n\r\n".encode(), CLOSE]


CHATS = [
    refused(401),
    in_stream(b'event: error\ndata: {"type":"error","error":{"message":%s}}\n\n'),
    in_stream(b'event: odd\ndata: {"why":%s}\n\n'),
    in_text(403, "text/html"),
    in_text(200, "application/json"),
    in_text(200, "text/html"),
    in_text(200, "application/json", is_coded=True),
    *(malformed, malformed),  # the next one is asked
    *(refused(529), refused(401)),
]
STATUSES = [401, 200, 200, 403, 200, 200, 200, 502, 401]
OTHERS = [refused(401), in_text(500, "text/plain")]


@pytest.mark.parametrize("is_log_broken", [False, True], ids=["log", "spool"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_key_that_a_provider_quotes_is_in_no_file_and_no_line(
    source, is_log_broken, llm_user_path, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(span_export, "EVERY_S", 0.02)
    monkeypatch.setenv("FAR_VARIABLE", CANARIES["env:FAR_VARIABLE"])
    (llm_user_path / "keys.json").write_text(json.dumps({"far": CANARIES["llm:far"]}))
    database, access = tmp_path / "logs.db", []
    if is_log_broken:
        database.symlink_to(tmp_path / "nowhere" / "logs.db")  # where it can't be made
    key, headers = SOURCES[source]
    headers = {name: value.format(client=CANARIES["client"]) for name, value in headers.items()}
    headers |= {"cookie": f"session={COOKIE}", "user-agent": "odd/1"}
    paths = ["/v1/messages"] * len(STATUSES) + ["/v1/files"] * len(OTHERS)
    with (
        playing_raw(*CHATS, *OTHERS) as provider,
        playing(lambda body, handler: say_json(handler, {})) as collector,
        running(
            **settings(provider, ANTHROPIC, maps=[("claude-*", "far:,far:")]),
            upstream_keys=[("far", key)],
            keys=[OURS],
            database=database,
            access_log=access.append,
            otlp=collector.url,
        ) as proxy,
    ):
        body = json.loads(BODY)
        answers = [ask(proxy, path, body, headers) for path in paths]
        exchanges = (proxy.wait_for_report(len(paths)), proxy.reports)[1]
        answers.append(ask(proxy, "/metrics", None, headers))
        alive = kept(tmp_path)
        while len(access) <= len(paths):
            time.sleep(0.001)
    sent = [one.raw.decode("latin-1") for one in provider.requests]
    assert all(CANARIES[key] in one and OURS not in one for one in sent)
    assert [one[0] for one in answers] == [*STATUSES, 401, 500, 200]
    for status, _, data in answers[:6]:  # the server's own is no business of a client's
        assert (CANARIES[key].encode() in data) == (key == "client" or status < 400)
    own = [data for _, _, data in (answers[7], answers[-1])]
    own += [f"{one}".encode() for _, fields, _ in answers for one in fields.items()
            if one[0].startswith("x-llmproxy-")]  # fmt: skip
    held = kept(tmp_path)
    assert b"Incorrect API key provided" in held and b"raw_response" in held
    shown = [*access, caplog.text, *proxy.warnings, json.dumps(collector.bodies)]
    for one in exchanges:
        shown += [repr(one), exchange_page(one), summary_line(one)]
    for canary in (*CANARIES.values(), OURS, COOKIE):
        for text in (alive, held, *own, *(text.encode() for text in shown)):
            assert canary.encode() not in text, (canary, text[:3000])
    assert len(collector.bodies) > 0 and len(own) > 3


def test_what_is_kept_of_a_response_ends_in_no_half_of_a_key(llm_user_path):
    key = CANARIES["client"]
    said = b"a " * (RAW_BYTES // 2 - 5) + key.encode() + b" b" * 100
    with playing_raw(response(said)) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            ask(proxy, "/v1/messages", json.loads(BODY), {"x-api-key": key})
            exchange = proxy.wait_for_report()
    assert len(exchange.turn.response_json["raw_response"]) > RAW_BYTES - 20
    assert key[:8].encode() not in kept(llm_user_path)
