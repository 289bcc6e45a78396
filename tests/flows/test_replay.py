"""Replay through the whole server, with real clients, instead of a model."""

from __future__ import annotations

import json
import os
import re
from http.client import IncompleteRead
from pathlib import Path

import anthropic
import openai
import pytest
from llm.parts import StreamEvent, ToolResultPart

import llmproxy
from llmproxy.core.errors import (
    ContentFiltered,
    ContextTooLong,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PaymentRequired,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from llmproxy.proxy import Proxy, Settings, SettingsError
from llmproxy.transfer.llama_stack.read import parse_recording
from tests import wire_cases
from tests.app.test_app import request, rows
from tests.commands import run_here
from tests.models import AsyncScript, response_json, usage
from tests.proxies import running

STEPS = [
    StreamEvent("reasoning", "hm", part_index=0),
    StreamEvent("text", "I look ", part_index=1),
    StreamEvent("text", "it up.", part_index=1),
    StreamEvent("tool_call_name", "look", part_index=2, tool_call_id="call_1"),
    StreamEvent("tool_call_args", '{"at":  1.0', part_index=2, tool_call_id="call_1"),
    StreamEvent("tool_call_args", ', "b": "渐"}', part_index=2, tool_call_id="call_1"),
    usage(11, 7),
]
TOOL = {"type": "object", "properties": {"at": {"type": "number"}}}
BODIES = {
    "/v1/chat/completions": {
        "model": "m", "max_tokens": 99, "messages": [{"role": "user", "content": "q"}],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": TOOL}}],
        "stream_options": {"include_usage": True},
    },
    "/v1/responses": {
        "model": "m", "max_output_tokens": 99, "input": "q",
        "tools": [{"type": "function", "name": "look", "parameters": TOOL}],
    },
    "/v1/messages": {
        "model": "m", "max_tokens": 99, "messages": [{"role": "user", "content": "q"}],
        "tools": [{"name": "look", "input_schema": TOOL}],
    },
}  # fmt: skip


def answer_of(proxy, path, stream):
    """Return a response's body without ids and times."""
    status, _, body = request(proxy, "POST", path, BODIES[path] | {"stream": stream})
    assert status == 200, body
    text = re.sub(r"01[0-9a-hjkmnp-tv-z]{24}", "ID", body.decode())
    return re.sub(r'"created(_at)?":\d+', '"created":0', text)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("recorded_by", BODIES)
@pytest.mark.parametrize("asked_by", BODIES)
def test_replay_is_byte_for_byte_the_models_response(recorded_by, asked_by, stream):
    """In any dialect, whichever it was recorded in."""
    with running(model := AsyncScript("m", *STEPS)) as proxy:
        live = answer_of(proxy, asked_by, stream)
    with running(
        AsyncScript("m", *STEPS), database=Path(os.environ["LLM_USER_PATH"]) / "r.db"
    ) as proxy:
        answer_of(proxy, recorded_by, stream=True)
    replaying = {"database": Path(os.environ["LLM_USER_PATH"]) / "r.db", "replay": "replay"}
    with running(other := AsyncScript("m"), replay_speed=0, **replaying) as proxy:
        assert answer_of(proxy, asked_by, stream) == live
    assert (len(model.prompts), other.prompts) == (1, [])


@pytest.mark.parametrize("replay", [None, "replay"])
@pytest.mark.parametrize(
    "word, openais",
    [
        ("pause_turn", "stop"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
    ],
)
def test_anthropics_own_reasons_are_translated_only_for_others(word, openais, replay):
    """Its client sends a paused turn back to be continued."""
    model = AsyncScript("m", "A", response_json(stop_reason=word))
    hi = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "q"}]}
    if replay:
        with running(model) as proxy:
            request(proxy, "POST", "/v1/messages", hi)
    models = [] if replay else [model]
    with running(*models, replay=replay, replay_speed=0) as proxy:
        with anthropic.Anthropic(base_url=proxy.url, api_key="k") as client:
            assert client.messages.create(**hi).stop_reason == word
            with client.messages.stream(**hi) as stream:
                assert stream.get_final_message().stop_reason == word
        with openai.OpenAI(base_url=proxy.url + "/v1", api_key="k") as client:
            completion = client.chat.completions.create(**hi)
            assert completion.choices[0].finish_reason == openais


