"""Tests of building a prompt that a model supports, and of listing what was changed."""

import copy
import random
from dataclasses import replace
from typing import Any

import llm
import pytest
from llm.default_plugins.openai_models import AsyncChat
from llm.parts import AttachmentPart, Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from pydantic import Field

from llmproxy.backends.engine.prompt import Call, build_prompt, has_read_history
from llmproxy.core import attachments, chat
from llmproxy.core.errors import Unsupported
from llmproxy.core.message_facts import keep_facts
from tests.backends.engine.conftest import assistant, system, user
from tests.models import AsyncScript, StopOptions, SyncScript

PNG = attachments.attachment_from_base64("iVBORw0KGgo=")


def call(
    model: Any, *messages: Message, defaults: dict[str, Any] | None = None, **fields: Any
) -> Call:
    request = chat.ChatRequest(model="m", messages=list(messages) or [user()], **fields)
    return build_prompt(request, model, defaults or {})


def openai_chat() -> llm.Model:
    from llm.default_plugins.openai_models import Chat

    return Chat("m", supports_tools=True, vision=True)


def openai_responses() -> llm.Model:
    from llm.default_plugins.openai_models import Responses

    return Responses("m", supports_tools=True)


def in_place() -> SyncScript:
    return SyncScript("m", supports_system_messages=True)


def texts(call: Call) -> list[tuple[str, str]]:
    return [
        (m.role, "".join(p.text for p in m.parts if isinstance(p, TextPart)))
        for m in call.prompt.messages
    ]


# ---- messages


def test_messages_that_every_plugin_supports_are_not_changed():
    messages = [system("s"), user("q"), assistant("a"), user("r")]
    made = call(SyncScript("m"), *messages)
    assert made.prompt.messages == messages
    assert made.ignored == ()


PIECES = [
    [system("s")],
    [user("q")],
    [Message("user", [TextPart("look"), AttachmentPart(PNG)])],
    [assistant("a"), system("later")],
    [Message("assistant", [ReasoningPart("hm"), TextPart(" "), TextPart("a")])],
    [
        Message("assistant", [ToolCallPart("f", {"a": [{"b": 1}]}, "c1"), TextPart("t")]),
        system("between"),
        Message("tool", [ToolResultPart("f", "r", "c1", attachments=[PNG], exception="e")]),
        system("after"),
    ],
    [
        Message("assistant", [ToolCallPart("f", {"a": {}}, "c2", provider_metadata={"p": [1]})]),
        Message("tool", [ToolResultPart("f", "r", "c2")]),
    ],
    [
        Message(
            "assistant",
            [
                ToolCallPart("web_search", {}, "srvtoolu_1", server_executed=True),
                ToolResultPart("web_search", "[]", "srvtoolu_1", server_executed=True),
            ],
        )
    ],
]


@pytest.mark.parametrize("seed", range(20))
def test_a_conversation_that_goes_on_becomes_the_same_prompt(seed):
    """Messages of a known body are the same objects in each request."""
    draw = random.Random(seed)
    models = [
        SyncScript("m", attachment_types={"image/png"}),
        SyncScript("m", attachment_types={"image/png"}, supports_tools=False),
        openai_chat(),
        in_place(),
    ]
    messages = [replace(m) for _ in range(12) for m in draw.choice(PIECES)]
    model = draw.choice(models)
    for _ in range(15):
        sent = messages[: draw.randint(1, len(messages))]
        sent += draw.choice([[], [user("other")], [system("other"), user("q")]])
        keep_facts(sent)
        recalled = frozenset(i for i in range(len(sent)) if i % 3 == draw.choice([0, 0, 0, 1]))
        model = draw.choice([model, model, *models])
        try:
            fresh = call(model, *map(replace, sent), recalled=recalled)
        except Unsupported:
            with pytest.raises(Unsupported):
                call(model, *sent, recalled=recalled)
            continue
        made = call(model, *sent, recalled=recalled)
        assert made.prompt.messages == fresh.prompt.messages
        assert made.ignored == fresh.ignored


