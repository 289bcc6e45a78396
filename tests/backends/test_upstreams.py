"""Upstreams: their settings, the routes of models, keys, loops."""

from __future__ import annotations

import pytest

from llmproxy.backends.upstreams import LOOP_HEADER, Target, Upstreams
from llmproxy.core.errors import InvalidRequest, SettingsError, Unauthorized, Unsupported

OURS = "our-own-key-123"
THEIRS = "client-key-for-them-456"


def upstreams(*names: str, **settings: object) -> Upstreams:
    return Upstreams(names, **settings)  # type: ignore[arg-type]


def routed(one: Upstreams, model: str | None) -> list[str]:
    return [str(target) for target in one.route(model)]


@pytest.mark.parametrize(
    ("text", "dialects", "url"),
    [
        ("anthropic", ("anthropic_messages",), "https://api.anthropic.com"),
        ("openai", ("openai_chat", "openai_responses"), "https://api.openai.com/v1"),
        ("codex", ("openai_responses",), "https://chatgpt.com/backend-api/codex"),
        ("anthropic=http://127.0.0.1:9000/", ("anthropic_messages",), "http://127.0.0.1:9000"),
        (
            "groq=openai_chat+https://api.groq.com/openai/v1",
            ("openai_chat",),
            "https://api.groq.com/openai/v1",
        ),
        ("local=ollama+http://127.0.0.1:11434/api", ("ollama",), "http://127.0.0.1:11434"),
        ("a=ollama+http://[::1]:1", ("ollama",), "http://[::1]:1"),
        ("a=ollama+http://192.168.1.7", ("ollama",), "http://192.168.1.7"),
        ("a=ollama+http://100.64.0.3", ("ollama",), "http://100.64.0.3"),  # Tailscale's
        ("a=ollama+http://host.docker.internal:1", ("ollama",), "http://host.docker.internal:1"),
    ],
)
def test_an_upstream_has_a_name_a_dialect_and_a_url(text, dialects, url):
    (one,) = upstreams(text).servers.values()
    assert (one.name, one.dialects, one.url) == (text.partition("=")[0], dialects, url)
    assert one.is_builtin is ("=" not in text)


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        (
            ["groq"],
            {},
            "upstreams: groq needs an API and an address, as groq=DIALECT+URL; only anthropic",
        ),
        (["llm=ollama+http://127.0.0.1"], {}, "upstreams: 'llm' can't be"),
        (["a b=ollama+http://127.0.0.1"], {}, "upstreams: 'a b' can't be"),
        (["a=https://example.com"], {}, "upstreams: a: the dialect is missing"),
        (["a=gemini+https://example.com"], {}, "upstreams: a: 'gemini' is no dialect"),
        (["a=ollama+ftp://example.com"], {}, "upstreams: a: the URL does not begin with http"),
        (["a=ollama+https://u:p4ssw0rd@x.com"], {}, "upstreams: a: the URL has a user"),
        (["a=ollama+https://u:p4/ss@x.com"], {}, "upstreams: a: the URL's host or port can't be"),
        (["a=ollama+https://x.com?key=1"], {}, "upstreams: a: the URL has a query"),
        (["a=ollama+http://example.com"], {}, "upstreams: a: http:// to example.com would show"),
        (["a=ollama+http://8.8.8.8"], {}, "upstreams: a: http:// to 8.8.8.8 would show"),
        (["a=ollama+http://0x8080808"], {}, "upstreams: a: http:// to 0x8080808 would show"),
        (["a=ollama+http://[::ffff:8.8.8.8]"], {}, "upstreams: a: http:// to ::ffff:8.8.8.8"),
        (["anthropic", "anthropic"], {}, "upstreams: anthropic is given twice"),
        (["anthropic"], {"passthrough": "x"}, "passthrough: there is no upstream 'x'"),
        (["anthropic"], {"keys": [("x", "client")]}, "upstream_keys: there is no upstream 'x'"),
        (["anthropic"], {"keys": [("anthropic", "sk-1")]}, "upstream_keys: the source of anth"),
        (["anthropic"], {"keys": [("anthropic", "env:")]}, "upstream_keys: the source of anth"),
        (
            ["anthropic"],
            {"keys": [("anthropic", "env:A"), ("anthropic", "client")]},
            "upstream_keys: the key of anthropic is given twice",
        ),
        (["anthropic"], {"maps": [("a", "antropic:")]}, "maps: 'a=antropic:': there is no upstr"),
        (["anthropic"], {"maps": [("a", "anthropic:,")]}, "maps: a target of 'a' is empty"),
        (["anthropic"], {"maps": [("a", "llm:")]}, "maps: 'llm:' names no model of llm"),
        (["anthropic"], {"ca": "/no/such/file"}, "upstream_ca: /no/such/file: No such file"),
    ],
)
def test_an_error_names_the_setting_and_the_part(names, settings, said):
    with pytest.raises(SettingsError) as caught:
        upstreams(*names, **settings)
    assert str(caught.value).startswith(said)
    assert "p4ssw0rd" not in str(caught.value) and "sk-1" not in str(caught.value)


