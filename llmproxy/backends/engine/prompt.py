"""The prompt that a model is run with, built from a request in the common format.

The messages of a prompt differ from those of the request only where the model's plugin
would refuse or drop something, and each such change is listed in `ignored`. The request
itself, which is what the log stores, is not edited.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

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

from ...core import chat, url_policy
from ...core.as_text import call_text, result_text
from ...core.errors import Unsupported
from ...core.message_facts import keep_beginning, known_beginning, stable_count, total
from ...core.url_policy import RemoteImages
from .catalog import AsyncModel, SyncModel


@dataclass(frozen=True)
class Call:
    """Everything that llm needs to run a model once.

    conversation: finished responses that hold the earlier turns, for older plugins that
        read history only there; current ones read prompt.messages.
    stop_sequences: those that we cut at ourselves, because the model has no option.
    ignored: paths of what the model was not given, including those of the dialect.
    """

    prompt: llm.Prompt
    conversation: llm.Conversation | llm.AsyncConversation
    options: dict[str, Any]
    tools: tuple[llm.Tool, ...]
    stop_sequences: tuple[str, ...]
    ignored: tuple[str, ...]


def build_prompt(
    request: chat.ChatRequest,
    model: SyncModel | AsyncModel,
    defaults: Mapping[str, Any],
    images: RemoteImages = "pass",
    *,
    reads_history: bool = False,
) -> Call:
    """Build the prompt of a request for a model; `defaults` are the user's options for it.

    reads_history: whether the plugin is known to read the conversation's responses.

    Raises:
        Unsupported: the model lacks a feature that the request depends on, or the URL policy
            forbids a URL of it.
    """
    url_policy.check(request, images)
    ignored = list(request.ignored)
    tools = () if request.tool_choice == "none" else request.tools
    _check_supported(request, model, tools)
    messages = _prompt_messages(request, model, ignored)
    options, stop_sequences = _options(request, model, defaults, ignored)
    history = _History(messages)
    prompt = _Prompt.of(
        messages,
        history.last.text,
        model=model,
        attachments=history.last.attachments,
        system=history.system,
        tool_results=history.last.tool_results,
        options=model.Options(**options),
        schema=request.schema,
        # llm-ollama refuses tools without an implementation; none is ever called here.
        tools=[
            *[replace(tool, implementation=_never_called) for tool in tools],
            *_server_tools(request, model, ignored),
        ],
    )
    conversation = _conversation(model, history, is_read=reads_history)
    ignored_once = tuple(dict.fromkeys(ignored))
    return Call(prompt, conversation, options, tools, stop_sequences, ignored_once)


class _Prompt(llm.Prompt):
    """A prompt whose messages are copied when a plugin asks for them.

    The originals are shared by all requests that have them, and by the log, and a plugin may edit
    what it is given: fill in a call's arguments, say. Older plugins read only the conversation.
    """

    _originals: list[Message]

    @classmethod
    def of(cls, messages: list[Message], text: str, **fields: Any) -> _Prompt:
        """Return a prompt with these messages; the rest is as for a `llm.Prompt`."""
        prompt = cls(text, **fields)
        prompt._originals = messages
        del vars(prompt)["_explicit_messages"]
        return prompt

    @cached_property
    def _explicit_messages(self) -> list[Message]:  # type: ignore[override]  # set by llm
        return [_copied(message) for message in self._originals]


def _server_tools(
    request: chat.ChatRequest, model: SyncModel | AsyncModel, ignored: list[str]
) -> list[llm.ServerSideTool]:
    """Return the plugin's versions of the tools that the provider runs."""
    kinds = {kind.name: kind for kind in model.supported_server_side_tools}
    made = []
    for tool in request.server_tools:
        try:
            made.append(kinds[tool.name](**tool.config))
        except (KeyError, TypeError, ValueError):  # not supported, or not with these settings
            ignored.append(tool.path)
    return made


def _never_called(**arguments: Any) -> None:
    raise AssertionError("tools are called by the client")


