"""Parse a Responses request, and strip it to its normal form.

Spec: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from ...core.as_text import block_text, holds_text, result_text
from ...core.compaction import decode_compaction
from ...core.errors import InvalidRequest, Unsupported
from ...core.known_bodies import ItemMemory, add_items
from ...core.tool_calls import PendingToolCalls, append_result
from .items import (
    COMPACTED,
    COMPACTION_PROMPT,
    reasoning_metadata,
    server_call,
    tool_name,
)
from .schema import (
    NOT_CARRIED,
    OPTIONS,
    TOOL_NOT_CARRIED,
    AdditionalTools,
    CompactionTrigger,
    CustomTool,
    EasyInputMessage,
    FunctionCallOutput,
    FunctionTool,
    ImageURL,
    ItemReference,
    NamespaceTool,
    OtherContent,
    OtherItem,
    OtherTool,
    Reasoning,
    ResponseCompactionItem,
    ResponseCreateParams,
    ResponseCustomToolCall,
    ResponseFunctionToolCall,
    ResponseInputAudio,
    ResponseInputFile,
    ResponseInputImage,
    ResponseInputText,
    ResponseOutputRefusal,
    ResponseReasoningItem,
    ResponseTextConfig,
    TextFormat,
    ToolChoice,
    ToolSearchCall,
    ToolSearchOutput,
    ToolSearchTool,
)


def parse_request(
    body: Any,
    headers: Mapping[str, str] | None = None,
    memory: ItemMemory | None = None,
) -> chat.ChatRequest:
    """Parse the body of a request, a JSON value.

    memory: of the first items of its input, if an earlier body had them; those that follow are
        added.

    Kept: instructions, messages of every role in their places, reasoning with its encrypted
    text, calls of functions and custom tools with their results, calls that a provider ran,
    images, audio and files as attachments; tools (those of namespaces, deferred ones and those
    that a search found too, as plain tools), options, schema. What the model says in a row is
    one message; messages between a call and its result come after that. Items and parts of
    unknown kinds become text if they hold any. What is not carried is listed in `ignored`.

    Raises:
        InvalidRequest: the body is not such a request, or refers to what the log does not
            have; `param` names the field.
        Unsupported: the response would silently differ: conversations and prompts stored at
            OpenAI, responses in the background, files by id.

    Spec: https://platform.openai.com/docs/api-reference/responses/create
    """
    ignored: list[str] = []
    request = payload.load(ResponseCreateParams, _with_others_wrapped(body, memory), ignored)
    _refuse_stored(request)
    ignored += [name for name in NOT_CARRIED if getattr(request, name) not in (None, 0)]
    if request.store is False:
        ignored.append("store")  # the log keeps the response all the same
    if request.truncation not in (None, "disabled"):
        ignored.append("truncation")
    ignored += [f"include ({name[:60]})" for name in request.include or () if name not in _INCLUDED]
    parser = _ItemParser()
    parser.add_instructions(request.instructions)
    leading = len(parser.messages)
    parser.add_input(request.input, memory)
    ignored += parser.ignored
    messages = parser.finished()
    said = [message for message in messages[leading:] if message.parts]
    if len(said) <= parser.is_compaction:  # the request for a summary is ours
        raise InvalidRequest(
            "nothing in it has any content" if request.input else "must not be empty",
            param="input",
        )
    tools = _Tools(ignored)
    for offered_tools, path in [(request.tools or (), "tools"), *parser.added_tools]:
        tools.add(offered_tools, path)
    options, paths = _options(request, ignored)
    choice, offered = tools.choose(request.tool_choice)
    return chat.ChatRequest(
        model=request.model or None,
        messages=messages,
        tools=offered,
        server_tools=tuple(tools.server_tools),
        tool_choice="none" if parser.is_compaction and offered else choice,
        options=options,
        schema=_schema(request, ignored),
        stream=bool(request.stream),
        option_paths=paths,
        attachment_paths=parser.attachment_paths(messages),
        ignored=tuple(dict.fromkeys(ignored)),
        echo=_echo(request, body, tools.kinds, is_compaction=parser.is_compaction),
        repeated=("metadata",) if request.metadata else (),
    )


_INCLUDED = frozenset({"reasoning.encrypted_content"})


def _refuse_stored(request: ResponseCreateParams) -> None:
    """Refuse what only OpenAI has, and what the log should have had."""
    if request.previous_response_id:
        raise InvalidRequest(
            f"Previous response with id '{request.previous_response_id[:100]}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    for name, reason in (
        ("conversation", "this server stores no conversations: send previous_response_id"),
        ("prompt", "this server stores no prompts: send instructions and input"),
        ("background", "responses are not made in the background: ask for a stream"),
    ):
        if getattr(request, name) not in (None, False):
            raise Unsupported(reason, param=name)


# ---- kinds that we do not know

_ITEM_TYPES = frozenset(
    "message reasoning function_call function_call_output custom_tool_call custom_tool_call_output"
    " tool_search_call tool_search_output additional_tools item_reference compaction"
    " compaction_summary compaction_trigger".split()
)
_CONTENT_TYPES = frozenset(
    "input_text output_text text summary_text reasoning_text refusal input_image"
    " computer_screenshot input_file input_audio".split()
)
_TOOL_TYPES = frozenset("function custom tool_search namespace".split())


def _with_others_wrapped(body: Any, memory: ItemMemory | None) -> Any:
    """Wrap items, parts and tools of unknown kinds, so that they can be listed.

    The body is not edited; a value of an unexpected type is left for `payload.load`.
    """
    if not isinstance(body, dict):
        return body
    wrapped = dict(body)
    if memory is not None:
        wrapped["input"] = memory.items(body["input"], _item_wrapped)
    for name in ("input", "instructions") if memory is None else ("instructions",):
        if isinstance(body.get(name), list):
            wrapped[name] = [_item_wrapped(item) for item in body[name]]
    if isinstance(body.get("tools"), list):
        wrapped["tools"] = [_tool_wrapped(tool) for tool in body["tools"]]
    return wrapped


def _item_wrapped(item: Any) -> Any:
    match item:
        case {"type": str(type_)} if type_ and type_ not in _ITEM_TYPES:
            return {"type": "other", "item": item}
        case {"type": "tool_search_output" | "additional_tools", "tools": list(tools)}:
            return item | {"tools": [_tool_wrapped(tool) for tool in tools]}
        case {"id": str()} if not item.get("type") and "role" not in item:
            return item | {"type": "item_reference"}
        case dict():
            found = {
                name: [_part_wrapped(part) for part in item[name]]
                for name in ("content", "output", "summary")
                if isinstance(item.get(name), list)
            }
            return item | found if found else item
    return item


def _part_wrapped(part: Any) -> Any:
    match part:
        case {"type": str(type_)} if type_ and type_ not in _CONTENT_TYPES:
            return {"type": "other", "part": part}
    return part


def _tool_wrapped(tool: Any) -> Any:
    match tool:
        case {"type": "namespace", "tools": list(tools)}:
            return tool | {"tools": [_tool_wrapped(inner) for inner in tools]}
        case {"type": str(type_)} if type_ not in _TOOL_TYPES:
            return {"type": "other", "tool": tool}
    return tool


# ---- options


def _options(
    request: ResponseCreateParams, ignored: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options under our names, and the paths of those that the body names otherwise."""
    options = {name: getattr(request, name) for name in OPTIONS}
    if request.max_output_tokens is not None and request.max_output_tokens < 1:
        ignored.append("max_output_tokens")
    else:
        options["max_tokens"] = request.max_output_tokens
    reasoning = request.reasoning or Reasoning()
    options["reasoning_effort"] = reasoning.effort
    summary = reasoning.summary or reasoning.generate_summary
    if summary not in (None, "auto"):  # what llm asks for by itself
        ignored.append("reasoning.summary")
    text = request.text or ResponseTextConfig()
    options["verbosity"] = text.verbosity
    match text.format:
        case TextFormat(type="json_object"):
            options["json_object"] = True
        case TextFormat(type="json_schema", schema=schema) if schema is not None and not schema:
            options["json_object"] = True  # {} allows any JSON, and llm takes it for no schema
    paths = {
        "max_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
        "verbosity": "text.verbosity",
        "json_object": "text.format",
        "schema": "text.format",
    }
    return {name: value for name, value in options.items() if value is not None}, paths


