"""The model that is always there: it needs no key and no network, and says so.

It lets a new user see the whole way from a client to logs.db work, and tests run
without a provider. Registered with llm by our plugin, so that `llm -m demo` and
`llm -c` know it too.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import llm
from llm.parts import StreamEvent, TextPart

__all__ = ["AsyncDemo", "Demo"]

MODEL_ID = "demo"
SHOWN_CHARACTERS = 80  # of the prompt, said back


def _reply(prompt: llm.Prompt) -> str:
    said = " ".join(_last_words(prompt).split())
    if len(said) > SHOWN_CHARACTERS:
        said = said[: SHOWN_CHARACTERS - 1] + "…"
    turns = sum(message.role == "assistant" for message in prompt.messages)
    heard = f"You said: {said}" if said else "You said nothing that I could read"
    return (
        f"{heard}\nThis is turn {turns + 1} of our conversation, and I am only the demo model: "
        "no key, no network. To talk to a real one, install a plugin (llm install "
        "llm-anthropic), set its key (llm keys set anthropic) and ask for a model that "
        "`llm models` lists."
    )


def _last_words(prompt: llm.Prompt) -> str:
    """The last text of a user's own: agents put reminders round a person's words."""
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


def _words(text: str) -> Iterator[str]:
    """Give the text a word at a time, white space included, as models stream."""
    yield from re.findall(r"\s*\S+", text)


def _count(response: Any, prompt: llm.Prompt, text: str) -> None:
    """Set the usage in words: the demo's tokens."""
    asked = sum(
        len(getattr(part, "text", "").split())
        for message in prompt.messages
        for part in message.parts
    )
    response.set_usage(input=asked, output=len(text.split()))


class Demo(llm.Model):
    """Say in a few words what was asked, and how to ask a real model."""

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
        yield from _words(text)
        _count(response, prompt, text)


class AsyncDemo(llm.AsyncModel):
    """The same for asyncio, as llm wants it apart."""

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
        for word in _words(text):
            yield word
        _count(response, prompt, text)