def _check_supported(
    request: chat.ChatRequest, model: SyncModel | AsyncModel, tools: tuple[llm.Tool, ...]
) -> None:
    name = model.model_id
    if tools and not model.supports_tools:
        path = request.option_paths.get("tools", "tools")
        raise Unsupported(f"the model {name} can't call tools", param=path)
    if request.schema and not model.supports_schema:
        path = request.option_paths.get("schema", "schema")
        raise Unsupported(f"the model {name} can't follow a schema", param=path)
    has_replies = any(message.role in ("assistant", "tool") for message in request.messages)
    if has_replies and not model.supports_conversation:
        raise Unsupported(f"the model {name} takes only single prompts", param="messages")
    for attachment, path in url_policy.locate_attachments(request):
        if not _accepts(model, attachment) and not _is_text(attachment):
            raise Unsupported(f"the model {name} can't read {attachment.type}", param=path)
        if attachment.url is not None and not _sends_url(model, attachment):
            raise Unsupported(
                f"the model {name} needs the content itself: send base64 data, not a URL",
                param=path,
            )


def _accepts(model: SyncModel | AsyncModel, attachment: llm.Attachment) -> bool:
    types = model.attachment_types or ()
    if attachment.type == "image/*":
        return any(type_.startswith("image/") for type_ in types)
    return attachment.type in types


# Modules whose model classes send an attachment's URL to the provider, by media type, according
# to their source; tests cover the first two. Other plugins open the URL themselves, or might
# , and one that does so without llm's Attachment could not be stopped.
_SENDS_URLS: Mapping[str, tuple[str, ...]] = {
    "llm.default_plugins.openai_models": ("image/",),  # it opens PDFs
    "llm_anthropic": ("image/", "application/pdf"),
    "llm_mistral": ("image/",),
}


def _sends_url(model: SyncModel | AsyncModel, attachment: llm.Attachment) -> bool:
    return any(
        (attachment.type or "").startswith(_SENDS_URLS.get(cls.__module__, ()))
        for cls in type(model).__mro__
    )


def _is_text(attachment: llm.Attachment) -> bool:
    return (attachment.type or "").startswith("text/") and attachment.content is not None


# ---- messages

# A model's class determines how its plugin treats system messages: llm's own OpenAI Chat
# class, which many plugins inherit, sends them in place; a Responses model sends only the
# last one.
_KEEPS_SYSTEM_IN_PLACE = frozenset({"Chat", "AsyncChat"})
_REFUSES_SYSTEM = frozenset({"Completion"})


def _classes(model: SyncModel | AsyncModel) -> set[str]:
    return {
        cls.__name__
        for cls in type(model).__mro__
        if cls.__module__ == "llm.default_plugins.openai_models"
    }


def _prompt_messages(
    request: chat.ChatRequest, model: SyncModel | AsyncModel, ignored: list[str]
) -> list[Message]:
    """Convert each message into one that this plugin sends on.

    What the beginning of the conversation became is kept, since it is sent again.
    """
    sent, recalled = request.messages, request.recalled
    carried = _carried_server_calls(request, model)
    count, kept = known_beginning(sent, "prompt")
    if kept is not None and kept.fits(model, carried, _places(recalled, count)):
        builder: _PromptBuilder = kept.builder.copy()
    else:
        count, builder = 0, _PromptBuilder(model, carried)
    stable = stable_count(sent)
    for place in range(count, len(sent)):
        if place == stable > count:
            kept = _Kept(model, carried, _places(recalled, stable), builder.copy())
            keep_beginning(sent, stable, "prompt", kept, instead_of=count)
        builder.add(sent[place], is_recalled=place in recalled)
    ignored += builder.ignored
    return builder.finish()


