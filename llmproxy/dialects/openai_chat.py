"""OpenAI's Chat Completions: the wire that most programs speak.

Read beside the vendor's page: the request's shapes and how they become the hub's and
are written from it, the stream of chunks and the whole completion, both ways, models,
errors. What the vendor has and llm has not is listed (`NOT_CARRIED`) or refused,
never dropped in silence.

Spec: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import llm
from llm.parts import (
    AttachmentPart,
    Message,
    Part,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from .. import hub, payload
from ..errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProxyError,
    RateLimited,
    Unauthorized,
    Unsupported,
    UpstreamError,
    UpstreamTimeout,
    class_of_status,
)
from ..hub import Route
from ..transport import framing

__all__ = [
    "CUT_AFTER_ERROR",
    "NAME",
    "REQUEST_ID_HEADER",
    "ROUTES",
    "STREAM_TYPE",
    "VERSION_HEADER",
    "ChatCompletionChunk",
    "CreateChatCompletionRequest",
    "StreamParser",
    "StreamRenderer",
    "parse_error",
    "parse_request",
    "parse_response",
    "render_error",
    "render_model",
    "render_models",
    "render_request",
    "render_response",
]

NAME = "openai_chat"

ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/chat/completions", "chat"),
    Route("GET", "/v1/models", "models"),
    Route("GET", "/v1/models/", "model"),
)

STREAM_TYPE = "text/event-stream; charset=utf-8"
REQUEST_ID_HEADER = "x-request-id"
VERSION_HEADER = ""  # its clients send none
CUT_AFTER_ERROR = True  # an error frame is no end here: what ends well reads as success (B11)

# ---- request: shapes, with the names of OpenAI's SDK


@dataclass(frozen=True)
class ChatCompletionContentPartText:
    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True)
class ImageURL:
    url: str
    detail: str | None = None


@dataclass(frozen=True)
class ChatCompletionContentPartImage:
    type: Literal["image_url"]
    image_url: ImageURL | str


@dataclass(frozen=True)
class InputAudio:
    data: str
    format: Literal["wav", "mp3"]


@dataclass(frozen=True)
class ChatCompletionContentPartInputAudio:
    type: Literal["input_audio"]
    input_audio: InputAudio


@dataclass(frozen=True)
class FileFile:
    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


@dataclass(frozen=True)
class File:
    type: Literal["file"]
    file: FileFile


@dataclass(frozen=True)
class ChatCompletionContentPartRefusal:
    type: Literal["refusal"]
    refusal: str


ContentPart = (
    ChatCompletionContentPartText
    | ChatCompletionContentPartImage
    | ChatCompletionContentPartInputAudio
    | File
    | ChatCompletionContentPartRefusal
)


@dataclass(frozen=True)
class ChatCompletionSystemMessage:
    role: Literal["system", "developer"]
    content: str | list[ChatCompletionContentPartText]
    name: str | None = None


@dataclass(frozen=True)
class ChatCompletionUserMessage:
    role: Literal["user"]
    content: str | list[ContentPart]
    name: str | None = None


@dataclass(frozen=True)
class Function:
    name: str
    arguments: str | None = None


@dataclass(frozen=True)
class ChatCompletionMessageToolCall:
    function: Function
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None  # sent back by clients that keep the stream's deltas


@dataclass(frozen=True)
class ChatCompletionAssistantMessage:
    """An answer, often our own coming back: what only answers have is taken and dropped."""

    role: Literal["assistant"]
    content: str | list[ChatCompletionContentPartText | ChatCompletionContentPartRefusal] | None = (
        None
    )
    tool_calls: list[ChatCompletionMessageToolCall] | None = None
    function_call: Function | None = None
    refusal: str | None = None
    name: str | None = None
    # Three names are in use for the same thing (B12).
    reasoning_content: str | None = None
    reasoning: Any = None
    thinking: Any = None
    annotations: Any = None
    audio: Any = None


@dataclass(frozen=True)
class ChatCompletionToolMessage:
    role: Literal["tool"]
    content: str | list[ChatCompletionContentPartText | ChatCompletionContentPartImage] | None = (
        None
    )
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class ChatCompletionFunctionMessage:
    role: Literal["function"]
    name: str
    content: str | None = None


ChatCompletionMessage = (
    ChatCompletionSystemMessage
    | ChatCompletionUserMessage
    | ChatCompletionAssistantMessage
    | ChatCompletionToolMessage
    | ChatCompletionFunctionMessage
)


@dataclass(frozen=True)
class FunctionDefinition:
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


@dataclass(frozen=True)
class ChatCompletionFunctionTool:
    function: FunctionDefinition
    type: Literal["function"] = "function"


@dataclass(frozen=True)
class ChatCompletionCustomTool:
    type: Literal["custom"]
    custom: Any = None


@dataclass(frozen=True)
class ToolName:
    name: str


@dataclass(frozen=True)
class ChatCompletionNamedToolChoice:
    type: Literal["function"]
    function: ToolName


@dataclass(frozen=True)
class AllowedTool:
    function: ToolName | None = None
    type: str = "function"


@dataclass(frozen=True)
class AllowedTools:
    mode: Literal["auto", "required"]
    tools: list[AllowedTool]


@dataclass(frozen=True)
class ChatCompletionAllowedToolChoice:
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


@dataclass(frozen=True)
class ResponseFormatText:
    type: Literal["text"]


@dataclass(frozen=True)
class ResponseFormatJSONObject:
    type: Literal["json_object"]


@dataclass(frozen=True)
class JSONSchema:
    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


@dataclass(frozen=True)
class ResponseFormatJSONSchema:
    type: Literal["json_schema"]
    json_schema: JSONSchema


@dataclass(frozen=True)
class ChatCompletionStreamOptions:
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


@dataclass(frozen=True)
class CreateChatCompletionRequest:
    """The body of a request. Null means absent throughout, as SDKs write it (d2)."""

    messages: list[ChatCompletionMessage]
    model: str | None = None
    tools: list[ChatCompletionFunctionTool | ChatCompletionCustomTool] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | ChatCompletionNamedToolChoice
        | ChatCompletionAllowedToolChoice
        | None
    ) = None
    functions: list[FunctionDefinition] | None = None
    function_call: Literal["none", "auto"] | ToolName | None = None
    response_format: (
        ResponseFormatText | ResponseFormatJSONObject | ResponseFormatJSONSchema | None
    ) = None
    stream: bool | None = None
    stream_options: ChatCompletionStreamOptions | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # not OpenAI's, but sent to every local server
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    user: str | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    prediction: Any = None
    web_search_options: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    metadata: Any = None
    store: bool | None = None


# Options go to the engine under the hub's names, which are mostly the vendor's own.
OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "service_tier",
    "user",
)

NOT_CARRIED: Mapping[str, str] = {
    "logprobs": "llm has no word for the probabilities of tokens",
    "top_logprobs": "llm has no word for the probabilities of tokens",
    "prediction": "a hint for speed that no llm plugin passes on",
    "web_search_options": "llm offers server tools by the plugin's own classes",
    "prompt_cache_key": "plugins choose their own cache keys",
    "prompt_cache_retention": "plugins choose their own cache keys",
    "safety_identifier": "names the client's user to OpenAI, not to the model",
    "metadata": "kept by OpenAI's own log; ours has the request as it came",
    "store": "kept by OpenAI's own log; ours has the request as it came",
}

# ---- request: to the hub


def parse_request(body: Any, headers: Mapping[str, str] | None = None) -> hub.ChatRequest:
    """Read the JSON value of a request's body as a hub.ChatRequest.

    Kept: messages of every role in their places, with text, images, audio and files
    as attachments, reasoning, tool calls and results (tool messages that follow one
    another become one, as llm holds them); tools, options, schema. A tool call or
    result without an id is given one by its place. Empty assistant messages are
    dropped. What is not carried stands in `ignored`.

    Raises:
        InvalidRequest: a body that is no such request, `param` naming the field.
        Unsupported: what would silently change the answer: `n` above 1, audio output,
            files by id.

    Spec: https://platform.openai.com/docs/api-reference/chat/create
    """
    ignored: list[str] = []
    request = payload.load(CreateChatCompletionRequest, body, ignored)
    if request.n is not None and request.n != 1:
        raise Unsupported("only n: 1 is answered", param="n")
    if request.audio is not None or "audio" in (request.modalities or ()):
        raise Unsupported("only text is answered, not audio", param="modalities")
    ignored += [name for name in NOT_CARRIED if getattr(request, name) not in (None, False)]
    reader = _MessageReader(ignored)
    for i, message in enumerate(request.messages):
        reader.read(message, f"messages[{i}]")
    if not any(message.parts for message in reader.messages):
        raise InvalidRequest("there is no message to answer", param="messages")
    reader.check_all_answered(f"messages[{len(request.messages)}]")
    tools, tool_choice = _tools(request, ignored)
    options, paths = _options(request, ignored)
    stream_options = request.stream_options or ChatCompletionStreamOptions()
    return hub.ChatRequest(
        model=request.model or None,
        messages=reader.messages,
        tools=tools,
        tool_choice=tool_choice,
        options=options,
        schema=_schema(request, ignored),
        stream=bool(request.stream),
        wire={"include_usage": bool(stream_options.include_usage)},
        option_paths=paths,
        attachment_paths=tuple(reader.attachment_paths),
        ignored=tuple(dict.fromkeys(ignored)),
    )


def _options(
    request: CreateChatCompletionRequest, ignored: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Give the options by the hub's names, and where the body has those of another name."""
    options = {name: getattr(request, name) for name in OPTIONS}
    options["stop_sequences"] = _stop_sequences(request.stop, ignored)
    paths = {
        "stop_sequences": "stop",
        "json_object": "response_format",
        "schema": "response_format",
    }
    if request.functions:
        paths |= {"tools": "functions", "tool_choice": "function_call"}
    for name in ("max_completion_tokens", "max_tokens"):
        limit = getattr(request, name)
        if limit is not None and limit < 1:
            ignored.append(name)  # -1 means "no limit" to local servers
        elif limit is not None and options.setdefault("max_tokens", limit) == limit:
            paths.setdefault("max_tokens", name)
        elif limit is not None:
            ignored.append(name)  # both were sent; the newer name counts
    if isinstance(request.response_format, ResponseFormatJSONObject) or _asks_for_any_json(request):
        options["json_object"] = True
    return {name: value for name, value in options.items() if value is not None}, paths


