"""The requests that are sent: questions, conversations, images, and awkward bodies."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
OLLAMA = "/api/chat"
REPLY = "lorem lorem, " * 10  # of scripted-20
# Requests of other rounds and other servers are others: where counting begins.
_START = time.time_ns() // 1_000_000 % 10_000_000 * 100
_WORDS = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in ("", "r", "n", "st")]


def post(body: Any, path: str = CHAT) -> bytes:
    """Render a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: benchmark\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def get_page() -> bytes:
    """Render a browser's request for the page about the log."""
    return b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/html\r\n\r\n"


def questions(model: str, stream: bool, path: str = CHAT) -> Iterator[bytes]:
    """Yield requests of one message without end, by one of the APIs; each asks something else."""
    body: dict[str, Any] = {"model": model, "stream": stream}
    body["input" if path == RESPONSES else "messages"] = [user("question %09d")]
    if path == MESSAGES:
        body["max_tokens"] = 1_000
    template = json.dumps(body).encode()
    head, _, _ = post(template % 0, path).partition(b"\r\n\r\n")
    request = head + b"\r\n\r\n" + template
    number = _START
    while True:
        number += 1
        yield request % number


def for_seconds(requests: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    """Yield requests until the time is over, and at least one."""
    end = time.monotonic() + seconds
    yield next(requests)
    while time.monotonic() < end:
        yield next(requests)


def text(chars: int, seed: int) -> str:
    """Return some words, about so many characters; the same for the same seed."""
    return " ".join(random.Random(seed).choices(_WORDS, k=chars // 4))[:chars]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def resent(
    messages: list[Any], turns: int, extra: Mapping[str, Any] | None = None
) -> Iterator[bytes]:
    """Yield a conversation again and again, as clients send it: each time with one turn more.

    The replies are those of scripted-20. extra: other members of the body.
    """
    messages = list(messages)
    for turn in range(turns):
        yield post({"model": "scripted-20", **(extra or {}), "messages": messages})
        messages += [
            {"role": "assistant", "content": REPLY},
            user(f"go on, {turn} {text(99, turn)}"),
        ]


def chat_messages(count: int) -> list[Any]:
    """Return a chat of that many messages of 200 characters, and a question."""
    start = time.monotonic_ns()
    messages = []
    for i in range(count // 2):
        messages.append(user(f"question {start} {i} {text(180, i)}"))
        messages.append({"role": "assistant", "content": f"answer {i} {text(190, -i)}"})
    return [*messages, user("go on")]


def agent_messages(size_bytes: int) -> list[Any]:
    """Return the session of a coding agent as long as that: calls of tools and their results."""
    start = time.monotonic_ns()
    messages = [{"role": "system", "content": text(20_000, 1)}, user(f"fix the tests {start}")]
    size = 20_000
    step = 0
    while size < size_bytes:
        step += 1
        call_id = f"call_{start}_{step}"
        arguments = json.dumps({"command": ["sed", "-n", f"{step},{step + 99}p", "file.py"]})
        function = {"name": "shell", "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        result = f"step {step} {start} {text(random.Random(step).randint(500, 10_000), step)}"
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
        size += len(result) + 300
    return messages


def agent_tools() -> list[Any]:
    """Return the tools that a coding agent sends with each request."""
    parameters = {
        "type": "object",
        "properties": {
            name: {"type": "string", "description": text(200, i)}
            for i, name in enumerate(("command", "folder", "reason"))
        },
        "required": ["command"],
    }
    return [
        {
            "type": "function",
            "function": {"name": name, "description": text(1000, i), "parameters": parameters},
        }
        for i, name in enumerate(("shell", "read", "write", "plan", "search", "view"))
    ]


def image(size_bytes: int) -> bytes:
    """Return a request with an image that no other request has."""
    data = b"\x89PNG\r\n\x1a\n" + random.randbytes(size_bytes - 8)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return post({"model": "scripted-20", "messages": [user(parts)]})


def many_members(count: int) -> bytes:
    """Return a request of as many JSON members, 20 bytes each."""
    members = {f"m{i:06}": f"{i:06}" for i in range(count)}
    question = [user(f"question {time.monotonic_ns()}")]
    return post({"model": "scripted-20", "messages": question, "metadata": members})
