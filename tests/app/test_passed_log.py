"""What passed byte for byte is in the log as every exchange is: read, replayed, sent again."""

from __future__ import annotations

import json

from llmproxy.core import chat
from llmproxy.dialects import anthropic_messages
from tests.app.test_passthrough import ANTHROPIC, FRAMINGS, ask, settings
from tests.commands import run_here
from tests.proxies import running
from tests.raw_provider import playing_raw
from tests.wire_cases import wire_cases

STREAM = next(
    case.stream
    for case in wire_cases("anthropic_messages", answered=True)
    if case.name == "sdk_stop_sequence"
)


def body(messages):
    value, _ = anthropic_messages.render_request(chat.ChatRequest("claude-x", messages))
    return json.dumps(value | {"max_tokens": 9, "stream": True}).encode()


def texts(stream):
    values = [json.loads(frame.data) for frame in ANTHROPIC.StreamDecoder(10**9).feed(stream)]
    deltas = (value["delta"] for value in values if value["type"] == "content_block_delta")
    return "".join(delta.get("text", "") for delta in deltas)


def test_the_commands_take_what_passed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = json.dumps(
        {
            "model": "claude-x",
            "max_tokens": 9,
            "stream": True,
            "messages": [{"role": "user", "content": "Hi?"}],
        }
    ).encode()
    with playing_raw(*[FRAMINGS["whole"](STREAM)] * 4) as provider:
        with running(**settings(provider, ANTHROPIC)) as proxy:
            _, _, live = ask(proxy, first)
            turn = proxy.wait_for_report().turn
            ask(proxy, body([*turn.messages, *turn.reply]))
            exchange = proxy.wait_for_report(2)
        upstream = f"far=anthropic_messages+{provider.url}"
        bench = run_here("bench", "--base-url", upstream, "--models", "claude-x", "--name", "b")
    assert bench[0] == 0, bench
    assert provider.requests[3].target == "/v1/messages"

    assert exchange.model_used == "far/claude-x"
    status, out, _ = run_here("log", "--threads")
    assert (status, out.count(b"2 exchanges")) == (0, 1)
    assert b"far/claude-x" in out
    assert run_here("log", "--upstream", "far") == run_here("log")
    assert b"claude" not in run_here("log", "--upstream", "near")[1]
    status, out, _ = run_here("log", "--cache")
    assert status == 0
    assert b"1 conversation kept its prefix\n  the provider read 0 tokens" in out
    assert run_here("export", "all.jsonl")[0] == 0
    assert run_here("import", "all.jsonl", "--database", "copy.db")[0] == 0
    assert run_here("log", "--verify", "--database", "copy.db")[0] == 0

    with running(replay="replay", recordings=["all.jsonl"], replay_speed=0) as proxy:
        status, _, replayed = ask(proxy, first)
    assert b"200" in status
    assert texts(replayed) == texts(live) != ""