def _asks_for_any_json(request: CreateChatCompletionRequest) -> bool:
    """Whether the schema is {}: llm takes that for no schema at all."""
    wanted = request.response_format
    return isinstance(wanted, ResponseFormatJSONSchema) and not wanted.json_schema.schema


def _schema(request: CreateChatCompletionRequest, ignored: list[str]) -> dict[str, Any] | None:
    if not isinstance(request.response_format, ResponseFormatJSONSchema):
        return None
    asked = request.response_format.json_schema
    ignored += [
        f"response_format.json_schema.{name}"
        for name in ("name", "description", "strict")
        if getattr(asked, name)
    ]
    return asked.schema or None


def _stop_sequences(stop: str | list[str] | None, ignored: list[str]) -> list[str] | None:
    """Drop entries of white space alone: providers refuse them (B30)."""
    entries = [entry for entry in ([stop] if isinstance(stop, str) else stop or ()) if entry]
    carried = [entry for entry in entries if entry.strip()]
    if carried != entries:
        ignored.append("stop")
    return carried or None


def _tools(
    request: CreateChatCompletionRequest, ignored: list[str]
) -> tuple[tuple[llm.Tool, ...], hub.ToolChoice]:
    definitions = list(request.functions or [])
    for tool in request.tools or []:
        if isinstance(tool, ChatCompletionFunctionTool):
            definitions.append(tool.function)
        else:
            ignored.append("tools[*].custom")
    if any(definition.strict for definition in definitions):
        ignored.append("tools[*].function.strict")
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
        case ToolName() as chosen:
            return tools, _named(chosen, tools, "function_call.name")
        case ChatCompletionAllowedToolChoice(allowed_tools=allowed):
            names = {tool.function.name for tool in allowed.tools if tool.function}
            return tuple(tool for tool in tools if tool.name in names), allowed.mode
    raise AssertionError("payload checks the tool choice")


