"""The demo model, which needs no key and no network.

It shows a new user that everything works, from a client to logs.db, and lets tests run
without a provider. Our plugin registers it with llm, so that `llm -m demo` and `llm -c`
work with it too.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import llm
from llm.parts import StreamEvent, TextPart

MODEL_ID = "demo"
SHOWN_CHARACTERS = 80  # of the prompt, in the reply
READ_CHARACTERS = 4_096  # of a long prompt, in which these are looked for


def _reply(prompt: llm.Prompt) -> str:
    text = _last_user_text(prompt).lstrip()[:READ_CHARACTERS]
    text = " ".join(text.split())
    if len(text) > SHOWN_CHARACTERS:
        text = text[: SHOWN_CHARACTERS - 1] + "…"
    turns = sum(message.role == "assistant" for message in prompt.messages)
    echo = f"You said: {text}" if text else "You said nothing that I could read"
    return (
        f"{echo}\nThis is turn {turns + 1} of our conversation, and I am only the demo model: "
        "no key, no network. To talk to a real one, install a plugin (llm install "
        "llm-anthropic), set its key (llm keys set anthropic) and ask for a model that "
        "`llm models` lists."
    )


def _last_user_text(prompt: llm.Prompt) -> str:
    """Return the last text that the user wrote, without the reminders that agents add."""
    texts = [
        part.text
        for message in prompt.messages
        if message.role == "user"
        for part in message.parts
        if isinstance(part, TextPart)
        and part.text.strip()
        and not part.text.lstrip().startswith("<system")
    ]
    return texts[-1] if texts else prompt.prompt


def _chunks(text: str) -> Iterator[str]:
    """Yield the text word by word with its white space, as models stream."""
    yield from filter(None, re.split(r"(?<=\S)(?=\s)", text.rstrip()))


def _count(response: Any, prompt: llm.Prompt, text: str) -> None:
    """Set the usage, counting words as tokens."""
    input_words = sum(
        len(said.split()) if len(said) < READ_CHARACTERS else said.count(" ") + 1
        for message in prompt.messages
        for part in message.parts
        for said in (getattr(part, "text", ""),)
    )
    response.set_usage(input=input_words, output=len(text.split()))


class Demo(llm.Model):
    """A model that repeats the prompt and explains how to use a real model."""

    model_id = MODEL_ID
    can_stream = True
    supports_tools = True  # it never calls one, but agents offer them in every request

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str | StreamEvent]:
        """Yield the reply word by word."""
        text = _reply(prompt)
        yield from _chunks(text)
        _count(response, prompt, text)


class AsyncDemo(llm.AsyncModel):
    """The demo model for asyncio: llm requires a class of its own."""

    model_id = MODEL_ID
    can_stream = True
    supports_tools = True  # it never calls one, but agents offer them in every request

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """Yield the reply word by word."""
        text = _reply(prompt)
        for chunk in _chunks(text):
            yield chunk
        _count(response, prompt, text)
