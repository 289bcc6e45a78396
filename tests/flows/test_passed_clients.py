"""Claude Code and Codex themselves, passed on to their provider, which is played on loopback.

`npm install @anthropic-ai/claude-code @openai/codex` anywhere, and `node_modules/.bin` on PATH, or
CLAUDE and CODEX set to the programs. What the provider gets must be what it gets through a plain
TCP relay at the same kind of address.
"""

from __future__ import annotations

import base64
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from llm.parts import StreamEvent

from llmproxy.core import chat
from llmproxy.core.usage import Usage
from llmproxy.dialects import anthropic_messages, openai_responses
from llmproxy.transport import content_coding
from tests.commands import run_here
from tests.flows.test_codex import CODEX, codex, provider
from tests.proxies import running
from tests.raw_provider import (
    RawProvider,
    RawRequest,
    begin_chunked,
    chunk,
    end_chunks,
    playing_raw,
    relaying,
    response,
)

CLAUDE = os.environ.get("CLAUDE") or shutil.which("claude")
KEY = "sk-ant-canary-0123456789"
LOGIN = "sk-ant-oat01-canary-0123456789-abcdefghijk"
RUN = {"command": "echo harbour", "description": "Say it"}
TIMEOUT_S = 60
USAGE = Usage(10, 5, cached_tokens=100)
README = Path(__file__).parents[2] / "README.md"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]  # each program takes seconds


def played(dialect: Any, call: StreamEvent, arguments: dict[str, Any]) -> Any:
    """Answer as the provider: a call of a tool, then what it said."""
    numbers = itertools.count(1)

    def answer(request: RawRequest) -> Any:
        if request.method != "POST" or not request.body:
            return response(b"{}", 404)
        body = json.loads(plain(request))
        history = json.dumps(body.get("messages") or body.get("input"))
        events: list[Any] = [StreamEvent("text", "It said harbour.", 0)]
        if not re.search("tool_result|call_output", history) and body.get("tools"):
            events = [
                StreamEvent("text", "Running.", 0),
                call,
                StreamEvent("tool_call_args", json.dumps(arguments), 1, call.tool_call_id),
            ]
        reason: Any = "tool_calls" if len(events) > 1 else "stop"
        renderer = dialect.StreamRenderer(chat.Envelope(f"{next(numbers)}", 1, body["model"]))
        events.append(chat.Finish(reason, usage=USAGE))
        frames = b"".join(map(b"".join, (renderer.start(), *map(renderer.feed, events))))
        fields = [("Content-Type", "text/event-stream; charset=utf-8"), ("request-id", "req_1")]
        return [
            begin_chunked(headers=fields),
            chunk(frames[:300]),
            chunk(frames[300:]),
            end_chunks(),
        ]

    return answer


def plain(request: RawRequest) -> bytes:
    """Return a request's body without its compression."""
    return zstd().decompress(request.body) if request.header("content-encoding") else request.body


def zstd() -> Any:
    return importlib.import_module(
        "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    )


def sent(provider: RawProvider, home: Path) -> list[Any]:
    """Return what a provider got, without ids, times and what names the place."""
    found = []
    for request in provider.requests:
        if request.method == "HEAD":  # of the server itself: answered by it
            continue
        text = plain(request).decode().replace(str(home), "HOME")
        text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32,}|127\.0\.0\.1:[0-9]+", "ID", text)
        text = re.sub(r"[0-9-]{10}T[0-9:.]+Z?", "TIME", re.sub(r"[0-9]{10,}(\.[0-9]+)?", "0", text))
        text = re.sub(r"cch=[0-9a-f]+", "cch", text)  # Claude Code's hash of the request
        text = re.sub(r"Chunk ID: [0-9a-f]+|Wall time: [0-9.]+", "RUN", text)
        # Codex writes some members in another order each time.
        text = json.dumps(json.loads(text), sort_keys=True)
        own = {"host", "content-length", "accept-encoding", "connection", "x-llmproxy-via"}
        fields = [(name, re.sub("[0-9a-f-]{36}", "ID", value)) for name, value in request.headers]
        kept = [
            (name, re.sub(r'\{.*"', "JSON", value))
            for name, value in fields
            if name.lower() not in own
        ]
        found.append((request.method, request.target, kept, text))
    return found


