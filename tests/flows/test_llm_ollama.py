"""llm's own plugin for Ollama, pointed at us: llm talks to llm's models through Ollama's API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import llm
import pytest
from llm.parts import StreamEvent

from tests.models import AsyncScript, EmbeddingScript, tool_call, usage
from tests.ollama_clients import closed_ollama_clients
from tests.proxies import Running, running

__all__ = ["closed_ollama_clients"]
PNG = llm.Attachment(type="image/png", content=b"\x89PNG\r\n\x1a\n1")


class Model(AsyncScript):
    """A model with an option for thinking, which the plugin asks for."""

    class Options(llm.Options):
        thinking: bool | None = None
        temperature: float | None = None
        num_ctx: int | None = None


@pytest.fixture
def model() -> Model:
    return Model("m", StreamEvent("reasoning", "Hm."), "Fine, ", "thanks.", usage(7, 3))


@pytest.fixture
def proxy(llm_user_path, model) -> Iterator[Running]:
    with running(model, AsyncScript("plain", "a", supports_tools=False), EmbeddingScript("e")) as p:
        yield p


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The plugin's own, of what our models can do: the same in each test."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def models(proxy, monkeypatch, cache):
    """Ask the plugin for its models, as llm does when it starts; by id, the async ones."""
    monkeypatch.setenv("OLLAMA_HOST", proxy.url)
    from llm_ollama import registry

    registry.cache.set_dir(cache)
    found = {}
    registry.register_models(lambda one, other, aliases: found.update({one.model_id: (one, other)}))
    registry.register_embedding_models(lambda one, aliases: found.update({one.model_id: one}))
    return found


def test_the_plugin_finds_our_models_and_what_they_can_do(models):
    """C21, C22"""
    assert {"ollama/m", "ollama/plain", "ollama/demo", "ollama/e"} <= models.keys()
    m, plain = models["ollama/m"][0], models["ollama/plain"][0]
    assert (m.supports_tools, plain.supports_tools) == (True, False)
    assert "image/png" in m.attachment_types
    assert "think" in m.Options.model_fields and m.Options(think=True)
    with pytest.raises(ValueError, match="does not support thinking"):
        plain.Options(think=True)


def test_a_prompt_and_its_answer(models, proxy, model):
    response = models["ollama/m"][0].prompt(
        "How are you?", system="Be kind.", attachments=[PNG], think=True, temperature=0.5, num_ctx=9
    )
    assert response.text() == "Fine, thanks."
    assert (response.input_tokens, response.output_tokens) == (7, 3)
    exchange = proxy.wait_for_report()
    assert (exchange.status, exchange.ignored) == ("ok", ())
    asked = model.prompts[0]
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert asked.attachments[0].content == PNG.content
    assert asked.options.model_dump() == {"thinking": True, "temperature": 0.5, "num_ctx": 9}


def test_the_async_model_and_a_schema(models, model):
    async def talk() -> str:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        return await models["ollama/m"][1].prompt("How are you?", schema=schema).text()

    model.steps = ('{"a": 1}',)
    assert asyncio.run(talk()) == '{"a": 1}'
    assert model.prompts[0].schema["properties"] == {"a": {"type": "integer"}}


def test_a_chain_of_tools_is_one_conversation(models, proxy, model):
    def double(n: int) -> str:
        """Double a number."""
        model.steps = ("It is eight, of course.", usage(1, 1))
        return str(2 * n)

    model.steps = (tool_call("double", {"n": 4}, "toolu_9"), usage(1, 1))
    chain = models["ollama/m"][0].conversation().chain("What is twice four?", tools=[double])
    assert chain.text() == "It is eight, of course."
    proxy.wait_for_report(2)
    one, two = proxy.reports
    assert (two.previous_id, two.link, two.status) == (one.id, "reply", "ok")


def test_embeddings(models):
    assert models["ollama/e"].embed("hello") == [5.0, 6.0, 7.0]
    texts = ["a"] * 9 + ["bc"]
    assert len(list(models["ollama/e"].embed_multi(texts))) == 10