def _schema(request: ResponseCreateParams, ignored: list[str]) -> dict[str, Any] | None:
    match request.text:
        case ResponseTextConfig(format=TextFormat(type="json_schema") as asked):
            pass
        case _:
            return None
    if asked.schema is None:
        raise InvalidRequest("this field is required", param="text.format.schema")
    ignored += [
        f"text.format.{name}" for name in ("name", "description", "strict") if getattr(asked, name)
    ]
    return asked.schema or None


# ---- tools


class _Tools:
    """The tools of a request under the names by which a model knows them.

    kinds: by such a name, how the request has a tool that is no plain function of this name.
    """

    def __init__(self, ignored: list[str]) -> None:
        self._ignored = ignored
        self.tools: dict[str, llm.Tool] = {}
        self.server_tools: list[chat.ServerTool] = []
        self.kinds: dict[str, dict[str, Any]] = {}

    def add(self, tools: Iterable[Any], path: str, namespace: NamespaceTool | None = None) -> None:
        everywhere = "tools[*]" if namespace is None else "tools[*].tools[*]"
        for i, tool in enumerate(tools):
            where = f"{path}[{i}]"
            match tool:
                case FunctionTool():
                    self._function(tool, namespace, everywhere)
                case CustomTool():
                    self._custom(tool, namespace, everywhere)
                case NamespaceTool():
                    self.add(tool.tools, f"{where}.tools", tool)
                case ToolSearchTool():
                    self._tool_search(tool)
                case OtherTool():
                    self._other(tool.tool, where)

    def _function(
        self, tool: FunctionTool, namespace: NamespaceTool | None, everywhere: str
    ) -> None:
        name = tool_name(tool.name, namespace.name if namespace else None)
        if namespace is not None:
            self.kinds[name] = {
                "type": "function",
                "name": tool.name,
                "namespace": namespace.name,
            }
        self._list_uncarried(tool, everywhere)
        schema = tool.parameters or {"type": "object", "properties": {}}
        self.tools[name] = llm.Tool(name, tool.description, schema)

    def _custom(self, tool: CustomTool, namespace: NamespaceTool | None, everywhere: str) -> None:
        """Offer a tool that takes a text as one with a single argument."""
        name = tool_name(tool.name, namespace.name if namespace else None)
        self.kinds[name] = {"type": "custom", "name": tool.name}
        if namespace is not None:
            self.kinds[name]["namespace"] = namespace.name
        description = tool.description or ""
        match tool.format:
            case {"definition": str(definition), **grammar}:
                self._list_uncarried(tool, everywhere)
                syntax = str(grammar.get("syntax") or "")
                description += f"\n\nThe input follows this {syntax} grammar:\n{definition}"
            case _ if tool.defer_loading or tool.allowed_callers:
                self._list_uncarried(tool, everywhere)
        self.tools[name] = llm.Tool(name, description.strip() or None, _TEXT_SCHEMA)

    def _list_uncarried(self, tool: FunctionTool | CustomTool, everywhere: str) -> None:
        self._ignored += [
            f"{everywhere}.{name}" for name in TOOL_NOT_CARRIED if getattr(tool, name, None)
        ]

    def _tool_search(self, tool: ToolSearchTool) -> None:
        """Offer a search that the client runs; what OpenAI would search is offered as it is."""
        if tool.execution != "client":
            self._ignored.append("tools[*] (tool_search)")
            return
        schema = tool.parameters or {"type": "object", "properties": {}}
        self.kinds["tool_search"] = {"type": "tool_search", "name": "tool_search"}
        self.tools["tool_search"] = llm.Tool("tool_search", tool.description, schema)

    def _other(self, tool: Mapping[str, Any], path: str) -> None:
        """Offer a tool that the provider runs, in the form in which llm's plugin takes it."""
        config = {
            name: value
            for name, value in tool.items()
            if name not in ("type", "filters") and value is not None
        }
        if isinstance(filters := tool.get("filters"), dict):
            config |= {name: value for name, value in filters.items() if value is not None}
        name = _SERVER_TOOLS.get(tool["type"], tool["type"])
        self.server_tools.append(chat.ServerTool(name, config, path))

    def choose(
        self, wanted: str | ToolChoice | None
    ) -> tuple[chat.ToolChoice, tuple[llm.Tool, ...]]:
        """Return the tool choice, and the tools among which it is."""
        tools = tuple(self.tools.values())
        match wanted:
            case None | "auto":
                return "auto", tools
            case "none":
                return "none", tools
            case "required":
                return "required", tools
            case ToolChoice(type="function" | "custom", name=str(name)):
                chosen = tool_name(name, wanted.namespace)
                if chosen not in self.tools:
                    raise InvalidRequest(
                        f"there is no tool {name[:80]!r} in this request", param="tool_choice.name"
                    )
                return chat.NamedTool(chosen), tools
            case ToolChoice(type="allowed_tools", tools=[*allowed]):
                names = {_chosen_name(tool) for tool in allowed}
                kept = tuple(tool for tool in tools if tool.name in names)
                return ("required" if wanted.mode == "required" else "auto"), kept
        self._ignored.append("tool_choice")  # no plugin can force the provider's own tools
        return "auto", tools