def _named(chosen: ToolName, tools: tuple[llm.Tool, ...], param: str) -> hub.NamedTool:
    if chosen.name not in {tool.name for tool in tools}:
        raise InvalidRequest(f"there is no tool {chosen.name!r} in this request", param=param)
    return hub.NamedTool(chosen.name)


class _MessageReader:
    """Read messages in order, keeping the tool calls that still wait for their results."""

    def __init__(self, ignored: list[str]) -> None:
        self.messages: list[Message] = []
        self.attachment_paths: list[str] = []
        self._ignored = ignored
        self._waiting: dict[str, str] = {}  # tool_call_id → name

    def read(self, message: Any, path: str) -> None:
        match message:
            case ChatCompletionToolMessage():
                self._add_result(self._tool_result(message, path))
                return
            case ChatCompletionFunctionMessage():
                self._add_result(self._function_result(message, path))
                return
        self.check_all_answered(path)
        if message.name:
            self._ignored.append("messages[*].name")
        if isinstance(message, ChatCompletionAssistantMessage):
            parts = list(self._assistant_parts(message, path))
            if not parts:
                return
            role = "assistant"
        else:
            parts = list(self._parts(message.content, f"{path}.content"))
            role = "user" if message.role == "user" else "system"
        self.messages.append(Message(role, parts))

    def check_all_answered(self, path: str) -> None:
        """Refuse a history that no provider would take, in words that say why (B27)."""
        if self._waiting:
            ids = ", ".join(self._waiting)
            raise InvalidRequest(f"expected the results of the tool calls {ids} here", param=path)

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
                    self._ignored.append("messages[*].content[*].image_url.detail")
                path = f"{path}.image_url.url"
                return hub.attachment_from_url(url, param=path), path
            case ChatCompletionContentPartImage(image_url=str(url)):
                path = f"{path}.image_url"
                return hub.attachment_from_url(url, param=path), path
            case ChatCompletionContentPartInputAudio(input_audio=audio):
                media_type = {"wav": "audio/wav", "mp3": "audio/mpeg"}[audio.format]
                path = f"{path}.input_audio.data"
                return hub.attachment_from_base64(audio.data, media_type, param=path), path
            case File(file=FileFile(file_data=str(data), filename=filename)):
                if filename:
                    self._ignored.append("messages[*].content[*].file.filename")
                path = f"{path}.file.file_data"
                if data.startswith("data:"):
                    return hub.attachment_from_url(data, param=path), path
                return hub.attachment_from_base64(data, "application/pdf", param=path), path
        raise Unsupported(
            "files are taken as file_data; no files are kept here", param=f"{path}.file"
        )

    def _assistant_parts(
        self, message: ChatCompletionAssistantMessage, path: str
    ) -> Iterator[Part]:
        said = [message.reasoning_content, message.reasoning, message.thinking]
        reasoning = next((text for text in said if isinstance(text, str) and text), None)
        if reasoning is not None:
            yield ReasoningPart(reasoning)
        elif any(said):
            self._ignored.append("messages[*].reasoning")
        if message.audio is not None:
            raise Unsupported("no audio is kept here", param=f"{path}.audio")
        yield from self._parts(message.content, f"{path}.content")
        if message.refusal:
            yield TextPart(message.refusal)
        calls = [(call.id, call.function) for call in message.tool_calls or ()]
        if message.function_call is not None:
            calls.append((None, message.function_call))
        for i, (id_, function) in enumerate(calls):
            id_ = id_ or f"call_{len(self.messages)}_{i}"
            self._waiting[id_] = function.name
            arguments = hub.parse_arguments(function.arguments or "")
            yield ToolCallPart(function.name, arguments, tool_call_id=id_)

    def _tool_result(self, message: ChatCompletionToolMessage, path: str) -> ToolResultPart:
        id_ = message.tool_call_id or next(iter(self._waiting), "")
        if id_ not in self._waiting:
            raise InvalidRequest(
                f"no tool call {id_!r} waits for a result here", param=f"{path}.tool_call_id"
            )
        return self._result(id_, list(self._parts(message.content, f"{path}.content")))

    def _function_result(self, message: ChatCompletionFunctionMessage, path: str) -> ToolResultPart:
        id_ = next((id_ for id_, name in self._waiting.items() if name == message.name), None)
        if id_ is None:
            raise InvalidRequest(
                f"no call of {message.name!r} waits for a result here", param=f"{path}.name"
            )
        return self._result(id_, list(self._parts(message.content, f"{path}.content")))

    def _result(self, id_: str, content: list[Part]) -> ToolResultPart:
        return ToolResultPart(
            name=self._waiting.pop(id_),
            output="".join(part.text for part in content if isinstance(part, TextPart)),
            tool_call_id=id_,
            attachments=[part.attachment for part in content if isinstance(part, AttachmentPart)],
        )

    def _add_result(self, result: ToolResultPart) -> None:
        if self.messages[-1].role == "tool":
            self.messages[-1].parts.append(result)
        else:
            self.messages.append(Message("tool", [result]))


