"""The types of a Chat Completions request and response, under the names of OpenAI's SDK.

`payload.load` checks a body against them.

Spec: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ...core.payload import shape

# ---- the request


@shape
class ChatCompletionContentPartText:
    text: str
    type: Literal["text"] = "text"


@shape
class ImageURL:
    url: str
    detail: str | None = None


@shape
class ChatCompletionContentPartImage:
    type: Literal["image_url"]
    image_url: ImageURL | str


@shape
class InputAudio:
    data: str
    format: Literal["wav", "mp3"]


@shape
class ChatCompletionContentPartInputAudio:
    type: Literal["input_audio"]
    input_audio: InputAudio


@shape
class FileFile:
    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


@shape
class File:
    type: Literal["file"]
    file: FileFile


@shape
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


@shape
class ChatCompletionSystemMessage:
    """Instructions, and tools that are offered from here on, as Moonshot's API has them."""

    role: Literal["system", "developer"]
    content: str | list[ChatCompletionContentPartText] | None = None
    name: str | None = None
    tools: list[ChatCompletionFunctionTool | ChatCompletionCustomTool] | None = None


@shape
class ChatCompletionUserMessage:
    role: Literal["user"]
    content: str | list[ContentPart]
    name: str | None = None
    tools: list[ChatCompletionFunctionTool | ChatCompletionCustomTool] | None = None


@shape
class Function:
    name: str
    arguments: str | dict[str, Any] | None = None  # an object, from clients that parse it


@shape
class CustomToolCall:
    name: str
    input: str | None = None


@shape
class ChatCompletionMessageToolCall:
    """A call of a function, or of a custom tool; clients leave out the type, or empty it."""

    function: Function | None = None
    custom: CustomToolCall | None = None
    id: str | None = None
    type: str | None = "function"
    index: int | None = None  # sent back by clients that keep the stream's deltas


@shape
class ChatCompletionAssistantMessage:
    """A reply, often one of ours sent back: fields that only replies have are accepted."""

    role: Literal["assistant"]
    content: str | list[ChatCompletionContentPartText | ChatCompletionContentPartRefusal] | None = (
        None
    )
    tool_calls: list[ChatCompletionMessageToolCall] | None = None
    function_call: Function | None = None
    tools: list[ChatCompletionFunctionTool | ChatCompletionCustomTool] | None = None
    refusal: str | None = None
    name: str | None = None
    # Three names are in use for the same thing.
    reasoning_content: str | None = None
    reasoning: Any = None
    thinking: Any = None
    annotations: Any = None
    audio: Any = None


@shape
class ChatCompletionToolMessage:
    role: Literal["tool"]
    content: str | list[ChatCompletionContentPartText | ChatCompletionContentPartImage] | None = (
        None
    )
    tool_call_id: str | None = None
    name: str | None = None


@shape
class ChatCompletionFunctionMessage:
    role: Literal["function"]
    name: str
    content: str | list[ChatCompletionContentPartText | ChatCompletionContentPartImage] | None = (
        None
    )


ChatCompletionMessage = (
    ChatCompletionSystemMessage
    | ChatCompletionUserMessage
    | ChatCompletionAssistantMessage
    | ChatCompletionToolMessage
    | ChatCompletionFunctionMessage
)


@shape
class FunctionDefinition:
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


@shape
class ChatCompletionFunctionTool:
    function: FunctionDefinition
    type: Literal["function"] = "function"


@shape
class ChatCompletionCustomTool:
    type: Literal["custom"]
    custom: Any = None


@shape
class ToolName:
    name: str


@shape
class ChatCompletionNamedToolChoice:
    function: ToolName
    type: Literal["function"] = "function"


@shape
class ChatCompletionNamedToolChoiceCustom:
    type: Literal["custom"]
    custom: ToolName


@shape
class AllowedTool:
    function: ToolName | None = None
    type: str = "function"


@shape
class AllowedTools:
    mode: Literal["auto", "required"]
    tools: list[AllowedTool]


@shape
class ChatCompletionAllowedToolChoice:
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


@shape
class ResponseFormatText:
    type: Literal["text"]


@shape
class ResponseFormatJSONObject:
    type: Literal["json_object"]
    schema: dict[str, Any] | None = None  # not OpenAI's, but that of many local servers


@shape
class JSONSchema:
    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


@shape
class ResponseFormatJSONSchema:
    type: Literal["json_schema"]
    json_schema: JSONSchema | None = None
    schema: dict[str, Any] | None = None  # as above, from servers without names for schemas


@shape
class ChatCompletionStreamOptions:
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


@shape
class CreateChatCompletionRequest:
    """The body of a request. Null means absent throughout, as SDKs send it."""

    messages: list[ChatCompletionMessage]
    model: str | None = None
    tools: list[ChatCompletionFunctionTool | ChatCompletionCustomTool] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | ChatCompletionNamedToolChoice
        | ChatCompletionNamedToolChoiceCustom
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


OLD_TOOLS = "functions"  # a request with them, and no tools, is answered by a function_call

# Options under our names, which are mostly the vendor's own.
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
    "logprobs": "llm has no field for token probabilities",
    "top_logprobs": "llm has no field for token probabilities",
    "prediction": "a hint for speed that no llm plugin passes on",
    "web_search_options": "llm offers server tools by the plugin's own classes",
    "prompt_cache_key": "plugins choose their own cache keys",
    "prompt_cache_retention": "plugins choose their own cache keys",
    "safety_identifier": "names the client's user to OpenAI, not to the model",
    "metadata": "for OpenAI's own log; ours has the request as it came",
    "store": "for OpenAI's own log; ours has the request as it came",
}

# ---- the response, as another server sends it


@shape
class ChoiceDeltaToolCallFunction:
    name: str | None = None
    arguments: str | dict[str, Any] | None = None  # an object, from servers that parse it


@shape
class ChoiceDeltaToolCall:
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: ChoiceDeltaToolCallFunction | None = None


@shape
class ChoiceDelta:
    """A piece of the message, or all of it in a whole response."""

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


@shape
class Choice:
    index: int | None = None
    delta: ChoiceDelta | None = None
    message: ChoiceDelta | None = None
    text: str | None = None  # of an older completion
    finish_reason: str | None = None
    logprobs: Any = None


@shape
class PromptTokensDetails:
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


@shape
class CompletionTokensDetails:
    reasoning_tokens: int | None = None


@shape
class CompletionUsage:
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    total_tokens: Any = None


@shape
class ChatCompletionChunk:
    """A chunk, or a whole chat.completion, whose choices have `message` instead of `delta`."""

    choices: list[Choice] | None = None
    model: str | None = None
    usage: CompletionUsage | None = None
    # The envelope, not the response itself.
    id: Any = None
    object: Any = None
    created: Any = None
    service_tier: Any = None
    system_fingerprint: Any = None
    obfuscation: Any = None
    error: Any = None
