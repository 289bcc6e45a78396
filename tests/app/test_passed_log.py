"""What passed byte for byte is in the log as every exchange is: read, replayed, sent again."""

from __future__ import annotations

import json
import time
from urllib.request import Request, urlopen

import pytest

from llmproxy import open_log
from llmproxy.core import chat
from llmproxy.dialects import anthropic_messages
from tests.app.test_passthrough import ANTHROPIC, FRAMINGS, KEY, ask, settings
from tests.cli.test_main import serving
from tests.commands import run_here
from tests.proxies import running
from tests.raw_provider import begin_chunked, chunk, playing_raw
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


def test_what_passes_is_spooled_if_the_log_can_not_be_written(tmp_path):
    """The client has its response all the same, and a later process takes the exchange in."""
    database = tmp_path / "logs.db"
    database.symlink_to(tmp_path / "nowhere" / "logs.db")  # where it can't be made
    first = {"model": "claude-x", "max_tokens": 9, "stream": True}
    asked = json.dumps(first | {"messages": [{"role": "user", "content": "Hi?"}]}).encode()
    with playing_raw(FRAMINGS["whole"](STREAM)) as provider:
        with running(**settings(provider, ANTHROPIC), database=database) as proxy:
            status, _, answered = ask(proxy, asked)
            id = proxy.wait_for_report().id
    assert b" 200" in status and answered == STREAM
    (spool,) = [path for path in tmp_path.iterdir() if path.suffix == ".jsonl"]
    assert KEY.encode() not in spool.read_bytes()

    (tmp_path / "nowhere").mkdir()
    with running(database=database):
        pass
    with open_log(database) as log:
        exchange = log.exchange(id)
    assert (exchange.status, exchange.upstream, exchange.model_used) == (
        "ok",
        "far",
        "far/claude-x",
    )
    assert texts(STREAM) == "".join(part.text for part in exchange.turn.reply[0].parts)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".jsonl"]


@pytest.mark.slow
def test_what_passed_when_the_server_was_killed_is_interrupted(llm_user_path):
    def endless(request):
        yield begin_chunked()
        yield chunk(STREAM[:400])
        request.wait_for_hang_up()

    with playing_raw(endless) as provider:
        upstream = ["--upstream", f"far=anthropic_messages+{provider.url}", "--passthrough", "far"]
        asked = {"model": "claude-x", "max_tokens": 9, "stream": True}
        asked["messages"] = [{"role": "user", "content": "Hi?"}]
        with serving(*upstream) as (killed, url, _):
            request = Request(f"{url}/v1/messages", json.dumps(asked).encode(), {"x-api-key": KEY})
            with urlopen(request, timeout=20) as answered:
                assert answered.read(400) == STREAM[:400]
                deadline = time.monotonic() + 10
                while run_here("log", "--status", "running")[1] == b"":
                    assert time.monotonic() < deadline
                killed.kill()
                killed.wait(10)
        with serving(*upstream):
            while run_here("log", "--status", "running")[1]:
                assert time.monotonic() < deadline + 10
            _, out, _ = run_here("log", "--json")
    (found,) = [json.loads(line) for line in out.splitlines()]
    assert (found["status"], found["model_asked"]) == ("interrupted", "claude-x")
    assert found["first_words"] == "Hi?"
    files = [path for path in llm_user_path.rglob("*") if path.is_file()]
    assert KEY.encode() not in b"".join(path.read_bytes() for path in files)