# ---- request: from the hub

SCHEMA_NAME = "answer"  # OpenAI wants one; the hub's schemas have none
MAX_USER_CHARS = 64  # OpenAI refuses a longer `user`


def render_request(request: hub.ChatRequest) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write a request's body, and list the paths of what this wire can't carry.

    An assistant's parts are sorted, as the wire has them: reasoning (as
    `reasoning_content`), text, calls. Images in tool results move to a user message
    after them (B26). A stream is asked for with its usage unless the request says
    otherwise. The token limit is `max_tokens`, which every server of this wire knows,
    unless the client itself wrote `max_completion_tokens`.

    Spec: https://platform.openai.com/docs/api-reference/chat/create
    """
    writer = _MessageWriter(request)
    for message in request.messages:
        writer.write(message)
    ignored = writer.ignored
    body: dict[str, Any] = {"messages": writer.messages}
    if request.model is not None:
        body = {"model": request.model, **body}
    if request.tools:
        body["tools"] = [_function_tool(tool) for tool in request.tools]
        match request.tool_choice:
            case hub.NamedTool(name=name):
                body["tool_choice"] = {"type": "function", "function": {"name": name}}
            case "none" | "required" as word:
                body["tool_choice"] = word
    elif request.tool_choice not in ("auto", "none"):
        ignored.append("tool_choice")  # OpenAI refuses it where there are no tools
    ignored += [tool.path for tool in request.server_tools]
    body |= _option_fields(request, ignored)
    if request.stream:
        body["stream"] = True
        if request.wire.get("include_usage", True):
            body["stream_options"] = {"include_usage": True}
    return body, tuple(dict.fromkeys(ignored))


def _function_tool(tool: llm.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function | {"parameters": tool.input_schema}}


def _option_fields(request: hub.ChatRequest, ignored: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in request.options.items():
        path = request.option_paths.get(name, name)
        match name:
            case "max_tokens":
                is_newer = path == "max_completion_tokens"
                fields["max_completion_tokens" if is_newer else "max_tokens"] = value
            case "stop_sequences":
                fields["stop"] = value
            case "json_object":
                fields["response_format"] = {"type": "json_object"}
            case "user" if len(value) > MAX_USER_CHARS:
                ignored.append(path)
            case "reasoning_effort" if value == "max":  # Anthropic's; here it ends with xhigh
                fields[name] = "xhigh"
                ignored.append(path)
            case _ if name in OPTIONS:
                fields[name] = value
            case _:
                ignored.append(path)
    if request.schema is not None:
        schema = {"name": SCHEMA_NAME, "schema": request.schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


class _MessageWriter:
    """Write messages in order, listing what they can't hold here."""

    def __init__(self, request: hub.ChatRequest) -> None:
        self.messages: list[dict[str, Any]] = []
        self.ignored: list[str] = []
        self._attachment_paths = iter(request.attachment_paths)

    def write(self, message: Message) -> None:
        if any(getattr(part, "provider_metadata", None) for part in message.parts):
            self.ignored.append("messages[*] (a provider's own data, as signatures)")
        if message.role == "assistant":
            self._write_assistant(message.parts)
            return
        results = [part for part in message.parts if isinstance(part, ToolResultPart)]
        moved = [image for part in results for image in self._write_result(part)]
        others = [part for part in message.parts if not isinstance(part, ToolResultPart)]
        content = moved + [item for part in others for item in self._content(part)]
        if content or not results:
            role = "system" if message.role == "system" else "user"
            self.messages.append({"role": role, "content": _shortest(content)})

    def _write_assistant(self, parts: Sequence[Part]) -> None:
        reasoning: list[str] = []
        text: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        ranks: list[int] = []
        for part in parts:
            match part:
                case ReasoningPart(redacted=True) | ReasoningPart(text=""):
                    self.ignored.append("messages[*] (reasoning that is opaque)")
                    continue
                case ReasoningPart():
                    reasoning.append(part.text)
                case ToolCallPart(server_executed=False):
                    function = {"name": part.name, "arguments": _arguments_text(part)}
                    calls.append(_tool_call(part.tool_call_id, function))
                case TextPart():
                    text += self._content(part)
                case AttachmentPart():
                    self.ignored.append(next(self._attachment_paths, "messages[*] (an attachment)"))
                    continue
                case _:
                    self.ignored.append("messages[*] (a server tool's call and result)")
                    continue
            ranks.append(_RANKS[type(part)])
        if ranks != sorted(ranks):
            self.ignored.append("messages[*] (the order of an answer's parts)")
        if not ranks:
            return
        message: dict[str, Any] = {"role": "assistant"}
        message["content"] = _shortest(text) or (None if calls else "")
        if reasoning:
            message["reasoning_content"] = "".join(reasoning)
        if calls:
            message["tool_calls"] = calls
        self.messages.append(message)

    def _write_result(self, part: ToolResultPart) -> list[dict[str, Any]]:
        """Write a tool's message; give its images, which stand in none (B26)."""
        output = part.output
        if part.exception is not None:
            self.ignored.append("messages[*] (a tool's failure, put into words)")
            output = f"Error: {output}"
        if part.attachments:
            self.ignored.append("messages[*] (a tool's image, moved into a user message)")
        self.messages.append({"role": "tool", "tool_call_id": part.tool_call_id, "content": output})
        return [item for attachment in part.attachments for item in self._attachment(attachment)]

    def _content(self, part: Part) -> list[dict[str, Any]]:
        match part:
            case TextPart(text=text):
                return [{"type": "text", "text": text}]
            case AttachmentPart(attachment=attachment) if attachment is not None:
                return self._attachment(attachment)
        self.ignored.append(f"messages[*] (a {type(part).__name__})")
        return []

    def _attachment(self, attachment: llm.Attachment) -> list[dict[str, Any]]:
        path = next(self._attachment_paths, "messages[*] (an attachment)")
        type_ = attachment.type or "application/octet-stream"
        if attachment.url is not None and type_.startswith("image/"):
            return [{"type": "image_url", "image_url": {"url": attachment.url}}]
        if attachment.content is None:  # a URL of what is no image, or a file of this machine
            self.ignored.append(path)
            return []
        data = base64.b64encode(attachment.content).decode()
        if type_.startswith("image/"):
            return [{"type": "image_url", "image_url": {"url": f"data:{type_};base64,{data}"}}]
        if type_ in _AUDIO_FORMATS:
            audio = {"data": data, "format": _AUDIO_FORMATS[type_]}
            return [{"type": "input_audio", "input_audio": audio}]
        # OpenAI wants a name beside the data; the hub has none.
        ending = type_.rpartition("/")[2]
        file = {"filename": f"file.{ending}", "file_data": f"data:{type_};base64,{data}"}
        return [{"type": "file", "file": file}]