def test_a_plugin_that_edits_its_prompt_changes_no_other_request():
    messages = [replace(m) for piece in PIECES * 2 for m in piece]
    messages.append(Message("user", [AttachmentPart(copy.copy(PNG))]))
    keep_facts(messages)
    before = copy.deepcopy(messages)
    model = SyncScript("m", attachment_types={"image/png"})
    first = call(model, *messages)
    told = copy.deepcopy(first.prompt.messages)
    for edited in (first, call(model, *messages)):
        for response in edited.conversation.responses:
            for called in response._tool_calls:
                called.arguments["more"] = 1
        for attachment in edited.prompt.attachments:
            attachment.content = b"edited"
        for message in edited.prompt.messages:
            message.role = "edited"
            for part in message.parts:
                match part:
                    case TextPart():
                        part.text = "edited"
                    case ToolCallPart():
                        list(part.arguments.values())[:1] and part.arguments["a"].clear()
                        part.arguments["more"] = 1
                        (part.provider_metadata or {}).get("p", []).append(3)
                    case AttachmentPart():
                        part.attachment.content = b"edited"
            message.parts.clear()
        assert messages == before
        assert call(model, *messages).prompt.messages == told


def test_leading_system_messages_become_one():
    """Plugins send only one: llm-anthropic the first, a Responses model the last (d6.18)."""
    made = call(SyncScript("m"), system("a"), system("b"), user())
    assert texts(made) == [("system", "a\n\nb"), ("user", "hi")]
    assert made.prompt.system == "a\n\nb"
    assert made.ignored == ()


@pytest.mark.parametrize("model", [SyncScript("m"), openai_responses()])
def test_later_system_message_becomes_marked_text_of_the_users_turn(model):
    """d6.18, B31"""
    made = call(model, user("q"), system("mind this"), assistant("a"), user("r"), system("end"))
    assert texts(made) == [
        ("user", "q\n\n<system>\nmind this\n</system>"),
        ("assistant", "a"),
        ("user", "r\n\n<system>\nend\n</system>"),
    ]
    assert made.ignored == ("messages[*] (a system message, made part of a user's)",)


def test_system_message_before_a_user_joins_what_follows():
    made = call(SyncScript("m"), user("q"), assistant("a"), system("mind"), user("r"))
    assert texts(made)[-1] == ("user", "<system>\nmind\n</system>\n\nr")


@pytest.mark.parametrize("model", [openai_chat(), in_place()])
def test_later_system_message_stays_in_place_if_plugins_send_it(model):
    made = call(model, user("q"), system("mind"), assistant("a"), user("r"))
    assert texts(made) == [("user", "q"), ("system", "mind"), ("assistant", "a"), ("user", "r")]
    assert made.ignored == ()


@pytest.mark.parametrize("model", [openai_chat(), SyncScript("m")])
def test_system_message_never_stands_between_a_call_and_its_result(model):
    """B31"""
    reply = Message("assistant", [ToolCallPart("f", {}, "c")])
    result = Message("tool", [ToolResultPart("f", "4", "c")])
    made = call(model, user("q"), reply, system("mind"), result)
    assert [m.role for m in made.prompt.messages][:3] == ["user", "assistant", "tool"]
    assert "mind" in texts(made)[3][1]


def test_system_message_becomes_text_if_the_model_refuses_it():
    class Completion(SyncScript):
        allows_system_prompt = False

    made = call(Completion("m"), system("s"), user("q"))
    assert texts(made) == [("user", "<system>\ns\n</system>\n\nq")]
    assert made.prompt.system == ""


def test_images_of_a_tool_result_move_to_a_users_part_after_it():
    """B26, d6.18"""
    reply = Message("assistant", [ToolCallPart("f", {}, "c")])
    result = ToolResultPart("f", "see", "c", attachments=[PNG])
    made = call(SyncScript("m"), user(), reply, Message("tool", [result]), user("and?"))
    tool, after = made.prompt.messages[2:]
    assert tool.parts == [ToolResultPart("f", "see", "c")]
    assert after == Message("user", [AttachmentPart(PNG), TextPart("and?")])
    assert made.ignored == ("messages[*] (images of a tool's result, put after it)",)
    assert result.attachments == [PNG], "the request's own message is not edited"


def test_failure_of_a_tool_becomes_part_of_its_output():
    reply = Message("assistant", [ToolCallPart("f", {}, "c")])
    result = ToolResultPart("f", "no such file", "c", exception="error")
    made = call(SyncScript("m"), user(), reply, Message("tool", [result]))
    assert made.prompt.messages[2].parts == [ToolResultPart("f", "Error: no such file", "c")]
    assert made.ignored == ("messages[*] (a tool's failure, put into words)",)


