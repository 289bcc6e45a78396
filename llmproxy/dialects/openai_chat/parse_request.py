"""Parse a Chat Completions request, and strip it to its normal form.

Spec: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import llm
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from ...core import attachments, chat, payload
from ...core.as_text import block_text, holds_text
from ...core.errors import InvalidRequest, Unsupported
from ...core.known_bodies import ItemMemory, add_items
from ...core.tool_calls import PendingToolCalls, append_result
from .completions import COMPLETION, as_chat, is_completion
from .schema import (
    NOT_CARRIED,
    OLD_TOOLS,
    OPTIONS,
    ChatCompletionAllowedToolChoice,
    ChatCompletionAssistantMessage,
    ChatCompletionContentPartImage,
    ChatCompletionContentPartInputAudio,
    ChatCompletionContentPartRefusal,
    ChatCompletionContentPartText,
    ChatCompletionFunctionMessage,
    ChatCompletionFunctionTool,
    ChatCompletionMessageToolCall,
    ChatCompletionNamedToolChoice,
    ChatCompletionNamedToolChoiceCustom,
    ChatCompletionStreamOptions,
    ChatCompletionToolMessage,
    CreateChatCompletionRequest,
    File,
    FileFile,
    Function,
    ImageURL,
    JSONSchema,
    ResponseFormatJSONObject,
    ResponseFormatJSONSchema,
    ToolName,
)


def parse_request(
    body: Any,
    headers: Mapping[str, str] | None = None,
    memory: ItemMemory | None = None,
) -> chat.ChatRequest:
    """Parse the body of a request, a JSON value; an older completion's is one with a prompt.

    memory: of its first messages, if an earlier body had them; those that follow are added.

    Kept: messages of every role in their places, with text, reasoning, tool calls and
    results, and images, audio and files as attachments; tools (those that a message defines
    too), options, schema. Parts of unknown types become text, except media. Tool
    messages in a row become one, as in llm. A tool call or result without an id gets one
    from its place. Empty assistant messages are dropped. Fields that are not carried are
    listed in `ignored`.

    Raises:
        InvalidRequest: the body is not such a request; `param` names the field.
        Unsupported: the response would silently differ: `n` above 1, audio output, files
            by id.

    Spec: https://platform.openai.com/docs/api-reference/chat/create
    """
    if is_completion(body):
        own: list[str] = []
        body, echo = as_chat(body, own)
        parsed = parse_request(body, headers)
        listed = tuple(dict.fromkeys((*parsed.ignored, *own)))
        return replace(
            parsed,
            form=COMPLETION,
            echo={"prompt": echo},
            repeated=("echo",) if echo else (),
            ignored=listed,
        )
    ignored: list[str] = []
    others: list[str] = []
    body = _with_others_told(body, others, memory)
    request = payload.load(CreateChatCompletionRequest, body, ignored)
    ignored += others
    if request.n is not None and request.n != 1:
        raise Unsupported("only 1 is supported", param="n")
    if request.audio is not None or "audio" in (request.modalities or ()):
        raise Unsupported("only text output is supported, not audio", param="modalities")
    stream_options = request.stream_options or ChatCompletionStreamOptions()
    if stream_options.include_obfuscation:
        ignored.append("stream_options.include_obfuscation")
    if set(request.modalities or ()) - {"text"}:
        ignored.append("modalities")
    ignored += [name for name in NOT_CARRIED if getattr(request, name) not in (None, False)]
    parser = _MessageParser()
    add_items(parser, request.messages, "messages", None if others else memory)
    ignored += parser.ignored
    if not any(message.parts for message in parser.messages):
        raise InvalidRequest(
            "no message has any content" if request.messages else "must not be empty",
            param="messages",
        )
    parser.pending.check_empty(f"messages[{len(request.messages)}]")
    tools, tool_choice = _tools(request, parser.added_tools, ignored)
    options, paths = _options(request, ignored)
    return chat.ChatRequest(
        model=request.model or None,
        messages=parser.messages,
        tools=tools,
        tool_choice=tool_choice,
        options=options,
        schema=_schema(request, ignored),
        stream=bool(request.stream),
        include_usage=bool(stream_options.include_usage),
        form=OLD_TOOLS if request.functions and not request.tools else "",
        option_paths=paths,
        attachment_paths=tuple(parser.attachment_paths),
        ignored=tuple(dict.fromkeys(ignored)),
    )


_PART_TYPES = frozenset("text image_url input_audio file refusal".split())
# Kinds that no text can stand for; unknown ones are refused.
_MEDIA = frozenset("image video audio file document media".split())


def _with_others_told(body: Any, ignored: list[str], memory: ItemMemory | None) -> Any:
    """Replace content parts of unknown types by text, and list them. The body is not edited."""
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        return body
    messages = body["messages"]
    if memory is None:
        return body | {"messages": [_message_told(message, ignored) for message in messages]}
    # None of those that are remembered has such parts.
    return body | {"messages": memory.items(messages, lambda one: _message_told(one, ignored))}


def _message_told(message: Any, ignored: list[str]) -> Any:
    match message:
        case {"role": role, "content": list(content)} if any(map(_is_other, content)):
            pass
        case _:
            return message
    is_result = role in ("tool", "function")
    told: list[Any] = []
    thoughts: list[str] = []
    for part in content:
        if not _is_other(part) or not (is_result or holds_text(part)):
            told.append(part)
        elif role == "assistant" and "thinking" in part:  # Mistral's, and LiteLLM's
            thoughts.append(block_text(part["thinking"]))
        else:
            ignored.append(f"messages[*].content[*] ({part['type'][:40]})")
            told.append({"type": "text", "text": block_text(part)})
    if thoughts and not message.get("reasoning_content"):
        message = message | {"reasoning_content": "".join(thoughts)}
    return message | {"content": told}


def _is_other(part: Any) -> bool:
    match part:
        case {"type": str(type_)}:
            is_known = not type_ or type_ in _PART_TYPES
            return not is_known and _MEDIA.isdisjoint(type_.split("_"))
    return False


def _options(
    request: CreateChatCompletionRequest, ignored: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options under our names, and the paths of those that the body names otherwise."""
    options = {name: getattr(request, name) for name in OPTIONS}
    options["stop_sequences"] = _stop_sequences(request.stop, ignored)
    paths = {
        "stop_sequences": "stop",
        "json_object": "response_format",
        "schema": "response_format",
    }
    if request.functions and not request.tools:
        paths |= {"tools": OLD_TOOLS, "tool_choice": "function_call"}
    for name in ("max_completion_tokens", "max_tokens"):
        limit = getattr(request, name)
        if limit is not None and limit < 1:
            ignored.append(name)  # -1 means "no limit" to local servers
        elif limit is not None and options.setdefault("max_tokens", limit) == limit:
            paths.setdefault("max_tokens", name)
        elif limit is not None:
            ignored.append(name)  # both were sent; the newer name counts
    if _wants_json(request) and not _asked_schema(request):
        options["json_object"] = True  # {} too, which llm takes for no schema at all
    return {name: value for name, value in options.items() if value is not None}, paths