_RANKS: Mapping[type, int] = {ReasoningPart: 0, TextPart: 1, ToolCallPart: 2}
_AUDIO_FORMATS: Mapping[str, str] = {"audio/wav": "wav", "audio/mpeg": "mp3"}


def _shortest(content: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One text as a string, which servers take that know no lists of parts."""
    match content:
        case []:
            return ""
        case [{"type": "text", "text": str(text)}]:
            return text
    return content


# ---- the answer as a stream


class StreamRenderer:
    """Render hub events as chat.completion.chunk frames of SSE. Feed in order; Finish is last.

    Given: text as `content`, reasoning as `reasoning_content`, tool calls with an
    index of their own from 0 on, each with its arguments as they come, "{}" where
    there are none. Left out: what the provider ran by itself (server tools), and
    reasoning that is opaque.

    Spec: https://platform.openai.com/docs/api-reference/chat-streaming
    """

    def __init__(self, request: hub.ChatRequest, id: str, created: int) -> None:
        """`id` is the exchange's; `created` in seconds since 1970."""
        head = _envelope(request, id, created, "chat.completion.chunk")
        self._head = b"data: " + payload.encode(head)[:-1] + b","
        self._include_usage = bool(request.wire.get("include_usage"))
        # Of a chunk all but the delta is the same all through the stream: rendered once.
        self._usage_null = b',"usage":null' if self._include_usage else b""
        self._before = self._head + b'"choices":[{"index":0,"delta":'
        self._after = b',"logprobs":null,"finish_reason":null}]' + self._usage_null + b"}\n\n"
        self._indexes: dict[int | None, int] = {}  # part_index → index of the tool call
        # White space alone is no arguments (B4): it waits until more comes.
        self._blank: dict[int, str] = {}

    def start(self) -> list[bytes]:
        """Give the first chunk, which alone bears the role (B3)."""
        return [self._chunk(b'{"role":"assistant","content":"","refusal":null}')]

    def feed(self, event: hub.Event) -> list[bytes]:
        """Give the frames of one event: none for what this wire does not show."""
        match event:
            case hub.Finish():
                return self._end(event)
            case StreamEvent(type="text", chunk=text) if text:
                return [self._chunk(b'{"content":%b}' % payload.encode_string(text).encode())]
            case StreamEvent(type="reasoning", chunk=text) if text:
                text_json = payload.encode_string(text).encode()
                return [self._chunk(b'{"reasoning_content":%b}' % text_json)]
            case StreamEvent(type="tool_call_name", server_executed=False):
                return [self._call_name(event)]
            case StreamEvent(type="tool_call_args", server_executed=False, chunk=text):
                return self._arguments(self._indexes[event.part_index], text)
        return []

    def idle(self) -> list[bytes]:
        """Give a keep-alive: a comment, since an event of any name reads as a chunk (B13)."""
        return [framing.SSE_PING]

    def fail(self, error: ProxyError) -> list[bytes]:
        """Give the error frame. This wire has no end after it: the body must be cut (B11)."""
        return [framing.encode_sse(payload.encode(render_error(error)))]

    def _chunk(self, delta: bytes) -> bytes:
        return self._before + delta + self._after

    def _call_name(self, event: StreamEvent) -> bytes:
        index = self._indexes.get(event.part_index)
        if index is not None:  # a name in pieces: readers join them
            call: dict[str, Any] = {"index": index, "function": {"name": event.chunk}}
        else:
            index = self._indexes[event.part_index] = len(self._indexes)
            self._blank[index] = ""
            function = {"name": event.chunk, "arguments": ""}
            call = {"index": index, **_tool_call(event.tool_call_id, function)}
        return self._chunk(payload.encode({"tool_calls": [call]}))

    def _arguments(self, index: int, text: str) -> list[bytes]:
        if index in self._blank:
            text = self._blank.pop(index) + text
            if not text.strip():
                self._blank[index] = text
                return []
        return [self._call_arguments(index, text)] if text else []

    def _call_arguments(self, index: int, text: str) -> bytes:
        call = {"index": index, "function": {"arguments": text}}
        return self._chunk(payload.encode({"tool_calls": [call]}))

    def _end(self, finish: hub.Finish) -> list[bytes]:
        frames = [self._call_arguments(index, "{}") for index in self._blank]
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish.reason}
        choices = b'"choices":[%b]' % payload.encode(choice)
        frames.append(self._head + choices + self._usage_null + b"}\n\n")
        if self._include_usage:
            usage = payload.encode(_usage(finish.usage))
            frames.append(self._head + b'"choices":[],"usage":%b}\n\n' % usage)
        frames.append(b"data: [DONE]\n\n")
        return frames