@dataclass(frozen=True)
class _Kept:
    """What the first messages of a conversation became for a model."""

    model: SyncModel | AsyncModel
    carried: frozenset[str | None]
    recalled: frozenset[int]
    builder: _PromptBuilder

    def fits(
        self,
        model: SyncModel | AsyncModel,
        carried: frozenset[str | None],
        recalled: frozenset[int],
    ) -> bool:
        return self.model is model and self.carried == carried and self.recalled == recalled


def _places(recalled: frozenset[int], count: int) -> frozenset[int]:
    return frozenset(place for place in recalled if place < count)


def _waits_for_result(message: Message) -> bool:
    return message.role == "tool" or any(
        isinstance(part, ToolCallPart) and not part.server_executed for part in message.parts
    )


# llm's classes that don't send the calls of a provider's own tools in a form that the provider
# takes: Chat sends a call without its result, Responses leaves both out.
_LOSES_SERVER_TOOLS = frozenset({"Chat", "AsyncChat", "Completion", "Responses", "AsyncResponses"})


def _carried_server_calls(
    request: chat.ChatRequest, model: SyncModel | AsyncModel
) -> frozenset[str | None]:
    """Return the ids of calls run by a provider that the plugin sends on with their results.

    llm-anthropic does for Anthropic's, except through an MCP server, which Anthropic takes only
    from requests with that server. Other plugins get back what the log has of this model.
    """
    if not total(request.messages, "server parts", _count_server_parts):  # nearly always
        return frozenset()
    calls: set[str | None] = set()
    recalled: set[str | None] = set()
    results: set[str | None] = set()
    for index, message in enumerate(request.messages):
        for part in message.parts:
            if type(part) is TextPart:  # nearly always
                continue
            match part:
                case ToolCallPart(server_executed=True, tool_call_id=id_):
                    calls.add(id_)
                    recalled |= {id_} if index in request.recalled else set()
                case ToolResultPart(server_executed=True, tool_call_id=id_) if id_ in calls:
                    results.add(id_)
    if any(cls.__module__ == "llm_anthropic" for cls in type(model).__mro__):
        # A paused turn ends in a call: Anthropic runs it when the turn is sent back.
        last = request.messages[-1] if request.messages else Message("user")
        paused = {
            part.tool_call_id
            for part in last.parts
            if isinstance(part, ToolCallPart) and part.server_executed
        }
        kept = calls & (results | paused)
        return frozenset(id_ for id_ in kept if (id_ or "").startswith("srvtoolu_"))
    if _classes(model) & _LOSES_SERVER_TOOLS:
        return frozenset()
    return frozenset(recalled & results)


def _count_server_parts(messages: Sequence[Message]) -> int:
    return sum(
        type(part) is not TextPart
        and isinstance(part, ToolCallPart | ToolResultPart)
        and part.server_executed
        for message in messages
        for part in message.parts
    )


