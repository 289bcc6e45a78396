"""A recorded coding session, and the models that are asked it again.

A provider on loopback answers what tests/dialogue.py says, at times that are made of the
question alone; llm's own plugin for OpenAI's wire asks it, as it would a real one. The
provider keeps the times at which it really spoke.
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from random import Random
from typing import Any

import openai

from tests.dialogue import DIALOGUES, TOOLS, Call, Step
from tests.provider import Provider, begin_sse, chat_chunk, playing, say_event, say_json

__all__ = [
    "EXCHANGES",
    "FAILING",
    "PACES",
    "RECORDED",
    "Said",
    "Session",
    "command",
    "environment",
    "on_stage",
    "record",
]

RECORDED = "original"
SYSTEM = "You are a programming agent in an editor. Be brief; read and change files by tools."
EXCHANGES = sum(map(len, DIALOGUES))
FAILING = DIALOGUES[0][-1].asked  # the longest history; too long for `quick`
REASONING_TOKENS = (0, 24, 56)  # counted, not streamed

_STEPS = {step.asked: step for steps in DIALOGUES for step in steps}
_NUMBERS = {asked: number for number, asked in enumerate(_STEPS)}


@dataclass(frozen=True)
class Pace:
    """How fast a model speaks: the median wait before its first token, and between tokens.

    sway: `twin-a` and `twin-b` are one model whose luck changes sides from request to
    request, so that neither is faster.
    """

    first_s: float
    gap_s: float
    sway: float = 0.0


PACES = {
    RECORDED: Pace(0.09, 0.004),
    "quick": Pace(0.08, 0.004),
    "thorough": Pace(0.22, 0.009),
    "twin-a": Pace(0.06, 0.004, 0.4),
    "twin-b": Pace(0.06, 0.004, -0.4),
}


@dataclass
class Said:
    """What the provider answered to one request, and when, by time.monotonic().

    asked: the last message. times, chars: of each token. is_whole: it came to its end.
    is_warm_up: the request began with a line of its own.
    """

    model: str
    asked: str
    asked_at: float
    times: list[float] = field(default_factory=list)
    chars: list[int] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = False
    is_warm_up: bool = False

    @property
    def ttft_s(self) -> float:
        """From the request to the first token."""
        return self.times[0] - self.asked_at

    @property
    def tokens_per_s(self) -> float:
        """Of the tokens after the first one, whose share is that of its characters."""
        tokens = len(self.times) * (1 - self.chars[0] / sum(self.chars))
        return tokens / (self.times[-1] - self.times[0])


@dataclass
class Session:
    """The provider with what it said, and llm's folder with the models that it plays."""

    provider: Provider
    folder: Path
    said: list[Said]

    def last_said(self, model: str) -> dict[str, Said]:
        """What a model answered, by what it was asked; the last answer where it was asked again.

        Without warm-ups; what was cut comes before the answer that is measured.
        """
        return {
            said.asked: said for said in self.said if said.model == model and not said.is_warm_up
        }


# ---- the provider's side