def _envelope(request: hub.ChatRequest, id_: str, created: int, object_: str) -> dict[str, Any]:
    """What the whole answer and each of its chunks begin with; the model as it was asked for."""
    return {
        "id": f"chatcmpl-{id_}",
        "object": object_,
        "created": created,
        "model": request.model or "",
    }


def _tool_call(id_: str | None, function: dict[str, str]) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": function}


def _usage(usage: hub.Usage) -> dict[str, Any] | None:
    """OpenAI counts as the hub does. Null where the provider gave no counts."""
    if usage.input_tokens is None and usage.output_tokens is None:
        return None
    prompt_tokens, completion_tokens = usage.input_tokens or 0, usage.output_tokens or 0
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    prompt_details = {
        name: count
        for name, count in (
            ("cached_tokens", usage.cached_tokens),
            ("cache_write_tokens", usage.cache_write_tokens),
        )
        if count is not None
    }
    if prompt_details:
        counts["prompt_tokens_details"] = prompt_details
    if usage.reasoning_tokens is not None:
        counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return counts


# ---- the answer as a whole


def render_response(
    request: hub.ChatRequest,
    response: hub.ChatResponse,
    id: str,
    created: int,
) -> dict[str, Any]:
    """Render a whole answer as a chat.completion; the same content as its stream has.

    Spec: https://platform.openai.com/docs/api-reference/chat/object
    """
    text = "".join(part.text for part in response.parts if isinstance(part, TextPart))
    calls = [
        part
        for part in response.parts
        if isinstance(part, ToolCallPart) and not part.server_executed
    ]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not text else text,
        "refusal": None,
        "annotations": [],
    }
    reasoning = "".join(part.text for part in response.parts if isinstance(part, ReasoningPart))
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            _tool_call(
                call.tool_call_id, {"name": call.name, "arguments": _arguments(response, call)}
            )
            for call in calls
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": response.finish.reason,
    }
    head = _envelope(request, id, created, "chat.completion")
    return head | {"choices": [choice], "usage": _usage(response.finish.usage)}


def _arguments(response: hub.ChatResponse, call: ToolCallPart) -> str:
    raw = response.raw_arguments.get(call.tool_call_id or "")
    if raw is None:
        return _arguments_text(call)
    return raw if raw.strip() else "{}"


def _arguments_text(call: ToolCallPart) -> str:
    """Write the arguments of a Part; what was no JSON object is written as it was (B4)."""
    match call.arguments:
        case {"_raw": str(text)} if len(call.arguments) == 1:
            return text
    return payload.encode(call.arguments).decode()


# ---- the answer, as another server sends it


@dataclass(frozen=True)
class ChoiceDeltaToolCallFunction:
    name: str | None = None
    arguments: str | dict[str, Any] | None = None  # an object, from servers that parse it


@dataclass(frozen=True)
class ChoiceDeltaToolCall:
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: ChoiceDeltaToolCallFunction | None = None


@dataclass(frozen=True)
class ChoiceDelta:
    """A piece of the message, or in a whole answer all of it."""

    role: Any = None
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    thinking: Any = None
    tool_calls: list[ChoiceDeltaToolCall] | None = None
    function_call: ChoiceDeltaToolCallFunction | None = None
    annotations: Any = None
    audio: Any = None


@dataclass(frozen=True)
class Choice:
    index: int | None = None
    delta: ChoiceDelta | None = None
    message: ChoiceDelta | None = None
    finish_reason: str | None = None
    logprobs: Any = None


@dataclass(frozen=True)
class PromptTokensDetails:
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


@dataclass(frozen=True)
class CompletionTokensDetails:
    reasoning_tokens: int | None = None


@dataclass(frozen=True)
class CompletionUsage:
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    total_tokens: Any = None


@dataclass(frozen=True)
class ChatCompletionChunk:
    """A chunk, or a whole chat.completion, which differs only in its choices' `message`."""

    choices: list[Choice] | None = None
    model: str | None = None
    usage: CompletionUsage | None = None
    # The envelope: of the transport, not of the answer.
    id: Any = None
    object: Any = None
    created: Any = None
    service_tier: Any = None
    system_fingerprint: Any = None
    obfuscation: Any = None
    error: Any = None


def parse_response(body: Any, headers: Mapping[str, str] | None = None) -> hub.ChatResponse:
    """Read another server's chat.completion; the same as its stream, collected, reads.

    Raises:
        ProxyError: the error that the body is, or UpstreamError where it is no answer.
    """
    parser = StreamParser()
    events = parser.feed_chunk(body)
    if not parser.has_choice:
        raise UpstreamError("the upstream's answer has no choices")
    return hub.collect(events + parser.finish(default="stop"))