class _PromptBuilder:
    """The messages of a prompt so far; those that we add ourselves join a user's turn.

    carried: ids of the provider's calls that the plugin sends on, each with its result.
    ignored: paths of what is not sent on.
    """

    def __init__(self, model: SyncModel | AsyncModel, carried: frozenset[str | None]) -> None:
        classes = _classes(model)
        self._model = model
        self.ignored: list[str] = []
        self._carried = carried
        self._server_tools: dict[str | None, str] = {}  # names by tool_call_id
        self._takes_first_system = not classes & _REFUSES_SYSTEM and getattr(
            model, "allows_system_prompt", True
        )
        self._keeps_system_in_place = self._takes_first_system and bool(
            classes & _KEEPS_SYSTEM_IN_PLACE
        )
        # For some models llm-anthropic sends system messages that follow a user's turn.
        self._takes_system_after_user = getattr(model, "supports_system_messages", False) is True
        self._leading: list[str] = []
        self._messages: list[Message] = []
        self._last_is_ours = False
        self._last_is_copy = False  # made here: its list of parts may be extended
        self._held: list[Message] = []  # system messages between a tool call and its result
        self._last: Message | None = None  # of the request's, without those that are held

    def copy(self) -> _PromptBuilder:
        """Return one with the same messages, which both share."""
        self._last_is_copy = False
        other = copy(self)
        for name in ("ignored", "_leading", "_messages", "_held"):
            setattr(other, name, [*getattr(self, name)])
        other._server_tools = {**self._server_tools}
        return other

    def add(self, message: Message, *, is_recalled: bool) -> None:
        """Add a message; a system's between a tool call and its result goes behind the result."""
        if message.role == "system" and self._last is not None and _waits_for_result(self._last):
            self._held.append(message)
            return
        if message.role != "tool":
            self._add_held()
        self._last = message
        if message.role == "system":
            self.add_system(message)
        elif message.role == "tool":
            self.add_results([p for p in message.parts if isinstance(p, ToolResultPart)])
        else:
            self.add_turn(message, is_recalled=is_recalled)

    def _add_held(self) -> None:
        for message in self._held:
            self.add_system(message)
        self._held.clear()

    def add_system(self, message: Message) -> None:
        text = "\n\n".join(part.text for part in message.parts if isinstance(part, TextPart))
        if not text.strip():
            return
        follows_user = bool(self._messages) and self._messages[-1].role in ("user", "tool")
        if self._takes_first_system and not self._messages:
            # Plugins read only the first system message, so it must hold all of them.
            self._leading.append(text)
        elif self._keeps_system_in_place or (self._takes_system_after_user and follows_user):
            self._append(Message("system", [TextPart(text)]))
        else:
            self._append_ours([TextPart(f"<system>\n{text}\n</system>")])
            self.ignored.append("messages[*] (a system message, made part of a user's)")

    def add_results(self, results: list[ToolResultPart]) -> None:
        if not self._model.supports_tools:
            self._append_ours([TextPart(result_text(result)) for result in results])
            self.ignored.append("messages[*] (a tool's result, put into words)")
            return
        self._append(
            Message("tool", [_without_exception(result, self.ignored) for result in results])
        )
        images: list[Part] = [AttachmentPart(a) for r in results for a in r.attachments]
        if images:
            message = Message("user", images)
            self._append_ours(list(_supported_parts(message, self._model, self.ignored)))
            self.ignored.append("messages[*] (images of a tool's result, put after it)")

    def add_turn(self, message: Message, *, is_recalled: bool) -> None:
        kind = _plain_kind(message)
        if kind == "texts" or (kind == "calls" and self._model.supports_tools):
            # No rule below changes it. This takes a third of the time.
            self._append(message)
            return
        ignored = [] if is_recalled else self.ignored
        told = [self._told(part, ignored) for part in message.parts]
        if told != message.parts:
            # Anthropic refuses text between a call for the client and its result.
            told.sort(key=lambda part: isinstance(part, ToolCallPart) and not part.server_executed)
        message = Message(message.role, told, message.provider_metadata)
        # Recalled ones are unchanged, as llm itself would send them.
        parts = list(_supported_parts(message, self._model, ignored, keeps_reasoning=is_recalled))
        if parts or message.role == "user":
            self._append(Message(message.role, parts, message.provider_metadata))

    def _told(self, part: Part, ignored: list[str]) -> Part:
        """Put a provider's call and its result into words, both of them, unless both are sent."""
        if not isinstance(part, ToolCallPart | ToolResultPart) or not part.server_executed:
            return part
        if part.tool_call_id in self._carried:
            return part
        ignored.append("messages[*] (a server tool's call and result, put into words)")
        if isinstance(part, ToolCallPart):
            self._server_tools[part.tool_call_id] = part.name
            return TextPart(call_text(part))
        return TextPart(result_text(part, self._server_tools.get(part.tool_call_id)))

    def finish(self) -> list[Message]:
        """Return the messages; those of the request are shared with it."""
        self._add_held()
        if not self._leading:
            return self._messages
        return [Message("system", [TextPart("\n\n".join(self._leading))]), *self._messages]

    def _append(self, message: Message) -> None:
        if self._last_is_ours and message.role == "user":
            self._join(message.parts)
        else:
            self._messages.append(message)
            self._last_is_copy = False
        self._last_is_ours = False

    def _append_ours(self, parts: list[Part]) -> None:
        if self._messages and self._messages[-1].role == "user":
            self._join(parts)
        else:
            self._messages.append(Message("user", parts))
            self._last_is_copy = True
        self._last_is_ours = True

    def _join(self, parts: list[Part]) -> None:
        last = self._messages[-1]
        neighbours = [*last.parts[-1:], *parts[:1]]
        texts = [part for part in neighbours if isinstance(part, TextPart)]
        between = [TextPart("\n\n")] if len(texts) == 2 else []
        if not self._last_is_copy:  # it may belong to the request
            last = self._messages[-1] = replace(last, parts=list(last.parts))
            self._last_is_copy = True
        last.parts += [*between, *parts]