def _chosen_name(tool: Mapping[str, Any]) -> str:
    match tool:
        case {"namespace": str(namespace)}:
            return tool_name(str(tool.get("name")), namespace)
    return str(tool.get("name"))


_TEXT_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}
# Older names of tools that llm's plugin has under the newest.
_SERVER_TOOLS: Mapping[str, str] = {
    "web_search_preview": "web_search",
    "web_search_preview_2025_03_11": "web_search",
    "web_search_2025_08_26": "web_search",
}

# ---- items


class _ItemParser:
    """Parses items in order into the messages that they make."""

    def __init__(self) -> None:
        self._arguments = chat.CallArguments()
        self.messages: list[Message] = []
        self.ignored: list[str] = []
        self.added_tools: list[tuple[Sequence[Any], str]] = []
        self.is_compaction = False
        self._pending = PendingToolCalls()
        self._held: list[Message] = []  # messages between a call and its result
        self._results: list[ToolResultPart] = []
        self._result_of: dict[str | None, ToolResultPart] = {}  # the last one of each call
        # Further pieces of results, with the places of the messages in which these are.
        self._pieces: list[tuple[int, ToolResultPart, Sequence[Part]]] = []
        self._located: list[tuple[llm.Attachment, str]] = []  # attachments with their paths

    def made(self) -> tuple[list[Any], ...]:
        return (
            self.messages,
            self.ignored,
            self.added_tools,
            self._results,
            self._pieces,
            self._located,
        )

    def facts(self) -> tuple[Any, ...] | None:
        if self._pending or self._held:
            return None
        said = len(self.messages[-1].parts) if self.messages else 0
        return self._arguments.left, self.is_compaction, said

    def go_on(self, facts: tuple[Any, ...]) -> None:
        self._arguments.left, self.is_compaction, said = facts
        self._result_of = {result.tool_call_id: result for result in self._results}
        if self.messages and self.messages[-1].role == "assistant":
            # There the model may have said more after that, and may say something else here.
            last = self.messages[-1]
            self.messages[-1] = replace(last, parts=last.parts[:said])

    def attachment_paths(self, messages: Iterable[Message]) -> tuple[str, ...]:
        """Return the paths of the attachments, in the order of the messages."""
        if not self._located:
            return ()
        paths = {id(attachment): path for attachment, path in self._located}
        return tuple(
            paths[id(attachment)]
            for message in messages
            for attachment in attachments.find_attachments(message)
        )

    def finished(self) -> list[Message]:
        """Return the messages, the pieces of each result put together."""
        pieces: dict[int, dict[int, list[Part]]] = {}
        for place, result, more in self._pieces:
            pieces.setdefault(place, {}).setdefault(id(result), []).extend(more)
        messages = [*self.messages]
        for place, by_result in pieces.items():
            parts = [_with_pieces(part, by_result.get(id(part))) for part in messages[place].parts]
            messages[place] = replace(messages[place], parts=parts)
        return messages

    def add_instructions(self, instructions: str | Iterable[Any] | None) -> None:
        if isinstance(instructions, str):
            if instructions:
                self.messages.append(Message("system", [TextPart(instructions)]))
            return
        for i, item in enumerate(instructions or ()):
            self.add(item, f"instructions[{i}]")

    def add_input(self, input_: str | Sequence[Any] | None, memory: ItemMemory | None) -> None:
        if input_ is None:
            raise InvalidRequest("this field is required", param="input")
        if isinstance(input_, str):
            if input_:
                self.messages.append(Message("user", [TextPart(input_)]))
            return
        add_items(self, input_, "input", memory)
        self._pending.check_empty(f"input[{len(input_)}]")

    def add(self, item: Any, path: str) -> None:
        match item:
            case EasyInputMessage():
                self._message(item, path)
            case ResponseReasoningItem():
                self._reasoning(item)
            case ResponseFunctionToolCall():
                arguments = item.arguments
                if not isinstance(arguments, dict):
                    arguments = self._arguments.parse(arguments or "")
                self._call(tool_name(item.name, item.namespace), arguments, item.call_id)
            case ResponseCustomToolCall():
                arguments = {"input": item.input or ""}
                self._call(tool_name(item.name, item.namespace), arguments, item.call_id)
            case FunctionCallOutput():
                self._output(item, path)
            case ToolSearchCall() | ToolSearchOutput() | AdditionalTools():
                self._tool_search(item, path)
            case ResponseCompactionItem():
                self._compaction(item, path)
            case CompactionTrigger():
                self.is_compaction = True
                self._turn(Message("user", [TextPart(COMPACTION_PROMPT)]))
            case ItemReference():
                raise InvalidRequest(
                    f"Item with id '{item.id[:100]}' not found.", param=path, status=404
                )
            case OtherItem():
                self._other(item.item, path)

    def _turn(self, message: Message) -> None:
        """Append a message of a user or a system, after the results that are still missing."""
        if self._pending:
            self._held.append(message)
        else:
            self.messages.append(message)

    def _say(self, *parts: Part) -> None:
        """Append parts to what the model says, which is one message until somebody else speaks."""
        if self._pending and self.messages[-1].role == "tool":
            # Of calls at once, clients send each with its result.
            self.messages[-2].parts.extend(parts)
        elif self._held:
            self._pending.check_empty("input")
        elif self.messages and self.messages[-1].role == "assistant":
            self.messages[-1].parts.extend(parts)
        else:
            self.messages.append(Message("assistant", list(parts)))

    def _message(self, item: EasyInputMessage, path: str) -> None:
        parts = list(self._parts(item.content, f"{path}.content"))
        if item.role == "assistant":
            if parts:
                self._say(*parts)
            return
        if item.content is None:
            raise InvalidRequest("this field is required", param=f"{path}.content")
        self._turn(Message("user" if item.role == "user" else "system", parts))

    def _parts(self, content: str | Iterable[Any] | None, path: str) -> Iterator[Part]:
        if content is None or content == "":
            return
        if isinstance(content, str):
            yield TextPart(content)
            return
        for i, part in enumerate(content):
            match part:
                case ResponseInputText(text=text) | ResponseOutputRefusal(refusal=text):
                    self.ignored += [
                        f"input[*].content[*].{name}"
                        for name in ("annotations", "logprobs")
                        if getattr(part, name, None)
                    ]
                    if text:
                        yield TextPart(text)
                case OtherContent():
                    self.ignored.append(f"input[*].content[*] ({part.part['type'][:40]})")
                    if holds_text(part.part):
                        yield TextPart(block_text(part.part))
                case _:
                    attachment, field = self._attachment(part, f"{path}[{i}]")
                    self._located.append((attachment, field))
                    yield AttachmentPart(attachment)

    def _attachment(self, part: Any, path: str) -> tuple[llm.Attachment, str]:
        if getattr(part, "detail", None) not in (None, "auto"):
            self.ignored.append("input[*].content[*].detail")
        match part:
            case (
                ResponseInputImage(image_url=str(url))
                | ResponseInputImage(image_url=ImageURL(url=url))
            ):
                path = f"{path}.image_url"
                return attachments.attachment_from_url(url, param=path), path
            case ResponseInputAudio(input_audio=audio):
                media_type = {"wav": "audio/wav", "mp3": "audio/mpeg"}[audio.format]
                path = f"{path}.input_audio.data"
                return attachments.attachment_from_base64(audio.data, media_type, param=path), path
            case ResponseInputFile(file_data=str(data)):
                if part.filename:
                    self.ignored.append("input[*].content[*].filename")
                path = f"{path}.file_data"
                return attachments.attachment_from_base64(data, "application/pdf", param=path), path
            case ResponseInputFile(file_url=str(url)):
                path = f"{path}.file_url"
                attachment = attachments.attachment_from_url(url, param=path)
                if attachment.url and attachment.type == "image/*":
                    attachment = attachments.RemoteAttachment(
                        type="application/pdf", url=attachment.url
                    )
                return attachment, path
        raise Unsupported(
            "files must be sent with the request; this server stores none", param=f"{path}.file_id"
        )

    def _reasoning(self, item: ResponseReasoningItem) -> None:
        summary = [_plain(part) for part in item.summary or ()]
        texts = [*summary, *(_plain(part) for part in item.content or ())]
        text = "".join(text for part in texts if isinstance(text := part.get("text"), str))
        metadata = reasoning_metadata(item.encrypted_content, item.id, summary)
        if text or metadata:
            self._say(ReasoningPart(text, redacted=not text, provider_metadata=metadata))

    def _call(self, name: str, arguments: dict[str, Any], call_id: str) -> None:
        self._say(ToolCallPart(name, arguments, tool_call_id=call_id))
        self._pending.add(call_id, name)

    def _output(self, item: FunctionCallOutput, path: str) -> None:
        output: list[Part] = []
        if isinstance(item.output, dict):
            output = [TextPart(block_text(item.output))]
        else:
            output = list(self._parts(item.output, f"{path}.output"))
        self._result(item.call_id, output, path)

    def _result(self, call_id: str, output: Sequence[Part], path: str) -> None:
        if (earlier := self._result_of.get(call_id)) and not self._pending.has(call_id):
            self._add_to_result(earlier, output)
            return
        name = self._pending.take(call_id, f"{path}.call_id")
        result = ToolResultPart(
            name=name,
            output="".join(part.text for part in output if isinstance(part, TextPart)),
            tool_call_id=call_id,
            attachments=[
                part.attachment
                for part in output
                if isinstance(part, AttachmentPart) and part.attachment is not None
            ],
        )
        self._results.append(result)
        self._result_of[call_id] = result
        append_result(self.messages, result)
        if not self._pending:
            held, self._held = self._held, []
            self.messages += held

    def _add_to_result(self, earlier: ToolResultPart, output: Sequence[Part]) -> None:
        """Add a further result of a call, which Codex's tools may send while they run.

        Once the conversation has gone on, it is a message of its own.
        """
        if self.messages[-1].role == "tool" and self.messages[-1].parts[-1] is earlier:
            self._pieces.append((len(self.messages) - 1, earlier, output))
            return
        self.ignored.append("input[*] (a further result of a call)")
        texts = [part.text for part in output if isinstance(part, TextPart)]
        told = ToolResultPart(earlier.name, "\n".join(texts), earlier.tool_call_id)
        others = [part for part in output if not isinstance(part, TextPart)]
        self._turn(Message("user", [TextPart(result_text(told)), *others]))

    def _tool_search(
        self, item: ToolSearchCall | ToolSearchOutput | AdditionalTools, path: str
    ) -> None:
        if isinstance(item, ToolSearchCall):
            if item.call_id is None:  # OpenAI ran it; its tools follow
                self.ignored.append("input[*] (tool_search_call)")
                return
            arguments = item.arguments
            if not isinstance(arguments, dict):
                arguments = chat.parse_arguments(payload.encode(arguments or {}).decode())
            self._call("tool_search", arguments, item.call_id)
            return
        self.added_tools.append((item.tools, f"{path}.tools"))
        if isinstance(item, ToolSearchOutput) and item.call_id is not None:
            found = "\n".join(f"tool found: {name}" for name in _names(item.tools))
            self._result(item.call_id, [TextPart(found or "no tool found")], path)

    def _compaction(self, item: ResponseCompactionItem, path: str) -> None:
        summary = decode_compaction(item.encrypted_content)
        if summary is None:
            raise Unsupported(
                "this conversation was compacted by another server, which alone can read it",
                param=f"{path}.encrypted_content",
            )
        self._turn(Message("user", [TextPart(COMPACTED + summary)]))

    def _other(self, item: dict[str, Any], path: str) -> None:
        """Parse a call of one of OpenAI's own tools, its result, or what holds text."""
        kind = item["type"]
        call_id = item.get("call_id")
        if (call := server_call(item)) is not None:
            name, arguments, output = call
            id_ = item.get("id") if isinstance(item.get("id"), str) else None
            id_ = id_ or f"{kind}_{len(self.messages)}"
            self._say(
                ToolCallPart(name, self._arguments.parse(arguments), id_, server_executed=True),
                ToolResultPart(name, output, id_, server_executed=True),
            )
            return
        if isinstance(call_id, str) and kind.endswith("_call"):
            arguments_ = {name: v for name, v in item.items() if name not in _NOT_ARGUMENTS}
            self._call(kind.removesuffix("_call"), arguments_, call_id)
            return
        self.ignored.append(f"input[*] ({kind[:40]})")
        if kind.endswith("_call_output") and (isinstance(call_id, str) or self._pending):
            id_ = call_id if isinstance(call_id, str) else self._pending.oldest() or ""
            self._result(id_, [TextPart(block_text(item.get("output")))], path)
        elif kind != "mcp_list_tools" and holds_text(item):
            self._turn(Message("user", [TextPart(block_text(item))]))