class StreamParser:
    """Read another server's stream of chunks as hub events. Feed its frames in order.

    Taken as they come in the field: chunks without choices or delta, usage on any
    chunk (the last counts), content on the finish chunk, calls without ids or
    indexes (B8, B9). Finish is given at `[DONE]`, or at the end of the stream where
    that is missing. `model` is the answering model's name as soon as it was told.
    """

    def __init__(self) -> None:
        self.model: str | None = None
        self.has_choice = False
        self._next_index = 0
        self._prose: tuple[str, int] | None = None  # family and part_index of the open part
        self._calls: list[_Call] = []
        self._reason: str | None = None
        self._usage: CompletionUsage | None = None
        self._made_up_id = "call"
        self._ignored: dict[str, None] = {}
        self._is_finished = False

    def feed(self, frame: framing.SSEFrame) -> list[hub.Event]:
        """Give the events of one frame.

        Raises:
            ProxyError: the error that the frame is; UpstreamError where it is no chunk,
                or where `[DONE]` comes before any finish_reason.
        """
        if self._is_finished or not frame.data:
            return []
        if frame.data == "[DONE]":
            return self.end()
        try:
            value = payload.parse(frame.data.encode())
        except InvalidRequest as exc:
            raise UpstreamError(f"a chunk of the upstream is no JSON: {exc.message}") from exc
        return self.feed_chunk(value)

    def feed_chunk(self, value: Any) -> list[hub.Event]:
        """Give the events of one chunk's JSON value, or of a whole chat.completion's."""
        if isinstance(value, dict) and value.get("error"):
            raise parse_error(200, value)
        unknown: list[str] = []
        try:
            chunk = payload.load(ChatCompletionChunk, value, unknown)
        except InvalidRequest as exc:
            where = f" at {exc.param}" if exc.param else ""
            raise UpstreamError(f"the upstream's answer{where}: {exc.message}") from exc
        self._ignored |= dict.fromkeys(unknown)
        self.model = self.model or chunk.model or None
        if isinstance(chunk.id, str):
            # Unique in the conversation, and in the letters that every wire takes.
            self._made_up_id = "call_" + re.sub(r"[^a-zA-Z0-9_-]", "", chunk.id)[-32:]
        self._usage = chunk.usage or self._usage
        events: list[hub.Event] = []
        for choice in chunk.choices or ():
            if choice.index:
                self._ignored["choices[1]"] = None  # n above 1
                continue
            self.has_choice = True
            self._note(choice)
            for delta in (choice.delta, choice.message):
                if delta is not None:
                    events += self._events(delta)
            self._reason = choice.finish_reason or self._reason
        return events

    def end(self) -> list[hub.Event]:
        """Give the Finish, where no frame had it yet.

        Raises:
            UpstreamError: the stream was cut: it never gave a finish_reason (B10).
        """
        return [] if self._is_finished else self.finish()

    def finish(self, default: str | None = None) -> list[hub.Event]:
        """Give the last events; `default` is the reason where none was given."""
        reason = self._reason or default
        if reason is None:
            raise UpstreamError("the upstream's stream ended before its answer did")
        self._is_finished = True
        events: list[hub.Event] = [event for call in self._calls for event in call.named("")]
        word = _REASONS.get(reason, "stop")
        if word in ("stop", "tool_calls"):
            word = "tool_calls" if self._calls else "stop"
        finish = hub.Finish(
            word,
            usage=_counts(self._usage or CompletionUsage()),
            model=self.model,
            ignored=tuple(self._ignored),
        )
        return [*events, finish]

    def _note(self, choice: Choice) -> None:
        if choice.logprobs is not None:
            self._ignored["choices[*].logprobs"] = None
        for kind in ("delta", "message"):
            for name in ("annotations", "audio"):
                if getattr(getattr(choice, kind), name, None):
                    self._ignored[f"choices[*].{kind}.{name}"] = None

    def _events(self, delta: ChoiceDelta) -> Iterator[hub.Event]:
        said = (delta.reasoning_content, delta.reasoning, delta.thinking)
        reasoning = next((text for text in said if isinstance(text, str) and text), "")
        yield from self._said("reasoning", reasoning)
        if isinstance(delta.content, str):
            yield from self._said("text", delta.content)
        else:
            for item in delta.content or ():
                match item:
                    case {"type": "text", "text": str(text)}:
                        yield from self._said("text", text)
                    case _:
                        self._ignored[f"choices[*] (content of type {item.get('type')})"] = None
        yield from self._said("text", delta.refusal or "")
        for call in delta.tool_calls or ():
            if call.type == "custom":  # the hub's tools are functions; `custom` is listed
                continue
            yield from self._called(call, call.function or ChoiceDeltaToolCallFunction())
        if delta.function_call is not None:
            yield from self._called(ChoiceDeltaToolCall(index=0), delta.function_call)

    def _said(self, family: str, text: str) -> Iterator[hub.Event]:
        if not text:
            return
        if self._prose is None or self._prose[0] != family:
            self._prose = family, self._new_index()
        yield StreamEvent(family, text, part_index=self._prose[1])

    def _new_index(self) -> int:
        self._next_index += 1
        return self._next_index - 1

    def _called(
        self, delta: ChoiceDeltaToolCall, function: ChoiceDeltaToolCallFunction
    ) -> Iterator[hub.Event]:
        call = self._call_of(delta, function)
        if call is None:
            self._prose = None
            id_ = delta.id or f"{self._made_up_id}_{len(self._calls)}"
            call = _Call(self._new_index(), id_, delta.index, delta.id or None)
            self._calls.append(call)
        # Some repeat id and name on each delta (B3); a name in pieces has no id beside it.
        if function.name and not (delta.id and call.name == function.name):
            yield from call.named(function.name)
        arguments = function.arguments
        if isinstance(arguments, dict):
            arguments = payload.encode(arguments).decode()
        if arguments:
            yield from call.given(arguments)

    def _call_of(
        self, delta: ChoiceDeltaToolCall, function: ChoiceDeltaToolCallFunction
    ) -> _Call | None:
        """Find the call that a delta goes on with: by index, else by id, else the last one."""
        if delta.index is not None:
            same = [call for call in self._calls if call.index == delta.index]
            # Two calls under one index, as Gemini's and older servers send them (B1).
            is_other = same and delta.id and function.name and delta.id != same[-1].sent_id
            return None if is_other or not same else same[-1]
        if delta.id:
            return next((call for call in self._calls if call.sent_id == delta.id), None)
        return None if function.name or not self._calls else self._calls[-1]


