"""A program that uses every public name as a type checker should see it; it is never run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import llmproxy
from llmproxy import StreamConverter, convert
from llmproxy.convert import DialectName

API: DialectName = "openai_chat"


def record(path: Path) -> str:
    settings = llmproxy.Settings(database=str(path), keys=["secret"], debug=True)
    with llmproxy.running(settings, port=0, limits=llmproxy.Limits(running=4)) as proxy:
        url: str = proxy.url
        port: int = proxy.port
        return f"{url} {port}"


def replay(path: str) -> list[str]:
    with llmproxy.running(recordings=[path, Path(path)], ignore=[r"\d+"], log=False) as proxy:
        count: int = proxy.rewind() + proxy.recording_count
        return [f"{one.id} {one.first_words} of {count}" for one in proxy.unused_recordings()]


async def serve() -> None:
    try:
        async with llmproxy.serve(port=0, replay="replay-or-live") as proxy:
            await proxy.serve_forever()
    except llmproxy.SettingsError as error:
        print(error)


def read() -> dict[str, int | None]:
    with llmproxy.open_log("session.db") as log:
        entries = log.entries(llmproxy.Filter(status="ok", is_traffic=True), last=3)
        names: list[str | None] = [one.name for one in log.conversations()]
        print(names, log.exchange(entries[0].id).request.body)
        return {entry.id: entry.usage.input_tokens for entry in entries}


def convert_all(body: dict[str, object], chunks: list[bytes]) -> bytes:
    try:
        converted = llmproxy.convert_request(body, source=API, target="anthropic_messages")
    except llmproxy.InvalidRequest as error:
        raise ValueError(error.param or error.message) from error
    response = llmproxy.convert_response(converted.body, source="ollama", target=API)
    failed = llmproxy.convert_error(body, source=API, target=API, status=response.body["status"])
    stream = StreamConverter(source=API, target="openai_responses")
    out = b"".join(map(stream.feed, chunks)) + stream.end()
    collected = convert.collect(chunks, source=API)
    print(failed.headers, collected.usage.output_tokens, stream.ignored, stream.failed)
    return out


if __name__ == "__main__":
    llmproxy.run(port=11435, on_start=lambda proxy: print(proxy.url))
    asyncio.run(serve())
