"""The vendors' SDKs and llm behind an upstream of their own API, beside what they do without.

Each call is made twice, straight to a provider that is played on loopback and through the server:
the provider gets the same bytes, and the SDK returns the same values.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import anthropic
import ollama
import openai
import pytest
from llm.default_plugins.openai_models import Chat

from tests.proxies import running
from tests.raw_provider import (
    RawRequest,
    begin_chunked,
    chunk,
    end_chunks,
    playing_raw,
    response,
)
from tests.wire_cases import wire_cases

KEY = "sk-canary-0123456789"
FILE = ("data.jsonl", io.BytesIO(b'{"a": 1}\n' * 50_000))
DOWNLOAD = b"\x00\xff" * 300_000
USER: Any = [{"role": "user", "content": "Hello"}]


def case(dialect: str) -> Any:
    """Return an exchange that was captured, whole and streamed."""
    cases = wire_cases(dialect, answered=True)
    return next(one for one in cases if "messages" in one.request or "input" in one.request)


CHAT, RESPONSES = case("openai_chat"), case("openai_responses")
MESSAGES, OLLAMA = case("anthropic_messages"), case("ollama")
STREAMS = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/api/chat": OLLAMA,
}
ANY = {  # what each SDK looks for in the responses of its other paths
    "id": "x_1",
    "object": "thing",
    "data": [{"id": "y"}],
    "has_more": False,
    "input_tokens": 7,
    "results_url": "/v1/messages/batches/b_1/results",  # Anthropic's own is a whole URL
    "models": [],
    "model_info": {},
    "embeddings": [[0.5]],
}
PULL = [{"status": "pulling manifest"}] + [
    {"status": "pulling 1", "digest": "sha256:1", "total": 100, "completed": done}
    for done in (10, 60, 100)
]


def provider(request: RawRequest) -> Any:
    """Answer any call of the three vendors' APIs."""
    path, _, _ = request.target.partition("?")
    if path == "/api/pull":
        lines = [chunk(json.dumps(line).encode() + b"\n") for line in PULL]
        head = begin_chunked(headers=[("Content-Type", "application/x-ndjson")])
        return [head, *lines, end_chunks()]
    if path.endswith(("/content", "/speech")):
        fields = [("Content-Type", "application/octet-stream"), ("X-Request-Id", "req_2")]
        return response(DOWNLOAD, headers=fields)
    if path.endswith("/results"):
        result = {"custom_id": "1", "result": {"type": "canceled"}}
        return response(json.dumps(result).encode() + b"\n", headers=[("Content-Type", "x/jsonl")])
    if found := STREAMS.get(path):
        is_stream = json.loads(request.body).get("stream")
        if is_stream is None:
            is_stream = found is OLLAMA
        if not is_stream:
            return response(json.dumps(found.response).encode())
        kind = "application/x-ndjson" if found is OLLAMA else "text/event-stream"
        return [
            begin_chunked(headers=[("Content-Type", kind), ("X-Request-Id", "req_1")]),
            *([] if found is OLLAMA else [chunk(b": hello\n\n")]),
            *(chunk(line) for line in found.stream.splitlines(keepends=True)),
            end_chunks(),
        ]
    return response(json.dumps(ANY).encode())


Call = Callable[[Any], Any]


def upload() -> tuple[str, io.BytesIO]:
    FILE[1].seek(0)
    return FILE


def streamed(manager: Any) -> list[Any]:
    with manager as stream:
        return [*(event.type for event in stream), final(stream)]


def final(stream: Any) -> Any:
    names = ("get_final_completion", "get_final_response", "get_final_message")
    return next(getattr(stream, name)() for name in names if hasattr(stream, name))