def claude(url: str, home: Path, *arguments: str, **variables: str) -> str:
    """Run Claude Code once and return what it prints; an empty variable is not set."""
    home.mkdir(exist_ok=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "ANTHROPIC_BASE_URL": url}
    env |= {"ANTHROPIC_API_KEY": KEY, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    env = {name: value for name, value in (env | variables).items() if value}
    assert CLAUDE is not None
    flags = ["-p", "--model", "claude-haiku-4-5", "--allowedTools=Bash,Read", *arguments]
    done = subprocess.run(
        [CLAUDE, *flags, "Run it."],
        env=env,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(CLAUDE is None, reason="claude is not installed")
def test_claude_code_is_passed_on_as_by_a_relay(llm_user_path, tmp_path):
    answer = played(anthropic_messages, StreamEvent("tool_call_name", "Bash", 1, "toolu_1"), RUN)
    home = tmp_path / "home"
    with playing_raw(answer) as direct:
        with relaying(direct.port) as relay:
            assert claude(relay.url, home) == "It said harbour."
            assert claude(relay.url, home, "--continue") == "It said harbour."
    shutil.rmtree(home)
    with playing_raw(answer) as passed:
        with running(
            upstreams=[f"anthropic={passed.url}"], maps=[("claude-*", "anthropic:")]
        ) as proxy:
            assert claude(proxy.url, home) == "It said harbour."
            assert claude(proxy.url, home, "--continue") == "It said harbour."
            exchanges = list(proxy.reports)
    assert sent(passed, home) == sent(direct, home)
    assert {(one.status, one.model_used) for one in exchanges} == {
        ("ok", "anthropic/claude-haiku-4-5")
    }
    chats = [one for one in exchanges if one.turn]
    assert [one.previous_id for one in chats] == [None, *(one.id for one in chats[:-1])]
    assert {one.usage.cached_tokens for one in chats} == {100}
    assert not any(one.ignored for one in chats)
    assert KEY.encode() not in (llm_user_path / "logs.db").read_bytes()
    assert b"Run it." in shown("--threads") and shown("--cache")


@contextmanager
def command(words: list[str], **variables: str) -> Iterator[str]:
    """Run the server as a user does, with these words on the command line; yield its URL."""
    assert words[:3] == ["python", "-m", "llmproxy"]
    env = {"PATH": os.environ["PATH"], "LLM_USER_PATH": os.environ["LLM_USER_PATH"]}
    process = subprocess.Popen(
        [sys.executable, *words[1:]],
        env=env | {"LLMPROXY_PORT": "0"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:  # the last line of the welcome
            if line.startswith("or: OLLAMA_HOST="):
                yield line.strip().partition("=")[2]
                break
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


@pytest.mark.skipif(CLAUDE is None, reason="claude is not installed")
def test_the_two_lines_of_the_readme_record_claude_code(llm_user_path, tmp_path, monkeypatch):
    """All as a user has it, but that a proxy of the environment leads to the played provider."""
    lines = README.read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("python -m llmproxy --upstream"))
    assert lines[lines.index(line) + 1] == "ANTHROPIC_BASE_URL=http://127.0.0.1:11435 claude"
    home = tmp_path / "home"
    home.mkdir()
    (home / "note.txt").write_text("harbour\n")
    call = StreamEvent("tool_call_name", "Read", 1, "toolu_1")
    answer = played(anthropic_messages, call, {"file_path": str(home / "note.txt")})
    with (
        playing_raw(answer, tls="api.anthropic.com") as provider,
        relaying(provider.port, answers_connect=True) as proxy,
    ):
        ca = str(provider.write_ca(tmp_path))
        words = [*shlex.split(line), "--upstream-ca", ca]
        with command(words, HTTPS_PROXY=proxy.url) as url:
            assert claude(url, home) == "It said harbour."
            assert claude(url, home, "--continue") == "It said harbour."
        assert proxy.received[0].startswith(b"CONNECT api.anthropic.com:443 ")
        count = len(provider.requests)
        assert b"harbour" in provider.requests[1].body  # what the tool has read

        recorded = shown("--json")
        found = [json.loads(one) for one in recorded.splitlines()]
        assert len(found) == count == 3
        assert {(one["status"], one["upstream"]) for one in found} == {("ok", "anthropic")}
        assert b"3 exchanges  300\xe2\x86\x9215 tokens, 300 cached  Run it." in shown("--threads")
        assert b"1 conversation kept its prefix" in shown("--cache")
        page = shown(found[1]["id"])
        assert b"upstream     anthropic, request req_1" in page and b"It said harbour." in page

        monkeypatch.setenv("HTTPS_PROXY", proxy.url)  # for bench
        monkeypatch.setenv("SSL_CERT_FILE", ca)
        again = ("--base-url", "anthropic", "--key", KEY, "--models", "claude-haiku-4-5")
        code, table, _ = run_here("bench", *again, "--name", "again", "--warmup", "0")
        assert code == 0 and b"agreement with recorded" in table
        assert b"stop 2, tool_calls 1" in table
        assert len(provider.requests) == count + 3
    assert run_here("bench", "--models", "demo", "--name", "demo", "--warmup", "0")[0] == 0
    assert KEY.encode() not in (llm_user_path / "logs.db").read_bytes()

    file, other = tmp_path / "out.jsonl", str(tmp_path / "other.db")
    assert run_here("export", str(file))[0] == 0
    assert run_here("import", str(file), "--database", other)[0] == 0
    imported = [json.loads(one) for one in shown("--json", "--database", other).splitlines()]
    assert [one["id"] for one in imported[:3]] == [one["id"] for one in found]

    with running(replay="replay", log=False) as replaying:  # the provider is gone
        assert claude(replaying.url, home) == "It said harbour."
        assert claude(replaying.url, home, "--continue") == "It said harbour."
        assert {one.replay_of for one in replaying.reports} == {one["id"] for one in found}


@pytest.mark.skipif(CLAUDE is None, reason="claude is not installed")
def test_claude_code_sends_what_it_would_send_to_anthropic(llm_user_path, tmp_path):
    """With the variable of docs/upstreams.md; the page tells what it leaves out without it."""
    home = tmp_path / "home"
    first_party = "_CLAUDE_CODE_ASSUME_FIRST_PARTY_BASE_URL"
    answer = played(anthropic_messages, StreamEvent("tool_call_name", "Bash", 1, "toolu_1"), RUN)
    flags = ("--model", "sonnet", "--output-format", "json")
    with (
        playing_raw(answer, tls="api.anthropic.com") as anthropic,
        relaying(anthropic.port, answers_connect=True) as proxy,
    ):
        ca = str(anthropic.write_ca(tmp_path))
        said = claude("", home, *flags, HTTPS_PROXY=proxy.url, NODE_EXTRA_CA_CERTS=ca)
        assert context_window(said) == 1_000_000
        anthropic.requests = [one for one in anthropic.requests if one.method == "POST"]
        expected = sent(anthropic, home)
    found = {}
    for variables in ({first_party: "1"}, {"ENABLE_TOOL_SEARCH": "true"}, {}):
        shutil.rmtree(home)
        with playing_raw(answer) as provider:
            with running(
                upstreams=[f"anthropic={provider.url}"], maps=[("claude-*", "anthropic:")]
            ) as server:
                said = claude(server.url, home, *flags, **variables)
        (name,) = variables or [""]
        (one, *_) = provider.requests
        found[name] = (
            context_window(said),
            "ToolSearch" in [tool["name"] for tool in json.loads(one.body)["tools"]],
            "advanced-tool-use-2025-11-20" in (one.header("anthropic-beta") or ""),
            len(one.body) > 100_000,
        )
        if name == first_party:
            assert sent(provider, home) == expected
    assert found == {
        first_party: (1_000_000, True, True, False),
        "ENABLE_TOOL_SEARCH": (200_000, True, True, False),
        "": (200_000, False, False, True),
    }


@pytest.mark.skipif(CLAUDE is None, reason="claude is not installed")
@pytest.mark.parametrize(
    ("login", "name", "own"),
    [
        ({"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": LOGIN}, "authorization", "x-api-key"),
        ({}, "x-api-key", "authorization"),
    ],
    ids=["subscription", "key"],
)
def test_claude_code_has_a_key_for_this_server_beside_its_own(
    login, name, own, llm_user_path, tmp_path
):
    answer = played(anthropic_messages, StreamEvent("tool_call_name", "Bash", 1, "toolu_1"), RUN)
    ours = "own.key.of.this.server"
    header = f"{own}: {'Bearer ' if own == 'authorization' else ''}{ours}"
    with playing_raw(answer) as provider:
        settings = {"upstreams": [f"anthropic={provider.url}"], "passthrough": "anthropic"}
        with running(**settings, keys=[ours]) as server:
            said = claude(server.url, tmp_path / "home", ANTHROPIC_CUSTOM_HEADERS=header, **login)
            assert said == "It said harbour."
            assert {one.status for one in server.reports} == {"ok"}
    for request in provider.requests:
        assert request.header(own) is None
        assert request.header(name) == (f"Bearer {LOGIN}" if login else KEY)
    kept = b"".join(path.read_bytes() for path in llm_user_path.glob("logs.db*"))
    assert kept and not any(secret.encode() in kept for secret in (ours, LOGIN, KEY))


def context_window(said: str) -> int:
    """Return how many tokens Claude Code takes the model's context to be."""
    (usage,) = json.loads(said)["modelUsage"].values()
    return int(usage["contextWindow"])


def shown(*words: str) -> bytes:
    """Return what `log` shows."""
    code, out, error = run_here("log", *words)
    assert code == 0, error
    return out


@pytest.mark.skipif(CODEX is None, reason="codex is not installed")
def test_codex_is_passed_on_as_by_a_relay(llm_user_path, tmp_path):
    call = StreamEvent("tool_call_name", "exec_command", 1, "call_1")
    home = tmp_path / "home"
    with playing_raw(played(openai_responses, call, {"cmd": "echo harbour"})) as direct:
        with relaying(direct.port) as relay:
            codex(home, *provider(relay.url))
    shutil.rmtree(home)
    with playing_raw(played(openai_responses, call, {"cmd": "echo harbour"})) as passed:
        with running(upstreams=[f"openai={passed.url}/v1"], passthrough="openai") as proxy:
            events = codex(home, *provider(proxy.url))
            exchanges = [one for one in proxy.reports if one.turn]
    assert events[-1]["type"] == "turn.completed"
    assert sent(passed, home) == sent(direct, home)
    assert [one.previous_id for one in exchanges] == [None, *(one.id for one in exchanges[:-1])]
    assert {one.status for one in exchanges} == {"ok"}


# ---- Codex with a subscription

ACCOUNT = {
    "id": "acc-1",
    "workspace_backend_origin": "https://chatgpt.com",
    "account_routing_override": "NO_CONSTRAINT",
}


def log_in(home: Path) -> list[str]:
    """Log Codex in with ChatGPT, by tokens without a signature; return them."""

    def token(**claims: Any) -> str:
        auth = {"chatgpt_account_id": ACCOUNT["id"], "chatgpt_plan_type": "plus"}
        claims |= {"exp": 4 * 10**9, "https://api.openai.com/auth": auth}
        parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
        return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)

    tokens = {name: f"{token(canary=name)}.c2ln" for name in ("id_token", "access_token")}
    tokens["refresh_token"] = "refresh.canary.0123456789"
    login = {"tokens": tokens | {"account_id": ACCOUNT["id"]}, "auth_mode": "chatgpt"}
    login["last_refresh"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    home.mkdir(exist_ok=True)
    (home / "auth.json").write_text(json.dumps(login))
    return [*tokens.values()]


def chatgpt(request: RawRequest) -> Any:
    """Answer as chatgpt.com, which Codex asks for more than responses."""
    if request.target.endswith("/wham/accounts/check"):
        return response(json.dumps({"accounts": [ACCOUNT], "account_ordering": ["acc-1"]}).encode())
    if request.header("upgrade"):
        return response(b"{}", 426)
    if not request.target.endswith("/codex/responses"):
        return response(b"{}", 404)
    call = StreamEvent("tool_call_name", "exec_command", 1, "call_1")
    return played(openai_responses, call, {"cmd": "echo harbour"})(request)


@pytest.mark.skipif(CODEX is None, reason="codex is not installed")
@pytest.mark.parametrize(
    ("has_zstd", "compression", "own_address"),
    [(True, True, False), (False, True, False), (False, False, True)],
    ids=["zstd", "zstd before Python 3.14", "not compressed"],
)
def test_codex_is_passed_on_with_its_subscription(
    has_zstd, compression, own_address, llm_user_path, tmp_path, monkeypatch
):
    """As docs/upstreams.md says; chatgpt.com is behind a proxy of Codex's environment and ours."""
    monkeypatch.setattr(content_coding, "zstd", zstd() if has_zstd else None)
    home = tmp_path / "home"
    flags = ["-c", f"features.enable_request_compression={str(compression).lower()}"]
    received = []
    for through in (False, True):
        shutil.rmtree(home, ignore_errors=True)
        secrets = log_in(home)
        with (
            playing_raw(chatgpt, tls="chatgpt.com") as provider,
            playing_raw(chatgpt) as there,
            relaying(provider.port, answers_connect=True) as proxy,
        ):
            ca = str(provider.write_ca(tmp_path))
            env = {"HTTPS_PROXY": proxy.url, "CODEX_CA_CERTIFICATE": ca, "NO_PROXY": "127.0.0.1"}
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            url = f"={there.url}/backend-api/codex" if own_address else ""
            settings = {"upstreams": [f"codex{url}"], "passthrough": "codex", "upstream_ca": ca}
            with running(**settings) as server:
                base = ["-c", f'openai_base_url="{server.url}/v1"'] if through else []
                for resumed in ([], ["resume", "--last"]):
                    events = codex(home, *base, *flags, *resumed, model="gpt-5.5", **env)
                    assert events[-1]["type"] == "turn.completed"
                exchanges = [one for one in server.reports if one.turn]
            asked = there if through and own_address else provider
            asked.requests = [
                one
                for one in asked.requests
                if one.target.endswith("/responses") and one.method == "POST"
            ]
            received.append(sent(asked, home))
    assert received[0] == received[1]
    assert {one.header("authorization") for one in asked.requests} == {f"Bearer {secrets[1]}"}
    assert {one.header("content-encoding") for one in asked.requests} == {
        "zstd" if compression else None
    }
    is_read = has_zstd or not compression
    assert {one.ignored for one in exchanges} == {() if is_read else ("request",)}
    assert {(one.status, one.model_used) for one in exchanges} == {("ok", "gpt-5.5")}
    links = [one.previous_id for one in exchanges]
    assert links == ([None, *(one.id for one in exchanges[:-1])] if is_read else [None] * 3)
    if own_address:  # once, since it takes a second: the provider is gone
        assert b"3 exchanges" in shown("--threads")
        varying = ["Chunk ID: [0-9a-f]+", "Wall time: [0-9.]+"]
        with running(replay="replay", log=False, ignore=varying) as server:
            base = ["-c", f'openai_base_url="{server.url}/v1"']
            for resumed in ([], ["resume", "--last"]):
                with playing_raw(chatgpt, tls="chatgpt.com") as provider:
                    with relaying(provider.port, answers_connect=True) as proxy:
                        env["HTTPS_PROXY"] = proxy.url
                        events = codex(home, *base, *flags, *resumed, model="gpt-5.5", **env)
                assert events[-1]["type"] == "turn.completed"
            replayed = {one.replay_of for one in server.reports}
        assert replayed == {one.id for one in exchanges}
    kept = b"".join(path.read_bytes() for path in llm_user_path.glob("logs.db*"))
    assert not any(secret.encode() in kept for secret in secrets)
    assert not any(secret.split(".")[1].encode() in kept for secret in secrets)