def test_http_to_a_public_address_is_used_only_if_that_is_wanted():
    assert upstreams("a=ollama+http://example.com", insecure=True).servers["a"]


def test_a_model_is_routed_by_map_then_name_then_passthrough():
    one = upstreams(
        "anthropic",
        "openai",
        maps=[
            ("claude-haiku*", "gpt-4o-mini"),
            ("claude-*", "anthropic:,llm:gpt-4o"),
            ("fast", "openai:gpt-5-mini"),
            ("x[1]", "openai:"),
        ],
        passthrough="openai",
    )
    assert routed(one, "claude-haiku-4") == ["llm:"]
    assert one.maps_of_llm == [("claude-haiku*", "gpt-4o-mini")]
    assert one.models_of_llm == ["gpt-4o"]
    assert routed(one, "claude-opus-4") == ["anthropic:", "llm:gpt-4o"]
    assert routed(one, "anthropic/claude-opus-4") == ["anthropic:claude-opus-4", "llm:gpt-4o"]
    assert routed(one, "fast") == ["openai:gpt-5-mini"]
    assert routed(one, "x[1]") == ["openai:"]
    assert routed(one, "anthropic:claude-9") == ["anthropic:claude-9"]
    assert routed(one, "llama3:8b") == ["openai:"]
    assert routed(one, None) == ["openai:"]


def test_what_nothing_takes_is_a_model_of_llm():
    one = upstreams("anthropic", maps=[("a", "llama3:8b"), ("b", "llm:llama3:8b")])
    assert one.route("llama3:8b") == one.route(None) == one.route("a") == (Target(None),)
    assert routed(one, "b") == ["llm:llama3:8b"]
    assert upstreams(maps=[("a", "b")]).is_used is False
    assert upstreams(maps=[("a", "llm:b,c")]).is_used is True


@pytest.mark.parametrize(
    ("name", "path", "url"),
    [
        ("anthropic", "/v1/messages", "https://api.anthropic.com/v1/messages"),
        ("anthropic", "/v1/v1/messages", "https://api.anthropic.com/v1/messages"),
        ("anthropic", "/messages", "https://api.anthropic.com/v1/messages"),
        ("anthropic", "/api/hello", "https://api.anthropic.com/api/hello"),
        ("openai", "/v1/files", "https://api.openai.com/v1/files"),
        ("openai", "/responses", "https://api.openai.com/v1/responses"),
        ("codex", "/v1/responses", "https://chatgpt.com/backend-api/codex/responses"),
        ("codex", "/responses", "https://chatgpt.com/backend-api/codex/responses"),
        ("local=ollama+http://[::1]/", "/api/chat", "http://[::1]/api/chat"),
    ],
)
def test_a_path_has_its_version_once(name, path, url):
    (one,) = upstreams(name).servers.values()
    assert one.url_for(path) == url
    assert one.url_for(path, "a=1") == f"{url}?a=1"


