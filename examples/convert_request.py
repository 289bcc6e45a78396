"""Convert a request for OpenAI's Chat Completions into one for Anthropic's Messages.

Shows the three results that matter: the new body, ready to post; the fields that it can't
hold; and the clear error for a body that is no request. Needs no server, key or network.
Posting is left out: any HTTP client will do.
"""

import json

from llmproxy import InvalidRequest, convert_request

body = {
    "model": "claude-sonnet-4-5",
    "messages": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What is the weather in Paris?"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather of a city",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        }
    ],
    "max_tokens": 100,
    "logit_bias": {"42": 1},
}

converted = convert_request(body, source="openai_chat", target="anthropic_messages")
print(json.dumps(converted.body, indent=2))
for path in converted.ignored:
    print("not carried:", path)

try:
    convert_request({"messages": "hello"}, source="openai_chat", target="anthropic_messages")
except InvalidRequest as error:
    print(f"refused: {error.param}: {error.message}")
