"""Stream a response with OpenAI's SDK and show its tokens.

Run `python -m llmproxy` first (or set LLMPROXY_URL), and `pip install openai`.
Any name that `llm models` lists may be given: `stream_with_sdk.py gpt-4o`.
Leaves out tools: the SDK handles them as with OpenAI itself.
"""

import os
import sys

try:
    import openai
except ImportError:
    raise SystemExit("this example needs a package: pip install openai") from None

url = os.environ.get("LLMPROXY_URL", "http://127.0.0.1:11435")
client = openai.OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("LLMPROXY_API_KEY", "any"))

try:
    stream = client.chat.completions.create(
        model=sys.argv[1] if len(sys.argv) > 1 else "demo",
        messages=[{"role": "user", "content": "Say hello in three languages."}],
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage:
            print(f"\n({chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out)")
except openai.APIConnectionError as error:
    raise SystemExit(f"{url}: {error} Is `python -m llmproxy` running?") from None
except openai.APIError as error:
    raise SystemExit(str(error)) from None