def test_the_log_names_models_as_plugins_do():
    one = upstreams("anthropic", "openai").servers
    assert one["anthropic"].model_id("claude-9") == "anthropic/claude-9"
    assert one["anthropic"].model_id("anthropic/claude-9") == "anthropic/claude-9"
    assert one["openai"].model_id("gpt-5") == "gpt-5"


def test_a_list_has_the_names_under_which_models_can_be_asked_for():
    one = upstreams("anthropic", "openai", maps=[("claude-*", "anthropic:")])
    assert one.name_in_list(one.servers["anthropic"], "claude-9") == "claude-9"
    assert one.name_in_list(one.servers["openai"], "gpt-5") == "openai:gpt-5"


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        ([("X-Api-Key", THEIRS)], [("X-Api-Key", THEIRS)]),
        ([("x-api-key", OURS), ("authorization", f"Bearer {THEIRS}")], ["authorization"]),
        ([("x-api-key", THEIRS), ("authorization", f"bearer {OURS}")], ["x-api-key"]),
        ([("authorization", "Basic dTpvdXItb3duLWtleS0xMjM=")], []),  # u:OURS
        ([("api-key", OURS), ("cookie", "a=b"), ("accept", "x")], ["cookie"]),
        ([("x-api-key", "schlüssel")], ["x-api-key"]),
    ],
)
def test_the_clients_credentials_are_passed_on_without_our_key(sent, passed):
    one = upstreams("anthropic", own_keys=["other-key-of-ours", OURS])
    got = one.credentials(one.servers["anthropic"], sent)
    assert got == [pair for pair in sent if pair in passed or pair[0] in passed]
    assert OURS not in str(got)


@pytest.mark.parametrize("source", ["env:THEIR_KEY", "llm:theirs"])
def test_a_key_of_the_settings_takes_the_place_of_the_clients(source, monkeypatch, llm_user_path):
    one = upstreams("anthropic", keys=[("anthropic", source)])
    there = one.servers["anthropic"]
    sent = [("authorization", f"Bearer {THEIRS}"), ("cookie", "a=b")]
    with pytest.raises(Unauthorized, match=f"upstream anthropic is not set .{source}"):
        one.credentials(there, sent)
    assert [status.has_key for status in one.describe()] == [False]
    monkeypatch.setenv("THEIR_KEY", "from-the-settings ")
    (llm_user_path / "keys.json").write_text('{"theirs": "from-the-settings"}')
    assert one.credentials(there, sent) == [("x-api-key", "from-the-settings")]
    (status,) = one.describe()
    assert (status.key, status.has_key) == (source, True)
    assert one.secrets() == ["from-the-settings"]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([("authorization", f"Bearer {THEIRS}"), ("cookie", "a=b")], {"x-api-key": THEIRS}),
        ([("authorization", "Bearer sk-ant-oat1")], {"authorization": "Bearer sk-ant-oat1"}),
        ([("cookie", "a=b")], {}),
    ],
)
def test_a_converted_request_has_the_key_in_the_upstreams_field(sent, expected):
    one = upstreams("anthropic")
    fields = dict(one.converted_credentials(one.servers["anthropic"], sent))
    assert fields.pop("anthropic-version")
    assert fields == expected


def test_a_request_that_has_passed_this_server_is_refused():
    one, other = upstreams("a=ollama+http://[::1]"), upstreams("anthropic")
    sent = one.loop_header(one.servers["a"], [(LOOP_HEADER, "other")])
    assert sent == [(LOOP_HEADER, f"other, {one.instance}")]
    other.check(sent)
    with pytest.raises(InvalidRequest, match="leads back to this server"):
        one.check(sent)
    assert other.loop_header(other.servers["anthropic"]) == []  # that is no proxy


def test_a_request_that_is_signed_for_one_host_is_refused():
    with pytest.raises(Unsupported, match="SigV4"):
        upstreams("anthropic").check([("Authorization", "AWS4-HMAC-SHA256 Credential=AKIA/x")])
    with pytest.raises(Unsupported, match="SigV4"):
        upstreams("anthropic").check([], "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=1")
    upstreams().check([("authorization", "AWS4-HMAC-SHA256 x")])  # it goes nowhere