def test_unsigned_reasoning_is_left_out_and_signed_kept():
    signed = ReasoningPart("hm", provider_metadata={"anthropic": {"signature": "s"}})
    reply = Message("assistant", [ReasoningPart("plain"), signed, TextPart("a")])
    made = call(SyncScript("m"), user(), reply, user("q"))
    assert made.prompt.messages[1].parts == [signed, TextPart("a")]
    assert made.ignored == ("messages[*].reasoning",)


def test_a_recalled_reply_is_sent_unchanged():
    """llm itself sends it so; parts that a plugin drops are not part of the client's request."""
    reply = Message("assistant", [ReasoningPart("plain"), TextPart("a")])
    messages = [user(), reply, user("q")]
    model = SyncScript("m")
    request = chat.ChatRequest("m", messages, recalled=frozenset({1}))
    made = build_prompt(request, model, {})
    assert made.prompt.messages[1] == reply
    assert made.ignored == ()


def test_text_file_becomes_text_for_models_that_read_images():
    file = attachments.attachment_from_url("data:text/plain,hello%20there")
    made = call(SyncScript("m"), Message("user", [AttachmentPart(file)]))
    assert texts(made) == [("user", "hello there")]
    assert made.ignored == ("messages[*] (a text file, put in as text)",)


def test_blank_text_beside_a_call_is_left_out():
    """B28, d6.25"""
    reply = Message("assistant", [ToolCallPart("f", {}, "c"), TextPart(" ")])
    made = call(SyncScript("m"), user(), reply, Message("tool", [ToolResultPart("f", "4", "c")]))
    assert made.prompt.messages[1].parts == [ToolCallPart("f", {}, "c")]


# ---- the same history for old plugins


@pytest.mark.parametrize("kind", [SyncScript, AsyncScript])
def test_old_plugins_find_every_earlier_turn_in_the_conversation(kind):
    """d6.17"""
    image = Message("user", [TextPart("look"), AttachmentPart(PNG)])
    made = call(kind("m"), system("s"), user("q"), assistant("a"), image, assistant("b"), user("r"))
    first, second = made.conversation.responses
    assert (first.prompt.prompt, first.prompt.system, first.text_or_raise()) == ("q", "s", "a")
    assert (second.prompt.prompt, second.text_or_raise()) == ("look", "b")
    assert second.attachments == second.prompt.attachments == [PNG]
    assert (made.prompt.prompt, made.prompt.system) == ("r", "s")


@pytest.mark.parametrize("kind", [SyncScript, AsyncScript])
def test_earlier_responses_are_made_when_a_plugin_asks_for_them(kind):
    made = call(kind("m"), user("q"), assistant("a"), user("r"))
    assert not has_read_history(made.conversation)
    made.conversation._record_response("the new one")  # as llm does at a response's end
    assert not has_read_history(made.conversation)
    first, new = made.conversation.responses
    assert (first.text_or_raise(), new) == ("a", "the new one")
    assert first.conversation is made.conversation
    made.conversation._record_response("another")
    assert made.conversation.responses == [first, new, "another"]


def test_old_plugins_find_tool_calls_and_results():
    reply = Message("assistant", [ToolCallPart("f", {"a": 1}, "c")])
    result = Message("tool", [ToolResultPart("f", "4", "c")])
    made = call(SyncScript("m"), user("q"), reply, result)
    assert made.conversation.responses[0].tool_calls() == [llm.ToolCall("f", {"a": 1}, "c")]
    assert made.prompt.tool_results == [llm.ToolResult("f", "4", tool_call_id="c")]
    assert made.prompt.prompt == ""


# ---- what is refused