@pytest.mark.parametrize("name", [case.name for case in wire_cases.wire_cases("openai_chat")])
def test_recorded_requests_of_real_clients_are_replayed(name, llm_user_path):
    (case,) = [case for case in wire_cases.wire_cases("openai_chat") if case.name == name]
    body = case.request | {"model": "m"}
    with running(AsyncScript("m", "Hello", attachment_types={"image/png", "audio/wav"})) as proxy:
        recorded = request(proxy, "POST", "/v1/chat/completions", body)
    if recorded[0] != 200:
        pytest.skip("the scripted model can't answer it")
    with running(replay="replay", replay_speed=0) as proxy:
        assert request(proxy, "POST", "/v1/chat/completions", body)[0] == 200


def test_replays_are_marked_and_not_logged_as_turns(llm_user_path):
    with running(AsyncScript("m", "A")) as proxy:
        answer_of(proxy, "/v1/messages", True)
    with running(replay="replay") as proxy:
        for _ in range(2):
            answer_of(proxy, "/v1/messages", True)
    (first, *replays) = rows(
        llm_user_path, "select id, replay_of, thread_id, model_used, status from proxy_exchanges"
    )
    assert first[1] is None
    assert [replay[1:] for replay in replays] == [(first[0], None, "m", "ok")] * 2
    assert rows(llm_user_path, "select count(*) from turns") == [(1,)]


def test_replay_calls_no_model_and_loads_no_plugin(llm_user_path):
    with running(AsyncScript("m", "A")) as proxy:
        answer_of(proxy, "/v1/messages", True)
    with running(replay="replay") as proxy:
        assert proxy.proxy.catalog.models() == []
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0)
        assert [model.id for model in client.models.list()] == ["m"]
        with pytest.raises(openai.UnprocessableEntityError, match="the nearest is 01"):
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "another"}]
            )
        sdk = anthropic.Anthropic(base_url=proxy.url, api_key="x", max_retries=0)
        with pytest.raises(anthropic.UnprocessableEntityError, match=r"messages\[0\] \(user\)"):
            sdk.messages.create(
                **BODIES["/v1/messages"] | {"messages": [{"role": "user", "content": "r"}]}
            )


def test_unrecorded_requests_go_to_the_model_and_are_recorded(llm_user_path):
    with running(model := AsyncScript("m", "A"), replay="replay-or-live") as proxy:
        first, again = (answer_of(proxy, "/v1/messages", True) for _ in range(2))
        proxy.wait_for_report(2)
    assert (first, len(model.prompts)) == (again, 1)
    replayed = rows(llm_user_path, "select replay_of is not null from proxy_exchanges")
    assert replayed == [(0,), (1,)]


class Refused(Exception):
    status_code = 429


def test_failure_is_replayed_with_its_status():
    with running(AsyncScript("m", Refused("too fast"))) as proxy:
        assert request(proxy, "POST", "/v1/messages", BODIES["/v1/messages"])[0] == 429
    with running(replay="replay") as proxy:
        sdk = anthropic.Anthropic(base_url=proxy.url, api_key="x", max_retries=0)
        with pytest.raises(anthropic.RateLimitError, match="too fast"):
            sdk.messages.create(**BODIES["/v1/messages"])


def test_failure_in_a_stream_is_replayed_in_the_stream():
    with running(AsyncScript("m", "some", Refused("no more"))) as proxy:
        live = answer_of(proxy, "/v1/messages", True)
    with running(replay="replay", replay_speed=0) as proxy:
        replayed = answer_of(proxy, "/v1/messages", True)
    assert live.split("event: error")[0] == replayed.split("event: error")[0]
    assert "no more" in replayed


@pytest.mark.parametrize("settings", [{"replay": "replay"}, {"recordings": Path("nowhere")}])
def test_a_start_without_recordings_is_an_error(settings, llm_user_path):
    with pytest.raises(SettingsError, match="there is nothing to replay"):
        Proxy(Settings(port=0, **settings))


SAMPLES = Path(__file__).parents[1] / "recordings"