@contextmanager
def on_stage(folder: Path) -> Iterator[Session]:
    """Play the provider, and make `folder` one of llm's that has its models."""
    said: list[Said] = []
    lock = threading.Lock()

    def answer(body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
        one = Said(body["model"], body["messages"][-1]["content"], time.monotonic())
        one.is_warm_up = body["messages"][0]["content"] != SYSTEM
        with lock:
            said.append(one)
        _answer(body, one, handler)

    with playing(answer) as provider:
        folder.mkdir(parents=True, exist_ok=True)
        models = [
            {
                "model_id": name,
                "model_name": name,
                "api_base": f"{provider.url}/v1",
                "supports_tools": True,
                "supports_schema": True,
            }
            for name in PACES
        ]
        (folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
        yield Session(provider, folder, said)


def _answer(body: dict[str, Any], said: Said, handler: BaseHTTPRequestHandler) -> None:
    assert body["stream"] and body["stream_options"] == {"include_usage": True}
    if said.model == "quick" and said.asked == FAILING:
        message = "This model's maximum context length is 1024 tokens."
        error = {"message": message, "type": "invalid_request_error", "param": "messages"}
        say_json(handler, {"error": error | {"code": "context_length_exceeded"}}, status=400)
        return
    step = _STEPS[said.asked]
    text, call = _part_of(said.model, step)
    deltas = [{"content": token} for token in _tokens(text)]
    if call is not None:
        deltas += _call_deltas(call, _NUMBERS[said.asked])
    random = Random(f"{said.model} {said.asked}")
    reasoning = random.choice(REASONING_TOKENS) if said.model == "thorough" else 0
    said.usage = _usage(body["messages"], len(deltas) + reasoning, reasoning)
    begin_sse(handler)
    for delta, at_s in zip(deltas, _schedule(said, len(deltas)), strict=True):
        time.sleep(max(0.0, said.asked_at + at_s - time.monotonic()))
        role = {} if said.times else {"role": "assistant"}
        said.times.append(time.monotonic())
        said.chars.append(_chars(delta))
        say_event(handler, chat_chunk(role | delta, model=said.model))
    reason = "stop" if call is None else "tool_calls"
    say_event(handler, chat_chunk({}, reason, model=said.model))
    say_event(handler, chat_chunk({}, model=said.model, usage=said.usage) | {"choices": []})
    say_event(handler, "[DONE]")
    said.is_whole = True


def _chars(delta: Mapping[str, Any]) -> int:
    functions = [call["function"] for call in delta.get("tool_calls", ())]
    calls = [each.get("name", "") + each["arguments"] for each in functions]
    return len(delta.get("content", "") + "".join(calls))


def _part_of(model: str, step: Step) -> tuple[str, Call | None]:
    if model == "quick":
        return step.quick, step.quick_call
    return (step.thorough if model == "thorough" else step.said), step.call


def _tokens(text: str) -> list[str]:
    return re.findall(r"\s?\w{1,6}|\s?[^\w\s]{1,3}|\s+", text)


def _call_deltas(call: Call, number: int) -> list[dict[str, Any]]:
    """The name with the call's id, then the arguments token by token."""
    begin = {"id": f"call_{number}", "type": "function"}
    begin |= {"function": {"name": call.name, "arguments": ""}}
    pieces = [{"function": {"arguments": token}} for token in _tokens(call.arguments)]
    return [{"tool_calls": [{"index": 0} | each]} for each in (begin, *pieces)]


def _schedule(said: Said, count: int) -> Iterator[float]:
    """When each token is due, in seconds from the request; the same whenever it is asked."""
    pace = PACES[said.model]
    if pace.sway:
        side = 1 + pace.sway * (1 if _NUMBERS[said.asked] % 2 else -1)
        yield from ((pace.first_s + number * pace.gap_s) * side for number in range(count))
        return
    random = Random(f"{said.model} {said.asked} times")
    at_s = min(pace.first_s * random.lognormvariate(0, 0.3), 2 * pace.first_s)
    speed = random.uniform(0.8, 1.25)  # a busy hour, a long prompt
    for _ in range(count):
        yield at_s
        pause = 6 if random.random() < 0.02 else 1
        at_s += pace.gap_s * speed * pause * random.lognormvariate(0, 0.35)


def _usage(messages: Sequence[Mapping[str, Any]], output: int, reasoning: int) -> dict[str, Any]:
    """Count as providers do: about four characters a token, whole blocks of the history cached."""
    sizes = [len(json.dumps(message)) // 4 for message in messages]
    return {
        "prompt_tokens": sum(sizes),
        "completion_tokens": output,
        "total_tokens": sum(sizes) + output,
        "prompt_tokens_details": {"cached_tokens": sum(sizes[:-1]) // 128 * 128},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


# ---- the client's side


def command(*words: str) -> list[str]:
    """The command that a person types, as a list."""
    return [sys.executable, "-m", "llmproxy", *words]


def environment(folder: Path) -> dict[str, str]:
    """What a command needs to see of `folder` alone: of llm's plugins those built in."""
    root = str(Path(__file__).parent.parent)
    found = {"LLM_USER_PATH": str(folder), "LLM_LOAD_PLUGINS": "", "PYTHONPATH": root}
    return os.environ | found | {"COLUMNS": "120"}


def record(session: Session) -> None:
    """Hold the dialogues by OpenAI's SDK with a proxy, which keeps them in llm's log."""
    with _serving(session.folder) as url:
        client = openai.OpenAI(
            base_url=f"{url}/v1",
            api_key="any",
            max_retries=0,
            default_headers={"x-title": "editor"},
        )
        with client:
            for steps in DIALOGUES:
                _hold(client, steps)


def _hold(client: openai.OpenAI, steps: Sequence[Step]) -> None:
    """One conversation, which grows; what was answered is sent again as it came."""
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]
    for step in steps:
        if step.is_result:
            (call,) = messages[-1]["tool_calls"]
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": step.asked})
        else:
            messages.append({"role": "user", "content": step.asked})
        messages.append(_ask(client, messages, step.schema))


def _ask(
    client: openai.OpenAI, messages: Sequence[Any], schema: Mapping[str, Any] | None
) -> dict[str, Any]:
    form = {"name": "answer", "schema": schema}
    extra = {"response_format": {"type": "json_schema", "json_schema": form}} if schema else {}
    stream = client.chat.completions.create(
        model=RECORDED, messages=messages, tools=TOOLS, stream=True, extra_body=extra
    )
    text, calls = "", []
    for chunk in stream:
        delta = chunk.choices[0].delta if chunk.choices else None
        if delta is None:
            continue
        text += delta.content or ""
        for each in delta.tool_calls or ():
            if each.id:
                function = {"name": each.function.name, "arguments": ""}
                calls.append({"id": each.id, "type": "function", "function": function})
            calls[-1]["function"]["arguments"] += each.function.arguments or ""
    kept = {"content": text or None} | ({"tool_calls": calls} if calls else {})
    return {"role": "assistant", **kept}


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    """Run `python -m llmproxy` on a free port, and end it as Ctrl-C does; give its URL."""
    process = subprocess.Popen(
        command("--port", "0"),
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout])
    reader.start()
    try:
        found = re.search(r"http://\S+", lines.get(timeout=30))
        assert found is not None
        yield found[0]
        process.terminate()
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