@pytest.mark.parametrize(
    ("attributes", "fields", "message", "param"),
    [
        (
            {"supports_tools": False},
            {"tools": (llm.Tool("f"),)},
            "the model m can't call tools",
            "tools",
        ),
        (
            {"supports_schema": False},
            {"schema": {"type": "object"}, "option_paths": {"schema": "response_format"}},
            "the model m can't follow a schema",
            "response_format",
        ),
        (
            {"supports_conversation": False},
            {"messages": [user(), assistant("a"), user()]},
            "the model m takes only single prompts",
            "messages",
        ),
        (
            {"attachment_types": frozenset()},
            {
                "messages": [Message("user", [AttachmentPart(PNG)])],
                "attachment_paths": ("messages[0].content[0].image_url.url",),
            },
            "the model m can't read image/png",
            "messages[0].content[0].image_url.url",
        ),
    ],
)
def test_unsupported_features_are_refused_by_name(attributes, fields, message, param):
    request = chat.ChatRequest(**{"model": "m", "messages": [user()], **fields})
    with pytest.raises(Unsupported) as caught:
        build_prompt(request, SyncScript("m", **attributes), {})
    assert (caught.value.message, caught.value.param) == (message, param)


def test_tools_are_left_out_if_the_choice_is_none():
    made = call(SyncScript("m", supports_tools=False), tools=(llm.Tool("f"),), tool_choice="none")
    assert made.tools == ()
    assert made.prompt.tools == []


def test_image_by_url_is_given_to_models_that_read_any_image():
    url = attachments.attachment_from_url("https://example.org/photo")
    made = call(AsyncChat("m", vision=True), Message("user", [AttachmentPart(url)]))
    assert made.prompt.attachments == [url]


# ---- options


class Ollama(llm.Options):
    num_predict: int | None = Field(default=None)
    stop: list[str] | None = Field(default=None)
    seed: int | None = Field(default=None)


class Claude(llm.Options):
    stop_sequences: list[str] | str | None = Field(default=None)
    tool_choice: str | None = Field(default=None)


def test_options_get_the_models_own_names():
    model = SyncScript("m", Options=Ollama)
    made = call(model, options={"max_tokens": 5, "stop_sequences": ["a", "b"], "seed": 1})
    assert made.options == {"num_predict": 5, "stop": ["a", "b"], "seed": 1}
    assert (made.ignored, made.stop_sequences) == ((), ())


def test_option_that_the_model_lacks_is_listed_by_the_clients_name():
    made = call(
        SyncScript("m"),
        options={"seed": 1, "max_tokens": 9},
        option_paths={"max_tokens": "max_completion_tokens"},
    )
    assert (made.options, made.ignored) == ({"max_tokens": 9}, ("seed",))


def test_value_that_the_model_refuses_is_listed():
    """d6.28"""
    made = call(SyncScript("m"), options={"temperature": 1.2, "top_p": 0.5})
    assert (made.options, made.ignored) == ({"top_p": 0.5}, ("temperature",))


def test_options_that_exclude_each_other_are_taken_one_by_one():
    from llm_anthropic import ClaudeOptions

    model = SyncScript("m", Options=ClaudeOptions)
    made = call(model, options={"temperature": 0.5, "top_p": 0.9})
    assert (made.options, made.ignored) == ({"temperature": 0.5}, ("top_p",))


def test_one_stop_is_passed_as_a_string_and_several_are_cut_by_us():
    """B30"""
    one = call(SyncScript("m", Options=StopOptions), options={"stop_sequences": ["x"]})
    assert (one.options, one.stop_sequences) == ({"stop": "x"}, ())
    two = call(SyncScript("m", Options=StopOptions), options={"stop_sequences": ["x", "y"]})
    assert (two.options, two.stop_sequences, two.ignored) == ({}, ("x", "y"), ())


def test_stop_sequences_that_are_cut_at_here_are_limited():
    """Each event is compared with all of them."""
    paths = {"stop_sequences": "stop"}
    most = ["a" * 512, "b" * 512]
    assert call(SyncScript("m"), options={"stop_sequences": most}).stop_sequences == tuple(most)
    with pytest.raises(Unsupported, match="1,024 characters together") as refused:
        call(SyncScript("m"), options={"stop_sequences": [*most, "c"]}, option_paths=paths)
    assert refused.value.param == "stop"
    many = call(SyncScript("m", Options=StopOptions), options={"stop_sequences": ["a" * 9999]})
    assert many.options == {"stop": "a" * 9999}


def test_a_responses_model_is_not_given_what_its_method_lacks():
    made = call(openai_responses(), options={"seed": 1, "stop_sequences": ["x"], "temperature": 1})
    assert made.options == {"temperature": 1}
    assert (made.ignored, made.stop_sequences) == (("seed",), ("x",))


