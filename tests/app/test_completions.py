"""The older completions of OpenAI's API, with its SDK, answered by chat models."""

from __future__ import annotations

import json

import openai
import pytest
from llm.parts import StreamEvent, TextPart

from llmproxy import convert
from tests.app.test_app import request
from tests.models import AsyncScript, StopOptions, usage
from tests.proxies import running

POEM = "Roses are red,"


def client(proxy):
    return openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)


def model(**attributes):
    said = (StreamEvent("reasoning", "Hm."), " violets ", "are blue", usage(4, 3))
    return AsyncScript("m", *said, **attributes)


@pytest.mark.parametrize("prompt", [POEM, [POEM]], ids=["string", "list"])
def test_a_prompt_is_completed_whole(llm_user_path, prompt):
    with running(m := model()) as proxy:
        answer = client(proxy).completions.create(
            model="m", prompt=prompt, max_tokens=9, logprobs=2
        )
        exchange = proxy.wait_for_report()
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, choice.index) == (" violets are blue", "stop", 0)
    assert (answer.object, answer.model) == ("text_completion", "m")
    assert answer.id == f"cmpl-{exchange.id}"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 3)
    [message] = m.prompts[0].messages
    assert (message.role, message.parts) == ("user", [TextPart(POEM)])
    assert m.prompts[0].options.max_tokens == 9
    assert (exchange.path, exchange.ignored) == ("/v1/completions", ("logprobs",))


@pytest.mark.parametrize("counts", [False, True])
def test_a_prompt_is_completed_as_a_stream(llm_user_path, counts):
    with running(model()) as proxy:
        options = {"stream_options": {"include_usage": True}} if counts else {}
        chunks = list(
            client(proxy).completions.create(model="m", prompt=POEM, stream=True, **options)
        )
    texts = [choice.text for chunk in chunks for choice in chunk.choices]
    assert texts == [" violets ", "are blue", ""]
    assert len({chunk.id for chunk in chunks}) == 1
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons == [None, None, "stop"]
    if counts:
        assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 7)
    else:
        assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("streams", [False, True])
def test_the_prompt_is_repeated_if_asked_for(llm_user_path, streams):
    with running(model()) as proxy:
        answer = client(proxy).completions.create(model="m", prompt=POEM, echo=True, stream=streams)
        chunks = list(answer) if streams else [answer]
        exchange = proxy.wait_for_report()
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == "Roses are red, violets are blue"
    assert exchange.turn.reply[0].parts[-1] == TextPart(" violets are blue")


@pytest.mark.parametrize("options", [None, StopOptions], ids=["ours", "the-models"])
def test_a_stop_sequence_ends_the_text(llm_user_path, options):
    attributes = {"Options": options} if options else {}
    with running(m := model(**attributes)) as proxy:
        answer = client(proxy).completions.create(model="m", prompt=POEM, stop=" are")
    if options:
        assert m.prompts[0].options.stop == " are"
    else:
        assert answer.choices[0].text == " violets"


@pytest.mark.parametrize(
    "fields, param, words",
    [
        ({"suffix": "the end"}, "suffix", "in the middle"),
        ({"prompt": ["a", "b"], "stream": True}, "prompt", "at most one prompt"),
        ({"prompt": ["a"] * 65}, "prompt", "at most 64 prompts"),
        ({"prompt": ["a", 1]}, "prompt", "send texts"),
        ({"prompt": [1, 2]}, "prompt", "send texts"),
        ({"prompt": [[1], [2]]}, "prompt", "send texts"),
        ({"prompt": ""}, "prompt", "no prompt"),
        ({"prompt": []}, "prompt", "no prompt"),
        ({"prompt": None}, "prompt", "no prompt"),
        ({"prompt": {}}, "prompt", "expected"),
        ({"n": 2}, "n", "n: only 1"),
        ({"best_of": 3}, "best_of", "best_of: only 1"),
    ],
)
def test_what_would_be_answered_otherwise_is_refused(llm_user_path, fields, param, words):
    with running(model()) as proxy:
        body = {"model": "m", "prompt": POEM, **fields}
        status, _, raw = request(proxy, "POST", "/v1/completions", body)
    error = json.loads(raw)["error"]
    assert (status, error["param"]) == (400, param)
    assert words in error["message"]


def test_several_prompts_are_answered_in_one_response(llm_user_path):
    """LangChain's batches send twenty. Each is an exchange of its own."""
    with running(m := model()) as proxy:
        answer = client(proxy).completions.create(
            model="m", prompt=["One", "Two", "Three"], echo=True
        )
        proxy.wait_for_report(3)
        broken = request(
            proxy, "POST", "/v1/completions", {"model": "none", "prompt": ["One", "Two"]}
        )
        unread = request(proxy, "POST", "/v1/completions", b"{")
    texts = [(choice.index, choice.text) for choice in answer.choices]
    assert texts == [(i, f"{n} violets are blue") for i, n in enumerate(("One", "Two", "Three"))]
    assert answer.usage.total_tokens == 21
    assert {one.request.body["prompt"] for one in proxy.reports[:3]} == {"One", "Two", "Three"}
    assert len(m.prompts) == 3
    assert (broken[0], unread[0]) == (404, 400)


def test_a_failure_in_a_stream_is_openais_and_the_body_is_cut(llm_user_path):
    with running(AsyncScript("m", "So far", RuntimeError("no luck"))) as proxy:
        chunks = client(proxy).completions.create(model="m", prompt=POEM, stream=True)
        with pytest.raises(openai.APIError, match="no luck"):
            list(chunks)


def test_a_completion_is_converted_into_other_apis():
    there = convert.convert_request(
        {"model": "m", "prompt": POEM, "max_tokens": 5, "echo": True},
        source="openai_chat",
        target="anthropic_messages",
    )
    assert there.body == {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": POEM}],
    }
    body = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"text": " violets", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6},
    }
    answer = convert.convert_response(body, source="openai_chat", target="ollama").body
    assert answer["message"] == {"role": "assistant", "content": " violets"}
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 2)