def _wants_json(request: CreateChatCompletionRequest) -> bool:
    return isinstance(request.response_format, ResponseFormatJSONObject | ResponseFormatJSONSchema)


def _asked_schema(request: CreateChatCompletionRequest) -> dict[str, Any] | None:
    """Return the schema, which some clients put beside the type; {} and None ask for any JSON.

    Raises:
        InvalidRequest: the format is a schema, and there is none.
    """
    match request.response_format:
        case ResponseFormatJSONSchema(json_schema=JSONSchema(schema=schema)):
            return schema
        case ResponseFormatJSONSchema(schema=None):
            raise InvalidRequest("this field is required", param="response_format.json_schema")
        case ResponseFormatJSONSchema(schema=schema) | ResponseFormatJSONObject(schema=schema):
            return schema
    return None


def _schema(request: CreateChatCompletionRequest, ignored: list[str]) -> dict[str, Any] | None:
    match request.response_format:
        case ResponseFormatJSONSchema(json_schema=JSONSchema() as asked):
            ignored += [
                f"response_format.json_schema.{name}"
                for name in ("name", "description", "strict")
                if getattr(asked, name)
            ]
    return _asked_schema(request) or None


def _stop_sequences(stop: str | list[str] | None, ignored: list[str]) -> list[str] | None:
    """Drop entries of white space alone: providers refuse them."""
    entries = [entry for entry in ([stop] if isinstance(stop, str) else stop or ()) if entry]
    carried = [entry for entry in entries if entry.strip()]
    if carried != entries:
        ignored.append("stop")
    return carried or None