def test_llama_stacks_recordings_are_served_from_their_files(llm_user_path):
    with running(recordings=SAMPLES) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0)
        assert len(client.models.list().data) > 1
        for file in sorted(SAMPLES.rglob("*.json")):
            recording = parse_recording(file.read_bytes(), file.stem)
            if recording.dialect is None:
                continue
            path = "/v1/messages" if "messages" in recording.path else "/v1/chat/completions"
            status, _, body = request(proxy, "POST", path, recording.body)
            assert status == (recording.error.status if recording.error else 200), body
    marked = rows(llm_user_path, "select replay_of is not null from proxy_exchanges")
    assert len(marked) > 3
    assert set(marked) == {(1,)}


# ---- an agent's tests, with both SDKs


class Speaker(AsyncScript):
    """A model that calls a tool, then replies with the result."""

    async def execute(self, prompt, stream, response, conversation):
        self._began(prompt, conversation)
        results = [part for part in prompt.messages[-1].parts if isinstance(part, ToolResultPart)]
        if results:
            yield f"It gave {results[0].output}."
        else:
            for event in STEPS[:6]:
                yield event


def openai_agent(url: str, task: str) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    options = BODIES["/v1/chat/completions"] | {"messages": [{"role": "user", "content": task}]}
    while True:
        with client.chat.completions.stream(**options) as stream:
            message = stream.get_final_completion().choices[0].message
        if not message.tool_calls:
            return message.content
        calls = [call.model_dump(exclude={"function": {"parsed_arguments"}}, exclude_none=True)
                 for call in message.tool_calls]  # fmt: skip
        options["messages"] += [
            {"role": "assistant", "content": message.content, "tool_calls": calls},
            *({"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in calls),
        ]


def anthropic_agent(url: str, task: str) -> str:
    options = BODIES["/v1/messages"] | {"messages": [{"role": "user", "content": task}]}
    while True:
        with (
            anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client,
            client.messages.stream(**options) as stream,
        ):
            blocks = stream.get_final_message().content
        calls = [block for block in blocks if block.type == "tool_use"]
        if not calls:
            return blocks[-1].text
        results = [{"type": "tool_result", "tool_use_id": c.id, "content": "sun"} for c in calls]
        options["messages"] += [
            {"role": "assistant", "content": blocks},
            {"role": "user", "content": results},
        ]


def responses_agent(url: str, task: str) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    options = BODIES["/v1/responses"] | {"input": [{"role": "user", "content": task}]}
    result = {"type": "function_call_output", "output": "sun"}
    while True:
        with client.responses.stream(**options) as stream:
            response = stream.get_final_response()
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            return response.output_text
        options["input"] += [
            *(item.model_dump(exclude_none=True) for item in response.output),
            *(result | {"call_id": call.call_id} for call in calls),
        ]


AGENTS = {"openai": openai_agent, "anthropic": anthropic_agent, "responses": responses_agent}


@pytest.mark.parametrize("recorded_by", AGENTS)
@pytest.mark.parametrize("replayed_by", AGENTS)
def test_agent_runs_again_without_its_model(recorded_by, replayed_by, llm_user_path):
    with running(model := Speaker("m")) as proxy:
        assert AGENTS[recorded_by](proxy.url, "q") == "It gave sun."
    recording = Settings(port=0, replay="replay", replay_speed=0)
    with llmproxy.running(recording) as proxy:
        assert [AGENTS[replayed_by](proxy.url, "q") for _ in range(2)] == ["It gave sun."] * 2
        missed = openai.UnprocessableEntityError, anthropic.UnprocessableEntityError
        with pytest.raises(missed, match="differs at"):
            AGENTS[replayed_by](proxy.url, "quick")
    assert len(model.prompts) == 2


REFUSAL = RateLimited(
    "you are too fast",
    code="rate_limit_exceeded",
    headers={"retry-after": "17", "x-should-retry": "true"},
)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "in a stream"])
def test_a_failure_is_replayed_as_it_was(path, is_late, llm_user_path):
    """With its class, code and field; with the time to wait where a header can say it."""
    body = BODIES[path] | {"stream": is_late}
    said = ["Hel"] if is_late else []

    def asked(proxy):
        try:
            status, headers, text = request(proxy, "POST", path, body)
        except IncompleteRead as exc:  # OpenAI's API has no proper end for it
            status, headers, text = 200, {}, exc.partial
        text = re.sub(r'01[0-9a-z]{24}|"created(_at)?":\d+', "", text.decode())
        return status, headers.get("retry-after"), text

    with running(AsyncScript("m", *said, REFUSAL)) as proxy:
        live = asked(proxy)
    with running(replay="replay", replay_speed=0) as proxy:
        assert asked(proxy) == live
    assert live[:2] == ((200, None) if is_late else (429, "17"))
    columns = "error_status, error_code, retry_after_s"
    assert rows(llm_user_path, f"select {columns} from proxy_exchanges limit 1") == [
        (429, "rate_limit_exceeded", 17.0)
    ]