def test_penalties_of_zero_are_not_listed_as_ignored():
    made = call(SyncScript("m"), options={"frequency_penalty": 0, "presence_penalty": 0.0})
    assert made.ignored == ()


def test_users_defaults_apply_to_options_that_the_client_omits():
    made = call(
        SyncScript("m"),
        options={"temperature": 0.1},
        defaults={"temperature": 0.9, "max_tokens": 7, "gone": 1},
    )
    assert made.options == {"temperature": 0.1, "max_tokens": 7}


def test_forced_tool_becomes_an_option_if_the_model_has_it():
    forced = {"tools": (llm.Tool("f"),), "tool_choice": chat.NamedTool("f")}
    assert call(SyncScript("m", Options=Claude), **forced).options == {"tool_choice": "f"}
    assert call(SyncScript("m"), **forced).ignored == ("tool_choice",)


def test_only_options_that_are_known_to_be_safe_reach_a_model():
    """llm-perplexity opens the file that its option image_path names."""
    from llm_perplexity import PerplexityOptions

    model = SyncScript("m", Options=PerplexityOptions)
    made = call(model, options={"image_path": "/etc/passwd"})
    assert (made.options, made.ignored) == ({}, ("image_path",))


def test_a_later_system_message_does_not_become_the_first():
    """claude-opus-4-8 would get it twice, once at the start (B31)."""
    made = call(in_place(), user("q"), assistant("a"), user("r"), system("mid"))
    assert made.prompt.system == ""
    assert texts(made)[-1] == ("system", "mid")


def test_system_message_after_a_reply_joins_the_user_if_plugins_want_it_after_one():
    made = call(in_place(), user("q"), assistant("a"), system("mid"), user("r"))
    assert texts(made)[-1] == ("user", "<system>\nmid\n</system>\n\nr")


def test_tool_calls_and_results_become_text_for_models_without_tools():
    reply = Message("assistant", [ToolCallPart("f", {"a": 1}, "c")])
    result = Message("tool", [ToolResultPart("f", "sun", "c")])
    made = call(SyncScript("m", supports_tools=False), user("q"), reply, result)
    assert texts(made)[1:] == [
        ("assistant", '<tool_call>f({"a": 1})</tool_call>'),
        ("user", "<tool_result>f: sun</tool_result>"),
    ]
    assert made.ignored == (
        "messages[*] (a tool call, put into words)",
        "messages[*] (a tool's result, put into words)",
    )


def test_text_file_in_a_tool_result_becomes_text():
    file = attachments.attachment_from_url("data:text/plain,hello")
    reply = Message("assistant", [ToolCallPart("f", {}, "c")])
    result = Message("tool", [ToolResultPart("f", "see", "c", attachments=[file])])
    assert texts(call(SyncScript("m"), user(), reply, result))[-1] == ("user", "hello")


def test_tools_have_an_implementation_that_is_never_called():
    """llm-ollama refuses tools without one, and keeps the schema of those that take **kwargs."""
    made = call(SyncScript("m"), tools=(llm.Tool("f", "d", {"type": "object"}),))
    [tool] = made.prompt.tools
    assert (tool.name, tool.description, tool.input_schema) == ("f", "d", {"type": "object"})
    assert callable(tool.implementation)
    assert made.tools[0].implementation is None, "the log keeps the tools of the request"


def test_server_tools_become_those_of_the_plugin():
    from llm_anthropic import WebSearch

    wanted = (
        chat.ServerTool("web_search", {"max_uses": 3}, "tools[0]"),
        chat.ServerTool("web_search", {"max_uses": "many"}, "tools[1]"),
        chat.ServerTool("code_execution", {}, "tools[2]"),
    )

    class Searching(SyncScript):
        supported_server_side_tools = (WebSearch,)

    made = call(Searching("m"), server_tools=wanted)
    [tool] = made.prompt.tools
    assert (type(tool), tool.max_uses) == (WebSearch, 3)
    assert made.ignored == ("tools[1]", "tools[2]")


def test_thinking_and_cache_become_options_if_the_model_has_them():
    from llm_anthropic import ClaudeOptionsWithThinking

    options = {"thinking": True, "thinking_budget": 2000, "cache": True}
    made = call(SyncScript("m", Options=ClaudeOptionsWithThinking), options=options)
    assert (made.options, made.ignored) == ({"thinking": True, "cache": True}, ("thinking_budget",))
