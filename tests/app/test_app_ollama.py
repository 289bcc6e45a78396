"""Ollama's API with its own Python client, sync and async, against a running server."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import llm
import ollama
import pytest
from llm.parts import StreamEvent, TextPart, ToolCallPart

from llmproxy.core.limits import Limits
from llmproxy.dialects.ollama import VERSION
from tests.app.test_app import client as openai_client
from tests.app.test_app import request
from tests.models import AsyncScript, EmbeddingScript, SyncScript, response_json, tool_call, usage
from tests.ollama_clients import closed_ollama_clients
from tests.proxies import Running, running

__all__ = ["closed_ollama_clients"]
PNG = b"\x89PNG\r\n\x1a\n1"
QUESTION = [{"role": "user", "content": "How are you today, my friend?"}]


class Thinker(AsyncScript):
    """A model with the options by which models are told to think, and llm-ollama's names."""

    class Options(llm.Options):
        thinking: bool | None = None
        reasoning_effort: str | None = None
        temperature: float | None = None
        num_predict: int | None = None
        num_ctx: int | None = None
        json_object: bool | None = None


def client_of(proxy: Running) -> ollama.Client:
    return ollama.Client(proxy.url)


def model(**attributes: Any) -> Thinker:
    said = (StreamEvent("reasoning", "Hm. "), "Fine, ", "thanks.", usage(7, 3))
    return Thinker("m", *said, **attributes)


@pytest.fixture
def proxy(llm_user_path: Any) -> Iterator[Running]:
    with running(model()) as proxy:
        yield proxy


# ---- chat