FAILURES = [
    ContextTooLong("it was too much"),
    ContextTooLong("so many words", param="messages", code="string_above_max_length"),
    ContentFiltered("not about that"),
    ModelNotFound("there is none", param="model"),
    PaymentRequired("pay first"),
    PaymentRequired("pay first", status=429),
    Overloaded("busy", headers={"retry-after": "3"}),
    Unavailable("the model is at capacity"),
    InvalidRequest("prompt is too long", param="messages"),
    InvalidRequest("messages: no", param="messages", code="unknown_thing"),
    RateLimited("try again in 6s"),
    RateLimited("later", headers={"retry-after": "2", "retry-after-ms": "1250"}),
    UpstreamError("I'm a teapot", status=418),
    UpstreamError("content filter down", status=500),
    UpstreamError(""),
    UpstreamTimeout("too slow"),
    TooLarge("too large"),
    Unauthorized("no key"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: f"{type(error).__name__} {error}")
def test_a_failure_is_replayed_as_it_was_over_both_apis(error, llm_user_path):
    """Also one that is known by its type alone, or whose words look like another's."""

    def asked(proxy, path):
        status, headers, text = request(proxy, "POST", path, BODIES[path])
        waits = [headers.get(name) for name in ("retry-after", "retry-after-ms")]
        return status, waits, re.sub("req_[0-9a-z]+|01[0-9a-z]{24}", "", text.decode())

    with running(AsyncScript("m", error)) as proxy:
        live = {path: asked(proxy, path) for path in BODIES}
    with running(replay="replay", replay_speed=0) as proxy:
        for _ in range(2):  # each path meets what was recorded over the other one
            for path in reversed(BODIES):
                assert asked(proxy, path) == live[path]
            asked(proxy, path)


def test_a_server_is_rewound_without_a_restart(llm_user_path):
    body = BODIES["/v1/chat/completions"]

    def answers(proxy, count):
        found = [request(proxy, "POST", "/v1/chat/completions", body) for _ in range(count)]
        return [json.loads(text)["choices"][0]["message"]["content"] for _, _, text in found]

    for word in ("one", "two"):
        with running(AsyncScript("m", word)) as proxy:
            answers(proxy, 1)
            status, _, text = request(proxy, "POST", "/replay/rewind")
            assert (status, b"this server replays nothing" in text) == (404, True)
            assert proxy.proxy.rewind() == 0
    with running(replay="replay", replay_speed=0) as proxy:
        assert answers(proxy, 1) == ["one"]
        status, _, text = request(proxy, "POST", "/replay/rewind")
        assert (status, json.loads(text)) == (200, {"rewound": 1})
        assert answers(proxy, 2) == ["one", "two"]
        assert proxy.proxy.rewind() == 2
        assert answers(proxy, 1) == ["one"]
        status, headers, _ = request(proxy, "GET", "/replay/rewind")
        assert (status, headers["allow"]) == (405, "POST")


def test_a_search_finds_replays_so_that_they_are_forgotten_with_what_they_replay(llm_user_path):
    """A replay keeps the request, and has no turn whose text could be searched."""
    path = "/v1/chat/completions"
    body = {"model": "m", "messages": [{"role": "user", "content": "my zanzibarine plan"}]}
    with running(AsyncScript("m", "a quokkaesque answer")) as proxy:
        request(proxy, "POST", path, body)
    with running(replay="replay", replay_speed=0) as proxy:
        request(proxy, "POST", path, body)
    for word in ("zanzibarine", "quokkaesque"):
        code, out, _ = run_here("log", "--search", word, "--json")
        assert (code, len(out.splitlines())) == (0, 2)
    assert run_here("log", "--prune", "--search", "quokkaesque")[0] == 0
    held = b"".join(file.read_bytes() for file in llm_user_path.glob("logs.db*"))
    assert b"zanzibarine" not in held and b"quokkaesque" not in held