OPENAI: dict[str, Call] = {
    "chat": lambda c: c.chat.completions.create(
        model="m", messages=USER, seed=7, extra_body={"of_next_year": [1.0]}
    ),
    "chat stream": lambda c: [*c.chat.completions.create(model="m", messages=USER, stream=True)],
    "chat helper": lambda c: streamed(c.chat.completions.stream(model="m", messages=USER)),
    "responses": lambda c: c.responses.create(model="m", input="Hello", include=[]),
    "responses helper": lambda c: streamed(c.responses.stream(model="m", input="Hello")),
    "responses of the provider": lambda c: c.responses.retrieve("resp_of_the_provider"),
    "cancel": lambda c: c.responses.cancel("resp_1", extra_headers={"OpenAI-Beta": "x=v1"}),
    "delete": lambda c: c.responses.delete("resp_of_the_provider"),
    "upload": lambda c: c.files.create(file=upload(), purpose="batch"),
    "download": lambda c: c.files.content("file-1").read(),
    "files": lambda c: c.files.list(limit=2).data,
    "batch": lambda c: c.batches.create(
        input_file_id="file-1", endpoint="/v1/responses", completion_window="24h"
    ),
    "image": lambda c: c.images.generate(prompt="A harbour", model="gpt-image-1"),
    "image edit": lambda c: c.images.edit(image=upload(), prompt="Add a ship", model="m"),
    "transcription": lambda c: c.audio.transcriptions.create(file=upload(), model="whisper-1"),
    "speech": lambda c: c.audio.speech.create(input="Hello", model="tts-1", voice="alloy").read(),
    "embeddings": lambda c: c.embeddings.create(model="m", input=["a", "b"]),
    "moderation": lambda c: c.moderations.create(input="Hello"),
    "vector store": lambda c: c.vector_stores.create(name="x"),
    "models": lambda c: c.models.list().data,
    "model": lambda c: c.models.retrieve("m/1"),
}
ANTHROPIC: dict[str, Call] = {
    "messages": lambda c: c.messages.create(model="m", max_tokens=9, messages=USER),
    "helper": lambda c: streamed(c.messages.stream(model="m", max_tokens=9, messages=USER)),
    "beta helper": lambda c: streamed(
        c.beta.messages.stream(
            model="m", max_tokens=9, messages=USER, betas=["context-1m-2025-08-07", "next-2099"]
        )
    ),
    "count": lambda c: c.messages.count_tokens(model="m", messages=USER),
    "upload": lambda c: c.beta.files.upload(file=upload()),
    "download": lambda c: c.beta.files.download("file_1").read(),
    "batch": lambda c: c.messages.batches.create(
        requests=[{"custom_id": "1", "params": {"model": "m", "max_tokens": 9, "messages": USER}}]
    ),
    "results": lambda c: [*c.messages.batches.results("b_1")],
    "models": lambda c: c.models.list(limit=3).data,
}
OLLAMAS: dict[str, Call] = {
    "chat": lambda c: c.chat("m", messages=USER, think=False),
    "chat stream": lambda c: [*c.chat("m", messages=USER, stream=True)],
    "pull": lambda c: [*c.pull("m", stream=True)],
    "embed": lambda c: c.embed("m", input=["a", "b"]),
    "show": lambda c: c.show("m"),
    "ps": lambda c: c.ps(),
    "list": lambda c: c.list(),
    "copy": lambda c: c.copy("m", "n"),
    "delete": lambda c: c.delete("m"),
    "blob": lambda c: c.create("n", from_="m", system="Be brief."),
}
VENDORS: dict[str, tuple[str, Callable[[str], Any], dict[str, Call]]] = {
    "openai": (
        "openai={}/v1",
        lambda url: openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, organization="org-1"),
        OPENAI,
    ),
    "anthropic": (
        "anthropic={}",
        lambda url: anthropic.Anthropic(base_url=url, api_key=KEY),
        ANTHROPIC,
    ),
    "ollama": ("local=ollama+{}", lambda url: ollama.Client(url), OLLAMAS),
    # as a line of llm's extra-openai-models.yaml makes it
    "llm": (
        "openai={}/v1",
        lambda url: nullcontext(Chat("far", KEY, model_name="m", api_base=f"{url}/v1")),
        {
            "stream": lambda model: [*model.prompt("Hello")],
            "whole": lambda model: model.prompt("Hello", stream=False, seed=7).json(),
        },
    ),
}


def sent(request: RawRequest) -> tuple[Any, ...]:
    """Return what the provider got, without what is another one each time."""
    own = {"host", "content-length", "accept-encoding", "connection", "x-llmproxy-via"}
    own.add("transfer-encoding")
    kind = request.header("content-type") or ""
    boundary = kind.partition("boundary=")[2] or "no boundary"
    fields = [
        (name, value.replace(boundary, "BOUNDARY"))
        for name, value in request.headers
        if name.lower() not in own
    ]
    body = request.body.replace(boundary.encode(), b"BOUNDARY")
    return request.method, request.target, fields, body


@pytest.mark.own_server  # others write header names in lower case
@pytest.mark.parametrize("vendor", VENDORS)
def test_an_sdk_works_as_without_this_server(vendor):
    upstream, client_of, calls = VENDORS[vendor]
    count = 0
    with playing_raw(provider) as there:
        settings = {"upstreams": [upstream.format(there.url)]}
        with (
            running(**settings, passthrough=upstream.partition("=")[0]) as proxy,
            client_of(there.url) as direct,
            client_of(proxy.url) as through,
        ):
            for name, call in calls.items():
                expected, found = call(direct), call(through)
                assert repr(found) == repr(expected), name
                requests = [sent(request) for request in there.requests]
                half = len(requests) // 2
                assert requests[:half] == requests[half:] and half, name
                there.requests.clear()
                count += half
            proxy.wait_for_report(count)
    assert {(one.status, one.ignored) for one in proxy.reports} == {("ok", ())}
