"""The older completions of OpenAI's API: a prompt that is continued, answered by chat models.

A request is read as a chat of one message; the response has its own shape.

Spec: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm.parts import StreamEvent, TextPart

from ...core import chat, payload
from ...core.errors import InvalidRequest, ProxyError, Unsupported
from ...core.openai_api import render_error
from ...transport import framing
from .render_response import render_usage

COMPLETION = "completion"
"""The form of such a request."""

COMPLETION_ID_PREFIX = "cmpl-"


@dataclass(frozen=True)
class CreateCompletionRequest:
    """The fields that a chat has not; the others are read as a chat's."""

    prompt: str | list[Any] | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: Any = None


COMPLETION_NOT_CARRIED: Mapping[str, str] = {
    "logprobs": "llm has no field for token probabilities",
}


def is_completion(body: Any) -> bool:
    """Return whether a request's body is one of these: it has a prompt, and no messages."""
    return isinstance(body, dict) and "prompt" in body and "messages" not in body


def as_chat(body: dict[str, Any], ignored: list[str]) -> tuple[dict[str, Any], str]:
    """Return the body of a chat with the prompt, and what the response is to begin with.

    Raises:
        InvalidRequest: there is no prompt; `param` names the field.
        Unsupported: a suffix, prompts as tokens, several prompts or `best_of` above 1.
    """
    own = {name: body[name] for name in CreateCompletionRequest.__annotations__ if name in body}
    request = payload.load(CreateCompletionRequest, own)
    if request.suffix:
        raise Unsupported("the models here complete no text in the middle", param="suffix")
    if request.best_of is not None and request.best_of != 1:
        raise Unsupported("only 1 is supported", param="best_of")
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt or ()
    if any(isinstance(prompt, int | list) for prompt in prompts):
        raise Unsupported("tokens can't be read here: send texts", param="prompt")
    if len(prompts) > 1:
        most = "one prompt" if body.get("stream") else f"{MAX_PROMPTS} prompts"
        raise Unsupported(f"send at most {most} in a request", param="prompt")
    prompt = prompts[0] if prompts else ""
    if not isinstance(prompt, str) or not prompt:
        raise InvalidRequest("there is no prompt to complete", param="prompt")
    ignored += [name for name in COMPLETION_NOT_CARRIED if getattr(request, name) is not None]
    shared = {name: value for name, value in body.items() if name not in own}
    chat_body = shared | {"messages": [{"role": "user", "content": prompt}]}
    return chat_body, prompt if request.echo else ""


MAX_PROMPTS = 64  # in one request; LangChain sends twenty


def split_batch(body: Any) -> list[Any]:
    """Return a body for each prompt of a request that is not streamed; else the body alone."""
    match body:
        case {"prompt": [str(), str(), *_] as prompts, **others} if not others.get("stream"):
            if len(prompts) <= MAX_PROMPTS:
                return [body | {"prompt": prompt} for prompt in prompts]
    return [body]


def join_batch(responses: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one response with the choices of several, in their order, and all their tokens."""
    choices = [
        choice | {"index": index}
        for index, choice in enumerate(one for response in responses for one in response["choices"])
    ]
    counts = [response["usage"] for response in responses if response["usage"]]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    usage = {name: sum(count[name] for count in counts) for name in names} if counts else None
    return responses[0] | {"choices": choices, "usage": usage}


def _head(envelope: chat.Envelope) -> dict[str, Any]:
    return {
        "id": COMPLETION_ID_PREFIX + envelope.id,
        "object": "text_completion",
        "created": envelope.created,
        "model": envelope.model,
    }


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}


def _echoed(envelope: chat.Envelope) -> str:
    """Return the prompt, if the client wants it back before the response."""
    prompt: str = envelope.echo.get("prompt", "")
    return prompt


def render_completion(response: chat.ChatResponse, envelope: chat.Envelope) -> dict[str, Any]:
    """Render a whole response; reasoning has no place in it.

    Spec: https://platform.openai.com/docs/api-reference/completions/object
    """
    text = "".join(part.text for part in response.parts if isinstance(part, TextPart))
    choice = _choice(_echoed(envelope) + text, response.finish.reason)
    return _head(envelope) | {"choices": [choice], "usage": render_usage(response.finish.usage)}


class CompletionStreamRenderer:
    """Renders events as SSE frames of text_completion. Feed in order; Finish is last."""

    def __init__(self, envelope: chat.Envelope) -> None:
        head = framing.escape_line_ends(payload.encode(_head(envelope)))
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._usage_null = b',"usage":null' if envelope.include_usage else b""
        # All but the text is the same in every frame, so it is encoded once.
        self._before = self._head + b'{"text":'
        after = b',"index":0,"logprobs":null,"finish_reason":null}]'
        self._after = after + self._usage_null + b"}\n\n"
        self._envelope = envelope

    def start(self) -> list[bytes]:
        """Return the prompt, if the client wants it back."""
        prompt = _echoed(self._envelope)
        return [self._text(prompt)] if prompt else []

    def feed(self, event: chat.Event) -> list[bytes]:
        """Return the frames of one event: none for what this API does not show."""
        match event:
            case chat.Finish():
                return self._finish(event)
            case StreamEvent(type="text", chunk=text) if text:
                return [self._text(text)]
        return []

    def idle(self) -> list[bytes]:
        """Return a keep-alive: a comment."""
        return [framing.SSE_PING]

    def fail(self, error: ProxyError) -> list[bytes]:
        """Return the error frame. The body must be cut after it, not ended."""
        return [framing.encode_sse(payload.encode(render_error(error)))]

    def _text(self, text: str) -> bytes:
        text_json = framing.escape_line_ends(payload.encode_string(text).encode())
        return self._before + text_json + self._after

    def _finish(self, finish: chat.Finish) -> list[bytes]:
        choice = payload.encode(_choice("", finish.reason))
        frames = [self._head + choice + b"]" + self._usage_null + b"}\n\n"]
        if self._envelope.include_usage:
            usage = payload.encode(render_usage(finish.usage))
            frames.append(self._head + b'],"usage":%b}\n\n' % usage)
        return [*frames, b"data: [DONE]\n\n"]