def _copied(message: Message) -> Message:
    parts = [
        # Nearly always, and in a fifth of the time.
        TextPart(part.text)
        if type(part) is TextPart and not part.provider_metadata
        else _copied_part(part)
        for part in message.parts
    ]
    return Message(message.role, parts, _copied_value(message.provider_metadata))


def _copied_part(part: Part) -> Part:
    other: Part = object.__new__(type(part))  # copy() takes six times as long
    vars(other).update({name: _copied_value(value) for name, value in vars(part).items()})
    return other


def _copied_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied_value(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_copied_value(item) for item in value]
    return copy(value) if isinstance(value, llm.Attachment) else value


def _plain_kind(message: Message) -> Literal["texts", "calls", ""]:
    """Tell whether a message has only texts, or calls for the client too, and none is blank."""
    parts = message.parts
    kind: Literal["texts", "calls", ""] = "texts"
    for part in parts:
        if type(part) is ToolCallPart and not part.server_executed:
            kind = "calls"
        elif type(part) is not TextPart or (len(parts) > 1 and not part.text.strip()):
            return ""
    return kind if parts else ""


def _without_exception(result: ToolResultPart, ignored: list[str]) -> ToolResultPart:
    """Report a tool's failure in its output, since no plugin sends the exception."""
    if result.exception is None:
        return replace(result, attachments=[]) if result.attachments else result
    ignored.append("messages[*] (a tool's failure, put into words)")
    return replace(result, output=f"Error: {result.output}", exception=None, attachments=[])


def _supported_parts(
    message: Message,
    model: SyncModel | AsyncModel,
    ignored: list[str],
    *,
    keeps_reasoning: bool = False,
) -> Iterator[Part]:
    for part in message.parts:
        match part:
            case ReasoningPart(provider_metadata=None) if not keeps_reasoning:
                # Providers refuse reasoning that they did not sign, and don't need any.
                ignored.append("messages[*].reasoning")
            case ToolCallPart() if not model.supports_tools:
                yield TextPart(call_text(part))
                ignored.append("messages[*] (a tool call, put into words)")
            case TextPart(text=text) if not text.strip() and len(message.parts) > 1:
                pass  # Anthropic refuses blank text blocks
            case AttachmentPart(attachment=llm.Attachment() as attachment) if not _accepts(
                model, attachment
            ):
                assert attachment.content is not None, "_check_supported refuses others"
                yield TextPart(attachment.content.decode("utf-8", "replace"))
                ignored.append("messages[*] (a text file, put in as text)")
            case _:
                yield part


# ---- the same history for plugins that read conversations