def _tools(
    request: CreateChatCompletionRequest, added: Sequence[Sequence[Any]], ignored: list[str]
) -> tuple[tuple[llm.Tool, ...], chat.ToolChoice]:
    """Return the tools and the choice among them; `added` are those that messages define."""
    definitions = list(request.functions or [])
    for tool in chain(request.tools or (), *added):
        if isinstance(tool, ChatCompletionFunctionTool):
            definitions.append(tool.function)
        else:
            ignored.append("tools[*].custom")
    if any(definition.strict for definition in definitions):
        ignored.append("tools[*].function.strict")
    if added:  # a message may define a tool anew; otherwise a tool twice is a mistake
        definitions = list({definition.name: definition for definition in definitions}.values())
    tools = tuple(
        llm.Tool(d.name, d.description, d.parameters or {"type": "object", "properties": {}})
        for d in definitions
    )
    match request.tool_choice if request.tool_choice is not None else request.function_call:
        case None:
            return tools, "auto"
        case "none" | "auto" | "required" as word:
            return tools, word
        case ChatCompletionNamedToolChoice(function=chosen):
            return tools, _named(chosen, tools, "tool_choice.function.name")
        case ChatCompletionNamedToolChoiceCustom():
            ignored.append("tool_choice")  # as the tool itself
            return tools, "auto"
        case ToolName() as chosen:
            return tools, _named(chosen, tools, "function_call.name")
        case ChatCompletionAllowedToolChoice(allowed_tools=allowed):
            names = {tool.function.name for tool in allowed.tools if tool.function}
            return tuple(tool for tool in tools if tool.name in names), allowed.mode
    raise AssertionError("payload checks the tool choice")


def _named(chosen: ToolName, tools: tuple[llm.Tool, ...], param: str) -> chat.NamedTool:
    if chosen.name not in {tool.name for tool in tools}:
        raise InvalidRequest(f"there is no tool {chosen.name!r} in this request", param=param)
    return chat.NamedTool(chosen.name)