@dataclass
class _Call:
    """A tool call in the making. Its name comes first in the hub: arguments wait for it."""

    part_index: int
    id: str
    index: int | None
    sent_id: str | None
    name: str | None = None
    held: list[str] = field(default_factory=list)

    def named(self, name: str) -> Iterator[StreamEvent]:
        """Give a piece of the name; `""` once at the end, for a call that never had one."""
        if name or self.name is None:
            self.name = (self.name or "") + name
            yield StreamEvent("tool_call_name", name, self.part_index, self.id)
            held, self.held = self.held, []
            for chunk in held:
                yield from self.given(chunk)

    def given(self, chunk: str) -> Iterator[StreamEvent]:
        """Give a piece of the arguments."""
        if self.name is None:
            self.held.append(chunk)
        else:
            yield StreamEvent("tool_call_args", chunk, self.part_index, self.id)


# Servers of this wire pass on what their models' own runtimes say.
_REASONS: Mapping[str, hub.FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "SAFETY": "content_filter",
}


def _counts(usage: CompletionUsage) -> hub.Usage:
    prompt = usage.prompt_tokens_details or PromptTokensDetails()
    completion = usage.completion_tokens_details or CompletionTokensDetails()
    return hub.Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cached_tokens=prompt.cached_tokens,
        cache_write_tokens=prompt.cache_write_tokens,
        reasoning_tokens=completion.reasoning_tokens,
    )


# ---- models and errors


def render_models(models: Iterable[hub.ModelEntry]) -> dict[str, Any]:
    """Render the list of models.

    Spec: https://platform.openai.com/docs/api-reference/models/list
    """
    return {"object": "list", "data": [render_model(model) for model in models]}


def render_model(model: hub.ModelEntry) -> dict[str, Any]:
    """Render one model."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }


ERROR_TYPES: Mapping[str, str] = {
    "invalid_request": "invalid_request_error",
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "invalid_request_error",
    "too_large": "invalid_request_error",
    "rate_limit": "rate_limit_error",
    "timeout": "timeout_error",
}


def render_error(error: ProxyError) -> dict[str, Any]:
    """Render an error as OpenAI's object; its status and headers go beside it.

    Spec: https://platform.openai.com/docs/guides/error-codes
    """
    return {
        "error": {
            "message": error.message,
            "type": ERROR_TYPES.get(error.kind, "server_error"),
            "param": error.param,
            "code": error.code,
        }
    }


_BY_WORD: Mapping[str, type[ProxyError]] = {
    "invalid_request_error": InvalidRequest,
    "invalid_api_key": Unauthorized,
    "authentication_error": Unauthorized,
    "permission_error": Forbidden,
    "model_not_found": NotFound,
    "not_found_error": NotFound,
    "rate_limit_error": RateLimited,
    "rate_limit_exceeded": RateLimited,
    "insufficient_quota": RateLimited,
    "timeout_error": UpstreamTimeout,
    "overloaded_error": Overloaded,
}

# Clients wait by these (B39).
_FORWARDED = ("retry-after", "retry-after-ms", "x-should-retry")


def parse_error(status: int, body: Any, headers: Mapping[str, str] | None = None) -> ProxyError:
    """Read another server's error; `status` below 400 where it came inside a stream.

    body: the JSON value, or the text of what was none. A status stays as it was; where
    there is none it is told by the error's code and type.
    """
    fields = body
    if isinstance(fields, list) and fields:  # Gemini's
        fields = fields[0]
    if isinstance(fields, dict):
        fields = next((fields[k] for k in ("error", "detail", "message") if fields.get(k)), fields)
    if not isinstance(fields, dict):
        fields = {"message": fields}
    words = [fields.get("code"), fields.get("type")]
    if status < 400:
        # OpenRouter and vLLM write the status as the code.
        status = next((w for w in words if type(w) is int and 400 <= w < 600), 0)
    by_word = next((_BY_WORD[w] for w in words if isinstance(w, str) and w in _BY_WORD), None)
    kind = class_of_status(status) if status else by_word or UpstreamError
    message, param, code = fields.get("message"), fields.get("param"), fields.get("code")
    forwarded = {name.lower(): value for name, value in (headers or {}).items()}
    return kind(
        message
        if isinstance(message, str) and message
        else "the upstream failed, without saying why",
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
        status=status or None,
        headers={name: forwarded[name] for name in _FORWARDED if name in forwarded},
    )