def _text(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


@dataclass
class _Question:
    """The messages between two replies, as older plugins read them."""

    texts: list[str] = field(default_factory=list)
    attachments: list[llm.Attachment] = field(default_factory=list)
    tool_results: list[llm.ToolResult] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n\n".join(self.texts)

    def add(self, message: Message) -> None:
        if text := _text(message):
            self.texts.append(text)
        for part in message.parts:
            if isinstance(part, AttachmentPart) and part.attachment is not None:
                self.attachments.append(part.attachment)
            elif isinstance(part, ToolResultPart):
                result = llm.ToolResult(part.name, part.output, tool_call_id=part.tool_call_id)
                self.tool_results.append(result)


class _History:
    """Messages split into turns: the open question, and before it the answered ones."""

    def __init__(self, messages: Sequence[Message]) -> None:
        first_system = messages[0] if messages and messages[0].role == "system" else None
        self.system = _text(first_system) if first_system is not None else None
        self._start = 0 if first_system is None else 1
        self._messages = messages
        end = len(messages)
        while end > self._start and messages[end - 1].role != "assistant":
            end -= 1
        self._end = end
        self.last = _Question()
        for message in messages[end:]:
            self.last.add(_copied(message))

    def answered(self) -> Iterator[tuple[_Question, Message]]:
        """Yield the answered questions with their replies."""
        question = _Question()
        for message in map(_copied, self._messages[self._start : self._end]):
            if message.role == "assistant":
                yield question, message
                question = _Question()
            else:
                question.add(message)


class _Earlier:
    """A conversation whose earlier turns become finished responses once a plugin asks for them.

    Current plugins read the messages of the prompt, and never ask: each response has a prompt
    and two ids of its own, 20 µs.
    """

    _history: _History | None = None
    _ended: list[Any]  # responses that llm adds

    @classmethod
    def before(cls, model: SyncModel | AsyncModel, history: _History) -> Any:
        """Return the conversation before a history's open question."""
        conversation: Any = cls(model=model)  # type: ignore[call-arg]  # of llm's class
        conversation._history = history
        conversation._ended = vars(conversation).pop("responses")
        return conversation

    @cached_property
    def responses(self) -> list[Any]:
        conversation: Any = self
        history, self._history = self._history, None
        assert history is not None
        options = conversation.model.Options()
        made = [
            _finished(conversation.model, conversation, history.system, question, reply, options)
            for question, reply in history.answered()
        ]
        return [*made, *self._ended]

    def _record_response(self, response: Any) -> None:
        conversation: Any = self
        if has_read_history(conversation):
            super()._record_response(response)  # type: ignore[misc]
        else:
            self._ended.append(response)


class _Conversation(_Earlier, llm.Conversation):  # type: ignore[override]  # the property
    pass


class _AsyncConversation(_Earlier, llm.AsyncConversation):  # type: ignore[override]
    pass


def has_read_history(conversation: llm.Conversation | llm.AsyncConversation) -> bool:
    """Return whether the conversation's responses were made, because a plugin asked for them."""
    return "responses" in vars(conversation)


def _conversation(
    model: SyncModel | AsyncModel, history: _History, *, is_read: bool
) -> llm.Conversation | llm.AsyncConversation:
    """Return the answered turns as finished responses, which are never run again."""
    is_async = isinstance(model, llm.AsyncModel | llm.AsyncKeyModel)
    kind = _AsyncConversation if is_async else _Conversation
    conversation: llm.Conversation | llm.AsyncConversation = kind.before(model, history)
    if is_read:
        conversation.responses  # noqa: B018  # made here, in a thread if the request is large
    return conversation


def _finished(
    model: SyncModel | AsyncModel,
    conversation: llm.Conversation | llm.AsyncConversation,
    system: str | None,
    question: _Question,
    reply: Message,
    options: Any,
) -> llm.Response | llm.AsyncResponse:
    prompt = llm.Prompt(
        question.text,
        model=model,
        attachments=question.attachments,
        system=system,
        tool_results=question.tool_results,
        options=options,
    )
    kind = llm.AsyncResponse if isinstance(conversation, llm.AsyncConversation) else llm.Response
    response = kind(prompt, model, False, conversation=conversation)
    response.attachments = question.attachments
    response._chunks = [part.text for part in reply.parts if isinstance(part, TextPart)]
    response._tool_calls = [
        llm.ToolCall(part.name, part.arguments, part.tool_call_id)
        for part in reply.parts
        if isinstance(part, ToolCallPart) and not part.server_executed
    ]
    response._done = True
    return response


# ---- options

# Name in the common format → names in plugins, the most common first. No other options are
# passed on: plugins have some of other kinds, and one of them opens the file that it names.
OPTION_NAMES: Mapping[str, tuple[str, ...]] = {
    **{
        name: (name,)
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "num_ctx",
            "repeat_last_n",
            "repeat_penalty",
            "frequency_penalty",
            "presence_penalty",
            "logit_bias",
            "parallel_tool_calls",
            "tool_choice",
            "verbosity",
            "service_tier",
            "thinking_budget",
            "cache",
        )
    },
    "max_tokens": (
        "max_tokens",
        "max_output_tokens",
        "num_predict",
        "max_completion_tokens",
        "max_new_tokens",
        "max_length",
    ),
    "stop_sequences": ("stop_sequences", "stop"),
    "thinking": ("thinking", "think"),
    "seed": ("seed", "random_seed"),
    "reasoning_effort": ("reasoning_effort", "thinking_effort", "thinking_level"),
    "json_object": ("json_object", "json_mode"),
    "user": ("user", "user_id"),
}