class _MessageParser:
    """Parses messages in order."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.attachment_paths: list[str] = []
        self.ignored: list[str] = []
        self.added_tools: list[Sequence[Any]] = []
        self.pending = PendingToolCalls()
        self._arguments = chat.CallArguments()

    def made(self) -> tuple[list[Any], ...]:
        return self.messages, self.attachment_paths, self.ignored, self.added_tools

    def facts(self) -> tuple[Any, ...] | None:
        # While a call waits, results are added to the last message; none may follow later.
        return None if self.pending else (self._arguments.left,)

    def go_on(self, facts: tuple[Any, ...]) -> None:
        (self._arguments.left,) = facts

    def add(self, message: Any, path: str) -> None:
        match message:
            case ChatCompletionToolMessage():
                append_result(self.messages, self._tool_result(message, path))
                return
            case ChatCompletionFunctionMessage():
                append_result(self.messages, self._function_result(message, path))
                return
        self.pending.check_empty(path)
        if message.name:
            self.ignored.append("messages[*].name")
        if tools := getattr(message, "tools", None):
            self.added_tools.append(tools)
        if isinstance(message, ChatCompletionAssistantMessage):
            parts = list(self._assistant_parts(message, path))
            if not parts:
                return
            role = "assistant"
        else:
            if message.content is None and not message.tools:
                raise InvalidRequest("this field is required", param=f"{path}.content")
            parts = list(self._parts(message.content, f"{path}.content"))
            if message.content is None:
                return
            role = "user" if message.role == "user" else "system"
        self.messages.append(Message(role, parts))

    def _parts(self, content: str | Iterable[Any] | None, path: str) -> Iterator[Part]:
        if content is None or content == "":
            return
        if isinstance(content, str):
            yield TextPart(content)
            return
        for i, part in enumerate(content):
            match part:
                case (
                    ChatCompletionContentPartText(text=text)
                    | ChatCompletionContentPartRefusal(refusal=text)
                ):
                    if text:
                        yield TextPart(text)
                case _:
                    attachment, field = self._attachment(part, f"{path}[{i}]")
                    self.attachment_paths.append(field)
                    yield AttachmentPart(attachment)

    def _attachment(self, part: Any, path: str) -> tuple[llm.Attachment, str]:
        match part:
            case ChatCompletionContentPartImage(image_url=ImageURL(url=url, detail=detail)):
                if detail not in (None, "auto"):
                    self.ignored.append("messages[*].content[*].image_url.detail")
                path = f"{path}.image_url.url"
                return attachments.attachment_from_url(url, param=path), path
            case ChatCompletionContentPartImage(image_url=str(url)):
                path = f"{path}.image_url"
                return attachments.attachment_from_url(url, param=path), path
            case ChatCompletionContentPartInputAudio(input_audio=audio):
                media_type = {"wav": "audio/wav", "mp3": "audio/mpeg"}[audio.format]
                path = f"{path}.input_audio.data"
                return attachments.attachment_from_base64(audio.data, media_type, param=path), path
            case File(file=FileFile(file_data=str(data), filename=filename)):
                if filename:
                    self.ignored.append("messages[*].content[*].file.filename")
                path = f"{path}.file.file_data"
                return attachments.attachment_from_base64(data, "application/pdf", param=path), path
        raise Unsupported(
            "files must be sent as file_data; this server stores none", param=f"{path}.file"
        )

    def _assistant_parts(
        self, message: ChatCompletionAssistantMessage, path: str
    ) -> Iterator[Part]:
        said = [message.reasoning_content, message.reasoning, message.thinking]
        reasoning = next((text for text in said if isinstance(text, str) and text), None)
        if reasoning is not None:
            yield ReasoningPart(reasoning)
        elif any(said):
            self.ignored.append("messages[*].reasoning")
        if message.audio is not None:
            raise Unsupported(
                "audio must be sent with the request; this server stores none",
                param=f"{path}.audio",
            )
        yield from self._parts(message.content, f"{path}.content")
        if message.annotations:
            self.ignored.append("messages[*].annotations")
        if message.refusal:
            yield TextPart(message.refusal)
        calls = [
            (call.id, *_called(call, f"{path}.tool_calls[{i}]", self._arguments))
            for i, call in enumerate(message.tool_calls or ())
        ]
        if message.function_call is not None:
            function = message.function_call
            calls.append((None, function.name, _arguments(function, self._arguments)))
        for i, (id_, name, arguments) in enumerate(calls):
            id_ = id_ or f"call_{len(self.messages)}_{i}"
            self.pending.add(id_, name)
            yield ToolCallPart(name, arguments, tool_call_id=id_)

    def _tool_result(self, message: ChatCompletionToolMessage, path: str) -> ToolResultPart:
        id_ = message.tool_call_id or self.pending.oldest() or ""
        name = self.pending.take(id_, f"{path}.tool_call_id")
        return self._result(id_, name, message.content, path)

    def _function_result(self, message: ChatCompletionFunctionMessage, path: str) -> ToolResultPart:
        id_ = self.pending.oldest(message.name)
        if id_ is None:
            raise InvalidRequest(
                f"no call of {message.name!r} waits for a result here", param=f"{path}.name"
            )
        name = self.pending.take(id_, f"{path}.name")
        return self._result(id_, name, message.content, path)

    def _result(
        self, id_: str, name: str, content: str | Iterable[Any] | None, path: str
    ) -> ToolResultPart:
        parts = list(self._parts(content, f"{path}.content"))
        return ToolResultPart(
            name=name,
            output="".join(part.text for part in parts if isinstance(part, TextPart)),
            tool_call_id=id_,
            attachments=[part.attachment for part in parts if isinstance(part, AttachmentPart)],
        )


def _called(
    call: ChatCompletionMessageToolCall, path: str, arguments: chat.CallArguments
) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of a call, `input` for a custom tool's text."""
    if call.function is not None:
        return call.function.name, _arguments(call.function, arguments)
    if call.custom is not None:
        return call.custom.name, {"input": call.custom.input or ""}
    raise InvalidRequest("this field is required", param=f"{path}.function")


def _arguments(function: Function, arguments: chat.CallArguments) -> dict[str, Any]:
    if isinstance(function.arguments, dict):
        return function.arguments
    return arguments.parse(function.arguments or "")


# ---- the normal form

# The places where LiteLLM reads a mark, and the first for OpenRouter: never a tool's arguments
# or parameters. OpenAI's own marks stand on parts of a message.
_without_cache_marks = payload.without(
    "cache_control",
    "messages[*].cache_control",
    "messages[*].content[*].cache_control",
    "messages[*].content[*].prompt_cache_breakpoint",
    "messages[*].tool_calls[*].cache_control",
    "tools[*].cache_control",
    "tools[*].function.cache_control",
)


def normalize_body(body: Any) -> Any:
    """Strip cache marks, which move with every turn, before a request's body is stored.

    OpenAI caches by itself, also where clients mark it. Those that reach Anthropic's models too,
    through LiteLLM or OpenRouter (aider, gptme), send Anthropic's marks in this API. Any JSON
    value is taken; it is not edited, and the result shares its unchanged parts.

    Spec: https://docs.litellm.ai/docs/completion/prompt_caching
    """
    return _without_cache_marks(body)