def test_a_chat_is_answered_whole(proxy: Running) -> None:
    answer = client_of(proxy).chat("m", QUESTION)
    assert (answer.message.role, answer.message.content) == ("assistant", "Fine, thanks.")
    assert answer.message.thinking == "Hm. "
    assert (answer.model, answer.done, answer.done_reason) == ("m", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (7, 3)
    spans = [answer.load_duration, answer.prompt_eval_duration, answer.eval_duration]
    assert all(type(span) is int and span >= 0 for span in spans)
    assert abs(answer.total_duration - sum(spans)) < 1_000  # nanoseconds, each rounded down
    assert proxy.wait_for_report().status == "ok"


def test_a_chat_is_streamed_by_default(proxy: Running) -> None:
    status, headers, body = request(
        proxy, "POST", "/api/chat", {"model": "m", "messages": QUESTION}
    )
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    lines = [json.loads(line) for line in body.split(b"\n")[:-1]]
    assert [line["message"]["content"] for line in lines] == ["", "Fine, ", "thanks.", ""]
    assert [line["done"] for line in lines] == [False, False, False, True]
    assert all(line["model"] == "m" and line["created_at"].endswith("Z") for line in lines)
    exchange = proxy.wait_for_report()
    assert (exchange.dialect, exchange.path, exchange.stream) == ("ollama", "/api/chat", True)


def test_the_client_streams_and_its_async_twin_too(proxy: Running) -> None:
    chunks = list(client_of(proxy).chat("m", QUESTION, stream=True, think=True))
    assert "".join(chunk.message.content for chunk in chunks) == "Fine, thanks."
    assert "".join(chunk.message.thinking or "" for chunk in chunks) == "Hm. "
    assert chunks[-1].eval_count == 3

    async def talk() -> tuple[str, str]:
        async with ollama.AsyncClient(proxy.url) as client:
            whole = await client.chat("m", QUESTION)
            stream = await client.chat("m", QUESTION, stream=True)
            return whole.message.content, "".join([c.message.content async for c in stream])

    assert asyncio.run(talk()) == ("Fine, thanks.", "Fine, thanks.")


def test_options_reach_the_model_by_its_names_and_others_are_listed(llm_user_path: Any) -> None:
    with running(m := model()) as proxy:
        options = {"temperature": 0.5, "num_predict": 9, "num_ctx": 4096, "num_gpu": 1}
        client_of(proxy).chat("m", QUESTION, options=options, think="high", keep_alive=300)
        client_of(proxy).chat("m", QUESTION, think=False, format="json")
        exchange = proxy.wait_for_report(2)
    first, second = (prompt.options.model_dump(exclude_none=True) for prompt in m.prompts)
    assert first == {
        "temperature": 0.5,
        "num_predict": 9,
        "num_ctx": 4096,
        "reasoning_effort": "high",
    }
    assert second == {"thinking": False, "json_object": True}
    assert proxy.reports[0].ignored == ("options.num_gpu", "keep_alive")
    assert exchange.ignored == ()


def test_a_schema_and_images_reach_the_model(llm_user_path: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with running(m := model()) as proxy:
        message = {**QUESTION[0], "images": [PNG]}
        client_of(proxy).chat("m", [message], format=schema)
        refused = request(
            proxy, "POST", "/api/chat", {"model": "m", "messages": [{**message, "images": ["?"]}]}
        )
    assert m.prompts[0].schema == schema
    assert [a.content for a in m.prompts[0].attachments] == [PNG]
    assert refused[0] == 400
    assert json.loads(refused[2])["error"] == "messages[0].images[0]: expected base64 data"


def get_weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: its name
    """
    return f"4 degrees in {city}"


@pytest.mark.parametrize("kind", [AsyncScript, SyncScript])
@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_loop_of_the_python_client_is_one_conversation(llm_user_path, kind, streams):
    """C23: the client drops the ids of calls; the model sees them again, with its reasoning."""
    m = kind(
        "m",
        StreamEvent("reasoning", "Both. ", provider_metadata={"x": {"signature": "s"}}),
        tool_call("get_weather", {"city": "Oslo"}, "toolu_1"),
        tool_call("get_weather", {"city": "Rome"}, "toolu_2"),
        usage(7, 3),
    )
    messages: list[Any] = list(QUESTION)
    with running(m) as proxy:
        client = client_of(proxy)
        if streams:
            chunks = list(client.chat("m", messages, tools=[get_weather], stream=True))
            [said] = [chunk.message for chunk in chunks if chunk.message.tool_calls]
            assert [chunk.done for chunk in chunks] == [False, False, True]
        else:
            said = client.chat("m", messages, tools=[get_weather]).message
        messages.append(said)
        for call in said.tool_calls:
            output = get_weather(**call.function.arguments)
            messages.append({"role": "tool", "tool_name": call.function.name, "content": output})
        m.steps = ("It is cold in Oslo.", usage(1, 1))
        client.chat("m", messages, tools=[get_weather])
        m.steps = ("You are welcome.", usage(1, 1))
        messages.append({"role": "assistant", "content": "It is cold in Oslo."})
        client.chat("m", [*messages, {"role": "user", "content": "Thanks!"}])
        proxy.wait_for_report(3)
    first, second, third = proxy.reports
    assert (second.previous_id, third.previous_id) == (first.id, second.id)
    assert (second.link, third.link) == ("reply", "reply")
    asked = m.prompts[1].messages
    calls = [part for message in asked for part in message.parts if isinstance(part, ToolCallPart)]
    assert [(c.arguments["city"], c.tool_call_id) for c in calls] == [
        ("Oslo", "call_0"),
        ("Rome", "call_1"),
    ]
    assert second.recalled == 1
    assert asked[1].parts[0].provider_metadata == {"x": {"signature": "s"}}
    results = asked[2].parts
    assert [(r.tool_call_id, r.output) for r in results] == [
        ("call_0", "4 degrees in Oslo"),
        ("call_1", "4 degrees in Rome"),
    ]


def test_an_error_before_and_in_a_stream_has_ollamas_shape(llm_user_path: Any) -> None:
    """C25"""
    with running(
        AsyncScript("early", RuntimeError("no luck")),
        AsyncScript("late", "So far", RuntimeError("no luck")),
    ) as proxy:
        client = client_of(proxy)
        with pytest.raises(ollama.ResponseError, match="no luck") as caught:
            client.chat("early", QUESTION)
        assert caught.value.status_code == 502
        chunks = []
        with pytest.raises(ollama.ResponseError, match="no luck"):
            for chunk in client.chat("late", QUESTION, stream=True):
                chunks.append(chunk.message.content)
        with pytest.raises(ollama.ResponseError, match="there is no model 'none'") as missing:
            client.chat("none", QUESTION)
    assert chunks == ["So far"]
    assert missing.value.status_code == 404


def test_a_response_cut_by_the_token_limit_says_so(llm_user_path: Any) -> None:
    with running(AsyncScript("m", "cut", response_json(finish_reason="length"))) as proxy:
        assert client_of(proxy).chat("m", QUESTION).done_reason == "length"


def test_a_silent_model_gets_lines_that_keep_the_connection(llm_user_path: Any) -> None:
    """Every client reads each line as JSON, so an empty one would break it."""

    async def think(response: Any) -> None:
        await asyncio.sleep(0.3)

    limits = Limits(first_event_s=0.05, keepalive_s=0.05)
    with running(AsyncScript("m", think, "At last"), limits=limits) as proxy:
        chunks = [c.message.content for c in client_of(proxy).chat("m", QUESTION, stream=True)]
    assert chunks[0] == "" and len(chunks) > 3
    assert "".join(chunks) == "At last"


# ---- generate


def test_generate_has_a_system_text_and_its_own_form(llm_user_path: Any) -> None:
    with running(m := model()) as proxy:
        client = client_of(proxy)
        answer = client.generate("m", "Say hello!", system="Be brief.", images=[PNG], context=[1])
        chunks = list(client.generate("m", "Say hello!", stream=True))
        proxy.wait_for_report(2)
    exchange = proxy.reports[0]
    assert (answer.response, answer.thinking) == ("Fine, thanks.", "Hm. ")
    assert "".join(chunk.response for chunk in chunks) == "Fine, thanks."
    assert (chunks[-1].done_reason, chunks[-1].eval_count) == ("stop", 3)
    [system, user] = m.prompts[0].messages
    assert (system.parts, user.parts[0]) == ([TextPart("Be brief.")], TextPart("Say hello!"))
    assert (exchange.path, exchange.ignored) == ("/api/generate", ("context",))


def test_a_suffix_is_refused_by_name(proxy: Running) -> None:
    with pytest.raises(ollama.ResponseError, match="^suffix: .*in the middle") as caught:
        client_of(proxy).generate("m", "def f(", suffix="return 1")
    assert caught.value.status_code == 400


def test_an_empty_prompt_loads_the_model_and_is_not_logged(llm_user_path: Any) -> None:
    """C25, B35"""
    with running(m := model()) as proxy:
        client = client_of(proxy)
        loads = [client.generate("m"), client.generate("m", "", keep_alive=0), client.chat("m")]
        streamed = list(client.generate("m", stream=True))
        with pytest.raises(ollama.ResponseError, match="there is no model 'none'"):
            client.generate("none")
    assert [load.done_reason for load in loads] == ["load", "unload", "load"]
    assert [load.done for load in loads] == [True] * 3
    assert (loads[0].response, loads[2].message.content) == ("", "")
    assert [chunk.done_reason for chunk in streamed] == ["load"]
    assert (m.prompts, proxy.reports) == ([], [])


@pytest.mark.parametrize("body", [{}, {"messages": None}, {"messages": []}, {"prompt": ""}])
def test_a_chat_that_says_only_a_model_is_answered_as_a_chat(proxy: Running, body: Any) -> None:
    status, _, raw = request(proxy, "POST", "/api/chat", {"model": "m", **body})
    loaded = json.loads(raw)
    assert (status, loaded["done"], loaded["done_reason"]) == (200, True, "load")
    assert loaded["message"] == {"role": "assistant", "content": ""}
    assert "response" not in loaded


def test_a_chats_route_takes_a_prompt_too(proxy: Running) -> None:
    """The body tells what it is, so that one by the wrong route of the two is understood."""
    body = {"model": "m", "prompt": "Hello", "stream": False}
    _, _, raw = request(proxy, "POST", "/api/chat", body)
    assert json.loads(raw)["response"] == "Fine, thanks."


# ---- models and the server


def test_b38_models_are_listed_and_shown(llm_user_path: Any) -> None:
    """B38, C21, C22"""
    (llm_user_path / "aliases.json").write_text('{"emm": "m"}')
    with running(model(num_ctx=9_000), AsyncScript("plain", supports_tools=False)) as proxy:
        client = client_of(proxy)
        listed = client.list().models
        shown = client.show("m")
        plain = request(proxy, "POST", "/api/show", {"name": "plain"})
        alias = client.show("emm")
        nameless = request(proxy, "POST", "/api/show", {})
        missing = request(proxy, "POST", "/api/show", {"model": "none"})
    assert {"m", "plain", "demo", "emm"} <= {entry.model for entry in listed}
    assert len({entry.digest for entry in listed}) == len(listed)
    assert shown.capabilities == ["completion", "tools", "vision", "thinking"]
    family = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{family}.context_length"] == 9_000
    assert alias.capabilities == shown.capabilities
    described = json.loads(plain[2])
    assert described["capabilities"] == ["completion", "vision"]
    family = described["details"]["family"]
    assert described["model_info"] == {  # what no one told is assumed, since clients need it
        "general.architecture": family,
        "general.basename": "plain",
        f"{family}.context_length": 32_768,
        "llmproxy.is_assumed": "context",
    }
    # LiteLLM takes the first name with "context_length" in it, and looks for tools in the template.
    assert [name for name in described["model_info"] if "context_length" in name] == [
        f"{family}.context_length"
    ]
    assert ("Tools" in shown.template, "Tools" in described["template"]) == (True, False)
    assert (nameless[0], missing[0]) == (400, 404)
    assert "error" in json.loads(nameless[2])
    there_is_none = "there is no model 'none' here; GET /api/tags lists them"
    assert json.loads(missing[2])["error"] == there_is_none


def test_names_that_the_user_gave_are_models_of_their_own(llm_user_path: Any) -> None:
    """C14: `codex --oss` looks for the exact name, and asks for a pull if it is not there."""
    (llm_user_path / "aliases.json").write_text('{"emm": "m", "vec": "e", "lost": "gone"}')
    maps = (("gpt-oss:20b", "m"), ("claude-*", "m"), ("demo", "m"), ("mapped", "e"))
    models = (AsyncScript("m", "a", attachment_types={"image/png"}), EmbeddingScript("e"))
    with running(*models, maps=maps) as proxy:
        tags = {entry.model: entry for entry in client_of(proxy).list().models}
        openai_list = {entry.id: entry for entry in openai_client(proxy).models.list()}
        anthropic_list = request(
            proxy, "GET", "/v1/models", headers={"anthropic-version": "2023-06-01"}
        )
        one = openai_client(proxy).models.retrieve("gpt-oss:20b")
    named = {"gpt-oss:20b": "m", "demo": "m", "emm": "m", "mapped": "e", "vec": "e"}
    assert set(tags) == set(openai_list) >= {"m", "e", *named}
    assert not {"lost", "claude-*"} & set(tags)
    assert {name: tags[name].details.parent_model for name in named} == named
    assert {name: openai_list[name].llm["alias_of"] for name in named} == named
    assert (tags["m"].details.parent_model, openai_list["m"].llm["alias_of"]) == ("", None)
    assert openai_list["emm"].llm["attachments"] == ["image/png"]
    assert one.llm["alias_of"] == "m"
    in_anthropics = {entry["id"] for entry in json.loads(anthropic_list[2])["data"]}
    assert {"m", "emm", "gpt-oss:20b", "anthropic/gpt-oss:20b"} <= in_anthropics


def test_models_that_have_run_in_this_process_are_loaded(llm_user_path: Any) -> None:
    """C24"""
    embedders = EmbeddingScript("local"), EmbeddingScript("vec"), EmbeddingScript("not-run")
    with running(SyncScript("local", "a"), AsyncScript("remote", "a"), *embedders) as proxy:
        client = client_of(proxy)
        before = client.ps().models
        client.embed("vec", "a")
        embedding = client.ps().models
        for name in ("local", "remote"):
            client.chat(name, QUESTION)
        after = client.ps().models
    assert (list(before), [entry.model for entry in embedding]) == ([], ["vec"])
    assert [entry.model for entry in after] == ["local", "vec"]


def test_the_version_is_bare_and_recent_enough_for_codex(proxy: Running) -> None:
    """B38, C14"""
    status, _, body = request(proxy, "GET", "/api/version")
    assert (status, json.loads(body)) == (200, {"version": VERSION})
    assert tuple(map(int, VERSION.split("."))) >= (0, 13, 4)
    assert request(proxy, "HEAD", "/api/version")[0] == 200


def test_the_root_says_what_each_client_looks_for(proxy: Running) -> None:
    own = {"user-agent": "ollama-python/0.6.3 (x86_64 linux) Python/3.11"}
    browser = {"accept": "text/html,*/*", "user-agent": "Mozilla/5.0"}
    probe, page, other = (request(proxy, "GET", "/", headers=h) for h in (own, browser, {}))
    assert (probe[0], probe[2]) == (200, b"Ollama is running")
    assert page[2].startswith(b"<!doctype html>") or b"<html" in page[2][:200].lower()
    assert other[2].startswith(b"llmproxy ") and b"Ollama is running" in other[2]
    assert request(proxy, "HEAD", "/", headers=own)[0] == 200


def test_a_name_may_have_the_tag_latest(proxy: Running) -> None:
    """C14"""
    assert client_of(proxy).chat("m:latest", QUESTION).model == "m:latest"


@pytest.mark.parametrize(
    "manage",
    [
        lambda client: client.pull("m"),
        lambda client: client.push("m"),
        lambda client: client.create("n", from_="m"),
        lambda client: client.copy("m", "n"),
        lambda client: client.delete("m"),
        lambda client: next(iter(client.pull("m", stream=True))),
    ],
    ids=["pull", "push", "create", "copy", "delete", "pull-streamed"],
)
def test_models_are_managed_by_llm(proxy: Running, manage: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="models are managed by llm") as caught:
        manage(client_of(proxy))
    assert caught.value.status_code == 400


# ---- errors


@pytest.mark.parametrize(
    "method, path, status, dialect",
    [
        ("GET", "/api/nothing", 404, "ollama"),
        ("POST", "/api/chat/nothing", 404, "openai"),  # Open WebUI has OpenAI's API below /api
        ("GET", "/api/chat", 405, "ollama"),
        ("DELETE", "/api/tags", 405, "ollama"),
        ("POST", "/api/pull/", 400, "ollama"),
        ("GET", "/api", 404, "ollama"),
        ("POST", "/api/v1/nothing", 404, "openai"),
        ("GET", "/api/v1/chat/completions", 405, "openai"),
        ("POST", "/v1/messages/nothing", 404, "anthropic"),
    ],
)
def test_an_error_below_api_has_ollamas_shape(method, path, status, dialect):
    with running(log=False) as proxy:
        answer = request(proxy, method, path)
    assert answer[0] == status
    error = json.loads(answer[2])
    shapes = {"ollama": str, "openai": dict, "anthropic": dict}
    assert isinstance(error["error"], shapes[dialect])
    assert ("type" in error and error["type"] == "error") == (dialect == "anthropic")


def test_a_wrong_key_and_a_large_body_have_ollamas_shape():
    with running(log=False, keys=["right"], limits=Limits(body=1_000, shutdown_s=5)) as proxy:
        wrong = request(proxy, "GET", "/api/tags", headers={"authorization": "Bearer wrong"})
        right = request(proxy, "GET", "/api/tags", headers={"authorization": "Bearer right"})
        headers = {"authorization": "Bearer right"}
        large = request(proxy, "POST", "/api/chat", {"a": "x" * 2_000}, headers=headers)
    assert (wrong[0], right[0], large[0]) == (401, 200, 413)
    assert all(isinstance(json.loads(answer[2])["error"], str) for answer in (wrong, large))


def test_the_log_has_the_conversation_as_llm_shows_it(proxy: Running, llm_user_path: Any) -> None:
    client_of(proxy).chat("m", [{**QUESTION[0], "images": [base64.b64encode(PNG).decode()]}])
    proxy.wait_for_report()
    with sqlite3.connect(llm_user_path / "logs.db") as log:
        rows = log.execute("select dialect, path, client, status from proxy_exchanges").fetchall()
    assert [(row[0], row[1], row[3]) for row in rows] == [("ollama", "/api/chat", "ok")]
    assert rows[0][2].startswith("ollama-python")
