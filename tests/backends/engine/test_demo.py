"""Tests of the demo model: deterministic, and the same sync and async."""

import asyncio

import llm
import pytest

from llmproxy.backends.engine.demo import SHOWN_CHARACTERS, AsyncDemo, Demo

ADVICE = (
    "and I am only the demo model: no key, no network. To talk to a real one, install a plugin "
    "(llm install llm-anthropic), set its key (llm keys set anthropic) and ask for a model that "
    "`llm models` lists."
)


def ask(text, messages=None):
    return Demo().prompt(text, messages=messages)


def test_it_repeats_the_prompt_and_explains_how_to_use_a_real_model():
    assert ask("Hello  there\n").text() == (
        f"You said: Hello there\nThis is turn 1 of our conversation, {ADVICE}"
    )


def test_a_long_prompt_is_cut():
    first_line = ask("x" * 1000).text().splitlines()[0]
    assert first_line == f"You said: {'x' * (SHOWN_CHARACTERS - 1)}…"


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_prompt_gets_a_reply_of_its_own(text):
    assert ask(text).text().startswith("You said nothing that I could read\n")


def test_blank_text_is_not_taken_for_the_last_text():
    """The engine puts blank text between a user's text and a reminder that it moves there."""
    parts = [llm.parts.TextPart(text) for text in ("Hello", "\n\n", "<system>\nhm\n</system>")]
    assert ask(None, [llm.parts.Message("user", parts)]).text().startswith("You said: Hello\n")


def test_it_counts_the_turns():
    history = [llm.user("a"), llm.assistant("b"), llm.user("c"), llm.assistant("d")]
    assert "This is turn 3 of our conversation" in ask("e", history).text()


def test_it_streams_word_by_word_and_counts_words():
    response = ask("three short words")
    chunks = list(response)
    assert chunks[:5] == ["You", " said:", " three", " short", " words"]
    assert "".join(chunks) == response.text()
    usage = response.usage()
    assert (usage.input, usage.output) == (3, len(chunks))


def test_the_async_model_answers_the_same():
    async def run():
        response = AsyncDemo().prompt("Hello")
        chunks = [chunk async for chunk in response]
        return chunks, await response.usage()

    response = ask("Hello")
    assert asyncio.run(run()) == (list(response), response.usage())
