"""What logging one exchange costs in CPU, beside llm's own response.log_to_db().

A conversation is sent again with one turn more each time, as clients do. Printed are
milliseconds of CPU for finding the conversation again with all its replies given back,
for the row at the beginning and the one at the end, commit included, and for llm, all
in one run: `python -m benchmarks log-cost`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

os.environ["LLM_USER_PATH"] = folder = tempfile.mkdtemp()

import llm
import sqlite_utils
from llm.parts import Message, ReasoningPart, StreamEvent, TextPart

from llmproxy.backends.engine.demo import Demo
from llmproxy.conversations.matching import Match, Matcher
from llmproxy.core import chat
from llmproxy.recorder.exchange import Turn, begun, new_id, with_answer
from llmproxy.recorder.store import Store

RUNS = 15
WORDS = "so many words that they make a kilobyte " * 25


def cpu_ms(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1000


def ours(
    store: Store, matcher: Matcher, messages: list[Message], answer: str
) -> tuple[float, float, float]:
    """Find, begin and end one exchange; its answer thinks, which clients do not send again."""
    id_, now = new_id(), datetime.now(UTC)
    found: list[Match] = []
    find = cpu_ms(lambda: found.append(matcher.match(messages, "demo", "benchmark")))
    assert len(found[0].recalled) == len(messages) // 2
    wire = [{"role": m.role, "content": m.parts[0].text} for m in messages]  # type: ignore[attr-defined]
    exchange = begun(
        id_,
        now,
        dialect="openai_chat",
        path="/v1/chat/completions",
        query="",
        client="benchmark",
        headers=[("user-agent", "benchmark")],
        body={"model": "demo", "messages": wire},
        model="demo",
        messages=messages,
    )
    begin = cpu_ms(lambda: store.write([exchange]))
    reply = [Message("assistant", [ReasoningPart("hm"), TextPart(answer)])]
    turn = Turn(id_, new_id(), "demo", found[0].messages, reply, now, 5)
    events = [
        (float(i), StreamEvent("text", word + " ", part_index=0))
        for i, word in enumerate(WORDS.split())
    ]
    over = replace(
        exchange,
        status="ok",
        http_status=200,
        duration_ms=9.0,
        previous_id=found[0].previous_id,
        link=found[0].link,
    )
    ended = with_answer(over, turn, events, chat.Finish())
    return find, begin, cpu_ms(lambda: store.write([ended]))


def theirs(database: sqlite_utils.Database, messages: list[Message]) -> float:
    model = Demo()
    response = llm.Response(llm.Prompt("hi", model=model, messages=messages), model, False)
    response.text()
    return cpu_ms(lambda: response.log_to_db(database))


def main() -> None:
    path = Path(folder) / "ours.db"
    store, matcher = Store(path), Matcher(path)
    database = sqlite_utils.Database(Path(folder) / "theirs.db")
    print("messages sent again    find  begin    end    llm")
    for count in (0, 10, 100, 1000):
        messages: list[Message] = []
        times = []
        for i in range(count // 2 + RUNS):
            messages.append(Message("user", [TextPart(f"question {i} of {count} {WORDS}")]))
            answer = f"answer {i} of {count} {WORDS}"
            cost = ours(store, matcher, list(messages), answer)
            if i >= count // 2:
                times.append((*cost, theirs(database, list(messages))))
            messages.append(Message("assistant", [TextPart(answer)]))
        find, begin, end, llms = (sorted(column)[RUNS // 2] for column in zip(*times, strict=True))
        shown = f"{find:6.2f} {begin:6.2f} {end:6.2f} {llms:6.2f}"
        print(f"{count:19}  {shown}  ms CPU, median of {RUNS}")
    matcher.close()
    store.close()


if __name__ == "__main__":
    main()