# A Responses model inherits these options and passes them to a method without such
# parameters: the request would fail.
_BREAKS_RESPONSES = frozenset(
    {"stop", "seed", "frequency_penalty", "presence_penalty", "logit_bias"}
)
_RESPONSES = frozenset({"Responses", "AsyncResponses"})

MAX_STOP_CHARS = 1_024  # of all stop sequences; each event is compared with all of them

# Values equal to the vendor's default: leaving them out changes nothing, so isn't reported.
_DEFAULTS: Mapping[str, Any] = {
    "parallel_tool_calls": True,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "service_tier": "auto",
}


def _options(
    request: chat.ChatRequest,
    model: SyncModel | AsyncModel,
    defaults: Mapping[str, Any],
    ignored: list[str],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the options that the model accepts, and the stop sequences left for us to cut at."""
    # The client's values come first, then the user's defaults if they are still valid.
    fields = set(model.Options.model_fields)
    if _classes(model) & _RESPONSES:
        fields -= _BREAKS_RESPONSES
    chosen: dict[str, Any] = {}
    stop_sequences: tuple[str, ...] = ()
    for name, value in {**request.options, **_forced_tool(request)}.items():
        if any(_try_option(model, chosen, *o) for o in _as_options(name, value, fields)):
            continue
        if name == "stop_sequences":
            stop_sequences = tuple(value)
            if sum(map(len, stop_sequences)) > MAX_STOP_CHARS:
                raise Unsupported(
                    f"the model {model.model_id} takes no stop sequences, and here they may have"
                    f" {MAX_STOP_CHARS:,} characters together",
                    param=request.option_paths.get(name, name),
                )
        elif value != _DEFAULTS.get(name):
            ignored.append(request.option_paths.get(name, name))
    for name, value in defaults.items():
        if name not in chosen:
            _try_option(model, chosen, name, value)
    return chosen, stop_sequences


def _forced_tool(request: chat.ChatRequest) -> dict[str, Any]:
    match request.tool_choice:
        case chat.NamedTool(name=name):
            return {"tool_choice": name}
        case "required":
            return {"tool_choice": "required"}
    return {}


def _as_options(name: str, value: Any, fields: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the names and values under which a model may accept an option."""
    for candidate in OPTION_NAMES.get(name, ()):
        if candidate in fields:
            yield candidate, value
            if name == "stop_sequences" and len(value) == 1:
                yield candidate, value[0]  # OpenAI's plugin takes one string


def _try_option(
    model: SyncModel | AsyncModel, chosen: dict[str, Any], name: str, value: Any
) -> bool:
    try:
        model.Options(**chosen, **{name: value})
    except (ValueError, TypeError):
        return False
    chosen[name] = value
    return True
