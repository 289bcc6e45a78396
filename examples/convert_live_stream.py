"""Convert a live stream of Anthropic's Messages into OpenAI's chunks, as it arrives.

A thread plays the upstream: it writes Anthropic's events into a socket, cut without regard
to lines or characters. The loop below is all that a program needs: it feeds the data that
arrives and sends the result. The same stream is also collected into one response with its
times. HTTP is left out: `data` may come from any client's response.
"""

import json
import socket
import threading
import time

from llmproxy import convert

EVENTS = [
    {"type": "message_start", "message": {"model": "claude", "usage": {"input_tokens": 9}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hé"}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "llo 🌊"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 4},
    },
    {"type": "message_stop"},
]


def play(upstream: socket.socket) -> None:
    frames = [f"event: {e['type']}\ndata: {json.dumps(e, ensure_ascii=False)}\n\n" for e in EVENTS]
    stream = "".join(frames).encode()
    with upstream:
        for start in range(0, len(stream), 50):
            upstream.sendall(stream[start : start + 50])


upstream, client = socket.socketpair()
threading.Thread(target=play, args=(upstream,)).start()
stream = convert.StreamConverter(source="anthropic_messages", target="openai_chat")
collector = convert.Collector(source="anthropic_messages", clock=time.monotonic)
with client:
    while data := client.recv(50):
        print(stream.feed(data).decode(), end="")
        collector.feed(data)
print(stream.end().decode(), end="")

answer = collector.end()
print(answer.body["content"][0]["text"], answer.usage.input_tokens, answer.usage.output_tokens)
print("measured:", answer.ttft_ms is not None, "failed:", stream.failed, "lost:", stream.ignored)