def _with_pieces(result: Part, pieces: Sequence[Part] | None) -> Part:
    """Return a result with its further pieces: texts on lines of their own, and attachments."""
    if pieces is None or not isinstance(result, ToolResultPart):
        return result
    texts = [part.text for part in pieces if isinstance(part, TextPart)]
    files = [part.attachment for part in pieces if isinstance(part, AttachmentPart)]
    return replace(
        result,
        output="\n".join([result.output, *texts]),
        attachments=[*result.attachments, *(file for file in files if file is not None)],
    )


_NOT_ARGUMENTS = frozenset("id type call_id status created_by caller".split())


def _plain(part: ResponseInputText | OtherContent) -> dict[str, Any]:
    """Return a part of reasoning as it was sent."""
    if isinstance(part, OtherContent):
        return part.part
    return {"type": part.type, "text": part.text}


def _names(tools: Iterable[Any]) -> Iterator[str]:
    for tool in tools:
        match tool:
            case NamespaceTool():
                yield from (
                    tool_name(inner.name, tool.name)
                    for inner in tool.tools
                    if not isinstance(inner, OtherTool)
                )
            case FunctionTool() | CustomTool():
                yield tool.name


# ---- what the response repeats


def _echo(
    request: ResponseCreateParams,
    body: Mapping[str, Any],
    kinds: Mapping[str, Any],
    *,
    is_compaction: bool,
) -> dict[str, Any]:
    """Return the fields that a response repeats, and what its renderer must know of the tools."""
    resolved = request.llmproxy
    reasoning = request.reasoning or Reasoning()
    text = body.get("text") or {}
    return {
        "fields": {
            "background": False,
            "frequency_penalty": request.frequency_penalty or 0,
            "instructions": body.get("instructions"),
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "presence_penalty": request.presence_penalty or 0,
            "previous_response_id": resolved.previous_response_id if resolved else None,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "safety_identifier": request.safety_identifier,
            "service_tier": request.service_tier or "default",
            "store": request.store is not False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": {"type": "text"}, "verbosity": "medium"}
            | {name: value for name, value in text.items() if value is not None},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": [_echoed_tool(tool) for tool in body.get("tools") or ()],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": request.truncation or "disabled",
            "user": request.user,
        },
        "calls": dict(kinds),
        "is_compaction": is_compaction,
        "kept": resolved.kept if resolved else None,
    }


def _echoed_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None} | tool


# ---- the normal form

# OpenAI's own marks, and those that clients of several providers leave.
_without_cache_marks = payload.without(
    "input[*].content[*].prompt_cache_breakpoint",
    "input[*].output[*].prompt_cache_breakpoint",
    "input[*].content[*].cache_control",
    "input[*].cache_control",
    "tools[*].cache_control",
)


def normalize_body(body: Any) -> Any:
    """Strip cache marks, which move with every turn, before a request's body is stored.

    Any JSON value is taken; it is not edited, and the result shares its unchanged parts.
    """
    return _without_cache_marks(body)
